//! The current time. Passed to every component, so that tests control it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
};

use kinsync_core::Micros;

/// Source of the current time. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Micros + Send + Sync>);

impl Clock {
    /// Returns the wall clock of the machine.
    pub fn system() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place of this crate that reads the wall clock"
        )]
        Self::from_fn(|| Micros(jiff::Timestamp::now().as_microsecond()))
    }

    /// Returns a clock that calls `now`.
    pub fn from_fn(now: impl Fn() -> Micros + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Returns the current instant in UTC. Never orders observations: only provider times do.
    pub fn now(&self) -> Micros {
        (self.0)()
    }
}

/// Largest correction of the wall clock, in microseconds, over which times of receipt stay in order. A larger one means
/// that the time before it was wrong.
const MAX_CORRECTION: i64 = 5 * 60 * 1_000_000;

/// Times of receipt of one process: each is later than the one before, also when the wall clock stands still or is set
/// back a little. They order the events without a time of the sender.
#[derive(Debug)]
pub struct ReceiptClock {
    clock: Clock,
    last: AtomicI64,
}

impl ReceiptClock {
    /// Returns a clock that follows this one.
    pub fn new(clock: Clock) -> Self {
        Self { clock, last: AtomicI64::new(i64::MIN) }
    }

    /// Returns the time of a receipt that happens now.
    pub fn next(&self) -> Micros {
        let now = self.clock.now().0;
        let after = |last: i64| {
            let is_ahead = last >= now && last.saturating_sub(now) <= MAX_CORRECTION;
            if is_ahead { last + 1 } else { now }
        };
        let last = self.last.fetch_update(Relaxed, Relaxed, |last| Some(after(last)));
        Micros(last.map_or(now, after))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_receipt_is_later_than_the_one_before() {
        let wall = Arc::new(AtomicI64::new(1_000));
        let source = Arc::clone(&wall);
        let receipts = ReceiptClock::new(Clock::from_fn(move || Micros(source.load(Relaxed))));
        let next_at = |now: i64| {
            wall.store(now, Relaxed);
            receipts.next().0
        };
        assert_eq!([next_at(1_000), next_at(1_000), next_at(900)], [1_000, 1_001, 1_002]);
        assert_eq!([next_at(5_000), next_at(5_000)], [5_000, 5_001]);
        let wrong = 10 * MAX_CORRECTION;
        assert_eq!(
            [next_at(wrong), next_at(6_000)],
            [wrong, 6_000],
            "the time before a large correction was wrong"
        );
    }
}
