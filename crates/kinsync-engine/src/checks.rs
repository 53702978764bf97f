//! Users of whom Kinde should be asked, because what was told of them cannot be right or cannot be
//! judged. Kept durably and as a set: asked for twice is asked for once.

use std::collections::BTreeMap;

use kinsync_core::UserId;
use serde::{Deserialize, Serialize};

use crate::{
    kept, random,
    store::{Error, Store},
};

/// Where they are kept.
const KEY: &str = "reconcile.checks";

/// Users who may wait. More than these are as good as all: a scan looks at everybody.
const MOST: usize = 1000;

/// Who waits for a check.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checks {
    /// Users to ask about, and a mark of the newest time that somebody asked: who asks while Kinde is being asked
    /// wants to know what is so after that.
    pub users: BTreeMap<UserId, u32>,
    /// Whether a scan was asked for: by an operator, or because too many users waited.
    pub everybody: bool,
    /// The run whose held deletions an operator approved.
    #[serde(default)]
    pub approved: Option<String>,
}

impl Checks {
    /// Who waits.
    pub async fn load(store: &dyn Store) -> Result<Self, Error> {
        kept::load(store, KEY).await
    }

    /// Asks for checks of these users. Cancel safe.
    pub async fn ask(store: &dyn Store, users: &[UserId]) -> Result<(), Error> {
        if users.is_empty() {
            return Ok(());
        }
        kept::change(store, KEY, |checks: &mut Self| {
            checks.users.extend(users.iter().map(|user| (user.clone(), random::number())));
            if checks.users.len() > MOST {
                checks.everybody = true;
                checks.users.clear();
            }
        })
        .await
    }

    /// Asks for a scan. Cancel safe.
    pub async fn ask_everybody(store: &dyn Store) -> Result<(), Error> {
        kept::change(store, KEY, |checks: &mut Self| checks.everybody = true).await
    }

    /// Asks for a scan that carries out what this run held. Cancel safe.
    pub async fn approve(store: &dyn Store, run: &str) -> Result<(), Error> {
        kept::change(store, KEY, |checks: &mut Self| checks.approved = Some(run.to_owned())).await
    }

    /// Asks again for the scan that did not come to its end.
    pub async fn again(store: &dyn Store, asked: &Self) -> Result<(), Error> {
        kept::change(store, KEY, |checks: &mut Self| {
            checks.everybody |= asked.everybody;
            checks.approved = checks.approved.take().or_else(|| asked.approved.clone());
        })
        .await
    }

    /// Whether a scan was asked for.
    pub fn ask_for_scan(&self) -> bool {
        self.everybody || self.approved.is_some()
    }

    /// These users were checked, or everybody was. Who was asked about again meanwhile stays.
    pub async fn done(store: &dyn Store, done: &Self) -> Result<(), Error> {
        kept::change(store, KEY, |checks: &mut Self| {
            checks.users.retain(|user, asked| done.users.get(user) != Some(asked));
            checks.everybody &= !done.everybody;
            checks.approved = checks.approved.take().filter(|run| done.approved.as_ref() != Some(run));
        })
        .await
    }
}
