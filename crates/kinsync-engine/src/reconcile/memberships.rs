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
mod reads;
mod reasons;
mod seen;

#[cfg(test)]
mod model;

use std::collections::HashMap;

use kinsync_core::{Field, UserId};

use self::{lost_roles::LostRoles, seen::Seen};
pub(super) use self::{
    reads::{Unread, lacks_scope},
    reasons::{also, not_compared},
    seen::memberships,
};
use super::{
    Error, Inner, Progress,
    compare::drift,
    deletions::Approved,
    directory::Lists,
    record::{DriftKind, MembershipTally, Run, RunMode},
    scan::Scanned,
    single_reads::is_about_one,
};
use crate::{
    apply::ComparedRows,
    pending_checks::PendingChecks,
    random,
    scan_watermark::{ScanNumber, is_compared},
    snapshot,
    state_records::Key,
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

/// The comparison of the members of all organizations.
struct Comparison<'a> {
    run: &'a Run,
    approved: &'a Approved,
    lists: &'a Lists,
    found: MembershipTally,
    /// Members with permissions that need a read: a random choice of as many as may be read. In a fixed order, members with permissions
    /// that no read makes known would take the reads of all others.
    due: Vec<Unread>,
    /// Members that need a read, chosen or not.
    all_due: u64,
    /// Reads of members that are left.
    reads: usize,
    /// Whether the limit has left members to the next scan.
    is_limited: bool,
    /// Whether a read has made permissions known.
    has_read: bool,
}

impl Comparison<'_> {
    fn unread(&self, seen: &Seen) -> Unread {
        // The permissions are newer than both lists.
        let at = seen.at.max(self.lists.roles.as_ref().map_or(seen.at, |roles| roles.at));
        let listed = seen.membership.roles.as_ref().map(|_| seen.role_keys.clone());
        Unread { user: seen.user.clone(), code: seen.membership.code.clone(), at, listed }
    }

    fn add_due(&mut self, seen: &Seen) {
        self.all_due += 1;
        if self.due.len() < self.reads {
            self.due.push(self.unread(seen));
            return;
        }
        self.postpone(1);
        let position = usize::try_from(random::number::<u64>() % self.all_due).unwrap_or(usize::MAX);
        if position < self.due.len() {
            self.due[position] = self.unread(seen);
        }
    }

    fn postpone(&mut self, members: usize) {
        self.found.unknown_permissions += members as u64;
        self.is_limited |= members > 0;
    }

    /// Counts the reads that made permissions known, of as many as were wanted.
    fn count_read(&mut self, wanted: usize, read: usize) {
        self.found.unknown_permissions += wanted.saturating_sub(read) as u64;
        self.has_read |= read > 0;
    }

    /// Returns what a write of these rows has to know of the scan; `None` in a dry run.
    fn rows(&self, scanned: &Scanned, revisions: HashMap<UserId, i64>) -> Option<ComparedRows> {
        let (scan, comparison) = (ScanNumber(scanned.number), scanned.last_comparison);
        self.run.writes().map(|_| ComparedRows { scan, comparison, revisions })
    }

    /// Returns as many members as may still be read.
    fn draw_reads(&mut self, mut unread: Vec<Unread>) -> Vec<Unread> {
        self.postpone(unread.len().saturating_sub(self.reads));
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

impl Inner {
    /// Compares the roles of members if that is due; `None` if it is not. A failure of Kinde here is no failure of the run, which has
    /// compared all users: the result names the reason. The next scan compares the roles again after a failure, while removals of
    /// roles or permissions are held, and while the limit leaves members with unknown permissions.
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
        let held = scanned.tally.of(DriftKind::RemovalHeld);
        let (found, continues) = Box::pin(self.compare_all_members(run, scanned, approved, progress)).await?;
        // `/health` has the held removals of the newest scan, so the next one compares them again.
        let is_held = scanned.tally.of(DriftKind::RemovalHeld) > held;
        if found.not_compared.is_some() || continues || is_held {
            self.repeat_comparison(&KEY, run).await?;
        } else {
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

    /// Compares organizations, roles and permissions, lists the members of every organization, and repairs what differs. Returns
    /// with it whether the next scan continues to read permissions.
    async fn compare_all_members(
        &self,
        run: &Run,
        scanned: &mut Scanned,
        approved: &Approved,
        progress: Progress<'_>,
    ) -> Result<(MembershipTally, bool), Error> {
        let lists = match self.compare_directory(run, scanned, approved).await {
            Err(Error::Kinde(error)) => {
                let not_compared = Some(not_compared(&error));
                return Ok((MembershipTally { not_compared, ..MembershipTally::default() }, false));
            }
            lists => lists?,
        };
        let found = MembershipTally {
            directory_changed: lists.changed,
            not_compared: lists.not_compared.clone(),
            ..MembershipTally::default()
        };
        let (due, all_due, reads) = (Vec::new(), 0, self.config.member_reads);
        let (is_limited, has_read) = (false, false);
        let mut comparison =
            Comparison { run, approved, lists: &lists, found, due, all_due, reads, is_limited, has_read };
        let outcome = self.compare_organizations(&mut comparison, scanned, progress).await;
        // Where no read succeeds, for example without the scope, an earlier scan reads no more.
        let continues = comparison.is_limited && comparison.has_read;
        let mut found = comparison.found;
        match outcome {
            Err(Error::Kinde(error)) => also(&mut found.not_compared, &not_compared(&error)),
            outcome => outcome?,
        }
        Ok((found, continues))
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
        let mut due = std::mem::take(&mut comparison.due);
        // Some of the reads may be used meanwhile.
        due.sort_by_cached_key(|_| random::number::<u64>());
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
        comparison.count_read(unread.len(), read.len());
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
            let needs_read = |(_, row): &(Seen, Option<Row>)| {
                let state = row.as_ref().map(|row| &row.state);
                state
                    .is_some_and(|state| memberships(state).needs_read_of_permissions(code, &state.directory))
            };
            for member in members.into_iter().zip(rows) {
                let (differs, needs_read) = (differs(&member), needs_read(&member));
                let (seen, row) = member;
                if differs && !seen.lacks(row.as_ref()).is_empty() {
                    // A read of permissions contains the roles, so it has to wait for the decision about them.
                    if needs_read {
                        lost.add_unread(&seen.user);
                    }
                    lost.add(seen);
                    continue;
                }
                if needs_read {
                    comparison.add_due(&seen);
                }
                if differs {
                    differing.push(seen);
                }
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
        comparison.count_read(wanted, read.len());
        repairs.extend(read);
        let compared = comparison.rows(scanned, revisions);
        self.repair_compared(repairs, drifts, compared.as_ref(), &mut scanned.tally).await?;
        self.add_unlisted(&unlisted, comparison).await
    }

    /// Adds the members that need a read now that their roles are stored: none of their own permissions was ever listed.
    async fn add_unlisted(&self, members: &[Seen], comparison: &mut Comparison<'_>) -> Result<(), Error> {
        for (seen, row) in members.iter().zip(self.rows(members).await?) {
            let Some(Row { state, .. }) = row else { continue };
            // Without roles, the repair has caused no need.
            if seen.membership.roles.is_some()
                && memberships(&state).needs_read_of_permissions(&seen.membership.code, &state.directory)
            {
                comparison.add_due(seen);
            }
        }
        Ok(())
    }
}
