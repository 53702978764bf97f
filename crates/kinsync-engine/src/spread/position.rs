//! How far the walk of a marked record has come, as a record in the store, and which process works on it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kinsync_core::UserId;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Walk;
use crate::{
    directory::Stored,
    store::{Error, Saved, Store},
};

const PREFIX: &str = "spread/";

/// Version of the format of a record.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    /// The change that the walk spreads.
    change: u64,
    /// The last user of the walk so far.
    after: Option<UserId>,
    /// Whether the process that worked on it has stopped.
    #[serde(default)]
    is_released: bool,
}

/// The position of a walk.
#[derive(Clone, Debug, Default)]
pub(super) struct Position {
    /// Whether a process has claimed the walk, because it has more than one page.
    pub(super) is_begun: bool,
    /// The last user of the walk so far.
    pub(super) after: Option<UserId>,
    /// Revision of the record; 0 if it is not stored.
    revision: i64,
}

/// The positions that this process has seen.
#[derive(Debug)]
pub(super) struct Claims {
    take_over_after: Duration,
    seen: Mutex<HashMap<String, Seen>>,
}

#[derive(Debug)]
struct Seen {
    revision: i64,
    since: Instant,
    /// Whether this process wrote the revision.
    is_ours: bool,
}

impl Claims {
    pub(super) fn new(take_over_after: Duration) -> Self {
        Self { take_over_after, seen: Mutex::default() }
    }

    /// Returns the walks of these records that no other process works on.
    pub(super) async fn open(
        &self,
        store: &dyn Store,
        due: Vec<(String, Stored)>,
    ) -> Result<Vec<Walk>, Error> {
        let keys: Vec<String> = due.iter().map(|(id, _)| key(id)).collect();
        let saved = store.states(&keys).await?;
        self.seen().retain(|key, _| keys.contains(key));
        let mut walks = Vec::with_capacity(due.len());
        for (((id, stored), key), saved) in due.into_iter().zip(&keys).zip(saved) {
            // Without a readable position the walk begins again, which changes nothing for the users before it.
            let record = saved.as_ref().and_then(decode);
            let revision = saved.map_or(0, |saved| saved.revision);
            // The position of an earlier walk says nothing about this one.
            let begun = record.filter(|record| (stored.spread + 1..=stored.changes).contains(&record.change));
            let Some(Record { change, after, is_released, .. }) = begun else {
                let position = Position { revision, ..Position::default() };
                walks.push(Walk { id, change: stored.changes, position });
                continue;
            };
            if is_released || self.is_free(key, revision) {
                // A newer change is spread afterwards: with it the walk would begin again, maybe without end.
                walks.push(Walk { id, change, position: Position { is_begun: true, after, revision } });
            }
        }
        Ok(walks)
    }

    /// Returns whether this process, or no process any more, works at this revision of a position.
    fn is_free(&self, key: &str, revision: i64) -> bool {
        let mut seen = self.seen();
        if let Some(seen) = seen.get(key).filter(|seen| seen.revision == revision) {
            return seen.is_ours || seen.since.elapsed() >= self.take_over_after;
        }
        let first = Seen { revision, since: Instant::now(), is_ours: false };
        seen.insert(key.to_owned(), first);
        false
    }

    /// Claims a walk from the first user. Does nothing if another process was first.
    pub(super) async fn claim(&self, store: &dyn Store, walk: &Walk) -> Result<(), Error> {
        self.put(store, walk, None).await
    }

    /// Stores the last user of the walk. Does nothing if another process continues it.
    pub(super) async fn advance(
        &self,
        store: &dyn Store,
        walk: &Walk,
        after: Option<&UserId>,
    ) -> Result<(), Error> {
        self.put(store, walk, after.cloned()).await
    }

    async fn put(&self, store: &dyn Store, walk: &Walk, after: Option<UserId>) -> Result<(), Error> {
        let (key, revision) = (key(&walk.id), walk.position.revision);
        let record = Record { format: FORMAT, change: walk.change, after, is_released: false };
        let value = serde_json::to_value(record).expect("texts and numbers are JSON");
        let seen = |revision| Seen { revision, since: Instant::now(), is_ours: true };
        // Before the write: a cancelled one may have been made.
        self.seen().insert(key.clone(), seen(revision));
        if store.put_state(&key, &value, revision).await? {
            self.seen().insert(key, seen(revision + 1));
        } else {
            self.seen().remove(&key);
        }
        Ok(())
    }

    /// Removes the position.
    pub(super) async fn finish(&self, store: &dyn Store, walk: &Walk) -> Result<(), Error> {
        store.remove_states(&[(key(&walk.id), walk.position.revision)]).await
    }

    /// Leaves the walks of this process to others, which continue them at once.
    pub(super) async fn release(&self, store: &dyn Store) -> Result<(), Error> {
        let ours: Vec<(String, i64)> = {
            let seen = self.seen();
            let ours = seen.iter().filter(|(_, seen)| seen.is_ours);
            ours.map(|(key, seen)| (key.clone(), seen.revision)).collect()
        };
        for (key, revision) in ours {
            // The write of the newest position may have been cancelled: then its revision is not among those seen.
            let saved = store.state(&key).await?.filter(|saved| saved.revision <= revision + 1);
            let Some((record, saved)) = saved.and_then(|saved| Some((decode(&saved)?, saved))) else {
                continue;
            };
            let record = serde_json::to_value(Record { is_released: true, ..record });
            store.put_state(&key, &record.expect("texts and numbers are JSON"), saved.revision).await?;
        }
        Ok(())
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<String, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(id: &str) -> String {
    format!("{PREFIX}{id}")
}

fn decode(saved: &Saved) -> Option<Record> {
    Record::deserialize(&saved.value).ok().filter(|record| record.format == FORMAT)
}
