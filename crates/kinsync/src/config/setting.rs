//! The table of settings: each row is one setting under its three names.
//!
//! A new setting is a row here, a field of [`Config`] and a line in `config/kinsync.full.toml`.

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
    /// What holds when nothing is set.
    pub default: Option<&'static str>,
    /// A value that would be right.
    pub example: &'static str,
    /// Whether, and how, it is hidden.
    pub secrecy: Secrecy,
    /// Which commands read it.
    pub reader: Reader,
    /// What it does, for `--help` and the reference.
    pub help: &'static str,
    /// Reads a text into its place in the config.
    pub set: fn(&mut Config, &str) -> Result<(), String>,
}

/// Whether a value is hidden when settings are shown. Hidden ones may also be given as a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Secrecy {
    /// Shown.
    Open,
    /// Shown as stars.
    Hidden,
    /// A URL whose user and password are hidden.
    Credentials,
}

/// Which commands read a setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reader {
    /// `serve` alone.
    Server,
    /// The commands that talk to a running server, alone.
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

/// The usual row; the others are written out from it.
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
        help: "Where the embedded queue and store keep their files; one process per folder",
        set: |config, text| put(&mut config.data_dir, Ok(text.into())),
        ..ROW
    },
    Setting {
        key: "kinde.domain",
        env: "KINDE_DOMAIN",
        flag: "kinde-domain",
        example: "https://acme.kinde.com",
        help: "The tenant: its keys verify Kinde's own webhooks",
        set: |config, text| put(&mut config.kinde.domain, value::domain(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "kinde.issuers",
        env: "KINDE_ISSUERS",
        flag: "kinde-issuers",
        example: "https://acme.kinde.com,https://auth.acme.com",
        help: "Who may have issued a token, comma separated [default: KINDE_DOMAIN]",
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
        help: "For whom a token must have been issued, comma separated [default: anybody]",
        set: |config, text| {
            put(&mut config.kinde.audience, Ok(value::list(text).into_iter().map(str::to_owned).collect()))
        },
        ..ROW
    },
    Setting {
        key: "kinde.webhook_secret",
        env: "KINDE_WEBHOOK_SECRET",
        flag: "kinde-webhook-secret",
        example: "new-secret,old-secret",
        secrecy: Secrecy::Hidden,
        help: "Verifies deliveries signed by HMAC-SHA256 or Standard Webhooks; several for rotation, comma \
               separated",
        set: |config, text| put(&mut config.kinde.webhook_secrets, value::secrets(text)),
        ..ROW
    },
    Setting {
        key: "kinde.m2m_client_id",
        env: "KINDE_M2M_CLIENT_ID",
        flag: "kinde-m2m-client-id",
        example: "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
        help: "The machine-to-machine application that reads Kinde's Management API",
        set: |config, text| put(&mut config.kinde.m2m_client_id, Ok(Some(text.into()))),
        ..ROW
    },
    Setting {
        key: "kinde.m2m_client_secret",
        env: "KINDE_M2M_CLIENT_SECRET",
        flag: "kinde-m2m-client-secret",
        example: "the-secret-that-kinde-shows-once",
        secrecy: Secrecy::Hidden,
        help: "The secret of that application",
        set: |config, text| put(&mut config.kinde.m2m_client_secret, value::secret(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "store.mongodb_uri",
        env: "MONGODB_URI",
        flag: "mongodb-uri",
        example: "mongodb://127.0.0.1:27017/app?replicaSet=rs0",
        secrecy: Secrecy::Credentials,
        help: "The MongoDB that users are kept in [default: a file in the data folder]",
        set: |config, text| put(&mut config.store.mongodb_uri, value::mongodb_uri(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "store.database",
        env: "KINSYNC_DATABASE",
        flag: "database",
        example: "app",
        help: "The database [default: the one of MONGODB_URI, else kinsync]",
        set: |config, text| put(&mut config.store.database, value::name(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "store.users_collection",
        env: "KINSYNC_USERS_COLLECTION",
        flag: "users-collection",
        default: Some("users"),
        example: "users",
        help: "The collection of users; your own fields in it stay untouched",
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
        help: "Whether a unique index keeps two live users from showing one address",
        set: |config, text| put(&mut config.store.unique_email, value::flag(text)),
        ..ROW
    },
    Setting {
        key: "store.adopt_by_email",
        env: "KINSYNC_ADOPT_BY_EMAIL",
        flag: "adopt-by-email",
        default: Some("verified"),
        example: "never",
        help: "Whether a row of yours without a Kinde id becomes the user's who has its address: verified (when \
               Kinde says that the address is) or never",
        set: |config, text| put(&mut config.store.adopt_by_email, value::adopt(text)),
        ..ROW
    },
    Setting {
        key: "queue.kind",
        env: "KINSYNC_QUEUE",
        flag: "queue",
        default: Some("embedded"),
        example: "embedded",
        help: "Where deliveries wait",
        set: |config, text| put(&mut config.queue.kind, value::queue_kind(text)),
        ..ROW
    },
    Setting {
        key: "queue.max_entries",
        env: "KINSYNC_QUEUE_MAX_ENTRIES",
        flag: "queue-max-entries",
        default: Some("1000000"),
        example: "1000000",
        help: "Deliveries that may wait; more are answered 503, and Kinde sends them again",
        set: |config, text| put(&mut config.queue.max_entries, value::count(text)),
        ..ROW
    },
    Setting {
        key: "queue.max_bytes",
        env: "KINSYNC_QUEUE_MAX_BYTES",
        flag: "queue-max-bytes",
        default: Some("1GiB"),
        example: "1GiB",
        help: "Bytes that they may take on disk; more are answered 503",
        set: |config, text| put(&mut config.queue.max_bytes, value::bytes(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.every",
        env: "KINSYNC_RECONCILE_EVERY",
        flag: "reconcile-every",
        default: Some("1h"),
        example: "1h",
        help: "How often all users at Kinde are compared with the store, when KINDE_M2M_CLIENT_ID is set; off: only \
               by hand",
        set: |config, text| put(&mut config.reconcile.every, value::interval(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.page_size",
        env: "KINSYNC_RECONCILE_PAGE_SIZE",
        flag: "reconcile-page-size",
        default: Some("200"),
        example: "200",
        help: "Users asked for at once, up to 500",
        set: |config, text| put(&mut config.reconcile.page_size, value::page_size(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.max_deletes",
        env: "KINSYNC_RECONCILE_MAX_DELETES",
        flag: "reconcile-max-deletes",
        default: Some("20"),
        example: "20",
        help: "Users that one scan may find deleted at Kinde before their deletion is held for an operator",
        set: |config, text| put(&mut config.reconcile.max_deletes, value::whole(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.max_delete_share",
        env: "KINSYNC_RECONCILE_MAX_DELETE_SHARE",
        flag: "reconcile-max-delete-share",
        default: Some("5%"),
        example: "5%",
        help: "The same as a share of the live users; only what exceeds both is held",
        set: |config, text| put(&mut config.reconcile.max_delete_share, value::share(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.unknown_user_codes",
        env: "KINSYNC_UNKNOWN_USER_CODES",
        flag: "unknown-user-codes",
        example: "NO_SUCH_USER",
        help: "More codes by which Kinde says, with status 400, that there is no such user, comma separated; without \
               them such a user is left as it is, and the log names the code",
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
        help: "The address to listen on",
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
        help: "The port to listen on; 0: any free one",
        set: |config, text| put(&mut config.http.port, value::parsed(text, "a port from 0 to 65535")),
        ..ROW
    },
    Setting {
        key: "http.metrics_bind",
        env: "KINSYNC_METRICS_BIND",
        flag: "metrics-bind",
        example: "127.0.0.1:9090",
        help: "Another address for /health and /metrics [default: beside the rest]",
        set: |config, text| put(&mut config.http.metrics_bind, value::socket(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "http.public_url",
        env: "KINSYNC_PUBLIC_URL",
        flag: "public-url",
        example: "https://app.example.com",
        help: "Where Kinde reaches this server, for `webhook setup` and `doctor`; the webhook is /api/webhook below it",
        set: |config, text| put(&mut config.http.public_url, value::public_url(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "http.webhook_url",
        env: "KINSYNC_WEBHOOK_URL",
        flag: "webhook-url",
        example: "https://app.example.com/hooks/kinde",
        help: "The whole address of the webhook, where a proxy leads from another path to /api/webhook, for `webhook \
               setup` and `doctor` [default: /api/webhook below KINSYNC_PUBLIC_URL]",
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
        help: "Opens the admin routes; without it they are closed",
        set: |config, text| put(&mut config.http.admin_token, value::secret(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "http.request_deadline",
        env: "KINSYNC_REQUEST_DEADLINE",
        flag: "request-deadline",
        default: Some("30s"),
        example: "30s",
        help: "The longest time for one request",
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
        help: "The longest time for the head of a request, and for a connection to be idle or not to read",
        set: |config, text| put(&mut config.http.head_deadline, value::duration(text)),
        ..ROW
    },
    Setting {
        key: "http.max_connections",
        env: "KINSYNC_MAX_CONNECTIONS",
        flag: "max-connections",
        default: Some("4096"),
        example: "4096",
        help: "Connections at a time; more wait to be accepted",
        set: |config, text| {
            let count = usize::try_from(value::count(text)?).map_err(|_| "is too large")?;
            put(&mut config.http.max_connections, Ok(count.min(tokio::sync::Semaphore::MAX_PERMITS)))
        },
        ..ROW
    },
    Setting {
        key: "http.cached_users",
        env: "KINSYNC_CACHED_USERS",
        flag: "cached-users",
        default: Some("100000"),
        example: "100000",
        help: "Users, and as many verified tokens, that are kept in memory; the least used ones make room",
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
        help: "The longest time to finish what is in flight after SIGTERM",
        set: |config, text| put(&mut config.http.shutdown_grace, value::duration(text)),
        ..ROW
    },
    Setting {
        key: "log.filter",
        env: "KINSYNC_LOG",
        flag: "log",
        default: Some("info"),
        example: "info,kinsync_engine=debug",
        help: "What is logged",
        set: |config, text| put(&mut config.log.filter, value::log_filter(text)),
        ..ROW
    },
    Setting {
        key: "log.format",
        env: "KINSYNC_LOG_FORMAT",
        flag: "log-format",
        example: "json",
        help: "json or text [default: text on a terminal, json elsewhere]",
        set: |config, text| put(&mut config.log.format, value::log_format(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "client.server",
        env: "KINSYNC_SERVER",
        flag: "server",
        example: "http://127.0.0.1:5000",
        reader: Reader::Client,
        help: "The running server that `users`, `events`, `dead-letters`, `runs`, `reconcile --soon` and `doctor` talk to \
               [default: http://127.0.0.1:PORT]",
        set: |config, text| put(&mut config.server, value::server(text).map(Some)),
        ..ROW
    },
];
