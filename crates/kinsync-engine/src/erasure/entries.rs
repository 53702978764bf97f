//! The entries of the event log of erased users.

use std::collections::BTreeSet;

use kinsync_core::{Micros, UserId};
use serde_json::json;

use super::{
    record::ErasedUsers,
    subjects::{Subjects, addresses},
};
use crate::{
    decode,
    log_entry::{ERASED, LogEntry, LogSource},
    store::{Error, EventFilter, Page, Store},
};

/// Entries per read.
const PAGE: usize = 200;

/// Replaces the entries of a user by markers, which keep the id, the type, the times and a hash of the payload. Returns the number
/// of replaced ones.
///
/// # Errors
/// Fails when the store fails. A repetition continues.
pub async fn erase_entries(store: &dyn Store, user: &UserId, now: Micros) -> Result<u64, Error> {
    let of_user = EventFilter { user: Some(user.to_string()), limit: PAGE, ..EventFilter::default() };
    replace(store, of_user, Some(user), now, |_| true).await
}

/// Replaces the entries of those of these users that were erased. For entries that were derived from a read before the erasure and
/// logged after it: the record of an erasure exists before anything is erased.
///
/// # Errors
/// Fails when the store fails.
pub(crate) async fn erase_logged(
    store: &dyn Store,
    users: impl IntoIterator<Item = &UserId>,
    now: Micros,
) -> Result<(), Error> {
    let users = users.into_iter().map(ToString::to_string).collect();
    for user in ErasedUsers::default().among(store, &users).await? {
        if let Ok(user) = UserId::parse(&user) {
            erase_entries(store, &user, now).await?;
        }
    }
    Ok(())
}

/// Replaces the entries about no user that name one of these.
pub(super) async fn erase_others(store: &dyn Store, subjects: &Subjects, now: Micros) -> Result<u64, Error> {
    replace(store, without_user(), None, now, |entry| subjects.are_named_in(&entry.payload)).await
}

/// Counts what [`erase_entries`] and [`erase_others`] would replace.
pub(super) async fn count(
    store: &dyn Store,
    user: &UserId,
    subjects: &Subjects,
) -> Result<(u64, u64), Error> {
    let (mut of_user, mut others) = (0, 0);
    let filter = EventFilter { user: Some(user.to_string()), limit: PAGE, ..EventFilter::default() };
    each_page(store, filter, |page| {
        of_user += page.iter().filter(|entry| !entry.is_erased()).count() + page.undecodable.len();
    })
    .await?;
    each_page(store, without_user(), |page| {
        let is_named = |entry: &&LogEntry| !entry.is_erased() && subjects.are_named_in(&entry.payload);
        others += page.iter().filter(is_named).count();
    })
    .await?;
    Ok((of_user as u64, others as u64))
}

/// Returns the hashes of all addresses in the entries of a user.
pub(super) async fn addresses_of(store: &dyn Store, user: &UserId) -> Result<BTreeSet<String>, Error> {
    let mut found = BTreeSet::new();
    let filter = EventFilter { user: Some(user.to_string()), limit: PAGE, ..EventFilter::default() };
    each_page(store, filter, |page| {
        let states = page.iter().filter_map(|entry| decode::state_of(entry, Micros(i64::MAX)).ok()?);
        found.extend(states.filter_map(|state| addresses(&state)));
    })
    .await?;
    Ok(found)
}

fn without_user() -> EventFilter {
    EventFilter { without_user: true, limit: PAGE, ..EventFilter::default() }
}

async fn each_page(
    store: &dyn Store,
    mut filter: EventFilter,
    mut work: impl FnMut(&Page<LogEntry>),
) -> Result<(), Error> {
    loop {
        let page = store.events(&filter).await?;
        work(&page);
        match page.next {
            Some(next) => filter.after = Some(next),
            None => return Ok(()),
        }
    }
}

/// Replaces entries until none is left: a damaged entry can end a list early.
async fn replace(
    store: &dyn Store,
    first: EventFilter,
    user: Option<&UserId>,
    now: Micros,
    is_about: impl Fn(&LogEntry) -> bool,
) -> Result<u64, Error> {
    let mut total = 0;
    loop {
        let (mut replaced, mut damaged, mut filter) = (0, Vec::new(), first.clone());
        loop {
            let page = store.events(&filter).await?;
            let due = page.items.iter().filter(|entry| !entry.is_erased() && is_about(entry));
            let markers: Vec<LogEntry> = due.map(LogEntry::marker).collect();
            store.replace_entries(&markers).await?;
            replaced += markers.len();
            damaged.extend(page.undecodable);
            match page.next {
                Some(next) => filter.after = Some(next),
                None => break,
            }
        }
        if let Some(user) = user {
            let markers: Vec<LogEntry> = damaged.into_iter().map(|id| unreadable(id, user, now)).collect();
            store.replace_entries(&markers).await?;
            replaced += markers.len();
        }
        total += replaced as u64;
        if replaced == 0 {
            return Ok(total);
        }
    }
}

/// Returns the marker of an entry that cannot be read.
fn unreadable(id: String, user: &UserId, now: Micros) -> LogEntry {
    LogEntry {
        id,
        kind: ERASED.to_owned(),
        user: Some(user.to_string()),
        source: LogSource::Kinsync,
        version: None,
        at: None,
        received_at: now,
        scheme: ERASED.to_owned(),
        payload: json!({ "sha256": null }).to_string(),
    }
}
