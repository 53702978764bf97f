//! The queue on real Redis servers: kills, restarts, lost data.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use kinde::webhook::Scheme;
use kinsync_core::Micros;
use kinsync_engine::{
    Clock,
    internal::queue::{
        Enqueued, Entry, Error, Payload, Queue,
        redis::{Config, Durability, RedisQueue},
    },
};
use kinsync_testing::redis::{DURABLE, TestRedis};
use tokio::time::Instant;

use crate::queue_conformance::{Fresh, LEASE, accepted_until_killed, claim, counts, entry, event_ids, ids};

fn open(redis: &TestRedis, prefix: &str) -> RedisQueue {
    let config = Config { prefix: prefix.into(), ..Config::new(redis.url().into()) };
    RedisQueue::new(config, Clock::from_fn(|| Micros(5_000))).unwrap()
}

/// An empty queue on the shared server.
pub(crate) async fn redis() -> Fresh {
    Fresh { queue: Arc::new(open(TestRedis::shared(), &TestRedis::prefix())), _dir: None }
}

/// Repeats until the server is back.
async fn until_accepted(queue: &RedisQueue, id: &str) -> Enqueued {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match queue.enqueue(entry(id)).await {
            Ok(enqueued) => {
                // Other calls have a connection of their own, which is opened again by the call after one that fails.
                while let Err(error) = queue.stats().await {
                    assert!(Instant::now() < deadline, "{error}");
                }
                return enqueued;
            }
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_file_synced_on_each_change_nothing_accepted_is_lost_by_a_kill() {
    let redis = TestRedis::start(DURABLE);
    let queue = Arc::new(open(&redis, "kinsync"));
    let producers: Arc<dyn Queue> = queue.clone();
    let accepted = accepted_until_killed(&producers, || redis.kill()).await;
    redis.launch();
    until_accepted(&queue, "after").await;
    let mut found = BTreeSet::new();
    while (found.len() as u64) < counts(&*queue).await.0 {
        let claimed = claim(&*queue, 500).await;
        found.extend(claimed.into_iter().map(|claimed| claimed.entry.event_id));
    }
    assert_eq!(accepted.iter().find(|id| !found.contains(*id)), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_its_data_takes_and_gives_entries_again() {
    let redis = TestRedis::start(&["--appendonly", "no"]);
    let queue = open(&redis, "kinsync");
    queue.enqueue(entry("lost")).await.unwrap();
    let lost = ids(&claim(&queue, 1).await);
    for is_killed in [false, true] {
        if is_killed {
            redis.kill();
            redis.launch();
        } else {
            assert!(redis.run("FLUSHALL").starts_with("+OK"));
        }
        let id = format!("killed: {is_killed}");
        assert_eq!(until_accepted(&queue, &id).await, Enqueued::New);
        let claimed = claim(&queue, 9).await;
        assert_eq!(event_ids(&claimed), [id]);
        // What a worker still holds of the lost entries changes nothing.
        queue.ack(&lost).await.unwrap();
        queue.retry(&lost, Duration::ZERO).await.unwrap();
        queue.dead_letter(&[(lost[0].clone(), "why".into())]).await.unwrap();
        queue.ack(&ids(&claimed)).await.unwrap();
        assert_eq!(counts(&queue).await, (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_a_dead_process_are_claimed_by_another_after_their_lease() {
    let (redis, prefix) = (TestRedis::shared(), TestRedis::prefix());
    let (dead, live) = (open(redis, &prefix), open(redis, &prefix));
    dead.enqueue(entry("a")).await.unwrap();
    let lease = Duration::from_millis(300);
    let began = Instant::now();
    assert_eq!(event_ids(&dead.claim(1, lease).await.unwrap()), ["a"]);
    drop(dead);
    let claimed = claim(&live, 1).await;
    assert!(began.elapsed() >= lease);
    assert_eq!((event_ids(&claimed), claimed[0].attempts), (vec!["a"], 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_another_process_ends_the_wait_of_a_claim() {
    let (redis, prefix) = (TestRedis::shared(), TestRedis::prefix());
    let (one, other) = (open(redis, &prefix), open(redis, &prefix));
    let (claimed, _) = tokio::join!(claim(&one, 1), async {
        tokio::task::yield_now().await;
        other.enqueue(entry("new")).await.unwrap()
    });
    assert_eq!(event_ids(&claimed), ["new"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_sightings_first_and_accepts_again_after_an_ack() {
    let (redis, prefix) = (TestRedis::shared(), TestRedis::prefix());
    let config = Config { prefix, max_entries: 4, ..Config::new(redis.url().into()) };
    let queue = RedisQueue::new(config, Clock::system()).unwrap();
    for id in ["1", "2", "3"] {
        queue.enqueue(entry(id)).await.unwrap();
    }
    let sighting = Entry { payload: Payload::Sighting("{}".into()), ..entry("sighting") };
    assert!(matches!(queue.enqueue(sighting.clone()).await, Err(Error::Full { .. })));
    queue.enqueue(entry("4")).await.unwrap();
    assert!(matches!(queue.enqueue(entry("5")).await, Err(Error::Full { .. })));
    assert_eq!(queue.enqueue(entry("4")).await.unwrap(), Enqueued::Duplicate, "it is stored");
    let claimed = claim(&queue, 3).await;
    queue.ack(&ids(&claimed)).await.unwrap();
    assert_eq!(queue.enqueue(entry("5")).await.unwrap(), Enqueued::New, "a refused id is not remembered");
    assert!(matches!(queue.enqueue(sighting).await, Err(Error::Full { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_is_refused_without_the_required_replicas_and_without_memory() {
    let redis = TestRedis::start(&["--maxmemory", "2mb", "--maxmemory-policy", "noeviction"]);
    let config = Config { replicas: 1, ..Config::new(redis.url().into()) };
    let queue = RedisQueue::new(config, Clock::system()).unwrap();
    let refused = queue.enqueue(entry("a")).await.unwrap_err();
    assert!(refused.to_string().contains("0 replicas"), "{refused}");
    let queue = open(&redis, "other");
    let refused = loop {
        let id = format!("{:0>30000}", counts(&queue).await.0);
        if let Err(refused) = queue.enqueue(entry(&id)).await {
            break refused;
        }
    };
    assert!(refused.to_string().contains("maxmemory"), "{refused}");
    let claimed = ids(&claim(&queue, 10_000).await);
    assert!(!claimed.is_empty(), "what was accepted can be processed");
    let (before, first) = (counts(&queue).await, (claimed[0].clone(), "why".to_owned()));
    let refused = queue.dead_letter(std::slice::from_ref(&first)).await.unwrap_err();
    assert!(refused.to_string().contains("maxmemory"), "{refused}");
    assert!(redis.run("CONFIG SET maxmemory 0").starts_with("+OK"));
    queue.dead_letter(&[first]).await.unwrap();
    let dead = queue.dead_letters(None, 9).await.unwrap();
    assert!(redis.run("CONFIG SET maxmemory 2mb").starts_with("+OK"));
    let refused = queue.retry_dead_letter(&dead[0].id).await.unwrap_err();
    assert!(refused.to_string().contains("maxmemory"), "{refused}");
    assert_eq!(counts(&queue).await, (before.0 - 1, before.1 + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_refused_by_its_name() {
    let redis = TestRedis::start(&["--cluster-enabled", "yes"]);
    let refused = open(&redis, "kinsync").enqueue(entry("a")).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { hint, .. } if hint.contains("Redis Cluster")), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_and_a_missing_permission_are_reported() {
    let redis = TestRedis::start(&["--requirepass", "secret"]);
    let queue = open(&redis, "kinsync");
    let refused = queue.enqueue(entry("a")).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { hint, .. } if hint.contains("password")), "{refused:?}");
    let config = |user: &str| Config::new(redis.url().replace("//", &format!("//{user}@")).into());
    let queue = RedisQueue::new(config("default:secret"), Clock::system()).unwrap();
    assert_eq!(queue.enqueue(entry("a")).await.unwrap(), Enqueued::New);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_of_the_guide_may_do_everything_and_is_found_after_a_refused_login() {
    let redis = TestRedis::start(DURABLE);
    let url = redis.url().replace("//", "//kinsync:password@");
    let queue = RedisQueue::new(Config::new(url.into()), Clock::system()).unwrap();
    let refused = queue.enqueue(entry("a")).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { hint, .. } if hint.contains("password")), "{refused:?}");
    let guide = include_str!("../../../../docs/guides/redis.md");
    let line = guide.lines().find(|line| line.starts_with("ACL SETUSER")).expect("the guide has the command");
    let answer = redis.run(line);
    assert!(answer.starts_with("+OK"), "{answer}");
    for id in ["a", "b"] {
        assert_eq!(queue.enqueue(entry(id)).await.unwrap(), Enqueued::New);
    }
    let claimed = ids(&claim(&queue, 9).await);
    queue.retry(&claimed, Duration::ZERO).await.unwrap();
    let claimed = ids(&claim(&queue, 9).await);
    queue.dead_letter(&[(claimed[0].clone(), "why".into())]).await.unwrap();
    queue.ack(&claimed[1..]).await.unwrap();
    let dead = queue.dead_letters(None, 9).await.unwrap();
    queue.find_dead_letter(&dead[0].id).await.unwrap();
    queue.retry_dead_letter(&dead[0].id).await.unwrap();
    assert_eq!(counts(&queue).await, (1, 0));
    assert_eq!(queue.inspect().await.unwrap().durability, Some(Durability::Synced));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_carries_nothing_any_more_is_replaced() {
    let redis = TestRedis::start(DURABLE);
    let queue = open(&redis, "kinsync");
    queue.enqueue(entry("a")).await.unwrap();
    // For longer than a response may take, as behind a firewall that dropped its state.
    assert!(redis.run("CLIENT PAUSE 7000 ALL").starts_with("+OK"));
    assert!(matches!(queue.enqueue(entry("b")).await, Err(Error::Unavailable { .. })));
    let connections = || {
        let info = redis.text("INFO stats");
        let line = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    let before = connections();
    until_accepted(&queue, "b").await;
    assert!(connections() > before + 1, "more than that of this question");
}

/// Ids of the connections of a queue.
fn connections(redis: &TestRedis) -> BTreeSet<String> {
    let clients = redis.text("CLIENT LIST");
    let of_queue = clients.lines().filter(|line| !line.contains("cmd=client|list"));
    of_queue.filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_fails_is_an_error_keeps_the_connection_and_ends_with_the_lease() {
    let redis = TestRedis::start(DURABLE);
    let queue = open(&redis, "kinsync");
    queue.enqueue(entry("a")).await.unwrap();
    let (began, lease) = (Instant::now(), Duration::from_secs(1));
    let claimed = ids(&queue.claim(1, lease).await.unwrap());
    let before = connections(&redis);
    assert!(redis.run("ACL SETUSER default -xclaim").starts_with("+OK"));
    let refused = queue.retry(&claimed, Duration::ZERO).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { hint, .. } if hint.contains("permissions")), "{refused:?}");
    assert!(redis.run("ACL SETUSER default +xclaim").starts_with("+OK"));
    assert_eq!(event_ids(&claim(&queue, 1).await), ["a"]);
    assert!(began.elapsed() >= lease);
    assert_eq!(
        connections(&redis).intersection(&before).count(),
        before.len(),
        "the server answered: no reason to reconnect"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_may_not_run_one_of_its_commands_changes_nothing() {
    let redis = TestRedis::start(DURABLE);
    let queue = open(&redis, "kinsync");
    let mut all = Vec::new();
    // First with three new entries, then with those of the rounds before, which can be claimed again, and a new one.
    for (number, command) in
        ["xclaim", "xpending", "xreadgroup", "xrevrange", "xautoclaim"].iter().enumerate()
    {
        for id in 0..if number == 0 { 3 } else { 1 } {
            all.push(format!("{command} {id}"));
            queue.enqueue(entry(all.last().unwrap())).await.unwrap();
        }
        assert_refused(&redis, command, queue.claim(100, LEASE)).await;
        let claimed = claim(&queue, 100).await;
        assert_eq!(event_ids(&claimed), all, "{command}");
        queue.retry(&ids(&claimed), Duration::ZERO).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_entry_is_refused_until_a_replica_has_it() {
    let (redis, replica) = (TestRedis::start(DURABLE), TestRedis::start(DURABLE));
    assert!(replica.run(&format!("REPLICAOF 127.0.0.1 {}", redis.port())).starts_with("+OK"));
    let config = Config { replicas: 1, ..Config::new(redis.url().into()) };
    let open = || RedisQueue::new(config.clone(), Clock::system()).unwrap();
    until_accepted(&open(), "before").await;
    replica.pause();
    for _ in 0..2 {
        // By a connection that has written nothing before.
        assert!(matches!(
            open().enqueue(entry("a")).await,
            Err(Error::Refused { .. } | Error::Unavailable { .. })
        ));
    }
    replica.resume();
    until_accepted(&open(), "a").await;
    assert_eq!(counts(&open()).await, (2, 0));
}

/// Expects that a call is refused while the user may not run this command.
async fn assert_refused<T: std::fmt::Debug>(
    redis: &TestRedis,
    command: &str,
    call: impl Future<Output = Result<T, Error>>,
) {
    assert!(redis.run(&format!("ACL SETUSER default -{command}")).starts_with("+OK"));
    let refused = call.await.unwrap_err();
    assert!(
        matches!(&refused, Error::Refused { hint, .. } if hint.contains("permissions")),
        "{command}: {refused:?}"
    );
    assert!(redis.run(&format!("ACL SETUSER default +{command}")).starts_with("+OK"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_may_not_run_one_of_its_commands_changes_nothing() {
    let redis = TestRedis::start(DURABLE);
    let queue = open(&redis, "kinsync");
    let commands = ["xlen", "xadd", "zadd", "zmscore", "zcard", "zpopmin", "time"];
    for (depth, command) in (1..).zip(commands) {
        assert_refused(&redis, command, queue.enqueue(entry(command))).await;
        assert_eq!(queue.enqueue(entry(command)).await.unwrap(), Enqueued::New, "{command}");
        assert_eq!(counts(&queue).await, (depth, 0), "{command}");
    }
    let depth = commands.len() as u64;
    let first = (ids(&claim(&queue, 1).await).remove(0), "why".to_owned());
    for command in ["xrange", "xadd", "xack", "xdel", "xtrim", "xlen", "memory|usage"] {
        assert_refused(&redis, command, queue.dead_letter(std::slice::from_ref(&first))).await;
        assert_eq!(counts(&queue).await, (depth, 0), "{command}");
    }
    queue.dead_letter(&[first]).await.unwrap();
    let dead = queue.dead_letters(None, 9).await.unwrap();
    for command in ["xrange", "xadd", "xdel"] {
        assert_refused(&redis, command, queue.retry_dead_letter(&dead[0].id)).await;
        assert_eq!(counts(&queue).await, (depth - 1, 1), "{command}");
    }
    queue.retry_dead_letter(&dead[0].id).await.unwrap();
    assert_eq!(counts(&queue).await, (depth, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_to_a_server_that_became_a_replica_is_replaced() {
    let redis = TestRedis::start(DURABLE);
    let queue = open(&redis, "kinsync");
    queue.enqueue(entry("a")).await.unwrap();
    let before = connections(&redis);
    assert_eq!(before.len(), 1, "that of the entries");
    assert!(redis.run("REPLICAOF 127.0.0.1 1").starts_with("+OK"));
    let refused = queue.enqueue(entry("b")).await.unwrap_err();
    assert!(matches!(&refused, Error::Unavailable { hint, .. } if hint.contains("replica")), "{refused:?}");
    assert!(redis.run("REPLICAOF NO ONE").starts_with("+OK"));
    assert_eq!(queue.enqueue(entry("b")).await.unwrap(), Enqueued::New);
    // The address may lead to another server now.
    let deadline = Instant::now() + Duration::from_secs(30);
    while !connections(&redis).is_disjoint(&before) {
        assert!(Instant::now() < deadline, "the connection stays");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_stops_after_some_megabytes_and_the_rest_comes_next() {
    let queue = open(TestRedis::shared(), &TestRedis::prefix());
    for number in 0..40 {
        let body = Bytes::from(vec![b'x'; 1 << 20]);
        let payload = Payload::Delivery { scheme: Scheme::Hmac, signed_at: None, body };
        queue.enqueue(Entry { payload, ..entry(&number.to_string()) }).await.unwrap();
    }
    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < 40 {
        sizes.push(claim(&queue, 100).await.len());
    }
    assert_eq!(sizes, [16, 16, 8], "a script reads 16 entries at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_an_error_within_its_deadline_and_is_found_later() {
    let redis = TestRedis::start(DURABLE);
    redis.kill();
    let queue = open(&redis, "kinsync");
    let began = Instant::now();
    assert!(matches!(queue.enqueue(entry("a")).await, Err(Error::Unavailable { .. })));
    assert!(began.elapsed() < Duration::from_secs(10));
    redis.launch();
    until_accepted(&queue, "a").await;
    redis.pause();
    assert!(matches!(queue.enqueue(entry("b")).await, Err(Error::Unavailable { .. })));
    redis.resume();
    until_accepted(&queue, "b").await;
    assert_eq!(claim(&queue, 9).await.len(), 2, "the entry of a timed-out call is stored once");
}
