//! `kinsync queue stats|list|move`

use std::process::ExitCode;

use anyhow::anyhow;
use clap::Subcommand;
use kinsync_engine::{
    Spool,
    config::SharedQueue,
    internal::queue::{self, Stats as Counts, embedded},
};
use serde::Serialize;

use super::{exit::Exit, flags::ServerFlags, output, queue_move, runtime::block_on};
use crate::{
    api::{Time, stats::QueueStats},
    app::start::shared_queue,
    config::{Config, Sources},
};

const AFTER_HELP: &str = "\
Reads the file of the queue in the data folder. A server may run on it; nothing is changed. A delivery that the server has just processed \
may still be listed.

With a shared queue (KINSYNC_QUEUE) the file holds the deliveries of this process that wait for it. `stats` adds the deliveries in the \
shared queue; in RabbitMQ, only those that no process has taken yet. If the shared queue does not answer, `stats` shows only the file and \
exits with 1. `list` always shows only the file.

Examples:
  kinsync queue stats
  kinsync queue list --limit 10 --json | jq -r '.[].eventId'";

#[derive(Debug, Subcommand)]
#[command(after_help = AFTER_HELP)]
pub(super) enum Command {
    /// Show how many deliveries are queued, and how many dead letters there are
    Stats(Stats),
    /// List queued deliveries, oldest first, without their payload
    List(List),
    /// Move the deliveries of another queue into this one
    Move(queue_move::Move),
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
        Command::Move(args) => queue_move::run(args),
    }
}

/// Without its folder a queue would look empty.
fn exists(config: &Config) -> Result<(), Exit> {
    let folder = &config.data_dir;
    if folder.is_dir() {
        return Ok(());
    }
    Err(anyhow!("there is no data folder {}: set KINSYNC_DATA_DIR as for the server", folder.display())
        .into())
}

fn stats(args: Stats) -> Result<ExitCode, Exit> {
    let config = config(args.flags)?;
    if shared_queue(&config).is_none() {
        exists(&config)?;
    }
    let local = embedded::inspect(&config.data_dir).map_err(failed)?;
    let counted = match shared_queue(&config) {
        Some(shared) => block_on(async { Ok(with_shared(&config, shared, local).await) })?,
        None => Ok(local),
    };
    let (counts, failure) = match counted {
        Ok(counts) => (counts, None),
        Err(failure) => {
            let spool = Spool { entries: local.depth, bytes: local.bytes, ..Spool::default() };
            (Counts { spool: Some(spool), ..local }, Some(failure))
        }
    };
    output::one(&QueueStats::from(&counts), args.json);
    let Some(failure) = failure else { return Ok(ExitCode::SUCCESS) };
    Err(Exit::Failed(anyhow::Error::from(failure).context("these are the deliveries of this machine alone")))
}

/// A build without a client of a shared queue accepts no address of one.
#[cfg(not(any(feature = "rabbitmq", feature = "redis")))]
fn with_shared(
    _: &Config,
    _: SharedQueue,
    local: Counts,
) -> std::future::Ready<Result<Counts, queue::Error>> {
    std::future::ready(Ok(local))
}

/// Adds what is in the shared queue to what waits for it in the data folder.
#[cfg(any(feature = "rabbitmq", feature = "redis"))]
async fn with_shared(config: &Config, shared: SharedQueue, local: Counts) -> Result<Counts, queue::Error> {
    // Used for RabbitMQ only.
    _ = config;
    let counted = match shared {
        #[cfg(feature = "redis")]
        SharedQueue::Redis(redis) => count_in_redis(redis).await,
        #[cfg(feature = "rabbitmq")]
        SharedQueue::Rabbitmq(rabbitmq) => count_in_rabbitmq(config, rabbitmq).await,
        _ => return Ok(local),
    };
    counted.map(|shared| shared.with_spool(&local, true, None))
}

#[cfg(feature = "redis")]
async fn count_in_redis(redis: kinsync_engine::config::Redis) -> Result<Counts, queue::Error> {
    use kinsync_engine::{
        Clock,
        internal::queue::{Queue as _, redis::RedisQueue},
    };

    let queue = RedisQueue::new(redis, Clock::system())?;
    let counted = queue.stats().await;
    queue.close().await;
    counted
}

/// Dead letters are counted where other programs may read the store: a server locks the one in the data folder.
#[cfg(feature = "rabbitmq")]
async fn count_in_rabbitmq(
    config: &Config,
    rabbitmq: kinsync_engine::config::Rabbitmq,
) -> Result<Counts, queue::Error> {
    use kinsync_engine::internal::queue::rabbitmq::{Examined, RabbitmqQueue};

    use crate::app::{self, start::open_store};

    let Examined { entries, .. } = RabbitmqQueue::examine(rabbitmq).await?;
    if entries.is_none() {
        output::complain("the queue in RabbitMQ does not exist yet; `kinsync serve` declares it");
    }
    let counts = Counts { depth: entries.unwrap_or_default(), ..Counts::default() };
    if config.store.mongodb_uri.is_none() {
        output::complain("dead letters are not counted without MONGODB_URI: see `kinsync health`");
        return Ok(counts);
    }
    let unavailable = |error: app::Error| queue::Error::Unavailable {
        hint: "the store has the dead letters".into(),
        source: error.into(),
    };
    let store = open_store(config).await.map_err(unavailable)?;
    Ok(Counts { dead_letters: RabbitmqQueue::dead_letters_in(store.store()).await?, ..counts })
}

fn list(args: List) -> Result<ExitCode, Exit> {
    let config = config(args.flags)?;
    exists(&config)?;
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
    Ok(Config::of_command(&Sources::of_process(flags.0))?)
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
