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
    hash::RandomState,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bson::RawDocumentBuf;
use kinsync_core::{Micros, UserId};
use mongodb::{Collection, Database};
use secrecy::SecretString;

pub use self::connection::{Lookup, MongoStore};
pub use self::derived::{Derived, DerivedConfig};
pub use self::inspect::{IndexFault, Server, Topology};
pub use self::kept::{KeptKey, KeptTally, REMEDIES, SearchProgress, UnwrittenSearch};
pub use self::keys::FieldMapping;
pub use self::link::{LinkByEmail, UnlinkedDocument};
pub use self::privileges::Forbidden;
use self::{call::Calls, derived::DerivedCollection, examine::LastBuild, keys::Keys, mappings::Mappings};
use super::{
    Counts, Digest, Error, EventFilter, Holder, LogEntry, OldEntries, OldEntry, Outcome, Page, Reloaded, Row,
    Saved, Store, StoreProblem, UserEntries, UserFilter, timed,
};

mod call;
mod connection;
mod decode;
mod derived;
mod encode;
mod erase;
mod examine;
mod indexes;
mod inspect;
mod kept;
mod keys;
mod link;
mod list;
mod lockouts;
mod log;
mod mappings;
mod privileges;
mod read;
mod state;
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
    /// Collections of organizations, roles and memberships. Those without an entry are not written.
    pub derived: BTreeMap<Derived, DerivedConfig>,
    /// Names of kinsync's keys in a user document.
    pub fields: FieldMapping,
    /// Values of keys of the application in documents that kinsync inserts; `{kindeId}` in a text is replaced. Under a key of
    /// kinsync, the value that is shown while Kinde has none.
    pub defaults: BTreeMap<String, serde_json::Value>,
    /// Whether the index on the email address is unique.
    pub unique_email: bool,
    /// Whether an existing document is linked to the user with its verified address.
    pub link_by_email: LinkByEmail,
    /// What happens to the address of a deleted user where a rule of the application refuses a document without one.
    pub tombstone_email: TombstoneEmail,
    /// Time limit of one call.
    pub op_timeout: Duration,
    /// Time limit of the search for a primary, unless the URI sets it.
    pub server_selection_timeout: Duration,
    /// Time limit of a connection attempt, unless the URI sets it.
    pub connect_timeout: Duration,
    /// Maximum connections, unless the URI sets it.
    pub max_pool: u32,
    /// Replaces DNS, for tests.
    #[doc(hidden)]
    pub lookup: Option<Lookup>,
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
            derived: BTreeMap::new(),
            fields: FieldMapping::default(),
            defaults: BTreeMap::new(),
            unique_email: true,
            link_by_email: LinkByEmail::Verified,
            tombstone_email: TombstoneEmail::Keep,
            op_timeout: Duration::from_secs(5),
            server_selection_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            max_pool: 16,
            lookup: None,
        }
    }
}

/// What happens to the address of a deleted user where a rule of the application, such as a non-sparse unique index, refuses
/// a document without one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TombstoneEmail {
    /// The document keeps it. Under a unique index, no other user can show it.
    #[default]
    Keep,
    /// `deleted+<Kinde id>@kinsync.invalid` replaces it.
    Placeholder,
}

/// The connected store.
#[derive(Debug)]
struct Inner {
    database: Database,
    users: Collection<RawDocumentBuf>,
    events: Collection<RawDocumentBuf>,
    state: Collection<RawDocumentBuf>,
    /// Computes digests of documents.
    hasher: RandomState,
    /// The collections of organizations, roles and memberships.
    derived: Vec<DerivedCollection>,
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
    /// Whether other documents showed the addresses of most of the last new users. `true` at the start: batches of the first
    /// scan are written concurrently.
    expects_taken: AtomicBool,
    last_build: Mutex<LastBuild>,
}

#[async_trait]
impl Store for MongoStore {
    async fn load(&self, ids: &[UserId]) -> Result<Vec<Option<Row>>, Error> {
        timed("mongo", "load", self.inner()?.load(ids)).await
    }

    async fn reload(&self, users: &[(UserId, Option<Digest>)]) -> Result<Vec<Reloaded<Row>>, Error> {
        timed("mongo", "load", self.inner()?.reload(users)).await
    }

    async fn load_to_write(&self, ids: &[UserId]) -> Result<Vec<Row>, Error> {
        timed("mongo", "load", self.inner()?.load_to_write(ids)).await
    }

    async fn write(&self, rows: &[Row]) -> Result<Vec<Outcome>, Error> {
        timed("mongo", "write", self.inner()?.write(rows)).await
    }

    async fn with_refused_keys(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, Error> {
        timed("mongo", "with_refused_keys", self.inner()?.with_refused_keys(after, limit)).await
    }

    async fn count_refused_keys(&self) -> Result<u64, Error> {
        timed("mongo", "count_refused_keys", self.inner()?.count_refused_keys()).await
    }

    async fn claimants(&self, emails: &[String]) -> Result<Vec<Row>, Error> {
        timed("mongo", "claimants", self.inner()?.claimants(emails)).await
    }

    async fn email_holders(&self, emails: &[String]) -> Result<HashMap<String, Holder>, Error> {
        timed("mongo", "email_holders", self.inner()?.email_holders(emails)).await
    }

    async fn conflicted(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, Error> {
        timed("mongo", "conflicted", self.inner()?.conflicted(after, limit)).await
    }

    async fn link(&self, row: &Row) -> Result<Outcome, Error> {
        timed("mongo", "link", Box::pin(self.inner()?.link(row))).await
    }

    async fn pending_emails(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, Error> {
        timed("mongo", "pending_emails", self.inner()?.pending_emails(after, limit)).await
    }

    async fn log(&self, events: &[LogEntry]) -> Result<Vec<usize>, Error> {
        timed("mongo", "log", self.inner()?.log(events)).await
    }

    async fn events(&self, filter: &EventFilter) -> Result<Page<LogEntry>, Error> {
        timed("mongo", "events", self.inner()?.list_events(filter)).await
    }

    async fn count_events(&self, filter: &EventFilter) -> Result<u64, Error> {
        timed("mongo", "count_events", self.inner()?.count_events(filter)).await
    }

    async fn user_entries(
        &self,
        after: &str,
        until: Option<&str>,
        limit: usize,
    ) -> Result<UserEntries, Error> {
        timed("mongo", "user_entries", self.inner()?.user_entries(after, until, limit)).await
    }

    async fn replace_entries(&self, entries: &[LogEntry]) -> Result<(), Error> {
        timed("mongo", "replace_entries", self.inner()?.replace_entries(entries)).await
    }

    async fn old_entries(&self, filter: &OldEntries, limit: usize) -> Result<Vec<OldEntry>, Error> {
        timed("mongo", "old_entries", self.inner()?.old_entries(filter, limit)).await
    }

    async fn remove_entries(&self, ids: &[String]) -> Result<(), Error> {
        timed("mongo", "remove_entries", self.inner()?.remove_entries(ids)).await
    }

    async fn deleted_before(
        &self,
        at: Micros,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, Error> {
        timed("mongo", "deleted_before", self.inner()?.deleted_before(at, after, limit)).await
    }

    async fn application_fields(&self, user: &UserId) -> Result<Vec<String>, Error> {
        timed("mongo", "application_fields", self.inner()?.application_fields(user)).await
    }

    async fn erase_application_fields(&self, user: &UserId) -> Result<Option<String>, Error> {
        timed("mongo", "erase_application_fields", self.inner()?.erase_application_fields(user)).await
    }

    async fn count_user_entries(&self, user: &str) -> Result<u64, Error> {
        timed("mongo", "count_user_entries", self.inner()?.count_user_entries(user)).await
    }

    async fn event(&self, event_id: &str) -> Result<Option<LogEntry>, Error> {
        timed("mongo", "event", self.inner()?.event(event_id)).await
    }

    async fn users(&self, filter: &UserFilter) -> Result<Page<Row>, Error> {
        timed("mongo", "users", self.inner()?.list_users(filter)).await
    }

    async fn ids(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, Error> {
        timed("mongo", "ids", self.inner()?.ids(after, limit)).await
    }

    async fn referring(
        &self,
        ids: &[String],
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, Error> {
        timed("mongo", "referring", self.inner()?.referring(ids, after, limit)).await
    }

    async fn count_members(&self, codes: &[String]) -> Result<HashMap<String, u64>, Error> {
        timed("mongo", "count_members", self.inner()?.count_members(codes)).await
    }

    fn derived_collections(&self) -> Option<String> {
        self.inner().ok()?.derived_collections()
    }

    fn shows_memberships(&self) -> bool {
        self.config().derived.get(&Derived::Memberships).is_some_and(|one| one.collection.is_some())
    }

    async fn show_directory(&self, ids: &[String], now: Micros) -> Result<(), Error> {
        timed("mongo", "show_directory", Box::pin(self.show_directory_of(ids, now))).await
    }

    async fn show_memberships(&self, users: &[UserId]) -> Result<(), Error> {
        timed("mongo", "show_memberships", Box::pin(self.show_memberships_of(users))).await
    }

    async fn unshown_memberships(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, Error> {
        timed("mongo", "unshown_memberships", self.inner()?.unshown_memberships(after, limit)).await
    }

    async fn state(&self, key: &str) -> Result<Option<Saved>, Error> {
        timed("mongo", "state", self.inner()?.saved(key)).await
    }

    async fn put_state(&self, key: &str, value: &serde_json::Value, expected: i64) -> Result<bool, Error> {
        timed("mongo", "put_state", self.inner()?.save(key, value, expected)).await
    }

    async fn states(&self, keys: &[String]) -> Result<Vec<Option<Saved>>, Error> {
        timed("mongo", "states", self.inner()?.all_saved(keys)).await
    }

    async fn list_states(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Saved)>, Error> {
        timed("mongo", "list_states", self.inner()?.list_saved(prefix, after, limit)).await
    }

    async fn due_states(&self, after: Option<&str>, limit: usize) -> Result<Vec<(String, Saved)>, Error> {
        timed("mongo", "due_states", self.inner()?.due_saved(after, limit)).await
    }

    async fn count_states(&self, prefix: &str) -> Result<u64, Error> {
        timed("mongo", "count_states", self.inner()?.count_saved(prefix)).await
    }

    async fn remove_states(&self, records: &[(String, i64)]) -> Result<(), Error> {
        timed("mongo", "remove_states", self.inner()?.remove_saved(records)).await
    }

    async fn counts(&self) -> Result<Counts, Error> {
        timed("mongo", "counts", self.inner()?.counts()).await
    }

    async fn ping(&self) -> Result<(), Error> {
        timed("mongo", "ping", self.inner()?.ping()).await
    }

    async fn examine(&self) -> Result<Vec<StoreProblem>, Error> {
        timed("mongo", "examine", self.inner()?.examine_again()).await
    }

    fn links_in_any_case(&self) -> bool {
        self.config().link_by_email == LinkByEmail::VerifiedIgnoreCase
    }

    fn enforces_unique_emails(&self) -> bool {
        let inner = self.inner().ok();
        inner.map_or(self.config().unique_email, |inner| inner.enforces_unique_emails.load(Ordering::Acquire))
    }

    async fn accepts_write_of(&self, row: &Row) -> Result<bool, Error> {
        timed("mongo", "accepts_write_of", self.inner()?.accepts_write_of(row)).await
    }
}
