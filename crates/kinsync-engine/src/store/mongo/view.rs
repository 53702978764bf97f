//! What a user document shows of a row under each key. Pure.
//!
//! One rule for every key: what no source has observed is absent, and so is a text, flag or date that Kinde reports as null. A
//! list that Kinde reports as null or empty is an empty list.

use bson::{
    DateTime, RawArrayBuf, RawDocumentBuf,
    raw::{CString, RawBson, RawBsonRef, cstr},
};
use kinsync_core::{Field, Identity, Micros, Organization, Properties, Value};

use crate::store::{DocumentKey, Row};

/// The greatest instant of a JavaScript date (ECMAScript 2024, 21.4.1.1), in milliseconds. Dates are for readers; the exact
/// instant is in `kinsync`.
const MAX_DATE: i64 = 8_640_000_000_000_000;

/// What a document shows under one key.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Shown {
    /// This value.
    Value(RawBson),
    /// No value, and none of the application either: an address that another document shows, or that a deleted user had.
    Hidden,
    /// Nothing is known to be shown.
    Nothing,
}

impl<T: Into<RawBson>> From<Option<T>> for Shown {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Nothing, |value| Self::Value(value.into()))
    }
}

/// Returns what the document of a row shows under a key.
pub(super) fn shown(row: &Row, key: DocumentKey) -> Shown {
    let (state, metadata) = (&row.state, &row.metadata);
    match key {
        DocumentKey::KindeId => Shown::Value(text(row.id.as_str())),
        DocumentKey::Field(Field::Email) => email(row),
        DocumentKey::Field(Field::Organizations) => {
            state.organizations().map(|list| organizations(&list)).into()
        }
        DocumentKey::Field(Field::Identities) => match state.value(Field::Identities) {
            Some(Value::Identities(list)) => Some(identities(list)).into(),
            observed => observed.map(|_| RawArrayBuf::new()).into(),
        },
        DocumentKey::Field(Field::Properties) => state.properties().map(properties).into(),
        DocumentKey::Field(field) => plain(state.value(field)),
        DocumentKey::EmailConflict => {
            let conflict = state.email_conflict(metadata).map(|conflict| {
                let mut doc = RawDocumentBuf::new();
                doc.append(cstr!("email"), conflict.email.as_str());
                if let Some(holder) = &conflict.held_by {
                    doc.append(cstr!("heldBy"), holder.as_str());
                }
                doc
            });
            conflict.into()
        }
        DocumentKey::CreatedAt => Some(date(state.created_at(metadata))).into(),
        DocumentKey::UpdatedAt => Some(date(metadata.updated_at)).into(),
        DocumentKey::Source => metadata.source.map(|source| text(source.as_str())).into(),
        DocumentKey::LastSeenAt => state.last_seen.map(date).into(),
        DocumentKey::LastSignedInAt => state.last_signed_in.map(date).into(),
        DocumentKey::IsDeleted => Some(!state.is_live()).into(),
        DocumentKey::DeletedAt => state.deleted_at().map(date).into(),
    }
}

fn email(row: &Row) -> Shown {
    let (state, metadata) = (&row.state, &row.metadata);
    match state.shown_email(metadata) {
        Some(email) => Shown::Value(text(&email)),
        None if state.is_live() && state.claimed_email().is_none() => Shown::Nothing,
        None => Shown::Hidden,
    }
}

fn plain(observed: Option<&Value>) -> Shown {
    match observed {
        Some(Value::Flag(flag)) => Shown::Value((*flag).into()),
        Some(Value::Text(value)) => Shown::Value(text(value)),
        _ => Shown::Nothing,
    }
}

fn text(value: &str) -> RawBson {
    RawBson::String(value.to_owned())
}

/// Converts an instant to a date for readers.
pub(super) fn date(at: Micros) -> DateTime {
    DateTime::from_millis(at.as_millis().clamp(-MAX_DATE, MAX_DATE))
}

pub(super) fn organizations(list: &[Organization]) -> RawArrayBuf {
    let mut array = RawArrayBuf::new();
    for organization in list {
        let mut doc = RawDocumentBuf::new();
        doc.append(cstr!("code"), organization.code.as_str());
        if let Some(name) = &organization.name {
            doc.append(cstr!("name"), name.as_str());
        }
        let lists =
            [(cstr!("roles"), &organization.roles), (cstr!("permissions"), &organization.permissions)];
        for (key, list) in lists {
            if let Some(list) = list {
                doc.append(key, texts(list.iter()));
            }
        }
        if let Some(is_suspended) = organization.is_suspended {
            doc.append(cstr!("isSuspended"), is_suspended);
        }
        if let Some(joined_on) = organization.joined_on {
            doc.append(cstr!("joinedOn"), date(joined_on));
        }
        array.push(doc);
    }
    array
}

/// A key that MongoDB does not accept in a sub-document is left out.
fn properties(properties: &Properties) -> RawDocumentBuf {
    let mut doc = RawDocumentBuf::new();
    let is_plain = |key: &str| !key.is_empty() && !key.starts_with('$') && !key.contains('.');
    for (key, value) in properties.values().filter(|(key, _)| is_plain(key)) {
        if let Ok(key) = CString::try_from(key) {
            doc.append(key, value);
        }
    }
    doc
}

pub(super) fn identities(list: &[Identity]) -> RawArrayBuf {
    let mut array = RawArrayBuf::new();
    for identity in list {
        let mut doc = RawDocumentBuf::new();
        doc.append(cstr!("kind"), identity.kind.as_str());
        let name = identity.identity.as_deref().map_or(RawBsonRef::Null, RawBsonRef::String);
        doc.append(cstr!("identity"), name);
        array.push(doc);
    }
    array
}

pub(super) fn texts<'a>(list: impl Iterator<Item = &'a String>) -> RawArrayBuf {
    let mut array = RawArrayBuf::new();
    list.for_each(|text| array.push(text.as_str()));
    array
}
