//! Compares the roles of members with Kinde's.
//!
//! The list of users has the organizations of each user and no roles. A scan therefore also lists the members of each
//! organization, with the keys of their roles and with their suspension there. The list of users determines the members; a
//! member that the list of an organization lacks keeps the stored roles, so an incomplete list removes nothing.
//!
//! Lists contain no permissions. Where the roles of a member have changed, the stored permissions no longer count: they are read for
//! this member alone, and written together with the roles. A scan makes a limited number of such reads. Above it the roles are
//! written alone, and the next scan finds the members with permissions that are older than the roles.

mod lost_roles;
mod reasons;
mod seen;

#[cfg(test)]
mod model;

use std::collections::HashMap;

use kinde::{
    Patch,
    management::{self, Role, UserPermission},
};
use kinsync_core::{Directory, Field, Micros, Observation, Organization, UserId, Version};
use serde::{Deserialize, Serialize};

use self::{
    lost_roles::LostRoles,
    seen::{Seen, sorted},
};
pub(super) use self::{
    reasons::{also, not_compared},
    seen::memberships,
};
use super::{
    Error, Inner, Progress,
    compare::drift,
    deletions::Approved,
    directory::Lists,
    record::{DriftKind, Run, RunMode, Tally},
    scan::Scanned,
    single_reads::is_about_one,
};
use crate::{
    apply::ComparedRows,
    directory::{self, Change},
    pending_checks::PendingChecks,
    scan_watermark::{ScanNumber, is_compared},
    snapshot,
    state_records::{Key, Term},
    store::Row,
};

/// Record of the last comparison.
pub(super) const KEY: Key = Key::new("reconcile.roles", "the next scan compares the roles of members");

/// Organizations above which roles are not compared: each costs at least one request per scan.
pub const MAX_ORGANIZATIONS: usize = 10_000;
/// Members that differ before the roles are listed again and these members are repaired.
const MAX_DIFFERING: usize = 1000;
/// Members with other roles that are written together, after a read of their permissions.
const REPAIRED_TOGETHER: usize = 100;

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

/// A member with permissions to be read.
#[derive(Clone)]
pub(super) struct Unread {
    pub(super) user: UserId,
    pub(super) code: String,
    /// Time of the lists, which preceded the read.
    pub(super) at: Micros,
}

/// The comparison of the members of all organizations.
struct Comparison<'a> {
    run: &'a Run,
    approved: &'a Approved,
    lists: &'a Lists,
    found: MembershipTally,
    /// Members with permissions that need a read.
    due: Vec<Unread>,
    /// Reads of members that are left.
    reads: usize,
}

impl Comparison<'_> {
    fn unread(&self, seen: &Seen) -> Unread {
        // The permissions are newer than both lists.
        let at = seen.at.max(self.lists.roles.as_ref().map_or(seen.at, |roles| roles.at));
        Unread { user: seen.user.clone(), code: seen.membership.code.clone(), at }
    }

    fn add_due(&mut self, seen: &Seen) {
        if self.due.len() < self.reads {
            self.due.push(self.unread(seen));
        } else {
            self.found.unknown_permissions += 1;
        }
    }

    /// Returns what a write of these rows has to know of the scan; `None` in a dry run.
    fn rows(&self, scanned: &Scanned, revisions: HashMap<UserId, i64>) -> Option<ComparedRows> {
        let (scan, comparison) = (ScanNumber(scanned.number), scanned.last_comparison);
        self.run.writes().map(|_| ComparedRows { scan, comparison, revisions })
    }

    /// Returns as many members as may still be read.
    fn draw_reads(&mut self, mut unread: Vec<Unread>) -> Vec<Unread> {
        self.found.unknown_permissions += unread.len().saturating_sub(self.reads) as u64;
        unread.truncate(self.reads);
        self.reads -= unread.len();
        unread
    }
}

/// Returns the revision of a row that the scan has compared. The write of a repair leaves it compared: otherwise the next scan would
/// mark it again.
fn compared_revision(row: &Row) -> Option<(UserId, i64)> {
    is_compared(&row.metadata).then(|| (row.id.clone(), row.revision))
}

/// Returns the permissions that a member has apart from roles. What a role gives is not kept as the member's own: it would
/// outlive the role. If Kinde's list does not name the roles, their known lists decide; without one the result is `None`.
fn own_permissions(list: Vec<UserPermission>, roles: &[Role], directory: &Directory) -> Option<Vec<String>> {
    let given = roles.iter().map(|role| directory.entry(&role.id)?.permissions());
    let given: Option<Vec<&[String]>> = given.collect();
    let is_own = |one: &UserPermission| match &one.roles {
        Patch::Value(roles) => Some(roles.is_empty()),
        Patch::Null => Some(true),
        Patch::Absent => Some(!given.as_ref()?.iter().any(|ids| ids.contains(&one.permission.id))),
    };
    let own = list.into_iter().map(|one| Some(is_own(&one)?.then_some(one.permission.id)));
    own.collect::<Option<Vec<_>>>().map(|own| sorted(own.into_iter().flatten().collect()))
}

/// Returns whether these credentials cannot read roles.
pub(super) fn lacks_scope(error: &management::Error) -> bool {
    use management::Error::{MissingScope, Unauthorized};
    matches!(error, MissingScope { .. } | Unauthorized { .. })
}

fn skipped(row: &Row, organization: &str, error: &management::Error) {
    let error = crate::breaker::error_chain(error);
    tracing::warn!(user = row.id.as_str(), organization, error, "the roles of a member cannot be read");
}

impl Inner {
    /// Compares the roles of members if that is due; `None` if it is not. A failure of Kinde here is no failure of the run, which has
    /// compared all users: the result names the reason, and the next scan compares the roles again.
    pub(super) async fn compare_members(
        &self,
        run: &Run,
        scanned: &mut Scanned,
        approved: &Approved,
        progress: Progress<'_>,
    ) -> Result<Option<MembershipTally>, Error> {
        if !self.config.roles || !self.are_roles_due(run).await? {
            return Ok(None);
        }
        // A pointer, because the future is large.
        let found = Box::pin(self.compare_all_members(run, scanned, approved, progress)).await?;
        if found.not_compared.is_none() {
            self.ended_comparison(&KEY, &[], run).await?;
        }
        Ok(Some(found))
    }

    /// Returns whether this run compares roles. An approval is about them too, and a requested scan may be about an event of a role.
    async fn are_roles_due(&self, run: &Run) -> Result<bool, Error> {
        let (last, every) = (self.last_comparison(&KEY).await?, self.config.roles_every);
        if run.mode != RunMode::Reconcile || last.is_due(&[], every, run.started_at) {
            return Ok(true);
        }
        Ok(self.retry_store(|| PendingChecks::load(&*self.store)).await?.scan.is_some())
    }

    /// Compares organizations, roles and permissions, lists the members of every organization, and repairs what differs.
    async fn compare_all_members(
        &self,
        run: &Run,
        scanned: &mut Scanned,
        approved: &Approved,
        progress: Progress<'_>,
    ) -> Result<MembershipTally, Error> {
        let lists = match self.compare_directory(run, scanned, approved).await {
            Err(Error::Kinde(error)) => {
                let not_compared = Some(not_compared(&error));
                return Ok(MembershipTally { not_compared, ..MembershipTally::default() });
            }
            lists => lists?,
        };
        let found = MembershipTally {
            directory_changed: lists.changed,
            not_compared: lists.not_compared.clone(),
            ..MembershipTally::default()
        };
        let (due, reads) = (Vec::new(), self.config.member_reads);
        let mut comparison = Comparison { run, approved, lists: &lists, found, due, reads };
        let outcome = self.compare_organizations(&mut comparison, scanned, progress).await;
        let mut found = comparison.found;
        match outcome {
            Err(Error::Kinde(error)) => also(&mut found.not_compared, &not_compared(&error)),
            outcome => outcome?,
        }
        Ok(found)
    }

    async fn compare_organizations(
        &self,
        comparison: &mut Comparison<'_>,
        scanned: &mut Scanned,
        progress: Progress<'_>,
    ) -> Result<(), Error> {
        if comparison.lists.organizations.len() > MAX_ORGANIZATIONS {
            let reason = format!("roles are not compared: more than {MAX_ORGANIZATIONS} organizations");
            also(&mut comparison.found.not_compared, &reason);
            return Ok(());
        }
        for code in &comparison.lists.organizations {
            match self.compare_organization(code, comparison, scanned).await {
                Err(Error::Kinde(error)) if is_about_one(&error) && !error.is_transient() => {
                    let error = crate::breaker::error_chain(&error);
                    let reason = format!("the members of {code} cannot be listed: {error}");
                    also(&mut comparison.found.not_compared, &reason);
                }
                outcome => outcome?,
            }
            progress(&scanned.tally);
        }
        let due = std::mem::take(&mut comparison.due);
        for unread in comparison.draw_reads(due).chunks(REPAIRED_TOGETHER) {
            self.read_due(unread, comparison, scanned).await?;
        }
        Ok(())
    }

    /// Reads the permissions of these members, and stores them.
    async fn read_due(
        &self,
        unread: &[Unread],
        comparison: &mut Comparison<'_>,
        scanned: &mut Scanned,
    ) -> Result<(), Error> {
        let users: Vec<UserId> = unread.iter().map(|unread| unread.user.clone()).collect();
        let rows = self.retry_store(|| self.store.load(&users)).await?;
        let revisions = rows.iter().flatten().filter_map(compared_revision).collect();
        drop(rows);
        let read = self.permissions_of(unread.to_vec(), comparison.run.writes()).await?;
        comparison.found.unknown_permissions += unread.len().saturating_sub(read.len()) as u64;
        let compared = comparison.rows(scanned, revisions);
        self.repair_compared(read, Vec::new(), compared.as_ref(), &mut scanned.tally).await.map(|_| ())
    }

    /// Compares the members of one organization. Those that differ are compared again after a second list of the roles.
    async fn compare_organization(
        &self,
        code: &str,
        comparison: &mut Comparison<'_>,
        scanned: &mut Scanned,
    ) -> Result<(), Error> {
        let mut pages = self.kinde.organization_users(code)?;
        comparison.found.organizations += 1;
        let (mut differing, mut lost) = (Vec::new(), LostRoles::default());
        while let Some(page) = pages.next().await? {
            let at = snapshot::sent_at(&page.timing);
            let members = page.items.into_iter().filter_map(|member| Seen::listed(code, member, at));
            let members: Vec<Seen> = members.collect();
            comparison.found.members += members.len() as u64;
            let rows = self.rows(&members).await?;
            let roles = comparison.lists.roles.as_ref();
            lost.count(code, &rows);
            let differs = |(seen, row): &(Seen, Option<Row>)| {
                let seen = seen.clone();
                roles.map_or(seen.clone(), |roles| seen.resolved(roles)).compare(row.as_ref()).is_some()
            };
            let is_due = |(seen, row): &(Seen, Option<Row>)| {
                let state = &row.as_ref()?.state;
                memberships(state).needs_read_of_permissions(code, &state.directory).then(|| seen.clone())
            };
            let members: Vec<(Seen, Option<Row>)> = members.into_iter().zip(rows).collect();
            members.iter().filter_map(is_due).for_each(|seen| comparison.add_due(&seen));
            for (seen, row) in members.into_iter().filter(differs) {
                if seen.lacks(row.as_ref()).is_empty() { differing.push(seen) } else { lost.add(seen) }
            }
            if differing.len() >= MAX_DIFFERING {
                self.repair_members(std::mem::take(&mut differing), comparison, scanned).await?;
            }
        }
        self.repair_members(differing, comparison, scanned).await?;
        self.take_roles(code, lost, comparison, scanned).await
    }

    async fn rows(&self, members: &[Seen]) -> Result<Vec<Option<Row>>, Error> {
        let ids: Vec<UserId> = members.iter().map(|seen| seen.user.clone()).collect();
        Ok(self.retry_store(|| self.store.load(&ids)).await?)
    }

    async fn repair_members(
        &self,
        members: Vec<Seen>,
        comparison: &mut Comparison<'_>,
        scanned: &mut Scanned,
    ) -> Result<(), Error> {
        if members.is_empty() {
            return Ok(());
        }
        let members = match &comparison.lists.roles {
            Some(before) => {
                let roles = self.relist_roles(before).await?;
                members.into_iter().map(|seen| seen.resolved(&roles)).collect()
            }
            None => members,
        };
        for members in members.chunks(REPAIRED_TOGETHER) {
            self.repair_piece(members, comparison, scanned).await?;
        }
        Ok(())
    }

    /// Repairs members. Roles are written together with the permissions that were read after them: written alone, they make the
    /// known permissions unknown until the next scan.
    async fn repair_piece(
        &self,
        members: &[Seen],
        comparison: &mut Comparison<'_>,
        scanned: &mut Scanned,
    ) -> Result<(), Error> {
        let rows = self.rows(members).await?;
        let (mut repairs, mut drifts, mut unread) = (Vec::new(), Vec::new(), Vec::new());
        let mut revisions = HashMap::new();
        let mut unlisted = Vec::new();
        for (seen, row) in members.iter().zip(&rows) {
            let Some((kind, repair)) = seen.compare(row.as_ref()) else { continue };
            repairs.push(repair);
            revisions.extend(row.as_ref().and_then(compared_revision));
            if kind == DriftKind::FilledIn {
                comparison.found.filled_in += 1;
                unlisted.push(seen.clone());
                continue;
            }
            comparison.found.changed += 1;
            drifts.push(drift(seen.user.clone(), kind, vec![Field::Organizations], row.as_ref()));
            let known =
                row.as_ref().and_then(|row| memberships(&row.state).organization(&seen.membership.code));
            if known.is_some_and(|known| known.permissions.is_some()) {
                unread.push(comparison.unread(seen));
            } else {
                unlisted.push(seen.clone());
            }
        }
        let unread = comparison.draw_reads(unread);
        let wanted = unread.len();
        let read = self.permissions_of(unread, comparison.run.writes()).await?;
        comparison.found.unknown_permissions += wanted.saturating_sub(read.len()) as u64;
        repairs.extend(read);
        let compared = comparison.rows(scanned, revisions);
        self.repair_compared(repairs, drifts, compared.as_ref(), &mut scanned.tally).await?;
        self.add_unlisted(&unlisted, comparison).await
    }

    /// Adds the members that need a read now that their roles are stored: none of their own permissions was ever listed.
    async fn add_unlisted(&self, members: &[Seen], comparison: &mut Comparison<'_>) -> Result<(), Error> {
        for (seen, row) in members.iter().zip(self.rows(members).await?) {
            let Some(Row { state, .. }) = row else { continue };
            if memberships(&state).needs_read_of_permissions(&seen.membership.code, &state.directory) {
                comparison.add_due(seen);
            }
        }
        Ok(())
    }

    /// Reads the roles and permissions of members. Without the scope they stay unknown. A member that cannot be read is checked
    /// later: until then the permissions are unknown, because a revoked role must not stay.
    pub(super) async fn permissions_of(
        &self,
        unread: Vec<Unread>,
        term: Option<Term>,
    ) -> Result<Vec<Observation>, Error> {
        let users: Vec<UserId> = unread.iter().map(|unread| unread.user.clone()).collect();
        let rows = self.retry_store(|| self.store.load(&users)).await?;
        let (mut read, mut unreadable) = (Vec::new(), Vec::new());
        for (Unread { code, at, .. }, row) in unread.into_iter().zip(rows) {
            let Some(row) = row else { continue };
            match self.member(&row, &code, term).await {
                // `Date` has seconds: the time of a later read may seem earlier.
                Ok(Some(seen)) if seen.membership.permissions.is_some() => {
                    let seen = Seen { at: seen.at.max(at), ..seen };
                    read.push(seen.observe(seen.membership.clone()));
                }
                Ok(_) => {}
                Err(Error::Kinde(error)) if lacks_scope(&error) => break,
                Err(Error::Kinde(error)) => {
                    skipped(&row, &code, &error);
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
    pub(super) async fn check_members(
        &self,
        users: &[UserId],
        term: Option<Term>,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let rows = self.retry_store(|| self.store.load(users)).await?;
        for row in rows.into_iter().flatten().filter(|row| row.state.is_live()) {
            let mut repairs = Vec::new();
            let mut kinds = Vec::new();
            for organization in row.state.organizations().unwrap_or_default() {
                let seen = match self.member(&row, &organization.code, term).await {
                    Ok(Some(seen)) => seen,
                    Ok(None) => continue,
                    Err(Error::Kinde(error)) if lacks_scope(&error) => return Ok(()),
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
        Ok(())
    }

    /// Reads the roles and permissions of one member; `None` if Kinde's response about this member is unusable, for example
    /// because the membership has ended. Permissions stay unknown without their scope.
    async fn member(&self, row: &Row, code: &str, term: Option<Term>) -> Result<Option<Seen>, Error> {
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
        let own = permissions.and_then(|list| own_permissions(list, &roles.value, &row.state.directory));
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
