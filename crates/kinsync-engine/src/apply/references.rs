//! The organizations, roles and permissions that rows refer to.

use std::collections::{BTreeSet, HashMap};

use kinsync_core::{Micros, UserId, UserState};

use super::{Delta, rewrite};
use crate::{
    directory,
    store::{Error, Row, Store},
};

/// Returns what the memberships in these rows and deltas refer to.
pub(super) fn references(rows: &[Row], deltas: &HashMap<UserId, Delta>) -> BTreeSet<String> {
    let of = |row: &Row| {
        let delta = &deltas[&row.id];
        let concerns_memberships = delta.is_empty() || delta.state.memberships().is_some();
        concerns_memberships.then(|| [row.state.references(), delta.state.references()])
    };
    rows.iter().filter_map(of).flatten().flatten().collect()
}

/// Writes rows again that refer to an organization, a role or a permission for the first time, if it has changed meanwhile: the
/// process that spread the change may have looked for the users before these rows were written.
pub(super) async fn spread_concurrent_changes(
    store: &dyn Store,
    written: &[(Row, UserState)],
    referring: &[UserId],
    now: Micros,
) -> Result<(), Error> {
    let rows: Vec<&Row> =
        written.iter().map(|(row, _)| row).filter(|row| referring.contains(&row.id)).collect();
    let ids = rows.iter().flat_map(|row| row.state.references()).collect();
    let directory = directory::load(store, ids).await?;
    let is_outdated = |row: &&&Row| row.state.clone().with_directory(&directory) != row.state;
    let outdated: Vec<UserId> = rows.iter().filter(is_outdated).map(|row| row.id.clone()).collect();
    if outdated.is_empty() {
        return Ok(());
    }
    rewrite(store, &outdated, now).await.map(|_| ())
}
