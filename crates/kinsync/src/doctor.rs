//! Checks everything that kinsync depends on, and names a fix for each problem.
//!
//! Each check ends in one [`Finding`]. Every finding is always present, in the same order. The checks run at the same time,
//! each group with a deadline. Nothing is written to Kinde or to `MongoDB`; in the data folder one file is created, synced
//! and removed, or a folder beside it while it does not exist. A server that uses the same folder is not disturbed.
//!
//! In reading order:
//! - `kinde`: clock, signing keys, issuers, credentials, scopes, the webhook, event types
//! - `roles`: the scopes and requests of a comparison of roles
//! - `properties`: those of a comparison of properties
//! - `schema`: the fields of a user that Kinde's event schemas declare
//! - `mongodb`: server, replica set, majority, privileges, indexes, email addresses
//! - `log`: the growth of the event log
//! - `data_dir`: access, free space, the duration of a sync, dead letters
//! - `queue`: the shared queue, what it keeps after a crash
//! - `server`: what a running server reports about itself

mod data_dir;
mod kinde;
mod log;
mod mongodb;
mod properties;
mod queue;
mod roles;
mod schema;
pub(crate) mod server;

use std::time::Duration;

use serde::Serialize;

use crate::config::Loaded;

/// Deadline of one group of checks.
const DEADLINE: Duration = Duration::from_secs(30);

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It works.
    Ok,
    /// It works, and needs attention.
    Warning,
    /// It does not work.
    Failed,
    /// It is not in use, or could not be checked.
    Skipped,
}

impl Status {
    /// The name in JSON and on the terminal.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// The result of a check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// Identifies the check. Stable.
    pub id: &'static str,
    /// How it ended.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it; `None` when there is nothing to do, or another check has to pass first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    fn ok(id: &'static str, found: impl Into<String>) -> Self {
        Self { id, status: Status::Ok, found: found.into(), fix: None }
    }

    fn warning(id: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { id, status: Status::Warning, found: found.into(), fix: Some(fix.into()) }
    }

    fn failed(id: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { id, status: Status::Failed, found: found.into(), fix: Some(fix.into()) }
    }

    fn skipped(id: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { id, status: Status::Skipped, found: found.into(), fix: Some(fix.into()) }
    }

    /// For a check that needs another one to pass first.
    fn needs(id: &'static str, other: &str) -> Self {
        Self { id, status: Status::Skipped, found: format!("needs {other}"), fix: None }
    }
}

/// Groups of checks, in the order of [`examine`].
pub const GROUPS: [&str; 6] =
    ["Kinde", "the store", "the event log", "the data folder", "the queue", "the server"];

/// Runs every check. Calls `done` with the name of each group when it ends.
pub async fn examine(loaded: &Loaded, done: impl Fn(&'static str)) -> Vec<Finding> {
    let config = &loaded.config;
    let [kinde, store, log, folder, queue, server] = GROUPS;
    let kinde = group(kinde, &done, &kinde::IDS, kinde::examine(config));
    let store = group(store, &done, &mongodb::IDS, mongodb::examine(config));
    let log = group(log, &done, &log::IDS, log::examine(config));
    let folder = group(folder, &done, &data_dir::IDS, data_dir::examine(config));
    let queue = group(queue, &done, &queue::IDS, queue::examine(config));
    let server = group(server, &done, &server::IDS, server::examine(loaded));
    let (kinde, store, log, folder, queue, server) = tokio::join!(kinde, store, log, folder, queue, server);
    [vec![settings(&loaded.warnings)], kinde, store, log, folder, queue, server].concat()
}

async fn group(
    name: &'static str,
    done: &impl Fn(&'static str),
    ids: &[&'static str],
    checks: impl Future<Output = Vec<Finding>>,
) -> Vec<Finding> {
    let found = tokio::time::timeout(DEADLINE, Box::pin(checks)).await;
    done(name);
    found.unwrap_or_else(|_| {
        let late = format!("no result within {} s", DEADLINE.as_secs());
        let fix =
            format!("check whether {name} is overloaded or unreachable from this machine, then try again");
        ids.iter().map(|id| Finding::failed(id, late.as_str(), fix.as_str())).collect()
    })
}

fn settings(warnings: &[String]) -> Finding {
    const ID: &str = "settings";
    if warnings.is_empty() {
        return Finding::ok(ID, "no conflicts");
    }
    Finding::warning(
        ID,
        warnings.join("; "),
        "change the named setting; `kinsync config show` prints its origin",
    )
}

/// The first items of a list, for one line.
fn some(items: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<&str> = items.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match items.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
