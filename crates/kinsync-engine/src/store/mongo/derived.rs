//! The derived collections: one document per organization, per role, and per user and organization.
//!
//! The documents are views of kinsync's own records and of the users' rows, which alone are decoded. A write is therefore repeated
//! from the start after any interruption: the mark of a record ([`crate::directory`]) and the mark of a row
//! ([`crate::store::Row::has_unshown_memberships`]) are removed only after the documents show them.
//!
//! Each write first reads the documents, then what they are derived from, and is conditional on the revision that the document
//! had. A process with an older record therefore overwrites no newer view.

mod content;
mod examine;
mod plan;
mod settings;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bson::{Document, RawArrayBuf, RawDocument, RawDocumentBuf, doc, raw::cstr};
use kinsync_core::{Micros, UserId};
use mongodb::Collection;

pub use self::settings::{Derived, DerivedConfig};
use self::{
    content::{Members, Wanted},
    plan::{Change, Existing},
    settings::Paths,
};
use super::{Inner, MongoStore, call, indexes, read::Find};
use crate::{
    contention::{MAX_ROUNDS, pause},
    directory::{self, Kind},
    store::{Error, Store},
};

const READ: &str = "read documents of organizations, roles or memberships";

const WRITE: &str = "write documents of organizations, roles or memberships";

/// Mark of a row with memberships that the collection may not show.
pub(super) const UNSHOWN: &str = "kinsync.unshown";

/// Maximum statements per command.
const CHUNK: usize = 1000;

/// Organizations of which one query counts the members.
const COUNTED: usize = 100;

/// E11000.
const DUPLICATE_KEY: i32 = 11000;

/// A collection of the settings.
#[derive(Debug)]
pub(super) struct DerivedCollection {
    derived: Derived,
    collection: Collection<RawDocumentBuf>,
    paths: Paths,
    /// Whether the indexes exist, and no documents of the application forbid the use. Nothing is written before.
    is_ready: AtomicBool,
    /// The newest refusal of a document, and the number of refused ones since the start.
    refusals: Mutex<Option<(u64, String)>>,
}

/// What the documents of one call are derived from.
#[derive(Clone, Copy)]
enum Origin<'a> {
    /// The records of these organizations, and their members as counted at this time.
    Organizations(&'a [String], Micros),
    /// The records of these roles.
    Roles(&'a [String]),
    /// The rows of these users.
    Users(&'a [UserId]),
}

/// Documents to show.
#[derive(Default)]
struct Source {
    wanted: Vec<Wanted>,
    /// Users with the revision of the row that was read.
    revisions: HashMap<UserId, i64>,
}

/// A write of one document.
struct Planned {
    wanted: Wanted,
    change: Change,
}

impl DerivedCollection {
    pub(super) fn new(
        derived: Derived,
        config: &DerivedConfig,
        collection: impl FnOnce(&str) -> Collection<RawDocumentBuf>,
    ) -> Result<Option<Self>, Error> {
        let Some(name) = &config.collection else { return Ok(None) };
        Ok(Some(Self {
            derived,
            collection: collection(name),
            paths: Paths::new(config, derived)?,
            is_ready: AtomicBool::new(false),
            refusals: Mutex::default(),
        }))
    }

    fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }

    fn path(&self, key: &str) -> &str {
        self.paths.of(key).expect("the keys that identify a document have a path")
    }

    /// Finds the documents of these owners, and documents of the application with the same code or id.
    fn documents_of(&self, owners: &[String]) -> Find {
        let ours = doc! { "kinsync.of": { "$in": owners } };
        let filter = if self.paths.identity_is_named {
            let path = self.path(self.derived.identity()[0]);
            doc! { "$or": [ours, { path: { "$in": owners } }] }
        } else {
            ours
        };
        // The whole documents: a key that kinsync wrote under a former name is among them.
        Find::new(filter)
    }

    /// Returns the document of the application with this identity; an error if there are several.
    fn linked<'a>(&self, existing: &'a [Existing], wanted: &Wanted) -> Result<Option<&'a Existing>, String> {
        let has_identity = |document: &&Existing| {
            self.derived.identity().iter().all(|key| {
                let value = wanted.values.iter().find(|(name, _)| name == key).map(|(_, value)| value);
                document.value(self.path(key)) == value
            })
        };
        let mut found = existing.iter().filter(|document| document.ours.is_none()).filter(has_identity);
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(format!(
                "several documents of the application have the same {}: merge them",
                self.derived
                    .identity()
                    .iter()
                    .map(|key| format!("`{}`", self.path(key)))
                    .collect::<Vec<_>>()
                    .join(" and ")
            )),
            (found, _) => Ok(found),
        }
    }

    /// Returns the changes that make the documents show what is wanted, and the owners of documents that cannot.
    fn changes(&self, wanted: &[Wanted], existing: &[Existing]) -> (Vec<Planned>, HashSet<String>) {
        let ours =
            existing.iter().filter_map(|document| Some((document.ours.as_ref()?.id.as_str(), document)));
        let ours: HashMap<&str, &Existing> = ours.collect();
        let (mut changes, mut refused) = (Vec::new(), HashSet::new());
        for wanted in wanted {
            let document = match ours.get(wanted.id.as_str()) {
                Some(document) => Ok(Some(*document)),
                None if self.paths.identity_is_named => self.linked(existing, wanted),
                None => Ok(None),
            };
            match document {
                Ok(document) => {
                    let change = plan::change(document, wanted, &self.paths);
                    changes.extend(change.map(|change| Planned { wanted: wanted.clone(), change }));
                }
                Err(reason) => {
                    self.refuse(wanted, reason);
                    refused.insert(wanted.owner.clone());
                }
            }
        }
        (changes, refused)
    }

    fn refuse(&self, wanted: &Wanted, reason: String) {
        tracing::warn!(
            collection = self.collection.name(),
            document = wanted.id.replace('\n', " in "),
            reason,
            "a document of an organization, a role or a membership cannot be written"
        );
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let count = refusals.as_ref().map_or(0, |(count, _)| *count) + 1;
        *refusals = Some((count, reason));
    }
}

impl MongoStore {
    /// Makes the documents of these organizations and roles show their records, and those of roles with these permissions.
    pub(super) async fn show_directory_of(&self, ids: &[String], now: Micros) -> Result<(), Error> {
        let inner = self.inner()?;
        let known = directory::read(self, ids).await?;
        let of_kind = |kind| known.iter().filter(move |(_, one)| one.kind == kind).map(|(id, _)| id.clone());
        let mut roles: BTreeSet<String> = of_kind(Kind::Role).collect();
        let permissions: HashSet<String> = of_kind(Kind::Permission).collect();
        if !permissions.is_empty() && inner.ready(Derived::Roles).is_some() {
            let all = directory::list(self).await?.stored;
            let gives = |stored: &directory::Stored| {
                stored.entry.permissions().into_iter().flatten().any(|id| permissions.contains(id))
            };
            roles.extend(all.into_iter().filter(|(_, stored)| gives(stored)).map(|(id, _)| id));
        }
        if let Some(collection) = inner.ready(Derived::Organizations) {
            let codes: Vec<String> = of_kind(Kind::Organization).collect();
            for codes in codes.chunks(COUNTED) {
                self.show(collection, Origin::Organizations(codes, now)).await?;
            }
        }
        if let Some(collection) = inner.ready(Derived::Roles) {
            let ids: Vec<String> = roles.into_iter().collect();
            for ids in ids.chunks(COUNTED) {
                self.show(collection, Origin::Roles(ids)).await?;
            }
        }
        Ok(())
    }

    async fn organizations(
        &self,
        codes: &[String],
        existing: &[Existing],
        now: Micros,
    ) -> Result<Source, Error> {
        let inner = self.inner()?;
        let counts = self.count_members(codes).await?;
        let records = directory::read(self, codes).await?;
        let wanted = records.iter().map(|(code, stored)| {
            let count = counts.get(code).copied().unwrap_or_default();
            let shown = existing.iter().find(|one| one.ours.as_ref().is_some_and(|ours| ours.id == *code));
            let as_of = shown.and_then(|shown| inner.counted_as_of(shown, count)).unwrap_or(now);
            content::organization(code, stored, Members { count, as_of })
        });
        Ok(Source { wanted: wanted.collect(), ..Source::default() })
    }

    async fn roles(&self, ids: &[String]) -> Result<Source, Error> {
        let roles = directory::read(self, ids).await?;
        let given = roles.values().flat_map(|role| role.entry.permissions().into_iter().flatten());
        let given: BTreeSet<String> = given.cloned().collect();
        let permissions = directory::read(self, &given.into_iter().collect::<Vec<_>>()).await?;
        let wanted = roles.iter().map(|(id, stored)| content::role(id, stored, &permissions));
        Ok(Source { wanted: wanted.collect(), ..Source::default() })
    }

    /// Makes the documents of the memberships of these users show their rows, and removes the marks of these rows.
    pub(super) async fn show_memberships_of(&self, users: &[UserId]) -> Result<(), Error> {
        let inner = self.inner()?;
        let Some(collection) = inner.ready(Derived::Memberships) else { return Ok(()) };
        for users in users.chunks(CHUNK) {
            let (source, refused) = self.show(collection, Origin::Users(users)).await?;
            let shown = source.revisions.into_iter().filter(|(user, _)| !refused.contains(user.as_str()));
            inner.remove_marks(shown.collect()).await?;
        }
        Ok(())
    }

    async fn source(&self, origin: Origin<'_>, existing: &[Existing]) -> Result<Source, Error> {
        match origin {
            Origin::Organizations(codes, now) => self.organizations(codes, existing, now).await,
            Origin::Roles(ids) => self.roles(ids).await,
            Origin::Users(users) => self.inner()?.memberships(users, existing).await,
        }
    }

    /// Makes documents show what they are derived from. Returns that, and the owners of documents that the database refuses.
    async fn show(
        &self,
        collection: &DerivedCollection,
        origin: Origin<'_>,
    ) -> Result<(Source, HashSet<String>), Error> {
        let inner = self.inner()?;
        let owners = match origin {
            Origin::Organizations(ids, _) | Origin::Roles(ids) => ids.to_vec(),
            Origin::Users(users) => users.iter().map(ToString::to_string).collect(),
        };
        for round in 0..MAX_ROUNDS {
            pause(round).await;
            let keys: HashSet<String> = collection.paths.first().map(ToOwned::to_owned).collect();
            let read = move |doc: &RawDocument| Existing::read(Document::try_from(doc).ok()?, &keys);
            let existing =
                inner.find(READ, &collection.collection, collection.documents_of(&owners), read).await?;
            let source = self.source(origin, &existing).await?;
            let (changes, mut refused) = collection.changes(&source.wanted, &existing);
            if inner.write_derived(collection, changes, &mut refused).await? {
                return Ok((source, refused));
            }
        }
        Err(call::unavailable(WRITE, "other processes write the same documents continuously"))
    }
}

impl Inner {
    pub(super) fn ready(&self, derived: Derived) -> Option<&DerivedCollection> {
        self.derived.iter().find(|one| one.derived == derived && one.is_ready())
    }

    pub(super) fn has(&self, derived: Derived) -> bool {
        self.derived.iter().any(|one| one.derived == derived)
    }

    /// Returns what identifies the collections that are written, with the places of their keys; `None` without any.
    pub(super) fn derived_collections(&self) -> Option<String> {
        let ready = self.derived.iter().filter(|one| one.is_ready());
        let texts: Vec<String> =
            ready.map(|one| format!("{}:{}", one.collection.name(), one.paths.text())).collect();
        (!texts.is_empty()).then(|| texts.join(";"))
    }

    /// Returns when the members were counted, if the document shows this number.
    fn counted_as_of(&self, shown: &Existing, count: u64) -> Option<Micros> {
        let paths = &self.ready(Derived::Organizations)?.paths;
        let known = shown.written(paths.of("memberCount")?)?.as_i64()?;
        let as_of = shown.written(paths.of("membersAsOf")?)?.as_datetime()?;
        (u64::try_from(known) == Ok(count)).then(|| Micros(as_of.timestamp_millis() * 1000))
    }

    async fn memberships(&self, users: &[UserId], existing: &[Existing]) -> Result<Source, Error> {
        let mut source = Source::default();
        for row in self.load(users).await?.into_iter().flatten() {
            let ours = existing.iter().filter_map(|document| document.ours.as_ref());
            let known = ours.filter(|ours| ours.owner == row.id.as_str()).map(|ours| ours.id.as_str());
            source.wanted.extend(content::memberships(&row, known).unwrap_or_default());
            if row.has_unshown_memberships {
                source.revisions.insert(row.id, row.revision);
            }
        }
        Ok(source)
    }

    /// Writes documents. Returns `false` after a concurrent write of one.
    async fn write_derived(
        &self,
        collection: &DerivedCollection,
        changes: Vec<Planned>,
        refused: &mut HashSet<String>,
    ) -> Result<bool, Error> {
        let (inserts, updates): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|planned| matches!(planned.change, Change::Insert(_)));
        let mut is_done = true;
        for changes in inserts.chunks(CHUNK).chain(updates.chunks(CHUNK)) {
            is_done &= self.write_chunk(collection, changes, refused).await?;
        }
        Ok(is_done)
    }

    async fn write_chunk(
        &self,
        collection: &DerivedCollection,
        changes: &[Planned],
        refused: &mut HashSet<String>,
    ) -> Result<bool, Error> {
        let mut statements = RawArrayBuf::new();
        let mut verb = (cstr!("insert"), cstr!("documents"));
        for planned in changes {
            let statement = match &planned.change {
                Change::Insert(document) => document.clone(),
                Change::Update(query, update) => {
                    verb = (cstr!("update"), cstr!("updates"));
                    doc! { "q": query.clone(), "u": update.clone() }
                }
            };
            let statement = RawDocumentBuf::try_from(&statement);
            statements.push(statement.expect("keys of kinsync contain no NUL"));
        }
        let command = self.write_command(verb.0, &collection.collection, verb.1, &statements);
        let command = call::command(self.database.clone(), command);
        let reply = self.calls.run(WRITE, self.op_timeout, command).await?;
        let (written, errors) = call::written(WRITE, &reply)?;
        let mut is_done = written + errors.len() == changes.len();
        for error in errors {
            if error.is_about_the_server() {
                return Err(call::unavailable(WRITE, call::Cause::Write(error.code)));
            }
            let is_ours =
                error.index_name.as_deref() == Some(examine::ID) || error.duplicate == ["kinsync.id"];
            if error.code == DUPLICATE_KEY && is_ours {
                is_done = false;
                continue;
            }
            let Some(Planned { wanted, .. }) = changes.get(error.index) else { continue };
            refused.insert(wanted.owner.clone());
            collection.refuse(wanted, reason(&error));
        }
        Ok(is_done)
    }

    /// Removes the marks of rows that still have this revision.
    async fn remove_marks(&self, rows: Vec<(UserId, i64)>) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut statements = RawArrayBuf::new();
        for (user, revision) in &rows {
            let query = doc! { self.keys.kinde_id(): user.as_str(), "kinsync.revision": *revision };
            let mut statement = doc! { "q": query, "u": { "$unset": { UNSHOWN: true } } };
            if self.collation().is_some() {
                statement.insert("collation", indexes::simple_collation());
            }
            let statement = RawDocumentBuf::try_from(&statement);
            statements.push(statement.expect("keys of kinsync contain no NUL"));
        }
        let command = self.write_command(cstr!("update"), &self.users, cstr!("updates"), &statements);
        let command = call::command(self.database.clone(), command);
        let reply = self.calls.run(WRITE, self.op_timeout, command).await?;
        match call::written(WRITE, &reply)?.1.first() {
            Some(error) => Err(call::unavailable(WRITE, call::Cause::Write(error.code))),
            None => Ok(()),
        }
    }

    pub(super) async fn unshown_memberships(
        &self,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, Error> {
        if self.ready(Derived::Memberships).is_none() {
            return Ok(Vec::new());
        }
        let query = doc! { UNSHOWN: { "$exists": true } };
        self.ids_of("list users with memberships to be shown", query, after, limit).await
    }

    pub(super) async fn count_members(&self, codes: &[String]) -> Result<HashMap<String, u64>, Error> {
        let mut counts = HashMap::with_capacity(codes.len());
        for codes in codes.chunks(COUNTED) {
            let pipeline = [
                doc! { "$match": { indexes::REFERENCES: { "$in": codes }, "kinsync.deletedAt": null } },
                doc! { "$project": { "_id": 0, "code": format!("${}", indexes::REFERENCES) } },
                doc! { "$unwind": "$code" },
                doc! { "$match": { "code": { "$in": codes } } },
                doc! { "$group": { "_id": "$code", "n": { "$sum": 1_i64 } } },
            ];
            let (users, collation, limit) = (self.users.clone(), self.collation(), self.op_timeout);
            let read = async move {
                use mongodb::action::{Action as _, Aggregate};
                let found = users.aggregate(pipeline).max_time(limit);
                let mut cursor = found.optional(collation, Aggregate::collation).await?;
                let mut counts = Vec::new();
                while cursor.advance().await? {
                    let found = cursor.current();
                    counts.extend(
                        found.get_str("_id").ok().map(ToOwned::to_owned).zip(found.get_i64("n").ok()),
                    );
                }
                Ok(counts)
            };
            let found = self.calls.run("count the members of organizations", limit, read).await?;
            counts.extend(found.into_iter().map(|(code, count)| (code, count.unsigned_abs())));
        }
        Ok(counts)
    }
}

/// Returns why the database refuses a document. Contains no value of it.
fn reason(error: &call::WriteError) -> String {
    if error.code == DUPLICATE_KEY {
        let index = error.index_name.as_deref().unwrap_or("?");
        let keys = error.duplicate.join("`, `");
        let fix = "create it with a `partialFilterExpression` that excludes documents without the key";
        return if error.is_absent {
            format!("the unique index `{index}` allows only one document without `{keys}`: {fix}")
        } else {
            format!("the unique index `{index}` on `{keys}` refuses the document")
        };
    }
    format!("the database refuses the document (code {}){}", error.code, error.rule)
}
