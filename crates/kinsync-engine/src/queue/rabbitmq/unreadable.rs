//! Messages that this version cannot read.

use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::BasicNackOptions;
use tokio::time::{sleep, timeout};

use super::{Shared, connection::RESPONSE, rows};
use crate::queue::{
    EntryId,
    unreadable::{UNREADABLE, UNREADABLE_PAUSE, log_unreadable, pause},
};

impl Shared {
    /// Leaves claimed messages, each with its own id, to newer processes. Those of other programs and old ones become dead letters.
    pub(super) async fn leave(&self, unreadable: Vec<(EntryId, String)>) {
        let now = self.clock.now();
        let (mut left, mut names, mut dead, mut longest) =
            (Vec::new(), Vec::new(), Vec::new(), Duration::ZERO);
        for (id, message) in unreadable {
            match rows::made_at(&message).and_then(|at| pause(at, now)) {
                Some(pause) => {
                    longest = longest.max(pause);
                    names.push(EntryId::new(message));
                    left.push(id);
                }
                None => dead.push((id, UNREADABLE.to_owned())),
            }
        }
        self.left.add(names);
        tokio::join!(self.give_back(&left, longest), self.dead_letter_unreadable(dead));
    }

    async fn dead_letter_unreadable(&self, unreadable: Vec<(EntryId, String)>) {
        if !unreadable.is_empty()
            && let Err(error) = self.dead_letter(&unreadable).await
        {
            log_unreadable(unreadable.len(), &error);
            let ids: Vec<EntryId> = unreadable.into_iter().map(|(id, _)| id).collect();
            self.held.retry(&ids, UNREADABLE_PAUSE);
        }
    }

    /// Gives messages back after a pause: RabbitMQ delivers them again at once, perhaps to this process.
    async fn give_back(&self, ids: &[EntryId], after: Duration) {
        if ids.is_empty() {
            return;
        }
        // Until then no claim of this process takes them again.
        self.held.retry(ids, after * 2);
        if self.closed.run_until_cancelled(sleep(after)).await.is_none() {
            return;
        }
        let back = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        let ackers = self.held.remove(ids);
        // What does not reach the server comes again when the connection ends.
        _ = timeout(RESPONSE, join_all(ackers.iter().map(|acker| acker.nack(back)))).await;
    }
}
