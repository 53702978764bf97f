//! Where users and the event log are kept.
//!
//! A store is deliberately dumb: it loads rows, writes them when nobody else has meanwhile, and
//! keeps events. What a write should say is decided in [`crate::apply`] and [`crate::settle`],
//! once for every store.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    ops::Deref,
};

use async_trait::async_trait;
use kinsync_core::{Micros, RowMetadata, UserDocument, UserId, UserState};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

pub mod embedded;
pub mod mongo;
mod open;

pub use self::open::{OpenedStore, open};

/// One user as stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Who.
    pub id: UserId,
    /// All that is known.
    pub state: UserState,
    /// What the document shows beyond the state.
    pub metadata: RowMetadata,
    /// Grows by one with each write of kinsync; 0 before the first.
    pub revision: i64,
    /// Addresses whose owner has to be found again because of a change of this row.
    pub pending_emails: BTreeSet<String>,
}

impl Row {
    /// A user of whom nothing is known and who is not stored.
    pub fn unknown(id: UserId) -> Self {
        Self {
            id,
            state: UserState::default(),
            metadata: RowMetadata::default(),
            revision: 0,
            pending_emails: BTreeSet::new(),
        }
    }

    /// The document that an application reads.
    pub fn document(&self) -> UserDocument {
        UserDocument::new(&self.id, &self.state, &self.metadata)
    }
}

/// Who shows an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Holder {
    /// A document with this Kinde id.
    User(UserId),
    /// A document of the application's without one, by its `_id` as a person writes it: which may look like a Kinde id.
    Foreign(String),
}

impl Holder {
    /// What an email conflict says.
    pub fn name(&self) -> &str {
        match self {
            Self::User(id) => id.as_str(),
            Self::Foreign(id) => id,
        }
    }
}

/// What became of one guarded write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is stored.
    Written,
    /// Somebody else wrote the row since it was loaded: load it and join again.
    Stale,
    /// Another row shows the address that this one wants to show. Nothing was written.
    EmailTaken,
    /// The write of this row failed, others may have succeeded. Whether the store will take it later
    /// is not known. The reason is for a person.
    Failed(String),
    /// The store will never take this row. The reason is for a person.
    Rejected(String),
}

/// A verified event as the log keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoggedEvent {
    /// The signed id. Unique in the log.
    pub event_id: String,
    /// Such as `user.updated`; empty when it could not be understood.
    pub event_type: String,
    /// Of whom it speaks, if of a user.
    pub user: Option<String>,
    /// When it happened, by Kinde's clock.
    pub at: Option<Micros>,
    /// When it was received, by our clock.
    pub received_at: Micros,
    /// The scheme under which it was verified.
    pub scheme: String,
    /// The event as JSON text, as it was sent. Never evaluated.
    pub payload: String,
}

/// Which events to list: newest received first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EventFilter {
    /// Only those of this user.
    pub user: Option<String>,
    /// Only those of this type.
    pub event_type: Option<String>,
    /// Continue after this event.
    pub after: Option<String>,
    /// At most this many.
    pub limit: usize,
}

/// Which users to list: in the order of their ids.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UserFilter {
    /// Only the one who shows this address, or claims it and may not show it.
    pub email: Option<String>,
    /// Deleted users too.
    pub with_deleted: bool,
    /// Continue after this id.
    pub after: Option<String>,
    /// At most this many.
    pub limit: usize,
}

/// A page of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page<T> {
    /// The items of the page, at most as many as the filter says.
    pub items: Vec<T>,
    /// The `after` of the next page; `None` on the last one. Never inferred from the number of items: a page of which some
    /// documents cannot be decoded is shorter.
    pub next: Option<String>,
    /// Names of documents on the page that kinsync wrote and cannot decode any more.
    pub undecodable: Vec<String>,
}

impl<T> Page<T> {
    /// The page of what was read for it: one more than `limit`, if there is more. `Err`: the name of a document that cannot
    /// be decoded. `name` is what the next page starts after.
    fn new(read: Vec<Result<T, String>>, limit: usize, name: impl Fn(&T) -> String) -> Self {
        let has_more = read.len() > limit;
        let mut page = Self { items: Vec::new(), next: None, undecodable: Vec::new() };
        let mut last = None;
        for one in read.into_iter().take(limit) {
            match one {
                Ok(item) => {
                    last = Some(name(&item));
                    page.items.push(item);
                }
                Err(undecodable) => {
                    last = Some(undecodable.clone());
                    page.undecodable.push(undecodable);
                }
            }
        }
        page.next = last.filter(|_| has_more);
        page
    }
}

impl<T> Deref for Page<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<T> IntoIterator for Page<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}

/// One of kinsync's own records: a lease, a checkpoint, a list of runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Saved {
    /// What was put there.
    pub value: serde_json::Value,
    /// Grows by one with each write; never 0.
    pub revision: i64,
}

/// How much is stored. Estimates, cheap to get.
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

/// Why a store could not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It may work later: unreachable, slow, not primary, out of space. The outcome is unknown;
    /// every write is guarded, so doing it again is safe.
    #[error("the store is unavailable while it should {doing}")]
    Unavailable {
        /// What we were doing.
        doing: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It will not work until somebody changes something.
    #[error("the store refused to {doing}: {hint}")]
    Refused {
        /// What we were doing.
        doing: &'static str,
        /// What to do about it.
        hint: String,
        /// Why.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl Error {
    /// Whether the same call may succeed later without anybody's help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// Where users and the event log are kept. Cancelling a future leaves the outcome unknown, never
/// half done for one row.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync {
    /// The rows of these users, in the same order; `None` for those not stored.
    async fn load(&self, ids: &[UserId]) -> Result<Vec<Option<Row>>, Error>;

    /// Writes each row if the stored revision is still `row.revision` (0: not stored yet), as
    /// revision `row.revision + 1`. One row is one atomic step; rows do not depend on each other.
    /// Acknowledged durably (majority). Outcomes are in the order of the rows.
    async fn write(&self, rows: &[Row]) -> Result<Vec<Outcome>, Error>;

    /// The live rows whose newest email is one of these, whether they show it or not.
    async fn claimants(&self, emails: &[String]) -> Result<Vec<Row>, Error>;

    /// Whatever rows show these addresses, also such that kinsync did not make.
    async fn email_holders(&self, emails: &[String]) -> Result<HashMap<String, Holder>, Error>;

    /// Rows that were told who holds their address, after this id and in the order of their ids.
    /// Where no row comes from anybody else, there need be none: the holder marks it when it lets go.
    async fn conflicted(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<Row>, Error>;

    /// Gives this row, written before without its address, to the one row that shows the address
    /// and that an application made without a Kinde id: the application's row becomes the user's,
    /// with its own fields, and the row that kinsync made goes. One atomic step, and only if both
    /// are as they were.
    ///
    /// The caller has made sure that Kinde says the address is verified. [`Outcome::EmailTaken`]
    /// when there is no such row or more than one, when the application has written fields of its
    /// own into the row that would go, or when adoption is off: then nothing was written.
    async fn link(&self, row: &Row) -> Result<Outcome, Error>;

    /// Returns at most `limit` rows with pending email resolutions.
    async fn pending_emails(&self, limit: usize) -> Result<Vec<Row>, Error>;

    /// Appends events to the log; those whose id is there already are left out. Answers how many
    /// were new.
    async fn log(&self, events: &[LoggedEvent]) -> Result<usize, Error>;

    /// Events of the log, without their order in time being promised beyond `received_at`.
    async fn events(&self, filter: &EventFilter) -> Result<Page<LoggedEvent>, Error>;

    /// One event of the log.
    async fn event(&self, event_id: &str) -> Result<Option<LoggedEvent>, Error>;

    /// Users in the order of their ids.
    async fn users(&self, filter: &UserFilter) -> Result<Page<Row>, Error>;

    /// Ids of users, also deleted ones, in their order, after this one. Cheaper than the users.
    async fn ids(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, Error>;

    /// One of kinsync's own records, as a majority has it.
    async fn state(&self, key: &str) -> Result<Option<Saved>, Error>;

    /// Writes one of kinsync's own records if its revision is still `expected` (0: it is not there
    /// yet), as revision `expected + 1`. Acknowledged durably (majority). `false`: somebody else
    /// wrote it since, and nothing was written.
    async fn put_state(&self, key: &str, value: &serde_json::Value, expected: i64) -> Result<bool, Error>;

    /// How much is stored.
    async fn counts(&self) -> Result<Counts, Error>;

    /// Whether the store answers, and can write.
    async fn ping(&self) -> Result<(), Error>;
}

/// Measures one operation of a store.
async fn timed<T>(store: &'static str, op: &'static str, work: impl Future<Output = T>) -> T {
    let started = Instant::now();
    let done = work.await;
    metrics::histogram!("kinsync_store_seconds", "store" => store, "op" => op).record(started.elapsed());
    done
}
