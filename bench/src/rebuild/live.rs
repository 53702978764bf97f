//! A rebuild of lost users while kinsync serves, under a constant load of deliveries: it must not lose or reorder any.
//!
//! All documents of users are deleted. Then kinsync is started and the deliveries begin: updates of all users, not in the
//! order of their times. Meanwhile `kinsync rebuild` derives the users. Afterwards every user must equal its newest
//! event, every event must be in the log once, and `rebuild --verify` must find no difference.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::{Document, doc};

use super::{Done, PART, Run, TIMEOUT, differs};
use crate::drain;
use crate::events::{Event, Kind, Source};
use crate::kinsync::{Kinsync, SECRET, Settings, USERS};
use crate::load::{self, Outcome, Pace, Plan, off_thread};
use crate::report::{Report, Row, Unit};
use crate::requests::Requests;

/// Deliveries per second.
const RATE: f64 = 1000.0;
const CONNECTIONS: usize = 64;
/// Part of the offered rate that has to be answered.
const SUSTAINED: f64 = 0.95;
/// The load continues after the rebuild for at least this long if the rebuild is not slower than expected.
const AFTER: Duration = Duration::from_secs(5);

/// Measures the rebuild. `alone` is the time that it took without load; `events` are those in the log.
pub async fn measure(
    run: &Run<'_>,
    source: &mut Source,
    alone: &Done,
    report: &mut Report,
) -> anyhow::Result<()> {
    // The load, MongoDB and the rebuild share the machine.
    let window = alone.used.took * 8 + AFTER;
    let live = updates(source, run.users() as u64, window);
    let requests = off_thread({
        let live = live.clone();
        move || Arc::new(Requests::hmac(SECRET, &live))
    })
    .await?;

    run.mongod.database(PART).collection::<Document>(USERS).delete_many(doc! {}).await?;
    let settings = Settings { mongodb: Some(run.mongod.uri(PART)), ..Settings::default() };
    let mut kinsync = Kinsync::start(run.work, "rebuild-live", &settings).await?;
    let plan = Plan {
        to: kinsync.address(),
        connections: CONNECTIONS,
        requests,
        cycle: false,
        warmup: Duration::ZERO,
        window,
        pace: Pace::Open(RATE),
    };
    let command = async {
        let done = run.command("rebuild-live-command", &[]).await?;
        anyhow::Ok((done, Instant::now()))
    };
    let load = async { anyhow::Ok((load::run(plan).await?, Instant::now())) };
    let ((outcome, loaded), (rebuilt, ended)) = tokio::try_join!(load, command)?;
    kinsync.drained(TIMEOUT).await?;
    kinsync.stop(TIMEOUT).await?;

    let all: Vec<Event> = run.events.iter().chain(&live).cloned().collect();
    let different = drain::check(run.mongod, PART, &all).await?;
    let verified = run.command("verify-live", &["--verify"]).await?;
    let early = (loaded < ended).then(|| "the load ended before the rebuild".to_owned());
    let problem =
        different.or(early).or_else(|| problem(&outcome)).or_else(|| differs(&verified, all.len(), 0));
    add_rows(run, &rebuilt, &outcome, alone, problem, report);
    Ok(())
}

/// Updates of all users in random order, enough for the window.
fn updates(source: &mut Source, users: u64, window: Duration) -> Vec<Event> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let count = (RATE * window.as_secs_f64()) as u64;
    let mut events: Vec<Event> = (0..count).map(|n| source.event(n % users, Kind::Updated)).collect();
    fastrand::Rng::with_seed(2).shuffle(&mut events);
    events
}

fn problem(outcome: &Outcome) -> Option<String> {
    let slow =
        || (outcome.rate() < RATE * SUSTAINED).then(|| format!("only {:.0}/s were answered", outcome.rate()));
    outcome.problem().or_else(slow)
}

fn add_rows(
    run: &Run<'_>,
    rebuilt: &Done,
    outcome: &Outcome,
    alone: &Done,
    problem: Option<String>,
    report: &mut Report,
) {
    let millis = |quantile: f64| outcome.latency.value_at_quantile(quantile) as f64 / 1000.0;
    let load = format!(
        "{} deliveries answered, {:.0}/s; p50 {:.2}, p99 {:.2}, max {:.0} ms from the time when each was due",
        outcome.accepted,
        outcome.rate(),
        millis(0.5),
        millis(0.99),
        millis(1.0)
    );
    let what = format!("rebuild of {} lost users at {RATE:.0} deliveries/s", run.users());
    let row = Row::new(PART, what, rebuilt.used.took.as_secs_f64(), Unit::Seconds);
    let ratio = rebuilt.used.took.as_secs_f64() / alone.used.took.as_secs_f64();
    let row = row.note(format!("{ratio:.2} times the time without load")).note(rebuilt.note()).note(load);
    let checked = "then compared: all users, the whole log, rebuild --verify";
    report.add(row.note(checked).unless(problem));
}
