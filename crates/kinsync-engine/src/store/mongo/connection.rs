//! Connects to MongoDB. A `mongodb+srv` URI names a DNS record, and DNS may be unavailable like the server itself: the store then
//! exists without a connection, every call fails as unavailable, and [`MongoStore::prepare`] tries again.

use std::{
    fmt,
    hash::RandomState,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::future::BoxFuture;
use mongodb::{
    Client, Database,
    error::ErrorKind,
    options::{
        ClientOptions, CollectionOptions, ConnectionString, ReadConcern, ReadPreference, SelectionCriteria,
    },
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{sync::OnceCell, time::timeout};

use super::{
    Config, Inner,
    call::{self, Calls, Cause},
    derived::DerivedCollection,
    keys::Keys,
    mappings::Mappings,
};
use crate::store::{Error, timed};

const DOING: &str = "look up the servers of MONGODB_URI in DNS";

/// A store in MongoDB. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MongoStore(Arc<Connection>);

#[derive(Debug)]
struct Connection {
    config: Config,
    keys: Arc<Keys>,
    database: String,
    /// Which setting named the database.
    database_origin: &'static str,
    /// Set once DNS has answered; at once for a URI that names the servers.
    inner: OnceCell<Inner>,
}

/// Replaces the DNS lookup of a `mongodb+srv` URI: returns a URI that names the servers. For tests.
#[doc(hidden)]
#[derive(Clone)]
pub struct Lookup(pub Arc<dyn Fn() -> BoxFuture<'static, Option<String>> + Send + Sync>);

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup").finish_non_exhaustive()
    }
}

impl MongoStore {
    /// Creates the store. Connects at the first call, so the server may be unavailable, and with a `mongodb+srv` URI also DNS.
    ///
    /// # Errors
    /// [`Error::Refused`] for an invalid URI or invalid field names.
    pub async fn connect(config: Config) -> Result<Self, Error> {
        let mut keys = Keys::with_defaults(&config.fields, config.defaults.clone())?;
        check_derived(&config)?;
        keys.tombstone_email = config.tombstone_email;
        let parsed = ConnectionString::parse(config.uri.expose_secret());
        let parsed = parsed.map_err(|error| bad_uri(&error.kind))?;
        let (database, database_origin) = match (&config.database, parsed.default_database) {
            (Some(name), _) => (name.clone(), "KINSYNC_DATABASE"),
            (None, Some(name)) => (name, "MONGODB_URI"),
            (None, None) => ("kinsync".into(), "the default, because MONGODB_URI names no database"),
        };
        let connection =
            Connection { config, keys: Arc::new(keys), database, database_origin, inner: OnceCell::new() };
        match connection.open().await {
            Err(error) if !error.is_transient() => Err(error),
            _ => Ok(Self(Arc::new(connection))),
        }
    }

    /// Creates missing indexes and checks existing ones. Before it succeeds, [`Store::write`](crate::store::Store::write) fails
    /// with [`Error::Unavailable`]; reads work as soon as DNS has answered. Repeat the call while it fails with that error
    /// itself. Takes minutes on a large collection without indexes.
    ///
    /// # Errors
    /// [`Error::Refused`] if the index on the Kinde id cannot be created; the hint names the reason with possible fixes.
    /// [`Store::examine`](crate::store::Store::examine) returns the problems of all other indexes.
    pub async fn prepare(&self) -> Result<(), Error> {
        let inner = self.0.open().await?;
        timed("mongo", "prepare", inner.register_mapping()).await?;
        timed("mongo", "prepare", inner.prepare()).await?;
        inner.is_prepared.store(true, Ordering::Release);
        Ok(())
    }

    /// Returns the collection of users with its database, and the setting that named the database, for the log.
    pub fn place(&self) -> (String, &'static str) {
        (format!("{}.{}", self.0.database, self.0.config.users), self.0.database_origin)
    }

    /// Returns the name of the database.
    pub fn database_name(&self) -> &str {
        &self.0.database
    }

    /// Returns the database, for change streams and for kinsync's own records.
    ///
    /// # Errors
    /// [`Error::Unavailable`] before DNS has answered.
    pub fn database(&self) -> Result<&Database, Error> {
        Ok(&self.inner()?.database)
    }

    pub(super) fn config(&self) -> &Config {
        &self.0.config
    }

    /// The mapping of the settings.
    pub(super) fn keys(&self) -> &Keys {
        &self.0.keys
    }

    pub(super) fn inner(&self) -> Result<&Inner, Error> {
        self.0.inner.get().ok_or_else(|| call::unavailable(DOING, Cause::NoServers))
    }
}

impl Connection {
    async fn open(&self) -> Result<&Inner, Error> {
        self.inner.get_or_try_init(|| self.connected()).await
    }

    async fn connected(&self) -> Result<Inner, Error> {
        let limit = self.config.server_selection_timeout;
        let options = timeout(limit, options(&self.config)).await;
        let options = options.map_err(|_| call::unavailable(DOING, Cause::Deadline(limit)))??;
        let connections = options.max_pool_size.unwrap_or(self.config.max_pool).max(1);
        let client = Client::with_options(options).map_err(|error| bad_uri(&error.kind))?;
        let database = client.database(&self.database);
        let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
        let majority = CollectionOptions::builder()
            .read_concern(ReadConcern::majority())
            .selection_criteria(primary)
            .build();
        let collection = |name: &str| database.collection_with_options(name, majority.clone());
        let derived = self.config.derived.iter();
        let derived = derived.map(|(derived, config)| DerivedCollection::new(*derived, config, collection));
        let derived = derived.filter_map(Result::transpose).collect::<Result<_, _>>()?;
        Ok(Inner {
            hasher: RandomState::new(),
            derived,
            users: collection(&self.config.users),
            events: collection(&self.config.events),
            state: collection(&self.config.state),
            database,
            mappings: Mappings::new(Arc::clone(&self.keys)),
            keys: Arc::clone(&self.keys),
            unique_email: self.config.unique_email,
            link_by_email: self.config.link_by_email,
            op_timeout: self.config.op_timeout,
            calls: Calls::new(connections),
            is_prepared: AtomicBool::new(false),
            is_collated: AtomicBool::new(false),
            enforces_unique_emails: AtomicBool::new(self.config.unique_email),
            expects_taken: AtomicBool::new(true),
            last_build: Mutex::default(),
        })
    }
}

/// Checks the names of the derived collections and of their keys.
fn check_derived(config: &Config) -> Result<(), Error> {
    let mut names = vec![&config.users, &config.events, &config.state];
    for (derived, one) in &config.derived {
        one.check(*derived)?;
        let Some(name) = &one.collection else { continue };
        if names.contains(&name) {
            return Err(Error::Refused {
                doing: "use the configured collections",
                hint: format!("`{name}` is the name of two collections; set another name for one of them"),
                source: None,
            });
        }
        names.push(name);
    }
    Ok(())
}

async fn options(config: &Config) -> Result<ClientOptions, Error> {
    let mut uri = config.uri.clone();
    if let Some(Lookup(lookup)) = &config.lookup {
        uri = lookup()
            .await
            .map(SecretString::from)
            .ok_or_else(|| call::unavailable(DOING, Cause::NoServers))?;
    }
    let parsed = ClientOptions::parse(uri.expose_secret()).await;
    let mut options = parsed.map_err(|error| bad_uri(&error.kind))?;
    options.app_name.get_or_insert_with(|| "kinsync".into());
    options.server_selection_timeout.get_or_insert(config.server_selection_timeout);
    options.connect_timeout.get_or_insert(config.connect_timeout);
    options.max_pool_size.get_or_insert(config.max_pool);
    Ok(options)
}

/// Omits the message of the driver, which may contain the password.
fn bad_uri(kind: &ErrorKind) -> Error {
    match kind {
        ErrorKind::DnsResolve { .. } => call::unavailable(DOING, kind.clone()),
        _ => Error::Refused {
            doing: "read MONGODB_URI",
            hint: "it must look like `mongodb://user:password@host:27017/database?replicaSet=rs0`; \
                   percent-encode `@ : / %` in the user and the password"
                .into(),
            source: None,
        },
    }
}
