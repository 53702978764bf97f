//! The queue of each backend beside the client of the backend alone, measured by `inside queue`; then two processes beside one on a
//! shared queue.

mod processes;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use crate::options::Options;
use crate::process::Process;
use crate::report::{Report, Row, Target, Unit};
use crate::series::Spread;
use crate::work::Work;

const PART: &str = "queue";
const TIMEOUT: Duration = Duration::from_mins(30);

/// The output of `inside queue`.
#[derive(Debug, Deserialize)]
struct Found {
    embedded: Sides,
    redis: Sides,
    rabbitmq: Sides,
    versions: BTreeMap<String, String>,
}

/// The turns of one backend, in the order of the rounds.
#[derive(Debug, Deserialize)]
struct Sides {
    kinsync: Vec<Turn>,
    raw: Vec<Turn>,
}

#[derive(Debug, Deserialize)]
struct Turn {
    /// Stored entries per second.
    rate: f64,
    /// Milliseconds until an entry was acknowledged.
    p50: f64,
    p99: f64,
    /// CPU time of the client per stored entry in microseconds.
    cpu: f64,
    /// Time from claim to ack per entry in microseconds.
    consume: f64,
}

/// Measures the queues, then the processes.
pub async fn measure(work: &Work, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let found = inside(work, options).await?;
    for (name, version) in found.versions {
        report.machine().version(&name, version);
    }
    report_rows(
        "embedded",
        "a table of SQLite, one transaction per window",
        &found.embedded,
        options,
        report,
    );
    report_rows("Redis", "pipelined XADD; XREADGROUP and XACK", &found.redis, options, report);
    report_rows("RabbitMQ", "confirmed publishes; consume and ack of many", &found.rabbitmq, options, report);
    processes::measure(work, options, report).await
}

async fn inside(work: &Work, options: &Options) -> anyhow::Result<Found> {
    let program = std::env::current_exe()?.with_file_name("inside");
    anyhow::ensure!(program.is_file(), "no `{}`: run bench/run, which builds it", program.display());
    let folder = work.folder("queue")?;
    let mut command = Command::new(program);
    command.arg("queue").arg(&folder).arg(options.rounds.to_string());
    command.args([options.entries, options.outstanding, options.payload].map(|size| size.to_string()));
    // The servers keep their files there: on the disk of the project.
    command.env("TMPDIR", &folder);
    let log = work.path().join("queue.log");
    let printed = Process::start("inside", &command, &log)?.finish(TIMEOUT).await?;
    let line = printed.lines().last().unwrap_or_default();
    let found = serde_json::from_str(line).with_context(|| format!("reading {printed:?}"))?;
    fs::remove_dir_all(folder)?;
    Ok(found)
}

fn report_rows(backend: &str, client: &str, sides: &Sides, options: &Options, report: &mut Report) {
    let Options { entries, outstanding, payload, .. } = options;
    let of =
        |turns: &[Turn], value: fn(&Turn) -> f64| Spread::of(&turns.iter().map(value).collect::<Vec<_>>());
    let each = |combine: fn(&Turn, &Turn) -> f64| {
        let pairs = sides.kinsync.iter().zip(&sides.raw);
        Spread::of(&pairs.map(|(ours, raw)| combine(ours, raw)).collect::<Vec<_>>())
    };
    let row = |what: String, Spread { median, min, max }: Spread, unit| {
        Row::new(PART, format!("{backend}: {what}"), median, unit).spread(min, max)
    };
    let stored = |what: String, turns: &[Turn]| {
        let median = |value: fn(&Turn) -> f64| of(turns, value).median;
        let (p50, p99, cpu) = (median(|turn| turn.p50), median(|turn| turn.p99), median(|turn| turn.cpu));
        let latency = format!("p50 {p50:.2}, p99 {p99:.2} ms; CPU of the client {cpu:.1} µs each");
        row(what, of(turns, |turn| turn.rate), Unit::PerSecond).note(latency)
    };
    let load = format!("{entries} entries of {payload} B, {outstanding} outstanding");
    report.add(stored("acknowledged deliveries".into(), &sides.kinsync).note(load));
    report.add(stored(format!("the client alone: {client}"), &sides.raw));
    let ratio =
        row("deliveries / the client alone".into(), each(|ours, raw| ours.rate / raw.rate), Unit::Ratio);
    report.add(ratio.target(Target::AtLeast(0.6)));
    let ratio = row("p99 / the client alone".into(), each(|ours, raw| ours.p99 / raw.p99), Unit::Ratio);
    report.add(ratio);
    let consumed =
        row("claim to ack, per entry".into(), of(&sides.kinsync, |turn| turn.consume), Unit::Micros);
    let alone = of(&sides.raw, |turn| turn.consume).median;
    report.add(consumed.note(format!("the client alone {alone:.2} µs")));
    let beyond = each(|ours, raw| ours.consume - raw.consume);
    report.add(row("claim to ack, added to the client alone".into(), beyond, Unit::Micros));
}
