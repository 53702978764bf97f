//! Completes the log of a store from before the log contained every observation: one entry with the whole state of each user.
//!
//! The position is a record of kinsync, so that a restart continues. Any number of processes may run this: an entry has an id
//! that is derived from the state, and the position moves by compare-and-set. A store without users needs no entries.

use std::time::Duration;

use kinsync_core::{Directory, Micros, UserId, UserState};
use serde::{Deserialize, Serialize};

use crate::{
    clock::Clock,
    erasure::entries::erase_logged,
    log_entry::{LogEntry, LogSource, kind},
    refused_users,
    state_records::{self, Key},
    store::{Error, Store},
};

/// Record of the position.
pub(crate) const KEY: Key = Key::new("log.snapshots", "each user gets one more entry with the whole state");

/// Users per page.
const PAGE: usize = 500;

/// Pause between two pages, so that events and requests go first.
const PAUSE: Duration = Duration::from_millis(20);

/// Position of the work.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Position {
    after: Option<UserId>,
    /// Whether the log is complete.
    is_done: bool,
}

/// Marks the log of an empty store as complete. Call it before the first user is stored.
///
/// # Errors
/// Fails when the store fails. A repetition is safe.
pub(crate) async fn begin(store: &dyn Store) -> Result<(), Error> {
    let is_new = state_records::read::<Position>(store, &KEY).await?.revision == 0;
    if is_new && store.ids(None, 1).await?.is_empty() {
        state_records::change(store, &KEY, |position: &mut Position| position.is_done = true).await?;
    }
    Ok(())
}

/// Returns whether the log explains the state of every user.
///
/// # Errors
/// Fails when the store fails.
pub async fn is_complete(store: &dyn Store) -> Result<bool, Error> {
    Ok(state_records::load::<Position>(store, &KEY).await?.is_done)
}

/// Logs the states of all users, page by page, from the stored position. Cancel safe. Returns the number of users that this
/// call logged.
///
/// # Errors
/// Fails when the store fails. The next call continues.
pub async fn complete(store: &dyn Store, clock: &Clock) -> Result<u64, Error> {
    let mut logged = 0;
    loop {
        let Position { after, is_done } = state_records::load(store, &KEY).await?;
        if is_done {
            return Ok(logged);
        }
        let ids = store.ids(after.as_ref(), PAGE).await?;
        logged += log_users(store, &ids, clock.now()).await?;
        if ids.is_empty() {
            log_refused(store, clock.now()).await?;
        }
        let next = Position { after: ids.last().cloned(), is_done: ids.is_empty() };
        state_records::change(store, &KEY, |position: &mut Position| {
            // Another process may be further.
            if position.after == after {
                position.clone_from(&next);
            }
        })
        .await?;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn log_users(store: &dyn Store, ids: &[UserId], now: Micros) -> Result<u64, Error> {
    let rows = store.load(ids).await?.into_iter().flatten().filter(|row| row.revision > 0);
    let entries: Vec<LogEntry> = rows.map(|row| snapshot(&row.id, row.state, now)).collect();
    store.log(&entries).await?;
    erase_logged(store, ids, now).await?;
    Ok(entries.len() as u64)
}

/// The states of refused users are records of kinsync.
async fn log_refused(store: &dyn Store, now: Micros) -> Result<(), Error> {
    let mut after = None;
    loop {
        let (page, next) = refused_users::page(store, after.as_ref()).await?;
        let entries = page.into_iter().map(|refused| snapshot(&refused.id, refused.user.state, now));
        store.log(&entries.collect::<Vec<_>>()).await?;
        after = next;
        if after.is_none() {
            return Ok(());
        }
    }
}

/// Returns the entry of a whole state, without what a rebuild takes from elsewhere.
pub(crate) fn snapshot(user: &UserId, state: UserState, now: Micros) -> LogEntry {
    let state = UserState { last_seen: None, directory: Directory::default(), ..state };
    LogEntry::of_state(user, kind::SNAPSHOT, LogSource::Kinsync, &state, now)
}
