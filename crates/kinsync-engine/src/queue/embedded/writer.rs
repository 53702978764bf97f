//! The one thread that writes. It takes everything that is waiting, writes it at once, syncs once,
//! and answers every caller: nobody waits for a timer, and the busier it is, the more share a sync.

use std::{fs::File, sync::Arc};

use kinsync_core::Micros;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{
    Shared, copy_error,
    dead::DeadLog,
    disk_error,
    log::Log,
    reader,
    record::{self, Dead},
    state::Appended,
    window::{Fingerprint, Window},
};
use crate::{
    clock::Clock,
    queue::{DeadLetter, Enqueued, Entry, Error, Receipt},
};

/// Commands taken at once.
pub(super) const ROUND: usize = 1024;
/// A batch is written when it has this many bytes, however many are waiting.
const BATCH_BYTES: usize = 4 << 20;

pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

#[derive(Debug)]
pub(super) enum Command {
    Enqueue {
        entry: Entry,
        fingerprint: Fingerprint,
        reply: Reply<Enqueued>,
    },
    /// Something is done: see the state.
    Done,
    SetAside {
        receipt: Receipt,
        reason: String,
        reply: Reply<()>,
    },
    ListDead {
        after: Option<u64>,
        limit: usize,
        reply: Reply<Vec<DeadLetter>>,
    },
    RetryDead {
        id: u64,
        reply: Reply<()>,
    },
    DropDead {
        id: u64,
        reply: Reply<()>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
}

/// Who hears of a batch.
#[derive(Debug)]
enum Waiting {
    Sender(Reply<Enqueued>, Enqueued),
    /// A dead letter goes once its entry is durable.
    DeadLetter(Reply<()>, u64),
}

#[derive(Debug, Default)]
struct Batch {
    buffer: Vec<u8>,
    waiting: Vec<Waiting>,
    fingerprints: Vec<Fingerprint>,
    entries: u64,
    /// Of its first entry.
    first: u64,
    received_at: Micros,
}

#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    log: Log,
    dead: DeadLog,
    window: Window,
    /// Grows and is never used twice, also after a failed write: what failed may still be found
    /// on the disk later.
    next_sequence: u64,
    clock: Clock,
    max_entries: u64,
    max_bytes: u64,
    /// Other processes are kept out as long as this is open.
    _lock: Option<File>,
    batch: Batch,
    is_failing: bool,
}

/// What a writer is made of.
pub(super) struct Parts {
    pub(super) shared: Arc<Shared>,
    pub(super) log: Log,
    pub(super) dead: DeadLog,
    pub(super) window: Window,
    pub(super) next_sequence: u64,
    pub(super) clock: Clock,
    pub(super) max_entries: u64,
    pub(super) max_bytes: u64,
    pub(super) lock: Option<File>,
}

impl Writer {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { shared, log, dead, window, next_sequence, clock, max_entries, max_bytes, lock } = parts;
        let (batch, is_failing) = (Batch::default(), false);
        Self {
            shared,
            log,
            dead,
            window,
            next_sequence,
            clock,
            max_entries,
            max_bytes,
            _lock: lock,
            batch,
            is_failing,
        }
    }

    /// Works until it is closed or nobody can ask any more.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut round = Vec::with_capacity(ROUND);
        let mut closing = None;
        while closing.is_none() && inbox.blocking_recv_many(&mut round, ROUND) > 0 {
            closing = self.round(&mut round);
        }
        inbox.close();
        self.finish();
        drop(self);
        if let Some(reply) = closing {
            let _ = reply.send(());
        }
    }

    fn round(&mut self, commands: &mut Vec<Command>) -> Option<oneshot::Sender<()>> {
        self.reclaim_if_full();
        let mut letters = Vec::new();
        let mut closing = None;
        for command in commands.drain(..) {
            match command {
                Command::Enqueue { entry, fingerprint, reply } => self.enqueue(&entry, fingerprint, reply),
                Command::Done => {}
                Command::SetAside { receipt, reason, reply } => letters.push((receipt, reason, reply)),
                Command::ListDead { after, limit, reply } => {
                    let _ = reply.send(self.list_dead(after, limit));
                }
                Command::RetryDead { id, reply } => self.retry_dead(id, reply),
                Command::DropDead { id, reply } => {
                    let _ = reply.send(self.drop_dead(id));
                }
                Command::Close { reply } => closing = Some(reply),
            }
        }
        self.commit();
        self.set_aside(letters);
        self.save_done();
        self.delete_spent();
        closing
    }

    fn enqueue(&mut self, entry: &Entry, fingerprint: Fingerprint, reply: Reply<Enqueued>) {
        if self.window.contains(&fingerprint) {
            // Its first one may be in this very batch: it is answered when that is durable.
            self.batch.waiting.push(Waiting::Sender(reply, Enqueued::Duplicate));
        } else if let Some(full) = self.full() {
            let _ = reply.send(Err(full));
        } else {
            self.stage(entry, fingerprint);
            self.batch.waiting.push(Waiting::Sender(reply, Enqueued::New));
            if self.batch.buffer.len() > BATCH_BYTES {
                self.commit();
            }
        }
    }

    fn full(&self) -> Option<Error> {
        let state = self.shared.state();
        let depth = state.depth() + self.batch.entries;
        let bytes = state.bytes() + self.batch.buffer.len() as u64;
        (depth >= self.max_entries || bytes >= self.max_bytes).then_some(Error::Full { depth, bytes })
    }

    fn stage(&mut self, entry: &Entry, fingerprint: Fingerprint) {
        if !self.window.contains(&fingerprint) {
            self.window.insert(fingerprint);
            self.batch.fingerprints.push(fingerprint);
        }
        if self.batch.entries == 0 {
            self.batch.first = self.next_sequence;
            self.batch.received_at = entry.received_at;
        }
        record::push_entry(&mut self.batch.buffer, self.next_sequence, entry);
        self.batch.entries += 1;
        self.next_sequence += 1;
    }

    /// Makes the batch durable and answers all that wait for it.
    fn commit(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        let outcome = if batch.entries == 0 { Ok(()) } else { self.write(&mut batch) };
        if outcome.is_err() {
            self.window.forget(&batch.fingerprints);
        }
        if batch.entries > 0 {
            self.note(outcome.as_ref().err());
        }
        for waiting in batch.waiting {
            let outcome = outcome.as_ref().map_err(copy_error).copied();
            match waiting {
                Waiting::Sender(reply, enqueued) => drop(reply.send(outcome.map(|()| enqueued))),
                Waiting::DeadLetter(reply, id) => drop(reply.send(outcome.and_then(|()| self.drop_dead(id)))),
            }
        }
        if batch.buffer.capacity() <= 2 * BATCH_BYTES {
            batch.buffer.clear();
            self.batch.buffer = batch.buffer;
        }
    }

    fn write(&mut self, batch: &mut Batch) -> Result<(), Error> {
        let started = Instant::now();
        self.log.append(&batch.buffer, batch.first)?;
        let Some((segment, end)) = self.log.sync()? else { return Ok(()) };
        let (entries, last, received_at) = (batch.entries, self.next_sequence - 1, batch.received_at);
        self.shared.state().publish(Appended { segment, end, entries, last, received_at });
        self.shared.wake.notify_waiters();
        metrics::histogram!("kinsync_queue_commit_seconds").record(started.elapsed());
        #[expect(clippy::cast_precision_loss, reason = "a batch is far smaller than 2^52")]
        metrics::histogram!("kinsync_queue_commit_entries").record(entries as f64);
        Ok(())
    }

    /// Says once that the disk does not take it, and once that it does again.
    fn note(&mut self, error: Option<&Error>) {
        match error {
            Some(error) if !self.is_failing => {
                self.is_failing = true;
                let source = std::error::Error::source(error).map(ToString::to_string);
                tracing::error!(%error, source, "deliveries are refused until the queue can be written again");
            }
            None if self.is_failing => {
                self.is_failing = false;
                tracing::info!("the queue can be written again");
            }
            _ => {}
        }
    }

    /// Sets entries aside: first their dead letters become durable, then they are done. A crash
    /// in between leaves both, and the dead letter then says that the entry is done.
    fn set_aside(&mut self, asked: Vec<(Receipt, String, Reply<()>)>) {
        if asked.is_empty() {
            return;
        }
        let mut letters = Vec::new();
        let mut replies = Vec::new();
        let mut file = None;
        for (receipt, reason, reply) in asked {
            let held = self.shared.state().claimed(receipt);
            let entry = held.map(|held| {
                reader::read_held(&self.shared, &mut file, held)
                    .map_err(|source| disk_error(&self.shared.segment_path(held.segment), source))
            });
            match entry.transpose() {
                Ok(Some(Some(entry))) => {
                    letters.push(Dead { id: receipt.0, since: self.clock.now(), reason, entry });
                    replies.push((receipt, reply));
                }
                // Not claimed, or damaged since: nothing is left to keep.
                Ok(None | Some(None)) => replies.push((receipt, reply)),
                Err(error) => drop(reply.send(Err(error))),
            }
        }
        let outcome = self.dead.add(&letters);
        self.count_dead();
        for (receipt, reply) in replies {
            if outcome.is_ok() {
                self.shared.state().finish(receipt);
            }
            let _ = reply.send(outcome.as_ref().map_err(copy_error).copied());
        }
    }

    fn list_dead(&self, after: Option<u64>, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        Ok(self.dead.list(after, limit)?.into_iter().map(DeadLetter::from).collect())
    }

    fn retry_dead(&mut self, id: u64, reply: Reply<()>) {
        match self.dead.load(id) {
            Ok(dead) => {
                self.stage(&dead.entry, super::window::fingerprint(&dead.entry.event_id));
                self.batch.waiting.push(Waiting::DeadLetter(reply, id));
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn drop_dead(&mut self, id: u64) -> Result<(), Error> {
        let outcome = self.dead.remove(id);
        self.dead.compact(false);
        self.count_dead();
        outcome
    }

    fn count_dead(&self) {
        let mut state = self.shared.state();
        state.dead_letters = self.dead.count();
        state.dead_bytes = self.dead.bytes();
    }

    /// Writes down what is done, without a sync of its own: where it is lost, entries come again.
    fn save_done(&mut self) {
        if self.shared.state().unsaved.is_empty() {
            return;
        }
        if let Err(error) = self.append_done() {
            tracing::debug!(%error, "what is done could not be written down yet");
        }
    }

    fn append_done(&mut self) -> Result<(), Error> {
        // A new segment begins with all that is done, after which nothing is left to write.
        self.log.make_room(0, self.next_sequence)?;
        let unsaved = std::mem::take(&mut self.shared.state().unsaved);
        let mut bytes = Vec::new();
        record::push_done(&mut bytes, &unsaved);
        if bytes.is_empty() {
            return Ok(());
        }
        let outcome = self.log.append(&bytes, self.next_sequence);
        if outcome.is_err() {
            self.shared.state().unsaved.extend(unsaved.iter());
        }
        outcome
    }

    /// Deletes the files in which everything is done.
    fn delete_spent(&mut self) {
        let spent = std::mem::take(&mut self.shared.state().spent);
        if spent.is_empty() {
            return;
        }
        // They may say of entries in other files that those are done. The present segment says so
        // too, if there is one; where none can be made, room matters more: the entries come again.
        if !self.shared.state().done.is_empty()
            && let Err(error) = self.log.make_room(0, self.next_sequence)
        {
            tracing::debug!(%error, "some of what is done may be done again after a restart");
        }
        for id in spent {
            let path = self.shared.segment_path(id);
            if let Err(error) = self.shared.disk.remove(&path) {
                tracing::warn!(%error, path = %path.display(), "a finished part of the queue could not be deleted; the next start tries again");
            }
        }
        if let Err(error) = self.shared.disk.sync_dir(&self.shared.dir) {
            tracing::debug!(%error, "finished parts of the queue may be found again after a power cut");
        }
    }

    /// Frees what is done in the present segment as well, when the room is needed.
    fn reclaim_if_full(&mut self) {
        let Some(active) = self.log.active() else { return };
        let is_spent = {
            let state = self.shared.state();
            state.bytes() >= self.max_bytes
                && state.segments.get(&active).is_some_and(|segment| segment.live == 0)
        };
        if is_spent {
            self.log.seal();
            self.delete_spent();
        }
    }

    fn finish(&mut self) {
        self.commit();
        self.save_done();
        if let Err(error) = self.log.sync() {
            tracing::warn!(%error, "what was done last could not be written down: it will be done again");
        }
        self.delete_spent();
    }
}

/// However it ends, nobody waits for it any more.
impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.wake.notify_waiters();
    }
}

impl From<Dead> for DeadLetter {
    fn from(dead: Dead) -> Self {
        let Dead { id, since: dead_at, reason, entry } = dead;
        let Entry { event_id, scheme, received_at, payload, .. } = entry;
        let payload = String::from_utf8_lossy(&payload).into_owned();
        Self { id, event_id, scheme, received_at, dead_at, reason, payload }
    }
}
