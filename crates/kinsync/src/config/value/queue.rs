//! The queue, and the roles of processes that share one.

use kinsync_engine::Roles;
#[cfg(any(feature = "rabbitmq", feature = "redis"))]
use kinsync_engine::internal::queue::Error;
use secrecy::SecretString;

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

/// A kind of queue, with an address that the queue accepts.
pub fn queue_kind(text: &str) -> Result<QueueKind> {
    let address = SecretString::from(text);
    if text == "embedded" {
        Ok(QueueKind::Embedded)
    } else if text.starts_with("redis") {
        redis(address)
    } else if text.starts_with("amqp") {
        rabbitmq(address)
    } else {
        Err("is neither `embedded` nor an address such as redis://HOST:PORT or amqp://HOST:PORT (rediss:// and amqps:// for TLS)".into())
    }
}

#[cfg(feature = "redis")]
fn redis(address: SecretString) -> Result<QueueKind> {
    kinsync_engine::internal::queue::redis::check_address(&address).map_err(refused)?;
    Ok(QueueKind::Redis(address))
}

#[cfg(not(feature = "redis"))]
fn redis(_: SecretString) -> Result<QueueKind> {
    Err("needs a kinsync that was built with `cargo build --release --features redis`".into())
}

#[cfg(feature = "rabbitmq")]
fn rabbitmq(address: SecretString) -> Result<QueueKind> {
    kinsync_engine::internal::queue::rabbitmq::check_address(&address).map_err(refused)?;
    Ok(QueueKind::Rabbitmq(address))
}

#[cfg(not(feature = "rabbitmq"))]
fn rabbitmq(_: SecretString) -> Result<QueueKind> {
    Err("needs a kinsync that was built with `cargo build --release --features rabbitmq`".into())
}

#[cfg(any(feature = "rabbitmq", feature = "redis"))]
fn refused(error: Error) -> String {
    format!("{:#}", anyhow::Error::from(error))
}
