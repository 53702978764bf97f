//! Reads the roles and permissions of single members.
//!
//! A read that lacks roles by mistake looks like a member that has lost them, and no budget counts such a loss. A read of permissions
//! therefore takes no role away: it counts only if each role that it lacks is missing in the list of members too, and the loss was decided
//! there ([`super::lost_roles`]).

use kinde::{
    Patch,
    management::{self, Role, UserPermission},
};
use kinsync_core::{Entry, Field, Micros, Observation, Organization, UserId, Version};

use super::{
    Error, Inner,
    seen::{Seen, memberships, sorted},
};
use crate::{
    directory::{self, Change},
    pending_checks::PendingChecks,
    reconcile::{
        compare::drift,
        record::{DriftKind, Tally},
        single_reads::is_about_one,
    },
    snapshot,
    state_records::Term,
    store::Row,
};

/// A member with permissions to be read.
#[derive(Clone)]
pub(in crate::reconcile) struct Unread {
    pub(in crate::reconcile) user: UserId,
    pub(in crate::reconcile) code: String,
    /// Time of the lists, which preceded the read.
    pub(in crate::reconcile) at: Micros,
    /// Keys of the roles in the list of members, after a decision about those that it lacks; `None` without one.
    pub(in crate::reconcile) listed: Option<Vec<String>>,
}

impl Unread {
    /// Returns whether the read takes no role away, apart from those with a decided loss.
    fn keeps_roles(&self, read: &Seen, row: &Row) -> bool {
        let is_decided = |role| self.listed.as_ref().is_some_and(|listed| !listed.contains(role));
        read.lacks(Some(row)).iter().all(is_decided)
    }
}

/// Returns the permissions that a member has apart from roles. What a role gives is not kept as the member's own: it would
/// outlive the role. Where Kinde's list does not name the roles, the known lists of the member's roles decide. The result is `None` if one
/// is not known, or if a permission may come from a role that the read of the roles lacks, or from one that gave it before.
fn own_permissions(
    list: Vec<UserPermission>,
    roles: &[Role],
    (code, row): (&str, &Row),
) -> Option<Vec<String>> {
    let directory = &row.state.directory;
    let stored = memberships(&row.state);
    let is_read = |id: &str| roles.iter().any(|role| role.id == id);
    // Both reads are not of one moment: a stored role that the read lacks may have been there.
    let others = stored.existing_roles(code, directory).filter(|id| !is_read(id));
    let listed = |id: &str| directory.entry(id).filter(|entry| entry.permissions().is_some());
    let read: Option<Vec<&Entry>> = roles.iter().map(|role| listed(&role.id)).collect();
    let others: Option<Vec<&Entry>> = others.map(listed).collect();
    let is_own_unless_given = |permission: &String| {
        let (read, others) = (read.as_ref()?, others.as_ref()?);
        if read.iter().any(|role| role.permissions().is_some_and(|ids| ids.contains(permission))) {
            return Some(false);
        }
        let may_be_given = read.iter().chain(others).any(|role| role.has_given(permission));
        (!may_be_given).then_some(true)
    };
    let is_own = |one: &UserPermission| match &one.roles {
        Patch::Value(roles) => Some(roles.is_empty()),
        Patch::Null => Some(true),
        Patch::Absent => is_own_unless_given(&one.permission.id),
    };
    let own = list.into_iter().map(|one| Some(is_own(&one)?.then_some(one.permission.id)));
    own.collect::<Option<Vec<_>>>().map(|own| sorted(own.into_iter().flatten().collect()))
}

/// Returns whether these credentials cannot read roles.
pub(in crate::reconcile) fn lacks_scope(error: &management::Error) -> bool {
    use management::Error::{MissingScope, Unauthorized};
    matches!(error, MissingScope { .. } | Unauthorized { .. })
}

fn skipped(row: &Row, organization: &str, error: &management::Error) {
    let error = crate::breaker::error_chain(error);
    tracing::warn!(user = row.id.as_str(), organization, error, "the roles of a member cannot be read");
}

/// Result of the reads of a member.
enum Confirmed {
    Member(Seen),
    /// Kinde's response about this member is unusable.
    Unusable,
    /// A second read differs from one that lacks roles or permissions.
    Differing,
}

impl Inner {
    /// Reads the roles and permissions of members. Without the scope they stay unknown. A member that cannot be read is checked
    /// later: until then the permissions are unknown, because a revoked role must not stay. They also stay unknown for a member with a
    /// read that would take a role away: the next lists decide about that.
    pub(in crate::reconcile) async fn permissions_of(
        &self,
        unread: Vec<Unread>,
        term: Option<Term>,
    ) -> Result<Vec<Observation>, Error> {
        let users: Vec<UserId> = unread.iter().map(|unread| unread.user.clone()).collect();
        let rows = self.retry_store(|| self.store.load(&users)).await?;
        let (mut read, mut unreadable) = (Vec::new(), Vec::new());
        for (one, row) in unread.into_iter().zip(rows) {
            let Some(row) = row else { continue };
            let (code, at) = (&one.code, one.at);
            match self.member(&row, code, term).await {
                Ok(Some(seen)) if !one.keeps_roles(&seen, &row) => {
                    tracing::warn!(
                        user = row.id.as_str(),
                        organization = code,
                        "a read of a member lacks roles"
                    );
                }
                // `Date` has seconds: the time of a later read may seem earlier.
                Ok(Some(seen)) if seen.membership.permissions.is_some() => {
                    let seen = Seen { at: seen.at.max(at), ..seen };
                    read.push(seen.observe(seen.membership.clone()));
                }
                Ok(_) => {}
                Err(Error::Kinde(error)) if lacks_scope(&error) => break,
                Err(Error::Kinde(error)) => {
                    skipped(&row, code, &error);
                    unreadable.push(row.id);
                }
                Err(error) => return Err(error),
            }
        }
        if term.is_some() {
            self.retry_store(|| PendingChecks::request_if_few(&*self.store, &unreadable)).await?;
        }
        Ok(read)
    }

    /// Compares the roles and permissions of these users in all their organizations. Without the scopes nothing is compared.
    /// Returns the users with two reads that differ: what they have lost is not known.
    pub(in crate::reconcile) async fn check_members(
        &self,
        users: &[UserId],
        term: Option<Term>,
        tally: &mut Tally,
    ) -> Result<Vec<UserId>, Error> {
        let mut undetermined = Vec::new();
        let rows = self.retry_store(|| self.store.load(users)).await?;
        for row in rows.into_iter().flatten().filter(|row| row.state.is_live()) {
            let mut repairs = Vec::new();
            let mut kinds = Vec::new();
            for organization in row.state.organizations().unwrap_or_default() {
                let seen = match self.confirmed_member(&row, &organization.code, term).await {
                    Ok(Confirmed::Member(seen)) => seen,
                    Ok(Confirmed::Unusable) => continue,
                    Ok(Confirmed::Differing) => {
                        tally.add(drift(row.id.clone(), DriftKind::Undetermined, Vec::new(), Some(&row)));
                        undetermined.push(row.id.clone());
                        continue;
                    }
                    Err(Error::Kinde(error)) if lacks_scope(&error) => return Ok(undetermined),
                    // The next scan compares the member. A check that failed here would be repeated for all users.
                    Err(Error::Kinde(error)) => {
                        skipped(&row, &organization.code, &error);
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                if let Some((kind, repair)) = seen.compare(Some(&row)) {
                    repairs.push(repair);
                    kinds.push(kind);
                }
            }
            let missed = kinds.contains(&DriftKind::Changed);
            let drifts = missed
                .then(|| drift(row.id.clone(), DriftKind::Changed, vec![Field::Organizations], Some(&row)));
            self.repair(repairs, drifts.into_iter().collect(), term.is_none(), tally).await?;
        }
        Ok(undetermined)
    }

    /// Reads the roles and permissions of one member, and reads them again if some are lost: one read may lack them by mistake.
    async fn confirmed_member(&self, row: &Row, code: &str, term: Option<Term>) -> Result<Confirmed, Error> {
        let Some(first) = self.member(row, code, term).await? else { return Ok(Confirmed::Unusable) };
        if !first.takes_from(row) {
            return Ok(Confirmed::Member(first));
        }
        let second = self.member(row, code, term).await?;
        let is_same = second.is_some_and(|second| second.membership == first.membership);
        Ok(if is_same { Confirmed::Member(first) } else { Confirmed::Differing })
    }

    /// Reads the roles and permissions of one member; `None` if Kinde's response about this member is unusable, for example
    /// because the membership has ended. Permissions stay unknown without their scope.
    pub(super) async fn member(
        &self,
        row: &Row,
        code: &str,
        term: Option<Term>,
    ) -> Result<Option<Seen>, Error> {
        let roles = match self.kinde.user_roles(code, row.id.as_str())?.all().await {
            Ok(roles) => roles,
            Err(error) if is_about_one(&error) && !error.is_transient() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let permissions = match self.kinde.user_permissions(code, row.id.as_str())?.all().await {
            Ok(permissions) => Some(permissions.value),
            Err(error) if lacks_scope(&error) => None,
            Err(error) if is_about_one(&error) && !error.is_transient() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let version = Version::provisional();
        let mut named: Vec<Change> =
            roles.value.iter().map(|role| directory::of_role(role, None, &version)).collect();
        let listed = permissions.iter().flatten();
        named.extend(listed.map(|one| directory::of_permission(&one.permission, &version)));
        if term.is_some() {
            let now = self.clock.now();
            self.retry_store(|| directory::observe_read(&*self.store, named.clone(), now)).await?;
        }
        let own = permissions.and_then(|list| own_permissions(list, &roles.value, (code, row)));
        let role_keys = roles.value.iter().map(|role| role.key.value().unwrap_or(&role.id).clone());
        let role_keys = sorted(role_keys.collect());
        let membership = Organization {
            roles: Some(sorted(roles.value.into_iter().map(|role| role.id).collect())),
            permissions: own,
            ..Organization::new(code)
        };
        let at = snapshot::sent_at(&roles.timing);
        Ok(Some(Seen { user: row.id.clone(), membership, role_keys, at }))
    }
}

#[cfg(test)]
mod tests {
    use kinsync_core::{Fact, UserState, Value};

    use super::*;

    const CODE: &str = "org_1";

    /// A member with this stored role, of which these lists of permissions were read.
    fn member(stored: &[&str], lists: &[&[&str]]) -> Row {
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let membership = Organization { roles: Some(ids(stored)), ..Organization::new(CODE) };
        let list = Value::Organizations(vec![membership]);
        let at = |n: usize| Version::snapshot(Micros(i64::try_from(n).unwrap()), "");
        let mut row = Row::unknown(UserId::parse("kp_1").unwrap());
        row.state = UserState::default().with_register(Field::Organizations, at(5), list);
        let listed = |(n, list): (usize, &&[&str])| {
            Entry::observed([(Fact::Permissions, Value::Codes(ids(list)))], &at(n))
        };
        let role = lists.iter().enumerate().map(listed).fold(Entry::default(), Entry::join);
        row.state.directory.add("role", role);
        row
    }

    /// The own permissions of a member with the permission `delete`, of which Kinde names no roles, beside these roles.
    fn own(roles: &[&str], row: &Row) -> Option<Vec<String>> {
        let mut permission = UserPermission::default();
        permission.permission.id = "delete".into();
        let role = |id: &&str| {
            let mut role = Role::default();
            role.id.push_str(id);
            role
        };
        let roles: Vec<Role> = roles.iter().map(role).collect();
        own_permissions(vec![permission], &roles, (CODE, row))
    }

    #[test]
    fn a_permission_without_its_roles_is_the_members_own_only_if_no_known_role_may_give_it() {
        let (yes, no) = (Some(vec!["delete".to_owned()]), Some(Vec::new()));
        assert_eq!(own(&[], &member(&[], &[&["delete"]])), yes, "the member has no role");
        assert_eq!(own(&["role"], &member(&["role"], &[&["delete"]])), no, "the role gives it");
        assert_eq!(own(&["role"], &member(&["role"], &[&[]])), yes, "the role never gave it");
        assert_eq!(own(&["role"], &member(&["role"], &[])), None, "the role was never listed");
        assert_eq!(
            own(&["role"], &member(&["role"], &[&["delete"], &[]])),
            None,
            "the role may give it again"
        );
        assert_eq!(own(&[], &member(&["role"], &[&["delete"]])), None, "the read may lack the role");
        assert_eq!(own(&[], &member(&["role"], &[])), None, "a role that was never listed");
        assert_eq!(own(&[], &member(&["role"], &[&[]])), yes);
        let mut deleted = member(&["role"], &[&["delete"]]);
        deleted.state.directory.add("role", Entry::deleted(&Version::snapshot(Micros(9), "")));
        assert_eq!(own(&[], &deleted), yes, "the role does not exist any more");
        let mut again = member(&["role"], &[&["delete"]]);
        again.state.directory.add("role", Entry::deleted(&Version::snapshot(Micros(3), "")));
        assert_eq!(own(&[], &again), None, "the member got it after that");
    }
}
