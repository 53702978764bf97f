//! The shared queue: whether the server answers, what of an accepted delivery survives, and whether it may evict entries.

use kinsync_engine::{
    Clock, QueueError, RabbitmqConfig, RabbitmqQueue, RedisConfig, RedisQueue, SharedQueue,
    internal::queue::{
        rabbitmq::Examined,
        redis::{Durability, Server},
    },
};
use kinsync_tower::problem::chain;

use super::Finding;
use crate::{app::start::shared_queue, config::Config};

const REACHABLE: &str = "queue.reachable";
const DURABLE: &str = "queue.durable";
const EVICTION: &str = "queue.eviction";

const NO_QUEUE: &str = "the queue does not exist yet";

pub(super) const IDS: [&str; 3] = [REACHABLE, DURABLE, EVICTION];

pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    match shared_queue(config) {
        Some(SharedQueue::Redis(redis)) => examine_redis(redis, config.queue.replicas).await,
        Some(SharedQueue::Rabbitmq(rabbitmq)) => examine_rabbitmq(rabbitmq).await,
        _ => {
            let found = "the queue is a file in the data folder, which other processes cannot use";
            IDS.map(|id| Finding::ok(id, found)).to_vec()
        }
    }
}

async fn examine_redis(redis: RedisConfig, replicas: u32) -> Vec<Finding> {
    let server = match RedisQueue::new(redis, Clock::system()) {
        Ok(queue) => queue.inspect().await,
        Err(error) => Err(error),
    };
    match server {
        Ok(server) => vec![reachable(&server, replicas), durable(&server, replicas), eviction(&server)],
        Err(error) => unreachable(&error),
    }
}

/// Accepted arguments of the queue prove what AMQP can show: another kind of queue of the same name is refused.
async fn examine_rabbitmq(rabbitmq: RabbitmqConfig) -> Vec<Finding> {
    match RabbitmqQueue::examine(rabbitmq).await {
        Ok(Examined { address, entries: None }) => vec![
            Finding::ok(
                REACHABLE,
                format!(
                    "RabbitMQ at {address} answers; the queue does not exist yet, `kinsync serve` declares it"
                ),
            ),
            Finding::skipped(DURABLE, NO_QUEUE, "start `kinsync serve` and run this again"),
            Finding::skipped(EVICTION, NO_QUEUE, "start `kinsync serve` and run this again"),
        ],
        Ok(Examined { address, .. }) => vec![
            Finding::ok(REACHABLE, format!("RabbitMQ at {address} answers, and its queue exists")),
            Finding::ok(
                DURABLE,
                "each delivery is on the disks of a majority of the members of a quorum queue before it is answered 200; AMQP does \
                 not show the number of members, which may be one: see `rabbitmq-queues quorum_status`",
            ),
            Finding::skipped(
                EVICTION,
                "the queue is declared to refuse deliveries when it is full; AMQP does not show the policies, which outweigh that",
                "see `rabbitmqctl list_policies`: none with `overflow: drop-head`, `message-ttl` or `expires` may match the queue",
            ),
        ],
        Err(error) => unreachable(&error),
    }
}

fn unreachable(error: &QueueError) -> Vec<Finding> {
    let fix = "until it answers, deliveries wait in the data folder of each process and change no user";
    let failed = Finding::failed(REACHABLE, chain(error), fix);
    vec![failed, Finding::needs(DURABLE, REACHABLE), Finding::needs(EVICTION, REACHABLE)]
}

fn reachable(server: &Server, required: u32) -> Finding {
    let Server { address, watched, version, replicas, .. } = server;
    if *replicas < required {
        let found = format!(
            "Redis {version} has {replicas} replicas, and KINSYNC_QUEUE_REPLICAS requires {required}"
        );
        let fix = "until there are enough, deliveries wait in the data folder: start replicas, or lower the setting";
        return Finding::failed(REACHABLE, found, fix);
    }
    let of_sentinels = watched.as_ref().map(|name| format!(", the primary `{name}` of the sentinels"));
    Finding::ok(
        REACHABLE,
        format!("Redis {version} at {address} answers{}", of_sentinels.unwrap_or_default()),
    )
}

fn durable(server: &Server, required: u32) -> Finding {
    match server.durability {
        Some(Durability::Synced | Durability::Delayed) if server.watched.is_some() && required == 0 => {
            Finding::warning(
                DURABLE,
                "a failover of Redis Sentinel loses the deliveries that the new primary had not received, and a scan repairs their users",
                "set KINSYNC_QUEUE_REPLICAS=1, so that each delivery is on a replica before it is answered 200",
            )
        }
        Some(Durability::Synced) => {
            Finding::ok(DURABLE, "each delivery is on the disk of Redis before it is answered 200")
        }
        Some(Durability::Delayed) => Finding::warning(
            DURABLE,
            "Redis syncs its file later than it answers: a crash of its machine loses the deliveries of a second or more, and a scan repairs their users",
            "set `appendfsync always` and `no-appendfsync-on-rewrite no` in redis.conf",
        ),
        Some(Durability::Memory) => Finding::warning(
            DURABLE,
            "Redis keeps deliveries in memory only: a restart loses them, and only a scan repairs their users",
            "set `appendonly yes` in redis.conf",
        ),
        None => Finding::skipped(
            DURABLE,
            "the user may not read the configuration of Redis (`CONFIG GET`), so it is unknown whether a restart loses deliveries",
            "look for `appendonly yes` and `appendfsync` in redis.conf, or allow `+config|get`",
        ),
    }
}

fn eviction(server: &Server) -> Finding {
    match &server.evicts {
        Some(policy) => Finding::failed(
            EVICTION,
            format!("with `maxmemory-policy {policy}` Redis deletes the whole queue when its memory is full"),
            "set `maxmemory-policy noeviction`, or use a Redis of its own",
        ),
        None => Finding::ok(EVICTION, "Redis deletes no queued delivery when its memory is full"),
    }
}
