//! Who is in the store and not at Kinde any more.
//!
//! That a user is in no page proves nothing: pages shift while users are added and removed. So only
//! a scan that read every page names candidates, and each of them is asked about twice, with a
//! pause. Kinde's check that there is no such user counts only while it still knows users whom it
//! has just listed. Many at once are held, because a broken answer looks just like that. Of whom it gives no answer
//! that can be read, nothing is concluded: one odd user keeps nobody else from being looked at.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
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
    snapshot, state_records,
    store::{self, Row, Store},
};

/// Where it is kept whose deletion is held.
const HELD: &str = "reconcile.held";
/// Users whose deletion one run can make or hold; the others are found again.
const MOST_HELD: usize = 100_000;
/// Users about whom a run may leave open what Kinde has, and prove the others all the same.
const MOST_OPEN: usize = 1000;
/// Runs whose approval is taken while what they held stays the same.
const MOST_RUNS: usize = 1000;
/// Users who are asked about before so many are called gone.
const SAMPLE: usize = 20;
/// Ids that are read at once.
const IDS: usize = 10_000;
/// Rows that are loaded at once.
const ROWS: usize = 1000;
/// Users that are asked about between two looks at whether Kinde still knows anybody.
const CHUNK: usize = 50;
/// Questions in flight.
const IN_FLIGHT: usize = 4;

/// Whose deletion is held.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Held {
    /// The runs that held them and nobody else, or more of them: an approval may name any, as an old alert does.
    runs: VecDeque<String>,
    users: HashSet<u64>,
}

/// Who was not listed, as ids: there may be as many as there are users, when a list is cut short.
#[derive(Debug, Default)]
struct Candidates {
    /// Those whose deletion was approved.
    approved: Vec<UserId>,
    /// The first of the others.
    others: Vec<UserId>,
    /// How many others there are.
    count: usize,
    /// How many users are live.
    live: usize,
    /// What is counted of those who are deleted in the store.
    seen: Tally,
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

/// Who was not listed, of some users.
#[derive(Default)]
struct Unlisted {
    /// How many are deleted, or not there any more.
    dead: usize,
    /// The others of whom nothing newer than the scan is known.
    may_be_absent: Vec<UserId>,
    /// What is counted of those who are deleted.
    seen: Tally,
}

/// Deletions that are carried out without asking an operator.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Thresholds {
    /// So many in one run, whatever the share.
    pub count: usize,
    /// This share of the live users, whatever the number; 0 to 1.
    pub share: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { count: 20, share: 0.05 }
    }
}

impl Thresholds {
    #[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
    fn exceeded(self, gone: usize, live: usize) -> bool {
        gone > self.count && gone as f64 > self.share * live as f64
    }
}

/// What two reads said of a user.
enum DeletionCheck {
    /// There is no such user; the first read was asked for then.
    Absent(Micros),
    Present(RemoteUser),
    /// Nothing that can be read, about this one user.
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

/// Whether the failure may be about the one user who was asked for, and not about us or about Kinde.
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

/// Stable, so that it can be kept: the first bytes of the SHA-256 of the id.
pub(super) fn hash(user: &UserId) -> u64 {
    let digest = digest(&SHA256, user.as_str().as_bytes());
    digest.as_ref()[..8].iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

impl Inner {
    /// Deletes, or holds, who was not listed. `Some`: everybody who was stored when the run began is as Kinde has it,
    /// but these.
    pub(super) async fn delete_absent(
        &self,
        run: &Run,
        scanned: &mut Scanned,
        approved: Option<HashSet<u64>>,
    ) -> Result<Option<BTreeSet<UserId>>, Error> {
        scanned.listed.sort_unstable();
        let approved = approved.unwrap_or_default();
        let Candidates { approved, others, count, live, seen } =
            self.candidates(run, scanned, &approved).await?;
        scanned.tally.merge(seen);
        let is_held = self.config.deletes.exceeded(count, live);
        if is_held {
            self.hold(run, &others, count, scanned).await?;
        }
        let is_all = !is_held && count == others.len();
        let to_delete = if is_held { approved } else { [approved, others].concat() };
        let mut open = BTreeSet::new();
        for users in to_delete.chunks(CHUNK) {
            open.extend(self.check_candidates(run, users, scanned).await?);
        }
        Ok((is_all && open.len() <= MOST_OPEN).then_some(open))
    }

    /// Live users that were stored when the run began, of whom nothing newer is known, and who were not listed.
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
            for user in unlisted.may_be_absent {
                candidates.add(user, approved);
            }
            ids = following;
        }
        Ok(candidates)
    }

    /// Those of these users who were not listed.
    async fn unlisted(&self, run: &Run, scanned: &Scanned, ids: &[UserId]) -> Result<Unlisted, store::Error> {
        let is_missing = |id: &&UserId| scanned.listed.binary_search(&hash(id)).is_err();
        let missing: Vec<UserId> = ids.iter().filter(is_missing).cloned().collect();
        let mut unlisted = Unlisted { dead: missing.len(), ..Unlisted::default() };
        for ids in missing.chunks(ROWS) {
            let rows = self.retry_store(|| self.store.load(ids)).await?;
            for row in rows.into_iter().flatten() {
                if row.state.is_live() {
                    unlisted.dead -= 1;
                    unlisted.may_be_absent.extend(may_be_absent(&row, run, scanned).then_some(row.id));
                } else {
                    unlisted.seen.count_stored(&row, run.before);
                }
            }
        }
        Ok(unlisted)
    }

    /// Deletes those of these users whom Kinde does not know. Answers about whom it gave no clear answer.
    async fn check_candidates(
        &self,
        run: &Run,
        users: &[UserId],
        scanned: &mut Scanned,
    ) -> Result<Vec<UserId>, Error> {
        let rows = self.retry_store(|| self.store.load(users)).await?;
        let rows: Vec<Row> =
            rows.into_iter().flatten().filter(|row| may_be_absent(row, run, scanned)).collect();
        let users = rows.iter().map(|row| row.id.clone()).collect();
        let checked = self.confirm_absent(users, &scanned.canaries).await?;
        let open =
            checked.iter().filter(|(_, check)| check.is_inconclusive()).map(|(id, _)| id.clone()).collect();
        self.apply_checks(&rows, checked, run.mode == RunMode::DryRun, &mut scanned.tally).await?;
        Ok(open)
    }

    /// Holds the deletion of so many users, of whom these are the first.
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
            "so many users are not at Kinde any more that their deletion is held: look at the run, then \
             `kinsync reconcile --approve {}` (with `--soon` while `kinsync serve` runs)",
            run.id
        );
        let users: HashSet<u64> = users.iter().map(hash).collect();
        Ok(self.retry_store(|| keep_held(&*self.store, run, &users)).await?)
    }

    /// Asks about some of many users who were not listed: when Kinde knows most of them, it is the list that is wrong.
    async fn check_list_plausible(&self, users: &[UserId], canaries: &[String]) -> Result<(), Error> {
        let every = users.len().div_ceil(SAMPLE).max(1);
        let sample = users.iter().step_by(every).cloned().collect();
        let checked = self.confirm_absent(sample, canaries).await?;
        let there = checked.iter().filter(|(_, check)| matches!(check, DeletionCheck::Present(_))).count();
        let gone = checked.iter().filter(|(_, check)| matches!(check, DeletionCheck::Absent(_))).count();
        if there > gone { Err(Error::ListIncomplete) } else { Ok(()) }
    }

    /// Asks about each of these users; about those who seem gone twice.
    async fn confirm_absent(
        &self,
        users: Vec<UserId>,
        canaries: &[String],
    ) -> Result<Vec<(UserId, DeletionCheck)>, Error> {
        let first = self.read_users(users, canaries).await?;
        let (gone, mut checked): (Vec<_>, Vec<_>) =
            first.into_iter().partition(|(_, check)| matches!(check, DeletionCheck::Absent(_)));
        if gone.is_empty() {
            return Ok(checked);
        }
        tokio::time::sleep(self.config.between_reads).await;
        let again = self.read_users(gone.iter().map(|(id, _)| id.clone()).collect(), canaries).await?;
        // Of two reads that say the same, the first one dates it.
        checked.extend(gone.into_iter().zip(again).map(|(first, again)| match again.1 {
            DeletionCheck::Absent(_) => first,
            DeletionCheck::Present(_) | DeletionCheck::Inconclusive => again,
        }));
        Ok(checked)
    }

    /// Asks about each of these users once, in order, and before and after it about users who must be there.
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
                    // When Kinde is away, everybody else would have to be waited for too.
                    if error.is_transient() {
                        self.check_canaries(canaries).await?;
                    }
                    let error = crate::breaker::error_chain(&error);
                    tracing::warn!(user = id.as_str(), error, "Kinde's answer about a user cannot be read");
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

    /// Whether Kinde still knows somebody whom it listed.
    async fn check_canaries(&self, canaries: &[String]) -> Result<(), Error> {
        let mut odd = None;
        for canary in canaries {
            match self.kinde.user(canary).await {
                Ok(answer) if answer.value.is_some() => return Ok(()),
                Ok(_) => {}
                Err(error) if is_about_one(&error) && !error.is_transient() => odd = Some(error),
                Err(error) => return Err(Error::Kinde(error)),
            }
        }
        Err(odd.map_or(Error::CanariesUnknown, Error::Kinde))
    }

    /// Writes what two reads said.
    async fn apply_checks(
        &self,
        rows: &[Row],
        checked: Vec<(UserId, DeletionCheck)>,
        is_dry: bool,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let mut observations = Vec::new();
        for (id, check) in checked {
            let row = rows.iter().find(|row| row.id == id);
            match check {
                DeletionCheck::Absent(at) => {
                    tally.add(drift(id.clone(), DriftKind::Deleted, Vec::new(), row));
                    observations.push(deletion(id, at));
                }
                DeletionCheck::Present(seen) => match seen.compare(row) {
                    Comparison::Differs(drift, told) => {
                        tally.add(drift);
                        observations.extend(told);
                    }
                    _ => tally.unchanged += 1,
                },
                DeletionCheck::Inconclusive => tally.add(drift(id, DriftKind::Undetermined, Vec::new(), row)),
            }
        }
        if is_dry || observations.is_empty() {
            return Ok(());
        }
        self.repair(&observations, tally).await
    }

    /// Asks about users because somebody wants to know; and restores one who is deleted in the store and there after
    /// all, as two reads say.
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
            // Who is neither stored nor at Kinde is as it should be.
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
        let mut there = Vec::new();
        for (id, check) in dead {
            let DeletionCheck::Present(seen) = check else { continue };
            match seen.compare(of(&id)) {
                Comparison::NeedsSecondRead => there.push(id),
                // Kinde's own deletion, and nothing newer: Kinde may know a user whose profile was kept.
                Comparison::ListedAfterDeletion(drift) => tally.add(drift),
                Comparison::Differs(..) | Comparison::Equal => {}
            }
        }
        if there.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(self.config.between_reads).await;
        let mut observations = Vec::new();
        for (id, check) in self.read_users(there, canaries).await? {
            if let (DeletionCheck::Present(seen), Some(row)) = (check, of(&id)) {
                tally.add(drift(id, DriftKind::Restored, Vec::new(), Some(row)));
                observations.extend(seen.exists());
            }
        }
        if is_dry || observations.is_empty() {
            return Ok(());
        }
        self.repair(&observations, tally).await
    }

    /// Some users whom Kinde lists right now.
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

/// Whether nothing newer than the scan is known of a user who was stored when it began.
fn may_be_absent(row: &Row, run: &Run, scanned: &Scanned) -> bool {
    let newest = row.state.fields.values().map(|register| register.version.at).max();
    row.state.is_live()
        && row.metadata.inserted_at < run.started_at
        && newest < scanned.sent.map(|(first, _)| first)
}

/// Keeps whom this run holds. While they are the same or fewer, earlier runs can be approved too.
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

/// Whose deletion this run held.
pub(super) async fn approved(store: &dyn Store, run: &str) -> Result<Option<HashSet<u64>>, store::Error> {
    let held: Held = state_records::load(store, HELD).await?;
    Ok(held.runs.iter().any(|known| known == run).then_some(held.users))
}

/// The longest a check of one user takes beyond the answers of Kinde.
pub(super) const BETWEEN_READS: Duration = Duration::from_secs(2);
