//! Users of whom Kinde should be requested, because what was told of them cannot be right or cannot be
//! judged. Kept durably and as a set: requested for twice is requested for once.

use std::collections::BTreeMap;

use kinsync_core::UserId;
use serde::{Deserialize, Serialize};

use crate::{
    random, state_records,
    store::{Error, Store},
};

/// Where they are kept.
const KEY: &str = "reconcile.checks";

/// Above this number of waiting users a full scan is scheduled instead.
const MAX_USERS: usize = 1000;

/// Who waits for a check.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingChecks {
    /// Users to ask about, and a mark of the newest time that somebody requested: who asks while Kinde is being requested
    /// wants to know what is so after that.
    pub users: BTreeMap<UserId, u32>,
    /// Whether a scan was requested for: by an operator, or because too many users waited.
    pub scan_requested: bool,
    /// The run whose held deletions an operator approved.
    #[serde(default)]
    pub approved: Option<String>,
}

impl PendingChecks {
    /// Who waits.
    pub async fn load(store: &dyn Store) -> Result<Self, Error> {
        state_records::load(store, KEY).await
    }

    /// Asks for checks of these users. Cancel safe.
    pub async fn request(store: &dyn Store, users: &[UserId]) -> Result<(), Error> {
        if users.is_empty() {
            return Ok(());
        }
        state_records::change(store, KEY, |checks: &mut Self| {
            checks.users.extend(users.iter().map(|user| (user.clone(), random::number())));
            if checks.users.len() > MAX_USERS {
                checks.scan_requested = true;
                checks.users.clear();
            }
        })
        .await
    }

    /// Asks for a scan. Cancel safe.
    pub async fn request_scan(store: &dyn Store) -> Result<(), Error> {
        state_records::change(store, KEY, |checks: &mut Self| checks.scan_requested = true).await
    }

    /// Asks for a scan that carries out what this run held. Cancel safe.
    pub async fn approve(store: &dyn Store, run: &str) -> Result<(), Error> {
        state_records::change(store, KEY, |checks: &mut Self| checks.approved = Some(run.to_owned())).await
    }

    /// Asks again for the scan that did not come to its end.
    pub async fn request_again(store: &dyn Store, requested: &Self) -> Result<(), Error> {
        state_records::change(store, KEY, |checks: &mut Self| {
            checks.scan_requested |= requested.scan_requested;
            checks.approved = checks.approved.take().or_else(|| requested.approved.clone());
        })
        .await
    }

    /// Whether a scan was requested for.
    pub fn is_scan_requested(&self) -> bool {
        self.scan_requested || self.approved.is_some()
    }

    /// Removes the users that were checked, or all after a scan. A user requested again in the meantime stays.
    pub async fn remove(store: &dyn Store, done: &Self) -> Result<(), Error> {
        state_records::change(store, KEY, |checks: &mut Self| {
            checks.users.retain(|user, requested| done.users.get(user) != Some(requested));
            checks.scan_requested &= !done.scan_requested;
            checks.approved = checks.approved.take().filter(|run| done.approved.as_ref() != Some(run));
        })
        .await
    }
}
