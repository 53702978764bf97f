//! Processes with a slow network between them and the shared queue.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use futures_util::future::join_all;
use kinsync_testing::{
    app::TestApp,
    mongo::TestMongo,
    rabbitmq::TestRabbitmq,
    redis::{DURABLE, TestRedis},
    slow::SlowNetwork,
};
use tokio::time::timeout;

use crate::shared_queue::{WITHIN, created, serve, store, until_stored};

/// The queue answers after twice this time: later than a delivery waits for it, and earlier than the queue gives up.
const TOO_SLOW: Duration = Duration::from_secs(2);
const SLOW: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_answered_in_time_on_a_slow_network_to_redis() {
    let redis = TestRedis::start(DURABLE);
    deliveries_are_answered_in_time("redis", redis.port()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_answered_in_time_on_a_slow_network_to_rabbitmq() {
    deliveries_are_answered_in_time("amqp", TestRabbitmq::start().port()).await;
}

async fn deliveries_are_answered_in_time(scheme: &str, port: u16) {
    let (network, mongo) = (SlowNetwork::start(port).await, TestMongo::shared().await);
    let database = mongo.database();
    let mut app = serve(&format!("{scheme}://{}", network.address()), mongo, &database).await;
    app.prepared().await.unwrap();
    let store = store(mongo, &database).await;
    let mut users = deliver(&app, "fast").await;
    until_stored(&store, &users).await;
    // A delay below the deadline slows deliveries and projection, and neither fails.
    network.set_delay(SLOW);
    users.extend(deliver(&app, "slow").await);
    until_stored(&store, &users).await;
    network.set_delay(TOO_SLOW);
    // 40 of them wait for each other, which would take 160 s without the data folder.
    let delivered = timeout(WITHIN, deliver(&app, "too_slow")).await;
    users.extend(delivered.expect("a delivery does not wait for the shared queue"));
    network.set_delay(Duration::ZERO);
    until_stored(&store, &users).await;
    app.drained(2 * WITHIN).await.unwrap();
    let health = app.health().await.unwrap();
    assert!(!health.to_string().contains("KINSYNC_QUEUE"), "{health}");
    app.stop().await.unwrap();
}

/// Delivers 40 users one after the other, and 40 at once.
async fn deliver(app: &TestApp, name: &str) -> Vec<String> {
    let users: Vec<String> = (0..80).map(|number| format!("kp_{name}_{number:02}")).collect();
    let (single, together) = users.split_at(40);
    for user in single {
        assert_eq!(app.deliver(created(user)).await.unwrap(), 200);
    }
    for status in join_all(together.iter().map(|user| app.deliver(created(user)))).await {
        assert_eq!(status.unwrap(), 200);
    }
    users
}
