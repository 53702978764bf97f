//! Entries of a shared queue that another version of kinsync wrote, and that this one cannot read.

use std::time::Duration;

use super::Error;

/// Reason of a dead letter that another version of kinsync wrote.
pub(super) const UNREADABLE: &str = "this version of kinsync cannot read the entry";

/// Pause before an entry of another version is claimed again that could not become a dead letter.
pub(super) const UNREADABLE_PAUSE: Duration = Duration::from_secs(1);

/// Logs that entries of another version could not become dead letters.
pub(super) fn log_unreadable(entries: usize, error: &Error) {
    let error = crate::breaker::error_chain(error);
    tracing::warn!(
        entries,
        error,
        "entries that cannot be read could not become dead letters; they stay queued"
    );
}
