//! The audit log: which operator read personal data or changed something, from which address, and when.
//!
//! Kept in the store, so that every process lists the same log. Bounded in two ways ([`Bounds`]): by the number of records
//! of each kind, and by their age. Reads and actions have a ring each, so that reads cannot push out the records of actions.

use std::time::Duration;

use kinsync_core::{Micros, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;

use crate::{
    erasure::subjects::Subjects,
    log_entry::{LogEntry, LogSource, kind},
    random,
    store::{Error, Store},
};

/// Repeated reads within this time are one record with a count: a dashboard would push out everything else.
const REPEATED: Duration = Duration::from_mins(10);
/// Version of the stored form.
const FORMAT: u32 = 1;

/// Bounds of the log.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Records in one stored value. Each new record writes its chunk again.
    pub chunk: usize,
    /// Chunks of each kind. The oldest one is overwritten when all are full.
    pub chunks: u64,
    /// Age after which a record is removed.
    pub max_age: Duration,
}

impl Default for Bounds {
    /// 10,000 records of each kind, for 400 days.
    fn default() -> Self {
        Self { chunk: 100, chunks: 100, max_age: Duration::from_hours(400 * 24) }
    }
}

/// The kind of an operator's request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Returned personal data.
    Read,
    /// Changed something.
    Action,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Read, Self::Action];

    fn key(self, slot: u64) -> String {
        match self {
            Self::Read => format!("audit.reads.{slot}"),
            Self::Action => format!("audit.actions.{slot}"),
        }
    }
}

/// A request of an operator.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Sorts by time; unique.
    pub id: String,
    /// Kind.
    pub kind: Kind,
    /// Time of the first request of this record.
    pub at: Micros,
    /// Time of the last one.
    pub last_at: Micros,
    /// Requests of this record.
    pub count: u64,
    /// Name of the admin token.
    pub actor: String,
    /// Address of the client.
    pub peer: String,
    /// Method and path template, such as `GET /api/admin/users/{id}`.
    pub route: String,
    /// Parameters of the request.
    pub parameters: Map<String, Value>,
}

impl Record {
    /// Creates the record of one request.
    pub fn new(kind: Kind, at: Micros, (actor, peer): (String, String)) -> Self {
        let time = jiff::Timestamp::from_microsecond(at.0).unwrap_or_default();
        let id = format!("{}-{:04x}", time.strftime("%Y%m%d-%H%M%S-%6f"), random::number::<u16>());
        Self {
            id,
            kind,
            at,
            last_at: at,
            count: 1,
            actor,
            peer,
            route: String::new(),
            parameters: Map::new(),
        }
    }

    /// The same record for this request.
    #[must_use]
    pub fn of(self, route: String, parameters: Map<String, Value>) -> Self {
        Self { route, parameters, ..self }
    }

    /// Returns the entry of the log. It names no address: applications read the log.
    fn entry(&self) -> LogEntry {
        let Self { id, actor, route, parameters, at, .. } = self;
        let user = parameters.get("id").filter(|_| route.contains("/users/")).and_then(Value::as_str);
        let user = user.and_then(|user| UserId::parse(user).ok());
        let content = json!({ "audit": id, "actor": actor, "route": route, "parameters": parameters });
        LogEntry::action(kind::OPERATOR, user.as_ref(), LogSource::Operator, &content, *at)
    }

    fn repeats(&self, earlier: &Self) -> bool {
        let is_soon = self.at.0.saturating_sub(earlier.at.0) < micros(REPEATED);
        let same = |record: &Self| {
            let Self { actor, peer, route, parameters, .. } = record;
            (actor.clone(), peer.clone(), route.clone(), parameters.clone())
        };
        self.kind == Kind::Read && is_soon && same(self) == same(earlier)
    }
}

/// Several records, stored under one key.
#[derive(Debug, Serialize, Deserialize)]
struct Chunk {
    format: u32,
    /// Position in the log, counted from 0 and never reused.
    number: u64,
    /// Records ever added: removing old ones makes no room.
    added: usize,
    records: Vec<Record>,
}

impl Chunk {
    fn empty(number: u64) -> Self {
        Self { format: FORMAT, number, added: 0, records: Vec::new() }
    }

    fn add(&mut self, record: &Record) {
        if let Some(earlier) = self.records.iter_mut().rev().find(|earlier| record.repeats(earlier)) {
            earlier.count += 1;
            earlier.last_at = earlier.last_at.max(record.at);
        } else {
            self.added += 1;
            self.records.push(record.clone());
        }
    }
}

/// The position of the newest chunk of each kind, as last seen by this process. One record at a time is added in each
/// process: parallel ones would fail each other's compare-and-set.
#[derive(Debug, Default)]
pub struct AuditLog {
    bounds: Bounds,
    newest: Mutex<[u64; Kind::ALL.len()]>,
}

impl AuditLog {
    /// Creates a log with these bounds, which must be the same in every process.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, newest: Mutex::default() }
    }

    /// Adds a record, and logs an action. When this returns, both are stored. Cancelled or failed: they may be stored.
    pub async fn add(&self, store: &dyn Store, record: &Record) -> Result<(), Error> {
        if record.kind == Kind::Action {
            store.log(&[record.entry()]).await?;
        }
        let mut newest = self.newest.lock().await;
        let number = &mut newest[record.kind as usize];
        loop {
            let key = record.kind.key(*number % self.bounds.chunks);
            let (mut chunk, revision) = load(store, &key).await?.unwrap_or((Chunk::empty(*number), 0));
            if chunk.number > *number {
                *number = chunk.number;
                continue;
            }
            if chunk.number < *number {
                chunk = Chunk::empty(*number);
            }
            if chunk.added >= self.bounds.chunk {
                *number += 1;
                continue;
            }
            chunk.add(record);
            if save(store, &key, &chunk, revision).await? {
                return Ok(());
            }
        }
    }

    /// Returns up to `limit` records older than the record `before`, newest first.
    pub async fn list(
        &self,
        store: &dyn Store,
        now: Micros,
        before: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Record>, Error> {
        let mut records = Vec::new();
        for (_, chunk, _) in self.chunks(store).await? {
            records.extend(chunk.records);
        }
        records.retain(|record: &Record| {
            !self.is_outdated(record, now) && before.is_none_or(|id| *record.id < *id)
        });
        records.sort_unstable_by(|one, other| other.id.cmp(&one.id));
        records.truncate(limit);
        Ok(records)
    }

    /// Counts the records that [`Self::erase`] would change.
    pub(crate) async fn count(&self, store: &dyn Store, subjects: &Subjects) -> Result<u64, Error> {
        let records = self.chunks(store).await?.into_iter().flat_map(|(_, chunk, _)| chunk.records);
        Ok(records.filter(|record| erased(record.clone(), subjects).as_ref() != Some(record)).count() as u64)
    }

    /// Removes the records of reads that name one of these users, and replaces the texts beside their ids in records of actions that
    /// do. Returns the number of records.
    pub(crate) async fn erase(&self, store: &dyn Store, subjects: &Subjects) -> Result<u64, Error> {
        let mut changed = 0;
        for (key, _, _) in self.chunks(store).await? {
            while let Some((mut chunk, revision)) = load(store, &key).await? {
                let before = chunk.records.clone();
                chunk.records.retain_mut(|record| match erased(record.clone(), subjects) {
                    Some(next) => {
                        *record = next;
                        true
                    }
                    None => false,
                });
                let removed = before.len() - chunk.records.len();
                let replaced = chunk.records.iter().filter(|record| !before.contains(record)).count();
                if removed + replaced == 0 || save(store, &key, &chunk, revision).await? {
                    changed += (removed + replaced) as u64;
                    break;
                }
            }
        }
        Ok(changed)
    }

    /// Removes the records above the maximum age.
    pub async fn remove_outdated(&self, store: &dyn Store, now: Micros) -> Result<(), Error> {
        for (key, mut chunk, revision) in self.chunks(store).await? {
            let before = chunk.records.len();
            chunk.records.retain(|record| !self.is_outdated(record, now));
            if chunk.records.len() < before {
                // After a concurrent write the next run removes them.
                save(store, &key, &chunk, revision).await?;
            }
        }
        Ok(())
    }

    fn is_outdated(&self, record: &Record, now: Micros) -> bool {
        now.0.saturating_sub(record.last_at.0) > micros(self.bounds.max_age)
    }

    /// Returns every stored chunk with its key and revision.
    async fn chunks(&self, store: &dyn Store) -> Result<Vec<(String, Chunk, i64)>, Error> {
        let mut chunks = Vec::new();
        for kind in Kind::ALL {
            for slot in 0..self.bounds.chunks {
                let key = kind.key(slot);
                // Slots are filled in order.
                let Some((chunk, revision)) = load(store, &key).await? else { break };
                chunks.push((key, chunk, revision));
            }
        }
        Ok(chunks)
    }
}

/// Returns the record without these users; `None` for a read of one of them.
fn erased(record: Record, subjects: &Subjects) -> Option<Record> {
    let is_named = record.parameters.values().any(|value| subjects.are_named(value));
    match record.kind {
        Kind::Read => (!is_named).then_some(record),
        Kind::Action if !is_named => Some(record),
        Kind::Action => {
            let without = |(key, value): (String, Value)| (key, subjects.without_texts(&value));
            Some(Record { parameters: record.parameters.into_iter().map(without).collect(), ..record })
        }
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

async fn load(store: &dyn Store, key: &str) -> Result<Option<(Chunk, i64)>, Error> {
    let Some(saved) = store.state(key).await? else { return Ok(None) };
    let format = saved.value.get("format").and_then(Value::as_u64);
    if format != Some(FORMAT.into()) {
        return Err(unreadable(key, "its format is unknown: run the version of kinsync that wrote it"));
    }
    let chunk = Chunk::deserialize(&saved.value)
        .map_err(|error| unreadable(key, &format!("{error}: restore it from a backup, or remove it")))?;
    Ok(Some((chunk, saved.revision)))
}

fn unreadable(key: &str, why: &str) -> Error {
    Error::Refused {
        doing: "read the audit log",
        hint: format!("the state record `{key}`: {why}"),
        source: None,
    }
}

async fn save(store: &dyn Store, key: &str, chunk: &Chunk, revision: i64) -> Result<bool, Error> {
    let value = serde_json::to_value(chunk).expect("texts, numbers and JSON values are JSON");
    store.put_state(key, &value, revision).await
}
