//! Entries of a shared queue that this version of kinsync cannot read.
//!
//! During an upgrade processes of two versions share the queue, and only the newer ones can read what a newer one wrote. So an
//! entry of another format or with an unknown scheme is left to other processes, and becomes a dead letter an hour after it was stored. One that
//! cannot be read for any other reason becomes one at once: no version could read it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kinsync_core::Micros;
use tokio::time::Instant;

use super::{EntryId, Error};
use crate::{erasure::SETTLED_AFTER, random};

/// Reason of a dead letter that another version of kinsync wrote.
pub(super) const UNREADABLE: &str = "this version of kinsync cannot read the entry";

/// Reason of a dead letter that no version can read.
pub(super) const DAMAGED: &str = "the entry is damaged, or another program wrote it";

/// Pause before an entry of another version is claimed again that could not become a dead letter.
pub(super) const UNREADABLE_PAUSE: Duration = Duration::from_secs(1);

/// Age at which an entry becomes a dead letter.
const PATIENCE: Duration = Duration::from_hours(1);
// An erasure may not find them until then.
const _: () = assert!(PATIENCE.as_secs() * 3 / 2 < SETTLED_AFTER.as_secs());
/// Shortest and longest pause, without jitter, before an entry is looked at again.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Time for which an entry counts as left to others: longer than any pause.
const SHOWN: Duration = Duration::from_mins(1);
/// Most entries that are remembered as left to others.
const MAX_SHOWN: usize = 10_000;

/// Returns the pause after which this process looks again at an entry that was stored at this time. `None`: it becomes a dead letter.
pub(super) fn pause(stored_at: Micros, now: Micros) -> Option<Duration> {
    let age = Duration::from_micros(now.0.saturating_sub(stored_at.0).max(0).unsigned_abs());
    // It grows with the age: while no process can read them, looking at them costs less and less. With jitter: two processes that
    // look in the same rhythm would do so in the same order each time.
    (age < PATIENCE).then(|| random::jitter((age / 4).clamp(PAUSES.0, PAUSES.1), 0.5..=1.5))
}

/// Entries that this process left to others.
#[derive(Debug, Default)]
pub(super) struct Left(Mutex<HashMap<EntryId, Instant>>);

impl Left {
    /// Adds entries.
    pub(super) fn add(&self, ids: impl IntoIterator<Item = EntryId>) {
        let now = Instant::now();
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|_, at| now.duration_since(*at) < SHOWN);
        let were_none = left.is_empty();
        for id in ids {
            if left.len() < MAX_SHOWN || left.contains_key(&id) {
                left.insert(id, now);
            }
        }
        if were_none && !left.is_empty() {
            tracing::warn!(
                entries = left.len(),
                "entries that this version of kinsync cannot read wait for a newer process; after an hour they become dead letters"
            );
        }
    }

    /// Returns the number of entries that were added within the last minute, at most 10,000.
    pub(super) fn count(&self) -> u64 {
        let now = Instant::now();
        let left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        left.values().filter(|at| now.duration_since(**at) < SHOWN).count() as u64
    }
}

/// Logs that entries of another version could not become dead letters.
pub(super) fn log_unreadable(entries: usize, error: &Error) {
    let error = crate::breaker::error_chain(error);
    tracing::warn!(
        entries,
        error,
        "entries that cannot be read could not become dead letters; they stay queued"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_left_to_others_for_an_hour_ever_longer_and_within_bounds() {
        let pauses = |age: Duration| {
            let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
            (0..100).map(move |_| pause(Micros(7), Micros(7 + age)))
        };
        for (age, usual) in [(0, 1), (40, 10), (120, 30), (3_599, 30)] {
            let (shortest, longest) =
                (Duration::from_millis(usual * 500), Duration::from_millis(usual * 1_500));
            let pauses: Vec<_> = pauses(Duration::from_secs(age)).flatten().collect();
            assert!(
                pauses.len() == 100 && pauses.iter().all(|one| (shortest..=longest).contains(one)),
                "{pauses:?}"
            );
            assert!(
                pauses.iter().any(|one| *one != pauses[0]),
                "two processes do not look in the same rhythm"
            );
        }
        assert!(pauses(PATIENCE).all(|pause| pause.is_none()));
        assert!(pause(Micros(i64::MAX), Micros(0)).is_some(), "the clock of the server may be ahead");
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_counts_as_left_for_a_minute_after_each_look() {
        let left = Left::default();
        left.add([EntryId::new("a"), EntryId::new("b")]);
        tokio::time::advance(SHOWN / 2).await;
        left.add([EntryId::new("a")]);
        assert_eq!(left.count(), 2);
        tokio::time::advance(SHOWN / 2).await;
        assert_eq!(left.count(), 1);
        tokio::time::advance(SHOWN / 2).await;
        assert_eq!(left.count(), 0);
        left.add((0..2 * MAX_SHOWN).map(|id| EntryId::new(id.to_string())));
        assert_eq!(left.count(), MAX_SHOWN as u64);
    }
}
