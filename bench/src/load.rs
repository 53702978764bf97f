//! The load generator: connections that send prepared requests, on one separate thread.
//!
//! Closed loop: each connection sends its next request when the last one is answered. It measures the maximum rate.
//! Open loop: requests are due at a fixed rate, and a latency counts from when the request was due and not from when
//! it could be sent, so that a server that stalls cannot hide it (coordinated omission).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use hdrhistogram::Histogram;
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tokio::time::{sleep_until, timeout};

use crate::http::Connection;
use crate::requests::Requests;

/// Timeout of a response.
const TIMEOUT: Duration = Duration::from_secs(30);

/// When requests are sent.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// As fast as they are answered.
    Closed,
    /// This many per second.
    Open(f64),
}

/// What to send, to which server, how and for how long.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The server.
    pub to: SocketAddr,
    /// Number of connections.
    pub connections: usize,
    /// The requests, in this order.
    pub requests: Arc<Requests>,
    /// Whether to repeat the requests; otherwise the run ends when all are sent.
    pub cycle: bool,
    /// Time before the measured window.
    pub warmup: Duration,
    /// The measured window.
    pub window: Duration,
    /// When requests are sent.
    pub pace: Pace,
}

/// The result.
#[derive(Debug)]
pub struct Outcome {
    /// Responses with 200 within the window.
    pub ok: u64,
    /// All responses with 200, also outside the window.
    pub accepted: u64,
    /// Other responses, by status.
    pub refused: BTreeMap<u16, u64>,
    /// Responses with 200 and a wrong body.
    pub wrong: u64,
    /// Number of failed connections, with the first reason.
    pub broken: Option<(u64, String)>,
    /// The measured window; shorter if the requests were used up.
    pub window: Duration,
    /// Latencies in the window, in microseconds.
    pub latency: Histogram<u64>,
    /// The time at which each request was answered 200, by its index.
    pub answered: Vec<(usize, Instant)>,
}

impl Outcome {
    /// Responses with 200 per second.
    pub fn rate(&self) -> f64 {
        self.ok as f64 / self.window.as_secs_f64()
    }

    /// Why the result is invalid, if it is.
    pub fn problem(&self) -> Option<String> {
        let refused = self.refused.iter().map(|(status, count)| format!("{count} x {status}"));
        let wrong = (self.wrong > 0).then(|| format!("{} responses were wrong", self.wrong));
        let broken = self.broken.iter().map(|(count, why)| format!("{count} connections failed: {why}"));
        let empty = (self.ok == 0).then(|| {
            "nothing was answered 200 in the window (were the requests used up before it?)".to_owned()
        });
        let problems: Vec<_> = refused.chain(wrong).chain(broken).chain(empty).collect();
        (!problems.is_empty()).then(|| problems.join(", "))
    }
}

/// Runs the plan on a separate thread.
pub async fn run(plan: Plan) -> anyhow::Result<Outcome> {
    off_thread(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, drive(plan))
    })
    .await?
}

/// Runs long work on a separate thread, so that Ctrl-C is handled meanwhile.
pub async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    let (sender, receiver) = oneshot::channel();
    // Not joined: when the run is stopped, the process ends and the thread with it.
    thread::spawn(move || sender.send(work()));
    receiver.await.map_err(|_| anyhow!("a thread of the bench panicked"))
}

/// The clock of a run and the index of the next request.
#[derive(Debug)]
struct Course {
    start: Instant,
    measure_from: Instant,
    end: Instant,
    next: Cell<usize>,
    ran_out: Cell<Option<Instant>>,
}

impl Course {
    /// The index of the next request and the time when it is due. `None` at the end.
    fn next(&self, plan: &Plan) -> Option<(usize, Option<Instant>)> {
        let number = self.next.get();
        let count = plan.requests.len();
        if number >= count && !plan.cycle {
            self.ran_out.set(self.ran_out.get().or_else(|| Some(Instant::now())));
            return None;
        }
        let due = match plan.pace {
            Pace::Closed => None,
            Pace::Open(rate) => Some(self.start + Duration::from_secs_f64(number as f64 / rate)),
        };
        if due.unwrap_or_else(Instant::now) >= self.end {
            return None;
        }
        self.next.set(number + 1);
        Some((number % count, due))
    }
}

/// The result of one connection.
#[derive(Debug)]
struct Seen {
    latency: Histogram<u64>,
    ok_at: Vec<(usize, Instant)>,
    refused: BTreeMap<u16, u64>,
    wrong: u64,
    broken: Option<String>,
}

async fn drive(plan: Plan) -> anyhow::Result<Outcome> {
    let mut connections = Vec::new();
    for _ in 0..plan.connections {
        connections.push(Connection::open(plan.to).await.context("connecting")?);
    }
    let start = Instant::now();
    let measure_from = start + plan.warmup;
    let end = measure_from + plan.window;
    let course = Rc::new(Course { start, measure_from, end, next: Cell::new(0), ran_out: Cell::new(None) });
    let plan = Rc::new(plan);
    let work =
        connections.into_iter().map(|connection| send_all(connection, Rc::clone(&plan), Rc::clone(&course)));
    let tasks: Vec<_> = work.map(tokio::task::spawn_local).collect();
    let mut seen = Vec::new();
    for task in tasks {
        seen.push(task.await?);
    }
    Ok(sum(&course, seen))
}

async fn send_all(mut connection: Connection, plan: Rc<Plan>, course: Rc<Course>) -> Seen {
    let (latency, ok_at) = (histogram(), Vec::new());
    let mut seen = Seen { latency, ok_at, refused: BTreeMap::new(), wrong: 0, broken: None };
    while let Some((at, due)) = course.next(&plan) {
        if let Some(due) = due {
            sleep_until(due.into()).await;
        }
        let from = due.unwrap_or_else(Instant::now);
        let (status, body) = match timeout(TIMEOUT, connection.send(plan.requests.get(at))).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Seen { broken: Some(error.to_string()), ..seen },
            Err(_) => return Seen { broken: Some(format!("no response in {TIMEOUT:?}")), ..seen },
        };
        let now = Instant::now();
        if status != 200 {
            *seen.refused.entry(status).or_default() += 1;
            continue;
        }
        if !plan.requests.is_answered_by(at, body) {
            seen.wrong += 1;
            continue;
        }
        seen.ok_at.push((at, now));
        if from >= course.measure_from && now <= course.end {
            seen.latency.saturating_record(u64::try_from((now - from).as_micros()).unwrap_or(u64::MAX));
        }
    }
    seen
}

fn sum(course: &Course, all: Vec<Seen>) -> Outcome {
    let end = course.ran_out.get().unwrap_or(course.end).min(course.end);
    let mut outcome = Outcome {
        ok: 0,
        accepted: 0,
        refused: BTreeMap::new(),
        wrong: 0,
        broken: None,
        window: end.saturating_duration_since(course.measure_from).max(Duration::from_millis(1)),
        latency: histogram(),
        answered: Vec::new(),
    };
    for seen in all {
        outcome.latency += seen.latency;
        let in_window = seen.ok_at.iter().filter(|(_, at)| (course.measure_from..=end).contains(at)).count();
        outcome.ok += in_window as u64;
        outcome.accepted += seen.ok_at.len() as u64;
        outcome.answered.extend(seen.ok_at);
        outcome.wrong += seen.wrong;
        for (status, count) in seen.refused {
            *outcome.refused.entry(status).or_default() += count;
        }
        if let Some(why) = seen.broken {
            outcome.broken.get_or_insert((0, why)).0 += 1;
        }
    }
    outcome
}

/// Microseconds up to a minute, with three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are valid")
}
