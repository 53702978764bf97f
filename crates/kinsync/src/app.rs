//! Composes, starts and stops the server.
//!
//! Deliveries are accepted as soon as the queue is open. `MongoDB` may be unavailable then: its indexes are created, and the
//! projector starts, when it responds. The order of a stop: no new connections, responses to requests in flight, the batch
//! of the projector, the queue.

mod authenticator;
pub(crate) mod data_dir;
pub(crate) mod management;
pub(crate) mod start;
mod state;

use std::{io, net::SocketAddr, sync::Arc};

use kinsync_engine::internal::{queue, store};

pub use self::state::AppState;
use crate::config::Config;

/// The reason why the app did not start or cannot continue.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The queue cannot be used.
    #[error("cannot open the queue")]
    Queue(#[source] Arc<queue::Error>),
    /// The data folder cannot be used.
    #[error(
        "cannot use `{path}`: make the data folder one that this user can write, or set KINSYNC_DATA_DIR to another"
    )]
    DataDir {
        /// The file or folder.
        path: String,
        /// The error of the system or of `SQLite`.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Another user of the machine could choose the files in the data folder.
    #[error("refusing to use the data folder: {0}")]
    UnsafeDataDir(String),
    /// The store cannot be used, and waiting does not help.
    #[error("cannot use the store")]
    Store(#[source] Arc<store::Error>),
    /// The secrets cannot be used.
    #[error("cannot use KINDE_WEBHOOK_SECRET or KINSYNC_STANDARD_WEBHOOKS_SECRET")]
    Verifier(#[source] kinde::webhook::ConfigError),
    /// The keys of the tenant cannot be requested.
    #[error("cannot use KINDE_DOMAIN")]
    Jwks(#[source] Arc<kinde::jwks::ConfigError>),
    /// Profiles cannot be requested.
    #[error("cannot use KINDE_ISSUERS")]
    Issuer(#[source] Arc<kinde::account::ConfigError>),
    /// The Management API cannot be used.
    #[error("cannot use KINDE_DOMAIN with KINDE_M2M_CLIENT_ID")]
    Management(#[source] Arc<kinde::management::ConfigError>),
    /// The certificate or the key of the listener cannot be used.
    #[error("cannot use KINSYNC_TLS_CERTIFICATE and KINSYNC_TLS_KEY")]
    Tls(#[source] Arc<crate::http::tls::Error>),
    /// The address is taken or is not one of this machine.
    #[error("cannot listen on {address}: choose another PORT or KINSYNC_BIND")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The error of the system.
        source: Arc<io::Error>,
    },
    /// The engine could not be opened.
    #[error("cannot start")]
    Engine(#[source] Arc<kinsync_engine::Error>),
    /// A component reported an error that waiting does not fix.
    #[error(transparent)]
    Fatal(Arc<dyn std::error::Error + Send + Sync>),
    /// A part ended unexpectedly.
    #[error("the {part} ended unexpectedly; the log contains the reason, and no accepted delivery is lost")]
    Ended {
        /// Name of the part.
        part: &'static str,
    },
}

/// A running kinsync. Dropping it stops nothing: call [`App::stop`].
#[derive(Debug)]
pub struct App {
    state: Arc<AppState>,
    addresses: start::Addresses,
    servers: start::Servers,
}

/// How an app ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// Everything in flight was finished.
    Clean,
    /// The grace period ended first. Accepted deliveries are in the queue.
    Cut,
}

impl App {
    /// Opens everything and listens. Deliveries are accepted when this returns.
    pub async fn start(config: Config) -> Result<Self, Error> {
        start::start(config).await
    }

    /// The address on which it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addresses.main
    }

    /// The state, for tests.
    pub fn state(&self) -> &Arc<AppState> {
        &self.state
    }

    /// Waits until the app cannot continue. Cancel safe.
    pub async fn failed(&self) -> Error {
        Error::Fatal(self.state.engine.supervisor().fatal().await)
    }

    /// Stops accepting, finishes requests in flight and closes the queue, within the grace period.
    pub async fn stop(self) -> Stopped {
        let grace = self.state.config.http.shutdown_grace;
        if tokio::time::timeout(grace, self.finish()).await.is_ok() {
            tracing::info!("stopped");
            return Stopped::Clean;
        }
        tracing::warn!(
            "the grace period ended; accepted deliveries are in the queue and are applied after a restart"
        );
        Stopped::Cut
    }

    async fn finish(self) {
        tracing::info!("stopping: no new connections, finishing what is in flight");
        self.servers.stop().await;
        self.state.engine.stop().await;
    }
}
