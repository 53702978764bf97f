//! Requests to the reconciler: single users to re-read from Kinde, because their observations contradict each other, roles with
//! an event, and scans. A durable record: a request stays until its work is done, whatever is killed meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use kinsync_core::UserId;
use serde::{Deserialize, Serialize};

use crate::{
    random,
    state_records::{self, Key},
    store::{Error, Store},
};

pub(crate) const KEY: Key =
    Key::new("reconcile.checks", "requested scans, approvals and checks are dropped; request them again");

/// Maximum number of pending users. Above this limit a full scan is requested instead.
pub(crate) const MAX_USERS: usize = 1000;

/// Maximum number of pending roles. Above this limit a full scan, which lists all of them, is requested instead.
const MAX_ROLES: usize = 100;

/// Maximum number of pending users with further requests that only save time.
const FEW_USERS: usize = 100;

/// Requested checks and scans.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingChecks {
    /// Users to re-read, each with a random mark of its newest request. A request during a check gets a new mark and
    /// stays, because it needs a read that starts later.
    pub users: BTreeMap<UserId, u32>,
    /// Ids of roles to re-read, with the same marks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub roles: BTreeMap<String, u32>,
    /// A requested scan.
    pub scan: Option<RequestedScan>,
}

/// A scan that an operator requested, or that replaces too many checks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RequestedScan {
    /// Random mark of the newest request.
    pub mark: u32,
    /// What an operator approved.
    pub approves: Option<Approval>,
}

/// Deletions that an operator approved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// Those that the run with this id held.
    Run(String),
    /// Those of all users, because the tenant is empty.
    EmptyTenant,
}

impl RequestedScan {
    /// Returns what is left of the request after a scan.
    fn without(self, done: Option<&Self>) -> Option<Self> {
        let Some(done) = done else { return Some(self) };
        let approves = self.approves.filter(|approval| done.approves.as_ref() != Some(approval));
        (self.mark != done.mark).then_some(Self { approves, ..self })
    }
}

impl PendingChecks {
    /// Loads the record.
    pub async fn load(store: &dyn Store) -> Result<Self, Error> {
        state_records::load(store, &KEY).await
    }

    /// Requests checks of users. Cancel safe.
    pub async fn request(store: &dyn Store, users: &[UserId]) -> Result<(), Error> {
        if users.is_empty() {
            return Ok(());
        }
        state_records::change(store, &KEY, |checks: &mut Self| {
            checks.users.extend(users.iter().map(|user| (user.clone(), random::number())));
            if checks.users.len() > MAX_USERS {
                checks.add_scan(None);
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
        state_records::change(store, &KEY, |checks: &mut Self| {
            if checks.users.len() + users.len() <= FEW_USERS {
                checks.users.extend(users.iter().map(|user| (user.clone(), random::number())));
            }
        })
        .await
    }

    /// Returns whether neither a user nor a role is to be re-read.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.roles.is_empty()
    }

    /// Requests re-reads of roles, of what they give, and of members with permissions that this makes uncertain. Cancel safe.
    pub async fn request_roles(store: &dyn Store, roles: &BTreeSet<String>) -> Result<(), Error> {
        if roles.is_empty() {
            return Ok(());
        }
        state_records::change(store, &KEY, |checks: &mut Self| {
            checks.roles.extend(roles.iter().map(|role| (role.clone(), random::number())));
            if checks.roles.len() > MAX_ROLES {
                checks.add_scan(None);
                checks.roles.clear();
            }
        })
        .await
    }

    /// Requests a scan. A pending approval stays. Cancel safe.
    pub async fn request_scan(store: &dyn Store) -> Result<(), Error> {
        state_records::change(store, &KEY, |checks: &mut Self| checks.add_scan(None)).await
    }

    /// Requests a scan that carries out approved deletions. Cancel safe.
    pub async fn approve(store: &dyn Store, approval: &Approval) -> Result<(), Error> {
        state_records::change(store, &KEY, |checks: &mut Self| checks.add_scan(Some(approval.clone()))).await
    }

    fn add_scan(&mut self, approves: Option<Approval>) {
        let pending = self.scan.take().and_then(|scan| scan.approves);
        self.scan = Some(RequestedScan { mark: random::number(), approves: approves.or(pending) });
    }

    /// Removes completed requests. What was requested again meanwhile stays.
    pub async fn remove(store: &dyn Store, done: &Self) -> Result<(), Error> {
        state_records::change(store, &KEY, |checks: &mut Self| {
            checks.users.retain(|user, mark| done.users.get(user) != Some(mark));
            checks.roles.retain(|role, mark| done.roles.get(role) != Some(mark));
            checks.scan = checks.scan.take().and_then(|scan| scan.without(done.scan.as_ref()));
        })
        .await
    }
}
