//! A batch that is in work for longer than its lease: another process applies it too, and the rest of the first attempt changes nothing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use kinsync_engine::{
    Clock,
    internal::{
        breaker::{self, Breaker},
        projector::{self, Projector},
        queue::{
            Entry, Queue,
            rabbitmq::{self, RabbitmqQueue},
            redis::{self, RedisQueue},
        },
        store::{EventFilter, Row, Store},
    },
};
use kinsync_testing::{rabbitmq::TestRabbitmq, redis::TestRedis};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    faulty::{Fault, FaultyStore},
    pipeline::event_entry,
    queue_conformance::{LEASE, counts},
    store_rows::id,
    stores::{Fresh, mongo},
};

const WITHIN: Duration = Duration::from_mins(1);
const USERS: usize = 20;

/// A projector of a process of its own.
struct Process {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Process {
    fn start(queue: &Arc<dyn Queue>, store: Arc<dyn Store>, lease: Duration) -> Self {
        let breaker = Breaker::new("store", "projector", breaker::Config::default());
        let config = projector::Config { lease, workers: 1, ..projector::Config::default() };
        let projector = Projector::new(Arc::clone(queue), store, breaker, Clock::system(), config);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let stopped = stop.clone();
        tasks.spawn(async move { projector.run(stopped).await });
        tasks.close();
        Self { stop, tasks }
    }

    /// Completes the writes in progress.
    async fn end(self) {
        self.stop.cancel();
        timeout(WITHIN, self.tasks.wait()).await.expect("it ends");
    }
}

fn updated(user: usize, at: i64) -> Entry {
    let body = format!(r#"{{"id":"kp_{user}","first_name":"{at}"}}"#);
    event_entry("user.updated", at, &format!("{user}-{at}"), &body)
}

/// RabbitMQ does not count what the other process holds, so the log shows whether all is applied.
async fn until_done(queue: &dyn Queue, store: &dyn Store, events: usize) {
    let done = async {
        while counts(queue).await != (0, 1) || stored(store).await.1 < events {
            tokio::task::yield_now().await;
        }
    };
    timeout(WITHIN, done).await.expect("every entry is applied");
}

/// The rows, and the number of entries of the log.
async fn stored(store: &dyn Store) -> (Vec<Option<Row>>, usize) {
    let ids: Vec<_> = (0..USERS).map(|user| id(&format!("kp_{user}"))).collect();
    let events = store.events(&EventFilter { limit: 1000, ..EventFilter::default() }).await.unwrap();
    (store.load(&ids).await.unwrap(), events.len())
}

/// `slow` and `other` are two processes on one queue.
async fn outlasts_its_lease(slow: Arc<dyn Queue>, other: Arc<dyn Queue>, lease: Duration) {
    let Fresh { store, .. } = &mongo().await;
    for user in 0..USERS {
        slow.enqueue(updated(user, 1)).await.unwrap();
    }
    slow.enqueue(event_entry("user.updated", 1, "poison", "{}")).await.unwrap();
    let (reached, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let waits = (Arc::clone(&reached), Arc::clone(&gate));
    // Between its read and its write.
    let fault = Fault::after_first_read(async move {
        waits.0.add_permits(1);
        waits.1.acquire().await.unwrap().forget();
    });
    let faulty = Arc::new(FaultyStore { store: Arc::clone(store), fault });
    let first = Process::start(&slow, faulty, lease);
    timeout(WITHIN, reached.acquire()).await.expect("the first process reads the rows").unwrap().forget();
    let second = Process::start(&other, Arc::clone(store), LEASE);
    // With that of the poison.
    until_done(&*other, &**store, USERS + 1).await;
    for user in 0..USERS / 2 {
        other.enqueue(updated(user, 2)).await.unwrap();
    }
    until_done(&*other, &**store, USERS + USERS / 2 + 1).await;
    second.end().await;
    let before = stored(&**store).await;
    assert_eq!(before.1, USERS + USERS / 2 + 1);
    gate.add_permits(1);
    first.end().await;
    assert!(stored(&**store).await == before, "rows with their revisions, and the log");
    assert_eq!(counts(&*other).await, (0, 1), "and no second dead letter");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_outlasts_its_lease_in_redis_is_applied_by_another_process_without_a_second_effect() {
    let config =
        redis::Config { prefix: TestRedis::prefix(), ..redis::Config::new(TestRedis::shared().url().into()) };
    let open = || Arc::new(RedisQueue::new(config.clone(), Clock::system()).unwrap());
    outlasts_its_lease(open(), open(), Duration::from_millis(300)).await;
}

/// RabbitMQ has no leases: a process that makes no claim for a time, without a valid lease, gives back what it holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_outlasts_its_lease_in_rabbitmq_is_applied_by_another_process_without_a_second_effect() {
    let store = mongo().await.store;
    let pause = Duration::from_millis(300);
    let config = rabbitmq::Config {
        prefix: TestRabbitmq::prefix(),
        give_back_after: pause,
        ..rabbitmq::Config::new(TestRabbitmq::shared().url().into())
    };
    let open = || Arc::new(RabbitmqQueue::new(config.clone(), Arc::clone(&store), Clock::system()).unwrap());
    outlasts_its_lease(open(), open(), pause).await;
}
