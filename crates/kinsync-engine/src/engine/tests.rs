//! A panic of a thread of the data folder ends the process: it is fatal at once, and the component is reported as failed. The state
//! of an engine says what fails, and users are read through it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kinsync_core::{Micros, Profile, UserId};
use tokio::time::timeout;

use super::Engine;
use crate::{
    queue::{Entry, Payload, Search},
    sighting::Sighting,
    store::{OpenedStore, UserFilter},
};

async fn is_fatal(engine: &Engine, component: &str, thread: &str) {
    let fatal = timeout(Duration::from_secs(30), engine.supervisor().fatal()).await;
    let fatal = fatal.expect("the panic is reported").to_string();
    assert!(fatal.contains(thread) && fatal.contains("injected"), "{fatal}");
    assert_eq!(engine.health().await.task_failures[component], fatal);
    engine.stop().await;
}

#[tokio::test]
async fn a_panic_of_the_writer_of_the_queue_ends_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::builder(dir.path()).open().await.unwrap();
    engine.start();
    let payload = Payload::Sighting(Bytes::new());
    let entry = Entry { event_id: "e".into(), received_at: Micros(1), payload };
    engine.queue().enqueue(entry.clone()).await.unwrap();
    let injected = Arc::new(|_: &str, _: &[u8]| panic!("injected"));
    assert!(engine.queue().search(injected, Search::Count).await.is_err());
    is_fatal(&engine, "queue writer", "kinsync-queue").await;
    // A new process finds what was accepted.
    drop(engine);
    let engine = Engine::builder(dir.path()).open().await.unwrap();
    assert_eq!(engine.queue().stats().await.unwrap().depth, 1);
}

#[tokio::test]
async fn a_panic_of_a_thread_of_the_store_ends_the_process() {
    for (is_writer, thread) in [(true, "store-writer"), (false, "store-reader")] {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::builder(dir.path()).open().await.unwrap();
        let OpenedStore::Embedded(store) = &engine.0.store else { panic!("the store is in the data folder") };
        store.inject_panic(is_writer).await;
        is_fatal(&engine, "store threads", thread).await;
    }
}

#[tokio::test]
async fn users_are_read_through_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::builder(dir.path()).open().await.unwrap();
    engine.start();
    let user = UserId::parse("kp_1").unwrap();
    assert_eq!(engine.user(&user).await.unwrap(), None);
    let sighting = Sighting { user: user.clone(), profile: Profile::default(), seen_at: Micros(1) };
    engine.queue().enqueue(sighting.entry()).await.unwrap();
    let stored = timeout(Duration::from_secs(30), async {
        loop {
            match engine.user(&user).await.unwrap() {
                Some(stored) => return stored,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    });
    let stored = stored.await.expect("the sighting is applied");
    assert_eq!(stored.kinde_id, user);
    let listed = engine.users(&UserFilter { limit: 10, ..UserFilter::default() }).await.unwrap();
    assert_eq!(listed.items, [stored]);
    engine.stop().await;
}

#[tokio::test]
async fn the_health_of_an_engine_says_what_fails() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::builder(dir.path()).open().await.unwrap();
    let health = engine.health().await;
    assert_eq!(health.queue.unwrap().depth, 0);
    assert_eq!((health.store_failure, health.silent_webhook, health.scan_failure), (None, None, None));
    assert!(health.task_failures.is_empty());
    for _ in 0..10 {
        engine.breaker().failed(&std::io::Error::other("no primary"));
    }
    assert_eq!(engine.health().await.store_failure.as_deref(), Some("no primary"));
    engine.breaker().succeeded();
    assert_eq!(engine.health().await.store_failure, None, "the last failure is over");
    engine.stop().await;
    assert!(engine.health().await.queue.is_err(), "a closed queue accepts nothing");
}

#[cfg(feature = "mongodb")]
#[tokio::test]
async fn deliveries_are_accepted_before_mongodb_answers() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = crate::config::Mongo::new("mongodb://127.0.0.1:1/app?replicaSet=rs0");
    let engine = Engine::builder(dir.path()).mongodb(nowhere).open().await.unwrap();
    let health = engine.health().await;
    assert!(health.queue.is_ok() && health.store_failure.is_some(), "{health:?}");
    engine.stop().await;
}
