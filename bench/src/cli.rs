//! The command line, and the order of the measurements.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser};

use crate::report::Report;
use crate::work::Work;
use crate::{baseline, deliveries, drain, footprint, lag, machine, me, reconcile};

/// Measure kinsync. `bench/run` builds the binaries and runs this command.
#[derive(Debug, Parser)]
#[command(name = "bench", version, args_override_self = true)]
pub enum Command {
    /// Measure everything.
    All(Options),
    /// Measure deliveries per second of kinsync, the baseline and the peer.
    Deliveries(Options),
    /// Measure how fast a full queue is written to MongoDB, compared with the raw driver, and a burst of one user.
    Drain(Options),
    /// Measure the time from the 200 until the change is visible in MongoDB, at half the speed of the drain.
    Lag(Options),
    /// Measure requests of users per second, the cost of the layer, and the memory of users.
    Requests(Options),
    /// Measure a backfill compared with the raw driver, and a reconciliation without changes.
    Reconcile(Options),
    /// Measure memory, cold start and the size of the binary.
    Footprint(Options),
    /// Run the baseline server; used by the other commands.
    #[command(hide = true)]
    Baseline {
        /// Port on 127.0.0.1.
        #[arg(long)]
        port: u16,
        /// File with the response of /api/me.
        #[arg(long)]
        me: Option<PathBuf>,
    },
}

/// Options of a run.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Seconds of each measured window of load.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Number of turns of each server.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=99))]
    pub rounds: u64,
    /// Number of connections.
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// Number of signed JWT deliveries; each takes about 0.3 ms on two cores; kept for the next run.
    #[arg(long, default_value_t = 120_000)]
    pub tokens: usize,
    /// Number of events to drain, of a quarter as many users.
    #[arg(long, default_value_t = 200_000)]
    pub events: usize,
    /// Number of access tokens that are sent once; signed in each run.
    #[arg(long, default_value_t = 20_000)]
    pub cold_tokens: usize,
    /// Number of users in the memory measurement.
    #[arg(long, default_value_t = 1_000_000)]
    pub cached: usize,
    /// Number of users in the reconciliation.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..))]
    pub users: u64,
    /// Number of cold starts.
    #[arg(long, default_value_t = 20)]
    pub starts: usize,
    /// Print JSON instead of the table.
    #[arg(long)]
    pub json: bool,
    /// File for the JSON.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Binary to measure [default: target/release/kinsync].
    #[arg(long, value_name = "FILE")]
    pub kinsync: Option<PathBuf>,
    /// Keep the work folder with the logs of all servers.
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
    /// Runs all measurements. Dropping it stops all servers.
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
        // The completed measurements are still printed.
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
