//! The organizations, roles and permissions that rows refer to.
//!
//! A row contains a copy of what it refers to. A spread of a change finds the row by its references, so only a row that is written
//! with a *new* reference can miss the change: its writer reads the directory, the directory changes, the spread looks for users,
//! and then the row is written. The writer therefore reads the directory once more after the write. A kill in between leaves the
//! former copy until the observations are applied again, and they are: the queue, the checks and the scans repeat what did not
//! end, and each repetition reads the directory.

use std::collections::{BTreeSet, HashMap, HashSet};

use kinsync_core::{Directory, Micros, UserId, UserState};

use super::{Delta, rewrite};
use crate::{
    directory,
    store::{Error, Row, Store},
};

/// Returns what the memberships in these rows and deltas refer to.
pub(super) fn references(rows: &[Row], deltas: &HashMap<UserId, Delta>) -> BTreeSet<String> {
    let of = |row: &Row| {
        let delta = &deltas[&row.id];
        // The copy of a row may have been removed by hand.
        let is_known = || row.state.directory.has_all(&row.state.references());
        let concerns_memberships = delta.is_empty() || delta.state.memberships().is_some() || !is_known();
        concerns_memberships.then(|| [row.state.references(), delta.state.references()])
    };
    rows.iter().filter_map(of).flatten().flatten().collect()
}

/// Writes rows with new references again if what they refer to has changed since the first read of the directory.
pub(super) async fn spread_concurrent_changes(
    store: &dyn Store,
    written: &[(Row, UserState)],
    referring: &HashSet<UserId>,
    first_read: &Directory,
    now: Micros,
) -> Result<(), Error> {
    let rows: Vec<&Row> =
        written.iter().map(|(row, _)| row).filter(|row| referring.contains(&row.id)).collect();
    let ids: BTreeSet<String> = rows.iter().flat_map(|row| row.state.references()).collect();
    let directory = directory::load(store, ids.clone()).await?.shown();
    if directory == first_read.only(&ids) {
        return Ok(());
    }
    let is_outdated = |row: &&&Row| row.state.clone().with_directory(&directory) != row.state;
    let outdated: Vec<UserId> = rows.iter().filter(is_outdated).map(|row| row.id.clone()).collect();
    if outdated.is_empty() {
        return Ok(());
    }
    rewrite(store, &outdated, now).await.map(|_| ())
}
