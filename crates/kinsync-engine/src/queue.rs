//! Where a delivery becomes durable, before anyone is told 200.
//!
//! Five verbs: enqueue, claim, ack, retry, dead-letter. At least once: an entry that was claimed
//! and not acked comes again, after a crash too, so everything behind the queue is idempotent.
//! Order is not promised; the versions of the observations decide.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use kinsync_core::Micros;
use serde::{Deserialize, Serialize};

pub mod embedded;

/// A verified delivery as the queue keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The signed id of the event: what duplicates are known by.
    pub event_id: String,
    /// The scheme under which it was verified, such as `kinde_jwt`.
    pub scheme: String,
    /// When it was received, by our clock. Never orders anything.
    pub received_at: Micros,
    /// When the sender signed it, where the scheme says so.
    pub signed_at: Option<Micros>,
    /// The event, as JSON in the sender's own bytes.
    pub payload: Bytes,
}

/// What became of an enqueued entry. Either way it is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enqueued {
    /// It is new.
    New,
    /// An entry of the same event id is already there, or was not long ago.
    Duplicate,
}

/// Names one claimed entry to ack, retry or dead-letter it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Receipt(pub u64);

/// An entry in the hands of a projector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claimed {
    /// Names the entry.
    pub receipt: Receipt,
    /// How many times it was claimed in this process before: 0 at first.
    pub attempts: u32,
    /// The entry.
    pub entry: Entry,
}

/// An entry set aside, with the reason.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// Names the dead letter.
    pub id: u64,
    /// The event's id.
    pub event_id: String,
    /// The scheme under which it was verified.
    pub scheme: String,
    /// When it was received.
    pub received_at: Micros,
    /// When it was set aside.
    pub dead_at: Micros,
    /// Why, for a person.
    pub reason: String,
    /// The event, as text; bytes that are not UTF-8 are shown as U+FFFD.
    pub payload: String,
}

/// How the queue is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Entries not yet acked or dead-lettered, claimed ones included.
    pub depth: u64,
    /// When the oldest of them was received.
    pub oldest_received_at: Option<Micros>,
    /// Bytes on disk.
    pub bytes: u64,
    /// Dead letters.
    pub dead_letters: u64,
}

/// Why the queue could not do it. The caller of `enqueue` answers 503 to all of these.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bound of the queue is reached; it takes more once the projector has caught up.
    #[error(
        "the queue is full: {depth} entries, {bytes} bytes; look at /health for what holds the projector up"
    )]
    Full {
        /// Entries in the queue.
        depth: u64,
        /// Bytes on disk.
        bytes: u64,
    },
    /// The disk did not take it. Nothing was kept.
    #[error("the queue could not write to `{path}`; free space or repair the disk, it goes on by itself")]
    Disk {
        /// The file or folder.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The entry is larger than the queue takes, whatever its state.
    #[error("an entry of {bytes} bytes is larger than the queue takes ({max} bytes)")]
    TooLarge {
        /// Size of the entry.
        bytes: usize,
        /// The largest that is taken.
        max: usize,
    },
    /// Another process has the queue open.
    #[error("the queue in `{path}` is in use by another process; give each process its own KINSYNC_DATA_DIR")]
    InUse {
        /// The folder.
        path: String,
    },
    /// What is on disk was written by a newer kinsync.
    #[error("`{path}` was written by a newer kinsync; run that version or move the file away")]
    Newer {
        /// The file.
        path: String,
    },
    /// There is no such dead letter.
    #[error("there is no dead letter {id}")]
    NoSuchDeadLetter {
        /// The id that was asked for.
        id: u64,
    },
    /// The queue is being shut down.
    #[error("the queue is closed")]
    Closed,
}

/// A durable queue. Cancelling any of these futures is safe: at worst the work is done and nobody
/// hears of it.
#[async_trait]
pub trait Queue: fmt::Debug + Send + Sync {
    /// Makes the entry durable. When this returns `Ok` the entry survives SIGKILL and power loss.
    async fn enqueue(&self, entry: Entry) -> Result<Enqueued, Error>;

    /// Takes up to `max` entries, oldest first, waiting until there is at least one. Entries stay
    /// claimed until they are acked, retried or dead-lettered, or the process ends.
    async fn claim(&self, max: usize) -> Result<Vec<Claimed>, Error>;

    /// The entries are done.
    async fn ack(&self, receipts: &[Receipt]) -> Result<(), Error>;

    /// The entries come again after the delay.
    async fn retry(&self, receipts: &[Receipt], after: Duration) -> Result<(), Error>;

    /// The entry is set aside, durably, with a reason for a person.
    async fn dead_letter(&self, receipt: Receipt, reason: &str) -> Result<(), Error>;

    /// How the queue is doing. Cheap.
    fn stats(&self) -> Stats;

    /// Dead letters, oldest first, from the one after `after`.
    async fn dead_letters(&self, after: Option<u64>, limit: usize) -> Result<Vec<DeadLetter>, Error>;

    /// Puts a dead letter back into the queue.
    async fn retry_dead_letter(&self, id: u64) -> Result<(), Error>;

    /// Removes a dead letter for good.
    async fn drop_dead_letter(&self, id: u64) -> Result<(), Error>;
}
