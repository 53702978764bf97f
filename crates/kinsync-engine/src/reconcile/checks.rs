//! Checks of single users: re-reads them from Kinde and repairs differences.
//!
//! A check runs under the lease and draws its deletions on the same budget as scans. Deletions that exceed the budget are
//! not carried out: the caller requests a scan, which holds them for an operator.

use kinsync_core::{Micros, UserId};

use super::{
    Error, Inner,
    budget::Budget,
    compare::drift,
    record::{self, DriftKind, Tally},
    single_reads::{CHUNK, Deletion, Findings, Unconfirmed},
};
use crate::{pending_checks::PendingChecks, state_records::Term, store};

/// Result of a round of checks.
pub(super) struct Checked {
    pub(super) tally: Tally,
    /// Users that changed too recently to be judged, or with reads that differ. Check them again later.
    pub(super) undecided: Vec<UserId>,
}

impl Inner {
    /// Runs the requested checks and removes their requests. Returns whether a scan is requested.
    pub(super) async fn run_checks(&self, term: Term) -> Result<bool, Error> {
        let mut requested = self.retry_store(|| PendingChecks::load(&*self.store)).await?;
        if requested.is_empty() {
            return Ok(requested.scan.is_some());
        }
        let mut is_held = false;
        if !requested.roles.is_empty() && self.config.roles {
            let roles: Vec<String> = requested.roles.keys().cloned().collect();
            is_held = self.check_roles(&roles, term).await?;
        }
        let users: Vec<UserId> = requested.users.keys().cloned().collect();
        let Checked { tally, undecided } = match users.as_slice() {
            [] => Checked { tally: Tally::default(), undecided: Vec::new() },
            users => self.check(users, Some(term)).await?,
        };
        is_held |= tally.of(DriftKind::DeletionHeld) > 0;
        if is_held {
            self.retry_store(|| PendingChecks::request_scan(&*self.store)).await?;
        }
        requested.users.retain(|user, _| !undecided.contains(user));
        let is_scan = requested.scan.take().is_some() || is_held;
        self.retry_store(|| PendingChecks::remove(&*self.store, &requested)).await?;
        Ok(is_scan)
    }

    /// Re-reads single users and repairs differences, under the lease with this term; without a term nothing is written.
    /// Restores a user that is deleted in the store and confirmed by two reads.
    pub(super) async fn check(&self, users: &[UserId], term: Option<Term>) -> Result<Checked, Error> {
        let canaries = self.canaries().await?;
        let mut checked = Checked { tally: Tally::default(), undecided: Vec::new() };
        let mut unconfirmed = Vec::new();
        for ids in users.chunks(CHUNK) {
            let rows = self.retry_store(|| self.store.load(ids)).await?;
            let users = ids.iter().cloned().zip(rows).collect();
            let found = self.examine(users, &canaries, &mut checked.tally).await?;
            unconfirmed.extend(self.keep(found, term, &mut checked).await?.unconfirmed);
        }
        let deletions = self.confirm_all(unconfirmed, &canaries, term, &mut checked).await?;
        self.delete_checked(deletions, &canaries, term, &mut checked.tally).await?;
        // Last, because a user in many organizations takes many reads, and deletions must not wait for them.
        for ids in users.chunks(CHUNK).filter(|_| self.config.roles) {
            let undetermined = self.check_members(ids, term, &mut checked.tally).await?;
            checked.undecided.extend(undetermined);
        }
        for ids in users.chunks(CHUNK) {
            self.check_properties(ids, term, &mut checked.tally).await?;
        }
        if term.is_some() && self.config.roles {
            // The reads may have named a role for the first time.
            self.spread.walk_all().await?;
        }
        Ok(checked)
    }

    async fn confirm_all(
        &self,
        mut unconfirmed: Vec<Unconfirmed>,
        canaries: &[String],
        term: Option<Term>,
        checked: &mut Checked,
    ) -> Result<Vec<Deletion>, Error> {
        let mut deletions = Vec::new();
        while !unconfirmed.is_empty() {
            let rest = unconfirmed.split_off(unconfirmed.len().min(CHUNK));
            let group = std::mem::replace(&mut unconfirmed, rest);
            let found = self.confirm(group, canaries, &mut checked.tally).await?;
            deletions.extend(self.keep(found, term, checked).await?.deletions);
        }
        Ok(deletions)
    }

    /// Repairs what needs no second read, and keeps the users that are too recent.
    async fn keep(
        &self,
        mut found: Findings,
        term: Option<Term>,
        checked: &mut Checked,
    ) -> Result<Findings, Error> {
        let (repairs, differing) = (std::mem::take(&mut found.repairs), std::mem::take(&mut found.differing));
        self.repair(repairs, differing, term.is_none(), &mut checked.tally).await?;
        checked.undecided.append(&mut found.too_recent);
        Ok(found)
    }

    /// Deletes all of these users or, if they exceed the budget, none.
    async fn delete_checked(
        &self,
        mut deletions: Vec<Deletion>,
        canaries: &[String],
        term: Option<Term>,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let Some(now) = deletions.iter().map(|deletion| deletion.at).max() else { return Ok(()) };
        let budget = self.retry_store(|| self.check_budget(now)).await?;
        let mut is_left = !budget.is_exceeded_by(deletions.len(), deletions.iter().map(|one| &one.row.id));
        while is_left && !deletions.is_empty() {
            let rest = deletions.split_off(deletions.len().min(CHUNK));
            self.check_canaries(canaries).await?;
            is_left = self.carry_out(term, Some(&budget), &deletions, tally).await?;
            if is_left {
                deletions = rest;
            } else {
                deletions.extend(rest);
            }
        }
        for Deletion { row, .. } in deletions {
            tally.add(drift(row.id.clone(), DriftKind::DeletionHeld, Vec::new(), Some(&row)));
        }
        Ok(())
    }

    async fn check_budget(&self, now: Micros) -> Result<Budget, store::Error> {
        // The store estimates the number, and may count documents of the application.
        let stored = self.store.counts().await?.live_users;
        let runs = record::runs(&*self.store).await?;
        let listed = runs.iter().find(|run| run.is_complete()).map(|run| run.tally.users);
        let live = listed.map_or(stored, |listed| listed.min(stored));
        Budget::load(&*self.store, self.config.deletes, live, now).await
    }
}
