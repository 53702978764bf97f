//! Stores users and events in one SQLite file, so that the binary runs without a database server.
//!
//! One process writes; a lock file keeps out a second one. Other processes may read concurrently
//! ([`EmbeddedStore::open_read_only`]). A write returns after its transaction is on disk.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use futures_util::future::select_all;
use kinsync_core::{Micros, UserId};

use self::worker::Worker;
use super::{
    Counts, Error, EventFilter, Holder, LOAD_USERS, LOG_EVENTS, LogEntry, OldEntries, OldEntry, Outcome,
    Page, Row, Saved, Store, UserEntries, UserFilter, WRITE_USERS, timed,
};
use crate::thread::Panicked;

mod events;
mod file;
mod list;
mod state;
mod users;
mod worker;

/// A store in one SQLite file.
#[derive(Debug)]
pub struct EmbeddedStore {
    reader: Worker,
    /// `None` if the file is open for reading only.
    writer: Option<Worker>,
    folder: PathBuf,
}

impl EmbeddedStore {
    /// Opens `kinsync.sqlite` in this folder, and creates the folder and the file if missing. Blocks.
    ///
    /// # Errors
    /// [`Error::Refused`] if another process has the file open for writing, or a newer kinsync wrote it.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let (lock, connection) = file::for_writing(folder)?;
        let writer = Worker::start("store-writer", "BEGIN IMMEDIATE", connection, Some(lock))?;
        let reader = Worker::start("store-reader", "BEGIN", file::for_reading(folder)?, None)?;
        Ok(Self { reader, writer: Some(writer), folder: folder.to_owned() })
    }

    /// Whether this folder has a store.
    pub fn exists(folder: &Path) -> bool {
        file::path(folder).is_file()
    }

    /// Opens the file for reading, also while another process writes it. Every write is refused. Blocks.
    pub fn open_read_only(folder: &Path) -> Result<Self, Error> {
        let reader = Worker::start("store-reader", "BEGIN", file::for_reading(folder)?, None)?;
        Ok(Self { reader, writer: None, folder: folder.to_owned() })
    }

    /// Waits for the end of a thread. Returns its panic, after which every call of the thread fails; `None`: it was dropped.
    pub(crate) fn panicked(&self) -> impl Future<Output = Option<Panicked>> + Send + use<> {
        let threads = [Some(&self.reader), self.writer.as_ref()].into_iter().flatten().map(Worker::panicked);
        let ended = select_all(threads.map(Box::pin).collect::<Vec<_>>());
        async move { ended.await.0 }
    }

    /// Panics in a thread.
    #[cfg(test)]
    pub(crate) async fn inject_panic(&self, is_writer: bool) {
        let worker = if is_writer { self.writer.as_ref().expect("open for writing") } else { &self.reader };
        let ended = worker.call("panic", |_| -> rusqlite::Result<()> { panic!("injected") }).await;
        assert!(ended.is_err());
    }

    fn writer(&self, doing: &'static str) -> Result<&Worker, Error> {
        let hint = || "the file is open for reading only; stop the process that writes it first".to_owned();
        self.writer.as_ref().ok_or_else(|| Error::Refused { doing, hint: hint(), source: None })
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn load(&self, ids: &[UserId]) -> Result<Vec<Option<Row>>, Error> {
        let ids = ids.to_vec();
        let work = self.reader.call(LOAD_USERS, move |sqlite| users::load(sqlite, &ids));
        timed("embedded", "load", work).await
    }

    async fn write(&self, rows: &[Row]) -> Result<Vec<Outcome>, Error> {
        let rows = rows.to_vec();
        let writer = self.writer(WRITE_USERS)?;
        let work = writer.call(WRITE_USERS, move |sqlite| users::write(sqlite, &rows));
        timed("embedded", "write", work).await
    }

    async fn claimants(&self, emails: &[String]) -> Result<Vec<Row>, Error> {
        let emails = emails.to_vec();
        let doing = "find the claimants of an address";
        let work = self.reader.call(doing, move |sqlite| users::claimants(sqlite, &emails));
        timed("embedded", "claimants", work).await
    }

    async fn email_holders(&self, emails: &[String]) -> Result<HashMap<String, Holder>, Error> {
        let emails = emails.to_vec();
        let doing = "find the documents that show an address";
        let work = self.reader.call(doing, move |sqlite| users::email_holders(sqlite, emails));
        timed("embedded", "email_holders", work).await
    }

    /// Only kinsync inserts rows into this file.
    async fn conflicted(&self, _: Option<&UserId>, _: usize) -> Result<Vec<Row>, Error> {
        Ok(Vec::new())
    }

    /// Only kinsync inserts rows into this file.
    async fn link(&self, _: &Row) -> Result<Outcome, Error> {
        Ok(Outcome::EmailTaken)
    }

    async fn pending_emails(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, Error> {
        let doing = "list pending email resolutions";
        let after = after.map_or_else(String::new, ToString::to_string);
        let work = self.reader.call(doing, move |sqlite| users::pending_emails(sqlite, &after, limit));
        timed("embedded", "pending_emails", work).await
    }

    async fn log(&self, events: &[LogEntry]) -> Result<Vec<usize>, Error> {
        let events = events.to_vec();
        let writer = self.writer(LOG_EVENTS)?;
        let work = writer.call(LOG_EVENTS, move |sqlite| events::append(sqlite, &events));
        timed("embedded", "log", work).await
    }

    async fn events(&self, filter: &EventFilter) -> Result<Page<LogEntry>, Error> {
        let filter = filter.clone();
        let work = self.reader.call("list events", move |sqlite| events::list(sqlite, &filter));
        timed("embedded", "events", work).await
    }

    async fn count_events(&self, filter: &EventFilter) -> Result<u64, Error> {
        let filter = filter.clone();
        let count = self.reader.call("count events", move |sqlite| events::count(sqlite, &filter));
        timed("embedded", "count_events", count).await
    }

    async fn user_entries(
        &self,
        after: &str,
        until: Option<&str>,
        limit: usize,
    ) -> Result<UserEntries, Error> {
        let (after, until) = (after.to_owned(), until.map(ToOwned::to_owned));
        let read =
            move |sqlite: &rusqlite::Connection| events::of_users(sqlite, &after, until.as_deref(), limit);
        timed("embedded", "user_entries", self.reader.call("read the entries of users", read)).await
    }

    async fn replace_entries(&self, entries: &[LogEntry]) -> Result<(), Error> {
        let entries = entries.to_vec();
        let writer = self.writer("replace entries")?;
        let work = writer.call("replace entries", move |sqlite| events::replace(sqlite, &entries));
        timed("embedded", "replace_entries", work).await
    }

    async fn old_entries(&self, filter: &OldEntries, limit: usize) -> Result<Vec<OldEntry>, Error> {
        let filter = filter.clone();
        let work = self.reader.call("list old entries", move |sqlite| events::old(sqlite, &filter, limit));
        timed("embedded", "old_entries", work).await
    }

    async fn remove_entries(&self, ids: &[String]) -> Result<(), Error> {
        let ids = ids.to_vec();
        let writer = self.writer("remove entries")?;
        let work = writer.call("remove entries", move |sqlite| events::remove(sqlite, &ids));
        timed("embedded", "remove_entries", work).await
    }

    async fn deleted_before(
        &self,
        at: Micros,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, Error> {
        let after = after.map_or_else(String::new, ToString::to_string);
        let list = move |sqlite: &rusqlite::Connection| users::deleted_before(sqlite, at, &after, limit);
        timed("embedded", "deleted_before", self.reader.call("list deleted users", list)).await
    }

    /// Moves the write-ahead log into the file. What is removed is overwritten there (`secure_delete`).
    async fn scrub(&self) -> Result<(), Error> {
        self.writer("empty the write-ahead log")?;
        let folder = self.folder.clone();
        let done = tokio::task::spawn_blocking(move || file::checkpoint(&folder)).await;
        done.unwrap_or_else(|_| Ok(()))
    }

    async fn count_user_entries(&self, user: &str) -> Result<u64, Error> {
        let user = user.to_owned();
        let count = move |sqlite: &rusqlite::Connection| events::count_of(sqlite, &user);
        let count = self.reader.call("count the entries of a user", count);
        timed("embedded", "count_user_entries", count).await
    }

    async fn event(&self, event_id: &str) -> Result<Option<LogEntry>, Error> {
        let id = event_id.to_owned();
        let work = self.reader.call("read an event", move |sqlite| events::one(sqlite, &id));
        timed("embedded", "event", work).await
    }

    async fn users(&self, filter: &UserFilter) -> Result<Page<Row>, Error> {
        let filter = filter.clone();
        let work = self.reader.call("list users", move |sqlite| list::list(sqlite, &filter));
        timed("embedded", "users", work).await
    }

    async fn ids(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, Error> {
        let after = after.cloned();
        let work = self.reader.call("list ids", move |sqlite| users::ids(sqlite, after.as_ref(), limit));
        timed("embedded", "ids", work).await
    }

    async fn referring(
        &self,
        ids: &[String],
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, Error> {
        let (ids, after) = (ids.to_vec(), after.cloned());
        let list = move |sqlite: &rusqlite::Connection| users::referring(sqlite, &ids, after.as_ref(), limit);
        timed("embedded", "referring", self.reader.call("list users of an organization", list)).await
    }

    async fn count_members(&self, codes: &[String]) -> Result<HashMap<String, u64>, Error> {
        let codes = codes.to_vec();
        let count = move |sqlite: &rusqlite::Connection| users::count_members(sqlite, codes);
        timed("embedded", "count_members", self.reader.call("count the members of organizations", count))
            .await
    }

    async fn state(&self, key: &str) -> Result<Option<Saved>, Error> {
        let key = key.to_owned();
        let work = self.reader.call("read a record", move |sqlite| state::get(sqlite, &key));
        timed("embedded", "state", work).await
    }

    async fn put_state(&self, key: &str, value: &serde_json::Value, expected: i64) -> Result<bool, Error> {
        let (key, value) = (key.to_owned(), value.clone());
        let writer = self.writer("write a record")?;
        let work = writer.call("write a record", move |sqlite| state::put(sqlite, &key, &value, expected));
        timed("embedded", "put_state", work).await
    }

    async fn states(&self, keys: &[String]) -> Result<Vec<Option<Saved>>, Error> {
        let keys = keys.to_vec();
        let read =
            move |sqlite: &rusqlite::Connection| keys.iter().map(|key| state::get(sqlite, key)).collect();
        timed("embedded", "states", self.reader.call("read records", read)).await
    }

    async fn list_states(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Saved)>, Error> {
        let (prefix, after) = (prefix.to_owned(), after.map(ToOwned::to_owned));
        let list = move |sqlite: &rusqlite::Connection| state::list(sqlite, &prefix, after.as_deref(), limit);
        timed("embedded", "list_states", self.reader.call("list records", list)).await
    }

    async fn due_states(&self, after: Option<&str>, limit: usize) -> Result<Vec<(String, Saved)>, Error> {
        let after = after.map(ToOwned::to_owned);
        let list = move |sqlite: &rusqlite::Connection| state::due(sqlite, after.as_deref(), limit);
        timed("embedded", "due_states", self.reader.call("list marked records", list)).await
    }

    async fn count_states(&self, prefix: &str) -> Result<u64, Error> {
        let prefix = prefix.to_owned();
        let count = move |sqlite: &rusqlite::Connection| state::count(sqlite, &prefix);
        timed("embedded", "count_states", self.reader.call("count records", count)).await
    }

    async fn remove_states(&self, records: &[(String, i64)]) -> Result<(), Error> {
        let records = records.to_vec();
        let writer = self.writer("remove records")?;
        let work = writer.call("remove records", move |sqlite| state::remove(sqlite, &records));
        timed("embedded", "remove_states", work).await
    }

    async fn counts(&self) -> Result<Counts, Error> {
        let work = self.reader.call("count users and events", users::counts);
        timed("embedded", "counts", work).await
    }

    async fn ping(&self) -> Result<(), Error> {
        let writer = self.writer("write a ping")?;
        timed("embedded", "ping", writer.call("write a ping", file::touch)).await
    }
}
