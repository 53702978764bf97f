//! Problems of the queue.

use std::time::Duration;

use kinsync_core::Micros;
use kinsync_engine::internal::queue::{Error, Spool, Stats};
use kinsync_tower::problem::chain;

use super::{Code, Problems};
use crate::{
    api::{health::QueueHealth, time::age},
    app::AppState,
    config,
    plural::counted,
};

/// A delivery that could not be stored makes the server unready for this long. Then the server is ready again, and the
/// next delivery shows whether it can be stored.
const UNREADY_FOR: Duration = Duration::from_secs(30);
/// A delivery that is queued for longer is a problem.
const LATE: Duration = Duration::from_mins(1);
const FULL: &str =
    "the queue is full: repair the store, or raise KINSYNC_QUEUE_MAX_ENTRIES and KINSYNC_QUEUE_MAX_BYTES";

impl Problems {
    pub(super) fn queue(
        &mut self,
        state: &AppState,
        now: Micros,
        queued: Result<Stats, Error>,
    ) -> QueueHealth {
        let queued = queued.unwrap_or_else(|error| {
            let cause = self.cause(Some(&chain(&error)));
            self.failing(Code::QueueUnavailable, format!("the queue does not answer: {cause}"));
            Stats::default()
        });
        let oldest = queued.oldest_received_at.map(|at| age(at, now));
        let failed = state.webhook.activity().unavailable_since().map(|at| age(at, now));
        if queued.is_failing {
            self.failing(
                Code::DeliveryNotStored,
                "the data folder cannot store deliveries: free 32 MiB on its disk, or repair it; the log has the cause",
            );
        } else if failed.is_some_and(|age| age < UNREADY_FOR.as_secs_f64()) {
            self.failing(
                Code::DeliveryNotStored,
                "a delivery could not be stored a moment ago: see the log for the cause",
            );
        }
        match queued.spool {
            Some(spool) => self.spooled(&state.config.queue, &queued, spool),
            None if is_full(&state.config.queue, queued.depth, queued.bytes) => {
                self.failing(Code::QueueFull, FULL);
            }
            None => {}
        }
        if oldest.is_some_and(|age| age > LATE.as_secs_f64()) {
            let depth = queued.depth;
            self.degraded(Code::QueueDelayed, format!(
                "the oldest of {depth} queued deliveries is older than {} s: see the log for what delays the store, or no process with \
                 the role `project` runs",
                LATE.as_secs()
            ));
        }
        if queued.newer_version > 0 {
            let waiting = counted(queued.newer_version, "delivery", "deliveries");
            self.degraded(Code::QueueNewerVersion, format!(
                "a newer version of kinsync stored {waiting} that this one cannot read: complete the upgrade within an hour, then they \
                 become dead letters"
            ));
        }
        if queued.dead_letters > 0 {
            let count = queued.dead_letters;
            self.degraded(
                Code::DeadLetters,
                format!(
                    "the queue contains {}: `kinsync dead-letters list` shows the reasons",
                    counted(count, "dead letter", "dead letters")
                ),
            );
        }
        QueueHealth { stats: (&queued).into(), oldest_age_seconds: oldest }
    }

    /// The shared queue and its spool. Deliveries are accepted as long as one of them has room.
    fn spooled(&mut self, config: &config::Queue, queued: &Stats, spool: Spool) {
        let waiting = counted(spool.entries, "delivery waits", "deliveries wait");
        let is_shared_full = queued.depth.saturating_sub(spool.entries) >= config.max_entries;
        if (is_shared_full || !spool.is_shared_queue_available) && is_full(config, spool.entries, spool.bytes)
        {
            self.failing(Code::QueueFull, format!("{FULL}; {waiting} on this machine"));
        } else if is_shared_full {
            self.degraded(Code::QueueFull, format!(
                "the shared queue has reached KINSYNC_QUEUE_MAX_ENTRIES, and {waiting} on this machine: repair the store, or raise \
                 the limit"
            ));
        }
        if spool.is_failing {
            self.degraded(
                Code::SpoolUnavailable,
                "the data folder cannot store deliveries, so they are refused as soon as the queue at KINSYNC_QUEUE does not accept \
                 them: free space or repair the disk; the log has the cause",
            );
        }
        if !spool.is_shared_queue_available {
            let old = spool
                .age_of_shared_values
                .map_or_else(String::new, |age| format!("; what is shown of it is {} s old", age.as_secs()));
            self.degraded(Code::SharedQueueUnavailable, format!(
                "the queue at KINSYNC_QUEUE does not accept deliveries: {waiting} on this machine; the log has the cause{old}"
            ));
        }
    }
}

fn is_full(config: &config::Queue, entries: u64, bytes: u64) -> bool {
    entries >= config.max_entries || bytes >= config.max_bytes
}
