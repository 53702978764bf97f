//! The deliveries of one endpoint that wait for an attempt, by due time; some are held back to be overtaken.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::event::Event;

/// A delivery on its way.
pub(super) struct Job {
    pub(super) number: u64,
    pub(super) delivery_id: String,
    pub(super) event: Arc<Event>,
    pub(super) attempts: u32,
    /// The signed body, made at the first attempt.
    pub(super) body: Option<Bytes>,
}

type Key = (Instant, u64);

#[derive(Default)]
pub(super) struct Queue {
    waiting: BTreeMap<Key, Job>,
    held: Vec<(Key, u32)>,
    next: u64,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Queues a delivery due at `due`, and counts it as overtaking those that are held back.
    pub(super) fn push(&mut self, due: Instant, job: Job) {
        self.insert(due, job);
        self.overtake(due);
    }

    /// Queues a delivery that waits until `behind` later ones were queued, at most for `hold`.
    pub(super) fn hold(&mut self, now: Instant, behind: u32, hold: Duration, job: Job) {
        let key = self.insert(now + hold, job);
        self.held.push((key, behind));
    }

    /// Queues a delivery again for its next attempt.
    pub(super) fn insert(&mut self, due: Instant, job: Job) -> Key {
        self.next += 1;
        self.waiting.insert((due, self.next), job);
        (due, self.next)
    }

    fn overtake(&mut self, due: Instant) {
        let mut free = Vec::new();
        self.held.retain_mut(|(key, behind)| {
            *behind = behind.saturating_sub(1);
            let done = *behind == 0;
            if done {
                free.push(*key);
            }
            !done
        });
        for key in free {
            if let Some(job) = self.waiting.remove(&key) {
                self.insert(due, job);
            }
        }
    }

    /// The first delivery that is due, or when the next one will be.
    pub(super) fn pop(&mut self, now: Instant) -> Result<Job, Option<Instant>> {
        match self.waiting.first_entry() {
            Some(first) if first.key().0 <= now => {
                let (key, job) = first.remove_entry();
                self.held.retain(|(held, _)| *held != key);
                Ok(job)
            }
            Some(first) => Err(Some(first.key().0)),
            None => Err(None),
        }
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Job> + use<> {
        self.held.clear();
        std::mem::take(&mut self.waiting).into_values()
    }
}
