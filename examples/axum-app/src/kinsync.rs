//! kinsync inside this process: what `kinsync serve` would run beside it. This is the file to copy.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use kinde::{
    Jwks,
    account::{self, ProfileClient},
    bearer::{self, Cached, CachedConfig},
    domain::issuer_of,
    jwks, webhook,
};
use kinsync_engine::{
    breaker::{self, Breaker},
    clock::Clock,
    projector::{self, Projector},
    queue::{
        Queue,
        embedded::{self, EmbeddedQueue},
    },
    store::{
        Store,
        embedded::EmbeddedStore,
        mongo::{self, MongoStore},
    },
};
use kinsync_tower::{
    KinsyncLayer, WebhookService,
    login::{self, Login, claims},
};
use tokio::task::block_in_place;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

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
    /// stays, and one for each process.
    pub(crate) async fn start(tenant: Url, folder: &Path, mongo: Option<mongo::Config>) -> Result<Self> {
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

        // Requests, with tokens of this issuer. Name your API in `audiences` if your front end asks Kinde for one.
        let issuer = issuer_of(&tenant);
        let tokens = bearer::Config { issuers: vec![(issuer.clone(), jwks)], ..bearer::Config::default() };
        let parts = login::Parts {
            tokens: Cached::new(bearer::Verifier::new(tokens), &CachedConfig::default()),
            store: store.clone(),
            queue: entries.clone(),
            clock: clock.clone(),
            profiles: vec![(issuer, ProfileClient::new(account::Config::new(tenant))?)],
            claims: Arc::new(claims::Email),
        };
        let (login, beside_requests) = Login::new(parts, login::Config::default());

        // Out of the queue, into the store.
        let breaker = Breaker::new("store", breaker::Config::default());
        let projector = Projector::new(entries, store, breaker, clock, projector::Config::default());

        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(beside_requests.run(stop.clone()));
        let told = stop.clone();
        tasks.spawn(async move { projector.run(told).await });
        Ok(Self { webhook, layer: KinsyncLayer::new(login), queue, tasks, stop })
    }

    /// Finishes what is in work. What is not projected yet waits in the queue for the next start.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.queue.close().await;
    }
}

/// MongoDB has to answer at the start, for the indexes; after that it may come and go.
async fn open_store(folder: &Path, mongo: Option<mongo::Config>) -> Result<Arc<dyn Store>> {
    let Some(mongo) = mongo else { return Ok(Arc::new(block_in_place(|| EmbeddedStore::open(folder))?)) };
    let store = MongoStore::connect(mongo).await?;
    store.prepare().await.context("cannot use MONGODB_URI: MongoDB has to answer at the start")?;
    Ok(Arc::new(store))
}
