//! Versions of reads of the Management API and of the profile endpoint.
//!
//! Pure. The version of a read is the time of its request by Kinde's clock, so that an event during the read wins.

use kinde::response::RequestTiming;
use kinsync_core::{Field, Micros, Profile, Version};

use crate::log_entry;

/// Returns the version of a read with this request time, by Kinde's clock, and this content.
pub fn version(sent_at: Micros, profile: &Profile) -> Version {
    Version::snapshot(sent_at, hash(profile))
}

/// Returns the time of a request by Kinde's clock.
pub fn sent_at(timing: &RequestTiming) -> Micros {
    Micros(timing.as_of.as_microsecond())
}

/// Returns a time, by Kinde's clock, after which the response contains no change.
pub fn not_after(timing: &RequestTiming) -> Micros {
    Micros(timing.not_after.as_microsecond())
}

/// Returns whether a read of a user can determine this field. For [`Field::Organizations`] it determines the memberships, not the
/// roles.
pub fn can_observe(field: Field) -> bool {
    !matches!(field, Field::IsPasswordResetRequested | Field::Properties)
}

/// Returns the first half of the SHA-256 of the content as hex: a deterministic tie-break between reads of one instant.
fn hash(profile: &Profile) -> String {
    let content =
        serde_json::to_vec(&profile.iter().collect::<Vec<_>>()).expect("fields and their values are JSON");
    log_entry::hash(&content)
}
