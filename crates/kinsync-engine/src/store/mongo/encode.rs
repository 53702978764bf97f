//! Encodes a row as a user document: kinsync's keys for readers, and the whole state in the sub-document `kinsync`.
//!
//! The sub-document alone is decoded ([`super::decode`]): a key that the application may write is never read as a value of
//! Kinde. The other keys are a view of the state ([`super::view`]). A write sets and removes only keys that kinsync owns in
//! this document, and decides the ownership of a key when it first has a value to show there.

use std::collections::BTreeMap;

use bson::{
    Bson, DateTime, Document, RawArrayBuf, RawDocumentBuf, doc,
    raw::{CStr, CString, RawBson, RawBsonRef, cstr},
};
use kinsync_core::{Field, Rank, UserId, UserState, Value, Version};

use super::{
    TombstoneEmail,
    keys::{Keys, Path},
    view::{Shown, identities, organizations, shown, texts},
};
use crate::store::{DocumentKey, KeySet, Row, StoredDocument};

/// Version of the sub-document `kinsync`. A document with another version is refused, never decoded as this one.
pub(super) const FORMAT: i32 = 1;

/// Keys of a write that shows only whether the user is deleted or suspended.
const MARKS: [DocumentKey; 6] = [
    DocumentKey::KindeId,
    DocumentKey::Field(Field::IsSuspended),
    DocumentKey::IsDeleted,
    DocumentKey::DeletedAt,
    DocumentKey::UpdatedAt,
    DocumentKey::Source,
];

/// The keys that a write may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scope {
    /// Every key.
    All,
    /// Whether the user is deleted or suspended. The state is written as a whole.
    Marks,
}

impl Scope {
    fn of(row: &Row) -> Self {
        if row.refused.all.is_some() { Self::Marks } else { Self::All }
    }
}

/// Returns whether a deleted user gets a placeholder under this key, because a rule demands an address.
fn is_placeholder(row: &Row, keys: &Keys, key: DocumentKey) -> bool {
    let is_demanded = !row.state.is_live() && row.refused.all.is_some();
    key == DocumentKey::EMAIL && is_demanded && keys.tombstone_email == TombstoneEmail::Placeholder
}

fn placeholder(row: &Row) -> RawBson {
    RawBson::String(format!("deleted+{}@kinsync.invalid", row.id))
}

/// How the keys of one document change.
#[derive(Default)]
struct Plan {
    set: Vec<(DocumentKey, RawBson)>,
    unset: Vec<DocumentKey>,
    /// Values that the write relies on; `None`: the key is absent.
    relies_on: Vec<(DocumentKey, Option<Bson>)>,
    owned: KeySet,
    kept: KeySet,
    unwritten: KeySet,
    replaced: BTreeMap<DocumentKey, Bson>,
    newer_fields: BTreeMap<String, (Bson, Version)>,
}

/// An update of one document.
pub(super) struct Update {
    /// Conditions besides the id and the revision: values that the application may have changed since they were read.
    pub(super) conditions: Document,
    /// Keys and values to set.
    pub(super) set: RawDocumentBuf,
    /// Keys to remove.
    pub(super) unset: RawDocumentBuf,
}

/// Encodes a new document, which begins with the content of `start`.
pub(super) fn insertion(row: &Row, keys: &Keys, mark: i64, start: RawDocumentBuf) -> RawDocumentBuf {
    let plan = Plan::of_insertion(row, keys);
    let mut document = start;
    for (name, value) in keys.own_defaults() {
        document.append(name, default_value(value, &row.id));
    }
    let mut nested: Vec<(&CStr, RawDocumentBuf)> = Vec::new();
    for (key, value) in &plan.set {
        let Some(Path { outer, last, .. }) = keys.path(*key) else { continue };
        let Some(outer) = outer else {
            document.append(last, value.as_raw_bson_ref());
            continue;
        };
        let place = nested.iter().position(|(name, _)| **name == **outer).unwrap_or_else(|| {
            nested.push((outer, RawDocumentBuf::new()));
            nested.len() - 1
        });
        nested[place].1.append(last, value.as_raw_bson_ref());
    }
    for (name, inner) in nested {
        document.append(name, inner);
    }
    document.append(cstr!("kinsync"), metadata(row, keys, mark, &plan));
    document
}

/// Encodes the row as the next revision of an existing document. Returns `None` if the row relies on another address in the
/// document than it has: the caller loads the row again.
pub(super) fn update(row: &Row, stored: &StoredDocument, keys: &Keys, mark: i64) -> Option<Update> {
    let scope = Scope::of(row);
    let plan = Plan::new(row, stored, keys);
    if plan.kept.contains(DocumentKey::EMAIL) && !row.metadata.keeps_email && scope == Scope::All {
        return None;
    }
    let mut update =
        Update { conditions: Document::new(), set: RawDocumentBuf::new(), unset: RawDocumentBuf::new() };
    for (key, value) in &plan.set {
        if let Some(path) = keys.path(*key) {
            update.set.append(path.dotted(), value.as_raw_bson_ref());
        }
    }
    for path in plan.unset.iter().filter_map(|key| keys.path(*key)) {
        update.unset.append(path.dotted(), true);
    }
    for (path, value) in &stored.moved {
        update.conditions.insert(path.as_str(), condition(Some(value)));
        let is_set = plan.set.iter().any(|(key, _)| keys.dotted(*key) == Some(path));
        let is_unset = plan.unset.iter().any(|key| keys.dotted(*key) == Some(path));
        if let (false, Ok(path)) = (is_set || is_unset, CString::try_from(path.as_str())) {
            update.unset.append(path, true);
        }
    }
    let is_moved = |path: &str| stored.moved.iter().any(|(moved, _)| moved == path);
    for (key, value) in &plan.relies_on {
        if let Some(path) = keys.dotted(*key).filter(|path| !is_moved(path)) {
            update.conditions.insert(path, condition(value.as_ref()));
        }
    }
    update.set.append(cstr!("kinsync"), metadata(row, keys, mark, &plan));
    Some(update)
}

/// Null matches an absent key too.
fn condition(value: Option<&Bson>) -> Bson {
    doc! { "$eq": value.cloned().unwrap_or(Bson::Null) }.into()
}

impl Plan {
    fn new(row: &Row, stored: &StoredDocument, keys: &Keys) -> Self {
        let is_erased = row.state.erased.is_some();
        let mut plan = Self {
            // Keys of a newer kinsync stay owned: their values in the document are not the application's.
            owned: stored.owned.unknown(),
            unwritten: stored.unwritten.unknown(),
            kept: stored.kept,
            ..Self::default()
        };
        if !is_erased {
            plan.replaced = stored.replaced.clone();
            plan.newer_fields = stored.newer_fields.clone();
        }
        for key in DocumentKey::ALL.into_iter().filter(|key| keys.path(*key).is_some()) {
            let is_written = is_in_scope(row, keys, key);
            let shown = shown_in_scope(row, keys, key);
            match stored.owned.contains(key) {
                // A null of Kinde does not remove what the application wrote instead. An erasure does.
                true if is_written
                    && !is_erased
                    && stored.edited.contains(key)
                    && is_nothing(row, keys, key) => {}
                true if is_written => plan.owned(key, shown),
                true => {
                    plan.owned.insert(key);
                    plan.unwritten.insert(key);
                }
                // A default is for a document that kinsync creates, or for a key that it owns.
                false if !is_written || is_default(row, keys, key) => {}
                false => plan.first(key, shown, stored, row),
            }
        }
        plan
    }

    fn of_insertion(row: &Row, keys: &Keys) -> Self {
        let mut plan = Self::default();
        let is_written = |key: &DocumentKey| keys.path(*key).is_some() && is_in_scope(row, keys, *key);
        for key in DocumentKey::ALL.into_iter().filter(is_written) {
            match shown_in_scope(row, keys, key) {
                Shown::Nothing => {}
                shown => plan.owned(key, shown),
            }
        }
        plan
    }

    /// A key with a value that kinsync wrote before.
    fn owned(&mut self, key: DocumentKey, shown: Shown) {
        match shown {
            Shown::Value(value) => {
                self.owned.insert(key);
                self.set.push((key, value));
            }
            Shown::Hidden => {
                self.owned.insert(key);
                self.unset.push(key);
            }
            // What the application writes here afterwards is its own.
            Shown::Nothing => self.unset.push(key),
        }
    }

    /// A key that kinsync has not written: the first contact with what the application has there.
    fn first(&mut self, key: DocumentKey, shown: Shown, stored: &StoredDocument, row: &Row) {
        let foreign = stored.foreign.get(&key);
        match (shown, foreign) {
            (Shown::Nothing, _) => {}
            (shown, None) => {
                self.relies_on.push((key, None));
                self.kept.remove(key);
                self.owned(key, shown);
            }
            (shown, Some(former)) if stored.take_over.contains(key) => {
                self.relies_on.push((key, Some(former.clone())));
                self.kept.remove(key);
                let at = DateTime::from_millis(row.metadata.updated_at.as_millis());
                self.replaced.insert(key, doc! { "value": former.clone(), "at": at }.into());
                self.owned(key, shown);
            }
            (Shown::Value(value), Some(former)) if is_equal(&value, former) && !self.kept.contains(key) => {
                self.owned.insert(key);
            }
            (_, Some(_)) => self.kept.insert(key),
        }
    }
}

/// Returns whether a write of this row may change this key.
fn is_in_scope(row: &Row, keys: &Keys, key: DocumentKey) -> bool {
    Scope::of(row) == Scope::All || MARKS.contains(&key) || is_placeholder(row, keys, key)
}

/// Returns what the document of a row shows under a key that rules of the application may refuse.
fn shown_in_scope(row: &Row, keys: &Keys, key: DocumentKey) -> Shown {
    match row.refused.keys.contains_key(&key) {
        _ if is_placeholder(row, keys, key) => Shown::Value(placeholder(row)),
        true => Shown::Hidden,
        false => shown_or_default(row, keys, key),
    }
}

fn is_nothing(row: &Row, keys: &Keys, key: DocumentKey) -> bool {
    shown_or_default(row, keys, key) == Shown::Nothing
}

/// Returns whether kinsync has no value of its own to show under a key.
fn is_default(row: &Row, keys: &Keys, key: DocumentKey) -> bool {
    let is_written = is_placeholder(row, keys, key) || row.refused.keys.contains_key(&key);
    !is_written && shown(row, key) == Shown::Nothing
}

/// Returns what kinsync shows under a key that it owns.
pub(super) fn shown_or_default(row: &Row, keys: &Keys, key: DocumentKey) -> Shown {
    match shown(row, key) {
        Shown::Nothing => keys.default_of(key).map(|value| default_value(value, &row.id)).into(),
        shown => shown,
    }
}

/// Converts a default of the settings. `{kindeId}` in a text is replaced.
pub(super) fn default_value(value: &serde_json::Value, id: &UserId) -> RawBson {
    use serde_json::Value as Json;
    match value {
        Json::Null => RawBson::Null,
        Json::Bool(flag) => (*flag).into(),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => i32::try_from(whole).map_or(RawBson::Int64(whole), RawBson::Int32),
            (None, other) => RawBson::Double(other.unwrap_or_default()),
        },
        Json::String(text) => RawBson::String(text.replace("{kindeId}", id.as_str())),
        Json::Array(list) => {
            let mut array = RawArrayBuf::new();
            for item in list {
                array.push(default_value(item, id));
            }
            array.into()
        }
        Json::Object(members) => {
            let mut inner = RawDocumentBuf::new();
            for (name, member) in members {
                if let Ok(name) = CString::try_from(name.as_str()) {
                    inner.append(name, default_value(member, id));
                }
            }
            inner.into()
        }
    }
}

fn is_equal(value: &RawBson, former: &Bson) -> bool {
    RawBson::try_from(former.clone()).is_ok_and(|former| former == *value)
}

/// Returns the keys under which the application's document would keep another value than the row shows.
pub(super) fn kept(row: &Row, stored: &StoredDocument, keys: &Keys) -> KeySet {
    Plan::new(row, stored, keys).kept
}

/// Encodes the sub-document `kinsync`.
fn metadata(row: &Row, keys: &Keys, mark: i64, plan: &Plan) -> RawDocumentBuf {
    let (state, metadata) = (&row.state, &row.metadata);
    let mut doc = RawDocumentBuf::new();
    doc.append(cstr!("format"), FORMAT);
    doc.append(cstr!("revision"), row.revision + 1);
    doc.append(cstr!("writer"), mark);
    append_ownership(&mut doc, keys, plan);
    doc.append(cstr!("insertedAt"), metadata.inserted_at.0);
    doc.append(cstr!("updatedAt"), metadata.updated_at.0);
    if let Some(source) = metadata.source {
        doc.append(cstr!("source"), source.as_str());
    }
    doc.append(cstr!("holdsEmail"), metadata.holds_email);
    if let Some(holder) = &metadata.email_held_by {
        doc.append(cstr!("heldBy"), holder.as_str());
    }
    append_registers(&mut doc, state, &plan.newer_fields);
    if !state.directory.is_empty() {
        let stored = bson::serialize_to_raw_document_buf(&state.directory);
        doc.append(cstr!("directory"), stored.expect("a directory consists of texts, numbers and lists"));
    }
    for (key, at) in [
        (cstr!("deleted"), &state.deleted),
        (cstr!("erased"), &state.erased),
        (cstr!("confirmed"), &state.confirmed),
        (cstr!("firstEvent"), &state.first.event),
        (cstr!("firstRead"), &state.first.read),
    ] {
        if let Some(at) = at {
            doc.append(key, version(at));
        }
    }
    let numbers = [
        (cstr!("firstCreatedOn"), state.first.created_on.map(|at| at.0)),
        (cstr!("lastSeen"), state.last_seen.map(|at| at.0)),
        (cstr!("lastSignedIn"), state.last_signed_in.map(|at| at.0)),
        (cstr!("deletedAt"), state.deleted_at().map(|at| at.0)),
        (cstr!("comparedSince"), metadata.compared_since),
        (cstr!("changedAfter"), metadata.changed_after),
    ];
    for (key, number) in numbers {
        if let Some(number) = number {
            doc.append(key, number);
        }
    }
    if !row.refused.is_empty() {
        let mut refused = RawDocumentBuf::new();
        for (name, reason) in row.refused.reasons() {
            refused.append(CString::try_from(name).expect("names contain no NUL"), reason);
        }
        doc.append(cstr!("refused"), refused);
    }
    if row.has_unshown_memberships {
        doc.append(cstr!("unshown"), true);
    }
    if !row.pending_emails.is_empty() {
        doc.append(cstr!("pendingEmails"), texts(row.pending_emails.iter()));
    }
    doc
}

fn append_ownership(doc: &mut RawDocumentBuf, keys: &Keys, plan: &Plan) {
    if keys.id != 0 {
        doc.append(cstr!("mapping"), keys.id);
    }
    doc.append(cstr!("owned"), plan.owned.bits());
    if !plan.kept.is_empty() {
        let mut names = RawArrayBuf::new();
        plan.kept.iter().for_each(|key| names.push(key.name()));
        doc.append(cstr!("kept"), names);
    }
    if !plan.unwritten.is_empty() {
        doc.append(cstr!("unwritten"), plan.unwritten.bits());
    }
    let replaced = plan.replaced.iter().map(|(key, value)| (key.name().to_owned(), value.clone()));
    let replaced: Document = replaced.collect();
    if let Some(replaced) = RawDocumentBuf::try_from(&replaced).ok().filter(|_| !replaced.is_empty()) {
        doc.append(cstr!("replaced"), replaced);
    }
}

/// Writes the values of the fields below `values` and the position of each version in `versions` below `at`. Fields of a newer
/// kinsync are written as they were read.
fn append_registers(doc: &mut RawDocumentBuf, state: &UserState, newer: &BTreeMap<String, (Bson, Version)>) {
    let (mut values, mut at, mut versions) = (RawDocumentBuf::new(), RawDocumentBuf::new(), Vec::new());
    let mut append_position = |key: &CStr, version: &Version| {
        let known = versions.iter().position(|known| known == version);
        let position = known.unwrap_or(versions.len());
        if known.is_none() {
            versions.push(version.clone());
        }
        at.append(key, i32::try_from(position).expect("a document has few fields"));
    };
    for (field, register) in &state.fields {
        append_value(&mut values, &key_of(*field), &register.value);
        append_position(&key_of(*field), &register.version);
    }
    for (name, (value, version)) in newer {
        if let (Ok(key), Ok(value)) = (CString::try_from(name.as_str()), RawBson::try_from(value.clone())) {
            values.append(&*key, value);
            append_position(&key, version);
        }
    }
    if !values.is_empty() {
        let mut list = RawArrayBuf::new();
        for known in &versions {
            list.push(version(known));
        }
        doc.append(cstr!("versions"), list);
        doc.append(cstr!("at"), at);
        doc.append(cstr!("values"), values);
    }
}

pub(super) fn version(version: &Version) -> RawDocumentBuf {
    let rank = match version.rank {
        Rank::Provisional => 0,
        Rank::Event => 1,
        Rank::Snapshot => 2,
        Rank::Receipt => 3,
    };
    let mut doc = RawDocumentBuf::new();
    doc.append(cstr!("t"), version.at.0);
    doc.append(cstr!("r"), rank);
    doc.append(cstr!("i"), &*version.tie);
    doc
}

/// Writes a value. Lists carry a tag of their type.
fn append_value(values: &mut RawDocumentBuf, key: &CStr, value: &Value) {
    let tagged = |tag: &CStr, list: &RawArrayBuf| {
        let mut doc = RawDocumentBuf::new();
        doc.append(tag, list);
        doc
    };
    match value {
        Value::Null => values.append(key, RawBsonRef::Null),
        Value::Flag(flag) => values.append(key, *flag),
        Value::Time(at) => values.append(key, at.0),
        Value::Text(text) => values.append(key, &**text),
        Value::Organizations(list) => {
            values.append(key, tagged(cstr!("organizations"), &organizations(list)));
        }
        Value::Memberships(memberships) => {
            let stored = bson::serialize_to_raw_document_buf(memberships);
            let mut doc = RawDocumentBuf::new();
            doc.append(
                cstr!("memberships"),
                stored.expect("memberships consist of texts, numbers and lists"),
            );
            values.append(key, doc);
        }
        Value::Properties(properties) => {
            let stored = bson::serialize_to_raw_document_buf(properties);
            let mut doc = RawDocumentBuf::new();
            doc.append(cstr!("properties"), stored.expect("properties consist of texts, numbers and lists"));
            values.append(key, doc);
        }
        Value::Codes(list) => values.append(key, tagged(cstr!("codes"), &texts(list.iter()))),
        Value::Identities(list) => values.append(key, tagged(cstr!("identities"), &identities(list))),
    }
}

fn key_of(field: Field) -> CString {
    CString::try_from(field.key()).expect("the keys of fields contain no NUL")
}
