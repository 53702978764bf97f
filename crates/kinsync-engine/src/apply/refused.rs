//! Users and keys that a rule of the store refused: written when the rule allows it.

use std::collections::{HashMap, HashSet};

use kinsync_core::{Micros, UserId};

use super::{
    Delta, apply_deltas,
    write::{reduced, write_without},
};
use crate::{
    email_ownership::resolve,
    refused_users::{self, Refused, RefusedUser},
    store::{Error, Outcome, RefusedKeys, Row, Store},
};

/// Rows with refused keys that are written again per call.
const REFUSED_PAGE: usize = 1000;

impl Delta {
    fn of(refused: &Refused) -> Self {
        let RefusedUser { state, source, .. } = refused.user.clone();
        // Logged before the rule refused it.
        Self { state, source, ..Self::empty() }
    }
}

/// Writes the refused users that the store now accepts, and removes their records. Returns their number.
///
/// Reads a page of records per call, after the user `after`, and further pages while the store accepts users: a rule that
/// refuses very many users costs the same with each call, and all of them are stored soon after it allows them.
///
/// # Errors
/// Fails when the store fails. A repetition is safe.
pub async fn apply_refused(
    store: &dyn Store,
    after: &mut Option<UserId>,
    now: Micros,
) -> Result<usize, Error> {
    let mut stored = 0;
    loop {
        let (mut page, next) = refused_users::page(store, after.as_ref()).await?;
        *after = next;
        let deltas = page.iter().map(|refused| (refused.id.clone(), Delta::of(refused))).collect();
        let applied = apply_deltas(store, deltas, now, None).await?;
        let refused_ids: HashSet<UserId> =
            applied.refused.into_iter().chain(applied.failed).map(|(user, _)| user).collect();
        page.retain(|refused| !refused_ids.contains(&refused.id));
        refused_users::remove(store, &page).await?;
        stored += page.len();
        if page.is_empty() || after.is_none() {
            return Ok(stored);
        }
    }
}

/// Writes keys that a rule had kept out of documents and that the store now accepts. Checks a limited number of rows per
/// call, after the user `after`. Returns the number of rows with a changed document.
///
/// # Errors
/// Fails when the store fails. A repetition is safe.
pub async fn apply_refused_keys(
    store: &dyn Store,
    after: &mut Option<UserId>,
    now: Micros,
) -> Result<usize, Error> {
    let before = store.with_refused_keys(after.as_ref(), REFUSED_PAGE).await?;
    *after = before.last().filter(|_| before.len() == REFUSED_PAGE).map(|row| row.id.clone());
    let known: HashMap<UserId, RefusedKeys> =
        before.iter().map(|row| (row.id.clone(), row.refused.clone())).collect();
    let whole = |mut row: Row| {
        row.metadata.updated_at = now;
        Row { refused: RefusedKeys::default(), ..row }
    };
    // The same keys as before: the document is as it was.
    let is_other = |row: &Row| !known.get(&row.id).is_some_and(|known| known.are_same_keys(&row.refused));
    let next = |row: &Row, outcome: &Outcome| reduced(row, outcome).filter(is_other);
    let done = write_without(store, before.into_iter().map(whole).collect(), next).await?;
    let written: Vec<Row> = done
        .into_iter()
        .filter(|(_, outcome)| *outcome == Outcome::Written)
        .map(|(mut row, _)| {
            row.written();
            row
        })
        .collect();
    let changed = written.len();
    let pending = written.into_iter().filter(|row| !row.pending_emails.is_empty()).collect();
    resolve(store, pending, now).await?;
    Ok(changed)
}
