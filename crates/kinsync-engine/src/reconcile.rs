//! Finds changes that the webhook missed, and repairs them.
//!
//! Kinde has no change log, sends no events for bulk imports, and disables a webhook that fails. A run therefore reads all
//! users, compares them with the store, and writes differences as observations through [`mod@crate::apply`], like every other
//! source. An interrupted, repeated or superseded repair does no harm, and the next run finds what was not repaired.
//!
//! A run has no input except Kinde and the store; a schedule, a signal or an operator only triggers it. One run is active at
//! a time among all processes (`lease`). In reading order: `compare` (one user), `scan` (all users), `deletions` (users
//! missing at Kinde), [`record`] (stored results of runs), [`schedule`] (when a run starts), [`webhook_health`] (whether the
//! webhook still delivers).

mod compare;
mod deletions;
mod lease;
pub mod record;
mod scan;
pub mod schedule;
pub mod webhook_health;

use std::{sync::Arc, time::Duration};

use kinde::management::{self, Client};
use kinsync_core::{Micros, UserId};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::deletions::Thresholds;
use self::{
    lease::Leases,
    record::{Outcome, PreviousScan, Run, RunMode, Tally, save},
    scan::{Checkpoint, Scanned, scan},
};
use crate::{
    clock::Clock,
    pending_checks::PendingChecks,
    random,
    scan_watermark::{ScanWatermark, ScanWatermarks},
    store::{self, Store},
};

/// Attempts of a store call during a short outage, and the first pause between them.
const TRIES: u32 = 6;
const PAUSE: Duration = Duration::from_millis(250);

/// Settings of a reconciler.
#[derive(Clone, Debug)]
pub struct Config {
    /// Number of deletions above which an operator has to approve them.
    pub deletes: Thresholds,
    /// Pause between the two reads that confirm a deletion or a restoration.
    pub between_reads: Duration,
    /// Duration of the lease: time until another process replaces a killed one.
    pub lease: Duration,
    /// Process name recorded in the lease.
    pub name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            deletes: Thresholds::default(),
            between_reads: deletions::BETWEEN_READS,
            lease: Duration::from_secs(30),
            name: format!("process {}", std::process::id()),
        }
    }
}

/// Reasons why a run ended early. Repairs before that stay.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A request to Kinde failed.
    #[error("Kinde could not be read")]
    Kinde(#[source] management::Error),
    /// A call of the store failed.
    #[error("the store could not be read or written")]
    Store(#[from] store::Error),
    /// Kinde listed no users.
    #[error(
        "Kinde lists no users at all, so no user was deleted; if the tenant is really empty, delete the users in the store \
         yourself"
    )]
    EmptyTenant,
    /// Kinde reported listed users as unknown.
    #[error(
        "Kinde reports users as unknown that it has just listed, so no further user was deleted; try again later"
    )]
    CanariesUnknown,
    /// Kinde's list lacked users that single reads find.
    #[error(
        "Kinde's list lacks many users that single reads find, so no user was deleted; try again later, and contact \
         Kinde's support if this persists"
    )]
    ListIncomplete,
    /// Another process is scanning.
    #[error(
        "{holder} is scanning; wait until it is done, or until its lease expires if the process was killed"
    )]
    Busy {
        /// Name of the other process.
        holder: String,
    },
    /// Another process took the lease.
    #[error("another process took the lease and continues")]
    LeaseLost,
    /// The approved run holds no deletions.
    #[error("run {run} holds no deletions, or a newer run replaced them; see `kinsync runs list`")]
    NothingHeld {
        /// Id of the approved run.
        run: String,
    },
    /// The run was cancelled.
    #[error("stopped; every started write was completed")]
    Stopped,
    /// A task of the scan panicked or was aborted.
    #[error("a task of the scan ended unexpectedly; see the log")]
    Ended,
}

/// Callback with the results so far.
pub type Progress<'a> = &'a (dyn Fn(&Tally) + Send + Sync);

/// Compares Kinde with the store and repairs differences. Clones share everything.
#[derive(Clone, Debug)]
pub struct Reconciler(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kinde: Client,
    store: Arc<dyn Store>,
    clock: Clock,
    config: Config,
    leases: Leases,
}

impl Reconciler {
    /// Returns a reconciler of a tenant and a store.
    pub fn new(kinde: Client, store: Arc<dyn Store>, clock: Clock, config: Config) -> Self {
        let leases = Leases::new(Arc::clone(&store), config.name.clone(), config.lease);
        Self(Arc::new(Inner { kinde, store, clock, config, leases }))
    }

    /// Runs once in this mode, and stores the result unless the mode is dry. Calls `progress` during the run. Returns `Ok`
    /// also when deletions were held.
    ///
    /// Cancelling `stop` ends the run with [`Error::Stopped`] after writes in progress. Cancel safe: each user is repaired
    /// or not, never half.
    ///
    /// # Errors
    /// Fails for the reasons in [`Error`]. Repairs made until then stay.
    pub async fn run(
        &self,
        mode: RunMode,
        progress: Progress<'_>,
        stop: &CancellationToken,
    ) -> Result<Run, Error> {
        let parts = &self.0;
        let mut run = Run::new(mode, parts.clock.now());
        let tasks = TaskTracker::new();
        if run.mode == RunMode::DryRun {
            run.before = parts.before().await?;
            let outcome = stop.run_until_cancelled(self.work(&mut run, None, &tasks, progress)).await;
            let outcome = outcome.unwrap_or(Err(Error::Stopped))?;
            run.ended(outcome, parts.clock.now());
            return Ok(run);
        }
        let lease = parts.retry_store(|| parts.leases.take()).await?;
        let lease = lease.map_err(|holder| Error::Busy { holder })?;
        run.before = parts.before().await?;
        parts.retry_store(|| save(&*parts.store, &run)).await?;
        let take = || Checkpoint::take(&*parts.store, lease.term(), run.started_at);
        let from = if run.mode == RunMode::Backfill { Some(parts.retry_store(take).await?) } else { None };
        let outcome = tokio::select! {
            outcome = self.work(&mut run, from.as_ref(), &tasks, progress) => outcome,
            () = lease.keep() => Err(Error::LeaseLost),
            () = stop.cancelled() => Err(Error::Stopped),
        };
        // Batches in progress are written before the run ends.
        tasks.close();
        tasks.wait().await;
        let ended = match &outcome {
            Ok(outcome) => outcome.clone(),
            Err(Error::Stopped) => Outcome::Cut,
            Err(error) => Outcome::Failed { reason: crate::breaker::error_chain(error) },
        };
        run.ended(ended, parts.clock.now());
        measure(&run);
        if !matches!(outcome, Err(Error::LeaseLost)) {
            parts.retry_store(|| save(&*parts.store, &run)).await?;
            if let Some(from) = from.filter(|_| outcome.is_ok()) {
                let done = from.anew_at(parts.clock.now());
                parts.retry_store(|| done.save(&*parts.store)).await?;
            }
            lease.release().await;
        }
        outcome.map(|_| run)
    }

    async fn work(
        &self,
        run: &mut Run,
        from: Option<&Checkpoint>,
        tasks: &TaskTracker,
        progress: Progress<'_>,
    ) -> Result<Outcome, Error> {
        let parts = &self.0;
        let is_dry = run.mode == RunMode::DryRun;
        let approved = match &run.mode {
            RunMode::Approve(held) => {
                let found = parts.retry_store(|| deletions::approved(&*parts.store, held)).await?;
                Some(found.ok_or_else(|| Error::NothingHeld { run: held.clone() })?)
            }
            _ => None,
        };
        let (mut scanned, was_resumed) = self.scan(run, from, tasks, progress).await?;
        run.tally = scanned.tally.clone();
        if scanned.tally.users == 0 {
            return Err(Error::EmptyTenant);
        }
        if !scanned.second_reads.is_empty() {
            let second_reads = std::mem::take(&mut scanned.second_reads);
            parts.check(&second_reads, is_dry, &mut scanned.tally).await?;
        }
        let too_recent = std::mem::take(&mut scanned.too_recent);
        if let Some(not_before) = too_recent.not_before {
            tokio::time::sleep_until(not_before).await;
            parts.check(&too_recent.users, is_dry, &mut scanned.tally).await?;
        }
        let unlisted = match run.mode {
            RunMode::Backfill => None,
            _ => Some(parts.delete_absent(run, &mut scanned, approved).await?),
        };
        run.tally = scanned.tally;
        progress(&run.tally);
        if !is_dry
            && let Some(unlisted) = unlisted
            && let Some((at, _)) = scanned.sent
        {
            let watermark = ScanWatermark {
                at,
                last_comparison: scanned.last_comparison,
                fields: scanned.fields.unwrap_or_default(),
                unproven: scanned.unproven.into_iter().chain(unlisted).collect(),
            };
            parts.retry_store(|| ScanWatermarks::record_proof(&*parts.store, &watermark)).await?;
        }
        Ok(if was_resumed { Outcome::Resumed } else { Outcome::Complete })
    }

    /// Scans all users; a backfill resumes at its checkpoint. Starts again if Kinde no longer accepts the page token.
    async fn scan(
        &self,
        run: &Run,
        from: Option<&Checkpoint>,
        tasks: &TaskTracker,
        progress: Progress<'_>,
    ) -> Result<(Scanned, bool), Error> {
        let parts = &self.0;
        let scan = async |from: &Checkpoint| scan(parts, tasks, run, from, progress).await;
        let Some(cut) = from.filter(|from| from.next_token.is_some()) else {
            return Ok((scan(&from.cloned().unwrap_or_default()).await?, false));
        };
        progress(&cut.tally);
        let why = match scan(cut).await {
            Ok(scanned) if scanned.tally.users > cut.tally.users => return Ok((scanned, true)),
            Ok(_) => "returned no users for",
            Err(Error::Kinde(management::Error::UnexpectedStatus { status, .. }))
                if status.is_client_error() =>
            {
                "rejected"
            }
            Err(error) => return Err(error),
        };
        tracing::warn!(
            "Kinde {why} the page token of the interrupted backfill; starting from the first page"
        );
        Ok((scan(&cut.anew_at(parts.clock.now())).await?, false))
    }

    /// Re-reads single users from Kinde and repairs differences. Safe during a scan.
    pub async fn check(&self, users: &[UserId]) -> Result<Tally, Error> {
        let mut tally = Tally::default();
        self.0.check(users, false, &mut tally).await?;
        Ok(tally)
    }

    /// Re-reads single users from Kinde and reports differences. Writes nothing.
    pub async fn look(&self, users: &[UserId]) -> Result<Tally, Error> {
        let mut tally = Tally::default();
        self.0.check(users, true, &mut tally).await?;
        Ok(tally)
    }

    /// Runs all requested checks. Returns whether a scan is requested. The next scan re-reads users for which Kinde's
    /// responses are inconclusive.
    ///
    /// Does not delete many users at once: it requests a scan instead, which holds the deletions.
    pub async fn run_pending_checks(&self) -> Result<bool, Error> {
        let parts = &self.0;
        let requested = parts.retry_store(|| PendingChecks::load(&*parts.store)).await?;
        let users: Vec<UserId> = requested.users.keys().cloned().collect();
        if users.is_empty() {
            return Ok(requested.is_scan_requested());
        }
        let found = self.look(&users).await?;
        let is_many = found.of(record::DriftKind::Deleted) > parts.config.deletes.count as u64;
        if is_many {
            parts.retry_store(|| PendingChecks::request_scan(&*parts.store)).await?;
        } else {
            self.check(&users).await?;
        }
        let is_scan = requested.is_scan_requested() || is_many;
        let done = PendingChecks { users: requested.users, ..PendingChecks::default() };
        parts.retry_store(|| PendingChecks::remove(&*parts.store, &done)).await?;
        Ok(is_scan)
    }
}

impl Inner {
    /// Returns the last complete scan.
    async fn before(&self) -> Result<Option<PreviousScan>, store::Error> {
        Ok(PreviousScan::of(&self.retry_store(|| record::runs(&*self.store)).await?))
    }

    /// Repeats a store call during a short outage: after a transient failure, up to [`TRIES`] attempts.
    async fn retry_store<T, F: Future<Output = Result<T, store::Error>>>(
        &self,
        call: impl Fn() -> F,
    ) -> Result<T, store::Error> {
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            match call().await {
                Err(error) if error.is_transient() => {
                    tracing::warn!(
                        error = crate::breaker::error_chain(&error),
                        "the store is unavailable; retrying"
                    );
                }
                done => return done,
            }
            tokio::time::sleep(random::jitter(pause, 0.5..=1.0)).await;
            pause *= 2;
        }
        call().await
    }
}

fn measure(run: &Run) {
    let outcome = match &run.outcome {
        Outcome::Running => "running",
        Outcome::Complete => "complete",
        Outcome::Resumed => "resumed",
        Outcome::Cut => "cut",
        Outcome::Failed { .. } => "failed",
    };
    metrics::counter!("kinsync_reconcile_runs_total", "outcome" => outcome).increment(1);
    if !run.is_complete() {
        return;
    }
    let took = run.ended_at.unwrap_or(run.started_at).0.saturating_sub(run.started_at.0);
    let took = Duration::from_micros(took.try_into().unwrap_or_default());
    metrics::gauge!("kinsync_reconcile_last_seconds").set(took.as_secs_f64());
    // Kinde does not report when a user changed. The previous scan is the earliest possible time.
    if let Some(before) = run.before.filter(|_| run.is_representative()) {
        let longest = run.started_at.0.saturating_sub(before.began.0);
        let longest = Duration::from_micros(longest.try_into().unwrap_or_default());
        let missed = usize::try_from(run.tally.missed()).unwrap_or(usize::MAX);
        metrics::histogram!("kinsync_time_to_consistency_seconds", "source" => "reconcile")
            .record_many(longest.as_secs_f64(), missed);
    }
}

/// Returns whether deletions held by this run still wait for an approval.
pub async fn is_held(store: &dyn Store, run: &str) -> Result<bool, store::Error> {
    Ok(deletions::approved(store, run).await?.is_some())
}

/// Returns the start of the last complete run, by kinsync's clock.
pub(crate) fn last_began(runs: &[Run]) -> Option<Micros> {
    runs.iter().find(|run| run.is_complete()).map(|run| run.started_at)
}
