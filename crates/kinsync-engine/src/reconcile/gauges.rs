//! Gauges of the reconciler. All come from the stored runs and from two counts, so they cost no read of the users.

use kinsync_core::Source;
use metrics::gauge;

use super::record::{DriftKind, Run};

/// Exports the results of the newest whole run, equal in every process, and the number of stored organizations, roles and
/// permissions.
#[expect(clippy::cast_precision_loss, reason = "a gauge")]
pub(super) fn export(latest: Option<&Run>, directory_records: u64) {
    gauge!("kinsync_directory_records").set(directory_records as f64);
    let Some(run) = latest else { return };
    for kind in DriftKind::ALL {
        gauge!("kinsync_users_in_drift", "kind" => kind.as_str()).set(run.tally.of(kind) as f64);
    }
    for source in Source::ALL {
        let users = run.tally.changes_by_source.get(&source).copied().unwrap_or_default();
        gauge!("kinsync_users_changed_between_scans", "source" => source.as_str()).set(users as f64);
    }
    gauge!("kinsync_reconcile_last_timestamp_seconds").set(run.started_at.0 as f64 / 1e6);
    let Some(found) = &run.memberships else { return };
    gauge!("kinsync_roles_compared").set(f64::from(u8::from(found.not_compared.is_none())));
    gauge!("kinsync_organizations").set(found.organizations as f64);
    gauge!("kinsync_memberships").set(found.members as f64);
    gauge!("kinsync_members_with_unknown_permissions").set(found.unknown_permissions as f64);
    for (kind, members) in [("changed", found.changed), ("filled_in", found.filled_in)] {
        gauge!("kinsync_memberships_in_drift", "kind" => kind).set(members as f64);
    }
}

/// Exports the number of requested checks.
#[expect(clippy::cast_precision_loss, reason = "a gauge")]
pub(crate) fn pending_checks(users: usize) {
    gauge!("kinsync_pending_checks").set(users as f64);
}
