//! Organizations, roles and permissions of the tenant: one record for each among kinsync's own.
//!
//! Events and lists join into the records. User documents show names and keys, so a change of a record is spread: the rows of
//! the users that refer to it are written again. A record that is not spread yet is marked, and the next event or scan
//! continues after an interruption.
//!
//! A complete list of one kind is a proof: an older event changes nothing that the list contains, and what the list does not
//! contain did not exist at that time.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::{StreamExt, TryStreamExt, stream};
use kinde::event::{self, Body};
use kinsync_core::{Directory, Entry, Fact, Micros, Value, Version};
use serde::{Deserialize, Serialize};

use crate::{
    apply,
    contention::{MAX_ROUNDS, pause},
    state_records::{self, Key, Term},
    store::{Error, Saved, Store},
};

const PREFIX: &str = "directory/";

/// Version of the format of a record.
const FORMAT: u32 = 1;

/// Records of one page of a list, and users of one write.
const PAGE: usize = 1000;

/// Records written concurrently.
const CONCURRENCY: usize = 8;

/// Record of the newest complete lists.
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
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// What the object is.
    pub kind: Kind,
    /// What is known of it.
    pub entry: Entry,
    /// Whether the documents of the users that refer to it show it as it is.
    pub is_spread: bool,
}

#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    #[serde(flatten)]
    stored: Stored,
}

/// Versions of the newest complete lists.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Listed(BTreeMap<Kind, Version>);

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

/// Returns what an event observes of organizations, roles and permissions.
pub(crate) fn changes(body: &Body, version: &Version) -> Vec<Change> {
    let deleted = |kind, id: &String| Change { kind, id: id.clone(), entry: Entry::deleted(version) };
    match body {
        Body::OrganizationCreated(organization) | Body::OrganizationUpdated(organization) => {
            vec![of_organization(organization, version)]
        }
        Body::RoleCreated(role) | Body::RoleUpdated(role) => vec![of_role(role, None, version)],
        Body::PermissionCreated(permission) | Body::PermissionUpdated(permission) => {
            vec![of_permission(permission, version)]
        }
        Body::OrganizationDeleted { code } => vec![deleted(Kind::Organization, code)],
        Body::RoleDeleted { id } => vec![deleted(Kind::Role, id)],
        Body::PermissionDeleted { id } => vec![deleted(Kind::Permission, id)],
        Body::UserCreated(user) | Body::UserUpdated(user) => of_user(user),
        _ => Vec::new(),
    }
}

/// The keys in an event about a user. They count while nothing else is known: a role or permission event and a list outrank
/// them.
fn of_user(user: &event::User) -> Vec<Change> {
    let organizations = user.organizations.value().into_iter().flatten();
    let assigned = organizations.flat_map(|organization| {
        let of = |kind, list: &kinde::Patch<Vec<event::Assignment>>| {
            list.value().into_iter().flatten().filter_map(move |one| named(kind, one)).collect::<Vec<_>>()
        };
        [of(Kind::Role, &organization.roles), of(Kind::Permission, &organization.permissions)].concat()
    });
    assigned.collect()
}

/// Returns the key of an assigned role or permission, if it has an id too.
pub(crate) fn named(kind: Kind, assignment: &event::Assignment) -> Option<Change> {
    let (id, key) = (assignment.id.clone()?, assignment.key.as_deref()?);
    let entry = Entry::observed([(Fact::Key, Value::from(key))], &Version::provisional());
    Some(Change { kind, id, entry })
}

fn of_organization(organization: &event::Organization, version: &Version) -> Change {
    let facts = [
        fact(Fact::Name, &organization.name),
        fact(Fact::Handle, &organization.handle),
        fact(Fact::ExternalId, &organization.external_id),
    ];
    let entry = Entry::observed(facts.into_iter().flatten(), version);
    Change { kind: Kind::Organization, id: organization.code.clone(), entry }
}

/// Returns what a role is, with the ids of its permissions if they were listed.
pub(crate) fn of_role(role: &event::Role, permissions: Option<Vec<String>>, version: &Version) -> Change {
    let permissions = permissions.map(|mut ids| {
        ids.sort();
        (Fact::Permissions, Value::Codes(ids))
    });
    let facts = [
        fact(Fact::Key, &role.key),
        fact(Fact::Name, &role.name),
        fact(Fact::Description, &role.description),
        permissions,
    ];
    let entry = Entry::observed(facts.into_iter().flatten(), version);
    Change { kind: Kind::Role, id: role.id.clone(), entry }
}

pub(crate) fn of_permission(permission: &event::Permission, version: &Version) -> Change {
    let facts = [
        fact(Fact::Key, &permission.key),
        fact(Fact::Name, &permission.name),
        fact(Fact::Description, &permission.description),
    ];
    let entry = Entry::observed(facts.into_iter().flatten(), version);
    Change { kind: Kind::Permission, id: permission.id.clone(), entry }
}

/// Returns a fact of a text; `None` if the source does not contain it.
pub(crate) fn fact(fact: Fact, text: &kinde::Patch<String>) -> Option<(Fact, Value)> {
    match text {
        kinde::Patch::Absent => None,
        kinde::Patch::Null => Some((fact, Value::Null)),
        kinde::Patch::Value(text) => Some((fact, Value::from(text.as_str()))),
    }
}

/// Joins observations into the records. Returns the codes and ids to spread.
///
/// # Errors
/// Fails when the store fails. A repetition is safe.
pub async fn observe(store: &dyn Store, changes: Vec<Change>) -> Result<Vec<String>, Error> {
    let mut left: BTreeMap<String, (Kind, Entry)> = BTreeMap::new();
    for Change { kind, id, entry } in changes {
        let (_, known) = left.entry(id).or_insert_with(|| (kind, Entry::default()));
        *known = std::mem::take(known).join(entry);
    }
    if left.is_empty() {
        return Ok(Vec::new());
    }
    let listed: Listed = state_records::load(store, &LISTED).await?;
    let mut to_spread = Vec::new();
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
        for (id, is_spread) in done {
            let Some(is_spread) = is_spread else { continue };
            left.remove(&id);
            to_spread.extend((!is_spread).then_some(id));
        }
        if left.is_empty() {
            return Ok(to_spread);
        }
    }
    let source = "other processes write the organizations and roles continuously".into();
    Err(Error::Unavailable { doing: "write a record of kinsync", source })
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

/// Returns whether the record is spread; `None` after a concurrent write.
async fn join_one(store: &dyn Store, job: Job) -> Result<(String, Option<bool>), Error> {
    let Job { id, key, saved, kind, entry, listed } = job;
    let known = saved.as_ref().map(|saved| decode(&key, saved)).transpose()?;
    let next = joined(known.clone(), kind, &entry, listed.as_ref());
    if known.as_ref() == Some(&next) {
        return Ok((id, Some(next.is_spread)));
    }
    let is_written = put(store, &key, &next, saved.map_or(0, |saved| saved.revision)).await?;
    Ok((id, is_written.then_some(next.is_spread)))
}

fn joined(known: Option<Stored>, kind: Kind, entry: &Entry, listed: Option<&Version>) -> Stored {
    let is_older = entry.newest().zip(listed).is_some_and(|(newest, listed)| newest <= listed);
    match (known, listed) {
        (None, Some(listed)) if is_older => {
            let entry = entry.clone().join(Entry::deleted(listed));
            Stored { kind, entry, is_spread: false }
        }
        (None, _) => Stored { kind, entry: entry.clone(), is_spread: false },
        (Some(known), _) if is_older => known,
        (Some(known), _) => {
            let entry = known.entry.clone().join(entry.clone());
            let is_spread = known.is_spread && entry.shown() == known.entry.shown();
            Stored { kind, entry, is_spread }
        }
    }
}

async fn put(store: &dyn Store, key: &str, stored: &Stored, revision: i64) -> Result<bool, Error> {
    let record = Record { format: FORMAT, stored: stored.clone() };
    let value = serde_json::to_value(record).expect("texts and numbers are JSON");
    store.put_state(key, &value, revision).await
}

fn decode(key: &str, saved: &Saved) -> Result<Stored, Error> {
    let refused = |problem: String| Error::Refused {
        doing: "read a record of kinsync",
        hint: format!("the record `{key}` {problem}: run the version of kinsync that wrote it"),
        source: None,
    };
    let format = saved.value.get("format").and_then(serde_json::Value::as_u64);
    if format != Some(u64::from(FORMAT)) {
        return Err(refused(format!("has format {format:?}, and this version reads format {FORMAT}")));
    }
    let record = Record::deserialize(&saved.value);
    record.map(|record| record.stored).map_err(|error| refused(format!("cannot be decoded ({error})")))
}

/// Writes the rows of all users that refer to these objects again, and marks the records as spread.
///
/// # Errors
/// Fails when the store fails. A repetition is safe.
pub(crate) async fn spread(store: &dyn Store, ids: &[String], now: Micros) -> Result<(), Error> {
    if ids.is_empty() {
        return Ok(());
    }
    let keys: Vec<String> = ids.iter().map(|id| format!("{PREFIX}{id}")).collect();
    let before = store.states(&keys).await?;
    let mut after = None;
    let mut are_all_written = true;
    loop {
        let users = store.referring(ids, after.as_ref(), PAGE).await?;
        let applied = apply::rewrite(store, &users, now).await?;
        are_all_written &= applied.failed.is_empty();
        if users.len() < PAGE {
            break;
        }
        after = users.into_iter().next_back();
    }
    if !are_all_written {
        tracing::warn!("documents of some users do not show a changed organization, role or permission yet");
        return Ok(());
    }
    for (key, saved) in keys.iter().zip(before) {
        let Some(saved) = saved else { continue };
        let stored = Stored { is_spread: true, ..decode(key, &saved)? };
        // A concurrent change is spread by the process that made it.
        put(store, key, &stored, saved.revision).await?;
    }
    Ok(())
}

/// Loads what is known of these objects and of the permissions that the roles among them give. The result has an entry for
/// each, also if nothing is known.
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
    if ids.is_empty() {
        return Ok(Directory::default());
    }
    let keys: Vec<String> = ids.iter().map(|id| format!("{PREFIX}{id}")).collect();
    let mut directory = Directory::default();
    for (keys, ids) in keys.chunks(PAGE).zip(ids.into_iter().collect::<Vec<_>>().chunks(PAGE)) {
        for ((key, id), saved) in keys.iter().zip(ids).zip(store.states(keys).await?) {
            let stored = saved.map(|saved| decode(key, &saved)).transpose()?;
            directory.add(id, stored.map(|stored| stored.entry).unwrap_or_default());
        }
    }
    Ok(directory)
}

/// Lists all organizations, roles and permissions, in the order of their codes and ids.
///
/// # Errors
/// Fails when the store fails, or when a newer kinsync wrote a record.
pub async fn list(store: &dyn Store) -> Result<HashMap<String, Stored>, Error> {
    let mut all = HashMap::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list_states(PREFIX, after.as_deref(), PAGE).await?;
        for (key, saved) in &page {
            all.insert(key[PREFIX.len()..].to_owned(), decode(key, saved)?);
        }
        if page.len() < PAGE {
            return Ok(all);
        }
        after = page.into_iter().next_back().map(|(key, _)| key);
    }
}
