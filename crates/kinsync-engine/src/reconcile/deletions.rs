//! Deletes users that are stored and no longer exist at Kinde.
//!
//! A user missing from every page is only a candidate: pages shift while users are added and removed. Only a complete scan
//! names candidates, and two single reads with a pause confirm each of them. A "not found" counts only while Kinde finds
//! canary users, which it has just listed. Many deletions at once are held for an operator, because a broken response looks
//! the same. An unreadable response leaves its user unchanged and does not stop the run.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::{StreamExt, TryStreamExt, stream};
use kinde::{management, response::Response};
use kinsync_core::{Micros, Observation, Source, UserId, Version, What};
use serde::{Deserialize, Serialize};

use super::{
    Error, Inner,
    compare::{Comparison, RemoteUser, drift},
    record::{DriftKind, EXAMPLES, Run, RunMode, Tally},
    scan::Scanned,
};
use crate::{
    scan_watermark::MAX_UNPROVEN,
    snapshot, state_records,
    store::{self, Row, Store},
};

/// Key of the record of held deletions in the store.
const HELD: &str = "reconcile.held";
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
/// Users per batch of single reads, with a canary check before and after.
const CHUNK: usize = 50;
/// Concurrent single reads.
const IN_FLIGHT: usize = 4;

/// Record of held deletions.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Held {
    /// Runs that held these users, or more. An approval may name any of them, because an alert may name an old run.
    runs: VecDeque<String>,
    users: HashSet<u64>,
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
    fn add(&mut self, user: UserId, approved: &HashSet<u64>) {
        if approved.contains(&hash(&user)) {
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

/// Limits of deletions without an operator's approval. A run is held when it exceeds both.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Thresholds {
    /// Number of deletions in one run.
    pub count: usize,
    /// Share of the live users, 0 to 1.
    pub share: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { count: 20, share: 0.05 }
    }
}

impl Thresholds {
    #[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
    fn exceeded(self, absent: usize, live: usize) -> bool {
        absent > self.count && absent as f64 > self.share * live as f64
    }
}

/// Result of single reads of a user.
enum DeletionCheck {
    /// Kinde knows no such user. Contains the request time of the first read.
    Absent(Micros),
    Present(RemoteUser),
    /// The response about this user is unreadable.
    Inconclusive,
}

impl DeletionCheck {
    fn of(answer: Response<Option<management::User>>) -> Self {
        let sent = answer.timing;
        let seen = answer.value.and_then(|user| RemoteUser::new(user, &sent));
        seen.map_or(Self::Absent(snapshot::sent_at(&sent)), Self::Present)
    }

    fn is_inconclusive(&self) -> bool {
        matches!(self, Self::Inconclusive)
    }
}

/// Returns whether the failure may concern this one user only, not Kinde or the credentials.
fn is_about_one(error: &management::Error) -> bool {
    use management::Error::{
        InvalidIdentifier, InvalidResponse, NotJson, ResponseTooLarge, UnexpectedStatus, WrongUser,
    };
    matches!(
        error,
        UnexpectedStatus { .. }
            | InvalidResponse(_)
            | NotJson { .. }
            | WrongUser
            | ResponseTooLarge { .. }
            | InvalidIdentifier
    )
}

/// Returns the first eight bytes of the SHA-256 of the id. Stable across versions, because it is stored.
pub(super) fn hash(user: &UserId) -> u64 {
    let digest = digest(&SHA256, user.as_str().as_bytes());
    digest.as_ref()[..8].iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

impl Inner {
    /// Deletes or holds users missing in the list. Returns the live users that are missing, or more of them than a proof may
    /// leave out.
    pub(super) async fn delete_absent(
        &self,
        run: &Run,
        scanned: &mut Scanned,
        approved: Option<HashSet<u64>>,
    ) -> Result<Vec<UserId>, Error> {
        scanned.listed.sort_unstable();
        let approved = approved.unwrap_or_default();
        let Candidates { approved, others, count, live, seen, unlisted } =
            self.candidates(run, scanned, &approved).await?;
        scanned.tally.merge(seen);
        let is_held = self.config.deletes.exceeded(count, live);
        if is_held {
            self.hold(run, &others, count, scanned).await?;
        }
        let to_delete = if is_held { approved } else { [approved, others].concat() };
        for users in to_delete.chunks(CHUNK) {
            self.check_candidates(run, users, scanned).await?;
        }
        Ok(unlisted)
    }

    /// Finds live users that are missing in the list and have no observation newer than the scan.
    async fn candidates(
        &self,
        run: &Run,
        scanned: &Scanned,
        approved: &HashSet<u64>,
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

    /// Deletes the users among these that Kinde does not know.
    async fn check_candidates(
        &self,
        run: &Run,
        users: &[UserId],
        scanned: &mut Scanned,
    ) -> Result<(), Error> {
        let rows = self.retry_store(|| self.store.load(users)).await?;
        let rows: Vec<Row> = rows.into_iter().flatten().filter(|row| may_be_absent(row, scanned)).collect();
        let users = rows.iter().map(|row| row.id.clone()).collect();
        let checked = self.confirm_absent(users, &scanned.canaries).await?;
        self.apply_checks(&rows, checked, run.mode == RunMode::DryRun, &mut scanned.tally).await
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
        if run.mode == RunMode::DryRun {
            return Ok(());
        }
        tracing::error!(
            run = run.id,
            users = count,
            "unusually many users no longer exist at Kinde, so their deletion is held: check the run, then run \
             `kinsync reconcile --approve {}` (with `--soon` while `kinsync serve` runs)",
            run.id
        );
        let users: HashSet<u64> = users.iter().map(hash).collect();
        Ok(self.retry_store(|| keep_held(&*self.store, run, &users)).await?)
    }

    /// Reads a sample of the missing users. Fails if Kinde knows most of them, because then the list is wrong.
    async fn check_list_plausible(&self, users: &[UserId], canaries: &[String]) -> Result<(), Error> {
        let every = users.len().div_ceil(SAMPLE).max(1);
        let sample = users.iter().step_by(every).cloned().collect();
        let checked = self.confirm_absent(sample, canaries).await?;
        let present = checked.iter().filter(|(_, check)| matches!(check, DeletionCheck::Present(_))).count();
        let absent = checked.iter().filter(|(_, check)| matches!(check, DeletionCheck::Absent(_))).count();
        if present > absent { Err(Error::ListIncomplete) } else { Ok(()) }
    }

    /// Reads each user once, and a second time after a pause if the first read finds no user.
    async fn confirm_absent(
        &self,
        users: Vec<UserId>,
        canaries: &[String],
    ) -> Result<Vec<(UserId, DeletionCheck)>, Error> {
        let first = self.read_users(users, canaries).await?;
        let (absent, mut checked): (Vec<_>, Vec<_>) =
            first.into_iter().partition(|(_, check)| matches!(check, DeletionCheck::Absent(_)));
        if absent.is_empty() {
            return Ok(checked);
        }
        tokio::time::sleep(self.config.between_reads).await;
        let again = self.read_users(absent.iter().map(|(id, _)| id.clone()).collect(), canaries).await?;
        // Of two reads with the same result, the first one determines the time of the deletion.
        checked.extend(absent.into_iter().zip(again).map(|(first, again)| match again.1 {
            DeletionCheck::Absent(_) => first,
            DeletionCheck::Present(_) | DeletionCheck::Inconclusive => again,
        }));
        Ok(checked)
    }

    /// Reads each user once, in order, with a canary check before and after.
    async fn read_users(
        &self,
        users: Vec<UserId>,
        canaries: &[String],
    ) -> Result<Vec<(UserId, DeletionCheck)>, Error> {
        self.check_canaries(canaries).await?;
        let read = |id: UserId| async move {
            let check = match self.kinde.user(id.as_str()).await {
                Ok(answer) => DeletionCheck::of(answer),
                Err(error) if is_about_one(&error) => {
                    // During an outage of Kinde every further read would run into its timeout too.
                    if error.is_transient() {
                        self.check_canaries(canaries).await?;
                    }
                    let error = crate::breaker::error_chain(&error);
                    tracing::warn!(user = id.as_str(), error, "Kinde's response about a user is unreadable");
                    DeletionCheck::Inconclusive
                }
                Err(error) => return Err(Error::Kinde(error)),
            };
            Ok::<_, Error>((id, check))
        };
        let checked = stream::iter(users).map(read).buffered(IN_FLIGHT).try_collect().await?;
        self.check_canaries(canaries).await?;
        Ok(checked)
    }

    /// Fails unless Kinde finds at least one canary user.
    async fn check_canaries(&self, canaries: &[String]) -> Result<(), Error> {
        let mut failure = None;
        for canary in canaries {
            match self.kinde.user(canary).await {
                Ok(answer) if answer.value.is_some() => return Ok(()),
                Ok(_) => {}
                Err(error) if is_about_one(&error) && !error.is_transient() => failure = Some(error),
                Err(error) => return Err(Error::Kinde(error)),
            }
        }
        Err(failure.map_or(Error::CanariesUnknown, Error::Kinde))
    }

    /// Counts the results and writes them unless the run is dry.
    async fn apply_checks(
        &self,
        rows: &[Row],
        checked: Vec<(UserId, DeletionCheck)>,
        is_dry: bool,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let (mut observations, mut differing) = (Vec::new(), Vec::new());
        for (id, check) in checked {
            let row = rows.iter().find(|row| row.id == id);
            match check {
                DeletionCheck::Absent(at) => {
                    tally.add(drift(id.clone(), DriftKind::Deleted, Vec::new(), row));
                    observations.push(deletion(id, at));
                }
                DeletionCheck::Present(seen) => match seen.compare(row) {
                    Comparison::Differs(drift, repair) => {
                        differing.push(drift);
                        observations.extend(repair);
                    }
                    _ if row.is_some_and(|row| seen.lead(row).is_some()) => {
                        tally.add(drift(id, DriftKind::TooRecent, Vec::new(), row));
                    }
                    _ => tally.unchanged += 1,
                },
                DeletionCheck::Inconclusive => tally.add(drift(id, DriftKind::Undetermined, Vec::new(), row)),
            }
        }
        self.repair(observations, differing, is_dry, tally).await
    }

    /// Re-reads single users and repairs differences. Restores a user that is deleted in the store and confirmed by two
    /// reads.
    pub(super) async fn check(&self, users: &[UserId], is_dry: bool, tally: &mut Tally) -> Result<(), Error> {
        let canaries = self.canaries().await?;
        for ids in users.chunks(CHUNK) {
            let rows = self.retry_store(|| self.store.load(ids)).await?;
            let checked = self.confirm_absent(ids.to_vec(), &canaries).await?;
            let (live, dead): (Vec<_>, Vec<_>) = checked.into_iter().partition(|(id, check)| {
                check.is_inconclusive()
                    || rows.iter().flatten().find(|row| row.id == *id).is_none_or(|row| row.state.is_live())
            });
            let rows: Vec<Row> = rows.into_iter().flatten().collect();
            // A user that is neither stored nor known at Kinde needs no repair.
            let known = live.into_iter().filter(|(id, check)| {
                !matches!(check, DeletionCheck::Absent(_)) || rows.iter().any(|row| row.id == *id)
            });
            self.apply_checks(&rows, known.collect(), is_dry, tally).await?;
            self.restore(&rows, dead, &canaries, is_dry, tally).await?;
        }
        Ok(())
    }

    async fn restore(
        &self,
        rows: &[Row],
        dead: Vec<(UserId, DeletionCheck)>,
        canaries: &[String],
        is_dry: bool,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let of = |id: &UserId| rows.iter().find(|row| row.id == *id);
        let mut present = Vec::new();
        for (id, check) in dead {
            let DeletionCheck::Present(seen) = check else { continue };
            match seen.compare(of(&id)) {
                Comparison::NeedsSecondRead => present.push(id),
                // An event deleted the user, and nothing is newer: Kinde may still list a user with a retained profile.
                Comparison::ListedAfterDeletion(drift) => tally.add(drift),
                Comparison::Differs(..) | Comparison::Equal => {}
            }
        }
        if present.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(self.config.between_reads).await;
        let (mut observations, mut differing) = (Vec::new(), Vec::new());
        for (id, check) in self.read_users(present, canaries).await? {
            if let (DeletionCheck::Present(seen), Some(row)) = (check, of(&id)) {
                differing.push(drift(id, DriftKind::Restored, Vec::new(), Some(row)));
                observations.extend(seen.exists());
            }
        }
        self.repair(observations, differing, is_dry, tally).await
    }

    /// Returns ids of some users that Kinde lists now.
    async fn canaries(&self) -> Result<Vec<String>, Error> {
        let page = self.kinde.users().next().await.map_err(Error::Kinde)?;
        let listed: Vec<String> =
            page.into_iter().flat_map(|page| page.users).take(8).map(|user| user.id).collect();
        if listed.is_empty() { Err(Error::EmptyTenant) } else { Ok(listed) }
    }
}

fn deletion(user: UserId, at: Micros) -> Observation {
    let version = Version::snapshot(at, "gone");
    Observation { user, version, source: Source::Reconcile, what: What::Deleted }
}

/// Returns whether a live user has no observation newer than the scan and was not changed during it.
fn may_be_absent(row: &Row, scanned: &Scanned) -> bool {
    let newest = row.state.fields.values().map(|register| register.version.at).max();
    // A user without an observation that has a time, such as one from a token, may have been created during the scan.
    let is_changed_since = row.metadata.changed_after.is_some_and(|known| known >= scanned.number);
    row.state.is_live() && !is_changed_since && newest < scanned.sent.map(|(first, _)| first)
}

/// Records the held deletions of this run. Earlier runs stay approvable while the held users are the same or fewer.
async fn keep_held(store: &dyn Store, run: &Run, users: &HashSet<u64>) -> Result<(), store::Error> {
    state_records::change(store, HELD, |held: &mut Held| {
        if !users.is_subset(&held.users) {
            held.runs.clear();
        }
        held.users.clone_from(users);
        held.runs.push_front(run.id.clone());
        held.runs.truncate(MOST_RUNS);
    })
    .await
}

/// Returns the hashes of the users held by this run, or `None` if its deletions were replaced.
pub(super) async fn approved(store: &dyn Store, run: &str) -> Result<Option<HashSet<u64>>, store::Error> {
    let held: Held = state_records::load(store, HELD).await?;
    Ok(held.runs.iter().any(|known| known == run).then_some(held.users))
}

/// Default pause between two reads of one user.
pub(super) const BETWEEN_READS: Duration = Duration::from_secs(2);
