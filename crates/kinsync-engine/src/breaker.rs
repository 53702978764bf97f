//! When a dependency is left alone: a circuit breaker with a half-open probe.
//!
//! Closed: calls go through. Open: nobody calls until the back-off is over. Half-open: one caller
//! probes; its outcome closes or opens the breaker again, for longer each time up to a bound.
//! Nygard, "Release It!" (2007), chapter 5.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::random;

/// How a breaker reacts.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Failures in a row that open it.
    pub failures: u32,
    /// The first pause. Doubles with each failed probe.
    pub pause: Duration,
    /// The longest pause.
    pub max_pause: Duration,
    /// A probe that has not answered after this long no longer keeps others from probing.
    pub probe_deadline: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            failures: 2,
            pause: Duration::from_millis(200),
            max_pause: Duration::from_secs(5),
            probe_deadline: Duration::from_secs(15),
        }
    }
}

/// What the breaker does at present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Calls go through.
    Closed,
    /// One caller probes.
    HalfOpen,
    /// Nobody calls.
    Open,
}

impl State {
    /// The name used in /health.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        }
    }
}

/// Guards one dependency. Cheap to clone; clones share the state.
#[derive(Clone)]
pub struct Breaker(Arc<Shared>);

struct Shared {
    dependency: &'static str,
    caller: &'static str,
    config: Config,
    inner: Mutex<Inner>,
    changed: Notify,
}

struct Inner {
    state: State,
    failures: u32,
    /// While open: when a probe may go. While half-open: when the probe is given up.
    until: Instant,
    last_error: Option<String>,
}

impl Breaker {
    /// Creates a closed breaker. `dependency` and `caller` name it in logs and are the labels of `kinsync_breaker_state`.
    pub fn new(dependency: &'static str, caller: &'static str, config: Config) -> Self {
        let inner = Inner { state: State::Closed, failures: 0, until: Instant::now(), last_error: None };
        let breaker = Self(Arc::new(Shared {
            dependency,
            caller,
            config,
            inner: Mutex::new(inner),
            changed: Notify::new(),
        }));
        breaker.show(State::Closed);
        breaker
    }

    /// What it does at present.
    pub fn state(&self) -> State {
        self.lock().state
    }

    /// The last failure with all its causes, while the breaker is not closed.
    pub fn last_error(&self) -> Option<String> {
        self.lock().last_error.clone()
    }

    /// Waits until this caller may call. Whoever was let through says [`Breaker::succeeded`] or
    /// [`Breaker::failed`]; one that does not (a cancelled probe) is replaced after the probe
    /// deadline. Cancel-safe.
    pub async fn ready(&self) {
        loop {
            let changed = self.0.changed.notified();
            let Some(until) = self.wait_until() else { return };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Whether a call may go through now, without waiting. As [`Breaker::ready`] otherwise.
    pub fn try_ready(&self) -> bool {
        self.wait_until().is_none()
    }

    /// The call worked.
    pub fn succeeded(&self) {
        let mut inner = self.lock();
        let was = inner.state;
        inner.failures = 0;
        inner.state = State::Closed;
        inner.last_error = None;
        drop(inner);
        if was != State::Closed {
            tracing::info!(
                dependency = self.0.dependency,
                caller = self.0.caller,
                "breaker closed: the dependency answers again"
            );
            self.show(State::Closed);
            self.0.changed.notify_waiters();
        }
    }

    /// The call did not work, in a way that says something of the dependency.
    pub fn failed(&self, error: &dyn std::error::Error) {
        let error = error_chain(error);
        let mut inner = self.lock();
        inner.failures = inner.failures.saturating_add(1);
        let is_new_cause = inner.last_error.as_ref() != Some(&error);
        inner.last_error = Some(error.clone());
        if inner.state == State::Closed && inner.failures < self.0.config.failures {
            return;
        }
        let pause = self.pause(inner.failures);
        let was = inner.state;
        inner.state = State::Open;
        inner.until = Instant::now() + pause;
        drop(inner);
        if was == State::Closed {
            tracing::warn!(
                dependency = self.0.dependency,
                caller = self.0.caller,
                error,
                "breaker opened: calls are paused and probed until the dependency answers"
            );
        } else if is_new_cause {
            // An outage may turn into another one, and what the log said first no longer helps.
            tracing::warn!(dependency = self.0.dependency, error, "breaker stays open for another reason");
        }
        self.show(State::Open);
        self.0.changed.notify_waiters();
    }

    /// `None`: go. Otherwise: ask again then.
    fn wait_until(&self) -> Option<Instant> {
        let mut inner = self.lock();
        if inner.state == State::Closed {
            return None;
        }
        let now = Instant::now();
        if now < inner.until {
            return Some(inner.until);
        }
        inner.state = State::HalfOpen;
        inner.until = now + self.0.config.probe_deadline;
        drop(inner);
        self.show(State::HalfOpen);
        None
    }

    /// Full jitter over the upper half: processes that lost the same database do not probe at once.
    fn pause(&self, failures: u32) -> Duration {
        let Config { failures: limit, pause, max_pause, .. } = self.0.config;
        let doublings = failures.saturating_sub(limit).min(16);
        let longest = pause.saturating_mul(1 << doublings).min(max_pause);
        random::jitter(longest, 0.5..=1.0)
    }

    fn show(&self, state: State) {
        let value = match state {
            State::Closed => 0.0,
            State::HalfOpen => 1.0,
            State::Open => 2.0,
        };
        metrics::gauge!("kinsync_breaker_state", "dependency" => self.0.dependency, "caller" => self.0.caller).set(value);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Breaker({}, {:?})", self.0.dependency, self.state())
    }
}

/// An error and its causes in one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> Breaker {
        Breaker::new("test", "test", Config::default())
    }

    fn fail(breaker: &Breaker) {
        breaker.failed(&std::io::Error::other("down"));
    }

    #[tokio::test(start_paused = true)]
    async fn one_failure_does_not_open_it_and_two_in_a_row_do() {
        let breaker = breaker();
        fail(&breaker);
        breaker.succeeded();
        fail(&breaker);
        assert_eq!(breaker.state(), State::Closed);
        fail(&breaker);
        assert_eq!(breaker.state(), State::Open);
        assert!(!breaker.try_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_pause_exactly_one_caller_probes() {
        let breaker = breaker();
        fail(&breaker);
        fail(&breaker);
        breaker.ready().await;
        assert_eq!(breaker.state(), State::HalfOpen);
        assert!(!breaker.try_ready(), "a second caller waits for the probe");
        breaker.succeeded();
        assert!(breaker.try_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_callers_go_on_as_soon_as_the_probe_succeeds() {
        let breaker = breaker();
        fail(&breaker);
        fail(&breaker);
        breaker.ready().await;
        let before = Instant::now();
        tokio::join!(breaker.ready(), async { breaker.succeeded() });
        assert_eq!(Instant::now(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_their_bound() {
        let breaker = breaker();
        for _ in 0..40 {
            fail(&breaker);
        }
        let start = Instant::now();
        breaker.ready().await;
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(2500) && waited <= Duration::from_secs(6), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_error_has_all_its_causes() {
        let breaker = breaker();
        let error = crate::queue::Error::Unavailable { hint: "/data".into(), source: "down".into() };
        breaker.failed(&error);
        let known = breaker.last_error().unwrap();
        assert!(known.contains("/data") && known.ends_with(": down"), "{known}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_never_answers_is_replaced() {
        let breaker = breaker();
        fail(&breaker);
        fail(&breaker);
        breaker.ready().await;
        let start = Instant::now();
        breaker.ready().await;
        assert!(start.elapsed() >= Config::default().probe_deadline);
    }
}
