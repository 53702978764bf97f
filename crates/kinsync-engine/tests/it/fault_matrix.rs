//! Each operation of the store and of the queue, failing in each way, through the projector on real stores.
//!
//! | failure | expected |
//! |---|---|
//! | transient, before or after the effect | everything is stored, no dead letter |
//! | permanent for one user | the event of this user is a dead letter, everything else is stored |
//! | permanent for all | nothing is a dead letter, everything is stored after the repair, the cause is known meanwhile |
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use kinsync_core::UserId;
use kinsync_engine::{
    Breaker, Clock,
    internal::{
        breaker,
        projector::{self, Projector},
        queue::{self, Claimed, DeadLetter, Enqueued, Entry, EntryId, Queue, Stats, embedded},
        store::{
            self, Counts, EventFilter, Holder, LoggedEvent, Outcome, Page, Row, Saved, Store, UserFilter,
        },
    },
};
use tokio::time::{Instant, sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{pipeline::event_entry, queue_embedded, store_rows::get, stores::Fresh};

/// User with the failures of [`Failure::OneUser`], and its address, which another user has too.
const BAD: &str = "kp_bad";
const BAD_ADDRESS: &str = "bad@example.com";

const GOOD: usize = 12;

/// Longest time of one case.
const LIMIT: Duration = Duration::from_mins(1);

/// How an operation fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Failure {
    /// The first calls fail without an effect.
    Transient,
    /// The first calls take effect, and the reply is lost.
    UnknownOutcome,
    /// Every call that names one user fails.
    OneUser,
    /// Every call fails until the repair.
    All,
}

/// The failure of one operation.
#[derive(Debug)]
struct Fault {
    operation: &'static str,
    failure: Failure,
    calls: AtomicUsize,
    is_repaired: AtomicBool,
}

impl Fault {
    fn new(operation: &'static str, failure: Failure) -> Arc<Self> {
        Arc::new(Self { operation, failure, calls: AtomicUsize::new(0), is_repaired: AtomicBool::new(false) })
    }

    /// Runs a call, which fails if the fault says so. `names_bad`: whether the call names the bad user.
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
            _ => Err(error()),
        }
    }

    fn has_struck(&self) -> bool {
        self.calls.load(Ordering::SeqCst) > 0
    }

    fn repair(&self) {
        self.is_repaired.store(true, Ordering::SeqCst);
    }
}

fn store_error() -> store::Error {
    store::Error::Unavailable { doing: "fail on purpose", source: "injected".into() }
}

fn queue_error() -> queue::Error {
    queue::Error::Unavailable { hint: "fails on purpose".into(), source: "injected".into() }
}

/// A real store with a fault.
#[derive(Debug)]
struct FaultyStore {
    store: Arc<dyn Store>,
    fault: Arc<Fault>,
}

impl FaultyStore {
    async fn call<T>(
        &self,
        operation: &'static str,
        names_bad: bool,
        work: impl Future<Output = Result<T, store::Error>>,
    ) -> Result<T, store::Error> {
        self.fault.call(operation, names_bad, store_error, work).await
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
        self.call("load", names(ids), self.store.load(ids)).await
    }

    async fn write(&self, rows: &[Row]) -> Result<Vec<Outcome>, store::Error> {
        self.call("write", has_bad(rows), self.store.write(rows)).await
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

    async fn log(&self, events: &[LoggedEvent]) -> Result<usize, store::Error> {
        let names_bad = events.iter().any(|event| event.user.as_deref() == Some(BAD));
        self.call("log", names_bad, self.store.log(events)).await
    }

    async fn events(&self, filter: &EventFilter) -> Result<Page<LoggedEvent>, store::Error> {
        self.store.events(filter).await
    }

    async fn event(&self, event_id: &str) -> Result<Option<LoggedEvent>, store::Error> {
        self.store.event(event_id).await
    }

    async fn users(&self, filter: &UserFilter) -> Result<Page<Row>, store::Error> {
        self.store.users(filter).await
    }

    async fn ids(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, store::Error> {
        self.store.ids(after, limit).await
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
struct FaultyQueue {
    queue: Arc<dyn Queue>,
    fault: Arc<Fault>,
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

    async fn close(&self) {
        self.queue.close().await;
    }
}

/// One operation that fails in one way, with a projector at work on it.
struct Case {
    name: String,
    queue: Arc<dyn Queue>,
    store: Arc<dyn Store>,
    fault: Arc<Fault>,
    breaker: Breaker,
    stop: CancellationToken,
    tasks: TaskTracker,
    _dir: tempfile::TempDir,
}

impl Case {
    async fn start(fresh: &Fresh, operation: &'static str, failure: Failure) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let queue: Arc<dyn Queue> =
            Arc::new(queue_embedded::open(dir.path(), embedded::Config::default()).unwrap());
        let fault = Fault::new(operation, failure);
        let pause = Duration::from_millis(10);
        let limits = breaker::Config { pause, max_pause: pause, ..breaker::Config::default() };
        let breaker = Breaker::new("store", "projector", limits);
        let faulty_queue: Arc<dyn Queue> =
            Arc::new(FaultyQueue { queue: Arc::clone(&queue), fault: Arc::clone(&fault) });
        let faulty_store =
            Arc::new(FaultyStore { store: Arc::clone(&fresh.store), fault: Arc::clone(&fault) });
        let config = projector::Config {
            retry_after: Duration::from_millis(5),
            sweep_every: Duration::from_millis(50),
            // After a lost reply of a claim its entries come again when the lease ends.
            lease: Duration::from_secs(3),
            ..projector::Config::default()
        };
        let projector =
            Projector::new(Arc::clone(&faulty_queue), faulty_store, breaker.clone(), Clock::system(), config);
        for entry in entries() {
            while faulty_queue.enqueue(entry.clone()).await.is_err() {
                if failure == Failure::All {
                    // What was refused was never accepted: the sender repeats it after the repair.
                    fault.repair();
                }
            }
        }
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let stopped = stop.clone();
        tasks.spawn(async move { projector.run(stopped).await });
        let name = format!("{}: {operation}, {failure:?}", fresh.name);
        Self { name, queue, store: Arc::clone(&fresh.store), fault, breaker, stop, tasks, _dir: dir }
    }

    async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) -> Result<(), String> {
        let deadline = Instant::now() + LIMIT;
        while !is_so().await {
            if Instant::now() > deadline {
                let (stats, dead) = (self.queue.stats().await.unwrap(), self.dead().await);
                return Err(format!(
                    "{}: not {what}: {stats:?} {dead:?} {:?}",
                    self.name,
                    self.breaker.last_failure()
                ));
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn dead(&self) -> Vec<String> {
        let dead = self.queue.dead_letters(None, 100).await.unwrap();
        let mut dead: Vec<String> = dead.into_iter().map(|letter| letter.event_id).collect();
        dead.sort();
        dead
    }

    async fn is_empty(&self) -> bool {
        self.queue.stats().await.unwrap().depth == 0
    }

    /// Whether the document of a user is as the accepted events say.
    async fn is_stored(&self, n: usize) -> bool {
        let row = get(&*self.store, &good(n)).await;
        row.is_some_and(|row| row.document().email == Some(format!("{n}@example.com")))
    }

    async fn run(self) -> Result<(), String> {
        let failure = self.fault.failure;
        self.until("struck", async || self.fault.has_struck()).await?;
        if failure == Failure::All && !self.fault.is_repaired.load(Ordering::SeqCst) {
            // More failures than make a dead letter of one user. After a failure the queue is called once a second.
            let enough = if OF_QUEUE.contains(&self.fault.operation) { 2 } else { 40 };
            let calls = || self.fault.calls.load(Ordering::SeqCst);
            self.until("struck often enough", async || calls() >= enough).await?;
            if self.dead().await.iter().any(|id| id != "poison") {
                return Err(format!("{}: an outage made dead letters: {:?}", self.name, self.dead().await));
            }
            self.fault.repair();
        }
        self.until("empty", async || self.is_empty().await).await?;
        for n in 0..GOOD {
            self.until("stored", async || self.is_stored(n).await).await?;
        }
        self.until("deleted", async || {
            get(&*self.store, "kp_deleted").await.is_some_and(|row| row.document().is_deleted)
        })
        .await?;
        let expected: &[&str] = match failure {
            Failure::OneUser => &["bad", "poison"],
            _ => &["poison"],
        };
        self.until("the expected dead letters", async || self.dead().await == expected).await?;
        if failure != Failure::OneUser {
            self.until("stored too", async || get(&*self.store, BAD).await.is_some()).await?;
        }
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        Ok(())
    }
}

fn good(n: usize) -> String {
    format!("kp_good_{n:02}")
}

/// Events of good users, of the bad one, of another user with the bad one's address, of a deleted user who is named again
/// later, and one that cannot be decoded.
fn entries() -> Vec<Entry> {
    let created = |user: &str, event: &str, email: &str| {
        event_entry("user.created", 1, event, &format!(r#"{{"id":"{user}","email":"{email}"}}"#))
    };
    let mut entries: Vec<Entry> =
        (0..GOOD).map(|n| created(&good(n), &format!("good_{n}"), &format!("{n}@example.com"))).collect();
    entries.insert(GOOD / 2, created(BAD, "bad", BAD_ADDRESS));
    entries.insert(GOOD / 2, created("kp_other", "other", BAD_ADDRESS));
    entries.insert(2, event_entry("user.deleted", 5, "deleted", r#"{"id":"kp_deleted"}"#));
    entries.insert(4, event_entry("user.updated", 9, "late", r#"{"id":"kp_deleted","first_name":"Ada"}"#));
    entries.insert(3, event_entry("user.created", 1, "poison", r#"{"first_name":"without an id"}"#));
    entries
}

/// Operations that name a user.
const OF_ONE_USER: [&str; 3] = ["load", "write", "log"];

const OF_STORE: [&str; 10] = [
    "load",
    "write",
    "log",
    "claimants",
    "email_holders",
    "conflicted",
    "pending_emails",
    "state",
    "put_state",
    "count_states",
];

const OF_QUEUE: [&str; 4] = ["enqueue", "claim", "ack", "dead_letter"];

/// Runs one case for each operation, each on a store of its own, and reports all that fail.
async fn all_pass(new: impl AsyncFn() -> Fresh, operations: &[&'static str], failure: Failure) {
    let mut cases = Vec::new();
    for operation in operations {
        let fresh = new().await;
        let case = Case::start(&fresh, operation, failure).await;
        cases.push(async move {
            let _fresh = fresh;
            case.run().await
        });
    }
    let failed: Vec<String> = join_all(cases).await.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// One test for each store and each way to fail.
macro_rules! cases {
    ($($test:ident: $operations:expr, $failure:expr;)*) => {
        mod on_mongodb {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::all_pass(crate::stores::mongo, &$operations, $failure).await;
            })*
        }
        mod on_the_embedded_store {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::all_pass(async || crate::stores::embedded(), &$operations, $failure).await;
            })*
        }
    };
}

cases! {
    a_store_that_fails_for_a_while_delays_and_loses_nothing: super::OF_STORE, super::Failure::Transient;
    a_store_with_lost_replies_loses_nothing: super::OF_STORE, super::Failure::UnknownOutcome;
    a_store_that_fails_for_one_user_stores_all_others: super::OF_ONE_USER, super::Failure::OneUser;
    a_store_that_refuses_everything_holds_everything: super::OF_STORE, super::Failure::All;
    a_queue_that_fails_for_a_while_delays_and_loses_nothing: super::OF_QUEUE, super::Failure::Transient;
    a_queue_with_lost_replies_loses_nothing: super::OF_QUEUE, super::Failure::UnknownOutcome;
    a_queue_that_refuses_everything_holds_everything: super::OF_QUEUE, super::Failure::All;
}
