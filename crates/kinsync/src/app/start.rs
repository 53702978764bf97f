//! How an app begins: queue, verifier, store, sockets; then what runs beside the requests.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use axum::Router;
use kinde::{Jwks, jwks, webhook::Verifier};
use kinsync_engine::{
    breaker::Breaker,
    clock::Clock,
    projector::Projector,
    queue::{
        self, Queue,
        embedded::{self as embedded_queue, EmbeddedQueue},
    },
    reconcile::schedule::{self, Schedule},
    store::{
        self, Store,
        embedded::EmbeddedStore,
        mongo::{self, MongoStore},
    },
};
use kinsync_tower::{WebhookService, webhook};
use secrecy::ExposeSecret;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{AdminToken, App, AppState, Error, authenticator, management, state::ReconcilerHandle};
use crate::{
    config::{self, Config, rules::disabled},
    http::{
        router,
        server::{Limits, Server},
    },
    metrics, random,
};

/// The first pause before the store is prepared again; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How often keys that are not known yet are asked for; the key set has a cool-down of its own.
const KEYS_PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn start(config: Config) -> Result<App, Error> {
    let metrics = metrics::recorder();
    let clock = Clock::system();
    let queue = open_queue(&config, clock.clone()).await?;
    let tenant = key_set(&config)?;
    let verifier = verifier(&config, tenant.clone())?;
    let mut key_sets = authenticator::key_sets(&config, tenant.as_ref())?;
    let opened = open_store(&config).await?;
    let breaker = Breaker::new("store", "projector", kinsync_engine::breaker::Config::default());
    let (authenticator, requests) =
        authenticator::open(&config, &key_sets, opened.store(), Arc::clone(&queue), clock.clone())?.unzip();
    // The tenant signs webhooks with its own keys, also where tokens come from custom domains.
    key_sets.extend(tenant.filter(|tenant| key_sets.iter().all(|known| known.issuer() != tenant.issuer())));
    let service = WebhookService::new(verifier.clone(), Arc::clone(&queue), clock.clone(), limits(&config));
    let (reconcile, schedule) = open_reconciler(&config, opened.store(), clock.clone())?.unzip();
    let first = matches!(opened, Opened::Mongo(_)).then(|| "not connected yet".to_owned());
    let (prepared, unprepared) = watch::channel(first);
    let state = Arc::new(AppState {
        admin_token: config.http.admin_token.as_ref().map(AdminToken::new),
        webhook: service,
        store: opened.store(),
        store_kind: opened.kind(),
        started: Instant::now(),
        config,
        queue,
        breaker,
        clock,
        verifier,
        key_sets,
        authenticator,
        reconcile,
        metrics,
        unprepared,
    });
    let (failed, failure) = watch::channel(None);
    let running = Running::new(failed);
    let (address, operation_address) = running.listen(&state).await?;
    running.work(&state, opened, prepared);
    if let Some(requests) = requests {
        running.workers.spawn(requests.run(running.stop_workers.clone()));
    }
    if let Some(schedule) = schedule {
        let (state, stop) = (Arc::clone(&state), running.stop_workers.clone());
        running.workers.spawn(async move {
            let mut unprepared = state.unprepared.clone();
            let prepared = async { unprepared.wait_for(Option::is_none).await.is_ok() };
            if stop.run_until_cancelled(prepared).await == Some(true) {
                schedule.run(&stop).await;
            }
        });
    }
    announce(&state.config, address);
    Ok(App {
        state,
        address,
        operation_address,
        servers: running.servers,
        workers: running.workers,
        stop_servers: running.stop_servers,
        stop_workers: running.stop_workers,
        failure,
    })
}

async fn open_queue(config: &Config, clock: Clock) -> Result<Arc<dyn Queue>, Error> {
    let config::QueueKind::Embedded = config.queue.kind;
    let bounds = embedded_queue::Config {
        max_entries: config.queue.max_entries,
        max_bytes: config.queue.max_bytes,
        ..embedded_queue::Config::default()
    };
    let folder = config.data_dir.clone();
    let queue = blocking("queue", move || EmbeddedQueue::open(&folder, bounds, clock)).await?;
    Ok(Arc::new(queue.map_err(|error| unusable(&config.data_dir, error))?))
}

/// At the start a fault of the disk ends the process: the advice differs from that of a running queue, which recovers.
fn unusable(data_dir: &Path, error: queue::Error) -> Error {
    match error {
        queue::Error::Unavailable { source, .. } => {
            Error::DataDir { path: data_dir.display().to_string(), source: source.into() }
        }
        error => Error::Queue(Arc::new(error)),
    }
}

/// Runs what waits for the disk.
async fn blocking<T: Send + 'static>(
    part: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Ended { part })
}

/// Compares Kinde with the store, if there is a machine-to-machine application.
fn open_reconciler(
    config: &Config,
    store: Arc<dyn Store>,
    clock: Clock,
) -> Result<Option<(ReconcilerHandle, Schedule)>, Error> {
    let Some(reconciler) = management::reconciler(config, store, clock)? else { return Ok(None) };
    let (wake, when) = (Arc::new(Notify::new()), schedule::Config::every(config.reconcile.every));
    let (schedule, status) = Schedule::new(reconciler.clone(), when, Arc::clone(&wake));
    Ok(Some((ReconcilerHandle { reconciler, status, wake }, schedule)))
}

fn key_set(config: &Config) -> Result<Option<Jwks>, Error> {
    let Some(domain) = &config.kinde.domain else { return Ok(None) };
    let made = Jwks::new(jwks::Config::new(domain.clone()));
    made.map(Some).map_err(|error| Error::Jwks(Arc::new(error)))
}

fn verifier(config: &Config, jwks: Option<Jwks>) -> Result<Verifier, Error> {
    let config = kinde::webhook::Config {
        jwks,
        hmac_secrets: config.kinde.webhook_secrets.clone(),
        standard_webhooks_secrets: config.kinde.standard_webhooks_secrets.clone(),
        ..kinde::webhook::Config::default()
    };
    Verifier::new(config).map_err(Error::Verifier)
}

fn limits(config: &Config) -> webhook::Config {
    webhook::Config {
        body_limit: config.http.body_limit,
        body_budget: config.http.body_budget,
        body_deadline: config.http.body_deadline,
        deadline: config.http.request_deadline,
        ..webhook::Config::default()
    }
}

/// The store, opened but perhaps not prepared.
pub(crate) enum Opened {
    Mongo(MongoStore),
    Embedded(Arc<EmbeddedStore>),
}

impl Opened {
    fn kind(&self) -> &'static str {
        match self {
            Self::Mongo(_) => "mongodb",
            Self::Embedded(_) => "embedded",
        }
    }

    pub(crate) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Mongo(store) => Arc::new(store.clone()),
            Self::Embedded(store) => Arc::clone(store) as Arc<dyn Store>,
        }
    }

    /// Makes what the store needs before its first write.
    pub(crate) async fn prepare(&self) -> Result<(), store::Error> {
        match self {
            Self::Mongo(store) => store.prepare().await,
            Self::Embedded(_) => Ok(()),
        }
    }
}

pub(crate) async fn open_store(config: &Config) -> Result<Opened, Error> {
    let folder = config.data_dir.clone();
    let opened = if let Some(uri) = &config.store.mongodb_uri {
        MongoStore::connect(mongo_config(&config.store, uri.expose_secret())).await.map(Opened::Mongo)
    } else {
        let store = blocking("store", move || EmbeddedStore::open(&folder)).await?;
        store.map(Arc::new).map(Opened::Embedded)
    };
    opened.map_err(|error| Error::Store(Arc::new(error)))
}

/// The store in MongoDB as the settings say.
pub(crate) fn mongo_config(store: &config::Store, uri: &str) -> mongo::Config {
    mongo::Config {
        database: store.database.clone(),
        users: store.users.clone(),
        events: store.events.clone(),
        fields: store.fields.clone(),
        unique_email: store.unique_email,
        link_by_email: store.link_by_email,
        ..mongo::Config::new(uri)
    }
}

/// What runs, and what ends it.
struct Running {
    servers: TaskTracker,
    workers: TaskTracker,
    stop_servers: CancellationToken,
    stop_workers: CancellationToken,
    failed: watch::Sender<Option<Error>>,
}

impl Running {
    fn new(failed: watch::Sender<Option<Error>>) -> Self {
        Self {
            servers: TaskTracker::new(),
            workers: TaskTracker::new(),
            stop_servers: CancellationToken::new(),
            stop_workers: CancellationToken::new(),
            failed,
        }
    }

    /// Binds every address before any of them is served, so that a taken one starts nothing.
    async fn listen(&self, state: &Arc<AppState>) -> Result<(SocketAddr, Option<SocketAddr>), Error> {
        let http = &state.config.http;
        let main = bind(SocketAddr::new(http.bind, http.port), state).await?;
        let operation =
            if let Some(address) = http.metrics_bind { Some(bind(address, state).await?) } else { None };
        let address = self.serve(main, router::public(state));
        let operation_address = operation.map(|server| self.serve(server, router::monitoring(state)));
        Ok((address, operation_address))
    }

    fn serve(&self, (server, address): (Server, SocketAddr), router: Router) -> SocketAddr {
        self.servers.spawn(server.serve(router, self.stop_servers.clone()));
        address
    }

    fn work(&self, state: &Arc<AppState>, opened: Opened, prepared: watch::Sender<Option<String>>) {
        self.workers.spawn(upkeep(Arc::clone(state), self.stop_workers.clone()));
        for keys in state.key_sets.clone() {
            let stop = self.stop_workers.clone();
            self.workers.spawn(async move { _ = stop.run_until_cancelled(learn_keys(keys)).await });
        }
        let (stop, failed) = (self.stop_workers.clone(), self.failed.clone());
        let work = self.workers.spawn(project(Arc::clone(state), opened, prepared, stop));
        self.workers.spawn(async move {
            match work.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => _ = failed.send(Some(Error::Store(Arc::new(error)))),
                Err(_) => _ = failed.send(Some(Error::Ended { part: "projector" })),
            }
        });
    }
}

async fn bind(address: SocketAddr, state: &AppState) -> Result<(Server, SocketAddr), Error> {
    let http = &state.config.http;
    let limits = Limits {
        max_connections: http.max_connections,
        max_connections_per_client: http.max_connections_per_client,
        proxies: http.trusted_proxies.clone(),
        head_deadline: http.head_deadline,
        write_stall: http.head_deadline,
        // The rest is for the projector and the queue.
        grace: http.shutdown_grace.mul_f64(0.6),
    };
    let refused = |source| Error::Listen { address, source: Arc::new(source) };
    let server = Server::bind(address, limits).await.map_err(refused)?;
    let bound = server.address().map_err(refused)?;
    Ok((server, bound))
}

/// Prepares the store, however long that takes, then projects until told to stop.
async fn project(
    state: Arc<AppState>,
    opened: Opened,
    prepared: watch::Sender<Option<String>>,
    stop: CancellationToken,
) -> Result<(), store::Error> {
    match stop.run_until_cancelled(Box::pin(prepare(&opened, &prepared))).await {
        None => return Ok(()),
        Some(outcome) => outcome?,
    }
    let (queue, store) = (Arc::clone(&state.queue), Arc::clone(&state.store));
    let config = kinsync_engine::projector::Config::default();
    Projector::new(queue, store, state.breaker.clone(), state.clock.clone(), config).run(stop).await;
    Ok(())
}

/// Ends when the store is prepared, or never will be.
async fn prepare(opened: &Opened, prepared: &watch::Sender<Option<String>>) -> Result<(), store::Error> {
    let mut pause = FIRST_PAUSE;
    loop {
        match opened.prepare().await {
            Ok(()) => {
                tracing::info!(store = opened.kind(), "the store is ready");
                prepared.send_replace(None);
                return Ok(());
            }
            Err(error) if error.is_transient() => {
                let cause = kinsync_tower::problem::chain(&error);
                tracing::warn!(
                    store = opened.kind(),
                    error = cause,
                    "the store does not answer; deliveries wait"
                );
                prepared.send_replace(Some(kinsync_tower::problem::chain(&error)));
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(random::jitter(pause, 0.5..=1.0)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Asks for the keys of an issuer before the first delivery or request needs them.
async fn learn_keys(jwks: Jwks) {
    while jwks.refresh().await.is_err() {
        tokio::time::sleep(KEYS_PAUSE).await;
    }
    tracing::info!(issuer = jwks.issuer(), keys = jwks.status().key_count, "the issuer's keys are known");
}

async fn upkeep(state: Arc<AppState>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(metrics::UPKEEP);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        state.metrics.run_upkeep();
    }
}

fn announce(config: &Config, address: SocketAddr) {
    for part in disabled(config) {
        tracing::info!(
            enabled_by = part.enabled_by,
            "disabled: {}; set {} to enable it",
            part.what,
            part.enabled_by
        );
    }
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "listening");
}
