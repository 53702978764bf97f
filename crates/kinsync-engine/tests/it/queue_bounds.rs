//! The bounds of dead letters on each backend, and what an examination changes.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};

use kinsync_core::Micros;
use kinsync_engine::{
    Clock,
    internal::{
        queue::{
            Error, Queue,
            embedded::{self, DeadLetterBounds, EmbeddedQueue},
            rabbitmq::{self, RabbitmqQueue},
            redis::{self, RedisQueue},
        },
        store::embedded::EmbeddedStore,
    },
};
use kinsync_testing::{rabbitmq::TestRabbitmq, redis::TestRedis};

use crate::queue_conformance::{claim_all, counts, dead_letter, entry};

const AGE: Duration = Duration::from_hours(1);
const BOUNDS: DeadLetterBounds = DeadLetterBounds { max_bytes: 1 << 30, max_count: 20, max_age: AGE };

/// A clock that can be set ahead.
#[derive(Clone, Default)]
struct Ahead(Arc<AtomicI64>);

impl Ahead {
    fn clock(&self) -> Clock {
        let ahead = Arc::clone(&self.0);
        Clock::from_fn(move || Micros(Clock::system().now().0 + ahead.load(SeqCst)))
    }
}

fn in_rabbitmq(clock: Clock) -> (RabbitmqQueue, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(EmbeddedStore::open(dir.path()).unwrap());
    let config = rabbitmq::Config {
        prefix: TestRabbitmq::prefix(),
        dead_letters: BOUNDS,
        ..rabbitmq::Config::new(TestRabbitmq::shared().url().into())
    };
    (RabbitmqQueue::new(config, store, clock).unwrap(), dir)
}

/// More than one page of surplus in one call, and old ones without a new one.
async fn bounds_hold(queue: &dyn Queue, ahead: &Ahead) {
    for number in 0..350 {
        queue.enqueue(entry(&number.to_string())).await.unwrap();
    }
    dead_letter(queue, &claim_all(queue, 350).await, "poison").await;
    assert_eq!(counts(queue).await, (0, 20));
    assert_eq!(queue.dead_letters(None, 1).await.unwrap()[0].event_id, "330", "the newest stay");
    ahead.0.store(2 * i64::try_from(AGE.as_micros()).unwrap(), SeqCst);
    queue.dead_letter(&[]).await.unwrap();
    assert_eq!(counts(queue).await, (0, 0), "the others are old");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bounds_of_dead_letters_hold_in_the_embedded_queue() {
    let (dir, ahead) = (tempfile::tempdir().unwrap(), Ahead::default());
    let config = embedded::Config { dead_letters: BOUNDS, ..embedded::Config::default() };
    bounds_hold(&EmbeddedQueue::open(dir.path(), config, ahead.clock()).unwrap(), &ahead).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bounds_of_dead_letters_hold_in_redis() {
    let ahead = Ahead::default();
    let config = redis::Config {
        prefix: TestRedis::prefix(),
        dead_letters: BOUNDS,
        ..redis::Config::new(TestRedis::shared().url().into())
    };
    bounds_hold(&RedisQueue::new(config, ahead.clock()).unwrap(), &ahead).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bounds_of_dead_letters_hold_in_rabbitmq() {
    let ahead = Ahead::default();
    let (queue, _dir) = in_rabbitmq(ahead.clock());
    bounds_hold(&queue, &ahead).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_examination_of_rabbitmq_declares_no_queue() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let config = rabbitmq::Config { prefix: prefix.clone(), ..rabbitmq::Config::new(rabbitmq.url().into()) };
    for _ in 0..2 {
        assert_eq!(RabbitmqQueue::examine(config.clone()).await.unwrap().entries, None);
    }
    assert!(!rabbitmq.control(&["list_queues", "name"]).contains(&prefix));
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(EmbeddedStore::open(dir.path()).unwrap());
    let queue = RabbitmqQueue::new(config.clone(), store, Clock::system()).unwrap();
    queue.enqueue(entry("a")).await.unwrap();
    assert_eq!(RabbitmqQueue::examine(config.clone()).await.unwrap().entries, Some(1));
    let other = rabbitmq::Config { delivery_limit: 7, ..config };
    let refused = RabbitmqQueue::examine(other).await;
    assert!(
        matches!(&refused, Err(Error::Refused { hint, .. }) if hint.contains("other properties")),
        "{refused:?}"
    );
    queue.close().await;
}
