//! Caches verified tokens, so that a repeated token costs a hash instead of an RSA verification.
//!
//! A cached token is never accepted when [`Verifier`] would reject it. An entry is valid until the `exp` of its token
//! (without leeway), until its age reaches [`CachingConfig::max_age`], and while its issuer has the key that verified it.
//! Rejected tokens are not cached. Entries are found by the whole token, so a forged signature after genuine claims finds no
//! entry. The cache therefore holds credentials in memory. Only verified tokens are in it, so a client cannot choose keys that
//! collide.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use quick_cache::{Weighter, sync::Cache};
use serde_json::Value;

use super::{AccessToken, SigningKey, VerificationError, Verifier};
use crate::jws::{self, MAX_TOKEN_BYTES};

/// Memory of a token of typical size, in bytes. A token with more claims counts as several entries.
const USUAL_BYTES: usize = 2048;

/// The limits of the cache.
#[derive(Debug, Clone)]
pub struct CachingConfig {
    /// Maximum number of cached tokens, at least 1; the least used ones are evicted. The cache uses at most this number
    /// times 2 KiB of memory, so it holds fewer tokens if their claims exceed 2 KiB each.
    pub entries: usize,
    /// Maximum age of a cached token that has not expired.
    pub max_age: Duration,
}

impl Default for CachingConfig {
    /// 100,000 tokens, one hour.
    fn default() -> Self {
        Self { entries: 100_000, max_age: Duration::from_hours(1) }
    }
}

/// A [`Verifier`] with a cache of verified tokens. Clones share everything.
#[derive(Clone)]
pub struct CachingVerifier(Arc<Inner>);

struct Inner {
    verifier: Verifier,
    max_age: SignedDuration,
    /// By the token.
    entries: Cache<Box<str>, Arc<Entry>, BySize>,
    hits: AtomicU64,
    misses: AtomicU64,
}

struct Entry {
    token: Arc<AccessToken>,
    signing_key: SigningKey,
    valid_until: Timestamp,
}

/// Weighs entries by the memory of the token and its claims.
#[derive(Clone)]
struct BySize;

impl Weighter<Box<str>, Arc<Entry>> for BySize {
    fn weight(&self, token: &Box<str>, entry: &Arc<Entry>) -> u64 {
        let claims = entry.token.claims.values().map(bytes_of).sum::<usize>();
        (token.len() + claims).max(USUAL_BYTES) as u64
    }
}

/// An estimate of the memory of a value: a leaf of a map allocates room for eleven members.
fn bytes_of(value: &Value) -> usize {
    const LEAF: usize = 640;
    const MEMBERS: usize = 11;
    size_of::<Value>()
        + match value {
            Value::String(text) => text.len(),
            Value::Array(values) => values.iter().map(bytes_of).sum(),
            Value::Object(members) => {
                let values = members.iter().map(|(name, value)| name.len() + bytes_of(value)).sum::<usize>();
                members.len().div_ceil(MEMBERS) * LEAF + values
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}

impl Entry {
    fn is_valid(&self, now: Timestamp) -> bool {
        now < self.valid_until && self.signing_key.is_current()
    }
}

impl CachingVerifier {
    /// Creates an empty cache.
    pub fn new(verifier: Verifier, config: &CachingConfig) -> Self {
        Self(Arc::new(Inner {
            verifier,
            max_age: SignedDuration::try_from(config.max_age).unwrap_or(SignedDuration::MAX),
            entries: Cache::with_weighter(
                config.entries.max(1),
                (config.entries.max(1) * USUAL_BYTES) as u64,
                BySize,
            ),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }))
    }

    /// Verifies a token, given without `Bearer `: at once if it is cached, else with [`Verifier::verify`].
    ///
    /// Cancel safe. A hit allocates nothing and awaits nothing.
    pub async fn verify(&self, token: &str, now: Timestamp) -> Result<Arc<AccessToken>, VerificationError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(jws::Error::TooLong { limit: MAX_TOKEN_BYTES }.into());
        }
        if let Some(token) = self.lookup(token, now) {
            return Ok(token);
        }
        self.0.misses.fetch_add(1, Ordering::Relaxed);
        let (verified, signing_key) = self.0.verifier.verify_with_key(token, now).await?;
        Ok(self.insert(token, verified, signing_key, now))
    }

    /// Returns the token if it is cached and valid. Never waits.
    pub fn get(&self, token: &str, now: Timestamp) -> Option<Arc<AccessToken>> {
        self.lookup(token, now)
    }

    /// Returns the number of tokens that were found in the cache.
    pub fn hits(&self) -> u64 {
        self.0.hits.load(Ordering::Relaxed)
    }

    /// Returns the number of tokens that [`Self::verify`] verified, rejected ones included.
    pub fn misses(&self) -> u64 {
        self.0.misses.load(Ordering::Relaxed)
    }

    /// Returns the number of cached tokens, at most [`CachingConfig::entries`].
    pub fn len(&self) -> usize {
        self.0.entries.len()
    }

    /// Returns true if the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.0.entries.is_empty()
    }

    fn lookup(&self, key: &str, now: Timestamp) -> Option<Arc<AccessToken>> {
        let entry = self.0.entries.get(key)?;
        if !entry.is_valid(now) {
            self.0.entries.remove(key);
            return None;
        }
        self.0.hits.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(&entry.token))
    }

    fn insert(
        &self,
        key: &str,
        token: AccessToken,
        signing_key: SigningKey,
        now: Timestamp,
    ) -> Arc<AccessToken> {
        let token = Arc::new(token);
        let max_age = now.saturating_add(self.0.max_age).unwrap_or(Timestamp::MAX);
        let valid_until = token.expires_at.min(max_age);
        // Within the leeway the verifier accepts a token after its `exp`, but the cache would never return it.
        if now < valid_until {
            self.0
                .entries
                .insert(key.into(), Arc::new(Entry { token: Arc::clone(&token), signing_key, valid_until }));
        }
        token
    }
}

/// Prints counters only: tokens are credentials and their claims are personal data.
impl fmt::Debug for CachingVerifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("CachingVerifier")
            .field("entries", &self.len())
            .field("hits", &self.hits())
            .field("misses", &self.misses())
            .finish_non_exhaustive()
    }
}
