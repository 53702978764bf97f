//! `kinsync stats growth|system`

use std::{collections::BTreeMap, process::ExitCode};

use clap::Subcommand;

use super::{client::Client, exit::Exit, flags::ClientFlags, output, runtime::block_on};
use crate::api::projections::{DaysQuery, GrowthDay, GrowthReport, SystemDay, SystemReport};

const GROWTH_HELP: &str = "\
The figures are computed from the event log, by day of receipt in UTC, at the interval KINSYNC_PROJECTIONS_EVERY. A day marked with * \
keeps its figures, because the log no longer contains all of its entries.

Examples:
  kinsync stats growth
  kinsync stats growth --since 2026-01-01 --until 2026-03-31 --json";

const SYSTEM_HELP: &str = "\
The figures are computed from the event log, by day of receipt in UTC. The lag is the time from an event to the receipt of its delivery. \
OLDER counts deliveries of events from more than three days before, which were sent again or imported: the lag leaves them out. Drift is the number of differences from Kinde that scans and checks found.

Example:
  kinsync stats system --json | jq '.days[] | [.day, .lag.p99]'";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show sign-ups, deletions and active users by day
    #[command(after_help = GROWTH_HELP)]
    Growth(Days),
    /// Show deliveries, their lag and drift by day
    #[command(after_help = SYSTEM_HELP)]
    System(Days),
}

#[derive(Debug, clap::Args)]
pub(super) struct Days {
    #[command(flatten)]
    query: DaysQuery,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ClientFlags,
}

pub(super) fn run(command: Command) -> Result<ExitCode, Exit> {
    match command {
        Command::Growth(days) => block_on(growth(days)),
        Command::System(days) => block_on(system(days)),
    }
}

async fn growth(Days { query, json, flags }: Days) -> Result<ExitCode, Exit> {
    let report: GrowthReport = Client::new(flags)?.list(&["stats", "growth"], &query).await?;
    if json {
        output::json(&report);
    } else if report.is_pending {
        say_pending("growth");
    } else {
        output::table(["DAY", "SIGN-UPS", "DELETIONS", "ACTIVE USERS"], report.days.iter().map(growth_row));
    }
    Ok(ExitCode::SUCCESS)
}

fn growth_row(day: &GrowthDay) -> [String; 4] {
    let mark = if day.basis.is_kept { "*" } else { "" };
    let numbers = [day.sign_ups, day.deletions, day.active_users].map(|number| number.to_string());
    let [sign_ups, deletions, active_users] = numbers;
    [format!("{}{mark}", day.day), sign_ups, deletions, active_users]
}

async fn system(Days { query, json, flags }: Days) -> Result<ExitCode, Exit> {
    let report: SystemReport = Client::new(flags)?.list(&["stats", "system"], &query).await?;
    if json {
        output::json(&report);
    } else if report.is_pending {
        say_pending("system");
    } else {
        output::table(
            ["DAY", "DELIVERIES", "LAG P50", "P95", "P99", "OLDER", "DRIFT"],
            report.days.iter().map(system_row),
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn say_pending(projection: &str) {
    let text = format!(
        "not computed yet: a server computes the figures at the interval KINSYNC_PROJECTIONS_EVERY unless it is `off`, and \
         `kinsync rebuild --projection {projection}` at once (with the embedded store, stop the server first)"
    );
    output::say_wrapped(&text, 0);
}

fn system_row(day: &SystemDay) -> [String; 7] {
    let mark = if day.basis.is_kept { "*" } else { "" };
    let seconds =
        |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.3} s"));
    let sum = |counts: &BTreeMap<String, u64>| counts.values().sum::<u64>();
    let causes: Vec<String> = day.drift.iter().map(|(cause, count)| format!("{count} {cause}")).collect();
    let drift = if causes.is_empty() { "-".to_owned() } else { causes.join(", ") };
    let lag = &day.lag;
    [
        format!("{}{mark}", day.day),
        sum(&day.deliveries).to_string(),
        seconds(lag.p50),
        seconds(lag.p95),
        seconds(lag.p99),
        lag.older.to_string(),
        drift,
    ]
}
