//! Deliveries at a constant rate while something is out of order: each is answered 200, and each takes effect once.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::Duration,
};

use bson::{Document, doc};
use kinsync_testing::app::TestApp;
use mongodb::{
    Collection,
    options::{CollectionOptions, ReadConcern},
};
use tokio::time::{Instant, interval, sleep, timeout};

/// Length of an outage.
pub(crate) const LENGTH: Duration = Duration::from_mins(1);
/// Longest time until something happens after a change: an election, connections that are made again, a rollback, an empty queue.
pub(crate) const DEADLINE: Duration = Duration::from_mins(5);

/// Longest time for an answer of MongoDB.
const ANSWER: Duration = Duration::from_secs(10);
/// 20 deliveries a second.
const PAUSE: Duration = Duration::from_millis(50);
const USERS: usize = 20;

fn user(n: usize) -> String {
    format!("kp_{:02}", n % USERS)
}

/// A delivery that is newer than those before.
fn update(n: usize) -> String {
    format!(
        r#"{{"type":"user.updated","event_id":"event_{n}","timestamp":"2026-01-01T00:00:{:02}.{:03}Z","data":{{"user":{{"id":"{}","first_name":"{n}"}}}}}}"#,
        n / 1000,
        n % 1000,
        user(n)
    )
}

/// Delivers updates of a few users until `during` ends. Returns how many: each is answered 200.
pub(crate) async fn under_load(app: &TestApp, during: impl Future<Output = ()>) -> usize {
    let is_over = AtomicBool::new(false);
    let load = async {
        // After a slow answer the missed ones follow at once.
        let (mut every, mut delivered) = (interval(PAUSE), 0);
        while !is_over.load(SeqCst) || delivered < USERS {
            every.tick().await;
            let status = app.deliver(update(delivered)).await.unwrap();
            assert_eq!(status, 200, "delivery {delivered}");
            delivered += 1;
        }
        delivered
    };
    let during = async {
        during.await;
        is_over.store(true, SeqCst);
    };
    tokio::join!(load, during).0
}

/// Waits until health names a problem with this code, or does not.
pub(crate) async fn until_reported(app: &TestApp, code: &str, expected: bool) {
    let code = format!(r#""{code}""#);
    let is_reported = async || app.health().await.unwrap()["problems"].to_string().contains(&code);
    let deadline = Instant::now() + DEADLINE;
    while is_reported().await != expected {
        assert!(Instant::now() < deadline, "{code} reported: {}\n{}", !expected, app.log());
        sleep(Duration::from_millis(100)).await;
    }
}

/// What a majority of the members of MongoDB has.
pub(crate) struct Stored {
    users: Collection<Document>,
    events: Collection<Document>,
}

impl Stored {
    pub(crate) async fn new(uri: &str, database: &str) -> Self {
        let client = mongodb::Client::with_uri_str(uri).await.unwrap();
        let majority = CollectionOptions::builder().read_concern(ReadConcern::majority()).build();
        let collection = |name| client.database(database).collection_with_options(name, majority.clone());
        Self { users: collection("users"), events: collection("user_events") }
    }

    /// Waits until more events than these are in the log. Returns how many.
    pub(crate) async fn until_logged(&self, app: &TestApp, more_than: u64) -> u64 {
        let deadline = Instant::now() + DEADLINE;
        loop {
            // A connection of the time before may answer late.
            match timeout(ANSWER, self.events.count_documents(doc! {})).await {
                Ok(Ok(events)) if events > more_than => return events,
                other => {
                    assert!(Instant::now() < deadline, "more than {more_than}: {other:?}\n{}", app.log());
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the queue is empty. Expects each delivery in the log once, and the newest of each user in the document.
    pub(crate) async fn is_complete(&self, app: &mut TestApp, delivered: usize) {
        app.drained(DEADLINE).await.unwrap();
        let logged = self.events.count_documents(doc! {}).await.unwrap();
        assert_eq!(logged, delivered as u64, "each delivery is in the log once");
        for n in delivered - USERS..delivered {
            let stored = self.users.find_one(doc! { "kindeId": user(n) }).await.unwrap().unwrap();
            assert_eq!(stored.get_str("firstName").unwrap(), n.to_string(), "{} of {delivered}", user(n));
        }
    }
}
