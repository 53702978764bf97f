//! Measures acknowledged entries per second of the embedded queue, beside raw writes to the same disk, and the time to
//! claim and ack 200,000 entries.
//!
//! `cargo run --release -p kinsync-engine --example queue_bench [folder] [seconds]`

#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use kinde::webhook::Scheme;
use kinsync_engine::{
    Clock,
    internal::queue::{
        Entry, Payload, Queue as _,
        embedded::{Config, EmbeddedQueue},
    },
};
use tokio::time::Instant;

const CALLERS: usize = 64;
const PAYLOAD: usize = 450;
const BACKLOG: usize = 200_000;
/// Longer than the run.
const LEASE: Duration = Duration::from_hours(1);

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from).join("kinsync-queue-bench");
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(3);
    let time = Duration::from_secs(seconds);
    for batch in [1, CALLERS / 2, CALLERS] {
        fs::create_dir_all(&dir).expect("the folder can be made");
        report(&format!("raw write + fdatasync of {batch}"), batch, raw(&dir, batch, time), time);
        fs::remove_dir_all(&dir).expect("the folder can be removed");
    }
    for callers in [1, CALLERS, 4 * CALLERS] {
        report(&format!("queue, {callers} callers"), 1, appends(&dir, callers, time).await, time);
        fs::remove_dir_all(&dir).expect("the folder can be removed");
    }
    fill(&dir).await;
    claims(&dir).await;
    fs::remove_dir_all(&dir).expect("the folder can be removed");
}

fn entry(event_id: String) -> Entry {
    let body = Bytes::from(vec![b'x'; PAYLOAD]);
    let payload = Payload::Delivery { scheme: Scheme::KindeJwt, signed_at: None, body };
    Entry { event_id, received_at: Clock::system().now(), payload }
}

async fn fill(dir: &Path) {
    let queue = open(dir);
    for chunk in 0..BACKLOG / 1000 {
        let entries = (0..1000).map(|n| queue.enqueue(entry(format!("event_{chunk}_{n}"))));
        for enqueued in join_all(entries).await {
            enqueued.expect("the queue accepts it");
        }
    }
    queue.close().await;
}

fn report(name: &str, entries: usize, mut times: Vec<Duration>, time: Duration) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let rate = (times.len() * entries) as f64 / time.as_secs_f64();
    println!("{name:<32} {rate:>9.0} entries/s   p50 {:>9.1?}   p99 {:>9.1?}", at(50), at(99));
}

fn raw(dir: &Path, batch: usize, time: Duration) -> Vec<Duration> {
    let mut file = File::create(dir.join("raw")).expect("the file can be made");
    let bytes = vec![7; batch * (PAYLOAD + 80)];
    let (started, mut times) = (Instant::now(), Vec::new());
    while started.elapsed() < time {
        let before = Instant::now();
        file.write_all(&bytes).and_then(|()| file.sync_data()).expect("the disk takes it");
        times.push(before.elapsed());
    }
    times
}

fn open(dir: &Path) -> EmbeddedQueue {
    let config = Config { max_entries: u64::MAX, max_bytes: 16 << 30, ..Config::default() };
    EmbeddedQueue::open(dir, config, Clock::system()).expect("the queue opens")
}

async fn appends(dir: &Path, callers: usize, time: Duration) -> Vec<Duration> {
    let queue = Arc::new(open(dir));
    let started = Instant::now();
    let callers = (0..callers).map(|caller| {
        let queue = Arc::clone(&queue);
        async move {
            let mut times = Vec::new();
            while started.elapsed() < time {
                let entry = entry(format!("event_{caller}_{}", times.len()));
                let before = Instant::now();
                queue.enqueue(entry).await.expect("the queue takes it");
                times.push(before.elapsed());
            }
            times
        }
    });
    #[expect(clippy::disallowed_methods, reason = "all are awaited right here")]
    let tasks: Vec<_> = callers.map(tokio::spawn).collect();
    let times =
        join_all(tasks).await.into_iter().flat_map(|times| times.expect("no caller panics")).collect();
    queue.close().await;
    times
}

/// Opens the backlog, claims and acks all of it.
async fn claims(dir: &Path) {
    let before = Instant::now();
    let queue = open(dir);
    let opened = before.elapsed();
    let (drained, mut count) = (Instant::now(), 0);
    while count < BACKLOG {
        let claimed = queue.claim(8192, LEASE).await.expect("the queue can be read");
        let ids: Vec<_> = claimed.into_iter().map(|claimed| claimed.id).collect();
        queue.ack(&ids).await.expect("the queue is open");
        count += ids.len();
    }
    queue.close().await;
    println!(
        "opened with {BACKLOG} entries in {opened:.1?}, claimed and acked all in {:.1?}",
        drained.elapsed()
    );
}
