//! The two queues of a move.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
#[cfg(any(feature = "rabbitmq", feature = "redis"))]
use kinsync_engine::config::SharedQueue;
#[cfg(feature = "rabbitmq")]
use kinsync_engine::internal::queue::rabbitmq::{RabbitmqQueue, Remainder};
#[cfg(feature = "redis")]
use kinsync_engine::internal::queue::redis::RedisQueue;
use kinsync_engine::{
    Clock, QueueError, Supervisor,
    internal::{
        queue::{Claimed, Queue, embedded::EmbeddedQueue},
        store::Store,
    },
};
use tokio::time::{sleep, timeout};

use super::super::exit::Exit;
use crate::{
    app::start::{check_data_dir, embedded_queue, open_store, shared_queue},
    config::{Config, QueueKind, value},
    plural::counted,
};

/// Entries that move at the same time.
const BATCH: usize = 256;
/// Lease of an entry that moves.
const LEASE: Duration = Duration::from_mins(1);
/// Longest wait for the next entries, before the remaining ones are counted.
const WAIT: Duration = Duration::from_secs(1);

/// One of the queues, without a spool.
#[derive(Debug)]
pub(super) enum Side {
    Embedded(EmbeddedQueue),
    #[cfg(feature = "redis")]
    Redis(RedisQueue),
    /// With the store of its dead letters.
    #[cfg(feature = "rabbitmq")]
    Rabbitmq(RabbitmqQueue, Arc<dyn Store>),
}

/// The next step of a move.
#[derive(Debug)]
pub(super) enum Next {
    /// These entries move.
    Claimed(Vec<Claimed>),
    /// Nothing can be claimed now, for this reason.
    Later(String),
    /// Nothing is left.
    Empty,
}

/// Returns the configuration with the queue to empty in place of its own.
pub(super) fn source(from: &str, prefix: Option<&str>, to: &Config) -> Result<Config, Exit> {
    let read = |file: &str| fs::read_to_string(file).with_context(|| format!("cannot read {file}"));
    let text = from.strip_prefix('@').map_or_else(|| Ok(from.to_owned()), read)?;
    let text = text.trim();
    let mut source = to.clone();
    if text.contains("://") {
        source.queue.kind = value::queue_kind(text).map_err(|why| anyhow!("the address in --from {why}"))?;
        let prefix = value::queue_prefix(prefix.unwrap_or("kinsync"));
        source.queue.prefix = prefix.map_err(|why| anyhow!("the value of --from-prefix {why}"))?;
        return Ok(source);
    }
    if prefix.is_some() {
        return Err(anyhow!("--from-prefix belongs to an address in --from: a folder has one queue").into());
    }
    let folder = Path::new(text);
    if !folder.join("queue").is_dir() {
        return Err(anyhow!("{text} is no data folder of kinsync: it has no folder `queue`").into());
    }
    (source.queue.kind, source.data_dir) = (QueueKind::Embedded, folder.to_owned());
    if matches!(to.queue.kind, QueueKind::Embedded) && has_same_folder(&source, to) {
        return Err(same());
    }
    Ok(source)
}

/// Whether both have the same data folder, under any path.
pub(super) fn has_same_folder(one: &Config, other: &Config) -> bool {
    let path = |config: &Config| fs::canonicalize(&config.data_dir).ok();
    path(one).is_some_and(|one| path(other) == Some(one))
}

fn same() -> Exit {
    anyhow!("--from is the queue of this configuration").into()
}

/// Opens both. The store is opened only if one of them is in RabbitMQ: it has the dead letters.
pub(super) async fn open(from: &Config, to: &Config, supervisor: &Supervisor) -> Result<(Side, Side), Exit> {
    let store = if is_rabbitmq(from) || is_rabbitmq(to) {
        Some(open_store(to).await.context("cannot open the store")?.store())
    } else {
        None
    };
    let from = Side::open(from, store.as_ref(), supervisor).await?;
    let to = Side::open(to, store.as_ref(), supervisor).await?;
    if from.is_same_as(&to).await? { Err(same()) } else { Ok((from, to)) }
}

fn is_rabbitmq(config: &Config) -> bool {
    match &config.queue.kind {
        #[cfg(feature = "rabbitmq")]
        QueueKind::Rabbitmq(_) => true,
        _ => false,
    }
}

impl Side {
    async fn open(
        config: &Config,
        store: Option<&Arc<dyn Store>>,
        supervisor: &Supervisor,
    ) -> Result<Self, Exit> {
        // Unused without a client of a shared queue.
        _ = supervisor;
        let clock = Clock::system();
        match (shared_queue(config), store) {
            #[cfg(feature = "redis")]
            (Some(SharedQueue::Redis(redis)), _) => {
                Ok(Self::Redis(RedisQueue::supervised(redis, clock, supervisor)?))
            }
            #[cfg(feature = "rabbitmq")]
            (Some(SharedQueue::Rabbitmq(rabbitmq)), Some(store)) => {
                let queue = RabbitmqQueue::supervised(rabbitmq, Arc::clone(store), clock, supervisor)?;
                Ok(Self::Rabbitmq(queue, Arc::clone(store)))
            }
            _ => {
                check_data_dir(config).context("cannot open the queue")?;
                let (folder, settings) = (config.data_dir.clone(), embedded_queue(config));
                let open = move || EmbeddedQueue::open(&folder, settings, clock);
                let opened = tokio::task::spawn_blocking(open).await.context("cannot open the queue")?;
                Ok(Self::Embedded(opened?))
            }
        }
    }

    pub(super) fn queue(&self) -> &dyn Queue {
        match self {
            Self::Embedded(queue) => queue,
            #[cfg(feature = "redis")]
            Self::Redis(queue) => queue,
            #[cfg(feature = "rabbitmq")]
            Self::Rabbitmq(queue, _) => queue,
        }
    }

    /// A move of a queue into itself would remove the only copy of what is known there.
    #[cfg_attr(
        not(any(feature = "rabbitmq", feature = "redis")),
        expect(clippy::unused_async, reason = "the clients of shared queues are asynchronous")
    )]
    async fn is_same_as(&self, other: &Self) -> Result<bool, QueueError> {
        match (self, other) {
            #[cfg(feature = "redis")]
            (Self::Redis(one), Self::Redis(other)) => one.is_same_as(other).await,
            #[cfg(feature = "rabbitmq")]
            (Self::Rabbitmq(one, _), Self::Rabbitmq(other, _)) => one.is_same_as(other).await,
            _ => Ok(false),
        }
    }

    /// Claims the next entries, or says why there are none.
    pub(super) async fn next(&self) -> Result<Next, QueueError> {
        let next = match timeout(WAIT, self.queue().claim(BATCH, LEASE)).await {
            Ok(claimed) => claimed.map(Next::Claimed),
            Err(_) => self.left().await,
        };
        if let Err(error @ QueueError::Unavailable { .. }) = next {
            sleep(WAIT).await;
            return Ok(Next::Later(format!("{:#}", anyhow::Error::from(error))));
        }
        next
    }

    async fn left(&self) -> Result<Next, QueueError> {
        // The depth in `stats` is no proof for RabbitMQ: it is 0 when the leader of the queue does not answer, and lacks what others hold.
        let (consumers, entries) = match self {
            #[cfg(feature = "rabbitmq")]
            Self::Rabbitmq(queue, _) => {
                let Remainder { consumers, entries } = queue.remainder().await?;
                (consumers, entries)
            }
            _ => (0, self.queue().stats().await?.depth),
        };
        Ok(match (consumers, entries) {
            (0, 0) => Next::Empty,
            (0, _) => {
                let claimed = counted(entries, "delivery is claimed", "deliveries are claimed");
                Next::Later(format!("{claimed} by a server, until its lease ends"))
            }
            _ => {
                Next::Later("another process uses it, and may hold deliveries: stop the servers on it".into())
            }
        })
    }

    /// Counts the dead letters.
    pub(super) async fn dead_letters(&self) -> Result<u64, QueueError> {
        match self {
            // Not the count in `stats`, which is an old one while the store is slow.
            #[cfg(feature = "rabbitmq")]
            Self::Rabbitmq(_, store) => RabbitmqQueue::dead_letters_in(Arc::clone(store)).await,
            _ => Ok(self.queue().stats().await?.dead_letters),
        }
    }
}
