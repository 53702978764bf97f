//! What events and lists observe of organizations, roles and permissions. Pure.

use kinde::event::{self, Body};
use kinsync_core::{Entry, Fact, Value, Version};

use super::{Change, Kind, Named};

/// Returns what an event observes of organizations, roles and permissions.
pub(crate) fn changes(body: &Body, version: &Version) -> Vec<Change> {
    let deleted = |kind, id: &String| Change { kind, id: id.clone(), entry: Entry::deleted(version) };
    match body {
        Body::OrganizationCreated(organization) | Body::OrganizationUpdated(organization) => {
            vec![of_organization(organization, version)]
        }
        Body::RoleCreated(role) | Body::RoleUpdated(role) => vec![of_role(role, None, version)],
        Body::PermissionCreated(permission) | Body::PermissionUpdated(permission) => {
            vec![of_permission(permission, version)]
        }
        Body::OrganizationDeleted { code } => vec![deleted(Kind::Organization, code)],
        Body::RoleDeleted { id } => vec![deleted(Kind::Role, id)],
        Body::PermissionDeleted { id } => vec![deleted(Kind::Permission, id)],
        Body::UserCreated(user) | Body::UserUpdated(user) => of_user(user),
        Body::UserDeleted { .. }
        | Body::UserAuthenticated { .. }
        | Body::UserAuthenticationFailed { .. }
        | Body::AccessRequestCreated(_)
        | Body::SubscriberCreated(_)
        | Body::Passkey { .. }
        | Body::Customer { .. }
        | Body::Unknown(_) => Vec::new(),
    }
}

/// Returns the organizations, roles and permissions that an event about a user names by code or id.
pub(crate) fn named(body: &Body, version: &Version) -> Vec<Named> {
    let (Body::UserCreated(user) | Body::UserUpdated(user)) = body else { return Vec::new() };
    let named = |kind, id: &str| Named { kind, id: id.to_owned(), version: version.clone() };
    let mut all = Vec::new();
    for organization in user.organizations.value().into_iter().flatten() {
        all.push(named(Kind::Organization, &organization.code));
        for (kind, list) in [(Kind::Role, &organization.roles), (Kind::Permission, &organization.permissions)]
        {
            let ids = list.value().into_iter().flatten().filter_map(|one| one.id.as_deref());
            all.extend(ids.map(|id| named(kind, id)));
        }
    }
    all
}

/// The keys in an event about a user. They are used as long as no event about the role or permission, and no list, was observed.
fn of_user(user: &event::User) -> Vec<Change> {
    let organizations = user.organizations.value().into_iter().flatten();
    let assigned = organizations.flat_map(|organization| {
        let of = |kind, list: &kinde::Patch<Vec<event::Assignment>>| {
            list.value().into_iter().flatten().filter_map(move |one| with_key(kind, one)).collect::<Vec<_>>()
        };
        [of(Kind::Role, &organization.roles), of(Kind::Permission, &organization.permissions)].concat()
    });
    assigned.collect()
}

/// Returns the key of an assigned role or permission, if it has an id too.
fn with_key(kind: Kind, assignment: &event::Assignment) -> Option<Change> {
    let (id, key) = (assignment.id.clone()?, assignment.key.as_deref()?);
    let entry = Entry::observed([(Fact::Key, Value::from(key))], &Version::provisional());
    Some(Change { kind, id, entry })
}

fn of_organization(organization: &event::Organization, version: &Version) -> Change {
    let facts = [
        fact(Fact::Name, &organization.name),
        fact(Fact::Handle, &organization.handle),
        fact(Fact::ExternalId, &organization.external_id),
    ];
    let entry = Entry::observed(facts.into_iter().flatten(), version);
    Change { kind: Kind::Organization, id: organization.code.clone(), entry }
}

/// Returns what a role is, with the ids of its permissions if they were listed.
pub(crate) fn of_role(role: &event::Role, permissions: Option<Vec<String>>, version: &Version) -> Change {
    let permissions = permissions.map(|mut ids| {
        ids.sort();
        (Fact::Permissions, Value::Codes(ids))
    });
    let facts = [
        fact(Fact::Key, &role.key),
        fact(Fact::Name, &role.name),
        fact(Fact::Description, &role.description),
        permissions,
    ];
    let entry = Entry::observed(facts.into_iter().flatten(), version);
    Change { kind: Kind::Role, id: role.id.clone(), entry }
}

pub(crate) fn of_permission(permission: &event::Permission, version: &Version) -> Change {
    let facts = [
        fact(Fact::Key, &permission.key),
        fact(Fact::Name, &permission.name),
        fact(Fact::Description, &permission.description),
    ];
    let entry = Entry::observed(facts.into_iter().flatten(), version);
    Change { kind: Kind::Permission, id: permission.id.clone(), entry }
}

/// Returns a fact of a text; `None` if the source does not contain it.
pub(crate) fn fact(fact: Fact, text: &kinde::Patch<String>) -> Option<(Fact, Value)> {
    match text {
        kinde::Patch::Absent => None,
        kinde::Patch::Null => Some((fact, Value::Null)),
        kinde::Patch::Value(text) => Some((fact, Value::from(text.as_str()))),
    }
}
