//! The handle of a running emulator: start, shutdown, and every operation on the tenant.

mod directory;
mod domains;
mod held;
mod login;
mod tokens;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock};
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Application, Config, Generated, Limits};
use crate::delivery::engine::Engine;
use crate::delivery::{self, Delivery, Stats, Webhook};
use crate::event::{Event, Source};
use crate::faults::{Fault, FaultReport, Faults};
use crate::keys::{self, Key, Keyring};
use crate::limits::Limiter;
use crate::logins::Logins;
use crate::tenant::{self, Draft, Profile, Tenant};
use crate::user::{NewUser, User, UserEdit};
use crate::webhook::WebhookSpec;
use domains::Domains;

pub use held::Held;
pub(crate) use login::Denied;

/// Why the emulator did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address is in use or does not belong to this machine.
    #[error("cannot listen on {address}: choose another `port`, or 0 for any")]
    Bind {
        /// The requested address.
        address: SocketAddr,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The signing key could not be generated.
    #[error("cannot generate the signing key of the tenant")]
    Key(#[from] keys::Error),
    /// The HTTP client for deliveries could not be created.
    #[error("cannot create the HTTP client that sends webhooks")]
    Client(#[from] reqwest::Error),
}

/// A running local Kinde. Clones are handles of the same emulator.
///
/// It stops at [`Emulator::shutdown`] or when its token is cancelled, not when handles are dropped.
#[derive(Clone)]
pub struct Emulator {
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<Config>,
    address: SocketAddr,
    domains: Domains,
    applications: Mutex<Vec<Application>>,
    logins: Mutex<Logins>,
    keys: Arc<RwLock<Keyring>>,
    foreign: OnceLock<Key>,
    faults: Arc<Mutex<Faults>>,
    tenant: Mutex<Tenant>,
    engine: Engine,
    requests: Mutex<BTreeMap<String, u64>>,
    holds: held::Holds,
    limiter: Mutex<Limiter>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl std::fmt::Debug for Emulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Emulator").field("issuer", &self.issuer()).finish_non_exhaustive()
    }
}

/// Start, shutdown and settings.
impl Emulator {
    /// Starts an emulator. Generating its RSA key takes about 100 ms.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_until(config, CancellationToken::new()).await
    }

    /// Starts an emulator that stops when `cancel` is cancelled.
    pub async fn start_until(config: Config, cancel: CancellationToken) -> Result<Self, StartError> {
        let wanted = SocketAddr::new(config.bind, config.port);
        let bind = |source| StartError::Bind { address: wanted, source };
        let listener = tokio::net::TcpListener::bind(wanted).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let key = tokio::task::spawn_blocking(Key::generate).await.expect("key generation does not panic")?;
        let emulator = Self::new(config, address, key, cancel)?;
        let server = axum::serve(listener, crate::routes::router(emulator.clone()));
        let stop = emulator.shared.cancel.clone();
        emulator.shared.tasks.spawn(async move {
            if let Err(error) = server.with_graceful_shutdown(stop.cancelled_owned()).await {
                tracing::error!(%error, "the emulator's server stopped");
            }
        });
        for spec in &emulator.shared.config.webhooks {
            emulator.add_webhook(spec.clone());
        }
        Ok(emulator)
    }

    fn new(
        config: Config,
        address: SocketAddr,
        key: Key,
        cancel: CancellationToken,
    ) -> reqwest::Result<Self> {
        let config = Arc::new(config);
        let keys = Arc::new(RwLock::new(Keyring::new(key)));
        let faults = Arc::new(Mutex::new(Faults::new(config.seed, &config.faults)));
        let tasks = TaskTracker::new();
        let engine = Engine::new(
            Arc::clone(&config),
            Arc::clone(&keys),
            Arc::clone(&faults),
            tasks.clone(),
            cancel.clone(),
        )?;
        let tenant = Mutex::new(Tenant::new(Arc::clone(&config)));
        let shared = Shared {
            domains: Domains::new(address, &config.custom_domains),
            applications: Mutex::new(config.applications()),
            logins: Mutex::default(),
            limiter: Mutex::new(Limiter::new(config.limits)),
            config,
            address,
            keys,
            foreign: OnceLock::new(),
            faults,
            tenant,
            engine,
            requests: Mutex::default(),
            holds: held::Holds::default(),
            tasks,
            cancel,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Stops the server and the deliveries, and waits at most five seconds for both.
    pub async fn shutdown(&self) {
        self.shared.cancel.cancel();
        self.shared.tasks.close();
        let _ = tokio::time::timeout(Duration::from_secs(5), self.shared.tasks.wait()).await;
    }

    /// Completes when the emulator is stopped. Cancel safe.
    pub async fn stopped(&self) {
        self.shared.cancel.cancelled().await;
    }

    /// Removes users, events, deliveries, counters and faults, and restores the generated users of the settings.
    /// Webhooks and keys are kept.
    pub fn reset(&self) {
        self.tenant().clear();
        self.shared.engine.reset();
        self.clear_faults();
        *self.logins() = Logins::default();
        lock(&self.shared.requests).clear();
    }

    /// The settings at the start.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The issuer of tokens and the base URL of all endpoints: `http://127.0.0.1:PORT`.
    pub fn issuer(&self) -> &str {
        self.shared.domains.main()
    }

    /// The issuers of tokens from custom domains, in the order of `custom_domains`.
    pub fn custom_issuers(&self) -> Vec<String> {
        self.shared.domains.custom().map(str::to_owned).collect()
    }

    pub(crate) fn issuer_of(&self, headers: &http::HeaderMap) -> &str {
        self.shared.domains.of(headers)
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// The audience that a Management API token must have: `{issuer}/api`.
    pub fn api_audience(&self) -> String {
        format!("{}/api", self.issuer())
    }

    /// The number of requests to a route: `jwks`, `openid`, `auth`, `token`, `logout`, `introspect`, `revoke`,
    /// `profile`, `users`, `user`, `organizations`, `organization`, `members`, `member_roles`, `member_permissions`, `roles`,
    /// `role_permissions`, `role_users`, `permissions`, `properties`, `property_definitions`, `search`, `webhooks`, `event_types`, `events`. Includes
    /// rejected requests.
    pub fn requests(&self, route: &str) -> u64 {
        lock(&self.shared.requests).get(route).copied().unwrap_or_default()
    }

    /// The number of requests to each route.
    pub fn all_requests(&self) -> BTreeMap<String, u64> {
        lock(&self.shared.requests).clone()
    }

    pub(crate) fn count_request(&self, route: &str) {
        *lock(&self.shared.requests).entry(route.to_owned()).or_default() += 1;
    }

    pub(crate) fn tenant(&self) -> MutexGuard<'_, Tenant> {
        lock(&self.shared.tenant)
    }

    fn logins(&self) -> MutexGuard<'_, Logins> {
        lock(&self.shared.logins)
    }

    pub(crate) fn limiter(&self) -> MutexGuard<'_, Limiter> {
        lock(&self.shared.limiter)
    }

    pub(crate) fn faults_table(&self) -> MutexGuard<'_, Faults> {
        lock(&self.shared.faults)
    }
}

/// Users. Every change except an import emits the event that Kinde sends.
impl Emulator {
    /// Adds a user as an administrator does: `user.created`.
    pub fn create_user(&self, new: NewUser) -> Result<User, tenant::Error> {
        self.create_user_as(new, Source::Admin)
    }

    pub(crate) fn create_user_as(&self, new: NewUser, source: Source) -> Result<User, tenant::Error> {
        let mut tenant = self.tenant();
        let user = tenant.add(new)?;
        let draft = tenant.created(&user, source);
        self.emit_all(&mut tenant, vec![draft]);
        Ok(user)
    }

    /// Adds a user that signs up: emits the events of `unknowns.sign_up_events`.
    pub fn sign_up(&self, new: NewUser) -> Result<User, tenant::Error> {
        let mut tenant = self.tenant();
        let (user, drafts) = tenant.sign_up(new)?;
        self.emit_all(&mut tenant, drafts);
        Ok(user)
    }

    /// Adds a user as Kinde's bulk import does: without an event.
    pub fn import_user(&self, new: NewUser) -> Result<User, tenant::Error> {
        self.tenant().add(new)
    }

    /// Changes a user: `user.updated`.
    pub fn update_user(&self, id: &str, edit: UserEdit) -> Result<User, tenant::Error> {
        self.update_user_as(id, edit, Source::Admin)
    }

    pub(crate) fn update_user_as(
        &self,
        id: &str,
        edit: UserEdit,
        source: Source,
    ) -> Result<User, tenant::Error> {
        let mut tenant = self.tenant();
        let (user, drafts) = tenant.edit(id, edit, source)?;
        self.emit_all(&mut tenant, drafts);
        Ok(user)
    }

    /// Suspends a user: `user.updated`.
    pub fn suspend(&self, id: &str) -> Result<User, tenant::Error> {
        self.update_user(id, UserEdit { is_suspended: Some(true), ..UserEdit::default() })
    }

    /// Ends a suspension: `user.updated`.
    pub fn unsuspend(&self, id: &str) -> Result<User, tenant::Error> {
        self.update_user(id, UserEdit { is_suspended: Some(false), ..UserEdit::default() })
    }

    /// Exchanges the emails of two users: two `user.updated`.
    pub fn swap_emails(&self, a: &str, b: &str) -> Result<(), tenant::Error> {
        let mut tenant = self.tenant();
        let drafts = tenant.swap_emails(a, b)?;
        self.emit_all(&mut tenant, drafts);
        Ok(())
    }

    /// Deletes a user: `user.deleted`.
    pub fn delete_user(&self, id: &str, profile: Profile) -> Result<(), tenant::Error> {
        self.delete_user_as(id, profile, Source::Admin)
    }

    pub(crate) fn delete_user_as(
        &self,
        id: &str,
        profile: Profile,
        source: Source,
    ) -> Result<(), tenant::Error> {
        let mut tenant = self.tenant();
        let drafts = tenant.delete(id, profile, source)?;
        self.emit_all(&mut tenant, drafts);
        Ok(())
    }

    /// Signs a user in: `user.authenticated`, or `user.authentication_failed` when suspended.
    pub fn sign_in(&self, id: &str) -> Result<User, tenant::Error> {
        let mut tenant = self.tenant();
        let (outcome, drafts) = tenant.sign_in(id);
        self.emit_all(&mut tenant, drafts);
        outcome
    }

    /// Returns a user by id.
    pub fn user(&self, id: &str) -> Option<User> {
        self.tenant().user(id)
    }

    /// Returns a user by email, ignoring case.
    pub fn user_by_email(&self, email: &str) -> Option<User> {
        self.tenant().user_by_email(email)
    }

    /// Returns all users that the API lists, generated users first, then in the order of creation.
    ///
    /// Allocates every generated user: use the pages of the API for large tenants.
    pub fn users(&self) -> Vec<User> {
        self.tenant().users.now().from(0).map(|(_, user)| user.into_owned()).collect()
    }

    /// Returns up to `limit` users after the user `after` in the order of creation, and whether there are more. Allocates
    /// only these users.
    pub(crate) fn users_after(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<User>, bool), tenant::Error> {
        let tenant = self.tenant();
        let position =
            |id: &str| tenant.users.position(id).ok_or_else(|| tenant::Error::UnknownUser(id.to_owned()));
        let from = after.map(position).transpose()?.map_or(0, |position| position + 1);
        let view = tenant.users.now();
        let mut users = view.from(from).map(|(_, user)| user);
        let page = users.by_ref().take(limit).map(std::borrow::Cow::into_owned).collect();
        Ok((page, users.next().is_some()))
    }

    /// The number of users that the API lists. Takes time proportional to the number of changes.
    pub fn user_count(&self) -> usize {
        self.tenant().users.now().count()
    }

    /// Changes what is generated, except the seed. Users use no memory until they are changed. Emits no events.
    ///
    /// User `k` is a function of the settings and `k`. Users below the new number keep their changes, except memberships and
    /// roles that no longer exist. Changes of generated organizations, roles and permissions are discarded.
    pub fn set_generated(&self, change: impl FnOnce(&mut Generated)) {
        self.tenant().set_generated(change);
    }

    /// The settings of what is generated.
    pub fn generated(&self) -> Generated {
        self.tenant().users.generated()
    }

    /// Emits an event of any type with this `data`. Returns `None` if the fault `silent` suppressed it.
    pub fn emit(&self, kind: &str, data: Value) -> Option<Arc<Event>> {
        let mut tenant = self.tenant();
        self.emit_all(&mut tenant, vec![Draft::new(kind, Source::Admin, data)]).pop()
    }

    /// Returns an event by id, if it is among the latest `delivery.log` events.
    pub fn event(&self, id: &str) -> Option<Arc<Event>> {
        self.tenant().event(id)
    }

    /// The caller holds the tenant's lock, so that deliveries are queued in the order of their events.
    fn emit_all(&self, tenant: &mut Tenant, drafts: Vec<Draft>) -> Vec<Arc<Event>> {
        let mut events = Vec::new();
        for draft in drafts {
            if self.faults_table().suppresses(&draft.kind) {
                self.shared.engine.count_silenced();
                continue;
            }
            let event = tenant.record(draft);
            self.shared.engine.queue(&event);
            events.push(event);
        }
        events
    }
}

/// Webhooks, deliveries and faults.
impl Emulator {
    /// Adds an endpoint and returns its id.
    pub fn add_webhook(&self, spec: WebhookSpec) -> String {
        let (id, at) = {
            let mut tenant = self.tenant();
            (tenant.clock.webhook_id(), tenant.clock.tick())
        };
        self.shared.engine.add(&id, spec, at);
        id
    }

    /// Changes an endpoint.
    pub fn edit_webhook(
        &self,
        id: &str,
        change: impl FnOnce(&mut WebhookSpec),
    ) -> Result<(), delivery::Error> {
        self.shared.engine.edit(id, change)
    }

    /// Removes an endpoint and abandons its pending deliveries.
    pub fn remove_webhook(&self, id: &str) -> Result<(), delivery::Error> {
        self.shared.engine.remove(id)
    }

    /// Disables an endpoint as Kinde does after 72 hours of failures, and abandons its pending deliveries.
    pub fn disable_webhook(&self, id: &str) -> Result<(), delivery::Error> {
        self.shared.engine.disable(id)
    }

    /// Enables an endpoint again, as the dashboard does.
    pub fn enable_webhook(&self, id: &str) -> Result<(), delivery::Error> {
        self.shared.engine.enable(id)
    }

    /// The event types that webhooks can subscribe to.
    pub fn event_types(&self) -> Vec<String> {
        match self.config().event_types.as_slice() {
            [] => crate::event::EVENT_TYPES.iter().map(|(code, _)| (*code).to_owned()).collect(),
            some => some.to_vec(),
        }
    }

    /// The webhook endpoints.
    pub fn webhooks(&self) -> Vec<Webhook> {
        self.shared.engine.webhooks()
    }

    /// The latest `delivery.log` deliveries, oldest first.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.shared.engine.deliveries()
    }

    /// Counters of events and deliveries.
    pub fn stats(&self) -> Stats {
        self.shared.engine.stats()
    }

    /// Waits until no delivery is pending. Cancel safe.
    ///
    /// # Errors
    /// [`delivery::Error::StillPending`] if deliveries are pending after `deadline`.
    pub async fn quiesce(&self, deadline: Duration) -> Result<(), delivery::Error> {
        self.shared.engine.quiesce(deadline).await
    }

    /// Sets the rate limits of the Management API and starts a new window.
    pub fn set_limits(&self, limits: Limits) {
        self.limiter().set(limits);
    }

    /// Adds a fault.
    pub fn set_fault(&self, fault: Fault) {
        self.faults_table().set(fault);
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.faults_table().clear();
    }

    /// The active faults, with the number of times that each occurred.
    pub fn faults(&self) -> Vec<FaultReport> {
        self.faults_table().reports()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code that holds this lock panics")
}
