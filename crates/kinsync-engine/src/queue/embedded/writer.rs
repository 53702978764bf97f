//! The one thread that writes. It takes all waiting commands, applies them in one transaction, syncs
//! once and answers every caller: no timer, and under load more callers share a sync.

use std::{sync::Arc, time::Duration};

use kinsync_core::Micros;
use rusqlite::Connection;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    Config, Shared, dead_letters,
    file::{self, Failure, QueueFile},
    reserve::Reserve,
    rows, search,
    state::entry_id,
    window::{self, Fingerprint, Window},
};
use crate::{
    clock::Clock,
    queue::{Enqueued, Entry, Error, Matched, Payload, Search},
};

mod room;

/// Most commands in one transaction.
pub(super) const ROUND: usize = 1024;
/// How often the age of dead letters is looked at.
const CLEAN_EVERY: Duration = Duration::from_hours(1);
/// The window is trimmed when it has this many ids more than needed.
const TRIM_AT: i64 = 4096;

pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

#[derive(Debug)]
pub(super) enum Command {
    Enqueue {
        entry: Entry,
        fingerprint: Fingerprint,
        reply: Reply<Enqueued>,
    },
    /// The state lists acked entries.
    Acked,
    DeadLetter {
        letters: Vec<(i64, String)>,
        reply: Reply<()>,
    },
    RetryDeadLetter {
        id: i64,
        reply: Reply<()>,
    },
    DropDeadLetter {
        id: i64,
        reply: Reply<()>,
    },
    Search {
        matcher: search::Shown,
        search: Search,
        reply: Reply<Matched>,
    },
    /// Writes without a change, to find out whether an entry could be stored.
    Check {
        reply: Reply<()>,
    },
    /// A read failed.
    Repair {
        reply: Reply<()>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
}

impl Command {
    /// Whether it may be lost in a power cut after it was answered.
    fn is_durable(&self) -> bool {
        !matches!(self, Self::Acked | Self::Close { .. } | Self::Repair { .. })
    }
}

/// Result of a command, given to its caller after the commit.
#[derive(Debug)]
enum Outcome {
    Enqueued(Enqueued),
    Matched(Matched),
    Done,
    Refused(Error),
}

/// What a transaction does to the state once it is committed.
#[derive(Debug, Default)]
struct Effects {
    outcomes: Vec<Outcome>,
    fingerprints: Vec<Fingerprint>,
    hashes: Vec<u8>,
    entries: u64,
    bytes: u64,
    received_at: Option<Micros>,
    set_aside: Vec<i64>,
    /// Entries that were erased, with their sizes.
    erased: Vec<(i64, u64)>,
    touches_dead_letters: bool,
}

#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    file: QueueFile,
    reserve: Reserve,
    window: Window,
    /// Grows and is never used twice, also after a failed transaction.
    next_id: i64,
    trimmed: i64,
    clock: Clock,
    config: Config,
    cleaned: Option<Instant>,
    is_failing: bool,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        file: QueueFile,
        (window, next_id): (Window, i64),
        clock: Clock,
        config: Config,
    ) -> Self {
        let mut reserve = Reserve::new(file.dir());
        reserve.restore();
        let (trimmed, cleaned, is_failing) = (0, None, false);
        let writer =
            Self { shared, file, reserve, window, next_id, trimmed, clock, config, cleaned, is_failing };
        writer.report();
        writer
    }

    /// Works until the queue is closed or dropped.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut commands = Vec::with_capacity(ROUND);
        let mut closing = None;
        while closing.is_none() && inbox.blocking_recv_many(&mut commands, ROUND) > 0 {
            closing = self.round(&mut commands);
            if inbox.is_empty() {
                self.shrink();
            }
        }
        inbox.close();
        self.round(&mut vec![Command::Acked]);
        drop(self);
        if let Some(reply) = closing {
            let _ = reply.send(());
        }
    }

    fn round(&mut self, commands: &mut Vec<Command>) -> Option<oneshot::Sender<()>> {
        let acked = self.shared.state().take_acked();
        let mut committed = self.transact(commands, &acked);
        if committed.as_ref().is_err_and(Failure::is_damage) && self.repair().is_ok() {
            committed = self.transact(commands, &acked);
        }
        match committed {
            Ok(effects) => {
                if commands.iter().zip(&effects.outcomes).any(shows_room) {
                    self.note(None);
                }
                self.report();
                let outcomes = self.publish(effects);
                self.answer(commands, outcomes)
            }
            Err(failure) => {
                self.shared.state().restore_acked(acked);
                if failure.is_full() {
                    self.make_room();
                }
                let error = failure.at(self.file.path());
                self.note(Some(&error));
                self.report();
                let outcomes = commands.iter().map(|_| Outcome::Refused(copy(&error))).collect();
                self.answer(commands, outcomes)
            }
        }
    }

    /// Applies the commands in one transaction: all or none.
    fn transact(&mut self, commands: &[Command], acked: &[i64]) -> Result<Effects, Failure> {
        let is_durable = commands.iter().any(Command::is_durable);
        if !is_durable && acked.is_empty() {
            return Ok(Effects {
                outcomes: commands.iter().map(|_| Outcome::Done).collect(),
                ..Effects::default()
            });
        }
        let has_reserve = self.reserve.restore();
        self.file.set_durable(is_durable)?;
        let started = Instant::now();
        let mut effects = Effects::default();
        let applied = self.apply(commands, acked, has_reserve, &mut effects);
        if applied.is_err() {
            self.window.remove_newest(&effects.fingerprints);
            // A connection that cannot roll back fails at the next begin.
            if !self.file.sqlite().is_autocommit() {
                let _ = self.file.sqlite().execute_batch("ROLLBACK");
            }
        }
        applied?;
        if effects.entries > 0 {
            metrics::histogram!("kinsync_queue_commit_duration_seconds").record(started.elapsed());
            #[expect(clippy::cast_precision_loss, reason = "a batch is far smaller than 2^52")]
            metrics::histogram!("kinsync_queue_commit_entries").record(effects.entries as f64);
        }
        Ok(effects)
    }

    fn apply<'a>(
        &mut self,
        commands: &'a [Command],
        acked: &[i64],
        has_reserve: bool,
        effects: &mut Effects,
    ) -> Result<(), Failure> {
        self.file.sqlite().prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        if self.config.is_spool {
            self.window.remove_acked(self.file.sqlite(), acked)?;
        }
        rows::delete(self.file.sqlite(), acked)?;
        let first = self.next_id;
        // Their rows are inserted together, at the end or before a command that reads rows.
        let mut new: Vec<(i64, &'a Entry)> = Vec::with_capacity(commands.len());
        for command in commands {
            let outcome = match command {
                Command::Enqueue { .. } | Command::RetryDeadLetter { .. } | Command::Check { .. }
                    if !has_reserve =>
                {
                    Outcome::Refused(self.no_room())
                }
                Command::Enqueue { entry, fingerprint, .. } => {
                    self.enqueue(entry, *fingerprint, effects, &mut new)
                }
                Command::DeadLetter { letters, .. } => self.set_aside(letters, effects)?,
                Command::RetryDeadLetter { id, .. } => self.retry_dead_letter(*id, effects)?,
                Command::DropDeadLetter { id, .. } => self.drop_dead_letter(*id, effects)?,
                Command::Search { matcher, search, .. } => {
                    rows::insert(self.file.sqlite(), &new)?;
                    new.clear();
                    let found = search::run(self.file.sqlite(), &matcher.0, *search)?;
                    effects.touches_dead_letters |= *search == Search::Remove;
                    effects.erased.extend(found.removed);
                    Outcome::Matched(found.matched)
                }
                Command::Check { .. } if self.is_disk_full() => Outcome::Refused(self.no_room()),
                Command::Check { .. } => {
                    self.file.touch()?;
                    Outcome::Done
                }
                Command::Repair { .. } | Command::Acked | Command::Close { .. } => Outcome::Done,
            };
            effects.outcomes.push(outcome);
        }
        rows::insert(self.file.sqlite(), &new)?;
        self.save_window(first, &effects.hashes)?;
        self.bound_dead_letters(effects)?;
        self.file.sqlite().prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    /// Adds the entry to those that are inserted, unless it is refused or a duplicate.
    fn enqueue<'a>(
        &mut self,
        entry: &'a Entry,
        fingerprint: Fingerprint,
        effects: &mut Effects,
        new: &mut Vec<(i64, &'a Entry)>,
    ) -> Outcome {
        if self.window.contains(&fingerprint) {
            // The first one may be in this very transaction: both are answered after the commit.
            return Outcome::Enqueued(Enqueued::Duplicate);
        }
        let (depth, bytes) = {
            let state = self.shared.state();
            (state.depth() + effects.entries, state.bytes() + effects.bytes)
        };
        // The second half is for deliveries: a sighting that is lost comes again with the next request.
        let share = if matches!(entry.payload, Payload::Sighting(_)) { 2 } else { 1 };
        if depth >= self.config.max_entries / share || bytes >= self.config.max_bytes / share {
            return Outcome::Refused(Error::Full { depth, bytes });
        }
        new.push((self.register(entry, fingerprint, effects), entry));
        Outcome::Enqueued(Enqueued::New)
    }

    /// Counts a new entry and remembers its event id. Returns its id.
    fn register(&mut self, entry: &Entry, fingerprint: Fingerprint, effects: &mut Effects) -> i64 {
        let id = self.next_id;
        self.next_id += 1;
        if self.window.insert(fingerprint) {
            effects.fingerprints.push(fingerprint);
        }
        // A queue that is not a spool any more would read the ids of entries that have moved.
        effects.hashes.extend(if self.config.is_spool { Fingerprint::default() } else { fingerprint });
        effects.entries += 1;
        effects.bytes += rows::size(entry);
        effects.received_at = effects.received_at.or(Some(entry.received_at));
        id
    }

    fn set_aside(&mut self, letters: &[(i64, String)], effects: &mut Effects) -> Result<Outcome, Failure> {
        let now = self.clock.now();
        for (id, reason) in letters {
            dead_letters::set_aside(self.file.sqlite(), *id, reason, now)?;
            effects.set_aside.push(*id);
        }
        effects.touches_dead_letters = true;
        Ok(Outcome::Done)
    }

    fn retry_dead_letter(&mut self, id: i64, effects: &mut Effects) -> Result<Outcome, Failure> {
        match dead_letters::take(self.file.sqlite(), id)? {
            Ok(entry) => {
                effects.touches_dead_letters = true;
                let id = self.register(&entry, window::fingerprint(&entry.event_id), effects);
                rows::insert(self.file.sqlite(), &[(id, &entry)])?;
                Ok(Outcome::Done)
            }
            Err(error) => Ok(Outcome::Refused(error)),
        }
    }

    fn drop_dead_letter(&mut self, id: i64, effects: &mut Effects) -> Result<Outcome, Failure> {
        effects.touches_dead_letters = true;
        let found = dead_letters::remove(self.file.sqlite(), id)?;
        Ok(if found { Outcome::Done } else { Outcome::Refused(Error::NoSuchDeadLetter { id: entry_id(id) }) })
    }

    /// Remembers the event ids of the entries `first`, `first + 1` and so on.
    fn save_window(&mut self, first: i64, hashes: &[u8]) -> Result<(), Failure> {
        let sqlite = self.file.sqlite();
        if !hashes.is_empty() {
            sqlite.prepare_cached("INSERT INTO seen VALUES (?1, ?2)")?.execute((first, hashes))?;
        }
        // The last row stays: it keeps ids from being used again.
        let window = i64::try_from(self.config.dedupe_window.max(1)).unwrap_or(i64::MAX);
        let oldest = self.next_id.saturating_sub(window);
        if oldest > self.trimmed + TRIM_AT {
            sqlite.prepare_cached("DELETE FROM seen WHERE first < ?1")?.execute([oldest - 1])?;
            self.trimmed = oldest;
        }
        Ok(())
    }

    fn bound_dead_letters(&mut self, effects: &mut Effects) -> Result<(), Failure> {
        let is_due = self.cleaned.is_none_or(|at| at.elapsed() >= CLEAN_EVERY);
        if is_due || effects.touches_dead_letters {
            dead_letters::enforce(self.file.sqlite(), &self.config.dead_letters, self.clock.now())?;
            effects.touches_dead_letters = true;
            self.cleaned = Some(Instant::now());
        }
        Ok(())
    }

    /// Makes what was committed visible.
    fn publish(&mut self, effects: Effects) -> Vec<Outcome> {
        let dead_letters = effects.touches_dead_letters.then(|| dead_letters::count(self.file.sqlite()));
        let mut state = self.shared.state();
        state.publish(effects.entries, effects.bytes, self.next_id - 1, effects.received_at);
        for id in effects.set_aside {
            state.remove(id);
        }
        for (id, bytes) in effects.erased {
            state.erase(id, bytes);
        }
        if let Some(Ok(dead_letters)) = dead_letters {
            state.set_dead_letters(dead_letters);
        }
        drop(state);
        if effects.entries > 0 {
            self.shared.wake.notify_waiters();
        }
        effects.outcomes
    }

    fn answer(&mut self, commands: &mut Vec<Command>, outcomes: Vec<Outcome>) -> Option<oneshot::Sender<()>> {
        let mut closing = None;
        for (command, outcome) in commands.drain(..).zip(outcomes) {
            let mut found = Matched::default();
            let done = match outcome {
                Outcome::Refused(error) => Err(error),
                Outcome::Enqueued(enqueued) => Ok(Some(enqueued)),
                Outcome::Done => Ok(None),
                Outcome::Matched(matched) => {
                    found = matched;
                    Ok(None)
                }
            };
            match command {
                Command::Enqueue { reply, .. } => {
                    let _ = reply.send(done.map(|enqueued| enqueued.unwrap_or(Enqueued::New)));
                }
                Command::Check { reply }
                | Command::DeadLetter { reply, .. }
                | Command::RetryDeadLetter { reply, .. }
                | Command::DropDeadLetter { reply, .. } => {
                    let _ = reply.send(done.map(drop));
                }
                Command::Search { search, reply, .. } => {
                    if search == Search::Remove && done.is_ok() {
                        self.scrub();
                    }
                    let _ = reply.send(done.map(|_| found));
                }
                Command::Repair { reply } => {
                    let _ = reply.send(self.repair());
                }
                Command::Acked => {}
                Command::Close { reply } => closing = Some(reply),
            }
        }
        closing
    }

    /// Replaces the file if part of it cannot be read.
    fn repair(&mut self) -> Result<(), Error> {
        self.file.attach()?;
        if self.file.is_whole() {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let mut reader = shared.reader();
        *reader = Connection::open_in_memory().map_err(|error| file::unavailable(self.file.path(), error))?;
        let replaced = self.file.replace(&self.clock);
        *reader = self.file.reader()?;
        replaced?;
        let mut state = shared.state();
        let cursor = state.unread_range().0;
        state.reset(self.file.totals(cursor).map_err(|failure| failure.at(self.file.path()))?);
        Ok(())
    }

    /// Makes visible whether entries can be stored.
    fn report(&self) {
        self.shared.state().is_failing = self.is_failing || !self.reserve.is_there();
    }

    /// Logs once that the disk fails, and once that it works again.
    fn note(&mut self, error: Option<&Error>) {
        match error {
            Some(error) if !self.is_failing => {
                self.is_failing = true;
                let error = crate::breaker::error_chain(error);
                tracing::error!(error, "nothing can be stored until the queue's file can be written");
            }
            None if self.is_failing => {
                self.is_failing = false;
                tracing::info!("the queue's file can be written again");
            }
            _ => {}
        }
    }
}

/// Whether this is not possible on a full disk. Acks are, with the reserve.
fn shows_room((command, outcome): (&Command, &Outcome)) -> bool {
    matches!(
        (command, outcome),
        (Command::Enqueue { .. }, Outcome::Enqueued(Enqueued::New)) | (Command::Check { .. }, Outcome::Done)
    )
}

/// However it ends, no caller waits for it any more.
impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.wake.notify_waiters();
    }
}

/// The same error for another caller of the shared transaction.
fn copy(error: &Error) -> Error {
    match error {
        Error::Unavailable { hint, source } => {
            Error::Unavailable { hint: hint.clone(), source: source.to_string().into() }
        }
        _ => Error::Closed,
    }
}
