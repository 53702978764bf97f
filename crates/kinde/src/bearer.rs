//! Verifies the access tokens that Kinde issues to users.
//!
//! The same keys sign access tokens, ID tokens, machine tokens and webhooks. [`Verifier`] accepts access tokens of users
//! only. Of Kinde's claims only `iss`, `sub`, `azp`, `exp`, `iat` and `jti` are always present, because workflows can
//! remove others; no other claim is required.
//!
//! **ID tokens** are recognized by claims that Kinde never adds to access tokens: `at_hash`, `c_hash` or `nonce` in any
//! case; `auth_time` or `org_codes` (plural) if there is neither `scp` nor `scope`. An access token to which an
//! application added `email` or names is still an access token.
//!
//! <https://docs.kinde.com/build/tokens/about-access-tokens/>, <https://docs.kinde.com/build/tokens/about-id-tokens/>

mod access_token;
mod caching;
mod claims;
mod error;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

pub use self::access_token::{AccessToken, FlagValue, Role};
pub use self::caching::{CachingConfig, CachingVerifier};
pub use self::error::VerificationError;
use crate::jwks::Jwks;
use crate::jws::{Key, MAX_TOKEN_BYTES, Unverified};

/// Prefix of the API keys that Kinde issues to users and organizations.
///
/// <https://docs.kinde.com/manage-your-apis/add-manage-api-keys/create-an-api-key/>
const API_KEY_PREFIX: &str = "k_live_";

/// The tokens that a verifier accepts.
#[derive(Debug, Clone)]
pub struct Config {
    /// The issuers, exactly as tokens spell them, each with its keys. A custom domain is an issuer of its own.
    pub issuers: Vec<(String, Jwks)>,
    /// The keys of the tenant. An issuer without a common key belongs to another tenant, and its tokens are rejected: user
    /// ids of two tenants must not meet. `None` accepts every issuer.
    pub tenant: Option<Jwks>,
    /// Accepted audiences: `aud` must contain one of them. Empty accepts every token. Kinde leaves `aud` empty unless
    /// the front end requests an audience.
    pub audiences: Vec<String>,
    /// Client ids of the accepted applications: `azp` must be one of them. Empty accepts every application of the tenant.
    pub client_ids: Vec<String>,
    /// Tolerated difference between the clocks of Kinde and this machine.
    pub leeway: Duration,
}

impl Default for Config {
    /// No issuer, no check of the tenant, every audience, every application, one minute of leeway.
    fn default() -> Self {
        Self {
            issuers: Vec::new(),
            tenant: None,
            audiences: Vec::new(),
            client_ids: Vec::new(),
            leeway: Duration::from_mins(1),
        }
    }
}

/// Verifies access tokens. Clones share everything.
#[derive(Debug, Clone)]
pub struct Verifier(Arc<Config>);

impl Verifier {
    /// Creates a verifier. Without issuers it rejects every token.
    pub fn new(config: Config) -> Self {
        Self(Arc::new(config))
    }

    /// Verifies a token, given without `Bearer `.
    ///
    /// Cancel safe. Waits only for a fetch of keys ([`Jwks::key`]).
    ///
    /// # Errors
    /// [`VerificationError::is_unavailable`] selects between the statuses 401 and 503.
    pub async fn verify(&self, token: &str, now: Timestamp) -> Result<AccessToken, VerificationError> {
        self.verify_with_key(token, now).await.map(|(token, _)| token)
    }

    /// Verifies a token and returns the key that verified it.
    async fn verify_with_key(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<(AccessToken, SigningKey), VerificationError> {
        if token.starts_with(API_KEY_PREFIX) {
            return Err(VerificationError::ApiKey);
        }
        let token = Unverified::parse(token, MAX_TOKEN_BYTES)?;
        let unverified = token.unverified_members()?;
        claims::reject_webhook(&unverified)?;
        let issuer = claims::unverified_issuer(&unverified)?;
        // The issuer selects the keys: a key of one tenant never verifies a token of another.
        let known = self.0.issuers.iter().find(|(known, _)| *known == issuer);
        let (issuer, jwks) = known.ok_or(VerificationError::UnknownIssuer)?;
        // Read before the key, so that the generation never belongs to keys that came later.
        let generation = jwks.generation();
        let kid = token.kid().into();
        let (verified, key) = jwks.verify::<VerificationError>(token).await?;
        let token = claims::read(&self.0, issuer, verified.claims()?, now)?;
        // Last, because it may need keys of the tenant that cannot be fetched now: a token that is wrong anyway is not retried.
        if let Some(tenant) = &self.0.tenant
            && !jwks.is_of_tenant(tenant).await?
        {
            return Err(VerificationError::OtherTenant);
        }
        Ok((token, SigningKey { jwks: jwks.clone(), kid, key, generation }))
    }
}

/// The key that verified a token, and its origin.
#[derive(Debug)]
struct SigningKey {
    jwks: Jwks,
    kid: Box<str>,
    key: Key,
    /// The generation of the key set before this key was read.
    generation: u64,
}

impl SigningKey {
    /// True until the issuer withdraws the key or reuses its name for another key.
    fn is_current(&self) -> bool {
        self.jwks.holds(&self.kid, &self.key, self.generation)
    }
}
