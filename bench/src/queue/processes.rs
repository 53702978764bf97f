//! Two processes of kinsync beside one, on one queue in Redis and one MongoDB.
//!
//! Two load generators send as fast as they are answered, each to a process of its own or both to the only one. A turn ends when every
//! accepted event is in the log of events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bson::{Document, doc};
use futures_util::future::try_join_all;

use super::PART;
use crate::events::Source;
use crate::kinsync::{EVENTS, Kinsync, SECRET, Settings};
use crate::load::{self, Outcome, Pace, Plan, off_thread};
use crate::mongo::Mongod;
use crate::options::Options;
use crate::process::own_cpu;
use crate::redis::Redis;
use crate::report::{Report, Row, Unit};
use crate::requests::Requests;
use crate::series::Spread;
use crate::work::Work;

const WARMUP: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_mins(5);
const POLL: Duration = Duration::from_millis(20);
/// Load generators.
const GENERATORS: usize = 2;
/// Users of the events.
const PEOPLE: u64 = 50_000;
/// Events that are prepared for each generator and second; the load ends earlier when they are used up.
const PER_SECOND: u64 = 20_000;

/// The result of one turn.
#[derive(Debug)]
struct Turn {
    /// Accepted events per second.
    accepted: f64,
    /// Events per second from the first request until the last accepted event was in the log.
    applied: f64,
    /// Milliseconds.
    p99: f64,
    /// Used cores, by process.
    cores: [(&'static str, f64); 4],
    problem: Option<String>,
}

/// Measures one and two processes, turn by turn; each round starts with the other.
pub async fn measure(work: &Work, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let mongod = Mongod::start(work, "mongod-queue").await?;
    report.machine().version("mongod", mongod.version().await?);
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        let turn = async |count: usize| {
            let name = format!("processes-{round}-{count}");
            let turn = turn(work, options, &mongod, &name, count).await;
            turn.with_context(|| format!("{count} processes in round {round}"))
        };
        if round % 2 == 0 {
            two.push(turn(2).await?);
            one.push(turn(1).await?);
        } else {
            one.push(turn(1).await?);
            two.push(turn(2).await?);
        }
    }
    report_rows(&one, &two, report);
    Ok(())
}

async fn turn(
    work: &Work,
    options: &Options,
    mongod: &Mongod,
    name: &str,
    count: usize,
) -> anyhow::Result<Turn> {
    let redis = Redis::start(work, &format!("redis-{name}")).await?;
    let settings =
        Settings { mongodb: Some(mongod.uri(name)), queue: Some(redis.url()), ..Settings::default() };
    let mut processes = Vec::new();
    for number in 0..count {
        processes.push(Kinsync::start(work, &format!("{name}-{number}"), &settings).await?);
    }
    let plans = plans(options, &processes).await?;
    let cpu = || {
        let kinsync: Duration = processes.iter().map(|one| one.process().cpu()).sum::<anyhow::Result<_>>()?;
        anyhow::Ok([own_cpu()?, kinsync, redis.process().cpu()?, mongod.cpu()?])
    };
    let (before, start) = (cpu()?, Instant::now());
    let outcomes = try_join_all(plans.into_iter().map(load::run)).await?;
    let accepted = outcomes.iter().map(|outcome| outcome.accepted).sum();
    until_logged(mongod, name, accepted).await?;
    let (after, took) = (cpu()?, start.elapsed().as_secs_f64());
    let share = |at: usize| after[at].saturating_sub(before[at]).as_secs_f64() / took;
    let logged = log(mongod, name).count_documents(doc! {}).await?;
    let wrong = (logged != accepted).then(|| format!("{logged} of {accepted} events are in the log"));
    let mut latency = load::histogram();
    for outcome in &outcomes {
        latency += &outcome.latency;
    }
    mongod.database(name).drop().await?;
    Ok(Turn {
        accepted: outcomes.iter().map(Outcome::rate).sum(),
        applied: accepted as f64 / took,
        p99: latency.value_at_quantile(0.99) as f64 / 1000.0,
        cores: [("load", share(0)), ("kinsync", share(1)), ("Redis", share(2)), ("mongod", share(3))],
        problem: outcomes.iter().find_map(Outcome::problem).or(wrong),
    })
}

/// One plan for each generator; together they have as many connections as that of the other parts.
async fn plans(options: &Options, processes: &[Kinsync]) -> anyhow::Result<Vec<Plan>> {
    let count = usize::try_from((WARMUP.as_secs() + options.seconds) * PER_SECOND)?;
    let requests = off_thread(move || {
        let events = Source::now().traffic(PEOPLE, GENERATORS * count);
        events.chunks(count).map(|events| Arc::new(Requests::hmac(SECRET, events))).collect::<Vec<_>>()
    });
    let plan = |(generator, requests): (usize, Arc<Requests>)| Plan {
        to: processes[generator % processes.len()].address(),
        connections: options.connections.div_ceil(GENERATORS),
        requests,
        cycle: false,
        warmup: WARMUP,
        window: options.window(),
        pace: Pace::Closed,
    };
    Ok(requests.await?.into_iter().enumerate().map(plan).collect())
}

fn log(mongod: &Mongod, database: &str) -> mongodb::Collection<Document> {
    mongod.database(database).collection(EVENTS)
}

async fn until_logged(mongod: &Mongod, database: &str, accepted: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        // From the metadata of the collection: as cheap with many entries as with few.
        let logged = log(mongod, database).estimated_document_count().await?;
        if logged >= accepted {
            return Ok(());
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "{logged} of {accepted} events were in the log after {TIMEOUT:?}"
        );
        tokio::time::sleep(POLL).await;
    }
}

fn report_rows(one: &[Turn], two: &[Turn], report: &mut Report) {
    let problem = one.iter().chain(two).find_map(|turn| turn.problem.clone());
    let of = |turns: &[Turn], value: &dyn Fn(&Turn) -> f64| {
        Spread::of(&turns.iter().map(value).collect::<Vec<_>>())
    };
    for (what, turns) in [("one process", one), ("two processes", two)] {
        let cores = |at: usize| {
            let share = of(turns, &|turn| turn.cores[at].1).median;
            format!("{} {share:.2}", turns[0].cores[at].0)
        };
        let cores = [0, 1, 2, 3].map(cores).join(", ");
        let (accepted, applied) = (of(turns, &|turn| turn.accepted), of(turns, &|turn| turn.applied));
        let p99 = of(turns, &|turn| turn.p99).median;
        let row = Row::new(PART, format!("{what}: deliveries"), accepted.median, Unit::PerSecond);
        report.add(row.spread(accepted.min, accepted.max).note(format!("p99 {p99:.2} ms")));
        let row = Row::new(PART, format!("{what}: events in MongoDB"), applied.median, Unit::PerSecond);
        report.add(
            row.spread(applied.min, applied.max).note(format!("cores: {cores}")).unless(problem.clone()),
        );
    }
    let mut factor = |what: &str, value: fn(&Turn) -> f64| {
        let factors: Vec<_> = two.iter().zip(one).map(|(two, one)| value(two) / value(one)).collect();
        let Spread { median, min, max } = Spread::of(&factors);
        let row = Row::new(PART, format!("two processes / one: {what}"), median, Unit::Ratio);
        report.add(row.spread(min, max).unless(problem.clone()));
    };
    factor("deliveries", |turn| turn.accepted);
    factor("events in MongoDB", |turn| turn.applied);
}
