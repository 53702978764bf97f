//! Servers that refuse what kinsync needs, and DNS that does not answer yet.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bson::doc;
use futures_util::FutureExt as _;
use kinsync_engine::{
    Engine,
    internal::store::{
        Error, Store,
        mongo::{Config, Lookup, MongoStore},
    },
};
use kinsync_testing::mongo::TestMongo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, sleep},
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::{
    linking::{observe, profile},
    store_mongo::users,
    store_rows::{get, put, row},
};

/// A code that mongod sends as any other, and that [`documentdb`] replaces.
const SENT: i32 = 67;
/// The code of Amazon `DocumentDB` for what it does not support. mongod closes the connection when a fail point sends it.
const UNSUPPORTED: i32 = 303;

/// Answers as mongod does, with another code for refused commands. Returns the address.
async fn documentdb(mongo: &TestMongo) -> (String, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = mongo.address();
    let serve = async move {
        let connections = TaskTracker::new();
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.unwrap();
            let ((from_client, to_client), (from_server, mut to_server)) =
                (client.into_split(), server.into_split());
            connections.spawn(async move {
                let mut from_client = from_client;
                _ = tokio::io::copy(&mut from_client, &mut to_server).await;
            });
            connections.spawn(replace_codes(from_server, to_client));
        }
    };
    #[expect(clippy::disallowed_methods, reason = "the server is aborted when the test drops it")]
    let server = tokio::spawn(serve);
    (address, AbortOnDropHandle::new(server))
}

/// Copies whole messages: the first four bytes are the length. Returns when the connection ends.
async fn replace_codes(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> Option<()> {
    let element = |code: i32| [b"\x10code\0", code.to_le_bytes().as_slice()].concat();
    let (sent, unsupported) = (element(SENT), element(UNSUPPORTED));
    loop {
        let length = from.read_i32_le().await.ok()?;
        let mut message = vec![0; usize::try_from(length).ok()?];
        message[..4].copy_from_slice(&length.to_le_bytes());
        from.read_exact(&mut message[4..]).await.ok()?;
        if let Some(at) = message.windows(sent.len()).position(|window| window == sent) {
            message[at..at + sent.len()].copy_from_slice(&unsupported);
        }
        to.write_all(&message).await.ok()?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_options_that_the_server_does_not_know_are_refusals_with_a_way_out() {
    let mongo = TestMongo::start_own().await;
    let (address, _proxy) = documentdb(&mongo).await;
    // `CannotCreateIndex`, as DocumentDB; `CommandNotSupported`; `CommandNotFound`; `InvalidOptions`; an unknown field.
    for (code, seen) in [(SENT, UNSUPPORTED), (115, 115), (59, 59), (72, 72), (40415, 40415)] {
        let uri = format!("mongodb://{address}/?directConnection=true");
        let store = MongoStore::connect(Config { database: Some(mongo.database()), ..Config::new(uri) });
        let store = store.await.unwrap();
        let fault = doc! { "failCommands": ["createIndexes", "find"], "errorCode": code };
        let fault = mongo.fail_point("alwaysOn", fault).await;
        for error in [store.prepare().await.unwrap_err(), store.ids(None, 1).await.unwrap_err()] {
            let text = format!("{error}: {:?}", error.source().map(ToString::to_string));
            assert!(!error.is_transient() && text.contains(&format!("code {seen}")), "{text}");
            assert!(text.contains("DocumentDB"), "{text}");
        }
        drop(fault);
        store.prepare().await.expect("the same process continues when the server accepts the commands");
        put(&store, &row("kp_ada", None)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sharded_collection_without_the_kinde_id_in_its_key_is_refused_by_name() {
    let mongo = TestMongo::start_own().await;
    let config = Config { database: Some(mongo.database()), ..Config::new(mongo.uri()) };
    let store = MongoStore::connect(config).await.unwrap();
    // What a router answers to a unique index that does not begin with the shard key.
    let fault = doc! { "failCommands": ["createIndexes"], "errorCode": SENT };
    let _fault = mongo.fail_point("alwaysOn", fault).await;
    let text = store.prepare().await.unwrap_err().to_string();
    assert!(text.contains("unique index on the Kinde id") && text.contains("shard key"), "{text}");
    assert!(store.write(&[row("kp_ada", None)]).await.is_err(), "no user is written without the index");
}

/// A store with a name in DNS that has servers once `is_known` is set.
fn named(mongo: &TestMongo, is_known: &Arc<AtomicBool>) -> Config {
    let (uri, is_known) = (mongo.uri(), Arc::clone(is_known));
    let lookup = move || {
        let found = is_known.load(Ordering::Acquire).then(|| uri.clone());
        async move { found }.boxed()
    };
    Config {
        lookup: Some(Lookup(Arc::new(lookup))),
        database: Some(mongo.database()),
        ..Config::new("mongodb+srv://user:secret@cluster.example.com/app")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_dns_is_unavailable_and_recovers_when_dns_answers() {
    let mongo = TestMongo::shared().await;
    let is_known = Arc::new(AtomicBool::new(false));
    let config = named(mongo, &is_known);
    let database = config.database.clone().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::builder(folder.path()).mongodb(config).open().await.expect("the start continues");
    engine.start();
    let failure = until(|| engine.store_failure().filter(|failure| failure.summary.contains("DNS"))).await;
    assert!(!failure.is_refusal, "{failure:?}");
    assert!(!failure.chain.contains("secret"), "{failure:?}");
    let write = engine.store().write(&[row("kp_ada", None)]).await;
    assert!(write.is_err_and(|error| matches!(error, Error::Unavailable { .. })));
    is_known.store(true, Ordering::Release);
    until(|| engine.store_failure().is_none().then_some(())).await;
    put(&**engine.store(), &row("kp_ada", None)).await;
    let users = mongo.client().await.database(&database).collection::<bson::Document>("users");
    assert_eq!(users.count_documents(doc! {}).await.unwrap(), 1);
    engine.stop().await;
}

async fn until<T>(found: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_mins(2);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within two minutes");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_server_stores_users_and_links_no_document() {
    let mongo = TestMongo::start_standalone().await;
    let config = Config { database: Some(mongo.database()), ..Config::new(mongo.uri()) };
    let store = MongoStore::connect(config).await.unwrap();
    store.prepare().await.unwrap();
    users(&store).insert_one(doc! { "_id": "own", "email": "a@x.org" }).await.unwrap();
    observe(&store, vec![profile("kp_ada", 1, "a@x.org", true), profile("kp_bob", 1, "b@x.org", true)]).await;
    let ada = get(&store, "kp_ada").await.unwrap();
    assert_eq!(ada.metadata.email_held_by.as_deref(), Some("own"), "a conflict, and no outage");
    assert_eq!(get(&store, "kp_bob").await.unwrap().document().email.as_deref(), Some("b@x.org"));
}
