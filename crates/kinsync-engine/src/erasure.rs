//! Erases the personal data of deleted users: from the rows and documents, the event log, the queue, the dead letters, the audit
//! log, and the caches of all processes.
//!
//! An erasure is a state: [`UserState::erased`] absorbs every other state in a join, so a late event, a scan, a token or a rebuild
//! adds nothing to it. It is stored as an entry of the log, in the row and in the record of the deletion. The entries of the user
//! become markers that keep the id, the type, the times and a hash of the payload.
//!
//! Kinde remains the source: a user that is not deleted cannot be erased, because the next scan or request would store the user
//! again.
//!
//! Every step can be repeated. The record of an erasure in progress comes first and goes last, so that any process continues an
//! interrupted one. All processes erase the user from their own queues, and one erases everything once more after ten minutes and after
//! two hours: a process may have read something before the erasure and logged it afterwards.

mod automatic;
pub(crate) mod entries;
mod record;
pub(crate) mod subjects;
mod task;

use std::{collections::BTreeSet, sync::Arc};

use kinsync_core::{Micros, UserId, UserState, Version};
use serde::Serialize;
use tokio::sync::broadcast;

#[cfg(any(feature = "redis", feature = "rabbitmq"))]
pub(crate) use self::record::SETTLED_AFTER;
use self::record::{InProgress, Reason};
pub(crate) use self::{
    automatic::{Automatic, LEASE},
    record::ErasedUsers,
};
pub use self::{
    entries::erase_entries,
    record::{ApplicationFields, keys},
    subjects::Subjects,
};
use crate::{
    apply,
    audit::AuditLog,
    clock::Clock,
    log_entry::{LogEntry, LogSource, kind},
    queue::{self, Matcher, Queue, Search},
    refused_users,
    store::{self, Row, Store},
};

/// Erased users for which a cache may not have looked yet.
const UNREAD: usize = 1024;

/// Whether an erasure changes anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Reports what would be erased.
    Dry,
    /// Erases it.
    Erase,
}

/// What an erasure found, or would find.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether the users were erased before.
    pub was_erased: bool,
    /// Fields of the state.
    pub fields: BTreeSet<String>,
    /// Entries of the event log about the users.
    pub entries: u64,
    /// Entries of the event log about no user that name the id or an address.
    pub other_entries: u64,
    /// Deliveries in the queue of this process.
    pub queued: u64,
    /// Dead letters of this process.
    pub dead_letters: u64,
    /// Records of the audit log about reads, removed, and about actions, in which texts beside the id are replaced.
    pub audit_records: u64,
    /// Top-level fields of the application in the documents.
    pub application_fields: BTreeSet<String>,
    /// Why documents still show personal data: a rule of the database refuses them without it.
    pub refused: Option<String>,
}

/// Why a user was not erased.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The user is not deleted.
    #[error(
        "the user is not deleted: delete the user in Kinde first, and run the command again when kinsync has stored the deletion \
         (`kinsync users explain {user}` shows it)"
    )]
    NotDeleted {
        /// The user.
        user: UserId,
    },
    /// The store failed. A repetition continues.
    #[error("the erasure is not complete; it continues in a moment, or run it again")]
    Store(#[from] store::Error),
    /// The queue failed. A repetition continues.
    #[error("the erasure is not complete; it continues in a moment, or run it again")]
    Queue(#[from] queue::Error),
}

/// Erases users. Clones share everything.
#[derive(Clone, Debug)]
pub struct Eraser {
    store: Arc<dyn Store>,
    queue: Arc<dyn Queue>,
    clock: Clock,
    erased: broadcast::Sender<UserId>,
}

/// A user to erase, with what is known before.
struct Known {
    user: UserId,
    state: UserState,
    deletion: Version,
}

impl Eraser {
    /// Returns an eraser of users in this store, and in this queue of the process.
    pub fn new(store: Arc<dyn Store>, queue: Arc<dyn Queue>, clock: Clock) -> Self {
        Self { store, queue, clock, erased: broadcast::Sender::new(UNREAD) }
    }

    /// Returns the users that any process erases, for caches of this process.
    pub fn subscribe(&self) -> broadcast::Receiver<UserId> {
        self.erased.subscribe()
    }

    /// Erases a deleted user. Cancel safe: another process, or a repetition, continues.
    ///
    /// # Errors
    /// [`Error::NotDeleted`] if the user is not deleted. Else the store or the queue failed.
    pub async fn erase(
        &self,
        user: &UserId,
        mode: Mode,
        application_fields: ApplicationFields,
    ) -> Result<Report, Error> {
        let known = self.known(user).await?;
        match mode {
            Mode::Dry => self.look(&known, application_fields).await,
            Mode::Erase => {
                self.erase_all(vec![known], application_fields, Reason::Requested, self.clock.now()).await
            }
        }
    }

    /// Loads what is known of a deleted user.
    async fn known(&self, user: &UserId) -> Result<Known, Error> {
        let ids = std::slice::from_ref(user);
        let row = self.store.load_to_write(ids).await?.pop();
        let refused = refused_users::of(&*self.store, ids).await?.pop().flatten();
        let state = row.map(|row| row.state).unwrap_or_default();
        let state = state.join(refused.map(|refused| refused.state).unwrap_or_default());
        match state.deleted.clone().filter(|_| !state.is_live()) {
            Some(deletion) => Ok(Known { user: user.clone(), state, deletion }),
            None => Err(Error::NotDeleted { user: user.clone() }),
        }
    }

    /// Reports what an erasure would find.
    async fn look(&self, known: &Known, application_fields: ApplicationFields) -> Result<Report, Error> {
        let mut report = Report::of(&known.state);
        let store = &*self.store;
        let mut addresses = entries::addresses_of(store, &known.user).await?;
        addresses.extend(subjects::addresses(&known.state));
        let subjects = InProgress::new(addresses, application_fields, self.clock.now()).subjects(&known.user);
        (report.entries, report.other_entries) = entries::count(store, &known.user, &subjects).await?;
        report.add(&self.in_queue(&subjects, Search::Count).await?);
        report.audit_records = AuditLog::default().count(store, &subjects).await?;
        if application_fields == ApplicationFields::Erase {
            report.application_fields = store.application_fields(&known.user).await?.into_iter().collect();
        }
        Ok(report)
    }

    /// Erases users. What concerns no single one of them is read once for all. `now` identifies the request.
    async fn erase_all(
        &self,
        users: Vec<Known>,
        application_fields: ApplicationFields,
        reason: Reason,
        now: Micros,
    ) -> Result<Report, Error> {
        let store = &*self.store;
        let (mut report, mut subjects, mut begun) = (Report::default(), Subjects::default(), Vec::new());
        for known in users {
            // 1. Before anything is erased: the addresses are not known afterwards.
            let mut addresses = entries::addresses_of(store, &known.user).await?;
            addresses.extend(subjects::addresses(&known.state));
            let progress = InProgress::new(addresses, application_fields, now);
            let Some(progress) = record::begin(store, &known.user, progress, reason).await? else { continue };
            subjects.add(known.user.clone(), progress.addresses.iter().cloned());
            // 2. The log, before the row that it explains.
            let state = UserState::erased(known.deletion.clone());
            store
                .log(&[LogEntry::of_state(&known.user, kind::ERASURE, LogSource::Kinsync, &state, now)])
                .await?;
            // 3. The row. From here on nothing is added to the user.
            let refused = self.erase_row(&known, now).await?;
            // 4. What was logged of the user.
            let mut of_user = Report { refused, ..Report::of(&known.state) };
            of_user.entries = entries::erase_entries(store, &known.user, now).await?;
            if progress.application_fields == ApplicationFields::Erase {
                of_user.erase_fields(store, &known.user, &progress).await?;
            }
            begun.push((known.user, progress, of_user.refused.is_none()));
            report.join(of_user);
        }
        if begun.is_empty() {
            return Ok(report);
        }
        // 5. What concerns no single user.
        let found = self.in_queue(&subjects, Search::Remove).await;
        report.other_entries = entries::erase_others(store, &subjects, now).await?;
        report.audit_records = AuditLog::default().erase(store, &subjects).await?;
        store.scrub().await?;
        // Not before: a queue that cannot be searched must not keep the rest.
        report.add(&found?);
        for (user, progress, is_complete) in &begun {
            // No cache of this process reads it.
            _ = self.erased.send(user.clone());
            if *is_complete {
                record::complete(store, user, progress, now).await?;
            }
        }
        metrics::counter!("kinsync_users_erased_total").increment(begun.len() as u64);
        Ok(report)
    }

    /// Erases the row, and the record of what a rule of the database refuses. Returns why the document still shows personal data.
    async fn erase_row(&self, known: &Known, now: Micros) -> Result<Option<String>, Error> {
        let store = &*self.store;
        let applied = apply::erase(store, &known.user, known.deletion.clone(), now).await?;
        let ids = std::slice::from_ref(&known.user);
        let row: Option<Row> = store.load(ids).await?.pop().flatten();
        let Some(row) = row else {
            // The record of the deletion contains the erasure, and there is no document.
            refused_users::remove_user(store, &known.user).await?;
            return Ok(None);
        };
        if row.state.erased.is_none() {
            let reasons = applied.refused.into_iter().chain(applied.failed).map(|(_, reason)| reason);
            return Ok(Some(reasons.last().unwrap_or_else(|| "the row changes continuously".to_owned())));
        }
        refused_users::remove_user(store, &known.user).await?;
        Ok(row.refused.all)
    }

    async fn in_queue(&self, subjects: &Subjects, search: Search) -> Result<queue::Matched, queue::Error> {
        let subjects = subjects.clone();
        let matcher: Matcher = Arc::new(move |scheme, payload| subjects.are_in(scheme, payload));
        self.queue.search(matcher, search).await
    }
}

impl Report {
    fn of(state: &UserState) -> Self {
        let fields = state.fields.keys().map(|field| field.key().to_owned()).collect();
        Self { was_erased: state.erased.is_some(), fields, ..Self::default() }
    }

    fn add(&mut self, found: &queue::Matched) {
        self.queued += found.queued;
        self.dead_letters += found.dead_letters;
    }

    async fn erase_fields(
        &mut self,
        store: &dyn Store,
        user: &UserId,
        progress: &InProgress,
    ) -> Result<(), store::Error> {
        if !record::awaits_fields(store, user, progress).await? {
            return Ok(());
        }
        let fields = store.application_fields(user).await?;
        match store.erase_application_fields(user).await? {
            None => {
                self.application_fields = fields.into_iter().collect();
                record::fields_are_erased(store, user, progress).await?;
            }
            Some(refusal) => self.refused = Some(refusal),
        }
        Ok(())
    }

    fn join(&mut self, other: Self) {
        self.was_erased |= other.was_erased;
        self.fields.extend(other.fields);
        self.entries += other.entries;
        self.application_fields.extend(other.application_fields);
        self.refused = other.refused.or(self.refused.take());
    }
}
