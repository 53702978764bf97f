//! The next state of a row: a join with a delta, and what follows from it for the metadata of the row.

use std::borrow::Cow;

use kinsync_core::{Micros, UserState};

use super::{
    Delta, Scans,
    entries::{Derived, is_changed},
};
use crate::{
    scan_watermark::{self, Recheck, StaleObservations},
    store::Row,
};

/// Result of a join.
pub(super) struct Next {
    /// The row to write, or `None` if the delta contains nothing new.
    pub(super) row: Option<Row>,
    /// Whether the user must be read again.
    pub(super) recheck: Recheck,
    pub(super) derived: Derived,
}

impl Next {
    fn unchanged(row: Option<Row>, recheck: Recheck) -> Self {
        Self { row, recheck, derived: Derived::default() }
    }
}

/// Joins a delta into a row. Pure.
pub(super) fn next(row: &Row, delta: &Delta, now: Micros, scans: &Scans<'_>) -> Next {
    let mut joined = row.state.clone().join(delta.state.clone());
    // Nothing that a scan proved is added to an erased user.
    let is_erased = joined.erased.is_some();
    if !is_erased {
        joined = joined.join(delta.derived.clone());
    }
    let ended = joined.ended_by(&scans.directory);
    let mut state = joined.with_directory(&scans.directory);
    let stale = if is_erased {
        StaleObservations::default()
    } else {
        scans.watermarks.classify(row, &delta.state, scans.reader(), now)
    };
    let comparison = scans.compared.and_then(|compared| compared.comparison_of(row));
    let comparison = comparison.filter(|_| stale.recheck == Recheck::No);
    if row.revision == 0 && delta.is_empty() {
        return Next::unchanged(None, stale.recheck);
    }
    if state == row.state && row.revision > 0 && !row.is_outdated() {
        let unmarked = comparison.filter(|_| !scan_watermark::is_compared(&row.metadata));
        let marked = |comparison| {
            let mut row = row.clone();
            scan_watermark::mark_compared(&mut row.metadata, comparison);
            row
        };
        return Next::unchanged(unmarked.map(marked), stale.recheck);
    }
    if let Some(proved) = &stale.proof {
        state = state.join(proved.clone());
    }
    let metadata = scans.watermarks.changed(row, &state, stale.recheck);
    let mut next = Row { state, metadata, ..row.clone() };
    if let Some(comparison) = comparison {
        scan_watermark::mark_compared(&mut next.metadata, comparison);
    }
    if row.revision == 0 {
        next.metadata.inserted_at = now;
    }
    // A new `last_seen` alone is no change of the user and must not trigger consumers of changes.
    let is_changed = is_changed(row, &next.state);
    if is_changed || row.is_edited() {
        next.metadata.updated_at = now;
    }
    // A change of an organization or a role that the user refers to is none of the user.
    if is_changed && !delta.is_empty() && !is_erased {
        next.metadata.source = Some(delta.source);
    }
    let next = with_owner_pending(row, next);
    let recheck = if next.state.needs_check() { Recheck::Yes } else { stale.recheck };
    Next { row: Some(next), recheck, derived: Derived { proof: stale.proof, ended } }
}

/// Returns the row with a mark for each address with an owner that the change from `row` may change.
pub(super) fn with_owner_pending(row: &Row, mut next: Row) -> Row {
    next.metadata.keeps_email = next.must_keep_email();
    let before = row.claimed_email().map(Cow::into_owned);
    let after = next.claimed_email().map(Cow::into_owned);
    if before != after {
        // Another user may have an email conflict about the former address.
        next.pending_emails.extend(before.filter(|_| row.metadata.holds_email));
        next.metadata.holds_email = after.is_some();
        next.metadata.email_held_by = None;
    } else if may_change_owner(&next.state, row) {
        next.pending_emails.extend(after);
    }
    next
}

/// Returns whether the owner of the user's address may change: a user without it became older or its address verified, or
/// the user that holds it became younger. The latter happens when `created_on` replaces the early version of a read.
fn may_change_owner(next: &UserState, row: &Row) -> bool {
    let (before, after) = (row.state.first_version(), next.first_version());
    if row.metadata.holds_email {
        return before.is_some() && after > before;
    }
    row.is_outdated() || after != before || (next.has_verified_email() && !row.state.has_verified_email())
}
