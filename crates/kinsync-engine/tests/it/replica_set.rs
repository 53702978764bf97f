//! A replica set with three members that fail under load: what was accepted is applied in the end, and only that.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bson::{Document, doc};
use kinsync_core::{Field, Micros, Observation, Profile, Source, Version, What};
use kinsync_engine::{
    Engine,
    internal::{
        apply::apply_logged,
        store::{Store, mongo},
    },
};
use kinsync_testing::replica_set::{Replication, TestReplicaSet};
use tokio::time::{Instant, sleep};

use crate::{pipeline::event_entry, store_rows::id};

const USERS: usize = 20;

/// Time of load before and after the disturbance.
const CALM: Duration = Duration::from_millis(500);

/// Longest time until everything is applied after the last disturbance: a breaker probes every 5 s, and an election takes a
/// few seconds.
const RECOVERY: Duration = Duration::from_mins(4);

fn user(n: usize) -> String {
    format!("kp_{:02}", n % USERS)
}

fn config(set: &TestReplicaSet) -> mongo::Config {
    mongo::Config {
        database: Some(set.database()),
        op_timeout: Duration::from_secs(2),
        ..mongo::Config::new(set.uri())
    }
}

/// Accepts updates of a few users while `disturb` runs, then expects the newest accepted update of each user in the store,
/// as a majority of the members has it.
async fn nothing_accepted_is_lost(disturb: impl AsyncFnOnce(&TestReplicaSet)) {
    let set = TestReplicaSet::start().await;
    let config = config(&set);
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::builder(dir.path()).mongodb(config.clone()).open().await.unwrap();
    engine.start();
    let (is_over, accepted) = (AtomicBool::new(false), Mutex::new(0));
    let load = async {
        for n in 0.. {
            if is_over.load(Ordering::SeqCst) {
                return;
            }
            let update = format!(r#"{{"id":"{}","first_name":"{n}"}}"#, user(n));
            let at = i64::try_from(n).unwrap();
            engine.queue().enqueue(event_entry("user.updated", at, &format!("e{n}"), &update)).await.unwrap();
            *accepted.lock().unwrap() = n + 1;
            sleep(Duration::from_millis(2)).await;
        }
    };
    let disturbance = async {
        sleep(CALM).await;
        let before = *accepted.lock().unwrap();
        disturb(&set).await;
        sleep(CALM).await;
        assert!(*accepted.lock().unwrap() > before, "the load ran during the disturbance");
        // A slow disk takes few updates a second.
        while *accepted.lock().unwrap() <= 10 * USERS {
            sleep(CALM).await;
        }
        is_over.store(true, Ordering::SeqCst);
    };
    tokio::join!(load, disturbance);
    let deadline = Instant::now() + RECOVERY;
    while engine.queue().stats().await.unwrap().depth > 0 {
        assert!(Instant::now() < deadline, "{:?}: {:?}", engine.breaker(), engine.breaker().last_failure());
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(engine.queue().dead_letters(None, 10).await.unwrap(), [], "an outage makes no dead letter");
    engine.stop().await;
    set.until_whole().await;
    let accepted = accepted.into_inner().unwrap();
    let patient = mongo::Config { op_timeout: RECOVERY, ..config };
    newest_is_stored(&*Arc::new(mongo::MongoStore::connect(patient).await.unwrap()), accepted).await;
}

async fn newest_is_stored(store: &dyn Store, accepted: usize) {
    for n in accepted - USERS..accepted {
        let row = store.load(&[id(&user(n))]).await.unwrap().remove(0).unwrap();
        assert_eq!(row.document().first_name, Some(n.to_string()), "{} of {accepted}", user(n));
    }
    let events = store.counts().await.unwrap().events;
    assert_eq!(events, accepted as u64, "each accepted event is in the log once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_steps_down_under_load_loses_nothing() {
    nothing_accepted_is_lost(async |set| set.step_down().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_primary_under_load_loses_nothing() {
    nothing_accepted_is_lost(async |set| {
        let killed = set.primary().await;
        set.member(killed).stop();
        set.primary().await;
        set.restart(killed);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_majority_under_load_loses_nothing() {
    nothing_accepted_is_lost(async |set| {
        let primary = set.primary().await;
        let others: Vec<usize> = (0..3).filter(|n| *n != primary).collect();
        for n in &others {
            set.member(*n).stop();
        }
        // Longer than the primary waits for the others: it steps down meanwhile.
        sleep(Duration::from_secs(5)).await;
        for n in &others {
            set.restart(*n);
        }
        set.until_whole().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_reach_the_primary_alone_and_are_rolled_back_are_written_again() {
    nothing_accepted_is_lost(async |set| {
        let primary = cut_off_primary(set).await;
        // The primary executes writes meanwhile and acknowledges none.
        sleep(Duration::from_secs(1)).await;
        replace_primary(set, primary).await;
        until_rolled_back(set, primary).await;
    })
    .await;
}

/// Stops the replication of all secondaries. Returns the primary.
async fn cut_off_primary(set: &TestReplicaSet) -> usize {
    let primary = set.primary().await;
    for n in (0..3).filter(|n| *n != primary) {
        set.set_replication(n, Replication::Stopped).await;
    }
    primary
}

/// Kills the primary that was cut off, and waits until another member is primary.
async fn replace_primary(set: &TestReplicaSet, primary: usize) {
    set.member(primary).stop();
    for n in (0..3).filter(|n| *n != primary) {
        set.set_replication(n, Replication::Running).await;
    }
    set.primary().await;
}

/// Restarts the former primary, which has to roll back what the others lack.
async fn until_rolled_back(set: &TestReplicaSet, primary: usize) {
    set.restart(primary);
    set.until_rolled_back(primary).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_only_a_cut_off_primary_has_is_never_taken_for_stored() {
    let set = TestReplicaSet::start().await;
    let config = config(&set);
    let database = config.database.clone().unwrap();
    let store = mongo::MongoStore::connect(config).await.unwrap();
    until_done(async || store.prepare().await).await;
    let ada = || Observation {
        user: id("kp_ada"),
        version: Version::event(Micros(1), "event_1"),
        source: Source::Webhook,
        what: What::Fields(Profile::new().with(Field::FirstName, "Ada")),
    };
    let primary = cut_off_primary(&set).await;
    // Logged before, as events are: the write of the log would fail first.
    let refused = apply_logged(&store, [ada()], Micros(1)).await;
    assert!(refused.is_err(), "no majority has it: {refused:?}");
    let users = set.member(primary).direct().await.database(&database).collection::<Document>("users");
    let local = users.find_one(doc! { "kindeId": "kp_ada" }).await.unwrap();
    assert!(local.is_some(), "the primary has executed the write");
    // "Nothing new" would end a delivery, and a stored user would be let in.
    assert_eq!(until_done(async || store.load(&[id("kp_ada")]).await).await, [None]);
    let repeated = apply_logged(&store, [ada()], Micros(1)).await;
    assert!(repeated.is_err(), "no majority has it: {repeated:?}");
    replace_primary(&set, primary).await;
    until_rolled_back(&set, primary).await;
    set.until_whole().await;
    until_done(async || apply_logged(&store, [ada()], Micros(1)).await).await;
    assert_ne!(until_done(async || store.load(&[id("kp_ada")]).await).await, [None]);
}

/// Repeats a call: three servers on a busy machine may take longer than the store waits.
async fn until_done<T, E: std::fmt::Debug>(call: impl AsyncFn() -> Result<T, E>) -> T {
    let deadline = Instant::now() + RECOVERY;
    loop {
        match call().await {
            Ok(done) => return done,
            Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_concern_that_times_out_under_load_loses_nothing() {
    nothing_accepted_is_lost(async |set| {
        let primary = set.primary().await;
        let fault = doc! {
            "failCommands": ["insert", "update"],
            "writeConcernError": { "code": 64, "codeName": "WriteConcernFailed", "errmsg": "waiting for replication timed out" },
        };
        let guard = set.member(primary).fail_point("alwaysOn", fault).await;
        sleep(Duration::from_secs(2)).await;
        drop(guard);
    })
    .await;
}
