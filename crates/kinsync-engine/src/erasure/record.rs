//! Records of erasures: which users were erased, and which erasures are in progress.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use kinsync_core::{Micros, UserId};
use serde::{Deserialize, Serialize};

use super::subjects::Subjects;
use crate::{
    contention::{self, MAX_ROUNDS, pause},
    known_users::Nothing,
    log_entry::kind,
    store::{Error, EventFilter, Saved, Store},
};

/// Entries of one erasure: repetitions have other times.
const PAGE: usize = 100;

/// Records of erasures in one read.
const RECORDS: usize = 500;

const ERASED: &str = "erased/";

const IN_PROGRESS: &str = "erasing/";

/// Version of the format of both records.
const FORMAT: u32 = 1;

/// Time after which another process continues an erasure.
const TAKE_OVER_AFTER: Duration = Duration::from_secs(30);

/// Times after which everything is erased once more: what a process had read before the erasure and logged afterwards. The first is
/// longer than the lease of a queued delivery. The second is longer than a delivery of a newer version waits in a shared queue: a search may
/// not find it there, and finds what it became, an entry of the log or a dead letter.
const REPEATED_AFTER: [Duration; 2] = [Duration::from_mins(10), SETTLED_AFTER];

/// Time after which an erasure is over.
pub(crate) const SETTLED_AFTER: Duration = Duration::from_hours(2);

/// What happens to the fields of the application in the document of the user.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApplicationFields {
    /// They stay.
    #[default]
    Keep,
    /// They are removed.
    Erase,
}

/// An erasure that is not over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InProgress {
    format: u32,
    pub(super) requested_at: Micros,
    /// Hashes of the addresses of the user.
    pub(super) addresses: BTreeSet<String>,
    pub(super) application_fields: ApplicationFields,
    /// When everything was erased for the first time.
    pub(super) completed_at: Option<Micros>,
    /// Number of complete repetitions.
    #[serde(default)]
    pub(super) repeated: usize,
    /// Whether one has begun, at the time of the request.
    #[serde(default)]
    pub(super) is_repeating: bool,
}

impl InProgress {
    pub(super) fn new(
        addresses: BTreeSet<String>,
        application_fields: ApplicationFields,
        now: Micros,
    ) -> Self {
        Self {
            format: FORMAT,
            requested_at: now,
            addresses,
            application_fields,
            completed_at: None,
            repeated: 0,
            is_repeating: false,
        }
    }

    /// Returns the user in the form in which texts are searched.
    pub(super) fn subjects(&self, user: &UserId) -> Subjects {
        let mut subjects = Subjects::default();
        subjects.add(user.clone(), self.addresses.iter().cloned());
        subjects
    }

    /// Returns whether some process has to continue it, or to erase everything once more.
    pub(super) fn is_due(&self, now: Micros) -> bool {
        let is_over = |since: Micros, pause: Duration| {
            let age = u64::try_from(now.0.saturating_sub(since.0));
            age.is_ok_and(|age| Duration::from_micros(age) >= pause)
        };
        let is_idle = || is_over(self.requested_at, TAKE_OVER_AFTER);
        match self.completed_at {
            None => is_idle(),
            Some(at) => {
                let pause = REPEATED_AFTER.get(self.repeated).copied().unwrap_or_default();
                is_over(at, pause) && (!self.is_repeating || is_idle())
            }
        }
    }
}

/// Why an erasure begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reason {
    Requested,
    /// One that was due. Perhaps another process has continued it meanwhile.
    Continued,
}

/// Stores that the user is being erased, and with an earlier interrupted erasure what that one has found. `None` if the erasure to
/// continue is not due any more.
pub(super) async fn begin(
    store: &dyn Store,
    user: &UserId,
    begun: InProgress,
    reason: Reason,
) -> Result<Option<InProgress>, Error> {
    let key = format!("{IN_PROGRESS}{user}");
    for round in 0..MAX_ROUNDS {
        pause(round).await;
        let saved = store.state(&key).await?;
        let earlier = saved.as_ref().and_then(|saved| decode(&saved.value));
        let is_due = earlier.as_ref().is_some_and(|earlier| earlier.is_due(begun.requested_at));
        if reason == Reason::Continued && !is_due {
            return Ok(None);
        }
        put_erased(store, user, begun.requested_at).await?;
        let mut next = begun.clone();
        if let Some(earlier) = earlier {
            next.addresses.extend(earlier.addresses);
            next.application_fields = next.application_fields.max(earlier.application_fields);
            if reason == Reason::Continued {
                next.completed_at = earlier.completed_at;
                next.repeated = earlier.repeated;
                next.is_repeating = earlier.completed_at.is_some();
            }
        }
        let value = serde_json::to_value(&next).expect("texts and numbers are JSON");
        if store.put_state(&key, &value, saved.map_or(0, |saved| saved.revision)).await? {
            return Ok(Some(next));
        }
    }
    Err(contention::error())
}

async fn put_erased(store: &dyn Store, user: &UserId, at: Micros) -> Result<(), Error> {
    let value = serde_json::json!({ "format": FORMAT, "at": at });
    // Exists already: the user was erased before.
    store.put_state(&format!("{ERASED}{user}"), &value, 0).await.map(drop)
}

/// Marks an erasure as complete. It is repeated after a while; after the last repetition its record is removed.
pub(super) async fn complete(
    store: &dyn Store,
    user: &UserId,
    known: &InProgress,
    now: Micros,
) -> Result<(), Error> {
    let key = format!("{IN_PROGRESS}{user}");
    let Some(Saved { revision, value }) = store.state(&key).await? else { return Ok(()) };
    if decode(&value).is_none_or(|stored| stored.requested_at != known.requested_at) {
        // Requested again meanwhile.
        return Ok(());
    }
    let repeated = known.repeated + usize::from(known.is_repeating);
    if known.is_repeating && repeated >= REPEATED_AFTER.len() {
        return store.remove_states(&[(key, revision)]).await;
    }
    let next = InProgress {
        // A repetition must not remove what the application has written since.
        application_fields: ApplicationFields::Keep,
        completed_at: known.completed_at.or(Some(now)),
        repeated,
        is_repeating: false,
        ..known.clone()
    };
    let value = serde_json::to_value(&next).expect("texts and numbers are JSON");
    // After a concurrent change another process completes it.
    store.put_state(&key, &value, revision).await.map(drop)
}

/// Removes the record of an erasure that is over.
pub(super) async fn remove(store: &dyn Store, user: &UserId) -> Result<(), Error> {
    remove_state(store, format!("{IN_PROGRESS}{user}")).await
}

/// Takes an erasure back that did not reach the row of the user: removes its entry of the log, from which a rebuild would erase the
/// row, and the mark of the user. [`remove`] ends it.
pub(super) async fn withdraw(store: &dyn Store, user: &UserId) -> Result<(), Error> {
    let kind = Some(kind::ERASURE.to_owned());
    let filter = EventFilter { user: Some(user.to_string()), kind, limit: PAGE, ..EventFilter::default() };
    let entries: Vec<String> = store.events(&filter).await?.into_iter().map(|entry| entry.id).collect();
    store.remove_entries(&entries).await?;
    remove_state(store, format!("{ERASED}{user}")).await
}

async fn remove_state(store: &dyn Store, key: String) -> Result<(), Error> {
    match store.state(&key).await? {
        Some(saved) => store.remove_states(&[(key, saved.revision)]).await,
        None => Ok(()),
    }
}

/// Returns the erasures that are not over, in the order of the users.
pub(super) async fn in_progress(store: &dyn Store) -> Result<Vec<(UserId, InProgress)>, Error> {
    let (mut found, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = store.list_states(IN_PROGRESS, after.as_deref(), RECORDS).await?;
        after = page.last().map(|(key, _)| key.clone());
        let is_last = page.len() < RECORDS;
        found.extend(page.into_iter().filter_map(|(key, saved)| {
            let user = UserId::parse(key.strip_prefix(IN_PROGRESS)?).ok()?;
            Some((user, decode(&saved.value)?))
        }));
        if is_last {
            return Ok(found);
        }
    }
}

fn decode(value: &serde_json::Value) -> Option<InProgress> {
    InProgress::deserialize(value).ok().filter(|known| known.format == FORMAT)
}

/// Returns the keys of the records of a user.
pub fn keys(user: &UserId) -> [String; 2] {
    [format!("{ERASED}{user}"), format!("{IN_PROGRESS}{user}")]
}

/// Finds erased users before anything about them is logged. Without erased users that costs one small read every 200 ms.
#[derive(Debug, Default)]
pub(crate) struct ErasedUsers(Nothing);

impl ErasedUsers {
    /// Returns those of these users that were erased; a text that is no id is none. An erasure that began less than 200 ms ago may be missed: what is logged then
    /// is erased when the row is loaded.
    pub(crate) async fn among(
        &self,
        store: &dyn Store,
        users: &HashSet<String>,
    ) -> Result<HashSet<String>, Error> {
        let is_any = async { Ok(!store.list_states(ERASED, None, 1).await?.is_empty()) };
        if users.is_empty() || !self.0.or_some(is_any).await? {
            return Ok(HashSet::new());
        }
        let users: Vec<&String> = users.iter().filter(|user| UserId::parse(user).is_ok()).collect();
        let keys: Vec<String> = users.iter().map(|user| format!("{ERASED}{user}")).collect();
        let records = store.states(&keys).await?;
        Ok(users
            .into_iter()
            .zip(records)
            .filter(|(_, record)| record.is_some())
            .map(|(user, _)| user.clone())
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::EmbeddedStore;

    #[tokio::test]
    async fn every_erasure_that_is_not_over_is_found() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = EmbeddedStore::open(dir.path()).expect("the folder is empty");
        let begun = InProgress::new(BTreeSet::new(), ApplicationFields::Keep, Micros(1));
        for number in 0..=RECORDS {
            let user = UserId::parse(&format!("kp_{number:04}")).expect("an id");
            let stored = begin(&store, &user, begun.clone(), Reason::Requested).await;
            stored.expect("the disk works");
        }
        let found = in_progress(&store).await.expect("the disk works");
        assert_eq!(found.len(), RECORDS + 1);
        assert_eq!(found.last().map(|(user, _)| user.as_str()), Some("kp_0500"));
    }

    const MINUTE: i64 = 60_000_000;

    fn store() -> (EmbeddedStore, tempfile::TempDir, UserId) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = EmbeddedStore::open(dir.path()).expect("the folder is empty");
        (store, dir, UserId::parse("kp_ada").expect("an id"))
    }

    async fn begin_at(store: &dyn Store, minute: i64, reason: Reason) -> Option<InProgress> {
        let user = UserId::parse("kp_ada").expect("an id");
        let begun = InProgress::new(BTreeSet::new(), ApplicationFields::Keep, Micros(minute * MINUTE));
        begin(store, &user, begun, reason).await.expect("the disk works")
    }

    #[tokio::test]
    async fn an_erasure_is_repeated_after_ten_minutes_and_after_two_hours() {
        let (store, _dir, user) = store();
        let mut begun = begin_at(&store, 0, Reason::Requested).await.expect("requested");
        for minute in [10, 120] {
            complete(&store, &user, &begun, Micros(0)).await.expect("the disk works");
            assert_eq!(begin_at(&store, minute - 1, Reason::Continued).await, None, "too early");
            let interrupted = begin_at(&store, minute, Reason::Continued).await.expect("due");
            // One process at a time, and another one after an interruption.
            assert_eq!(begin_at(&store, minute, Reason::Continued).await, None);
            begun = begin_at(&store, minute + 1, Reason::Continued).await.expect("not complete");
            complete(&store, &user, &interrupted, Micros(0)).await.expect("the disk works");
            assert_eq!(in_progress(&store).await.expect("the disk works")[0].1, begun, "of the other one");
        }
        complete(&store, &user, &begun, Micros(0)).await.expect("the disk works");
        assert_eq!(in_progress(&store).await.expect("the disk works"), [], "it is over");
    }

    #[tokio::test]
    async fn an_erasure_that_is_over_is_not_continued() {
        let (store, _dir, user) = store();
        assert!(begin_at(&store, 0, Reason::Requested).await.is_some());
        assert!(begin_at(&store, 1, Reason::Continued).await.is_some());
        remove(&store, &user).await.expect("the disk works");
        assert_eq!(begin_at(&store, 200, Reason::Continued).await, None);
        assert_eq!(in_progress(&store).await.expect("the disk works"), []);
    }
}
