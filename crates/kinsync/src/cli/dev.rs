//! `kinsync dev`

use std::{path::PathBuf, process::ExitCode, time::Duration};

use super::{exit::Exit, runtime::block_on_all};
use crate::{
    config::value,
    dev::{self, Faults, Options, Style, Until, Verdict},
};

const AFTER_HELP: &str = "\
Examples:
  kinsync dev                                  look at it; c shows lines to try, q ends it
  kinsync dev --faults many --rate 50          on a bad day
  kinsync dev --for 10s --json | tail -1       for programs: the last line is the summary

Nothing leaves this machine, nothing has to be installed, and the settings of the environment are not read.
Exit code 1 says that something that was delivered is not in the store.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// Users to begin with
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    users: u32,
    /// Events per second at Kinde
    #[arg(long, value_name = "N", default_value_t = 5.0, value_parser = rate)]
    rate: f64,
    /// What goes wrong with deliveries, on purpose
    #[arg(long, value_enum, default_value_t)]
    faults: Faults,
    /// The same seed makes the same town
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// kinsync's port; if it is taken, any free one
    #[arg(long, value_name = "PORT", default_value_t = 5000)]
    port: u16,
    /// The local Kinde's port; if it is taken, any free one
    #[arg(long, value_name = "PORT", default_value_t = 5001)]
    emulator_port: u16,
    /// Keep the files here [default: a folder that is removed at the end]
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Keep users in this MongoDB instead; in the database `kinsync_dev`, unless the URI names one
    #[arg(long, value_name = "URI")]
    mongodb_uri: Option<String>,
    /// End after this time
    #[arg(long = "for", value_name = "TIME", value_parser = value::duration)]
    time: Option<Duration>,
    /// End when the users to begin with have arrived
    #[arg(long, conflicts_with = "time")]
    once: bool,
    /// One line a second [default when stdout is no terminal]
    #[arg(long)]
    plain: bool,
    /// One JSON object a line
    #[arg(long, conflicts_with = "plain")]
    json: bool,
    /// What is logged: to kinsync.log in the folder beside the live view, else to stderr [default: info, error]
    #[arg(long, value_name = "FILTER", value_parser = value::log_filter)]
    log: Option<String>,
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
                (true, _) => Until::Settled,
                (false, Some(time)) => Until::Over(time),
                (false, None) => Until::Told,
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
            Verdict::True => Ok(ExitCode::SUCCESS),
            Verdict::Drifted => Ok(ExitCode::FAILURE),
        }
    })
}
