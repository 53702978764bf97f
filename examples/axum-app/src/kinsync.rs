//! kinsync inside this process: what `kinsync serve` would run beside it. This is the file to copy.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use kinde::{
    Jwks,
    account::{self, ProfileClient},
    bearer::{self, CachingConfig, CachingVerifier},
    domain::issuer_of,
    jwks, management, webhook,
};
use kinsync_engine::{
    breaker::{self, Breaker},
    clock::Clock,
    projector::{self, Projector},
    queue::{
        Queue,
        embedded::{self, EmbeddedQueue},
    },
    reconcile::{
        self, Reconciler,
        schedule::{self, Schedule},
    },
    store::{
        Store,
        embedded::EmbeddedStore,
        mongo::{self, MongoStore},
    },
};
use kinsync_tower::{
    KinsyncLayer, WebhookService,
    authenticator::{self, Authenticator, claims},
};
use tokio::{sync::Notify, task::block_in_place};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

/// From the beginning of a scan to that of the next.
const SCAN_EVERY: Duration = Duration::from_hours(1);
/// How often keys that are not known yet are asked for; the key set has a cool-down of its own.
const KEYS_PAUSE: Duration = Duration::from_secs(5);

/// What users are read as: a machine-to-machine application at Kinde with the scope `read:users`.
pub(crate) struct Machine {
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
}

/// A running kinsync.
pub(crate) struct Kinsync {
    /// Takes Kinde's deliveries.
    pub(crate) webhook: WebhookService,
    /// In front of each route that is for users.
    pub(crate) layer: KinsyncLayer,
    queue: Arc<EmbeddedQueue>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Kinsync {
    /// Users of this tenant, in this MongoDB, else in the folder. Deliveries wait in the folder either way: one that
    /// stays, and one for each process. Without a machine nothing repairs what webhooks miss.
    pub(crate) async fn start(
        tenant: Url,
        folder: &Path,
        mongo: Option<mongo::Config>,
        machine: Option<Machine>,
    ) -> Result<Self> {
        let clock = Clock::system();
        let queue =
            block_in_place(|| EmbeddedQueue::open(folder, embedded::Config::default(), clock.clone()))?;
        let queue = Arc::new(queue);
        let entries: Arc<dyn Queue> = queue.clone();
        let store = open_store(folder, mongo).await?;
        let jwks = Jwks::new(jwks::Config::new(tenant.clone()))?;

        // Deliveries, into the queue. `secrets` would take signed ones from a relay, too.
        let verifier = webhook::Config { jwks: Some(jwks.clone()), ..webhook::Config::default() };
        let verifier = webhook::Verifier::new(verifier)?;
        let bounds = kinsync_tower::webhook::Config::default();
        let webhook = WebhookService::new(verifier, entries.clone(), clock.clone(), bounds);

        // What webhooks miss, and users of whom Kinde has to be asked.
        let schedule = machine
            .map(|machine| reconciliation(tenant.clone(), machine, store.clone(), clock.clone()))
            .transpose()?;

        // Requests, with tokens of this issuer. Name your API in `audiences` if your front end asks Kinde for one.
        let issuer = issuer_of(&tenant);
        let tokens =
            bearer::Config { issuers: vec![(issuer.clone(), jwks.clone())], ..bearer::Config::default() };
        let parts = authenticator::Dependencies {
            tokens: CachingVerifier::new(bearer::Verifier::new(tokens), &CachingConfig::default()),
            store: store.clone(),
            queue: entries.clone(),
            clock: clock.clone(),
            profiles: vec![(issuer, ProfileClient::new(account::Config::new(tenant))?)],
            claims: Arc::new(claims::Email),
        };
        let (authenticator, beside_requests) = Authenticator::new(parts, authenticator::Config::default());

        // Out of the queue, into the store.
        let breaker = Breaker::new("store", "projector", breaker::Config::default());
        let projector = Projector::new(entries, store, breaker, clock, projector::Config::default());

        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(beside_requests.run(stop.clone()));
        let told = stop.clone();
        tasks.spawn(async move { projector.run(told).await });
        let told = stop.clone();
        tasks.spawn(async move { _ = told.run_until_cancelled(learn_keys(jwks)).await });
        if let Some(schedule) = schedule {
            let told = stop.clone();
            tasks.spawn(async move { schedule.run(&told).await });
        }
        Ok(Self { webhook, layer: KinsyncLayer::new(authenticator), queue, tasks, stop })
    }

    /// Finishes what is in work. What is not projected yet waits in the queue for the next start.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.queue.close().await;
    }
}

/// Compares all users with Kinde every hour and repairs what differs, and answers the checks that events ask for. Any
/// number of processes may run it: one at a time scans.
fn reconciliation(tenant: Url, machine: Machine, store: Arc<dyn Store>, clock: Clock) -> Result<Schedule> {
    let api = management::Config::new(tenant, machine.client_id, machine.client_secret.into());
    let api = management::Client::new(api)?;
    let reconciler = Reconciler::new(api, store, clock, reconcile::Config::default());
    // The other half tells what the newest run found, and the `Notify` wakes it early.
    let (schedule, _status) =
        Schedule::new(reconciler, schedule::Config::every(Some(SCAN_EVERY)), Arc::new(Notify::new()));
    Ok(schedule)
}

/// Asks for the tenant's keys before the first delivery needs them.
async fn learn_keys(jwks: Jwks) {
    while jwks.refresh().await.is_err() {
        tokio::time::sleep(KEYS_PAUSE).await;
    }
}

/// MongoDB has to answer at the start, for the indexes; after that it may come and go.
async fn open_store(folder: &Path, mongo: Option<mongo::Config>) -> Result<Arc<dyn Store>> {
    let Some(mongo) = mongo else { return Ok(Arc::new(block_in_place(|| EmbeddedStore::open(folder))?)) };
    let store = MongoStore::connect(mongo).await?;
    store.prepare().await.context("cannot use MONGODB_URI: MongoDB has to answer at the start")?;
    Ok(Arc::new(store))
}
