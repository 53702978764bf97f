//! The keys of a user document that kinsync writes, besides its sub-document `kinsync`.

use std::fmt;

use kinsync_core::Field;
use serde::{Deserialize, Serialize};

/// A key that kinsync writes. The settings may give it another name, move it below a sub-document, or switch it off.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum DocumentKey {
    KindeId,
    Field(Field),
    EmailConflict,
    CreatedAt,
    UpdatedAt,
    Source,
    LastSeenAt,
    LastSignedInAt,
    IsDeleted,
    DeletedAt,
}

impl DocumentKey {
    /// All keys. The position of a key is stored in each document ([`KeySet`]): append only.
    pub const ALL: [Self; 21] = [
        Self::KindeId,
        Self::Field(Field::Email),
        Self::Field(Field::FirstName),
        Self::Field(Field::LastName),
        Self::Field(Field::Phone),
        Self::Field(Field::Username),
        Self::Field(Field::IsSuspended),
        Self::Field(Field::IsPasswordResetRequested),
        Self::Field(Field::Organizations),
        Self::Field(Field::Picture),
        Self::Field(Field::EmailVerified),
        Self::Field(Field::ProvidedId),
        Self::Field(Field::Identities),
        Self::EmailConflict,
        Self::CreatedAt,
        Self::UpdatedAt,
        Self::Source,
        Self::LastSeenAt,
        Self::LastSignedInAt,
        Self::IsDeleted,
        Self::DeletedAt,
    ];

    /// The key of the email address.
    pub const EMAIL: Self = Self::Field(Field::Email);

    /// Returns the name, which is the key in a document unless the settings map it.
    pub fn name(self) -> &'static str {
        match self {
            Self::KindeId => "kindeId",
            Self::Field(field) => field.key(),
            Self::EmailConflict => "emailConflict",
            Self::CreatedAt => "createdAt",
            Self::UpdatedAt => "updatedAt",
            Self::Source => "source",
            Self::LastSeenAt => "lastSeenAt",
            Self::LastSignedInAt => "lastSignedInAt",
            Self::IsDeleted => "isDeleted",
            Self::DeletedAt => "deletedAt",
        }
    }

    /// Returns the key with this [`Self::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.name() == name)
    }

    /// Returns the field of the state that the key shows, if it shows one.
    pub fn field(self) -> Option<Field> {
        match self {
            Self::Field(field) => Some(field),
            _ => None,
        }
    }

    fn bit(self) -> u32 {
        let place = Self::ALL.iter().position(|key| *key == self);
        // `createdOn` and the codes of a scan have no key of their own.
        place.map_or(0, |place| 1 << place)
    }
}

impl fmt::Display for DocumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<DocumentKey> for &'static str {
    fn from(key: DocumentKey) -> Self {
        key.name()
    }
}

impl TryFrom<String> for DocumentKey {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::from_name(&name).ok_or_else(|| format!("`{name}` is not a key of a user document"))
    }
}

/// A set of keys, stored in a document as one number.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct KeySet(u32);

impl KeySet {
    pub(crate) fn from_bits(bits: i64) -> Self {
        Self(u32::try_from(bits).unwrap_or_default())
    }

    pub(crate) fn bits(self) -> i64 {
        self.0.into()
    }

    /// Returns whether the set contains a key.
    pub fn contains(self, key: DocumentKey) -> bool {
        self.0 & key.bit() != 0
    }

    /// Returns whether the set contains no key.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn insert(&mut self, key: DocumentKey) {
        self.0 |= key.bit();
    }

    pub(crate) fn remove(&mut self, key: DocumentKey) {
        self.0 &= !key.bit();
    }

    /// Iterates over the keys in the order of [`DocumentKey::ALL`].
    pub fn iter(self) -> impl Iterator<Item = DocumentKey> {
        DocumentKey::ALL.into_iter().filter(move |key| self.contains(*key))
    }
}

impl FromIterator<DocumentKey> for KeySet {
    fn from_iter<T: IntoIterator<Item = DocumentKey>>(keys: T) -> Self {
        let mut set = Self::default();
        keys.into_iter().for_each(|key| set.insert(key));
        set
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(DocumentKey::name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_positions_that_documents_store_do_not_change() {
        let names = DocumentKey::ALL.map(DocumentKey::name).join(" ");
        let stored = "kindeId email firstName lastName phone username isSuspended isPasswordResetRequested organizations \
                      picture emailVerified providedId identities emailConflict createdAt updatedAt source lastSeenAt \
                      lastSignedInAt isDeleted deletedAt";
        assert!(names.starts_with(stored), "append new keys: {names}");
    }

    #[test]
    fn every_field_that_a_document_shows_has_a_key() {
        let hidden = [Field::CreatedOn, Field::OrganizationCodes];
        for field in Field::ALL.into_iter().filter(|field| !hidden.contains(field)) {
            assert_eq!(DocumentKey::from_name(field.key()), Some(DocumentKey::Field(field)));
        }
    }

    #[test]
    fn a_set_survives_as_a_number() {
        let set = KeySet::from_iter([DocumentKey::EMAIL, DocumentKey::DeletedAt]);
        assert_eq!(KeySet::from_bits(set.bits()), set);
        assert_eq!(set.iter().collect::<Vec<_>>(), [DocumentKey::EMAIL, DocumentKey::DeletedAt]);
        assert_eq!(KeySet::from_bits(-1), KeySet::default());
    }
}
