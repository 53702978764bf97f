//! The pauses between attempts and between requests.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::config::RetryPolicy;
use crate::random;

/// Whether and when to retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    Never,
    /// After a pause of the retry policy.
    Soon,
    /// After the time that Kinde requires.
    After(Duration),
}

/// The first interval between requests after a 429.
const FIRST_SPACING: Duration = Duration::from_millis(50);
/// The longest interval: Kinde's lowest limits are a few requests per second.
const LONGEST_SPACING: Duration = Duration::from_secs(2);
/// Shorter intervals become zero.
const SHORTEST_SPACING: Duration = Duration::from_millis(5);

/// The remaining budget of one call.
#[derive(Debug)]
pub(super) struct Budget<'a> {
    retry: &'a RetryPolicy,
    deadline: Instant,
    attempts: u32,
    rate_limited: u32,
}

impl<'a> Budget<'a> {
    pub(super) fn new(retry: &'a RetryPolicy) -> Self {
        Self { retry, deadline: Instant::now() + retry.max_elapsed, attempts: 0, rate_limited: 0 }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Counts a failed attempt and waits before the next one. `false` if the budget is used up.
    ///
    /// A pause that Kinde requires does not count as an attempt: only the time limit ends it.
    pub(super) async fn wait(&mut self, again: Again) -> bool {
        let pause = match again {
            Again::Never => return false,
            Again::Soon => {
                let pause = jittered(self.doubled(self.attempts));
                self.attempts += 1;
                if self.attempts >= self.retry.max_attempts {
                    return false;
                }
                pause
            }
            // Requests that were limited together must not be repeated together, so the random part grows.
            Again::After(reset) => {
                let pause = reset + jittered(self.doubled(self.rate_limited));
                self.rate_limited += 1;
                pause
            }
        };
        if Instant::now() + pause >= self.deadline {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }

    fn doubled(&self, times: u32) -> Duration {
        let doubled = self.retry.initial_backoff.saturating_mul(2_u32.saturating_pow(times));
        doubled.min(self.retry.max_backoff)
    }
}

/// Half of the pause to all of it, at random.
fn jittered(pause: Duration) -> Duration {
    random::jitter(pause, 0.5..=1.0)
}

/// Delays all requests of a client while Kinde limits their rate, and keeps an interval between them afterwards. Each 429
/// doubles the interval and each response shortens it, so the rate of a long list approaches Kinde's limit.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    closed_until: Option<Instant>,
    /// The time between two requests.
    spacing: Duration,
    /// The earliest time of the next request by the interval.
    next: Option<Instant>,
}

impl Gate {
    /// Delays all requests by the time that Kinde requires.
    pub(super) fn close_for(&self, reset: Duration) {
        let now = Instant::now();
        let mut state = self.state();
        // Several 429 of concurrent requests count once.
        if state.closed_until.is_none_or(|until| until < now) {
            state.spacing = (state.spacing * 2).clamp(FIRST_SPACING, LONGEST_SPACING);
        }
        let until = now + reset;
        state.closed_until = Some(state.closed_until.map_or(until, |closed| closed.max(until)));
    }

    /// Shortens the interval after a response.
    pub(super) fn widen(&self) {
        let mut state = self.state();
        let shorter = state.spacing.saturating_sub(state.spacing / 16);
        state.spacing = if shorter < SHORTEST_SPACING { Duration::ZERO } else { shorter };
    }

    /// Waits until a request is allowed. If that is after the deadline, returns the remaining time as the error.
    pub(super) async fn pass(&self, deadline: Instant) -> Result<(), Duration> {
        loop {
            let now = Instant::now();
            let later = self.state().delay_until(now);
            match later {
                None => return Ok(()),
                Some(until) if until > deadline => return Err(until - now),
                Some(until) => tokio::time::sleep_until(until).await,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// `None` if a request is allowed now; else the time of the next check.
    fn delay_until(&mut self, now: Instant) -> Option<Instant> {
        let later = self.closed_until.max(self.next).filter(|until| *until > now);
        if later.is_none() {
            self.next = (!self.spacing.is_zero()).then(|| now + self.spacing);
        }
        later
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn pauses_that_kinde_requires_grow_until_the_time_limit() {
        let retry = RetryPolicy { max_attempts: 2, ..RetryPolicy::default() };
        let (mut budget, began) = (Budget::new(&retry), Instant::now());
        let mut pauses = Vec::new();
        loop {
            let started = Instant::now();
            if !budget.wait(Again::After(SECOND)).await {
                break;
            }
            pauses.push(started.elapsed());
        }
        assert!(began.elapsed() + SECOND + retry.max_backoff > retry.max_elapsed, "{pauses:?}");
        // 1 s and 0.125 to 0.25 s; seven doublings later 1 s and 10 to 20 s.
        assert!(pauses[0] < SECOND * 5 / 4 && pauses[7] > SECOND * 10, "{pauses:?}");
        assert!(!budget.wait(Again::Soon).await || !budget.wait(Again::Soon).await, "attempts are counted");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_429_requests_have_an_interval_that_each_response_shortens() {
        let (gate, deadline) = (Gate::default(), Instant::now() + SECOND * 100);
        let gap = async || {
            let started = Instant::now();
            gate.pass(deadline).await.unwrap();
            started.elapsed()
        };
        assert_eq!((gap().await, gap().await), (Duration::ZERO, Duration::ZERO), "not before one");
        // Three at one time count once.
        [SECOND; 3].into_iter().for_each(|reset| gate.close_for(reset));
        assert!(gap().await >= SECOND && gap().await >= FIRST_SPACING);
        assert!(gap().await < FIRST_SPACING * 2);
        gate.close_for(SECOND);
        assert!(gap().await >= SECOND && gap().await >= FIRST_SPACING * 2, "twice as far after the next one");
        (0..60).for_each(|_| gate.widen());
        gate.pass(deadline).await.unwrap();
        assert_eq!(gap().await, Duration::ZERO, "as fast as before");
        assert_eq!(gate.pass(Instant::now()).await, Ok(()));
        gate.close_for(SECOND * 200);
        assert!(gate.pass(deadline).await.is_err());
    }
}
