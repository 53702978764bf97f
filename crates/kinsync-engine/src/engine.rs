//! The engine as one part: queue, store, projector and reconciler, composed, started and stopped together.
//!
//! The binary, embedding applications and tests use this and nothing below it. Deliveries are accepted as soon as
//! [`Builder::open`] returns: the queue is open then. MongoDB may be unavailable at that time; its indexes are made and
//! the projector starts when it answers.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kinde::management::{self, Client};
use kinsync_core::UserId;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    breaker::{self, Breaker, Failure},
    clock::Clock,
    derived, log_snapshots,
    pending_checks::{self, Approval, PendingChecks},
    projector::{self, Projector, RejectedByStore},
    queue::{
        self, Queue,
        embedded::{self, EmbeddedQueue},
        spooled::SpooledQueue,
    },
    random,
    reconcile::{
        self, Reconciler, record,
        schedule::{self, Schedule, Status},
    },
    spread::SpreadStatus,
    store::{self, OpenedStore, Store},
    supervisor::Supervisor,
};

/// Pause before the store is prepared again after a failure. Doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// Interval of the count of requested checks without a Management API.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// Why the engine could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The queue could not be opened.
    #[error("cannot open the queue")]
    Queue(#[source] queue::Error),
    /// The store could not be opened or prepared.
    #[error("cannot use the store")]
    Store(#[source] store::Error),
    /// The client of the Management API could not be made.
    #[error("cannot use the Management API")]
    Management(#[source] management::ConfigError),
    /// A task that opened a file ended.
    #[error("opening {part} ended unexpectedly")]
    Ended {
        /// What was opened.
        part: &'static str,
    },
}

/// Longest lease of an entry of a shared queue. A batch that takes longer is repeated by another process, which changes nothing.
const SHARED_LEASE: Duration = Duration::from_secs(30);

/// Settings of an engine. Made by [`Engine::builder`].
#[derive(Debug)]
#[must_use = "a builder does nothing until `open` is called"]
pub struct Builder {
    data_dir: PathBuf,
    clock: Clock,
    queue: embedded::Config,
    shared_queue: Option<Arc<dyn Queue>>,
    store: store::Location,
    breaker: breaker::Config,
    management: Option<management::Config>,
    reconcile: reconcile::Config,
    scan_every: Option<Duration>,
    projector: projector::Config,
}

impl Builder {
    /// Keeps users in this MongoDB. Without it they are kept in an SQLite file in the data folder.
    #[cfg(feature = "mongodb")]
    pub fn mongodb(mut self, config: store::mongo::Config) -> Self {
        self.store = store::Location::Mongo(Box::new(config));
        self
    }

    /// Reconciles users with the Management API of the tenant. Without it nothing repairs what webhooks miss.
    pub fn management(mut self, config: management::Config) -> Self {
        self.management = Some(config);
        self
    }

    /// Sets the limits of the reconciler. Only used with [`Builder::management`].
    pub fn reconcile(mut self, config: reconcile::Config) -> Self {
        self.reconcile = config;
        self
    }

    /// Sets the time from the start of one scan to the start of the next; one hour unless set. `None` scans only on
    /// request.
    pub fn scan_every(mut self, every: Option<Duration>) -> Self {
        self.scan_every = every;
        self
    }

    /// Sets the limits of the queue.
    pub fn queue(mut self, config: embedded::Config) -> Self {
        self.queue = config;
        self
    }

    /// Shares this queue with other processes. The queue in the data folder then is the spool: it accepts entries while the
    /// shared queue does not.
    pub fn shared_queue(mut self, shared: Arc<dyn Queue>) -> Self {
        self.shared_queue = Some(shared);
        self
    }

    /// Sets the source of time.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Uses this prepared store, for tests of one.
    #[doc(hidden)]
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = store::Location::Prepared(store);
        self
    }

    /// Sets the limits of the projector and of its breaker, for tests that cannot wait for the usual pauses.
    #[doc(hidden)]
    pub fn projector(mut self, config: projector::Config, breaker: breaker::Config) -> Self {
        self.projector = config;
        self.breaker = breaker;
        self
    }

    /// Opens the queue and the store. Starts nothing; call [`Engine::start`] next.
    ///
    /// # Errors
    /// When the data folder cannot be used or is used by another process, or when a setting is wrong. A MongoDB that
    /// does not answer is no error.
    pub async fn open(self) -> Result<Engine, Error> {
        let Self { data_dir, clock, queue, shared_queue, store, breaker, management, reconcile, .. } = self;
        let (scan_every, projector) = (self.scan_every, self.projector);
        let local = open_queue(&data_dir, queue, clock.clone()).await?;
        let spooled = shared_queue.map(|shared| Arc::new(SpooledQueue::new(shared, Arc::clone(&local))));
        let queue: Arc<dyn Queue> = match &spooled {
            Some(spooled) => Arc::clone(spooled) as _,
            None => local,
        };
        let store = store::open(&data_dir, store).await.map_err(Error::Store)?;
        let client = management.map(Client::new).transpose().map_err(Error::Management)?;
        let compares_roles = reconcile.roles;
        let reconciler = client.map(|kinde| Reconciler::new(kinde, store.store(), clock.clone(), reconcile));
        let (reconciler, schedule) = reconciler.map(|reconciler| scheduled(reconciler, scan_every)).unzip();
        let unprepared = store.needs_preparation().then(Failure::not_connected);
        let breaker = Breaker::new("store", "projector", breaker);
        let check_without_time = projector.check_without_time || reconciler.is_some();
        let check_roles = projector.check_roles || (reconciler.is_some() && compares_roles);
        let mut projector = projector::Config { check_without_time, check_roles, ..projector };
        if spooled.is_some() {
            // Another process waits this long for the entries of one that was killed.
            projector.lease = projector.lease.min(SHARED_LEASE);
        }
        let projector =
            Projector::new(Arc::clone(&queue), store.store(), breaker.clone(), clock.clone(), projector);
        Ok(Engine(Arc::new(Inner {
            queue,
            spooled,
            shared_store: store.store(),
            store,
            clock,
            breaker,
            projector,
            reconciler,
            schedule,
            unprepared: watch::Sender::new(unprepared),
            unchecked_users: AtomicUsize::new(0),
            #[cfg(feature = "mongodb")]
            search: watch::Sender::default(),
            supervisor: Supervisor::default(),
        })))
    }
}

/// An opened engine. Clones share everything. Dropping it stops nothing: call [`Engine::stop`].
#[derive(Clone, Debug)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
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
    /// Why the store is not prepared; `None` once it is.
    unprepared: watch::Sender<Option<Failure>>,
    /// Requested checks that no process carries out, because there is no Management API.
    unchecked_users: AtomicUsize,
    /// The search for documents of the application that kinsync has not written.
    #[cfg(feature = "mongodb")]
    search: watch::Sender<store::mongo::SearchProgress>,
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
        Builder {
            data_dir: data_dir.into(),
            clock: Clock::system(),
            queue: embedded::Config::default(),
            shared_queue: None,
            store: store::Location::default(),
            breaker: breaker::Config::default(),
            management: None,
            reconcile: reconcile::Config::default(),
            scan_every: Some(Duration::from_hours(1)),
            projector: projector::Config::default(),
        }
    }

    /// Starts the projector and the reconciler. Call it once.
    pub fn start(&self) {
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
        if let Some(spooled) = &self.0.spooled {
            let spooled = Arc::clone(spooled);
            self.0.supervisor.spawn("spool", move |stop| {
                let spooled = Arc::clone(&spooled);
                async move { spooled.run(stop).await }
            });
        }
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

    /// Stops the tasks after their current batch, then closes the queue. Cancel safe: what was accepted stays queued.
    pub async fn stop(&self) {
        self.0.supervisor.stop().await;
        self.0.queue.close().await;
    }

    /// Runs the tasks of the engine. An embedding application adds its own.
    pub fn supervisor(&self) -> &Supervisor {
        &self.0.supervisor
    }

    /// The queue that accepts deliveries.
    pub fn queue(&self) -> &Arc<dyn Queue> {
        &self.0.queue
    }

    /// The store of users and events.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.0.shared_store
    }

    /// `mongodb` or `embedded`.
    pub fn store_kind(&self) -> &'static str {
        self.0.store.kind()
    }

    /// Why the store is not prepared yet; `None` once it is.
    pub fn store_failure(&self) -> Option<Failure> {
        self.0.unprepared.borrow().clone()
    }

    /// What the store rejects, as of a few seconds ago.
    pub fn rejected_by_store(&self) -> RejectedByStore {
        self.0.projector.rejected().borrow().clone()
    }

    /// Changed organizations, roles and permissions that the documents of some users do not show yet, as of a few seconds ago.
    pub fn spread_status(&self) -> SpreadStatus {
        self.0.projector.spread().status()
    }

    /// How far the search for documents of the application has come that kinsync has not written; `None` unless users are in
    /// MongoDB.
    #[cfg(feature = "mongodb")]
    pub fn unwritten_search(&self) -> Option<store::mongo::SearchProgress> {
        matches!(self.0.store, OpenedStore::Mongo(_)).then(|| *self.0.search.borrow())
    }

    /// The breaker between the projector and the store.
    pub fn breaker(&self) -> &Breaker {
        &self.0.breaker
    }

    /// The source of time.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The reconciler; `None` without a Management API.
    pub fn reconciler(&self) -> Option<&ReconcilerHandle> {
        self.0.reconciler.as_ref()
    }

    /// The number of users that may differ from Kinde, as far as contradictory observations show it, and that cannot be
    /// checked without a Management API; 0 with one.
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

async fn open_queue(
    data_dir: &Path,
    config: embedded::Config,
    clock: Clock,
) -> Result<Arc<dyn Queue>, Error> {
    let data_dir = data_dir.to_owned();
    let open = move || EmbeddedQueue::open(&data_dir, config, clock);
    let opened = tokio::task::spawn_blocking(open).await;
    let queue = opened.map_err(|_| Error::Ended { part: "the queue" })?.map_err(Error::Queue)?;
    Ok(Arc::new(queue))
}

fn scheduled(reconciler: Reconciler, every: Option<Duration>) -> (ReconcilerHandle, Schedule) {
    let wake = Arc::new(Notify::new());
    let config = schedule::Config::every(every);
    let (schedule, status) = Schedule::new(reconciler.clone(), config, Arc::clone(&wake));
    (ReconcilerHandle { reconciler, status, wake }, schedule)
}
