//! The queue that needs nothing but a folder: an append-only log of our own.
//!
//! Responsible for what [`Queue`] promises, on one machine and in one process. In reading order:
//! - `writer`: the one thread that writes; many callers share one sync
//! - `log`: the segments; `frame` and `record`: what stands in them
//! - `reader` and `state`: what is claimed and what comes next
//! - `recovery`: what the last process left; `damage`: what the disk spoiled
//! - `dead`: what was set aside
//!
//! An acknowledgement is written but not synced: where a power cut takes it, the entry comes again.

use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};

use self::{
    disk::{Disk, Machine},
    log::Log,
    reader::Reader,
    record::MAX_ENTRY,
    state::State,
    window::Window,
    writer::{Command, Parts, ROUND, Reply, Writer},
};
use super::{Claimed, DeadLetter, Enqueued, Entry, Error, Queue, Receipt, Stats};
use crate::clock::Clock;

mod damage;
mod dead;
mod disk;
mod frame;
mod log;
mod ranges;
mod reader;
mod record;
mod recovery;
#[cfg(test)]
mod simulation;
mod state;
mod tail;
mod window;
mod writer;

/// Dead letters listed at once, at most.
const MAX_LISTED: usize = 1000;

/// The bounds of the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Entries it takes; more are refused with [`Error::Full`].
    pub max_entries: u64,
    /// Bytes on disk, dead letters included, at which more entries are refused.
    pub max_bytes: u64,
    /// Size of one file. Room is given back file by file.
    pub segment_bytes: u64,
    /// How many event ids are remembered to know duplicates by; about 60 bytes of memory each.
    pub dedupe_window: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_entries: 1_000_000, max_bytes: 1 << 30, segment_bytes: 64 << 20, dedupe_window: 131_072 }
    }
}

/// A durable queue in a folder of this machine.
///
/// Dropping it writes down what is done and waits for that; better [`close`](Self::close) it.
#[derive(Debug)]
pub struct EmbeddedQueue {
    shared: Arc<Shared>,
    commands: Option<mpsc::Sender<Command>>,
    writer: Option<JoinHandle<()>>,
}

/// What the writer and those who claim have in common.
#[derive(Debug)]
struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    state: Mutex<State>,
    reader: Mutex<Reader>,
    /// There may be something to claim.
    wake: Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Taken before the state where both are needed.
    fn reader(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn segment_path(&self, id: u64) -> PathBuf {
        segment_path(&self.dir, id)
    }
}

/// How many dead letters wait in the folder `queue` of `dir`. Changes nothing and takes no lock: a server may be at
/// work there. Blocks on the disk.
///
/// # Errors
/// [`Error::Newer`] where a newer kinsync wrote it, [`Error::Disk`].
pub fn dead_letters_in(dir: &Path) -> Result<usize, Error> {
    dead::count_in(&dir.join("queue").join("dead.log"))
}

impl EmbeddedQueue {
    /// Opens the queue in the folder `queue` of `dir`, which is made if need be, and reads what an
    /// earlier process left. Blocks on the disk: call it from a blocking thread.
    ///
    /// # Errors
    /// [`Error::InUse`] where another process has it open, [`Error::Newer`] where a newer kinsync
    /// wrote it, [`Error::Disk`]. A full disk is no error here: what is there can be claimed.
    pub fn open(dir: &Path, config: Config, clock: Clock) -> Result<Self, Error> {
        let dir = dir.join("queue");
        Machine.make_dir(&dir).map_err(|source| disk_error(&dir, source))?;
        let lock = lock(&dir)?;
        Self::open_on(Arc::new(Machine), dir, config, clock, Some(lock))
    }

    fn open_on(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        config: Config,
        clock: Clock,
        lock: Option<File>,
    ) -> Result<Self, Error> {
        let window = Window::new(config.dedupe_window);
        let recovery::Recovered { state, window, dead, next_segment, next_sequence } =
            recovery::recover(&disk, &dir, window)?;
        let shared = Arc::new(Shared {
            disk,
            dir,
            state: Mutex::new(state),
            reader: Mutex::default(),
            wake: Notify::new(),
        });
        // Tells how old the oldest entry is.
        reader::fill(&shared, 1)?;
        let segment_bytes = config.segment_bytes.min(config.max_bytes / 8);
        let log = Log::new(Arc::clone(&shared), next_segment, segment_bytes);
        let writer = Writer::new(Parts {
            shared: Arc::clone(&shared),
            log,
            dead,
            window,
            next_sequence,
            clock,
            max_entries: config.max_entries,
            max_bytes: config.max_bytes,
            lock,
        });
        let (commands, inbox) = mpsc::channel(ROUND);
        // What recovery found done is written down, and spent files are deleted.
        let _ = commands.try_send(Command::Done);
        let thread = thread::Builder::new().name("kinsync-queue".into()).spawn(move || writer.run(inbox));
        let thread = thread.map_err(|source| disk_error(&shared.dir, source))?;
        Ok(Self { shared, commands: Some(commands), writer: Some(thread) })
    }

    /// Finishes what was asked, writes down what is done, and lets another process open the queue.
    /// Every later call answers [`Error::Closed`].
    pub async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.send(Command::Close { reply }).await.is_ok() {
            let _ = done.await;
        }
    }

    async fn send(&self, command: Command) -> Result<(), Error> {
        let commands = self.commands.as_ref().ok_or(Error::Closed)?;
        commands.send(command).await.map_err(|_| Error::Closed)
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Lets the writer look at what is done; where its inbox is full it is about to do so anyway.
    fn nudge(&self) {
        if let Some(commands) = &self.commands {
            let _ = commands.try_send(Command::Done);
        }
    }

    async fn fill(&self, max: usize) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let filled = tokio::task::spawn_blocking(move || reader::fill(&shared, max)).await;
        filled.map_err(|_| Error::Closed)?
    }
}

#[async_trait]
impl Queue for EmbeddedQueue {
    async fn enqueue(&self, entry: Entry) -> Result<Enqueued, Error> {
        let bytes = entry.payload.len() + entry.event_id.len() + entry.scheme.len();
        if bytes > MAX_ENTRY {
            return Err(Error::TooLarge { bytes, max: MAX_ENTRY });
        }
        let fingerprint = window::fingerprint(&entry.event_id);
        self.ask(|reply| Command::Enqueue { entry, fingerprint, reply }).await
    }

    async fn claim(&self, max: usize) -> Result<Vec<Claimed>, Error> {
        let max = max.max(1);
        loop {
            let mut woken = std::pin::pin!(self.shared.wake.notified());
            woken.as_mut().enable();
            let (has_more, next_due) = {
                let mut state = self.shared.state();
                if state.closed {
                    return Err(Error::Closed);
                }
                // Nothing is awaited between taking entries and handing them over.
                let claimed = state.claim(max);
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

    async fn ack(&self, receipts: &[Receipt]) -> Result<(), Error> {
        {
            let mut state = self.shared.state();
            if state.closed {
                return Err(Error::Closed);
            }
            for receipt in receipts {
                state.finish(*receipt);
            }
        }
        self.nudge();
        Ok(())
    }

    async fn retry(&self, receipts: &[Receipt], after: Duration) -> Result<(), Error> {
        let now = Instant::now();
        let at = now.checked_add(after).unwrap_or(now);
        {
            let mut state = self.shared.state();
            for receipt in receipts {
                state.retry(*receipt, at);
            }
        }
        self.shared.wake.notify_waiters();
        Ok(())
    }

    async fn dead_letter(&self, receipt: Receipt, reason: &str) -> Result<(), Error> {
        let reason = reason.to_owned();
        self.ask(|reply| Command::SetAside { receipt, reason, reply }).await
    }

    fn stats(&self) -> Stats {
        self.shared.state().stats()
    }

    async fn dead_letters(&self, after: Option<u64>, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        let limit = limit.min(MAX_LISTED);
        self.ask(|reply| Command::ListDead { after, limit, reply }).await
    }

    async fn retry_dead_letter(&self, id: u64) -> Result<(), Error> {
        self.ask(|reply| Command::RetryDead { id, reply }).await
    }

    async fn drop_dead_letter(&self, id: u64) -> Result<(), Error> {
        self.ask(|reply| Command::DropDead { id, reply }).await
    }
}

impl Drop for EmbeddedQueue {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the writer of the queue panicked; what it acknowledged is on disk");
        }
    }
}

/// Keeps other processes out for as long as the file is open; a killed process keeps nothing.
fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let file = disk::private_file().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|source| disk_error(&path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: dir.display().to_string() }),
        Err(TryLockError::Error(source)) => Err(disk_error(&path, source)),
    }
}

fn segment_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:020}.log"))
}

fn disk_error(path: &Path, source: io::Error) -> Error {
    Error::Disk { path: path.display().to_string(), source }
}

/// The same error for one more caller who shared the write.
fn copy_error(error: &Error) -> Error {
    match error {
        Error::Disk { path, source } => {
            let source = source.raw_os_error().map_or_else(
                || io::Error::new(source.kind(), source.to_string()),
                io::Error::from_raw_os_error,
            );
            Error::Disk { path: path.clone(), source }
        }
        _ => Error::Closed,
    }
}
