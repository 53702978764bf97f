//! A circuit breaker with a half-open probe, one per dependency and caller.
//!
//! Closed: calls pass. Open: no calls pass until the back-off is over. Half-open: one probe passes; its outcome closes the
//! breaker or opens it again, with a doubled pause up to a bound.
//! Nygard, "Release It!" (2007), chapter 5.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{random, store};

/// Limits of a breaker.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Consecutive failures that open the breaker.
    pub failures: u32,
    /// First pause. Doubles with each failed probe.
    pub pause: Duration,
    /// Longest pause.
    pub max_pause: Duration,
    /// Time after which another caller may replace a probe without an outcome.
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

/// The last failure of a dependency.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What failed and, after a refusal, what to do. Names no host.
    pub summary: String,
    /// The summary with all causes. A cause may name hosts.
    pub chain: String,
    /// Whether the dependency understood the call and refuses it until an operator changes something.
    pub is_refusal: bool,
}

impl Failure {
    pub(crate) fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let refusal = error.downcast_ref::<store::Error>().is_some_and(|error| !error.is_transient());
        Self { summary: error.to_string(), chain: error_chain(error), is_refusal: refusal }
    }

    pub(crate) fn not_connected() -> Self {
        let text = "not connected yet".to_owned();
        Self { summary: text.clone(), chain: text, is_refusal: false }
    }
}

/// State of a breaker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Calls pass.
    Closed,
    /// One probe is in progress.
    HalfOpen,
    /// No calls pass.
    Open,
}

impl State {
    /// Returns the name used in `/health`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        }
    }
}

/// Circuit breaker of one dependency. Cheap to clone; clones share the state.
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
    /// While open: earliest time of the next probe. While half-open: deadline of the probe.
    until: Instant,
    last_failure: Option<Failure>,
    /// What distinguishes the cause of the last failure from others.
    cause: String,
}

/// What a failure changes.
#[derive(PartialEq, Eq, Debug)]
enum Change {
    Nothing,
    Opened,
    /// The breaker stays open for another cause.
    NewCause,
}

impl Breaker {
    /// Creates a closed breaker. `dependency` and `caller` name it in logs and are the labels of `kinsync_breaker_state`.
    pub fn new(dependency: &'static str, caller: &'static str, config: Config) -> Self {
        let inner = Inner {
            state: State::Closed,
            failures: 0,
            until: Instant::now(),
            last_failure: None,
            cause: String::new(),
        };
        let breaker = Self(Arc::new(Shared {
            dependency,
            caller,
            config,
            inner: Mutex::new(inner),
            changed: Notify::new(),
        }));
        breaker.export(State::Closed);
        breaker
    }

    /// Returns the current state.
    pub fn state(&self) -> State {
        self.lock().state
    }

    /// Returns the last failure since the last success.
    pub fn last_failure(&self) -> Option<Failure> {
        self.lock().last_failure.clone()
    }

    /// Waits until a call may pass. Afterwards the caller reports [`Breaker::succeeded`] or [`Breaker::failed`]. A probe
    /// without a report, for example a cancelled one, is replaced after the probe deadline. Cancel safe.
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

    /// Returns whether a call may pass now, without waiting. If so, the caller reports the outcome as for
    /// [`Breaker::ready`].
    pub fn try_ready(&self) -> bool {
        self.wait_until().is_none()
    }

    /// Records a successful call: resets the failures and closes the breaker.
    pub fn succeeded(&self) {
        let mut inner = self.lock();
        let was = inner.state;
        inner.failures = 0;
        inner.state = State::Closed;
        inner.last_failure = None;
        drop(inner);
        if was != State::Closed {
            tracing::info!(
                dependency = self.0.dependency,
                caller = self.0.caller,
                "circuit breaker closed: the dependency responds again"
            );
            self.export(State::Closed);
            self.0.changed.notify_waiters();
        }
    }

    /// Records a failed call. Call it only for failures that the dependency caused, such as a timeout.
    pub fn failed(&self, error: &(dyn std::error::Error + 'static)) {
        let failure = Failure::of(error);
        let chain = failure.chain.clone();
        match self.record(failure, cause(error)) {
            Change::Nothing => {}
            Change::Opened => tracing::warn!(
                dependency = self.0.dependency,
                caller = self.0.caller,
                error = chain,
                "circuit breaker opened: calls are paused, and probes are sent until the dependency responds"
            ),
            // The cause of an outage can change; the log has to show the current one.
            Change::NewCause => tracing::warn!(
                dependency = self.0.dependency,
                caller = self.0.caller,
                error = chain,
                "circuit breaker stays open: the cause changed"
            ),
        }
    }

    fn record(&self, failure: Failure, cause: String) -> Change {
        let mut inner = self.lock();
        inner.failures = inner.failures.saturating_add(1);
        inner.last_failure = Some(failure);
        let former_cause = std::mem::replace(&mut inner.cause, cause);
        if inner.state == State::Closed && inner.failures < self.0.config.failures {
            return Change::Nothing;
        }
        let change = match inner.state {
            State::Closed => Change::Opened,
            _ if inner.cause == former_cause => Change::Nothing,
            _ => Change::NewCause,
        };
        inner.state = State::Open;
        inner.until = Instant::now() + self.pause(inner.failures);
        drop(inner);
        self.export(State::Open);
        self.0.changed.notify_waiters();
        change
    }

    /// Returns `None` if the call may pass, else the time of the next attempt.
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
        self.export(State::HalfOpen);
        None
    }

    /// Returns the pause after so many failures, with jitter over its upper half: several processes that lost the same
    /// database probe at different times.
    fn pause(&self, failures: u32) -> Duration {
        let Config { failures: limit, pause, max_pause, .. } = self.0.config;
        let doublings = failures.saturating_sub(limit).min(16);
        let longest = pause.saturating_mul(1 << doublings).min(max_pause);
        random::jitter(longest, 0.5..=1.0)
    }

    fn export(&self, state: State) {
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

/// Returns the innermost error without what differs from call to call: numbers, such as round-trip times, and the labels of
/// the MongoDB driver, which have no order. Which call failed is no part of it.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let innermost = std::iter::successors(Some(error), |error| error.source()).last();
    let text = innermost.map(ToString::to_string).unwrap_or_default();
    let mut parts = text.split("labels: {");
    let first = parts.next().unwrap_or_default().to_owned();
    let stable = parts.fold(first, |text, part| text + part.split_once('}').map_or(part, |(_, rest)| rest));
    stable.chars().filter(|char| !char.is_ascii_digit()).collect()
}

/// Formats an error and its causes in one line.
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
    async fn two_consecutive_failures_open_the_breaker_and_one_does_not() {
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
    async fn waiting_callers_continue_as_soon_as_the_probe_succeeds() {
        let breaker = breaker();
        fail(&breaker);
        fail(&breaker);
        breaker.ready().await;
        let before = Instant::now();
        tokio::join!(breaker.ready(), async { breaker.succeeded() });
        assert_eq!(Instant::now(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_up_to_their_bound() {
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
    async fn the_last_error_contains_all_its_causes() {
        let breaker = breaker();
        let error = crate::queue::Error::Unavailable { hint: "/data".into(), source: "down".into() };
        breaker.failed(&error);
        let known = breaker.last_failure().unwrap().chain;
        assert!(known.contains("/data") && known.ends_with(": down"), "{known}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_cause_is_one_of_the_dependency_and_not_another_failed_call() {
        let breaker = breaker();
        let record = |doing: &'static str, source: &str| {
            let error = store::Error::Unavailable { doing, source: source.into() };
            breaker.record(Failure::of(&error), cause(&error))
        };
        let refused = |time, labels| format!("no server: {time} ms, labels: {{{labels}}}, refused");
        assert_eq!(record("read", &refused(1, "A, B")), Change::Nothing);
        assert_eq!(record("read", &refused(1, "A, B")), Change::Opened);
        assert_eq!(record("write", &refused(20, "B, A")), Change::Nothing, "the same cause");
        let shown = breaker.last_failure().unwrap().chain;
        assert!(shown.contains("write") && shown.contains("20 ms"), "what is shown is current: {shown}");
        assert_eq!(record("write", "the password is wrong"), Change::NewCause);
        assert_eq!(record("read", "the password is wrong"), Change::Nothing);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_without_an_outcome_is_replaced() {
        let breaker = breaker();
        fail(&breaker);
        fail(&breaker);
        breaker.ready().await;
        let start = Instant::now();
        breaker.ready().await;
        assert!(start.elapsed() >= Config::default().probe_deadline);
    }
}
