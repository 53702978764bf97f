//! What no accepted entry and no dead letter in RabbitMQ is lost by: limits, refusals of the server, failures of the store.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::future::try_join_all;
use kinsync_core::Micros;
use kinsync_engine::{
    Clock, Supervisor,
    internal::{
        queue::{
            Enqueued, Error, Matched, Queue, Search, embedded,
            rabbitmq::{Config, RabbitmqQueue, Remainder},
        },
        store::embedded::EmbeddedStore,
    },
};
use kinsync_testing::rabbitmq::TestRabbitmq;
use lapin::{Channel, options as lapin_options, types::FieldTable};
use tokio::time::timeout;

use crate::{
    faulty::{Failure, Fault, FaultyStore},
    queue_conformance::{Fresh, LEASE, claim, claim_all, counts, dead_letter, entry, event_ids, ids},
    queue_rabbitmq::{WITHIN, open, open_with, other_program, until_claimed},
    queue_spooled::World,
};

/// Limits the queue with this prefix, until it is dropped.
struct Policy<'a> {
    rabbitmq: &'a TestRabbitmq,
    name: String,
}

impl<'a> Policy<'a> {
    fn set(rabbitmq: &'a TestRabbitmq, prefix: &str, definition: &str) -> Self {
        let (name, pattern) = (prefix.to_owned(), format!(r"^{prefix}\.queue$"));
        rabbitmq.control(&["set_policy", &name, &pattern, definition]);
        Self { rabbitmq, name }
    }

    fn clear(self) {
        self.rabbitmq.control(&["clear_policy", &self.name]);
    }
}

/// Entries of this queue that no process holds.
async fn ready(channel: &Channel, queue: &str) -> u32 {
    let options = lapin_options::QueueDeclareOptions::durable().passive();
    channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap().message_count()
}

async fn until_ready(channel: &Channel, queue: &str, count: u32) {
    let counted = async {
        while ready(channel, queue).await != count {
            tokio::task::yield_now().await;
        }
    };
    timeout(WITHIN, counted).await.unwrap_or_else(|_| panic!("{queue} has not {count} entries"));
}

/// Takes the entries of the queue and gives them back, until one is in the second queue.
async fn exceed_the_limit(channel: &Channel, prefix: &str) {
    let (queue, returned) = (format!("{prefix}.queue"), format!("{prefix}.returned"));
    let moved = async {
        while ready(channel, &returned).await == 0 {
            let options = lapin_options::BasicGetOptions::default();
            if let Some(taken) = channel.basic_get(queue.as_str().into(), options).await.unwrap() {
                let requeue = lapin_options::BasicNackOptions { requeue: true, ..Default::default() };
                taken.delivery.acker.nack(requeue).await.unwrap();
            }
        }
    };
    timeout(WITHIN, moved).await.expect("the queue has a limit of deliveries");
}

/// Publishes a message of another program.
pub(crate) async fn publish(channel: &Channel, queue: &str, properties: lapin::BasicProperties) {
    let options = lapin_options::BasicPublishOptions::default();
    let published = channel.basic_publish("".into(), queue.into(), options, b"\xff", properties);
    published.await.unwrap().await.unwrap();
}

/// Adds this many entries.
async fn fill(queue: &dyn Queue, count: usize) {
    let entries = (0..count).map(|number| entry(&format!("filler {number}")));
    try_join_all(entries.map(|entry| queue.enqueue(entry))).await.unwrap();
}

/// Adds entries until one is refused. Returns the ids of the others.
async fn until_refused(queue: &dyn Queue) -> BTreeSet<String> {
    let mut accepted = BTreeSet::new();
    while accepted.len() < 1000 {
        let id = accepted.len().to_string();
        match queue.enqueue(entry(&id)).await {
            Ok(_) => accepted.insert(id),
            Err(Error::Unavailable { hint, .. }) if hint.contains("policy") => return accepted,
            Err(other) => panic!("{other}"),
        };
    }
    panic!("a policy limits the queue, and nothing is refused");
}

/// Claims and acks all entries.
async fn drained(queue: &dyn Queue) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    while counts(queue).await.0 > 0 {
        let claimed = claim(queue, 100).await;
        queue.ack(&ids(&claimed)).await.unwrap();
        found.extend(claimed.into_iter().map(|claimed| claimed.entry.event_id));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_limits_the_length_makes_the_server_refuse_entries_and_drop_none() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let Fresh { queue, .. } = &open(rabbitmq, &prefix);
    queue.stats().await.unwrap();
    let policy = Policy::set(rabbitmq, &prefix, r#"{"max-length":3}"#);
    let accepted = until_refused(&**queue).await;
    assert_eq!(drained(&**queue).await, accepted);
    policy.clear();
}

/// Suspends or resumes the process of the server that leads the queue with this prefix.
fn leader(rabbitmq: &TestRabbitmq, prefix: &str, call: &str) {
    rabbitmq.control(&["eval", &format!("sys:{call}({{'%2F_{prefix}.queue', node()}}).")]);
}

async fn count(queue: &dyn Queue) -> Result<Matched, Error> {
    queue.search(Arc::new(|_: &str, _: &[u8]| true), Search::Count).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_fails_while_the_server_cannot_count_the_queue() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let Fresh { queue, .. } = &open(rabbitmq, &prefix);
    assert_eq!(count(&**queue).await.unwrap(), Matched::default());
    queue.enqueue(entry("waits")).await.unwrap();
    leader(rabbitmq, &prefix, "suspend");
    assert_eq!(counts(&**queue).await.0, 0, "the server counts none");
    let found = count(&**queue).await;
    leader(rabbitmq, &prefix, "resume");
    assert!(matches!(found, Err(Error::Unavailable { .. })), "{found:?}");
    until_claimed(&**queue, "waits").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_is_counted_by_the_leader_and_with_what_others_may_hold() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let config = Config { prefix: prefix.clone(), ..Config::new(rabbitmq.url().into()) };
    let store = tempfile::tempdir().unwrap();
    let store = Arc::new(EmbeddedStore::open(store.path()).unwrap());
    let queue = RabbitmqQueue::new(config, store, Clock::system()).unwrap();
    assert_eq!(queue.remainder().await.unwrap(), Remainder { consumers: 0, entries: 0 });
    let Fresh { queue: other, .. } = open(rabbitmq, &prefix);
    leader(rabbitmq, &prefix, "suspend");
    let left = queue.remainder().await;
    leader(rabbitmq, &prefix, "resume");
    assert!(matches!(left, Err(Error::Unavailable { .. })), "{left:?}");
    for id in ["a", "b", "c"] {
        other.enqueue(entry(id)).await.unwrap();
    }
    until_left(&queue, |left| left == Remainder { consumers: 0, entries: 3 }).await;
    let taken = claim_all(&queue, 3).await;
    queue.ack(&ids(&taken[1..])).await.unwrap();
    until_left(&queue, |left| left == Remainder { consumers: 0, entries: 1 }).await;
    queue.ack(&ids(&taken)).await.unwrap();
    until_left(&queue, |left| left == Remainder { consumers: 0, entries: 0 }).await;
    timeout(Duration::from_millis(1), other.claim(1, LEASE)).await.ok();
    until_left(&queue, |left| left.consumers > 0).await;
    other.close().await;
    until_left(&queue, |left| left.consumers == 0).await;
}

async fn until_left(queue: &RabbitmqQueue, is_so: impl Fn(Remainder) -> bool) {
    let left = async {
        while !queue.remainder().await.is_ok_and(&is_so) {
            tokio::task::yield_now().await;
        }
    };
    timeout(WITHIN, left).await.expect("this is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_a_search_took_from_a_slow_server_goes_back() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let fresh = open(rabbitmq, &prefix);
    let other = open(rabbitmq, &prefix);
    fresh.queue.enqueue(entry("waits")).await.unwrap();
    leader(rabbitmq, &prefix, "suspend");
    // The server answers it within seconds, when it runs again.
    let (found, ()) = tokio::join!(count(&*fresh.queue), async {
        tokio::task::block_in_place(|| leader(rabbitmq, &prefix, "resume"));
    });
    // Either the entry was taken and given back, or the server ran again too late for an answer.
    assert!(matches!(found, Err(Error::Unavailable { .. })), "{found:?}");
    // By a process with another connection than the search.
    until_claimed(&*other.queue, "waits").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_ends_when_the_queue_is_closed() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let Fresh { queue, .. } = &open(rabbitmq, &prefix);
    queue.enqueue(entry("waits")).await.unwrap();
    leader(rabbitmq, &prefix, "suspend");
    assert_eq!(counts(&**queue).await.0, 0, "the server counts none");
    let (found, ()) = tokio::join!(count(&**queue), queue.close());
    leader(rabbitmq, &prefix, "resume");
    assert!(matches!(found, Err(Error::Closed)), "{found:?}");
    let Fresh { queue, .. } = &open(rabbitmq, &prefix);
    until_claimed(&**queue, "waits").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_on_its_way_from_the_second_queue_is_left() {
    let (rabbitmq, prefix) = (TestRabbitmq::start(), TestRabbitmq::prefix());
    let config = Config { prefix: prefix.clone(), delivery_limit: 2, ..Config::new(rabbitmq.url().into()) };
    let (_connection, channel) = other_program(&rabbitmq).await;
    open_with(config.clone()).queue.enqueue(entry("often")).await.unwrap();
    exceed_the_limit(&channel, &prefix).await;
    // Nothing can be published.
    rabbitmq.control(&["set_vm_memory_high_watermark", "0.00001"]);
    let store = tempfile::tempdir().unwrap();
    let store = Arc::new(EmbeddedStore::open(store.path()).unwrap());
    let queue = RabbitmqQueue::new(config, store, Clock::system()).unwrap();
    // It consumes from both queues then.
    timeout(Duration::from_millis(1), queue.claim(1, LEASE)).await.ok();
    until_ready(&channel, &format!("{prefix}.returned"), 0).await;
    assert_eq!(queue.remainder().await.unwrap().entries, 1);
    assert!(matches!(count(&queue).await, Err(Error::Unavailable { .. })), "an erasure does not miss it");
    rabbitmq.control(&["set_vm_memory_high_watermark", "0.6"]);
    until_claimed(&queue, "often").await;
    // A copy may come too: a busy server may have published the first one without an answer in time.
    let copies = async {
        loop {
            if let Ok(claimed) = queue.claim(9, LEASE).await {
                queue.ack(&ids(&claimed)).await.unwrap();
            }
        }
    };
    tokio::select! {
        () = until_left(&queue, |left| left.entries == 0) => {}
        () = copies => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_beyond_a_limit_of_deliveries_or_of_time_is_in_the_second_queue() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let config = Config { prefix: prefix.clone(), delivery_limit: 2, ..Config::new(rabbitmq.url().into()) };
    let (_connection, channel) = other_program(rabbitmq).await;
    let producer = open_with(config.clone());
    producer.queue.enqueue(entry("often")).await.unwrap();
    exceed_the_limit(&channel, &prefix).await;
    let policy = Policy::set(rabbitmq, &prefix, r#"{"message-ttl":1}"#);
    producer.queue.enqueue(entry("late")).await.unwrap();
    until_ready(&channel, &format!("{prefix}.returned"), 2).await;
    policy.clear();
    let Fresh { queue, .. } = open_with(config);
    let both = async {
        let mut found = BTreeSet::new();
        while found.len() < 2 {
            let claimed = claim(&*queue, 9).await;
            queue.ack(&ids(&claimed)).await.unwrap();
            found.extend(claimed.into_iter().map(|claimed| claimed.entry.event_id));
        }
        found
    };
    let found = timeout(WITHIN, both).await.expect("both come again");
    assert_eq!(found, BTreeSet::from(["late".into(), "often".into()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_the_server_does_not_take_back_stays_in_the_second_queue() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let config = Config { prefix: prefix.clone(), delivery_limit: 3, ..Config::new(rabbitmq.url().into()) };
    let (_connection, channel) = other_program(rabbitmq).await;
    let (one, returned) = (open_with(config.clone()), format!("{prefix}.returned"));
    one.queue.enqueue(entry("survivor")).await.unwrap();
    exceed_the_limit(&channel, &prefix).await;
    // More than one process holds: the queue stays full while this one consumes.
    fill(&*one.queue, 1100).await;
    let policy = Policy::set(rabbitmq, &prefix, r#"{"max-length":0}"#);
    until_refused(&*one.queue).await;
    claim(&*one.queue, 1).await;
    until_ready(&channel, &returned, 0).await;
    // The answer comes after those to what this process sent before.
    assert!(one.queue.enqueue(entry("refused")).await.is_err());
    one.queue.close().await;
    until_ready(&channel, &returned, 1).await;
    policy.clear();
    until_claimed(&*open_with(config).queue, "survivor").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_the_store_does_not_take_stays_queued() {
    let (rabbitmq, dir) = (TestRabbitmq::shared(), tempfile::tempdir().unwrap());
    let store = Arc::new(EmbeddedStore::open(dir.path()).unwrap());
    let fault = Fault::new("put_state", Failure::All);
    let store = FaultyStore { store, fault: Arc::clone(&fault) };
    let config = Config { prefix: TestRabbitmq::prefix(), ..Config::new(rabbitmq.url().into()) };
    let open = {
        let store = Arc::new(store);
        move || {
            RabbitmqQueue::new(config.clone(), Arc::<FaultyStore>::clone(&store), Clock::system()).unwrap()
        }
    };
    let queue = open();
    queue.enqueue(entry("poison")).await.unwrap();
    let claimed = claim(&queue, 1).await;
    let refused = queue.dead_letter(&[(claimed[0].id.clone(), "why".into())]).await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    assert_eq!(counts(&queue).await, (1, 0));
    queue.close().await;
    let queue = open();
    let claimed = claim(&queue, 1).await;
    assert_eq!(event_ids(&claimed), ["poison"]);
    fault.repair();
    dead_letter(&queue, &claimed, "why").await;
    assert_eq!(counts(&queue).await, (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_cannot_be_published_stays_one() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(EmbeddedStore::open(dir.path()).unwrap());
    let config = Config { prefix: prefix.clone(), ..Config::new(rabbitmq.url().into()) };
    let open =
        || RabbitmqQueue::new(config.clone(), Arc::<EmbeddedStore>::clone(&store), Clock::system()).unwrap();
    let other = open();
    other.enqueue(entry("poison")).await.unwrap();
    dead_letter(&other, &claim(&other, 1).await, "why").await;
    other.close().await;
    // A process that claims nothing, so that the queue gets full.
    let queue = &open();
    let letter = queue.dead_letters(None, 9).await.unwrap().remove(0);
    let policy = Policy::set(rabbitmq, &prefix, r#"{"max-length":0}"#);
    until_refused(queue).await;
    let refused = queue.retry_dead_letter(&letter.id).await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    assert_eq!(queue.find_dead_letter(&letter.id).await.unwrap(), letter);
    policy.clear();
    let retried = async { while queue.retry_dead_letter(&letter.id).await.is_err() {} };
    timeout(WITHIN, retried).await.expect("the queue accepts entries again");
    until_claimed(queue, "poison").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_holds_a_part_of_a_long_queue_and_leaves_the_rest_to_others() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let (one, other) = (open(rabbitmq, &prefix), open(rabbitmq, &prefix));
    fill(&*one.queue, 1100).await;
    let (_connection, channel) = other_program(rabbitmq).await;
    assert!(!claim(&*one.queue, 1).await.is_empty());
    until_ready(&channel, &format!("{prefix}.queue"), 1100 - 1024).await;
    let claimed = timeout(WITHIN, other.queue.claim(100, LEASE)).await.expect("the others can be claimed");
    assert!(!claimed.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_the_task_that_publishes_refuses_no_entry_and_is_reported() {
    let (rabbitmq, dir) = (TestRabbitmq::shared(), tempfile::tempdir().unwrap());
    let (supervisor, injected) = (Supervisor::default(), Arc::new(AtomicBool::new(false)));
    let panics = Arc::clone(&injected);
    // Each message is named by the time.
    let clock = Clock::from_fn(move || {
        assert!(!panics.swap(false, Ordering::Relaxed), "injected");
        Micros(5_000)
    });
    let config = Config { prefix: TestRabbitmq::prefix(), ..Config::new(rabbitmq.url().into()) };
    let store = Arc::new(EmbeddedStore::open(&dir.path().join("store")).unwrap());
    let shared = RabbitmqQueue::supervised(config, store, clock, &supervisor).unwrap();
    let world = World::start_on(Arc::new(shared), dir.path(), embedded::Config::default());
    for id in ["before", "during", "after"] {
        injected.store(id == "during", Ordering::Relaxed);
        assert_eq!(world.queue.enqueue(entry(id)).await.unwrap(), Enqueued::New, "{id}");
    }
    assert!(!injected.load(Ordering::Relaxed), "it panicked");
    world.until_moved().await;
    let status = supervisor.status()["shared queue"].clone();
    assert_eq!((status.restarts, status.failure.as_deref()), (0, Some("it panicked: injected")));
    assert_eq!(world.drained().await.len(), 3);
    world.end().await;
    supervisor.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_read_delays_no_other_while_the_store_does_not_answer() {
    let (rabbitmq, dir, prefix) =
        (TestRabbitmq::shared(), tempfile::tempdir().unwrap(), TestRabbitmq::prefix());
    let store = Arc::new(EmbeddedStore::open(dir.path()).unwrap());
    let store = FaultyStore { store, fault: Fault::new("put_state", Failure::Hangs) };
    let config = Config { prefix: prefix.clone(), ..Config::new(rabbitmq.url().into()) };
    let queue = RabbitmqQueue::new(config, Arc::new(store), Clock::system()).unwrap();
    queue.stats().await.unwrap();
    let (_connection, channel) = other_program(rabbitmq).await;
    publish(&channel, &format!("{prefix}.queue"), lapin::BasicProperties::default()).await;
    queue.enqueue(entry("a")).await.unwrap();
    assert_eq!(event_ids(&timeout(WITHIN, claim(&queue, 9)).await.expect("it is claimed")), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_dropped_gives_its_entries_to_another_process() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let (dropped, other) = (open(rabbitmq, &prefix), open(rabbitmq, &prefix));
    dropped.queue.enqueue(entry("a")).await.unwrap();
    assert_eq!(event_ids(&claim(&*dropped.queue, 1).await), ["a"]);
    drop(dropped);
    until_claimed(&*other.queue, "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_no_process_claims_gets_older_until_one_does() {
    let (rabbitmq, dir) = (TestRabbitmq::shared(), tempfile::tempdir().unwrap());
    let config = Config { prefix: TestRabbitmq::prefix(), ..Config::new(rabbitmq.url().into()) };
    let store = Arc::new(EmbeddedStore::open(dir.path()).unwrap());
    let now = Arc::new(AtomicI64::new(5_000));
    let clock = {
        let now = Arc::clone(&now);
        Clock::from_fn(move || Micros(now.load(Ordering::Relaxed)))
    };
    let receiver = RabbitmqQueue::new(config.clone(), Arc::<EmbeddedStore>::clone(&store), clock).unwrap();
    let shown = async || {
        let stats = receiver.stats().await.unwrap();
        (stats.depth, stats.oldest_received_at)
    };
    assert_eq!(shown().await, (0, None));
    receiver.enqueue(entry("a")).await.unwrap();
    assert_eq!(shown().await, (1, Some(Micros(5_000))));
    now.store(900_000_000, Ordering::Relaxed);
    receiver.enqueue(entry("b")).await.unwrap();
    assert_eq!(shown().await, (2, Some(Micros(5_000))), "nothing was taken");
    let projector = RabbitmqQueue::new(config, store, Clock::system()).unwrap();
    assert_eq!(drained(&projector).await.len(), 2);
    assert_eq!(shown().await, (0, None));
    receiver.enqueue(entry("c")).await.unwrap();
    let taken = async {
        while shown().await != (0, None) {
            tokio::task::yield_now().await;
        }
    };
    timeout(WITHIN, taken).await.expect("the projector gets it");
}
