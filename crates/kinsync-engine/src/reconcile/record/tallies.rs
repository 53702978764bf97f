//! What a scan compared of the roles of members and of the properties of users.

use serde::{Deserialize, Serialize};

/// What a scan compared of the roles of members.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MembershipTally {
    /// Organizations with a list of members.
    pub organizations: u64,
    /// Members in these lists.
    pub members: u64,
    /// Members with roles or permissions other than the known ones: an event of the user or of the role was missed, or has
    /// requested this scan.
    pub changed: u64,
    /// Members with unknown roles, suspension or time of joining.
    pub filled_in: u64,
    /// Organizations, roles and permissions that differed from what was stored.
    pub directory_changed: u64,
    /// Members with permissions that are still unknown: the limit of reads per scan left them to the next ones, or a read failed.
    pub unknown_permissions: u64,
    /// Why roles were not compared, or not all, with the next step: the first reasons of the run, separated by `; `.
    pub not_compared: Option<String>,
}

/// What a scan compared of the properties of users.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PropertyTally {
    /// Users in the list.
    pub users: u64,
    /// Users with a property that differed from the known one or was unknown.
    pub changed: u64,
    /// Why properties were not compared, or not all, with the next step.
    pub not_compared: Option<String>,
}
