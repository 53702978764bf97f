//! Derives the stored users anew from the log, and compares or replaces them.
//!
//! The row of a user is loaded before the log is read. The log contains each observation before a row does, so the
//! entries that are read contain everything that the row does. The derived state is written in place by compare-and-set at the
//! loaded revision: after a concurrent write the user is loaded and derived again. An application reads a complete document
//! at any time, and live events lose nothing.
//!
//! A rebuild discards nothing on its own: a user with a damaged entry, or with a stored value that no entry explains, is
//! reported and left as it is. [`Mode::ReplaceUnexplained`] replaces the latter too.

mod compare;
mod derive;

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kinsync_core::{Micros, UserId};
use serde::{Deserialize, Serialize};

use self::{
    compare::compared,
    derive::{Derived, Entries},
};
use crate::{
    apply,
    contention::{MAX_ROUNDS, pause},
    decode, directory,
    state_records::{self, Key},
    store::{DamagedEntry, Error, EventFilter, LogEntry, Outcome, Row, Store},
};

pub use self::compare::{Difference, DifferentField, Finding};

/// Record of the position of an interrupted rebuild.
pub(crate) const KEY: Key = Key::new("log.rebuild", "an interrupted rebuild begins again");

/// Users per page.
const USERS: usize = 2000;

/// Users that are loaded again at once: up to [`ENTRIES_OF_ONE`] entries of each are in memory.
const USERS_AGAIN: usize = 50;

/// Users that are loaded again concurrently.
const CONCURRENCY: usize = 8;

/// Entries per read.
const ENTRIES: usize = 20_000;

/// Age after which an interrupted rebuild begins again: users that it compared may differ by now.
const MAX_AGE: Duration = Duration::from_hours(6);

/// Entries per read of one user. A user may have any number of entries, and entries may be long.
const ENTRIES_OF_ONE: usize = 200;

/// What to do about a user that differs from the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Reports it.
    Verify,
    /// Replaces the stored state, unless it contains a value that no entry explains.
    Replace,
    /// Replaces the stored state. Values that no entry explains are lost.
    ReplaceUnexplained,
}

/// Result of a rebuild.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Compared users.
    pub users: u64,
    /// Entries read from the log.
    pub entries: u64,
    /// Users that differed.
    pub different: u64,
    /// Users that were written.
    pub rebuilt: u64,
    /// Damaged entries.
    pub damaged: u64,
}

impl Report {
    /// Returns whether a user still differs from the log, or an entry is damaged. Counts also what an interrupted rebuild found
    /// before this one continued it.
    pub fn is_different(&self) -> bool {
        self.different > self.rebuilt || self.damaged > 0
    }
}

/// What a rebuild reports while it runs.
#[derive(Debug)]
pub enum Event<'a> {
    /// The rebuild continues an interrupted one after this user, which compared the users in this report.
    Continues(&'a str, &'a Report),
    /// A user that differs, with what was done.
    Different(&'a Difference),
    /// A damaged entry.
    Damaged(&'a DamagedEntry),
    /// The counts so far, after a page.
    Progress(&'a Report),
}

/// Position of an interrupted rebuild.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Position {
    after: Option<String>,
    report: Report,
    mode: Option<Mode>,
    started_at: Micros,
}

impl Position {
    /// Returns whether a rebuild in this mode continues the interrupted one.
    fn is_continued_by(&self, mode: Mode, now: Micros) -> bool {
        let age = u64::try_from(now.0.saturating_sub(self.started_at.0));
        self.mode == Some(mode) && age.is_ok_and(|age| Duration::from_micros(age) <= MAX_AGE)
    }
}

/// A rebuild.
pub struct Rebuild<'a> {
    store: &'a dyn Store,
    mode: Mode,
    now: Micros,
    report: Report,
    listen: &'a mut (dyn FnMut(Event<'_>) + Send),
}

impl std::fmt::Debug for Rebuild<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rebuild")
            .field("mode", &self.mode)
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

/// A user to compare: the row, loaded before the entries were read.
struct Loaded {
    row: Row,
    entries: Entries,
}

/// The next users after an id: those with rows, and those with entries alone.
struct Page {
    loaded: Vec<Loaded>,
    without_rows: HashMap<String, Entries>,
    /// Users to be loaded again, with their entries in smaller pages.
    again: Vec<UserId>,
    /// A user with more entries than fit on a page, with or without a row.
    large: Option<UserId>,
    /// The last user of the page; `None` at the end.
    next: Option<String>,
}

impl Page {
    /// Reads up to `users` rows after this id, then the entries of their users. The rows are loaded for this page alone: a server may
    /// write others meanwhile, and a user with a row that is older than the entries is read again.
    async fn read(store: &dyn Store, after: &str, users: usize) -> Result<Self, Error> {
        let ids = store.ids(UserId::parse(after).ok().as_ref(), users).await?;
        let rows = store.load_to_write(&ids).await?;
        // No user up to this one has a row that was not loaded.
        let until = ids.last().filter(|_| ids.len() == users).map(UserId::as_str);
        let page = store.user_entries(after, until, ENTRIES).await?;
        let next = page.next.or_else(|| until.map(str::to_owned));
        let mut entries = grouped(page.entries, page.damaged);
        let (mut loaded, mut again) = (Vec::new(), Vec::new());
        for row in rows.into_iter().filter(|row| next.as_deref().is_none_or(|last| row.id.as_str() <= last)) {
            if page.large.as_deref() == Some(row.id.as_str()) {
                again.push(row.id);
            } else {
                loaded.push(Loaded { entries: entries.remove(row.id.as_str()).unwrap_or_default(), row });
            }
        }
        let large = page.large.as_deref().and_then(|user| UserId::parse(user).ok());
        Ok(Self { loaded, without_rows: entries, again, large, next })
    }

    /// Returns how many rows the next page probably needs.
    fn users_of_next(&self) -> usize {
        let users = self.loaded.len() + self.without_rows.len() + self.again.len();
        (users + users / 4).clamp(USERS / 20, USERS)
    }
}

impl<'a> Rebuild<'a> {
    /// Returns a rebuild that reports to `listen`.
    pub fn new(
        store: &'a dyn Store,
        mode: Mode,
        now: Micros,
        listen: &'a mut (dyn FnMut(Event<'_>) + Send),
    ) -> Self {
        Self { store, mode, now, report: Report::default(), listen }
    }

    /// Compares all users, page by page. A rebuild that replaces stores its position after each page, and continues one that was
    /// interrupted in the same mode and began within six hours. Cancel safe.
    ///
    /// # Errors
    /// Fails when the store fails. The next rebuild continues.
    pub async fn run(mut self) -> Result<Report, Error> {
        let is_kept = self.mode != Mode::Verify;
        let (mut after, mut started_at) = (String::new(), self.now);
        if is_kept {
            let stored: Position = state_records::load(self.store, &KEY).await?;
            let is_continued = stored.is_continued_by(self.mode, self.now);
            if let Position { after: Some(user), report, started_at: at, .. } = stored
                && is_continued
            {
                (self.listen)(Event::Continues(&user, &report));
                (after, started_at, self.report) = (user, at, report);
            }
        }
        let store = self.store;
        let mut page = Page::read(store, &after, USERS).await?;
        loop {
            let (next, users) = (page.next.clone(), page.users_of_next());
            // The database reads the next page meanwhile.
            let read_next = async {
                match &next {
                    Some(after) => Page::read(store, after, users).await.map(Some),
                    None => Ok(None),
                }
            };
            let ((), following) = tokio::try_join!(self.compare_page(page), read_next)?;
            if is_kept {
                let position = next.clone().map_or_else(Position::default, |after| Position {
                    after: Some(after),
                    report: self.report.clone(),
                    mode: Some(self.mode),
                    started_at,
                });
                state_records::change(self.store, &KEY, |known: &mut Position| known.clone_from(&position))
                    .await?;
            }
            (self.listen)(Event::Progress(&self.report));
            let Some(following) = following else { return Ok(self.report) };
            page = following;
        }
    }

    /// Compares one user.
    ///
    /// # Errors
    /// Fails when the store fails.
    pub async fn run_one(mut self, user: &UserId) -> Result<Report, Error> {
        self.again(vec![user.clone()]).await?;
        Ok(self.report)
    }

    async fn compare_page(
        &mut self,
        Page { loaded, without_rows, mut again, large, .. }: Page,
    ) -> Result<(), Error> {
        again.extend(self.compare(loaded).await?);
        again.extend(self.compare_without_rows(without_rows).await?);
        if let Some(large) = large.filter(|large| !again.contains(large)) {
            again.push(large);
        }
        for users in again.chunks(USERS_AGAIN) {
            self.again(users.to_vec()).await?;
        }
        Ok(())
    }

    /// Compares users that had no row when the rows were loaded. A row that is still missing contains nothing that the entries
    /// lack, so its entries need not be read again. Returns the users that have a row by now.
    async fn compare_without_rows(
        &mut self,
        mut entries: HashMap<String, Entries>,
    ) -> Result<Vec<UserId>, Error> {
        let ids: Vec<UserId> = entries.keys().filter_map(|user| UserId::parse(user).ok()).collect();
        let mut again = Vec::new();
        for ids in ids.chunks(USERS) {
            let (missing, stored): (Vec<Row>, Vec<Row>) =
                self.store.load_to_write(ids).await?.into_iter().partition(|row| row.revision == 0);
            again.extend(stored.into_iter().map(|row| row.id));
            let loaded = missing
                .into_iter()
                .map(|row| Loaded { entries: entries.remove(row.id.as_str()).unwrap_or_default(), row });
            again.extend(self.compare(loaded.collect()).await?);
        }
        Ok(again)
    }

    /// Loads and compares users until no concurrent write interferes.
    async fn again(&mut self, mut users: Vec<UserId>) -> Result<(), Error> {
        for round in 0..MAX_ROUNDS {
            if users.is_empty() {
                return Ok(());
            }
            pause(round).await;
            let rows = self.store.load_to_write(&users).await?;
            let this = &*self;
            let load = async |row| Ok::<_, Error>(Loaded { entries: this.entries_of(&row).await?, row });
            // One after the other, most of them would be written again before the last is read.
            let loaded = stream::iter(rows).map(load).buffered(CONCURRENCY).try_collect().await?;
            users = self.compare(loaded).await?;
        }
        Err(crate::contention::error("rebuild users"))
    }

    /// Reads the entries of a user, and joins those of all pages but the last.
    async fn entries_of(&self, row: &Row) -> Result<Entries, Error> {
        let user = Some(row.id.to_string());
        let mut filter = EventFilter { user: user.clone(), limit: ENTRIES_OF_ONE, ..EventFilter::default() };
        let mut entries = Entries::default();
        loop {
            let page = self.store.events(&filter).await?;
            entries.add_damaged(
                page.undecodable.iter().map(|id| DamagedEntry { id: id.clone(), user: user.clone() }),
            );
            entries.add(page.items);
            match page.next {
                Some(next) => filter.after = Some(next),
                None => return Ok(entries),
            }
            entries.release(row, self.latest());
        }
    }

    fn latest(&self) -> Micros {
        decode::latest(self.now, decode::FUTURE_TOLERANCE)
    }

    /// Compares users, and writes those that differ. Returns the users with a concurrent write.
    async fn compare(&mut self, loaded: Vec<Loaded>) -> Result<Vec<UserId>, Error> {
        let mut derived: Vec<(Loaded, Derived)> = Vec::with_capacity(loaded.len());
        for mut one in loaded {
            let states = one.entries.derive(&one.row, self.latest());
            // A document with a Kinde id that kinsync never wrote is no user. An id in entries that were not applied is none.
            if one.row.revision == 0 && !states.is_observed && states.unusable.is_empty() {
                self.report.entries += one.entries.count();
                continue;
            }
            derived.push((one, states));
        }
        let references = derived.iter().flat_map(|(_, derived)| derived.state.references()).collect();
        let directory = directory::load(self.store, references).await?;
        let mut differing = BTreeMap::new();
        let (mut writes, mut unwritten, mut stale) = (Vec::new(), Vec::new(), Vec::new());
        for (Loaded { row, entries }, derived) in derived {
            let derived = derived.with_directory(&row, &directory);
            let Some(difference) = compared(&row, &entries, &derived, self.latest()) else {
                self.count(&entries);
                continue;
            };
            // Retention may have replaced entries between two reads of the log.
            if difference.finding == Finding::Unexplained
                && self.entries_of(&row).await?.count() != entries.count()
            {
                stale.push(row.id);
                continue;
            }
            if difference.is_replaced(self.mode) {
                writes.push((row.clone(), derived));
            } else {
                unwritten.push((row.id.clone(), row.revision));
            }
            differing.insert(row.id.clone(), (difference, entries));
        }
        let outcomes = self.write(writes).await?;
        for user in self.written_meanwhile(unwritten).await? {
            differing.remove(&user);
            stale.push(user);
        }
        for (user, (mut difference, entries)) in differing {
            match outcomes.get(&user) {
                Some(Outcome::Stale | Outcome::EmailTaken) => {
                    stale.push(user);
                    continue;
                }
                Some(outcome) => difference.written(outcome),
                None => {}
            }
            self.count(&entries);
            self.report.different += 1;
            self.report.rebuilt += u64::from(difference.is_rebuilt);
            (self.listen)(Event::Different(&difference));
        }
        Ok(stale)
    }

    /// Returns the users whose rows do not have this revision any more. Their log was newer than the row, which is no difference.
    async fn written_meanwhile(&self, loaded: Vec<(UserId, i64)>) -> Result<Vec<UserId>, Error> {
        if loaded.is_empty() {
            return Ok(Vec::new());
        }
        let (users, revisions): (Vec<UserId>, Vec<i64>) = loaded.into_iter().unzip();
        let rows = self.store.load_to_write(&users).await?.into_iter();
        let is_written = |(row, revision): &(Row, i64)| row.revision != *revision;
        Ok(rows.zip(revisions).filter(is_written).map(|(row, _)| row.id).collect())
    }

    fn count(&mut self, entries: &Entries) {
        self.report.users += 1;
        self.report.entries += entries.count();
        self.report.damaged += entries.damaged().len() as u64;
        entries.damaged().iter().for_each(|one| (self.listen)(Event::Damaged(one)));
    }

    async fn write(&self, writes: Vec<(Row, Derived)>) -> Result<HashMap<UserId, Outcome>, Error> {
        if writes.is_empty() {
            return Ok(HashMap::new());
        }
        // A deletion of an organization may not have reached the row yet, and a lockout may be older than the log.
        let logged = writes.iter().flat_map(|(row, derived)| derived.unlogged(&row.id, self.now));
        let logged: Vec<LogEntry> = logged.collect();
        self.store.log(&logged).await?;
        let rows = writes.into_iter().map(|(row, derived)| (row, derived.state, derived.source)).collect();
        apply::restore(self.store, rows, self.now).await
    }
}

/// Groups entries by user.
fn grouped(entries: Vec<LogEntry>, damaged: Vec<DamagedEntry>) -> HashMap<String, Entries> {
    let mut grouped: HashMap<String, Entries> = HashMap::new();
    for entry in entries {
        let user = entry.user.clone().unwrap_or_default();
        grouped.entry(user).or_default().add([entry]);
    }
    for one in damaged {
        grouped.entry(one.user.clone().unwrap_or_default()).or_default().add_damaged([one]);
    }
    grouped
}
