//! Finds what every webhook missed, and repairs it.
//!
//! Kinde has no list of changes, says nothing of bulk imports, and disables a webhook that fails.
//! So everybody is read, compared with the store, and what differs is told to the store as
//! observations, through the same door as everything else: a repair that is cut, repeated or
//! overtaken by an event does no harm, and what was not repaired is found by the next run.
//!
//! A run takes no input but Kinde and the store; a schedule, a signal or an operator only wakes it.
//! One at a time among all processes (`lease`). In reading order: `compare` (one user), `scan`
//! (everybody), `gone` (who is not listed), [`record`] (what is kept of a run), [`schedule`] (when),
//! [`silence`] (whether the webhook still works).

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

/// BatchOptions often a call of the store that did not answer is made again, and after how long at first.
const TRIES: u32 = 6;
const PAUSE: Duration = Duration::from_millis(250);

/// BatchOptions a reconciler works.
#[derive(Clone, Debug)]
pub struct Config {
    /// BatchOptions many deletions need an operator.
    pub deletes: Thresholds,
    /// Between two reads of one user who seems gone, or back.
    pub between_reads: Duration,
    /// After when another process goes on for one that was killed.
    pub lease: Duration,
    /// Who we are, for the others.
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

/// Why a run ended early. What it repaired until then is repaired.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Kinde does not answer as it should.
    #[error("Kinde could not be read")]
    Kinde(#[source] management::Error),
    /// The store does not answer.
    #[error("the store could not be read or written")]
    Store(#[from] store::Error),
    /// Kinde answered that there are no users at all.
    #[error(
        "Kinde lists no users at all: nobody was deleted; if the tenant is empty indeed, delete the users yourself"
    )]
    EmptyTenant,
    /// Kinde does not know users whom it has just listed.
    #[error(
        "Kinde says of users whom it has just listed that they do not exist: nobody more was deleted; try again later"
    )]
    CanariesUnknown,
    /// Kinde knows users whom its list left out.
    #[error(
        "Kinde's list leaves out many users whom Kinde knows: nobody was deleted; try again later, and ask Kinde if it \
         stays so"
    )]
    ListIncomplete,
    /// Another process scans.
    #[error("{holder} is scanning: wait until it is done, or for the end of its lease if it was killed")]
    Busy {
        /// Who.
        holder: String,
    },
    /// Somebody else took the lease.
    #[error("the lease was lost to another process, which goes on")]
    LeaseLost,
    /// There is nothing to approve.
    #[error("run {run} holds no deletions, or a newer run does: see `kinsync runs list`")]
    NothingHeld {
        /// The run that was named.
        run: String,
    },
    /// Told to stop.
    #[error("stopped; nothing is half done")]
    Stopped,
    /// A task ended that never should.
    #[error("a part of the scan ended unexpectedly; the log says more")]
    Ended,
}

/// Told of what was found so far.
pub type Progress<'a> = &'a (dyn Fn(&Tally) + Send + Sync);

/// Compares Kinde with the store. Clones share everything.
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
    /// A reconciler of this tenant and this store.
    pub fn new(kinde: Client, store: Arc<dyn Store>, clock: Clock, config: Config) -> Self {
        let leases = Leases::new(Arc::clone(&store), config.name.clone(), config.lease);
        Self(Arc::new(Inner { kinde, store, clock, config, leases }))
    }

    /// Does what is wished, and keeps what came of it, unless the mode is dry. `Ok` also when deletions were held.
    ///
    /// Cancel safe: what was found to differ is repaired or not, user by user; what is being written is written to its
    /// end.
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
        let taken = parts.retry_store(|| parts.leases.take()).await?;
        let lease = taken.map_err(|holder| Error::Busy { holder })?;
        run.before = parts.before().await?;
        parts.retry_store(|| save(&*parts.store, &run)).await?;
        let take = || Checkpoint::take(&*parts.store, lease.term(), run.started_at);
        let from = if run.mode == RunMode::Backfill { Some(parts.retry_store(take).await?) } else { None };
        let outcome = tokio::select! {
            outcome = self.work(&mut run, from.as_ref(), &tasks, progress) => outcome,
            () = lease.keep() => Err(Error::LeaseLost),
            () = stop.cancelled() => Err(Error::Stopped),
        };
        // What was begun when it was stopped is finished.
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
        if !is_dry {
            parts.retry_store(|| ScanWatermarks::record_start(&*parts.store, run.started_at)).await?;
        }
        let (mut scanned, was_resumed) = self.scan(run, from, tasks, progress).await?;
        run.tally = scanned.tally.clone();
        if scanned.tally.users == 0 {
            return Err(Error::EmptyTenant);
        }
        if !scanned.second_reads.is_empty() {
            let second_reads = std::mem::take(&mut scanned.second_reads);
            parts.check(&second_reads, is_dry, &mut scanned.tally).await?;
        }
        let unproven_users = match run.mode {
            RunMode::Backfill => None,
            _ => parts.delete_absent(run, &mut scanned, approved).await?,
        };
        run.tally = scanned.tally;
        progress(&run.tally);
        if !is_dry
            && let Some(unproven) = unproven_users
            && let Some((at, until)) = scanned.sent
        {
            let fields = scanned.fields.unwrap_or_default();
            let watermark = ScanWatermark { at, until, started_at: run.started_at, fields, unproven };
            parts.retry_store(|| ScanWatermarks::record_proof(&*parts.store, &watermark)).await?;
        }
        Ok(if was_resumed { Outcome::Resumed } else { Outcome::Complete })
    }

    /// Reads everybody; a backfill from where it was cut. Kinde may forget where a list went on.
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
            Ok(_) => "lists nobody",
            Err(Error::Kinde(management::Error::UnexpectedStatus { status, .. }))
                if status.is_client_error() =>
            {
                "does not know any more"
            }
            Err(error) => return Err(error),
        };
        tracing::warn!("Kinde {why} where the cut backfill went on: beginning anew");
        Ok((scan(&cut.anew_at(parts.clock.now())).await?, false))
    }

    /// Asks Kinde about these users, and repairs what differs. Safe beside a scan.
    pub async fn check(&self, users: &[UserId]) -> Result<Tally, Error> {
        let mut tally = Tally::default();
        self.0.check(users, false, &mut tally).await?;
        Ok(tally)
    }

    /// Asks Kinde about these users, and changes nothing.
    pub async fn look(&self, users: &[UserId]) -> Result<Tally, Error> {
        let mut tally = Tally::default();
        self.0.check(users, true, &mut tally).await?;
        Ok(tally)
    }

    /// PendingChecks everybody for whom a check was asked. Answers whether a scan was asked for. Of whom Kinde gives no clear
    /// answer, the next scan looks at.
    ///
    /// Many deletions at once are not made here: then a scan is asked for, which holds them.
    pub async fn run_pending_checks(&self) -> Result<bool, Error> {
        let parts = &self.0;
        let asked = parts.retry_store(|| PendingChecks::load(&*parts.store)).await?;
        let users: Vec<UserId> = asked.users.keys().cloned().collect();
        if users.is_empty() {
            return Ok(asked.is_scan_requested());
        }
        let found = self.look(&users).await?;
        let is_many = found.of(record::DriftKind::Deleted) > parts.config.deletes.count as u64;
        if is_many {
            parts.retry_store(|| PendingChecks::request_scan(&*parts.store)).await?;
        } else {
            self.check(&users).await?;
        }
        let is_scan = asked.is_scan_requested() || is_many;
        let done = PendingChecks { users: asked.users, ..PendingChecks::default() };
        parts.retry_store(|| PendingChecks::remove(&*parts.store, &done)).await?;
        Ok(is_scan)
    }
}

impl Inner {
    /// The complete scan before this one.
    async fn before(&self) -> Result<Option<PreviousScan>, store::Error> {
        Ok(PreviousScan::of(&self.retry_store(|| record::runs(&*self.store)).await?))
    }

    /// Makes a call of the store again for as long as it may only be away for a moment.
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
                        "the store does not answer; trying again"
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
    // When a user changed, Kinde does not tell: not before the last scan compared them.
    if let Some(before) = run.before.filter(|_| run.is_representative()) {
        let most = run.started_at.0.saturating_sub(before.began.0);
        let most = Duration::from_micros(most.try_into().unwrap_or_default());
        let missed = usize::try_from(run.tally.missed()).unwrap_or(usize::MAX);
        metrics::histogram!("kinsync_time_to_consistency_seconds", "source" => "reconcile")
            .record_many(most.as_secs_f64(), missed);
    }
}

/// Whether deletions that this run held wait for an approval.
pub async fn is_held(store: &dyn Store, run: &str) -> Result<bool, store::Error> {
    Ok(deletions::approved(store, run).await?.is_some())
}

/// By our clock, when everybody was last begun to be compared.
pub(crate) fn last_began(runs: &[Run]) -> Option<Micros> {
    runs.iter().find(|run| run.is_complete()).map(|run| run.started_at)
}
