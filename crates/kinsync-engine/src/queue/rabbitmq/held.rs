//! The entries that the server has delivered to this process and that are not acked.
//!
//! AMQP has no leases: a delivered entry belongs to its channel until it is acked or the channel ends. So leases and the pauses of
//! retries are kept here. When the process or its connection ends, the server delivers what was held to another process, at once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use kinsync_core::Micros;
use lapin::{
    Acker,
    message::{Delivery, DeliveryResult},
};
use tokio::{sync::Notify, time::Instant};

use super::rows::{self, Content, Message};
use crate::queue::{EntryId, Found, Matcher};

/// Entries by their number on the channel of the server.
#[derive(Default)]
pub(super) struct Held {
    inner: Mutex<Inner>,
    /// Notified when an entry may have become claimable, or the channel was lost.
    pub(super) changed: Notify,
}

#[derive(Default)]
struct Inner {
    /// Number of the connection; entries of an earlier one are no longer held.
    generation: u64,
    is_consuming: bool,
    entries: BTreeMap<u64, One>,
    last_claim: Option<Instant>,
}

struct One {
    acker: Acker,
    message: Message,
    attempts: u32,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    /// Not claimed yet.
    New,
    /// Until this time.
    Claimed(Instant),
    /// To be claimed again from this time on.
    Waiting(Instant),
}

/// Numbers the entries that go from the second queue back into the first. On the way, neither the server counts them nor [`Held`].
#[derive(Default)]
pub(super) struct Returning {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Returning {
    /// Begins one, which ends when this is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Returned {
        self.begun.fetch_add(1, SeqCst);
        Returned(Arc::clone(self))
    }

    /// How many have ended.
    pub(super) fn ended(&self) -> u64 {
        self.ended.load(SeqCst)
    }

    /// How many have begun beyond this number.
    pub(super) fn begun_beyond(&self, ended: u64) -> u64 {
        self.begun.load(SeqCst).saturating_sub(ended)
    }
}

/// An entry on its way back.
pub(super) struct Returned(Arc<Returning>);

impl Drop for Returned {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, SeqCst);
    }
}

/// A claimed entry or message.
pub(super) struct Taken {
    pub(super) id: EntryId,
    pub(super) attempts: u32,
    pub(super) message: Message,
}

/// Result of an attempt to claim.
pub(super) struct Claims {
    pub(super) taken: Vec<Taken>,
    /// When the next held entry can be claimed.
    pub(super) next: Option<Instant>,
}

impl Held {
    /// Starts to hold the entries of a connection, and drops those of the one before.
    pub(super) fn begin(&self, generation: u64) {
        let mut inner = self.lock();
        inner.entries.clear();
        (inner.generation, inner.is_consuming) = (generation, true);
        // The time without a claim begins here: before the first claim, what arrives would be given back at once.
        inner.last_claim = Some(Instant::now());
    }

    /// Whether entries of this connection are held or were.
    pub(super) fn has_begun(&self, generation: u64) -> bool {
        self.lock().generation == generation
    }

    /// Whether the server delivers on this connection.
    pub(super) fn is_consuming(&self, generation: u64) -> bool {
        let inner = self.lock();
        inner.generation == generation && inner.is_consuming
    }

    /// Drops all entries: the server delivers them again.
    pub(super) fn lose(&self, generation: u64) {
        let mut inner = self.lock();
        if inner.generation == generation {
            inner.is_consuming = false;
            inner.entries.clear();
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Takes what the library received. Called in the order in which the server sent it.
    pub(super) fn receive(&self, generation: u64, delivery: DeliveryResult) {
        match delivery {
            Ok(Some(delivery)) => self.add(generation, delivery),
            Ok(None) | Err(_) => self.lose(generation),
        }
    }

    fn add(&self, generation: u64, mut delivery: Delivery) {
        let mut inner = self.lock();
        if inner.generation != generation {
            return;
        }
        let message = rows::of_delivery(&mut delivery);
        let Delivery { delivery_tag, acker, .. } = delivery;
        let one = One { acker, attempts: message.attempts, message, state: State::New };
        inner.entries.insert(delivery_tag, one);
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Claims entries, oldest first.
    pub(super) fn claim(&self, max: usize, lease: Duration) -> Claims {
        let now = Instant::now();
        let mut inner = self.lock();
        inner.last_claim = Some(now);
        let generation = inner.generation;
        let (mut taken, mut next) = (Vec::new(), None::<Instant>);
        for (tag, one) in &mut inner.entries {
            match one.state {
                State::Claimed(until) | State::Waiting(until) if until > now => {
                    next = Some(next.map_or(until, |next| next.min(until)));
                    continue;
                }
                State::New => {}
                State::Claimed(_) | State::Waiting(_) => one.attempts = one.attempts.saturating_add(1),
            }
            if taken.len() == max.max(1) {
                break;
            }
            one.state = State::Claimed(now + lease);
            let message = one.message.clone();
            taken.push(Taken { id: name(generation, *tag), attempts: one.attempts, message });
        }
        Claims { taken, next }
    }

    /// Lets entries be claimed again after a pause.
    pub(super) fn retry(&self, ids: &[EntryId], after: Duration) {
        let until = Instant::now() + after;
        let mut inner = self.lock();
        for id in ids {
            if let Some(tag) = inner.tag(id)
                && let Some(one) = inner.entries.get_mut(&tag)
            {
                one.state = State::Waiting(until);
            }
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Forgets entries. Returns what acks them on the server.
    pub(super) fn remove(&self, ids: &[EntryId]) -> Vec<Acker> {
        let mut inner = self.lock();
        let mut removed = Vec::with_capacity(ids.len());
        for id in ids {
            let tag = inner.tag(id);
            removed.extend(tag.and_then(|tag| inner.entries.remove(&tag)).map(|one| one.acker));
        }
        removed
    }

    /// Returns a copy of the message of an entry.
    pub(super) fn message(&self, id: &EntryId) -> Option<Message> {
        let inner = self.lock();
        inner.entries.get(&inner.tag(id)?).map(|one| one.message.clone())
    }

    /// Returns the number of messages of a newer version.
    pub(super) fn newer(&self) -> usize {
        let inner = self.lock();
        inner.entries.values().filter(|one| matches!(one.message.content, Content::Newer(_))).count()
    }

    /// Returns the entries that the matcher finds.
    pub(super) fn matching(&self, matcher: &Matcher) -> Vec<(EntryId, Found)> {
        let inner = self.lock();
        let scheme = |message: &Message| message.entry().map_or("unknown", |entry| entry.payload.scheme());
        let found = inner.entries.iter().filter(|(_, one)| matcher(scheme(&one.message), &one.message.body));
        let listed = |message: &Message| match message.entry() {
            Some(entry) => entry.into(),
            None => Found {
                event_id: String::new(),
                scheme: "unknown".into(),
                received_at: Micros(0),
                payload: String::from_utf8_lossy(&message.body).into_owned(),
            },
        };
        found.map(|(tag, one)| (name(inner.generation, *tag), listed(&one.message))).collect()
    }

    /// Returns the number of entries, and when the oldest was received.
    pub(super) fn depth(&self) -> (u64, Option<Micros>) {
        let inner = self.lock();
        let received = inner.entries.values().filter_map(|one| Some(one.message.entry()?.received_at));
        (inner.entries.len() as u64, received.min())
    }

    /// Returns the connection of which entries are held that this process does not claim any more: for this long it made no claim,
    /// and no lease is valid.
    pub(super) fn neglected(&self, pause: Duration) -> Option<u64> {
        let now = Instant::now();
        let inner = self.lock();
        let is_idle = inner.last_claim.is_none_or(|at| now.duration_since(at) > pause);
        let is_leased =
            inner.entries.values().any(|one| matches!(one.state, State::Claimed(until) if until > now));
        (is_idle && !is_leased && !inner.entries.is_empty()).then_some(inner.generation)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The number of an entry of this connection.
    fn tag(&self, id: &EntryId) -> Option<u64> {
        let (generation, tag) = id.as_str().split_once('-')?;
        (generation.parse() == Ok(self.generation)).then(|| tag.parse().ok())?
    }
}

fn name(generation: u64, tag: u64) -> EntryId {
    EntryId::new(format!("{generation}-{tag}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_before_the_first_claim_is_given_back_only_after_the_pause() {
        let held = Held::default();
        held.begin(1);
        held.receive(1, Ok(Some(Delivery::mock(1, "".into(), "queue".into(), false, Vec::new()))));
        assert_eq!(held.neglected(Duration::from_hours(1)), None);
        while held.neglected(Duration::ZERO).is_none() {}
        assert_eq!(held.claim(1, Duration::from_hours(1)).taken.len(), 1);
        assert_eq!(held.neglected(Duration::ZERO), None, "its lease is valid");
    }
}
