//! The public keys of a Kinde tenant, fetched, cached and refreshed.
//!
//! Responsible for: which key a `kid` names, and for asking Kinde as seldom as possible. It holds three things true:
//! one fetch at a time; no fetch before the cool-down of the last one is over, whatever `kid`s callers send; and what
//! was learned from a good answer is served until the next good answer, however long Kinde is away.
//! It verifies nothing: see [`crate::jws`].
//!
//! <https://docs.kinde.com/build/tokens/verifying-json-web-tokens/>

mod document;
mod fetch;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;
use url::Url;

pub use self::document::DocumentError;
pub use self::fetch::FetchError;
use self::fetch::Fetcher;
use crate::domain::{self, is_loopback};
use crate::{jws::Key, random};

/// The pause after the first failure while no key is known; it doubles up to the cool-down.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Failures in a row after which the pause between fetches grows no longer, as a power of two.
const MAX_BACK_OFF_DOUBLINGS: u32 = 2;

/// What a key set is fetched from and how often.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The tenant, as [`crate::parse_domain`] reads it.
    pub issuer: Url,
    /// Shortest time between two fetches. A failed one is followed by one to five times as long, with jitter.
    pub cool_down: Duration,
    /// Keys older than this are fetched again in the background, by the next call that uses them.
    pub refresh_after: Duration,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for one whole answer. A fetch asks at most two addresses.
    pub timeout: Duration,
}

impl Config {
    /// The defaults: cool-down 30 s, refresh after 10 min, connect 3 s, answer 5 s.
    pub fn new(issuer: Url) -> Self {
        Self {
            issuer,
            cool_down: Duration::from_secs(30),
            refresh_after: Duration::from_mins(10),
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(5),
        }
    }
}

/// Why a key set cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The issuer is not the bare `https` address of a tenant.
    #[error("the issuer cannot be used")]
    Issuer(#[from] domain::Error),
    /// The HTTP client cannot be built, for example because there are no root certificates.
    #[error("the HTTP client cannot be built")]
    Client(#[source] reqwest::Error),
}

/// Why there is no key for a `kid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The tenant's keys are known and this is none of them.
    #[error(
        "no key of the tenant has this `kid`: the token is from another tenant, or its key was withdrawn"
    )]
    UnknownKey,
    /// The keys could not be fetched, so nobody knows. Try again later.
    #[error(
        "the tenant's keys cannot be fetched: check that `/.well-known/jwks.json` of the issuer can be reached"
    )]
    Unavailable,
}

/// What is known of a key set, for health pages.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Status {
    /// The issuer, without a slash at its end.
    pub issuer: String,
    /// Number of usable keys.
    pub key_count: usize,
    /// Fetches that were started.
    pub fetch_count: u64,
    /// Time since the last good answer.
    pub last_success_age: Option<Duration>,
    /// Why the last fetch failed; `None` when it succeeded or there was none.
    pub last_error: Option<String>,
    /// Failed fetches in a row.
    pub consecutive_failures: u32,
}

/// A handle on the key set of one tenant. Clones share it.
#[derive(Clone)]
pub struct Jwks(Arc<Inner>);

struct Inner {
    issuer: String,
    /// `None`: a fixed set that is never fetched.
    remote: Option<Remote>,
    keys: ArcSwap<KeySet>,
    state: Mutex<State>,
    fetches: AtomicU64,
}

struct Remote {
    config: Config,
    fetcher: Fetcher,
}

#[derive(Default)]
struct KeySet {
    keys: HashMap<String, Key>,
    /// Another one when the keys are others.
    generation: u64,
    fetched_at: Option<Instant>,
}

#[derive(Default)]
struct State {
    /// Its sender is dropped when the running fetch has ended.
    running: Option<watch::Receiver<()>>,
    not_before: Option<Instant>,
    failures: u32,
    last_error: Option<String>,
}

impl Jwks {
    /// Makes an empty key set; the first call that needs a key fetches. Needs a tokio runtime from then on.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let issuer = domain::parse_domain(config.issuer.as_str())?;
        let fetcher = Fetcher::new(&config, is_loopback(&issuer)).map_err(ConfigError::Client)?;
        Ok(Self::from_parts(domain::issuer_of(&issuer), Some(Remote { config, fetcher }), KeySet::default()))
    }

    /// Makes a fixed key set of a JWKS document. It is never fetched, so an unknown `kid` stays unknown.
    pub fn from_document(issuer: &Url, document: &[u8]) -> Result<Self, DocumentError> {
        let keys = KeySet { keys: document::parse(document)?, ..KeySet::default() };
        Ok(Self::from_parts(domain::issuer_of(issuer), None, keys))
    }

    fn from_parts(issuer: String, remote: Option<Remote>, keys: KeySet) -> Self {
        let (keys, state, fetches) = (ArcSwap::from_pointee(keys), Mutex::default(), AtomicU64::new(0));
        Self(Arc::new(Inner { issuer, remote, keys, state, fetches }))
    }

    /// The key that `kid` names.
    ///
    /// Known: answered at once, and when the keys are old a fetch begins in the background. Unknown: waits for a fetch,
    /// unless one has been made within the cool-down. Cancel safe: a fetch goes on for the others when its caller is
    /// dropped.
    pub async fn key(&self, kid: &str) -> Result<Key, Error> {
        if let Some(key) = self.cached(kid) {
            return Ok(key);
        }
        if let Some(fetch) = self.start_or_join() {
            finished(fetch).await;
        }
        self.cached(kid).ok_or_else(|| self.why_unknown())
    }

    /// Fetches the keys now, unless a fetch has been made within the cool-down: to warm up at start.
    ///
    /// `Ok` when there are keys afterwards, be they old ones. Cancel safe.
    pub async fn refresh(&self) -> Result<(), Error> {
        if let Some(fetch) = self.start_or_join() {
            finished(fetch).await;
        }
        if self.0.keys.load().keys.is_empty() { Err(Error::Unavailable) } else { Ok(()) }
    }

    /// The issuer, without a slash at its end.
    pub fn issuer(&self) -> &str {
        &self.0.issuer
    }

    /// Number of fetches that were started.
    pub fn fetch_count(&self) -> u64 {
        self.0.fetches.load(Ordering::Relaxed)
    }

    /// What is known, for health pages.
    pub fn status(&self) -> Status {
        let keys = self.0.keys.load();
        let state = self.state();
        Status {
            issuer: self.0.issuer.clone(),
            key_count: keys.keys.len(),
            fetch_count: self.fetch_count(),
            last_success_age: keys.fetched_at.map(|at| at.elapsed()),
            last_error: state.last_error.clone(),
            consecutive_failures: state.failures,
        }
    }

    fn cached(&self, kid: &str) -> Option<Key> {
        let keys = self.0.keys.load();
        let key = keys.keys.get(kid)?.clone();
        if self.is_stale(&keys) {
            drop(self.start_or_join());
        }
        Some(key)
    }

    /// Which keys are held. The same as long as no key comes or goes.
    pub(crate) fn generation(&self) -> u64 {
        self.0.keys.load().generation
    }

    /// True while `kid` names this very key, which was asked for after this generation was. Old keys are fetched again in
    /// the background, as by [`Self::key`].
    pub(crate) fn holds(&self, kid: &str, key: &Key, generation: u64) -> bool {
        let keys = self.0.keys.load();
        if self.is_stale(&keys) {
            drop(self.start_or_join());
        }
        keys.generation == generation || keys.keys.get(kid).is_some_and(|held| held == key)
    }

    fn is_stale(&self, keys: &KeySet) -> bool {
        let Some(remote) = &self.0.remote else { return false };
        keys.fetched_at.is_none_or(|at| at.elapsed() >= remote.config.refresh_after)
    }

    fn why_unknown(&self) -> Error {
        if self.0.keys.load().keys.is_empty() || self.state().failures > 0 {
            Error::Unavailable
        } else {
            Error::UnknownKey
        }
    }

    /// The running fetch, or a new one; `None` while cooling down.
    fn start_or_join(&self) -> Option<watch::Receiver<()>> {
        let remote = self.0.remote.as_ref()?;
        let mut state = self.state();
        if let Some(running) = &state.running {
            return Some(running.clone());
        }
        let now = Instant::now();
        if state.not_before.is_some_and(|not_before| now < not_before) {
            return None;
        }
        state.not_before = Some(now + remote.config.cool_down);
        let (done, running) = watch::channel(());
        state.running = Some(running.clone());
        drop(state);
        self.0.fetches.fetch_add(1, Ordering::Relaxed);
        self.spawn_fetch(done);
        Some(running)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a fetch must outlive the request that began it; it ends within its own timeouts and holds nothing that a shutdown must wait for"
    )]
    fn spawn_fetch(&self, done: watch::Sender<()>) {
        let guard = Running { jwks: self.clone(), _done: done };
        tokio::spawn(async move {
            let Some(remote) = &guard.jwks.0.remote else { return };
            let outcome = remote.fetcher.fetch().await;
            guard.jwks.settle(remote, outcome);
        });
    }

    fn settle(&self, remote: &Remote, outcome: Result<HashMap<String, Key>, FetchError>) {
        let label = outcome.as_ref().map_or_else(FetchError::outcome, |_| "ok");
        metrics::counter!("kinde_jwks_fetches_total", "outcome" => label).increment(1);
        match outcome {
            Ok(keys) => self.accept(remote, keys),
            Err(error) => self.keep(remote, &error),
        }
    }

    /// A good answer replaces everything: a key that it does not name has been withdrawn.
    fn accept(&self, remote: &Remote, keys: HashMap<String, Key>) {
        let now = Instant::now();
        tracing::debug!(issuer = self.0.issuer, keys = keys.len(), "fetched the keys of the issuer");
        let known = self.0.keys.load_full();
        let generation = known.generation + u64::from(keys != known.keys);
        self.0.keys.store(Arc::new(KeySet { keys, generation, fetched_at: Some(now) }));
        let mut state = self.state();
        state.not_before = Some(now + remote.config.cool_down);
        state.failures = 0;
        state.last_error = None;
    }

    /// A bad answer changes no key.
    fn keep(&self, remote: &Remote, error: &FetchError) {
        let kept = self.0.keys.load().keys.len();
        let reason = error.chain();
        tracing::warn!(issuer = self.0.issuer, kept, reason, "cannot fetch the keys of the issuer");
        let mut state = self.state();
        let cool_down = remote.config.cool_down;
        // Without a key nobody can be verified, so a blip at the start may not cost a whole cool-down.
        let pause = if kept == 0 {
            (FIRST_PAUSE * 2_u32.pow(state.failures.min(16))).min(cool_down)
        } else {
            cool_down * 2_u32.pow(state.failures.min(MAX_BACK_OFF_DOUBLINGS))
        };
        let pause = random::jitter(pause, 1.0..=1.25);
        state.not_before = Some(Instant::now() + pause);
        state.failures = state.failures.saturating_add(1);
        state.last_error = Some(reason);
    }

    /// No code panics while it holds the lock, and the state is right after every line: poison means nothing here.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the fetch for everyone who waits, also when its task panics or the runtime drops it.
struct Running {
    jwks: Jwks,
    _done: watch::Sender<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.jwks.state().running = None;
    }
}

async fn finished(mut fetch: watch::Receiver<()>) {
    // Nothing is ever sent: an error says that the sender is gone, which is what we wait for.
    while fetch.changed().await.is_ok() {}
}

impl fmt::Debug for Jwks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Jwks").field(&self.0.issuer).finish()
    }
}
