//! The bounds of dead letters on each backend, and what an examination changes.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use kinde::webhook::Scheme;
use kinsync_core::Micros;
use kinsync_engine::{
    Clock,
    internal::{
        queue::{
            Entry, Error, Payload, Queue,
            embedded::{self, DeadLetterBounds, EmbeddedQueue},
            rabbitmq::{self, RabbitmqQueue},
            redis::{self, RedisQueue},
        },
        store::embedded::EmbeddedStore,
    },
};
use kinsync_testing::{rabbitmq::TestRabbitmq, redis::TestRedis};
use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit, atomics::AtomicU64,
};

use crate::queue_conformance::{claim_all, counts, dead_letter, entry, event_ids};

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

/// Counts the dead letters that a bound removed, in calls of this thread.
#[derive(Default)]
struct Removed(Arc<AtomicU64>);

impl Removed {
    fn count(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

impl Recorder for Removed {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match key.name() {
            "kinsync_queue_dead_letters_removed_total" => Counter::from_arc(Arc::clone(&self.0)),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
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
    let removed = Removed::default();
    let _recorder = metrics::set_default_local_recorder(&removed);
    bounds_hold(&RedisQueue::new(config, ahead.clock()).unwrap(), &ahead).await;
    assert_eq!(removed.count(), 350, "each is counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_dead_letters_in_redis_has_a_bound_and_the_newest_stay() {
    const MOST: u64 = 1 << 20;
    let config = redis::Config {
        prefix: TestRedis::prefix(),
        dead_letters: DeadLetterBounds { max_bytes: MOST, ..BOUNDS },
        ..redis::Config::new(TestRedis::shared().url().into())
    };
    let queue = RedisQueue::new(config, Clock::system()).unwrap();
    let removed = Removed::default();
    let _recorder = metrics::set_default_local_recorder(&removed);
    // One that is larger than all of them may be, and twice as much as they may have in smaller ones.
    for (count, size) in [(1, MOST), (32, MOST / 16)] {
        for number in 0..count {
            let body = Bytes::from(vec![b'x'; usize::try_from(size).unwrap()]);
            let payload = Payload::Delivery { scheme: Scheme::Hmac, signed_at: None, body };
            queue.enqueue(Entry { payload, ..entry(&format!("{size}/{number}")) }).await.unwrap();
        }
        let claimed = claim_all(&queue, count).await;
        let newest = event_ids(&claimed).pop().unwrap().to_owned();
        dead_letter(&queue, &claimed, "poison").await;
        let (stats, letters) = (queue.stats().await.unwrap(), queue.dead_letters(None, 99).await.unwrap());
        assert!(stats.dead_letter_bytes <= MOST, "{stats:?}");
        if count > 1 {
            assert!((8..16).contains(&letters.len()), "no more are removed than needed: {}", letters.len());
            assert_eq!(letters.last().unwrap().event_id, newest);
        }
    }
    assert_eq!(removed.count() + queue.stats().await.unwrap().dead_letters, 33);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bounds_of_dead_letters_hold_in_rabbitmq() {
    let ahead = Ahead::default();
    let (queue, _dir) = in_rabbitmq(ahead.clock());
    let removed = Removed::default();
    let _recorder = metrics::set_default_local_recorder(&removed);
    bounds_hold(&queue, &ahead).await;
    assert_eq!(removed.count(), 350, "each is counted");
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
