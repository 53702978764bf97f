//! Loads users for the request path.
//!
//! The row of a user may be older than the records of kinsync: a rule of the store refuses the row, or a changed organization, role
//! or permission is still being written to the rows of its users. Both are joined into the loaded user, so they take effect at once.
//! While there is neither, that costs two small reads every [`MAX_AGE`].

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kinsync_core::UserId;
use tokio::time::Instant;

use crate::{
    directory,
    refused_users::{self, RefusedUser},
    spread,
    store::{Digest, Error, Reloaded, Row, Store},
};

/// How long the answer that there is nothing to join is used.
const MAX_AGE: Duration = Duration::from_millis(200);

/// A user for the request path.
#[derive(Clone, PartialEq, Debug)]
pub struct KnownUser {
    /// The row, joined with what it does not show yet.
    pub row: Row,
    /// Whether the store has no document of the user, because a rule refuses it.
    pub is_document_refused: bool,
}

impl KnownUser {
    /// Joins the row of a user with what the store refuses of it. `None` without both.
    pub fn of(id: &UserId, row: Option<Row>, refused: Option<RefusedUser>) -> Option<Self> {
        let is_document_refused = row.is_none();
        let Some(refused) = refused else { return row.map(|row| Self { row, is_document_refused: false }) };
        let row = row.unwrap_or_else(|| Row::unknown(id.clone()));
        let state = row.state.clone().join(refused.state);
        Some(Self { row: Row { state, ..row }, is_document_refused })
    }
}

/// Loads users for the request path, each with what its row does not show yet.
#[derive(Debug, Default)]
pub struct KnownUsers {
    no_refused: Nothing,
    no_spread: Nothing,
}

impl KnownUsers {
    /// Returns these users, in the same order; `None` for a user without a document and without a record.
    ///
    /// # Errors
    /// Fails when the store fails, or when a newer kinsync wrote a record.
    pub async fn load(&self, store: &dyn Store, ids: &[UserId]) -> Result<Vec<Option<KnownUser>>, Error> {
        let beside = self.beside_rows(store, ids).await?;
        beside.load(store, ids).await
    }

    /// Returns these users in the same order, except those that still have the digest of their last load. Each id must be given once. A
    /// row that is joined with something has no digest.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn reload(
        &self,
        store: &dyn Store,
        users: &[(UserId, Option<Digest>)],
    ) -> Result<Vec<Reloaded<KnownUser>>, Error> {
        let ids: Vec<UserId> = users.iter().map(|(id, _)| id.clone()).collect();
        let beside = self.beside_rows(store, &ids).await?;
        if beside.is_spreading || !beside.refused.is_empty() {
            let known = beside.load(store, &ids).await?.into_iter();
            return Ok(known
                .map(|user| user.map_or(Reloaded::Absent, |user| Reloaded::Loaded(user, None)))
                .collect());
        }
        let known = store.reload(users).await?.into_iter().map(|found| match found {
            Reloaded::Absent => Reloaded::Absent,
            Reloaded::Unchanged => Reloaded::Unchanged,
            Reloaded::Loaded(row, digest) => {
                Reloaded::Loaded(KnownUser { row, is_document_refused: false }, digest)
            }
        });
        Ok(known.collect())
    }

    /// Reads what the rows of these users may not show yet. Before the rows: in the other order, what is written to the rows and
    /// done with in between would be in neither.
    async fn beside_rows(&self, store: &dyn Store, ids: &[UserId]) -> Result<BesideRows, Error> {
        let refused = self.refused(store, ids);
        let (refused, is_spreading) =
            tokio::try_join!(refused, self.no_spread.or_some(spread::is_any(store)))?;
        Ok(BesideRows { refused, is_spreading })
    }

    /// Reads the records at the next load, because a user was refused.
    pub fn expect_refused(&self) {
        self.no_refused.clear();
    }

    /// Returns the records of these users.
    async fn refused(
        &self,
        store: &dyn Store,
        ids: &[UserId],
    ) -> Result<HashMap<UserId, RefusedUser>, Error> {
        if !self.no_refused.or_some(refused_users::is_any(store)).await? {
            return Ok(HashMap::new());
        }
        let refused = refused_users::of(store, ids).await?;
        Ok(ids.iter().cloned().zip(refused).filter_map(|(id, user)| Some((id, user?))).collect())
    }
}

/// What the rows of users may not show yet.
struct BesideRows {
    /// The records of these users.
    refused: HashMap<UserId, RefusedUser>,
    /// Whether a changed organization, role or permission is still being written to rows.
    is_spreading: bool,
}

impl BesideRows {
    /// Loads the rows and joins both.
    async fn load(mut self, store: &dyn Store, ids: &[UserId]) -> Result<Vec<Option<KnownUser>>, Error> {
        let rows = store.load(ids).await?;
        let known = ids.iter().zip(rows).map(|(id, row)| KnownUser::of(id, row, self.refused.remove(id)));
        let mut known: Vec<Option<KnownUser>> = known.collect();
        if self.is_spreading {
            join_directory(store, &mut known).await?;
        }
        Ok(known)
    }
}

/// Joins what is known of the organizations, roles and permissions that the users refer to. Reads the records of these alone: a
/// scan may have changed very many others.
async fn join_directory(store: &dyn Store, users: &mut [Option<KnownUser>]) -> Result<(), Error> {
    let references: BTreeSet<String> =
        users.iter().flatten().flat_map(|user| user.row.state.references()).collect();
    if references.is_empty() {
        return Ok(());
    }
    let directory = directory::load(store, references).await?;
    for user in users.iter_mut().flatten() {
        let state = std::mem::take(&mut user.row.state);
        user.row.state = state.with_directory(&directory);
    }
    Ok(())
}

/// The answer that there is nothing to join, used for [`MAX_AGE`].
#[derive(Debug, Default)]
pub(crate) struct Nothing(Mutex<Option<Instant>>);

impl Nothing {
    /// Returns whether there is something. Reads it unless the last answer, that there is nothing, is young enough.
    pub(crate) async fn or_some(
        &self,
        is_any: impl Future<Output = Result<bool, Error>>,
    ) -> Result<bool, Error> {
        if self.lock().is_some_and(|read_at| read_at.elapsed() < MAX_AGE) {
            return Ok(false);
        }
        let read_at = Instant::now();
        let is_any = is_any.await?;
        *self.lock() = Some(read_at).filter(|_| !is_any);
        Ok(is_any)
    }

    fn clear(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
