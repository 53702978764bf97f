//! Keeps the figures up to date in the background.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Scope, advance_all, lease::Lease};
use crate::{
    breaker::error_chain,
    clock::Clock,
    store::{Error, Store},
};

/// Interval of the comparison of all days with the log. Entries can be logged long after their receipt: from a queue after an outage,
/// or from a dead letter.
const ALL_EVERY: Duration = Duration::from_hours(24);

/// The work takes at most this share of the time: `1 / SHARE`.
const SHARE: u32 = 20;

/// Time limit of the release of the lease at the end.
const RELEASE: Duration = Duration::from_secs(1);

/// Runs until `stop` is cancelled. The first run is one interval after the start.
pub(crate) async fn run(store: Arc<dyn Store>, clock: Clock, every: Duration, stop: CancellationToken) {
    let (mut lease, mut all_at, mut pause) = (Lease::new(), None::<Instant>, every);
    while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let is_due = all_at.is_none_or(|at| at.elapsed() >= ALL_EVERY);
        let scope = if is_due { Scope::Changed } else { Scope::Recent };
        let started = Instant::now();
        match stop.run_until_cancelled(round(&*store, &clock, &mut lease, scope)).await {
            None => break,
            Some(Ok(has_run)) => all_at = all_at.filter(|_| !is_due).or(has_run.then_some(started)),
            Some(Err(error)) => {
                tracing::warn!(
                    error = error_chain(&error),
                    "computing the figures of days failed; it continues"
                );
            }
        }
        pause = every.max(started.elapsed() * SHARE);
    }
    if !matches!(tokio::time::timeout(RELEASE, lease.release(&*store)).await, Ok(Ok(()))) {
        tracing::debug!("the lease of the projections was not released; it expires");
    }
}

/// Computes once. Returns whether this process has the lease.
async fn round(store: &dyn Store, clock: &Clock, lease: &mut Lease, scope: Scope) -> Result<bool, Error> {
    if !lease.take(store).await? {
        return Ok(false);
    }
    let report = advance_all(store, scope, clock.now()).await?;
    tracing::debug!(
        days = report.days,
        computed = report.computed,
        entries = report.entries,
        "figures of days computed"
    );
    Ok(true)
}
