//! Responses of Kinde about the member.

use kinsync_core::{Micros, Organization};

use super::{CODE, ROLES, Tenant, id};
use crate::reconcile::{directory::RoleIds, memberships::Seen};

/// The member in the list of an organization.
pub(super) fn listed(tenant: Tenant, at: Micros) -> Seen {
    let membership = Organization { roles: Some(tenant.keys()), ..Organization::new(CODE) };
    Seen { user: id(), membership, role_keys: tenant.keys(), at }
}

/// The roles and the own permissions of the member, read for this member alone.
pub(super) fn read(tenant: Tenant, at: Micros) -> Option<Seen> {
    let roles = tenant.member?.iter().map(|role| ROLES[*role].to_owned()).collect();
    let membership =
        Organization { roles: Some(roles), permissions: Some(Vec::new()), ..Organization::new(CODE) };
    Some(Seen { user: id(), membership, role_keys: tenant.keys(), at })
}

/// The ids of the roles, by key.
pub(super) fn role_ids(tenant: Tenant, at: Micros) -> RoleIds {
    let ids = tenant.roles.iter().zip(ROLES);
    let ids = ids.filter_map(|(role, id)| Some(((*role)?.0.to_owned(), id.to_owned())));
    RoleIds { ids: ids.collect(), at }
}
