//! Tombstones in a collection of kinsync's own, beside those in the user documents: an application may delete a document, and
//! a deleted user must not return with the next request of a token that is still valid.
//!
//! A tombstone contains an id and versions, nothing else of the user. Each write keeps the greatest version, so the order of
//! writes does not matter. A user that Kinde restored has a later confirmation in it.

use std::collections::HashMap;

use bson::{Bson, RawArrayBuf, RawDocument, RawDocumentBuf, doc, raw::cstr, rawdoc};
use kinsync_core::{UserId, UserState};

use super::{
    Inner,
    call::{self, Cause},
    decode,
    encode::version,
    read::Find,
};
use crate::store::{Error, Row};

const PREFIX: &str = "tombstone/";

/// Version of the format of a tombstone.
const FORMAT: i32 = 1;

/// Maximum tombstones per command.
const CHUNK: usize = 1000;

const WRITE: &str = "write tombstones";

/// E11000: of two concurrent first writes, one fails.
const DUPLICATE_KEY: i32 = 11000;

/// Attempts of a write that fails with a duplicate key.
const ATTEMPTS: u32 = 3;

impl Inner {
    /// Writes the tombstones of deleted and of restored users. Comes before the write of their documents: a tombstone is true
    /// whether or not that write succeeds.
    pub(super) async fn write_tombstones(&self, rows: &[Row]) -> Result<(), Error> {
        let deleted: Vec<RawDocumentBuf> = rows.iter().filter_map(statement).collect();
        for statements in deleted.chunks(CHUNK) {
            let statements: RawArrayBuf = statements.iter().map(|statement| &**statement).collect();
            self.write_statements(&statements).await?;
        }
        Ok(())
    }

    async fn write_statements(&self, statements: &RawArrayBuf) -> Result<(), Error> {
        for _ in 0..ATTEMPTS {
            let command = self.write_command(cstr!("update"), &self.state, cstr!("updates"), statements);
            let command = call::command(self.database.clone(), command);
            let reply = self.calls.run(WRITE, self.op_timeout, command).await?;
            let (_, errors) = call::written(WRITE, &reply)?;
            match errors.first() {
                None => return Ok(()),
                Some(error) if error.code == DUPLICATE_KEY => {}
                Some(error) => return Err(call::unavailable(WRITE, Cause::Write(error.code))),
            }
        }
        Err(call::unavailable(WRITE, Cause::Write(DUPLICATE_KEY)))
    }

    /// Returns the states of the tombstones of these users.
    pub(super) async fn tombstones(&self, ids: &[UserId]) -> Result<HashMap<UserId, UserState>, Error> {
        let names: Vec<String> = ids.iter().map(|id| format!("{PREFIX}{id}")).collect();
        let find = Find::new(doc! { "_id": { "$in": names } });
        let found = self.find("read tombstones", &self.state, find, |doc| Some(decode_one(doc))).await?;
        found.into_iter().collect()
    }
}

fn statement(row: &Row) -> Option<RawDocumentBuf> {
    let deleted = row.state.deleted.as_ref()?;
    let mut newest = rawdoc! { "deleted": version(deleted) };
    if let Some(confirmed) = &row.state.confirmed {
        newest.append(cstr!("confirmed"), version(confirmed));
    }
    Some(rawdoc! {
        "q": { "_id": format!("{PREFIX}{}", row.id) },
        "u": { "$max": newest, "$setOnInsert": { "format": FORMAT } },
        "upsert": true,
    })
}

fn decode_one(doc: &RawDocument) -> Result<(UserId, UserState), Error> {
    let at = |key: &str| doc.get_document(key).ok().and_then(decode::version);
    let name = doc.get_str("_id").unwrap_or_default();
    let id = name.strip_prefix(PREFIX).and_then(|id| UserId::parse(id).ok());
    let format = doc.get("format").ok().flatten().and_then(|format| Bson::try_from(format).ok());
    match (id, at("deleted"), format) {
        (Some(id), Some(deleted), Some(Bson::Int32(FORMAT))) => {
            let state =
                UserState { deleted: Some(deleted), confirmed: at("confirmed"), ..UserState::default() };
            Ok((id, state))
        }
        _ => Err(Error::Refused {
            doing: "read tombstones",
            hint: format!("this kinsync cannot read the record `{name}`; run the version that wrote it"),
            source: None,
        }),
    }
}
