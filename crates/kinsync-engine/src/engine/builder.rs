//! Settings of an engine, and its composition.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use kinde::management::{self, Client};
use tokio::sync::{Notify, watch};

use super::{Engine, Inner, ReconcilerHandle, Roles};
use crate::{
    breaker::{self, Breaker, Failure},
    clock::Clock,
    erasure::{Automatic, Eraser},
    projector::{self, Projector},
    queue::{
        self, Queue, SharedQueue,
        embedded::{self, EmbeddedQueue},
        spooled::SpooledQueue,
    },
    reconcile::{
        self, Reconciler,
        schedule::{self, Schedule},
    },
    retention::{Retention, Rules},
    store::{self, Store},
    supervisor::Supervisor,
};

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

/// Longest lease of an entry of a shared queue. A batch that takes longer is repeated by another process, which changes nothing: see the
/// module `queue`.
const SHARED_LEASE: Duration = Duration::from_secs(30);

/// Settings of an engine. Made by [`Engine::builder`].
#[derive(Debug)]
#[must_use = "a builder does nothing until `open` is called"]
pub struct Builder {
    data_dir: PathBuf,
    roles: Roles,
    clock: Clock,
    queue: embedded::Config,
    shared_queue: Option<SharedQueue>,
    store: store::Location,
    breaker: breaker::Config,
    management: Option<management::Config>,
    reconcile: reconcile::Config,
    scan_every: Option<Duration>,
    project_every: Option<Duration>,
    projector: projector::Config,
    erase_deleted_after: Option<Duration>,
    retention: Rules,
}

impl Builder {
    pub(super) fn new(data_dir: PathBuf) -> Self {
        Self {
            data_dir,
            roles: Roles::ALL,
            clock: Clock::system(),
            queue: embedded::Config::default(),
            shared_queue: None,
            store: store::Location::default(),
            breaker: breaker::Config::default(),
            management: None,
            reconcile: reconcile::Config::default(),
            scan_every: Some(Duration::from_hours(1)),
            project_every: Some(Duration::from_mins(5)),
            projector: projector::Config::default(),
            erase_deleted_after: None,
            retention: Rules::default(),
        }
    }

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

    /// Erases users this long after their deletion. Without it they are erased on request only.
    pub fn erase_deleted_after(mut self, age: Option<Duration>) -> Self {
        self.erase_deleted_after = age;
        self
    }

    /// Sets how long entries of the event log are kept; without a limit unless set.
    pub fn retention(mut self, rules: Rules) -> Self {
        self.retention = rules;
        self
    }

    /// Sets the time from the start of one scan to the start of the next; one hour unless set. `None` scans only on
    /// request.
    pub fn scan_every(mut self, every: Option<Duration>) -> Self {
        self.scan_every = every;
        self
    }

    /// Sets the shortest interval at which the daily figures are computed; five minutes unless set. `None` computes none.
    pub fn project_every(mut self, every: Option<Duration>) -> Self {
        self.project_every = every;
        self
    }

    /// Sets what this process does; everything unless set.
    pub fn roles(mut self, roles: Roles) -> Self {
        self.roles = roles;
        self
    }

    /// Sets the limits of the queue.
    pub fn queue(mut self, config: embedded::Config) -> Self {
        self.queue = config;
        self
    }

    /// Shares this queue with other processes. The queue in the data folder then is the spool: it accepts entries while the
    /// shared queue does not.
    pub fn shared_queue(mut self, shared: SharedQueue) -> Self {
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

    /// Opens the queue and the store. The queue accepts deliveries then; [`Engine::start`] starts everything else.
    ///
    /// # Errors
    /// When the data folder cannot be used or is used by another process, or when a setting is wrong. A MongoDB that
    /// does not answer is no error.
    pub async fn open(self) -> Result<Engine, Error> {
        let Self {
            data_dir, roles, clock, queue, shared_queue, store, breaker, management, reconcile, ..
        } = self;
        let (scan_every, projector) = (self.scan_every, self.projector);
        let (erase_deleted_after, rules) = (self.erase_deleted_after, self.retention);
        let queue = embedded::Config { is_spool: shared_queue.is_some(), ..queue };
        let local = open_queue(&data_dir, queue, clock.clone()).await?;
        let store = store::open(&data_dir, store).await.map_err(Error::Store)?;
        let supervisor = Supervisor::default();
        supervisor.end_process_after("queue writer", local.panicked());
        if let Some(panicked) = store.panicked() {
            supervisor.end_process_after("store threads", panicked);
        }
        let shared = shared_queue.map(|shared| shared.create(&store.store(), &clock, &supervisor));
        let shared = shared.transpose().map_err(Error::Queue)?;
        let spooled = shared.map(|shared| Arc::new(SpooledQueue::new(shared, Arc::clone(&local))));
        let queue: Arc<dyn Queue> = match &spooled {
            Some(spooled) => Arc::clone(spooled) as _,
            None => local,
        };
        let client = management.map(Client::new).transpose().map_err(Error::Management)?;
        let compares_roles = reconcile.roles;
        let reconciler = client.map(|kinde| Reconciler::new(kinde, store.store(), clock.clone(), reconcile));
        let (reconciler, schedule) = reconciler.map(|reconciler| scheduled(reconciler, scan_every)).unzip();
        let unprepared = store.needs_preparation().then(Failure::not_connected);
        let breaker = Breaker::new("store", "projector", breaker);
        // A projector without the role of a reconciler leaves checks to the process that has it.
        let has_reconciler = reconciler.is_some() || !roles.reconcile;
        let check_without_time = projector.check_without_time || has_reconciler;
        let check_roles = projector.check_roles || (has_reconciler && compares_roles);
        let mut projector = projector::Config { check_without_time, check_roles, ..projector };
        if spooled.is_some() {
            // Another process waits this long for the entries of one that was killed.
            projector.lease = projector.lease.min(SHARED_LEASE);
        }
        let projector =
            Projector::new(Arc::clone(&queue), store.store(), breaker.clone(), clock.clone(), projector);
        let eraser = Eraser::new(store.store(), Arc::clone(&queue), clock.clone());
        let automatic = erase_deleted_after.map(|after| Automatic::new(eraser.clone(), after));
        let retention = (!rules.keep_all()).then(|| Retention::new(store.store(), clock.clone(), rules));
        Ok(Engine(Arc::new(Inner {
            eraser,
            automatic,
            retention,
            roles,
            queue,
            spooled,
            shared_store: store.store(),
            store,
            clock,
            breaker,
            projector,
            reconciler,
            schedule,
            project_every: self.project_every,
            unprepared: watch::Sender::new(unprepared),
            unchecked_users: AtomicUsize::new(0),
            #[cfg(feature = "mongodb")]
            search: watch::Sender::default(),
            supervisor,
        })))
    }
}

async fn open_queue(
    data_dir: &Path,
    config: embedded::Config,
    clock: Clock,
) -> Result<Arc<EmbeddedQueue>, Error> {
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
