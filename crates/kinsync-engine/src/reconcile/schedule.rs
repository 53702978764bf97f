//! When a process reconciles: regularly, soon when somebody asks, more often while the webhook is
//! silent.
//!
//! Every process that shares a store runs this. Whoever comes first takes the lease; the others see
//! in the kept runs that there is nothing to do.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kinsync_core::{Micros, Source};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Error, Reconciler, last_began,
    record::{self, DriftKind, Run, RunMode},
    webhook_health::{self, SilentWebhook},
};
use crate::{
    pending_checks::PendingChecks,
    random,
    store::{self, Store},
};

/// The longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// When to scan.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// From the beginning of a scan to that of the next, less up to a tenth; `None`: only when somebody asks.
    pub every: Option<Duration>,
    /// The same while the webhook is silent.
    pub every_in_silence: Duration,
    /// BatchOptions often to look whether somebody asked for something.
    pub look_every: Duration,
    /// BatchOptions often to look whether a scan is due and whether the webhook is silent.
    pub review_every: Duration,
    /// The shortest pause between events that may be called a silence.
    pub patience: Duration,
}

impl Config {
    /// ScanWatermarks so often; six times as often in a silence, but not more often than every five minutes, unless that is
    /// the usual.
    pub fn every(every: Option<Duration>) -> Self {
        let usual = every.unwrap_or(Duration::MAX);
        Self {
            every,
            every_in_silence: (usual / 6).max(Duration::from_mins(5)).min(usual),
            look_every: Duration::from_secs(5).min(usual),
            review_every: Duration::from_mins(1).min(usual),
            patience: Duration::from_hours(1),
        }
    }
}

/// What is known of the reconciler without asking the store.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Why the webhook is thought to be silent.
    pub silence: Option<SilentWebhook>,
    /// The newest complete run that looked for who is gone too, of any process.
    pub latest: Option<Run>,
    /// Why the last try of this process failed, if no run of any process was complete since.
    pub failure: Option<String>,
}

/// Reconciles in time. Wake it to make it look at once.
#[derive(Debug)]
pub struct Schedule {
    reconciler: Reconciler,
    store: Arc<dyn Store>,
    config: Config,
    wake: Arc<Notify>,
    status: watch::Sender<Status>,
    reviewed: Mutex<Option<Instant>>,
}

impl Schedule {
    /// A schedule that has not started.
    pub fn new(reconciler: Reconciler, config: Config, wake: Arc<Notify>) -> (Self, watch::Receiver<Status>) {
        let (status, watched) = watch::channel(Status::default());
        let store = Arc::clone(&reconciler.0.store);
        (Self { reconciler, store, config, wake, status, reviewed: Mutex::default() }, watched)
    }

    /// Works until told to stop.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut failures = 0;
        while !stop.is_cancelled() {
            let pause = match self.step(stop).await {
                Ok(was_scan) => {
                    // That there is nothing to do does not say that it would not fail again.
                    failures = if was_scan { 0 } else { failures };
                    self.config.look_every
                }
                Err(Error::Stopped) => return,
                Err(Error::Busy { holder }) => {
                    tracing::debug!(holder, "another process scans");
                    self.config.look_every
                }
                Err(error) => {
                    failures += 1;
                    let reason = crate::breaker::error_chain(&error);
                    tracing::warn!(error = reason, "reconciling failed; it is tried again");
                    self.status.send_modify(|status| status.failure = Some(reason));
                    let longest = self.config.every.unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE);
                    (self.config.look_every * (1 << failures.min(10))).min(longest)
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

    /// Does what is due. Answers whether that was a scan.
    async fn step(&self, stop: &CancellationToken) -> Result<bool, Error> {
        let checked = stop.run_until_cancelled(self.reconciler.run_pending_checks()).await;
        let checked = checked.unwrap_or(Err(Error::Stopped));
        // Users who cannot be asked about keep nobody from being compared.
        let is_asked = match &checked {
            Ok(is_asked) => *is_asked,
            Err(Error::Stopped) => return Err(Error::Stopped),
            Err(_) => PendingChecks::load(&*self.store).await?.is_scan_requested(),
        };
        let is_due = is_asked || self.is_due().await?;
        if is_due {
            self.scan_and_tell(is_asked, stop).await?;
        }
        checked.map(|_| is_due)
    }

    async fn scan_and_tell(&self, is_asked: bool, stop: &CancellationToken) -> Result<(), Error> {
        let run = self.scan(is_asked, stop).await?;
        tracing::info!(
            run = run.id,
            users = run.tally.users,
            missed = run.tally.missed(),
            held = run.tally.of(DriftKind::DeletionHeld),
            "reconciled"
        );
        self.review().await?;
        Ok(())
    }

    /// A scan that was asked for is asked for again when it fails.
    async fn scan(&self, is_asked: bool, stop: &CancellationToken) -> Result<Run, Error> {
        if !is_asked {
            return self.reconciler.run(RunMode::Reconcile, &|_| {}, stop).await;
        }
        let mut asked = PendingChecks { users: BTreeMap::new(), ..PendingChecks::load(&*self.store).await? };
        PendingChecks::remove(&*self.store, &asked).await?;
        let mode = asked.approved.clone().map_or(RunMode::Reconcile, RunMode::Approve);
        let outcome = self.reconciler.run(mode, &|_| {}, stop).await;
        if let Err(error) = &outcome {
            if matches!(error, Error::NothingHeld { .. }) {
                asked.approved = None;
            }
            PendingChecks::request_again(&*self.store, &asked).await?;
        }
        outcome
    }

    /// Looks at what is state_records, and tells it.
    async fn review(&self) -> Result<Vec<Run>, store::Error> {
        let runs = record::runs(&*self.store).await?;
        let now = self.now();
        let silence = webhook_health::assess(&*self.store, &runs, now, self.config.patience).await?;
        metrics::gauge!("kinsync_webhook_silent").set(f64::from(u8::from(silence.is_some())));
        let was_silent = self.status.borrow().silence.is_some();
        if let Some(silence) = silence.as_ref().filter(|_| !was_silent) {
            tracing::error!(fix = webhook_health::FIX, "{silence}");
        }
        let latest = runs.iter().find(|run| run.is_whole()).cloned();
        tell(latest.as_ref());
        let is_well = runs.iter().find(|run| run.ended_at.is_some()).is_some_and(Run::is_complete);
        self.status.send_modify(|status| {
            let failure = status.failure.take().filter(|_| !is_well);
            *status = Status { silence, latest, failure };
        });
        Ok(runs)
    }

    async fn is_due(&self) -> Result<bool, store::Error> {
        let is_fresh = |at: Instant| at.elapsed() < self.config.review_every;
        if self.reviewed.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(is_fresh) {
            return Ok(false);
        }
        let runs = self.review().await?;
        *self.reviewed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let is_silent = self.status.borrow().silence.is_some();
        let Some(every) = self.config.every else { return Ok(false) };
        let every = if is_silent { self.config.every_in_silence } else { every };
        // Spread, so that processes which started together do not always meet.
        let every = random::jitter(every, 0.9..=1.0);
        let due =
            |began: Micros| began.0.saturating_add(i64::try_from(every.as_micros()).unwrap_or(i64::MAX));
        Ok(last_began(&runs).is_none_or(|began| due(began) <= self.now().0))
    }

    fn now(&self) -> Micros {
        self.reconciler.0.clock.now()
    }
}

/// What the newest whole run found, in every process alike.
#[expect(clippy::cast_precision_loss, reason = "a gauge")]
fn tell(latest: Option<&Run>) {
    let Some(run) = latest else { return };
    for kind in [
        DriftKind::Missing,
        DriftKind::Changed,
        DriftKind::FilledIn,
        DriftKind::SignedIn,
        DriftKind::Deleted,
        DriftKind::DeletionHeld,
        DriftKind::Restored,
        DriftKind::ListedAfterDeletion,
        DriftKind::Rejected,
        DriftKind::Undetermined,
    ] {
        metrics::gauge!("kinsync_users_in_drift", "kind" => kind.as_str()).set(run.tally.of(kind) as f64);
    }
    for source in Source::ALL {
        let users = run.tally.changes_by_source.get(&source).copied().unwrap_or_default();
        metrics::gauge!("kinsync_users_changed_between_scans", "source" => source.as_str()).set(users as f64);
    }
    metrics::gauge!("kinsync_reconcile_last_timestamp_seconds").set(run.started_at.0 as f64 / 1e6);
}
