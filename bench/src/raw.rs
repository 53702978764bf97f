//! The rate of the driver alone: the same upserts, 1000 per command, two concurrent commands, majority.
//!
//! The commands are built before the measurement, so this is the upper bound for programs on this mongod.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use bson::raw::cstr;
use bson::{Document, RawArrayBuf, RawDocumentBuf, doc, rawdoc};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mongodb::{Collection, Database, IndexModel};

use crate::events::{Event, Kind};
use crate::kinsync::{EVENTS, USERS};
use crate::mongo::Mongod;

const STATEMENTS: usize = 1000;
const IN_FLIGHT: usize = 2;
const DUPLICATE_KEY: i32 = 11000;

/// The indexes of kinsync's users, and what their documents contain besides the fields of the events.
#[derive(Debug, Clone)]
pub struct Layout {
    indexes: Vec<IndexModel>,
    /// The sub-document `kinsync` of each user.
    kinsync: Arc<HashMap<String, Document>>,
}

impl Layout {
    /// Reads the layout of the users in this database.
    pub async fn of(mongod: &Mongod, database: &str) -> anyhow::Result<Self> {
        let users = mongod.database(database).collection::<Document>(USERS);
        let indexes = indexes_of(&users).await?;
        let mut kinsync = HashMap::new();
        let mut all = users.find(doc! {}).projection(doc! { "_id": 0, "kindeId": 1, "kinsync": 1 }).await?;
        while let Some(user) = all.try_next().await? {
            kinsync.insert(user.get_str("kindeId")?.to_owned(), user.get_document("kinsync")?.clone());
        }
        Ok(Self { indexes, kinsync: Arc::new(kinsync) })
    }

    /// The same documents with only the index that an upsert by Kinde id needs.
    pub fn without_indexes(&self) -> Self {
        let needed = |index: &&IndexModel| index.keys.contains_key("kindeId");
        let indexes = self.indexes.iter().filter(needed).cloned().collect();
        Self { indexes, kinsync: Arc::clone(&self.kinsync) }
    }

    fn statements(&self, events: &[Event]) -> anyhow::Result<Vec<RawDocumentBuf>> {
        events.iter().map(|event| self.statement(event)).collect()
    }

    /// The upsert of an event: its fields, and the sub-document with what the event changes there, so that the same indexes
    /// get the same entries. A sign-in changes one field.
    fn statement(&self, event: &Event) -> anyhow::Result<RawDocumentBuf> {
        let id = event.user_id();
        let mut set = event.fields();
        if event.kind != Kind::Authenticated {
            let mut kinsync = self.kinsync.get(&id).context("a user is missing")?.clone();
            kinsync.get_document_mut("values")?.insert("lastName", &event.last_name);
            kinsync.insert("updatedAt", event.at);
            kinsync.insert("writer", event.at);
            set.append(cstr!("kinsync"), RawDocumentBuf::try_from(&kinsync)?);
        }
        Ok(rawdoc! { "q": { "kindeId": id }, "u": { "$set": set }, "upsert": true })
    }
}

/// Upserts all events. Returns upserts per second.
pub async fn upsert(mongod: &Mongod, name: &str, events: &[Event], layout: Layout) -> anyhow::Result<f64> {
    let batches = batches(events, &layout)?;
    let users = events.iter().map(|event| event.user).collect::<HashSet<_>>().len() as u64;
    send(mongod, name, layout.indexes, &batches, users).await
}

/// Inserts the log of the database `from` unchanged and upserts all events, a thousand of each at a time. Returns events per
/// second.
pub async fn upsert_and_log(
    mongod: &Mongod,
    from: &str,
    name: &str,
    events: &[Event],
    layout: Layout,
) -> anyhow::Result<f64> {
    let (source, database) = (mongod.database(from), mongod.database(name));
    let log = source.collection::<RawDocumentBuf>(EVENTS);
    let users = database.collection::<Document>(USERS);
    create_indexes(&users, layout.indexes.clone()).await?;
    create_indexes(&database.collection(EVENTS), indexes_of(&log).await?).await?;
    let entries = log.find(doc! {}).await?.try_chunks(STATEMENTS).map_err(|chunk| chunk.1);
    let inserts: Vec<_> = entries.map_ok(|chunk| insert(&chunk)).try_collect().await?;
    let upserts = batches(events, &layout)?;
    anyhow::ensure!(inserts.len() == upserts.len(), "the log has not one entry per event");
    let commands: Vec<_> = upserts.iter().map(|batch| command(batch)).collect();
    let start = Instant::now();
    let work = inserts.into_iter().zip(commands).zip(&upserts).map(async |((insert, command), batch)| {
        let inserted = database.run_raw_command(insert).await?;
        anyhow::ensure!(!inserted.contains_key("writeErrors"), "the raw driver: {inserted}");
        apply(&database, command, batch).await
    });
    stream::iter(work).buffer_unordered(IN_FLIGHT).try_collect::<()>().await?;
    let took = start.elapsed();
    database.drop().await?;
    Ok(events.len() as f64 / took.as_secs_f64())
}

/// Upserts the users of the database `from` unchanged. Returns upserts per second.
pub async fn copy(mongod: &Mongod, from: &str, name: &str) -> anyhow::Result<f64> {
    let users = mongod.database(from).collection::<RawDocumentBuf>(USERS);
    let indexes = indexes_of(&users).await?;
    let users = users.find(doc! {}).projection(doc! { "_id": 0 }).await?;
    let statement = |user: RawDocumentBuf| {
        let statement =
            rawdoc! { "q": { "kindeId": user.get_str("kindeId")? }, "u": { "$set": user }, "upsert": true };
        anyhow::Ok(statement)
    };
    let statements = users.map_err(anyhow::Error::from).and_then(async |user| statement(user));
    let batches: Vec<_> = statements.try_chunks(STATEMENTS).map_err(|chunk| chunk.1).try_collect().await?;
    let count = batches.iter().map(Vec::len).sum::<usize>() as u64;
    send(mongod, name, indexes, &batches, count).await
}

/// Runs the batches on an empty collection and checks the number of users.
async fn send(
    mongod: &Mongod,
    name: &str,
    indexes: Vec<IndexModel>,
    batches: &[Vec<RawDocumentBuf>],
    expect: u64,
) -> anyhow::Result<f64> {
    let database = mongod.database(name);
    create_indexes(&database.collection(USERS), indexes).await?;
    let commands: Vec<_> = batches.iter().map(|batch| command(batch)).collect();
    let start = Instant::now();
    let work = commands.into_iter().zip(batches).map(|(command, batch)| apply(&database, command, batch));
    stream::iter(work).buffer_unordered(IN_FLIGHT).try_collect::<()>().await?;
    let took = start.elapsed();
    let users = database.collection::<Document>(USERS).count_documents(doc! {}).await?;
    anyhow::ensure!(users == expect, "the raw driver wrote {users} of {expect} users");
    database.drop().await?;
    Ok(batches.iter().map(Vec::len).sum::<usize>() as f64 / took.as_secs_f64())
}

async fn indexes_of<T: Send + Sync>(collection: &Collection<T>) -> anyhow::Result<Vec<IndexModel>> {
    let indexes: Vec<IndexModel> = collection.list_indexes().await?.try_collect().await?;
    Ok(indexes.into_iter().filter(|index| !index.keys.contains_key("_id")).collect())
}

async fn create_indexes(collection: &Collection<Document>, indexes: Vec<IndexModel>) -> anyhow::Result<()> {
    if !indexes.is_empty() {
        collection.create_indexes(indexes).await?;
    }
    Ok(())
}

fn insert(entries: &[RawDocumentBuf]) -> RawDocumentBuf {
    let mut documents = RawArrayBuf::new();
    for entry in entries {
        documents.push(entry.clone());
    }
    rawdoc! { "insert": EVENTS, "documents": documents, "ordered": false, "writeConcern": { "w": "majority" } }
}

fn batches(events: &[Event], layout: &Layout) -> anyhow::Result<Vec<Vec<RawDocumentBuf>>> {
    events.chunks(STATEMENTS).map(|part| layout.statements(part)).collect()
}

fn command(statements: &[RawDocumentBuf]) -> RawDocumentBuf {
    let mut updates = RawArrayBuf::new();
    for statement in statements {
        updates.push(statement.clone());
    }
    rawdoc! { "update": USERS, "updates": updates, "ordered": false, "writeConcern": { "w": "majority" } }
}

/// Sends a command. Statements that failed because of a concurrent insert are sent again.
async fn apply(
    database: &Database,
    first: RawDocumentBuf,
    statements: &[RawDocumentBuf],
) -> anyhow::Result<()> {
    let mut lost = again(&database.run_raw_command(first).await?, statements)?;
    while !lost.is_empty() {
        lost = again(&database.run_raw_command(command(&lost)).await?, &lost)?;
    }
    Ok(())
}

/// The statements to send again.
fn again(answer: &Document, statements: &[RawDocumentBuf]) -> anyhow::Result<Vec<RawDocumentBuf>> {
    anyhow::ensure!(!answer.contains_key("writeConcernError"), "the raw driver: {answer}");
    let Ok(errors) = answer.get_array("writeErrors") else { return Ok(Vec::new()) };
    let one = |error: &bson::Bson| {
        let error = error.as_document().context("an error is a document")?;
        anyhow::ensure!(error.get_i32("code")? == DUPLICATE_KEY, "the raw driver: {error}");
        Ok(statements[usize::try_from(error.get_i32("index")?)?].clone())
    };
    errors.iter().map(one).collect()
}
