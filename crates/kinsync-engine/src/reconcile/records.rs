//! The records of kinsync that an operator can reset.

use super::{budget, deletions, lease, memberships, properties, record, scan};
use crate::{
    pending_checks, scan_watermark,
    state_records::Key,
    store::{self, Store},
};

/// Returns the keys of all records of kinsync.
pub fn state_keys() -> [&'static Key; 19] {
    [
        &pending_checks::KEY,
        &scan_watermark::KEY,
        &lease::KEY,
        &budget::KEY,
        &budget::REMOVALS,
        &deletions::KEY,
        &record::KEY,
        &scan::KEY,
        &crate::directory::LISTED,
        &crate::derived::KEY,
        &crate::log_snapshots::KEY,
        &crate::rebuild::KEY,
        &properties::KEY,
        &memberships::KEY,
        &crate::erasure::LEASE,
        &crate::retention::LEASE,
        &crate::retention::POSITION,
        &crate::log_follower::POSITION,
        &crate::projections::LEASE,
    ]
}

/// Returns whether deletions and removals held by this run still wait for an approval.
pub async fn is_held(store: &dyn Store, run: &str) -> Result<bool, store::Error> {
    Ok(deletions::approved(store, run).await?.is_some())
}
