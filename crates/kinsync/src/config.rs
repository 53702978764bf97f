//! What the operator decided: one typed value, made from flags, environment, file and defaults.
//!
//! Settings are rows of a table ([`setting::SETTINGS`]); nothing else names a key, a variable or a
//! flag. All problems are found before anything is started, and are reported together.
//!
//! In reading order:
//! - [`setting`]: the table
//! - [`source`]: where a value comes from; flags > environment > file > default
//! - [`mod@file`]: the TOML file
//! - [`value`]: texts read into types
//! - [`rules`]: what must hold between settings, and which doors are closed
//! - [`problem`]: what is wrong, said at once
//! - [`show`]: the merge, secrets masked

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use kinsync_core::Field;
use kinsync_engine::store::mongo::Adopt;
use secrecy::SecretString;
use url::Url;

pub mod file;
pub mod problem;
pub mod rules;
pub mod setting;
pub mod show;
pub mod source;
pub mod value;

pub use problem::{Problem, Problems};
pub use setting::{Reader, SETTINGS, Setting};
pub use source::{Flags, Origin, Sources};

/// Everything `serve` needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the embedded queue and store keep their files.
    pub data_dir: PathBuf,
    /// The tenant, and how its deliveries are verified.
    pub kinde: Kinde,
    /// Where users are kept.
    pub store: Store,
    /// Where deliveries wait.
    pub queue: Queue,
    /// When Kinde is compared with the store, and how much is repaired without asking.
    pub reconcile: Reconcile,
    /// Who may connect, and for how long.
    pub http: Http,
    /// What is logged, and how.
    pub log: Log,
    /// The running server that the other commands talk to; `None`: this machine's, on `http.port`.
    pub server: Option<Url>,
}

/// The tenant, and how its deliveries are verified.
#[derive(Clone, Debug, Default)]
pub struct Kinde {
    /// The tenant's own address: keys and API.
    pub domain: Option<Url>,
    /// Who may have issued a token. Empty: the domain.
    pub issuers: Vec<Url>,
    /// For whom a token must have been issued. Empty: anybody.
    pub audience: Vec<String>,
    /// Secrets of the HMAC and Standard Webhooks schemes; the first one is the newest.
    pub webhook_secrets: Vec<SecretString>,
    /// The machine-to-machine application that reads the Management API.
    pub m2m_client_id: Option<String>,
    /// Its secret.
    pub m2m_client_secret: Option<SecretString>,
}

impl Kinde {
    /// Who may have issued a token.
    pub fn trusted_issuers(&self) -> impl Iterator<Item = &Url> {
        let only_domain = self.issuers.is_empty();
        self.issuers.iter().chain(self.domain.iter().filter(move |_| only_domain))
    }
}

/// Where users are kept.
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
    /// Whether two live users may not show one address.
    pub unique_email: bool,
    /// Whether rows that the application made become users.
    pub adopt_by_email: Adopt,
    /// Names of fields in the user document, where they differ from kinsync's.
    pub fields: BTreeMap<Field, String>,
}

/// Which queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum QueueKind {
    /// Files in the data folder.
    #[default]
    Embedded,
}

/// Where deliveries wait, and how many may.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    /// Which queue.
    pub kind: QueueKind,
    /// Deliveries that may wait; more are answered 503.
    pub max_entries: u64,
    /// Bytes that they may take on disk; more are answered 503.
    pub max_bytes: u64,
}

/// When Kinde is compared with the store, and how much is repaired without asking.
#[derive(Clone, Debug, Default)]
pub struct Reconcile {
    /// From one scan to the next; `None`: only by hand.
    pub every: Option<Duration>,
    /// Users on a page of the Management API.
    pub page_size: u32,
    /// Deletions in one run that need no approval.
    pub max_deletes: u64,
    /// The share of the live users that needs no approval, 0 to 1.
    pub max_delete_share: f64,
    /// Codes that say that there is no such user, beside the usual.
    pub unknown_user_codes: Vec<String>,
}

/// Who may connect, and for how long.
#[derive(Clone, Debug)]
pub struct Http {
    /// The address to listen on.
    pub bind: IpAddr,
    /// The port; 0: any free one.
    pub port: u16,
    /// Where /health and /metrics are, if not beside the rest.
    pub metrics_bind: Option<SocketAddr>,
    /// What Kinde, outside, calls this server by.
    pub public_url: Option<Url>,
    /// Where Kinde delivers to, if not `/api/webhook` below that.
    pub webhook_url: Option<Url>,
    /// Opens the admin routes.
    pub admin_token: Option<SecretString>,
    /// The longest time for one request.
    pub request_deadline: Duration,
    /// The longest time for the body of a delivery to arrive.
    pub body_deadline: Duration,
    /// The longest time for the head of a request, and for a connection to be idle.
    pub head_deadline: Duration,
    /// Connections at a time; more wait to be accepted.
    pub max_connections: usize,
    /// Users that are kept in memory for requests, and verified tokens.
    pub cached_users: usize,
    /// The longest time for a shutdown.
    pub shutdown_grace: Duration,
}

/// What is logged, and how.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// As `tracing_subscriber::EnvFilter` reads it.
    pub filter: String,
    /// `None`: text on a terminal, JSON elsewhere.
    pub format: Option<LogFormat>,
}

/// How a log line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl Config {
    /// Reads the settings of `serve`. `Err` holds every problem, not the first one.
    pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
        let mut problems = Vec::new();
        let merged = sources.merge(&mut problems);
        let mut config = Self::blank();
        for resolved in &merged.settings {
            if let Err(problem) = resolved.apply(&mut config) {
                problems.push(problem);
            }
        }
        rules::check(&config, &merged.fields, &mut problems);
        let named = |(key, name): (&String, &String)| Some((Field::from_key(key)?, name.clone()));
        config.store.fields = merged.fields.iter().filter_map(named).collect();
        if problems.is_empty() {
            let warnings =
                rules::warnings(&config).into_iter().chain(merged.warnings.iter().cloned()).collect();
            return Ok(Loaded { config, merged, warnings });
        }
        Err(Problems(problems))
    }

    /// The settings of these variables, as if they were the environment and there were no file.
    pub fn from_vars<K: Into<String>, V: Into<String>>(
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, Problems> {
        Self::load(&Sources::from_vars(vars)).map(|loaded| loaded.config)
    }

    /// Nothing set. Defaults are in the table and are applied over this.
    fn blank() -> Self {
        Self {
            data_dir: PathBuf::new(),
            kinde: Kinde::default(),
            store: Store::default(),
            queue: Queue::default(),
            reconcile: Reconcile::default(),
            http: Http {
                bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
                port: 0,
                metrics_bind: None,
                public_url: None,
                webhook_url: None,
                admin_token: None,
                request_deadline: Duration::ZERO,
                body_deadline: Duration::ZERO,
                head_deadline: Duration::ZERO,
                max_connections: 0,
                cached_users: 0,
                shutdown_grace: Duration::ZERO,
            },
            log: Log::default(),
            server: None,
        }
    }
}

/// What the commands need that talk to a running server. Other settings may be wrong.
#[derive(Debug)]
pub struct ClientConfig {
    /// The server.
    pub server: Url,
    /// What opens its admin routes.
    pub admin_token: Option<SecretString>,
}

impl ClientConfig {
    /// Reads the settings of a client, and complains of no others.
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
            SETTINGS.iter().any(|s| {
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

/// Settings that hold together.
#[derive(Debug)]
pub struct Loaded {
    /// What was decided.
    pub config: Config,
    /// Where each value came from.
    pub merged: source::Merged,
    /// What is odd but no problem, each a sentence for the operator.
    pub warnings: Vec<String>,
}
