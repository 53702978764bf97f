//! Deletions and suspensions that the store refuses to write, kept in a record of kinsync's own.
//!
//! The request path joins them into what it loads, so that such a user is refused all the same. They
//! are applied again with each sweep, and removed once the store has them.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kinsync_core::{Source, UserId, UserState};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    state_records,
    store::{Error, Row, Store},
};

const KEY: &str = "users.refused";

/// Users kept at most.
const MAX_USERS: usize = 1000;

/// How old the record may be that is joined into rows.
const MAX_AGE: Duration = Duration::from_millis(500);

/// What the store refuses to write of a user.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedUser {
    /// State of the user, including what could not be written.
    pub state: UserState,
    /// How it was learned.
    pub source: Source,
    /// Why the store refuses it, for an operator.
    pub reason: String,
}

/// Deleted or suspended users whom the store refuses to write as such.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedUsers {
    /// By id.
    pub users: BTreeMap<UserId, RefusedUser>,
}

impl RefusedUsers {
    /// Reads the record.
    pub async fn load(store: &dyn Store) -> Result<Self, Error> {
        state_records::load(store, KEY).await
    }

    /// Adds users. Past the bound users who are not yet there are left out.
    pub(crate) async fn add(store: &dyn Store, refused: &[(UserId, RefusedUser)]) -> Result<(), Error> {
        if refused.is_empty() {
            return Ok(());
        }
        state_records::change(store, KEY, |kept: &mut Self| {
            for (user, refused) in refused {
                let is_full = kept.users.len() >= MAX_USERS;
                if kept.users.contains_key(user) || !is_full {
                    kept.users.insert(user.clone(), refused.clone());
                } else {
                    tracing::error!(user = user.as_str(), "too many deletions and suspensions are refused");
                }
            }
        })
        .await
    }

    /// Removes users of whom the store has everything.
    pub(crate) async fn remove(store: &dyn Store, users: &HashSet<UserId>) -> Result<(), Error> {
        state_records::change(store, KEY, |kept: &mut Self| {
            kept.users.retain(|user, _| !users.contains(user));
        })
        .await
    }
}

/// Loads rows for the request path: each with what the store refused to write of it. Reads the
/// record at most twice a second.
#[derive(Debug, Default)]
pub struct RowsWithRefused(Mutex<Option<(Instant, Arc<RefusedUsers>)>>);

impl RowsWithRefused {
    /// The rows of these users, in the same order; `None` for those of whom nothing is known.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn load(&self, store: &dyn Store, ids: &[UserId]) -> Result<Vec<Option<Row>>, Error> {
        let (mut rows, refused) = tokio::try_join!(store.load(ids), self.refused(store))?;
        for (id, row) in ids.iter().zip(&mut rows) {
            if let Some(refused) = refused.users.get(id) {
                let known = row.take().unwrap_or_else(|| Row::unknown(id.clone()));
                let state = known.state.clone().join(refused.state.clone());
                *row = Some(Row { state, ..known });
            }
        }
        Ok(rows)
    }

    async fn refused(&self, store: &dyn Store) -> Result<Arc<RefusedUsers>, Error> {
        let known = self.lock().clone().filter(|(read_at, _)| read_at.elapsed() < MAX_AGE);
        if let Some((_, refused)) = known {
            return Ok(refused);
        }
        let read_at = Instant::now();
        let refused = Arc::new(RefusedUsers::load(store).await?);
        *self.lock() = Some((read_at, Arc::clone(&refused)));
        Ok(refused)
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Instant, Arc<RefusedUsers>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
