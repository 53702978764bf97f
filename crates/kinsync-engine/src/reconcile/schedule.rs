//! Schedule of the reconciler: periodically, soon after a request, and more often while the webhook is silent.
//!
//! Every process that shares a store runs a schedule. The first one takes the lease; the others read in the stored runs that
//! no scan is due. Intervals are measured by the monotonic clock of each process, from the moment when it sees a newer
//! complete run: a wrong wall clock, of this or of another machine, delays no scan.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kinsync_core::Micros;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Error, Reconciler, gauges,
    record::{Run, RunMode},
    webhook_health::{self, SilentWebhook},
};
use crate::{
    directory,
    pending_checks::{Approval, PendingChecks},
    random,
    store::{self, Store},
};

/// Longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// Intervals without a complete scan that are an alarm.
const OVERDUE: u32 = 3;

/// Intervals of the schedule.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Interval between the starts of two scans, shortened randomly by up to a tenth; `None`: only on request.
    pub every: Option<Duration>,
    /// Interval while the webhook is silent.
    pub every_while_webhook_silent: Duration,
    /// Interval between two reads of requested checks and scans.
    pub poll_every: Duration,
    /// Interval between two assessments of due scans and of the webhook.
    pub review_every: Duration,
    /// Shortest pause between events that can count as a silent webhook.
    pub webhook_silent_after: Duration,
}

impl Config {
    /// Returns a schedule with this interval, and a sixth of it while the webhook is silent, but at least five minutes
    /// unless `every` is shorter.
    pub fn every(every: Option<Duration>) -> Self {
        let usual = every.unwrap_or(Duration::MAX);
        Self {
            every,
            every_while_webhook_silent: (usual / 6).max(Duration::from_mins(5)).min(usual),
            poll_every: Duration::from_secs(5).min(usual),
            review_every: Duration::from_mins(1).min(usual),
            webhook_silent_after: Duration::from_hours(1),
        }
    }
}

/// Last known status of the reconciler.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Reason why the webhook is considered silent.
    pub silent_webhook: Option<SilentWebhook>,
    /// Time without a complete scan of any process, once it is more than three intervals.
    pub overdue: Option<Duration>,
    /// Newest complete run with detection of deletions, of any process. If it did not compare the roles of members, it has what the
    /// newest run with such a comparison found of them.
    pub latest: Option<Run>,
    /// Cause of this process's last failure, until a run of any process completes.
    pub failure: Option<String>,
}

/// Runs the reconciler periodically. A notification of `wake` triggers it at once.
#[derive(Debug)]
pub struct Schedule {
    reconciler: Reconciler,
    store: Arc<dyn Store>,
    config: Config,
    wake: Arc<Notify>,
    status: watch::Sender<Status>,
    reviewed: Mutex<Option<Instant>>,
    last: Mutex<Option<LastScan>>,
}

/// The newest complete run, timed by the monotonic clock.
#[derive(Clone, Debug)]
struct LastScan {
    /// Id of the run; `None` without one.
    run: Option<String>,
    /// Age of the run at `since`; `None` if it is unknown.
    age: Option<Duration>,
    since: Instant,
    /// When the process started to watch.
    started: Instant,
}

impl LastScan {
    /// Returns the newest run at the start of this process. Its age is unknown if it is in the future: then one of the
    /// clocks was wrong.
    fn first(newest: Option<&Run>, now: Micros) -> Self {
        let age = newest.and_then(|run| u64::try_from(now.0.saturating_sub(run.started_at.0)).ok());
        let since = Instant::now();
        Self {
            run: newest.map(|run| run.id.clone()),
            age: age.map(Duration::from_micros),
            since,
            started: since,
        }
    }

    /// Takes over a run that is newer than the known one and began at `since`.
    fn update(&mut self, newest: Option<&Run>, since: Instant) {
        let run = newest.map(|run| &run.id);
        if run != self.run.as_ref() {
            *self = Self { run: run.cloned(), age: Some(Duration::ZERO), since, started: self.started };
        }
    }

    fn elapsed(&self) -> Duration {
        self.age.unwrap_or_default().saturating_add(self.since.elapsed())
    }

    fn is_due(&self, every: Duration) -> bool {
        self.age.is_none() || self.elapsed() >= every
    }

    /// Returns the time without a complete scan if it is too long. A process that was just started has time for a first one.
    fn overdue(&self, every: Duration) -> Option<Duration> {
        let has_started = self.started.elapsed() > every.min(LONGEST_PAUSE);
        Some(self.elapsed()).filter(|elapsed| has_started && *elapsed > every.saturating_mul(OVERDUE))
    }
}

impl Schedule {
    /// Returns a schedule and a receiver of its status. [`Self::run`] starts it.
    pub fn new(reconciler: Reconciler, config: Config, wake: Arc<Notify>) -> (Self, watch::Receiver<Status>) {
        let (status, watched) = watch::channel(Status::default());
        let store = Arc::clone(&reconciler.0.store);
        (
            Self {
                reconciler,
                store,
                config,
                wake,
                status,
                reviewed: Mutex::default(),
                last: Mutex::default(),
            },
            watched,
        )
    }

    /// Runs until `stop` is cancelled. Logs failures and retries with growing pauses.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut failures = 0;
        while !stop.is_cancelled() {
            let pause = match Box::pin(self.step(stop)).await {
                Ok(was_scan) => {
                    // A step without a scan proves nothing about the failure and must not reset the pause.
                    failures = if was_scan { 0 } else { failures };
                    self.config.poll_every
                }
                Err(Error::Stopped) => return,
                Err(Error::Busy { holder }) => {
                    tracing::debug!(holder, "another process scans");
                    self.config.poll_every
                }
                Err(error) => {
                    failures += 1;
                    let reason = crate::breaker::error_chain(&error);
                    tracing::warn!(error = reason, "reconciliation failed; retrying");
                    self.status.send_modify(|status| status.failure = Some(reason));
                    let longest = self.config.every.unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE);
                    (self.config.poll_every * (1 << failures.min(10))).min(longest)
                }
            };
            let pause = tokio::time::sleep(random::jitter(pause, 0.8..=1.0));
            tokio::select! {
                () = pause => {}
                () = self.wake.notified() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Runs requested checks and a due scan. Returns whether a scan ran.
    async fn step(&self, stop: &CancellationToken) -> Result<bool, Error> {
        let checked = stop.run_until_cancelled(Box::pin(self.reconciler.run_pending_checks())).await;
        let checked = checked.unwrap_or(Err(Error::Stopped));
        // A failed check must not prevent a scan.
        let is_requested = match &checked {
            Ok(is_requested) => *is_requested,
            Err(Error::Stopped) => return Err(Error::Stopped),
            Err(_) => PendingChecks::load(&*self.store).await?.scan.is_some(),
        };
        let is_due = is_requested || self.is_due().await?;
        if is_due {
            self.scan_and_log(is_requested, stop).await?;
        }
        checked.map(|_| is_due)
    }

    async fn scan_and_log(&self, is_requested: bool, stop: &CancellationToken) -> Result<(), Error> {
        let started = Instant::now();
        let run = self.scan(is_requested, stop).await?;
        if let Some(last) = &mut *self.last() {
            last.update(Some(&run), started);
        }
        tracing::info!(
            run = run.id,
            users = run.tally.users,
            missed = run.tally.missed(),
            held = run.tally.held(),
            "reconciliation complete"
        );
        self.review().await?;
        Ok(())
    }

    /// Runs a scan. The request of a requested scan stays until the scan is done, so that it survives a kill.
    async fn scan(&self, is_requested: bool, stop: &CancellationToken) -> Result<Run, Error> {
        let scan = if is_requested { PendingChecks::load(&*self.store).await?.scan } else { None };
        let mode = match scan.as_ref().and_then(|scan| scan.approves.clone()) {
            None => RunMode::Reconcile,
            Some(Approval::Run(run)) => RunMode::Approve(run),
            Some(Approval::EmptyTenant) => RunMode::ApproveEmptyTenant,
        };
        let outcome = self.reconciler.run(mode, &|_| {}, stop).await;
        let is_done = matches!(outcome, Ok(_) | Err(Error::NothingHeld { .. } | Error::TenantNotEmpty));
        if is_done && scan.is_some() {
            let done = PendingChecks { scan, ..PendingChecks::default() };
            PendingChecks::remove(&*self.store, &done).await?;
        }
        outcome
    }

    /// Assesses the stored runs and the webhook, and publishes status and metrics.
    async fn review(&self) -> Result<(), store::Error> {
        let runs = self.reconciler.history().await?.runs;
        let now = self.now();
        let silent =
            webhook_health::assess(&*self.store, &runs, now, self.config.webhook_silent_after).await?;
        metrics::gauge!("kinsync_webhook_silent").set(f64::from(u8::from(silent.is_some())));
        let was_silent = self.status.borrow().silent_webhook.is_some();
        if let Some(silent) = silent.as_ref().filter(|_| !was_silent) {
            tracing::error!(fix = webhook_health::FIX, "{silent}");
        }
        let overdue = self.overdue(&runs, now);
        let latest = self.latest(&runs);
        gauges::export(latest.as_ref(), directory::count(&*self.store).await?);
        let is_well = runs.iter().find(|run| run.ended_at.is_some()).is_some_and(Run::is_complete);
        self.status.send_modify(|status| {
            let failure = status.failure.take().filter(|_| !is_well);
            *status = Status { silent_webhook: silent, overdue, latest, failure };
        });
        Ok(())
    }

    /// Returns the newest whole run, with the newest comparison of roles if scans compare them.
    fn latest(&self, runs: &[Run]) -> Option<Run> {
        let mut whole = runs.iter().filter(|run| run.is_whole());
        let newest = whole.next()?;
        let known =
            || whole.find_map(|run| run.memberships.clone()).filter(|_| self.reconciler.0.config.roles);
        Some(Run { memberships: newest.memberships.clone().or_else(known), ..newest.clone() })
    }

    /// Returns the time without a complete scan if it is an alarm.
    fn overdue(&self, runs: &[Run], now: Micros) -> Option<Duration> {
        let newest = runs.iter().find(|run| run.is_complete());
        let mut last = self.last();
        let last = last.get_or_insert_with(|| LastScan::first(newest, now));
        last.update(newest, Instant::now());
        let overdue = self.config.every.and_then(|every| last.overdue(every));
        metrics::gauge!("kinsync_reconcile_overdue").set(f64::from(u8::from(overdue.is_some())));
        if let Some(elapsed) = overdue.filter(|_| self.status.borrow().overdue.is_none()) {
            tracing::error!(
                seconds = elapsed.as_secs(),
                "no scan of Kinde has completed for more than three intervals"
            );
        }
        overdue
    }

    fn last(&self) -> MutexGuard<'_, Option<LastScan>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn is_due(&self) -> Result<bool, store::Error> {
        let is_fresh = |at: Instant| at.elapsed() < self.config.review_every;
        if self.reviewed.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(is_fresh) {
            return Ok(false);
        }
        self.review().await?;
        *self.reviewed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let is_silent = self.status.borrow().silent_webhook.is_some();
        let Some(every) = self.config.every else { return Ok(false) };
        let every = if is_silent { self.config.every_while_webhook_silent } else { every };
        // Jitter, so that processes with the same start time do not compete for the lease every time.
        let every = random::jitter(every, 0.9..=1.0);
        Ok(self.last().as_ref().is_none_or(|last| last.is_due(every)))
    }

    fn now(&self) -> Micros {
        self.reconciler.0.clock.now()
    }
}
