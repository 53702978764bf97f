//! Removes old entries of the event log, after one entry for each user that contains what they say.
//!
//! The state of a user is the join of the entries, and a join may be computed in parts: the entry that replaces old ones contains
//! their join, so a rebuild derives the same state. It is stored before anything is removed, and an interruption in between leaves
//! both, which changes no join. The next removal joins it with the entries that have become old.
//!
//! Before entries of a day are removed, the figures of the day are brought up to date and kept from then on.
//!
//! Never removed: entries that cannot be read, events in the future and dead letters, and erasures.

mod rules;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use kinsync_core::{Directory, Micros, UserId, UserState};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use self::rules::{MIN_AGE, Rules};
use crate::{
    breaker::error_chain,
    clock::Clock,
    decode,
    erasure::entries::erase_logged,
    log_entry::{LogEntry, LogSource, kind},
    projections::{self, Day},
    state_records::{self, Key},
    store::{Error, EventFilter, OldEntries, Store},
    work_lease::WorkLease,
};

pub(crate) static LEASE: Key =
    Key::new("retention.lease", "two processes may remove old entries at the same time");

pub(crate) static POSITION: Key = Key::new("retention.position", "the search for old entries begins again");

/// Old entries per page.
const PAGE: usize = 1000;

/// Entries per read of one user.
const ENTRIES_OF_ONE: usize = 200;

/// Users that are read concurrently.
const CONCURRENCY: usize = 8;

/// Pause between two pages, so that events and requests go first.
const PAUSE: Duration = Duration::from_millis(100);

/// Time without a renewal after which another process continues.
const EXPIRES: Duration = Duration::from_mins(2);

/// Interval of the search for old entries.
const EVERY: Duration = Duration::from_hours(1);

/// Types that are never removed by their age. One of them is replaced by a newer one of its kind.
const KEPT: [&str; 2] = [kind::RETENTION, kind::ERASURE];

/// Result of a search.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Removed {
    /// Removed entries.
    pub entries: u64,
    /// Users with an entry that replaces them.
    pub users: u64,
}

/// Position of an interrupted search.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Position {
    /// Index of the rule.
    rule: usize,
    after: Option<(Micros, String)>,
}

/// Removes old entries. One process at a time does it.
#[derive(Debug)]
pub struct Retention {
    store: Arc<dyn Store>,
    clock: Clock,
    rules: Rules,
    lease: WorkLease,
}

impl Retention {
    /// Returns the retention of the entries in this store.
    pub fn new(store: Arc<dyn Store>, clock: Clock, rules: Rules) -> Self {
        let lease = WorkLease::new(Arc::clone(&store), &LEASE, EXPIRES);
        Self { store, clock, rules, lease }
    }

    /// Runs until `stop` is cancelled.
    pub(crate) async fn run(&self, stop: &CancellationToken) {
        loop {
            match Box::pin(stop.run_until_cancelled(self.round())).await {
                None => return,
                Some(Ok(removed)) if removed == Removed::default() => {}
                Some(Ok(Removed { entries, users })) => {
                    tracing::info!(entries, users, "removed old entries of the event log");
                }
                Some(Err(error)) => {
                    let error = error_chain(&error);
                    tracing::warn!(error, "removing old entries of the event log failed; it continues");
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
                return;
            }
        }
    }

    /// Removes all entries that are old now, page by page, from the stored position. Removes nothing if another process does it.
    /// Cancel safe.
    ///
    /// # Errors
    /// Fails when the store fails. The next round continues.
    pub async fn round(&self) -> Result<Removed, Error> {
        let Some(mut held) = self.lease.take().await? else { return Ok(Removed::default()) };
        let Some(removed) = held.during(self.remove_old()).await? else { return Ok(Removed::default()) };
        held.release().await?;
        Ok(removed)
    }

    async fn remove_old(&self) -> Result<Removed, Error> {
        let (mut removed, mut kept) = (Removed::default(), BTreeSet::new());
        let (now, searches) = (self.clock.now(), self.rules.searches());
        let mut position: Position = state_records::load(&*self.store, &POSITION).await?;
        while let Some((kinds, age)) = searches.get(position.rule) {
            let filter =
                OldEntries { kinds: kinds.clone(), before: rules::before(now, *age), after: position.after };
            position.after = self.page(&filter, now, &mut kept, &mut removed).await?;
            if position.after.is_none() {
                position.rule += 1;
            }
            let next = position.clone();
            state_records::change(&*self.store, &POSITION, |known: &mut Position| known.clone_from(&next))
                .await?;
            tokio::time::sleep(PAUSE).await;
        }
        state_records::change(&*self.store, &POSITION, |known: &mut Position| *known = Position::default())
            .await?;
        Ok(removed)
    }

    /// Removes the entries on one page. Returns where the next page starts. `kept` are the days with figures that are kept.
    async fn page(
        &self,
        filter: &OldEntries,
        now: Micros,
        kept: &mut BTreeSet<Day>,
        removed: &mut Removed,
    ) -> Result<Option<(Micros, String)>, Error> {
        let before_page = removed.entries;
        let page = self.store.old_entries(filter, PAGE).await?;
        let next = page.last().filter(|_| page.len() == PAGE).map(|last| (last.received_at, last.id.clone()));
        let users: BTreeSet<String> = page.iter().filter_map(|entry| entry.user.clone()).collect();
        let replaced = stream::iter(users).map(|user| self.replaced(user, now)).buffer_unordered(CONCURRENCY);
        let replaced: Vec<Replaced> = replaced.try_collect().await?;
        let new: Vec<LogEntry> = replaced.iter().filter_map(|one| one.by.clone()).collect();
        // Of no user: organizations, roles and permissions have records of their own.
        let latest = decode::latest(now, decode::FUTURE_TOLERANCE);
        let mut others = Vec::new();
        for entry in page.iter().filter(|entry| entry.user.is_none()) {
            let stored = self.store.event(&entry.id).await?;
            let stored = stored.filter(|entry| decode::is_applied(entry, latest));
            others.extend(stored.map(|entry| (entry.id, Day::of(entry.received_at))));
        }
        // Before anything is removed.
        let days = replaced.iter().flat_map(|one| one.days.iter().copied());
        for day in days.chain(others.iter().map(|(_, day)| *day)) {
            if kept.insert(day) {
                projections::keep(&*self.store, day).await?;
            }
        }
        self.store.log(&new).await?;
        let logged = new.iter().filter_map(|entry| UserId::parse(entry.user.as_deref()?).ok());
        erase_logged(&*self.store, &logged.collect::<Vec<_>>(), now).await?;
        removed.users += replaced.iter().filter(|one| !one.old.is_empty()).count() as u64;
        let others = others.into_iter().map(|(id, _)| id);
        let old: Vec<String> = replaced.into_iter().flat_map(|one| one.old).chain(others).collect();
        self.store.remove_entries(&old).await?;
        removed.entries += old.len() as u64;
        metrics::counter!("kinsync_log_entries_removed_total").increment(removed.entries - before_page);
        Ok(next)
    }

    /// Returns the old entries of one user, and the entry that replaces them.
    async fn replaced(&self, user: String, now: Micros) -> Result<Replaced, Error> {
        let (store, id) = (&*self.store, UserId::parse(&user).ok());
        let latest = decode::latest(now, decode::FUTURE_TOLERANCE);
        let (mut old, mut days, mut joined) = (Vec::new(), BTreeSet::new(), None::<UserState>);
        let mut newest = None;
        let mut filter = EventFilter { user: Some(user), limit: ENTRIES_OF_ONE, ..EventFilter::default() };
        loop {
            let page = store.events(&filter).await?;
            for entry in &page.items {
                let is_former = entry.kind == kind::RETENTION;
                let is_old = !KEPT.contains(&entry.kind.as_str()) && self.rules.is_old(entry, now);
                let Ok(state) = decode::state_of(entry, latest) else { continue };
                if !(is_old || is_former) || !decode::is_applied(entry, latest) {
                    continue;
                }
                // A former replacement is on the day of an entry that it replaced.
                if is_old {
                    days.insert(Day::of(entry.received_at));
                    newest = newest.max(Some(entry.received_at));
                }
                old.push(entry.id.clone());
                joined = match (joined, state) {
                    (Some(one), Some(other)) => Some(one.join(other)),
                    (one, other) => one.or(other),
                };
            }
            match page.next {
                Some(next) => filter.after = Some(next),
                None => break,
            }
        }
        let Some(newest) = newest else { return Ok(Replaced::default()) };
        let by = joined.zip(id).map(|(state, user)| replacement(&user, state, newest));
        // Nothing new since it was written.
        old.retain(|id| by.as_ref().is_none_or(|entry| *id != entry.id));
        Ok(Replaced { old, days, by })
    }
}

/// Old entries of a user.
#[derive(Debug, Default)]
struct Replaced {
    /// Their ids.
    old: Vec<String>,
    /// Their days.
    days: BTreeSet<Day>,
    /// The entry with what they say; `None` if they change no state.
    by: Option<LogEntry>,
}

/// Returns the entry that replaces others, without what a rebuild takes from elsewhere. It has the time of receipt of the newest of
/// them, a day with figures that are kept: neither the entry nor its removal changes the figures of another day.
fn replacement(user: &UserId, state: UserState, newest: Micros) -> LogEntry {
    let state = UserState { last_seen: None, directory: Directory::default(), ..state };
    LogEntry::of_state(user, kind::RETENTION, LogSource::Kinsync, &state, newest)
}
