//! The queue in one `SQLite` file of a local folder.
//!
//! Responsible for what [`Queue`] promises, on one machine and in one process. In reading order:
//! - `writer`: the one thread that writes; waiting calls share a transaction and its fsync; `writer/room`: its disk space
//! - `state`: claims, leases and counts, in memory
//! - `reader`: reads entries for claims
//! - `rows`: an entry as a row, with its checksum
//! - `dead_letters`: entries that were set aside, and their bounds
//! - `file`: lock, schema, version and settings of the file
//! - `repair`: replaces a damaged file by what can be read of it; `wal`: finds damage in the log of
//!   `SQLite`, which `SQLite` itself ignores
//! - `reserve`: disk space that lets acks succeed on a full disk
//! - `search`: finds entries by their payload, to erase them
//! - `inspect`: reads the file beside the process that owns it
//!
//! An ack is committed without an fsync of its own: after a power cut the entry may come again.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rusqlite::Connection;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};

#[cfg(any(feature = "redis", feature = "rabbitmq"))]
pub(in crate::queue) use self::dead_letters::report_bounded;
pub use self::inspect::{Listed, inspect, list};
use self::{
    file::{Failure, QueueFile},
    state::State,
    writer::{Command, ROUND, Reply, Writer},
};
use super::{
    Claimed, DeadLetter, Enqueued, Entry, EntryId, Error, MAX_ENTRY, MAX_LISTED, Matched, Matcher, Queue,
    Search, Stats,
};
use crate::{
    clock::Clock,
    thread::{Panicked, Thread},
};

mod dead_letters;
mod file;
mod inspect;
mod reader;
mod repair;
mod reserve;
mod rows;
mod search;
mod state;
mod wal;
mod window;
mod writer;

/// Bounds of the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Entries at which more are refused with [`Error::Full`]; sightings are refused at half of it.
    pub max_entries: u64,
    /// Bytes of entries at which more are refused, sightings at half of it. Dead letters do not count.
    pub max_bytes: u64,
    /// Event ids that are remembered to detect duplicates; each takes about 60 bytes of memory.
    pub dedupe_window: usize,
    /// Bounds of the dead letters.
    pub dead_letters: DeadLetterBounds,
    /// Whether acked entries are in another queue, which detects repetitions of them: their ids are forgotten. Without this, an
    /// entry that the other queue loses would be a duplicate forever.
    pub is_spool: bool,
}

/// Bounds of the dead letters. They never make the queue refuse an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeadLetterBounds {
    /// Bytes of payloads above which the oldest dead letters lose their payload.
    pub max_bytes: u64,
    /// Dead letters above which the oldest are deleted.
    pub max_count: u64,
    /// Age at which a dead letter is deleted.
    pub max_age: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_entries: 1_000_000,
            max_bytes: 1 << 30,
            dedupe_window: 131_072,
            dead_letters: DeadLetterBounds::default(),
            is_spool: false,
        }
    }
}

impl Default for DeadLetterBounds {
    fn default() -> Self {
        Self { max_bytes: 64 << 20, max_count: 10_000, max_age: Duration::from_hours(90 * 24) }
    }
}

/// A durable queue in a folder of this machine.
///
/// Dropping it waits for pending writes and blocks meanwhile; prefer [`close`](Queue::close).
#[derive(Debug)]
pub struct EmbeddedQueue {
    shared: Arc<Shared>,
    /// Dropped before the writer, which ends then.
    commands: mpsc::Sender<Command>,
    writer: Thread,
}

/// State that the writer shares with the callers.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    reader: Mutex<Connection>,
    /// Notified when there may be something to claim.
    wake: Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.state();
        if state.closed { Err(Error::Closed) } else { Ok(state) }
    }

    /// Taken before the state where both are needed.
    fn reader(&self) -> MutexGuard<'_, Connection> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EmbeddedQueue {
    /// Opens the queue in the folder `queue` of `dir`, creates it if needed, and loads what an earlier
    /// process left. Blocks on the disk: call it from a blocking thread.
    ///
    /// # Errors
    /// [`Error::Refused`] if another process has it open or its format is unknown,
    /// [`Error::Unavailable`] if the disk fails. A damaged file is replaced by what can be read of it.
    pub fn open(dir: &Path, config: Config, clock: Clock) -> Result<Self, Error> {
        let file = QueueFile::open(&dir.join("queue"), &clock)?;
        let failed = |failure: Failure| failure.at(file.path());
        let mut window = file.window(config.dedupe_window).map_err(failed)?;
        if config.is_spool {
            window.0 = file.window_of_entries(config.dedupe_window).map_err(failed)?;
        }
        let shared = Arc::new(Shared {
            path: file.path().to_owned(),
            state: Mutex::new(State::new(file.totals(0).map_err(failed)?)),
            reader: Mutex::new(file.reader()?),
            wake: Notify::new(),
        });
        let writer = Writer::new(Arc::clone(&shared), file, window, clock, config);
        let (commands, inbox) = mpsc::channel(ROUND);
        let writer = Thread::start("kinsync-queue", move || writer.run(inbox));
        let writer = writer.map_err(|source| file::unavailable(&shared.path, source))?;
        Ok(Self { shared, commands, writer })
    }

    /// Waits for the end of the writer. Returns its panic, after which the queue stays closed; `None`: it was closed.
    pub(crate) fn panicked(&self) -> impl Future<Output = Option<Panicked>> + Send + use<> {
        self.writer.panicked()
    }

    /// Writes to the disk as an enqueue does, without a change of the queue.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if no entry could be stored now, or only few because the disk is full; [`Error::Closed`].
    pub async fn check(&self) -> Result<(), Error> {
        self.call(|reply| Command::Check { reply }).await
    }

    async fn send(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).await.map_err(|_| Error::Closed)
    }

    async fn call<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Lets the writer delete what was acked. A writer with a full inbox does so anyway.
    fn nudge(&self) {
        let _ = self.commands.try_send(Command::Acked);
    }

    /// Runs a read on a blocking thread: a backlog larger than memory waits for the disk.
    async fn read<T: Send + 'static>(
        &self,
        read: impl Fn(&Shared) -> Result<T, Failure> + Send + Sync + Clone + 'static,
    ) -> Result<T, Error> {
        let mut repaired = false;
        loop {
            drop(self.shared.open_state()?);
            let (shared, read) = (Arc::clone(&self.shared), read.clone());
            let done = tokio::task::spawn_blocking(move || read(&shared)).await;
            match done.map_err(|_| super::unanswered())? {
                Err(failure) if failure.is_damage() && !repaired => {
                    self.call(|reply| Command::Repair { reply }).await?;
                    repaired = true;
                }
                done => return done.map_err(|failure| failure.at(&self.shared.path)),
            }
        }
    }

    /// Makes entries ready to claim. Entries with a wrong checksum become dead letters.
    async fn fill(&self, max: usize) -> Result<(), Error> {
        let damaged = self.read(move |shared| reader::fill(shared, max)).await?;
        if damaged.is_empty() {
            return Ok(());
        }
        let letters = damaged.into_iter().map(|id| (id, reader::DAMAGED.to_owned())).collect();
        self.call(|reply| Command::DeadLetter { letters, reply }).await
    }
}

#[async_trait]
impl Queue for EmbeddedQueue {
    async fn enqueue(&self, entry: Entry) -> Result<Enqueued, Error> {
        let bytes = entry.payload.bytes().len() + entry.event_id.len();
        if bytes > MAX_ENTRY {
            return Err(Error::TooLarge { bytes, max: MAX_ENTRY });
        }
        let fingerprint = window::fingerprint(&entry.event_id);
        self.call(|reply| Command::Enqueue { entry, fingerprint, reply }).await
    }

    async fn claim(&self, max: usize, lease: Duration) -> Result<Vec<Claimed>, Error> {
        let max = max.max(1);
        loop {
            let mut woken = std::pin::pin!(self.shared.wake.notified());
            woken.as_mut().enable();
            let (has_more, next_due) = {
                let mut state = self.shared.open_state()?;
                // Nothing is awaited between taking entries and returning them.
                let claimed = state.claim(max, later(lease));
                if !claimed.is_empty() {
                    return Ok(claimed);
                }
                (state.has_more(Instant::now()), state.next_due())
            };
            match next_due {
                _ if has_more => self.fill(max).await?,
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, woken).await;
                }
                None => woken.await,
            }
        }
    }

    async fn ack(&self, ids: &[EntryId]) -> Result<(), Error> {
        {
            let mut state = self.shared.open_state()?;
            ids.iter().filter_map(state::number).for_each(|id| state.ack(id));
        }
        self.nudge();
        Ok(())
    }

    async fn retry(&self, ids: &[EntryId], after: Duration) -> Result<(), Error> {
        {
            let mut state = self.shared.open_state()?;
            let at = later(after);
            ids.iter().filter_map(state::number).for_each(|id| state.retry(id, at));
        }
        self.shared.wake.notify_waiters();
        Ok(())
    }

    async fn dead_letter(&self, entries: &[(EntryId, String)]) -> Result<(), Error> {
        let letters = {
            let state = self.shared.open_state()?;
            let held = |id| state::number(id).filter(|id| state.is_held(*id));
            entries.iter().filter_map(|(id, reason)| Some((held(id)?, reason.clone()))).collect()
        };
        self.call(|reply| Command::DeadLetter { letters, reply }).await
    }

    async fn stats(&self) -> Result<Stats, Error> {
        let stats = self.shared.open_state()?.stats();
        if stats.is_failing {
            // Without deliveries nothing else would find out that the disk works again. Nothing waits for the result.
            let _ = self.commands.try_send(Command::Check { reply: oneshot::channel().0 });
        }
        Ok(stats)
    }

    async fn dead_letters(&self, after: Option<&EntryId>, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        let after = after.and_then(state::number).unwrap_or(0);
        let limit = limit.min(MAX_LISTED);
        self.read(move |shared| Ok(dead_letters::list(&shared.reader(), after, limit)?)).await
    }

    async fn find_dead_letter(&self, id: &EntryId) -> Result<DeadLetter, Error> {
        let number = dead_letter(id)?;
        let before = number.saturating_sub(1);
        let found = self.read(move |shared| Ok(dead_letters::list(&shared.reader(), before, 1)?)).await?;
        let found = found.into_iter().find(|letter| letter.id == state::entry_id(number));
        found.ok_or_else(|| Error::NoSuchDeadLetter { id: id.clone() })
    }

    async fn retry_dead_letter(&self, id: &EntryId) -> Result<(), Error> {
        let id = dead_letter(id)?;
        self.call(|reply| Command::RetryDeadLetter { id, reply }).await
    }

    async fn drop_dead_letter(&self, id: &EntryId) -> Result<(), Error> {
        let id = dead_letter(id)?;
        self.call(|reply| Command::DropDeadLetter { id, reply }).await
    }

    async fn search(&self, matcher: Matcher, search: Search) -> Result<Matched, Error> {
        if search == Search::List {
            return self.read(move |shared| Ok(search::list(&shared.reader(), &matcher)?)).await;
        }
        self.call(|reply| Command::Search { matcher: search::Shown(matcher), search, reply }).await
    }

    async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.send(Command::Close { reply }).await.is_ok() {
            let _ = done.await;
        }
    }
}

/// The end of a duration that begins now; in a year where that overflows.
fn later(after: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(after).unwrap_or_else(|| now + Duration::from_hours(365 * 24))
}

fn dead_letter(id: &EntryId) -> Result<i64, Error> {
    state::number(id).ok_or_else(|| Error::NoSuchDeadLetter { id: id.clone() })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kinsync_core::Micros;

    use super::*;
    use crate::queue::Payload;

    #[tokio::test]
    async fn a_search_finds_the_entries_before_it_in_the_same_transaction() {
        let dir = tempfile::tempdir().unwrap();
        let queue = EmbeddedQueue::open(dir.path(), Config::default(), Clock::system()).unwrap();
        let ((stored, is_stored), (found, matched)) = (oneshot::channel(), oneshot::channel());
        let payload = Payload::Sighting(Bytes::new());
        let entry = Entry { event_id: "a".into(), received_at: Micros(1), payload };
        let fingerprint = window::fingerprint(&entry.event_id);
        let matcher = search::Shown(Arc::new(|_: &str, _: &[u8]| true));
        {
            // The writer has taken the first command and waits for the state, so the others share a transaction.
            let _held = queue.shared.state();
            queue.commands.try_send(Command::Acked).unwrap();
            while queue.commands.capacity() < queue.commands.max_capacity() {
                std::thread::yield_now();
            }
            queue.commands.try_send(Command::Enqueue { entry, fingerprint, reply: stored }).unwrap();
            queue
                .commands
                .try_send(Command::Search { matcher, search: Search::Remove, reply: found })
                .unwrap();
        }
        assert!(matches!(is_stored.await, Ok(Ok(Enqueued::New))));
        assert_eq!(matched.await.unwrap().unwrap().queued, 1);
        assert_eq!(queue.stats().await.unwrap().depth, 0);
    }
}
