//! Lists values of the application under kinsync's keys, for the start, `kinsync doctor` and `kinsync link`.

use std::collections::{BTreeMap, HashMap};

use bson::{Bson, RawDocument, doc};
use kinsync_core::UserId;
use serde::Serialize;

use super::{
    Inner, MongoStore,
    decode::{self, Decoded},
    encode,
    keys::Keys,
    read::{Find, own_id},
};
use crate::store::{DocumentKey, Error, Row, timed};

/// Documents named per key.
const EXAMPLES: usize = 3;

/// Documents compared before kinsync first writes them.
const SAMPLE: usize = 1000;

/// Documents per step of the search for those that kinsync has not written.
const RANGE: usize = 10_000;

const DOING: &str = "list values of the application";

/// What an operator can do about a value that stays.
pub const REMEDIES: &str = "under [fields] set another name for the key, or a `prefix` for all of them; name the key in \
                            `take_over` to replace the values; or remove them from the documents";

/// Values of the application under one key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptKey {
    /// The key.
    pub key: DocumentKey,
    /// Its path in a document.
    pub path: String,
    /// Number of documents.
    pub documents: u64,
    /// `_id` of some of them.
    pub examples: Vec<String>,
}

/// A search for documents with a Kinde id that kinsync has not written yet, in the order of their ids. Compares 1000 of them at
/// most.
#[derive(Debug, Default)]
pub struct UnwrittenSearch {
    /// Last id of the steps so far.
    after: String,
    tally: KeptTally,
    progress: SearchProgress,
}

/// How far the search for documents that kinsync has not written has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SearchProgress {
    /// Documents with a Kinde id, written by kinsync or not.
    pub searched: u64,
    /// Those that kinsync has not written.
    pub unwritten: u64,
    /// Whether the search has ended.
    pub is_done: bool,
}

impl UnwrittenSearch {
    /// Returns how far the search has come.
    pub fn progress(&self) -> SearchProgress {
        self.progress
    }
}

/// Counts documents by key.
#[derive(Debug, Default)]
pub struct KeptTally(BTreeMap<DocumentKey, (u64, Vec<String>)>);

impl KeptTally {
    /// Adds the keys of one document.
    pub fn add(&mut self, id: &str, keys: impl IntoIterator<Item = DocumentKey>) {
        for key in keys {
            let (documents, examples) = self.0.entry(key).or_default();
            *documents += 1;
            if examples.len() < EXAMPLES {
                examples.push(id.to_owned());
            }
        }
    }
}

impl MongoStore {
    /// Returns the values of the application that kinsync does not replace in documents that it writes.
    ///
    /// # Errors
    /// Fails when the store fails.
    pub async fn kept_keys(&self) -> Result<Vec<KeptKey>, Error> {
        timed("mongo", "kept_keys", self.inner()?.kept_keys()).await
    }

    /// Searches the next 10,000 documents. A step that fails can be repeated.
    ///
    /// # Errors
    /// Fails when the store fails.
    pub async fn search_unwritten(&self, search: &mut UnwrittenSearch) -> Result<(), Error> {
        timed("mongo", "search_unwritten", self.inner()?.search_unwritten(search)).await
    }

    /// Returns the values of the application in the documents that a search has found. A value stays unless it equals Kinde's.
    pub fn unwritten_keys(&self, search: UnwrittenSearch) -> Vec<KeptKey> {
        with_paths(self.keys(), search.tally)
    }

    /// Returns the keys under which a document of the application keeps its value when it is linked to its user, for each of
    /// these users and the address that its document shows.
    pub(crate) async fn kept_if_linked(
        &self,
        owners: &[(&str, &Row)],
    ) -> Result<HashMap<UserId, Vec<DocumentKey>>, Error> {
        timed("mongo", "kept_if_linked", self.inner()?.kept_if_linked(owners)).await
    }

    /// Returns the counts with the paths of the keys.
    pub fn with_paths(&self, tally: KeptTally) -> Vec<KeptKey> {
        with_paths(self.keys(), tally)
    }
}

fn with_paths(keys: &Keys, tally: KeptTally) -> Vec<KeptKey> {
    let path = |key: DocumentKey| keys.dotted(key).unwrap_or(key.name()).to_owned();
    let counts = tally.0.into_iter();
    counts.map(|(key, (documents, examples))| KeptKey { key, path: path(key), documents, examples }).collect()
}

impl Inner {
    /// Counts by the index on `kinsync.kept`.
    async fn kept_keys(&self) -> Result<Vec<KeptKey>, Error> {
        let pipeline = [
            doc! { "$match": { "kinsync.kept": { "$exists": true } } },
            doc! { "$unwind": "$kinsync.kept" },
            doc! { "$group": { "_id": "$kinsync.kept", "documents": { "$sum": 1_i64 } } },
        ];
        let users = self.users.clone();
        let read = async move {
            let mut cursor = users.aggregate(pipeline).allow_disk_use(true).await?;
            let mut counts = Vec::new();
            while cursor.advance().await? {
                let group = cursor.current();
                let key = group.get_str("_id").ok().and_then(DocumentKey::from_name);
                counts.extend(key.zip(group.get_i64("documents").ok()));
            }
            Ok(counts)
        };
        let counts = self.calls.run(DOING, self.op_timeout, read).await?;
        let mut tally = KeptTally::default();
        for (key, documents) in counts {
            let find = Find::new(doc! { "kinsync.kept": key.name() }).limit(EXAMPLES);
            let find = find.projection(doc! { "_id": 1 });
            let examples = self.find(DOING, &self.users, find, |doc| Some(own_id(doc))).await?;
            tally.0.insert(key, (documents.unsigned_abs(), examples));
        }
        Ok(with_paths(&self.keys, tally))
    }

    /// The server reads the documents of one range of ids only: it cannot find the unwritten ones by an index.
    async fn search_unwritten(&self, search: &mut UnwrittenSearch) -> Result<(), Error> {
        let known = self.mappings.known();
        let path = self.keys.kinde_id();
        let ids = self.ids_after(&search.after).await?;
        let Some(last) = ids.iter().flatten().next_back() else {
            search.progress.is_done = true;
            return Ok(());
        };
        let range = doc! { "$gt": &search.after, "$lte": last };
        let find = Find::new(doc! { path: range, "kinsync": Bson::Null }).projection(known.projection());
        let read = move |doc: &RawDocument| match decode::document(doc, &known)? {
            Decoded::Row(_) | Decoded::UnknownMapping => None,
            Decoded::Unwritten(row) => Some((own_id(doc), row.document?.keys_of_the_application())),
        };
        for (id, keys) in self.find(DOING, &self.users, find.limit(SAMPLE), read).await? {
            search.tally.add(&id, keys);
            search.progress.unwritten += 1;
        }
        search.progress.searched += ids.len() as u64;
        search.progress.is_done = ids.len() < RANGE || search.progress.unwritten >= SAMPLE as u64;
        search.after.clone_from(last);
        Ok(())
    }

    /// Returns the next Kinde ids, from the index alone; `None` for a value that is no text.
    async fn ids_after(&self, after: &str) -> Result<Vec<Option<String>>, Error> {
        let path = self.keys.kinde_id();
        let find = Find::new(doc! { path: { "$gt": after } }).sort(doc! { path: 1 }).limit(RANGE);
        let find = find.projection(doc! { "_id": 0, path: 1 });
        let keys = self.keys.clone();
        let read = move |doc: &RawDocument| Some(keys.kinde_id_of(doc).map(ToOwned::to_owned));
        self.find(DOING, &self.users, find, read).await
    }

    async fn kept_if_linked(
        &self,
        owners: &[(&str, &Row)],
    ) -> Result<HashMap<UserId, Vec<DocumentKey>>, Error> {
        let Some(email) = self.keys.email() else { return Ok(HashMap::new()) };
        let of_address: HashMap<String, Row> =
            owners.iter().map(|(address, row)| ((*address).to_owned(), (*row).clone())).collect();
        let mut filter = self.foreign();
        filter.insert(email, doc! { "$in": of_address.keys().collect::<Vec<_>>() });
        let keys = self.keys.clone();
        let find = Find::new(filter).projection(keys.projection());
        let read = move |doc: &RawDocument| {
            let row = of_address.get(keys.values(doc).of(DocumentKey::EMAIL)?.as_str()?)?;
            let mut row = row.clone();
            row.metadata.holds_email = true;
            let kept = encode::kept(&row, &decode::unlinked(doc, &row, &keys), &keys);
            Some((row.id, kept.iter().collect()))
        };
        Ok(self.find(DOING, &self.users, find, read).await?.into_iter().collect())
    }
}
