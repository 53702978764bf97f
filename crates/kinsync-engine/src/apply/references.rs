//! The organizations, roles and permissions that rows refer to.
//!
//! A row contains a copy of what it refers to. A spread of a change finds the row by its references, so only a row that is written
//! with a *new* reference can miss the change: its writer reads the directory, the directory changes, the spread looks for users,
//! and then the row is written. The writer therefore reads the directory once more after the write. A kill between both would
//! leave the old copy, so a durable note of the rows precedes the write. [`crate::spread`] completes what a note of a process that
//! ended contains.
//!
//! The note costs one small write for a batch of rows. The alternatives cost more: a mark in each row needs a second write of the
//! row, a transaction over row and directory excludes all other writers, and a spread that waits for slow writers must know them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kinsync_core::{Micros, UserId, UserState};
use serde::{Deserialize, Serialize};

use super::{Delta, rewrite};
use crate::{
    directory, random,
    store::{Error, Row, Saved, Store},
};

const PREFIX: &str = "unconfirmed/";

/// Version of the format of a note.
const FORMAT: u32 = 1;

/// Notes read per call.
const PAGE: usize = 1000;

/// A note of rows that are written with new references.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) key: String,
    /// Revisions of the rows before the write.
    pub(crate) rows: BTreeMap<UserId, i64>,
    revision: i64,
}

#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    rows: BTreeMap<UserId, i64>,
}

impl Note {
    /// Stores a note of these rows before they are written; `None` without rows.
    pub(super) async fn of(store: &dyn Store, rows: BTreeMap<UserId, i64>) -> Result<Option<Self>, Error> {
        if rows.is_empty() {
            return Ok(None);
        }
        let key = format!("{PREFIX}{:032x}", random::number::<u128>());
        let record = Record { format: FORMAT, rows };
        let value = serde_json::to_value(&record).expect("texts and numbers are JSON");
        if !store.put_state(&key, &value, 0).await? {
            let source = "a random key exists".into();
            return Err(Error::Unavailable { doing: "write a record of kinsync", source });
        }
        Ok(Some(Self { key, rows: record.rows, revision: 1 }))
    }

    /// Lists the notes of all processes.
    pub(crate) async fn list(store: &dyn Store) -> Result<Vec<Self>, Error> {
        let (mut notes, mut after): (Vec<Self>, Option<String>) = (Vec::new(), None);
        loop {
            let page = store.list_states(PREFIX, after.as_deref(), PAGE).await?;
            for (key, saved) in &page {
                notes.push(Self { key: key.clone(), rows: decode(key, saved)?, revision: saved.revision });
            }
            if page.len() < PAGE {
                return Ok(notes);
            }
            after = page.into_iter().next_back().map(|(key, _)| key);
        }
    }

    /// Removes the note.
    pub(crate) async fn remove(self, store: &dyn Store) -> Result<(), Error> {
        store.remove_states(&[(self.key, self.revision)]).await
    }
}

fn decode(key: &str, saved: &Saved) -> Result<BTreeMap<UserId, i64>, Error> {
    let record = Record::deserialize(&saved.value).ok().filter(|record| record.format == FORMAT);
    record.map(|record| record.rows).ok_or_else(|| Error::Refused {
        doing: "read a note of rows",
        hint: format!("this kinsync cannot read the record `{key}`; run the version that wrote it"),
        source: None,
    })
}

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

/// Writes the noted rows again if what they refer to has changed meanwhile, and removes the notes.
pub(super) async fn confirm(
    store: &dyn Store,
    written: &[(Row, UserState)],
    notes: Vec<Note>,
    now: Micros,
) -> Result<(), Error> {
    if notes.is_empty() {
        return Ok(());
    }
    let is_noted = |row: &&Row| notes.iter().any(|note| note.rows.contains_key(&row.id));
    let rows: Vec<&Row> = written.iter().map(|(row, _)| row).filter(is_noted).collect();
    let ids = rows.iter().flat_map(|row| row.state.references()).collect();
    let directory = directory::load(store, ids).await?;
    let is_outdated = |row: &&&Row| row.state.clone().with_directory(&directory) != row.state;
    let outdated: Vec<UserId> = rows.iter().filter(is_outdated).map(|row| row.id.clone()).collect();
    if !outdated.is_empty() {
        rewrite(store, &outdated, now).await?;
    }
    let notes: Vec<(String, i64)> = notes.into_iter().map(|note| (note.key, note.revision)).collect();
    store.remove_states(&notes).await
}
