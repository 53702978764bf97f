//! Applies entries of the log again: after a defect in decoding was corrected, or a dead letter was removed too early.
//!
//! The join decides as for a new delivery, so a replay of any entries in any order is safe. A state that contains them already
//! stays as it is.

use std::collections::{BTreeMap, BTreeSet};

use kinsync_core::{Micros, Observation, UserId, UserState};
use serde::Serialize;

use crate::{
    apply::apply_logged,
    decode, directory, log_entry,
    store::{Error, EventFilter, LogEntry, Store},
};

/// Whether a replay writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Reports what would change.
    Dry,
    /// Applies the entries.
    Apply,
}

/// Result for a page of entries.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Replayed {
    /// Entries on the page.
    pub entries: u64,
    /// Users that changed, or would change, each with the fields.
    pub changed: BTreeMap<UserId, BTreeSet<&'static str>>,
    /// Entries that were not applied, each with the reason.
    pub skipped: BTreeMap<String, String>,
    /// The `after` of the next page; `None` on the last one.
    pub next: Option<String>,
}

/// Applies one page of entries again, newest receipt first.
///
/// # Errors
/// Fails when the store fails. A repetition is safe.
pub async fn replay(
    store: &dyn Store,
    filter: &EventFilter,
    mode: Mode,
    now: Micros,
) -> Result<Replayed, Error> {
    let page = store.events(filter).await?;
    let mut replayed = Replayed { next: page.next.clone(), ..Replayed::default() };
    replayed.entries = (page.items.len() + page.undecodable.len()) as u64;
    let damaged =
        page.undecodable.iter().map(|id| (id.clone(), "it was changed after it was written".to_owned()));
    replayed.skipped.extend(damaged);
    replay_entries(store, page.items, mode, now, &mut replayed).await?;
    Ok(replayed)
}

/// Applies one entry again. Returns `None` if the log does not contain it; a damaged entry is skipped.
///
/// # Errors
/// Fails when the store fails. A repetition is safe.
pub async fn replay_one(
    store: &dyn Store,
    id: &str,
    mode: Mode,
    now: Micros,
) -> Result<Option<Replayed>, Error> {
    let filter = EventFilter { id: Some(id.to_owned()), limit: 1, ..EventFilter::default() };
    let replayed = replay(store, &filter, mode, now).await?;
    Ok((replayed.entries > 0).then_some(replayed))
}

async fn replay_entries(
    store: &dyn Store,
    entries: Vec<LogEntry>,
    mode: Mode,
    now: Micros,
    replayed: &mut Replayed,
) -> Result<(), Error> {
    let (mut observations, mut changes, mut named) = (Vec::new(), Vec::new(), Vec::new());
    for entry in &entries {
        match contents(entry, now) {
            Ok(contents) => {
                observations.extend(contents.observations);
                changes.extend(contents.changes);
                named.extend(contents.named);
            }
            Err(reason) => _ = replayed.skipped.insert(entry.id.clone(), reason),
        }
    }
    replayed.changed = changed_fields(store, &observations).await?;
    if mode == Mode::Apply {
        directory::observe_events(store, changes, named).await?;
        let applied = apply_logged(store, observations, now).await?;
        let refused = applied.refused.into_iter().chain(applied.failed);
        let refused =
            refused.map(|(user, reason)| (user.to_string(), format!("the store refuses it: {reason}")));
        replayed.skipped.extend(refused);
    }
    Ok(())
}

/// What an entry observes.
#[derive(Default)]
struct Contents {
    observations: Vec<Observation>,
    changes: Vec<directory::Change>,
    named: Vec<directory::Named>,
}

/// Decodes an entry as the projector does.
fn contents(entry: &LogEntry, now: Micros) -> Result<Contents, String> {
    let latest = decode::latest(now, decode::FUTURE_TOLERANCE);
    match entry.scheme.as_str() {
        log_entry::ACTION => Err("it changes no user".into()),
        log_entry::ERASED => Err("its content was erased".into()),
        log_entry::STATE => Err("only `kinsync rebuild` joins a whole state".into()),
        log_entry::OBSERVATION => {
            let observation = decode::observation_in(entry).map_err(|error| error.to_string())?;
            Ok(Contents { observations: vec![observation], ..Contents::default() })
        }
        scheme => {
            let unknown = || format!("the scheme `{scheme}` is unknown to this version");
            let decoded = decode::decode_logged(entry, latest).ok_or_else(unknown)?;
            let observations = decoded.observations.map_err(|failure| failure.to_string())?;
            Ok(Contents { observations, changes: decoded.changes, named: decoded.named })
        }
    }
}

/// Returns the fields that the observations change in the stored states, by user.
async fn changed_fields(
    store: &dyn Store,
    observations: &[Observation],
) -> Result<BTreeMap<UserId, BTreeSet<&'static str>>, Error> {
    let mut joined: BTreeMap<UserId, UserState> = BTreeMap::new();
    for observation in observations {
        let state = joined.entry(observation.user.clone()).or_default();
        *state = std::mem::take(state).observe(observation);
    }
    let users: Vec<UserId> = joined.keys().cloned().collect();
    let mut changed = BTreeMap::new();
    for row in store.load_to_write(&users).await? {
        let observed = joined.remove(&row.id).unwrap_or_default();
        let next = row.state.clone().join(observed);
        let fields = fields_between(&row.state, &next);
        if row.revision == 0 || !fields.is_empty() {
            changed.insert(row.id, fields);
        }
    }
    Ok(changed)
}

fn fields_between(before: &UserState, after: &UserState) -> BTreeSet<&'static str> {
    let is_changed = |field: &&kinsync_core::Field| before.fields.get(field) != after.fields.get(field);
    let fields = after.fields.keys().filter(is_changed).map(|field| field.key());
    let others = [
        (before.deleted != after.deleted || before.confirmed != after.confirmed, "deletedAt"),
        (before.last_signed_in != after.last_signed_in, "lastSignedInAt"),
        (before.first != after.first, "createdAt"),
    ];
    fields.chain(others.into_iter().filter(|(is_changed, _)| *is_changed).map(|(_, field)| field)).collect()
}
