//! A stored user, as every store loads and writes it.

use std::{borrow::Cow, collections::BTreeSet};

use kinsync_core::{Field, RowMetadata, UserDocument, UserId, UserState, Value};

use super::{RefusedKeys, StoredDocument};

/// A stored user. Two rows are equal if they have the same state, whatever their documents contain beside it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Id of the user.
    pub id: UserId,
    /// State of the user.
    pub state: UserState,
    /// Metadata of the document.
    pub metadata: RowMetadata,
    /// Revision. Increases by one with each write of kinsync; 0 before the first.
    pub revision: i64,
    /// Addresses with a pending decision about their owner, caused by a change of this row.
    pub pending_emails: BTreeSet<String>,
    /// Keys that a rule of the application keeps out of the document.
    pub refused: RefusedKeys,
    /// Whether the collection of memberships may not show the memberships of this row. Only MongoDB has such a collection.
    pub has_unshown_memberships: bool,
    /// Whether kinsync's own collection has a record of the user, because the user is deleted or suspended, or was.
    pub is_recorded: bool,
    /// The document as it was read; `None` for a user without a document, and in a store without documents of an
    /// application.
    pub document: Option<Box<StoredDocument>>,
}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            id,
            state,
            metadata,
            revision,
            pending_emails,
            refused,
            has_unshown_memberships: _,
            is_recorded: _,
            document: _,
        } = self;
        (id, state, metadata) == (&other.id, &other.state, &other.metadata)
            && (revision, pending_emails) == (&other.revision, &other.pending_emails)
            && *refused == other.refused
    }
}

impl Eq for Row {}

impl Row {
    /// Returns the row of a user without observations that is not stored.
    pub fn unknown(id: UserId) -> Self {
        Self {
            id,
            state: UserState::default(),
            metadata: RowMetadata::default(),
            revision: 0,
            pending_emails: BTreeSet::new(),
            refused: RefusedKeys::default(),
            has_unshown_memberships: false,
            is_recorded: false,
            document: None,
        }
    }

    /// Returns the user from the state, with the values of the application that the document shows instead.
    pub fn document(&self) -> UserDocument {
        let kept = self.document.as_ref().map(|stored| stored.values_of_the_application());
        UserDocument {
            kept: kept.unwrap_or_default(),
            ..UserDocument::new(&self.id, &self.state, &self.metadata)
        }
    }

    /// Returns the email address for which this user competes with others, in the form in which the store shows it; `None` if
    /// the document keeps an address of the application.
    pub fn claimed_email(&self) -> Option<Cow<'_, str>> {
        self.state.stored_email(&self.metadata).filter(|_| !self.metadata.keeps_email)
    }

    /// Returns whether the document shows other values than the state.
    pub fn is_edited(&self) -> bool {
        self.document.as_ref().is_some_and(|stored| stored.is_edited())
    }

    /// Returns whether the document has to be written without a new observation.
    pub fn is_outdated(&self) -> bool {
        self.document.as_ref().is_some_and(|stored| stored.is_outdated())
    }

    /// Returns whether the document keeps an address of the application instead of the claimed one.
    pub(crate) fn must_keep_email(&self) -> bool {
        self.document
            .as_ref()
            .is_some_and(|stored| stored.keeps_email(self.state.stored_email(&self.metadata).as_deref()))
    }

    /// Returns whether the user is suspended, or is or was deleted.
    pub(crate) fn needs_record(&self) -> bool {
        self.state.deleted.is_some() || self.state.value(Field::IsSuspended) == Some(&Value::Flag(true))
    }

    /// Marks the row as written: the store reads the document again before the next write.
    pub(crate) fn written(&mut self) {
        self.is_recorded |= self.needs_record();
        self.revision += 1;
        if let Some(document) = &mut self.document {
            document.written();
        }
    }

    /// Returns the document as of the revision of this row.
    #[cfg(feature = "mongodb")]
    pub(crate) fn current_document(&self) -> Option<&StoredDocument> {
        self.document.as_deref().filter(|document| document.is_current())
    }
}
