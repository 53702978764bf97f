//! The settings: one typed value, made from flags, environment, file and defaults.
//!
//! [`setting::settings`] lists every setting; nothing else defines a key, a variable or a flag. Every problem is found before
//! anything starts, and all are reported together.
//!
//! In reading order:
//! - [`setting`]: the list
//! - [`source`]: the sources of a value: flags > environment > file > default
//! - [`mod@file`]: the TOML file
//! - [`fields`]: names of the keys of the documents
//! - [`value`]: texts parsed into types
//! - [`rules`]: rules between settings, and what a setting disables
//! - [`problem`]: every problem, reported together
//! - [`show`]: the merge, secrets masked

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use http::HeaderValue;
use kinsync_engine::{
    Roles,
    config::{Derived, DerivedConfig, FieldMapping, LinkByEmail, Retention, TombstoneEmail},
};
use kinsync_tower::authenticator::{RefusedUsers, UnknownRoles};
use secrecy::SecretString;
use tracing_subscriber::filter::Targets;
use url::Url;

use crate::http::network::Network;

pub mod fields;
pub mod file;
pub mod problem;
pub mod rules;
pub mod setting;
pub mod show;
pub mod source;
pub mod value;

pub use problem::{Problem, Problems};
pub use setting::{Reader, Setting, settings};
pub use source::{Flags, Origin, Sources};

/// Every setting of `kinsync serve`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of the embedded queue and store.
    pub data_dir: PathBuf,
    /// What the process does.
    pub roles: Roles,
    /// The Kinde tenant and its credentials.
    pub kinde: Kinde,
    /// The store of users.
    pub store: Store,
    /// The queue of deliveries.
    pub queue: Queue,
    /// Scans of Kinde.
    pub reconcile: Reconcile,
    /// Daily figures.
    pub projections: Projections,
    /// The HTTP server.
    pub http: Http,
    /// Logging.
    pub log: Log,
    /// The running server that other commands use; `None`: the one on this machine at `http.port`.
    pub server: Option<Url>,
}

/// The Kinde tenant and its credentials.
#[derive(Clone, Debug, Default)]
pub struct Kinde {
    /// The kinde.com address of the tenant: its keys and its API.
    pub domain: Option<Url>,
    /// Trusted issuers of access tokens. Empty: the domain.
    pub issuers: Vec<Url>,
    /// Accepted audiences of access tokens. Empty: any.
    pub audience: Vec<String>,
    /// Client ids of the applications: only tokens issued to them are accepted. Empty: every application of the tenant.
    pub allowed_client_ids: Vec<String>,
    /// Secrets of the HMAC scheme, the newest first.
    pub webhook_secrets: Vec<SecretString>,
    /// Secrets of the Standard Webhooks scheme, the newest first. Empty: the scheme is off.
    pub standard_webhooks_secrets: Vec<SecretString>,
    /// Client id of the machine-to-machine application that reads the Management API.
    pub m2m_client_id: Option<String>,
    /// Its client secret.
    pub m2m_client_secret: Option<SecretString>,
}

impl Kinde {
    /// The trusted issuers of access tokens.
    pub fn trusted_issuers(&self) -> impl Iterator<Item = &Url> {
        let only_domain = self.issuers.is_empty();
        self.issuers.iter().chain(self.domain.iter().filter(move |_| only_domain))
    }
}

/// The store of users.
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// The connection string of `MongoDB`; `None`: a file in the data folder.
    pub mongodb_uri: Option<SecretString>,
    /// The database; `None`: the one of the URI, else `kinsync`.
    pub database: Option<String>,
    /// The collection of users.
    pub users: String,
    /// The collection of the event log.
    pub events: String,
    /// Whether a unique index prevents two live users from showing the same email address.
    pub unique_email: bool,
    /// When documents that the application created are linked to users.
    pub link_by_email: LinkByEmail,
    /// Whether documents show the address in lower case.
    pub lowercase_email: bool,
    /// What happens to the address of a deleted user where a rule refuses a document without one.
    pub tombstone_email: TombstoneEmail,
    /// How long entries of the event log are kept.
    pub retention: Retention,
    /// How long after their deletion users are erased; `None`: only on request.
    pub erase_deleted_after: Option<Duration>,
    /// The answer to requests of users with a document that a rule of the database refuses.
    pub refused_users: RefusedUsers,
    /// Names of kinsync's keys in the user document.
    pub fields: FieldMapping,
    /// Collections of organizations, roles and memberships, with the names of their keys.
    pub derived: BTreeMap<Derived, DerivedConfig>,
    /// Values of keys in documents that kinsync inserts.
    pub defaults: BTreeMap<String, serde_json::Value>,
}

/// A kind of queue.
#[derive(Clone, Debug, Default)]
pub enum QueueKind {
    /// A file in the data folder.
    #[default]
    Embedded,
    /// Redis at this address.
    #[cfg(feature = "redis")]
    Redis(SecretString),
    /// RabbitMQ at this address.
    #[cfg(feature = "rabbitmq")]
    Rabbitmq(SecretString),
}

/// The queue of deliveries and its limits.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    /// The kind of queue.
    pub kind: QueueKind,
    /// Start of the names of all keys in a shared queue.
    pub prefix: String,
    /// Replicas of Redis that must confirm a delivery.
    pub replicas: u32,
    /// The largest number of queued deliveries; further ones are answered 503.
    pub max_entries: u64,
    /// The largest size on disk in bytes; further deliveries are answered 503.
    pub max_bytes: u64,
}

/// Daily figures.
#[derive(Clone, Debug, Default)]
pub struct Projections {
    /// The shortest interval between two computations; `None`: never.
    pub every: Option<Duration>,
}

/// Scans of Kinde, and what they may delete without approval.
#[derive(Clone, Debug, Default)]
pub struct Reconcile {
    /// The interval between two scans; `None`: only on request.
    pub every: Option<Duration>,
    /// Users in one page of the Management API.
    pub page_size: u32,
    /// Whether scans compare the roles of members too.
    pub roles: bool,
    /// The shortest interval between two scans that do; zero: each scan does.
    pub roles_every: Duration,
    /// Members with unknown permissions that a scan reads.
    pub permission_reads: u64,
    /// Keys of the properties of users that are mirrored, or `*`.
    pub properties: Vec<String>,
    /// The shortest interval between two comparisons of properties.
    pub properties_every: Duration,
    /// Deletions in 24 hours that need no approval.
    pub max_deletes: u64,
    /// The share of live users that may be deleted in 24 hours without an approval, 0 to 1.
    pub max_delete_share: f64,
    /// Further error codes that mean that a user does not exist.
    pub unknown_user_codes: Vec<String>,
}

/// The HTTP server: addresses, deadlines and limits.
#[derive(Clone, Debug)]
pub struct Http {
    /// The address to listen on.
    pub bind: IpAddr,
    /// The port; 0 for any free port.
    pub port: u16,
    /// A separate address for /health and /metrics.
    pub metrics_bind: Option<SocketAddr>,
    /// The address at which Kinde reaches this server.
    pub public_url: Option<Url>,
    /// The address that Kinde delivers to, if it is not `/api/webhook` below that.
    pub webhook_url: Option<Url>,
    /// The token for the admin routes, named `admin`, with every scope.
    pub admin_token: Option<SecretString>,
    /// Further tokens for the admin routes.
    pub admin_tokens: Vec<AdminToken>,
    /// A separate address for the admin routes.
    pub admin_bind: Option<SocketAddr>,
    /// Further `Host`s under which the admin routes are served on a loopback address.
    pub admin_hosts: Vec<String>,
    /// The certificate chain of the listener for TLS, in PEM.
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// The longest time to answer a request.
    pub request_deadline: Duration,
    /// The longest time for the body of a delivery to arrive.
    pub body_deadline: Duration,
    /// The longest time for the head of a request to arrive, and for a connection to be idle.
    pub head_deadline: Duration,
    /// Largest body of a delivery, in bytes.
    pub body_limit: usize,
    /// Memory for the bodies of all deliveries in progress, in bytes.
    pub body_budget: usize,
    /// Open connections. When all are open, the longest idle one is closed for a new one.
    pub max_connections: usize,
    /// Open connections per client address.
    pub max_connections_per_client: usize,
    /// Reverse proxies, which have no limit per client.
    pub trusted_proxies: Vec<Network>,
    /// Origins of front ends that may call `/api/me` and `/api/profile` from a browser.
    pub cors_origins: Vec<HeaderValue>,
    /// The cookie that may carry the access token.
    pub token_cookie: Option<String>,
    /// Roles and permissions of a user where the store does not know them.
    pub unknown_roles: UnknownRoles,
    /// Users, and verified tokens, in memory.
    pub cached_users: usize,
    /// The longest time to finish after SIGTERM.
    pub shutdown_grace: Duration,
}

impl Http {
    /// The address of the admin routes.
    pub fn admin_ip(&self) -> IpAddr {
        self.admin_bind.map_or(self.bind, |address| address.ip())
    }
}

/// A token for the admin routes.
#[derive(Clone, Debug)]
pub struct AdminToken {
    /// Names the operator or program in the audit log. Several tokens may have the same name, for a rotation.
    pub name: String,
    /// What it allows.
    pub scope: Scope,
    /// The token.
    pub token: SecretString,
}

/// What an admin token allows. Each scope includes the ones before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Scope {
    /// Reading.
    Read,
    /// Reading and changing.
    Operate,
}

impl Scope {
    /// The name in the settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
        }
    }
}

/// Logging.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// The levels by target: nothing is logged by default.
    pub filter: Targets,
    /// `None`: text on a terminal, else JSON.
    pub format: Option<LogFormat>,
    /// Base URL of an OTLP collector; `None`: nothing is exported.
    pub otlp_endpoint: Option<Url>,
    /// Headers of each export.
    pub otlp_headers: Option<SecretString>,
    /// Share of events with exported spans.
    pub otlp_sample: f64,
}

/// The format of a log line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Text for people.
    Text,
}

impl Config {
    /// Reads the settings of a server. The error holds every problem.
    pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
        Self::read(sources, rules::check)
    }

    /// Reads the settings of a command that accepts no requests: what only a server needs may be missing.
    pub fn of_command(sources: &Sources) -> Result<Self, Problems> {
        Self::read(sources, rules::check_command).map(|loaded| loaded.config)
    }

    fn read(
        sources: &Sources,
        check: fn(&Self, &source::Merged, &mut Vec<Problem>),
    ) -> Result<Loaded, Problems> {
        let mut problems = Vec::new();
        let merged = sources.merge(&mut problems);
        let mut config = Self::blank();
        for resolved in &merged.settings {
            if let Err(problem) = resolved.apply(&mut config) {
                problems.push(problem);
            }
        }
        config.store.fields = fields::mapping(&merged, &mut problems);
        fields::derived(&merged, &mut config.store.derived, &mut problems);
        config.store.defaults = merged.defaults.clone();
        check(&config, &merged, &mut problems);
        if problems.is_empty() {
            let misspelled = merged.misspelled.iter().map(|one| format!("{} {}", one.name, one.message));
            let warnings = rules::warnings(&config).into_iter().chain(misspelled).collect();
            return Ok(Loaded { config, merged, warnings });
        }
        // A misspelled variable may be the reason why another one is not set.
        problems.extend(merged.misspelled);
        Err(Problems(problems))
    }

    /// Reads the settings from these variables alone.
    pub fn from_vars<K: Into<String>, V: Into<String>>(
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, Problems> {
        Self::load(&Sources::from_vars(vars)).map(|loaded| loaded.config)
    }

    /// No setting applied yet. The defaults of the list are applied over this.
    fn blank() -> Self {
        Self {
            data_dir: PathBuf::new(),
            roles: Roles::ALL,
            kinde: Kinde::default(),
            store: Store::default(),
            queue: Queue::default(),
            reconcile: Reconcile::default(),
            projections: Projections::default(),
            http: Http {
                bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
                port: 0,
                metrics_bind: None,
                public_url: None,
                webhook_url: None,
                admin_token: None,
                admin_tokens: Vec::new(),
                admin_bind: None,
                admin_hosts: Vec::new(),
                tls_certificate: None,
                tls_key: None,
                request_deadline: Duration::ZERO,
                body_deadline: Duration::ZERO,
                head_deadline: Duration::ZERO,
                body_limit: 0,
                body_budget: 0,
                max_connections: 0,
                max_connections_per_client: 0,
                trusted_proxies: Vec::new(),
                cors_origins: Vec::new(),
                token_cookie: None,
                unknown_roles: UnknownRoles::Refuse,
                cached_users: 0,
                shutdown_grace: Duration::ZERO,
            },
            log: Log::default(),
            server: None,
        }
    }
}

/// The settings of commands that use a running server. Other settings may be wrong.
#[derive(Debug)]
pub struct ClientConfig {
    /// The server.
    pub server: Url,
    /// The token for its admin routes.
    pub admin_token: Option<SecretString>,
}

impl ClientConfig {
    /// Reads the settings of a client and ignores problems of other settings.
    pub fn load(sources: &Sources) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let merged = sources.merge(&mut problems);
        let mut config = Config::blank();
        for resolved in merged.settings.iter().filter(|r| r.setting.reader != Reader::Server) {
            if let Err(problem) = resolved.apply(&mut config) {
                problems.push(problem);
            }
        }
        let of_server = |problem: &Problem| {
            settings().any(|s| {
                s.reader == Reader::Server && [s.env, s.key, &s.env_file()].contains(&&*problem.name)
            })
        };
        problems.retain(|problem| !of_server(problem));
        if !problems.is_empty() {
            return Err(Problems(problems));
        }
        let local =
            || Url::parse(&format!("http://127.0.0.1:{}", config.http.port)).expect("a port is a number");
        Ok(Self { server: config.server.unwrap_or_else(local), admin_token: config.http.admin_token })
    }
}

/// Valid settings.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// The source of each value.
    pub merged: source::Merged,
    /// Notable combinations that are not errors, each a sentence for the operator.
    pub warnings: Vec<String>,
}
