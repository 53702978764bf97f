//! The command line, and the order of the measurements.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;

use crate::options::Options;
use crate::report::Report;
use crate::work::Work;
use crate::{
    baseline, deliveries, drain, durable, existing, footprint, lag, machine, me, queries, queue, rebuild,
    reconcile,
};

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
    /// Measure a rebuild of lost users from the log, compared with the raw driver.
    Rebuild(Options),
    /// Measure the first scan of a cold server on documents of an application, compared with an empty collection.
    Existing(Options),
    /// Measure the lists of users and of the log on both stores.
    Queries(Options),
    /// Measure each queue compared with the client of its backend, and two processes on one queue compared with one.
    Queue(Options),
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
        /// Keep a copy of the response for each token, and find it by the token.
        #[arg(long)]
        by_token: bool,
    },
    /// Run the simplest durable server; used by the other commands.
    #[command(hide = true)]
    Durable {
        /// Port on 127.0.0.1.
        #[arg(long)]
        port: u16,
        /// Folder for the file with the events.
        #[arg(long)]
        folder: PathBuf,
        /// File with the RSA key that has signed the deliveries. Without it they have an HMAC.
        #[arg(long)]
        public_key: Option<PathBuf>,
    },
}

impl Command {
    /// Runs all measurements. Dropping it stops all servers.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Baseline { port, me, by_token } => baseline::serve(port, me, by_token).await,
            Self::Durable { port, folder, public_key } => {
                durable::serve(port, &folder, public_key.as_deref()).await
            }
            Self::All(options) => {
                let all = [
                    Part::Deliveries,
                    Part::Drain,
                    Part::Lag,
                    Part::Requests,
                    Part::Reconcile,
                    Part::Rebuild,
                    Part::Existing,
                    Part::Queries,
                    Part::Queue,
                    Part::Footprint,
                ];
                measure(options, &all).await
            }
            Self::Deliveries(options) => measure(options, &[Part::Deliveries]).await,
            Self::Drain(options) => measure(options, &[Part::Drain]).await,
            Self::Lag(options) => measure(options, &[Part::Lag]).await,
            Self::Requests(options) => measure(options, &[Part::Requests]).await,
            Self::Reconcile(options) => measure(options, &[Part::Reconcile]).await,
            Self::Rebuild(options) => measure(options, &[Part::Rebuild]).await,
            Self::Existing(options) => measure(options, &[Part::Existing]).await,
            Self::Queries(options) => measure(options, &[Part::Queries]).await,
            Self::Queue(options) => measure(options, &[Part::Queue]).await,
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
    Rebuild,
    Existing,
    Queries,
    Queue,
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
            Part::Rebuild => rebuild::measure(&work, &options, &mut report).await,
            Part::Existing => existing::measure(&work, &options, &mut report).await,
            Part::Queries => queries::measure(&work, &options, &mut report).await,
            Part::Queue => queue::measure(&work, &options, &mut report).await,
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
