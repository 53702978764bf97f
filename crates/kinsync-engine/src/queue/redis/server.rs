//! What the configuration of the server means for accepted entries.

use redis::cmd;

use super::{Connection, Error};

/// What of an accepted entry survives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Each change is on disk before the answer (`appendfsync always`, `no-appendfsync-on-rewrite no`).
    Synced,
    /// The file is written and synced later: a crash of the machine loses the last second or more, and one of the process up to two
    /// seconds while the disk is slow.
    Delayed,
    /// There is no file of changes: a restart loses every entry since the last snapshot, if there is one.
    Memory,
}

/// The configuration of a server, as far as it concerns the queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    /// Host and port of the server.
    pub address: String,
    /// Name of the primary that sentinels watch, if the address is theirs.
    pub watched: Option<String>,
    /// Version of the server.
    pub version: String,
    /// What of an accepted entry survives. `None` if the user may not read it (`CONFIG GET`).
    pub durability: Option<Durability>,
    /// The eviction policy, if it may remove entries of the queue.
    pub evicts: Option<String>,
    /// Connected replicas.
    pub replicas: u32,
}

/// Returns what identifies a running server at any of its addresses.
pub(super) async fn run_id(connection: &Connection) -> Result<String, Error> {
    let info: String = connection.run(cmd("INFO").arg("server")).await?;
    let id = info.lines().find_map(|line| line.strip_prefix("run_id:")).map(str::trim);
    id.filter(|id| !id.is_empty()).map(str::to_owned).ok_or_else(|| Error::Refused {
        hint: "Redis does not show `run_id` in INFO, which identifies a server".into(),
        source: None,
    })
}

/// Reads the configuration.
pub(super) async fn inspect(connection: &Connection) -> Result<Server, Error> {
    let info: String = connection.run(cmd("INFO").arg("everything")).await?;
    let value = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim().to_owned())
    };
    let setting = async |name: &str| {
        let read: Vec<String> = connection.run(cmd("CONFIG").arg("GET").arg(name)).await.ok()?;
        read.into_iter().nth(1)
    };
    let file = setting("appendonly").await;
    let (sync, not_on_rewrite) = (setting("appendfsync").await, setting("no-appendfsync-on-rewrite").await);
    // With `no-appendfsync-on-rewrite yes` nothing is synced while the file is rewritten.
    let is_synced = sync.as_deref() == Some("always") && not_on_rewrite.as_deref() == Some("no");
    let durability = file.map(|file| match file.as_str() {
        "yes" if is_synced => Durability::Synced,
        "yes" => Durability::Delayed,
        _ => Durability::Memory,
    });
    Ok(Server {
        address: connection.address().await?.to_string(),
        watched: connection.watched().map(str::to_owned),
        version: value("redis_version").unwrap_or_default(),
        durability,
        evicts: value("maxmemory_policy").filter(|policy| policy.starts_with("allkeys")),
        replicas: value("connected_slaves").and_then(|count| count.parse().ok()).unwrap_or_default(),
    })
}
