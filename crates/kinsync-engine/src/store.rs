//! Storage of users and of the event log.
//!
//! A store is deliberately simple: it loads rows, writes them with compare-and-set, and stores events. [`mod@crate::apply`] and
//! [`crate::email_ownership`] decide the content of every write, once for all stores.

use std::{collections::HashMap, fmt};

use async_trait::async_trait;
use kinsync_core::{Micros, UserId};
use serde::Serialize;
use tokio::time::Instant;

mod document_key;
pub mod embedded;
mod event_filter;
#[cfg(feature = "mongodb")]
pub mod mongo;
mod old_entries;
mod open;
mod page;
mod reload;
mod row;
mod stored_document;
mod user_entries;
mod user_filter;

pub use crate::log_entry::{LogEntry, LogSource};

pub(crate) use self::page::PageItem;
pub use self::{
    document_key::{DocumentKey, KeySet},
    event_filter::{EventFilter, EventPosition},
    old_entries::{Kinds, OldEntries, OldEntry},
    open::{Location, OpenedStore, open},
    page::Page,
    reload::{Digest, Reloaded},
    row::Row,
    stored_document::{RefusedKeys, StoredDocument},
    user_entries::{DamagedEntry, UserEntries},
    user_filter::{Selection, UserFilter},
};

/// The document that shows an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Holder {
    /// A document with this Kinde id.
    User(UserId),
    /// A document of the application without a Kinde id, by its `_id` as text, which may look like a Kinde id.
    Foreign(String),
}

impl Holder {
    /// Returns the name of the holder in an email conflict.
    pub fn name(&self) -> &str {
        match self {
            Self::User(id) => id.as_str(),
            Self::Foreign(id) => id,
        }
    }
}

/// Outcome of a compare-and-set write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The row is stored.
    Written,
    /// The row changed since it was loaded; load it and join again.
    Stale,
    /// Another document shows the address. Nothing was written.
    EmailTaken,
    /// The write of this row failed, others may have succeeded. Whether the store will take it later
    /// is not known. The reason is for a person.
    Failed(String),
    /// A rule of the store refuses this row, and will until the rule or the row changes.
    Refused(Refusal),
}

/// Why a rule of the store refuses a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Names the rule, for an operator. Contains no value of the document.
    pub reason: String,
    /// Keys that the rule names and that the document can lack. Without them the store may accept the document.
    pub keys: Vec<DocumentKey>,
}

impl<T: Into<String>> From<T> for Refusal {
    fn from(reason: T) -> Self {
        Self { reason: reason.into(), keys: Vec::new() }
    }
}

/// A record of kinsync, such as a lease, a checkpoint or the list of runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Saved {
    /// Value.
    pub value: serde_json::Value,
    /// Revision. Increases by one with each write; never 0.
    pub revision: i64,
}

/// Estimated numbers of stored items. Cheap to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Users that are not deleted.
    pub live_users: u64,
    /// Tombstones.
    pub deleted_users: u64,
    /// Events in the log.
    pub events: u64,
}

/// Loads rows of named users. Such a call may fail because of one of them, as may the two below.
pub(crate) const LOAD_USERS: &str = "load users";
/// Writes rows.
pub(crate) const WRITE_USERS: &str = "write users";
/// Logs events.
pub(crate) const LOG_EVENTS: &str = "log events";

/// Failures of a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Transient: unreachable, slow, not primary, or out of space. The outcome is unknown. Every write is compare-and-set,
    /// so a repetition is safe.
    #[error("the store is unavailable; it failed to {doing}")]
    Unavailable {
        /// Failed operation.
        doing: &'static str,
        /// Cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Permanent until an operator changes something.
    #[error("the store refused to {doing}: {hint}")]
    Refused {
        /// Failed operation.
        doing: &'static str,
        /// Next step for the operator.
        hint: String,
        /// Cause.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl Error {
    /// Returns whether the same call may succeed later without a change by an operator.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Returns whether the failure may concern one of the users or events of the call. Any other call, such as one about
    /// kinsync's own records, fails for all of them.
    pub(crate) fn may_concern_one_user(&self) -> bool {
        let (Self::Unavailable { doing, .. } | Self::Refused { doing, .. }) = self;
        [LOAD_USERS, WRITE_USERS, LOG_EVENTS].contains(doing)
    }
}

/// Storage of users and of the event log. Cancelling a future leaves the outcome unknown, but never writes half a row.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync {
    /// Loads the rows of these users, in the same order; `None` for users that are not stored.
    async fn load(&self, ids: &[UserId]) -> Result<Vec<Option<Row>>, Error>;

    /// Loads the rows of these users in the same order, and leaves out those that still have the given digest: they are not decoded
    /// again. Each id must be given once. By default no user has a digest.
    async fn reload(&self, users: &[(UserId, Option<Digest>)]) -> Result<Vec<Reloaded<Row>>, Error> {
        let ids: Vec<UserId> = users.iter().map(|(id, _)| id.clone()).collect();
        let rows = self.load(&ids).await?.into_iter();
        Ok(rows.map(|row| row.map_or(Reloaded::Absent, |row| Reloaded::Loaded(row, None))).collect())
    }

    /// Loads rows to be written, in the same order: a row of revision 0 for a user that is not stored, with what is known of
    /// the user nevertheless.
    async fn load_to_write(&self, ids: &[UserId]) -> Result<Vec<Row>, Error> {
        let rows = self.load(ids).await?;
        Ok(ids.iter().zip(rows).map(|(id, row)| row.unwrap_or_else(|| Row::unknown(id.clone()))).collect())
    }

    /// Writes each row, without its [`Row::refused`] keys, if the stored revision is still `row.revision` (0: not stored yet), as
    /// revision `row.revision + 1`. One row is one atomic step; rows do not depend on each other.
    /// Acknowledged durably (majority). Outcomes are in the order of the rows.
    async fn write(&self, rows: &[Row]) -> Result<Vec<Outcome>, Error>;

    /// Returns rows with refused keys, after this id and in the order of their ids.
    async fn with_refused_keys(&self, _after: Option<&UserId>, _limit: usize) -> Result<Vec<Row>, Error> {
        Ok(Vec::new())
    }

    /// Returns the number of rows with refused keys.
    async fn count_refused_keys(&self) -> Result<u64, Error> {
        Ok(0)
    }

    /// Returns the live rows with one of these newest addresses, shown or in a conflict, in the form of
    /// [`Row::claimed_email`].
    async fn claimants(&self, emails: &[String]) -> Result<Vec<Row>, Error>;

    /// Returns the documents that show these addresses, including documents that kinsync did not write.
    async fn email_holders(&self, emails: &[String]) -> Result<HashMap<String, Holder>, Error>;

    /// Returns rows with an email conflict, after this id and in the order of their ids. A store without documents of an
    /// application may return none: kinsync's own writes record pending addresses.
    async fn conflicted(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, Error>;

    /// Links the only document of the application that shows the address of this row to the user: the document gets
    /// kinsync's fields and keeps its own, and the document that kinsync created is deleted. One atomic step, and only if
    /// both documents are unchanged.
    ///
    /// The caller ensures that Kinde reports the address as verified. Returns [`Outcome::EmailTaken`], and writes nothing,
    /// if no such document or several exist, if the document to delete contains fields of the application, or if linking
    /// is disabled.
    async fn link(&self, row: &Row) -> Result<Outcome, Error>;

    /// Returns at most `limit` rows with pending email resolutions, after this id and in the order of their ids.
    async fn pending_emails(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, Error>;

    /// Appends entries to the log and skips known ids. Acknowledged durably (majority). Returns the positions of those with an id
    /// that the log has already, ascending.
    async fn log(&self, entries: &[LogEntry]) -> Result<Vec<usize>, Error>;

    /// Lists entries of the log, ordered by `received_at`.
    async fn events(&self, filter: &EventFilter) -> Result<Page<LogEntry>, Error>;

    /// Lists the entries of the users after `after`, up to and including `until`, in the order of the users. Returns at most
    /// `limit` entries, and fewer if they are long: all of a user or, of a [`UserEntries::large`] one, none.
    async fn user_entries(
        &self,
        after: &str,
        until: Option<&str>,
        limit: usize,
    ) -> Result<UserEntries, Error>;

    /// Replaces the entries with these ids. An entry that is not in the log is left out. Acknowledged durably (majority).
    async fn replace_entries(&self, entries: &[LogEntry]) -> Result<(), Error>;

    /// Lists entries without their content, also damaged ones. Reads an index.
    async fn old_entries(&self, filter: &OldEntries, limit: usize) -> Result<Vec<OldEntry>, Error>;

    /// Removes entries by id. Acknowledged durably (majority).
    async fn remove_entries(&self, ids: &[String]) -> Result<(), Error>;

    /// Lists users that were deleted before this time and are not erased, after this id and in the order of their ids.
    async fn deleted_before(
        &self,
        at: Micros,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, Error>;

    /// Returns the top-level fields of the application in the document of a user, also those that contain keys of kinsync.
    async fn application_fields(&self, _user: &UserId) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    /// Removes the fields of the application from the document of a user. Returns why the database refuses it.
    async fn erase_application_fields(&self, _user: &UserId) -> Result<Option<String>, Error> {
        Ok(None)
    }

    /// Makes the files of the store contain nothing that was removed, where the store can.
    async fn scrub(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Counts the entries of a user. Reads an index.
    async fn count_user_entries(&self, user: &str) -> Result<u64, Error>;

    /// Counts the entries that this filter lists on all pages. Reads an index if the filter is a time, or a time with one of user,
    /// type and source.
    async fn count_events(&self, filter: &EventFilter) -> Result<u64, Error> {
        let (mut count, mut filter) = (0, filter.clone());
        loop {
            let page = self.events(&filter).await?;
            count += (page.items.len() + page.undecodable.len()) as u64;
            match page.next {
                Some(next) => filter.after = Some(next),
                None => return Ok(count),
            }
        }
    }

    /// Returns one entry of the log; `None` also if it is damaged.
    async fn event(&self, id: &str) -> Result<Option<LogEntry>, Error>;

    /// Lists users.
    async fn users(&self, filter: &UserFilter) -> Result<Page<Row>, Error>;

    /// Lists ids of users, including deleted ones, in order, after this id. Cheaper than [`Store::users`].
    async fn ids(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, Error>;

    /// Lists users with a reference to one of these organizations, roles and permissions, after this id and in
    /// the order of their ids. Reads an index, never all users.
    async fn referring(
        &self,
        ids: &[String],
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, Error>;

    /// Counts the live users that are members of these organizations, by code. An organization without members may be absent.
    /// Reads an index.
    async fn count_members(&self, codes: &[String]) -> Result<HashMap<String, u64>, Error>;

    /// Returns a text that identifies the collections of organizations, roles and memberships that this store writes, and the
    /// names of their keys; `None` without any.
    fn derived_collections(&self) -> Option<String> {
        None
    }

    /// Returns whether the store has a collection of memberships.
    fn shows_memberships(&self) -> bool {
        false
    }

    /// Makes the documents of these organizations and roles, by code or id, show their records. Of a permission it writes the
    /// roles that give it. Does nothing without such collections. A document that the database refuses is logged and is no
    /// failure.
    async fn show_directory(&self, _ids: &[String], _now: Micros) -> Result<(), Error> {
        Ok(())
    }

    /// Makes the documents of the memberships of these users show their rows, and removes the marks
    /// [`Row::has_unshown_memberships`] of rows that are shown. Does nothing without such a collection. A document that the
    /// database refuses is logged and is no failure: the mark stays.
    async fn show_memberships(&self, _users: &[UserId]) -> Result<(), Error> {
        Ok(())
    }

    /// Returns marked users, after this id and in the order of their ids.
    async fn unshown_memberships(
        &self,
        _after: Option<&UserId>,
        _limit: usize,
    ) -> Result<Vec<UserId>, Error> {
        Ok(Vec::new())
    }

    /// Reads a record of kinsync, as acknowledged by a majority.
    async fn state(&self, key: &str) -> Result<Option<Saved>, Error>;

    /// Writes a record of kinsync if its revision is still `expected` (0: the record does not exist), as revision
    /// `expected + 1`. Acknowledged durably (majority). Returns `false`, and writes nothing, after a concurrent write.
    async fn put_state(&self, key: &str, value: &serde_json::Value, expected: i64) -> Result<bool, Error>;

    /// Reads records of kinsync, in the order of the keys.
    async fn states(&self, keys: &[String]) -> Result<Vec<Option<Saved>>, Error>;

    /// Lists records of kinsync with a key that begins with `prefix`, in the order of their keys, after the key `after`.
    async fn list_states(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Saved)>, Error>;

    /// Lists records of kinsync that are marked: their value is an object with `"due": true`. In the order of their keys, and
    /// by an index, after the key `after`: a poll without marked records costs nothing.
    async fn due_states(&self, after: Option<&str>, limit: usize) -> Result<Vec<(String, Saved)>, Error>;

    /// Returns the number of records of kinsync with a key that begins with `prefix`.
    async fn count_states(&self, prefix: &str) -> Result<u64, Error>;

    /// Removes records of kinsync that still have this revision, by key. Acknowledged durably (majority).
    async fn remove_states(&self, records: &[(String, i64)]) -> Result<(), Error>;

    /// Returns estimated numbers of stored items.
    async fn counts(&self) -> Result<Counts, Error>;

    /// Fails unless the store responds and accepts a write.
    async fn ping(&self) -> Result<(), Error>;

    /// Returns what conflicts with the documents that kinsync writes, and creates indexes that were missing. Meant to run
    /// regularly: an application may change indexes and validators at any time.
    async fn examine(&self) -> Result<Vec<StoreProblem>, Error> {
        Ok(Vec::new())
    }

    /// Returns whether [`Store::link`] also finds a document that shows the address in another case.
    fn links_in_any_case(&self) -> bool {
        false
    }

    /// Returns whether the unique index on the address exists. Without it the caller has to look for documents with the
    /// same address.
    fn enforces_unique_emails(&self) -> bool {
        true
    }

    /// Returns whether the store accepts a write of this row. Changes nothing that is read, not even the revision.
    async fn accepts_write_of(&self, _row: &Row) -> Result<bool, Error> {
        self.ping().await.map(|()| true)
    }
}

/// Returns whether a record of kinsync is marked.
fn is_due(value: &serde_json::Value) -> bool {
    value.get("due") == Some(&serde_json::Value::Bool(true))
}

/// Returns the key that sorts after every key with this prefix.
fn end_of(prefix: &str) -> String {
    format!("{prefix}{}", char::MAX)
}

/// How serious a problem of the store is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// A value of some users may be left out of their documents.
    Warning,
    /// Users may not be stored, or a guarantee does not hold.
    Error,
}

/// A rule of the database, or a state of the server, that conflicts with what kinsync writes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreProblem {
    /// The subject, such as `index username_1` or `validator`.
    pub subject: String,
    /// How serious it is.
    pub severity: Severity,
    /// The conflict, as a sentence without a full stop. Contains no value of a document, but may name documents.
    pub what: String,
    /// The command or setting that resolves it.
    pub fix: String,
}

/// Measures one operation of a store.
async fn timed<T>(store: &'static str, op: &'static str, work: impl Future<Output = T>) -> T {
    let started = Instant::now();
    let done = work.await;
    metrics::histogram!("kinsync_store_call_duration_seconds", "store" => store, "op" => op)
        .record(started.elapsed());
    done
}
