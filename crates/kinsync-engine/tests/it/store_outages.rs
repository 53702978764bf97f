//! The store in MongoDB while the server fails: within the deadline, and well again afterwards.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bson::{Document, doc};
use kinsync_core::Field;
use kinsync_engine::internal::store::{
    Error, Outcome, Row, Store,
    mongo::{Config, MongoStore},
};
use kinsync_testing::mongo::TestMongo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;

use crate::store_rows::{event, get, id, put, row, stored, with};

const LIMIT: Duration = Duration::from_secs(1);

/// Far above the limit of each call, and far below the time of calls without one.
const IN_TIME: Duration = Duration::from_secs(20);

/// Longest wait for a store that is well.
const DEADLINE: Duration = Duration::from_mins(2);

/// A store with one row, and one on the same database that gives up soon.
async fn store(mongo: &TestMongo) -> (MongoStore, Row) {
    let patient = Config { database: Some(mongo.database()), ..Config::new(mongo.uri()) };
    let config = Config {
        op_timeout: LIMIT,
        server_selection_timeout: LIMIT / 2,
        connect_timeout: LIMIT / 2,
        ..patient.clone()
    };
    let ada = put(&opened(patient).await, &row("kp_ada", Some("a@x.org"))).await;
    (opened(config).await, ada)
}

async fn prepared(config: Config, mongo: &TestMongo) -> MongoStore {
    opened(Config { database: Some(mongo.database()), ..config }).await
}

async fn opened(config: Config) -> MongoStore {
    let store = MongoStore::connect(config).await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = store.prepare().await {
        assert!(error.is_transient() && Instant::now() < deadline, "{error:?}");
    }
    store
}

/// Each kind of call fails as one that may work later, and in time.
async fn all_unavailable(store: &MongoStore) {
    let started = Instant::now();
    let errors = [
        store.load(&[row("kp_ada", None).id]).await.err(),
        store.write(&[row("kp_new", None)]).await.err(),
        store.log(&[event("event_new", None, 1)]).await.err(),
        store.counts().await.err(),
        store.ping().await.err(),
    ];
    assert!(started.elapsed() < IN_TIME, "{:?}", started.elapsed());
    for (n, error) in errors.into_iter().enumerate() {
        assert!(error.as_ref().is_some_and(Error::is_transient), "call {n}: {error:?}");
    }
}

/// The row, as soon as the store is well again: connections that broke may each fail one call.
async fn get_again(store: &MongoStore, user: &str) -> Option<Row> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match store.load(&[id(user)]).await {
            Ok(mut rows) => return rows.remove(0),
            Err(error) => assert!(error.is_transient() && Instant::now() < deadline, "{error:?}"),
        }
    }
}

/// Writes the row, however often it takes: an outage leaves open whether a try was carried out.
async fn put_again(store: &MongoStore, user: &str) -> Row {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let row = get_again(store, user).await.unwrap();
        match store.write(std::slice::from_ref(&row)).await {
            Ok(outcomes) if outcomes == [Outcome::Written] => return stored(&row),
            Ok(outcomes) => assert_eq!(outcomes, [Outcome::Stale]),
            Err(error) => assert!(error.is_transient() && Instant::now() < deadline, "{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_is_unavailable_until_it_is_back() {
    let mongo = TestMongo::start_own().await;
    let (store, ada) = store(&mongo).await;
    mongo.stop();
    all_unavailable(&store).await;
    mongo.restart().await;
    assert_eq!(get_again(&store, "kp_ada").await, Some(ada), "what was acknowledged is durable");
    put_again(&store, "kp_ada").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_server_is_unavailable_until_it_resumes() {
    let mongo = TestMongo::start_own().await;
    let (store, ada) = store(&mongo).await;
    mongo.pause();
    all_unavailable(&store).await;
    mongo.resume();
    assert_eq!(get_again(&store, "kp_ada").await, Some(ada));
    put_again(&store, "kp_ada").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_the_server_are_passing_ones() {
    let mongo = TestMongo::start_own().await;
    let (store, mut ada) = store(&mongo).await;
    let faults = [
        doc! { "errorCode": 10107 },
        doc! { "errorCode": 11600 },
        doc! { "errorCode": 14031 },
        doc! { "closeConnection": true },
        doc! { "blockConnection": true, "blockTimeMS": 30_000 },
        doc! { "writeConcernError": { "code": 91, "codeName": "ShutdownInProgress", "errmsg": "x" } },
        doc! { "writeConcernError": { "code": 64, "codeName": "WriteConcernFailed", "errmsg": "x" } },
    ];
    for fault in faults {
        let name = fault.to_string();
        let started = Instant::now();
        let guard = mongo.fail_point("alwaysOn", failing(fault)).await;
        let error = store.write(std::slice::from_ref(&ada)).await.expect_err(&name);
        assert!(error.is_transient(), "{name}: {error:?}");
        assert!(started.elapsed() < IN_TIME, "{name}: {:?}", started.elapsed());
        let error = store.log(&[event("event_1", None, 1)]).await.expect_err(&name);
        assert!(error.is_transient(), "{name}: {error:?}");
        drop(guard);
        // Done or not: it is safe to do it again.
        ada = put_again(&store, "kp_ada").await;
    }
}

fn failing(mut fault: Document) -> Document {
    fault.insert("failCommands", vec!["insert", "update"]);
    fault
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_lost_once_is_repeated() {
    let mongo = TestMongo::start_own().await;
    // After a lost connection the driver looks at the server again within half a second.
    let store = prepared(Config::new(mongo.uri()), &mongo).await;
    let mut ada = put(&store, &row("kp_ada", None)).await;
    for fault in [doc! { "errorCode": 10107 }, doc! { "closeConnection": true }] {
        let _guard = mongo.fail_point(doc! { "times": 1 }, failing(fault)).await;
        ada = put(&store, &ada).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_with_a_lost_response_is_recognized_by_its_mark() {
    let mongo = TestMongo::shared().await;
    let proxy = Proxy::start(mongo).await;
    let store = prepared(Config::new(proxy.uri.clone()), mongo).await;
    proxy.swallow("insert");
    let batch = [row("kp_ada", Some("a@x.org")), row("kp_bob", None)];
    assert_eq!(store.write(&batch).await.unwrap(), [Outcome::Written, Outcome::Written]);
    assert!(!proxy.is_armed(), "a reply was swallowed");
    let ada = get(&store, "kp_ada").await.unwrap();
    proxy.swallow("update");
    let ada = put(&store, &with(ada, Field::FirstName, "Augusta")).await;
    assert!(!proxy.is_armed());
    assert_eq!(get(&store, "kp_ada").await, Some(ada));
    proxy.swallow("insert");
    assert_eq!(store.log(&[event("event_1", None, 1)]).await.unwrap(), [0], "it was there the second time");
    assert!(store.event("event_1").await.unwrap().is_some());
}

/// Between the store and the server: lets requests through, and cuts the connection in place of
/// the reply to the next request that names the armed command.
struct Proxy {
    uri: String,
    armed: Arc<AtomicBool>,
    command: Arc<std::sync::Mutex<&'static str>>,
    _tasks: TaskTracker,
}

impl Proxy {
    async fn start(mongo: &TestMongo) -> Self {
        let server = mongo.uri();
        let server = server.trim_start_matches("mongodb://").split('/').next().unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("mongodb://{}/?directConnection=true", listener.local_addr().unwrap());
        let (armed, command) = (Arc::new(AtomicBool::new(false)), Arc::new(std::sync::Mutex::new("")));
        let tasks = TaskTracker::new();
        let (spawner, arm, name) = (tasks.clone(), armed.clone(), command.clone());
        tasks.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                spawner.spawn(relay(client, server, arm.clone(), name.clone()));
            }
        });
        Self { uri, armed, command, _tasks: tasks }
    }

    fn swallow(&self, command: &'static str) {
        *self.command.lock().unwrap() = command;
        self.armed.store(true, Ordering::SeqCst);
    }

    fn is_armed(&self) -> bool {
        self.armed.load(Ordering::SeqCst)
    }
}

async fn relay(
    mut client: TcpStream,
    mut server: TcpStream,
    armed: Arc<AtomicBool>,
    command: Arc<std::sync::Mutex<&'static str>>,
) {
    let (mut request, mut reply) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut cut = false;
    loop {
        tokio::select! {
            read = client.read(&mut request) => match read {
                Ok(n) if n > 0 => {
                    let name = format!("{}\0", *command.lock().unwrap());
                    let named = request[..n].windows(name.len()).any(|bytes| bytes == name.as_bytes());
                    cut = cut || (named && armed.swap(false, Ordering::SeqCst));
                    server.write_all(&request[..n]).await.unwrap();
                }
                _ => return,
            },
            read = server.read(&mut reply) => match read {
                Ok(n) if n > 0 && !cut => {
                    if client.write_all(&reply[..n]).await.is_err() { return }
                }
                _ => return,
            },
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_never_there_is_unavailable() {
    let mut config = Config::new("mongodb://127.0.0.1:1/?replicaSet=rs0");
    config.server_selection_timeout = LIMIT / 5;
    let store = MongoStore::connect(config).await.unwrap();
    let error = timeout(IN_TIME, store.prepare()).await.unwrap().unwrap_err();
    assert!(error.is_transient(), "{error:?}");
}
