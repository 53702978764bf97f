//! The copy of what is known of the organizations, roles and permissions of a user.

use bson::{Bson, Document, raw::RawBsonRef};
use kinsync_core::Directory;

use super::whole_numbers;

/// The value of `kinsync.directory`.
#[derive(PartialEq)]
pub(super) enum Copy {
    Readable(Directory),
    Unreadable,
}

impl Default for Copy {
    fn default() -> Self {
        Self::Readable(Directory::default())
    }
}

impl Copy {
    pub(super) fn of(value: RawBsonRef<'_>) -> Self {
        let directory = || {
            let stored = whole_numbers(Bson::Document(Document::try_from(value.as_document()?).ok()?));
            bson::deserialize_from_bson(stored).ok()
        };
        directory().map_or(Self::Unreadable, Self::Readable)
    }
}
