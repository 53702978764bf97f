//! A shared queue on a real Redis or RabbitMQ with the spool in front: outages, kills, a full server.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use kinsync_core::Micros;
use kinsync_engine::{
    Clock,
    internal::queue::{
        Enqueued, Entry, Error, Payload, Queue, Spool,
        embedded::{self, EmbeddedQueue},
        redis::{Config, RedisQueue},
        spooled::SpooledQueue,
    },
};
use kinsync_testing::{
    rabbitmq::TestRabbitmq,
    redis::{DURABLE, TestRedis},
    slow::SlowNetwork,
};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    queue_conformance::{claim, entry, ids},
    queue_rabbitmq::open,
};

pub(crate) struct World {
    pub(crate) queue: Arc<SpooledQueue>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl World {
    pub(crate) fn start(redis: &TestRedis, dir: &Path) -> Self {
        Self::start_with(redis, dir, embedded::Config::default())
    }

    fn start_with(redis: &TestRedis, dir: &Path, spool: embedded::Config) -> Self {
        Self::start_between(Config::new(redis.url().into()), dir, spool)
    }

    fn start_between(shared: Config, dir: &Path, spool: embedded::Config) -> Self {
        let shared = RedisQueue::new(shared, Clock::from_fn(|| Micros(5_000))).unwrap();
        Self::start_on(Arc::new(shared), dir, spool)
    }

    pub(crate) fn start_on(shared: Arc<dyn Queue>, dir: &Path, spool: embedded::Config) -> Self {
        let queue = Arc::new(spooled(shared, dir, spool));
        let (stop, moving) = (CancellationToken::new(), Arc::clone(&queue));
        let stopped = stop.clone();
        let tasks = TaskTracker::new();
        tasks.spawn(async move { moving.run(stopped).await });
        tasks.close();
        Self { queue, stop, tasks }
    }

    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.tasks.wait().await;
        self.queue.close().await;
    }

    async fn spool(&self) -> Spool {
        self.queue.stats().await.unwrap().spool.unwrap()
    }

    pub(crate) async fn until_moved(&self) {
        let moved = async {
            while !matches!(self.spool().await, Spool { entries: 0, is_shared_queue_available: true, .. }) {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), moved).await.expect("the spool is emptied");
    }

    /// Claims and acks all entries.
    pub(crate) async fn drained(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        while self.queue.stats().await.unwrap().depth > 0 {
            let claimed = claim(&*self.queue, 100).await;
            self.queue.ack(&ids(&claimed)).await.unwrap();
            found.extend(claimed.into_iter().map(|claimed| claimed.entry.event_id));
        }
        found
    }
}

/// A queue with a spool that nothing empties.
fn spooled(shared: Arc<dyn Queue>, dir: &Path, spool: embedded::Config) -> SpooledQueue {
    let spool = embedded::Config { is_spool: true, ..spool };
    let spool = EmbeddedQueue::open(dir, spool, Clock::from_fn(|| Micros(5_000))).unwrap();
    SpooledQueue::new(shared, Arc::new(spool))
}

fn numbered(range: std::ops::Range<u32>) -> BTreeSet<String> {
    range.map(|number| number.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_an_outage_wait_in_the_spool_and_reach_the_shared_queue_after_it() {
    let (redis, dir) = (TestRedis::start(DURABLE), tempfile::tempdir().unwrap());
    let world = World::start(&redis, dir.path());
    for number in 0..300 {
        match number {
            100 => redis.kill(),
            200 => redis.launch(),
            _ => {}
        }
        let enqueued = timeout(Duration::from_secs(5), world.queue.enqueue(entry(&number.to_string())));
        assert_eq!(enqueued.await.expect("within the deadline").unwrap(), Enqueued::New);
        if number == 199 {
            let Spool { entries, is_shared_queue_available, .. } = world.spool().await;
            assert_eq!((entries, is_shared_queue_available), (100, false));
        }
    }
    world.until_moved().await;
    assert_eq!(world.drained().await, numbered(0..300));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_a_process_that_was_stopped_during_the_outage_are_moved_by_the_next_one() {
    let (redis, dir) = (TestRedis::start(DURABLE), tempfile::tempdir().unwrap());
    redis.kill();
    let world = World::start(&redis, dir.path());
    for number in 0..20 {
        world.queue.enqueue(entry(&number.to_string())).await.unwrap();
    }
    world.end().await;
    redis.launch();
    let world = World::start(&redis, dir.path());
    world.until_moved().await;
    assert_eq!(world.drained().await, numbered(0..20));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_cannot_store_is_bypassed_as_soon_as_the_server_answers() {
    let (redis, dir) = (TestRedis::start(DURABLE), tempfile::tempdir().unwrap());
    let config = embedded::Config { max_entries: 0, ..embedded::Config::default() };
    let world = World::start_with(&redis, dir.path(), config);
    redis.kill();
    assert!(matches!(world.queue.enqueue(entry("a")).await, Err(Error::Full { .. })));
    redis.launch();
    let accepted = async { while world.queue.enqueue(entry("a")).await.is_err() {} };
    timeout(Duration::from_secs(20), accepted).await.expect("the server answers again");
    world.until_moved().await;
    assert_eq!(world.drained().await, BTreeSet::from(["a".into()]));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sighting_that_a_full_queue_refuses_is_not_kept() {
    let (redis, dir) = (TestRedis::start(DURABLE), tempfile::tempdir().unwrap());
    let shared = Config { max_entries: 2, ..Config::new(redis.url().into()) };
    let world = World::start_between(shared, dir.path(), embedded::Config::default());
    let sighting = |id: &str| Entry { payload: Payload::Sighting("{}".into()), ..entry(id) };
    world.queue.enqueue(entry("1")).await.unwrap();
    assert!(matches!(world.queue.enqueue(sighting("s1")).await, Err(Error::Full { .. })));
    // One that waits in the spool from an outage holds up no delivery.
    redis.kill();
    world.queue.enqueue(sighting("s2")).await.unwrap();
    world.queue.enqueue(entry("2")).await.unwrap();
    redis.launch();
    world.until_moved().await;
    assert_eq!(world.drained().await, BTreeSet::from(["1".into(), "2".into()]));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_delays_one_entry_and_not_each() {
    let (redis, dir) = (TestRedis::start(DURABLE), tempfile::tempdir().unwrap());
    let world = World::start(&redis, dir.path());
    redis.pause();
    let all = async {
        for number in 0..50 {
            world.queue.enqueue(entry(&number.to_string())).await.unwrap();
        }
    };
    timeout(Duration::from_secs(10), all).await.expect("only the first one waits for the server");
    redis.resume();
    world.until_moved().await;
    assert_eq!(world.drained().await, numbered(0..50), "the entry of the call that timed out is there once");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_the_server_takes_too_slowly_is_in_the_spool() {
    let (redis, dir) = (TestRedis::start(DURABLE), tempfile::tempdir().unwrap());
    let network = SlowNetwork::start(redis.port()).await;
    let url = format!("redis://{}", network.address());
    let shared = RedisQueue::new(Config::new(url.into()), Clock::from_fn(|| Micros(5_000))).unwrap();
    shared.enqueue(entry("connected")).await.unwrap();
    let queue = spooled(Arc::new(shared), dir.path(), embedded::Config::default());
    // The server answers after twice this time: later than an entry waits for it, and earlier than the connection gives up.
    network.set_delay(Duration::from_secs(2));
    queue.enqueue(entry("slow")).await.unwrap();
    assert_eq!(queue.stats().await.unwrap().spool.unwrap().entries, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_killed_and_started_again_loses_no_accepted_entry() {
    let (rabbitmq, dir) = (TestRabbitmq::start(), tempfile::tempdir().unwrap());
    let world = World::start_on(open(&rabbitmq, "kinsync").queue, dir.path(), embedded::Config::default());
    for number in 0..300 {
        match number {
            100 => {
                rabbitmq.until_saved("kinsync");
                rabbitmq.kill();
            }
            200 => rabbitmq.launch(),
            _ => {}
        }
        let enqueued = timeout(Duration::from_secs(5), world.queue.enqueue(entry(&number.to_string())));
        assert_eq!(enqueued.await.expect("within the deadline").unwrap(), Enqueued::New);
        if number == 199 {
            let Spool { entries, is_shared_queue_available, .. } = world.spool().await;
            assert_eq!((entries, is_shared_queue_available), (100, false));
        }
    }
    world.until_moved().await;
    assert_eq!(world.drained().await, numbered(0..300));
    world.end().await;
}
