//! Networks that divide kinsync and the members of a replica set. Each test takes minutes and runs as root.

#![expect(clippy::unwrap_used, reason = "tests")]

use kinsync_testing::{app::TestApp, partition::Host, replica_set::TestReplicaSet};
use tokio::time::sleep;

use crate::constant_load::{LENGTH, Stored, under_load, until_reported};

/// Deliveries of some seconds, more than are written at the same time.
const SOME: u64 = 100;

/// A replica set in a network, and kinsync with it.
struct Network {
    app: TestApp,
    stored: Stored,
    set: TestReplicaSet,
}

impl Network {
    async fn start() -> Self {
        let set = TestReplicaSet::start_in_network().await;
        let (uri, database) = (set.uri(), set.database());
        let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
        app.with_mongodb(&uri, &database);
        app.start().await.unwrap();
        app.prepared().await.unwrap();
        Self { app, stored: Stored::new(&uri, &database).await, set }
    }

    async fn until_logged(&self, more_than: u64) -> u64 {
        self.stored.until_logged(&self.app, more_than).await
    }

    /// Delivers while `during` runs, and expects that each delivery takes effect once, without a restart.
    async fn nothing_is_lost(mut self, during: impl AsyncFnOnce(&Self)) {
        let pid = self.app.pid();
        let delivered = under_load(&self.app, during(&self)).await;
        self.set.until_whole().await;
        self.stored.is_complete(&mut self.app, delivered).await;
        assert_eq!(self.app.pid(), pid);
        self.app.stop().await.unwrap();
    }
}

/// What it executes meanwhile is rolled back.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes, as root: run with --ignored"]
async fn a_primary_that_only_kinsync_reaches_loses_no_delivery() {
    let network = Network::start().await;
    let during = async |network: &Network| {
        let set = &network.set;
        network.until_logged(SOME).await;
        let former = set.primary().await;
        let others: Vec<usize> = (0..3).filter(|n| *n != former).collect();
        for other in &others {
            set.cut(Host::Server(former), Host::Server(*other));
        }
        set.primary_among(&others).await;
        let elected = network.until_logged(0).await;
        // The network is still divided: kinsync has found the new primary.
        network.until_logged(elected + SOME).await;
        set.heal();
        set.until_rolled_back(former).await;
        set.until_whole().await;
    };
    network.nothing_is_lost(during).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes, as root: run with --ignored"]
async fn a_primary_that_only_the_other_members_reach_loses_no_delivery() {
    let during = async |network: &Network| {
        let primary = network.set.primary().await;
        kinsync_is_cut_from(network, &[primary]).await;
        assert_eq!(network.set.primary().await, primary, "the members saw no reason for an election");
    };
    Network::start().await.nothing_is_lost(during).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes, as root: run with --ignored"]
async fn members_that_only_reach_each_other_lose_no_delivery() {
    let during = async |network: &Network| kinsync_is_cut_from(network, &[0, 1, 2]).await;
    Network::start().await.nothing_is_lost(during).await;
}

/// Cuts kinsync from these members for a minute, and waits until it writes again.
async fn kinsync_is_cut_from(network: &Network, members: &[usize]) {
    network.until_logged(SOME).await;
    for member in members {
        network.set.cut(Host::Test, Host::Server(*member));
    }
    until_reported(&network.app, "store_unavailable", true).await;
    // The length of the outage is what is tested.
    sleep(LENGTH).await;
    until_reported(&network.app, "store_unavailable", true).await;
    network.set.heal();
    let before = network.until_logged(0).await;
    network.until_logged(before).await;
    until_reported(&network.app, "store_unavailable", false).await;
}
