//! What kinsync writes into a user document, for the comparison with an index or a validator.

use kinsync_core::{Field, ValueKind};

use super::super::keys::{Keys, METADATA};
use crate::store::DocumentKey;

/// In which documents a key is, and with which values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Presence {
    /// In every document, with a value of its own.
    Identifies,
    /// In every document; several may have the same value.
    Always,
    /// In some documents, each with a value of its own.
    Distinct,
    /// In some documents; several may have the same value.
    Shared,
    /// kinsync does not write it.
    Never,
}

/// A key and its values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct WrittenKey {
    pub(super) path: String,
    pub(super) presence: Presence,
    /// Type by its alias in `$type`.
    pub(super) kind: &'static str,
}

/// The keys that kinsync writes.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) keys: Vec<WrittenKey>,
    email: Option<String>,
}

impl Written {
    pub(super) fn by(keys: &Keys) -> Self {
        let of = |key: DocumentKey| {
            let (presence, kind) = nature(key);
            Some(WrittenKey { path: keys.dotted(key)?.to_owned(), presence, kind })
        };
        let metadata =
            WrittenKey { path: METADATA.to_owned(), presence: Presence::Identifies, kind: "object" };
        let written = DocumentKey::ALL.into_iter().filter_map(of).chain([metadata]).collect();
        Self { keys: written, email: keys.email().map(ToOwned::to_owned) }
    }

    /// Returns the key at this path, or the one that contains it.
    pub(super) fn key(&self, path: &str) -> Option<&WrittenKey> {
        self.keys.iter().find(|key| {
            path.strip_prefix(&*key.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }

    pub(super) fn presence(&self, path: &str) -> Presence {
        self.key(path).map_or(Presence::Never, |key| key.presence)
    }

    pub(super) fn is_array(&self, path: &str) -> bool {
        self.key(path).is_some_and(|key| key.kind == "array")
    }

    pub(super) fn is_scalar(&self, path: &str) -> bool {
        self.key(path).is_some_and(|key| key.kind != "array")
    }

    pub(super) fn is_email(&self, path: &str) -> bool {
        self.email.as_deref() == Some(path)
    }
}

fn nature(key: DocumentKey) -> (Presence, &'static str) {
    match key {
        DocumentKey::KindeId => (Presence::Identifies, "string"),
        DocumentKey::Field(field) => (presence(field), kind(field.value_kind())),
        DocumentKey::EmailConflict => (Presence::Distinct, "object"),
        DocumentKey::CreatedAt | DocumentKey::UpdatedAt => (Presence::Always, "date"),
        DocumentKey::LastSeenAt | DocumentKey::LastSignedInAt | DocumentKey::DeletedAt => {
            (Presence::Shared, "date")
        }
        DocumentKey::Source => (Presence::Always, "string"),
        DocumentKey::IsDeleted => (Presence::Always, "bool"),
    }
}

/// A field counts as one with values that several users may have, unless Kinde lets only one have them: then an examination reports a
/// unique index that can refuse a write.
fn presence(field: Field) -> Presence {
    match field {
        Field::Email | Field::Phone | Field::Username | Field::ProvidedId => Presence::Distinct,
        _ => Presence::Shared,
    }
}

fn kind(kind: ValueKind) -> &'static str {
    match kind {
        ValueKind::Text => "string",
        ValueKind::Flag => "bool",
        ValueKind::Time => "date",
        ValueKind::List => "array",
        ValueKind::Document => "object",
    }
}
