//! Finds changes that the webhook missed, and repairs them.
//!
//! Kinde has no change log, sends no events for bulk imports, and disables a webhook that fails. A run therefore reads all
//! users, compares them with the store, and writes differences as observations through [`mod@crate::apply`], like every other
//! source. An interrupted, repeated or superseded repair does no harm, and the next run finds what was not repaired.
//!
//! A run has no input except Kinde and the store; a schedule, a signal or an operator only triggers it. One run is active at
//! a time among all processes (`lease`). In reading order: `compare` (one user), `scan` (all users), `deletions` (users
//! missing at Kinde), `removals` (memberships that the list of users lacks), `single_reads` and `budget` (which confirm and limit
//! deletions and removals), `checks` (single users), `changed_roles` (roles with an event), `memberships` (roles of members),
//! `directory` (organizations, roles and permissions), `role_permissions`, `properties` (of users), [`record`] (stored results of
//! runs), [`schedule`] (when a run starts), [`webhook_health`] (whether the webhook still delivers).

mod budget;
mod changed_roles;
mod checks;
mod compare;
mod deletions;
mod directory;
pub(crate) mod gauges;
mod last_comparison;
mod lease;
#[cfg(test)]
mod lease_model;
mod memberships;
#[cfg(test)]
mod model;
mod properties;
pub mod record;
mod records;
mod removals;
mod role_permissions;
mod scan;
pub mod schedule;
mod single_reads;
pub mod webhook_health;

use std::{collections::HashSet, sync::Arc, time::Duration};

use kinde::management::{self, Client};
use kinsync_core::UserId;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    budget::Thresholds,
    memberships::MAX_ORGANIZATIONS,
    properties::{ALL as ALL_PROPERTIES, PropertyConfig},
    record::{MembershipTally, PropertyTally},
    records::{is_held, state_keys},
};
use self::{
    deletions::Approved,
    lease::{Lease, Leases},
    record::{History, Outcome, PreviousScan, Run, RunMode, Tally, save},
    scan::{Checkpoint, Scanned, scan},
};
use crate::{
    clock::Clock,
    pending_checks::PendingChecks,
    random,
    scan_watermark::{ScanWatermark, ScanWatermarks},
    spread::{self, Spread},
    state_records::Term,
    store::{self, Store},
};

/// Attempts of a store call during a short outage, and the first pause between them.
const TRIES: u32 = 6;
const PAUSE: Duration = Duration::from_millis(250);

/// Settings of a reconciler.
#[derive(Clone, Debug)]
pub struct Config {
    /// Number of deletions per 24 hours above which an operator has to approve them.
    pub deletes: Thresholds,
    /// Shortest pause between the two reads that confirm a deletion or a restoration.
    pub between_reads: Duration,
    /// Age of a user's newest change below which the second read waits for Kinde's replicas.
    pub replica_lag: Duration,
    /// Interval of the requested checks of single users during a scan.
    pub check_every: Duration,
    /// Duration of the lease: time until another process replaces a killed one.
    pub lease: Duration,
    /// Process name recorded in the lease.
    pub name: String,
    /// Whether scans and checks compare the roles of members too.
    pub roles: bool,
    /// Shortest interval between two scans that compare them; zero: each scan does. A scan after an incomplete comparison, or after one
    /// that held removals, compares them at once.
    pub roles_every: Duration,
    /// Members with permissions that a scan reads, with two requests for each. The next scan finds the others again. One role that 50,000
    /// members have lost would otherwise cost 100,000 requests at once, hours at the rate that Kinde allows.
    pub member_reads: usize,
    /// Which properties of users scans compare.
    pub properties: PropertyConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            deletes: Thresholds::default(),
            between_reads: Duration::from_millis(200),
            replica_lag: Duration::from_secs(2),
            check_every: Duration::from_secs(5),
            lease: Duration::from_secs(30),
            name: format!("process {}", std::process::id()),
            roles: false,
            roles_every: Duration::ZERO,
            member_reads: 1000,
            properties: PropertyConfig::default(),
        }
    }
}

impl From<management::Error> for Error {
    fn from(error: management::Error) -> Self {
        Self::Kinde(error)
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
        "Kinde lists no users at all, so no user was deleted; if the tenant is really empty, run `kinsync reconcile \
         --approve-empty-tenant` (with `--soon` while `kinsync serve` runs)"
    )]
    EmptyTenant,
    /// An operator approved that the tenant is empty, and Kinde lists users.
    #[error(
        "Kinde lists users, so the tenant is not empty, and no user was deleted; run `kinsync reconcile`"
    )]
    TenantNotEmpty,
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
    spread: Spread,
}

impl Reconciler {
    /// Returns a reconciler of a tenant and a store.
    pub fn new(kinde: Client, store: Arc<dyn Store>, clock: Clock, config: Config) -> Self {
        let leases = Leases::new(Arc::clone(&store), config.name.clone(), config.lease);
        let spread = Spread::new(Arc::clone(&store), clock.clone(), spread::Config::default());
        Self(Arc::new(Inner { kinde, store, clock, config, leases, spread }))
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
            let outcome = stop.run_until_cancelled(self.work(&mut run, &tasks, progress)).await;
            let outcome = outcome.unwrap_or(Err(Error::Stopped))?;
            run.ended(outcome, parts.clock.now());
            return Ok(run);
        }
        let lease = parts.take_lease().await?;
        run.term = lease.term();
        run.before = parts.before().await?;
        parts.save(&run).await?;
        let outcome = tokio::select! {
            outcome = self.work(&mut run, &tasks, progress) => outcome,
            () = lease.keep() => Err(Error::LeaseLost),
            () = stop.cancelled() => Err(Error::Stopped),
            () = parts.check_regularly(lease.term()) => Err(Error::Ended),
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
        if outcome.is_err() {
            parts.spread.release().await;
        }
        if !matches!(outcome, Err(Error::LeaseLost)) {
            parts.save(&run).await?;
            if run.mode == RunMode::Backfill && outcome.is_ok() {
                let done = Checkpoint::anew(parts.clock.now());
                parts.retry_store(|| done.save(&*parts.store, run.term)).await?;
            }
            lease.release().await;
        }
        outcome.map(|_| run)
    }

    async fn work(
        &self,
        run: &mut Run,
        tasks: &TaskTracker,
        progress: Progress<'_>,
    ) -> Result<Outcome, Error> {
        let parts = &self.0;
        let approved = parts.approved(&run.mode).await?;
        let (mut scanned, was_resumed) = self.scan(run, tasks, progress).await?;
        run.tally = scanned.tally.clone();
        match (&run.mode, scanned.tally.users) {
            (RunMode::ApproveEmptyTenant, 1..) => return Err(Error::TenantNotEmpty),
            (RunMode::ApproveEmptyTenant, 0) | (_, 1..) => {}
            // Nothing can be deleted by mistake.
            (_, 0) if parts.stored_users().await? == 0 => {}
            (_, 0) => return Err(Error::EmptyTenant),
        }
        let second_reads = std::mem::take(&mut scanned.second_reads);
        if !second_reads.is_empty() {
            let checked = parts.check(&second_reads, run.writes()).await?;
            scanned.tally.merge(checked.tally);
        }
        let too_recent = std::mem::take(&mut scanned.too_recent);
        if let Some(not_before) = too_recent.not_before {
            tokio::time::sleep_until(not_before).await;
            let checked = parts.check(&too_recent.users, run.writes()).await?;
            scanned.tally.merge(checked.tally);
        }
        let unlisted = match run.mode {
            RunMode::Backfill => None,
            _ => Some(parts.delete_absent(run, &mut scanned, &approved).await?),
        };
        parts.remove_members(run, &mut scanned, &approved).await?;
        run.memberships = parts.compare_members(run, &mut scanned, &approved, progress).await?;
        run.properties = parts.compare_properties(run, &mut scanned, progress).await?;
        parts.keep_held(run, &scanned.held).await?;
        if run.writes().is_some() {
            parts.show_directory().await;
        }
        run.tally = scanned.tally;
        progress(&run.tally);
        (run.start, run.end) = (scanned.number, scanned.last_comparison);
        if let Some(term) = run.writes()
            && let Some(unlisted) = unlisted
            && let Some((at, _)) = scanned.sent
        {
            let watermark = ScanWatermark {
                at,
                last_comparison: scanned.last_comparison,
                fields: scanned.fields.unwrap_or_default(),
                unproven: scanned.unproven.into_iter().chain(unlisted).collect(),
            };
            let record = || ScanWatermarks::record_proof(&*parts.store, term, &watermark);
            run.end = parts.retry_store(record).await?.ok_or(Error::LeaseLost)?;
        }
        Ok(if was_resumed { Outcome::Resumed } else { Outcome::Complete })
    }

    /// Scans all users; a backfill resumes at its checkpoint. Starts again if Kinde no longer accepts the page token.
    async fn scan(
        &self,
        run: &Run,
        tasks: &TaskTracker,
        progress: Progress<'_>,
    ) -> Result<(Scanned, bool), Error> {
        let parts = &self.0;
        let scan = async |from: &Checkpoint| scan(parts, tasks, run, from, progress).await;
        let cut = match run.mode {
            RunMode::Backfill => {
                let take = || Checkpoint::take(&*parts.store, run.term, run.started_at);
                parts.retry_store(take).await?.ok_or(Error::LeaseLost)?
            }
            _ => Checkpoint::default(),
        };
        if cut.next_token.is_none() {
            return Ok((scan(&cut).await?, false));
        }
        progress(&cut.tally);
        let why = match scan(&cut).await {
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
        Ok((scan(&Checkpoint::anew(parts.clock.now())).await?, false))
    }

    /// Re-reads single users from Kinde and repairs differences, under the lease. Deletions that exceed the budget are
    /// counted as held and not carried out; a scan holds them for an operator.
    ///
    /// # Errors
    /// [`Error::Busy`] while another process has the lease; the others as for [`Self::run`].
    pub async fn check(&self, users: &[UserId]) -> Result<Tally, Error> {
        let lease = self.0.take_lease().await?;
        let term = Some(lease.term());
        self.0.under(lease, async { Ok(self.0.check(users, term).await?.tally) }).await
    }

    /// Re-reads single users from Kinde and reports differences. Writes nothing.
    pub async fn look(&self, users: &[UserId]) -> Result<Tally, Error> {
        Ok(self.0.check(users, None).await?.tally)
    }

    /// Runs all requested checks, unless another process has the lease: it runs them. Returns whether a scan is requested.
    ///
    /// Requests stay until their check is done. A user with an inconclusive response is left to the next scan. Deletions
    /// that exceed the budget request a scan, which holds them.
    pub async fn run_pending_checks(&self) -> Result<bool, Error> {
        let parts = &self.0;
        let requested = parts.retry_store(|| PendingChecks::load(&*parts.store)).await?;
        gauges::pending_checks(requested.users.len());
        if requested.is_empty() {
            return Ok(requested.scan.is_some());
        }
        let lease = match parts.take_lease().await {
            Err(Error::Busy { .. }) => return Ok(requested.scan.is_some()),
            lease => lease?,
        };
        let term = lease.term();
        parts.under(lease, parts.run_checks(term)).await
    }

    /// Waits until no process has the lease, so that a run or a check can begin.
    pub async fn wait_until_free(&self) -> Result<(), Error> {
        self.0.retry_store(|| self.0.leases.wait_until_free()).await.map_err(Error::Store)
    }

    /// Loads the stored runs, newest first. A run is shown as cut if its process was killed or lost its lease.
    pub async fn history(&self) -> Result<History, store::Error> {
        let active = self.0.leases.active_term().await?;
        Ok(record::history(&*self.0.store).await?.with_lease(active))
    }
}

impl Inner {
    async fn take_lease(&self) -> Result<Lease, Error> {
        self.retry_store(|| self.leases.take()).await?.map_err(|holder| Error::Busy { holder })
    }

    /// Runs work while the lease is kept, and releases the lease.
    async fn under<T>(&self, lease: Lease, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let done = tokio::select! {
            done = work => done,
            () = lease.keep() => return Err(Error::LeaseLost),
        };
        lease.release().await;
        done
    }

    /// Runs requested checks during a scan, because no other process can. A failure leaves the requests to the schedule.
    async fn check_regularly(&self, term: Term) {
        loop {
            tokio::time::sleep(self.config.check_every).await;
            if let Err(error) = self.run_checks(term).await {
                tracing::debug!(error = crate::breaker::error_chain(&error), "checks during a scan failed");
            }
        }
    }

    /// Returns the deletions that the operator approved with this mode.
    async fn approved(&self, mode: &RunMode) -> Result<Approved, Error> {
        match mode {
            RunMode::Approve(held) => {
                let found = self.retry_store(|| deletions::approved(&*self.store, held)).await?;
                found.map(Approved::Users).ok_or_else(|| Error::NothingHeld { run: held.clone() })
            }
            RunMode::ApproveEmptyTenant => Ok(Approved::All),
            RunMode::Backfill | RunMode::Reconcile | RunMode::DryRun => Ok(Approved::Users(HashSet::new())),
        }
    }

    async fn stored_users(&self) -> Result<u64, store::Error> {
        Ok(self.retry_store(|| self.store.counts()).await?.live_users)
    }

    /// Stores the run under its lease.
    async fn save(&self, run: &Run) -> Result<(), Error> {
        let is_saved = self.retry_store(|| save(&*self.store, run)).await?;
        if is_saved { Ok(()) } else { Err(Error::LeaseLost) }
    }

    /// Returns the last complete scan.
    async fn before(&self) -> Result<Option<PreviousScan>, store::Error> {
        Ok(PreviousScan::of(&self.retry_store(|| record::runs(&*self.store)).await?))
    }

    /// Repeats a store call during a short outage: after a transient failure, up to [`TRIES`] attempts.
    async fn retry_store<T, F: Future<Output = Result<T, store::Error>>>(
        &self,
        call: impl Fn() -> F,
    ) -> Result<T, store::Error> {
        let mut pauses = (1..TRIES).map(|attempt| PAUSE * 2_u32.pow(attempt - 1));
        loop {
            let error = match call().await {
                Err(error) if error.is_transient() => error,
                done => return done,
            };
            let Some(pause) = pauses.next() else { return Err(error) };
            tracing::warn!(error = crate::breaker::error_chain(&error), "the store is unavailable; retrying");
            tokio::time::sleep(random::jitter(pause, 0.5..=1.0)).await;
        }
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
    metrics::gauge!("kinsync_reconcile_last_duration_seconds").set(took.as_secs_f64());
    // Kinde does not report when a user changed. The previous scan is the earliest possible time.
    if let Some(before) = run.before.filter(|_| run.is_representative()) {
        let longest = run.started_at.0.saturating_sub(before.began.0);
        let longest = Duration::from_micros(longest.try_into().unwrap_or_default());
        let missed = usize::try_from(run.tally.missed()).unwrap_or(usize::MAX);
        metrics::histogram!("kinsync_time_to_consistency_seconds", "source" => "reconcile")
            .record_many(longest.as_secs_f64(), missed);
    }
}
