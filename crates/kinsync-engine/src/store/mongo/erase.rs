//! Replaces and removes entries of the log, and removes fields of the application.

use bson::{Bson, Document, RawArrayBuf, RawDocument, RawDocumentBuf, doc, raw::cstr, rawdoc};
use kinsync_core::{Micros, UserId};

use super::{
    Inner,
    call::{self, Cause},
    keys::METADATA,
    log::encode,
    read::{Find, own_id},
};
use crate::store::{DocumentKey, Error, Kinds, LogEntry, OldEntries, OldEntry};

const REPLACE: &str = "replace entries of the log";

const REMOVE: &str = "remove entries of the log";

const FIELDS: &str = "remove fields of the application";

/// Maximum statements per command.
const CHUNK: usize = 1000;

/// `DocumentValidationFailure`.
const VALIDATOR: i32 = 121;

impl Inner {
    pub(super) async fn replace_entries(&self, entries: &[LogEntry]) -> Result<(), Error> {
        for entries in entries.chunks(CHUNK) {
            let mut statements = RawArrayBuf::new();
            for entry in entries {
                statements.push(rawdoc! { "q": { "_id": entry.id.as_str() }, "u": encode(entry) });
            }
            self.change_log(REPLACE, cstr!("update"), cstr!("updates"), &statements).await?;
        }
        Ok(())
    }

    pub(super) async fn remove_entries(&self, ids: &[String]) -> Result<(), Error> {
        for ids in ids.chunks(CHUNK) {
            let mut list = RawArrayBuf::new();
            for id in ids {
                list.push(id.as_str());
            }
            let mut statements = RawArrayBuf::new();
            statements.push(rawdoc! { "q": { "_id": { "$in": list } }, "limit": 0 });
            self.change_log(REMOVE, cstr!("delete"), cstr!("deletes"), &statements).await?;
        }
        Ok(())
    }

    async fn change_log(
        &self,
        doing: &'static str,
        verb: &bson::raw::CStr,
        list: &bson::raw::CStr,
        statements: &RawArrayBuf,
    ) -> Result<(), Error> {
        let command = self.write_command(verb, &self.events, list, statements);
        let command = call::command(self.database.clone(), command);
        let reply = self.calls.run(doing, self.op_timeout, command).await?;
        match call::written(doing, &reply)?.1.first() {
            Some(error) => Err(call::unavailable(doing, Cause::Write(error.code))),
            None => Ok(()),
        }
    }

    pub(super) async fn old_entries(
        &self,
        filter: &OldEntries,
        limit: usize,
    ) -> Result<Vec<OldEntry>, Error> {
        let kinds = match &filter.kinds {
            Kinds::One(kind) => doc! { "$eq": kind },
            Kinds::Except(kinds) => doc! { "$nin": kinds },
        };
        let mut query = doc! { "type": kinds };
        let mut received = doc! { "$lt": filter.before.0 };
        if let Some((at, id)) = &filter.after {
            received.insert("$gte", at.0);
            let later = doc! { "kinsync.receivedAt": { "$gt": at.0 } };
            query.insert("$or", vec![later, doc! { "_id": { "$gt": id } }]);
        }
        query.insert("kinsync.receivedAt", received);
        let find = Find::new(query).sort(doc! { "kinsync.receivedAt": 1, "_id": 1 }).limit(limit);
        let find = find.projection(doc! { "user": 1, "kinsync.receivedAt": 1 });
        let read = |doc: &RawDocument| {
            let received_at = Micros(doc.get_document("kinsync").ok()?.get_i64("receivedAt").ok()?);
            Some(OldEntry {
                id: own_id(doc),
                user: doc.get_str("user").ok().map(ToOwned::to_owned),
                received_at,
            })
        };
        self.find("list old entries", &self.events, find, read).await
    }

    /// Returns the paths of fields that kinsync does not own: top-level fields, and fields in a sub-document that contains keys of
    /// kinsync.
    pub(super) async fn application_fields(&self, user: &UserId) -> Result<Vec<String>, Error> {
        Ok(self.foreign_paths(user).await?.iter().map(|path| path.join(".")).collect())
    }

    async fn foreign_paths(&self, user: &UserId) -> Result<Vec<Path>, Error> {
        let ours: Vec<&str> = DocumentKey::ALL.into_iter().filter_map(|key| self.keys.dotted(key)).collect();
        let find = self.by_kinde_id(std::iter::once(user.as_str()));
        let read = |doc: &RawDocument| Document::try_from(doc).ok();
        let Some(mut document) = self.find(FIELDS, &self.users, find, read).await?.pop() else {
            return Ok(Vec::new());
        };
        let row = self.load(std::slice::from_ref(user)).await?.pop().flatten();
        let foreign = row.and_then(|row| row.document).map(|stored| stored.foreign).unwrap_or_default();
        let kept: Vec<&str> = foreign.keys().filter_map(|key| self.keys.dotted(*key)).collect();
        let mut ours: Vec<&str> = ours.into_iter().filter(|path| !kept.contains(path)).collect();
        ours.push(self.keys.kinde_id());
        document.remove("_id");
        document.remove(METADATA);
        let mut found = Vec::new();
        add_foreign(&document, &[], &ours, &mut found);
        Ok(found)
    }

    pub(super) async fn erase_application_fields(&self, user: &UserId) -> Result<Option<String>, Error> {
        let (special, plain): (Vec<Path>, Vec<Path>) = self
            .foreign_paths(user)
            .await?
            .into_iter()
            .partition(|path| path.iter().any(|name| is_special(name)));
        let mut statements = RawArrayBuf::new();
        let mut add = |update: Bson| {
            let statement = doc! { "q": { self.keys.kinde_id(): user.as_str() }, "u": update };
            statements
                .push(RawDocumentBuf::try_from(&statement).expect("names of fields that BSON contained"));
        };
        if !plain.is_empty() {
            let unset: Document = plain.iter().map(|path| (path.join("."), true.into())).collect();
            add(doc! { "$unset": unset }.into());
        }
        if !special.is_empty() {
            let stages: Vec<Document> =
                special.iter().map(|path| doc! { "$replaceWith": without(path, "$$ROOT".into()) }).collect();
            add(stages.into());
        }
        if plain.is_empty() && special.is_empty() {
            return Ok(None);
        }
        let command = self.write_command(cstr!("update"), &self.users, cstr!("updates"), &statements);
        let command = call::command(self.database.clone(), command);
        let reply = self.calls.run(FIELDS, self.op_timeout, command).await?;
        match call::written(FIELDS, &reply)?.1.first() {
            None => Ok(None),
            Some(error) if error.code == VALIDATOR => Ok(Some(format!(
                "a validator of the collection refuses the document without the fields of the application (code 121){}",
                error.rule
            ))),
            Some(error) => Ok(Some(format!(
                "MongoDB refuses the document without the fields of the application (code {})",
                error.code
            ))),
        }
    }
}

/// Names from the document down to a field.
type Path = Vec<String>;

/// Returns whether a path of names joined by dots does not lead to a field with this name. Such a field is none of kinsync.
fn is_special(name: &str) -> bool {
    name.contains('.') || name.starts_with('$') || name.is_empty()
}

fn add_foreign(document: &Document, at: &[String], ours: &[&str], found: &mut Vec<Path>) {
    for (name, value) in document {
        let path = [at, std::slice::from_ref(name)].concat();
        let (dotted, is_special) = (path.join("."), is_special(name));
        let contains_ours =
            ours.iter().any(|one| one.strip_prefix(&dotted).is_some_and(|rest| rest.starts_with('.')));
        match value.as_document() {
            _ if !is_special && ours.contains(&dotted.as_str()) => {}
            Some(inner) if !is_special && contains_ours => add_foreign(inner, &path, ours, found),
            _ => found.push(path),
        }
    }
}

/// Returns the expression of a document without a field that `$unset` cannot name. Names are literals. MongoDB 5.0 or later.
fn without(path: &[String], input: Bson) -> Document {
    let Some((name, rest)) = path.split_first() else { return Document::new() };
    let field = doc! { "$literal": name };
    if rest.is_empty() {
        return doc! { "$unsetField": { "field": field, "input": input } };
    }
    let inner = doc! { "$getField": { "field": field.clone(), "input": input.clone() } };
    doc! { "$setField": { "field": field, "input": input, "value": without(rest, inner.into()) } }
}
