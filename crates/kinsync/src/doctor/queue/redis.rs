//! Redis: whether it answers with enough replicas, and whether a crash or a full memory loses deliveries.

use kinsync_engine::{
    Clock,
    config::Redis,
    internal::queue::redis::{Durability, RedisQueue, Server},
};

use super::{DURABLE, EVICTION, Finding, REACHABLE, unreachable};

pub(super) async fn examine(redis: Redis, replicas: u32) -> Vec<Finding> {
    let server = match RedisQueue::new(redis, Clock::system()) {
        Ok(queue) => queue.inspect().await,
        Err(error) => Err(error),
    };
    match server {
        Ok(server) => vec![reachable(&server, replicas), durable(&server, replicas), eviction(&server)],
        Err(error) => unreachable(&error),
    }
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
