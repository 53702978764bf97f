//! `kinsync queue move`

use std::{path::Path, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use futures_util::future::join_all;
use kinsync_engine::{
    Clock, Queue,
    internal::{
        queue::{
            self, Claimed, EntryId,
            embedded::{self, EmbeddedQueue},
        },
        supervisor::Supervisor,
    },
};
use secrecy::ExposeSecret as _;
use serde::Serialize;
use tokio::time::timeout;

use super::{exit::Exit, flags::ServerFlags, output, runtime::block_on_all};
use crate::{
    app::start::{open_store, shared_queue},
    config::{Config, QueueKind, Sources, value},
    plural::counted,
};

const AFTER_HELP: &str = "\
Empties a queue that no server will use any more into the queue of this configuration: the data folder of a server that does not run \
again, or a queue in Redis or RabbitMQ after a change of KINSYNC_QUEUE or KINSYNC_QUEUE_PREFIX. Stop the servers on it first.

A delivery is removed from the one queue when it is durable in the other, so an interrupted move loses nothing: run it again. Dead \
letters stay where they are; their number is printed.

Examples:
  kinsync queue move --from /var/lib/kinsync-2
  kinsync queue move --from redis://queue.internal:6379 --from-prefix staging
  kinsync queue move --from @/run/secrets/former-queue    # with the address";

/// Entries that move at the same time.
const BATCH: usize = 256;
/// Lease of an entry that moves.
const LEASE: Duration = Duration::from_mins(1);
/// Longest wait for the next entries, before the remaining ones are counted.
const NEXT: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Move {
    /// The queue to empty: a data folder, an address of Redis or RabbitMQ, or @FILE with one of them
    #[arg(long, value_name = "FOLDER|URL|@FILE")]
    from: String,
    /// Start of the names in the shared queue to empty
    #[arg(long, value_name = "PREFIX", default_value = "kinsync")]
    from_prefix: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ServerFlags,
}

/// The result, for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Moved {
    /// Deliveries that are in the other queue now.
    moved: u64,
    /// Dead letters that stay in the emptied queue.
    dead_letters: u64,
}

pub(super) fn run(args: Move) -> Result<ExitCode, Exit> {
    let to = Config::load(&Sources::of_process(args.flags.0))?.config;
    let from = source(&args.from, &args.from_prefix, &to)?;
    let moved = block_on_all(async {
        let supervisor = Supervisor::default();
        let (from, to) = (open(&from, &supervisor).await?, open(&to, &supervisor).await?);
        let moved = move_all(&*from, &*to).await;
        from.close().await;
        to.close().await;
        supervisor.stop().await;
        moved
    })?;
    if args.json {
        output::json(&moved);
        return Ok(ExitCode::SUCCESS);
    }
    output::say(&format!("{} moved", counted(moved.moved, "delivery", "deliveries")));
    if moved.dead_letters > 0 {
        let letters = counted(moved.dead_letters, "dead letter stays", "dead letters stay");
        output::say(&format!("{letters} there: start a server on that queue to list or retry them"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the configuration with the queue to empty in place of its own.
fn source(from: &str, prefix: &str, to: &Config) -> Result<Config, Exit> {
    let read = |file: &str| std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"));
    let text = from.strip_prefix('@').map_or_else(|| Ok(from.to_owned()), read)?;
    let text = text.trim();
    let mut source = to.clone();
    if text.contains("://") {
        source.queue.kind = value::queue_kind(text).map_err(|why| anyhow!("the address in --from {why}"))?;
        source.queue.prefix =
            value::queue_prefix(prefix).map_err(|why| anyhow!("the value of --from-prefix {why}"))?;
    } else {
        let folder = Path::new(text);
        if !folder.join("queue").is_dir() {
            return Err(anyhow!("{text} is no data folder of kinsync: it has no folder `queue`").into());
        }
        (source.queue.kind, source.data_dir) = (QueueKind::Embedded, folder.to_owned());
    }
    if is_same(&source, to) {
        return Err(anyhow!("--from is the queue of this configuration").into());
    }
    Ok(source)
}

fn is_same(one: &Config, other: &Config) -> bool {
    match (&one.queue.kind, &other.queue.kind) {
        (QueueKind::Embedded, QueueKind::Embedded) => one.data_dir == other.data_dir,
        (QueueKind::Redis(url), QueueKind::Redis(other_url))
        | (QueueKind::Rabbitmq(url), QueueKind::Rabbitmq(other_url)) => {
            url.expose_secret() == other_url.expose_secret() && one.queue.prefix == other.queue.prefix
        }
        _ => false,
    }
}

/// Opens the queue itself, without a spool.
async fn open(config: &Config, supervisor: &Supervisor) -> Result<Arc<dyn Queue>, Exit> {
    if let Some(shared) = shared_queue(config) {
        // RabbitMQ keeps its dead letters there.
        let store = open_store(config).await.context("cannot open the store")?.store();
        return shared.create(&store, &Clock::system(), supervisor).map_err(failed);
    }
    let (folder, settings) = (config.data_dir.clone(), embedded::Config::default());
    let open = move || EmbeddedQueue::open(&folder, settings, Clock::system());
    let opened = tokio::task::spawn_blocking(open).await.context("cannot open the queue")?;
    Ok(Arc::new(opened.map_err(failed)?))
}

async fn move_all(from: &dyn Queue, to: &dyn Queue) -> Result<Moved, Exit> {
    let bar = output::counter("deliveries");
    let mut moved = 0;
    loop {
        if let Ok(claimed) = timeout(NEXT, from.claim(BATCH, LEASE)).await {
            moved += move_claimed(from, to, claimed.map_err(failed)?).await.map_err(failed)?;
            bar.set_position(moved);
            continue;
        }
        let left = from.stats().await.map_err(failed)?;
        if left.depth == 0 {
            bar.finish_and_clear();
            return Ok(Moved { moved, dead_letters: left.dead_letters });
        }
        let held = counted(left.depth, "delivery is", "deliveries are");
        bar.set_message(format!("deliveries; {held} still claimed by a server, until its lease ends"));
    }
}

/// Moves entries. Those that the other queue does not accept stay where they are.
async fn move_claimed(from: &dyn Queue, to: &dyn Queue, claimed: Vec<Claimed>) -> Result<u64, queue::Error> {
    let accepted = join_all(claimed.iter().map(|claimed| to.enqueue(claimed.entry.clone()))).await;
    let (mut done, mut kept, mut failure) = (Vec::new(), Vec::new(), None);
    for (Claimed { id, .. }, accepted) in claimed.into_iter().zip(accepted) {
        match accepted {
            Ok(_) => done.push(id),
            Err(error) => {
                kept.push(id);
                failure = Some(error);
            }
        }
    }
    from.ack(&done).await?;
    from.retry(&kept as &[EntryId], Duration::ZERO).await?;
    failure.map_or(Ok(done.len() as u64), Err)
}

fn failed(error: queue::Error) -> Exit {
    Exit::Failed(error.into())
}
