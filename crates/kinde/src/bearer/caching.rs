//! Remembers verified tokens, so that the usual request costs a hash and no RSA.
//!
//! What it never does: take a token that [`Verifier`] would refuse now. An entry counts until the token's `exp` (without
//! leeway), until it is [`CachingConfig::max_age`] old, and as long as the key that verified it is still its issuer's:
//! whichever ends first. Refusals are not remembered. The key of an entry is the SHA-256 of the whole token, so a
//! forged signature under genuine claims finds nothing.

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use jiff::{SignedDuration, Timestamp};
use quick_cache::{
    Weighter,
    sync::{Cache, DefaultLifecycle},
};
use serde_json::Value;

use super::{AccessToken, SigningKey, VerificationError, Verifier};
use crate::jws::MAX_TOKEN_BYTES;

/// What a token of usual size takes in memory, in bytes: one with more claims counts as several.
const USUAL_BYTES: usize = 2048;

/// How much is remembered, and how long.
#[derive(Debug, Clone)]
pub struct CachingConfig {
    /// Most tokens that are remembered; the least used ones make room. At least 1. Fewer, when their claims take more
    /// than 2 KiB each: memory is bounded by this many times 2 KiB, whatever is in the tokens.
    pub entries: usize,
    /// Longest time that a token is remembered, if it does not expire before.
    pub max_age: Duration,
}

impl Default for CachingConfig {
    /// 100,000 tokens, one hour.
    fn default() -> Self {
        Self { entries: 100_000, max_age: Duration::from_hours(1) }
    }
}

/// A [`Verifier`] that remembers what it verified. Clones share everything.
#[derive(Clone)]
pub struct CachingVerifier(Arc<Inner>);

struct Inner {
    verifier: Verifier,
    max_age: SignedDuration,
    entries: Cache<Digest, Arc<Entry>, BySize, BuildHasherDefault<Spread>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

struct Entry {
    token: Arc<AccessToken>,
    signing_key: SigningKey,
    valid_until: Timestamp,
}

/// The SHA-256 of a token.
type Digest = [u8; 32];

/// A digest is spread already: its first bytes are its hash.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        let first = bytes.first_chunk().copied().unwrap_or_default();
        self.0 = u64::from_ne_bytes(first);
    }

    /// The length that a slice writes first says nothing.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Weighs entries by what their claims take in memory.
#[derive(Clone)]
struct BySize;

impl Weighter<Digest, Arc<Entry>> for BySize {
    fn weight(&self, _: &Digest, entry: &Arc<Entry>) -> u64 {
        entry.token.claims.values().map(bytes_of).sum::<usize>().max(USUAL_BYTES) as u64
    }
}

/// About what a value takes: a leaf of a map has room for eleven members, whether they are there or not.
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
    fn counts(&self, now: Timestamp) -> bool {
        now < self.valid_until && self.signing_key.is_current()
    }
}

impl CachingVerifier {
    /// Remembers nothing yet.
    pub fn new(verifier: Verifier, config: &CachingConfig) -> Self {
        Self(Arc::new(Inner {
            verifier,
            max_age: SignedDuration::try_from(config.max_age).unwrap_or(SignedDuration::MAX),
            entries: Cache::with(
                config.entries.max(1),
                (config.entries.max(1) * USUAL_BYTES) as u64,
                BySize,
                BuildHasherDefault::default(),
                DefaultLifecycle::default(),
            ),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }))
    }

    /// Verifies a token, given without `Bearer `: at once when it is remembered, else as [`Verifier::verify`].
    ///
    /// Cancel safe. A hit allocates nothing and awaits nothing.
    pub async fn verify(&self, token: &str, now: Timestamp) -> Result<Arc<AccessToken>, VerificationError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(VerificationError::TooLong);
        }
        let key = key_of(token);
        if let Some(token) = self.recall(&key, now) {
            return Ok(token);
        }
        self.0.misses.fetch_add(1, Ordering::Relaxed);
        let (token, signing_key) = self.0.verifier.verify_with_key(token, now).await?;
        Ok(self.remember(key, token, signing_key, now))
    }

    /// The token if it is remembered and still good. Never waits.
    pub fn get(&self, token: &str, now: Timestamp) -> Option<Arc<AccessToken>> {
        if token.len() > MAX_TOKEN_BYTES { None } else { self.recall(&key_of(token), now) }
    }

    /// Tokens that were answered from memory.
    pub fn hits(&self) -> u64 {
        self.0.hits.load(Ordering::Relaxed)
    }

    /// Tokens that [`Self::verify`] had to verify, refused ones included.
    pub fn misses(&self) -> u64 {
        self.0.misses.load(Ordering::Relaxed)
    }

    /// Number of remembered tokens; never more than [`CachingConfig::entries`].
    pub fn len(&self) -> usize {
        self.0.entries.len()
    }

    /// True when nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.0.entries.is_empty()
    }

    fn recall(&self, key: &Digest, now: Timestamp) -> Option<Arc<AccessToken>> {
        let entry = self.0.entries.get(key)?;
        if !entry.counts(now) {
            self.0.entries.remove(key);
            return None;
        }
        self.0.hits.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(&entry.token))
    }

    fn remember(
        &self,
        key: Digest,
        token: AccessToken,
        signing_key: SigningKey,
        now: Timestamp,
    ) -> Arc<AccessToken> {
        let token = Arc::new(token);
        let max_age = now.saturating_add(self.0.max_age).unwrap_or(Timestamp::MAX);
        let valid_until = token.expires_at.min(max_age);
        // Within the leeway a token is taken although its `exp` has passed: remembering it would be of no use.
        if now < valid_until {
            self.0
                .entries
                .insert(key, Arc::new(Entry { token: Arc::clone(&token), signing_key, valid_until }));
        }
        token
    }
}

/// Counters only: tokens are credentials and their claims personal data.
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

fn key_of(token: &str) -> Digest {
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    key
}
