//! Scans all users at Kinde, page by page, and compares them with the stored rows.
//!
//! Pages are requested one after the other; batches are compared and written while the next pages are fetched. Batches
//! complete in order, so an interrupted backfill resumes at the first incomplete page.

mod scanned;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use kinde::management::{Page, Pages, User};
use kinsync_core::{Field, Micros, Observation, UserId};
use serde::{Deserialize, Serialize};
use tokio_util::task::TaskTracker;

pub(super) use self::scanned::Scanned;
use self::scanned::{MAX_SECOND_READS, Removals, TooRecent};
use super::{
    Error, Inner, Progress,
    budget::hash,
    compare::{Comparison, RemoteUser},
    record::{Drift, DriftKind, PreviousScan, Run, RunMode, Tally},
};
use crate::{
    apply::{Applied, ComparedRows, apply, apply_compared},
    refused_users,
    scan_watermark::{MAX_UNPROVEN, ScanNumber, ScanWatermarks},
    snapshot,
    state_records::{self, Key, Term},
    store::{self, Store},
};

/// Record of the checkpoint of a backfill.
pub(super) const KEY: Key =
    Key::new("reconcile.checkpoint", "an interrupted backfill starts at the beginning");
/// Maximum age of a backfill that can be resumed. After that its first comparisons are outdated.
const RESUME_WITHIN: Duration = Duration::from_hours(12);
/// Minimum users per batch, except for the last batch.
const BATCH: usize = 500;
/// Batches in progress while the next page is fetched.
const BATCHES_IN_PROGRESS: usize = 3;
/// Number of canary users: listed users that single reads must find.
const CANARIES: usize = 8;

/// Position of an interrupted backfill.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Checkpoint {
    /// Token of the next page; `None` without an interrupted backfill.
    pub(super) next_token: Option<String>,
    /// Counts before that page.
    pub(super) tally: Tally,
    /// Request time of the first page, by kinsync's clock.
    began: Option<Micros>,
}

impl Checkpoint {
    /// Takes over the checkpoint for the holder of this lease: earlier holders can no longer save. Starts at the beginning
    /// if none exists or it is too old. Returns `None` if a process has a newer lease.
    pub(super) async fn take(
        store: &dyn Store,
        term: Term,
        now: Micros,
    ) -> Result<Option<Self>, store::Error> {
        state_records::change_under(store, &KEY, term, |kept: &mut Self| {
            if kept.is_old(now) {
                *kept = Self::anew(now);
            }
            kept.clone()
        })
        .await
    }

    /// Returns a checkpoint at the beginning.
    pub(super) fn anew(now: Micros) -> Self {
        Self { began: Some(now), ..Self::default() }
    }

    /// Returns a later position of the same backfill.
    fn at(&self, next_token: Option<String>, tally: Tally) -> Self {
        Self { next_token, tally, began: self.began }
    }

    /// Saves the checkpoint, unless another process has taken it over.
    pub(super) async fn save(&self, store: &dyn Store, term: Term) -> Result<(), store::Error> {
        state_records::change_under(store, &KEY, term, |kept: &mut Self| kept.clone_from(self)).await?;
        Ok(())
    }

    fn is_old(&self, now: Micros) -> bool {
        let longest = i64::try_from(RESUME_WITHIN.as_micros()).unwrap_or(i64::MAX);
        // An age below zero comes from a wrong clock and is unknown.
        let is_expired = |began: Micros| !(0..=longest).contains(&now.0.saturating_sub(began.0));
        self.next_token.is_none() || self.began.is_none_or(is_expired)
    }
}

/// Consecutive pages.
#[derive(Default)]
struct Batch {
    pages: Vec<Page<User>>,
    users: usize,
}

/// Options of the comparison of a batch.
#[derive(Clone, Copy)]
struct BatchOptions {
    /// The scan and the term of its lease; `None`: nothing is written.
    scan: Option<(Term, ScanNumber)>,
    /// Whether hashes of listed users are kept to detect deletions. A backfill keeps none.
    remembers: bool,
    /// Changes since this scan are counted by source.
    before: Option<PreviousScan>,
}

/// Result of the comparison of a batch.
struct Compared {
    tally: Tally,
    listed: Vec<u64>,
    fields: Option<Vec<Field>>,
    second_reads: Vec<UserId>,
    too_recent: TooRecent,
    unproven: Vec<UserId>,
    comparison: i64,
    canaries: Vec<String>,
    removals: Removals,
    organizations: HashSet<String>,
    sent: Option<(Micros, Micros)>,
    next_token: Option<String>,
}

/// Compares all users from the checkpoint on, and writes differences unless the mode is dry.
pub(super) async fn scan(
    parts: &Arc<Inner>,
    tasks: &TaskTracker,
    run: &Run,
    from: &Checkpoint,
    progress: Progress<'_>,
) -> Result<Scanned, Error> {
    let mut scanned =
        Scanned { tally: from.tally.clone(), has_all_pages: from.next_token.is_none(), ..Scanned::default() };
    let pages = match &from.next_token {
        Some(token) => parts.kinde.users_from(token.as_str()),
        None => parts.kinde.users(),
    };
    let scan = match run.writes() {
        Some(term) => {
            let number = parts.retry_store(|| ScanWatermarks::start(&*parts.store, term)).await?;
            Some((term, number.ok_or(Error::LeaseLost)?))
        }
        None => None,
    };
    let options = BatchOptions { scan, remembers: run.mode != RunMode::Backfill, before: run.before };
    scanned.number = scan.map_or(i64::MAX, |(_, number)| number.0);
    let work = |batch: Result<Batch, Error>| {
        let parts = Arc::clone(parts);
        let task = tasks.spawn(async move { parts.compare(batch?, options).await });
        async { task.await.unwrap_or(Err(Error::Ended)) }
    };
    let mut compared = std::pin::pin!(batches(pages).map(work).buffered(BATCHES_IN_PROGRESS));
    while let Some(compared) = compared.next().await {
        let compared = compared?;
        scanned.add(compared.tally, compared.fields);
        scanned.listed.extend(compared.listed);
        scanned.second_reads.extend(compared.second_reads);
        scanned.second_reads.truncate(MAX_SECOND_READS);
        scanned.too_recent.merge(compared.too_recent);
        // One more than a proof may have shows that there is none.
        let room = (MAX_UNPROVEN + 1).saturating_sub(scanned.unproven.len());
        scanned.unproven.extend(compared.unproven.into_iter().take(room));
        scanned.last_comparison = scanned.last_comparison.max(compared.comparison);
        scanned.sent = match (scanned.sent, compared.sent) {
            (Some((first, last)), Some((from, until))) => Some((first.min(from), last.max(until))),
            (known, sent) => known.or(sent),
        };
        scanned.canaries.extend(compared.canaries);
        scanned.canaries.truncate(CANARIES);
        scanned.removals.merge(compared.removals);
        scanned.add_organizations(compared.organizations);
        // The last page has no next token: the previous checkpoint stays until the end of the run.
        if run.mode == RunMode::Backfill && compared.next_token.is_some() {
            let checkpoint = from.at(compared.next_token, scanned.tally.clone());
            parts.retry_store(|| checkpoint.save(&*parts.store, run.term)).await?;
        }
        progress(&scanned.tally);
    }
    Ok(scanned)
}

fn batches(pages: Pages<User>) -> impl Stream<Item = Result<Batch, Error>> {
    stream::unfold(Some(pages), async |pages| {
        let mut pages = pages?;
        match next(&mut pages).await {
            Ok(Some(batch)) => Some((Ok(batch), Some(pages))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// Fetches the pages of the next batch. The last batch may be smaller.
async fn next(pages: &mut Pages<User>) -> Result<Option<Batch>, Error> {
    let mut batch = Batch::default();
    while let Some(page) = pages.next().await.map_err(Error::Kinde)? {
        batch.users += page.items.len();
        let is_last = page.next_token.is_none();
        batch.pages.push(page);
        if batch.users >= BATCH || is_last {
            break;
        }
    }
    Ok(Some(batch).filter(|batch| !batch.pages.is_empty()))
}

impl Inner {
    async fn compare(&self, batch: Batch, options: BatchOptions) -> Result<Compared, Error> {
        let pages = batch.pages.len() as u64;
        let times = || batch.pages.iter().map(|page| snapshot::sent_at(&page.timing));
        let sent = times().min().zip(times().max());
        let until = batch.pages.iter().map(|page| snapshot::not_after(&page.timing)).max();
        let next_token = batch.pages.last().and_then(|page| page.next_token.clone());
        let users = batch.pages.into_iter().flat_map(|Page { items, timing, .. }| {
            items.into_iter().map(move |user| RemoteUser::new(user, &timing))
        });
        let seen: Vec<RemoteUser> = users.flatten().collect();
        let unusable = batch.users - seen.len();
        let comparison = self.announce(options.scan, sent, until).await?;
        let ids: Vec<UserId> = seen.iter().map(|seen| seen.user.clone()).collect();
        let rows = self.retry_store(|| self.store.load(&ids)).await?;
        let mut tally = Tally { pages, users: ids.len() as u64, ..Tally::default() };
        let (mut observations, mut second_reads, mut differing) = (Vec::new(), Vec::new(), Vec::new());
        let (mut too_recent, mut revisions) = (TooRecent::default(), HashMap::new());
        let mut removals = Removals::default();
        for (seen, row) in seen.iter().zip(&rows) {
            let found = seen.compare(row.as_ref());
            let lead = row.as_ref().and_then(|row| seen.lead(row));
            if let Some(lead) = lead {
                too_recent.add(seen.user.clone(), lead);
            } else if found.is_to_be_marked(row.as_ref()) {
                revisions.insert(seen.user.clone(), row.as_ref().map_or(0, |row| row.revision));
            }
            if let Some(row) = row.as_ref().filter(|_| !found.is_missed()) {
                tally.count_stored(row, options.before);
            }
            match found {
                // Counted after a single read.
                Comparison::Equal if lead.is_some() => {}
                Comparison::Equal => tally.unchanged += 1,
                Comparison::NeedsSecondRead => second_reads.push(seen.user.clone()),
                Comparison::ListedAfterDeletion(drift) => tally.add(drift),
                Comparison::Differs(drift, repair) => {
                    let (repair, lost) = seen.without_removals(row.as_ref(), repair);
                    observations.extend(repair);
                    if lost.is_empty() {
                        differing.push(drift);
                    } else {
                        // The rest of the difference is repaired; the user is counted with the removal.
                        revisions.remove(&seen.user);
                        removals.add(&seen.user, lost, seen.at);
                    }
                }
            }
            removals.count_members(row.as_ref());
        }
        if unusable > 0 {
            tracing::warn!(users = unusable, "Kinde lists users with invalid ids; they are skipped");
        }
        let mut unproven = too_recent.users.clone();
        unproven.extend(removals.users());
        let compared = options.scan.map(|(_, scan)| ComparedRows { scan, comparison, revisions });
        let first_fields = seen.first().map(|seen| seen.profile.iter().map(|(field, _)| field));
        let is_in_all = |field: &Field| seen.iter().all(|seen| seen.profile.value(*field).is_some());
        let fields = first_fields.map(|fields| fields.filter(is_in_all).collect());
        let organizations = seen.iter().flat_map(RemoteUser::organizations).cloned().collect();
        // The repair loads the rows again.
        drop((rows, seen));
        unproven.extend(self.repair_compared(observations, differing, compared.as_ref(), &mut tally).await?);
        Ok(Compared {
            tally,
            listed: if options.remembers { ids.iter().map(hash).collect() } else { Vec::new() },
            fields,
            second_reads,
            too_recent,
            unproven,
            comparison,
            canaries: ids.iter().take(CANARIES).map(UserId::to_string).collect(),
            removals,
            organizations,
            sent,
            next_token,
        })
    }

    /// Announces a comparison with pages from this time; nothing in a dry run.
    async fn announce(
        &self,
        scan: Option<(Term, ScanNumber)>,
        sent: Option<(Micros, Micros)>,
        until: Option<Micros>,
    ) -> Result<i64, Error> {
        let (Some((term, scan)), Some((from, _)), Some(until)) = (scan, sent, until) else { return Ok(0) };
        let announce = || ScanWatermarks::announce(&*self.store, term, scan, (from, until));
        self.retry_store(announce).await?.ok_or(Error::LeaseLost)
    }

    /// Repairs a batch like [`Self::repair`], and marks its rows as compared. Without compared rows the run is dry. Returns
    /// the users with a difference that was not repaired.
    pub(super) async fn repair_compared(
        &self,
        observations: Vec<Observation>,
        differing: Vec<Drift>,
        compared: Option<&ComparedRows>,
        tally: &mut Tally,
    ) -> Result<HashSet<UserId>, Error> {
        let refused = match compared {
            None => self.refused(&differing).await?,
            Some(compared) if observations.is_empty() && compared.revisions.is_empty() => HashSet::new(),
            Some(compared) => {
                let now = self.clock.now();
                let apply = || apply_compared(&*self.store, observations.iter().cloned(), now, compared);
                not_written(self.retry_store(apply).await?)
            }
        };
        count(differing, &refused, tally);
        Ok(refused)
    }

    /// Counts users with a difference, and writes the observations with [`apply`] unless the run is dry. A user that the
    /// store refuses counts as refused and not as created or changed.
    pub(super) async fn repair(
        &self,
        observations: Vec<Observation>,
        differing: Vec<Drift>,
        is_dry: bool,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let refused = if is_dry { self.refused(&differing).await? } else { self.write(observations).await? };
        count(differing, &refused, tally);
        Ok(())
    }

    /// Returns those of these users with documents that a rule of the store refuses.
    async fn refused(&self, differing: &[Drift]) -> Result<HashSet<UserId>, Error> {
        let users: Vec<UserId> = differing.iter().map(|drift| drift.user.clone()).collect();
        let refused = self.retry_store(|| refused_users::of(&*self.store, &users)).await?;
        Ok(users
            .into_iter()
            .zip(refused)
            .filter(|(_, refused)| refused.is_some())
            .map(|(id, _)| id)
            .collect())
    }

    /// Returns the users that were not written.
    async fn write(&self, observations: Vec<Observation>) -> Result<HashSet<UserId>, Error> {
        if observations.is_empty() {
            return Ok(HashSet::new());
        }
        let now = self.clock.now();
        let applied = self.retry_store(|| apply(&*self.store, observations.iter().cloned(), now)).await?;
        Ok(not_written(applied))
    }
}

/// Counts users with a difference. One that the store refuses counts as refused and not as created or changed.
fn count(differing: Vec<Drift>, refused: &HashSet<UserId>, tally: &mut Tally) {
    for drift in differing {
        // The request path honors a deletion in any case.
        let is_refused = refused.contains(&drift.user) && drift.kind != DriftKind::Deleted;
        tally.add(if is_refused { Drift { kind: DriftKind::Refused, ..drift } } else { drift });
    }
}

/// Returns the users that were not written.
fn not_written(applied: Applied) -> HashSet<UserId> {
    for (user, reason) in &applied.failed {
        tracing::warn!(user = user.as_str(), reason, "the store failed to write a user");
    }
    applied.refused.into_iter().chain(applied.failed).map(|(user, _)| user).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::EmbeddedStore;

    fn found(users: u64) -> Tally {
        Tally { users, ..Tally::default() }
    }

    #[tokio::test]
    async fn a_process_without_the_lease_saves_no_checkpoint() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = EmbeddedStore::open(dir.path()).expect("an empty folder opens");
        let now = Micros(1_000_000);
        let take = async |term| Checkpoint::take(&store, Term(term), now).await.expect("the store answers");
        let first = take(1).await.expect("no newer lease");
        first.at(Some("b".into()), found(10)).save(&store, Term(1)).await.expect("kept");
        let second = take(2).await.expect("no newer lease");
        assert_eq!((second.next_token.as_deref(), second.tally.users), (Some("b"), 10), "it resumes");
        // The first process continues during the work of the second, and after it.
        first.at(Some("c".into()), found(20)).save(&store, Term(1)).await.expect("it answers");
        let kept: Checkpoint = state_records::load(&store, &KEY).await.expect("the store answers");
        assert_eq!(kept, second);
        Checkpoint::anew(now).save(&store, Term(2)).await.expect("kept");
        first.at(Some("c".into()), found(20)).save(&store, Term(1)).await.expect("it answers");
        assert_eq!(take(1).await, None, "nor does it begin again");
        assert_eq!(take(3).await, Some(Checkpoint::anew(now)), "nothing is left");
    }
}
