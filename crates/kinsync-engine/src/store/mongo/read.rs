//! Reads of user documents.

use std::{
    collections::{HashMap, HashSet},
    hash::BuildHasher as _,
    sync::Arc,
    time::Duration,
};

use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc, raw::RawBsonRef};
use kinsync_core::{Micros, SharedEntries, UserId};
use mongodb::{
    Collection,
    options::{Collation, FindOptions},
};

use super::{
    Inner, call,
    decode::{self, Decoded},
    indexes,
    keys::Keys,
};
use crate::store::{Counts, Digest, DocumentKey, Error, Holder, LOAD_USERS, Reloaded, Row};

/// Maximum ids per query.
const CHUNK: usize = 1000;

/// Maximum documents per reply.
pub(super) const BATCH: u32 = 1000;

/// A document with the Kinde id of a user.
#[expect(clippy::large_enum_variant, reason = "most are decoded, and live for a moment")]
enum Found {
    /// It has a digest that was given.
    Unchanged(UserId),
    Decoded(Decoded, Option<Digest>),
}

impl Found {
    fn decoded(self) -> Option<Decoded> {
        match self {
            Self::Decoded(decoded, _) => Some(decoded),
            Self::Unchanged(_) => None,
        }
    }
}

impl Inner {
    pub(super) async fn load(&self, ids: &[UserId]) -> Result<Vec<Option<Row>>, Error> {
        let mut found: HashMap<UserId, Row> = HashMap::with_capacity(ids.len());
        for ids in ids.chunks(CHUNK) {
            let rows = self.documents(ids).await?.into_iter().filter_map(Decoded::stored);
            found.extend(rows.map(|row| (row.id.clone(), row)));
        }
        // A repeated id gets a repeated result.
        let mut requested: HashMap<&UserId, u32> = HashMap::with_capacity(ids.len());
        for id in ids {
            *requested.entry(id).or_default() += 1;
        }
        let mut answer = |id| {
            let left = requested.get_mut(id)?;
            *left -= 1;
            if *left == 0 { found.remove(id) } else { found.get(id).cloned() }
        };
        Ok(ids.iter().map(&mut answer).collect())
    }

    pub(super) async fn reload(
        &self,
        users: &[(UserId, Option<Digest>)],
    ) -> Result<Vec<Reloaded<Row>>, Error> {
        let mut found: HashMap<UserId, Reloaded<Row>> = HashMap::with_capacity(users.len());
        for users in users.chunks(CHUNK) {
            let ids: Vec<UserId> = users.iter().map(|(id, _)| id.clone()).collect();
            let digests = users.iter().filter_map(|(id, digest)| Some(((*digest)?, id.clone()))).collect();
            for document in self.documents_unless(&ids, Some(Arc::new(digests))).await? {
                match document {
                    Found::Unchanged(id) => _ = found.insert(id, Reloaded::Unchanged),
                    Found::Decoded(Decoded::Row(row), digest) => {
                        found.insert(row.id.clone(), Reloaded::Loaded(row, digest));
                    }
                    Found::Decoded(Decoded::Unwritten(_) | Decoded::UnknownMapping, _) => {}
                }
            }
        }
        Ok(users.iter().map(|(id, _)| found.remove(id).unwrap_or(Reloaded::Absent)).collect())
    }

    pub(super) async fn load_to_write(&self, ids: &[UserId]) -> Result<Vec<Row>, Error> {
        let mut found: HashMap<UserId, Row> = HashMap::with_capacity(ids.len());
        for ids in ids.chunks(CHUNK) {
            let rows = self.documents(ids).await?.into_iter().filter_map(|found| match found {
                Decoded::Row(row) | Decoded::Unwritten(row) => Some((row.id.clone(), row)),
                Decoded::UnknownMapping => None,
            });
            found.extend(rows);
        }
        let row = |id: &UserId| found.get(id).cloned().unwrap_or_else(|| self.keys.unknown(id.clone()));
        let mut rows: Vec<Row> = ids.iter().map(row).collect();
        self.join_lockouts(&mut rows).await?;
        Ok(rows)
    }

    /// Adds what is known of users without a document of kinsync: an application may have deleted or replaced it.
    async fn join_lockouts(&self, rows: &mut [Row]) -> Result<(), Error> {
        let unknown = rows.iter().filter(|row| row.revision == 0);
        let ids: Vec<UserId> = unknown.map(|row| row.id.clone()).collect();
        let mut lockouts = if ids.is_empty() { HashMap::new() } else { self.lockouts(&ids).await? };
        for row in rows.iter_mut().filter(|row| row.revision == 0) {
            if let Some(state) = lockouts.remove(&row.id) {
                row.is_recorded = true;
                row.state = std::mem::take(&mut row.state).join(state);
            }
        }
        Ok(())
    }

    async fn documents(&self, ids: &[UserId]) -> Result<Vec<Decoded>, Error> {
        let found = self.documents_unless(ids, None).await?.into_iter();
        Ok(found.filter_map(Found::decoded).collect())
    }

    /// Finds the documents of these users, and decodes those without one of the digests. Computes none without `digests`.
    async fn documents_unless(
        &self,
        ids: &[UserId],
        digests: Option<Arc<HashMap<Digest, UserId>>>,
    ) -> Result<Vec<Found>, Error> {
        for attempt in 0.. {
            let known = self.mappings.known();
            let find = self.by_kinde_id(ids.iter().map(UserId::as_str)).projection(known.projection());
            let mut shared = SharedEntries::default();
            let (digests, hasher) = (digests.clone(), self.hasher.clone());
            let read = move |doc: &RawDocument| {
                let digest = digests.as_ref().map(|_| Digest(hasher.hash_one(doc.as_bytes())));
                if let Some(id) = digest.and_then(|digest| digests.as_ref()?.get(&digest)) {
                    return Some(Found::Unchanged(id.clone()));
                }
                let mut found = decode::document(doc, &known)?;
                if let Decoded::Row(row) = &mut found {
                    row.state.directory.share(&mut shared);
                }
                Some(Found::Decoded(found, digest))
            };
            let found = self.find(LOAD_USERS, &self.users, find, read).await?;
            let is_unknown = |found: &Found| matches!(found, Found::Decoded(Decoded::UnknownMapping, _));
            if attempt > 0 || !found.iter().any(is_unknown) {
                return Ok(found);
            }
            self.read_mappings().await?;
        }
        Ok(Vec::new())
    }

    /// Finds the documents of these users.
    pub(super) fn by_kinde_id<'a>(&self, ids: impl Iterator<Item = &'a str>) -> Find {
        let ids: Vec<&str> = ids.collect();
        let known = self.mappings.known();
        match known.kinde_ids().as_slice() {
            [path] => Find::new(doc! { *path: { "$in": ids } }),
            paths => {
                let each: Vec<Document> = paths.iter().map(|path| doc! { *path: { "$in": &ids } }).collect();
                Find::new(doc! { "$or": each })
            }
        }
    }

    pub(super) async fn claimants(&self, emails: &[String]) -> Result<Vec<Row>, Error> {
        let mut claimants = self.claimants_in_any_form(emails).await?;
        let emails: HashSet<&str> = emails.iter().map(String::as_str).collect();
        claimants.retain(|row| row.claimed_email().is_some_and(|claimed| emails.contains(&*claimed)));
        Ok(claimants)
    }

    /// Returns the live rows with one of these addresses, or with one that differs in case or white space. The result may
    /// contain rows with other addresses.
    pub(super) async fn claimants_in_any_form(&self, emails: &[String]) -> Result<Vec<Row>, Error> {
        let mut claimants = Vec::new();
        for emails in emails.chunks(CHUNK) {
            let rows = self.rows("find the claimants of an address", claims(emails)).await?;
            claimants.extend(rows.into_iter().filter(|row| row.claimed_email().is_some()));
        }
        Ok(claimants)
    }

    pub(super) async fn email_holders(&self, emails: &[String]) -> Result<HashMap<String, Holder>, Error> {
        let mut holders = HashMap::new();
        let Some(key) = self.keys.email().map(ToOwned::to_owned) else { return Ok(holders) };
        for emails in emails.chunks(CHUNK) {
            let id = self.keys.kinde_id();
            let find =
                Find::new(doc! { &key: { "$in": emails } }).projection(doc! { "_id": 1, id: 1, &key: 1 });
            // The index contains each element of a list as an address.
            let keys = self.keys.clone();
            let shown = move |doc: &RawDocument| match keys.values(doc).of(DocumentKey::EMAIL)? {
                RawBsonRef::Array(list) => {
                    let texts =
                        list.into_iter().flatten().filter_map(|item| item.as_str().map(ToOwned::to_owned));
                    Some((texts.collect(), keys.holder_of(doc)))
                }
                one => Some((vec![one.as_str()?.to_owned()], keys.holder_of(doc))),
            };
            let found: Vec<(Vec<String>, Holder)> =
                self.find("find the documents that show an address", &self.users, find, shown).await?;
            for (shown, holder) in found {
                holders.extend(shown.into_iter().map(|email| (email, holder.clone())));
            }
        }
        Ok(holders)
    }

    pub(super) async fn conflicted(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, Error> {
        let after = doc! { "$gt": after.map_or("", UserId::as_str) };
        let id = self.keys.kinde_id();
        let query = doc! { "kinsync.heldBy": { "$exists": true }, id: after };
        let find = Find::new(query).sort(doc! { id: 1 }).limit(limit);
        self.rows("find email conflicts", find).await
    }

    pub(super) async fn with_refused_keys(
        &self,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<Row>, Error> {
        let id = self.keys.kinde_id();
        let after = doc! { "$gt": after.map_or("", UserId::as_str) };
        let query = doc! { "kinsync.refused": { "$exists": true }, id: after };
        let find = Find::new(query).sort(doc! { id: 1 }).limit(limit);
        self.rows("find users with refused keys", find).await
    }

    pub(super) async fn count_refused_keys(&self) -> Result<u64, Error> {
        let (users, limit) = (self.users.clone(), self.op_timeout);
        let query = doc! { "kinsync.refused": { "$exists": true }, self.keys.kinde_id(): { "$gt": "" } };
        let count = async move { users.count_documents(query).max_time(limit).await };
        self.calls.run("count users with refused keys", limit, count).await
    }

    pub(super) async fn pending_emails(
        &self,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<Row>, Error> {
        let after = doc! { "$gt": after.map_or("", UserId::as_str) };
        let id = self.keys.kinde_id();
        let query = doc! { "kinsync.pendingEmails": { "$exists": true }, id: after };
        let find = Find::new(query).sort(doc! { id: 1 }).limit(limit);
        self.rows("find pending email resolutions", find).await
    }

    /// Reads the index alone. The result includes documents with a Kinde id that kinsync never wrote.
    pub(super) async fn ids(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, Error> {
        self.ids_of("list ids", Document::new(), after, limit).await
    }

    pub(super) async fn referring(
        &self,
        ids: &[String],
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, Error> {
        let query = doc! { indexes::REFERENCES: { "$in": ids } };
        self.ids_of("list users of an organization", query, after, limit).await
    }

    pub(super) async fn deleted_before(
        &self,
        at: Micros,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, Error> {
        let query = doc! { "kinsync.deletedAt": { "$lt": at.0 }, "kinsync.erased": Bson::Null };
        self.ids_of("list deleted users", query, after, limit).await
    }

    pub(super) async fn ids_of(
        &self,
        doing: &'static str,
        mut query: Document,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, Error> {
        let id = self.keys.kinde_id();
        query.insert(id, doc! { "$gt": after.map_or("", UserId::as_str) });
        let find = Find::new(query).sort(doc! { id: 1 }).limit(limit);
        let find = find.projection(doc! { "_id": 0, id: 1 });
        let keys = self.keys.clone();
        let id = move |doc: &RawDocument| UserId::parse(keys.kinde_id_of(doc)?).ok();
        self.find(doing, &self.users, find, id).await
    }

    /// Estimates the counts. Documents of the application without a Kinde id count as live users.
    pub(super) async fn counts(&self) -> Result<Counts, Error> {
        let (users, events, limit) = (self.users.clone(), self.events.clone(), self.op_timeout);
        let count = async move {
            let documents = users.estimated_document_count().max_time(limit).await?;
            let deleted = doc! { "kinsync.deletedAt": { "$gte": i64::MIN } };
            let deleted_users = users.count_documents(deleted).max_time(limit).await?;
            let events = events.estimated_document_count().max_time(limit).await?;
            Ok(Counts { live_users: documents.saturating_sub(deleted_users), deleted_users, events })
        };
        self.calls.run("count users and events", limit, count).await
    }

    /// Writes one document with the usual durability: a read alone does not prove that the disk accepts writes.
    pub(super) async fn ping(&self) -> Result<(), Error> {
        let doing = "write a ping";
        let command = bson::rawdoc! {
            "update": self.state.name(),
            "updates": [{ "q": { "_id": "ping" }, "u": { "$currentDate": { "at": true } }, "upsert": true }],
            "writeConcern": { "w": "majority", "j": true },
            "maxTimeMS": i64::try_from(self.op_timeout.as_millis()).unwrap_or(i64::MAX),
        };
        let command = call::command(self.database.clone(), command);
        let reply = self.calls.run(doing, self.op_timeout, command).await?;
        let (_, errors) = call::written(doing, &reply)?;
        // Of two concurrent first pings, one fails with a duplicate key.
        match errors.into_iter().find(|error| error.code != 11000) {
            Some(error) => Err(call::unavailable(doing, call::Cause::Write(error.code))),
            None => Ok(()),
        }
    }

    async fn rows(&self, doing: &'static str, find: Find) -> Result<Vec<Row>, Error> {
        let known = self.mappings.known();
        let find = find.projection(known.projection());
        self.find(doing, &self.users, find, move |doc| decode::row(doc, &known)).await
    }

    /// Reads documents and converts each with `read`. One round trip for up to 16 MiB.
    pub(super) async fn find<T: Send + 'static>(
        &self,
        doing: &'static str,
        collection: &Collection<RawDocumentBuf>,
        find: Find,
        mut read: impl FnMut(&RawDocument) -> Option<T> + Send + 'static,
    ) -> Result<Vec<T>, Error> {
        let collection = collection.clone();
        let Find { filter, mut options, limit } = find;
        let limit = limit.unwrap_or(self.op_timeout);
        if options.limit == Some(0) {
            return Ok(Vec::new()); // the server takes 0 for "no limit"
        }
        options.max_time = Some(limit);
        options.batch_size = Some(BATCH);
        options.collation = options.collation.or_else(|| self.collation());
        let all = async move {
            let mut cursor = collection.find(filter).with_options(options).await?;
            let mut found = Vec::new();
            while cursor.advance().await? {
                found.extend(read(cursor.current()));
            }
            Ok(found)
        };
        self.calls.run(doing, limit, all).await
    }
}

/// Finds the documents of users that have one of the addresses at Kinde, in any form.
fn claims(emails: &[String]) -> Find {
    Find::new(doc! { "kinsync.values.email": { "$in": emails } }).collation(indexes::any_form())
}

/// Filter and options of a read.
pub(super) struct Find {
    filter: Document,
    options: FindOptions,
    /// Time limit; default: the limit of every call.
    limit: Option<Duration>,
}

impl Find {
    pub(super) fn new(filter: Document) -> Self {
        Self { filter, options: FindOptions::default(), limit: None }
    }

    /// Sets the time limit, for reads of all documents.
    pub(super) fn within(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    pub(super) fn collation(mut self, collation: Collation) -> Self {
        self.options.collation = Some(collation);
        self
    }

    pub(super) fn projection(mut self, projection: Document) -> Self {
        self.options.projection = Some(projection);
        self
    }

    pub(super) fn sort(mut self, sort: Document) -> Self {
        self.options.sort = Some(sort);
        self
    }

    pub(super) fn limit(mut self, limit: usize) -> Self {
        self.options.limit = Some(i64::try_from(limit).unwrap_or(i64::MAX));
        self
    }
}

impl Keys {
    pub(super) fn kinde_id_of<'a>(&self, doc: &'a RawDocument) -> Option<&'a str> {
        self.values(doc).of(DocumentKey::KindeId)?.as_str()
    }

    fn holder_of(&self, doc: &RawDocument) -> Holder {
        let id = self.kinde_id_of(doc).and_then(|id| UserId::parse(id).ok());
        id.map_or_else(|| Holder::Foreign(own_id(doc)), Holder::User)
    }

    /// Returns the Kinde id of a document, else its `_id`.
    pub(super) fn name_of(&self, doc: &RawDocument) -> String {
        self.kinde_id_of(doc).map_or_else(|| own_id(doc), ToOwned::to_owned)
    }
}

/// Returns the `_id` of a document as text.
pub(super) fn own_id(doc: &RawDocument) -> String {
    match doc.get("_id") {
        Ok(Some(RawBsonRef::String(id))) => id.to_owned(),
        Ok(Some(RawBsonRef::ObjectId(id))) => id.to_hex(),
        Ok(Some(id)) => Bson::try_from(id).map(|id| id.to_string()).unwrap_or_default(),
        _ => String::new(),
    }
}
