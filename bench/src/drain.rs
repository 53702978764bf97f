//! Writes a full queue to MongoDB, compared with the raw driver, and a burst of one user.
//!
//! kinsync accepts the events while MongoDB is stopped. Then MongoDB is started, and the queue depth is read until it is 0.
//! Afterwards each user in MongoDB must equal its newest event, and each event must be in the event log.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::{Document, doc};
use futures_util::TryStreamExt as _;

use crate::events::{Event, Kind, Source};
use crate::kinsync::{EVENTS, Kinsync, SECRET, Settings, USERS};
use crate::load::{self, Pace, Plan, off_thread};
use crate::mongo::Mongod;
use crate::options::Options;
use crate::process::own_cpu;
use crate::report::{Report, Row, Target, Unit};
use crate::requests::Requests;
use crate::work::Work;
use crate::{oplog, raw};

const PART: &str = "drain";
const FILL: Duration = Duration::from_mins(10);
const TIMEOUT: Duration = Duration::from_mins(10);
/// Events of one user in the burst.
const BURST: usize = 10_000;

/// The result of a drain.
#[derive(Debug)]
pub struct Drained {
    /// Events per second after the first progress.
    pub rate: f64,
    /// From the first write of MongoDB to the first progress; mostly the interval of the probes of kinsync.
    resume: Duration,
    /// From the first write of MongoDB until the queue was empty.
    whole: Duration,
    /// User documents written, from the oplog.
    user_writes: u64,
    /// Documents of the event log written, from the oplog.
    log_writes: u64,
    cores: String,
    problem: Option<String>,
}

/// Measures both orders and the burst. Returns the rate of the shuffled order.
pub async fn measure(work: &Work, options: &Options, report: &mut Report) -> anyhow::Result<f64> {
    let mut mongod = Mongod::start(work, "mongod-drain").await?;
    report.machine().version("mongod", mongod.version().await?);
    let mut sustained = f64::NAN;
    for name in ["shuffled", "bursty"] {
        let events = Arc::new(arrange(options, name));
        let drained = drain(work, &mut mongod, name, &events).await?;
        let layout = raw::Layout::of(&mongod, name).await?;
        let bare = layout.without_indexes();
        let both =
            raw::upsert_and_log(&mongod, name, &format!("raw-log-{name}"), &events, layout.clone()).await?;
        let same = raw::upsert(&mongod, &format!("raw-{name}"), &events, layout).await?;
        let least = raw::upsert(&mongod, &format!("raw-bare-{name}"), &events, bare).await?;
        add_rows(name, &events, &drained, &Raw { both, same, least }, report);
        if name == "shuffled" {
            sustained = drained.rate;
        }
    }
    burst(work, &mut mongod, report).await?;
    Ok(sustained)
}

/// Measures only the rate of the shuffled order.
pub async fn sustained(work: &Work, options: &Options, mongod: &mut Mongod) -> anyhow::Result<f64> {
    let drained = drain(work, mongod, "sustained", &Arc::new(arrange(options, "shuffled"))).await?;
    anyhow::ensure!(drained.problem.is_none(), "the drain failed: {:?}", drained.problem);
    Ok(drained.rate)
}

fn arrange(options: &Options, name: &str) -> Vec<Event> {
    let mut events = Source::now().histories(options.events as u64 / 4);
    if name == "shuffled" {
        fastrand::Rng::with_seed(1).shuffle(&mut events);
    }
    events
}

async fn drain(
    work: &Work,
    mongod: &mut Mongod,
    name: &str,
    events: &Arc<Vec<Event>>,
) -> anyhow::Result<Drained> {
    let before = oplog::end(mongod).await?;
    mongod.stop().await?;
    let settings = Settings { mongodb: Some(mongod.uri(name)), ..Settings::default() };
    let mut kinsync = Kinsync::start_without_store(work, name, &settings).await?;
    fill(&kinsync, events).await?;
    let full = kinsync.metrics().await?.queue_depth()?;
    anyhow::ensure!(full == events.len() as u64, "{full} of {} events are queued", events.len());
    let busy = [kinsync.process().cpu()?, Duration::ZERO, own_cpu()?];
    let up = mongod.start_again().await?;
    let (first, left) = kinsync.below(full, TIMEOUT).await?;
    let empty = if left == 0 { first } else { kinsync.drained(TIMEOUT).await? };
    let busy_then = [kinsync.process().cpu()?, mongod.cpu()?, own_cpu()?];
    let share = |at: usize| busy_then[at].saturating_sub(busy[at]).as_secs_f64() / (empty - up).as_secs_f64();
    let whole = empty - up;
    // With few events no progress is seen before the end; then the rate counts from the start.
    let rate = if left == 0 {
        full as f64 / whole.as_secs_f64()
    } else {
        left as f64 / (empty - first).as_secs_f64()
    };
    Ok(Drained {
        rate,
        resume: first - up,
        whole,
        user_writes: oplog::writes_since(mongod, before, &format!("{name}.{USERS}")).await?,
        log_writes: oplog::writes_since(mongod, before, &format!("{name}.{EVENTS}")).await?,
        cores: format!("kinsync {:.2}, mongod {:.2}, bench {:.2}", share(0), share(1), share(2)),
        problem: check(mongod, name, events).await?,
    })
}

/// Delivers all events. Each must be answered 200.
pub async fn fill(kinsync: &Kinsync, events: &Arc<Vec<Event>>) -> anyhow::Result<()> {
    let events = Arc::clone(events);
    let requests = off_thread(move || Arc::new(Requests::hmac(SECRET, events.iter()))).await?;
    let plan = Plan {
        to: kinsync.address(),
        connections: 64,
        requests,
        cycle: false,
        warmup: Duration::ZERO,
        window: FILL,
        pace: Pace::Closed,
    };
    let start = Instant::now();
    let outcome = load::run(plan).await?;
    eprintln!("  {} events were accepted in {:.1?}", outcome.accepted, start.elapsed());
    anyhow::ensure!(
        outcome.problem().is_none(),
        "filling the queue: {}",
        outcome.problem().unwrap_or_default()
    );
    Ok(())
}

/// Returns the difference between MongoDB and the events, if there is one.
pub async fn check(mongod: &Mongod, name: &str, events: &[Event]) -> anyhow::Result<Option<String>> {
    let database = mongod.database(name);
    // What kinsync itself logs, such as the command of an operator, is no delivered event.
    let delivered = doc! { "type": { "$not": { "$regex": r"^kinsync\." } } };
    let logged = database.collection::<Document>(EVENTS).count_documents(delivered).await?;
    if logged != events.len() as u64 {
        return Ok(Some(format!("{logged} of {} events are in the log", events.len())));
    }
    let mut newest = HashMap::new();
    for event in events.iter().filter(|event| event.kind != Kind::Authenticated) {
        let known = newest.entry(event.user_id()).or_insert(event);
        if event.at > known.at {
            *known = event;
        }
    }
    let mut rows = database.collection::<Document>(USERS).find(doc! {}).await?;
    let mut right = 0;
    while let Some(row) = rows.try_next().await? {
        let expect = newest.get(row.get_str("kindeId")?).map(|event| event.last_name.as_str());
        right += usize::from(row.get_str("lastName").ok() == expect);
    }
    Ok((right != newest.len()).then(|| format!("{right} of {} users are correct", newest.len())))
}

/// Events per second of the raw driver.
struct Raw {
    /// It inserts the entries of the log and upserts the users.
    both: f64,
    /// It upserts the users, with the same indexes.
    same: f64,
    /// It upserts the users, with only the index on kindeId.
    least: f64,
}

fn add_rows(name: &str, events: &[Event], drained: &Drained, raw: &Raw, report: &mut Report) {
    let Drained { rate, resume, whole, user_writes, log_writes, cores, problem } = drained;
    let count = events.len() as f64;
    let seconds = count / rate;
    let writes = (user_writes + log_writes) as f64;
    let row = Row::new(PART, format!("{name}: events drained"), *rate, Unit::PerSecond);
    let spent = format!(
        "{whole:.1?} from MongoDB's first write to an empty queue, {resume:.1?} of it before the first event"
    );
    report.add(row.note(spent).note(format!("cores: {cores}")).unless(problem.clone()));
    let row = Row::new(PART, format!("{name}: documents written"), writes / seconds, Unit::PerSecond);
    report.add(row.note(format!(
        "{user_writes} user documents ({:.0}/s), {log_writes} log documents",
        *user_writes as f64 / seconds
    )));
    let with_log = "raw driver, the same entries of the log and upserts";
    let row = Row::new(PART, format!("{name}: {with_log}"), raw.both, Unit::PerSecond);
    report.add(row.note("same indexes and documents"));
    let row = Row::new(PART, format!("{name}: raw driver, upserts alone"), raw.same, Unit::PerSecond);
    report.add(
        row.note(format!("same indexes and documents; with only the index on kindeId {:.0}/s", raw.least)),
    );
    let why = format!("kinsync writes {:.2} documents per event", writes / count);
    let whole_rate = count / whole.as_secs_f64();
    let mut compare = |what: &str, bare: f64, target: f64| {
        let row = Row::new(PART, format!("{name}: events drained / {what}"), rate / bare, Unit::Ratio);
        let whole = format!("including the time to the first event {:.2}x", whole_rate / bare);
        let row = row.target(Target::AtLeast(target)).note(whole).because(why.clone());
        report.add(row.unless(problem.clone()));
    };
    compare("raw log and upserts", raw.both, 0.7);
    compare("raw upserts alone", raw.same, 0.45);
}

/// Measures many events of one user: queued while MongoDB is unavailable, and sent while it is available.
async fn burst(work: &Work, mongod: &mut Mongod, report: &mut Report) -> anyhow::Result<()> {
    let events = |count: usize| {
        let mut source = Source::now();
        Arc::new((0..count).map(|_| source.event(1, Kind::Updated)).collect::<Vec<_>>())
    };
    let drained = drain(work, mongod, "burst-queued", &events(BURST)).await?;
    let what = format!("{BURST} queued events of one user: writes of the user");
    let row = Row::new(PART, what, drained.user_writes as f64, Unit::Count).target(Target::Below(10.0));
    report.add(row.note("from the oplog; one per claimed batch").unless(drained.problem));

    let name = "burst-live";
    let before = oplog::end(mongod).await?;
    let settings = Settings { mongodb: Some(mongod.uri(name)), ..Settings::default() };
    let mut kinsync = Kinsync::start(work, name, &settings).await?;
    let events = events(BURST);
    fill(&kinsync, &events).await?;
    kinsync.drained(TIMEOUT).await?;
    let writes = oplog::writes_since(mongod, before, &format!("{name}.{USERS}")).await?;
    let row = Row::new(PART, "the same, sent while MongoDB is available", writes as f64, Unit::Count);
    report.add(row.note("the batches are smaller").unless(check(mongod, name, &events).await?));
    Ok(())
}
