//! Links existing documents of an application, with an email address and without a Kinde id, to Kinde users.
//!
//! A link writes two documents and is therefore the only transaction: it deletes the document that kinsync created for the
//! user, and writes kinsync's fields into the application's document, which keeps all its own fields.

use std::{sync::Arc, time::Duration};

use bson::{
    Bson, Document, RawDocument, RawDocumentBuf, doc,
    raw::{CStr, RawBsonRef},
};
use mongodb::{
    ClientSession, Collection,
    action::{Action as _, Delete, Find as FindDocuments, FindOne, Update},
    error::{
        Error as DriverError, ErrorKind, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT,
        WriteFailure,
    },
    options::{Collation, ReadConcern, TransactionOptions, WriteConcern},
};

use super::{
    Inner, MongoStore, call, decode,
    encode::{self, default_value},
    mappings::Known,
    read::{Find, own_id},
};
use crate::store::{DocumentKey, Error, Outcome, Row, timed};

use crate::random;

const DOING: &str = "link a document of the application";

/// Time limit of the search for the next documents: millions of others may lie between.
const LONGEST: Duration = Duration::from_mins(10);

/// Attempts of a commit with an unknown outcome.
const COMMITS: u32 = 3;

/// Keys besides the fields that may be deleted with kinsync's document: mongoose adds `__v` to every document it saves.
const UNOWNED_KEYS: [&str; 2] = ["_id", "__v"];

/// Whether existing documents are linked to users by their email address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LinkByEmail {
    /// If Kinde reports the address as verified, and only one document has it.
    #[default]
    Verified,
    /// Never: the document keeps the address, and the user has an email conflict.
    Never,
}

/// A document of the application without a Kinde id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnlinkedDocument {
    /// `_id` as text.
    pub id: String,
    /// Email address.
    pub email: String,
}

impl MongoStore {
    /// Returns documents without a Kinde id and with an address greater than `after`, ordered by address.
    pub async fn unlinked(&self, after: &str, limit: usize) -> Result<Vec<UnlinkedDocument>, Error> {
        timed("mongo", "unlinked", self.0.list_unlinked(after, limit)).await
    }

    /// Returns whether the document that kinsync created for a user contains fields of the application. Such a document is
    /// never deleted by a link.
    pub async fn has_fields_of_the_application(&self, row: &Row) -> Result<bool, Error> {
        timed("mongo", "foreign_fields", self.0.is_shared(row)).await
    }
}

impl Inner {
    async fn list_unlinked(&self, after: &str, limit: usize) -> Result<Vec<UnlinkedDocument>, Error> {
        let Some(email) = self.keys.email().map(ToOwned::to_owned) else { return Ok(Vec::new()) };
        let mut filter = self.foreign();
        filter.insert(&email, doc! { "$gt": after });
        let find = Find::new(filter).sort(doc! { &email: 1 }).projection(doc! { "_id": 1, &email: 1 });
        let find = find.limit(limit).within(LONGEST);
        let keys = self.keys.clone();
        let read = move |doc: &RawDocument| {
            let email = keys.values(doc).of(DocumentKey::EMAIL)?.as_str()?.to_owned();
            Some(UnlinkedDocument { id: own_id(doc), email })
        };
        self.find("list the documents of the application", &self.users, find, read).await
    }

    async fn is_shared(&self, row: &Row) -> Result<bool, Error> {
        let known = self.mappings.known();
        let find = self.by_kinde_id(std::iter::once(row.id.as_str())).limit(1);
        let shared = move |doc: &RawDocument| Some(has_own_fields(doc, &known));
        let found = self.find("read a user's document", &self.users, find, shared).await?;
        Ok(found.into_iter().any(|shared| shared))
    }

    /// Returns the filter of documents without a Kinde id that kinsync has not written.
    pub(super) fn foreign(&self) -> Document {
        doc! { self.keys.kinde_id(): { "$in": [Bson::Null, ""] }, "kinsync": { "$exists": false } }
    }

    pub(super) async fn link(&self, row: &Row) -> Result<Outcome, Error> {
        let Some(address) = row.claimed_email().filter(|_| row.revision > 0) else {
            return Ok(Outcome::Stale);
        };
        if self.link_by_email == LinkByEmail::Never {
            return Ok(Outcome::EmailTaken);
        }
        let Some(email) = self.keys.email() else { return Ok(Outcome::EmailTaken) };
        let mut theirs = self.foreign();
        theirs.insert(email, address);
        let change = Change {
            users: self.users.clone(),
            theirs,
            ours: doc! { self.keys.kinde_id(): row.id.as_str(), "kinsync.revision": row.revision },
            known: self.mappings.known(),
            collation: self.collation(),
            row: row.clone(),
        };
        let client = self.database.client().clone();
        let work = async move { change.run(client.start_session().await?).await };
        self.calls.run(DOING, self.op_timeout, work).await
    }
}

/// The write of a link: an update and a deletion.
struct Change {
    users: Collection<RawDocumentBuf>,
    /// Filter of the application's document.
    theirs: Document,
    /// Filter of kinsync's document at its loaded revision.
    ours: Document,
    known: Arc<Known>,
    collation: Option<Collation>,
    /// The row to write into the application's document.
    row: Row,
}

impl Change {
    async fn run(&self, mut session: ClientSession) -> Result<Outcome, DriverError> {
        let options = TransactionOptions::builder()
            .read_concern(ReadConcern::snapshot())
            .write_concern(WriteConcern::majority())
            .build();
        session.start_transaction().with_options(options).await?;
        match self.write(&mut session).await {
            Ok(Outcome::Written) => commit(session).await,
            Ok(outcome) => {
                session.abort_transaction().await?;
                Ok(outcome)
            }
            Err(error) => {
                // If the abort fails, the server ends the transaction by its timeout.
                _ = session.abort_transaction().await;
                refused(error)
            }
        }
    }

    async fn write(&self, session: &mut ClientSession) -> Result<Outcome, DriverError> {
        let find = self.users.find_one(self.ours.clone()).session(&mut *session);
        let find = find.optional(self.collation.clone(), FindOne::collation);
        let Some(ours) = find.await? else {
            return Ok(Outcome::Stale);
        };
        if has_own_fields(&ours, &self.known) {
            return Ok(Outcome::EmailTaken);
        }
        let found = self.users.find(self.theirs.clone()).projection(self.known.current.projection()).limit(2);
        let found = found.optional(self.collation.clone(), FindDocuments::collation);
        let mut found = found.session(&mut *session).await?;
        let mut theirs = Vec::new();
        while let Some(document) = found.next(&mut *session).await {
            theirs.push(document?);
        }
        let [theirs] = theirs.as_slice() else { return Ok(Outcome::EmailTaken) };
        let Some((query, update)) = self.update(theirs) else { return Ok(Outcome::EmailTaken) };
        let delete = self.users.delete_one(self.ours.clone()).session(&mut *session);
        delete.optional(self.collation.clone(), Delete::collation).await?;
        let update = self.users.update_one(query, update).session(&mut *session);
        let updated = update.optional(self.collation.clone(), Update::collation).await?;
        Ok(if updated.matched_count == 1 { Outcome::Written } else { Outcome::Stale })
    }

    /// Returns the update of the application's document: every value of the application stays.
    fn update(&self, theirs: &RawDocument) -> Option<(Document, Document)> {
        let keys = &self.known.current;
        let document = decode::unlinked(theirs, &self.row, keys);
        let encoded = encode::update(&self.row, &document, keys, random::number())?;
        let mut update = doc! { "$set": Document::try_from(&*encoded.set).ok()? };
        if !encoded.unset.is_empty() {
            update.insert("$unset", Document::try_from(&*encoded.unset).ok()?);
        }
        let id = theirs.get("_id").ok().flatten().and_then(|id| Bson::try_from(id).ok())?;
        let mut query = self.theirs.clone();
        query.insert("_id", id);
        Some((query, update))
    }
}

/// Commits. Repeats a commit with an unknown outcome, which the server recognizes by the transaction number.
async fn commit(mut session: ClientSession) -> Result<Outcome, DriverError> {
    let mut left = COMMITS;
    loop {
        left -= 1;
        match session.commit_transaction().await {
            Ok(()) => return Ok(Outcome::Written),
            Err(error) if left > 0 && error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT) => {}
            Err(error) => return refused(error),
        }
    }
}

/// Classifies a failed transaction. After a concurrent write the caller joins again; a standalone server cannot link.
fn refused(error: DriverError) -> Result<Outcome, DriverError> {
    /// `IllegalOperation`: "Transaction numbers are only allowed on a replica set member or mongos".
    const NO_TRANSACTIONS: i32 = 20;
    if call::code(&error) == Some(NO_TRANSACTIONS) {
        tracing::warn!(
            "a document of the application was not linked: MongoDB has to be a replica set for that"
        );
        return Ok(Outcome::EmailTaken);
    }
    let lost = error.contains_label(TRANSIENT_TRANSACTION_ERROR) && !matches!(*error.kind, ErrorKind::Io(_));
    if lost {
        return Ok(Outcome::Stale);
    }
    if let ErrorKind::Write(WriteFailure::WriteError(write)) = &*error.kind
        && !call::is_about_the_server(write.code)
    {
        tracing::warn!(
            code = write.code,
            "a document of the application was not linked: an index or a validator of the collection refuses it as \
             the user's"
        );
        return Ok(Outcome::EmailTaken);
    }
    Err(error)
}

/// Returns whether a document that kinsync created contains values of the application.
fn has_own_fields(doc: &RawDocument, known: &Known) -> bool {
    let keys = &known.current;
    let Some(row) = decode::row(doc, known) else { return true };
    let is_default = |name: &CStr, value: RawBsonRef<'_>| {
        let mut defaults = keys.own_defaults();
        let default = defaults.find(|(key, _)| *key == name).map(|(_, value)| default_value(value, &row.id));
        default.is_some_and(|default| default.as_raw_bson_ref() == value)
    };
    let mut all = doc.iter().map_while(Result::ok);
    let is_foreign = |(name, value): (&CStr, RawBsonRef<'_>)| {
        !UNOWNED_KEYS.contains(&name.as_str()) && !keys.is_ours(name, value) && !is_default(name, value)
    };
    all.any(is_foreign) || row.document.is_some_and(|stored| stored.has_values_of_the_application())
}
