//! Messages that this version cannot read.

use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::BasicNackOptions;
use tokio::time::{sleep, timeout};

use super::{
    PREFETCH, Shared,
    connection::RESPONSE,
    rows::{self, Content, Message},
};
use crate::{
    queue::{
        EntryId,
        unreadable::{DAMAGED, UNREADABLE, UNREADABLE_PAUSE, log_unreadable, pause},
    },
    random,
};

/// Longest pause, without jitter, while messages of a newer version are more than half of what the server delivers at once: longer ones
/// would delay the entries behind them.
const CROWDED: Duration = Duration::from_secs(1);

/// Messages that are published again at once. As many may be in the queue twice when the server does not confirm them in time.
const GROUP: usize = 64;

impl Shared {
    /// Leaves claimed messages of a newer version, each with its own id, to its processes. Old ones become dead letters, and damaged ones.
    pub(super) async fn leave(&self, newer: Vec<(EntryId, String)>, damaged: Vec<EntryId>) {
        let now = self.clock.now();
        let (mut left, mut names, mut longest) = (Vec::new(), Vec::new(), Duration::ZERO);
        let mut dead: Vec<_> = damaged.into_iter().map(|id| (id, DAMAGED.to_owned())).collect();
        for (id, message) in newer {
            match rows::made_at(&message).and_then(|at| pause(at, now)) {
                Some(pause) => {
                    longest = longest.max(pause);
                    names.push(EntryId::new(message));
                    left.push(id);
                }
                None => dead.push((id, UNREADABLE.to_owned())),
            }
        }
        if self.held.newer() > usize::from(PREFETCH) / 2 {
            longest = longest.min(random::jitter(CROWDED, 0.5..=1.5));
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

    /// Gives messages back after a pause, perhaps to this process.
    async fn give_back(&self, ids: &[EntryId], after: Duration) {
        if ids.is_empty() {
            return;
        }
        // Until then no claim of this process takes them again.
        self.held.retry(ids, after + 4 * RESPONSE);
        if self.closed.run_until_cancelled(sleep(after)).await.is_none() {
            return;
        }
        let mut rest = ids;
        while !rest.is_empty() && !self.closed.is_cancelled() {
            self.held.retry(rest, UNREADABLE_PAUSE + 4 * RESPONSE);
            let (group, others) = rest.split_at(GROUP.min(rest.len()));
            rest = others;
            if !self.move_to_the_end(group).await.is_empty() {
                // Perhaps published: given back at once, they would be in the queue twice, and the next time once more.
                break;
            }
        }
        let back = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        let ackers = self.held.remove(rest);
        // What does not reach the server comes again when the connection ends.
        _ = timeout(RESPONSE, join_all(ackers.iter().map(|acker| acker.nack(back)))).await;
    }

    /// Publishes messages again, and then acks them: RabbitMQ delivers what it gets back before all that waits. Returns those that it did not
    /// accept. One that is in the queue twice after a failure is applied once.
    async fn move_to_the_end(&self, ids: &[EntryId]) -> Vec<EntryId> {
        let _returned = self.returning.begin();
        let newer = |id: &EntryId| match self.held.message(id)? {
            Message { content: Content::Newer(properties), body, .. } => {
                Some((id.clone(), (*properties, body)))
            }
            _ => None,
        };
        let (held, messages): (Vec<EntryId>, Vec<_>) = ids.iter().filter_map(newer).unzip();
        let published = self.publish(&messages).await;
        let (mut moved, mut refused) = (Vec::new(), Vec::new());
        for (id, published) in held.into_iter().zip(published) {
            if published.is_ok() { moved.push(id) } else { refused.push(id) }
        }
        // Fails never: what is not acked comes again.
        _ = self.ack(&moved).await;
        refused
    }
}
