//! Processes that share a queue in Redis and a MongoDB: kills, outages, and what doctor says of the server.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use kinsync_core::UserId;
use kinsync_engine::internal::store::{Store, mongo};
use kinsync_testing::{
    app::TestApp,
    mongo::TestMongo,
    redis::{DURABLE, TestRedis},
};

use crate::{doctor::examine, tenant::Tenant};

const WITHIN: Duration = Duration::from_mins(1);

fn created(user: &str) -> String {
    format!(
        r#"{{"type":"user.created","event_id":"event_of_{user}","timestamp":"2026-01-01T00:00:00Z","data":{{"user":{{"id":"{user}","first_name":"User"}}}}}}"#
    )
}

/// A process that shares the queue of this server.
async fn serve(redis: &TestRedis, mongo: &TestMongo, database: &str) -> TestApp {
    let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    app.with_mongodb(&mongo.uri(), database).set("KINSYNC_QUEUE", redis.url());
    app.start().await.unwrap();
    app
}

async fn store(mongo: &TestMongo, database: &str) -> mongo::MongoStore {
    let config = mongo::Config { database: Some(database.into()), ..mongo::Config::new(mongo.uri()) };
    mongo::MongoStore::connect(config).await.unwrap()
}

async fn stored(store: &mongo::MongoStore, users: &[String]) -> usize {
    let ids: Vec<UserId> = users.iter().map(|user| UserId::parse(user).unwrap()).collect();
    store.load(&ids).await.unwrap().iter().flatten().count()
}

async fn until_stored(store: &mongo::MongoStore, users: &[String]) {
    let all = async {
        while stored(store, users).await < users.len() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WITHIN, all).await.expect("every accepted user is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_process_accepts_another_stores_after_the_first_was_killed() {
    let (redis, mongo) = (TestRedis::start(DURABLE), TestMongo::start_own().await);
    let database = mongo.database();
    let mut first = serve(&redis, &mongo, &database).await;
    // Without MongoDB no process stores anything yet.
    mongo.stop();
    let users: Vec<String> = (0..100).map(|n| format!("kp_{n:03}")).collect();
    for user in &users {
        assert_eq!(first.deliver(created(user)).await.unwrap(), 200);
    }
    first.kill().unwrap();
    mongo.restart().await;
    let mut second = serve(&redis, &mongo, &database).await;
    // What the first process had claimed comes at the end of its lease.
    second.drained(2 * WITHIN).await.unwrap();
    let store = store(&mongo, &database).await;
    assert_eq!(stored(&store, &users).await, users.len());
    second.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_accepted_while_redis_is_away_and_health_says_so() {
    let (redis, mongo) = (TestRedis::start(DURABLE), TestMongo::shared().await);
    let database = mongo.database();
    let mut app = serve(&redis, mongo, &database).await;
    app.prepared().await.unwrap();
    redis.kill();
    let users: Vec<String> = (0..50).map(|n| format!("kp_{n:03}")).collect();
    for user in &users {
        assert_eq!(app.deliver(created(user)).await.unwrap(), 200);
    }
    let health = app.health().await.unwrap();
    assert!(health.to_string().contains("50 deliveries wait on this machine"), "{health}");
    assert_eq!(app.admin("/stats").await.unwrap().unwrap()["queue"]["spooled"], 50);
    redis.launch();
    let store = store(mongo, &database).await;
    until_stored(&store, &users).await;
    app.drained(WITHIN).await.unwrap();
    let health = app.health().await.unwrap();
    assert!(!health.to_string().contains("KINSYNC_QUEUE"), "{health}");
    app.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_what_a_restart_of_redis_loses() {
    let mut tenant = Tenant::start().await;
    for (options, durable, eviction) in [
        (DURABLE, ("ok", "on the disk"), "ok"),
        (&["--appendonly", "yes", "--appendfsync", "everysec"], ("warning", "appendfsync always"), "ok"),
        (&["--maxmemory-policy", "allkeys-lru"], ("warning", "appendonly yes"), "failed"),
    ] {
        let redis = TestRedis::start(options);
        tenant.set("KINSYNC_QUEUE", redis.url());
        let examined = examine(&tenant, &[]);
        examined.is("queue.reachable", "ok", &["Redis"]).is("queue.durable", durable.0, &[durable.1]);
        examined.is("queue.eviction", eviction, &[]);
        redis.kill();
        examine(&tenant, &[]).is("queue.reachable", "failed", &["data folder"]);
    }
}
