//! Encodes a row as a user document: readable fields at the top level, metadata in `kinsync`.
//!
//! Each value is stored once. If the document shows the value of the register unchanged, it is stored under the key of the
//! field. Otherwise (an address that another document shows, memberships merged from two sources, nothing shown) it is stored
//! in `kinsync.held`.
//! [`super::decode`] is the inverse.

use bson::{
    DateTime, RawArrayBuf, RawDocumentBuf,
    raw::{CStr, CString, RawBsonRef, cstr},
};
use kinsync_core::{Field, Group, Identity, Micros, Organization, Rank, UserState, Value, Version};

use super::keys::Keys;
use crate::store::Row;

/// The greatest instant of a JavaScript date (ECMAScript 2024, 21.4.1.1), in milliseconds. Dates are for readers; the exact
/// instant is in `kinsync`.
const MAX_DATE: i64 = 8_640_000_000_000_000;

/// Keys that a write sets and removes. All other keys belong to the application.
pub(super) struct Encoded {
    /// Keys and values to set.
    pub(super) set: RawDocumentBuf,
    /// Keys to remove.
    pub(super) unset: RawDocumentBuf,
}

/// Encodes the row as its next revision. `set` starts with the content of `start`.
pub(super) fn row(row: &Row, keys: &Keys, writer: i64, start: RawDocumentBuf) -> Encoded {
    let mut encoded = Encoded { set: start, unset: RawDocumentBuf::new() };
    let held = encoded.fields(row, keys);
    encoded.facts(row);
    encoded.set.append(cstr!("kinsync"), metadata(row, writer, &held));
    encoded
}

/// Encodes of a row only whether the user is deleted or suspended. Every value lives in
/// `kinsync.held`, where [`super::decode`] finds it; what the document shows otherwise stays.
pub(super) fn marks(row: &Row, keys: &Keys, writer: i64, start: RawDocumentBuf) -> Encoded {
    let mut encoded = Encoded { set: start, unset: RawDocumentBuf::new() };
    let mut held = RawDocumentBuf::new();
    for field in Field::ALL {
        if let Some(value) = row.state.value(field) {
            append_held(&mut held, &key_of(field), value);
        }
    }
    let suspended = row.state.value(Field::IsSuspended);
    if let (Some(key), Some(_)) = (keys.of(Field::IsSuspended), suspended) {
        encoded.plain(row, key, suspended);
    }
    encoded.marks(row);
    encoded.set.append(cstr!("kinsync"), metadata(row, writer, &held));
    encoded
}

impl Encoded {
    /// Writes the fields, and returns the values that the document does not show unchanged.
    fn fields(&mut self, row: &Row, keys: &Keys) -> RawDocumentBuf {
        let mut held = RawDocumentBuf::new();
        for field in Field::ALL {
            let observed = row.state.value(field);
            let shows_it = match (field, keys.of(field)) {
                (Field::Email, Some(key)) => self.email(row, key),
                (Field::Organizations, Some(key)) => self.organizations(row, key),
                // Omitted like a null address.
                (Field::Phone | Field::Username, Some(key)) if observed == Some(&Value::Null) => {
                    self.unset.append(key, true);
                    false
                }
                (_, Some(key)) => self.plain(row, key, observed),
                (_, None) => false,
            };
            if let (Some(value), false) = (observed, shows_it) {
                append_held(&mut held, &key_of(field), value);
            }
        }
        held
    }

    fn email(&mut self, row: &Row, key: &CStr) -> bool {
        match row.state.value(Field::Email) {
            Some(Value::Text(text)) if row.state.shown_email(&row.metadata).is_some() => {
                self.set.append(key, &**text);
            }
            // Unknown: the document of a live user may have an address from the application.
            // Null is omitted: a unique index of the application would treat it as an address.
            None if row.state.is_live() => return true,
            _ => {
                self.unset.append(key, true);
                return false;
            }
        }
        true
    }

    fn organizations(&mut self, row: &Row, key: &CStr) -> bool {
        let observed = row.state.value(Field::Organizations);
        if observed.is_none() && row.state.value(Field::OrganizationCodes).is_none() {
            return self.plain(row, key, None);
        }
        let shown = row.state.organizations().unwrap_or_default();
        self.set.append(key, organizations(&shown));
        matches!(observed, Some(Value::Organizations(list)) if *list == shown)
    }

    fn plain(&mut self, row: &Row, key: &CStr, observed: Option<&Value>) -> bool {
        match observed {
            Some(Value::Null) => self.set.append(key, RawBsonRef::Null),
            Some(Value::Flag(flag)) => self.set.append(key, *flag),
            Some(Value::Text(text)) => self.set.append(key, &**text),
            Some(Value::Identities(list)) => self.set.append(key, identities(list)),
            // Absent is not null: an unknown field stays unchanged. The document of a deleted user keeps no field that the
            // state lacks, so that erasure works.
            None if row.state.is_live() => {}
            _ => {
                self.unset.append(key, true);
                return false;
            }
        }
        true
    }

    /// Writes the derived keys beside the fields, for readers and their indexes.
    fn facts(&mut self, row: &Row) {
        let (state, metadata) = (&row.state, &row.metadata);
        match state.email_conflict(metadata) {
            Some(conflict) => {
                let mut doc = RawDocumentBuf::new();
                doc.append(cstr!("email"), conflict.email.as_str());
                if let Some(holder) = &conflict.held_by {
                    doc.append(cstr!("heldBy"), holder.as_str());
                }
                self.set.append(cstr!("emailConflict"), doc);
            }
            None => self.unset.append(cstr!("emailConflict"), true),
        }
        self.set.append(cstr!("createdAt"), date(state.created_at(metadata)));
        self.date_if_any(cstr!("lastSeenAt"), state.last_seen);
        self.date_if_any(cstr!("lastSignedInAt"), state.last_signed_in);
        self.marks(row);
    }

    fn marks(&mut self, row: &Row) {
        let (state, metadata) = (&row.state, &row.metadata);
        self.set.append(cstr!("updatedAt"), date(metadata.updated_at));
        self.set.append(cstr!("isDeleted"), !state.is_live());
        self.date_if_any(cstr!("deletedAt"), state.deleted_at());
        match metadata.source {
            Some(source) => self.set.append(cstr!("source"), source.as_str()),
            None => self.unset.append(cstr!("source"), true),
        }
    }

    fn date_if_any(&mut self, key: &CStr, at: Option<Micros>) {
        match at {
            Some(at) => self.set.append(key, date(at)),
            None => self.unset.append(key, true),
        }
    }
}

/// Encodes the sub-document `kinsync`.
fn metadata(row: &Row, writer: i64, held: &RawDocumentBuf) -> RawDocumentBuf {
    let (state, metadata) = (&row.state, &row.metadata);
    let mut doc = RawDocumentBuf::new();
    doc.append(cstr!("revision"), row.revision + 1);
    doc.append(cstr!("writer"), writer);
    doc.append(cstr!("insertedAt"), metadata.inserted_at.0);
    doc.append(cstr!("updatedAt"), metadata.updated_at.0);
    doc.append(cstr!("holdsEmail"), metadata.holds_email);
    if let Some(holder) = &metadata.email_held_by {
        doc.append(cstr!("heldBy"), holder.as_str());
    }
    append_group(&mut doc, cstr!("event"), state, Group::Event);
    append_group(&mut doc, cstr!("scan"), state, Group::Scan);
    for (key, at) in [
        (cstr!("deleted"), &state.deleted),
        (cstr!("confirmed"), &state.confirmed),
        (cstr!("firstEvent"), &state.first.event),
        (cstr!("firstRead"), &state.first.read),
    ] {
        if let Some(at) = at {
            doc.append(key, version(at));
        }
    }
    if let Some(at) = state.first.created_on {
        doc.append(cstr!("firstCreatedOn"), at.0);
    }
    for (key, at) in [(cstr!("lastSeen"), state.last_seen), (cstr!("lastSignedIn"), state.last_signed_in)] {
        if let Some(at) = at {
            doc.append(key, at.0);
        }
    }
    for (key, comparison) in
        [(cstr!("comparedSince"), metadata.compared_since), (cstr!("changedAfter"), metadata.changed_after)]
    {
        if let Some(comparison) = comparison {
            doc.append(key, comparison);
        }
    }
    if !held.is_empty() {
        doc.append(cstr!("held"), held);
    }
    if !row.pending_emails.is_empty() {
        doc.append(cstr!("pendingEmails"), texts(row.pending_emails.iter()));
    }
    doc
}

/// Writes the most frequent version of the group and the exceptions: other versions, and null for an unknown field.
fn append_group(target: &mut RawDocumentBuf, key: &CStr, state: &UserState, group: Group) {
    let observed: Vec<(Field, &Version)> =
        state.fields_in(group).map(|(field, observed)| (field, &observed.version)).collect();
    let count = |version: &Version| observed.iter().filter(|(_, other)| *other == version).count();
    let Some(base) = observed.iter().map(|(_, version)| *version).max_by_key(|version| count(version)) else {
        return;
    };
    let mut doc = version(base);
    let mut except = RawDocumentBuf::new();
    for field in Field::ALL.into_iter().filter(|field| field.group() == group) {
        match observed.iter().find(|(known, _)| *known == field) {
            Some((_, at)) if *at == base => {}
            Some((_, at)) => except.append(key_of(field), version(at)),
            None => except.append(key_of(field), RawBsonRef::Null),
        }
    }
    if !except.is_empty() {
        doc.append(cstr!("x"), except);
    }
    target.append(key, doc);
}

fn version(version: &Version) -> RawDocumentBuf {
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

/// Writes a value that is not shown. Lists carry a tag of their type.
fn append_held(held: &mut RawDocumentBuf, key: &CStr, value: &Value) {
    let tagged = |tag: &CStr, list: &RawArrayBuf| {
        let mut doc = RawDocumentBuf::new();
        doc.append(tag, list);
        doc
    };
    match value {
        Value::Null => held.append(key, RawBsonRef::Null),
        Value::Flag(flag) => held.append(key, *flag),
        Value::Time(at) => held.append(key, at.0),
        Value::Text(text) => held.append(key, &**text),
        Value::Organizations(list) => held.append(key, tagged(cstr!("organizations"), &organizations(list))),
        Value::Codes(list) => held.append(key, tagged(cstr!("codes"), &texts(list.iter()))),
        Value::Identities(list) => held.append(key, tagged(cstr!("identities"), &identities(list))),
    }
}

fn organizations(list: &[Organization]) -> RawArrayBuf {
    let mut array = RawArrayBuf::new();
    for organization in list {
        let mut doc = RawDocumentBuf::new();
        doc.append(cstr!("code"), organization.code.as_str());
        for (key, list) in
            [(cstr!("roles"), &organization.roles), (cstr!("permissions"), &organization.permissions)]
        {
            if let Some(list) = list {
                doc.append(key, texts(list.iter()));
            }
        }
        array.push(doc);
    }
    array
}

fn identities(list: &[Identity]) -> RawArrayBuf {
    let mut array = RawArrayBuf::new();
    for identity in list {
        let mut doc = RawDocumentBuf::new();
        doc.append(cstr!("kind"), identity.kind.as_str());
        doc.append(cstr!("identity"), text_or_null(identity.identity.as_deref()));
        array.push(doc);
    }
    array
}

fn texts<'a>(list: impl Iterator<Item = &'a String>) -> RawArrayBuf {
    let mut array = RawArrayBuf::new();
    list.for_each(|text| array.push(text.as_str()));
    array
}

fn text_or_null(text: Option<&str>) -> RawBsonRef<'_> {
    text.map_or(RawBsonRef::Null, RawBsonRef::String)
}

/// Converts an instant to a date for readers.
pub(super) fn date(at: Micros) -> DateTime {
    DateTime::from_millis(at.as_millis().clamp(-MAX_DATE, MAX_DATE))
}

fn key_of(field: Field) -> CString {
    CString::try_from(field.key()).expect("the keys of fields contain no NUL")
}
