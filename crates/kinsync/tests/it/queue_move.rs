//! `kinsync queue move` between data folders, Redis and RabbitMQ.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    fs::{Permissions, set_permissions},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use kinde::webhook::Scheme;
use kinsync_core::Micros;
use kinsync_engine::{
    Clock, config,
    internal::{
        queue::{
            Entry, Payload, Queue,
            embedded::{self, EmbeddedQueue},
            rabbitmq::RabbitmqQueue,
            redis::RedisQueue,
        },
        store::embedded::EmbeddedStore,
    },
};
use kinsync_testing::{
    app::TestApp,
    mongo::TestMongo,
    rabbitmq::TestRabbitmq,
    redis::{DURABLE, TestRedis},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::timeout,
};

use crate::{
    server::kinsync,
    shared_queue::{WITHIN, created, serve, store, until_stored},
};

/// Longest time for the command.
const DEADLINE: Duration = Duration::from_mins(2);
const LEASE: Duration = Duration::from_hours(1);

fn command(arguments: &[&str], vars: &[(&str, &str)]) -> tokio::process::Command {
    let arguments = [&["queue", "move"], arguments].concat();
    let mut command = tokio::process::Command::from(kinsync(&arguments, vars));
    command.kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the command; returns the exit code, the standard output and the standard error.
pub(crate) async fn queue_move(arguments: &[&str], vars: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let output =
        timeout(DEADLINE, command(arguments, vars).output()).await.expect("the command ends").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Runs the command on an empty data folder, which may be given, and returns the JSON that it prints.
async fn moved(arguments: &[&str], vars: &[(&str, &str)]) -> Value {
    let (code, printed, error) = queue_move(&[arguments, &["--json"]].concat(), vars).await;
    assert_eq!(code, Some(0), "{error}");
    serde_json::from_str(&printed).unwrap()
}

fn result(moved: u64, dropped: u64, too_large: u64, dead_letters: u64) -> Value {
    json!({ "moved": moved, "droppedSightings": dropped, "tooLarge": too_large, "deadLetters": dead_letters })
}

pub(crate) fn folder() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    (folder, path)
}

fn in_folder(path: impl AsRef<Path>) -> EmbeddedQueue {
    EmbeddedQueue::open(path.as_ref(), embedded::Config::default(), Clock::system()).unwrap()
}

pub(crate) fn in_redis(redis: &TestRedis, prefix: &str) -> RedisQueue {
    let config = config::Redis { prefix: prefix.into(), ..config::Redis::new(redis.url().into()) };
    RedisQueue::new(config, Clock::system()).unwrap()
}

/// With dead letters in the store of this folder.
fn in_rabbitmq(rabbitmq: &TestRabbitmq, prefix: &str, folder: impl AsRef<Path>) -> RabbitmqQueue {
    let config = config::Rabbitmq { prefix: prefix.into(), ..config::Rabbitmq::new(rabbitmq.url().into()) };
    let store = Arc::new(EmbeddedStore::open(folder.as_ref()).unwrap());
    RabbitmqQueue::new(config, store, Clock::system()).unwrap()
}

pub(crate) fn delivery(id: &str, bytes: usize) -> Entry {
    let body = vec![b' '; bytes].into();
    let payload = Payload::Delivery { scheme: Scheme::Hmac, signed_at: None, body };
    Entry { event_id: id.into(), received_at: Micros(1), payload }
}

fn sighting(id: &str) -> Entry {
    let payload = Payload::Sighting(b"{}".to_vec().into());
    Entry { event_id: id.into(), received_at: Micros(1), payload }
}

pub(crate) async fn fill(queue: &dyn Queue, entries: impl IntoIterator<Item = Entry>) {
    for entry in entries {
        queue.enqueue(entry).await.unwrap();
    }
}

/// Entries and dead letters.
pub(crate) async fn counts(queue: &dyn Queue) -> (u64, u64) {
    let stats = queue.stats().await.unwrap();
    (stats.depth, stats.dead_letters)
}

async fn make_dead(queue: &dyn Queue, id: &str) {
    fill(queue, [delivery(id, 10)]).await;
    let claimed = timeout(WITHIN, queue.claim(1, LEASE)).await.unwrap().unwrap();
    queue.dead_letter(&[(claimed[0].id.clone(), "why".into())]).await.unwrap();
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
    let (code, _, error) = queue_move(&["--from", folder], &to_redis).await;
    assert!(code == Some(1) && error.contains("another process"), "{code:?}: {error}");
    first.leaves_entries().stop().await.unwrap();

    assert_eq!(moved(&["--from", folder], &to_redis).await, result(50, 0, 0, 0));

    mongo.restart().await;
    let mongodb = [("MONGODB_URI", &*uri), ("KINSYNC_DATABASE", &*database), ("KINSYNC_DATA_DIR", own)];
    let address = std::path::Path::new(own).join("address");
    std::fs::write(&address, format!("{redis}\n")).unwrap();
    let from = format!("@{}", address.display());
    let to_rabbitmq = [&mongodb[..], &[("KINSYNC_QUEUE", &*amqp)]].concat();
    let (code, printed, error) = queue_move(&["--from", &from], &to_rabbitmq).await;
    assert_eq!((code, &*printed), (Some(0), "50 deliveries moved\n"), "{error}");
    let (code, printed, error) = queue_move(&["--from", &redis], &to_rabbitmq).await;
    assert_eq!((code, &*printed), (Some(0), "0 deliveries moved\n"), "{error}");

    let mut second = serve(&amqp, &mongo, &database).await;
    until_stored(&store(&mongo, &database).await, &users).await;
    second.drained(WITHIN).await.unwrap();
    second.stop().await.unwrap();
}

/// Redis takes an entry that it knows as stored, so a move into itself would ack the only copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_in_redis_is_not_moved_into_itself_at_another_address() {
    let redis = TestRedis::start(DURABLE);
    let sentinel = TestRedis::start_sentinel("main", redis.port(), 1, &[]);
    redis.run("ACL SETUSER ada on >secret ~* +@all");
    let queue = in_redis(&redis, "kinsync");
    fill(&queue, (0..3).map(|id| delivery(&id.to_string(), 10))).await;
    let ((_own, own), port) = (folder(), redis.port());
    let url = redis.url();
    let vars = [("KINSYNC_DATA_DIR", &*own), ("KINSYNC_QUEUE", &*url)];
    for from in [
        url.clone(),
        format!("{url}/0"),
        format!("redis://localhost:{port}"),
        format!("redis://ada:secret@127.0.0.1:{port}"),
        format!("redis+sentinel://127.0.0.1:{}/main", sentinel.port()),
    ] {
        let (code, _, error) = queue_move(&["--from", &from], &vars).await;
        assert!(code == Some(1) && error.contains("is the queue of this"), "{from}: {code:?}: {error}");
        assert_eq!(counts(&queue).await, (3, 0), "{from}");
    }
    assert_eq!(moved(&["--from", &format!("{url}/1")], &vars).await, result(0, 0, 0, 0));
    let other = [&vars[..], &[("KINSYNC_QUEUE_PREFIX", "other")]].concat();
    assert_eq!(moved(&["--from", &format!("{url}/0")], &other).await, result(3, 0, 0, 0));
    assert_eq!(counts(&in_redis(&redis, "other")).await, (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_in_rabbitmq_is_not_moved_into_itself_at_another_address() {
    let (rabbitmq, (_own, own), prefix) = (TestRabbitmq::shared(), folder(), TestRabbitmq::prefix());
    let (url, port) = (rabbitmq.url(), rabbitmq.port());
    let (_store, store) = folder();
    let queue = in_rabbitmq(rabbitmq, &prefix, store);
    fill(&queue, [delivery("a", 10)]).await;
    let vars = [("KINSYNC_DATA_DIR", &*own), ("KINSYNC_QUEUE", &*url), ("KINSYNC_QUEUE_PREFIX", &*prefix)];
    for from in [
        url.clone(),
        format!("amqp://guest:guest@localhost:{port}/%2f"),
        format!("amqp://127.0.0.1:1,localhost:{port}"),
    ] {
        let (code, _, error) = queue_move(&["--from", &from, "--from-prefix", &prefix], &vars).await;
        assert!(code == Some(1) && error.contains("is the queue of this"), "{from}: {code:?}: {error}");
    }
    assert_eq!(counts(&queue).await, (1, 0));
}

/// The store, which is the one in the data folder here, is opened once.
#[tokio::test(flavor = "multi_thread")]
async fn deliveries_move_between_two_queues_in_rabbitmq_with_dead_letters_in_one_store() {
    let (rabbitmq, (_own, own)) = (TestRabbitmq::shared(), folder());
    let [from, to] = [(); 2].map(|()| TestRabbitmq::prefix());
    {
        let queue = in_rabbitmq(rabbitmq, &from, &own);
        make_dead(&queue, "dead").await;
        fill(&queue, [delivery("a", 10), delivery("b", 10)]).await;
        queue.close().await;
    }
    let (url, redis) = (rabbitmq.url(), TestRedis::start(DURABLE));
    let vars = [("KINSYNC_DATA_DIR", &*own), ("KINSYNC_QUEUE", &*url), ("KINSYNC_QUEUE_PREFIX", &*to)];
    let (code, printed, error) = queue_move(&["--from", &url, "--from-prefix", &from], &vars).await;
    assert_eq!((code, &*printed), (Some(0), "2 deliveries moved\n"), "{error}");
    // The other queue lists the dead letter; one in Redis does not.
    let (redis_url, from) = (redis.url(), ["--from", &*url, "--from-prefix", &*to]);
    let vars = [("KINSYNC_DATA_DIR", &*own), ("KINSYNC_QUEUE", &*redis_url)];
    let (code, printed, error) = queue_move(&from, &vars).await;
    assert_eq!(code, Some(0), "{error}");
    assert!(printed.starts_with("2 deliveries moved\n1 dead letter stays there"), "{printed}");
    // Not 0 when the store does not answer.
    let away =
        [&vars[..], &[("MONGODB_URI", "mongodb://127.0.0.1:1"), ("KINSYNC_DATABASE", "test")]].concat();
    let (code, printed, error) = queue_move(&from, &away).await;
    assert_eq!((code, &*printed), (Some(1), "0 deliveries moved\n"), "{error}");
    assert!(error.contains("dead letters are kept in the store"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_in_rabbitmq_is_empty_only_when_no_other_process_uses_it() {
    let (rabbitmq, (_own, own), prefix) = (TestRabbitmq::shared(), folder(), TestRabbitmq::prefix());
    let (_store, store) = folder();
    let server = in_rabbitmq(rabbitmq, &prefix, store);
    fill(&server, [delivery("a", 10), delivery("b", 10)]).await;
    // It gets both, and RabbitMQ counts neither.
    timeout(WITHIN, server.claim(1, LEASE)).await.unwrap().unwrap();
    let (vars, url) = ([("KINSYNC_DATA_DIR", &*own)], rabbitmq.url());
    let mut child = command(&["--from", &url, "--from-prefix", &prefix], &vars).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().expect("it waits");
    assert!(line.contains("waiting: another process uses it"), "{line}");
    server.close().await;
    let output = timeout(DEADLINE, child.wait_with_output()).await.expect("the command ends").unwrap();
    let rest = lines.next_line().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2 deliveries moved\n", "{rest:?}");
    assert_eq!(rest, None, "it says once what it waits for");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_other_queue_never_accepts_becomes_a_dead_letter() {
    let (rabbitmq, (_own, own), prefix) = (TestRabbitmq::shared(), folder(), TestRabbitmq::prefix());
    let (_from, from) = folder();
    let queue = in_folder(&from);
    fill(&queue, [delivery("small", 10), delivery("large", 8 << 20), delivery("other", 10)]).await;
    queue.close().await;
    let url = rabbitmq.url();
    let vars = [("KINSYNC_DATA_DIR", &*own), ("KINSYNC_QUEUE", &*url), ("KINSYNC_QUEUE_PREFIX", &*prefix)];
    let (code, printed, error) = queue_move(&["--from", &from], &vars).await;
    assert_eq!(code, Some(0), "{error}");
    assert!(printed.starts_with("2 deliveries moved\n1 delivery was too large"), "{printed}");
    assert!(printed.contains("\n1 dead letter stays there"), "{printed}");
    assert_eq!(counts(&in_folder(&from)).await, (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_keeps_the_bounds_of_the_other_queue_and_goes_on_without_sightings() {
    let ((_from, from), (_own, own)) = (folder(), folder());
    let queue = in_folder(&from);
    fill(&queue, (0..2).map(|id| delivery(&id.to_string(), 10))).await;
    fill(&queue, [sighting("login"), delivery("2", 10)]).await;
    queue.close().await;
    let bounded = |most| [("KINSYNC_DATA_DIR", &*own), ("KINSYNC_QUEUE_MAX_ENTRIES", most)];
    let (code, printed, error) = queue_move(&["--from", &from], &bounded("2")).await;
    assert!(code == Some(1) && error.contains("the queue is full"), "{code:?}: {error}");
    assert!(printed.starts_with("2 deliveries moved\n1 sighting was dropped"), "{printed}");
    assert_eq!(counts(&in_folder(&from)).await, (1, 0));
    assert_eq!(moved(&["--from", &from], &bounded("3")).await, result(1, 0, 0, 0));
    assert_eq!(counts(&in_folder(&own)).await, (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_is_not_opened_for_a_move_without_rabbitmq() {
    let ((_from, from), (_own, own), redis) = (folder(), folder(), TestRedis::start(DURABLE));
    let queue = in_folder(&from);
    make_dead(&queue, "dead").await;
    fill(&queue, [delivery("a", 10)]).await;
    queue.close().await;
    // A server of this configuration runs.
    let _store = EmbeddedStore::open(Path::new(&own)).unwrap();
    let url = redis.url();
    let vars = [("KINSYNC_DATA_DIR", &*own), ("KINSYNC_QUEUE", &*url)];
    assert_eq!(moved(&["--from", &from], &vars).await, result(1, 0, 0, 1));
    // Dead letters of the own spool are listed with those of Redis.
    let vars = [("KINSYNC_DATA_DIR", &*from), ("KINSYNC_QUEUE", &*url)];
    assert_eq!(moved(&["--from", &format!("{from}/.")], &vars).await, result(0, 0, 0, 0));
}

#[tokio::test]
async fn a_data_folder_that_others_can_write_to_is_refused() {
    let ((_from, from), (_own, own)) = (folder(), folder());
    in_folder(&from).close().await;
    set_permissions(&own, Permissions::from_mode(0o777)).unwrap();
    let (code, _, error) = queue_move(&["--from", &from], &[("KINSYNC_DATA_DIR", &own)]).await;
    assert!(code == Some(1) && error.contains("chmod 700"), "{code:?}: {error}");
}

#[tokio::test]
async fn a_wrong_source_is_refused_and_nothing_changes() {
    let (_own, own) = folder();
    let vars = [("KINSYNC_DATA_DIR", &*own)];
    for (from, why) in [
        ("/nowhere", "no data folder of kinsync"),
        ("@/nowhere", "cannot read /nowhere"),
        ("ftp://queue", "the address in --from is neither"),
        ("redis://", "the address in --from"),
    ] {
        let (code, _, error) = queue_move(&["--from", from], &vars).await;
        assert!(code == Some(1) && error.contains(why), "{from}: {code:?}: {error}");
    }
    assert!(!Path::new(&own).join("queue").exists());
    in_folder(&own).close().await;
    let link = tempfile::tempdir().unwrap();
    let link = link.path().join("link");
    symlink(&own, &link).unwrap();
    for from in [&own, &format!("{own}/."), link.to_str().unwrap()] {
        let (code, _, error) = queue_move(&["--from", from], &vars).await;
        assert!(code == Some(1) && error.contains("is the queue of this"), "{from}: {code:?}: {error}");
    }
    let (code, _, error) = queue_move(&["--from", &own, "--from-prefix", "other"], &vars).await;
    assert!(code == Some(1) && error.contains("--from-prefix"), "{code:?}: {error}");
}
