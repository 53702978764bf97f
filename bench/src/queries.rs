//! Runs `inside queries`, which fills both stores and reads every list, and reports its times.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use crate::mongo::Mongod;
use crate::options::Options;
use crate::process::Process;
use crate::report::{Report, Row, Target, Unit};
use crate::work::Work;

const PART: &str = "queries";
const TIMEOUT: Duration = Duration::from_hours(1);
/// Limit of the 99th percentile in milliseconds.
const LIMIT: f64 = 50.0;

#[derive(Debug, Deserialize)]
struct Found {
    mongodb: BTreeMap<String, Times>,
    embedded: BTreeMap<String, Times>,
}

/// Times in milliseconds.
#[derive(Debug, Deserialize)]
struct Times {
    p50: f64,
    p99: f64,
    max: f64,
    /// Items of a page.
    items: f64,
    queries: u64,
}

/// Fills both stores and measures.
pub async fn measure(work: &Work, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let program = std::env::current_exe()?.with_file_name("inside");
    anyhow::ensure!(program.is_file(), "no `{}`: run bench/run, which builds it", program.display());
    let mongod = Mongod::start(work, "mongod-queries").await?;
    report.machine().version("mongod", mongod.version().await?);
    let mut command = std::process::Command::new(program);
    command.arg("queries").arg(work.folder("queries")?).arg(mongod.uri(PART));
    command.args([options.listed_users.to_string(), options.listed_entries.to_string()]);
    let log = work.path().join("queries.log");
    let printed = Process::start("inside", &command, &log)?.finish(TIMEOUT).await?;
    // The lines before it show the progress.
    let last = printed.lines().last().unwrap_or_default();
    let found: Found = serde_json::from_str(last).with_context(|| format!("reading {printed:?}"))?;
    let sizes = format!("{} users, {} entries", options.listed_users, options.listed_entries);
    for (store, lists) in [("MongoDB", found.mongodb), ("embedded", found.embedded)] {
        for (list, times) in lists {
            let Times { p50, p99, max, items, queries } = times;
            let note = format!("median {p50:.2}, longest {max:.1}; {queries} pages of {items:.0}; {sizes}");
            let row = Row::new(PART, format!("{store}: {list}, 99th percentile"), p99, Unit::Millis);
            report.add(row.target(Target::Below(LIMIT)).note(note));
        }
    }
    Ok(())
}
