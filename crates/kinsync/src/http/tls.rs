//! TLS of a listener: a certificate and a key from files, read again when they change.
//!
//! Connections in progress keep the certificate that they began with. Files that cannot be used, for example while only one
//! of the two has been replaced, change nothing: the certificate before them stays in use.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::interval;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{
            CertificateDer, PrivateKeyDer,
            pem::{self, PemObject as _},
        },
    },
};
use tokio_util::sync::CancellationToken;

/// Interval between two reads of the files.
const READ_EVERY: Duration = Duration::from_secs(5);

/// Why the certificate or the key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("`{path}` holds no {what} in PEM")]
    Pem {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
        /// The error of the parser.
        source: pem::Error,
    },
    /// The certificate and the key cannot be used together.
    #[error("the certificate and the private key cannot be used together")]
    Unusable(#[source] rustls::Error),
}

/// The current certificate of a listener.
#[derive(Debug)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    current: Mutex<Current>,
}

struct Current {
    contents: Contents,
    acceptor: TlsAcceptor,
}

/// The bytes of the certificate and of the key.
type Contents = (Vec<u8>, Vec<u8>);

impl Tls {
    /// Reads the files.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, Error> {
        let contents = read(certificate, key)?;
        let acceptor = acceptor(certificate, key, &contents)?;
        let current = Mutex::new(Current { contents, acceptor });
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), current })
    }

    /// Returns what accepts the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).acceptor.clone()
    }

    /// Reads the files again from time to time, until the stop.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(READ_EVERY);
        let mut last_error = None;
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let tls = Arc::clone(&self);
            // The files may be on a disk that hangs.
            let Ok(outcome) = tokio::task::spawn_blocking(move || tls.reload()).await else { continue };
            let error = outcome.err().map(|error| kinsync_tower::problem::chain(&error));
            if let Some(error) = &error
                && last_error.as_ref() != Some(error)
            {
                tracing::warn!(
                    error,
                    "the changed TLS files cannot be used; the certificate before them stays in use"
                );
            }
            last_error = error;
        }
    }

    /// Uses the files if they changed.
    fn reload(&self) -> Result<(), Error> {
        let contents = read(&self.certificate, &self.key)?;
        if contents == self.current.lock().unwrap_or_else(PoisonError::into_inner).contents {
            return Ok(());
        }
        let acceptor = acceptor(&self.certificate, &self.key, &contents)?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Current { contents, acceptor };
        tracing::info!("the changed TLS certificate is in use");
        Ok(())
    }
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Current")
    }
}

fn read(certificate: &Path, key: &Path) -> Result<Contents, Error> {
    let file = |path: &Path| fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source });
    Ok((file(certificate)?, file(key)?))
}

fn acceptor(certificate: &Path, key: &Path, contents: &Contents) -> Result<TlsAcceptor, Error> {
    let wrong = |path: &Path, what| {
        let path = path.to_owned();
        move |source| Error::Pem { path, what, source }
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&contents.0)
        .collect::<Result<_, _>>()
        .and_then(|chain: Vec<_>| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) })
        .map_err(wrong(certificate, "certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(&contents.1).map_err(wrong(key, "private key"))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(Error::Unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(Error::Unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
