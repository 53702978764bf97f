//! A real store and a real queue of which one operation fails.

use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use kinsync_core::{Micros, UserId};
use kinsync_engine::internal::{
    queue::{self, Claimed, DeadLetter, Enqueued, Entry, EntryId, Matched, Matcher, Queue, Search, Stats},
    store::{
        self, Counts, EventFilter, Holder, LogEntry, OldEntries, OldEntry, Outcome, Page, Row, Saved, Store,
        UserEntries, UserFilter,
    },
};

/// User with the failures of [`Failure::OneUser`], and its address, which another user has too.
pub(crate) const BAD: &str = "kp_bad";
pub(crate) const BAD_ADDRESS: &str = "bad@example.com";

/// How an operation fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// The first calls fail without an effect.
    Transient,
    /// The first calls take effect, and the reply is lost.
    UnknownOutcome,
    /// Every call that names one user fails.
    OneUser,
    /// Every call fails until the repair.
    All,
    /// No call returns.
    Hangs,
}

/// The failure of one operation.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) operation: &'static str,
    pub(crate) failure: Failure,
    calls: AtomicUsize,
    is_repaired: AtomicBool,
    /// A second failure, without which the operation would never run.
    with: Option<Arc<Fault>>,
    after_first_read: AfterFirstRead,
}

/// Work that runs once, after the first read of rows or of the log.
#[derive(Default)]
struct AfterFirstRead(Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>);

impl fmt::Debug for AfterFirstRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AfterFirstRead").finish_non_exhaustive()
    }
}

impl Fault {
    pub(crate) fn new(operation: &'static str, failure: Failure) -> Arc<Self> {
        // Entries are retried after a failure of one user.
        let with = (operation == "retry").then(|| Self::new("write", Failure::OneUser));
        let (calls, is_repaired) = (AtomicUsize::new(0), AtomicBool::new(false));
        let after_first_read = AfterFirstRead::default();
        Arc::new(Self { operation, failure, calls, is_repaired, with, after_first_read })
    }

    /// Makes nothing fail, and runs `work` after the first read of rows or of the log.
    pub(crate) fn after_first_read(work: impl Future<Output = ()> + Send + 'static) -> Arc<Self> {
        let fault = Self::new("none", Failure::All);
        *fault.after_first_read.0.lock().expect("not poisoned") = Some(Box::pin(work));
        fault
    }

    async fn read<T>(&self, read: Result<T, store::Error>) -> Result<T, store::Error> {
        let work = self.after_first_read.0.lock().expect("not poisoned").take();
        if let Some(work) = work {
            work.await;
        }
        read
    }

    /// Returns the failure of calls to the store.
    pub(crate) fn of_store(self: &Arc<Self>) -> Arc<Self> {
        Arc::clone(self.with.as_ref().unwrap_or(self))
    }

    /// Returns whether the events of the bad user can never be applied. A decision about its address is no part of that.
    pub(crate) fn stops_one_user(self: &Arc<Self>) -> bool {
        let fault = self.of_store();
        fault.failure == Failure::OneUser && fault.operation != "claimants"
    }

    /// Runs a call, which fails if the fault applies to it. `names_bad`: whether the call names the bad user.
    async fn call<T, E>(
        &self,
        operation: &'static str,
        names_bad: bool,
        error: impl Fn() -> E,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        if operation != self.operation || self.is_repaired.load(Ordering::SeqCst) {
            return work.await;
        }
        let fails = match self.failure {
            Failure::OneUser => names_bad,
            _ => true,
        };
        if !fails {
            return work.await;
        }
        let earlier = self.calls.fetch_add(1, Ordering::SeqCst);
        match self.failure {
            Failure::Transient | Failure::UnknownOutcome if earlier >= 3 => work.await,
            Failure::UnknownOutcome => {
                work.await?;
                Err(error())
            }
            Failure::Hangs => std::future::pending().await,
            _ => Err(error()),
        }
    }

    /// Returns the number of calls that failed, or could have.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn is_repaired(&self) -> bool {
        self.is_repaired.load(Ordering::SeqCst)
    }

    pub(crate) fn repair(&self) {
        self.is_repaired.store(true, Ordering::SeqCst);
    }
}

fn store_error(operation: &'static str) -> store::Error {
    let doing = match operation {
        "load" => "load users",
        "write" => "write users",
        "log" => "log events",
        other => other,
    };
    store::Error::Unavailable { doing, source: "injected".into() }
}

fn queue_error() -> queue::Error {
    queue::Error::Unavailable { hint: "fails on purpose".into(), source: "injected".into() }
}

/// A real store with a fault.
#[derive(Debug)]
pub(crate) struct FaultyStore {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) fault: Arc<Fault>,
}

impl FaultyStore {
    async fn call<T>(
        &self,
        operation: &'static str,
        names_bad: bool,
        work: impl Future<Output = Result<T, store::Error>>,
    ) -> Result<T, store::Error> {
        self.fault.call(operation, names_bad, || store_error(operation), work).await
    }
}

fn names(ids: &[UserId]) -> bool {
    ids.iter().any(|id| id.as_str() == BAD)
}

fn has_bad(rows: &[Row]) -> bool {
    rows.iter().any(|row| row.id.as_str() == BAD)
}

fn has_address(emails: &[String]) -> bool {
    emails.iter().any(|email| email == BAD_ADDRESS)
}

#[async_trait]
impl Store for FaultyStore {
    async fn load(&self, ids: &[UserId]) -> Result<Vec<Option<Row>>, store::Error> {
        let read = self.call("load", names(ids), self.store.load(ids)).await;
        self.fault.read(read).await
    }

    async fn write(&self, rows: &[Row]) -> Result<Vec<Outcome>, store::Error> {
        self.call("write", has_bad(rows), self.store.write(rows)).await
    }

    async fn replace_entries(&self, entries: &[LogEntry]) -> Result<(), store::Error> {
        self.call("replace_entries", false, self.store.replace_entries(entries)).await
    }

    async fn old_entries(&self, filter: &OldEntries, limit: usize) -> Result<Vec<OldEntry>, store::Error> {
        self.call("old_entries", false, self.store.old_entries(filter, limit)).await
    }

    async fn remove_entries(&self, ids: &[String]) -> Result<(), store::Error> {
        self.call("remove_entries", false, self.store.remove_entries(ids)).await
    }

    async fn deleted_before(
        &self,
        at: Micros,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, store::Error> {
        self.store.deleted_before(at, after, limit).await
    }

    async fn count_members(&self, codes: &[String]) -> Result<HashMap<String, u64>, store::Error> {
        self.store.count_members(codes).await
    }

    async fn claimants(&self, emails: &[String]) -> Result<Vec<Row>, store::Error> {
        self.call("claimants", has_address(emails), self.store.claimants(emails)).await
    }

    async fn email_holders(&self, emails: &[String]) -> Result<HashMap<String, Holder>, store::Error> {
        self.call("email_holders", has_address(emails), self.store.email_holders(emails)).await
    }

    async fn conflicted(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, store::Error> {
        self.call("conflicted", false, self.store.conflicted(after, limit)).await
    }

    async fn link(&self, row: &Row) -> Result<Outcome, store::Error> {
        self.store.link(row).await
    }

    async fn pending_emails(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, store::Error> {
        self.call("pending_emails", false, self.store.pending_emails(after, limit)).await
    }

    async fn log(&self, events: &[LogEntry]) -> Result<Vec<usize>, store::Error> {
        let names_bad = events.iter().any(|event| event.user.as_deref() == Some(BAD));
        self.call("log", names_bad, self.store.log(events)).await
    }

    async fn events(&self, filter: &EventFilter) -> Result<Page<LogEntry>, store::Error> {
        self.fault.read(self.store.events(filter).await).await
    }

    async fn count_user_entries(&self, user: &str) -> Result<u64, store::Error> {
        self.store.count_user_entries(user).await
    }

    async fn user_entries(
        &self,
        after: &str,
        until: Option<&str>,
        limit: usize,
    ) -> Result<UserEntries, store::Error> {
        self.fault.read(self.store.user_entries(after, until, limit).await).await
    }

    async fn event(&self, event_id: &str) -> Result<Option<LogEntry>, store::Error> {
        self.store.event(event_id).await
    }

    async fn users(&self, filter: &UserFilter) -> Result<Page<Row>, store::Error> {
        self.store.users(filter).await
    }

    async fn ids(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, store::Error> {
        self.store.ids(after, limit).await
    }

    async fn referring(
        &self,
        ids: &[String],
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, store::Error> {
        self.store.referring(ids, after, limit).await
    }

    async fn state(&self, key: &str) -> Result<Option<Saved>, store::Error> {
        self.call("state", false, self.store.state(key)).await
    }

    async fn put_state(
        &self,
        key: &str,
        value: &serde_json::Value,
        expected: i64,
    ) -> Result<bool, store::Error> {
        self.call("put_state", false, self.store.put_state(key, value, expected)).await
    }

    async fn states(&self, keys: &[String]) -> Result<Vec<Option<Saved>>, store::Error> {
        self.store.states(keys).await
    }

    async fn list_states(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Saved)>, store::Error> {
        self.store.list_states(prefix, after, limit).await
    }

    async fn due_states(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Saved)>, store::Error> {
        self.store.due_states(after, limit).await
    }

    async fn count_states(&self, prefix: &str) -> Result<u64, store::Error> {
        self.call("count_states", false, self.store.count_states(prefix)).await
    }

    async fn remove_states(&self, records: &[(String, i64)]) -> Result<(), store::Error> {
        self.store.remove_states(records).await
    }

    async fn accepts_write_of(&self, row: &Row) -> Result<bool, store::Error> {
        self.call("write", row.id.as_str() == BAD, self.store.accepts_write_of(row)).await
    }

    async fn counts(&self) -> Result<Counts, store::Error> {
        self.store.counts().await
    }

    async fn ping(&self) -> Result<(), store::Error> {
        self.store.ping().await
    }
}

/// A real queue with a fault.
#[derive(Debug)]
pub(crate) struct FaultyQueue {
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) fault: Arc<Fault>,
}

impl FaultyQueue {
    async fn call<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, queue::Error>>,
    ) -> Result<T, queue::Error> {
        self.fault.call(operation, false, queue_error, work).await
    }
}

#[async_trait]
impl Queue for FaultyQueue {
    async fn enqueue(&self, entry: Entry) -> Result<Enqueued, queue::Error> {
        self.call("enqueue", self.queue.enqueue(entry)).await
    }

    async fn claim(&self, max: usize, lease: Duration) -> Result<Vec<Claimed>, queue::Error> {
        self.call("claim", self.queue.claim(max, lease)).await
    }

    async fn ack(&self, ids: &[EntryId]) -> Result<(), queue::Error> {
        self.call("ack", self.queue.ack(ids)).await
    }

    async fn retry(&self, ids: &[EntryId], after: Duration) -> Result<(), queue::Error> {
        self.call("retry", self.queue.retry(ids, after)).await
    }

    async fn dead_letter(&self, entries: &[(EntryId, String)]) -> Result<(), queue::Error> {
        self.call("dead_letter", self.queue.dead_letter(entries)).await
    }

    async fn stats(&self) -> Result<Stats, queue::Error> {
        self.queue.stats().await
    }

    async fn dead_letters(
        &self,
        after: Option<&EntryId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, queue::Error> {
        self.queue.dead_letters(after, limit).await
    }

    async fn find_dead_letter(&self, id: &EntryId) -> Result<DeadLetter, queue::Error> {
        self.queue.find_dead_letter(id).await
    }

    async fn retry_dead_letter(&self, id: &EntryId) -> Result<(), queue::Error> {
        self.queue.retry_dead_letter(id).await
    }

    async fn drop_dead_letter(&self, id: &EntryId) -> Result<(), queue::Error> {
        self.queue.drop_dead_letter(id).await
    }

    async fn search(&self, matcher: Matcher, search: Search) -> Result<Matched, queue::Error> {
        self.call("search", self.queue.search(matcher, search)).await
    }

    async fn close(&self) {
        self.queue.close().await;
    }
}
