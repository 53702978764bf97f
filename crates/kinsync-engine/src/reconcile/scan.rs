//! Everybody at Kinde, page by page, beside the stored users.
//!
//! Pages follow each other; some hundred users at a time are compared and written while the next
//! pages are fetched. What is written is kept in order, so that a scan that was cut goes on at the
//! first page that is not.

use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use kinde::management::{Pages, UsersPage};
use kinsync_core::{Field, Micros, UserId};
use serde::{Deserialize, Serialize};
use tokio_util::task::TaskTracker;

use super::{
    Error, Parts, Progress,
    compare::{Found, Seen},
    gone::hash,
    record::{Kind, Tally, Wish},
};
use crate::{
    apply::apply,
    kept,
    store::{self, Store},
};

/// Where the place is kept at which a backfill goes on.
const KEY: &str = "reconcile.checkpoint";
/// Users that are compared and written together, unless a page has more.
const BATCH: usize = 1000;
/// Batches in work while the next page is fetched.
const IN_WORK: usize = 3;
/// Users that are remembered to be asked about, to see whether Kinde knows those whom it listed.
const CONTROLS: usize = 8;
/// Deleted users who are asked about a second time, at most; the others are by the next scan.
const DOUBTFUL: usize = 1000;

/// Where a scan was cut.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Checkpoint {
    /// The page to go on with; `None`: nothing was cut.
    pub(super) next_token: Option<String>,
    /// What was found before it.
    pub(super) tally: Tally,
}

impl Checkpoint {
    pub(super) async fn load(store: &dyn Store) -> Result<Self, store::Error> {
        kept::load(store, KEY).await
    }

    pub(super) async fn save(&self, store: &dyn Store) -> Result<(), store::Error> {
        kept::change(store, KEY, |kept: &mut Self| kept.clone_from(self)).await
    }
}

/// What a scan over all pages saw.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub(super) tally: Tally,
    /// Hashes of the users that were listed.
    pub(super) listed: Vec<u64>,
    /// When the first page was asked for, by Kinde's clock.
    pub(super) first_sent: Option<Micros>,
    /// What was told of every user.
    pub(super) fields: Option<Vec<Field>>,
    /// Deleted in the store; Kinde should be asked a second time.
    pub(super) doubtful: Vec<UserId>,
    /// Some of those who were listed.
    pub(super) controls: Vec<String>,
}

/// Some pages that follow each other.
#[derive(Default)]
struct Batch {
    pages: Vec<UsersPage>,
    users: usize,
}

/// What was made of them.
struct Compared {
    tally: Tally,
    listed: Vec<u64>,
    fields: Option<Vec<Field>>,
    doubtful: Vec<UserId>,
    control: Option<String>,
    first_sent: Option<Micros>,
    next_token: Option<String>,
}

/// Compares everybody from these pages on; writes what differs unless the wish is dry.
pub(super) async fn scan(
    parts: &Arc<Parts>,
    tasks: &TaskTracker,
    wish: &Wish,
    pages: Pages,
    before: Tally,
    progress: Progress<'_>,
) -> Result<Scanned, Error> {
    let mut scanned = Scanned { tally: before, ..Scanned::default() };
    let is_dry = *wish == Wish::Dry;
    // Who is gone is looked for among those who are not here; a backfill does not, and remembers nobody.
    let remembers = *wish != Wish::Backfill;
    let work = |batch: Result<Batch, Error>| {
        let parts = Arc::clone(parts);
        let task = tasks.spawn(async move { parts.compare(batch?, is_dry, remembers).await });
        async { task.await.unwrap_or(Err(Error::Ended)) }
    };
    let mut compared = std::pin::pin!(batches(pages).map(work).buffered(IN_WORK));
    while let Some(compared) = compared.next().await {
        let compared = compared?;
        scanned.add(compared.tally, compared.fields);
        scanned.listed.extend(compared.listed);
        scanned.doubtful.extend(compared.doubtful);
        scanned.doubtful.truncate(DOUBTFUL);
        scanned.first_sent = scanned.first_sent.min(compared.first_sent).or(compared.first_sent);
        if scanned.controls.len() < CONTROLS {
            scanned.controls.extend(compared.control);
        }
        // After the last page there is nothing to go on with: what was kept stands until the run has ended.
        if *wish == Wish::Backfill && compared.next_token.is_some() {
            let checkpoint = Checkpoint { next_token: compared.next_token, tally: scanned.tally.clone() };
            parts.patiently(|| checkpoint.save(&*parts.store)).await?;
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

impl Parts {
    async fn compare(&self, batch: Batch, is_dry: bool, remembers: bool) -> Result<Compared, Error> {
        let pages = batch.pages.len() as u64;
        let first_sent = batch.pages.first().map(|page| crate::snapshot::sent_at(&page.sent));
        let next_token = batch.pages.last().and_then(|page| page.next_token.clone());
        let users = batch.pages.into_iter().flat_map(|UsersPage { users, sent, .. }| {
            users.into_iter().map(move |user| Seen::new(user, &sent))
        });
        let seen: Vec<Seen> = users.flatten().collect();
        let unusable = batch.users - seen.len();
        let ids: Vec<UserId> = seen.iter().map(|seen| seen.user.clone()).collect();
        let rows = self.patiently(|| self.store.load(&ids)).await?;
        let mut tally = Tally { pages, users: ids.len() as u64, ..Tally::default() };
        let (mut observations, mut doubtful) = (Vec::new(), Vec::new());
        for (seen, row) in seen.iter().zip(&rows) {
            match seen.compare(row.as_ref()) {
                Found::Same => tally.unchanged += 1,
                Found::Doubtful => doubtful.push(seen.user.clone()),
                Found::Listed(drift) => tally.add(drift),
                Found::Differs(drift, told) => {
                    tally.add(drift);
                    observations.extend(told);
                }
            }
        }
        if unusable > 0 {
            tracing::warn!(users = unusable, "Kinde lists users whose ids cannot be ids; they are left out");
        }
        if !is_dry && !observations.is_empty() {
            self.repair(&observations, &mut tally).await?;
        }
        let told_of_first = seen.first().map(|seen| seen.told.iter().map(|(field, _)| field));
        let told_of_all = |field: &Field| seen.iter().all(|seen| seen.told.value(*field).is_some());
        Ok(Compared {
            tally,
            listed: if remembers { ids.iter().map(hash).collect() } else { Vec::new() },
            fields: told_of_first.map(|fields| fields.filter(told_of_all).collect()),
            doubtful,
            control: ids.first().map(|id| id.as_str().to_owned()),
            first_sent,
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
        let applied = self.patiently(|| apply(&*self.store, observations.iter().cloned(), now)).await?;
        for (user, reason) in applied.rejected {
            tracing::warn!(user = user.as_str(), reason, "the store refused a user");
            tally.add(super::compare::drift(user, Kind::Rejected, Vec::new(), None));
        }
        Ok(())
    }
}
