//! Processes on a Redis that Sentinel watches, while its primary fails.

use kinsync_testing::{
    mongo::TestMongo,
    sentinels::{FAILOVER, TestSentinels},
};

use crate::{
    doctor::examine,
    shared_queue::{created, serve, store, until_stored},
    tenant::Tenant,
};

#[tokio::test(flavor = "multi_thread")]
async fn no_delivery_is_refused_or_lost_while_the_primary_of_sentinel_is_killed() {
    let (redis, mongo) = (TestSentinels::start(), TestMongo::shared().await);
    let database = mongo.database();
    let mut app = serve(&redis.url(), mongo, &database).await;
    app.prepared().await.unwrap();
    let mut users = Vec::new();
    for number in 0..150 {
        match number {
            50 => redis.servers()[0].kill(),
            100 => redis.until_failed_over(),
            _ => {}
        }
        users.push(format!("kp_{number:03}"));
        assert_eq!(app.deliver(created(&users[number])).await.unwrap(), 200);
    }
    until_stored(&store(mongo, &database).await, &users).await;
    app.drained(FAILOVER).await.unwrap();
    let health = app.health().await.unwrap();
    assert!(!health.to_string().contains("KINSYNC_QUEUE"), "{health}");
    app.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_the_primary_and_what_a_failover_loses() {
    let (redis, mut tenant) = (TestSentinels::start(), Tenant::start().await);
    tenant.set("KINSYNC_QUEUE", redis.url());
    let primary = format!("127.0.0.1:{}", redis.servers()[0].port());
    let examined = examine(&tenant, &[]);
    examined.is("queue.reachable", "ok", &[&primary, "the primary `main`"]);
    examined.is("queue.durable", "warning", &["failover", "KINSYNC_QUEUE_REPLICAS"]);
    tenant.set("KINSYNC_QUEUE_REPLICAS", "1");
    examine(&tenant, &[]).is("queue.durable", "ok", &["on the disk"]);
    for sentinel in redis.sentinels() {
        sentinel.kill();
    }
    examine(&tenant, &[]).is("queue.reachable", "failed", &["`main`", "data folder"]);
}
