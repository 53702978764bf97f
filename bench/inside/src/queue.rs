//! Deliveries per second of each queue, and the time from claim to ack, beside the client of its backend alone ([`raw`]), turn by turn.
//!
//! A turn stores all entries with `window` of them outstanding at any time, then claims and acks all of them. Both sides store the
//! same bytes on the same server.

pub mod raw;

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use kinde::webhook::Scheme;
use kinsync_core::Micros;
use kinsync_engine::internal::queue::embedded::EmbeddedQueue;
use kinsync_engine::internal::queue::{Entry, Payload};
use kinsync_engine::internal::queue::{Queue, rabbitmq::RabbitmqQueue, redis::RedisQueue};
use kinsync_engine::internal::store::embedded::EmbeddedStore;
use kinsync_engine::{Clock, config};
use kinsync_testing::rabbitmq::TestRabbitmq;
use kinsync_testing::redis::{DURABLE, TestRedis};
use serde_json::{Value, json};

use self::raw::Raw;
use crate::own_cpu;

/// Entries per claim, as in the projector.
const CLAIM: usize = 1280;
const LEASE: Duration = Duration::from_mins(1);

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Turns of each side.
    pub rounds: usize,
    /// Entries of a turn.
    pub entries: usize,
    /// Entries that are not acknowledged yet, at any time.
    pub window: usize,
    /// Bytes of an entry, beside its id.
    pub payload: usize,
}

/// Measures all three backends.
pub async fn measure(folder: &Path, sizes: Sizes) -> anyhow::Result<Value> {
    let clock = Clock::system();
    let embedded = EmbeddedQueue::open(&folder.join("embedded"), config::Queue::default(), clock.clone())?;
    let raw = raw::Sqlite::open(&folder.join("raw.sqlite"))?;
    let embedded = compare(&embedded, &raw, sizes).await.context("the embedded queue")?;

    let server = TestRedis::start(DURABLE);
    let queue = RedisQueue::new(config::Redis::new(server.url().into()), clock.clone())?;
    let raw = raw::Redis::connect(&server.url()).await?;
    let redis = compare(&queue, &raw, sizes).await.context("Redis")?;
    let redis_version = version(&server.text("INFO server"), "redis_version:");
    drop(server);

    let server = TestRabbitmq::start();
    let store = Arc::new(EmbeddedStore::open(&folder.join("store"))?);
    let queue = RabbitmqQueue::new(config::Rabbitmq::new(server.url().into()), store, clock)?;
    let raw = raw::Rabbitmq::connect(&server.url()).await?;
    let rabbitmq = compare(&queue, &raw, sizes).await.context("RabbitMQ")?;
    let rabbitmq_version = server.control(&["version"]);
    Ok(json!({
        "embedded": embedded,
        "redis": redis,
        "rabbitmq": rabbitmq,
        "versions": { "Redis": redis_version, "RabbitMQ": rabbitmq_version.trim() },
    }))
}

fn version(text: &str, name: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("unknown").trim().to_owned()
}

/// What is stored.
#[derive(Debug)]
pub struct Message {
    id: String,
    body: Bytes,
}

/// Messages of `payload` bytes, with ids that no other turn uses.
pub fn messages(turn: usize, count: usize, payload: usize) -> Arc<[Message]> {
    let one = |number: usize| {
        let id = format!("event_{turn:012x}{number:020x}");
        let body = format!(r#"{{"event_id":"{id}","type":"user.updated","data":""#);
        let body = format!("{body:x<width$}\"}}", width = payload.saturating_sub(2));
        Message { id, body: body.into() }
    };
    (0..count).map(one).collect()
}

/// Turns of kinsync's queue and of the raw client, one after the other; each round starts with the other side.
async fn compare<R: Raw>(queue: &dyn Queue, raw: &R, sizes: Sizes) -> anyhow::Result<Value> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // The connections are open then, and the files exist.
    let small = messages(0, sizes.window.min(sizes.entries), sizes.payload);
    ours_turn(queue, Arc::clone(&small), sizes.window).await?;
    raw_turn(raw, small, sizes.window).await?;
    for round in 1..=sizes.rounds {
        let messages = messages(round, sizes.entries, sizes.payload);
        if round.is_multiple_of(2) {
            theirs.push(raw_turn(raw, Arc::clone(&messages), sizes.window).await?);
        }
        ours.push(ours_turn(queue, Arc::clone(&messages), sizes.window).await?);
        if !round.is_multiple_of(2) {
            theirs.push(raw_turn(raw, messages, sizes.window).await?);
        }
    }
    queue.close().await;
    Ok(json!({ "kinsync": ours, "raw": theirs }))
}

async fn ours_turn(queue: &dyn Queue, messages: Arc<[Message]>, window: usize) -> anyhow::Result<Value> {
    let cpu = own_cpu()?;
    let stored = closed_loop(messages.len(), window, 1, |range: Range<usize>| {
        let entries = messages[range].iter().map(entry);
        async move {
            for entry in entries {
                queue.enqueue(entry).await?;
            }
            Ok(())
        }
    });
    let stored = stored.await?;
    let stored_cpu = own_cpu()? - cpu;
    let (start, mut claimed) = (Instant::now(), Vec::with_capacity(messages.len()));
    while claimed.len() < messages.len() {
        let entries = queue.claim(CLAIM, LEASE).await?;
        let ids: Vec<_> = entries.iter().map(|entry| entry.id.clone()).collect();
        claimed.extend(entries.into_iter().map(|claimed| claimed.entry.event_id));
        queue.ack(&ids).await?;
    }
    let took = start.elapsed();
    let distinct: HashSet<_> = claimed.into_iter().collect();
    anyhow::ensure!(distinct.len() == messages.len(), "{} entries were claimed", distinct.len());
    Ok(stored.json(stored_cpu, took))
}

fn entry(message: &Message) -> Entry {
    let (scheme, body) = (Scheme::Hmac, message.body.clone());
    let payload = Payload::Delivery { scheme, signed_at: None, body };
    Entry { event_id: message.id.clone(), received_at: Micros(1_767_225_600_000_000), payload }
}

async fn raw_turn<R: Raw>(raw: &R, messages: Arc<[Message]>, window: usize) -> anyhow::Result<Value> {
    let (calls, size) = raw.shape(window);
    let cpu = own_cpu()?;
    let stored = closed_loop(messages.len(), calls, size, |range: Range<usize>| raw.store(&messages[range]));
    let stored = stored.await?;
    let stored_cpu = own_cpu()? - cpu;
    let start = Instant::now();
    raw.consume(messages.len()).await?;
    let took = start.elapsed();
    raw.clean().await?;
    Ok(stored.json(stored_cpu, took))
}

/// What a turn took.
#[derive(Debug)]
struct Stored {
    took: Duration,
    /// Time from each call until its entries were acknowledged, once for each entry, in microseconds.
    latencies: Vec<u128>,
}

impl Stored {
    fn json(mut self, cpu: f64, consumed_in: Duration) -> Value {
        self.latencies.sort_unstable();
        let entries = self.latencies.len();
        let millis = |percent: usize| self.latencies[(entries * percent / 100).min(entries - 1)] as f64 / 1e3;
        let each = |seconds: f64| seconds * 1e6 / entries as f64;
        json!({
            "rate": entries as f64 / self.took.as_secs_f64(),
            "p50": millis(50),
            "p99": millis(99),
            "cpu": each(cpu),
            "consume": each(consumed_in.as_secs_f64()),
        })
    }
}

/// Stores all entries: `calls` calls at any time, with `size` entries each.
async fn closed_loop<F>(
    entries: usize,
    calls: usize,
    size: usize,
    call: impl Fn(Range<usize>) -> F,
) -> anyhow::Result<Stored>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let lane = async || {
        let mut latencies = Vec::new();
        loop {
            let from = next.fetch_add(size, Relaxed);
            if from >= entries {
                return anyhow::Ok(latencies);
            }
            let (range, began) = (from..entries.min(from + size), Instant::now());
            let count = range.len();
            call(range).await?;
            latencies.extend(std::iter::repeat_n(began.elapsed().as_micros(), count));
        }
    };
    let lanes = futures_util::future::try_join_all((0..calls).map(|_| lane())).await?;
    Ok(Stored { took: start.elapsed(), latencies: lanes.concat() })
}
