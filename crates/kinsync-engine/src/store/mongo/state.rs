//! kinsync's own records: one document per key, with the value as JSON text, which MongoDB never evaluates.
//!
//! [`call::command`] repeats a write with a lost response, and the repetition finds the revision already increased. Each
//! write therefore stores a random mark that identifies it as done.

use std::collections::HashMap;

use bson::{Document, RawArrayBuf, RawDocument, RawDocumentBuf, doc, raw::cstr, rawdoc};

use super::{
    Inner,
    call::{self, Cause},
    read::Find,
};
use crate::store::{Error, Saved, end_of, is_due};

use crate::random;

const READ: &str = "read a record";

const WRITE: &str = "write a record";

const LIST: &str = "list records";

const REMOVE: &str = "remove records";

/// Maximum records per command.
const CHUNK: usize = 1000;

/// Key of the mark of [`crate::store::Store::due_states`].
pub(super) const DUE: &str = "isDue";

/// E11000: the key exists.
const DUPLICATE_KEY: i32 = 11000;

impl Inner {
    pub(super) async fn saved(&self, key: &str) -> Result<Option<Saved>, Error> {
        let find = Find::new(doc! { "_id": key }).limit(1);
        Ok(self.find(READ, &self.state, find, record).await?.pop().map(|(_, saved)| saved))
    }

    pub(super) async fn all_saved(&self, keys: &[String]) -> Result<Vec<Option<Saved>>, Error> {
        let mut found = HashMap::with_capacity(keys.len());
        for keys in keys.chunks(CHUNK) {
            let find = Find::new(doc! { "_id": { "$in": keys } });
            found.extend(self.find(READ, &self.state, find, record).await?);
        }
        Ok(keys.iter().map(|key| found.remove(key)).collect())
    }

    pub(super) async fn list_saved(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Saved)>, Error> {
        let find = Find::new(with_prefix(prefix, after)).sort(doc! { "_id": 1 }).limit(limit);
        self.find(LIST, &self.state, find, record).await
    }

    pub(super) async fn due_saved(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Saved)>, Error> {
        let filter = doc! { DUE: true, "_id": { "$gt": after.unwrap_or_default() } };
        let find = Find::new(filter).sort(doc! { "_id": 1 }).limit(limit);
        self.find(LIST, &self.state, find, record).await
    }

    pub(super) async fn count_saved(&self, prefix: &str) -> Result<u64, Error> {
        let (state, limit) = (self.state.clone(), self.op_timeout);
        let filter = with_prefix(prefix, None);
        let count = async move { state.count_documents(filter).max_time(limit).await };
        self.calls.run("count records", limit, count).await
    }

    pub(super) async fn remove_saved(&self, records: &[(String, i64)]) -> Result<(), Error> {
        for records in records.chunks(CHUNK) {
            let mut statements = RawArrayBuf::new();
            for (key, revision) in records {
                let query = rawdoc! { "_id": key.as_str(), "revision": *revision };
                statements.push(rawdoc! { "q": query, "limit": 1 });
            }
            let command = self.write_command(cstr!("delete"), &self.state, cstr!("deletes"), &statements);
            let command = call::command(self.database.clone(), command);
            let reply = self.calls.run(REMOVE, self.op_timeout, command).await?;
            if let Some(error) = call::written(REMOVE, &reply)?.1.first() {
                return Err(call::unavailable(REMOVE, Cause::Write(error.code)));
            }
        }
        Ok(())
    }

    pub(super) async fn save(
        &self,
        key: &str,
        value: &serde_json::Value,
        expected: i64,
    ) -> Result<bool, Error> {
        let mark: i64 = random::number();
        let text = value.to_string();
        let mut record = rawdoc! { "revision": expected + 1, "value": text, "writer": mark };
        let is_due = is_due(value);
        if is_due {
            record.append(cstr!("isDue"), true);
        }
        let mut statements = RawArrayBuf::new();
        let (verb, list) = if expected == 0 {
            let mut document = rawdoc! { "_id": key };
            extend(&mut document, &record);
            statements.push(document);
            (cstr!("insert"), cstr!("documents"))
        } else {
            let query = rawdoc! { "_id": key, "revision": expected };
            let mut update = rawdoc! { "$set": record };
            if !is_due {
                update.append(cstr!("$unset"), rawdoc! { "isDue": true });
            }
            statements.push(rawdoc! { "q": query, "u": update });
            (cstr!("update"), cstr!("updates"))
        };
        let command = self.write_command(verb, &self.state, list, &statements);
        let command = call::command(self.database.clone(), command);
        let reply = self.calls.run(WRITE, self.op_timeout, command).await?;
        match call::written(WRITE, &reply)? {
            (1, _) => Ok(true),
            (_, errors) => match errors.into_iter().find(|error| error.code != DUPLICATE_KEY) {
                Some(error) => Err(call::unavailable(WRITE, Cause::Write(error.code))),
                None => self.is_marked(key, mark).await,
            },
        }
    }

    async fn is_marked(&self, key: &str, mark: i64) -> Result<bool, Error> {
        let find = Find::new(doc! { "_id": key, "writer": mark }).limit(1);
        Ok(!self.find(READ, &self.state, find, |_| Some(())).await?.is_empty())
    }
}

fn record(doc: &RawDocument) -> Option<(String, Saved)> {
    // A document that an operator changed may be a record that cannot be decoded. It is not a missing one.
    let text = doc.get_str("value").unwrap_or_default();
    let value = serde_json::from_str(text).unwrap_or_else(|_| text.into());
    let revision = doc.get_i64("revision").unwrap_or(-1);
    Some((doc.get_str("_id").ok()?.to_owned(), Saved { value, revision }))
}

fn with_prefix(prefix: &str, after: Option<&str>) -> Document {
    doc! { "_id": { "$gt": after.unwrap_or(prefix), "$lt": end_of(prefix) } }
}

fn extend(document: &mut RawDocumentBuf, with: &RawDocumentBuf) {
    for (key, value) in with.iter().map_while(Result::ok) {
        document.append(key, value);
    }
}
