//! Links existing documents of an application, with an email address and without a Kinde id, to Kinde users.
//!
//! A link writes two documents and is therefore the only transaction: it deletes the document that kinsync created for the
//! user, and writes kinsync's fields into the application's document, which keeps all its own fields.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bson::{
    Bson, Document, RawDocument, RawDocumentBuf, doc,
    raw::{CStr, RawBsonRef},
};
use kinsync_core::UserId;
use mongodb::{
    ClientSession, Collection,
    action::{Action as _, Delete, Find as FindDocuments, FindOne, Update},
    error::{
        Error as DriverError, ErrorKind, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT,
        WriteFailure,
    },
    options::{Collation, ReadConcern, TransactionOptions, WriteConcern},
};
use serde_json::json;

use super::{
    Inner, MongoStore, call, decode,
    encode::{self, default_value},
    indexes::any_form,
    log,
    mappings::Known,
    read::{Find, own_id},
};
use crate::{
    log_entry::{LogEntry, LogSource, kind},
    random,
    store::{DocumentKey, Error, Outcome, Row, timed},
};

const DOING: &str = "link a document of the application";

/// Time limit of the search for the next documents: millions of others may lie between.
const LONGEST: Duration = Duration::from_mins(10);

/// Attempts of a commit with an unknown outcome.
const COMMITS: u32 = 3;

/// Documents compared with an address.
const MATCHES: i64 = 100;

/// Keys besides the fields that may be deleted with kinsync's document: mongoose adds `__v` to every document it saves.
const UNOWNED_KEYS: [&str; 2] = ["_id", "__v"];

/// Whether existing documents are linked to users by their email address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LinkByEmail {
    /// If Kinde reports the address as verified, and only one document has it.
    #[default]
    Verified,
    /// Like [`Self::Verified`], and the document may show the address in another case. It keeps its form. If several users have
    /// the address in different cases, only the exact form links.
    VerifiedIgnoreCase,
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
        timed("mongo", "unlinked", self.inner()?.list_unlinked(after, limit)).await
    }

    /// Returns those of these users that have a document which kinsync created and which contains fields of the application. A
    /// link never deletes such a document.
    pub(crate) async fn with_fields_of_the_application(
        &self,
        users: &[UserId],
    ) -> Result<HashSet<UserId>, Error> {
        timed("mongo", "foreign_fields", self.inner()?.with_own_fields(users)).await
    }

    /// Returns the live users with one of these addresses, or with one that differs in case or surrounding white space.
    pub(crate) async fn similar_claimants(&self, emails: &[String]) -> Result<Vec<Row>, Error> {
        timed("mongo", "claimants", self.inner()?.claimants_in_any_form(emails)).await
    }

    /// Returns the number of documents without a Kinde id for each of these addresses, by the address in lower case. `None`
    /// unless linking ignores case.
    pub(crate) async fn count_unlinked_in_any_case(
        &self,
        emails: &[String],
    ) -> Result<Option<HashMap<String, usize>>, Error> {
        timed("mongo", "unlinked", self.inner()?.count_in_any_case(emails)).await
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

    async fn with_own_fields(&self, users: &[UserId]) -> Result<HashSet<UserId>, Error> {
        let known = self.mappings.known();
        let find = self.by_kinde_id(users.iter().map(UserId::as_str));
        let shared = move |doc: &RawDocument| {
            let id = known.current.values(doc).of(DocumentKey::KindeId)?.as_str()?;
            has_own_fields(doc, &known).then(|| UserId::parse(id).ok()).flatten()
        };
        let found = self.find("read the documents of users", &self.users, find, shared).await?;
        Ok(found.into_iter().collect())
    }

    pub(super) fn links_in_any_case(&self) -> bool {
        self.link_by_email == LinkByEmail::VerifiedIgnoreCase
    }

    async fn count_in_any_case(&self, emails: &[String]) -> Result<Option<HashMap<String, usize>>, Error> {
        let Some(email) = self.keys.email().filter(|_| self.links_in_any_case()) else { return Ok(None) };
        let mut filter = self.foreign();
        filter.insert(email, doc! { "$in": emails });
        let find = Find::new(filter).projection(doc! { "_id": 0, email: 1 }).collation(any_form());
        let keys = self.keys.clone();
        let read = move |doc: &RawDocument| {
            Some(keys.values(doc).of(DocumentKey::EMAIL)?.as_str()?.to_ascii_lowercase())
        };
        let mut counts = HashMap::new();
        for address in self.find(DOING, &self.users, find.within(LONGEST), read).await? {
            *counts.entry(address).or_default() += 1;
        }
        Ok(Some(counts))
    }

    /// Returns whether a document may show the address of this user in another case: linking ignores case, and no other user
    /// has the address.
    async fn is_linkable_in_any_case(&self, row: &Row, address: &str) -> Result<bool, Error> {
        if !self.links_in_any_case() {
            return Ok(false);
        }
        let claimants = self.claimants_in_any_form(&[address.to_owned()]).await?;
        let mut others = claimants.iter().filter(|other| other.id != row.id);
        let is_same = |other: &Row| {
            other.state.claimed_email().is_some_and(|claimed| claimed.eq_ignore_ascii_case(address))
        };
        Ok(!others.any(is_same))
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
        let is_any_case = self.is_linkable_in_any_case(row, &address).await?;
        let mut theirs = self.foreign();
        theirs.insert(email, &*address);
        let change = Change {
            users: self.users.clone(),
            events: self.events.clone(),
            theirs,
            address: address.into_owned(),
            is_any_case,
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

/// The write of a link: an update, a deletion and an entry of the log.
struct Change {
    users: Collection<RawDocumentBuf>,
    events: Collection<RawDocumentBuf>,
    /// Filter of the application's document.
    theirs: Document,
    /// The address that it shows.
    address: String,
    /// Whether it may show the address in another case.
    is_any_case: bool,
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
        let found =
            self.users.find(self.theirs.clone()).projection(self.known.current.projection()).limit(MATCHES);
        let collation = if self.is_any_case { Some(any_form()) } else { self.collation.clone() };
        let found = found.optional(collation, FindDocuments::collation);
        let mut found = found.session(&mut *session).await?;
        let mut theirs = Vec::new();
        while let Some(document) = found.next(&mut *session).await {
            theirs.extend(Some(document?).filter(|document| self.is_theirs(document)));
        }
        let [theirs] = theirs.as_slice() else { return Ok(Outcome::EmailTaken) };
        let Some((query, update)) = self.update(theirs) else { return Ok(Outcome::EmailTaken) };
        self.events.insert_one(log::encode(&self.entry(theirs))).session(&mut *session).await?;
        let delete = self.users.delete_one(self.ours.clone()).session(&mut *session);
        delete.optional(self.collation.clone(), Delete::collation).await?;
        let update = self.users.update_one(query, update).session(&mut *session);
        let updated = update.optional(self.collation.clone(), Update::collation).await?;
        Ok(if updated.matched_count == 1 { Outcome::Written } else { Outcome::Stale })
    }

    /// Returns whether a document shows the user's address. In lower case a letter outside ASCII can equal an ASCII letter, so
    /// Kinde's address itself has to be the same.
    fn is_theirs(&self, document: &RawDocument) -> bool {
        let shown = self.known.current.values(document).of(DocumentKey::EMAIL).and_then(RawBsonRef::as_str);
        let is_same = |of_kinde: &str, shown: &str| {
            (self.is_any_case || shown == self.address) && shown.eq_ignore_ascii_case(of_kinde)
        };
        self.row.state.claimed_email().zip(shown).is_some_and(|(of_kinde, shown)| is_same(of_kinde, shown))
    }

    /// Returns the entry of the log: which document became that of the user, and under which keys it keeps its values.
    fn entry(&self, theirs: &RawDocument) -> LogEntry {
        let document = decode::unlinked(theirs, &self.row, &self.known.current);
        let kept: Vec<String> = document.values_of_the_application().into_keys().collect();
        let now = self.row.metadata.updated_at;
        // With the time: a link after both documents were lost is another one, and its entry needs another id.
        let content =
            json!({ "document": own_id(theirs), "kept": kept, "revision": self.row.revision, "at": now.0 });
        LogEntry::action(kind::LINK, Some(&self.row.id), LogSource::Kinsync, &content, now)
    }

    /// Returns the update of the application's document: every value of the application stays.
    fn update(&self, theirs: &RawDocument) -> Option<(Document, Document)> {
        let keys = &self.known.current;
        let document = decode::unlinked(theirs, &self.row, keys);
        let mut row = self.row.clone();
        row.metadata.keeps_email = document.keeps_email(Some(&self.address));
        let encoded = encode::update(&row, &document, keys, random::number())?;
        let mut update = doc! { "$set": Document::try_from(&*encoded.set).ok()? };
        if !encoded.unset.is_empty() {
            update.insert("$unset", Document::try_from(&*encoded.unset).ok()?);
        }
        let id = theirs.get("_id").ok().flatten().and_then(|id| Bson::try_from(id).ok())?;
        let mut query = self.theirs.clone();
        let shown = keys.values(theirs).of(DocumentKey::EMAIL)?;
        query.insert(keys.email()?, Bson::try_from(shown).ok()?);
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
