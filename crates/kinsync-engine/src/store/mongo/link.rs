//! Links existing documents of an application, with an email address and without a Kinde id, to Kinde users.
//!
//! A link writes two documents and is therefore the only transaction: it deletes the document that kinsync created for the
//! user, and writes kinsync's fields into the application's document, which keeps all its own fields.

use std::time::Duration;

use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc, raw::CStr, raw::cstr};
use mongodb::{
    ClientSession, Collection,
    error::{
        Error as DriverError, ErrorKind, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT,
        WriteFailure,
    },
    options::{ReadConcern, TransactionOptions, WriteConcern},
};

use super::{
    Inner, MongoStore, call, encode,
    read::{Find, name_of},
};
use crate::store::{Error, Outcome, Row, timed};

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
        let key = self.keys.email().to_owned();
        let mut filter = foreign();
        filter.insert(&key, doc! { "$gt": after });
        let find = Find::new(filter).sort(doc! { &key: 1 }).projection(doc! { "_id": 1, &key: 1 });
        let find = find.limit(limit).within(LONGEST);
        let read = move |doc: &RawDocument| {
            Some(UnlinkedDocument { id: name_of(doc), email: doc.get_str(&key).ok()?.to_owned() })
        };
        self.find("list the documents of the application", &self.users, find, read).await
    }

    async fn is_shared(&self, row: &Row) -> Result<bool, Error> {
        let keys = self.keys.clone();
        let find = Find::new(doc! { "kindeId": row.id.as_str() }).limit(1);
        let shared = move |doc: &RawDocument| Some(has_own_fields(doc, |key| keys.is_ours(key)));
        let found = self.find("read a user's document", &self.users, find, shared).await?;
        Ok(found.into_iter().any(|shared| shared))
    }

    pub(super) async fn link(&self, row: &Row) -> Result<Outcome, Error> {
        let Some(address) = row.state.claimed_email().filter(|_| row.revision > 0) else {
            return Ok(Outcome::Stale);
        };
        if self.link_by_email == LinkByEmail::Never {
            return Ok(Outcome::EmailTaken);
        }
        let mut theirs = foreign();
        theirs.insert(self.keys.email(), address);
        let mut start = RawDocumentBuf::new();
        start.append(cstr!("kindeId"), row.id.as_str());
        let encoded = encode::row(row, &self.keys, random::number(), start);
        let mut update = doc! { "$set": Document::try_from(&*encoded.set).map_err(|_| fault())? };
        update.insert("$unset", Document::try_from(&*encoded.unset).map_err(|_| fault())?);
        let change = Change {
            users: self.users.clone(),
            theirs,
            ours: doc! { "kindeId": row.id.as_str(), "kinsync.revision": row.revision },
            keys: self.keys.clone(),
            update,
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
    keys: std::sync::Arc<super::Keys>,
    update: Document,
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
        let Some(ours) = self.users.find_one(self.ours.clone()).session(&mut *session).await? else {
            return Ok(Outcome::Stale);
        };
        if has_own_fields(&ours, |key| self.keys.is_ours(key)) {
            return Ok(Outcome::EmailTaken);
        }
        let matching = self.users.count_documents(self.theirs.clone()).limit(2).session(&mut *session);
        if matching.await? != 1 {
            return Ok(Outcome::EmailTaken);
        }
        self.users.delete_one(self.ours.clone()).session(&mut *session).await?;
        let update = self.users.update_one(self.theirs.clone(), self.update.clone());
        let updated = update.session(&mut *session).await?;
        Ok(if updated.matched_count == 1 { Outcome::Written } else { Outcome::Stale })
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

/// Returns the filter of documents without a Kinde id that kinsync has not written.
fn foreign() -> Document {
    doc! { "kindeId": { "$in": [Bson::Null, ""] }, "kinsync": { "$exists": false } }
}

fn has_own_fields(doc: &RawDocument, is_ours: impl Fn(&CStr) -> bool) -> bool {
    let mut keys = doc.iter_elements().flatten().map(|element| element.key().to_owned());
    keys.any(|key| !UNOWNED_KEYS.contains(&key.as_str()) && !is_ours(&key))
}

fn fault() -> Error {
    Error::Refused { doing: DOING, hint: "report this: a row cannot be encoded".into(), source: None }
}
