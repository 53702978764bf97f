//! Runs `inside`, which measures the layer, the verification of a token and the memory of a user in one process with
//! kinsync's crates, and reports its results.

use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use crate::options::Options;
use crate::process::Process;
use crate::report::{Report, Row, Target, Unit};
use crate::series::Spread;
use crate::work::Work;

/// The name of the part.
pub const PART: &str = "requests";
const TIMEOUT: Duration = Duration::from_mins(15);
const MIB: f64 = 1024.0 * 1024.0;

/// The output of `inside`. Times are medians of single calls in microseconds, one for each round.
#[derive(Debug, Deserialize)]
struct Found {
    layer: Layer,
    token: Token,
    memory: Memory,
}

#[derive(Debug, Deserialize)]
struct Layer {
    plain: Vec<f64>,
    empty: Vec<f64>,
    kinsync: Vec<f64>,
    /// Allocations of one call beyond those of the plain handler.
    empty_allocations: f64,
    kinsync_allocations: f64,
    calls: usize,
}

#[derive(Debug, Deserialize)]
struct Token {
    new: Vec<f64>,
    known: Vec<f64>,
}

/// Allocated and resident memory in bytes.
#[derive(Debug, Deserialize)]
struct Memory {
    users: usize,
    tokens_live: f64,
    tokens_rss: f64,
    users_live: f64,
    users_rss: f64,
    /// The limit in the second measurement.
    bound: usize,
    bounded_tokens_live: f64,
    bounded_users_live: f64,
    /// Number of tokens that were verified in the second measurement.
    new_tokens: usize,
}

/// Runs `inside` and reports its results.
pub async fn measure(work: &Work, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let program = std::env::current_exe()?.with_file_name("inside");
    anyhow::ensure!(program.is_file(), "no `{}`: run bench/run, which builds it", program.display());
    let mut command = std::process::Command::new(program);
    command.arg(work.folder("inside")?).args([options.rounds.to_string(), options.cached.to_string()]);
    eprintln!("  inside: the layer, and the memory of {} users", options.cached);
    let printed =
        Process::start("inside", &command, &work.path().join("inside.log"))?.finish(TIMEOUT).await?;
    let found: Found = serde_json::from_str(&printed).with_context(|| format!("reading {printed:?}"))?;
    tell_layer(&found.layer, report);
    tell_token(&found.token, report);
    tell_memory(&found.memory, report);
    Ok(())
}

fn tell_layer(layer: &Layer, report: &mut Report) {
    let row = |what: &str, times: &[f64]| added(what, times, &layer.plain);
    let calls = format!("medians of {} calls, compared with a plain axum handler", layer.calls);
    let ours = row("the layer, added to a call", &layer.kinsync).target(Target::AtMost(5.0));
    report.add(ours.note(calls));
    let empty = "of it, the cost of any axum layer (an empty one)";
    report.add(row(empty, &layer.empty));
    let count = |what: &str, value| Row::new(PART, what, value, Unit::Exact);
    report.add(count("allocations added to a call by the layer", layer.kinsync_allocations));
    report.add(count("of them, by axum for any layer", layer.empty_allocations));
}

fn added(what: &str, times: &[f64], plain: &[f64]) -> Row {
    let beyond: Vec<f64> = times.iter().zip(plain).map(|(time, plain)| time - plain).collect();
    let Spread { median, min, max } = Spread::of(&beyond);
    Row::new(PART, what, median, Unit::Micros).spread(min, max)
}

fn tell_token(token: &Token, report: &mut Report) {
    for (what, times) in
        [("verification of a new token", &token.new), ("verification of a known token", &token.known)]
    {
        let Spread { median, min, max } = Spread::of(times);
        report.add(Row::new(PART, what, median, Unit::Micros).spread(min, max));
    }
}

fn tell_memory(memory: &Memory, report: &mut Report) {
    let Memory { users, bound, .. } = memory;
    let each = |what: &str, live: f64, rss: f64| {
        let (total, rss) = (live / MIB, rss / MIB);
        let row = Row::new(PART, what, live / *users as f64, Unit::Bytes);
        row.note(format!("{users}: {total:.0} MiB allocated, {rss:.0} MiB more resident"))
    };
    report.add(each("memory of a cached user", memory.users_live, memory.users_rss));
    report.add(each("memory of a known token", memory.tokens_live, memory.tokens_rss));
    let bounded = |what: &str, live: f64, full: f64, came: usize| {
        let share = format!("{:.0} MiB with KINSYNC_CACHED_USERS={bound}, after {came}", live / MIB);
        // A tenth, and some memory for the tables.
        Row::new(PART, what, live / full, Unit::Ratio).target(Target::Below(0.15)).note(share)
    };
    let what = "memory of users at a tenth of the setting";
    report.add(bounded(what, memory.bounded_users_live, memory.users_live, *users));
    let what = "memory of tokens at a tenth of the setting";
    report.add(bounded(what, memory.bounded_tokens_live, memory.tokens_live, memory.new_tokens));
}
