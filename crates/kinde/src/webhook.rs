//! Verifies webhook requests.
//!
//! [`Verifier::verify`] checks the signature of a request. It is the only function that makes a [`Delivery`] from a request. The meaning of the payload is decoded by [`crate::event`]. Limits on the size and duration of a request
//! belong to the server that reads the body.
//!
//! The request selects one scheme, whatever is configured. A valid signature of another scheme does not count.

mod delivery;
mod error;
mod hmac;
mod jwt;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};

pub use self::delivery::{Delivery, Scheme, UnknownScheme};
pub use self::error::VerificationError;
use crate::jwks::Jwks;
use crate::secret;

/// Header of the scheme [`Scheme::Hmac`].
pub static SIGNATURE_HEADER: HeaderName = HeaderName::from_static("x-kinde-signature");
/// Signature header of the scheme [`Scheme::StandardWebhooks`].
pub static STANDARD_SIGNATURE_HEADER: HeaderName = HeaderName::from_static("webhook-signature");

/// The accepted schemes. A scheme without keys or secrets is off.
#[derive(Debug, Clone)]
pub struct Config {
    /// Keys for JWTs that Kinde signs.
    pub jwks: Option<Jwks>,
    /// Secrets of the HMAC scheme. A signature by any of them is accepted, for rotation.
    pub hmac_secrets: Vec<SecretString>,
    /// Secrets of Standard Webhooks: base64, with or without the prefix `whsec_`. A signature by any of them is accepted.
    pub standard_webhooks_secrets: Vec<SecretString>,
    /// Maximum difference between `webhook-timestamp` and now, in both directions (Standard Webhooks only).
    pub tolerance: Duration,
}

impl Default for Config {
    /// All schemes off; a tolerance of five minutes.
    fn default() -> Self {
        Self {
            jwks: None,
            hmac_secrets: Vec::new(),
            standard_webhooks_secrets: Vec::new(),
            tolerance: Duration::from_mins(5),
        }
    }
}

/// The reason why a verifier cannot be created. Secrets are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// With an empty secret every sender can sign.
    #[error("secret number {number} of the scheme `{scheme}` is empty")]
    EmptySecret {
        /// The scheme of the secret.
        scheme: Scheme,
        /// The position of the secret.
        number: usize,
    },
    /// A secret of Standard Webhooks is not base64 after the optional `whsec_`.
    #[error("secret number {number} of Standard Webhooks is not base64: copy it with its prefix `whsec_`")]
    InvalidBase64 {
        /// The position of the secret.
        number: usize,
    },
    /// Both HMAC schemes have the same secret, so a captured request of one could be replayed as the other.
    #[error(
        "secret number {number} of Standard Webhooks is also a secret of `hmac_sha256`: use different secrets"
    )]
    SharedSecret {
        /// The position of the secret among those of Standard Webhooks.
        number: usize,
    },
}

/// Verifies webhook requests. Clones share everything.
#[derive(Clone)]
pub struct Verifier(Arc<Inner>);

struct Inner {
    jwks: Option<Jwks>,
    hmac: Vec<aws_lc_rs::hmac::Key>,
    standard: Vec<aws_lc_rs::hmac::Key>,
    tolerance: Duration,
}

impl Verifier {
    /// Checks the secrets and prepares the keys.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let hmac = hmac_secrets(&config.hmac_secrets)?;
        let standard = standard_webhooks_secrets(&config.standard_webhooks_secrets)?;
        let shared = standard.iter().zip(&config.standard_webhooks_secrets).position(|(bytes, secret)| {
            hmac.iter().any(|known| *known == bytes.as_slice() || *known == secret.expose_secret().as_bytes())
        });
        if let Some(index) = shared {
            return Err(ConfigError::SharedSecret { number: index + 1 });
        }
        Ok(Self(Arc::new(Inner {
            jwks: config.jwks,
            hmac: hmac.into_iter().map(hmac::key).collect(),
            standard: standard.iter().map(|bytes| hmac::key(bytes)).collect(),
            tolerance: config.tolerance,
        })))
    }

    /// Verifies one request, given its headers and its complete raw body.
    ///
    /// Cancel safe. Waits only for a fetch of keys ([`Jwks::key`]).
    ///
    /// # Errors
    /// [`VerificationError::is_unavailable`] selects between the statuses 401 and 503.
    pub async fn verify(
        &self,
        headers: &HeaderMap,
        body: Bytes,
        now: Timestamp,
    ) -> Result<Delivery, VerificationError> {
        match scheme_of(headers, &body) {
            // Boxed, so that deliveries of the other schemes have a small future.
            Some(Scheme::KindeJwt) => Box::pin(jwt::verify(self.0.jwks.as_ref(), &body)).await,
            Some(Scheme::Hmac) => hmac::verify_plain(&self.0.hmac, headers, body),
            Some(Scheme::StandardWebhooks) => {
                hmac::verify_standard(&self.0.standard, headers, body, now, self.0.tolerance)
            }
            None => Err(VerificationError::MissingSignature),
        }
    }

    /// Returns true if requests of this scheme can be accepted.
    pub fn is_enabled(&self, scheme: Scheme) -> bool {
        match scheme {
            Scheme::KindeJwt => self.0.jwks.is_some(),
            Scheme::Hmac => !self.0.hmac.is_empty(),
            Scheme::StandardWebhooks => !self.0.standard.is_empty(),
        }
    }
}

/// Prints the enabled schemes and no secret.
impl fmt::Debug for Verifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let enabled: Vec<_> = Scheme::ALL.into_iter().filter(|scheme| self.is_enabled(*scheme)).collect();
        formatter.debug_struct("Verifier").field("enabled", &enabled).finish_non_exhaustive()
    }
}

fn hmac_secrets(secrets: &[SecretString]) -> Result<Vec<&[u8]>, ConfigError> {
    let bytes = secrets.iter().map(|secret| secret.expose_secret().as_bytes());
    bytes.enumerate().map(|(index, bytes)| non_empty(bytes, Scheme::Hmac, index)).collect()
}

fn standard_webhooks_secrets(secrets: &[SecretString]) -> Result<Vec<Vec<u8>>, ConfigError> {
    let read = |(index, secret): (usize, &SecretString)| {
        let bytes = secret::standard_webhooks_bytes(secret.expose_secret())
            .ok_or(ConfigError::InvalidBase64 { number: index + 1 })?;
        non_empty(bytes, Scheme::StandardWebhooks, index)
    };
    secrets.iter().enumerate().map(read).collect()
}

fn non_empty<T: AsRef<[u8]>>(secret: T, scheme: Scheme, index: usize) -> Result<T, ConfigError> {
    if secret.as_ref().is_empty() {
        return Err(ConfigError::EmptySecret { scheme, number: index + 1 });
    }
    Ok(secret)
}

/// The scheme that the request selects, whatever is configured.
fn scheme_of(headers: &HeaderMap, body: &[u8]) -> Option<Scheme> {
    if is_jwt_content(headers) || jwt::is_compact_jws(body) {
        Some(Scheme::KindeJwt)
    } else if headers.contains_key(&SIGNATURE_HEADER) {
        Some(Scheme::Hmac)
    } else if headers.contains_key(&STANDARD_SIGNATURE_HEADER) {
        Some(Scheme::StandardWebhooks)
    } else {
        None
    }
}

fn is_jwt_content(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_TYPE).iter().any(|value| {
        let value = value.to_str().unwrap_or_default();
        let essence = value.split_once(';').map_or(value, |(essence, _)| essence);
        essence.trim().eq_ignore_ascii_case("application/jwt")
    })
}
