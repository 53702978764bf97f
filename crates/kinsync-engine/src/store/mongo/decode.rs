//! Decodes user documents into rows: the inverse of [`super::encode`].
//!
//! Never fails: a part that was edited into an invalid form counts as unknown, so that the next event or scan repairs it and
//! no document blocks the others.

use std::collections::BTreeMap;

use bson::{
    RawArray, RawDocument,
    raw::{CStr, RawBsonRef},
    spec::ElementType,
};
use kinsync_core::{
    Field, FirstVersions, Group, Identity, Micros, Organization, Rank, Register, RowMetadata, Source, UserId,
    UserState, Value, Version,
};

use super::{keys::Keys, read::own_id};
use crate::store::Row;

/// Decodes a user document. Returns `None` if kinsync has not written it yet.
pub(super) fn row(doc: &RawDocument, keys: &Keys) -> Option<Row> {
    let mut id = None;
    let mut source = None;
    let mut metadata = None;
    let mut shown = Vec::with_capacity(Field::ALL.len());
    for (key, value) in entries(doc) {
        match key.as_str() {
            "kindeId" => id = value.as_str().and_then(|id| UserId::parse(id).ok()),
            "source" => source = value.as_str().and_then(Source::from_name),
            "kinsync" => metadata = value.as_document().map(Metadata::of),
            _ => shown.extend(keys.field(key).map(|field| (field, value))),
        }
    }
    let metadata = metadata.filter(|metadata| metadata.revision > 0)?;
    Some(Row {
        id: id?,
        metadata: RowMetadata { source, ..metadata.metadata() },
        revision: metadata.revision,
        pending_emails: metadata.pending_emails.map(texts).unwrap_or_default(),
        state: metadata.state(&shown),
    })
}

/// Types of a value under `kinsync` that kinsync did not write and does not replace.
pub(super) const UNREADABLE: [&str; 15] = [
    "array",
    "string",
    "double",
    "int",
    "long",
    "decimal",
    "bool",
    "date",
    "timestamp",
    "objectId",
    "binData",
    "regex",
    "javascript",
    "minKey",
    "maxKey",
];

/// The Kinde ids by which queries find the document: each element of a list is one.
pub(super) fn kinde_ids(doc: &RawDocument) -> impl Iterator<Item = &str> {
    let value = doc.get("kindeId").ok().flatten();
    let list = value.and_then(RawBsonRef::as_array).into_iter().flat_map(items);
    value.into_iter().chain(list).filter_map(RawBsonRef::as_str)
}

/// Why a document that has the Kinde id of a user can never be that user's, for an operator.
pub(super) fn fault(doc: &RawDocument) -> Option<String> {
    let get = |doc: &RawDocument, key: &str| doc.get(key).ok().flatten().map(|value| value.element_type());
    let metadata = doc.get_document("kinsync").ok();
    let (key, there) = match (get(doc, "kindeId"), get(doc, "kinsync")) {
        (Some(ElementType::Array), _) => ("kindeId", "a list"),
        (_, None | Some(ElementType::Null | ElementType::Undefined | ElementType::EmbeddedDocument)) => {
            let revision = metadata.and_then(|metadata| get(metadata, "revision"));
            revision.filter(|there| *there == ElementType::Array).map(|_| ("kinsync.revision", "a list"))?
        }
        (_, Some(ElementType::Array)) => ("kinsync", "a list"),
        _ => ("kinsync", "no sub-document"),
    };
    Some(format!(
        "`{key}` of the document with `_id` {} is {there}; kinsync did not write it: correct or remove it",
        own_id(doc)
    ))
}

/// The decoded sub-document `kinsync`.
#[derive(Default)]
struct Metadata<'a> {
    revision: i64,
    inserted_at: Micros,
    updated_at: Micros,
    holds_email: bool,
    held_by: Option<&'a str>,
    event: Option<&'a RawDocument>,
    scan: Option<&'a RawDocument>,
    deleted: Option<Version>,
    confirmed: Option<Version>,
    first: FirstVersions,
    last_seen: Option<Micros>,
    last_signed_in: Option<Micros>,
    compared_since: Option<i64>,
    changed_after: Option<i64>,
    held: Option<&'a RawDocument>,
    pending_emails: Option<&'a RawArray>,
}

impl<'a> Metadata<'a> {
    fn of(doc: &'a RawDocument) -> Self {
        let mut metadata = Self::default();
        for (key, value) in entries(doc) {
            match key.as_str() {
                "revision" => metadata.revision = integer(value).unwrap_or_default(),
                "insertedAt" => metadata.inserted_at = micros(value).unwrap_or_default(),
                "updatedAt" => metadata.updated_at = micros(value).unwrap_or_default(),
                "holdsEmail" => metadata.holds_email = value.as_bool().unwrap_or_default(),
                "heldBy" => metadata.held_by = value.as_str(),
                "event" => metadata.event = value.as_document(),
                "scan" => metadata.scan = value.as_document(),
                "deleted" => metadata.deleted = value.as_document().and_then(version),
                "confirmed" => metadata.confirmed = value.as_document().and_then(version),
                "firstEvent" => metadata.first.event = value.as_document().and_then(version),
                "firstRead" => metadata.first.read = value.as_document().and_then(version),
                "firstCreatedOn" => metadata.first.created_on = micros(value),
                "lastSeen" => metadata.last_seen = micros(value),
                "lastSignedIn" => metadata.last_signed_in = micros(value),
                "comparedSince" => metadata.compared_since = integer(value),
                "changedAfter" => metadata.changed_after = integer(value),
                "held" => metadata.held = value.as_document(),
                "pendingEmails" => metadata.pending_emails = value.as_array(),
                _ => {}
            }
        }
        metadata
    }

    fn metadata(&self) -> RowMetadata {
        RowMetadata {
            holds_email: self.holds_email,
            email_held_by: self.held_by.map(ToOwned::to_owned),
            inserted_at: self.inserted_at,
            updated_at: self.updated_at,
            source: None,
            compared_since: self.compared_since,
            changed_after: self.changed_after,
        }
    }

    fn state(self, shown: &[(Field, RawBsonRef<'_>)]) -> UserState {
        let mut fields = BTreeMap::new();
        let held: Vec<_> = self.held.map(|held| entries(held).collect()).unwrap_or_default();
        let value_of = |field: Field| {
            let held = held.iter().find(|(key, _)| key.as_str() == field.key());
            let shown = || shown.iter().find(|(known, _)| *known == field);
            held.map_or_else(|| shown().and_then(|(_, v)| shown_value(field, *v)), |(_, v)| held_value(*v))
        };
        for (group, doc) in [(Group::Event, self.event), (Group::Scan, self.scan)] {
            for (field, version) in doc.map(|doc| versions(doc, group)).unwrap_or_default() {
                fields.extend(value_of(field).map(|value| (field, Register { version, value })));
            }
        }
        UserState {
            fields,
            deleted: self.deleted,
            confirmed: self.confirmed,
            first: self.first,
            last_seen: self.last_seen,
            last_signed_in: self.last_signed_in,
        }
    }
}

/// Returns the versions of the observed fields of one group.
fn versions(doc: &RawDocument, group: Group) -> Vec<(Field, Version)> {
    let Some(base) = version(doc) else { return Vec::new() };
    let except: Vec<_> = match doc.get_document("x") {
        Ok(except) => entries(except).collect(),
        Err(_) => Vec::new(),
    };
    let of = |field: Field| match except.iter().find(|(key, _)| key.as_str() == field.key()) {
        Some((_, other)) => other.as_document().and_then(version),
        None => Some(base.clone()),
    };
    let fields = Field::ALL.into_iter().filter(|field| field.group() == group);
    fields.filter_map(|field| of(field).map(|version| (field, version))).collect()
}

fn version(doc: &RawDocument) -> Option<Version> {
    let (mut at, mut rank, mut tie) = (None, None, None);
    for (key, value) in entries(doc) {
        match key.as_str() {
            "t" => at = micros(value),
            "r" => rank = integer(value).and_then(rank_of),
            "i" => tie = value.as_str(),
            _ => {}
        }
    }
    Some(Version { at: at?, rank: rank?, tie: tie?.into() })
}

fn rank_of(code: i64) -> Option<Rank> {
    match code {
        0 => Some(Rank::Provisional),
        1 => Some(Rank::Event),
        2 => Some(Rank::Snapshot),
        3 => Some(Rank::Receipt),
        _ => None,
    }
}

/// Decodes a value under the key of its field.
fn shown_value(field: Field, value: RawBsonRef<'_>) -> Option<Value> {
    match value {
        RawBsonRef::Null => Some(Value::Null),
        RawBsonRef::Boolean(flag) => Some(Value::Flag(flag)),
        RawBsonRef::String(text) => Some(Value::from(text)),
        RawBsonRef::Array(list) if field == Field::Organizations => {
            organizations(list).map(Value::Organizations)
        }
        RawBsonRef::Array(list) => identities(list).map(Value::Identities),
        _ => None,
    }
}

/// A value that stands in `kinsync.held`.
fn held_value(value: RawBsonRef<'_>) -> Option<Value> {
    let doc = match value {
        RawBsonRef::Null => return Some(Value::Null),
        RawBsonRef::Boolean(flag) => return Some(Value::Flag(flag)),
        RawBsonRef::Int64(_) | RawBsonRef::Double(_) => return micros(value).map(Value::Time),
        RawBsonRef::String(text) => return Some(Value::from(text)),
        other => other.as_document()?,
    };
    let (tag, list) = entries(doc).next()?;
    let list = list.as_array()?;
    match tag.as_str() {
        "organizations" => organizations(list).map(Value::Organizations),
        "codes" => Some(Value::Codes(texts(list))),
        "identities" => identities(list).map(Value::Identities),
        _ => None,
    }
}

fn organizations(list: &RawArray) -> Option<Vec<Organization>> {
    let one = |doc: &RawDocument| {
        let list = |key: &str| doc.get_array(key).ok().map(texts);
        Some(Organization {
            code: doc.get_str("code").ok()?.to_owned(),
            roles: list("roles"),
            permissions: list("permissions"),
        })
    };
    items(list).map(|item| item.as_document().and_then(one)).collect()
}

fn identities(list: &RawArray) -> Option<Vec<Identity>> {
    let one = |doc: &RawDocument| {
        let text = |key: &str| doc.get_str(key).ok().map(ToOwned::to_owned);
        Some(Identity { kind: text("kind")?, identity: text("identity") })
    };
    items(list).map(|item| item.as_document().and_then(one)).collect()
}

/// The texts of a list, in order or as a set.
fn texts<T: FromIterator<String>>(list: &RawArray) -> T {
    items(list).filter_map(|item| item.as_str().map(ToOwned::to_owned)).collect()
}

fn entries(doc: &RawDocument) -> impl Iterator<Item = (&CStr, RawBsonRef<'_>)> {
    doc.iter().map_while(Result::ok)
}

fn items(list: &RawArray) -> impl Iterator<Item = RawBsonRef<'_>> {
    list.into_iter().map_while(Result::ok)
}

/// An integer, also one that a shell has rewritten as a shorter one.
fn integer(value: RawBsonRef<'_>) -> Option<i64> {
    match value {
        RawBsonRef::Int64(number) => Some(number),
        RawBsonRef::Int32(number) => Some(number.into()),
        _ => None,
    }
}

/// Also as a double: what the driver of Node makes of an instant when an application replaces a document.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "checked by the way back")]
fn micros(value: RawBsonRef<'_>) -> Option<Micros> {
    match value {
        RawBsonRef::Double(number) => {
            Some(number as i64).filter(|whole| (*whole as f64).total_cmp(&number).is_eq()).map(Micros)
        }
        value => integer(value).map(Micros),
    }
}
