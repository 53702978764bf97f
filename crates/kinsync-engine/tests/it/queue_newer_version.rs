//! Entries of a newer version of kinsync in a shared queue, as during an upgrade: the older process leaves them to the newer one.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, future::join_all};
use kinsync_core::Micros;
use kinsync_engine::{
    Clock,
    internal::{
        queue::{
            Matcher, Queue, Search,
            rabbitmq::{self, RabbitmqQueue},
            redis::{self, RedisQueue},
        },
        store::embedded::EmbeddedStore,
    },
};
use kinsync_testing::{
    rabbitmq::TestRabbitmq,
    redis::{DURABLE, TestRedis},
};
use lapin::{
    BasicProperties, Channel, options as lapin_options,
    types::{AMQPValue, FieldTable},
};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    queue_conformance::{Fresh, LEASE, claim, claim_all, counts, entry, event_ids, ids},
    queue_rabbitmq::{WITHIN, other_program},
    queue_rabbitmq_promises::publish,
};

const COUNT: usize = 30;

/// A clock that can be set ahead.
#[derive(Clone, Default)]
struct Ahead(Arc<AtomicI64>);

impl Ahead {
    fn clock(&self) -> Clock {
        let ahead = Arc::clone(&self.0);
        Clock::from_fn(move || Micros(Clock::system().now().0 + ahead.load(SeqCst)))
    }

    fn set_by(&self, time: Duration) {
        self.0.store(i64::try_from(time.as_micros()).unwrap(), SeqCst);
    }
}

/// A claim that never ends, as the worker of an older process makes it.
fn worker(queue: &Arc<dyn Queue>) -> JoinSet<Vec<String>> {
    let (mut tasks, queue) = (JoinSet::new(), Arc::clone(queue));
    tasks.spawn(async move {
        let claimed = queue.claim(9, LEASE).await.unwrap();
        event_ids(&claimed).into_iter().map(str::to_owned).collect()
    });
    tasks
}

async fn until(what: &str, is_reached: impl AsyncFn() -> bool) {
    let reached = async {
        while !is_reached().await {
            tokio::task::yield_now().await;
        }
    };
    timeout(WITHIN, reached).await.expect(what);
}

async fn newer_version(queue: &dyn Queue) -> u64 {
    queue.stats().await.unwrap().newer_version
}

/// Entries of another format, and one that can be read behind them.
async fn is_left(queue: &Arc<dyn Queue>) {
    let worker = worker(queue);
    until("the worker meets each of them", async || newer_version(&**queue).await == COUNT as u64).await;
    until("they stay", async || counts(&**queue).await.0 == COUNT as u64).await;
    assert_eq!(counts(&**queue).await.1, 0, "none is a dead letter");
    queue.enqueue(entry("readable")).await.unwrap();
    let claimed = timeout(WITHIN, worker.join_all()).await.expect("they hold up no other").concat();
    assert_eq!(claimed, ["readable"]);
}

fn redis_connection() -> impl Future<Output = ::redis::aio::MultiplexedConnection> {
    let client = ::redis::Client::open(TestRedis::shared().url()).unwrap();
    async move { client.get_multiplexed_async_connection().await.unwrap() }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_redis_an_older_process_leaves_them_for_an_hour_and_a_newer_one_gets_them_uncounted() {
    let (ahead, prefix) = (Ahead::default(), TestRedis::prefix());
    let config =
        redis::Config { prefix: prefix.clone(), ..redis::Config::new(TestRedis::shared().url().into()) };
    let older: Arc<dyn Queue> = Arc::new(RedisQueue::new(config, ahead.clock()).unwrap());
    let (stream, mut newer) = (format!("{{{prefix}}}:queue"), redis_connection().await);
    for number in 0..COUNT {
        let mut add = ::redis::cmd("XADD");
        add.arg(&stream)
            .arg("*")
            .arg("format")
            .arg("2")
            .arg("received_at")
            .arg(77 + number)
            .arg("content")
            .arg("x");
        add.exec_async(&mut newer).await.unwrap();
    }
    assert_eq!(older.stats().await.unwrap().oldest_received_at, Some(Micros(77)));
    is_left(&older).await;

    // The claim of a newer process, while the older one goes on to claim too.
    let _worker = worker(&older);
    let mut claimed = 0;
    let taken = async {
        while claimed < COUNT / 2 {
            let mut take = ::redis::cmd("XAUTOCLAIM");
            take.arg(&stream)
                .arg("kinsync")
                .arg("kinsync")
                .arg(30_u64 * 24 * 3_600_000)
                .arg("0-0")
                .arg("COUNT")
                .arg(1);
            let (_, entries, _): (String, Vec<(String, ::redis::Value)>, Vec<String>) =
                take.query_async(&mut newer).await.unwrap();
            for (id, _) in entries {
                let mut pending = ::redis::cmd("XPENDING");
                pending.arg(&stream).arg("kinsync").arg(&id).arg(&id).arg(1);
                let pending: Vec<(String, String, u64, u64)> = pending.query_async(&mut newer).await.unwrap();
                assert_eq!(pending[0].3, 1, "only this delivery counts");
                ::redis::cmd("XACK")
                    .arg(&stream)
                    .arg("kinsync")
                    .arg(&id)
                    .exec_async(&mut newer)
                    .await
                    .unwrap();
                ::redis::cmd("XDEL").arg(&stream).arg(&id).exec_async(&mut newer).await.unwrap();
                claimed += 1;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(WITHIN * 2, taken).await.expect("the newer process gets its share");

    let left = (COUNT - COUNT / 2) as u64;
    assert_eq!(counts(&*older).await, (left + 1, 0), "and the entry that is claimed");
    ahead.set_by(Duration::from_hours(1));
    until("the others become dead letters", async || counts(&*older).await == (1, left)).await;
    let letter = older.dead_letters(None, 1).await.unwrap().remove(0);
    assert!(letter.reason.contains("cannot read"), "{}", letter.reason);
    // Put back, it is left to a newer process again.
    ahead.set_by(Duration::ZERO);
    older.retry_dead_letter(&letter.id).await.unwrap();
    assert_eq!(counts(&*older).await, (2, left - 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_redis_more_of_them_than_one_claim_takes_hold_up_no_other_entry() {
    let prefix = TestRedis::prefix();
    let config =
        redis::Config { prefix: prefix.clone(), ..redis::Config::new(TestRedis::shared().url().into()) };
    let older = RedisQueue::new(config, Clock::system()).unwrap();
    let (stream, mut newer) = (format!("{{{prefix}}}:queue"), redis_connection().await);
    let mut all = ::redis::Pipeline::new();
    for _ in 0..5_000 {
        all.cmd("XADD").arg(&stream).arg("*").arg("format").arg("2").ignore();
    }
    all.exec_async(&mut newer).await.unwrap();
    older.enqueue(entry("readable")).await.unwrap();
    assert_eq!(event_ids(&claim(&older, 100).await), ["readable"]);
    assert_eq!(counts(&older).await, (5_001, 0));
}

fn open(rabbitmq: &TestRabbitmq, prefix: &str, clock: Clock) -> Fresh {
    let config = rabbitmq::Config { prefix: prefix.into(), ..rabbitmq::Config::new(rabbitmq.url().into()) };
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(EmbeddedStore::open(dir.path()).unwrap());
    Fresh { queue: Arc::new(RabbitmqQueue::new(config, store, clock).unwrap()), _dir: Some(dir) }
}

/// Publishes messages of a newer version, made at this time. Returns their ids.
async fn publish_newer(channel: &Channel, queue: &str, count: usize, made_at: Micros) -> BTreeSet<String> {
    let published = join_all((0..count).map(|number| async move {
        let id = format!("{:016x}-{number:08x}-00000000", made_at.0);
        let properties = BasicProperties::default().with_type("kinsync.entry.2".into());
        publish(channel, queue, properties.with_message_id(id.as_str().into())).await;
        id
    }));
    published.await.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn in_redis_a_claim_looks_at_some_of_them_and_the_next_one_at_those_that_follow() {
    let redis = TestRedis::start(DURABLE);
    let queue = RedisQueue::new(redis::Config::new(redis.url().into()), Clock::system()).unwrap();
    let client = ::redis::Client::open(redis.url()).unwrap();
    let mut newer = client.get_multiplexed_async_connection().await.unwrap();
    // Of an age at which each is left for the longest time.
    let made_at = Clock::system().now().0 / 1_000 - 600_000;
    let mut all = ::redis::Pipeline::new();
    for number in 1..=3_000 {
        all.cmd("XADD")
            .arg("{kinsync}:queue")
            .arg(format!("{made_at}-{number}"))
            .arg("format")
            .arg("2")
            .ignore();
    }
    all.exec_async(&mut newer).await.unwrap();
    for id in ["1", "2", "3"] {
        queue.enqueue(entry(id)).await.unwrap();
    }
    let mut readable = claim(&queue, 4_000).await;
    assert_eq!(event_ids(&readable), ["1", "2", "3"]);
    queue.retry(&ids(&readable), Duration::ZERO).await.unwrap();
    assert!(redis.run("CONFIG RESETSTAT").starts_with("+OK"));
    readable.clear();
    while readable.len() < 3 {
        readable.extend(claim(&queue, 1).await);
    }
    assert_eq!(event_ids(&readable), ["1", "2", "3"]);
    let calls = |command: &str| {
        let stats = redis.text("INFO commandstats");
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.and_then(|line| line.split(',').next()?.parse::<u64>().ok()).unwrap()
    };
    let (claims, pages) = (calls("eval"), calls("xautoclaim"));
    assert!(claims > 10 && pages <= 16 * claims, "{pages} pages in {claims} claims");
    assert_eq!(counts(&queue).await, (3_003, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_redis_a_damaged_entry_becomes_a_dead_letter_at_once_and_an_unknown_scheme_is_left() {
    let prefix = TestRedis::prefix();
    let config =
        redis::Config { prefix: prefix.clone(), ..redis::Config::new(TestRedis::shared().url().into()) };
    let queue: Arc<dyn Queue> = Arc::new(RedisQueue::new(config, Clock::system()).unwrap());
    let right = [
        ("format", "1"),
        ("event_id", "about kp_ada"),
        ("scheme", "hmac_sha256"),
        ("received_at", "7"),
        ("signed_at", ""),
        ("body", r#"{"id":"kp_ada"}"#),
    ];
    let mut all = ::redis::Pipeline::new();
    for changed in ["format", "event_id", "scheme", "received_at", "signed_at", "body"] {
        let add = all.cmd("XADD").arg(format!("{{{prefix}}}:queue")).arg("*").ignore();
        for (name, value) in right.into_iter().filter(|(name, _)| *name != changed) {
            add.arg(name).arg(value);
        }
    }
    let of_new_scheme = all.cmd("XADD").arg(format!("{{{prefix}}}:queue")).arg("*").ignore();
    for (name, value) in right {
        of_new_scheme.arg(name).arg(if name == "scheme" { "of a newer version" } else { value });
    }
    all.exec_async(&mut redis_connection().await).await.unwrap();
    let _worker = worker(&queue);
    until("six are damaged, one is left", async || counts(&*queue).await == (1, 6)).await;
    until("it is reported", async || newer_version(&*queue).await == 1).await;
    let letters = queue.dead_letters(None, 9).await.unwrap();
    assert!(letters.iter().all(|letter| letter.reason.contains("damaged")), "{letters:?}");
    // Whatever it lacks, an erasure finds it.
    let matcher: Matcher = Arc::new(|_, body| body.windows(6).any(|part| part == b"kp_ada"));
    let found = queue.search(matcher, Search::Remove).await.unwrap();
    assert_eq!((found.queued, found.dead_letters), (1, 6));
    assert_eq!(counts(&*queue).await, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_rabbitmq_a_damaged_message_becomes_a_dead_letter_at_once_and_an_unknown_scheme_is_left() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let Fresh { queue, _dir } = open(rabbitmq, &prefix, Clock::system());
    queue.stats().await.unwrap();
    let (connection, channel) = other_program(rabbitmq).await;
    let text = |text: &str| AMQPValue::LongString(text.into());
    let header = |scheme: &str| {
        [("event_id", text("e")), ("scheme", text(scheme)), ("received_at", AMQPValue::LongLongInt(7))]
    };
    let message = async |number: u8, headers: Vec<(&str, AMQPValue)>| {
        let headers = headers.into_iter().map(|(name, value)| (name.into(), value));
        let id = format!("{:016x}-{number:08x}-00000000", Clock::system().now().0);
        let properties = BasicProperties::default()
            .with_type("kinsync.entry.1".into())
            .with_message_id(id.into())
            .with_headers(FieldTable::from(headers.collect::<BTreeMap<_, _>>()));
        publish(&channel, &format!("{prefix}.queue"), properties).await;
    };
    for (number, missing) in (0..).zip(["event_id", "scheme", "received_at"]) {
        message(number, header("hmac_sha256").into_iter().filter(|(name, _)| *name != missing).collect())
            .await;
    }
    message(9, header("of a newer version").into()).await;
    let _worker = worker(&queue);
    until("three are damaged, one is left", async || counts(&*queue).await == (1, 3)).await;
    until("it is reported", async || newer_version(&*queue).await == 1).await;
    let letters = queue.dead_letters(None, 9).await.unwrap();
    assert!(letters.iter().all(|letter| letter.reason.contains("damaged")), "{letters:?}");
    connection.close(200, "a test".into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_rabbitmq_an_older_process_leaves_them_for_an_hour_and_a_newer_one_gets_them() {
    let (ahead, rabbitmq, prefix) = (Ahead::default(), TestRabbitmq::shared(), TestRabbitmq::prefix());
    let Fresh { queue: older, _dir } = open(rabbitmq, &prefix, ahead.clock());
    older.stats().await.unwrap();
    let (connection, channel) = other_program(rabbitmq).await;
    let name = format!("{prefix}.queue");
    publish_newer(&channel, &name, COUNT, Clock::system().now()).await;
    is_left(&older).await;
    let _worker = worker(&older);
    channel.basic_qos(1, lapin_options::BasicQosOptions::default()).await.unwrap();
    let options = lapin_options::BasicConsumeOptions::default();
    let mut newer = channel
        .basic_consume(name.as_str().into(), "newer".into(), options, FieldTable::default())
        .await
        .unwrap();
    for _ in 0..COUNT / 2 {
        let got = timeout(WITHIN, newer.next()).await.expect("the newer process gets its share");
        got.unwrap().unwrap().acker.ack(lapin_options::BasicAckOptions::default()).await.unwrap();
    }
    connection.close(200, "a test".into()).await.unwrap();
    ahead.set_by(Duration::from_hours(1));
    let left = (COUNT - COUNT / 2) as u64;
    until("the others become dead letters", async || counts(&*older).await == (1, left)).await;
    let letters = older.dead_letters(None, COUNT).await.unwrap();
    assert!(letters.iter().all(|letter| letter.reason.contains("cannot read")), "{letters:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_rabbitmq_more_of_them_than_the_server_delivers_at_once_hold_up_no_other_entry_and_stay() {
    let (rabbitmq, prefix) = (TestRabbitmq::shared(), TestRabbitmq::prefix());
    let Fresh { queue: older, _dir } = open(rabbitmq, &prefix, Clock::system());
    older.stats().await.unwrap();
    let (connection, channel) = other_program(rabbitmq).await;
    let name = format!("{prefix}.queue");
    // Of an age at which each is left for the longest time.
    let made_at = Micros(Clock::system().now().0 - 600_000_000);
    let newer = publish_newer(&channel, &name, 3_000, made_at).await;
    let readable: Vec<String> = (0..10).map(|number| format!("readable {number}")).collect();
    for id in &readable {
        older.enqueue(entry(id)).await.unwrap();
    }
    let claimed = timeout(WITHIN * 4, claim_all(&*older, readable.len())).await.expect("they are claimed");
    assert_eq!(event_ids(&claimed), readable);
    older.ack(&ids(&claimed)).await.unwrap();
    assert_eq!(counts(&*older).await.1, 0, "none is a dead letter");
    older.close().await;

    let options = lapin_options::BasicConsumeOptions::default();
    let consuming =
        channel.basic_consume(name.as_str().into(), "newer".into(), options, FieldTable::default());
    let (mut deliveries, mut found) = (consuming.await.unwrap(), BTreeSet::new());
    let all = async {
        while found.len() < newer.len() {
            let delivery = deliveries.next().await.unwrap().unwrap();
            let id = delivery.properties.message_id().as_ref().unwrap().to_string();
            // One that was acked may come again.
            found.extend(newer.contains(&id).then_some(id));
            delivery.acker.ack(lapin_options::BasicAckOptions::default()).await.unwrap();
        }
    };
    timeout(WITHIN, all).await.expect("none is lost");
    connection.close(200, "a test".into()).await.unwrap();
}
