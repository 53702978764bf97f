//! Erases users some time after their deletion.

use std::{sync::Arc, time::Duration};

use kinsync_core::{Micros, UserId};
use tokio_util::sync::CancellationToken;

use super::{
    ApplicationFields, Eraser, Error,
    record::{self, Reason},
};
use crate::{breaker::error_chain, state_records::Key, work_lease::WorkLease};

pub(crate) static LEASE: Key =
    Key::new("erasure.lease", "two processes may erase deleted users at the same time");

/// Users that are erased together.
const PAGE: usize = 100;

/// Pause between two pages, so that events and requests go first.
const PAUSE: Duration = Duration::from_millis(200);

/// Time in which the other processes see an erasure, and erase the users from their queues and caches.
const SEEN: Duration = Duration::from_secs(1);

/// Time without a renewal after which another process continues.
const EXPIRES: Duration = Duration::from_mins(1);

/// Interval of the search for users to erase.
const EVERY: Duration = Duration::from_mins(15);

/// Erases users some time after their deletion. One process at a time does it.
#[derive(Debug)]
pub(crate) struct Automatic {
    eraser: Eraser,
    after: Duration,
    lease: WorkLease,
}

impl Automatic {
    pub(crate) fn new(eraser: Eraser, after: Duration) -> Self {
        let lease = WorkLease::new(Arc::clone(&eraser.store), &LEASE, EXPIRES);
        Self { eraser, after, lease }
    }

    /// Runs until `stop` is cancelled.
    pub(crate) async fn run(&self, stop: &CancellationToken) {
        loop {
            match Box::pin(stop.run_until_cancelled(self.round())).await {
                None => return,
                Some(Ok(0)) => {}
                Some(Ok(users)) => tracing::info!(users, "erased users that were deleted long ago"),
                Some(Err(error)) => {
                    tracing::warn!(
                        error = error_chain(&error),
                        "erasing deleted users failed; it is repeated"
                    );
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
                return;
            }
        }
    }

    /// Erases the users that are due, page by page. Returns their number; 0 also if another process does it.
    pub(crate) async fn round(&self) -> Result<u64, Error> {
        let Some(mut held) = self.lease.take().await? else { return Ok(0) };
        let Some(users) = held.during(self.erase_due()).await? else { return Ok(0) };
        held.release().await?;
        Ok(users)
    }

    async fn erase_due(&self) -> Result<u64, Error> {
        let (mut users, mut after) = (0, None);
        loop {
            let page = self.due(after.as_ref()).await?;
            let Some(last) = page.last().cloned() else { return Ok(users) };
            users += self.erase(&page).await?;
            after = Some(last);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn due(&self, after: Option<&UserId>) -> Result<Vec<UserId>, Error> {
        let age = i64::try_from(self.after.as_micros()).unwrap_or(i64::MAX);
        let before = Micros(self.eraser.clock.now().0.saturating_sub(age));
        Ok(self.eraser.store.deleted_before(before, after, PAGE).await?)
    }

    /// Nothing about a user that was deleted long ago is in a queue or being written: one pass is enough.
    async fn erase(&self, page: &[UserId]) -> Result<u64, Error> {
        let mut known = Vec::with_capacity(page.len());
        for user in page {
            match self.eraser.known(user).await {
                Ok(one) => known.push(one),
                // Restored by Kinde in the meantime.
                Err(Error::NotDeleted { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let (users, now) =
            (known.iter().map(|known| known.user.clone()).collect::<Vec<_>>(), self.eraser.clock.now());
        let report = self.eraser.erase_all(known, ApplicationFields::Keep, Reason::Requested, now).await?;
        if report.refused.is_none() {
            tokio::time::sleep(SEEN).await;
            for user in &users {
                record::remove(&*self.eraser.store, user, now).await?;
            }
        }
        Ok(users.len() as u64)
    }
}
