//! Users and events in MongoDB, in the application's own database.
//!
//! A user is one document: what applications read at the top, and one sub-document `kinsync` with
//! what convergence needs. Only keys of kinsync's own are ever set or removed, by
//! classic update operators with fixed keys, so that nothing a user sends is evaluated (a pipeline
//! turns a user named `$$NOW` into a date).
//!
//! Each write is guarded by `kinsync.revision` and acknowledged by a majority with its journal.
//! Rows are read with the read concern "majority" too: "this observation contains nothing new" leads
//! to an ack, and must not rest on a write that a new primary may roll back.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bson::RawDocumentBuf;
use kinsync_core::UserId;
use mongodb::{
    Client, Collection, Database,
    error::ErrorKind,
    options::{ClientOptions, CollectionOptions, ReadConcern, ReadPreference, SelectionCriteria},
};
use secrecy::{ExposeSecret, SecretString};

pub use self::inspect::{IndexFault, Server, Topology};
pub use self::kept::{KeptKey, KeptKeys, KeptTally, REMEDIES};
pub use self::keys::FieldMapping;
pub use self::link::{LinkByEmail, UnlinkedDocument};
pub use self::privileges::Forbidden;
use self::{call::Calls, examine::LastBuild, keys::Keys, mappings::Mappings};
use super::{
    Counts, Error, EventFilter, Holder, LoggedEvent, Outcome, Page, Row, Saved, Store, StoreProblem,
    UserFilter, timed,
};

mod call;
mod decode;
mod encode;
mod examine;
mod indexes;
mod inspect;
mod kept;
mod keys;
mod link;
mod log;
mod mappings;
mod privileges;
mod read;
mod state;
mod tombstones;
mod view;
mod write;

/// Settings of the store.
#[derive(Clone, Debug)]
pub struct Config {
    /// MongoDB connection string of a replica set or a sharded cluster.
    pub uri: SecretString,
    /// Database; default: the one in the URI, else `kinsync`.
    pub database: Option<String>,
    /// Collection of user documents.
    pub users: String,
    /// Collection of the event log.
    pub events: String,
    /// Collection of kinsync's own records.
    pub state: String,
    /// Names of kinsync's keys in a user document.
    pub fields: FieldMapping,
    /// Values of keys of the application in documents that kinsync inserts; `{kindeId}` in a text is replaced. Under a key of
    /// kinsync, the value that is shown while Kinde has none.
    pub defaults: BTreeMap<String, serde_json::Value>,
    /// Whether the index on the email address is unique.
    pub unique_email: bool,
    /// Whether an existing document is linked to the user with its verified address.
    pub link_by_email: LinkByEmail,
    /// What happens to the address of a deleted user where a rule of the application rejects a document without one.
    pub tombstone_email: TombstoneEmail,
    /// Time limit of one call.
    pub op_timeout: Duration,
    /// Time limit of the search for a primary, unless the URI sets it.
    pub server_selection_timeout: Duration,
    /// Time limit of a connection attempt, unless the URI sets it.
    pub connect_timeout: Duration,
    /// Maximum connections, unless the URI sets it.
    pub max_pool: u32,
}

impl Config {
    /// Returns the default settings for this connection string.
    pub fn new(uri: impl Into<String>) -> Self {
        Self {
            uri: SecretString::from(uri.into()),
            database: None,
            users: "users".into(),
            events: "user_events".into(),
            state: "kinsync_state".into(),
            fields: FieldMapping::default(),
            defaults: BTreeMap::new(),
            unique_email: true,
            link_by_email: LinkByEmail::Verified,
            tombstone_email: TombstoneEmail::Keep,
            op_timeout: Duration::from_secs(5),
            server_selection_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            max_pool: 16,
        }
    }
}

/// What happens to the address of a deleted user where a rule of the application, such as a non-sparse unique index, rejects
/// a document without one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TombstoneEmail {
    /// The document keeps it. Under a unique index, no other user can show it.
    #[default]
    Keep,
    /// `deleted+<Kinde id>@kinsync.invalid` replaces it.
    Placeholder,
}

/// A store in MongoDB. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MongoStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    database: Database,
    users: Collection<RawDocumentBuf>,
    events: Collection<RawDocumentBuf>,
    state: Collection<RawDocumentBuf>,
    /// The mapping of the settings.
    keys: Arc<Keys>,
    mappings: Mappings,
    unique_email: bool,
    link_by_email: LinkByEmail,
    op_timeout: Duration,
    calls: Calls,
    /// Whether the indexes exist. Without them two processes could insert the same user twice, so nothing is written
    /// before.
    is_prepared: AtomicBool,
    /// Whether the collection of users has a default collation.
    is_collated: AtomicBool,
    /// Whether the unique index on the address exists.
    enforces_unique_emails: AtomicBool,
    last_build: Mutex<LastBuild>,
    /// Which setting named the database.
    database_origin: &'static str,
}

impl MongoStore {
    /// Creates the store. Connects at the first call, so the server may be unavailable; a `mongodb+srv` URI requires a DNS
    /// lookup.
    ///
    /// # Errors
    /// [`Error::Refused`] for an invalid URI or invalid field names; [`Error::Unavailable`] if the DNS lookup fails.
    pub async fn connect(config: Config) -> Result<Self, Error> {
        let mut keys = Keys::with_defaults(&config.fields, config.defaults.clone())?;
        keys.tombstone_email = config.tombstone_email;
        let keys = Arc::new(keys);
        let options = options(&config).await?;
        let connections = options.max_pool_size.unwrap_or(config.max_pool).max(1);
        let (name, database_origin) = match (&config.database, &options.default_database) {
            (Some(name), _) => (Some(name.clone()), "KINSYNC_DATABASE"),
            (None, Some(name)) => (Some(name.clone()), "MONGODB_URI"),
            (None, None) => (None, "the default, because MONGODB_URI names no database"),
        };
        let client = Client::with_options(options).map_err(|error| bad_uri(&error.kind))?;
        let database = client.database(name.as_deref().unwrap_or("kinsync"));
        let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
        let majority = CollectionOptions::builder()
            .read_concern(ReadConcern::majority())
            .selection_criteria(primary)
            .build();
        Ok(Self(Arc::new(Inner {
            users: database.collection_with_options(&config.users, majority.clone()),
            events: database.collection_with_options(&config.events, majority.clone()),
            state: database.collection_with_options(&config.state, majority),
            database,
            mappings: Mappings::new(Arc::clone(&keys)),
            keys,
            unique_email: config.unique_email,
            link_by_email: config.link_by_email,
            op_timeout: config.op_timeout,
            calls: Calls::new(connections),
            is_prepared: AtomicBool::new(false),
            is_collated: AtomicBool::new(false),
            enforces_unique_emails: AtomicBool::new(config.unique_email),
            last_build: Mutex::default(),
            database_origin,
        })))
    }

    /// Creates missing indexes and checks existing ones. Before it succeeds, [`Store::write`] fails with
    /// [`Error::Unavailable`]; reads work. Repeat the call while it fails with that error itself. Takes minutes on a large
    /// collection without indexes.
    ///
    /// # Errors
    /// [`Error::Refused`] if the index on the Kinde id cannot be created; the hint names the reason with possible fixes.
    /// [`Store::examine`] returns the problems of all other indexes.
    pub async fn prepare(&self) -> Result<(), Error> {
        timed("mongo", "prepare", self.0.register_mapping()).await?;
        timed("mongo", "prepare", self.0.prepare()).await?;
        self.0.is_prepared.store(true, Ordering::Release);
        Ok(())
    }

    /// Returns the collection of users with its database, and the setting that named the database, for the log.
    pub fn place(&self) -> (String, &'static str) {
        (format!("{}.{}", self.0.database.name(), self.0.users.name()), self.0.database_origin)
    }

    /// Returns the database, for change streams and for kinsync's own records.
    pub fn database(&self) -> &Database {
        &self.0.database
    }
}

async fn options(config: &Config) -> Result<ClientOptions, Error> {
    let parsed = ClientOptions::parse(config.uri.expose_secret()).await;
    let mut options = parsed.map_err(|error| bad_uri(&error.kind))?;
    options.app_name.get_or_insert_with(|| "kinsync".into());
    options.server_selection_timeout.get_or_insert(config.server_selection_timeout);
    options.connect_timeout.get_or_insert(config.connect_timeout);
    options.max_pool_size.get_or_insert(config.max_pool);
    Ok(options)
}

/// Omits the message of the driver, which may contain the password.
fn bad_uri(kind: &ErrorKind) -> Error {
    let doing = "read MONGODB_URI";
    match kind {
        ErrorKind::DnsResolve { .. } => call::unavailable(doing, kind.clone()),
        _ => Error::Refused {
            doing,
            hint: "it must look like `mongodb://user:password@host:27017/database?replicaSet=rs0`; \
                   percent-encode `@ : / %` in the user and the password"
                .into(),
            source: None,
        },
    }
}

#[async_trait]
impl Store for MongoStore {
    async fn load(&self, ids: &[UserId]) -> Result<Vec<Option<Row>>, Error> {
        timed("mongo", "load", self.0.load(ids)).await
    }

    async fn load_to_write(&self, ids: &[UserId]) -> Result<Vec<Row>, Error> {
        timed("mongo", "load", self.0.load_to_write(ids)).await
    }

    async fn write(&self, rows: &[Row]) -> Result<Vec<Outcome>, Error> {
        timed("mongo", "write", self.0.write(rows)).await
    }

    async fn with_refused_keys(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, Error> {
        timed("mongo", "with_refused_keys", self.0.with_refused_keys(after, limit)).await
    }

    async fn count_refused_keys(&self) -> Result<u64, Error> {
        timed("mongo", "count_refused_keys", self.0.count_refused_keys()).await
    }

    async fn claimants(&self, emails: &[String]) -> Result<Vec<Row>, Error> {
        timed("mongo", "claimants", self.0.claimants(emails)).await
    }

    async fn email_holders(&self, emails: &[String]) -> Result<HashMap<String, Holder>, Error> {
        timed("mongo", "email_holders", self.0.email_holders(emails)).await
    }

    async fn conflicted(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, Error> {
        timed("mongo", "conflicted", self.0.conflicted(after, limit)).await
    }

    async fn link(&self, row: &Row) -> Result<Outcome, Error> {
        timed("mongo", "link", Box::pin(self.0.link(row))).await
    }

    async fn pending_emails(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, Error> {
        timed("mongo", "pending_emails", self.0.pending_emails(after, limit)).await
    }

    async fn log(&self, events: &[LoggedEvent]) -> Result<usize, Error> {
        timed("mongo", "log", self.0.log(events)).await
    }

    async fn events(&self, filter: &EventFilter) -> Result<Page<LoggedEvent>, Error> {
        timed("mongo", "events", self.0.list_events(filter)).await
    }

    async fn event(&self, event_id: &str) -> Result<Option<LoggedEvent>, Error> {
        timed("mongo", "event", self.0.event(event_id)).await
    }

    async fn users(&self, filter: &UserFilter) -> Result<Page<Row>, Error> {
        timed("mongo", "users", self.0.list_users(filter)).await
    }

    async fn ids(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, Error> {
        timed("mongo", "ids", self.0.ids(after, limit)).await
    }

    async fn state(&self, key: &str) -> Result<Option<Saved>, Error> {
        timed("mongo", "state", self.0.saved(key)).await
    }

    async fn put_state(&self, key: &str, value: &serde_json::Value, expected: i64) -> Result<bool, Error> {
        timed("mongo", "put_state", self.0.save(key, value, expected)).await
    }

    async fn states(&self, keys: &[String]) -> Result<Vec<Option<Saved>>, Error> {
        timed("mongo", "states", self.0.all_saved(keys)).await
    }

    async fn list_states(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Saved)>, Error> {
        timed("mongo", "list_states", self.0.list_saved(prefix, after, limit)).await
    }

    async fn count_states(&self, prefix: &str) -> Result<u64, Error> {
        timed("mongo", "count_states", self.0.count_saved(prefix)).await
    }

    async fn remove_states(&self, records: &[(String, i64)]) -> Result<(), Error> {
        timed("mongo", "remove_states", self.0.remove_saved(records)).await
    }

    async fn counts(&self) -> Result<Counts, Error> {
        timed("mongo", "counts", self.0.counts()).await
    }

    async fn ping(&self) -> Result<(), Error> {
        timed("mongo", "ping", self.0.ping()).await
    }

    async fn examine(&self) -> Result<Vec<StoreProblem>, Error> {
        timed("mongo", "examine", self.0.examine_again()).await
    }

    fn enforces_unique_emails(&self) -> bool {
        self.0.enforces_unique_emails.load(Ordering::Acquire)
    }

    async fn accepts_write_of(&self, row: &Row) -> Result<bool, Error> {
        timed("mongo", "accepts_write_of", self.0.accepts_write_of(row)).await
    }
}
