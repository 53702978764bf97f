//! Recovery of the authenticator after an outage of the store.

use kinsync_engine::internal::breaker::State;
use kinsync_testing::mongo::TestMongo;
use kinsync_tower::authenticator::Config;

use crate::process::{Process, kinde, on_mongo, token, until};

#[tokio::test(flavor = "multi_thread")]
async fn the_breaker_closes_after_an_outage_without_another_request() {
    let (kinde, server) = (kinde().await, TestMongo::start_own().await);
    let store = on_mongo(&server).await;
    let process = Process::start(&kinde, &store, Config::default()).await;
    let (_, known) = token(&kinde, "known@example.com");
    assert_eq!(process.get(&known).await.body["stored"], true);
    server.stop();
    let mut requests = 0;
    until(async || {
        requests += 1;
        let (_, unknown) = token(&kinde, &format!("u{requests}@example.com"));
        process.get(&unknown).await;
        process.authenticator.breaker().state() == State::Open
    })
    .await;
    server.restart().await;
    until(async || process.authenticator.breaker().state() == State::Closed).await;
}
