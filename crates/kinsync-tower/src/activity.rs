//! How deliveries are going: what a health page asks, and the alarm for a run of failed verifications.
//!
//! A wrong secret or domain looks like an attack to the verifier and like an outage to Kinde, which disables a
//! webhook after 72 hours of failures. So a run of failures is said loudly, and rarely enough to be read.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
};

use kinsync_core::Micros;

/// No time yet.
const NEVER: i64 = i64::MIN;

/// How deliveries are going. Cheap to clone; clones see the same.
#[derive(Clone, Debug, Default)]
pub struct Activity(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    failed_in_row: AtomicU64,
    last_delivery: AtomicI64,
    last_unavailable: AtomicI64,
    unavailable_in_row: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            failed_in_row: AtomicU64::new(0),
            last_delivery: AtomicI64::new(NEVER),
            last_unavailable: AtomicI64::new(NEVER),
            unavailable_in_row: AtomicU64::new(0),
        }
    }
}

impl Activity {
    /// Failed verifications since the last delivery that was verified.
    pub fn failed_in_row(&self) -> u64 {
        self.0.failed_in_row.load(Relaxed)
    }

    /// When the last verified delivery was answered 200.
    pub fn last_delivery(&self) -> Option<Micros> {
        known(self.0.last_delivery.load(Relaxed))
    }

    /// When the last delivery was answered 503, if none was answered 200 since.
    pub fn unavailable_since(&self) -> Option<Micros> {
        known(self.0.last_unavailable.load(Relaxed))
    }

    pub(crate) fn delivered(&self, now: Micros) {
        self.0.failed_in_row.store(0, Relaxed);
        self.0.last_delivery.store(now.0, Relaxed);
        self.0.last_unavailable.store(NEVER, Relaxed);
        self.0.unavailable_in_row.store(0, Relaxed);
    }

    /// Whether this one is news: a full disk must not be filled further by saying so of each delivery.
    pub(crate) fn unavailable(&self, now: Micros) -> bool {
        self.0.last_unavailable.store(now.0, Relaxed);
        alarm(self.0.unavailable_in_row.fetch_add(1, Relaxed) + 1) != Alarm::None
    }

    /// Counts a failed verification, and says so when that is news.
    pub(crate) fn refused(&self, reason: &'static str) {
        let in_row = self.0.failed_in_row.fetch_add(1, Relaxed) + 1;
        match alarm(in_row) {
            Alarm::None => {}
            Alarm::First => {
                tracing::warn!(
                    reason,
                    "a delivery could not be verified and was refused; nothing was stored"
                );
            }
            Alarm::Run => tracing::error!(
                reason,
                in_row,
                "deliveries fail verification one after another: the webhook will be disabled by Kinde after 72 h \
                 of failures; compare KINDE_DOMAIN and KINDE_WEBHOOK_SECRET with the sender's settings"
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

/// The first one is a warning; the tenth, hundredth and so on are errors.
fn alarm(in_row: u64) -> Alarm {
    match in_row {
        1 => Alarm::First,
        n if n >= 10 && 10_u64.checked_pow(n.ilog10()) == Some(n) => Alarm::Run,
        _ => Alarm::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alarm_sounds_at_one_ten_and_each_power_of_ten() {
        let loud: Vec<u64> = (0..=1_000).filter(|n| alarm(*n) != Alarm::None).collect();
        assert_eq!(loud, [1, 10, 100, 1_000]);
        assert_eq!(alarm(u64::MAX), Alarm::None);
    }

    #[test]
    fn a_delivery_ends_the_run_of_failures() {
        let activity = Activity::default();
        activity.refused("test");
        activity.refused("test");
        assert_eq!(activity.failed_in_row(), 2);
        activity.delivered(Micros(7));
        assert_eq!((activity.failed_in_row(), activity.last_delivery()), (0, Some(Micros(7))));
    }
}
