//! A panic of a thread of the data folder ends the process: it is fatal at once, and the component is reported as failed.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kinsync_core::Micros;
use tokio::time::timeout;

use super::Engine;
use crate::{
    queue::{Entry, Payload, Search},
    store::OpenedStore,
};

async fn is_fatal(engine: &Engine, component: &str, thread: &str) {
    let fatal = timeout(Duration::from_secs(30), engine.supervisor().fatal()).await;
    let fatal = fatal.expect("the panic is reported").to_string();
    assert!(fatal.contains(thread) && fatal.contains("injected"), "{fatal}");
    assert_eq!(engine.supervisor().status()[component].failure, Some(fatal));
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
