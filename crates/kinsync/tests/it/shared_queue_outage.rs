//! A shared queue that is unreachable or slow for a minute under constant deliveries. Each test takes minutes.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use kinsync_testing::{
    mongo::TestMongo,
    rabbitmq::TestRabbitmq,
    redis::{DURABLE, TestRedis},
    slow::SlowNetwork,
};
use tokio::time::sleep;

use crate::{
    constant_load::{LENGTH, Stored, under_load, until_reported},
    shared_queue::serve,
};

/// The queue answers after twice this time: later than a delivery waits for it, and earlier than the queue gives up.
const TOO_SLOW: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: run with --ignored"]
async fn a_redis_that_is_unreachable_for_a_minute_loses_no_delivery() {
    let redis = TestRedis::start(DURABLE);
    nothing_is_lost("redis", redis.port(), SlowNetwork::hold).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: run with --ignored"]
async fn a_redis_that_is_slow_for_a_minute_loses_no_delivery() {
    let redis = TestRedis::start(DURABLE);
    nothing_is_lost("redis", redis.port(), |network| network.set_delay(TOO_SLOW)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: run with --ignored"]
async fn a_rabbitmq_that_is_unreachable_for_a_minute_loses_no_delivery() {
    let rabbitmq = TestRabbitmq::start();
    nothing_is_lost("amqp", rabbitmq.port(), SlowNetwork::hold).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: run with --ignored"]
async fn a_rabbitmq_that_is_slow_for_a_minute_loses_no_delivery() {
    let rabbitmq = TestRabbitmq::start();
    nothing_is_lost("amqp", rabbitmq.port(), |network| network.set_delay(TOO_SLOW)).await;
}

/// Delivers while the network to the queue is disturbed for a minute, and expects that each delivery takes effect once.
async fn nothing_is_lost(scheme: &str, port: u16, disturb: impl Fn(&SlowNetwork)) {
    let (network, mongo) = (SlowNetwork::start(port).await, TestMongo::shared().await);
    let database = mongo.database();
    let mut app = serve(&format!("{scheme}://{}", network.address()), mongo, &database).await;
    app.prepared().await.unwrap();
    let (stored, pid) = (Stored::new(&mongo.uri(), &database).await, app.pid());
    let delivered = under_load(&app, async {
        stored.until_logged(&app, 0).await;
        disturb(&network);
        until_reported(&app, "shared_queue_unavailable", true).await;
        // The length of the outage is what is tested.
        sleep(LENGTH).await;
        network.set_delay(Duration::ZERO);
        network.release();
        until_reported(&app, "shared_queue_unavailable", false).await;
        let before = stored.until_logged(&app, 0).await;
        stored.until_logged(&app, before).await;
    })
    .await;
    stored.is_complete(&mut app, delivered).await;
    assert_eq!(app.admin("/stats").await.unwrap().unwrap()["queue"]["spooled"], 0);
    assert_eq!(app.pid(), pid);
    app.stop().await.unwrap();
}
