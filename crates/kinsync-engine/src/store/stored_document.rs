//! What a user document contains beside the state of the user, as it was read.

use std::collections::BTreeMap;

use super::{DocumentKey, KeySet};

/// A value of the application. Only MongoDB has documents of an application.
#[cfg(feature = "mongodb")]
type Value = bson::Bson;
#[cfg(not(feature = "mongodb"))]
type Value = serde_json::Value;

/// Keys that an index or a validator of the application keeps out of a document, each with the reason. The store keeps their
/// values, and does not show them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RefusedKeys {
    /// Single keys.
    pub keys: BTreeMap<DocumentKey, String>,
    /// Why the document shows only whether the user is deleted or suspended, and keeps every other key as it was.
    pub all: Option<String>,
}

impl RefusedKeys {
    /// Returns whether no key is refused.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.all.is_none()
    }

    /// Returns each refused key by name, `*` for all, with the reason.
    pub fn reasons(&self) -> BTreeMap<String, String> {
        let keys = self.keys.iter().map(|(key, reason)| (key.name().to_owned(), reason.clone()));
        keys.chain(self.all.iter().map(|reason| (ALL_KEYS.to_owned(), reason.clone()))).collect()
    }

    #[cfg(feature = "mongodb")]
    pub(crate) fn insert(&mut self, name: &str, reason: &str) {
        if name == ALL_KEYS {
            self.all = Some(reason.to_owned());
        } else if let Some(key) = DocumentKey::from_name(name) {
            self.keys.insert(key, reason.to_owned());
        }
    }

    /// Returns whether the same keys are refused, for whatever reason.
    pub(crate) fn are_same_keys(&self, other: &Self) -> bool {
        self.all.is_some() == other.all.is_some() && self.keys.keys().eq(other.keys.keys())
    }
}

/// The name of all keys but the marks.
const ALL_KEYS: &str = "*";

/// Ownership of the keys in one document.
///
/// A key is kinsync's once kinsync has written a value there. A key with another value is the application's: kinsync neither
/// replaces nor removes it, unless the settings name the key in `take_over`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct StoredDocument {
    /// Keys with a value that kinsync wrote.
    pub(super) owned: KeySet,
    /// Keys with a value of the application that differed when kinsync had a value to show.
    pub(super) kept: KeySet,
    /// Keys that a rule of the application keeps out of the document.
    pub(super) refused: RefusedKeys,
    /// Owned keys that kinsync's last write left as they were.
    pub(super) unwritten: KeySet,
    /// Owned keys that the application changed or removed since.
    pub(super) edited: KeySet,
    /// Kept keys that the application removed: kinsync writes them again.
    pub(super) released: KeySet,
    /// Values under keys that are not kinsync's.
    pub(super) foreign: BTreeMap<DocumentKey, Value>,
    /// Values of the application that kinsync replaced by order of the settings.
    pub(super) replaced: BTreeMap<DocumentKey, Value>,
    /// Values and versions of fields of a newer kinsync. Each write keeps them.
    #[cfg(feature = "mongodb")]
    pub(super) newer_fields: BTreeMap<String, (Value, kinsync_core::Version)>,
    /// Whether the document was written under another mapping than that of the settings.
    pub(super) is_moving: bool,
    /// Former paths of values that kinsync wrote, with the values: the next write removes them.
    pub(super) moved: Vec<(String, Value)>,
    /// Path of the Kinde id, if it differs from that of the settings.
    pub(super) kinde_id_at: Option<String>,
    /// Keys under which kinsync may replace values of the application.
    pub(super) take_over: KeySet,
    /// Whether kinsync has written the document since it was read.
    pub(super) was_written: bool,
}

impl StoredDocument {
    /// Returns the keys of kinsync that the application changed or removed. The next write restores them.
    pub fn edited(&self) -> KeySet {
        self.edited
    }

    /// Returns the keys that a rule of the application kept out of the document when it was read.
    pub(crate) fn refused(&self) -> &RefusedKeys {
        &self.refused
    }

    /// Returns whether the document shows other values than the state.
    pub fn is_edited(&self) -> bool {
        !self.edited.is_empty() || !self.released.is_empty()
    }

    /// Returns whether the document has to be written without a new observation.
    pub fn is_outdated(&self) -> bool {
        self.is_edited() || self.is_moving
    }

    /// Marks the document as written since it was read.
    pub(super) fn written(&mut self) {
        self.was_written = true;
        self.edited = KeySet::default();
        self.released = KeySet::default();
        self.is_moving = false;
        // What the settings let kinsync replace is not shown any more.
        let take_over = self.take_over;
        self.foreign.retain(|key, _| !take_over.contains(*key));
    }

    /// Returns whether kinsync has not written the document since it was read.
    #[cfg(feature = "mongodb")]
    pub(super) fn is_current(&self) -> bool {
        !self.was_written
    }

    /// Returns the values of the application under kinsync's keys.
    pub fn values_of_the_application(&self) -> BTreeMap<String, serde_json::Value> {
        let values = self.foreign.iter().filter(|(key, _)| **key != DocumentKey::KindeId);
        values.map(|(key, value)| (key.name().to_owned(), json(value))).collect()
    }

    /// Returns the keys of kinsync under which the document has values of the application.
    #[cfg(feature = "mongodb")]
    pub(super) fn keys_of_the_application(&self) -> Vec<DocumentKey> {
        self.foreign.keys().copied().filter(|key| *key != DocumentKey::KindeId).collect()
    }

    /// Returns whether the document contains values of the application under kinsync's keys.
    #[cfg(feature = "mongodb")]
    pub(super) fn has_values_of_the_application(&self) -> bool {
        self.foreign.keys().any(|key| *key != DocumentKey::KindeId)
    }

    /// Returns whether the document shows another email address than the claimed one, and keeps it.
    pub(super) fn keeps_email(&self, claimed: Option<&str>) -> bool {
        let is_replaceable = self.take_over.contains(DocumentKey::EMAIL);
        let differs = |value: &Value| self.kept.contains(DocumentKey::EMAIL) || value.as_str() != claimed;
        !is_replaceable && self.foreign.get(&DocumentKey::EMAIL).is_some_and(differs)
    }
}

/// Converts a value of the application for readers of JSON.
#[cfg(feature = "mongodb")]
fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::DateTime(at) => at.try_to_rfc3339_string().map_or(serde_json::Value::Null, Into::into),
        Value::ObjectId(id) => id.to_hex().into(),
        Value::Array(list) => list.iter().map(json).collect(),
        Value::Document(doc) => doc.iter().map(|(key, value)| (key.clone(), json(value))).collect(),
        other => serde_json::to_value(other).unwrap_or_default(),
    }
}

#[cfg(not(feature = "mongodb"))]
fn json(value: &Value) -> serde_json::Value {
    value.clone()
}
