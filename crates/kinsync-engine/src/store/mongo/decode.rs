//! Decodes user documents into rows: the inverse of [`super::encode`].
//!
//! The state comes from the sub-document `kinsync` alone. Other keys decide only whether the document shows the state, and
//! which values are the application's. A part of the sub-document that was edited into an invalid form counts as unknown, so
//! that the next event or scan repairs it; a sub-document in an unknown format is refused by name.

mod copy;
mod fault;

use std::collections::BTreeMap;

use bson::{
    Bson, Document, RawArray, RawDocument,
    raw::{CStr, RawBson, RawBsonRef},
};
use kinsync_core::{
    Directory, Field, FirstVersions, Identity, Micros, Organization, Rank, RowMetadata, Source, UserId,
    UserState, Value, Version,
};

use serde::de::DeserializeOwned;

use self::copy::Copy;
pub(super) use self::fault::{fault, kinde_ids};
use super::{
    encode::{FORMAT, shown_or_default},
    keys::{Keys, METADATA, Values},
    mappings::Known,
    view::Shown,
};
use crate::store::{DocumentKey, KeySet, RefusedKeys, Row, StoredDocument};

/// A document with the Kinde id of a user.
pub(super) enum Decoded {
    /// A document that kinsync wrote.
    Row(Row),
    /// A document of the application that kinsync has not written yet, as a row of revision 0.
    Unwritten(Row),
    /// A document written under a mapping that this process has not read.
    UnknownMapping,
}

impl Decoded {
    /// Returns the row of a document that kinsync wrote.
    pub(super) fn stored(self) -> Option<Row> {
        match self {
            Self::Row(row) => Some(row),
            Self::Unwritten(_) | Self::UnknownMapping => None,
        }
    }
}

/// Decodes a user document. Returns `None` for a document that kinsync can never write: see [`fault()`].
pub(super) fn document(doc: &RawDocument, known: &Known) -> Option<Decoded> {
    let metadata = doc.get_document(METADATA).map(Metadata::of).unwrap_or_default();
    let Some(written_under) = known.of(metadata.mapping) else { return Some(Decoded::UnknownMapping) };
    let is_written = metadata.revision > 0;
    let written_under = if is_written { written_under } else { &known.current };
    let values = written_under.values(doc);
    let id = values.of(DocumentKey::KindeId)?.as_str().and_then(|id| UserId::parse(id).ok())?;
    // A document with a revision in the known format has no fault, and most documents are such.
    let is_readable =
        is_written && metadata.format == Some(i64::from(FORMAT)) && metadata.directory != Copy::Unreadable;
    if !is_readable && fault(doc, known).is_some() {
        return None;
    }
    let keys = &*known.current;
    let (refused, pending, unshown) = (metadata.refused, metadata.pending_emails, metadata.is_unshown);
    let mut stored = StoredDocument { take_over: keys.take_over, ..StoredDocument::default() };
    if !is_written {
        let row = keys.unknown(id);
        stored.compare(&row, keys, &values);
        return Some(Decoded::Unwritten(Row { document: Some(Box::new(stored)), ..row }));
    }
    metadata.ownership(&mut stored);
    let mut row = Row {
        metadata: RowMetadata { lowercases_email: keys.lowercases_email, ..metadata.metadata() },
        revision: metadata.revision,
        pending_emails: pending.map(texts).unwrap_or_default(),
        refused: refused.map(refused_keys).unwrap_or_default(),
        has_unshown_memberships: unshown,
        state: metadata.state(&mut stored.newer_fields),
        ..Row::unknown(id)
    };
    if written_under.id == keys.id {
        stored.compare(&row, keys, &values);
    } else {
        stored.leave(&row, written_under, keys, &values);
        stored.compare(&row, keys, &keys.values(doc));
    }
    stored.refused = row.refused.clone();
    row.document = Some(Box::new(stored));
    row.is_recorded = row.needs_record();
    row.metadata.keeps_email = row.must_keep_email();
    Some(Decoded::Row(row))
}

/// Decodes the row of a document that kinsync wrote.
pub(super) fn row(doc: &RawDocument, known: &Known) -> Option<Row> {
    document(doc, known)?.stored()
}

/// Returns what a document without a Kinde id contains, for the row that it is linked to.
pub(super) fn unlinked(doc: &RawDocument, row: &Row, keys: &Keys) -> StoredDocument {
    let mut stored = StoredDocument { take_over: keys.take_over, ..StoredDocument::default() };
    stored.compare(row, keys, &keys.values(doc));
    // An empty text, which some schemas have as a default.
    stored.foreign.remove(&DocumentKey::KindeId);
    stored
}

impl StoredDocument {
    /// Compares the values of a document with those that its row shows.
    fn compare(&mut self, row: &Row, keys: &Keys, values: &Values<'_>) {
        for key in DocumentKey::ALL {
            let Some(path) = keys.dotted(key) else { continue };
            let value = values.of(key);
            if self.owned.contains(key) {
                let is_refused = row.refused.keys.contains_key(&key);
                let shown = if is_refused { Shown::Hidden } else { shown_or_default(row, keys, key) };
                // An application that keeps the time of its own changes under the same key means the same by it.
                let may_differ = self.unwritten.contains(key)
                    || key == DocumentKey::UpdatedAt
                    || (self.is_moving && key == DocumentKey::EMAIL && is_in_another_case(&shown, value));
                if !may_differ && !is_shown(&shown, value) {
                    self.edited.insert(key);
                }
            } else if self.moved.iter().any(|(moved, _)| moved == path) {
                // The value of another key, which the next write moves.
            } else if let Some(value) = value.and_then(|value| Bson::try_from(value).ok()) {
                self.foreign.insert(key, value);
            } else if self.kept.contains(key) {
                self.kept.remove(key);
                self.released.insert(key);
            }
        }
    }

    /// Releases keys that have another path in the current mapping. A value that the application changed stays where it is.
    fn leave(&mut self, row: &Row, former: &Keys, keys: &Keys, values: &Values<'_>) {
        self.is_moving = true;
        let mut row = row.clone();
        row.metadata.lowercases_email = former.lowercases_email;
        for key in DocumentKey::ALL.into_iter().filter(|key| former.dotted(*key) != keys.dotted(*key)) {
            let Some(path) = former.dotted(key) else { continue };
            if key == DocumentKey::KindeId {
                self.kinde_id_at = Some(path.to_owned());
            }
            let value = values.of(key);
            let is_ours =
                self.unwritten.contains(key) || is_shown(&shown_or_default(&row, former, key), value);
            if let Some(value) = value.and_then(|value| Bson::try_from(value).ok())
                && self.owned.contains(key)
                && is_ours
            {
                self.moved.push((path.to_owned(), value));
            }
            self.owned.remove(key);
            self.kept.remove(key);
            self.unwritten.remove(key);
        }
    }
}

fn is_shown(shown: &Shown, value: Option<RawBsonRef<'_>>) -> bool {
    match (shown, value) {
        (Shown::Value(shown), Some(value)) => shown.as_raw_bson_ref() == value,
        (Shown::Value(_), None) => false,
        (Shown::Hidden | Shown::Nothing, value) => value.is_none(),
    }
}

/// Returns whether a document shows an address as the settings wanted it before.
fn is_in_another_case(shown: &Shown, value: Option<RawBsonRef<'_>>) -> bool {
    match (shown, value.and_then(RawBsonRef::as_str)) {
        (Shown::Value(RawBson::String(shown)), Some(value)) => shown.to_lowercase() == value.to_lowercase(),
        _ => false,
    }
}

fn refused_keys(doc: &RawDocument) -> RefusedKeys {
    let mut refused = RefusedKeys::default();
    for (name, reason) in entries(doc) {
        refused.insert(name.as_str(), reason.as_str().unwrap_or_default());
    }
    refused
}

/// The decoded sub-document `kinsync`.
#[derive(Default)]
struct Metadata<'a> {
    format: Option<i64>,
    revision: i64,
    inserted_at: Micros,
    updated_at: Micros,
    holds_email: bool,
    held_by: Option<&'a str>,
    versions: Option<&'a RawArray>,
    at: Option<&'a RawDocument>,
    deleted: Option<Version>,
    erased: Option<Version>,
    confirmed: Option<Version>,
    first: FirstVersions,
    last_seen: Option<Micros>,
    last_signed_in: Option<Micros>,
    compared_since: Option<i64>,
    changed_after: Option<i64>,
    values: Option<&'a RawDocument>,
    source: Option<Source>,
    owned: KeySet,
    kept: KeySet,
    unwritten: KeySet,
    replaced: Option<&'a RawDocument>,
    refused: Option<&'a RawDocument>,
    mapping: i64,
    pending_emails: Option<&'a RawArray>,
    is_unshown: bool,
    /// An unreadable one must not count as empty: the document would show ids in place of keys.
    directory: Copy,
}

impl<'a> Metadata<'a> {
    fn of(doc: &'a RawDocument) -> Self {
        let mut metadata = Self::default();
        for (key, value) in entries(doc) {
            match key.as_str() {
                "format" => metadata.format = integer(value),
                "revision" => metadata.revision = integer(value).unwrap_or_default(),
                "insertedAt" => metadata.inserted_at = micros(value).unwrap_or_default(),
                "updatedAt" => metadata.updated_at = micros(value).unwrap_or_default(),
                "holdsEmail" => metadata.holds_email = value.as_bool().unwrap_or_default(),
                "heldBy" => metadata.held_by = value.as_str(),
                "versions" => metadata.versions = value.as_array(),
                "at" => metadata.at = value.as_document(),
                "deleted" => metadata.deleted = value.as_document().and_then(version),
                "erased" => metadata.erased = value.as_document().and_then(version),
                "confirmed" => metadata.confirmed = value.as_document().and_then(version),
                "firstEvent" => metadata.first.event = value.as_document().and_then(version),
                "firstRead" => metadata.first.read = value.as_document().and_then(version),
                "firstCreatedOn" => metadata.first.created_on = micros(value),
                "lastSeen" => metadata.last_seen = micros(value),
                "lastSignedIn" => metadata.last_signed_in = micros(value),
                "comparedSince" => metadata.compared_since = integer(value),
                "changedAfter" => metadata.changed_after = integer(value),
                "values" => metadata.values = value.as_document(),
                "source" => metadata.source = value.as_str().and_then(Source::from_name),
                "owned" => metadata.owned = key_set(value),
                "unwritten" => metadata.unwritten = key_set(value),
                "kept" => {
                    let names = value.as_array().map(texts::<Vec<String>>).unwrap_or_default();
                    metadata.kept = names.iter().filter_map(|name| DocumentKey::from_name(name)).collect();
                }
                "replaced" => metadata.replaced = value.as_document(),
                "refused" => metadata.refused = value.as_document(),
                "mapping" => metadata.mapping = micros(value).map_or(0, |number| number.0),
                "directory" => metadata.directory = Copy::of(value),
                "unshown" => metadata.is_unshown = true,
                "pendingEmails" => metadata.pending_emails = value.as_array(),
                _ => {}
            }
        }
        metadata
    }

    fn ownership(&self, stored: &mut StoredDocument) {
        stored.owned = self.owned;
        stored.kept = self.kept;
        stored.unwritten = self.unwritten;
        let replaced = self.replaced.into_iter().flat_map(entries);
        stored.replaced = replaced
            .filter_map(|(key, value)| {
                Some((DocumentKey::from_name(key.as_str())?, Bson::try_from(value).ok()?))
            })
            .collect();
    }

    fn metadata(&self) -> RowMetadata {
        RowMetadata {
            holds_email: self.holds_email,
            email_held_by: self.held_by.map(ToOwned::to_owned),
            inserted_at: self.inserted_at,
            updated_at: self.updated_at,
            source: self.source,
            compared_since: self.compared_since,
            changed_after: self.changed_after,
            ..RowMetadata::default()
        }
    }

    /// Decodes the state, and adds the fields of a newer kinsync to `newer`.
    fn state(self, newer: &mut BTreeMap<String, (Bson, Version)>) -> UserState {
        let mut state = UserState::default();
        let versions = self.versions.into_iter().flat_map(items);
        let versions: Vec<Option<Version>> =
            versions.map(|item| item.as_document().and_then(version)).collect();
        let positions: Vec<(&CStr, RawBsonRef<'_>)> = self.at.into_iter().flat_map(entries).collect();
        let version_of = |key: &CStr| {
            let (_, position) = positions.iter().find(|(known, _)| *known == key)?;
            versions.get(usize::try_from(integer(*position)?).ok()?)?.clone()
        };
        for (key, value) in self.values.into_iter().flat_map(entries) {
            let Some(version) = version_of(key) else { continue };
            if let Some(field) = Field::from_key(key.as_str()) {
                if let Some(value) = stored_value(value) {
                    state = state.with_register(field, version, value);
                }
            } else if let Ok(value) = Bson::try_from(value) {
                newer.insert(key.as_str().to_owned(), (value, version));
            }
        }
        UserState {
            fields: state.fields,
            deleted: self.deleted,
            erased: self.erased,
            confirmed: self.confirmed,
            first: self.first,
            last_seen: self.last_seen,
            last_signed_in: self.last_signed_in,
            directory: match self.directory {
                Copy::Readable(directory) => directory,
                // A fault of the document, which has no row.
                Copy::Unreadable => Directory::default(),
            },
        }
    }
}

fn key_set(value: RawBsonRef<'_>) -> KeySet {
    KeySet::from_bits(micros(value).map_or(0, |bits| bits.0))
}

pub(super) fn version(doc: &RawDocument) -> Option<Version> {
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

/// Decodes a value in `kinsync.values`.
fn stored_value(value: RawBsonRef<'_>) -> Option<Value> {
    let doc = match value {
        RawBsonRef::Null => return Some(Value::Null),
        RawBsonRef::Boolean(flag) => return Some(Value::Flag(flag)),
        RawBsonRef::Int64(_) | RawBsonRef::Double(_) => return micros(value).map(Value::Time),
        RawBsonRef::String(text) => return Some(Value::from(text)),
        other => other.as_document()?,
    };
    let (tag, list) = entries(doc).next()?;
    if tag.as_str() == "memberships" {
        return deserialized(list.as_document()?).map(Value::Memberships);
    }
    if tag.as_str() == "properties" {
        return deserialized(list.as_document()?).map(Value::Properties);
    }
    let list = list.as_array()?;
    match tag.as_str() {
        "organizations" => organizations(list).map(Value::Organizations),
        "codes" => Some(Value::Codes(texts(list))),
        "identities" => identities(list).map(Value::Identities),
        _ => None,
    }
}

fn deserialized<T: DeserializeOwned>(stored: &RawDocument) -> Option<T> {
    bson::deserialize_from_slice(stored.as_bytes()).ok().or_else(|| {
        let stored = Bson::Document(Document::try_from(stored).ok()?);
        bson::deserialize_from_bson(whole_numbers(stored)).ok()
    })
}

/// Replaces doubles by the integers that they were: a JavaScript driver writes every number as a double.
fn whole_numbers(value: Bson) -> Bson {
    match value {
        #[expect(clippy::cast_possible_truncation, reason = "an integer was stored")]
        Bson::Double(number) => Bson::Int64(number as i64),
        Bson::Array(list) => Bson::Array(list.into_iter().map(whole_numbers).collect()),
        Bson::Document(doc) => {
            Bson::Document(doc.into_iter().map(|(key, value)| (key, whole_numbers(value))).collect())
        }
        other => other,
    }
}

fn organizations(list: &RawArray) -> Option<Vec<Organization>> {
    let one = |doc: &RawDocument| {
        let list = |key: &str| doc.get_array(key).ok().map(texts);
        Some(Organization {
            roles: list("roles"),
            permissions: list("permissions"),
            is_suspended: doc.get_bool("isSuspended").ok(),
            ..Organization::new(doc.get_str("code").ok()?)
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
