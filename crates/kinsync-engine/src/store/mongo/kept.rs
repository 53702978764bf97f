//! Lists values of the application under kinsync's keys, for the start, `kinsync doctor` and `kinsync link`.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use bson::{Bson, RawDocument, doc};
use kinsync_core::UserId;
use serde::Serialize;

use super::{
    Inner, MongoStore,
    decode::{self, Decoded},
    encode,
    read::{Find, own_id},
};
use crate::store::{DocumentKey, Error, Row, timed};

/// Documents named per key.
const EXAMPLES: usize = 3;

/// Documents compared before kinsync first writes them.
const SAMPLE: usize = 1000;

/// Time limit of the search for documents that kinsync has not written: millions of others may lie between.
const LONGEST: Duration = Duration::from_secs(3);

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

/// Values of the application that kinsync does not replace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeptKeys {
    /// In documents that kinsync writes.
    pub kept: Vec<KeptKey>,
    /// In documents with a Kinde id that kinsync has not written yet. A value stays unless it equals Kinde's. At most 1000
    /// documents are compared, for at most 3 seconds.
    pub unwritten: Vec<KeptKey>,
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
    /// Returns the values of the application under kinsync's keys.
    ///
    /// # Errors
    /// Fails when the store fails.
    pub async fn kept_keys(&self) -> Result<KeptKeys, Error> {
        let (kept, unwritten) = tokio::try_join!(
            timed("mongo", "kept_keys", Box::pin(self.0.kept_keys())),
            timed("mongo", "kept_keys", Box::pin(self.0.unwritten_keys())),
        )?;
        Ok(KeptKeys { kept, unwritten })
    }

    /// Returns the keys under which a document of the application keeps its value when it is linked to its user, for each of
    /// these users.
    pub(crate) async fn kept_if_linked(
        &self,
        owners: &[&Row],
    ) -> Result<HashMap<UserId, Vec<DocumentKey>>, Error> {
        timed("mongo", "kept_if_linked", self.0.kept_if_linked(owners)).await
    }

    /// Returns the counts with the paths of the keys.
    pub fn with_paths(&self, tally: KeptTally) -> Vec<KeptKey> {
        self.0.with_paths(tally)
    }
}

impl Inner {
    fn with_paths(&self, tally: KeptTally) -> Vec<KeptKey> {
        let path = |key: DocumentKey| self.keys.dotted(key).unwrap_or(key.name()).to_owned();
        let keys = tally.0.into_iter();
        keys.map(|(key, (documents, examples))| KeptKey { key, path: path(key), documents, examples })
            .collect()
    }

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
        Ok(self.with_paths(tally))
    }

    async fn unwritten_keys(&self) -> Result<Vec<KeptKey>, Error> {
        let known = self.mappings.known();
        let filter = doc! { self.keys.kinde_id(): { "$gt": "" }, "kinsync": Bson::Null };
        let find = Find::new(filter).limit(SAMPLE).within(LONGEST).projection(known.projection());
        let read = move |doc: &RawDocument| match decode::document(doc, &known)? {
            Decoded::Row(_) => None,
            Decoded::Unwritten(row) => Some((own_id(doc), row.document?.keys_of_the_application())),
        };
        let mut tally = KeptTally::default();
        for (id, keys) in self.find(DOING, &self.users, find, read).await? {
            tally.add(&id, keys);
        }
        Ok(self.with_paths(tally))
    }

    async fn kept_if_linked(&self, owners: &[&Row]) -> Result<HashMap<UserId, Vec<DocumentKey>>, Error> {
        let Some(email) = self.keys.email() else { return Ok(HashMap::new()) };
        let of_address: HashMap<String, Row> =
            owners.iter().filter_map(|row| Some((row.claimed_email()?.to_owned(), (*row).clone()))).collect();
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
