//! Organizations, roles and permissions of the tenant: one record for each among kinsync's own.
//!
//! Events and lists join into the records. User documents show names and keys, so a change of a record is spread to the users
//! that refer to it ([`crate::spread`]). The write of a changed record marks it, so no kill loses that a spread is due.
//!
//! A complete list of one kind that another one confirms is a proof: an older event changes nothing that the list contains, and what the
//! list does not contain did not exist at that time, whatever arrives first. What an event about a user names did not exist either, if the
//! event is applied after the list ([`observe_events`]). The list looks only at records, so what an event named before and no record
//! contains is shown until the next read of the user.

mod observed;
mod role_keys;
mod unlisted;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::{StreamExt, TryStreamExt, stream};
use kinsync_core::{Directory, Entry, Micros, Version};
use serde::{Deserialize, Serialize};

pub(crate) use self::observed::{changes, fact, named, of_permission, of_role};
pub use self::{
    role_keys::roles_with_key,
    unlisted::{Named, observe_events},
};
use serde_json::json;

use crate::{
    contention::{MAX_ROUNDS, pause},
    log_entry::{LogEntry, LogSource, kind},
    state_records::{self, Key, Term},
    store::{Error, Page, PageItem, Saved, Store},
};

/// Prefix of the keys of the records.
pub const PREFIX: &str = "directory/";

/// Version of the format of a record.
const FORMAT: u32 = 1;

/// Records of one page of a list.
const PAGE: usize = 1000;

/// Records written concurrently.
const CONCURRENCY: usize = 8;

/// Record of the newest complete lists that are proofs.
pub(crate) const LISTED: Key =
    Key::new("directory.listed", "events that are older than the last scan may show deleted roles");

/// What an object is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An organization, with its code as the id.
    Organization,
    /// A role.
    Role,
    /// A permission.
    Permission,
}

/// An observation of one organization, role or permission.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// What the object is.
    pub kind: Kind,
    /// Its code or id.
    pub id: String,
    /// What was observed.
    pub entry: Entry,
}

/// A stored organization, role or permission.
#[derive(Clone, PartialEq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// What the object is.
    pub kind: Kind,
    /// What is known of it.
    pub entry: Entry,
    /// Number of changes that documents show.
    pub changes: u64,
    /// Number of those that its document and those of all users that refer to it show.
    pub spread: u64,
}

impl Stored {
    /// Returns whether some documents may not show it as it is.
    pub fn is_due(&self) -> bool {
        self.spread < self.changes
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    /// The mark by which the store finds the record ([`Store::due_states`]).
    due: bool,
    #[serde(flatten)]
    stored: Stored,
}

/// Versions of the newest complete lists.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Listed(pub(crate) BTreeMap<Kind, Version>);

impl Listed {
    /// Stores that a complete list of this kind has this version. Returns `false` if a process has a newer lease.
    pub(crate) async fn record(
        store: &dyn Store,
        term: Term,
        kind: Kind,
        version: &Version,
    ) -> Result<bool, Error> {
        let change = |listed: &mut Self| {
            let known = listed.0.entry(kind).or_insert_with(|| version.clone());
            *known = known.clone().max(version.clone());
        };
        Ok(state_records::change_under(store, &LISTED, term, change).await?.is_some())
    }
}

/// Joins observations into the records, and marks those with a change that user documents show. Returns whether a record is
/// marked.
///
/// # Errors
/// Fails when the store fails. A repetition is safe.
pub async fn observe(store: &dyn Store, changes: Vec<Change>) -> Result<bool, Error> {
    let mut left: BTreeMap<String, (Kind, Entry)> = BTreeMap::new();
    for Change { kind, id, entry } in changes {
        let (_, known) = left.entry(id).or_insert_with(|| (kind, Entry::default()));
        *known = std::mem::take(known).join(entry);
    }
    if left.is_empty() {
        return Ok(false);
    }
    let listed: Listed = state_records::load(store, &LISTED).await?;
    let mut is_due = false;
    for round in 0..MAX_ROUNDS {
        pause(round).await;
        let keys: Vec<String> = left.keys().map(|id| format!("{PREFIX}{id}")).collect();
        let saved = store.states(&keys).await?;
        // Owned: a borrow here makes the future of the caller not `Send`.
        let jobs: Vec<Job> = left
            .iter()
            .zip(keys)
            .zip(saved)
            .map(|(((id, (kind, entry)), key), saved)| Job {
                id: id.clone(),
                key,
                saved,
                kind: *kind,
                entry: entry.clone(),
                listed: listed.0.get(kind).cloned(),
            })
            .collect();
        let writes = jobs.into_iter().map(|job| join_one(store, job));
        let done: Vec<(String, Option<bool>)> =
            stream::iter(writes).buffer_unordered(CONCURRENCY).try_collect().await?;
        for (id, is_marked) in done {
            let Some(is_marked) = is_marked else { continue };
            left.remove(&id);
            is_due |= is_marked;
        }
        if left.is_empty() {
            return Ok(is_due);
        }
    }
    Err(contended())
}

/// Joins observations of a scan like [`observe`], and logs those that change a record.
///
/// # Errors
/// Fails when the store fails. A repetition is safe.
pub(crate) async fn observe_read(
    store: &dyn Store,
    changes: Vec<Change>,
    now: Micros,
) -> Result<bool, Error> {
    let listed: Listed = state_records::load(store, &LISTED).await?;
    let keys: Vec<String> = changes.iter().map(|change| format!("{PREFIX}{}", change.id)).collect();
    let saved = store.states(&keys).await?;
    let is_news = |((key, change), saved): &((&String, &Change), Option<Saved>)| {
        let Ok(known) = saved.as_ref().map(|saved| decode(key, saved)).transpose() else { return false };
        let next = joined(known.clone(), change.kind, &change.entry, listed.0.get(&change.kind));
        known.as_ref() != Some(&next)
    };
    let news = keys.iter().zip(&changes).zip(saved).filter(is_news);
    let entries: Vec<LogEntry> = news.map(|((_, change), _)| entry_of(change, now)).collect();
    if !entries.is_empty() {
        store.log(&entries).await?;
    }
    observe(store, changes).await
}

fn entry_of(change: &Change, now: Micros) -> LogEntry {
    let content = json!({ "kind": change.kind, "id": change.id, "entry": change.entry });
    LogEntry::action(kind::DIRECTORY_READ, None, LogSource::Reconcile, &content, now)
}

/// A record to write.
struct Job {
    id: String,
    key: String,
    saved: Option<Saved>,
    kind: Kind,
    entry: Entry,
    listed: Option<Version>,
}

/// Returns whether the record is marked; `None` after a concurrent write.
async fn join_one(store: &dyn Store, job: Job) -> Result<(String, Option<bool>), Error> {
    let Job { id, key, saved, kind, entry, listed } = job;
    let Ok(known) = saved.as_ref().map(|saved| decode(&key, saved)).transpose() else {
        // Nothing is lost: the log has the event, and a scan observes the object again after the reset of the record.
        return Ok((id, Some(false)));
    };
    let next = joined(known.clone(), kind, &entry, listed.as_ref());
    if known.as_ref() == Some(&next) {
        return Ok((id, Some(next.is_due())));
    }
    role_keys::add(store, &id, known.as_ref(), &next).await?;
    let is_written = put(store, &key, &next, saved.map_or(0, |saved| saved.revision)).await?;
    Ok((id, is_written.then_some(next.is_due())))
}

/// Returns the record after one more observation.
pub(crate) fn joined(known: Option<Stored>, kind: Kind, entry: &Entry, listed: Option<&Version>) -> Stored {
    let next = Entry::observe(known.as_ref().map(|known| known.entry.clone()), entry.clone(), listed);
    let Some(known) = known else { return Stored { kind, entry: next, changes: 1, spread: 0 } };
    // Every fact, also one that only the document of the organization or the role shows.
    let is_changed = next.shown() != known.entry.shown() || !next.values().eq(known.entry.values());
    let changes = known.changes + u64::from(is_changed);
    Stored { kind, entry: next, changes, spread: known.spread }
}

async fn put(store: &dyn Store, key: &str, stored: &Stored, revision: i64) -> Result<bool, Error> {
    let record = Record { format: FORMAT, due: stored.is_due(), stored: stored.clone() };
    let value = serde_json::to_value(record).expect("texts and numbers are JSON");
    store.put_state(key, &value, revision).await
}

/// Decodes a record. An error is logged here: one unreadable record must not stop the others.
fn decode(key: &str, saved: &Saved) -> Result<Stored, Unreadable> {
    let format = saved.value.get("format").and_then(serde_json::Value::as_u64);
    let known = format == Some(u64::from(FORMAT));
    let record = known.then(|| Record::deserialize(&saved.value));
    let problem = match record {
        Some(Ok(record)) => return Ok(record.stored),
        Some(Err(error)) => format!("cannot be decoded ({error})"),
        None => format!("has format {format:?}, and this version reads format {FORMAT}"),
    };
    let unreadable = Unreadable(format!(
        "the record `{key}` {problem}: run the version of kinsync that wrote it, or reset the record with `kinsync state reset \
         {key}` while no other kinsync runs, and the next scan with `reconcile.roles` stores it again"
    ));
    tracing::error!(record = key, error = unreadable.0, "documents show the object as it was known before");
    Err(unreadable)
}

/// Why a record cannot be read, with the next step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unreadable(pub String);

/// Lists marked records, by code or id: at least a page of them if there are as many. Unreadable ones do not count, or the others
/// would wait for them.
pub(crate) async fn due(store: &dyn Store) -> Result<Vec<(String, Stored)>, Error> {
    let (mut due, mut after) = (Vec::new(), None);
    loop {
        let page = store.due_states(after.as_deref(), PAGE).await?;
        let ours = page.iter().filter_map(|(key, saved)| Some((key.strip_prefix(PREFIX)?, key, saved)));
        due.extend(ours.filter_map(|(id, key, saved)| Some((id.to_owned(), decode(key, saved).ok()?))));
        if page.len() < PAGE || due.len() >= PAGE {
            return Ok(due);
        }
        after = page.into_iter().next_back().map(|(key, _)| key);
    }
}

/// Returns whether a record is marked, also one that cannot be read.
pub(crate) async fn is_any_due(store: &dyn Store) -> Result<bool, Error> {
    Ok(!store.due_states(None, 1).await?.is_empty())
}

/// Stores that the documents show this change. A newer change, also a concurrent one, keeps the record marked.
pub(crate) async fn mark_spread(store: &dyn Store, id: &str, change: u64) -> Result<(), Error> {
    let key = format!("{PREFIX}{id}");
    for round in 0..MAX_ROUNDS {
        pause(round).await;
        let Some(saved) = store.state(&key).await? else { return Ok(()) };
        let Ok(stored) = decode(&key, &saved) else { return Ok(()) };
        if stored.spread >= change {
            return Ok(());
        }
        if put(store, &key, &Stored { spread: change, ..stored }, saved.revision).await? {
            return Ok(());
        }
    }
    Err(contended())
}

fn contended() -> Error {
    let source = "other processes write the organizations and roles continuously".into();
    Error::Unavailable { doing: "write a record of kinsync", source }
}

/// Loads what is known of these objects and of the permissions that the roles among them give. The result has an entry for
/// each, also if nothing is known, except for those with an unreadable record.
///
/// # Errors
/// Fails when the store fails.
pub(crate) async fn load(store: &dyn Store, ids: BTreeSet<String>) -> Result<Directory, Error> {
    let directory = load_exactly(store, ids).await?;
    let given = directory.iter().filter_map(|(_, entry)| entry.permissions()).flatten();
    let given: BTreeSet<String> = given.filter(|id| directory.entry(id).is_none()).cloned().collect();
    Ok(directory.join(load_exactly(store, given).await?))
}

async fn load_exactly(store: &dyn Store, ids: BTreeSet<String>) -> Result<Directory, Error> {
    let mut directory = Directory::default();
    for ids in ids.into_iter().collect::<Vec<_>>().chunks(PAGE) {
        let keys: Vec<String> = ids.iter().map(|id| format!("{PREFIX}{id}")).collect();
        let saved = store.states(&keys).await?;
        for ((key, id), saved) in keys.iter().zip(ids).zip(saved) {
            let Ok(stored) = saved.map(|saved| decode(key, &saved)).transpose() else { continue };
            directory.add(id, stored.map(|stored| stored.entry).unwrap_or_default());
        }
    }
    Ok(directory)
}

/// Counts all organizations, roles and permissions, deleted ones included. Reads no record.
///
/// # Errors
/// Fails when the store fails.
pub(crate) async fn count(store: &dyn Store) -> Result<u64, Error> {
    store.count_states(PREFIX).await
}

/// All organizations, roles and permissions.
#[derive(Debug, Default)]
pub struct All {
    /// The records, by code or id.
    pub stored: HashMap<String, Stored>,
    /// Records that cannot be read.
    pub unreadable: Vec<Unreadable>,
}

/// Lists all organizations, roles and permissions.
///
/// # Errors
/// Fails when the store fails.
pub async fn list(store: &dyn Store) -> Result<All, Error> {
    let mut all = All::default();
    let mut after = None;
    loop {
        let page = store.list_states(PREFIX, after.as_deref(), PAGE).await?;
        for (key, saved) in &page {
            match decode(key, saved) {
                Ok(stored) => drop(all.stored.insert(id_of(key), stored)),
                Err(unreadable) => all.unreadable.push(unreadable),
            }
        }
        if page.len() < PAGE {
            return Ok(all);
        }
        after = page.into_iter().next_back().map(|(key, _)| key);
    }
}

/// Returns those of these records that are stored and can be read, by code or id.
///
/// # Errors
/// Fails when the store fails.
pub async fn read(store: &dyn Store, ids: &[String]) -> Result<BTreeMap<String, Stored>, Error> {
    let mut found = BTreeMap::new();
    for ids in ids.chunks(PAGE) {
        let keys: Vec<String> = ids.iter().map(|id| format!("{PREFIX}{id}")).collect();
        let saved = store.states(&keys).await?;
        let stored = ids
            .iter()
            .zip(&keys)
            .zip(saved)
            .filter_map(|((id, key), saved)| Some((id.clone(), decode(key, &saved?).ok()?)));
        found.extend(stored);
    }
    Ok(found)
}

/// Returns the record of one organization, role or permission; `None` if it is not stored or cannot be read.
///
/// # Errors
/// Fails when the store fails.
pub async fn find(store: &dyn Store, id: &str) -> Result<Option<Stored>, Error> {
    let key = format!("{PREFIX}{id}");
    Ok(store.state(&key).await?.and_then(|saved| decode(&key, &saved).ok()))
}

/// Lists at most `limit` objects of a kind after this code or id, in the order of their codes or ids.
///
/// # Errors
/// Fails when the store fails.
pub async fn page(
    store: &dyn Store,
    kind: Kind,
    after: &str,
    limit: usize,
    is_shown: impl Fn(&Stored) -> bool,
) -> Result<Page<(String, Stored)>, Error> {
    let mut found = Vec::new();
    let mut after = format!("{PREFIX}{after}");
    loop {
        let page = store.list_states(PREFIX, Some(&after), PAGE).await?;
        for (key, saved) in &page {
            let position = id_of(key);
            let item = match decode(key, saved) {
                Ok(stored) if stored.kind == kind && is_shown(&stored) => Ok((position.clone(), stored)),
                Ok(_) => continue,
                Err(_) => Err(position.clone()),
            };
            found.push(PageItem { position, item });
        }
        let is_last = page.len() < PAGE;
        if is_last || found.len() > limit {
            return Ok(Page::new(found, limit));
        }
        after = page.into_iter().next_back().map(|(key, _)| key).unwrap_or(after);
    }
}

/// Removes the record of an organization, a role or a permission. Returns whether it was stored. The complete list of its kind proves
/// nothing until the next one: it contained the object, and nothing stored shows it any more. Of a record without a readable kind, no
/// list does.
///
/// # Errors
/// Fails when the store fails.
pub async fn reset(store: &dyn Store, key: &str) -> Result<bool, Error> {
    let Some(saved) = store.state(key).await? else { return Ok(false) };
    if let Some(kind) = saved.value.get("kind").and_then(|kind| Kind::deserialize(kind).ok()) {
        state_records::change(store, &LISTED, |listed: &mut Listed| listed.0.remove(&kind)).await?;
    } else {
        state_records::reset(store, &LISTED).await?;
    }
    store.remove_states(&[(key.to_owned(), saved.revision)]).await?;
    Ok(true)
}

fn id_of(key: &str) -> String {
    key[PREFIX.len()..].to_owned()
}
