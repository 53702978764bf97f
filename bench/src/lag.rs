//! Time from the 200 until the change is visible in MongoDB, at half the speed of the drain.
//!
//! One event in twenty is a probe: an update of the last name of a separate user, which appears in a change stream. The
//! histogram of kinsync is shown for comparison. The load is an open loop.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bson::{Document, doc};
use futures_util::StreamExt as _;
use hdrhistogram::Histogram;
use mongodb::change_stream::ChangeStream;
use tokio::time::timeout_at;

use crate::drain;
use crate::events::{Event, Kind, Source};
use crate::kinsync::{Kinsync, SECRET, Settings, USERS};
use crate::load::{self, Outcome, Pace, Plan, histogram, off_thread};
use crate::mongo::Mongod;
use crate::options::Options;
use crate::process::own_cpu;
use crate::report::{Report, Row, Target, Unit};
use crate::requests::Requests;
use crate::work::Work;

const PART: &str = "lag";
const NAME: &str = "lag";
const WARMUP: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_mins(2);
/// Time after the load until the last probe must be visible.
const LATEST: Duration = Duration::from_secs(30);
/// One in this many events is a probe.
const PROBE_EVERY: usize = 20;
const PROBE: &str = "probe-";
/// Number of users that are not probes; they have the lower numbers.
const PEOPLE: u64 = 50_000;

/// Measures the lag. `drained` is the rate of the drain if it was measured before.
pub async fn measure(
    work: &Work,
    options: &Options,
    drained: Option<f64>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut mongod = Mongod::start(work, "mongod-lag").await?;
    report.machine().version("mongod", mongod.version().await?);
    let sustained = match drained.filter(|rate| rate.is_finite()) {
        Some(rate) => rate,
        None => drain::sustained(work, options, &mut mongod).await?,
    };
    let rate = sustained / 2.0;
    let seconds = (WARMUP + options.window()).as_secs_f64();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let count = (rate * seconds) as usize;
    let settings = Settings { mongodb: Some(mongod.uri(NAME)), ..Settings::default() };
    let mut kinsync = Kinsync::start(work, NAME, &settings).await?;

    let mut source = Source::now();
    introduce(&mut kinsync, options, &mut source, count.div_ceil(PROBE_EVERY)).await?;
    let events = mix(&mut source, count);
    let requests = off_thread(move || Arc::new(Requests::hmac(SECRET, &events))).await?;
    let stream = watch(&mongod).await?;
    let deadline = Instant::now() + WARMUP + options.window() + LATEST;
    let plan = plan(&kinsync, options, requests, Pace::Open(rate));
    let before = kinsync.metrics().await?;
    let cpu = || anyhow::Ok([kinsync.process().cpu()?, mongod.cpu()?, own_cpu()?]);
    let busy = cpu()?;
    let probes = appearances(stream, count.div_ceil(PROBE_EVERY), deadline);
    let (outcome, seen) = tokio::join!(load::run(plan), probes);
    let (outcome, seen, busy_then) = (outcome?, seen?, cpu()?);
    let own = kinsync.metrics().await?.lag_p99_since(&before);

    let share = |at: usize| busy_then[at].saturating_sub(busy[at]).as_secs_f64() / seconds;
    let cores = format!("cores: kinsync {:.2}, mongod {:.2}, bench {:.2}", share(0), share(1), share(2));
    tell_load(rate, &outcome, &cores, report);
    tell_lag(&Lags::of(&outcome, &seen, rate), &outcome, own, &cores, report);
    let memory = kinsync.process().memory()?;
    report.add(crate::footprint::memory_row("peak memory, at half the speed of the drain", memory));
    Ok(())
}

/// The lags of all probes after the warm-up.
#[derive(Debug)]
struct Lags {
    micros: Histogram<u64>,
    unseen: u64,
}

impl Lags {
    fn of(outcome: &Outcome, seen: &HashMap<usize, Instant>, rate: f64) -> Self {
        let (mut micros, mut unseen) = (histogram(), 0);
        let warmup = rate * WARMUP.as_secs_f64();
        for (at, answered) in outcome.answered.iter().filter(|(at, _)| at % PROBE_EVERY == 0) {
            let Some(seen) = seen.get(&(at / PROBE_EVERY)) else {
                unseen += 1;
                continue;
            };
            if *at as f64 >= warmup {
                let lag = seen.saturating_duration_since(*answered).as_micros();
                micros.saturating_record(u64::try_from(lag).unwrap_or(u64::MAX));
            }
        }
        Self { micros, unseen }
    }

    fn problem(&self) -> Option<String> {
        let Self { micros, unseen } = self;
        match unseen {
            0 if micros.is_empty() => Some("no probe was seen".to_owned()),
            0 => None,
            _ => Some(format!("{unseen} probes were answered 200 and not visible within {LATEST:?}")),
        }
    }
}

fn millis(of: &Histogram<u64>, quantile: f64) -> f64 {
    of.value_at_quantile(quantile) as f64 / 1000.0
}

fn tell_load(rate: f64, outcome: &Outcome, cores: &str, report: &mut Report) {
    let (p50, p99) = (millis(&outcome.latency, 0.5), millis(&outcome.latency, 0.99));
    let answers = format!(
        "answered {:.0}/s, p50 {p50:.2}, p99 {p99:.2} ms from the time when each was due",
        outcome.rate()
    );
    let row = Row::new(PART, "offered: half of the drain", rate, Unit::PerSecond);
    report.add(row.note(answers).note(cores).unless(outcome.problem()));
}

fn tell_lag(lags: &Lags, outcome: &Outcome, own: Option<f64>, cores: &str, report: &mut Report) {
    let micros = &lags.micros;
    let spread =
        format!("{} probes; p50 {:.1}, max {:.1} ms", micros.len(), millis(micros, 0.5), millis(micros, 1.0));
    let own = own.map_or("no value".to_owned(), |own| format!("p99 ≤ {:.0} ms", own * 1000.0));
    let row = Row::new(PART, "p99 from the 200 to visible", millis(micros, 0.99), Unit::Millis);
    let row = row.target(Target::Below(100.0)).note(spread).note(format!("histogram of kinsync: {own}"));
    report.add(row.because(cores).unless(outcome.problem().or_else(|| lags.problem())));
}

fn plan(kinsync: &Kinsync, options: &Options, requests: Arc<Requests>, pace: Pace) -> Plan {
    Plan {
        to: kinsync.address(),
        connections: options.connections,
        requests,
        cycle: false,
        warmup: WARMUP,
        window: options.window(),
        pace,
    }
}

/// Creates the users of the probes, so that a probe is an update.
async fn introduce(
    kinsync: &mut Kinsync,
    options: &Options,
    source: &mut Source,
    probes: usize,
) -> anyhow::Result<()> {
    let events: Vec<_> =
        (0..probes).map(|probe| source.event(PEOPLE + probe as u64, Kind::Created)).collect();
    let requests = off_thread(move || Arc::new(Requests::hmac(SECRET, &events))).await?;
    let plan =
        Plan { warmup: Duration::ZERO, window: TIMEOUT, ..plan(kinsync, options, requests, Pace::Closed) };
    let problem = load::run(plan).await?.problem();
    anyhow::ensure!(problem.is_none(), "creating the users: {}", problem.unwrap_or_default());
    kinsync.drained(TIMEOUT).await?;
    Ok(())
}

/// Ordinary traffic with a probe at each multiple of `PROBE_EVERY`.
fn mix(source: &mut Source, count: usize) -> Vec<Event> {
    let mut events = source.traffic(PEOPLE, count);
    for (probe, event) in events.iter_mut().step_by(PROBE_EVERY).enumerate() {
        event.user = PEOPLE + probe as u64;
        event.kind = Kind::Updated;
        event.last_name = format!("{PROBE}{probe}");
    }
    events
}

/// A change stream of the probes, filtered by the server. It matches `updateDescription` or, if the document is
/// replaced, `fullDocument`.
async fn watch(mongod: &Mongod) -> anyhow::Result<ChangeStream<Document>> {
    let is_probe = doc! { "$regex": format!("^{PROBE}") };
    let pipeline = [
        doc! { "$match": { "$or": [
            { "updateDescription.updatedFields.lastName": is_probe.clone() },
            { "fullDocument.lastName": is_probe },
        ] } },
        doc! { "$project": { "name": { "$ifNull": ["$updateDescription.updatedFields.lastName", "$fullDocument.lastName"] } } },
    ];
    let users = mongod.database(NAME).collection::<Document>(USERS);
    let stream = users.watch().pipeline(pipeline).await.context("watching the users")?;
    Ok(stream.with_type())
}

/// The time at which each probe was visible. Ends when all were, or at the deadline.
async fn appearances(
    mut stream: ChangeStream<Document>,
    expect: usize,
    deadline: Instant,
) -> anyhow::Result<HashMap<usize, Instant>> {
    let mut seen = HashMap::new();
    while seen.len() < expect {
        let Ok(Some(change)) = timeout_at(deadline.into(), stream.next()).await else { break };
        let now = Instant::now();
        if let Some(probe) = change?.get_str("name").ok().and_then(|name| name.strip_prefix(PROBE)) {
            seen.entry(probe.parse()?).or_insert(now);
        }
    }
    Ok(seen)
}
