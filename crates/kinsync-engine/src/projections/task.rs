//! Keeps the figures up to date in the background.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Scope, advance_all};
use crate::{
    breaker::error_chain,
    clock::Clock,
    state_records::Key,
    store::{Error, Store},
    work_lease::WorkLease,
};

/// Record of the process that computes.
pub(crate) static LEASE: Key =
    Key::new("projections.lease", "two processes may compute the same figures at the same time");

/// Time without a renewal after which another process computes.
const EXPIRES: Duration = Duration::from_mins(2);

/// Interval of the comparison of all days with the log. Entries can be logged long after their receipt: from a queue after an outage,
/// or from a dead letter.
const ALL_EVERY: Duration = Duration::from_hours(24);

/// The work takes at most this share of the time: `1 / SHARE`.
const SHARE: u32 = 20;

/// Time limit of the release of the lease at the end.
const RELEASE: Duration = Duration::from_secs(1);

/// Runs until `stop` is cancelled. The first run is one interval after the start. One process at a time computes; two do no harm,
/// only the same work twice.
pub(crate) async fn run(store: Arc<dyn Store>, clock: Clock, every: Duration, stop: CancellationToken) {
    let lease = WorkLease::new(Arc::clone(&store), &LEASE, EXPIRES);
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        if let Err(error) = compute(&store, &lease, &clock, every, &stop).await {
            tracing::warn!(error = error_chain(&error), "computing the daily figures failed; it continues");
        }
    }
}

/// Computes again and again while this process has the lease, and releases it when `stop` is cancelled.
async fn compute(
    store: &Arc<dyn Store>,
    lease: &WorkLease,
    clock: &Clock,
    every: Duration,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let Some(Some(mut held)) = stop.run_until_cancelled(lease.take()).await.transpose()? else {
        return Ok(());
    };
    let work = stop.run_until_cancelled(compute_regularly(&**store, clock, every));
    // Without the lease, another process continues.
    let is_held = held.during(async { work.await.transpose() }).await?.is_some();
    if is_held && !matches!(tokio::time::timeout(RELEASE, held.release()).await, Ok(Ok(()))) {
        tracing::debug!("the lease of the projections was not released; it expires");
    }
    Ok(())
}

/// Ends with an error only.
async fn compute_regularly(store: &dyn Store, clock: &Clock, every: Duration) -> Result<(), Error> {
    let mut all_at = None::<Instant>;
    loop {
        let is_due = all_at.is_none_or(|at| at.elapsed() >= ALL_EVERY);
        let scope = if is_due { Scope::Changed } else { Scope::Recent };
        let started = Instant::now();
        let report = advance_all(store, scope, clock.now()).await?;
        all_at = all_at.filter(|_| !is_due).or(Some(started));
        tracing::debug!(
            days = report.days,
            computed = report.computed,
            entries = report.entries,
            "daily figures computed"
        );
        tokio::time::sleep(every.max(started.elapsed() * SHARE)).await;
    }
}
