//! How an app begins: queue, verifier, store, sockets; then what runs beside the requests.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use axum::Router;
use kinde::{Jwks, jwks, webhook::Verifier};
use kinsync_engine::{
    Engine, Error as EngineError,
    internal::{
        queue::{self, embedded},
        store::{self, OpenedStore, mongo},
    },
};
use kinsync_tower::{WebhookService, authenticator::BackgroundTasks, webhook};
use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::ExposeSecret;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{AdminToken, App, AppState, Error, authenticator, management};
use crate::{
    config::{self, Config, rules::disabled},
    http::{
        router,
        server::{Limits, Server},
    },
    metrics,
};

/// How often keys that are not known yet are asked for; the key set has a cool-down of its own.
const KEYS_PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn start(config: Config) -> Result<App, Error> {
    let metrics = metrics::recorder();
    let engine = open_engine(&config).await?;
    let (queue, store, clock) = (engine.queue(), engine.store(), engine.clock());
    let tenant = key_set(&config)?;
    let verifier = verifier(&config, tenant.clone())?;
    let mut key_sets = authenticator::key_sets(&config, tenant.as_ref())?;
    let (authenticator, requests) =
        authenticator::open(&config, &key_sets, Arc::clone(store), Arc::clone(queue), clock.clone())?.unzip();
    // The tenant signs webhooks with its own keys, also where tokens come from custom domains.
    key_sets.extend(tenant.filter(|tenant| key_sets.iter().all(|known| known.issuer() != tenant.issuer())));
    let service = WebhookService::new(verifier.clone(), Arc::clone(queue), clock.clone(), limits(&config));
    let state = Arc::new(AppState {
        admin_token: config.http.admin_token.as_ref().map(AdminToken::new),
        webhook: service,
        started: Instant::now(),
        config,
        engine,
        verifier,
        key_sets,
        authenticator,
        metrics,
    });
    let servers = Servers::default();
    let (address, operation_address) = servers.listen(&state).await?;
    state.engine.start();
    supervise(&state, requests);
    announce(&state.config, address);
    Ok(App { state, address, operation_address, servers })
}

/// Opens the queue and the store that the settings name.
async fn open_engine(config: &Config) -> Result<Engine, Error> {
    let config::QueueKind::Embedded = config.queue.kind;
    let queue = embedded::Config {
        max_entries: config.queue.max_entries,
        max_bytes: config.queue.max_bytes,
        ..embedded::Config::default()
    };
    let mut builder = Engine::builder(&config.data_dir)
        .queue(queue)
        .reconcile(management::limits(&config.reconcile))
        .scan_every(config.reconcile.every);
    if let Some(mongodb) = mongodb(config) {
        builder = builder.mongodb(mongodb);
    }
    if let Some(api) = management::settings(config) {
        builder = builder.management(api);
    }
    builder.open().await.map_err(|error| cannot_open(&config.data_dir, error))
}

/// A disk fault at the start ends the process, so its advice differs from that of a running queue, which recovers.
fn cannot_open(data_dir: &Path, error: EngineError) -> Error {
    match error {
        EngineError::Queue(queue::Error::Unavailable { source, .. }) => {
            Error::DataDir { path: data_dir.display().to_string(), source: source.into() }
        }
        EngineError::Queue(error) => Error::Queue(Arc::new(error)),
        EngineError::Store(error) => Error::Store(Arc::new(error)),
        EngineError::Management(error) => Error::Management(Arc::new(error)),
        error => Error::Engine(Arc::new(error)),
    }
}

/// Opens only the store, for a command that runs without a server.
pub(crate) async fn open_store(config: &Config) -> Result<OpenedStore, Error> {
    store::open(&config.data_dir, mongodb(config).into()).await.map_err(|error| Error::Store(Arc::new(error)))
}

fn mongodb(config: &Config) -> Option<mongo::Config> {
    let uri = config.store.mongodb_uri.as_ref()?;
    Some(mongo_config(&config.store, uri.expose_secret()))
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

/// The listening sockets.
#[derive(Debug, Default)]
pub(super) struct Servers {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Servers {
    /// Binds every address before any of them is served, so that a taken one starts nothing.
    async fn listen(&self, state: &Arc<AppState>) -> Result<(SocketAddr, Option<SocketAddr>), Error> {
        let http = &state.config.http;
        let main = bind(SocketAddr::new(http.bind, http.port), state).await?;
        let operation =
            if let Some(address) = http.metrics_bind { Some(bind(address, state).await?) } else { None };
        let address = self.serve(state, "http server", main, router::public(state));
        let operation_address =
            operation.map(|server| self.serve(state, "monitoring server", server, router::monitoring(state)));
        Ok((address, operation_address))
    }

    fn serve(
        &self,
        state: &Arc<AppState>,
        name: &'static str,
        (server, address): (Server, SocketAddr),
        router: Router,
    ) -> SocketAddr {
        let (stop, supervisor) = (self.stop.clone(), state.engine.supervisor().clone());
        let served = self.tasks.spawn(server.serve(router, stop.clone()));
        // A listener cannot be started again with its connections: its end is the end of the process.
        self.tasks.spawn(async move {
            if served.await.is_err() || !stop.is_cancelled() {
                supervisor.fail(Arc::new(Error::Ended { part: name }));
            }
        });
        address
    }

    /// Accepts no new connections and waits for the requests in flight.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Starts what runs beside the requests.
fn supervise(state: &Arc<AppState>, requests: Option<BackgroundTasks>) {
    let supervisor = state.engine.supervisor();
    let metrics = state.metrics.clone();
    supervisor.spawn("metrics", move |stop| upkeep(metrics.clone(), stop));
    for keys in state.key_sets.clone() {
        supervisor.spawn_once("signing keys", learn_keys(keys));
    }
    if let Some(requests) = requests.map(Arc::new) {
        supervisor.spawn("authenticator", move |stop| {
            let requests = Arc::clone(&requests);
            async move { requests.run(stop).await }
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

/// Asks for the keys of an issuer before the first delivery or request needs them.
async fn learn_keys(jwks: Jwks) {
    while jwks.refresh().await.is_err() {
        tokio::time::sleep(KEYS_PAUSE).await;
    }
    tracing::info!(issuer = jwks.issuer(), keys = jwks.status().key_count, "the issuer's keys are known");
}

async fn upkeep(metrics: PrometheusHandle, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(crate::metrics::UPKEEP);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        metrics.run_upkeep();
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
