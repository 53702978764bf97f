//! Each operation of the store and of the queue, failing in each way, through the projector on real stores.
//!
//! | failure | expected |
//! |---|---|
//! | transient, before or after the effect | everything is stored, no dead letter |
//! | permanent for one user | the event of this user is a dead letter, everything else is stored |
//! | permanent for all | nothing is a dead letter, everything is stored after the repair, the cause is known meanwhile |
//! | permanent, of a sweep or of a decision about addresses | everything is stored before the repair, no dead letter |
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use kinsync_engine::{
    Clock,
    internal::{
        breaker::{self, Breaker},
        projector::{self, Projector},
        queue::{Entry, Queue, embedded},
        store::Store,
    },
};
use tokio::time::{Instant, sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    faulty::{BAD, BAD_ADDRESS, Failure, Fault, FaultyQueue, FaultyStore},
    pipeline::event_entry,
    queue_embedded,
    store_rows::get,
    stores::Fresh,
};

const GOOD: usize = 12;

/// Longest time of one case.
const LIMIT: Duration = Duration::from_mins(3);

/// Operations that name a user.
const OF_ONE_USER: [&str; 3] = ["load", "write", "log"];

/// Operations without which no event is applied.
const OF_STORE: [&str; 5] = ["load", "write", "log", "state", "put_state"];

/// Operations of decisions about addresses and of sweeps: no event waits for them.
const BESIDE: [&str; 5] = ["claimants", "email_holders", "conflicted", "pending_emails", "count_states"];

const OF_QUEUE: [&str; 5] = ["enqueue", "claim", "ack", "retry", "dead_letter"];

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
        let pause = Duration::from_millis(2);
        let limits = breaker::Config { pause, max_pause: pause, ..breaker::Config::default() };
        let breaker = Breaker::new("store", "projector", limits);
        let faulty_queue: Arc<dyn Queue> =
            Arc::new(FaultyQueue { queue: Arc::clone(&queue), fault: Arc::clone(&fault) });
        let faulty_store = Arc::new(FaultyStore { store: Arc::clone(&fresh.store), fault: fault.of_store() });
        let config = projector::Config {
            retry_after: Duration::from_millis(5),
            sweep_every: Duration::from_millis(50),
            // After a failure of the queue its entries come again when the lease ends.
            lease: Duration::from_secs(2),
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

    /// The ids of the dead letters. The reason of what the store refuses is not that of what cannot be decoded.
    async fn dead(&self) -> Vec<String> {
        let dead = self.queue.dead_letters(None, 100).await.unwrap();
        for letter in &dead {
            let cause =
                if letter.event_id == "poison" { "the event cannot be decoded" } else { "the store refused" };
            assert!(letter.reason.starts_with(cause), "{}: {letter:?}", self.name);
        }
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
        self.until("struck", async || self.fault.calls() > 0).await?;
        if self.fault.failure == Failure::All && !self.fault.is_repaired() {
            self.holds().await?;
            self.fault.repair();
        }
        self.until_stored().await?;
        if !self.fault.stops_one_user() {
            self.until("stored too", async || get(&*self.store, BAD).await.is_some()).await?;
        }
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        Ok(())
    }

    /// Waits until the operation failed more often than makes a dead letter of one user.
    async fn holds(&self) -> Result<(), String> {
        let operation = self.fault.operation;
        let enough = match operation {
            _ if BESIDE.contains(&operation) => 20,
            // After a failure the queue is called once a second.
            _ if OF_QUEUE.contains(&operation) => 2,
            _ => 600,
        };
        self.until("struck often enough", async || self.fault.calls() >= enough).await?;
        if BESIDE.contains(&operation) {
            return self.until_stored().await;
        }
        if self.dead().await.iter().any(|id| id != "poison") {
            return Err(format!("{}: an outage made dead letters: {:?}", self.name, self.dead().await));
        }
        Ok(())
    }

    /// Waits until every event is applied or a dead letter.
    async fn until_stored(&self) -> Result<(), String> {
        self.until("empty", async || self.is_empty().await).await?;
        for n in 0..GOOD {
            self.until("stored", async || self.is_stored(n).await).await?;
        }
        self.until("deleted", async || {
            get(&*self.store, "kp_deleted").await.is_some_and(|row| row.document().is_deleted)
        })
        .await?;
        let is_bad = self.fault.stops_one_user();
        let expected: &[&str] = if is_bad { &["bad", "poison"] } else { &["poison"] };
        self.until("the expected dead letters", async || self.dead().await == expected).await
    }
}

fn good(n: usize) -> String {
    format!("kp_good_{n:02}")
}

/// Events of good users, of the bad one, of another user with the bad one's address, of a deleted user that is named again
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
    decisions_and_sweeps_that_fail_for_a_while_delay_nothing: super::BESIDE, super::Failure::Transient;
    decisions_and_sweeps_with_lost_replies_lose_nothing: super::BESIDE, super::Failure::UnknownOutcome;
    decisions_and_sweeps_that_fail_delay_nothing: super::BESIDE, super::Failure::All;
    decisions_that_fail_for_one_address_delay_nothing: ["claimants"], super::Failure::OneUser;
    a_queue_that_fails_for_a_while_delays_and_loses_nothing: super::OF_QUEUE, super::Failure::Transient;
    a_queue_with_lost_replies_loses_nothing: super::OF_QUEUE, super::Failure::UnknownOutcome;
    a_queue_that_refuses_everything_holds_everything: super::OF_QUEUE, super::Failure::All;
}
