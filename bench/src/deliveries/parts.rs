//! CPU time per acknowledged delivery while MongoDB is unavailable, beside the sum of the parts that every server needs for it: the
//! CPU time of the bare server per request, the verification, and a row in SQLite with its share of the sync. The program `inside`
//! measures the last two without kinsync.

use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use super::{PART, Scheme};
use crate::options::Options;
use crate::process::Process;
use crate::report::{Report, Row, Target, Unit};
use crate::series::{Series, Spread};
use crate::work::Work;

const TIMEOUT: Duration = Duration::from_mins(5);

/// The output of `inside parts`: microseconds for each round.
#[derive(Debug, Deserialize)]
struct Found {
    hmac: Vec<f64>,
    rsa: Vec<f64>,
    append: Vec<f64>,
}

/// Measures the parts and reports the ratios, the main result of this part of the bench.
pub async fn add_rows(
    work: &Work,
    options: &Options,
    hmac: &Scheme,
    tokens: &Scheme,
    report: &mut Report,
) -> anyhow::Result<()> {
    for (name, scheme, most) in [("JWT", tokens, 1.15), ("HMAC", hmac, 1.3)] {
        let group = Spread::of(&scheme.groups).median;
        let found = inside(work, options, [hmac.body, tokens.body], group).await?;
        let verification = if name == "JWT" { &found.rsa } else { &found.hmac };
        let verification = Spread::of(verification).median;
        let append = Spread::of(&found.append).median;
        let Scheme { alone, baseline, durable, kinsync, .. } = scheme;
        let of_parts = |series: &Series, what: &str| {
            let Spread { median, min, max } = series.cpu_over(baseline, verification + append);
            let row = Row::new(PART, format!("{name}: CPU per {what}, / its parts"), median, Unit::Ratio);
            row.spread(min, max).unless(series.problem().or_else(|| baseline.problem()))
        };
        let parts = format!("request as (b), verification {verification:.1} µs, row {append:.1} µs");
        let row = of_parts(alone, "delivery, MongoDB unavailable").target(Target::AtMost(most)).note(parts);
        report.add(row);
        report.add(of_parts(durable, "delivery of (d)"));
        let Spread { median, min, max } = alone.cpu_over(durable, 0.0);
        let what = format!("{name}: CPU per delivery, MongoDB unavailable, / that of (d)");
        let row = Row::new(PART, what, median, Unit::Ratio).spread(min, max);
        report.add(row.unless(alone.problem().or_else(|| durable.problem())));
        let row = |series: &Series, what| series.cpu_row(&format!("{name}: CPU per {what}"));
        let shared = |groups: &[f64]| format!("{:.1} deliveries per sync", Spread::of(groups).median);
        report.add(row(alone, "delivery, MongoDB unavailable").note(shared(&scheme.groups)));
        report.add(row(durable, "delivery of (d)").note(shared(&scheme.durable_groups)));
        report.add(row(baseline, "request of (b)"));
        report.add(row(kinsync, "delivery, with MongoDB and the projector"));
    }
    Ok(())
}

async fn inside(
    work: &Work,
    options: &Options,
    [body, token]: [usize; 2],
    group: f64,
) -> anyhow::Result<Found> {
    let program = std::env::current_exe()?.with_file_name("inside");
    anyhow::ensure!(program.is_file(), "no `{}`: run bench/run, which builds it", program.display());
    let folder = work.folder("parts")?;
    let mut command = Command::new(program);
    command.arg("parts").arg(&folder).arg(options.rounds.to_string());
    command.args([body.to_string(), token.to_string(), format!("{:.0}", group.max(1.0))]);
    let log = folder.join("parts.log");
    let printed = Process::start("inside", &command, &log)?.finish(TIMEOUT).await?;
    let line = printed.lines().last().unwrap_or_default();
    let found = serde_json::from_str(line).with_context(|| format!("reading {printed:?}"))?;
    std::fs::remove_dir_all(folder)?;
    Ok(found)
}
