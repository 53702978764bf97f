//! Deletes users that are stored and no longer exist at Kinde.
//!
//! A user missing from every page is only a candidate: pages shift while users are added and removed. Only a complete scan
//! names candidates, and two single reads (`single_reads`) confirm each of them. What exceeds the deletion budget
//! ([`super::budget`]) is held as a whole until an operator approves it, because a broken response looks the same. The record of held
//! deletions contains held removals ([`super::removals`]) too.

use std::collections::{HashSet, VecDeque};

use kinsync_core::{Micros, UserId};
use serde::{Deserialize, Serialize};

use super::{
    Error, Inner,
    budget::{Budget, hash},
    compare::drift,
    record::{DriftKind, EXAMPLES, Run, Tally},
    scan::Scanned,
    single_reads::{CHUNK, Unconfirmed, newest},
};
use crate::{
    scan_watermark::MAX_UNPROVEN,
    state_records::{self, Key},
    store::{self, Row, Store},
};

/// Record of held deletions.
pub(super) const KEY: Key =
    Key::new("reconcile.held", "held deletions cannot be approved until the next scan holds them again");
/// Maximum deletions per run, made or held. The next run finds the rest.
const MOST_HELD: usize = 100_000;
/// Maximum number of runs that can be approved while the held deletions stay the same.
const MOST_RUNS: usize = 1000;
/// Sample size of the plausibility check of a list.
const SAMPLE: usize = 20;
/// Ids per read of the store.
const IDS: usize = 10_000;
/// Rows per load.
const ROWS: usize = 1000;

/// Value of the record of held deletions.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Held {
    /// Runs that held these users, or more. An approval may name any of them, because an alert may name an old run.
    runs: VecDeque<String>,
    users: HashSet<u64>,
}

/// Deletions that an operator approved.
pub(super) enum Approved {
    /// Of users with these hashes.
    Users(HashSet<u64>),
    /// Of all users: the tenant is empty.
    All,
}

impl Approved {
    /// Returns whether the removal with this hash is approved.
    pub(super) fn contains_removal(&self, hash: u64) -> bool {
        match self {
            Self::Users(approved) => approved.contains(&hash),
            Self::All => false,
        }
    }

    fn contains(&self, user: &UserId) -> bool {
        match self {
            Self::Users(users) => users.contains(&hash(user)),
            Self::All => true,
        }
    }
}

/// Users missing in the list, as ids: a truncated list can make every user a candidate.
#[derive(Debug, Default)]
struct Candidates {
    /// Candidates with an approved deletion.
    approved: Vec<UserId>,
    /// The first [`MOST_HELD`] other candidates.
    others: Vec<UserId>,
    /// Number of other candidates.
    count: usize,
    /// Number of live users.
    live: usize,
    /// Counts of users that are deleted in the store, or too recent to judge.
    seen: Tally,
    /// The first [`MAX_UNPROVEN`] live users and one more: no proof covers a user that is not listed.
    unlisted: Vec<UserId>,
}

impl Candidates {
    fn add(&mut self, user: UserId, approved: &Approved) {
        if approved.contains(&user) {
            return self.approved.push(user);
        }
        self.count += 1;
        if self.others.len() < MOST_HELD {
            self.others.push(user);
        }
    }
}

/// Users of one page of ids that are missing in the list.
#[derive(Default)]
struct Unlisted {
    /// Number of users that are deleted or no longer stored.
    dead: usize,
    /// Live users.
    live: Vec<UserId>,
    /// Live users without an observation newer than the scan.
    may_be_absent: Vec<UserId>,
    /// Counts of the others.
    seen: Tally,
}

impl Inner {
    /// Deletes or holds users missing in the list. Returns the live users that are missing, or more of them than a proof may
    /// leave out.
    pub(super) async fn delete_absent(
        &self,
        run: &Run,
        scanned: &mut Scanned,
        approved: &Approved,
    ) -> Result<Vec<UserId>, Error> {
        scanned.listed.sort_unstable();
        let now = scanned.sent.map_or(Micros(i64::MIN), |(_, last)| last);
        let Candidates { approved, mut others, count, live, seen, unlisted } =
            self.candidates(run, scanned, approved).await?;
        scanned.tally.merge(seen);
        let (thresholds, live) = (self.config.deletes, live as u64);
        let budget = self.retry_store(|| Budget::load(&*self.store, thresholds, live, now)).await?;
        let is_held = budget.is_exceeded_by(count, others.iter());
        if is_held {
            self.hold(run, &others, count, scanned).await?;
            others.clear();
        }
        self.delete(run, &approved, None, scanned).await?;
        self.delete(run, &others, Some(&budget), scanned).await?;
        Ok(unlisted)
    }

    /// Finds live users that are missing in the list and have no observation newer than the scan.
    async fn candidates(
        &self,
        run: &Run,
        scanned: &Scanned,
        approved: &Approved,
    ) -> Result<Candidates, Error> {
        let mut candidates = Candidates::default();
        if scanned.sent.is_none() {
            return Ok(candidates);
        }
        let next = async |after: Option<&UserId>| self.retry_store(|| self.store.ids(after, IDS)).await;
        let mut ids = next(None).await?;
        while let Some(last) = ids.last() {
            let unlisted = self.unlisted(run, scanned, &ids);
            let (following, unlisted) = tokio::try_join!(next(Some(last)), unlisted)?;
            candidates.live += ids.len() - unlisted.dead;
            candidates.seen.merge(unlisted.seen);
            let room = (MAX_UNPROVEN + 1).saturating_sub(candidates.unlisted.len());
            candidates.unlisted.extend(unlisted.live.into_iter().take(room));
            for user in unlisted.may_be_absent {
                candidates.add(user, approved);
            }
            ids = following;
        }
        Ok(candidates)
    }

    /// Finds the users among `ids` that are missing in the list.
    async fn unlisted(&self, run: &Run, scanned: &Scanned, ids: &[UserId]) -> Result<Unlisted, store::Error> {
        let is_missing = |id: &&UserId| scanned.listed.binary_search(&hash(id)).is_err();
        let missing: Vec<UserId> = ids.iter().filter(is_missing).cloned().collect();
        let mut unlisted = Unlisted { dead: missing.len(), ..Unlisted::default() };
        for ids in missing.chunks(ROWS) {
            let rows = self.retry_store(|| self.store.load(ids)).await?;
            for row in rows.into_iter().flatten() {
                if row.state.is_live() {
                    unlisted.dead -= 1;
                    unlisted.live.push(row.id.clone());
                    if may_be_absent(&row, scanned) {
                        unlisted.may_be_absent.push(row.id);
                    } else {
                        unlisted.seen.add(drift(
                            row.id.clone(),
                            DriftKind::TooRecent,
                            Vec::new(),
                            Some(&row),
                        ));
                    }
                } else {
                    unlisted.seen.count_stored(&row, run.before);
                }
            }
        }
        Ok(unlisted)
    }

    /// Deletes the users among these that Kinde does not know, in groups. Without a budget the deletions are approved.
    async fn delete(
        &self,
        run: &Run,
        users: &[UserId],
        budget: Option<&Budget>,
        scanned: &mut Scanned,
    ) -> Result<(), Error> {
        let is_dry = run.writes().is_none();
        let mut unconfirmed: Vec<Unconfirmed> = Vec::new();
        for ids in users.chunks(CHUNK) {
            let rows = self.retry_store(|| self.store.load(ids)).await?.into_iter().flatten();
            let rows = rows.filter(|row| may_be_absent(row, scanned)).map(|row| (row.id.clone(), Some(row)));
            let found = self.examine(rows.collect(), &scanned.canaries, &mut scanned.tally).await?;
            self.repair(found.repairs, found.differing, is_dry, &mut scanned.tally).await?;
            unconfirmed.extend(found.unconfirmed);
        }
        while !unconfirmed.is_empty() {
            let rest = unconfirmed.split_off(unconfirmed.len().min(CHUNK));
            let group = std::mem::replace(&mut unconfirmed, rest);
            let found = self.confirm(group, &scanned.canaries, &mut scanned.tally).await?;
            self.repair(found.repairs, found.differing, is_dry, &mut scanned.tally).await?;
            if !self.carry_out(run.writes(), budget, &found.deletions, &mut scanned.tally).await? {
                // Checks of single users have drawn on the budget meanwhile: the rest is held.
                let held = found.deletions.into_iter().map(|deletion| deletion.row.id);
                let held: Vec<UserId> = held.chain(unconfirmed.into_iter().map(|one| one.row.id)).collect();
                return self.hold(run, &held, held.len(), scanned).await;
            }
        }
        Ok(())
    }

    /// Holds the deletion of `count` users; `users` are the first of them.
    async fn hold(
        &self,
        run: &Run,
        users: &[UserId],
        count: usize,
        scanned: &mut Scanned,
    ) -> Result<(), Error> {
        self.check_list_plausible(users, &scanned.canaries).await?;
        let examples = users.iter().take(EXAMPLES).cloned().collect::<Vec<_>>();
        let rows = self.retry_store(|| self.store.load(&examples)).await?;
        let rows: Vec<Row> = rows.into_iter().flatten().collect();
        for row in &rows {
            scanned.tally.add(drift(row.id.clone(), DriftKind::DeletionHeld, Vec::new(), Some(row)));
        }
        scanned.tally.add_count(DriftKind::DeletionHeld, count - rows.len());
        if run.writes().is_none() {
            return Ok(());
        }
        tracing::error!(
            run = run.id,
            users = count,
            "unusually many users no longer exist at Kinde, so their deletion is held: check the run, then run \
             `kinsync reconcile --approve {}` (with `--soon` while `kinsync serve` runs)",
            run.id
        );
        scanned.held.extend(users.iter().map(hash));
        Ok(())
    }

    /// Records what this run held.
    pub(super) async fn keep_held(&self, run: &Run, held: &HashSet<u64>) -> Result<(), Error> {
        if held.is_empty() || run.writes().is_none() {
            return Ok(());
        }
        let is_kept = self.retry_store(|| keep_held(&*self.store, run, held)).await?;
        if is_kept { Ok(()) } else { Err(Error::LeaseLost) }
    }

    /// Reads a sample of the missing users. Fails if Kinde has most of them, because then the list is wrong.
    async fn check_list_plausible(&self, users: &[UserId], canaries: &[String]) -> Result<(), Error> {
        let every = users.len().div_ceil(SAMPLE).max(1);
        let sample: Vec<UserId> = users.iter().step_by(every).cloned().collect();
        let rows = self.retry_store(|| self.store.load(&sample)).await?;
        let mut ignored = Tally::default();
        let first = self.examine(sample.into_iter().zip(rows).collect(), canaries, &mut ignored).await?;
        let again = self.confirm(first.unconfirmed, canaries, &mut ignored).await?;
        let (present, absent) = (first.present + again.present, again.deletions.len());
        if present > absent { Err(Error::ListIncomplete) } else { Ok(()) }
    }
}

/// Returns whether a live user has no observation newer than the scan and was not changed during it.
pub(super) fn may_be_absent(row: &Row, scanned: &Scanned) -> bool {
    // A user without an observation that has a time, such as one from a token, may have been created during the scan.
    let is_changed_since = row.metadata.changed_after.is_some_and(|known| known >= scanned.number);
    row.state.is_live() && !is_changed_since && newest(row) < scanned.sent.map(|(first, _)| first)
}

/// Records the held deletions of this run. Returns `false`, and records nothing, after a process with a newer lease did.
/// Earlier runs stay approvable while the held users are the same or fewer.
async fn keep_held(store: &dyn Store, run: &Run, users: &HashSet<u64>) -> Result<bool, store::Error> {
    let kept = state_records::change_under(store, &KEY, run.term, |held: &mut Held| {
        if !users.is_subset(&held.users) {
            held.runs.clear();
        }
        held.users.clone_from(users);
        held.runs.push_front(run.id.clone());
        held.runs.truncate(MOST_RUNS);
    });
    Ok(kept.await?.is_some())
}

/// Returns the hashes of the users held by this run, or `None` if its deletions were replaced.
pub(super) async fn approved(store: &dyn Store, run: &str) -> Result<Option<HashSet<u64>>, store::Error> {
    let held: Held = state_records::load(store, &KEY).await?;
    Ok(held.runs.iter().any(|known| known == run).then_some(held.users))
}
