//! Roles that the list of the members of an organization lacks.
//!
//! A list that lacks roles by mistake looks like members that have lost them. The rule is the one for memberships
//! ([`crate::reconcile::removals`]): reads of some of these members have to confirm it, and unusually many in one organization are held as
//! a whole until an operator approves them. What else the list has of these members takes effect at once.

use std::collections::HashSet;

use kinde::management;
use kinsync_core::UserId;

use super::{Comparison, Error, Inner, lacks_scope, memberships, seen::Seen};
use crate::{
    reconcile::{
        record::DriftKind,
        removals::{Confirmed, Decision, Lost, SAMPLE, Sample},
        scan::Scanned,
    },
    state_records::Term,
    store::Row,
};

/// Members of one organization that lose a role with one scan, or are held. The next scan finds the rest.
const MOST: usize = 50_000;

/// Members of an organization that lack a role in its list.
#[derive(Default)]
pub(super) struct LostRoles {
    members: Vec<Seen>,
    /// Those with permissions that need a read.
    unread: HashSet<UserId>,
    /// Stored members with a role.
    had: u64,
}

impl LostRoles {
    /// Counts the stored members with a role.
    pub(super) fn count(&mut self, code: &str, rows: &[Option<Row>]) {
        let has_role = |row: &&Row| {
            let known = memberships(&row.state).shown_in(code, &row.state.directory);
            known.and_then(|known| known.roles).is_some_and(|roles| !roles.is_empty())
        };
        self.had += rows.iter().flatten().filter(has_role).count() as u64;
    }

    pub(super) fn add_unread(&mut self, user: &UserId) {
        if self.members.len() < MOST {
            self.unread.insert(user.clone());
        }
    }

    pub(super) fn add(&mut self, seen: Seen) {
        if self.members.len() < MOST {
            self.members.push(seen);
        }
    }
}

impl Inner {
    /// Takes the roles from these members, or holds that.
    pub(super) async fn take_roles(
        &self,
        code: &str,
        lost: LostRoles,
        comparison: &mut Comparison<'_>,
        scanned: &mut Scanned,
    ) -> Result<(), Error> {
        if lost.members.is_empty() {
            return Ok(());
        }
        let decision = self.decide_about(code, &lost, comparison, scanned).await?;
        let is_taken = |seen: &Seen| match decision {
            Some(Decision::All) => true,
            Some(Decision::Approved) => Lost::Role.is_approved(&seen.user, code, comparison.approved),
            None => false,
        };
        let (taken, kept): (Vec<Seen>, Vec<Seen>) = lost.members.into_iter().partition(is_taken);
        // A read would contain the roles: until the decision about these their permissions stay unknown.
        let unread = kept.iter().filter(|seen| lost.unread.contains(&seen.user)).count();
        comparison.found.unknown_permissions += unread as u64;
        self.repair_members(taken, comparison, scanned).await?;
        self.repair_members(kept.into_iter().map(Seen::without_roles).collect(), comparison, scanned).await
    }

    /// Returns which of the roles are taken; `None` if single reads do not confirm the loss.
    async fn decide_about(
        &self,
        code: &str,
        lost: &LostRoles,
        comparison: &Comparison<'_>,
        scanned: &mut Scanned,
    ) -> Result<Option<Decision>, Error> {
        let LostRoles { members, had, .. } = lost;
        let (run, approved) = (comparison.run, comparison.approved);
        if let Some(problem) = self.sample_roles(code, members, run.writes()).await?.problem() {
            tracing::warn!(
                organization = code,
                problem,
                "Kinde's list of members lacks roles, and they stay"
            );
            scanned.tally.add_count(DriftKind::Undetermined, members.len());
            return Ok(None);
        }
        let users: Vec<UserId> = members.iter().map(|seen| seen.user.clone()).collect();
        let removal = Confirmed { lost: Lost::Role, code, users: &users, had: *had };
        self.decide(run, removal, scanned, approved).await.map(Some)
    }

    /// Reads some of the members. A failed read confirms nothing.
    async fn sample_roles(&self, code: &str, lost: &[Seen], term: Option<Term>) -> Result<Sample, Error> {
        let every = lost.len().div_ceil(SAMPLE).max(1);
        let members: Vec<Seen> = lost.iter().step_by(every).cloned().collect();
        let rows = self.rows(&members).await?;
        let mut sample = Sample::Unusable;
        for (listed, row) in members.iter().zip(rows) {
            let Some(row) = row else { continue };
            let read = match self.member(&row, code, term).await {
                // A revoked role must not stay because of a missing scope. The budget still counts.
                Err(Error::Kinde(management::Error::MissingScope { .. })) => return Ok(Sample::Lost),
                // Kinde names a missing scope. Another refusal, for example by a proxy, confirms nothing.
                Err(Error::Kinde(error)) if lacks_scope(&error) => continue,
                read => read?,
            };
            let Some(read) = read else { continue };
            if listed.lacks(Some(&row)).iter().any(|key| read.role_keys.contains(key)) {
                return Ok(Sample::Contradicts);
            }
            sample = Sample::Lost;
        }
        Ok(sample)
    }
}
