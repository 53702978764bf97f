//! `kinsync queue stats|list`

use std::process::ExitCode;

use clap::Subcommand;
use kinsync_engine::{
    Clock, SharedQueue,
    internal::queue::{self, Spool, Stats as Counts, embedded},
};
use serde::Serialize;

use super::{exit::Exit, flags::ServerFlags, output, runtime::block_on};
use crate::{
    api::{Time, stats::QueueStats},
    app::start::{open_store, shared_queue},
    config::{Config, Sources},
};

const AFTER_HELP: &str = "\
Reads the file of the queue in the data folder. A server may run on it; nothing is changed. A delivery that the server has \
just processed may still be listed.

With a shared queue (KINSYNC_QUEUE) the file holds the deliveries of this process that wait for it. `stats` adds what is in the \
shared queue; of RabbitMQ that is what no process has taken yet. `list` lists the file alone.

Examples:
  kinsync queue stats
  kinsync queue list --limit 10 --json | jq -r '.[].eventId'";

#[derive(Debug, Subcommand)]
#[command(after_help = AFTER_HELP)]
pub(super) enum Command {
    /// Show how many deliveries are queued and set aside
    Stats(Stats),
    /// List queued deliveries, oldest first, without their payload
    List(List),
}

#[derive(Debug, clap::Args)]
pub(super) struct Stats {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ServerFlags,
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// List at most this many
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ServerFlags,
}

/// A queued delivery, for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Queued {
    id: String,
    event_id: String,
    scheme: String,
    received_at: Time,
    bytes: u64,
}

pub(super) fn run(command: Command) -> Result<ExitCode, Exit> {
    match command {
        Command::Stats(args) => stats(args),
        Command::List(args) => list(args),
    }
}

fn stats(args: Stats) -> Result<ExitCode, Exit> {
    let config = config(args.flags)?;
    let local = embedded::inspect(&config.data_dir).map_err(failed)?;
    let counts = match shared_queue(&config) {
        Some(shared) => block_on(with_shared(&config, shared, local))?,
        None => local,
    };
    output::one(&QueueStats::from(&counts), args.json);
    Ok(ExitCode::SUCCESS)
}

/// Adds what is in the shared queue to what waits for it in the data folder.
async fn with_shared(config: &Config, shared: SharedQueue, local: Counts) -> Result<Counts, Exit> {
    let store = open_store(config).await.map_err(anyhow::Error::from)?;
    let queue = shared.create(&store.store(), &Clock::system()).map_err(failed)?;
    let counted = queue.stats().await;
    queue.close().await;
    let shared = counted.map_err(failed)?;
    let oldest = [shared.oldest_received_at, local.oldest_received_at];
    Ok(Counts {
        depth: shared.depth + local.depth,
        oldest_received_at: oldest.into_iter().flatten().min(),
        bytes: shared.bytes + local.bytes,
        spool: Some(Spool { entries: local.depth, is_shared_queue_available: true }),
        ..shared
    })
}

fn list(args: List) -> Result<ExitCode, Exit> {
    let config = config(args.flags)?;
    let listed = embedded::list(&config.data_dir, args.limit).map_err(failed)?;
    let queued: Vec<Queued> = listed.into_iter().map(Queued::from).collect();
    if args.json {
        output::json(&queued);
        return Ok(ExitCode::SUCCESS);
    }
    let rows = queued.into_iter().map(|entry| {
        [entry.id, entry.event_id, entry.scheme, entry.received_at.to_string(), entry.bytes.to_string()]
    });
    output::table(["ID", "EVENT", "SCHEME", "RECEIVED", "BYTES"], rows);
    Ok(ExitCode::SUCCESS)
}

fn config(flags: ServerFlags) -> Result<Config, Exit> {
    Ok(Config::load(&Sources::of_process(flags.0))?.config)
}

fn failed(error: queue::Error) -> Exit {
    Exit::Failed(error.into())
}

impl From<embedded::Listed> for Queued {
    fn from(listed: embedded::Listed) -> Self {
        let embedded::Listed { id, event_id, scheme, received_at, bytes } = listed;
        Self { id, event_id, scheme, received_at: received_at.into(), bytes }
    }
}
