//! Compare-and-set writes in bulk: one command for up to a thousand rows.
//!
//! The reply of an `update` command contains the number of matched statements, not which ones. Each write therefore stores a
//! random mark, `kinsync.writer`; if the number is too small, the marks identify the successful writes. They also show, after
//! a lost connection, what the first attempt has written.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::Ordering,
};

use bson::{
    Bson, Document, RawArrayBuf, RawDocument, RawDocumentBuf, doc,
    oid::ObjectId,
    raw::{BindRawBsonRef, CStr, cstr},
    rawdoc,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use kinsync_core::UserId;
use mongodb::Collection;

use super::{
    Inner,
    call::{self, Cause, WriteError},
    decode,
    encode::{self, FORMAT},
    indexes,
    keys::Keys,
    read::Find,
};
use crate::{
    random,
    store::{DocumentKey, Error, Holder, Outcome, Refusal, Row, StoredDocument, WRITE_USERS},
};

/// Types of a value under `kinsync` that kinsync did not write and does not replace.
const UNREADABLE: [&str; 15] = [
    "array",
    "string",
    "double",
    "int",
    "long",
    "decimal",
    "bool",
    "date",
    "timestamp",
    "objectId",
    "binData",
    "regex",
    "javascript",
    "minKey",
    "maxKey",
];

/// Maximum statements per command.
const CHUNK: usize = 1000;

/// Maximum bytes per command. The server accepts 16 MiB of BSON.
const CHUNK_BYTES: usize = 12 << 20;

/// Maximum bytes of one document with its command.
const MAX_BYTES: usize = (16 << 20) - (16 << 10);

/// Concurrent chunks per call.
const CONCURRENCY: usize = 2;

/// E11000.
const DUPLICATE_KEY: i32 = 11000;

/// `DocumentValidationFailure`.
const VALIDATOR: i32 = 121;

/// `CannotIndexParallelArrays`.
const PARALLEL_ARRAYS: i32 = 171;

/// Kind of the command of a chunk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Insert,
    Update,
}

/// Statements of one command, with the positions of their rows.
struct Chunk {
    kind: Kind,
    places: Vec<usize>,
    statements: RawArrayBuf,
    bytes: usize,
}

impl Inner {
    /// Writes rows, each without its refused keys.
    pub(super) async fn write(&self, rows: &[Row]) -> Result<Vec<Outcome>, Error> {
        if !self.is_prepared.load(Ordering::Acquire) {
            return Err(call::unavailable(WRITE_USERS, Cause::Unprepared));
        }
        self.write_lockouts(rows).await?;
        let documents = self.read_again(rows).await?;
        let taken = self.taken(rows).await?;
        let batch = Batch { inner: self, rows, documents, mark: random::number() };
        let mut outcomes = vec![Outcome::Stale; rows.len()];
        let mut chunks = Vec::new();
        for (place, outcome) in outcomes.iter_mut().enumerate() {
            if taken.contains(&rows[place].id) {
                *outcome = Outcome::EmailTaken;
                continue;
            }
            let Some((kind, statement)) = batch.statement(place) else { continue };
            if statement.as_bytes().len() > MAX_BYTES {
                *outcome = Outcome::Refused("MongoDB accepts documents up to 16 MiB".into());
            } else {
                push(&mut chunks, kind, place, &statement);
            }
        }
        let done = stream::iter(chunks).map(|chunk| batch.run(chunk)).buffer_unordered(CONCURRENCY);
        let done: Vec<Vec<(usize, Outcome)>> = done.try_collect().await?;
        for (place, outcome) in done.into_iter().flatten() {
            outcomes[place] = outcome;
        }
        self.expect_taken(rows, &outcomes);
        Ok(outcomes)
    }

    /// Returns the new users with addresses that other documents show, unless few of the last new users had one. Meant for the
    /// first scan of an application's users: after a failure a server inserts documents one by one, which costs more than this
    /// query.
    async fn taken(&self, rows: &[Row]) -> Result<HashSet<UserId>, Error> {
        let is_unique = self.enforces_unique_emails.load(Ordering::Acquire);
        if !is_unique || !self.expects_taken.load(Ordering::Relaxed) {
            return Ok(HashSet::new());
        }
        let new: HashMap<String, &UserId> = new_addresses(rows).collect();
        let holders = self.email_holders(&new.keys().cloned().collect::<Vec<_>>()).await?;
        let is_other = |(address, holder): &(String, Holder)| *holder != Holder::User(new[address].clone());
        Ok(holders.into_iter().filter(is_other).map(|(address, _)| new[&address].clone()).collect())
    }

    fn expect_taken(&self, rows: &[Row], outcomes: &[Outcome]) {
        let taken = outcomes.iter().filter(|outcome| **outcome == Outcome::EmailTaken).count();
        match new_addresses(rows).count() {
            0 => {}
            new => self.expects_taken.store(taken * 2 > new, Ordering::Relaxed),
        }
    }

    /// Reads the documents of stored rows that were written since they were loaded: a write changes the ownership of keys.
    async fn read_again(&self, rows: &[Row]) -> Result<HashMap<UserId, Box<StoredDocument>>, Error> {
        let unread = rows.iter().filter(|row| row.revision > 0 && row.current_document().is_none());
        let ids: Vec<UserId> = unread.map(|row| row.id.clone()).collect();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let found = self.load(&ids).await?.into_iter().flatten();
        Ok(found.filter_map(|row| Some((row.id, row.document?))).collect())
    }
}

/// Returns the addresses that new documents are to show.
fn new_addresses(rows: &[Row]) -> impl Iterator<Item = (String, &UserId)> {
    let new = rows.iter().filter(|row| row.revision == 0 && row.document.is_none());
    new.filter_map(|row| Some((row.state.shown_email(&row.metadata)?.into_owned(), &row.id)))
}

/// Adds the statement to the last chunk of its kind, or starts a new chunk.
fn push(chunks: &mut Vec<Chunk>, kind: Kind, place: usize, statement: &RawDocumentBuf) {
    let size = statement.as_bytes().len();
    let last = chunks.iter().rposition(|chunk| chunk.kind == kind);
    let fits = |at: &usize| chunks[*at].places.len() < CHUNK && chunks[*at].bytes + size <= CHUNK_BYTES;
    let at = last.filter(fits).unwrap_or_else(|| {
        chunks.push(Chunk { kind, places: Vec::new(), statements: RawArrayBuf::new(), bytes: 0 });
        chunks.len() - 1
    });
    let chunk = &mut chunks[at];
    chunk.places.push(place);
    chunk.statements.push(statement);
    chunk.bytes += size;
}

/// The rows of one call.
struct Batch<'a> {
    inner: &'a Inner,
    rows: &'a [Row],
    /// Documents of rows that were not loaded with theirs.
    documents: HashMap<UserId, Box<StoredDocument>>,
    /// Mark of the first row; the marks of the others are the following numbers.
    mark: i64,
}

impl Batch<'_> {
    fn mark(&self, place: usize) -> i64 {
        self.mark.wrapping_add_unsigned(place as u64)
    }

    /// Returns the statement that writes a row, or `None` if the document changed since the row was loaded.
    fn statement(&self, place: usize) -> Option<(Kind, RawDocumentBuf)> {
        let row = &self.rows[place];
        let reread = || self.documents.get(&row.id).map(|document| &**document);
        match (row.current_document().or_else(reread), row.revision) {
            (Some(document), _) => Some((Kind::Update, self.update(place, document)?)),
            (None, 0) => Some((Kind::Insert, self.insertion(place))),
            (None, _) => None,
        }
    }

    fn insertion(&self, place: usize) -> RawDocumentBuf {
        let mut start = RawDocumentBuf::new();
        start.append(cstr!("_id"), ObjectId::new());
        encode::insertion(&self.rows[place], &self.inner.keys, self.mark(place), start)
    }

    fn update(&self, place: usize, document: &StoredDocument) -> Option<RawDocumentBuf> {
        let (row, keys) = (&self.rows[place], &self.inner.keys);
        let encoded = encode::update(row, document, keys, self.mark(place))?;
        let mut query = match row.revision {
            0 => unwritten(keys.kinde_id(), row.id.as_str()),
            revision => {
                let path = document.kinde_id_at.as_deref().unwrap_or(keys.kinde_id());
                doc! { path: row.id.as_str(), "kinsync.revision": revision }
            }
        };
        if !encoded.conditions.is_empty() {
            query.insert("$and", vec![encoded.conditions]);
        }
        let mut update = document_with(cstr!("$set"), &encoded.set);
        if !encoded.unset.is_empty() {
            update.append(cstr!("$unset"), encoded.unset);
        }
        let mut statement = document_with(cstr!("q"), RawDocumentBuf::try_from(&query).ok()?);
        statement.append(cstr!("u"), update);
        if self.inner.collation().is_some() {
            statement.append(cstr!("collation"), rawdoc! { "locale": "simple" });
        }
        Some(statement)
    }

    async fn run(&self, chunk: Chunk) -> Result<Vec<(usize, Outcome)>, Error> {
        match chunk.kind {
            Kind::Insert => self.insert_rows(chunk).await,
            Kind::Update => self.update_rows(chunk).await,
        }
    }

    async fn insert_rows(&self, chunk: Chunk) -> Result<Vec<(usize, Outcome)>, Error> {
        let (_, failed) = self.inner.send(&chunk).await?;
        let mut outcomes: HashMap<usize, Outcome> =
            self.outcomes(&chunk.places, &failed)?.into_iter().collect();
        // A document with the Kinde id may exist: from the application or from a concurrent insert. With several
        // violated indexes, the server reports an arbitrary one.
        let refused = outcomes.iter().filter(|(_, outcome)| **outcome != Outcome::Written);
        let refused = refused.map(|(place, _)| *place).collect();
        outcomes.extend(self.in_the_way(refused).await?);
        Ok(outcomes.into_iter().collect())
    }

    async fn update_rows(&self, chunk: Chunk) -> Result<Vec<(usize, Outcome)>, Error> {
        let (matched, failed) = self.inner.send(&chunk).await?;
        let mut done = self.outcomes(&chunk.places, &failed)?;
        if matched + failed.len() == chunk.places.len() {
            return Ok(done);
        }
        let marks = self.marks(&chunk.places).await?;
        for (place, outcome) in &mut done {
            let is_ours = || marks.get(self.rows[*place].id.as_str()) == Some(&Some(self.mark(*place)));
            if *outcome == Outcome::Written && !is_ours() {
                *outcome = Outcome::Stale;
            }
        }
        Ok(done)
    }

    /// Converts the errors of the reply to outcomes; the other rows count as written.
    fn outcomes(&self, places: &[usize], failed: &[WriteError]) -> Result<Vec<(usize, Outcome)>, Error> {
        let mut done: Vec<_> = places.iter().map(|place| (*place, Outcome::Written)).collect();
        for error in failed {
            let slot =
                done.get_mut(error.index).ok_or_else(|| call::unavailable(WRITE_USERS, Cause::Reply))?;
            slot.1 = self.inner.outcome(error)?;
        }
        Ok(done)
    }

    /// Finds documents that prevent insertions: one of an earlier attempt with a lost response, one that appeared since the
    /// user was loaded, or one that kinsync cannot decode.
    async fn in_the_way(&self, places: Vec<usize>) -> Result<Vec<(usize, Outcome)>, Error> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let (keys, known) = (&self.inner.keys, self.inner.mappings.known());
        let find = self.documents_of(&places).projection(doc! { keys.kinde_id(): 1, "kinsync": 1 });
        let there = |doc: &RawDocument| Some(doc.to_owned());
        let there = self.inner.find(WRITE_USERS, &self.inner.users, find, there).await?;
        let outcome = |place: usize| {
            let id = self.rows[place].id.as_str();
            let of_user = there.iter().find(|doc| decode::kinde_ids(doc, keys).any(|found| found == id))?;
            let is_ours = mark_of(of_user) == Some(self.mark(place));
            let there = if is_ours { Outcome::Written } else { Outcome::Stale };
            Some((place, decode::fault(of_user, &known).map_or(there, |why| Outcome::Refused(why.into()))))
        };
        Ok(places.into_iter().filter_map(outcome).collect())
    }

    fn documents_of(&self, places: &[usize]) -> Find {
        self.inner.by_kinde_id(places.iter().map(|place| self.rows[*place].id.as_str()))
    }

    /// Returns the current marks of those rows that exist.
    async fn marks(&self, places: &[usize]) -> Result<HashMap<String, Option<i64>>, Error> {
        let keys = self.inner.keys.clone();
        let find =
            self.documents_of(places).projection(doc! { "_id": 0, keys.kinde_id(): 1, "kinsync.writer": 1 });
        let mark = move |doc: &RawDocument| {
            let mark = mark_of(doc);
            Some((keys.values(doc).of(DocumentKey::KindeId)?.as_str()?.to_owned(), mark))
        };
        let marks = self.inner.find(WRITE_USERS, &self.inner.users, find, mark).await?;
        Ok(marks.into_iter().collect())
    }
}

impl Inner {
    async fn send(&self, chunk: &Chunk) -> Result<(usize, Vec<WriteError>), Error> {
        let command = match chunk.kind {
            Kind::Insert => {
                self.write_command(cstr!("insert"), &self.users, cstr!("documents"), &chunk.statements)
            }
            Kind::Update => {
                self.write_command(cstr!("update"), &self.users, cstr!("updates"), &chunk.statements)
            }
        };
        let command = call::command(self.database.clone(), command);
        let reply = self.calls.run(WRITE_USERS, self.op_timeout, command).await?;
        call::written(WRITE_USERS, &reply)
    }

    /// Returns the command of an unordered write, acknowledged by a majority.
    pub(super) fn write_command(
        &self,
        verb: &CStr,
        collection: &Collection<RawDocumentBuf>,
        list: &CStr,
        statements: &RawArrayBuf,
    ) -> RawDocumentBuf {
        let limit = i64::try_from(self.op_timeout.as_millis()).unwrap_or(i64::MAX);
        let mut concern = document_with(cstr!("w"), "majority");
        concern.append(cstr!("j"), true);
        concern.append(cstr!("wtimeout"), limit);
        let mut command = document_with(verb, collection.name());
        command.append(cstr!("ordered"), false);
        command.append(cstr!("writeConcern"), concern);
        command.append(cstr!("maxTimeMS"), limit);
        command.append(list, statements);
        command
    }

    fn outcome(&self, error: &WriteError) -> Result<Outcome, Error> {
        match error.code {
            DUPLICATE_KEY => Ok(self.duplicate(error)),
            code if error.is_about_the_server() => Err(call::unavailable(WRITE_USERS, Cause::Write(code))),
            VALIDATOR => Ok(Outcome::Refused(Refusal {
                reason: format!(
                    "a validator of the collection refuses the document (code 121){}",
                    error.rule
                ),
                keys: self.keys.optional_at(&error.keys),
            })),
            PARALLEL_ARRAYS => Ok(Outcome::Refused(Refusal {
                reason: "an index of the application covers two arrays of the document (code 171)".into(),
                keys: Keys::arrays(),
            })),
            code => Ok(Outcome::Failed(format!("MongoDB refuses the document (code {code})"))),
        }
    }

    /// Classifies a duplicate key by its unique index.
    fn duplicate(&self, error: &WriteError) -> Outcome {
        let keys = match error.duplicate.as_slice() {
            [key] if key == self.keys.kinde_id() || key == indexes::KINDE_ID || key == "_id" => {
                return Outcome::Stale;
            }
            [key]
                if (Some(key.as_str()) == self.keys.email() || key == indexes::EMAIL) && !error.is_absent =>
            {
                return Outcome::EmailTaken;
            }
            keys => keys.join(", "),
        };
        let index = error.index_name.as_deref().unwrap_or("?");
        Outcome::Refused(if error.is_absent {
            // Without the key the document is refused as well.
            format!("the unique index `{index}` allows only one document without `{keys}`").into()
        } else {
            let reason = format!("the unique index `{index}` on `{keys}` refuses the document");
            Refusal { reason, keys: self.keys.optional_at(&error.duplicate) }
        })
    }

    /// Writes the mark of the last write of this row again, unless the document has changed.
    pub(super) async fn accepts_write_of(&self, row: &Row) -> Result<bool, Error> {
        let doing = "test a write";
        let query = doc! { self.keys.kinde_id(): row.id.as_str(), "kinsync.revision": row.revision };
        let mark: i64 = random::number();
        let statement = doc! { "q": query, "u": { "$set": { "kinsync.writer": mark } } };
        let mut statements = RawArrayBuf::new();
        if let Ok(statement) = RawDocumentBuf::try_from(&statement) {
            statements.push(statement);
        }
        let command = self.write_command(cstr!("update"), &self.users, cstr!("updates"), &statements);
        let reply =
            self.calls.run(doing, self.op_timeout, call::command(self.database.clone(), command)).await?;
        Ok(matches!(call::written(doing, &reply)?, (1, errors) if errors.is_empty()))
    }
}

fn mark_of(doc: &RawDocument) -> Option<i64> {
    doc.get_document("kinsync").and_then(|metadata| metadata.get_i64("writer")).ok()
}

/// Finds the document of a user that kinsync never wrote and can read afterwards: see [`decode::fault`]. A revision that is
/// not an integer above 0 counts as never written.
fn unwritten(key: &str, id: &str) -> Document {
    let lost = doc! { "kinsync.format": FORMAT, "kinsync.revision": { "$not": { "$type": "array" } },
    "$nor": [{ "kinsync.revision": { "$gt": 0, "$type": ["int", "long"] } }] };
    doc! {
        key: { "$eq": id, "$not": { "$type": "array" } },
        "kinsync": { "$not": { "$type": UNREADABLE.as_slice() } },
        "$or": [{ "kinsync": Bson::Null }, lost],
    }
}

fn document_with(key: &CStr, value: impl BindRawBsonRef) -> RawDocumentBuf {
    let mut doc = RawDocumentBuf::new();
    doc.append(key, value);
    doc
}
