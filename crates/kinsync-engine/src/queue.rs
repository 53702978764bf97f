//! Stores deliveries durably until the projector has applied them.
//!
//! Delivery is at least once: an entry that was claimed and not acked is claimed again when its
//! lease ends or the process restarts, so everything behind the queue is idempotent. Entries may
//! arrive in any order; the versions of the observations decide.
//!
//! A lease is not renewed while its entry is in work. So another process takes over from one that lives and does not get on: one that is cut
//! off from the store, or waits for it behind the breaker. The price is work that is done twice when a batch takes longer than its lease,
//! and nothing else: the log knows the event, the join changes no row, and an ack, a retry or a dead letter of an entry that is gone does
//! nothing. The load does not grow by it: the number of workers is fixed, and each has one batch.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use kinde::webhook::{Delivery, Scheme};
use kinsync_core::Micros;
use serde::{Deserialize, Serialize};

use crate::random;

#[cfg(any(feature = "redis", feature = "rabbitmq"))]
mod batches;
pub mod embedded;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
#[cfg(feature = "redis")]
pub mod redis;
mod shared;
pub mod spooled;
mod transfer;
#[cfg(any(feature = "redis", feature = "rabbitmq"))]
mod unreadable;

pub use self::{
    shared::SharedQueue,
    transfer::{Transferred, transfer},
};

/// Largest event id and payload together.
pub const MAX_ENTRY: usize = 16 << 20;

/// What to do about a certificate of the server that is not accepted.
#[cfg(any(feature = "redis", feature = "rabbitmq"))]
const CERTIFICATE: &str = "its certificate is not accepted: the host in the address has to be one of its names, and \
                           SSL_CERT_FILE names a file with the certificate of a private authority";

/// Name of the supervised task of a shared queue.
#[cfg(any(feature = "redis", feature = "rabbitmq"))]
const SHARED_TASK: &str = "shared queue";

/// Most dead letters in one list.
const MAX_LISTED: usize = 1000;

/// The scheme of sightings, which no delivery can have.
pub const SIGHTING_SCHEME: &str = "login";

/// What the queue stores.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The signed id of the event, the id of the sighting, or an id that kinsync made. Duplicates are detected by it.
    pub event_id: String,
    /// When it was received, by the local clock. Orders only events without a time of the sender.
    pub received_at: Micros,
    /// Content of the entry.
    pub payload: Payload,
}

impl Entry {
    /// Returns the entry of a delivery that was received at this time.
    ///
    /// If the sender signed no id, the entry gets a new one: a repeated request may be a new event with the same content,
    /// as when a user is renamed from A to B and back to A.
    pub fn new(delivery: &Delivery, received_at: Micros) -> Self {
        let new_id = || format!("kinsync:event:{:032x}", random::number::<u128>());
        Self {
            event_id: delivery.event_id().map_or_else(new_id, ToOwned::to_owned),
            received_at,
            payload: Payload::Delivery {
                scheme: delivery.scheme(),
                signed_at: delivery.signed_at().map(|at| Micros(at.as_microsecond())),
                body: delivery.payload().clone(),
            },
        }
    }
}

/// Content of an entry, as received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    /// A verified webhook delivery.
    Delivery {
        /// Scheme under which the delivery was verified.
        scheme: Scheme,
        /// When the sender signed it, if the scheme carries that time.
        signed_at: Option<Micros>,
        /// The event: JSON in the bytes of the sender.
        body: Bytes,
    },
    /// A [`Sighting`](crate::sighting::Sighting) as JSON.
    Sighting(Bytes),
}

impl Payload {
    /// Stable name of the verification scheme or, for a sighting, of its source.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Delivery { scheme, .. } => scheme.as_str(),
            Self::Sighting(_) => SIGHTING_SCHEME,
        }
    }

    /// The stored bytes.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Delivery { body, .. } | Self::Sighting(body) => body,
        }
    }

    /// When the sender signed it, if known.
    pub fn signed_at(&self) -> Option<Micros> {
        match self {
            Self::Delivery { signed_at, .. } => *signed_at,
            Self::Sighting(_) => None,
        }
    }

    /// Rebuilds a payload from its stored parts; `None` for a scheme that this version does not know.
    pub fn from_parts(scheme: &str, signed_at: Option<Micros>, body: Bytes) -> Option<Self> {
        if scheme == SIGHTING_SCHEME {
            return Some(Self::Sighting(body));
        }
        let scheme = Scheme::ALL.into_iter().find(|known| known.as_str() == scheme)?;
        Some(Self::Delivery { scheme, signed_at, body })
    }
}

/// Outcome of an enqueue. The entry is durable either way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enqueued {
    /// The entry is new.
    New,
    /// An entry with this event id is queued, or was queued recently.
    Duplicate,
}

/// Identifies an entry or a dead letter within its queue. Opaque: each backend has its own format.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EntryId(Box<str>);

impl EntryId {
    /// Wraps the id of a backend, or an id that a client sent back.
    pub fn new(id: impl Into<Box<str>>) -> Self {
        Self(id.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An entry leased to one consumer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claimed {
    /// Identifies the entry.
    pub id: EntryId,
    /// Earlier claims that did not end in an ack: 0 for the first. Embedded queues count from the
    /// start of the process.
    pub attempts: u32,
    /// The entry.
    pub entry: Entry,
}

/// An event that can never be applied, with the reason.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// Identifies the dead letter.
    pub id: EntryId,
    /// Id of the event.
    pub event_id: String,
    /// Name of the scheme under which it was verified.
    pub scheme: String,
    /// When it was received.
    pub received_at: Micros,
    /// When it became a dead letter.
    pub dead_at: Micros,
    /// Why it became a dead letter, for an operator.
    pub reason: String,
    /// The event as text; bytes that are not UTF-8 become U+FFFD. `None` after the queue removed it
    /// to keep its bound: such a dead letter cannot be retried.
    pub payload: Option<String>,
}

/// State of the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Entries not yet acked or dead-lettered, including claimed ones. Without those that other processes claimed where the backend
    /// does not count them (RabbitMQ).
    pub depth: u64,
    /// When the oldest of them was received, or a later time, as far as this process can know it.
    pub oldest_received_at: Option<Micros>,
    /// Bytes used by entries; 0 where the backend does not report them.
    pub bytes: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Bytes used by dead letters; 0 where the backend does not report them.
    pub dead_letter_bytes: u64,
    /// Entries that this process cannot read and left to a process of a newer version, within the last minute; at most 10,000.
    pub newer_version: u64,
    /// Whether the disk of the embedded queue stores no entry now: it is full or fails.
    #[serde(skip)]
    pub is_failing: bool,
    /// State of the spool of this process; `None` without a shared queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spool: Option<Spool>,
}

impl Stats {
    /// Adds the state of the spool of a process to that of the shared queue. [`Spool`] describes the last two arguments.
    #[must_use]
    pub fn with_spool(self, spool: &Self, is_available: bool, age: Option<Duration>) -> Self {
        let oldest = [self.oldest_received_at, spool.oldest_received_at];
        Self {
            depth: self.depth + spool.depth,
            oldest_received_at: oldest.into_iter().flatten().min(),
            bytes: self.bytes + spool.bytes,
            dead_letters: self.dead_letters + spool.dead_letters,
            dead_letter_bytes: self.dead_letter_bytes + spool.dead_letter_bytes,
            newer_version: self.newer_version,
            is_failing: false,
            spool: Some(Spool {
                entries: spool.depth,
                bytes: spool.bytes,
                is_shared_queue_available: is_available,
                is_failing: false,
                age_of_shared_values: age,
            }),
        }
    }
}

/// State of the spool of a process: the entries that wait for the shared queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spool {
    /// Entries of this process that the shared queue did not accept yet. Included in [`Stats::depth`].
    pub entries: u64,
    /// Bytes of these entries. Included in [`Stats::bytes`].
    pub bytes: u64,
    /// Whether the shared queue answers and accepted the newest entry.
    pub is_shared_queue_available: bool,
    /// Whether the disk of the spool accepts no entry, so that the shared queue alone does.
    pub is_failing: bool,
    /// How old the values of the shared queue are, if it does not answer. Before its first answer they are 0, and this is `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_of_shared_values: Option<Duration>,
}

/// Cause of a failure, as the backend reports it.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// Reasons why a queue operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The backend is unreachable, or its disk failed. The entry was not accepted; a later attempt
    /// may succeed without an operator.
    #[error("the queue is unavailable: {hint}")]
    Unavailable {
        /// What failed and what an operator can do.
        hint: String,
        /// Cause.
        #[source]
        source: Source,
    },
    /// The bound of the queue is reached. It accepts entries again after others were acked.
    #[error(
        "the queue is full ({depth} entries, {bytes} bytes); see /health for the reason why entries are not processed"
    )]
    Full {
        /// Entries in the queue.
        depth: u64,
        /// Bytes in use.
        bytes: u64,
    },
    /// The entry is larger than the queue ever accepts.
    #[error("the entry has {bytes} bytes, more than the queue accepts ({max} bytes)")]
    TooLarge {
        /// Size of the entry.
        bytes: usize,
        /// Largest accepted size.
        max: usize,
    },
    /// The backend rejects the operation until an operator acts: permissions, another process, an
    /// unknown format.
    #[error("{hint}")]
    Refused {
        /// What was refused and what to do.
        hint: String,
        /// Cause, if there is one.
        #[source]
        source: Option<Source>,
    },
    /// The dead letter does not exist.
    #[error("there is no dead letter {id}")]
    NoSuchDeadLetter {
        /// The requested id.
        id: EntryId,
    },
    /// The queue removed the payload of the dead letter to keep its bound.
    #[error(
        "the payload of dead letter {id} was removed to limit the size of the queue; replay the event from the event log"
    )]
    PayloadRemoved {
        /// The requested id.
        id: EntryId,
    },
    /// The queue was closed.
    #[error("the queue is closed")]
    Closed,
}

/// The error of a call that got no answer, because its task ended. The panic of the task is reported where it happened.
fn unanswered() -> Error {
    Error::Unavailable {
        hint: "a task of it ended without an answer: see the log".into(),
        source: "no answer".into(),
    }
}

/// Returns the pause before the next attempt after a failure of a server: all processes may have failed at the same moment.
fn apart(pause: Duration) -> Duration {
    random::jitter(pause, 0.5..=1.5)
}

/// Returns whether an entry with this scheme and this payload is searched for.
pub type Matcher = Arc<dyn Fn(&str, &[u8]) -> bool + Send + Sync>;

/// What happens to the entries that a search finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Search {
    /// They are counted.
    Count,
    /// They are counted, and the entries are returned.
    List,
    /// They are removed.
    Remove,
}

/// What a search has found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Matched {
    /// Entries, including claimed ones.
    pub queued: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// The entries, with [`Search::List`] only.
    pub entries: Vec<Found>,
}

/// An entry that a search has found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Id of the event.
    pub event_id: String,
    /// Name of the verification scheme; `login` for a sighting.
    pub scheme: String,
    /// When it was received.
    pub received_at: Micros,
    /// The payload as text; bytes that are not UTF-8 become U+FFFD.
    pub payload: String,
}

impl From<&Entry> for Found {
    fn from(entry: &Entry) -> Self {
        Self {
            event_id: entry.event_id.clone(),
            scheme: entry.payload.scheme().to_owned(),
            received_at: entry.received_at,
            payload: String::from_utf8_lossy(entry.payload.bytes()).into_owned(),
        }
    }
}

impl std::ops::Add for Matched {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self.queued += other.queued;
        self.dead_letters += other.dead_letters;
        self.entries.extend(other.entries);
        self
    }
}

/// A durable queue. All futures are cancel safe: a cancelled call may still have taken effect.
#[async_trait]
pub trait Queue: fmt::Debug + Send + Sync {
    /// Stores the entry durably. After `Ok` the entry survives SIGKILL and power loss. A backend that remembers no ids returns
    /// [`Enqueued::New`] for a repetition too, and the entry is claimed again.
    async fn enqueue(&self, entry: Entry) -> Result<Enqueued, Error>;

    /// Claims up to `max` entries, oldest first; waits until there is at least one. There may be more than it returns. A claim ends
    /// with an ack, a retry or a dead letter. An entry that is still claimed after `lease` can be
    /// claimed again.
    async fn claim(&self, max: usize, lease: Duration) -> Result<Vec<Claimed>, Error>;

    /// Removes entries that were processed. Unknown ids are ignored.
    async fn ack(&self, ids: &[EntryId]) -> Result<(), Error>;

    /// Releases claimed entries; they can be claimed again after the delay. Unknown ids are ignored.
    async fn retry(&self, ids: &[EntryId], after: Duration) -> Result<(), Error>;

    /// Moves claimed entries to the dead letters, each with a reason for an operator. Unknown ids are ignored. After an error they
    /// stay claimed, and a repetition makes no second dead letter of one. Applies the bounds of the dead letters, also without an
    /// entry.
    async fn dead_letter(&self, entries: &[(EntryId, String)]) -> Result<(), Error>;

    /// Reads the state of the queue.
    async fn stats(&self) -> Result<Stats, Error>;

    /// Lists dead letters, oldest first, starting after `after`.
    async fn dead_letters(&self, after: Option<&EntryId>, limit: usize) -> Result<Vec<DeadLetter>, Error>;

    /// Reads one dead letter.
    async fn find_dead_letter(&self, id: &EntryId) -> Result<DeadLetter, Error>;

    /// Moves a dead letter back into the queue.
    async fn retry_dead_letter(&self, id: &EntryId) -> Result<(), Error>;

    /// Deletes a dead letter.
    async fn drop_dead_letter(&self, id: &EntryId) -> Result<(), Error>;

    /// Counts, lists or removes the entries and the dead letters that the matcher finds, for the export and the erasure of a user.
    /// Reads every payload. A claimed entry is removed too, or stays until the consumer that has claimed it acks it.
    async fn search(&self, matcher: Matcher, search: Search) -> Result<Matched, Error>;

    /// Completes pending writes and releases the backend. Later calls return [`Error::Closed`].
    async fn close(&self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_failed_at_one_moment_do_not_come_back_at_one_moment() {
        let pause = Duration::from_secs(10);
        let pauses: Vec<_> = (0..200).map(|_| apart(pause)).collect();
        assert!(pauses.iter().all(|one| (pause / 2..=pause * 3 / 2).contains(one)), "{pauses:?}");
        // Each half of the range has some; that one has none happens once in 10^57 runs.
        assert!(
            pauses.iter().any(|one| *one < pause * 3 / 4) && pauses.iter().any(|one| *one > pause * 5 / 4)
        );
    }
}
