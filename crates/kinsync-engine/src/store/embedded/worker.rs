//! One thread with one SQLite connection. Concurrent calls share one transaction and therefore one fsync.

use std::{fs::File, sync::Arc, time::Duration};

use rusqlite::{Connection, ErrorCode};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use crate::{
    store::Error,
    thread::{Panicked, Thread},
};

/// Capacity of the channel of calls.
const WAITING: usize = 256;

/// Maximum calls per transaction.
const GROUP: usize = 64;

/// Time limit of a call, including the wait for other calls.
const LIMIT: Duration = Duration::from_secs(15);

/// A thread that runs SQLite calls in order. Dropping it waits for the last call.
#[derive(Debug)]
pub(super) struct Worker {
    /// Dropped before the thread, which ends then.
    calls: mpsc::Sender<Box<dyn Call>>,
    thread: Thread,
}

impl Worker {
    /// Starts the thread. `begin` is the statement that begins a transaction. The thread holds the lock until it ends.
    pub(super) fn start(
        name: &'static str,
        begin: &'static str,
        sqlite: Connection,
        lock: Option<File>,
    ) -> Result<Self, Error> {
        let (calls, mut waiting) = mpsc::channel(WAITING);
        let run = move || {
            while let Some(first) = waiting.blocking_recv() {
                make(begin, &sqlite, group(first, &mut waiting));
            }
            drop(sqlite);
            drop(lock);
        };
        let thread =
            Thread::start(name, run).map_err(|error| unavailable("start the embedded store", error))?;
        Ok(Self { calls, thread })
    }

    /// Waits for the end of the thread. Returns its panic, after which every call fails; `None`: it was dropped.
    pub(super) fn panicked(&self) -> impl Future<Output = Option<Panicked>> + Send + use<> {
        self.thread.panicked()
    }

    /// Runs one call in a transaction. Cancelling the future does not undo the call.
    pub(super) fn call<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> impl Future<Output = Result<T, Error>> + Send {
        let (reply, answer) = oneshot::channel();
        self.wait(doing, Box::new(Pending { work: Some(work), done: None, reply }), answer)
    }

    async fn wait<T>(
        &self,
        doing: &'static str,
        call: Box<dyn Call>,
        answer: oneshot::Receiver<Result<T, Shared>>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + LIMIT;
        match timeout_at(deadline, self.calls.send(call)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(unavailable(doing, "the thread of the store has ended")),
            Err(_) => return Err(unavailable(doing, "the queue of calls to the store is full")),
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer.map_err(|error| shared_failure(doing, error)),
            Ok(Err(_)) => Err(unavailable(doing, "the thread of the store has ended")),
            Err(_) => Err(unavailable(doing, "the disk did not respond in time")),
        }
    }
}

type Shared = Arc<rusqlite::Error>;

/// A call in the channel.
trait Call: Send {
    fn work(&mut self, sqlite: &Connection);
    fn answer(self: Box<Self>, transaction: Result<(), Shared>);
}

struct Pending<T, F> {
    work: Option<F>,
    done: Option<rusqlite::Result<T>>,
    reply: oneshot::Sender<Result<T, Shared>>,
}

impl<T: Send, F: FnOnce(&Connection) -> rusqlite::Result<T> + Send> Call for Pending<T, F> {
    fn work(&mut self, sqlite: &Connection) {
        self.done = self.work.take().map(|work| apart(sqlite, work));
    }

    fn answer(self: Box<Self>, transaction: Result<(), Shared>) {
        let done = match (transaction, self.done) {
            (Ok(()), Some(done)) => done.map_err(Arc::new),
            (Err(error), _) => Err(error),
            (Ok(()), None) => return,
        };
        // Sending fails if the caller was cancelled.
        let _ = self.reply.send(done);
    }
}

/// Runs the work in a savepoint: its failure does not undo the other calls of the transaction.
fn apart<T>(
    sqlite: &Connection,
    work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    sqlite.execute_batch("SAVEPOINT one")?;
    let done = work(sqlite);
    if done.is_err() {
        sqlite.execute_batch("ROLLBACK TO one")?;
    }
    sqlite.execute_batch("RELEASE one")?;
    done
}

fn group(first: Box<dyn Call>, waiting: &mut mpsc::Receiver<Box<dyn Call>>) -> Vec<Box<dyn Call>> {
    let mut calls = vec![first];
    while calls.len() < GROUP
        && let Ok(call) = waiting.try_recv()
    {
        calls.push(call);
    }
    calls
}

fn make(begin: &str, sqlite: &Connection, mut calls: Vec<Box<dyn Call>>) {
    let mut transaction = || {
        sqlite.execute_batch(begin)?;
        for call in &mut calls {
            call.work(sqlite);
        }
        sqlite.execute_batch("COMMIT")
    };
    let outcome = transaction().map_err(Arc::new);
    if outcome.is_err() && !sqlite.is_autocommit() {
        // `outcome` already contains the error; a connection that cannot roll back fails at the next begin.
        let _ = sqlite.execute_batch("ROLLBACK");
    }
    for call in calls {
        call.answer(outcome.clone());
    }
}

fn shared_failure(doing: &'static str, error: Shared) -> Error {
    let damaged = is_damaged(&error);
    classified(doing, damaged, Box::new(error))
}

/// Classifies a failure of SQLite.
pub(super) fn failure(doing: &'static str, error: rusqlite::Error) -> Error {
    let damaged = is_damaged(&error);
    classified(doing, damaged, Box::new(error))
}

fn is_damaged(error: &rusqlite::Error) -> bool {
    let corrupt = matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::SchemaChanged)
    );
    corrupt || matches!(error, rusqlite::Error::FromSqlConversionFailure(..))
}

fn classified(doing: &'static str, damaged: bool, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    if !damaged {
        return Error::Unavailable { doing, source };
    }
    let hint = "`kinsync.sqlite` is damaged; restore it, or move it away and run `kinsync backfill`";
    Error::Refused { doing, hint: hint.into(), source: Some(source) }
}

fn unavailable(doing: &'static str, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Unavailable { doing, source: why.into() }
}
