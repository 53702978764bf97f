//! Rate limits of the Management API: requests per window, and concurrent requests.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limits;

/// The current use of the limits.
pub(crate) struct Limiter {
    limits: Limits,
    window_began: Option<Instant>,
    in_window: u32,
    in_flight: u32,
}

impl Limiter {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, window_began: None, in_window: 0, in_flight: 0 }
    }

    /// Sets the limits; the next request starts a new window.
    pub(crate) fn set(&mut self, limits: Limits) {
        (self.limits, self.window_began) = (limits, None);
    }

    /// Admits a request until [`Limiter::leave`], or returns the time until the next request may be admitted.
    pub(crate) fn enter(&mut self, now: Instant) -> Result<(), Duration> {
        let Limits { requests, window, concurrency } = self.limits;
        let began = self.window_began.filter(|began| now < *began + window);
        if began.is_none() {
            (self.window_began, self.in_window) = (Some(now), 0);
        }
        if requests > 0 && self.in_window >= requests {
            return Err(began.unwrap_or(now) + window - now);
        }
        if concurrency > 0 && self.in_flight >= concurrency {
            return Err(Duration::from_secs(1));
        }
        self.in_window += 1;
        self.in_flight += 1;
        Ok(())
    }

    pub(crate) fn leave(&mut self) {
        self.in_flight -= 1;
    }
}

/// `RateLimit-Reset`: whole seconds, rounded up.
pub(crate) fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_admitted_after_a_window_and_after_another_request() {
        let limits = Limits { requests: 3, window: Duration::from_secs(10), concurrency: 2 };
        let (mut limiter, start) = (Limiter::new(limits), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert!(limiter.enter(at(0)).is_ok() && limiter.enter(at(1)).is_ok());
        assert_eq!(limiter.enter(at(2)), Err(Duration::from_secs(1)), "two concurrent requests");
        limiter.leave();
        assert!(limiter.enter(at(3)).is_ok());
        limiter.leave();
        let wait = limiter.enter(at(2500)).unwrap_err();
        assert_eq!((wait, seconds(wait)), (Duration::from_millis(7500), 8), "three requests in the window");
        assert!(limiter.enter(at(10_000)).is_ok());
        limiter.set(Limits::default());
        assert!((0..100).all(|_| limiter.enter(at(10_001)).is_ok()));
    }
}
