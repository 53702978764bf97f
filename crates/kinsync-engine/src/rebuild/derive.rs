//! Derives the state of a user from the entries of the log.

use kinsync_core::{Directory, Micros, Source, UserId, UserState, Version};

use super::Entries;
use crate::{
    decode,
    log_entry::{LogEntry, LogSource, kind},
    store::Row,
};

/// The state of a user, derived from the log.
#[derive(Debug)]
pub(super) struct Derived {
    /// The join of the entries, with the time of the last request from the row.
    pub(super) state: UserState,
    /// Ends of memberships that follow from the directory and are not in the log.
    ended: UserState,
    /// A deletion or a suspension that the store contains without a document, and that is not in the log.
    lockout: UserState,
    /// Whether an entry observes the user.
    pub(super) is_observed: bool,
    /// Source of the newest observation.
    pub(super) source: Option<Source>,
    /// Why entries could not be used. The user must not be written then.
    pub(super) unusable: Vec<String>,
}

/// Joins the entries of a user.
pub(super) fn derive(row: &Row, entries: &Entries, latest: Micros) -> Derived {
    let mut state = UserState { last_seen: row.state.last_seen, ..UserState::default() };
    let mut unusable: Vec<String> = entries.damaged.iter().map(|one| one.id.clone()).collect();
    let mut is_observed = false;
    let mut newest: Option<(&Version, Source)> = None;
    for entry in &entries.entries {
        match decode::state_of(entry, latest) {
            Ok(Some(observed)) => {
                is_observed = true;
                state = state.join(observed);
            }
            Ok(None) => {}
            Err(_) => unusable.push(entry.id.clone()),
        }
        if let Some((version, source)) = entry.version.as_ref().zip(entry.source.of_user())
            && newest.is_none_or(|(known, _)| known <= version)
        {
            newest = Some((version, source));
        }
    }
    let mut lockout = UserState::default();
    // Without a document, the store knows no more of a user than the deletion and the suspension. They outlive both the
    // document and the log.
    if row.revision == 0 {
        let joined = state.clone().join(row.state.clone());
        if joined != state {
            lockout.clone_from(&row.state);
        }
        state = joined;
    }
    // A copy of other records, which a log entry never determines.
    state.directory = row.state.directory.clone();
    let source = newest.map(|(_, source)| source);
    Derived { state, ended: UserState::default(), lockout, is_observed, source, unusable }
}

impl Derived {
    /// Returns the state with what documents show of organizations, roles and permissions: the records themselves, or the copy
    /// in the row where a record cannot be read.
    pub(super) fn with_directory(mut self, row: &Row, directory: &Directory) -> Self {
        self.state.directory = Directory::default();
        if !directory.has_all(&self.state.references()) {
            self.state.directory = row.state.directory.clone();
        }
        self.ended = self.state.ended_by(directory);
        self.state = self.state.with_directory(directory);
        self
    }

    /// Returns the entries of what follows from the directory and from a lockout, unless the log contains them.
    pub(super) fn unlogged(&self, user: &UserId, now: Micros) -> impl Iterator<Item = LogEntry> {
        let ended = (kind::ORGANIZATION_DELETED, LogSource::Reconcile, &self.ended);
        let lockout = (kind::SNAPSHOT, LogSource::Kinsync, &self.lockout);
        let is_some = |(_, _, state): &(_, _, &UserState)| **state != UserState::default();
        let entry = move |(kind, source, state)| LogEntry::of_state(user, kind, source, state, now);
        [ended, lockout].into_iter().filter(is_some).map(entry)
    }
}
