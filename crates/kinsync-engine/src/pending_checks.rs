//! Single users to re-read from Kinde, because their observations contradict each other or are older than a scan. A durable
//! set: several requests for one user cause one check.

use std::collections::BTreeMap;

use kinsync_core::UserId;
use serde::{Deserialize, Serialize};

use crate::{
    random, state_records,
    store::{Error, Store},
};

/// Key of the record in the store.
const KEY: &str = "reconcile.checks";

/// Maximum number of pending users. Above this limit a full scan is requested instead.
const MAX_USERS: usize = 1000;

/// Maximum number of pending users with further requests that only save time.
const FEW_USERS: usize = 100;

/// Requested checks and scans.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingChecks {
    /// Users to re-read, each with a random mark of its newest request. A request during a check gets a new mark and
    /// stays, because it needs a read that starts later.
    pub users: BTreeMap<UserId, u32>,
    /// Whether a scan was requested: by an operator, or because too many users were pending.
    pub scan_requested: bool,
    /// Id of a run with held deletions that an operator approved.
    #[serde(default)]
    pub approved: Option<String>,
}

impl PendingChecks {
    /// Loads the record.
    pub async fn load(store: &dyn Store) -> Result<Self, Error> {
        state_records::load(store, KEY).await
    }

    /// Requests checks of users. Cancel safe.
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

    /// Requests checks of users that the next scan would repair as well, unless many users are pending. Cancel safe.
    pub async fn request_if_few(store: &dyn Store, users: &[UserId]) -> Result<(), Error> {
        if users.is_empty() {
            return Ok(());
        }
        state_records::change(store, KEY, |checks: &mut Self| {
            if checks.users.len() + users.len() <= FEW_USERS {
                checks.users.extend(users.iter().map(|user| (user.clone(), random::number())));
            }
        })
        .await
    }

    /// Requests a scan. Cancel safe.
    pub async fn request_scan(store: &dyn Store) -> Result<(), Error> {
        state_records::change(store, KEY, |checks: &mut Self| checks.scan_requested = true).await
    }

    /// Requests a scan that carries out the deletions that run `run` held. Cancel safe.
    pub async fn approve(store: &dyn Store, run: &str) -> Result<(), Error> {
        state_records::change(store, KEY, |checks: &mut Self| checks.approved = Some(run.to_owned())).await
    }

    /// Restores the request of a scan that did not complete.
    pub async fn request_again(store: &dyn Store, requested: &Self) -> Result<(), Error> {
        state_records::change(store, KEY, |checks: &mut Self| {
            checks.scan_requested |= requested.scan_requested;
            checks.approved = checks.approved.take().or_else(|| requested.approved.clone());
        })
        .await
    }

    /// Returns whether a scan or an approval was requested.
    pub fn is_scan_requested(&self) -> bool {
        self.scan_requested || self.approved.is_some()
    }

    /// Removes completed requests. A user that was requested again meanwhile stays.
    pub async fn remove(store: &dyn Store, done: &Self) -> Result<(), Error> {
        state_records::change(store, KEY, |checks: &mut Self| {
            checks.users.retain(|user, requested| done.users.get(user) != Some(requested));
            checks.scan_requested &= !done.scan_requested;
            checks.approved = checks.approved.take().filter(|run| done.approved.as_ref() != Some(run));
        })
        .await
    }
}
