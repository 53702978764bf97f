//! Deletions and suspensions in a collection of kinsync's own, beside those in the user documents: an application may delete a
//! document or replace it without `kinsync`, and the user must not return with the next request of a token that is still valid.
//!
//! A record contains an id and versions, nothing else of the user. Each write keeps the greatest version, so the order of
//! writes does not matter. A user that Kinde restored has a later confirmation in it. Users that were never deleted or suspended
//! have no record.

use std::collections::HashMap;

use bson::{RawArrayBuf, RawDocument, RawDocumentBuf, doc, raw::cstr, rawdoc};
use kinsync_core::{Field, Micros, Rank, Register, UserId, UserState, Value, Version};

use super::{
    Inner,
    call::{self, Cause},
    read::Find,
};
use crate::store::{Error, Row};

const PREFIX: &str = "lockout/";

/// Version of the format of a record.
const FORMAT: i32 = 1;

/// Maximum records per command.
const CHUNK: usize = 1000;

const WRITE: &str = "write deletions and suspensions";

const READ: &str = "read deletions and suspensions";

/// E11000: of two concurrent first writes, one fails.
const DUPLICATE_KEY: i32 = 11000;

/// Attempts of a write that fails with a duplicate key.
const ATTEMPTS: u32 = 3;

impl Inner {
    /// Writes the records of users that are deleted or suspended, or were. Comes before the write of their documents: a record
    /// is true whether or not that write succeeds.
    pub(super) async fn write_lockouts(&self, rows: &[Row]) -> Result<(), Error> {
        let locked: Vec<RawDocumentBuf> = rows.iter().filter_map(statement).collect();
        for statements in locked.chunks(CHUNK) {
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

    /// Returns what the records of these users contain.
    pub(super) async fn lockouts(&self, ids: &[UserId]) -> Result<HashMap<UserId, UserState>, Error> {
        let names: Vec<String> = ids.iter().map(|id| format!("{PREFIX}{id}")).collect();
        let find = Find::new(doc! { "_id": { "$in": names } });
        let found = self.find(READ, &self.state, find, |doc| Some(decode_one(doc))).await?;
        found.into_iter().collect()
    }
}

fn statement(row: &Row) -> Option<RawDocumentBuf> {
    let suspended = row.state.fields.get(&Field::IsSuspended);
    let suspended = suspended.filter(|register| row.is_recorded || register.value == Value::Flag(true));
    let mut newest = RawDocumentBuf::new();
    let marks = [
        (cstr!("deleted"), &row.state.deleted),
        (cstr!("confirmed"), &row.state.confirmed),
        (cstr!("erased"), &row.state.erased),
    ];
    for (key, at) in marks {
        if let Some(at) = at.as_ref().filter(|_| row.state.deleted.is_some()) {
            newest.append(key, comparable(at));
        }
    }
    if let Some(register) = suspended {
        let mut value = comparable(&register.version);
        value.append(cstr!("v"), register.value == Value::Flag(true));
        newest.append(cstr!("suspended"), value);
    }
    (!newest.is_empty()).then(|| {
        rawdoc! {
            "q": { "_id": format!("{PREFIX}{}", row.id) },
            "u": { "$max": newest, "$setOnInsert": { "format": FORMAT } },
            "upsert": true,
        }
    })
}

/// Encodes a version so that MongoDB compares it as kinsync does: it compares documents key by key.
fn comparable(at: &Version) -> RawDocumentBuf {
    let rank = match at.rank {
        Rank::Provisional => 0,
        Rank::Receipt => 1,
        Rank::Event => 2,
        Rank::Snapshot => 3,
    };
    rawdoc! { "t": at.at.0, "rank": rank, "i": &*at.tie }
}

fn version(doc: &RawDocument) -> Option<Version> {
    let rank = match doc.get_i32("rank").ok()? {
        0 => Rank::Provisional,
        1 => Rank::Receipt,
        2 => Rank::Event,
        3 => Rank::Snapshot,
        _ => return None,
    };
    Some(Version { at: Micros(doc.get_i64("t").ok()?), rank, tie: doc.get_str("i").ok()?.into() })
}

fn decode_one(doc: &RawDocument) -> Result<(UserId, UserState), Error> {
    let name = doc.get_str("_id").unwrap_or_default();
    let unreadable = || Error::Refused {
        doing: READ,
        hint: format!("this kinsync cannot read the record `{name}`; run the version that wrote it"),
        source: None,
    };
    let at = |key: &str| match doc.get_document(key) {
        Ok(found) => version(found).map(Some).ok_or_else(unreadable),
        Err(_) => Ok(None),
    };
    let id = name.strip_prefix(PREFIX).and_then(|id| UserId::parse(id).ok()).ok_or_else(unreadable)?;
    if doc.get_i32("format").ok() != Some(FORMAT) {
        return Err(unreadable());
    }
    let mut state =
        UserState { deleted: at("deleted")?, confirmed: at("confirmed")?, ..UserState::default() };
    if let Some(deletion) = at("erased")? {
        return Ok((id, UserState::erased(deletion)));
    }
    if let Some(version) = at("suspended")? {
        let flag = doc.get_document("suspended").and_then(|found| found.get_bool("v"));
        let value = Value::Flag(flag.map_err(|_| unreadable())?);
        state.fields.insert(Field::IsSuspended, Register { version, value });
    }
    Ok((id, state))
}
