//! Indexes: creates missing ones at start and checks existing ones.

use std::time::Duration;

use bson::{Bson, Document, RawDocumentBuf, doc, rawdoc};
use kinsync_core::Field;
use mongodb::{
    Collection, Database,
    action::{Action as _, Aggregate},
    error::Error as DriverError,
    options::{Collation, CollationAlternate, CollationMaxVariable, CollationStrength},
};

use super::{
    Inner, LinkByEmail, call,
    derived::{self, Derived},
    examine::Collection as Described,
    list,
    state::DUE,
};
use crate::store::{DocumentKey, Error, Severity, StoreProblem, user_filter::Index as Listed};

/// Unique index on the Kinde id.
pub(super) const KINDE_ID: &str = "kinsync_kindeId";

/// Index on the email address, unique by default.
pub(super) const EMAIL: &str = "kinsync_email";

/// Path of the codes and ids that a user refers to.
pub(super) const REFERENCES: &str = "kinsync.directory.entries.id";

/// Time limit of the build of one index.
const BUILD: Duration = Duration::from_hours(1);

/// `NamespaceNotFound`: the collection does not exist yet.
const NO_COLLECTION: i32 = 26;

const DOING: &str = "prepare the indexes";

/// A required index.
pub(super) struct Index {
    pub(super) name: &'static str,
    key: Document,
    unique: bool,
    partial: Option<Document>,
    sparse: bool,
    /// How it compares texts; `None`: by bytes.
    collation: Option<Document>,
    /// Whether kinsync works without it: MongoDB 4.4 has no two indexes on one key.
    is_optional: bool,
}

impl Index {
    fn on(name: &'static str, key: Document) -> Self {
        Self { name, key, unique: false, partial: None, sparse: false, collation: None, is_optional: false }
    }

    pub(super) fn sparse(name: &'static str, key: Document) -> Self {
        Self { sparse: true, ..Self::on(name, key) }
    }

    pub(super) fn unique_sparse(name: &'static str, key: Document) -> Self {
        Self { unique: true, ..Self::sparse(name, key) }
    }

    /// Returns an index that finds texts in any form.
    fn any_form(name: &'static str, key: Document) -> Self {
        Self { collation: Some(any_form_document()), ..Self::sparse(name, key) }
    }

    /// Returns a partial index over texts, because documents of the application may lack the key. The filter is `$gt: ""`
    /// instead of `$type: "string"`: the planner derives it from an equality and uses the index for any query.
    fn texts(name: &'static str, key: &str, unique: bool) -> Self {
        Self { unique, ..Self::texts_and(name, key, Document::new()) }
    }

    /// Returns a partial index over texts, followed by other keys.
    fn texts_and(name: &'static str, key: &str, others: Document) -> Self {
        let keys = doc! { key: 1 }.into_iter().chain(others).collect();
        Self { partial: Some(doc! { key: { "$gt": "" } }), ..Self::on(name, keys) }
    }

    fn document(&self, is_collated: bool) -> Document {
        let mut doc = doc! { "name": self.name, "key": self.key.clone() };
        if let Some(collation) = &self.collation {
            doc.insert("collation", collation.clone());
        } else if is_collated {
            // Without it the index takes the collation of the collection.
            doc.insert("collation", simple_collation());
        }
        if self.unique {
            doc.insert("unique", true);
        }
        if self.sparse {
            doc.insert("sparse", true);
        }
        if let Some(partial) = &self.partial {
            doc.insert("partialFilterExpression", partial.clone());
        }
        doc
    }

    fn doing(&self) -> &'static str {
        match self.name {
            KINDE_ID => "create the unique index on the Kinde id, without which no user is written",
            EMAIL => "create the unique index on the email address",
            _ => DOING,
        }
    }

    /// Returns whether an existing index is equivalent, regardless of its name.
    pub(super) fn is_served_by(&self, there: &Document) -> bool {
        let flag = |key| there.get_bool(key).unwrap_or_default();
        let partial = there.get_document("partialFilterExpression").ok();
        same_key(there, &self.key)
            && flag("unique") == self.unique
            && flag("sparse") == self.sparse
            && partial == self.partial.as_ref()
            && self.has_collation_of(there)
    }

    /// Returns whether an existing index compares texts as this one. The server adds defaults to a collation.
    fn has_collation_of(&self, there: &Document) -> bool {
        match (there.get_document("collation"), &self.collation) {
            (Ok(there), Some(wanted)) => wanted.iter().all(|(key, value)| there.get(key) == Some(value)),
            (there, wanted) => there.is_err() && wanted.is_none(),
        }
    }

    /// Returns whether kinsync made the index under this name for another mapping of the keys. An index with other keys of the same
    /// mapping is one of another version of kinsync, which may run beside this one: each would replace the index of the other.
    fn is_of_former_names(&self, there: &[Document]) -> bool {
        let named = there.iter().find(|there| there.get_str("name").is_ok_and(|name| name == self.name));
        let key = named.and_then(|there| there.get_document("key").ok());
        key.is_some_and(|key| directions(key) != directions(&self.key) && has_form_of(key, &self.key))
    }

    /// Returns whether an existing index has the same name.
    pub(super) fn has_its_name_taken(&self, there: &[Document]) -> bool {
        there.iter().any(|there| there.get_str("name").is_ok_and(|name| name == self.name))
    }
}

/// Returns the index of rows with an email conflict, in the order of their ids.
fn held_by(kinde_id: &str) -> Index {
    of_metadata("kinsync_heldBy", kinde_id, "kinsync.heldBy")
}

/// Returns the index of rows with this key of the metadata, in the order of their ids.
fn of_metadata(name: &'static str, kinde_id: &str, key: &str) -> Index {
    let partial = Some(doc! { key: { "$exists": true } });
    Index { partial, ..Index::on(name, doc! { kinde_id: 1, key: 1 }) }
}

/// Returns the index of the users that refer to an organization, a role or a permission, in the order of their ids.
fn of_references(kinde_id: &str) -> Index {
    let partial = Some(doc! { REFERENCES: { "$gt": "" } });
    Index { partial, ..Index::on("kinsync_directory", doc! { REFERENCES: 1, kinde_id: 1 }) }
}

/// Returns the indexes of the lists of users, each by a value and then by id, or by id among the users with a mark. Earlier versions
/// have others under the names `kinsync_addresses`, `kinsync_providedIds` and `kinsync_deleted`.
fn of_lists(kinde_id: &str) -> [Index; 8] {
    let path = |index| list::path(index).expect("an index with values");
    let by = |index| doc! { path(index): 1, kinde_id: 1 };
    let of_id = || doc! { kinde_id: 1 };
    let suspended = "kinsync.values.isSuspended";
    [
        Index::any_form("kinsync_addresses_id", by(Listed::Email)),
        Index::any_form("kinsync_firstNames", by(Listed::FirstName)),
        Index::any_form("kinsync_lastNames", by(Listed::LastName)),
        Index::texts_and("kinsync_phones", path(Listed::Phone), of_id()),
        Index::texts_and("kinsync_providedIds_id", path(Listed::ProvidedId), of_id()),
        // Also of the users without this value: those that are not deleted.
        Index::on("kinsync_deleted_id", by(Listed::DeletedAt)),
        Index::sparse("kinsync_changed", by(Listed::UpdatedAt)),
        Index {
            partial: Some(doc! { suspended: true }),
            ..Index::on("kinsync_suspended", doc! { kinde_id: 1, suspended: 1 })
        },
    ]
}

/// Returns the index of marked records.
pub(super) fn of_state() -> Index {
    Index { partial: Some(doc! { DUE: true }), ..Index::on("kinsync_due", doc! { DUE: 1, "_id": 1 }) }
}

/// Returns the indexes of the event log: newest first, of all entries, of a user, of a type and of a source.
pub(super) fn of_events() -> [Index; 4] {
    let received = || doc! { "kinsync.receivedAt": -1, "_id": -1 };
    let newest_of = |key: &str| doc! { key: 1 }.into_iter().chain(received()).collect();
    [
        Index::on("kinsync_receivedAt", received()),
        Index::on("kinsync_user", newest_of("user")),
        Index::on("kinsync_type", newest_of("type")),
        Index::on("kinsync_source", newest_of("source")),
    ]
}

impl Inner {
    /// Creates missing indexes, and returns a problem for each that cannot be created.
    ///
    /// # Errors
    /// Fails when the index on the Kinde id cannot be created: without it two processes could insert the same user twice.
    pub(super) async fn make_indexes(&self, users: &Described) -> Result<Vec<StoreProblem>, Error> {
        let mut problems =
            self.make(&self.users, &users.indexes, &self.of_users(), users.is_collated()).await?;
        let there = self.indexes(&self.events).await?;
        problems.extend(self.make(&self.events, &there, &of_events(), false).await?);
        let there = self.indexes(&self.state).await?;
        problems.extend(self.make(&self.state, &there, &[of_state()], false).await?);
        Ok(problems)
    }

    /// Returns the indexes of the users, the unique ones first and those of the lists last: MongoDB limits their number. A key that the
    /// settings switch off has none.
    pub(super) fn of_users(&self) -> Vec<Index> {
        let id = self.keys.kinde_id();
        let mut indexes = vec![Index::texts(KINDE_ID, id, true)];
        indexes.extend(self.keys.email().map(|email| Index::texts(EMAIL, email, self.unique_email)));
        indexes.extend([
            held_by(id),
            of_metadata("kinsync_refused", id, "kinsync.refused"),
            of_metadata("kinsync_pending", id, "kinsync.pendingEmails"),
            of_references(id),
            Index::sparse("kinsync_kept", doc! { "kinsync.kept": 1 }),
            // A join cannot use a partial index: it may look for null.
            Index { is_optional: true, ..Index::on("kinsync_kindeId_join", doc! { id: 1 }) },
        ]);
        if self.has(Derived::Memberships) {
            indexes.push(of_metadata("kinsync_unshown", id, derived::UNSHOWN));
        }
        // For queries of the application: the members of an organization.
        let organizations = self.keys.dotted(DocumentKey::Field(Field::Organizations));
        let code = organizations.map(|path| format!("{path}.code"));
        indexes.extend(code.map(|path| Index::sparse("kinsync_organizations", doc! { path: 1 })));
        let provided_id = self.keys.dotted(DocumentKey::Field(Field::ProvidedId));
        indexes.extend(provided_id.map(|path| Index::sparse("kinsync_providedId", doc! { path: 1 })));
        let is_any_case = self.link_by_email == LinkByEmail::VerifiedIgnoreCase;
        let email = self.keys.email().filter(|_| is_any_case);
        indexes.extend(email.map(|email| Index::any_form("kinsync_email_any_case", doc! { email: 1 })));
        let of_readers = [
            ("kinsync_updatedAt", DocumentKey::UpdatedAt),
            ("kinsync_lastSeenAt", DocumentKey::LastSeenAt),
            ("kinsync_deletedAt", DocumentKey::DeletedAt),
        ];
        let on = |(name, key)| Some(Index::on(name, doc! { self.keys.dotted(key)?: 1 }));
        indexes.extend(of_readers.into_iter().filter_map(on));
        indexes.extend(of_lists(id));
        indexes
    }

    pub(super) async fn indexes(
        &self,
        collection: &Collection<RawDocumentBuf>,
    ) -> Result<Vec<Document>, Error> {
        let command = rawdoc! { "listIndexes": collection.name() };
        let list = list(self.database.clone(), command);
        self.calls.run(DOING, self.op_timeout, list).await
    }

    pub(super) async fn make(
        &self,
        collection: &Collection<RawDocumentBuf>,
        there: &[Document],
        wanted: &[Index],
        is_collated: bool,
    ) -> Result<Vec<StoreProblem>, Error> {
        let mut problems = Vec::new();
        for index in wanted.iter().filter(|index| !there.iter().any(|there| index.is_served_by(there))) {
            if index.is_of_former_names(there) {
                self.drop_index(collection, index.name).await?;
            }
            let made = if index.has_its_name_taken(there) && !index.is_of_former_names(there) {
                Err(changed(collection, index.name))
            } else {
                tracing::info!(collection = collection.name(), index = index.name, "creating an index");
                self.build(collection, index, is_collated).await
            };
            match made {
                Err(Error::Refused { .. }) if index.is_optional => {
                    tracing::info!(index = index.name, "the server has no such index");
                }
                Err(Error::Refused { hint, .. }) if index.name != KINDE_ID => {
                    problems.push(not_created(index.name, hint));
                }
                made => made?,
            }
        }
        Ok(problems)
    }

    async fn drop_index(&self, collection: &Collection<RawDocumentBuf>, name: &str) -> Result<(), Error> {
        tracing::info!(
            collection = collection.name(),
            index = name,
            "replacing the index of a former name of a key"
        );
        let command = doc! { "dropIndexes": collection.name(), "index": name };
        let database = self.database.clone();
        let drop = async move { database.run_command(command).await };
        self.calls.run(DOING, self.op_timeout, drop).await.map(|_| ())
    }

    async fn build(
        &self,
        collection: &Collection<RawDocumentBuf>,
        index: &Index,
        is_collated: bool,
    ) -> Result<(), Error> {
        let command = doc! { "createIndexes": collection.name(), "indexes": [index.document(is_collated)] };
        let database = self.database.clone();
        let build = async move {
            match database.run_command(command).await {
                Err(error) if matches!(call::code(&error), Some(85 | 86 | 11000)) => Ok(Err(error)),
                answer => answer.map(Ok),
            }
        };
        let Err(refused) = self.calls.run(index.doing(), BUILD, build).await? else { return Ok(()) };
        if call::code(&refused) == Some(11000) {
            return Err(self.collisions(index).await?);
        }
        Err(changed(collection, index.name))
    }

    /// Returns an error that lists the documents with the same address or Kinde id.
    async fn collisions(&self, index: &Index) -> Result<Error, Error> {
        let key = index.key.keys().next().map(String::as_str).unwrap_or_default();
        let pairs = self.shared(key, BUILD).await?.join(", ");
        let ways_out = if Some(key) == self.keys.email() {
            "merge these documents or remove the address from one of each"
        } else {
            "merge these documents"
        };
        let hint = format!(
            "documents of `{}` have the same `{key}` (by `_id`): {pairs}; {ways_out}",
            self.users.name()
        );
        Ok(Error::Refused { doing: DOING, hint, source: None })
    }

    /// Returns some documents with the same text under this key, as pairs of `_id`.
    pub(super) async fn shared(&self, key: &str, limit: Duration) -> Result<Vec<String>, Error> {
        // The smallest and the greatest `_id` of each value keep the memory bounded.
        let pipeline = [
            doc! { "$match": { key: { "$gt": "" } } },
            doc! { "$group": {
                "_id": format!("${key}"), "n": { "$sum": 1 }, "a": { "$min": "$_id" }, "b": { "$max": "$_id" },
            } },
            doc! { "$match": { "n": { "$gt": 1 } } },
            doc! { "$limit": 5 },
        ];
        let (users, collation) = (self.users.clone(), self.collation());
        let read = async move {
            let shared = users.aggregate(pipeline).allow_disk_use(true);
            let mut cursor = shared.optional(collation, Aggregate::collation).await?;
            let mut pairs = Vec::new();
            while cursor.advance().await? {
                let pair = Document::try_from(cursor.current())?;
                let id = |key| pair.get(key).map(name).unwrap_or_default();
                pairs.push(format!("{} and {}", id("a"), id("b")));
            }
            Ok(pairs)
        };
        self.calls.run(DOING, limit, read).await
    }
}

/// The problem of an index that cannot be created.
fn not_created(name: &'static str, mut fix: String) -> StoreProblem {
    let (severity, consequence) = if name == EMAIL {
        if fix != call::TOO_MANY_INDEXES {
            fix.push_str(
                "; or set `unique_email = false`, if kinsync alone shall decide which user shows an address",
            );
        }
        (
            Severity::Error,
            "kinsync alone decides which user shows an address, and other writers may show it twice",
        )
    } else {
        (Severity::Warning, "some queries read every document")
    };
    let what = format!("the index `{name}` of kinsync cannot be created: {consequence}");
    StoreProblem { subject: format!("index {name}"), severity, what, fix }
}

async fn list(database: Database, command: RawDocumentBuf) -> Result<Vec<Document>, DriverError> {
    let reply = match database.run_raw_command(command).await {
        Err(error) if call::code(&error) == Some(NO_COLLECTION) => return Ok(Vec::new()),
        answer => answer?,
    };
    // A collection has at most 64 indexes, and a first batch up to 101 documents.
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    let batch = batch.map(Vec::as_slice).unwrap_or_default();
    Ok(batch.iter().filter_map(|index| index.as_document().cloned()).collect())
}

fn changed(collection: &Collection<RawDocumentBuf>, name: &str) -> Error {
    let hint = format!(
        "the index `{name}` exists with other options; drop it with `db.{}.dropIndex(\"{name}\")`: kinsync creates it again",
        collection.name()
    );
    Error::Refused { doing: DOING, hint, source: None }
}

/// The comparison that treats addresses as equal that differ in case or white space only. Others may be equal to it too:
/// each match has to be compared again.
pub(super) fn any_form() -> Collation {
    Collation::builder()
        .locale("en")
        .strength(CollationStrength::Secondary)
        .alternate(CollationAlternate::Shifted)
        .max_variable(CollationMaxVariable::Space)
        .build()
}

fn any_form_document() -> Document {
    doc! { "locale": "en", "strength": 2, "alternate": "shifted", "maxVariable": "space" }
}

/// The comparison of bytes.
pub(super) fn simple_collation() -> Document {
    doc! { "locale": "simple" }
}

/// Compares directions as numbers, because a shell stores them as doubles.
fn same_key(there: &Document, wanted: &Document) -> bool {
    there.get_document("key").is_ok_and(|key| directions(key) == directions(wanted))
}

fn directions(key: &Document) -> Vec<(&str, Option<i64>)> {
    key.iter().map(|(name, direction)| (name.as_str(), number(direction))).collect()
}

/// Returns whether the keys of two indexes differ in names of the mapping only. No setting renames what is below `kinsync`.
fn has_form_of(key: &Document, wanted: &Document) -> bool {
    let own = |name: &str| name.starts_with("kinsync.");
    key.len() == wanted.len()
        && directions(key).into_iter().zip(directions(wanted)).all(|((name, direction), wanted)| {
            (name, direction) == wanted || (direction == wanted.1 && !own(name) && !own(wanted.0))
        })
}

fn number(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        Bson::Double(number) if *number > 0.0 => Some(1),
        Bson::Double(_) => Some(-1),
        _ => None,
    }
}

fn name(id: &Bson) -> String {
    match id {
        Bson::ObjectId(id) => id.to_hex(),
        Bson::String(id) => id.clone(),
        other => other.to_string(),
    }
}
