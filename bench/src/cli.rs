//! The command line, and the order in which things are measured.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser};

use crate::report::Report;
use crate::work::Work;
use crate::{baseline, deliveries, drain, footprint, lag, machine, me, reconcile};

/// Measures kinsync. `bench/run` builds what is needed and calls this.
#[derive(Debug, Parser)]
#[command(name = "bench", version, args_override_self = true)]
pub enum Command {
    /// Everything.
    All(Options),
    /// Deliveries per second, beside the baseline and the peer.
    Deliveries(Options),
    /// From a full queue into MongoDB, beside the raw driver; and a burst for one user.
    Drain(Options),
    /// From the 200 to visible in MongoDB, at half the speed of the drain.
    Lag(Options),
    /// Requests of users per second, beside the baseline and the peer; what the layer costs alone; memory of users.
    Requests(Options),
    /// A tenant into an empty MongoDB, beside the raw driver; and the same tenant again when nothing has changed.
    Reconcile(Options),
    /// Memory, cold start, size of the binary.
    Footprint(Options),
    /// The server that only reads the body and answers 200. Started by the others.
    #[command(hide = true)]
    Baseline {
        /// Where to listen, on 127.0.0.1.
        #[arg(long)]
        port: u16,
        /// What it answers on /api/me.
        #[arg(long)]
        me: Option<PathBuf>,
    },
}

/// What can be chosen.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Seconds of each measured window of load.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Times that each server gets its turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=99))]
    pub rounds: u64,
    /// Connections of the load.
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// Distinct signed tokens for the JWT load; about 0.3 ms each to make on two cores, kept for the next run.
    #[arg(long, default_value_t = 120_000)]
    pub tokens: usize,
    /// Events to drain; a fourth as many users.
    #[arg(long, default_value_t = 200_000)]
    pub events: usize,
    /// Distinct access tokens for the requests that verify; signed anew in each run, as `--tokens`.
    #[arg(long, default_value_t = 20_000)]
    pub cold_tokens: usize,
    /// Users of whom the memory is measured.
    #[arg(long, default_value_t = 1_000_000)]
    pub cached: usize,
    /// Users of the tenant that is loaded and read again.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..))]
    pub users: u64,
    /// Processes started for the cold start.
    #[arg(long, default_value_t = 20)]
    pub starts: usize,
    /// Print JSON instead of the table.
    #[arg(long)]
    pub json: bool,
    /// Also write the JSON here.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The kinsync to measure [default: target/release/kinsync].
    #[arg(long, value_name = "FILE")]
    pub kinsync: Option<PathBuf>,
    /// Keep the work folder, with the logs of all servers.
    #[arg(long)]
    pub keep: bool,
}

impl Options {
    /// The measured window.
    pub fn window(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

impl Command {
    /// Runs to the end, or until dropped.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Baseline { port, me } => baseline::serve(port, me).await,
            Self::All(options) => {
                let all = [
                    Part::Deliveries,
                    Part::Drain,
                    Part::Lag,
                    Part::Requests,
                    Part::Reconcile,
                    Part::Footprint,
                ];
                measure(options, &all).await
            }
            Self::Deliveries(options) => measure(options, &[Part::Deliveries]).await,
            Self::Drain(options) => measure(options, &[Part::Drain]).await,
            Self::Lag(options) => measure(options, &[Part::Lag]).await,
            Self::Requests(options) => measure(options, &[Part::Requests]).await,
            Self::Reconcile(options) => measure(options, &[Part::Reconcile]).await,
            Self::Footprint(options) => measure(options, &[Part::Footprint]).await,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Deliveries,
    Drain,
    Lag,
    Requests,
    Reconcile,
    Footprint,
}

async fn measure(options: Options, parts: &[Part]) -> anyhow::Result<()> {
    let work = Work::new(&options)?;
    let mut report = Report::new(machine::facts(&work)?);
    let mut drained = None;
    for part in parts {
        eprintln!("— {part:?}");
        let done = match part {
            Part::Deliveries => deliveries::measure(&work, &options, &mut report).await,
            Part::Drain => {
                drain::measure(&work, &options, &mut report).await.map(|rate| drained = Some(rate))
            }
            Part::Lag => lag::measure(&work, &options, drained, &mut report).await,
            Part::Requests => me::measure(&work, &options, &mut report).await,
            Part::Reconcile => reconcile::measure(&work, &options, &mut report).await,
            Part::Footprint => footprint::measure(&work, &options, &mut report).await,
        };
        // What was measured before is still worth its print.
        if let Err(error) = done {
            eprintln!("bench: {part:?} failed: {error:#}");
            report.failed(&format!("{part:?}").to_lowercase(), &error);
        }
    }
    report.finish(machine::fsync(work.path())?);
    if let Some(out) = &options.out {
        std::fs::write(out, report.json()?).with_context(|| format!("writing `{}`", out.display()))?;
    }
    print(&report, options.json)?;
    anyhow::ensure!(!report.has_failures(), "a part could not be measured");
    Ok(())
}

fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", report.json()?);
    } else {
        println!("{}", report.table());
    }
    Ok(())
}
