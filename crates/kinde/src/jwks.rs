//! The public keys of a Kinde tenant by key id (`kid`).
//!
//! A key set either holds keys that the caller supplies ([`Jwks::from_document`], [`Jwks::replace`]) or, with the feature
//! `fetch`, fetches them (`Jwks::new`). A fetched key set keeps three guarantees: one fetch runs at a time; no fetch
//! starts before the cool-down of the previous one is over, whatever `kid`s the tokens name; and the keys of the last
//! successful fetch stay in use while Kinde is unreachable, up to a maximum age.
//!
//! This module selects keys. [`crate::jws`] verifies signatures.
//!
//! <https://docs.kinde.com/build/tokens/verifying-json-web-tokens/>

#[cfg(feature = "fetch")]
mod config;
mod document;
#[cfg(feature = "fetch")]
mod fetch;
#[cfg(not(feature = "fetch"))]
mod fixed;
#[cfg(feature = "fetch")]
mod remote;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use url::Url;

#[cfg(feature = "fetch")]
pub use self::config::{Config, ConfigError};
use self::document::Document;
pub use self::document::DocumentError;
#[cfg(feature = "fetch")]
pub use self::fetch::FetchError;
#[cfg(not(feature = "fetch"))]
use self::fixed::Remote;
#[cfg(feature = "fetch")]
use self::remote::Remote;
use crate::domain;
use crate::jws::Key;
#[cfg(any(feature = "webhook", feature = "bearer"))]
use crate::jws::{self, Unverified, Verified};
use crate::labels::labels;

/// The reason why there is no key for a `kid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The tenant's current keys do not contain this `kid`.
    #[error(
        "the tenant has no key with this `kid`: the token is from another tenant, or its key was withdrawn"
    )]
    UnknownKey,
    /// The tenant's current keys are not known: a fetch failed, or the next fetch is not allowed yet. Try again later.
    #[error(
        "the tenant's current keys are not known: check that `/.well-known/jwks.json` of the issuer can be reached"
    )]
    Unavailable {
        /// Time until the next fetch is allowed, at least one second.
        retry_after: Duration,
    },
}

labels! {
    /// Every [`Self::reason`].
    REASONS,
    /// Returns a stable label for metrics and problem documents.
    reason of Error {
        Self::UnknownKey => "unknown_key",
        Self::Unavailable { .. } => "keys_unavailable",
    }
}

impl Error {
    /// Returns the time for `Retry-After`, if the keys may be available later.
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::UnknownKey => None,
            Self::Unavailable { retry_after } => Some(retry_after),
        }
    }
}

/// The state of a key set, for health checks.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Status {
    /// The issuer, without a trailing slash.
    pub issuer: String,
    /// Number of usable keys; 0 from the maximum age on.
    pub key_count: usize,
    /// True if the document contains private or symmetric key material, which lets every reader of it sign tokens.
    /// The keys stay in use; also logged as an error. Rotate the keys in Kinde.
    pub exposes_private_key: bool,
    /// Number of fetches that were started.
    pub fetch_count: u64,
    /// Time since the last successful fetch.
    pub last_success_age: Option<Duration>,
    /// The error of the last fetch; `None` if it succeeded or there was none.
    pub last_error: Option<String>,
    /// Number of failed fetches since the last successful one.
    pub consecutive_failures: u32,
}

/// The key set of one tenant. Clones share it.
#[derive(Clone)]
pub struct Jwks(Arc<Inner>);

struct Inner {
    issuer: String,
    /// `None` for keys that the caller supplies.
    remote: Option<Remote>,
    keys: ArcSwap<KeySet>,
}

#[derive(Default)]
struct KeySet {
    keys: HashMap<String, Key>,
    exposes_private_key: bool,
    /// Changes whenever a key is added or removed.
    generation: u64,
    /// The first fetch that returned these keys.
    #[cfg(feature = "fetch")]
    changed_at: Option<tokio::time::Instant>,
    /// The last fetch that returned these keys.
    #[cfg(feature = "fetch")]
    fetched_at: Option<tokio::time::Instant>,
}

impl Jwks {
    /// Creates a key set from a JWKS document. It is never fetched: [`Self::replace`] changes it.
    pub fn from_document(issuer: &Url, document: &[u8]) -> Result<Self, DocumentError> {
        let jwks = Self::with_remote(domain::issuer_of(issuer), None);
        jwks.replace(document)?;
        Ok(jwks)
    }

    /// Replaces all keys by those of a JWKS document. On an error the keys stay as they are.
    pub fn replace(&self, document: &[u8]) -> Result<(), DocumentError> {
        document::parse(document).map(|document| self.store(document))
    }

    fn with_remote(issuer: String, remote: Option<Remote>) -> Self {
        Self(Arc::new(Inner { issuer, remote, keys: ArcSwap::default() }))
    }

    /// Returns the key with this `kid`.
    ///
    /// A known key is returned at once; if the keys are old, a fetch starts in the background. For an unknown `kid` this
    /// waits for a fetch, unless the cool-down of the previous one is not over. Cancel safe: a fetch continues for other
    /// callers if its caller is dropped.
    ///
    /// # Errors
    /// [`Error::UnknownKey`] after a successful fetch without this `kid`, and always for keys that the caller supplies;
    /// [`Error::Unavailable`] if the fetch failed or is not allowed yet.
    pub async fn key(&self, kid: &str) -> Result<Key, Error> {
        match self.cached(kid) {
            Some(key) => Ok(key),
            None => self.fetch_key(kid).await,
        }
    }

    /// Returns the issuer, without a trailing slash.
    pub fn issuer(&self) -> &str {
        &self.0.issuer
    }

    /// Returns whether this key set and the other one have a key in common, whatever its name: all issuers of one tenant have
    /// the same keys.
    ///
    /// `None` while that is open: the keys of one of them are not known, or the two were fetched at different times and Kinde may
    /// have replaced all keys in between.
    pub fn shares_key_with(&self, other: &Self) -> Option<bool> {
        let (ours, theirs) = (self.0.keys.load(), other.0.keys.load());
        if ours.keys.is_empty() || theirs.keys.is_empty() {
            return None;
        }
        let shares_key = ours.keys.values().any(|key| theirs.keys.values().any(|other| other == key));
        (shares_key || self.is_simultaneous_with(other)).then_some(shares_key)
    }

    /// Verifies the signature of a token and returns the key that verified it.
    ///
    /// If the signature does not match the key that is known under the token's `kid`, the keys are fetched again, at most
    /// once per cool-down: Kinde may have replaced the key without a new name.
    #[cfg(any(feature = "webhook", feature = "bearer"))]
    pub(crate) async fn verify<E>(&self, token: Unverified<'_>) -> Result<(Verified, Key), E>
    where
        E: From<Error> + From<jws::Error>,
    {
        let key = self.key(token.kid()).await?;
        let token = match token.try_verify(&key) {
            Ok(verified) => return Ok((verified, key)),
            Err(token) => token,
        };
        let replaced = self.replaced_key(token.kid(), &key).await.ok_or(jws::Error::SignatureMismatch)?;
        Ok((token.verify(&replaced)?, replaced))
    }

    /// The generation of the keys that are held. It changes whenever a key is added or removed.
    #[cfg(feature = "bearer")]
    pub(crate) fn generation(&self) -> u64 {
        self.0.keys.load().generation
    }

    /// Returns true while `kid` names this key, which was read at this generation or later, and the keys are not too old.
    #[cfg(feature = "bearer")]
    pub(crate) fn holds(&self, kid: &str, key: &Key, generation: u64) -> bool {
        self.current().is_some_and(|keys| {
            keys.generation == generation || keys.keys.get(kid).is_some_and(|held| held == key)
        })
    }

    fn cached(&self, kid: &str) -> Option<Key> {
        self.current()?.keys.get(kid).cloned()
    }

    /// The keys, unless they exceed the maximum age. Starts a fetch in the background if they are old.
    fn current(&self) -> Option<Guard<Arc<KeySet>>> {
        let keys = self.0.keys.load();
        self.is_usable(&keys).then_some(keys)
    }

    /// Replaces everything: a key that the document does not contain was withdrawn.
    fn store(&self, Document { keys, exposes_private_key }: Document) {
        let known = self.0.keys.load_full();
        if exposes_private_key && !known.exposes_private_key {
            tracing::error!(
                issuer = self.0.issuer,
                "the JWKS document of the issuer contains private key material, so every reader of it can sign tokens: \
                 rotate the keys in Kinde"
            );
        }
        let is_new = keys != known.keys;
        #[cfg(feature = "fetch")]
        let now = Some(tokio::time::Instant::now());
        self.0.keys.store(Arc::new(KeySet {
            keys,
            exposes_private_key,
            generation: known.generation + u64::from(is_new),
            #[cfg(feature = "fetch")]
            changed_at: if is_new { now } else { known.changed_at },
            #[cfg(feature = "fetch")]
            fetched_at: now,
        }));
    }
}

impl fmt::Debug for Jwks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Jwks").field(&self.0.issuer).finish()
    }
}
