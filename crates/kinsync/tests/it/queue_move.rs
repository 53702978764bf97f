//! `kinsync queue move`: from a data folder to Redis, and from Redis to RabbitMQ.

#![expect(clippy::unwrap_used, reason = "tests")]

use kinsync_testing::{
    app::TestApp,
    mongo::TestMongo,
    rabbitmq::TestRabbitmq,
    redis::{DURABLE, TestRedis},
};
use serde_json::{Value, json};

use crate::{
    server::{SECRET, kinsync},
    shared_queue::{WITHIN, created, serve, store, until_stored},
};

/// Runs the command; returns the exit code, the standard output and the standard error.
fn queue_move(arguments: &[&str], vars: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let arguments = [&["queue", "move"], arguments].concat();
    let vars = [vars, &[("KINDE_WEBHOOK_SECRET", SECRET)]].concat();
    let output = kinsync(&arguments, &vars).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_move_from_a_folder_to_redis_and_from_there_to_rabbitmq() {
    let mongo = TestMongo::start_own().await;
    let (redis, rabbitmq) = (TestRedis::start(DURABLE), TestRabbitmq::start());
    let (redis, amqp, uri, database) = (redis.url(), rabbitmq.url(), mongo.uri(), mongo.database());
    let mut first = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    first.with_mongodb(&uri, &database);
    first.start().await.unwrap();
    first.prepared().await.unwrap();
    // Without MongoDB nothing is applied.
    mongo.stop();
    let users: Vec<String> = (0..50).map(|n| format!("kp_{n:03}")).collect();
    for user in &users {
        assert_eq!(first.deliver(created(user)).await.unwrap(), 200);
    }
    let own = tempfile::tempdir().unwrap();
    let own = own.path().to_str().unwrap();
    let folder = first.data_dir();
    let folder = folder.to_str().unwrap();
    let to_redis = [("KINSYNC_QUEUE", &*redis), ("KINSYNC_DATA_DIR", own)];
    let (code, _, error) = queue_move(&["--from", folder], &to_redis);
    assert!(code == Some(1) && error.contains("another process"), "{code:?}: {error}");
    first.leaves_entries().stop().await.unwrap();

    let (code, printed, error) = queue_move(&["--from", folder, "--json"], &to_redis);
    assert_eq!(code, Some(0), "{error}");
    let moved: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(moved, json!({ "moved": 50, "deadLetters": 0 }));

    mongo.restart().await;
    let mongodb = [("MONGODB_URI", &*uri), ("KINSYNC_DATABASE", &*database), ("KINSYNC_DATA_DIR", own)];
    let address = std::path::Path::new(own).join("address");
    std::fs::write(&address, format!("{redis}\n")).unwrap();
    let from = format!("@{}", address.display());
    let to_rabbitmq = [&mongodb[..], &[("KINSYNC_QUEUE", &*amqp)]].concat();
    let (code, printed, error) = queue_move(&["--from", &from], &to_rabbitmq);
    assert_eq!((code, &*printed), (Some(0), "50 deliveries moved\n"), "{error}");
    let (code, printed, error) = queue_move(&["--from", &redis], &to_rabbitmq);
    assert_eq!((code, &*printed), (Some(0), "0 deliveries moved\n"), "{error}");

    let mut second = serve(&amqp, &mongo, &database).await;
    until_stored(&store(&mongo, &database).await, &users).await;
    second.drained(WITHIN).await.unwrap();
    second.stop().await.unwrap();
}

#[test]
fn a_wrong_source_is_refused_and_nothing_changes() {
    let own = tempfile::tempdir().unwrap();
    let vars = [("KINSYNC_DATA_DIR", own.path().to_str().unwrap())];
    for (from, why) in [
        ("/nowhere", "no data folder of kinsync"),
        ("@/nowhere", "cannot read /nowhere"),
        ("ftp://queue", "the address in --from is neither"),
        ("redis://", "the address in --from"),
    ] {
        let (code, _, error) = queue_move(&["--from", from], &vars);
        assert!(code == Some(1) && error.contains(why), "{from}: {code:?}: {error}");
    }
    let address = "redis://127.0.0.1:1";
    let vars = [&vars[..], &[("KINSYNC_QUEUE", address)]].concat();
    let (code, _, error) = queue_move(&["--from", address], &vars);
    assert!(code == Some(1) && error.contains("is the queue of this configuration"), "{code:?}: {error}");
    assert!(!own.path().join("queue").exists());
}
