//! The queued deliveries of one endpoint by due time. The fault `reorder` holds deliveries back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::event::Event;

/// A pending delivery.
pub(super) struct Job {
    pub(super) number: u64,
    pub(super) delivery_id: String,
    pub(super) event: Arc<Event>,
    pub(super) attempts: u32,
    /// The signed body; `None` before the first attempt.
    pub(super) body: Option<Bytes>,
}

type Key = (Instant, u64);

#[derive(Default)]
pub(super) struct Queue {
    queued: BTreeMap<Key, Job>,
    held_back: Vec<(Key, u32)>,
    next: u64,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.queued.len()
    }

    /// Queues a delivery, and releases held deliveries that this makes due.
    pub(super) fn push(&mut self, due: Instant, job: Job) {
        self.insert(due, job);
        self.release(due);
    }

    /// Queues a delivery until `behind` later deliveries were queued, at most for `hold`.
    pub(super) fn hold(&mut self, now: Instant, behind: u32, hold: Duration, job: Job) {
        let key = self.insert(now + hold, job);
        self.held_back.push((key, behind));
    }

    /// Queues a delivery for its next attempt.
    pub(super) fn insert(&mut self, due: Instant, job: Job) -> Key {
        self.next += 1;
        self.queued.insert((due, self.next), job);
        (due, self.next)
    }

    fn release(&mut self, due: Instant) {
        let mut released = Vec::new();
        self.held_back.retain_mut(|(key, behind)| {
            *behind = behind.saturating_sub(1);
            let done = *behind == 0;
            if done {
                released.push(*key);
            }
            !done
        });
        for key in released {
            if let Some(job) = self.queued.remove(&key) {
                self.insert(due, job);
            }
        }
    }

    /// Removes the first due delivery, or returns the time when the next one is due.
    pub(super) fn pop(&mut self, now: Instant) -> Result<Job, Option<Instant>> {
        match self.queued.first_entry() {
            Some(first) if first.key().0 <= now => {
                let (key, job) = first.remove_entry();
                self.held_back.retain(|(held, _)| *held != key);
                Ok(job)
            }
            Some(first) => Err(Some(first.key().0)),
            None => Err(None),
        }
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Job> + use<> {
        self.held_back.clear();
        std::mem::take(&mut self.queued).into_values()
    }
}
