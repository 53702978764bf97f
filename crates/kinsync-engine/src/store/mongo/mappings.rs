//! The mappings that documents were written under, and the move of documents to the current one.
//!
//! Each document records the number of its mapping, and a record of kinsync contains the paths of each number. When the settings
//! change, documents are rewritten in the background, a page at a time; until then a document is decoded by the mapping that it
//! was written under.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock},
};

use bson::{Document, RawDocument, doc};
use kinsync_core::{Micros, UserId};
use serde::{Deserialize, Serialize};

use super::{
    Inner, MongoStore,
    keys::{FieldMapping, Keys, StoredPaths},
    read::Find,
};
use crate::store::{DocumentKey, Error, Store};

const RECORD: &str = "mappings";

/// Version of the format of the record.
const FORMAT: u32 = 1;

/// Documents per page of a move.
const PAGE: usize = 500;

/// The record of all mappings.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    format: u32,
    /// Number of the mapping of the process that started last.
    current: i64,
    /// Paths by number.
    mappings: BTreeMap<i64, StoredPaths>,
    /// Numbers of other mappings under which documents may exist.
    pending: BTreeSet<i64>,
}

/// The mappings that this process has read.
#[derive(Debug)]
pub(super) struct Known {
    /// The mapping of the settings.
    pub(super) current: Arc<Keys>,
    former: BTreeMap<i64, Arc<Keys>>,
    /// Numbers of former mappings under which documents may exist.
    pending: BTreeSet<i64>,
    projection: Document,
}

impl Known {
    fn new(current: Arc<Keys>, former: BTreeMap<i64, Arc<Keys>>, pending: BTreeSet<i64>) -> Self {
        let mut projection = current.projection();
        for keys in former.values() {
            projection.extend(keys.projection());
        }
        Self { current, former, pending, projection }
    }

    /// Returns the mapping with this number.
    pub(super) fn of(&self, number: i64) -> Option<&Arc<Keys>> {
        if number == self.current.id { Some(&self.current) } else { self.former.get(&number) }
    }

    /// Returns the projection that decodes a row under any of the mappings.
    pub(super) fn projection(&self) -> Document {
        self.projection.clone()
    }

    /// Returns the paths at which documents have their Kinde id: several only while documents move after a change of it.
    pub(super) fn kinde_ids(&self) -> Vec<&str> {
        let former = self.pending.iter().filter_map(|number| self.of(*number)).map(|keys| keys.kinde_id());
        let mut paths = vec![self.current.kinde_id()];
        for path in former {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        paths
    }
}

/// The known mappings, replaced as a whole when another process adds one.
#[derive(Debug)]
pub(super) struct Mappings(RwLock<Arc<Known>>);

impl Mappings {
    pub(super) fn new(current: Arc<Keys>) -> Self {
        let former = default_mapping().map(|keys| (keys.id, Arc::new(keys))).into_iter().collect();
        Self(RwLock::new(Arc::new(Known::new(current, former, BTreeSet::new()))))
    }

    pub(super) fn known(&self) -> Arc<Known> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn learn(&self, record: &Record) -> Result<(), Error> {
        let mut former: BTreeMap<i64, Arc<Keys>> = self.known().former.clone();
        for (number, paths) in &record.mappings {
            former.insert(*number, Arc::new(Keys::from_paths(paths)?));
        }
        let known = Known::new(Arc::clone(&self.known().current), former, record.pending.clone());
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
        Ok(())
    }
}

fn default_mapping() -> Option<Keys> {
    Keys::new(&FieldMapping::default()).ok()
}

impl Inner {
    /// Reads the mappings that other processes use or used.
    pub(super) async fn read_mappings(&self) -> Result<(), Error> {
        match self.saved(RECORD).await? {
            Some(saved) => self.mappings.learn(&record(&saved.value)?),
            None => Ok(()),
        }
    }

    /// Records the mapping of this process before its first write.
    pub(super) async fn register_mapping(&self) -> Result<(), Error> {
        let keys = Arc::clone(&self.keys);
        self.change_mappings(|record| {
            if record.current != keys.id {
                record.current = keys.id;
                record.pending = record.mappings.keys().copied().chain([0]).collect();
            }
            record.pending.remove(&keys.id);
            if keys.id != 0 {
                record.mappings.insert(keys.id, keys.stored());
            }
        })
        .await
    }

    async fn change_mappings(&self, change: impl Fn(&mut Record)) -> Result<(), Error> {
        loop {
            let saved = self.saved(RECORD).await?;
            let empty =
                Record { format: FORMAT, current: 0, mappings: BTreeMap::new(), pending: BTreeSet::new() };
            let before = saved.as_ref().map_or(Ok(empty), |saved| record(&saved.value))?;
            let mut next = before.clone();
            change(&mut next);
            let value = serde_json::to_value(&next).expect("texts and numbers are JSON");
            let revision = saved.map_or(0, |saved| saved.revision);
            if next == before || self.save(RECORD, &value, revision).await? {
                return self.mappings.learn(&next);
            }
        }
    }

    /// Returns ids of users, after this one, with documents that were written under another mapping.
    async fn to_move(&self, path: &str, after: &str) -> Result<Vec<UserId>, Error> {
        let current = match self.keys.id {
            0 => doc! { "$exists": true },
            number => doc! { "$ne": number },
        };
        let filter = doc! { path: { "$gt": after }, "kinsync.format": 1, "kinsync.mapping": current };
        let find = Find::new(filter)
            .sort(doc! { path: 1 })
            .limit(PAGE)
            .projection(doc! { path: 1, "kinsync.mapping": 1 });
        let known = self.mappings.known();
        let read = move |doc: &RawDocument| {
            let number =
                doc.get_document("kinsync").ok().and_then(|metadata| metadata.get_i64("mapping").ok());
            let keys = known.of(number.unwrap_or_default())?;
            UserId::parse(keys.values(doc).of(DocumentKey::KindeId)?.as_str()?).ok()
        };
        self.find("list documents under another mapping", &self.users, find, read).await
    }
}

fn record(value: &serde_json::Value) -> Result<Record, Error> {
    let record = Record::deserialize(value).ok().filter(|record| record.format == FORMAT);
    record.ok_or_else(|| Error::Refused {
        doing: "read the names of the keys",
        hint: format!("this kinsync cannot read the record `{RECORD}`; run the version that wrote it"),
        source: None,
    })
}

impl MongoStore {
    /// Rewrites the documents that were written under another mapping: moves the values that kinsync wrote, and compares before
    /// it writes under a new name. Returns the number of rewritten documents. Safe to interrupt and to repeat: a rewritten
    /// document is not found again.
    ///
    /// # Errors
    /// Fails when the store fails.
    pub async fn move_documents(&self, now: Micros) -> Result<usize, Error> {
        let inner = self.inner()?;
        let known = inner.mappings.known();
        if known.pending.is_empty() {
            return Ok(0);
        }
        let mut moved = 0;
        let mut left = 0;
        for path in known.kinde_ids() {
            let mut after = String::new();
            loop {
                let ids = inner.to_move(path, &after).await?;
                let Some(last) = ids.last() else { break };
                after = last.to_string();
                let applied = crate::apply::rewrite(self as &dyn Store, &ids, now).await?;
                moved += applied.changed.len();
                left += ids.len() - applied.changed.len();
            }
        }
        if moved == 0 && left == 0 {
            // Another process may have registered its mapping meanwhile.
            let number = inner.keys.id;
            let done = |record: &mut Record| {
                if record.current == number {
                    record.pending.clear();
                }
            };
            inner.change_mappings(done).await?;
        }
        Ok(moved)
    }

    /// Returns whether documents may have been written under another mapping.
    pub fn has_documents_to_move(&self) -> bool {
        self.inner().is_ok_and(|inner| !inner.mappings.known().pending.is_empty())
    }
}
