//! A membership as read from Kinde, and its comparison with the stored one. Pure.

use kinde::{Patch, management::OrganizationUser};
use kinsync_core::{
    Field, Memberships, Micros, Observation, Organization, Profile, Source, UserId, UserState, Value, What,
};

use super::super::{directory::RoleIds, record::DriftKind};
use crate::{snapshot, store::Row};

/// A membership as read from Kinde. Roles and permissions are ids as far as those are known, else keys.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) user: UserId,
    pub(super) membership: Organization,
    /// Keys of the roles, sorted.
    pub(super) role_keys: Vec<String>,
    pub(super) at: Micros,
}

impl Seen {
    /// Decodes a member of a list. Returns `None` without a valid id.
    pub(super) fn listed(code: &str, member: OrganizationUser, at: Micros) -> Option<Self> {
        let user = UserId::parse(member.id.as_deref()?).ok()?;
        // A null list means no role, an absent one says nothing.
        let roles = match member.roles {
            Patch::Absent => None,
            Patch::Null => Some(Vec::new()),
            Patch::Value(keys) => Some(sorted(keys)),
        };
        let role_keys = roles.clone().unwrap_or_default();
        let membership = Organization {
            roles,
            is_suspended: member.is_suspended.into_value(),
            joined_on: member.joined_on.map(|at| Micros(at.as_microsecond())),
            ..Organization::new(code)
        };
        Some(Self { user, membership, role_keys, at })
    }

    /// Replaces the keys of roles by ids. The roles have the older of the times of both lists; with a key that is not in
    /// the list of roles they stay unknown.
    pub(super) fn resolved(mut self, roles: &RoleIds) -> Self {
        let ids = |keys: Vec<String>| keys.iter().map(|key| roles.ids.get(key).cloned()).collect();
        self.membership.roles = self.membership.roles.and_then(ids).map(sorted);
        self.at = self.at.min(roles.at);
        self
    }

    pub(super) fn observe(&self, membership: Organization) -> Observation {
        let content = Value::Organizations(vec![membership.clone()]);
        let content = Profile::new().with(Field::Organizations, content);
        Observation {
            user: self.user.clone(),
            version: snapshot::version(self.at, &content),
            source: Source::Reconcile,
            what: What::Membership { code: self.membership.code.clone(), membership: Some(membership) },
        }
    }

    /// Returns how the stored membership differs, and the observation of the values that differ: an equal value keeps its
    /// version. `None` if the join changes nothing, because the values are equal or newer ones are stored, and for a user that
    /// is not stored or deleted: those are left to the scan of users.
    pub(super) fn compare(&self, row: Option<&Row>) -> Option<(DriftKind, Observation)> {
        let row = row.filter(|row| row.revision > 0 && row.state.is_live())?;
        let code = &self.membership.code;
        let stored = memberships(&row.state);
        let known = stored.organization(code).unwrap_or_default();
        // An equal list is stored too: a read separates what roles give, and an event does not.
        let is_due = self.membership.permissions.is_some()
            && stored.needs_read_of_permissions(code, &row.state.directory);
        let mut changed = self.differing(row, &known);
        if is_due {
            changed.permissions.clone_from(&self.membership.permissions);
        }
        let observation = self.observe(changed.clone());
        let joined = stored.clone().join(Memberships::read(code, Some(&changed), &observation.version));
        let after = joined.organization(code);
        if after == stored.organization(code) && !is_due {
            return None;
        }
        let after = after.unwrap_or_default();
        let is_missed = (is_other(known.roles.as_ref(), after.roles.as_ref())
            && shown_roles(row, &known).as_ref() != Some(&self.role_keys))
            || (changed.permissions.is_some()
                && is_other(known.permissions.as_ref(), after.permissions.as_ref()));
        Some((if is_missed { DriftKind::Changed } else { DriftKind::FilledIn }, observation))
    }

    /// Returns the keys of the roles that the document shows and the list lacks.
    pub(super) fn lacks(&self, row: Option<&Row>) -> Vec<String> {
        let shown = row.filter(|_| self.membership.roles.is_some()).and_then(|row| {
            memberships(&row.state).shown_in(&self.membership.code, &row.state.directory)?.roles
        });
        shown.into_iter().flatten().filter(|key| !self.role_keys.contains(key)).collect()
    }

    /// Returns whether the read lacks roles or permissions that are stored.
    pub(super) fn takes_from(&self, row: &Row) -> bool {
        let read = self.membership.permissions.as_ref();
        let known = memberships(&row.state).organization(&self.membership.code);
        let known = known.and_then(|known| known.permissions).unwrap_or_default();
        !self.lacks(Some(row)).is_empty()
            || read.is_some_and(|read| known.iter().any(|id| !read.contains(id)))
    }

    /// Returns what the list has apart from roles.
    pub(super) fn without_roles(self) -> Self {
        Self { membership: Organization { roles: None, ..self.membership }, ..self }
    }

    /// Returns the values that differ from known ones.
    fn differing(&self, row: &Row, known: &Organization) -> Organization {
        let seen = &self.membership;
        // Keys in place of ids replace no ids with the same keys.
        let is_resolved = seen.roles.as_ref() != Some(&self.role_keys);
        let are_other_roles = is_other(seen.roles.as_ref(), known.roles.as_ref())
            && (is_resolved || shown_roles(row, known).as_ref() != Some(&self.role_keys));
        let are_other_permissions = is_other(seen.permissions.as_ref(), known.permissions.as_ref());
        Organization {
            code: seen.code.clone(),
            name: None,
            roles: seen.roles.clone().filter(|_| are_other_roles),
            // Known permissions do not count beside newer roles.
            permissions: seen.permissions.clone().filter(|_| are_other_roles || are_other_permissions),
            is_suspended: seen.is_suspended.filter(|seen| known.is_suspended != Some(*seen)),
            joined_on: seen.joined_on.filter(|seen| known.joined_on != Some(*seen)),
        }
    }
}

/// Returns the keys of the roles that the document shows.
fn shown_roles(row: &Row, known: &Organization) -> Option<Vec<String>> {
    memberships(&row.state).shown_in(&known.code, &row.state.directory)?.roles
}

/// Returns whether a value is known and the other one differs.
fn is_other<T: PartialEq>(known: Option<&T>, other: Option<&T>) -> bool {
    known.is_some() && other != known
}

pub(super) fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

pub(in crate::reconcile) fn memberships(state: &UserState) -> Memberships {
    match state.value(Field::Organizations) {
        Some(Value::Memberships(memberships)) => memberships.clone(),
        _ => Memberships::default(),
    }
}
