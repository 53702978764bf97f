//! The list of settings: each row is one setting with its key, its variable and its flag.
//!
//! A new setting is a row here, a field of [`Config`] and a line in `config/kinsync.full.toml`; tests find what is missing.

use super::{Config, value};

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The key in the TOML file, with its table: `http.port`.
    pub key: &'static str,
    /// The environment variable.
    pub env: &'static str,
    /// The flag, without dashes.
    pub flag: &'static str,
    /// The value when no source sets one.
    pub default: Option<&'static str>,
    /// A valid value.
    pub example: &'static str,
    /// How the value is masked when it is shown.
    pub secrecy: Secrecy,
    /// The commands that read it.
    pub reader: Reader,
    /// What it does, for `--help` and the reference.
    pub help: &'static str,
    /// Reads a text into its place in the config.
    pub set: fn(&mut Config, &str) -> Result<(), String>,
}

/// How a value is masked when it is shown. A masked value may also be given as a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Secrecy {
    /// Shown.
    Open,
    /// Shown as stars.
    Hidden,
    /// A URL whose user and password are hidden.
    Credentials,
}

/// The commands that read a setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reader {
    /// The commands that take the settings of a server.
    Server,
    /// The commands that use a running server.
    Client,
    /// Both.
    Both,
}

impl Setting {
    /// Whether the value may also be given as `…_FILE`.
    pub fn has_file(&self) -> bool {
        self.secrecy != Secrecy::Open
    }

    /// The variable that names a file with the value.
    pub fn env_file(&self) -> String {
        format!("{}_FILE", self.env)
    }

    /// The setting of this variable.
    ///
    /// # Panics
    /// When there is none: names are constants, and a test calls this with each of them.
    pub fn of(env: &str) -> &'static Self {
        SETTINGS.iter().find(|setting| setting.env == env).expect("the name is a constant of the table")
    }
}

/// Defaults for the members of a row.
const ROW: Setting = Setting {
    key: "",
    env: "",
    flag: "",
    default: None,
    example: "",
    secrecy: Secrecy::Open,
    reader: Reader::Server,
    help: "",
    set: |_, _| Ok(()),
};

fn put<T>(place: &mut T, value: Result<T, String>) -> Result<(), String> {
    *place = value?;
    Ok(())
}

/// Every setting, in the order in which they are shown.
pub static SETTINGS: &[Setting] = &[
    Setting {
        key: "data_dir",
        env: "KINSYNC_DATA_DIR",
        flag: "data-dir",
        default: Some("./kinsync-data"),
        example: "/var/lib/kinsync",
        help: "The folder for the files of the embedded queue and store; each process needs its own",
        set: |config, text| put(&mut config.data_dir, Ok(text.into())),
        ..ROW
    },
    Setting {
        key: "kinde.domain",
        env: "KINDE_DOMAIN",
        flag: "kinde-domain",
        example: "https://acme.kinde.com",
        help: "The Kinde tenant; its signing keys verify the webhooks that Kinde signs itself",
        set: |config, text| put(&mut config.kinde.domain, value::domain(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "kinde.issuers",
        env: "KINDE_ISSUERS",
        flag: "kinde-issuers",
        example: "https://acme.kinde.com,https://auth.acme.com",
        help: "The trusted issuers of access tokens, comma separated, for tenants with custom domains \
               [default: KINDE_DOMAIN]",
        set: |config, text| {
            put(&mut config.kinde.issuers, value::list(text).into_iter().map(value::domain).collect())
        },
        ..ROW
    },
    Setting {
        key: "kinde.audience",
        env: "KINDE_AUDIENCE",
        flag: "kinde-audience",
        example: "https://api.acme.com",
        help: "The accepted audiences of access tokens, comma separated [default: any]",
        set: |config, text| {
            put(&mut config.kinde.audience, Ok(value::list(text).into_iter().map(str::to_owned).collect()))
        },
        ..ROW
    },
    Setting {
        key: "kinde.allowed_client_ids",
        env: "KINDE_ALLOWED_CLIENT_IDS",
        flag: "kinde-allowed-client-ids",
        example: "dee7f3c57b3c47e8b96edde2c7ecab7d",
        help: "The client ids of the applications whose access tokens are accepted, comma separated [default: all]",
        set: |config, text| {
            put(
                &mut config.kinde.allowed_client_ids,
                Ok(value::list(text).into_iter().map(str::to_owned).collect()),
            )
        },
        ..ROW
    },
    Setting {
        key: "kinde.webhook_secret",
        env: "KINDE_WEBHOOK_SECRET",
        flag: "kinde-webhook-secret",
        example: "new-secret,old-secret",
        secrecy: Secrecy::Hidden,
        help: "The secrets that verify deliveries signed by HMAC-SHA256, comma separated; several during a rotation",
        set: |config, text| put(&mut config.kinde.webhook_secrets, value::secrets(text)),
        ..ROW
    },
    Setting {
        key: "kinde.standard_webhooks_secret",
        env: "KINSYNC_STANDARD_WEBHOOKS_SECRET",
        flag: "standard-webhooks-secret",
        example: "whsec_bmV3LXNlY3JldC1vZi0zMi1ieXRlcy0wMDAwMDAwMDA=",
        secrecy: Secrecy::Hidden,
        help: "The secrets that verify deliveries signed by Standard Webhooks, in base64, comma separated; several \
               during a rotation",
        set: |config, text| put(&mut config.kinde.standard_webhooks_secrets, value::secrets(text)),
        ..ROW
    },
    Setting {
        key: "kinde.m2m_client_id",
        env: "KINDE_M2M_CLIENT_ID",
        flag: "kinde-m2m-client-id",
        example: "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
        help: "The client id of the machine-to-machine application that reads Kinde's Management API",
        set: |config, text| put(&mut config.kinde.m2m_client_id, Ok(Some(text.into()))),
        ..ROW
    },
    Setting {
        key: "kinde.m2m_client_secret",
        env: "KINDE_M2M_CLIENT_SECRET",
        flag: "kinde-m2m-client-secret",
        example: "the-secret-that-kinde-shows-once",
        secrecy: Secrecy::Hidden,
        help: "The client secret of that application",
        set: |config, text| put(&mut config.kinde.m2m_client_secret, value::secret(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "store.mongodb_uri",
        env: "MONGODB_URI",
        flag: "mongodb-uri",
        example: "mongodb://127.0.0.1:27017/app?replicaSet=rs0",
        secrecy: Secrecy::Credentials,
        help: "The MongoDB deployment that stores the users [default: a file in the data folder]",
        set: |config, text| put(&mut config.store.mongodb_uri, value::mongodb_uri(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "store.database",
        env: "KINSYNC_DATABASE",
        flag: "database",
        example: "app",
        help: "The database [default: the one in MONGODB_URI, else kinsync]",
        set: |config, text| put(&mut config.store.database, value::name(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "store.users_collection",
        env: "KINSYNC_USERS_COLLECTION",
        flag: "users-collection",
        default: Some("users"),
        example: "users",
        help: "The collection of users; fields of your own in it are not changed",
        set: |config, text| put(&mut config.store.users, value::name(text)),
        ..ROW
    },
    Setting {
        key: "store.events_collection",
        env: "KINSYNC_EVENTS_COLLECTION",
        flag: "events-collection",
        default: Some("user_events"),
        example: "user_events",
        help: "The collection of the event log",
        set: |config, text| put(&mut config.store.events, value::name(text)),
        ..ROW
    },
    Setting {
        key: "store.unique_email",
        env: "KINSYNC_UNIQUE_EMAIL",
        flag: "unique-email",
        default: Some("true"),
        example: "false",
        help: "Whether a unique index prevents two live users from showing the same email address",
        set: |config, text| put(&mut config.store.unique_email, value::flag(text)),
        ..ROW
    },
    Setting {
        key: "store.link_by_email",
        env: "KINSYNC_LINK_BY_EMAIL",
        flag: "link-by-email",
        default: Some("verified"),
        example: "never",
        help: "When to link a document without a Kinde id to the user with its email address: `verified` (once Kinde \
               has verified the address) or `never`",
        set: |config, text| put(&mut config.store.link_by_email, value::link_by_email(text)),
        ..ROW
    },
    Setting {
        key: "queue.kind",
        env: "KINSYNC_QUEUE",
        flag: "queue",
        default: Some("embedded"),
        example: "embedded",
        help: "The queue for accepted deliveries",
        set: |config, text| put(&mut config.queue.kind, value::queue_kind(text)),
        ..ROW
    },
    Setting {
        key: "queue.max_entries",
        env: "KINSYNC_QUEUE_MAX_ENTRIES",
        flag: "queue-max-entries",
        default: Some("1000000"),
        example: "1000000",
        help: "The largest number of queued deliveries; further ones are answered 503, and Kinde sends them \
               again",
        set: |config, text| put(&mut config.queue.max_entries, value::count(text)),
        ..ROW
    },
    Setting {
        key: "queue.max_bytes",
        env: "KINSYNC_QUEUE_MAX_BYTES",
        flag: "queue-max-bytes",
        default: Some("1GiB"),
        example: "1GiB",
        help: "The largest size of the queue on disk; further deliveries are answered 503",
        set: |config, text| put(&mut config.queue.max_bytes, value::bytes(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.every",
        env: "KINSYNC_RECONCILE_EVERY",
        flag: "reconcile-every",
        default: Some("1h"),
        example: "1h",
        help: "The interval between two scans of all users at Kinde, when KINDE_M2M_CLIENT_ID is set; `off`: \
               only on request",
        set: |config, text| put(&mut config.reconcile.every, value::interval(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.page_size",
        env: "KINSYNC_RECONCILE_PAGE_SIZE",
        flag: "reconcile-page-size",
        default: Some("200"),
        example: "200",
        help: "The number of users in one request to the Management API, up to 500",
        set: |config, text| put(&mut config.reconcile.page_size, value::page_size(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.max_deletes",
        env: "KINSYNC_RECONCILE_MAX_DELETES",
        flag: "reconcile-max-deletes",
        default: Some("20"),
        example: "20",
        help: "The number of deletions that one scan may carry out without an operator's approval",
        set: |config, text| put(&mut config.reconcile.max_deletes, value::whole(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.max_delete_share",
        env: "KINSYNC_RECONCILE_MAX_DELETE_SHARE",
        flag: "reconcile-max-delete-share",
        default: Some("5%"),
        example: "5%",
        help: "The share of live users that one scan may delete without approval; deletions are held when both \
               limits are exceeded",
        set: |config, text| put(&mut config.reconcile.max_delete_share, value::share(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.unknown_user_codes",
        env: "KINSYNC_UNKNOWN_USER_CODES",
        flag: "unknown-user-codes",
        example: "NO_SUCH_USER",
        help: "Further error codes with which Kinde reports, with status 400, that a user does not exist, \
               comma separated; a user with another code is left as it is, and the log names the code",
        set: |config, text| {
            let codes = value::list(text).into_iter().map(str::to_owned).collect();
            put(&mut config.reconcile.unknown_user_codes, Ok(codes))
        },
        ..ROW
    },
    Setting {
        key: "http.bind",
        env: "KINSYNC_BIND",
        flag: "bind",
        default: Some("127.0.0.1"),
        example: "0.0.0.0",
        help: "The address to listen on; 0.0.0.0 to accept connections from other machines",
        set: |config, text| put(&mut config.http.bind, value::parsed(text, "an IP address")),
        ..ROW
    },
    Setting {
        key: "http.port",
        env: "PORT",
        flag: "port",
        default: Some("5000"),
        example: "5000",
        reader: Reader::Both,
        help: "The port to listen on; 0 for any free port",
        set: |config, text| put(&mut config.http.port, value::parsed(text, "a port from 0 to 65535")),
        ..ROW
    },
    Setting {
        key: "http.metrics_bind",
        env: "KINSYNC_METRICS_BIND",
        flag: "metrics-bind",
        example: "127.0.0.1:9090",
        help: "A separate address and port for /health and /metrics [default: the main address]",
        set: |config, text| put(&mut config.http.metrics_bind, value::socket(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "http.public_url",
        env: "KINSYNC_PUBLIC_URL",
        flag: "public-url",
        example: "https://app.example.com",
        help: "The address at which Kinde reaches this server, for `webhook setup` and `doctor`; the webhook \
               is /api/webhook below it",
        set: |config, text| put(&mut config.http.public_url, value::public_url(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "http.webhook_url",
        env: "KINSYNC_WEBHOOK_URL",
        flag: "webhook-url",
        example: "https://app.example.com/hooks/kinde",
        help: "The complete address of the webhook, when a proxy forwards another path to /api/webhook \
               [default: /api/webhook below KINSYNC_PUBLIC_URL]",
        set: |config, text| put(&mut config.http.webhook_url, value::public_url(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "http.admin_token",
        env: "KINSYNC_ADMIN_TOKEN",
        flag: "admin-token",
        example: "$(openssl rand -hex 32)",
        secrecy: Secrecy::Hidden,
        reader: Reader::Both,
        help: "The token for the admin routes; without it they are disabled",
        set: |config, text| put(&mut config.http.admin_token, value::secret(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "http.request_deadline",
        env: "KINSYNC_REQUEST_DEADLINE",
        flag: "request-deadline",
        default: Some("30s"),
        example: "30s",
        help: "The longest time to answer a request",
        set: |config, text| put(&mut config.http.request_deadline, value::duration(text)),
        ..ROW
    },
    Setting {
        key: "http.body_deadline",
        env: "KINSYNC_BODY_DEADLINE",
        flag: "body-deadline",
        default: Some("15s"),
        example: "15s",
        help: "The longest time for the body of a delivery to arrive",
        set: |config, text| put(&mut config.http.body_deadline, value::duration(text)),
        ..ROW
    },
    Setting {
        key: "http.head_deadline",
        env: "KINSYNC_HEAD_DEADLINE",
        flag: "head-deadline",
        default: Some("10s"),
        example: "10s",
        help: "The longest time for the head of a request to arrive, for a connection to be idle, and for a \
               write to make progress",
        set: |config, text| put(&mut config.http.head_deadline, value::duration(text)),
        ..ROW
    },
    Setting {
        key: "http.body_limit",
        env: "KINSYNC_BODY_LIMIT",
        flag: "body-limit",
        default: Some("1MiB"),
        example: "1MiB",
        help: "Largest body of a delivery; larger ones are answered 413",
        set: |config, text| put(&mut config.http.body_limit, value::size(text)),
        ..ROW
    },
    Setting {
        key: "http.body_budget",
        env: "KINSYNC_BODY_BUDGET",
        flag: "body-budget",
        default: Some("64MiB"),
        example: "64MiB",
        help: "Memory for the bodies of all deliveries in progress, beyond the first 8 KiB of each; above it they are \
               answered 503",
        set: |config, text| put(&mut config.http.body_budget, value::size(text)),
        ..ROW
    },
    Setting {
        key: "http.max_connections",
        env: "KINSYNC_MAX_CONNECTIONS",
        flag: "max-connections",
        default: Some("4096"),
        example: "4096",
        help: "Open connections; when all are open, the longest idle one is closed for a new one",
        set: |config, text| put(&mut config.http.max_connections, value::size(text)),
        ..ROW
    },
    Setting {
        key: "http.max_connections_per_client",
        env: "KINSYNC_MAX_CONNECTIONS_PER_CLIENT",
        flag: "max-connections-per-client",
        default: Some("512"),
        example: "512",
        help: "Open connections per client address (IPv6: per /64); more are closed at once. Loopback and \
               KINSYNC_TRUSTED_PROXIES have no such limit",
        set: |config, text| put(&mut config.http.max_connections_per_client, value::size(text)),
        ..ROW
    },
    Setting {
        key: "http.trusted_proxies",
        env: "KINSYNC_TRUSTED_PROXIES",
        flag: "trusted-proxies",
        example: "10.0.0.0/8,192.168.1.5",
        help: "Addresses or networks of your reverse proxies, comma separated: they have no limit of connections per \
               client",
        set: |config, text| put(&mut config.http.trusted_proxies, value::networks(text)),
        ..ROW
    },
    Setting {
        key: "http.cors_origins",
        env: "KINSYNC_CORS_ORIGINS",
        flag: "cors-origins",
        example: "https://app.example.com",
        help: "Origins of front ends that may call /api/me and /api/profile from a browser, comma separated [default: \
               same origin only]",
        set: |config, text| put(&mut config.http.cors_origins, value::origins(text)),
        ..ROW
    },
    Setting {
        key: "http.token_cookie",
        env: "KINSYNC_TOKEN_COOKIE",
        flag: "token-cookie",
        example: "access_token",
        help: "Also read the access token from this cookie at /api/me, /api/profile and /auth/verify. Set the cookie with \
               SameSite=Lax or Strict, and protect your application against CSRF [default: `Authorization` only]",
        set: |config, text| put(&mut config.http.token_cookie, value::cookie_name(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "http.cached_users",
        env: "KINSYNC_CACHED_USERS",
        flag: "cached-users",
        default: Some("100000"),
        example: "100000",
        help: "The number of users, and of verified tokens, in memory; the least recently used ones are \
               removed first",
        set: |config, text| {
            let count = usize::try_from(value::count(text)?).map_err(|_| "is too large")?;
            put(&mut config.http.cached_users, Ok(count))
        },
        ..ROW
    },
    Setting {
        key: "http.shutdown_grace",
        env: "KINSYNC_SHUTDOWN_GRACE",
        flag: "shutdown-grace",
        default: Some("20s"),
        example: "20s",
        help: "The longest time to finish requests and batches after SIGTERM",
        set: |config, text| put(&mut config.http.shutdown_grace, value::duration(text)),
        ..ROW
    },
    Setting {
        key: "log.filter",
        env: "KINSYNC_LOG",
        flag: "log",
        default: Some("info"),
        example: "info,kinsync_engine=debug",
        help: "The log filter, such as `info` or `info,kinsync_engine=debug`",
        set: |config, text| put(&mut config.log.filter, value::log_filter(text)),
        ..ROW
    },
    Setting {
        key: "log.format",
        env: "KINSYNC_LOG_FORMAT",
        flag: "log-format",
        example: "json",
        help: "`json` or `text` [default: text on a terminal, else json]",
        set: |config, text| put(&mut config.log.format, value::log_format(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "client.server",
        env: "KINSYNC_SERVER",
        flag: "server",
        example: "http://127.0.0.1:5000",
        reader: Reader::Client,
        help: "The running server that `users`, `events`, `dead-letters`, `runs`, `reconcile --soon` and \
               `doctor` use [default: http://127.0.0.1:PORT]",
        set: |config, text| put(&mut config.server, value::server(text).map(Some)),
        ..ROW
    },
];
