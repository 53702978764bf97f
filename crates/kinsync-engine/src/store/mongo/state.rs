//! kinsync's own records: one document per key, with the value as JSON text, which MongoDB never evaluates.
//!
//! [`call::command`] repeats a write with a lost response, and the repetition finds the revision already increased. Each
//! write therefore stores a random mark that identifies it as done.

use bson::{RawArrayBuf, RawDocumentBuf, doc, raw::cstr, rawdoc};

use super::{
    Inner,
    call::{self, Cause},
    read::Find,
};
use crate::store::{Error, Saved};

use crate::random;

const READ: &str = "read a record";

const WRITE: &str = "write a record";

/// E11000: the key exists.
const DUPLICATE_KEY: i32 = 11000;

impl Inner {
    pub(super) async fn saved(&self, key: &str) -> Result<Option<Saved>, Error> {
        let find = Find::new(doc! { "_id": key }).limit(1);
        let read = |doc: &bson::RawDocument| {
            let value = doc.get_str("value").ok().and_then(|text| serde_json::from_str(text).ok());
            // A manually damaged value counts as empty.
            Some(Saved { value: value.unwrap_or_default(), revision: doc.get_i64("revision").ok()? })
        };
        Ok(self.find(READ, &self.state, find, read).await?.pop())
    }

    pub(super) async fn save(
        &self,
        key: &str,
        value: &serde_json::Value,
        expected: i64,
    ) -> Result<bool, Error> {
        let mark: i64 = random::number();
        let text = value.to_string();
        let record = rawdoc! { "revision": expected + 1, "value": text, "writer": mark };
        let mut statements = RawArrayBuf::new();
        let (verb, list) = if expected == 0 {
            let mut document = rawdoc! { "_id": key };
            extend(&mut document, &record);
            statements.push(document);
            (cstr!("insert"), cstr!("documents"))
        } else {
            let query = rawdoc! { "_id": key, "revision": expected };
            statements.push(rawdoc! { "q": query, "u": { "$set": record } });
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

fn extend(document: &mut RawDocumentBuf, with: &RawDocumentBuf) {
    for (key, value) in with.iter().map_while(Result::ok) {
        document.append(key, value);
    }
}
