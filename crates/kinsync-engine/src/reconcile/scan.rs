//! Everybody at Kinde, page by page, beside the stored users.
//!
//! Pages follow each other; some hundred users at a time are compared and written while the next
//! pages are fetched. What is written is kept in order, so that a scan that was cut goes on at the
//! first page that is not.

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use kinde::management::{Pages, UsersPage};
use kinsync_core::{Field, Micros, UserId};
use serde::{Deserialize, Serialize};
use tokio_util::task::TaskTracker;

use super::{
    Error, Inner, Progress,
    compare::{Comparison, RemoteUser},
    deletions::hash,
    record::{DriftKind, PreviousScan, Run, RunMode, Tally},
};
use crate::{
    apply::apply,
    snapshot, state_records,
    store::{self, Store},
};

/// Where the place is kept at which a backfill goes on.
const KEY: &str = "reconcile.checkpoint";
/// BatchOptions long after it began a backfill that was cut is gone on with: what it compared at first is old by then.
const RESUME_WITHIN: Duration = Duration::from_hours(12);
/// Users that are compared and written together, unless a page has more.
const BATCH: usize = 1000;
/// Batches in work while the next page is fetched.
const BATCHES_IN_PROGRESS: usize = 3;
/// Users that are remembered to be asked about, to see whether Kinde knows those whom it listed.
const CANARIES: usize = 8;
/// Deleted users who are asked about a second time, at most; the others are by the next scan.
const MAX_SECOND_READS: usize = 1000;

/// Where a scan was cut.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Checkpoint {
    /// The page to go on with; `None`: nothing was cut.
    pub(super) next_token: Option<String>,
    /// What was found before it.
    pub(super) tally: Tally,
    /// When its first page was asked for, by our clock.
    began: Option<Micros>,
    /// The lease under which it goes on. Who has lost it, keeps nothing more.
    term: u64,
}

impl Checkpoint {
    /// Where the holder of this lease goes on: at the beginning, unless something was cut that is not old.
    pub(super) async fn take(store: &dyn Store, term: u64, now: Micros) -> Result<Self, store::Error> {
        state_records::change(store, KEY, |kept: &mut Self| {
            if kept.is_old(now) {
                *kept = Self::anew(term, now);
            }
            kept.term = term;
        })
        .await?;
        state_records::load(store, KEY).await
    }

    fn anew(term: u64, now: Micros) -> Self {
        Self { term, began: Some(now), ..Self::default() }
    }

    /// Under the same lease, at the beginning.
    pub(super) fn anew_at(&self, now: Micros) -> Self {
        Self::anew(self.term, now)
    }

    /// The same backfill, further on.
    fn at(&self, next_token: Option<String>, tally: Tally) -> Self {
        Self { next_token, tally, ..*self }
    }

    /// Keeps it, unless another has taken over.
    pub(super) async fn save(&self, store: &dyn Store) -> Result<(), store::Error> {
        state_records::change(store, KEY, |kept: &mut Self| {
            if kept.term == self.term {
                kept.clone_from(self);
            }
        })
        .await
    }

    fn is_old(&self, now: Micros) -> bool {
        let longest = i64::try_from(RESUME_WITHIN.as_micros()).unwrap_or(i64::MAX);
        let is_late = |began: Micros| now.0.saturating_sub(began.0) > longest;
        self.next_token.is_none() || self.began.is_none_or(is_late)
    }
}

/// What a scan over all pages saw.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub(super) tally: Tally,
    /// Hashes of the users that were listed.
    pub(super) listed: Vec<u64>,
    /// When the first page was asked for, and the last, by Kinde's clock.
    pub(super) sent: Option<(Micros, Micros)>,
    /// What was told of every user.
    pub(super) fields: Option<Vec<Field>>,
    /// Deleted in the store; Kinde should be asked a second time.
    pub(super) second_reads: Vec<UserId>,
    /// Some of those who were listed.
    pub(super) canaries: Vec<String>,
}

/// Some pages that follow each other.
#[derive(Default)]
struct Batch {
    pages: Vec<UsersPage>,
    users: usize,
}

/// What is to be made of them.
#[derive(Clone, Copy)]
struct BatchOptions {
    /// Nothing is written.
    is_dry: bool,
    /// Who is gone is looked for among those who are not here; a backfill does not, and remembers nobody.
    remembers: bool,
    /// What changed since then is counted.
    before: Option<PreviousScan>,
}

/// What was made of them.
struct Compared {
    tally: Tally,
    listed: Vec<u64>,
    fields: Option<Vec<Field>>,
    second_reads: Vec<UserId>,
    canaries: Vec<String>,
    sent: Option<(Micros, Micros)>,
    next_token: Option<String>,
}

/// Compares everybody from here on; writes what differs unless the mode is dry.
pub(super) async fn scan(
    parts: &Arc<Inner>,
    tasks: &TaskTracker,
    run: &Run,
    from: &Checkpoint,
    progress: Progress<'_>,
) -> Result<Scanned, Error> {
    let mut scanned = Scanned { tally: from.tally.clone(), ..Scanned::default() };
    let pages = match &from.next_token {
        Some(token) => parts.kinde.users_from(token.as_str()),
        None => parts.kinde.users(),
    };
    let options = BatchOptions {
        is_dry: run.mode == RunMode::DryRun,
        remembers: run.mode != RunMode::Backfill,
        before: run.before,
    };
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
        scanned.sent = match (scanned.sent, compared.sent) {
            (Some((first, last)), Some((from, until))) => Some((first.min(from), last.max(until))),
            (known, sent) => known.or(sent),
        };
        scanned.canaries.extend(compared.canaries);
        scanned.canaries.truncate(CANARIES);
        // After the last page there is nothing to go on with: what was kept stands until the run has ended.
        if run.mode == RunMode::Backfill && compared.next_token.is_some() {
            let checkpoint = from.at(compared.next_token, scanned.tally.clone());
            parts.retry_store(|| checkpoint.save(&*parts.store)).await?;
        }
        progress(&scanned.tally);
    }
    Ok(scanned)
}

impl Scanned {
    fn add(&mut self, tally: Tally, fields: Option<Vec<Field>>) {
        self.tally.merge(tally);
        self.fields = match (self.fields.take(), fields) {
            (Some(mut known), Some(fields)) => {
                known.retain(|field| fields.contains(field));
                Some(known)
            }
            (known, fields) => known.or(fields),
        };
    }
}

fn batches(pages: Pages) -> impl Stream<Item = Result<Batch, Error>> {
    stream::unfold(Some(pages), async |pages| {
        let mut pages = pages?;
        match next(&mut pages).await {
            Ok(Some(batch)) => Some((Ok(batch), Some(pages))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// The next pages that make a batch; the last one may be smaller.
async fn next(pages: &mut Pages) -> Result<Option<Batch>, Error> {
    let mut batch = Batch::default();
    while let Some(page) = pages.next().await.map_err(Error::Kinde)? {
        batch.users += page.users.len();
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
        let next_token = batch.pages.last().and_then(|page| page.next_token.clone());
        let users = batch.pages.into_iter().flat_map(|UsersPage { users, timing, .. }| {
            users.into_iter().map(move |user| RemoteUser::new(user, &timing))
        });
        let seen: Vec<RemoteUser> = users.flatten().collect();
        let unusable = batch.users - seen.len();
        let ids: Vec<UserId> = seen.iter().map(|seen| seen.user.clone()).collect();
        let rows = self.retry_store(|| self.store.load(&ids)).await?;
        let mut tally = Tally { pages, users: ids.len() as u64, ..Tally::default() };
        let (mut observations, mut second_reads) = (Vec::new(), Vec::new());
        for (seen, row) in seen.iter().zip(&rows) {
            let found = seen.compare(row.as_ref());
            if let Some(row) = row.as_ref().filter(|_| !found.is_missed()) {
                tally.count_stored(row, options.before);
            }
            match found {
                Comparison::Equal => tally.unchanged += 1,
                Comparison::NeedsSecondRead => second_reads.push(seen.user.clone()),
                Comparison::ListedAfterDeletion(drift) => tally.add(drift),
                Comparison::Differs(drift, told) => {
                    tally.add(drift);
                    observations.extend(told);
                }
            }
        }
        if unusable > 0 {
            tracing::warn!(users = unusable, "Kinde lists users whose ids cannot be ids; they are left out");
        }
        if !options.is_dry && !observations.is_empty() {
            self.repair(&observations, &mut tally).await?;
        }
        let told_of_first = seen.first().map(|seen| seen.profile.iter().map(|(field, _)| field));
        let told_of_all = |field: &Field| seen.iter().all(|seen| seen.profile.value(*field).is_some());
        Ok(Compared {
            tally,
            listed: if options.remembers { ids.iter().map(hash).collect() } else { Vec::new() },
            fields: told_of_first.map(|fields| fields.filter(told_of_all).collect()),
            second_reads,
            canaries: ids.iter().take(CANARIES).map(UserId::to_string).collect(),
            sent,
            next_token,
        })
    }

    /// Writes observations through the one door.
    pub(super) async fn repair(
        &self,
        observations: &[kinsync_core::Observation],
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let now = self.clock.now();
        let applied = self.retry_store(|| apply(&*self.store, observations.iter().cloned(), now)).await?;
        for (user, reason) in applied.rejected {
            tracing::warn!(user = user.as_str(), reason, "the store refused a user");
            tally.add(super::compare::drift(user, DriftKind::Rejected, Vec::new(), None));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::EmbeddedStore;

    fn found(users: u64) -> Tally {
        Tally { users, ..Tally::default() }
    }

    #[tokio::test]
    async fn who_lost_the_lease_keeps_no_checkpoint() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = EmbeddedStore::open(dir.path()).expect("an empty folder opens");
        let now = Micros(1_000_000);
        let first = Checkpoint::take(&store, 1, now).await.expect("the store answers");
        first.at(Some("b".into()), found(10)).save(&store).await.expect("kept");
        let second = Checkpoint::take(&store, 2, now).await.expect("the store answers");
        assert_eq!((second.next_token.as_deref(), second.tally.users), (Some("b"), 10), "it goes on");
        // The first one wakes while the second is at work, and after it is done.
        first.at(Some("c".into()), found(20)).save(&store).await.expect("it answers");
        let kept: Checkpoint = state_records::load(&store, KEY).await.expect("the store answers");
        assert_eq!(kept, second);
        Checkpoint::anew(2, now).save(&store).await.expect("kept");
        first.at(Some("c".into()), found(20)).save(&store).await.expect("it answers");
        let third = Checkpoint::take(&store, 3, now).await.expect("the store answers");
        assert_eq!(third, Checkpoint::anew(3, now), "nothing is left");
    }
}
