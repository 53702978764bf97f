//! Part of a claimed batch, small enough to find out which entry fails.

use std::collections::{BTreeSet, HashSet};

use kinsync_core::{Micros, Observation, UserId};
use tracing::{Span, field::Empty};

use crate::{
    decode::{self, Decoded},
    directory::{Change, Kind, Named},
    erasure::subjects,
    log_entry::LogEntry,
    queue::{Claimed, EntryId},
    trace,
};

/// A claimed entry, decoded.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: EntryId,
    pub(super) decoded: Decoded,
    /// Whether the entry is about a user that was erased, or about no user and names one.
    pub(super) is_erased: bool,
    /// From the claim until the entry is acked, released or dead-lettered.
    pub(super) span: Span,
}

impl Item {
    /// Decodes a claimed entry.
    pub(super) fn new(claimed: Claimed, limit: Micros, batch: usize) -> Self {
        let Claimed { id, entry, .. } = claimed;
        let decoded = decode::decode(&entry, limit);
        let span = tracing::trace_span!(
            target: trace::TARGET, trace::APPLY,
            event_id = entry.event_id, r#type = decoded.event.kind, batch, outcome = Empty,
        );
        Self { id, decoded, is_erased: false, span }
    }

    /// The user that the entry would change.
    pub(super) fn user(&self) -> Option<&UserId> {
        let observations = self.decoded.observations.as_ref().ok()?;
        observations.first().map(|observation| &observation.user)
    }

    /// The ids of the users that the entry is about or, if it is about no user, all texts in it, which may be ids.
    pub(super) fn named_users(&self) -> HashSet<String> {
        match &self.decoded.event.user {
            Some(user) => HashSet::from([user.clone()]),
            None => subjects::strings(&self.decoded.event.payload),
        }
    }

    /// Returns whether the marker in the log is all that remains of the entry. An event of an organization, a role or a permission
    /// is applied, when its time has come.
    pub(super) fn ends_as_marker(&self) -> bool {
        let is_early = matches!(self.decoded.observations, Err(decode::Failure::InTheFuture { .. }));
        self.is_erased && (self.decoded.event.user.is_some() || !is_early)
    }

    /// The entry of the log.
    pub(super) fn logged(&self) -> LogEntry {
        if self.is_erased { self.decoded.event.marker() } else { self.decoded.event.clone() }
    }

    /// What fails when the entry fails: its user, or the entry itself where it changes no user.
    pub(super) fn subject(&self) -> &str {
        self.user().map_or(self.id.as_str(), UserId::as_str)
    }
}

/// Entries that are applied together.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) items: Vec<Item>,
    /// Attempts left before the piece is split.
    pub(super) attempts: u32,
    /// Whether its events are in the log.
    pub(super) is_logged: bool,
}

impl Piece {
    pub(super) fn new(items: Vec<Item>, attempts: u32) -> Self {
        Self { items, attempts, is_logged: false }
    }

    pub(super) fn observations(&self) -> impl Iterator<Item = Observation> {
        self.items.iter().filter_map(|item| item.decoded.observations.as_ref().ok()).flatten().cloned()
    }

    /// What the entries observe of organizations, roles and permissions.
    pub(super) fn changes(&self) -> Vec<Change> {
        self.items.iter().flat_map(|item| &item.decoded.changes).cloned().collect()
    }

    /// The organizations, roles and permissions that entries about users name.
    pub(super) fn named(&self) -> Vec<Named> {
        self.items.iter().flat_map(|item| &item.decoded.named).cloned().collect()
    }

    /// The roles with an event of their own. Events of users name roles too.
    pub(super) fn changed_roles(&self) -> BTreeSet<String> {
        let changes = self.items.iter().flat_map(|item| &item.decoded.changes);
        let is_own = |change: &&Change| {
            change.kind == Kind::Role
                && change.entry.newest().is_some_and(|version| !version.is_provisional())
        };
        changes.filter(is_own).map(|change| change.id.clone()).collect()
    }

    /// Whether a split would isolate nothing: all entries are about one user.
    pub(super) fn is_about_one(&self) -> bool {
        self.items.windows(2).all(|two| two[0].subject() == two[1].subject())
    }

    /// Both halves. The entries of one user stay together where they are the whole half.
    pub(super) fn split(mut self) -> [Self; 2] {
        self.items.sort_by(|one, other| one.subject().cmp(other.subject()));
        let second = self.items.split_off(self.items.len() / 2);
        [second, self.items].map(|items| Self { items, attempts: 1, is_logged: self.is_logged })
    }
}
