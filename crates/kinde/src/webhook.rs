//! Verifies one webhook request and makes a [`Delivery`] of it.
//!
//! Responsible for: who sent it. Not for what it means ([`crate::event`]), nor for limits of size and time, which the
//! server sets before it reads the body. The invariant: [`Verifier::verify`] is the only way from a request to a
//! [`Delivery`]. A request belongs to one scheme; a signature of another scheme never rescues it.

mod delivery;
mod error;
mod hmac;
mod jwt;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};

pub use self::delivery::{Delivery, Scheme};
pub use self::error::VerificationError;
use crate::jwks::Jwks;
use crate::secret;

/// Header of the scheme [`Scheme::Hmac`].
pub const SIGNATURE_HEADER: &str = "x-kinde-signature";
/// Signature header of the scheme [`Scheme::StandardWebhooks`].
pub const STANDARD_SIGNATURE_HEADER: &str = "webhook-signature";

/// What a verifier accepts. A scheme that is not configured is off.
#[derive(Debug, Clone)]
pub struct Config {
    /// Keys for Kinde's own JWTs; `None` turns that scheme off.
    pub jwks: Option<Jwks>,
    /// Shared secrets; any of them may have signed, so that they can be rotated. None turns both HMAC schemes off.
    pub secrets: Vec<SecretString>,
    /// Largest difference between `webhook-timestamp` and now, in either direction (Standard Webhooks only).
    pub tolerance: Duration,
    /// Whether the secrets also serve Standard Webhooks.
    pub standard_webhooks: bool,
}

impl Default for Config {
    /// Everything off; five minutes of tolerance; Standard Webhooks on as soon as there is a secret.
    fn default() -> Self {
        Self { jwks: None, secrets: Vec::new(), tolerance: Duration::from_mins(5), standard_webhooks: true }
    }
}

/// Why a verifier cannot be made. Secrets are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// An empty secret would let anyone sign.
    #[error("webhook secret number {number} is empty")]
    EmptySecret {
        /// Which one.
        number: usize,
    },
    /// Begins with `whsec_`, but the rest is not base64.
    #[error("webhook secret number {number} begins with `whsec_` but does not go on in base64")]
    BrokenSecret {
        /// Which one.
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
        let mut hmac = Vec::new();
        let mut standard = Vec::new();
        for (index, secret) in config.secrets.iter().enumerate() {
            let (secret, number) = (secret.expose_secret(), index + 1);
            let bytes =
                secret::standard_webhooks_bytes(secret).ok_or(ConfigError::BrokenSecret { number })?;
            if bytes.is_empty() {
                return Err(ConfigError::EmptySecret { number });
            }
            hmac.push(hmac::key(secret.as_bytes()));
            if config.standard_webhooks {
                standard.push(hmac::key(&bytes));
            }
        }
        Ok(Self(Arc::new(Inner { jwks: config.jwks, hmac, standard, tolerance: config.tolerance })))
    }

    /// Verifies one request: its headers and its whole, raw body.
    ///
    /// Cancel safe. Waits only for keys that are not there yet ([`Jwks::key`]).
    ///
    /// # Errors
    /// A [`VerificationError`] says why, and whether to answer 401 or, for [`VerificationError::is_unavailable`], 503.
    pub async fn verify(
        &self,
        headers: &HeaderMap,
        body: Bytes,
        now: Timestamp,
    ) -> Result<Delivery, VerificationError> {
        match scheme_of(headers, &body) {
            Some(Scheme::KindeJwt) => jwt::verify(self.0.jwks.as_ref(), &body).await,
            Some(Scheme::Hmac) => hmac::verify_plain(&self.0.hmac, headers, body),
            Some(Scheme::StandardWebhooks) => {
                hmac::verify_standard(&self.0.standard, headers, body, now, self.0.tolerance)
            }
            None => Err(VerificationError::MissingSignature),
        }
    }

    /// True when a request of this scheme can be accepted.
    pub fn is_enabled(&self, scheme: Scheme) -> bool {
        match scheme {
            Scheme::KindeJwt => self.0.jwks.is_some(),
            Scheme::Hmac => !self.0.hmac.is_empty(),
            Scheme::StandardWebhooks => !self.0.standard.is_empty(),
        }
    }
}

/// Secrets and keys stay out of it.
impl fmt::Debug for Verifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on: Vec<_> = Scheme::ALL.into_iter().filter(|scheme| self.is_enabled(*scheme)).collect();
        formatter.debug_struct("Verifier").field("on", &on).finish_non_exhaustive()
    }
}

/// The one scheme that the request is held to, whatever is configured.
fn scheme_of(headers: &HeaderMap, body: &[u8]) -> Option<Scheme> {
    if is_jwt_content(headers) || looks_like_jwt(body) {
        Some(Scheme::KindeJwt)
    } else if headers.contains_key(SIGNATURE_HEADER) {
        Some(Scheme::Hmac)
    } else if headers.contains_key(STANDARD_SIGNATURE_HEADER) {
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

/// `eyJ` is base64url for `{"`; no JSON text begins with it.
fn looks_like_jwt(body: &[u8]) -> bool {
    body.starts_with(b"eyJ") && body.split(|byte| *byte == b'.').count() == 3
}
