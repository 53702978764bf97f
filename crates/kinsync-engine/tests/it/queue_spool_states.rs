//! What a shared queue with a spool shows and remembers: of a server that only answers, of lost data, of dead letters.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kinsync_core::Micros;
use kinsync_engine::{
    Clock,
    internal::queue::{
        Enqueued, Entry, EntryId, Error, Payload, Queue, Stats,
        embedded::{self, EmbeddedQueue},
        redis::{Config, RedisQueue},
    },
};
use kinsync_testing::{
    rabbitmq::TestRabbitmq,
    redis::{DURABLE, TestRedis},
};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    queue_conformance::{claim, dead_letter, entry, event_ids},
    queue_rabbitmq::open,
    queue_spooled::World,
};

const WITHIN: Duration = Duration::from_secs(30);

async fn until(world: &World, what: &str, is_reached: impl Fn(&Stats) -> bool) -> Stats {
    let reached = async {
        loop {
            let stats = world.queue.stats().await.unwrap();
            if is_reached(&stats) {
                return stats;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(WITHIN, reached).await.expect(what)
}

fn is_available(stats: &Stats) -> bool {
    stats.spool.unwrap().is_shared_queue_available
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_and_accepts_nothing_stays_unavailable() {
    let (redis, dir) =
        (TestRedis::start(&["--maxmemory-policy", "noeviction"]), tempfile::tempdir().unwrap());
    let world = World::start(&redis, dir.path());
    assert!(redis.run("CONFIG SET maxmemory 1").starts_with("+OK"));
    world.queue.enqueue(entry("a")).await.unwrap();
    // Long enough for several attempts to move it, one each second.
    let waited = tokio::time::Instant::now();
    while waited.elapsed() < Duration::from_secs(5) {
        let stats = world.queue.stats().await.unwrap();
        assert!(!is_available(&stats), "it refuses every entry: {stats:?}");
        assert_eq!(stats.spool.unwrap().age_of_shared_values, None, "it answers every question");
        tokio::task::yield_now().await;
    }
    assert!(redis.run("CONFIG SET maxmemory 0").starts_with("+OK"));
    world.until_moved().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_a_server_lost_is_accepted_again() {
    let (redis, dir) = (TestRedis::start(&["--appendonly", "no"]), tempfile::tempdir().unwrap());
    let mut world = World::start(&redis, dir.path());
    for restarts in [false, true] {
        redis.kill();
        assert_eq!(world.queue.enqueue(entry("e")).await.unwrap(), Enqueued::New, "restart: {restarts}");
        assert_eq!(
            world.queue.enqueue(entry("e")).await.unwrap(),
            Enqueued::Duplicate,
            "it waits in the spool"
        );
        if restarts {
            world.end().await;
            world = World::start(&redis, dir.path());
            assert_eq!(world.queue.enqueue(entry("e")).await.unwrap(), Enqueued::Duplicate, "it still waits");
        }
        redis.launch();
        world.until_moved().await;
        assert_eq!(event_ids(&claim(&*world.queue, 9).await), ["e"]);
        // Redis loses it.
        if restarts {
            world.end().await;
            redis.kill();
            world = World::start(&redis, dir.path());
            assert_eq!(
                world.queue.enqueue(entry("e")).await.unwrap(),
                Enqueued::New,
                "also by the next process"
            );
        }
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_the_server_never_accepts_holds_up_no_other() {
    let (rabbitmq, dir) = (TestRabbitmq::start(), tempfile::tempdir().unwrap());
    rabbitmq.kill();
    let world = World::start_on(open(&rabbitmq, "kinsync").queue, dir.path(), embedded::Config::default());
    let Payload::Delivery { scheme, signed_at, .. } = entry("large").payload else { unreachable!() };
    let body = Bytes::from(vec![b'x'; 8 << 20]);
    let large = Entry { payload: Payload::Delivery { scheme, signed_at, body }, ..entry("large") };
    world.queue.enqueue(entry("before")).await.unwrap();
    world.queue.enqueue(large).await.unwrap();
    world.queue.enqueue(entry("after")).await.unwrap();
    rabbitmq.launch();
    world.until_moved().await;
    assert_eq!(world.queue.stats().await.unwrap().dead_letters, 1);
    let letter = world.queue.dead_letters(None, 9).await.unwrap().remove(0);
    assert!(
        letter.event_id == "large" && letter.reason.contains("more than the queue accepts"),
        "{}",
        letter.reason
    );
    assert_eq!(world.drained().await.len(), 2);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_of_the_data_folder_are_kept_by_a_change_to_a_shared_queue() {
    let (redis, dir) = (TestRedis::start(DURABLE), tempfile::tempdir().unwrap());
    let before = EmbeddedQueue::open(dir.path(), embedded::Config::default(), Clock::system()).unwrap();
    for id in ["dropped", "retried", "kept"] {
        before.enqueue(entry(id)).await.unwrap();
    }
    dead_letter(&before, &claim(&before, 9).await, "from the data folder").await;
    before.close().await;
    let world = World::start(&redis, dir.path());
    let queue = &*world.queue;
    queue.enqueue(entry("shared")).await.unwrap();
    dead_letter(queue, &claim(queue, 9).await, "from Redis").await;
    assert_eq!(queue.stats().await.unwrap().dead_letters, 4);
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = queue.dead_letters(after.as_ref(), 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        found.extend(page);
    }
    let names: Vec<&str> = found.iter().map(|letter| letter.event_id.as_str()).collect();
    assert_eq!(names, ["dropped", "retried", "kept", "shared"]);
    for letter in &found {
        assert_eq!(queue.find_dead_letter(&letter.id).await.unwrap(), *letter);
    }
    queue.drop_dead_letter(&found[0].id).await.unwrap();
    queue.retry_dead_letter(&found[1].id).await.unwrap();
    queue.drop_dead_letter(&found[3].id).await.unwrap();
    for id in [&found[0].id, &found[3].id, &EntryId::new("spool-no"), &EntryId::new("no")] {
        let refused = queue.find_dead_letter(id).await;
        assert!(matches!(&refused, Err(Error::NoSuchDeadLetter { id: named }) if named == id), "{refused:?}");
    }
    world.until_moved().await;
    assert_eq!(event_ids(&claim(queue, 9).await), ["retried"]);
    assert_eq!(queue.stats().await.unwrap().dead_letters, 1);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_known_values_are_shown_while_the_server_does_not_answer() {
    let (redis, dir) = (TestRedis::start(DURABLE), tempfile::tempdir().unwrap());
    let world = World::start(&redis, dir.path());
    for id in ["dead", "queued"] {
        world.queue.enqueue(entry(id)).await.unwrap();
    }
    dead_letter(&*world.queue, &claim(&*world.queue, 1).await, "why").await;
    let known = world.queue.stats().await.unwrap();
    assert_eq!((known.depth, known.dead_letters, known.oldest_received_at), (1, 1, Some(Micros(1_000))));
    redis.pause();
    let paused = until(&world, "the server does not answer", |stats| !is_available(stats)).await;
    assert_eq!((paused.depth, paused.dead_letters, paused.oldest_received_at), (1, 1, Some(Micros(1_000))));
    assert!(paused.spool.unwrap().age_of_shared_values.is_some());
    world.queue.enqueue(entry("spooled")).await.unwrap();
    let paused = world.queue.stats().await.unwrap();
    assert_eq!((paused.depth, paused.dead_letters), (2, 1));
    redis.resume();
    until(&world, "the server answers", is_available).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_wait_for_replicas_delay_no_other_call() {
    let redis = TestRedis::start(DURABLE);
    let waiting = || {
        let info = redis.text("INFO clients");
        info.lines().any(|line| line.trim() == "blocked_clients:1")
    };
    let config = Config { replicas: 1, ..Config::new(redis.url().into()) };
    let queue = Arc::new(RedisQueue::new(config, Clock::system()).unwrap());
    let answers_meanwhile = async {
        for number in 0.. {
            let (one, id) = (Arc::clone(&queue), number.to_string());
            let mut tasks = JoinSet::new();
            let enqueued = tasks.spawn(async move { one.enqueue(entry(&id)).await });
            while !waiting() && !enqueued.is_finished() {
                tokio::task::yield_now().await;
            }
            queue.stats().await.unwrap();
            // On a shared connection the answer comes after the wait.
            let is_waiting = waiting();
            assert!(tasks.join_next().await.unwrap().unwrap().is_err(), "there is no replica");
            if is_waiting {
                return;
            }
        }
    };
    timeout(WITHIN, answers_meanwhile).await.expect("a call is answered while an entry waits");
}
