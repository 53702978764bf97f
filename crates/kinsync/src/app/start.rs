//! Starts an app: queue, verifier, store, sockets, then the background tasks.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use axum::Router;
use kinde::{Jwks, jwks, webhook::Verifier};
use kinsync_engine::{
    Engine, Error as EngineError,
    config::SharedQueue,
    internal::{
        queue::{self, embedded},
        store::{
            self, OpenedStore,
            mongo::{self, FieldMapping},
        },
    },
};
use kinsync_tower::{WebhookService, webhook};
use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::ExposeSecret;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{App, AppState, Error, authenticator, data_dir, management};
use crate::{
    config::{self, Config, rules::disabled},
    http::{
        admin_access::AdminAccess,
        route::Audience,
        router,
        server::{Limits, Server},
        tls::Tls,
    },
    metrics,
};

/// Pause between requests for keys that are not known yet; the key set has a cool-down of its own.
const KEYS_PAUSE: Duration = Duration::from_secs(1);
/// Interval of their fetches without requests.
const KEYS_EVERY: Duration = Duration::from_hours(1);
const AUDIT_CLEANUP: Duration = Duration::from_hours(24);

pub(super) async fn start(config: Config) -> Result<App, Error> {
    let metrics = metrics::recorder();
    let engine = open_engine(&config).await?;
    let tenant = key_set(&config)?;
    let verifier = verifier(&config, tenant.clone())?;
    let mut key_sets = if config.roles.api {
        authenticator::key_sets(&config, tenant.as_ref())?
    } else {
        // Nothing here verifies tokens of users.
        Vec::new()
    };
    let authenticator = authenticator::start(&config, &key_sets, tenant.as_ref(), &engine)?;
    // The tenant signs webhooks with its own keys, also where tokens come from custom domains.
    key_sets.extend(tenant.filter(|tenant| key_sets.iter().all(|known| known.issuer() != tenant.issuer())));
    let service = WebhookService::new(verifier.clone(), &engine, limits(&config));
    let state = Arc::new(AppState {
        admin: AdminAccess::new(&config.http),
        webhook: service,
        started: Instant::now(),
        config,
        engine,
        verifier,
        key_sets,
        authenticator,
        metrics,
    });
    let tls = tls(&state.config.http)?;
    let servers = Servers::default();
    let addresses = servers.listen(&state, tls.as_ref()).await?;
    state.engine.start();
    supervise(&state);
    if let Some(tls) = tls {
        state.engine.supervisor().spawn("tls files", move |stop| Arc::clone(&tls).watch(stop));
    }
    announce(&state.config, &addresses);
    Ok(App { state, addresses, servers })
}

/// Opens the queue and the store that the settings name.
async fn open_engine(config: &Config) -> Result<Engine, Error> {
    check_data_dir(config)?;
    let roles = config.roles;
    let mut builder = Engine::builder(&config.data_dir)
        .roles(roles)
        .queue(embedded_queue(config))
        .reconcile(management::limits(&config.reconcile))
        .scan_every(config.reconcile.every)
        .erase_deleted_after(config.store.erase_deleted_after)
        .retention(config.store.retention.clone())
        .project_every(config.projections.every);
    if let Some(shared) = shared_queue(config) {
        builder = builder.shared_queue(shared);
    }
    if let Some(mongodb) = mongodb(config) {
        builder = builder.mongodb(mongodb);
    }
    // An operator requests scans and reads runs at a process with the role `api`.
    if let Some(api) = management::settings(config).filter(|_| roles.reconcile || roles.api) {
        builder = builder.management(api);
    }
    builder.open().await.map_err(|error| cannot_open(&config.data_dir, error))
}

/// The bounds of the queue in the data folder.
pub(crate) fn embedded_queue(config: &Config) -> embedded::Config {
    embedded::Config {
        max_entries: config.queue.max_entries,
        max_bytes: config.queue.max_bytes,
        ..embedded::Config::default()
    }
}

/// The shared queue that the settings name, if any.
pub(crate) fn shared_queue(config: &Config) -> Option<SharedQueue> {
    let settings = &config.queue;
    match &settings.kind {
        config::QueueKind::Embedded => None,
        #[cfg(feature = "redis")]
        config::QueueKind::Redis(url) => Some(SharedQueue::Redis(kinsync_engine::config::Redis {
            prefix: settings.prefix.clone(),
            replicas: settings.replicas,
            max_entries: settings.max_entries,
            ..kinsync_engine::config::Redis::new(url.clone())
        })),
        #[cfg(feature = "rabbitmq")]
        config::QueueKind::Rabbitmq(url) => Some(SharedQueue::Rabbitmq(kinsync_engine::config::Rabbitmq {
            prefix: settings.prefix.clone(),
            max_entries: settings.max_entries,
            ..kinsync_engine::config::Rabbitmq::new(url.clone())
        })),
    }
}

pub(crate) fn check_data_dir(config: &Config) -> Result<(), Error> {
    data_dir::check(&config.data_dir).map_err(|error| Error::UnsafeDataDir(error.to_string()))
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
    check_data_dir(config)?;
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

/// Returns the configured settings of the store in MongoDB.
pub(crate) fn mongo_config(store: &config::Store, uri: &str) -> mongo::Config {
    mongo::Config {
        database: store.database.clone(),
        users: store.users.clone(),
        events: store.events.clone(),
        fields: FieldMapping { lowercase_email: store.lowercase_email, ..store.fields.clone() },
        derived: store.derived.clone(),
        defaults: store.defaults.clone(),
        unique_email: store.unique_email,
        link_by_email: store.link_by_email,
        tombstone_email: store.tombstone_email,
        ..mongo::Config::new(uri)
    }
}

fn tls(http: &config::Http) -> Result<Option<Arc<Tls>>, Error> {
    let (Some(certificate), Some(key)) = (&http.tls_certificate, &http.tls_key) else { return Ok(None) };
    let loaded = Tls::load(certificate, key).map_err(|error| Error::Tls(Arc::new(error)))?;
    Ok(Some(Arc::new(loaded)))
}

/// The bound addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) main: SocketAddr,
    /// Address of monitoring, if it is not the main one.
    monitoring: Option<SocketAddr>,
    /// Address of the routes for operators, if it is not the main one.
    admin: Option<SocketAddr>,
}

/// The listening sockets.
#[derive(Debug, Default)]
pub(super) struct Servers {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Servers {
    /// Binds every address before any of them is served, so that a taken one starts nothing. Monitoring has no TLS.
    async fn listen(&self, state: &Arc<AppState>, tls: Option<&Arc<Tls>>) -> Result<Addresses, Error> {
        let http = &state.config.http;
        let main = bind(SocketAddr::new(http.bind, http.port), state, tls).await?;
        let monitoring = bind_also(http.metrics_bind, state, None).await?;
        let admin = bind_also(http.admin_bind.filter(|_| state.config.roles.api), state, tls).await?;
        let only = |audience| router::only(audience, state);
        Ok(Addresses {
            main: self.serve(state, "http server", main, router::public(state)),
            monitoring: monitoring
                .map(|server| self.serve(state, "monitoring server", server, only(Audience::Monitoring))),
            admin: admin.map(|server| self.serve(state, "admin server", server, only(Audience::Operator))),
        })
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
        // A listener cannot be restarted with its connections, so its end ends the process.
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

/// Starts the background tasks.
fn supervise(state: &Arc<AppState>) {
    let supervisor = state.engine.supervisor();
    let metrics = state.metrics.clone();
    supervisor.spawn("metrics", move |stop| upkeep(metrics.clone(), stop));
    if state.config.roles.api {
        let app = Arc::clone(state);
        supervisor.spawn("audit log", move |stop| limit_audit_log(Arc::clone(&app), stop));
    }
    for keys in state.key_sets.clone() {
        supervisor.spawn("signing keys", move |stop| keep_keys(keys.clone(), stop));
    }
}

async fn bind_also(
    address: Option<SocketAddr>,
    state: &AppState,
    tls: Option<&Arc<Tls>>,
) -> Result<Option<(Server, SocketAddr)>, Error> {
    let Some(address) = address else { return Ok(None) };
    bind(address, state, tls).await.map(Some)
}

async fn bind(
    address: SocketAddr,
    state: &AppState,
    tls: Option<&Arc<Tls>>,
) -> Result<(Server, SocketAddr), Error> {
    let http = &state.config.http;
    let limits = Limits {
        max_connections: http.max_connections,
        max_connections_per_client: http.max_connections_per_client,
        proxies: http.trusted_proxies.clone(),
        head_deadline: http.head_deadline,
        write_stall: http.head_deadline,
        // The remaining time is for the projector and the queue.
        grace: http.shutdown_grace.mul_f64(0.6),
    };
    let refused = |source| Error::Listen { address, source: Arc::new(source) };
    let server = Server::bind(address, limits, tls.cloned()).await.map_err(refused)?;
    let bound = server.address().map_err(refused)?;
    Ok((server, bound))
}

/// Fetches the keys of an issuer before the first delivery or request needs them, and regularly after that: after a day without
/// requests they would be too old to be used.
async fn keep_keys(jwks: Jwks, stop: CancellationToken) {
    let (mut are_known, mut pause) = (false, Duration::ZERO);
    while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let Some(refreshed) = stop.run_until_cancelled(jwks.refresh()).await else { return };
        pause = if refreshed.is_ok() { KEYS_EVERY } else { KEYS_PAUSE };
        if refreshed.is_ok() && !are_known {
            are_known = true;
            let keys = jwks.status().key_count;
            tracing::info!(issuer = jwks.issuer(), keys, "the issuer's keys are known");
        }
    }
}

async fn upkeep(metrics: PrometheusHandle, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(crate::metrics::UPKEEP);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        metrics.run_upkeep();
    }
}

/// Removes old records of the audit log, once a day.
async fn limit_audit_log(state: Arc<AppState>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(AUDIT_CLEANUP);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let (store, now) = (state.engine.store(), state.engine.clock().now());
        if let Err(error) = state.admin.audit().remove_outdated(&**store, now).await {
            let error = kinsync_tower::problem::chain(&error);
            tracing::warn!(
                error,
                "old records of the audit log could not be removed; the next attempt is tomorrow"
            );
        }
    }
}

fn announce(config: &Config, addresses: &Addresses) {
    for part in disabled(config) {
        tracing::info!(
            enabled_by = part.enabled_by,
            "disabled: {}; set {} to enable it",
            part.what,
            part.enabled_by
        );
    }
    let Addresses { main: address, monitoring, admin } = addresses;
    let has_tls = config.http.tls_certificate.is_some();
    let (monitoring, admin) = (monitoring.map(tracing::field::display), admin.map(tracing::field::display));
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(%address, monitoring_address = monitoring, admin_address = admin, tls = has_tls, version, "listening");
}

#[cfg(test)]
mod tests {
    use kinde_emulator::Emulator;
    use tokio::time::timeout;

    use super::*;

    async fn pass(time: Duration) {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }

    #[tokio::test]
    async fn keys_stay_usable_for_days_without_requests() {
        let emulator = Emulator::start(kinde_emulator::Config::default()).await.unwrap();
        let issuer = kinde::parse_domain(emulator.issuer()).unwrap();
        let (keys, stop) = (Jwks::new(jwks::Config::new(issuer)).unwrap(), CancellationToken::new());
        let hours = async {
            for hour in 0..50 {
                let is_old = |age| age > KEYS_EVERY / 2;
                let fetched = async {
                    while keys.fetch_count() <= hour || keys.status().last_success_age.is_none_or(is_old) {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                timeout(Duration::from_secs(30), fetched).await.expect("the keys are fetched again");
                assert!(keys.status().key_count > 0, "hour {hour}");
                pass(KEYS_EVERY).await;
            }
            stop.cancel();
        };
        tokio::join!(keep_keys(keys.clone(), stop.clone()), hours);
    }
}
