//! Looks whether all that kinsync needs is as it should be, and says what to do where it is not.
//!
//! Each check ends in one [`Finding`]; all of them are always there, in the same order, so that a program finds what it
//! looks for. They run side by side, and none waits for ever. Nothing is written to Kinde or to `MongoDB`; in the data
//! folder a file is made, synced and removed. A server that runs on the same folder is not disturbed.
//!
//! In reading order:
//! - `kinde`: clock, keys, issuers, credentials, scopes, the webhook, event types
//! - `schema`: what Kinde's events declare of a user
//! - `mongodb`: server, replica set, majority, privileges, indexes, addresses
//! - `data_dir`: access, room, the time of a sync, dead letters
//! - `server`: what a running server says of itself

mod data_dir;
mod kinde;
mod mongodb;
mod schema;
mod server;

use std::time::Duration;

use serde::Serialize;

use crate::config::Loaded;

/// How long one group of checks may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is as it should be.
    Ok,
    /// It works, and somebody should look at it.
    Warning,
    /// It does not work.
    Failed,
    /// It could not be looked at, or is not in use.
    Skipped,
}

impl Status {
    /// For people and programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// Names the check. Stable.
    pub id: &'static str,
    /// How it ended.
    pub status: Status,
    /// What is so.
    pub found: String,
    /// What to do about it; `None` where there is nothing to do, or another check comes first.
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

    /// For a check that rests on another one.
    fn needs(id: &'static str, other: &str) -> Self {
        Self { id, status: Status::Skipped, found: format!("needs {other}"), fix: None }
    }
}

/// Groups of checks, as [`examine`] tells that they are done.
pub const GROUPS: [&str; 4] = ["Kinde", "the store", "the data folder", "the server"];

/// Runs every check. `done` is called with each of [`GROUPS`] as it ends.
pub async fn examine(loaded: &Loaded, done: impl Fn(&'static str)) -> Vec<Finding> {
    let config = &loaded.config;
    let [kinde, store, folder, server] = GROUPS;
    let kinde = group(kinde, &done, &kinde::IDS, kinde::examine(config));
    let store = group(store, &done, &mongodb::IDS, mongodb::examine(config));
    let folder = group(folder, &done, &data_dir::IDS, data_dir::examine(config));
    let server = group(server, &done, &server::IDS, server::examine(loaded));
    let (kinde, store, folder, server) = tokio::join!(kinde, store, folder, server);
    [vec![settings(&loaded.warnings)], kinde, store, folder, server].concat()
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
        let late = format!("nothing was found out within {DEADLINE:?}");
        let fix = format!("look whether {name} is overloaded or cut off from this machine, then try again");
        ids.iter().map(|id| Finding::failed(id, late.as_str(), fix.as_str())).collect()
    })
}

fn settings(warnings: &[String]) -> Finding {
    const ID: &str = "settings";
    if warnings.is_empty() {
        return Finding::ok(ID, "they hold together");
    }
    Finding::warning(
        ID,
        warnings.join("; "),
        "change what is named; `kinsync config show` says where it was set",
    )
}

/// A few of many, for one line.
fn some(items: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<&str> = items.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match items.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
