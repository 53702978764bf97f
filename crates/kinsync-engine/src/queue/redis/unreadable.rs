//! Entries that this version cannot read.

use redis::{Pipeline, Value};

use super::{FAR, GROUP, Shared, millis, rows, unless_lost};
use crate::queue::{
    EntryId, Error,
    unreadable::{DAMAGED, UNREADABLE, UNREADABLE_PAUSE, log_unreadable, pause},
};

impl Shared {
    /// Leaves claimed entries of a newer version, each with the number of its earlier deliveries, to its processes. Old ones become dead
    /// letters, and damaged ones. Not a part of the claim: with its error, the others would wait for the end of their lease.
    pub(super) async fn leave(&self, newer: Vec<(EntryId, i64)>, damaged: Vec<EntryId>) {
        let now = self.clock.now();
        let (mut released, mut left) = (Pipeline::new(), Vec::new());
        let mut dead: Vec<_> = damaged.into_iter().map(|id| (id, DAMAGED.to_owned())).collect();
        for (id, earlier) in newer {
            let Some(pause) = rows::stored_at(id.as_str()).and_then(|at| pause(at, now)) else {
                dead.push((id, UNREADABLE.to_owned()));
                continue;
            };
            released.cmd("XCLAIM").arg(&self.keys.stream).arg(GROUP).arg(GROUP).arg(0).arg(id.as_str());
            // The attempt does not count: nothing was tried.
            released.arg("IDLE").arg(millis(FAR.saturating_sub(pause))).arg("RETRYCOUNT").arg(earlier);
            released.arg("JUSTID").ignore();
            left.push(id);
        }
        if !left.is_empty() {
            self.left.add(left);
            if let Err(error) = unless_lost(self.commands.run_all::<Value>(&released).await) {
                log_unreleased(&error);
            }
        }
        if !dead.is_empty()
            && let Err(error) = self.dead_letter(&dead).await
        {
            log_unreadable(dead.len(), &error);
            let ids: Vec<EntryId> = dead.into_iter().map(|(id, _)| id).collect();
            self.release_or_log(&ids, UNREADABLE_PAUSE).await;
        }
    }
}

/// Logs that claimed entries could not be released.
pub(super) fn log_unreleased(error: &Error) {
    let error = crate::breaker::error_chain(error);
    tracing::warn!(error, "claimed entries could not be released; they come again after their lease");
}
