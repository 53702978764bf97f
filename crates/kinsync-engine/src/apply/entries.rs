//! Entries of the log for what a write of a row adds to its state.

use kinsync_core::{Micros, Observation, UserState, What};

use super::Delta;
use crate::{
    log_entry::{LogEntry, LogSource, kind, kind_of},
    store::Row,
};

/// Whether the log contains the observations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Logging {
    /// It does.
    Done,
    /// They are logged if they change a row.
    Due,
}

/// What a join adds besides the observations.
#[derive(Debug, Default)]
pub(super) struct Derived {
    /// Values that a complete scan proved.
    pub(super) proof: Option<UserState>,
    /// Ends of memberships in deleted organizations.
    pub(super) ended: UserState,
}

/// Returns the entries of a row that becomes `next`.
pub(super) fn of(
    row: &Row,
    next: &Row,
    delta: &Delta,
    derived: &Derived,
    is_compared: bool,
    now: Micros,
) -> Vec<LogEntry> {
    if !is_changed(row, &next.state) {
        return Vec::new();
    }
    let observed = delta.unlogged.iter().filter(|observation| is_news(row, delta, observation));
    let observed = observed.map(|one| LogEntry::of(one, kind_of(one.source, is_compared), now));
    let of_state = |(kind, state)| LogEntry::of_state(&row.id, kind, LogSource::Reconcile, state, now);
    let proof = derived.proof.as_ref().map(|proof| (kind::SCAN_PROOF, proof));
    let ended = Some(&derived.ended).filter(|ended| **ended != UserState::default());
    let ended = ended.map(|ended| (kind::ORGANIZATION_DELETED, ended));
    observed.chain(proof.into_iter().chain(ended).map(of_state)).collect()
}

/// Returns whether a row with this state differs from the stored one in more than `last_seen`.
pub(super) fn is_changed(row: &Row, next: &UserState) -> bool {
    row.revision == 0 || !next.eq_ignoring_last_seen(&row.state)
}

/// Returns whether an observation changes the row. A request alone only makes a missing row.
fn is_news(row: &Row, delta: &Delta, observation: &Observation) -> bool {
    if row.revision == 0 {
        let is_request = |one: &Observation| matches!(one.what, What::Seen(_));
        return !is_request(observation) || delta.unlogged.iter().all(is_request);
    }
    !row.state.clone().observe(observation).eq_ignoring_last_seen(&row.state)
}
