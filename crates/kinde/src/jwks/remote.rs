//! When keys are fetched: one fetch at a time, a cool-down, and a maximum age.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::document::Document;
use super::fetch::{FetchError, Fetcher};
use super::{Config, ConfigError, Error, Jwks, KeySet, Status};
use crate::domain::{self, is_loopback};
use crate::jws::Key;
use crate::random;

/// The pause after the first failure while no key is known. It doubles up to the cool-down.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Number of consecutive failures after which the pause between fetches stops growing, as a power of two.
const MAX_BACKOFF_DOUBLINGS: u32 = 2;
/// Fetches of two issuers of one tenant that are at most this far apart return a common key, except if Kinde replaces all keys
/// in between.
const SIMULTANEOUS: Duration = Duration::from_secs(5);
/// Shortest retry delay that is given to a caller.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Remote {
    config: Config,
    fetcher: Fetcher,
    state: Mutex<State>,
    fetches: AtomicU64,
}

#[derive(Default)]
struct State {
    /// The sender is dropped when the running fetch ends.
    running: Option<watch::Receiver<()>>,
    not_before: Option<Instant>,
    failures: u32,
    last_error: Option<String>,
}

impl Remote {
    /// No code panics while it holds the lock, and the state is valid after every line, so poison is ignored.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Jwks {
    /// Creates an empty key set. The first call that needs a key fetches. Requires a tokio runtime from then on.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let issuer = domain::parse_domain(config.issuer.as_str())?;
        let fetcher = Fetcher::new(&config, is_loopback(&issuer)).map_err(ConfigError::Client)?;
        let remote = Remote { config, fetcher, state: Mutex::default(), fetches: AtomicU64::new(0) };
        Ok(Self::with_remote(domain::issuer_of(&issuer), Some(remote)))
    }

    /// Fetches the keys, unless the cool-down of the previous fetch is not over. Use it to warm up at start.
    ///
    /// Returns `Ok` if there are usable keys afterwards, old ones included. Cancel safe.
    pub async fn refresh(&self) -> Result<(), Error> {
        if let Some(fetch) = self.start_or_join() {
            finished(fetch).await;
        }
        if self.current().is_none_or(|keys| keys.keys.is_empty()) { Err(self.unavailable()) } else { Ok(()) }
    }

    /// Returns the number of fetches that were started.
    pub fn fetch_count(&self) -> u64 {
        self.0.remote.as_ref().map_or(0, |remote| remote.fetches.load(Ordering::Relaxed))
    }

    /// Returns the state of the key set, for health checks.
    pub fn status(&self) -> Status {
        let keys = self.0.keys.load();
        let state = self.0.remote.as_ref().map(Remote::state);
        Status {
            issuer: self.0.issuer.clone(),
            key_count: if self.exceeds_max_age(&keys) { 0 } else { keys.keys.len() },
            exposes_private_key: keys.exposes_private_key,
            fetch_count: self.fetch_count(),
            last_success_age: keys.fetched_at.filter(|_| state.is_some()).map(|at| at.elapsed()),
            last_error: state.as_ref().and_then(|state| state.last_error.clone()),
            consecutive_failures: state.map_or(0, |state| state.failures),
        }
    }

    /// The key that a fetch returns for an unknown `kid`.
    pub(super) async fn fetch_key(&self, kid: &str) -> Result<Key, Error> {
        let Some(remote) = &self.0.remote else { return Err(Error::UnknownKey) };
        let Some(fetch) = self.start_or_join() else {
            // A fetch that ended since the lookup may have brought the key. Otherwise it is open whether the tenant has it:
            // the key may be newer than the keys that are known.
            return self.cached(kid).ok_or_else(|| self.unavailable());
        };
        finished(fetch).await;
        if let Some(key) = self.cached(kid) {
            return Ok(key);
        }
        let has_failed = remote.state().failures > 0 || self.0.keys.load().keys.is_empty();
        Err(if has_failed { self.unavailable() } else { Error::UnknownKey })
    }

    /// The key that replaced `used` under its `kid`, after a fetch if the cool-down allows one.
    #[cfg(any(feature = "webhook", feature = "bearer"))]
    pub(super) async fn replaced_key(&self, kid: &str, used: &Key) -> Option<Key> {
        if let Some(fetch) = self.start_or_join() {
            finished(fetch).await;
        }
        self.cached(kid).filter(|key| key != used)
    }

    /// Returns whether this issuer has a key of the tenant. While that is open, fetches the older one of the two key sets again.
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if that fetch failed or is not allowed yet.
    #[cfg(feature = "bearer")]
    pub(crate) async fn is_of_tenant(&self, tenant: &Self) -> Result<bool, Error> {
        if let Some(is_of_tenant) = self.shares_key_with(tenant) {
            return Ok(is_of_tenant);
        }
        let fetched_at = |jwks: &Self| jwks.0.keys.load().fetched_at;
        let older = if fetched_at(self) < fetched_at(tenant) { self } else { tenant };
        older.refresh().await?;
        self.shares_key_with(tenant).ok_or_else(|| older.unavailable())
    }

    /// Whether the known keys of both were valid at one time.
    pub(super) fn is_simultaneous_with(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.0.keys.load(), other.0.keys.load());
        let reaches =
            |one: &KeySet, other: &KeySet| one.fetched_at.map(|at| at + SIMULTANEOUS) >= other.changed_at;
        let is_fixed = self.0.remote.is_none() || other.0.remote.is_none();
        is_fixed || (reaches(&ours, &theirs) && reaches(&theirs, &ours))
    }

    /// False if the keys exceed the maximum age. Starts a fetch in the background if they are old.
    pub(super) fn is_usable(&self, keys: &KeySet) -> bool {
        let Some(remote) = &self.0.remote else { return true };
        let age = keys.fetched_at.map(|at| at.elapsed());
        if age.is_none_or(|age| age >= remote.config.refresh_after) {
            drop(self.start_or_join());
        }
        !self.exceeds_max_age(keys)
    }

    fn exceeds_max_age(&self, keys: &KeySet) -> bool {
        let Some(remote) = &self.0.remote else { return false };
        keys.fetched_at.is_some_and(|at| at.elapsed() >= remote.config.max_age)
    }

    fn unavailable(&self) -> Error {
        let not_before = self.0.remote.as_ref().and_then(|remote| remote.state().not_before);
        let wait = not_before.map(|at| at.saturating_duration_since(Instant::now()));
        Error::Unavailable { retry_after: wait.unwrap_or_default().max(MIN_RETRY_AFTER) }
    }

    /// The running fetch, or a new one; `None` during the cool-down.
    fn start_or_join(&self) -> Option<watch::Receiver<()>> {
        let remote = self.0.remote.as_ref()?;
        let mut state = remote.state();
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
        remote.fetches.fetch_add(1, Ordering::Relaxed);
        self.spawn_fetch(done);
        Some(running)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a fetch must outlive the request that started it; it ends within its own timeouts and holds nothing that a shutdown must wait for"
    )]
    fn spawn_fetch(&self, done: watch::Sender<()>) {
        let guard = Running { jwks: self.clone(), _done: done };
        tokio::spawn(async move {
            let Some(remote) = &guard.jwks.0.remote else { return };
            let outcome = remote.fetcher.fetch().await;
            let label = outcome.as_ref().map_or_else(FetchError::outcome, |_| "ok");
            metrics::counter!("kinde_jwks_fetches_total", "outcome" => label).increment(1);
            match outcome {
                Ok(document) => guard.jwks.accept(remote, document),
                Err(error) => guard.jwks.record_failure(remote, &error),
            }
        });
    }

    fn accept(&self, remote: &Remote, document: Document) {
        tracing::debug!(issuer = self.0.issuer, keys = document.keys.len(), "fetched the keys of the issuer");
        self.store(document);
        let mut state = remote.state();
        state.not_before = Some(Instant::now() + remote.config.cool_down);
        state.failures = 0;
        state.last_error = None;
    }

    /// Keeps the known keys and schedules the next fetch.
    fn record_failure(&self, remote: &Remote, error: &FetchError) {
        let kept = self.0.keys.load().keys.len();
        let reason = error.with_causes();
        tracing::warn!(issuer = self.0.issuer, kept, reason, "cannot fetch the keys of the issuer");
        let mut state = remote.state();
        let cool_down = remote.config.cool_down;
        // Without a key nothing can be verified, so one failure at start must not cost a whole cool-down.
        let pause = if kept == 0 {
            (FIRST_PAUSE * 2_u32.pow(state.failures.min(16))).min(cool_down)
        } else {
            cool_down * 2_u32.pow(state.failures.min(MAX_BACKOFF_DOUBLINGS))
        };
        let pause = random::jitter(pause, 1.0..=1.25);
        state.not_before = Some(Instant::now() + pause);
        state.failures = state.failures.saturating_add(1);
        state.last_error = Some(reason);
    }
}

/// Ends the fetch for all callers, also if its task panics or the runtime drops it.
struct Running {
    jwks: Jwks,
    _done: watch::Sender<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(remote) = &self.jwks.0.remote {
            remote.state().running = None;
        }
    }
}

async fn finished(mut fetch: watch::Receiver<()>) {
    // No value is ever sent: the error means that the sender was dropped, which is the end of the fetch.
    while fetch.changed().await.is_ok() {}
}
