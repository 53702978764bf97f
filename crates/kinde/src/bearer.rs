//! Verifies the access tokens that Kinde issues to users.
//!
//! The same keys sign access tokens, ID tokens, machine tokens and webhooks; this door takes the first kind only. Of
//! Kinde's claims only `iss`, `sub`, `azp`, `exp`, `iat` and `jti` are always there (workflows can remove others), so
//! nothing else is demanded.
//!
//! **ID tokens** are told by what Kinde puts into them and never into access tokens: `at_hash`, `c_hash` or `nonce`
//! always; `auth_time` or `org_codes` (plural) when there is no `scp` or `scope` beside them. An access token to which
//! an application added `email` or names is still an access token.
//!
//! <https://docs.kinde.com/build/tokens/about-access-tokens/>, <https://docs.kinde.com/build/tokens/about-id-tokens/>

mod caching;
mod claims;
mod error;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};

pub use self::caching::{CachingConfig, CachingVerifier};
pub use self::error::VerificationError;
use crate::jwks::Jwks;
use crate::jws::{Key, MAX_TOKEN_BYTES, Unverified};

/// What a verifier accepts.
#[derive(Debug, Clone)]
pub struct Config {
    /// The issuers, exactly as tokens spell them, each with its keys. A custom domain is an issuer of its own.
    pub issuers: Vec<(String, Jwks)>,
    /// The audiences of which a token must name one; none of them takes any token. Kinde leaves `aud` empty unless the front end asks for it.
    pub audiences: Vec<String>,
    /// How far the clocks of Kinde and this machine may be apart.
    pub leeway: Duration,
}

impl Default for Config {
    /// No issuer; any audience; one minute of leeway.
    fn default() -> Self {
        Self { issuers: Vec::new(), audiences: Vec::new(), leeway: Duration::from_mins(1) }
    }
}

/// Verifies access tokens. Clones share everything.
#[derive(Debug, Clone)]
pub struct Verifier(Arc<Config>);

/// A verified access token of a user. It says nothing about the user's being suspended or deleted since.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct AccessToken {
    /// `sub`: the user's id; 1 to 256 bytes without control characters.
    pub subject: String,
    /// `iss`: one of the configured issuers.
    pub issuer: String,
    /// `exp`.
    pub expires_at: Timestamp,
    /// `iat`: when the token was issued, which is not when the user signed in.
    pub issued_at: Option<Timestamp>,
    /// `azp`: the application.
    pub client_id: Option<String>,
    /// `org_code`: the organization that the user signed in to.
    pub org_code: Option<String>,
    /// `email`: only where the application is set to have it in access tokens. Not known to be verified.
    pub email: Option<String>,
    /// All claims.
    pub claims: Map<String, Value>,
}

/// Claims are personal data and stay out of it.
impl fmt::Debug for AccessToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("AccessToken")
            .field("subject", &self.subject)
            .field("issuer", &self.issuer)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    /// Without issuers every token is refused.
    pub fn new(config: Config) -> Self {
        Self(Arc::new(config))
    }

    /// Verifies a token, given without `Bearer `.
    ///
    /// Cancel safe. Waits only for keys that are not there yet ([`Jwks::key`]).
    ///
    /// # Errors
    /// A [`VerificationError`] says why, and whether to answer 401 or, for [`VerificationError::is_unavailable`], 503.
    pub async fn verify(&self, token: &str, now: Timestamp) -> Result<AccessToken, VerificationError> {
        self.verify_with_key(token, now).await.map(|(token, _)| token)
    }

    /// Verifies a token and says which key vouches for it.
    async fn verify_with_key(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<(AccessToken, SigningKey), VerificationError> {
        let token = Unverified::parse(token, MAX_TOKEN_BYTES)?;
        let claims = token.unverified_claims()?;
        claims::refuse_webhook(&claims)?;
        let issuer = claims::required_text(&claims, "iss")?;
        // The issuer chooses the keys: a key of one tenant never vouches for another.
        let (issuer, jwks) = self
            .0
            .issuers
            .iter()
            .find(|(known, _)| known == issuer)
            .ok_or(VerificationError::UnknownIssuer)?;
        // Before the key: so a signing_key never counts for keys that came later.
        let generation = jwks.generation();
        let key = jwks.key(token.kid()).await?;
        let signing_key =
            SigningKey { jwks: jwks.clone(), kid: token.kid().into(), key: key.clone(), generation };
        token.verify(&key)?;
        Ok((claims::read(&self.0, issuer, claims, now)?, signing_key))
    }
}

/// The key that verified a token, and where it came from.
#[derive(Debug)]
struct SigningKey {
    jwks: Jwks,
    kid: Box<str>,
    key: Key,
    /// Of the keys, when this one was asked for.
    generation: u64,
}

impl SigningKey {
    /// True until the issuer withdraws the key or gives its name to another.
    fn is_current(&self) -> bool {
        self.jwks.holds(&self.kid, &self.key, self.generation)
    }
}
