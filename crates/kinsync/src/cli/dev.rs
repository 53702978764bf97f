//! `kinsync dev`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use tracing_subscriber::filter::Targets;

use super::{exit::Exit, runtime::block_on_all};
use crate::{
    config::value,
    dev::{self, Faults, Options, Style, Until, Verdict},
};

const AFTER_HELP: &str = "\
Examples:
  kinsync dev
  kinsync dev --faults many --rate 50
  kinsync dev --for 10s --json | tail -1   (the last line is the summary)

Runs on this machine only, needs nothing installed, and does not read the settings of the environment.

Exit codes: 0 done, 1 a delivered event is missing in the store, or the run failed.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// Number of users at the start
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    users: u32,
    /// Events per second at Kinde
    #[arg(long, value_name = "N", default_value_t = 5.0, value_parser = rate)]
    rate: f64,
    /// Faults to inject into deliveries
    #[arg(long, value_enum, default_value_t)]
    faults: Faults,
    /// Seed of the generated users and events
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Port of kinsync; any free port if this one is in use
    #[arg(long, value_name = "PORT", default_value_t = 5000)]
    port: u16,
    /// Port of the local Kinde; any free port if this one is in use
    #[arg(long, value_name = "PORT", default_value_t = 5001)]
    emulator_port: u16,
    /// Folder for the queue and the store [default: a temporary folder]
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Store users in MongoDB; in the database `kinsync_dev` unless the URI names one
    #[arg(long, value_name = "URI")]
    mongodb_uri: Option<String>,
    /// Stop after this time
    #[arg(long = "for", value_name = "TIME", value_parser = value::duration)]
    time: Option<Duration>,
    /// Stop as soon as the initial users are in the store
    #[arg(long, conflicts_with = "time")]
    once: bool,
    /// Print one line per second [default when stdout is not a terminal]
    #[arg(long)]
    plain: bool,
    /// Print JSON lines
    #[arg(long, conflicts_with = "plain")]
    json: bool,
    /// Log filter; the live view logs to `kinsync.log` in the data folder, the others to stderr [default: info in the
    /// live view, else error]
    #[arg(long, value_name = "FILTER", value_parser = value::log_filter)]
    log: Option<Targets>,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = value::parsed::<f64>(text, "a number")?;
    if (0.0..=1000.0).contains(&rate) { Ok(rate) } else { Err("must be from 0 to 1000".into()) }
}

impl From<Args> for Options {
    fn from(args: Args) -> Self {
        Self {
            users: args.users as usize,
            rate: args.rate,
            faults: args.faults,
            seed: args.seed,
            port: args.port,
            emulator_port: args.emulator_port,
            data_dir: args.data_dir,
            mongodb_uri: args.mongodb_uri,
            until: match (args.once, args.time) {
                (true, _) => Until::Delivered,
                (false, Some(time)) => Until::Elapsed(time),
                (false, None) => Until::Interrupted,
            },
            style: match (args.json, args.plain) {
                (true, _) => Style::Json,
                (false, true) => Style::Plain,
                (false, false) => Style::of_stdout(),
            },
            log: args.log,
        }
    }
}

pub(super) fn run(args: Args) -> Result<ExitCode, Exit> {
    block_on_all(async {
        match dev::run(args.into()).await? {
            Verdict::Consistent => Ok(ExitCode::SUCCESS),
            Verdict::Inconsistent => Ok(ExitCode::FAILURE),
        }
    })
}
