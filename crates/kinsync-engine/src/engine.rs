//! The engine as one part: queue, store, projector and reconciler, composed, started and stopped together.
//!
//! The binary, embedding applications and tests use this and nothing below it. Deliveries are accepted as soon as
//! [`Builder::open`] returns: the queue is open then. MongoDB may be unavailable at that time; its indexes are made and
//! the projector starts when it answers.

mod builder;
mod health;
mod roles;
#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kinsync_core::{UserDocument, UserId};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use self::{
    builder::{Builder, Error},
    health::Health,
    roles::Roles,
};
use crate::{
    breaker::{self, Breaker, Failure},
    clock::Clock,
    derived,
    erasure::{Automatic, Eraser},
    log_snapshots,
    pending_checks::{self, Approval, PendingChecks},
    projections,
    projector::{Projector, RefusedByStore},
    queue::{Queue, spooled::SpooledQueue},
    random,
    reconcile::{
        self, Reconciler, record,
        schedule::{Schedule, Status},
    },
    retention::Retention,
    spread::SpreadStatus,
    store::{self, OpenedStore, Page, Store, UserFilter},
    supervisor::Supervisor,
};

/// Pause before the store is prepared again after a failure. Doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// Interval of the count of requested checks without a Management API.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// An opened engine. Clones share everything. Dropping it stops nothing: call [`Engine::stop`].
#[derive(Clone, Debug)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    roles: Roles,
    queue: Arc<dyn Queue>,
    /// The same queue, if several processes share it.
    spooled: Option<Arc<SpooledQueue>>,
    store: OpenedStore,
    shared_store: Arc<dyn Store>,
    clock: Clock,
    breaker: Breaker,
    projector: Projector,
    reconciler: Option<ReconcilerHandle>,
    schedule: Option<Schedule>,
    /// Interval of the projections; `None`: they are off.
    project_every: Option<Duration>,
    /// Why the store is not prepared; `None` once it is.
    unprepared: watch::Sender<Option<Failure>>,
    /// Requested checks that no process carries out, because there is no Management API.
    unchecked_users: AtomicUsize,
    /// The search for documents of the application that kinsync has not written.
    #[cfg(feature = "mongodb")]
    search: watch::Sender<store::mongo::SearchProgress>,
    eraser: Eraser,
    /// `None` unless users are erased some time after their deletion.
    automatic: Option<Automatic>,
    /// `None` if all entries of the log are kept.
    retention: Option<Retention>,
    supervisor: Supervisor,
}

/// The reconciler of an engine.
#[derive(Clone, Debug)]
pub struct ReconcilerHandle {
    /// Compares Kinde with the store.
    pub reconciler: Reconciler,
    /// The state of the schedule, without a call of the store.
    pub status: watch::Receiver<Status>,
    wake: Arc<Notify>,
}

impl Engine {
    /// Settings with this data folder: one that lasts, and one for each process.
    pub fn builder(data_dir: impl Into<PathBuf>) -> Builder {
        Builder::new(data_dir.into())
    }

    /// Starts what the roles of the process need. Call it once.
    pub fn start(&self) {
        if let Some(spooled) = &self.0.spooled {
            let spooled = Arc::clone(spooled);
            self.0.supervisor.spawn("spool", move |stop| {
                let spooled = Arc::clone(&spooled);
                async move { spooled.run(stop).await }
            });
        }
        let Roles { project, reconcile, .. } = self.0.roles;
        if project {
            self.start_projector();
        } else if self.0.roles.uses_store() {
            let engine = self.clone();
            self.0.supervisor.spawn("store", move |stop| {
                let engine = engine.clone();
                async move {
                    let work = async {
                        engine.prepare_store().await;
                        engine.watch_store().await;
                    };
                    Box::pin(stop.run_until_cancelled(work)).await;
                }
            });
        }
        if self.0.roles.uses_store() {
            self.start_erasures();
        }
        if reconcile {
            self.start_reconciler();
        }
    }

    fn start_projector(&self) {
        if let Some((collection, named_by)) = self.0.store.place() {
            tracing::info!(collection, named_by, "users are stored in MongoDB");
        }
        let engine = self.clone();
        self.0.supervisor.spawn("projector", move |stop| {
            let engine = engine.clone();
            async move {
                // Boxed: the future is large.
                let prepared = Box::pin(stop.run_until_cancelled(engine.prepare_store()));
                if prepared.await.is_some() {
                    engine.0.projector.run(stop).await;
                }
            }
        });
        #[cfg(feature = "mongodb")]
        if matches!(self.0.store, OpenedStore::Mongo(_)) {
            let engine = self.clone();
            self.0.supervisor.spawn("documents", move |stop| {
                let engine = engine.clone();
                async move {
                    let mut unprepared = engine.0.unprepared.subscribe();
                    let work = async {
                        if unprepared.wait_for(Option::is_none).await.is_ok() {
                            let Inner { store, clock, search, .. } = &*engine.0;
                            Box::pin(store.maintain_documents(clock, search)).await;
                        }
                    };
                    stop.run_until_cancelled(work).await;
                    stop.cancelled().await;
                }
            });
        }
        let engine = self.clone();
        self.0.supervisor.spawn("log", move |stop| {
            let engine = engine.clone();
            async move {
                if engine.until_prepared(&stop).await {
                    stop.run_until_cancelled(engine.complete_log()).await;
                }
                stop.cancelled().await;
            }
        });
        self.start_removals();
        let engine = self.clone();
        self.0.supervisor.spawn("spread", move |stop| {
            let engine = engine.clone();
            async move {
                if engine.until_prepared(&stop).await {
                    engine.0.projector.spread().run(stop).await;
                }
            }
        });
        let engine = self.clone();
        self.0.supervisor.spawn("derived collections", move |stop| {
            let engine = engine.clone();
            async move {
                if engine.until_prepared(&stop).await {
                    derived::run(Arc::clone(engine.store()), engine.clock().clone(), stop).await;
                }
            }
        });
        if let Some(every) = self.0.project_every {
            let engine = self.clone();
            self.0.supervisor.spawn("projections", move |stop| {
                let engine = engine.clone();
                async move {
                    if engine.until_prepared(&stop).await {
                        projections::run(Arc::clone(engine.store()), engine.clock().clone(), every, stop)
                            .await;
                    }
                }
            });
        }
    }

    fn start_reconciler(&self) {
        let engine = self.clone();
        let name = if self.0.schedule.is_some() { "reconciler" } else { "unchecked users" };
        self.0.supervisor.spawn(name, move |stop| {
            let engine = engine.clone();
            async move {
                if !engine.until_prepared(&stop).await {
                    return;
                }
                match &engine.0.schedule {
                    Some(schedule) => Box::pin(schedule.run(&stop)).await,
                    None => _ = stop.run_until_cancelled(engine.count_unchecked_users()).await,
                }
            }
        });
    }

    /// Starts what each process does for the erasures of all: its queue and its caches contain a user too.
    fn start_erasures(&self) {
        let engine = self.clone();
        self.0.supervisor.spawn("erasure", move |stop| {
            let engine = engine.clone();
            async move {
                if engine.until_prepared(&stop).await {
                    engine.0.eraser.run(&stop).await;
                }
            }
        });
    }

    /// Starts the erasures of users that were deleted long ago, and the removal of old entries of the log.
    fn start_removals(&self) {
        if self.0.automatic.is_some() {
            let engine = self.clone();
            self.0.supervisor.spawn("automatic erasure", move |stop| {
                let engine = engine.clone();
                async move {
                    if let (true, Some(automatic)) = (engine.until_prepared(&stop).await, &engine.0.automatic)
                    {
                        automatic.run(&stop).await;
                    }
                }
            });
        }
        if self.0.retention.is_some() {
            let engine = self.clone();
            self.0.supervisor.spawn("retention", move |stop| {
                let engine = engine.clone();
                async move {
                    if let (true, Some(retention)) = (engine.until_prepared(&stop).await, &engine.0.retention)
                    {
                        retention.run(&stop).await;
                    }
                }
            });
        }
    }

    /// Waits until the store is prepared. Returns `false` if stopped before.
    async fn until_prepared(&self, stop: &CancellationToken) -> bool {
        let mut unprepared = self.0.unprepared.subscribe();
        let prepared = async { unprepared.wait_for(Option::is_none).await.is_ok() };
        stop.run_until_cancelled(prepared).await == Some(true)
    }

    /// Completes the log of a store from before the log contained every observation, however long that takes.
    async fn complete_log(&self) {
        loop {
            match log_snapshots::complete(&**self.store(), &self.0.clock).await {
                Ok(0) => return,
                Ok(users) => {
                    tracing::info!(users, "logged the states of users from before the log was complete");
                    return;
                }
                Err(error) => tracing::warn!(
                    error = breaker::error_chain(&error),
                    "logging the states of users failed; it continues in a moment"
                ),
            }
            tokio::time::sleep(MAX_PAUSE).await;
        }
    }

    /// Counts the requested checks from time to time. Nothing carries them out without a Management API.
    async fn count_unchecked_users(&self) {
        loop {
            if let Ok(checks) = PendingChecks::load(&**self.store()).await {
                // Too many users become one scan.
                let users =
                    checks.users.len() + if checks.scan.is_some() { pending_checks::MAX_USERS } else { 0 };
                reconcile::gauges::pending_checks(users);
                self.0.unchecked_users.store(users, Ordering::Relaxed);
            }
            tokio::time::sleep(COUNT_EVERY).await;
        }
    }

    /// Prepares the store, however long that takes. A store that refuses a command is tried again as well: an operator can
    /// change a password, a role or an index while deliveries are queued.
    async fn prepare_store(&self) {
        let mut pause = FIRST_PAUSE;
        let (store, kind) = (&self.0.store, self.0.store.kind());
        while let Err(error) = store.prepare().await {
            let failure = Failure::of(&error);
            if self.0.unprepared.send_replace(Some(failure.clone())).as_ref() != Some(&failure) {
                let (error, message) = (failure.chain, "the store cannot be used yet; deliveries are queued");
                if failure.is_refusal {
                    tracing::error!(store = kind, error, message);
                } else {
                    tracing::warn!(store = kind, error, message);
                }
            }
            tokio::time::sleep(random::jitter(pause, 0.5..=1.0)).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        tracing::info!(store = kind, "the store is ready");
        self.0.unprepared.send_replace(None);
    }

    /// Finds out whether the store answers, in a process without the projector, which does so otherwise.
    async fn watch_store(&self) {
        loop {
            match self.store().ping().await {
                Ok(()) => self.0.breaker.succeeded(),
                Err(error) => self.0.breaker.failed(&error),
            }
            tokio::time::sleep(random::jitter(MAX_PAUSE, 0.5..=1.0)).await;
        }
    }

    /// Stops the tasks after their current batch, then closes the queue. Cancel safe: what was accepted stays queued.
    pub async fn stop(&self) {
        self.0.supervisor.stop().await;
        self.0.queue.close().await;
    }

    /// Runs the tasks of the engine. An embedding application adds its own.
    pub fn supervisor(&self) -> &Supervisor {
        &self.0.supervisor
    }

    /// What this process does.
    pub fn roles(&self) -> Roles {
        self.0.roles
    }

    /// The queue that accepts deliveries.
    #[doc(hidden)]
    pub fn queue(&self) -> &Arc<dyn Queue> {
        &self.0.queue
    }

    /// Returns a user as stored, also a deleted one; `None` if kinsync does not know the user.
    pub async fn user(&self, id: &UserId) -> Result<Option<UserDocument>, store::Error> {
        let row = self.store().load(std::slice::from_ref(id)).await?.pop().flatten();
        Ok(row.map(|row| row.document()))
    }

    /// Lists users as stored. Reads at most one user more than the limit.
    pub async fn users(&self, filter: &UserFilter) -> Result<Page<UserDocument>, store::Error> {
        Ok(self.store().users(filter).await?.map(|row| row.document()))
    }

    /// The store of users and events.
    #[doc(hidden)]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.0.shared_store
    }

    /// `mongodb` or `embedded`.
    #[doc(hidden)]
    pub fn store_kind(&self) -> &'static str {
        self.0.store.kind()
    }

    /// Erases users.
    #[doc(hidden)]
    pub fn eraser(&self) -> &Eraser {
        &self.0.eraser
    }

    /// Why the store is not prepared yet; `None` once it is.
    #[doc(hidden)]
    pub fn store_failure(&self) -> Option<Failure> {
        self.0.unprepared.borrow().clone()
    }

    /// Receives why the store is not prepared yet; `None` once it is.
    #[doc(hidden)]
    pub fn store_preparation(&self) -> watch::Receiver<Option<Failure>> {
        self.0.unprepared.subscribe()
    }

    /// What the store refuses, as of a few seconds ago.
    #[doc(hidden)]
    pub fn refused_by_store(&self) -> RefusedByStore {
        self.0.projector.refused().borrow().clone()
    }

    /// Changed organizations, roles and permissions that the documents of some users do not show yet, as of a few seconds ago.
    #[doc(hidden)]
    pub fn spread_status(&self) -> SpreadStatus {
        self.0.projector.spread().status()
    }

    /// How far the search for documents of the application has come that kinsync has not written; `None` unless users are in
    /// MongoDB.
    #[cfg(feature = "mongodb")]
    #[doc(hidden)]
    pub fn unwritten_search(&self) -> Option<store::mongo::SearchProgress> {
        matches!(self.0.store, OpenedStore::Mongo(_)).then(|| *self.0.search.borrow())
    }

    /// The breaker between the projector and the store.
    #[doc(hidden)]
    pub fn breaker(&self) -> &Breaker {
        &self.0.breaker
    }

    /// The source of time.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The reconciler; `None` without a Management API.
    #[doc(hidden)]
    pub fn reconciler(&self) -> Option<&ReconcilerHandle> {
        self.0.reconciler.as_ref()
    }

    /// The number of users that may differ from Kinde, as far as contradictory observations show it, and that cannot be
    /// checked without a Management API; 0 with one.
    #[doc(hidden)]
    pub fn unchecked_users(&self) -> usize {
        self.0.unchecked_users.load(Ordering::Relaxed)
    }

    /// Requests a scan, which one of the processes that share the store runs soon. Durable when this returns.
    pub async fn request_scan(&self) -> Result<(), store::Error> {
        PendingChecks::request_scan(&**self.store()).await?;
        self.wake_reconciler();
        Ok(())
    }

    /// Requests a scan that carries out approved deletions. Durable when this returns.
    #[doc(hidden)]
    pub async fn approve(&self, approval: &Approval) -> Result<(), store::Error> {
        PendingChecks::approve(&**self.store(), approval).await?;
        self.wake_reconciler();
        Ok(())
    }

    /// Requests a check of one user against Kinde. Durable when this returns.
    pub async fn request_check(&self, user: UserId) -> Result<(), store::Error> {
        PendingChecks::request(&**self.store(), &[user]).await?;
        self.wake_reconciler();
        Ok(())
    }

    /// Loads the stored runs, newest first. A run is shown as cut if its process was killed or lost its lease.
    #[doc(hidden)]
    pub async fn runs(&self) -> Result<record::History, store::Error> {
        match &self.0.reconciler {
            Some(handle) => handle.reconciler.history().await,
            None => record::history(&**self.store()).await,
        }
    }

    fn wake_reconciler(&self) {
        if let Some(reconciler) = &self.0.reconciler {
            reconciler.wake.notify_one();
        }
    }
}
