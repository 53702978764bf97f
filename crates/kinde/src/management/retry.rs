//! When to try again, and when to give up.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::config::Retry;

/// When to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    Never,
    /// After a pause of our own choice.
    Soon,
    /// After the time that Kinde demands.
    After(Duration),
}

/// What is left of the budget of one call.
#[derive(Debug)]
pub(super) struct Budget<'a> {
    retry: &'a Retry,
    deadline: Instant,
    /// That failed without a word of when to come back.
    attempts: u32,
    waits: u32,
}

impl<'a> Budget<'a> {
    pub(super) fn new(retry: &'a Retry) -> Self {
        Self { retry, deadline: Instant::now() + retry.total, attempts: 0, waits: 0 }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Counts an attempt that failed and waits before the next one; `false` when there is none. Who does as Kinde says
    /// has as many attempts as there is time for: a limiter that many share says "in a second" again and again.
    pub(super) async fn wait(&mut self, again: Again) -> bool {
        let pause = match again {
            Again::Never => return false,
            Again::Soon => jittered(self.pause()),
            // Those who were throttled together must not come back together.
            Again::After(reset) => reset + jittered(self.pause()),
        };
        self.waits += 1;
        self.attempts += u32::from(again == Again::Soon);
        if self.attempts >= self.retry.attempts || Instant::now() + pause >= self.deadline {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }

    fn pause(&self) -> Duration {
        let doubled = self.retry.first_pause.saturating_mul(2_u32.saturating_pow(self.waits));
        doubled.min(self.retry.longest_pause)
    }
}

/// Half to all of it.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..=1.0))
}

/// Holds back all requests of a client while Kinde throttles one of them.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Option<Instant>>);

impl Gate {
    pub(super) fn close_for(&self, reset: Duration) {
        let until = Instant::now() + reset;
        let mut closed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *closed = Some(closed.map_or(until, |closed| closed.max(until)));
    }

    /// Waits until the gate is open. An error when that is not before the deadline: how long it stays closed.
    pub(super) async fn pass(&self, deadline: Instant) -> Result<(), Duration> {
        loop {
            let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            match until {
                Some(until) if until > deadline => return Err(until.saturating_duration_since(now)),
                Some(until) if until > now => tokio::time::sleep_until(until).await,
                _ => return Ok(()),
            }
        }
    }
}
