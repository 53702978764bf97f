//! A store of a process that the kernel suspends: every call waits until the process continues.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use kinsync_core::{Micros, UserId};
use kinsync_engine::internal::store::{
    Counts, Digest, Error, EventFilter, Holder, LogEntry, OldEntries, OldEntry, Outcome, Page, Reloaded, Row,
    Saved, Store, UserEntries, UserFilter,
};
use tokio::sync::watch;

pub(crate) struct Suspended {
    store: Arc<dyn Store>,
    suspension: watch::Sender<bool>,
    /// Whether the next write suspends the process.
    at_next_write: AtomicBool,
    /// Calls so far, and the one that suspends the process.
    calls: AtomicUsize,
    at_call: AtomicUsize,
}

impl fmt::Debug for Suspended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Suspended")
    }
}

impl Suspended {
    pub(crate) fn new(store: Arc<dyn Store>) -> Arc<Self> {
        let (suspension, at_next_write) = (watch::Sender::new(false), AtomicBool::new(false));
        let (calls, at_call) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        Arc::new(Self { store, suspension, at_next_write, calls, at_call })
    }

    pub(crate) fn suspend(&self) {
        self.suspension.send_replace(true);
    }

    /// Suspends the process when it writes next.
    pub(crate) fn suspend_at_write(&self) {
        self.at_next_write.store(true, Ordering::Release);
    }

    /// Suspends the process instead of the call after this number of calls.
    pub(crate) fn suspend_at_call(&self, call: usize) {
        self.at_call.store(call, Ordering::Release);
    }

    /// Resumes the process, and suspends it again instead of the call after this number of further calls.
    pub(crate) fn suspend_after(&self, calls: usize) {
        self.at_call.store(self.calls.load(Ordering::Acquire) + calls, Ordering::Release);
        self.resume();
    }

    pub(crate) async fn until_suspended(&self) {
        _ = self.suspension.subscribe().wait_for(|is_suspended| *is_suspended).await;
    }

    pub(crate) fn resume(&self) {
        self.suspension.send_replace(false);
    }

    async fn store(&self) -> &dyn Store {
        if self.calls.fetch_add(1, Ordering::AcqRel) == self.at_call.load(Ordering::Acquire) {
            self.suspend();
        }
        let mut watched = self.suspension.subscribe();
        _ = watched.wait_for(|is_suspended| !is_suspended).await;
        &*self.store
    }
}

#[async_trait]
impl Store for Suspended {
    async fn load(&self, ids: &[UserId]) -> Result<Vec<Option<Row>>, Error> {
        self.store().await.load(ids).await
    }

    async fn reload(&self, users: &[(UserId, Option<Digest>)]) -> Result<Vec<Reloaded<Row>>, Error> {
        self.store().await.reload(users).await
    }

    async fn write(&self, rows: &[Row]) -> Result<Vec<Outcome>, Error> {
        if !rows.is_empty() && self.at_next_write.swap(false, Ordering::AcqRel) {
            self.suspend();
        }
        self.store().await.write(rows).await
    }

    async fn replace_entries(&self, entries: &[LogEntry]) -> Result<(), Error> {
        self.store().await.replace_entries(entries).await
    }

    async fn old_entries(&self, filter: &OldEntries, limit: usize) -> Result<Vec<OldEntry>, Error> {
        self.store().await.old_entries(filter, limit).await
    }

    async fn remove_entries(&self, ids: &[String]) -> Result<(), Error> {
        self.store().await.remove_entries(ids).await
    }

    async fn deleted_before(
        &self,
        at: Micros,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, Error> {
        self.store().await.deleted_before(at, after, limit).await
    }

    async fn count_members(&self, codes: &[String]) -> Result<HashMap<String, u64>, Error> {
        self.store().await.count_members(codes).await
    }

    fn derived_collections(&self) -> Option<String> {
        self.store.derived_collections()
    }

    fn shows_memberships(&self) -> bool {
        self.store.shows_memberships()
    }

    async fn show_directory(&self, ids: &[String], now: Micros) -> Result<(), Error> {
        self.store().await.show_directory(ids, now).await
    }

    async fn show_memberships(&self, users: &[UserId]) -> Result<(), Error> {
        self.store().await.show_memberships(users).await
    }

    async fn unshown_memberships(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, Error> {
        self.store().await.unshown_memberships(after, limit).await
    }

    async fn claimants(&self, emails: &[String]) -> Result<Vec<Row>, Error> {
        self.store().await.claimants(emails).await
    }

    async fn email_holders(&self, emails: &[String]) -> Result<HashMap<String, Holder>, Error> {
        self.store().await.email_holders(emails).await
    }

    async fn conflicted(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, Error> {
        self.store().await.conflicted(after, limit).await
    }

    async fn link(&self, row: &Row) -> Result<Outcome, Error> {
        self.store().await.link(row).await
    }

    async fn pending_emails(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, Error> {
        self.store().await.pending_emails(after, limit).await
    }

    async fn log(&self, events: &[LogEntry]) -> Result<Vec<usize>, Error> {
        self.store().await.log(events).await
    }

    async fn events(&self, filter: &EventFilter) -> Result<Page<LogEntry>, Error> {
        self.store().await.events(filter).await
    }

    async fn count_user_entries(&self, user: &str) -> Result<u64, Error> {
        self.store().await.count_user_entries(user).await
    }

    async fn user_entries(
        &self,
        after: &str,
        until: Option<&str>,
        limit: usize,
    ) -> Result<UserEntries, Error> {
        self.store().await.user_entries(after, until, limit).await
    }

    async fn event(&self, event_id: &str) -> Result<Option<LogEntry>, Error> {
        self.store().await.event(event_id).await
    }

    async fn users(&self, filter: &UserFilter) -> Result<Page<Row>, Error> {
        self.store().await.users(filter).await
    }

    async fn ids(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, Error> {
        self.store().await.ids(after, limit).await
    }

    async fn referring(
        &self,
        ids: &[String],
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, Error> {
        self.store().await.referring(ids, after, limit).await
    }

    async fn state(&self, key: &str) -> Result<Option<Saved>, Error> {
        self.store().await.state(key).await
    }

    async fn put_state(&self, key: &str, value: &serde_json::Value, expected: i64) -> Result<bool, Error> {
        self.store().await.put_state(key, value, expected).await
    }

    async fn states(&self, keys: &[String]) -> Result<Vec<Option<Saved>>, Error> {
        self.store().await.states(keys).await
    }

    async fn list_states(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Saved)>, Error> {
        self.store().await.list_states(prefix, after, limit).await
    }

    async fn due_states(&self, after: Option<&str>, limit: usize) -> Result<Vec<(String, Saved)>, Error> {
        self.store().await.due_states(after, limit).await
    }

    async fn count_states(&self, prefix: &str) -> Result<u64, Error> {
        self.store().await.count_states(prefix).await
    }

    async fn remove_states(&self, records: &[(String, i64)]) -> Result<(), Error> {
        self.store().await.remove_states(records).await
    }

    async fn counts(&self) -> Result<Counts, Error> {
        self.store().await.counts().await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.store().await.ping().await
    }
}
