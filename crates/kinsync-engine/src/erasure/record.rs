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

/// Entries of one erasure: one for each state of the deletion that it found.
const PAGE: usize = 100;

/// Records of erasures in one read.
const RECORDS: usize = 500;

const STORE: &str = "store the progress of an erasure";

const ERASED: &str = "erased/";

const IN_PROGRESS: &str = "erasing/";

/// Version of the format of both records.
const FORMAT: u32 = 1;

/// Time after which another process continues what one has begun. It may still run: the first that ends counts.
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
    /// Identifies the request.
    pub(super) requested_at: Micros,
    /// When a process began, continued or repeated it.
    #[serde(default)]
    begun_at: Option<Micros>,
    /// Hashes of the addresses of the user.
    pub(super) addresses: BTreeSet<String>,
    pub(super) application_fields: ApplicationFields,
    /// When everything was erased for the first time.
    pub(super) completed_at: Option<Micros>,
    /// Number of complete repetitions.
    #[serde(default)]
    pub(super) repeated: usize,
    /// Whether one has begun.
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
            begun_at: Some(now),
            addresses,
            application_fields,
            completed_at: None,
            repeated: 0,
            is_repeating: false,
        }
    }

    fn to_value(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("texts and numbers are JSON")
    }

    /// Returns the user in the form in which texts are searched.
    pub(super) fn subjects(&self, user: &UserId) -> Subjects {
        let mut subjects = Subjects::default();
        subjects.add(user.clone(), self.addresses.iter().cloned());
        subjects
    }

    /// Returns when a process began the last pass: the first, one that continues it, or a repetition.
    pub(super) fn pass(&self) -> Micros {
        self.begun_at.unwrap_or(self.requested_at)
    }

    /// Returns whether everything was repeated.
    pub(super) fn is_over(&self) -> bool {
        self.repeated >= REPEATED_AFTER.len()
    }

    /// Returns whether some process has to continue it, or to erase everything once more.
    pub(super) fn is_due(&self, now: Micros) -> bool {
        let is_past = |since: Micros, pause: Duration| {
            let age = u64::try_from(now.0.saturating_sub(since.0));
            age.is_ok_and(|age| Duration::from_micros(age) >= pause)
        };
        let is_idle = || is_past(self.pass(), TAKE_OVER_AFTER);
        match (self.completed_at, REPEATED_AFTER.get(self.repeated)) {
            (None, _) => is_idle(),
            (Some(_), None) => false,
            (Some(at), Some(pause)) => is_past(at, *pause) && (!self.is_repeating || is_idle()),
        }
    }

    /// Whether this is the same request with as many complete passes.
    fn is_as_far_as(&self, other: &Self) -> bool {
        let progress = |one: &Self| (one.requested_at, one.completed_at, one.repeated);
        progress(self) == progress(other)
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
        let mut next = begun.clone();
        if let Some(mut earlier) = earlier {
            next.addresses.append(&mut earlier.addresses);
            if reason == Reason::Continued {
                let is_repeating = earlier.completed_at.is_some();
                let InProgress { begun_at, addresses, .. } = next;
                next = InProgress { begun_at, addresses, is_repeating, ..earlier };
            } else {
                next.application_fields = next.application_fields.max(earlier.application_fields);
            }
        }
        if store.put_state(&key, &next.to_value(), saved.map_or(0, |saved| saved.revision)).await? {
            // After the record: without one, nothing would continue what the mark has begun.
            put_erased(store, user, begun.requested_at).await?;
            return Ok(Some(next));
        }
    }
    Err(contention::error(STORE))
}

async fn put_erased(store: &dyn Store, user: &UserId, at: Micros) -> Result<(), Error> {
    let value = serde_json::json!({ "format": FORMAT, "at": at });
    // Exists already: the user was erased before.
    store.put_state(&format!("{ERASED}{user}"), &value, 0).await.map(drop)
}

/// Counts a complete pass, unless another process has counted it already or the user was requested again.
pub(super) async fn complete(
    store: &dyn Store,
    user: &UserId,
    known: &InProgress,
    now: Micros,
) -> Result<(), Error> {
    let counted = |stored: InProgress| InProgress {
        // A repetition must not remove what the application has written since.
        application_fields: ApplicationFields::Keep,
        completed_at: stored.completed_at.or(Some(now)),
        repeated: known.repeated + usize::from(known.is_repeating),
        is_repeating: false,
        ..stored
    };
    change(store, user, known, counted).await
}

/// Returns whether the fields of the application are still to be removed: another process may have done it since this one began.
pub(super) async fn awaits_fields(
    store: &dyn Store,
    user: &UserId,
    known: &InProgress,
) -> Result<bool, Error> {
    let stored = of_user(store, user).await?;
    Ok(stored.is_some_and(|stored| {
        stored.is_as_far_as(known) && stored.application_fields == ApplicationFields::Erase
    }))
}

async fn of_user(store: &dyn Store, user: &UserId) -> Result<Option<InProgress>, Error> {
    let saved = store.state(&format!("{IN_PROGRESS}{user}")).await?;
    Ok(saved.and_then(|saved| decode(&saved.value)))
}

/// Stores that the fields of the application were removed: what continues must not remove what the application has written since.
pub(super) async fn fields_are_erased(
    store: &dyn Store,
    user: &UserId,
    known: &InProgress,
) -> Result<(), Error> {
    let kept = |stored| InProgress { application_fields: ApplicationFields::Keep, ..stored };
    change(store, user, known, kept).await
}

/// Changes a record that is as far as `known`.
async fn change(
    store: &dyn Store,
    user: &UserId,
    known: &InProgress,
    to: impl Fn(InProgress) -> InProgress,
) -> Result<(), Error> {
    let key = format!("{IN_PROGRESS}{user}");
    for round in 0..MAX_ROUNDS {
        pause(round).await;
        let Some(Saved { revision, value }) = store.state(&key).await? else { return Ok(()) };
        let Some(stored) = decode(&value).filter(|stored| stored.is_as_far_as(known)) else { return Ok(()) };
        if store.put_state(&key, &to(stored).to_value(), revision).await? {
            return Ok(());
        }
    }
    Err(contention::error(STORE))
}

/// Removes the record of a request. One of a newer request stays.
pub(super) async fn remove(store: &dyn Store, user: &UserId, requested_at: Micros) -> Result<(), Error> {
    let key = format!("{IN_PROGRESS}{user}");
    match store.state(&key).await? {
        Some(saved) if decode(&saved.value).is_some_and(|stored| stored.requested_at == requested_at) => {
            store.remove_states(&[(key, saved.revision)]).await
        }
        _ => Ok(()),
    }
}

/// Takes an erasure back that did not reach the row of the user: removes its entry of the log, from which a rebuild would erase the
/// row, and the mark of the user. [`remove`] ends it. Returns `false` if the user was requested again meanwhile.
pub(super) async fn withdraw(store: &dyn Store, user: &UserId, requested_at: Micros) -> Result<bool, Error> {
    if of_user(store, user).await?.is_none_or(|stored| stored.requested_at != requested_at) {
        return Ok(false);
    }
    let kind = Some(kind::ERASURE.to_owned());
    let filter = EventFilter { user: Some(user.to_string()), kind, limit: PAGE, ..EventFilter::default() };
    let entries: Vec<String> = store.events(&filter).await?.into_iter().map(|entry| entry.id).collect();
    store.remove_entries(&entries).await?;
    let key = format!("{ERASED}{user}");
    if let Some(saved) = store.state(&key).await? {
        store.remove_states(&[(key, saved.revision)]).await?;
    }
    Ok(true)
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

    async fn in_progress_of(store: &dyn Store) -> InProgress {
        in_progress(store).await.expect("the disk works").pop().expect("one record").1
    }

    #[tokio::test]
    async fn an_erasure_is_repeated_after_ten_minutes_and_after_two_hours() {
        let (store, _dir, user) = store();
        let mut begun = begin_at(&store, 0, Reason::Requested).await.expect("requested");
        for (minute, repeated) in [(10, 0), (120, 1)] {
            complete(&store, &user, &begun, Micros(0)).await.expect("the disk works");
            assert_eq!(begin_at(&store, minute - 1, Reason::Continued).await, None, "too early");
            let slow = begin_at(&store, minute, Reason::Continued).await.expect("due");
            // One process at a time, and another one if that does not end.
            assert_eq!(begin_at(&store, minute, Reason::Continued).await, None);
            begun = begin_at(&store, minute + 1, Reason::Continued).await.expect("not complete");
            assert_eq!(in_progress_of(&store).await.repeated, repeated);
            complete(&store, &user, &slow, Micros(0)).await.expect("the disk works");
            let counted = in_progress_of(&store).await;
            assert_eq!(
                (counted.repeated, counted.is_repeating),
                (repeated + 1, false),
                "the first that ends"
            );
            complete(&store, &user, &begun, Micros(0)).await.expect("the disk works");
            assert_eq!(in_progress_of(&store).await, counted, "it is counted once");
        }
        assert!(in_progress_of(&store).await.is_over());
        assert_eq!(begin_at(&store, 500, Reason::Continued).await, None, "it is over");
    }

    #[tokio::test]
    async fn processes_that_each_take_longer_than_the_other_waits_complete_an_erasure() {
        let (store, _dir, user) = store();
        let first = begin_at(&store, 0, Reason::Requested).await.expect("requested");
        let second = begin_at(&store, 1, Reason::Continued).await.expect("not complete");
        complete(&store, &user, &first, Micros(MINUTE)).await.expect("the disk works");
        complete(&store, &user, &second, Micros(2 * MINUTE)).await.expect("the disk works");
        assert_eq!(in_progress_of(&store).await.completed_at, Some(Micros(MINUTE)));
    }

    #[tokio::test]
    async fn what_ends_leaves_a_newer_request() {
        let (store, _dir, user) = store();
        let first = begin_at(&store, 0, Reason::Requested).await.expect("requested");
        let fields = ApplicationFields::Erase;
        let newer = InProgress::new(BTreeSet::new(), fields, Micros(MINUTE));
        let newer = begin(&store, &user, newer, Reason::Requested).await.expect("the disk works");
        complete(&store, &user, &first, Micros(MINUTE)).await.expect("the disk works");
        fields_are_erased(&store, &user, &first).await.expect("the disk works");
        assert!(!withdraw(&store, &user, first.requested_at).await.expect("the disk works"));
        assert!(store.state("erased/kp_ada").await.expect("the disk works").is_some(), "the mark");
        remove(&store, &user, first.requested_at).await.expect("the disk works");
        assert_eq!(Some(in_progress_of(&store).await), newer);

        // Continued after the fields were removed.
        fields_are_erased(&store, &user, &newer.expect("requested")).await.expect("the disk works");
        let continued = begin_at(&store, 2, Reason::Continued).await.expect("not complete");
        assert_eq!(continued.application_fields, ApplicationFields::Keep);
    }

    #[tokio::test]
    async fn an_erasure_that_is_over_is_not_continued() {
        let (store, _dir, user) = store();
        let begun = begin_at(&store, 0, Reason::Requested).await.expect("requested");
        assert!(begin_at(&store, 1, Reason::Continued).await.is_some());
        remove(&store, &user, begun.requested_at).await.expect("the disk works");
        assert_eq!(begin_at(&store, 200, Reason::Continued).await, None);
        assert_eq!(in_progress(&store).await.expect("the disk works"), []);
    }
}
