//! The queue on a Redis that Sentinel watches: failovers, logins, unavailable sentinels.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kinsync_engine::{
    Clock,
    internal::queue::{
        Enqueued, Error, Queue,
        redis::{Config, RedisQueue},
    },
};
use kinsync_testing::{
    redis::{DURABLE, TestRedis},
    sentinels::{FAILOVER, TestSentinels},
};
use tokio::time::{Instant, timeout};

use crate::queue_conformance::{LEASE, accepted_until_killed, entry, event_ids, ids};

fn open(url: &str, replicas: u32) -> RedisQueue {
    RedisQueue::new(Config { replicas, ..Config::new(url.into()) }, Clock::system()).unwrap()
}

async fn until_accepted(queue: &RedisQueue, id: &str) {
    let deadline = Instant::now() + FAILOVER;
    while let Err(error) = queue.enqueue(entry(id)).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::task::yield_now().await;
    }
}

/// Claims and acks until all of these came.
async fn until_claimed(queue: &RedisQueue, expected: &BTreeSet<String>) {
    let mut found = BTreeSet::new();
    let claimed = async {
        while !expected.is_subset(&found) {
            if let Ok(claimed) = queue.claim(100, LEASE).await {
                found.extend(event_ids(&claimed).into_iter().map(str::to_owned));
                while queue.ack(&ids(&claimed)).await.is_err() {}
            }
            tokio::task::yield_now().await;
        }
    };
    let all = timeout(FAILOVER, claimed).await;
    assert!(all.is_ok(), "lost: {:?}", expected.difference(&found).take(5).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_replica_confirmed_is_there_after_the_primary_was_killed() {
    let redis = TestSentinels::start();
    // With one replica, as long as there is no other one nothing more is accepted.
    let (queue, other) = (Arc::new(open(&redis.url(), 1)), open(&redis.url(), 0));
    let producers: Arc<dyn Queue> = queue.clone();
    let accepted = accepted_until_killed(&producers, || redis.servers()[0].kill()).await;
    until_claimed(&other, &accepted).await;
    until_accepted(&other, "after the failover").await;
    until_claimed(&other, &BTreeSet::from(["after the failover".into()])).await;
    // The old primary comes back as a replica.
    redis.servers()[0].launch();
    until_accepted(&queue, "confirmed again").await;
    until_claimed(&other, &BTreeSet::from(["confirmed again".into()])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_was_made_a_replica_is_left() {
    let redis = TestSentinels::start();
    let queue = open(&redis.url(), 0);
    queue.enqueue(entry("before")).await.unwrap();
    let server = queue.inspect().await.unwrap();
    assert_eq!(server.address, format!("127.0.0.1:{}", redis.servers()[0].port()));
    assert_eq!((server.watched.as_deref(), server.replicas), (Some("main"), 1));
    assert!(redis.sentinels()[0].run("SENTINEL FAILOVER main").starts_with("+OK"));
    redis.until_failed_over();
    redis.until_demoted();
    until_accepted(&queue, "after").await;
    until_claimed(&queue, &BTreeSet::from(["before".into(), "after".into()])).await;
    let server = queue.inspect().await.unwrap();
    assert_eq!(server.address, format!("127.0.0.1:{}", redis.servers()[1].port()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_keeps_its_connections_is_left() {
    let (old, new) = (TestRedis::start(DURABLE), TestRedis::start(DURABLE));
    let sentinel = TestRedis::start_sentinel("main", old.port(), 1, &[]);
    let queue = open(&format!("redis+sentinel://127.0.0.1:{}/main", sentinel.port()), 0);
    until_accepted(&queue, "before").await;
    // A failover by Sentinel closes all connections to the former primary.
    for (server, command) in [
        (&sentinel, "SENTINEL REMOVE main".to_owned()),
        (&sentinel, format!("SENTINEL MONITOR main 127.0.0.1 {} 1", new.port())),
        (&old, format!("REPLICAOF 127.0.0.1 {}", new.port())),
    ] {
        assert_eq!(server.run(&command).trim(), "+OK", "{command}");
    }
    let refused = queue.enqueue(entry("refused")).await.unwrap_err();
    assert!(refused.to_string().contains("it is a replica"), "{refused}");
    until_accepted(&queue, "after").await;
    until_claimed(&queue, &BTreeSet::from(["after".into()])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_sentinel_an_open_connection_goes_on_and_a_new_one_fails_in_time() {
    let redis = TestSentinels::start();
    let queue = open(&redis.url(), 0);
    queue.enqueue(entry("a")).await.unwrap();
    for sentinel in redis.sentinels() {
        sentinel.kill();
    }
    queue.enqueue(entry("b")).await.unwrap();
    let refused = timeout(Duration::from_secs(30), open(&redis.url(), 0).enqueue(entry("c"))).await;
    let refused = refused.expect("within its deadline").unwrap_err();
    assert!(matches!(&refused, Error::Unavailable { hint, .. } if hint.contains("`main`")), "{refused:?}");
    redis.sentinels()[2].launch();
    until_accepted(&open(&redis.url(), 0), "c").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_and_servers_have_logins_of_their_own() {
    let primary = TestRedis::start(&[DURABLE, &["--requirepass", "secret"]].concat());
    let lines = ["requirepass other", "sentinel auth-pass main secret"];
    let sentinel = TestRedis::start_sentinel("main", primary.port(), 1, &lines);
    let url = |login: &str, name: &str, password: &str| {
        let host = format!("127.0.0.1:{}", sentinel.port());
        format!("redis+sentinel://{login}@{host}/{name}?sentinel_password={password}")
    };
    until_accepted(&open(&url(":secret", "main", "other"), 0), "a").await;
    assert_eq!(open(&url(":secret", "main", "other"), 0).enqueue(entry("b")).await.unwrap(), Enqueued::New);
    for (wrong, word) in [
        (url(":wrong", "main", "other"), "password"),
        (url(":secret", "main", "wrong"), "password"),
        (url(":secret", "another", "other"), "name"),
    ] {
        let refused = open(&wrong, 0).enqueue(entry("c")).await.unwrap_err();
        assert!(refused.to_string().contains(word), "{wrong}: {refused}");
    }
}
