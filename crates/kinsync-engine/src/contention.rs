//! Repeated compare-and-set attempts: their number, the pause between them, and the error after the last one.

use std::time::Duration;

use crate::{random, store::Error};

/// Compare-and-set attempts before giving up. Each lost attempt means that a concurrent write succeeded.
pub(crate) const MAX_ROUNDS: u32 = 64;

/// Why the rows are not written after [`MAX_ROUNDS`] attempts.
pub(crate) const REASON: &str = "other processes write the same rows continuously";

/// Waits after several lost attempts, with jitter, so that one process wins.
pub(crate) async fn pause(round: u32) {
    if round > 2 {
        let longest = Duration::from_millis(1 << round.min(7));
        tokio::time::sleep(random::jitter(longest, 0.0..=1.0)).await;
    }
}

/// Returns the error of a write after [`MAX_ROUNDS`] attempts.
pub(crate) fn error(doing: &'static str) -> Error {
    Error::Unavailable { doing, source: REASON.into() }
}
