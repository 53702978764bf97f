//! Events from the future: set aside, and applied when the clock reaches their time.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kinde::webhook::Scheme;
use kinsync_core::{Micros, UserId};
use kinsync_engine::{
    Clock, Engine, config,
    internal::{
        breaker, projector,
        queue::{Entry, Payload},
        store::Store,
    },
};
use kinsync_testing::{rabbitmq::TestRabbitmq, redis::TestRedis};
use tokio::time::Instant;

use crate::{pipeline::dead_letters, reconcile::DEADLINE, stores};

const MINUTE: i64 = 60_000_000;

/// A clock with an error that can be corrected.
#[derive(Clone, Default)]
struct WrongClock(Arc<AtomicI64>);

impl WrongClock {
    fn set_ahead(&self, micros: i64) {
        self.0.store(micros, Ordering::SeqCst);
    }

    fn clock(&self) -> Clock {
        let ahead = Arc::clone(&self.0);
        Clock::from_fn(move || Micros(Clock::system().now().0 + ahead.load(Ordering::SeqCst)))
    }
}

async fn engine(
    folder: &Path,
    store: &Arc<dyn Store>,
    clock: Clock,
    queue: Option<&config::SharedQueue>,
) -> Engine {
    let config = projector::Config { sweep_every: Duration::from_millis(20), ..Default::default() };
    let mut builder = Engine::builder(folder).store(store.clone()).clock(clock);
    if let Some(queue) = queue {
        builder = builder.shared_queue(queue.clone());
    }
    let engine =
        builder.projector(config, breaker::Config::default()).open().await.expect("the folder opens");
    engine.start();
    engine
}

fn redis() -> config::SharedQueue {
    let config = config::Redis::new(TestRedis::shared().url().into());
    config::SharedQueue::Redis(config::Redis { prefix: TestRedis::prefix(), ..config })
}

fn rabbitmq() -> config::SharedQueue {
    let config = config::Rabbitmq::new(TestRabbitmq::shared().url().into());
    config::SharedQueue::Rabbitmq(config::Rabbitmq { prefix: TestRabbitmq::prefix(), ..config })
}

fn event() -> Entry {
    event_about("kp_ada", kinsync_testing::wall_clock())
}

fn event_about(user: &str, at: jiff::Timestamp) -> Entry {
    let event_id = format!("event_of_{user}");
    let payload = serde_json::json!({
        "type": "user.updated", "event_id": event_id, "timestamp": at.to_string(),
        "data": { "user": { "id": user, "first_name": "Ada" } },
    });
    let body = Bytes::from(payload.to_string());
    let payload = Payload::Delivery { scheme: Scheme::Hmac, signed_at: None, body };
    Entry { event_id, received_at: Clock::system().now(), payload }
}

async fn until_set_aside(engine: &Engine, letters: u64) {
    let deadline = Instant::now() + DEADLINE;
    while dead_letters(engine).await != letters || engine.queue().stats().await.expect("it is open").depth > 0
    {
        assert!(Instant::now() < deadline, "{letters} dead letters");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn is_stored(store: &Arc<dyn Store>, user: &str) -> bool {
    let user = UserId::parse(user).expect("an id");
    store.load(&[user]).await.expect("the store answers")[0].is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_event_is_applied_when_the_clock_reaches_its_time() {
    it_is_applied_in_its_time(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_event_in_redis_is_applied_when_the_clock_reaches_its_time() {
    it_is_applied_in_its_time(Some(redis())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_event_in_rabbitmq_is_applied_when_the_clock_reaches_its_time() {
    it_is_applied_in_its_time(Some(rabbitmq())).await;
}

async fn it_is_applied_in_its_time(queue: Option<config::SharedQueue>) {
    let (fresh, clock) = (stores::embedded(), WrongClock::default());
    clock.set_ahead(-10 * MINUTE);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let engine = engine(folder.path(), &fresh.store, clock.clock(), queue.as_ref()).await;
    engine.queue().enqueue(event()).await.expect("the queue takes it");
    until_set_aside(&engine, 1).await;
    let letter = async || engine.queue().dead_letters(None, 1).await.expect("it is open")[0].id.clone();
    let set_aside = letter().await;
    // A round looks at all letters: the time of another one comes before, again and again.
    for user in ["kp_bob", "kp_eve", "kp_sam"] {
        let earlier = kinsync_testing::wall_clock() - jiff::SignedDuration::from_mins(4);
        clock.set_ahead(-10 * MINUTE);
        engine.queue().enqueue(event_about(user, earlier)).await.expect("the queue takes it");
        until_set_aside(&engine, 2).await;
        clock.set_ahead(-8 * MINUTE);
        until_set_aside(&engine, 1).await;
        assert!(is_stored(&fresh.store, user).await, "its time has come");
    }
    // A letter that is released and set aside again has another id.
    assert_eq!(letter().await, set_aside, "its time has not come");
    assert!(!is_stored(&fresh.store, "kp_ada").await, "its time has not come");
    clock.set_ahead(0);
    until_set_aside(&engine, 0).await;
    assert!(is_stored(&fresh.store, "kp_ada").await);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_event_of_another_process_is_applied_too() {
    let (fresh, other, clock) = (stores::embedded(), stores::embedded(), WrongClock::default());
    clock.set_ahead(-10 * MINUTE);
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let (one_queue, two_queue) = (redis(), redis());
    let one = engine(folders[0].path(), &fresh.store, clock.clock(), Some(&one_queue)).await;
    let two = engine(folders[1].path(), &other.store, clock.clock(), Some(&two_queue)).await;
    for engine in [&one, &two] {
        engine.queue().enqueue(event()).await.expect("the queue takes it");
        until_set_aside(engine, 1).await;
    }
    // The first one stops. The second one releases its own, and finds that of the first one afterwards.
    one.stop().await;
    clock.set_ahead(0);
    until_set_aside(&two, 0).await;
    let [config::SharedQueue::Redis(from), config::SharedQueue::Redis(to)] = [one_queue, two_queue] else {
        unreachable!()
    };
    let copied =
        TestRedis::shared().run(&format!("COPY {{{}}}:dead {{{}}}:dead REPLACE", from.prefix, to.prefix));
    assert_eq!(copied.trim(), ":1");
    until_set_aside(&two, 0).await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_event_is_applied_after_a_restart_with_the_right_clock() {
    let (fresh, clock) = (stores::embedded(), WrongClock::default());
    clock.set_ahead(-10 * MINUTE);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let first = engine(folder.path(), &fresh.store, clock.clock(), None).await;
    first.queue().enqueue(event()).await.expect("the queue takes it");
    until_set_aside(&first, 1).await;
    first.stop().await;
    let second = engine(folder.path(), &fresh.store, Clock::system(), None).await;
    until_set_aside(&second, 0).await;
    assert!(is_stored(&fresh.store, "kp_ada").await);
    second.stop().await;
}
