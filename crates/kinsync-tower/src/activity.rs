//! State of the webhook endpoint: the values that a health page shows, and the alarm for a run of failed
//! verifications.
//!
//! A wrong secret or domain makes every delivery of Kinde fail verification, and Kinde disables a webhook after 72
//! hours of failures. A run of failures is therefore logged as an error, at growing intervals so that it stays readable.
//! Requests without a signature, or with one that cannot be read, are not counted: any client can send them.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
};

use kinsync_core::Micros;

/// No time yet.
const NEVER: i64 = i64::MIN;

/// Counters and times of one webhook endpoint. Cheap to clone; clones share the values.
#[derive(Clone, Debug, Default)]
pub struct Activity(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    consecutive_failures: AtomicU64,
    last_delivery: AtomicI64,
    last_unavailable: AtomicI64,
    consecutive_unavailable: AtomicU64,
    last_without_time: AtomicI64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            consecutive_failures: AtomicU64::new(0),
            last_delivery: AtomicI64::new(NEVER),
            last_unavailable: AtomicI64::new(NEVER),
            consecutive_unavailable: AtomicU64::new(0),
            last_without_time: AtomicI64::new(NEVER),
        }
    }
}

impl Activity {
    /// Returns the failed verifications of signed deliveries since the last verified delivery.
    pub fn consecutive_failures(&self) -> u64 {
        self.0.consecutive_failures.load(Relaxed)
    }

    /// Returns the time of the last verified delivery with the status 200.
    pub fn last_delivery(&self) -> Option<Micros> {
        known(self.0.last_delivery.load(Relaxed))
    }

    /// Returns the time of the last verified delivery that the queue could not store, unless a later one was stored.
    pub fn unavailable_since(&self) -> Option<Micros> {
        known(self.0.last_unavailable.load(Relaxed))
    }

    /// Returns the time of the last accepted event without a time.
    pub fn last_without_time(&self) -> Option<Micros> {
        known(self.0.last_without_time.load(Relaxed))
    }

    /// Records an accepted event without a time. The first one is logged.
    pub(crate) fn without_time(&self, now: Micros) {
        if self.0.last_without_time.swap(now.0, Relaxed) == NEVER {
            tracing::warn!(
                "an event without a time was accepted; such events take effect in the order of receipt: send \
                 `event_id` and `timestamp` with each event"
            );
        }
    }

    pub(crate) fn delivered(&self, now: Micros) {
        self.0.consecutive_failures.store(0, Relaxed);
        self.0.last_delivery.store(now.0, Relaxed);
        self.0.last_unavailable.store(NEVER, Relaxed);
        self.0.consecutive_unavailable.store(0, Relaxed);
    }

    /// Records a verified delivery that could not be stored. Returns whether to log it as an error: one line per
    /// delivery would fill a full disk further.
    pub(crate) fn unavailable(&self, now: Micros) -> bool {
        self.0.last_unavailable.store(now.0, Relaxed);
        alarm(self.0.consecutive_unavailable.fetch_add(1, Relaxed) + 1) != Alarm::None
    }

    /// Counts a failed verification of a signed delivery and logs it when [`alarm`] returns an alarm.
    pub(crate) fn verification_failed(&self, reason: &'static str) {
        let failures = self.0.consecutive_failures.fetch_add(1, Relaxed) + 1;
        match alarm(failures) {
            Alarm::None => {}
            Alarm::First => {
                tracing::warn!(reason, "a delivery failed verification and was refused; nothing was stored");
            }
            Alarm::Run => tracing::error!(
                reason,
                failures,
                "consecutive deliveries fail verification: Kinde disables the webhook after 72 h of failures; compare \
                 KINDE_DOMAIN and KINDE_WEBHOOK_SECRET with the sender's settings"
            ),
        }
    }
}

fn known(at: i64) -> Option<Micros> {
    (at != NEVER).then_some(Micros(at))
}

#[derive(PartialEq, Eq, Debug)]
enum Alarm {
    None,
    First,
    Run,
}

/// The first failure is a warning; the tenth, hundredth and so on are errors.
fn alarm(consecutive: u64) -> Alarm {
    match consecutive {
        1 => Alarm::First,
        n if n >= 10 && 10_u64.checked_pow(n.ilog10()) == Some(n) => Alarm::Run,
        _ => Alarm::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_logged_at_one_ten_and_each_power_of_ten() {
        let logged: Vec<u64> = (0..=1_000).filter(|n| alarm(*n) != Alarm::None).collect();
        assert_eq!(logged, [1, 10, 100, 1_000]);
        assert_eq!(alarm(u64::MAX), Alarm::None);
    }

    #[test]
    fn a_verified_delivery_resets_the_count_of_failures() {
        let activity = Activity::default();
        activity.verification_failed("test");
        activity.verification_failed("test");
        assert_eq!(activity.consecutive_failures(), 2);
        activity.delivered(Micros(7));
        assert_eq!((activity.consecutive_failures(), activity.last_delivery()), (0, Some(Micros(7))));
    }
}
