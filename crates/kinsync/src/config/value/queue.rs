//! The queue, and the roles of processes that share one.

use kinsync_engine::Roles;

use super::{Result, list};
use crate::config::QueueKind;

/// The start of the names in a shared queue.
pub fn queue_prefix(text: &str) -> Result<String> {
    let is_usual = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if text.is_empty() || !text.chars().all(is_usual) {
        return Err("may contain only letters, digits, `-`, `_`, `.` and `:`".into());
    }
    Ok(text.into())
}

const ONE_REDIS: &str = "names several servers: with Redis Sentinel write redis+sentinel://HOST:PORT,HOST:PORT/NAME with the name of \
                         the primary; Redis Cluster is not supported";

/// A list of roles, or `all`.
pub fn roles(text: &str) -> Result<Roles> {
    let mut roles = Roles::NONE;
    for role in list(text) {
        match role {
            "all" => roles = Roles::ALL,
            "ingest" => roles.ingest = true,
            "project" => roles.project = true,
            "reconcile" => roles.reconcile = true,
            "api" => roles.api = true,
            _ => return Err("is not a list of `ingest`, `project`, `reconcile`, `api` or `all`".into()),
        }
    }
    if roles == Roles::NONE { Err("names no role".into()) } else { Ok(roles) }
}

/// A kind of queue.
pub fn queue_kind(text: &str) -> Result<QueueKind> {
    match text {
        "embedded" => Ok(QueueKind::Embedded),
        _ if text.starts_with("redis+sentinel://") || text.starts_with("rediss+sentinel://") => {
            Ok(QueueKind::Redis(text.into()))
        }
        _ if text.starts_with("redis://") || text.starts_with("rediss://") => {
            let hosts = text.rsplit_once('@').map_or(text, |(_, hosts)| hosts);
            if hosts.contains(',') { Err(ONE_REDIS.into()) } else { Ok(QueueKind::Redis(text.into())) }
        }
        _ if text.starts_with("redis") && (text.contains("sentinel") || text.contains("cluster")) => {
            Err(ONE_REDIS.into())
        }
        _ if text.starts_with("amqp://") || text.starts_with("amqps://") => {
            Ok(QueueKind::Rabbitmq(text.into()))
        }
        _ => Err("is neither `embedded` nor an address such as redis://HOST:PORT or amqp://HOST:PORT (rediss:// and amqps:// \
                  for TLS)"
            .into()),
    }
}
