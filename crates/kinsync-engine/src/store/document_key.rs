//! The keys of a user document that kinsync writes, besides its sub-document `kinsync`.

use std::fmt;

use kinsync_core::Field;
use serde::{Deserialize, Serialize};

/// A key that kinsync writes. The settings may rename it, move it below a sub-document, or switch it off.
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
    /// The keys that show no field.
    const OTHERS: [Self; 9] = [
        Self::KindeId,
        Self::EmailConflict,
        Self::CreatedAt,
        Self::UpdatedAt,
        Self::Source,
        Self::LastSeenAt,
        Self::LastSignedInAt,
        Self::IsDeleted,
        Self::DeletedAt,
    ];

    /// All keys: `kindeId`, those of the fields, then the others.
    pub const ALL: [Self; Self::OTHERS.len() + Field::ALL.len() - 2] = {
        let mut all = [Self::KindeId; _];
        let (mut next, mut at) = (1, 0);
        while at < Field::ALL.len() {
            if Self::is_shown(Field::ALL[at]) {
                all[next] = Self::Field(Field::ALL[at]);
                next += 1;
            }
            at += 1;
        }
        at = 1;
        while at < Self::OTHERS.len() {
            all[next] = Self::OTHERS[at];
            (next, at) = (next + 1, at + 1);
        }
        all
    };

    /// Returns whether a field has a key: `createdOn` is shown as `createdAt`, and the codes of a scan in `organizations`.
    const fn is_shown(field: Field) -> bool {
        !matches!(field, Field::CreatedOn | Field::OrganizationCodes)
    }

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

    /// The bit of the key in a [`KeySet`]. Documents store it: both lists are append only.
    fn bit(self) -> u64 {
        let place = match self {
            Self::Field(field) if !Self::is_shown(field) => None,
            Self::Field(field) => Field::ALL.iter().position(|known| *known == field).map(|place| place + 16),
            _ => Self::OTHERS.iter().position(|known| *known == self),
        };
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
pub struct KeySet(u64);

impl KeySet {
    #[cfg(any(feature = "mongodb", test))]
    pub(crate) fn from_bits(bits: i64) -> Self {
        Self(u64::try_from(bits).unwrap_or_default())
    }

    #[cfg(any(feature = "mongodb", test))]
    pub(crate) fn bits(self) -> i64 {
        self.0.cast_signed()
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

    #[cfg(any(feature = "mongodb", test))]
    pub(crate) fn remove(&mut self, key: DocumentKey) {
        self.0 &= !key.bit();
    }

    /// Returns the bits of keys of a newer kinsync.
    #[cfg(any(feature = "mongodb", test))]
    pub(crate) fn unknown(self) -> Self {
        let known = Self::from_iter(DocumentKey::ALL);
        Self(self.0 & !known.0)
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
    fn the_bits_that_documents_store_do_not_change() {
        let stored =
            "kindeId emailConflict createdAt updatedAt source lastSeenAt lastSignedInAt isDeleted deletedAt";
        for (bit, name) in (0..).zip(stored.split(' ')) {
            assert_eq!(DocumentKey::from_name(name).map(DocumentKey::bit), Some(1 << bit), "{name}");
        }
        let stored = "email firstName lastName phone username isSuspended isPasswordResetRequested organizations picture \
                      emailVerified createdOn providedId identities organizationCodes";
        for (bit, name) in (16..).zip(stored.split(' ')) {
            let field = Field::from_key(name).expect("no field was removed");
            let expected = if DocumentKey::is_shown(field) { 1 << bit } else { 0 };
            assert_eq!(DocumentKey::Field(field).bit(), expected, "{name}");
        }
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
