//! Derives the state of a user from the entries of the log.

use std::collections::{HashMap, HashSet};

use kinsync_core::{Directory, Micros, Source, UserId, UserState, Version};

use crate::{
    decode,
    log_entry::{LogEntry, LogSource, kind},
    store::{DamagedEntry, Row},
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

/// Versions of the values in the derived state and of those that they replaced, each with the id of an entry. A version in an
/// entry that was not joined explains no stored value.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins(HashMap<Version, String>);

impl Origins {
    /// Adds the versions in these entries. Decodes each once more: only users that differ pay for this, and very large ones.
    pub(super) fn add(&mut self, entries: &[LogEntry], latest: Micros) {
        for entry in entries {
            let Ok(Some(state)) = decode::state_of(entry, latest) else { continue };
            let versions: HashSet<Version> = state.versions().cloned().collect();
            self.0.extend(versions.into_iter().map(|version| (version, entry.id.clone())));
        }
    }

    /// Returns the id of an entry with this version.
    pub(super) fn entry(&self, version: &Version) -> Option<&String> {
        self.0.get(version)
    }

    /// Removes all versions but these.
    pub(super) fn retain(&mut self, versions: &HashSet<&Version>) {
        self.0.retain(|version, _| versions.contains(version));
    }
}

/// The entries of one user: those in memory, and the join of those that were released.
#[derive(Debug, Default)]
pub(super) struct Entries {
    loaded: Vec<LogEntry>,
    damaged: Vec<DamagedEntry>,
    released: u64,
    joined: UserState,
    is_observed: bool,
    newest: Option<(Version, Source)>,
    unreadable: Vec<String>,
    origins: Origins,
}

impl Entries {
    pub(super) fn add(&mut self, entries: impl IntoIterator<Item = LogEntry>) {
        self.loaded.extend(entries);
    }

    pub(super) fn add_damaged(&mut self, damaged: impl IntoIterator<Item = DamagedEntry>) {
        self.damaged.extend(damaged);
    }

    pub(super) fn damaged(&self) -> &[DamagedEntry] {
        &self.damaged
    }

    pub(super) fn count(&self) -> u64 {
        self.released + (self.loaded.len() + self.damaged.len()) as u64
    }

    /// Joins the entries in memory and drops them. Of their ids, those remain that explain a value of the row or of the join.
    pub(super) fn release(&mut self, row: &Row, latest: Micros) {
        self.join(latest);
        self.origins.add(&self.loaded, latest);
        let needed: HashSet<&Version> = row.state.versions().chain(self.joined.versions()).collect();
        self.origins.retain(&needed);
        self.released += self.loaded.len() as u64;
        self.loaded.clear();
    }

    /// Derives the state of the user from all entries. Called once.
    pub(super) fn derive(&mut self, row: &Row, latest: Micros) -> Derived {
        self.join(latest);
        let mut state = std::mem::take(&mut self.joined);
        state.last_seen = row.state.last_seen;
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
        let damaged = self.damaged.iter().map(|one| one.id.clone());
        let unusable = damaged.chain(std::mem::take(&mut self.unreadable)).collect();
        let source = self.newest.take().map(|(_, source)| source);
        let is_observed = self.is_observed;
        Derived { state, ended: UserState::default(), lockout, is_observed, source, unusable }
    }

    /// Returns the versions in the entries, each with the id of an entry.
    pub(super) fn origins(&self, latest: Micros) -> Origins {
        let mut origins = self.origins.clone();
        origins.add(&self.loaded, latest);
        origins
    }

    fn join(&mut self, latest: Micros) {
        for entry in &self.loaded {
            match decode::state_of(entry, latest) {
                Ok(Some(observed)) => {
                    self.is_observed = true;
                    self.joined = std::mem::take(&mut self.joined).join(observed);
                }
                Ok(None) => {}
                Err(_) => self.unreadable.push(entry.id.clone()),
            }
            if let Some((version, source)) = entry.version.as_ref().zip(entry.source.of_user())
                && self.newest.as_ref().is_none_or(|(known, _)| known <= version)
            {
                self.newest = Some((version.clone(), source));
            }
        }
    }
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
