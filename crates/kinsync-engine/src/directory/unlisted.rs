//! Objects that an event about a user names, and that the newest complete list of their kind lacks.
//!
//! The events of their creation and of their deletion may both be lost: then an event about a user is all that names them. One that
//! is older than the list brings nothing to life. The object did not exist when the list was made, so the record says that it was deleted
//! until then, and this deletion reaches the users as any other does. Of an event that is newer than the list, or was applied before it,
//! nothing follows, nor of an older read of a user (a check beside a scan): the next read of the user ends what it shows.

use std::collections::BTreeMap;

use kinsync_core::{Entry, Version};

use super::{Change, Kind, LISTED, Listed, PAGE, PREFIX, decode, observe};
use crate::{
    state_records,
    store::{Error, Store},
};

/// An organization, a role or a permission that an event about a user names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// What the object is.
    pub kind: Kind,
    /// Its code or id.
    pub id: String,
    /// Version of the event.
    pub version: Version,
}

/// Joins what events observe like [`observe`], and the deletions of what they name and the newest complete list of its kind lacks.
/// Returns whether a record is marked.
///
/// # Errors
/// Fails when the store fails. A repetition is safe.
pub async fn observe_events(
    store: &dyn Store,
    mut changes: Vec<Change>,
    named: Vec<Named>,
) -> Result<bool, Error> {
    changes.extend(deletions(store, named).await?);
    observe(store, changes).await
}

async fn deletions(store: &dyn Store, named: Vec<Named>) -> Result<Vec<Change>, Error> {
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let listed: Listed = state_records::load(store, &LISTED).await?;
    let mut older: BTreeMap<String, (Kind, Version)> = BTreeMap::new();
    for Named { kind, id, version } in named {
        if listed.0.get(&kind).is_some_and(|listed| version <= *listed) {
            let (_, newest) = older.entry(id).or_insert_with(|| (kind, version.clone()));
            *newest = version.max(newest.clone());
        }
    }
    let older: Vec<(String, (Kind, Version))> = older.into_iter().collect();
    let mut deleted = Vec::new();
    for older in older.chunks(PAGE) {
        let keys: Vec<String> = older.iter().map(|(id, _)| format!("{PREFIX}{id}")).collect();
        let saved = store.states(&keys).await?;
        for (((id, (kind, version)), key), saved) in older.iter().zip(&keys).zip(saved) {
            // What an unreadable record says is not known.
            let Ok(known) = saved.map(|saved| decode(key, &saved)).transpose() else { continue };
            let known = known.as_ref().map(|stored| &stored.entry);
            let entry = Entry::unlisted(known, version, listed.0.get(kind));
            deleted.extend(entry.map(|entry| Change { kind: *kind, id: id.clone(), entry }));
        }
    }
    Ok(deleted)
}
