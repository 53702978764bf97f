//! Keeps the collections of organizations, roles and memberships complete.
//!
//! The spread of a changed record and the write of a row show their documents at once. This task does what they left: it shows
//! rows with a mark, after a kill between the row and its documents or after a refusal, and once a day it compares all documents,
//! because an application may change or delete them. It compares all of them too when a collection or the name of a key is new.

use std::{sync::Arc, time::Duration};

use kinsync_core::{Micros, UserId};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    breaker::error_chain,
    clock::Clock,
    directory, random,
    state_records::{self, Key},
    store::{Error, Store},
};

/// Interval of the search for marked rows.
const POLL: Duration = Duration::from_secs(5);
/// Pause after rows that stay marked, because the database refuses documents, and after a failure.
const LONG_PAUSE: Duration = Duration::from_mins(1);
/// Interval of the comparison of all documents.
const COMPARE_EVERY: Duration = Duration::from_hours(24);
/// Users of one page.
const PAGE: usize = 500;
/// Organizations and roles of one page.
const RECORDS: usize = 200;
/// Pause between two pages of the comparison: it must not slow down other work.
const PAGE_PAUSE: Duration = Duration::from_millis(20);

/// Record of the comparison of all documents.
pub(crate) const KEY: Key = Key::new("derived.compared", "all derived documents are compared again");

/// How far the comparison of all documents has come.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Compared {
    /// The collections and names of keys that it is about.
    collections: String,
    /// The last user so far; `None` at the beginning and when done.
    after: Option<UserId>,
    /// When the last one ended; `None` before the first end under these names.
    ended_at: Option<Micros>,
}

impl Compared {
    fn is_due(&self, collections: &str, now: Micros) -> bool {
        let longest = i64::try_from(COMPARE_EVERY.as_micros()).unwrap_or(i64::MAX);
        let is_old = |ended: Micros| now.0.saturating_sub(ended.0) >= longest;
        self.collections != collections || self.ended_at.is_none_or(is_old)
    }
}

/// Runs until `stop` is cancelled. Returns at once for a store without such collections.
pub async fn run(store: Arc<dyn Store>, clock: Clock, stop: CancellationToken) {
    loop {
        let pause = match stop.run_until_cancelled(round(&*store, &clock)).await {
            None => return,
            Some(Ok(true)) => POLL,
            Some(Ok(false)) => LONG_PAUSE,
            Some(Err(error)) => {
                tracing::warn!(
                    error = error_chain(&error),
                    "documents of organizations, roles or memberships may be outdated; trying again in a minute"
                );
                LONG_PAUSE
            }
        };
        let pause = tokio::time::sleep(random::jitter(pause, 0.5..=1.0));
        if stop.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}

/// Shows marked rows, and compares all documents if that is due. Returns whether no row is marked any more.
async fn round(store: &dyn Store, clock: &Clock) -> Result<bool, Error> {
    let Some(collections) = store.derived_collections() else { return Ok(true) };
    show_marked(store).await?;
    compare_if_due(store, &collections, clock).await?;
    Ok(store.unshown_memberships(None, 1).await?.is_empty())
}

/// Shows the memberships of all marked rows.
///
/// # Errors
/// Fails when the store fails. A repetition continues.
pub async fn show_marked(store: &dyn Store) -> Result<(), Error> {
    let mut after = None;
    loop {
        let users = store.unshown_memberships(after.as_ref(), PAGE).await?;
        let Some(last) = users.last() else { return Ok(()) };
        store.show_memberships(&users).await?;
        after = Some(last.clone());
    }
}

/// Compares the documents of all organizations and roles.
///
/// # Errors
/// Fails when the store fails. A repetition is safe.
pub async fn show_directory(store: &dyn Store, now: Micros) -> Result<(), Error> {
    if store.derived_collections().is_none() {
        return Ok(());
    }
    let all = directory::list(store).await?.stored;
    let shown = all.into_iter().filter(|(_, stored)| stored.kind != directory::Kind::Permission);
    let ids: Vec<String> = shown.map(|(id, _)| id).collect();
    for ids in ids.chunks(RECORDS) {
        store.show_directory(ids, now).await?;
    }
    Ok(())
}

/// Compares all documents. Another process that does the same continues at the stored position.
async fn compare_if_due(store: &dyn Store, collections: &str, clock: &Clock) -> Result<(), Error> {
    let known: Compared = state_records::load(store, &KEY).await?;
    if !known.is_due(collections, clock.now()) {
        return Ok(());
    }
    show_directory(store, clock.now()).await?;
    let mut after = if known.collections == collections { known.after } else { None };
    loop {
        let users =
            if store.shows_memberships() { store.ids(after.as_ref(), PAGE).await? } else { Vec::new() };
        store.show_memberships(&users).await?;
        let last = users.last().cloned();
        let ended_at = last.is_none().then(|| clock.now());
        after = state_records::change(store, &KEY, |compared: &mut Compared| {
            if compared.collections != collections {
                *compared = Compared { collections: collections.to_owned(), ..Compared::default() };
            }
            // Another process may be further.
            compared.after = if ended_at.is_some() { None } else { compared.after.clone().max(last.clone()) };
            compared.ended_at = ended_at.or(compared.ended_at);
            compared.after.clone()
        })
        .await?;
        if last.is_none() {
            return Ok(());
        }
        tokio::time::sleep(PAGE_PAUSE).await;
    }
}
