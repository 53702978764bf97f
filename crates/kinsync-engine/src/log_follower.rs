//! Joins entries of the log into rows that lack them.
//!
//! An entry is stored before the row that it explains, so a process that is killed between both leaves a row without the entry, and
//! so does a write that fails or is cancelled there. A delivery is repeated: it is in the queue until its row is written. Nothing
//! repeats what kinsync observed itself, and a later read of Kinde may be equal to the row. So each of these entries is compared with
//! its row once more, a while after it was logged. A row that has it is not written.
//!
//! Several processes do this at the same time, and none takes a lease. A position is stored only for a range of which one process has
//! compared everything before it, so a process that stores an older one makes another one repeat a part and never skip one. The price of two
//! processes is that they read entries and rows twice; what one has joined, the other one finds equal and does not write. The first pass
//! reads all entries of the three sources: a process that starts later continues at the position that is stored after every 10,000 entries,
//! and only processes that start together read them all. A lease would cost two writes in each interval, also while nothing happens, for as
//! long as kinsync runs.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use kinsync_core::{Micros, Source, UserId, UserState, Version};
use serde::{Deserialize, Serialize};

use crate::{
    apply::{Applied, apply_states},
    breaker::error_chain,
    decode,
    log_entry::{LogEntry, LogSource},
    state_records::{self, Key},
    store::{Error, EventFilter, Store},
};

/// Record of the end of what was compared.
pub(crate) const POSITION: Key =
    Key::new("log.followed", "the whole log is compared with the rows once more");

/// Sources of entries that no queue repeats.
const SOURCES: [LogSource; 3] = [LogSource::Login, LogSource::Profile, LogSource::Reconcile];

/// Entries per page.
const PAGE: usize = 500;

/// Pages after which the position is stored.
const STORED_EVERY: u32 = 20;

/// Once in this time, what was received in as much time before is compared again: the clocks of processes may differ by it.
const OVERLAP: i64 = 3_600_000_000;

/// Users that may wait for another attempt. With more of them the store fails, not a user.
const MAX_FAILED: usize = 100;

/// Value of the record. Times are microseconds since 1970.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Position {
    /// Entries that were received before this time were compared.
    until: i64,
    /// The same for the last pass with an overlap.
    overlapped: i64,
    /// A pass that has not ended.
    pass: Option<Pass>,
    /// Users with an entry that could not be joined. Each call tries it again.
    failed: BTreeSet<UserId>,
}

/// The comparison of what was received in a range of time.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pass {
    since: i64,
    until: i64,
    overlaps: bool,
    /// Index of the source.
    source: usize,
    after: Option<String>,
}

impl Position {
    /// Returns the next pass; `None` if everything until then was compared. Another process with a wrong clock may have stored a
    /// position in the future: the next overlap corrects it.
    fn next_pass(&self, until: i64) -> Option<Pass> {
        if self.pass.is_some() {
            return self.pass.clone();
        }
        let overlaps = until.abs_diff(self.overlapped) >= OVERLAP.unsigned_abs();
        let since = if overlaps {
            self.until.min(self.overlapped).min(until).saturating_sub(OVERLAP)
        } else {
            self.until
        };
        (since < until).then(|| Pass { since, until, overlaps, ..Pass::default() })
    }

    fn end(&mut self, pass: &Pass) {
        self.until = pass.until;
        if pass.overlaps {
            self.overlapped = pass.until;
        }
        self.pass = None;
    }
}

/// Compares the entries that were received before this time, and since those that were compared before, with their rows. Returns the
/// number of rows that lacked one. Any number of processes may do it.
///
/// `until` is so long ago that no process is still between the entry and the row.
///
/// # Errors
/// Fails when the store fails. The next call continues.
pub async fn follow(store: &dyn Store, until: Micros, now: Micros) -> Result<usize, Error> {
    let position: Position = state_records::load(store, &POSITION).await?;
    let mut joined = Joined::default();
    for user in &position.failed {
        joined.add(join_user(store, user, now).await?);
    }
    let repaired: BTreeSet<UserId> = position.failed.difference(&joined.failed).cloned().collect();
    let Some(mut pass) = position.next_pass(until.0) else {
        return save(store, joined, &repaired, |_| ()).await;
    };
    let (mut is_empty, mut pages) = (true, 0);
    while let Some(&source) = SOURCES.get(pass.source) {
        let filter = EventFilter {
            source: Some(source),
            since: Some(Micros(pass.since)),
            until: Some(Micros(pass.until)),
            after: pass.after.take(),
            limit: PAGE,
            ..EventFilter::default()
        };
        let page = store.events(&filter).await?;
        is_empty &= page.items.is_empty();
        joined.add(join_missing(store, &page.items, now).await?);
        if joined.failed.len() > MAX_FAILED {
            let source = format!("the rows of more than {MAX_FAILED} users could not be written").into();
            return Err(Error::Unavailable { doing: "join entries of the log into rows", source });
        }
        pass.after = page.next;
        pass.source += usize::from(pass.after.is_none());
        pages += 1;
        if pages % STORED_EVERY == 0 {
            joined.rows =
                save(store, joined.clone(), &repaired, |known| known.pass = Some(pass.clone())).await?;
        }
    }
    // Without an entry, the next call reads the same empty range: no write while nothing happens.
    if is_empty && position.pass.is_none() {
        return save(store, joined, &repaired, |_| ()).await;
    }
    save(store, joined, &repaired, |known| known.end(&pass)).await
}

/// Stores the users that failed, without those that were repaired, and what `change` does. Returns the number of joined rows.
async fn save(
    store: &dyn Store,
    joined: Joined,
    repaired: &BTreeSet<UserId>,
    change: impl Fn(&mut Position),
) -> Result<usize, Error> {
    let changed = |position: &mut Position| {
        position.failed.retain(|user| !repaired.contains(user));
        position.failed.extend(joined.failed.iter().cloned());
        change(position);
    };
    state_records::change(store, &POSITION, changed).await?;
    Ok(joined.rows)
}

/// What was joined.
#[derive(Clone, Default)]
struct Joined {
    /// Number of rows that lacked an entry.
    rows: usize,
    failed: BTreeSet<UserId>,
}

impl Joined {
    fn fail(&mut self, user: UserId, reason: &str) {
        tracing::warn!(
            user = user.as_str(),
            reason,
            "an entry of the log could not be joined into the user; this is repeated"
        );
        self.failed.insert(user);
    }

    fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.failed.extend(other.failed);
    }
}

/// Joins the entries of one user.
async fn join_user(store: &dyn Store, user: &UserId, now: Micros) -> Result<Joined, Error> {
    let mut joined = Joined::default();
    let mut filter =
        EventFilter { user: Some(user.as_str().to_owned()), limit: PAGE, ..EventFilter::default() };
    loop {
        let mut page = store.events(&filter).await?;
        page.items.retain(|entry| SOURCES.contains(&entry.source));
        joined.add(join_missing(store, &page.items, now).await?);
        match page.next {
            Some(next) => filter.after = Some(next),
            None => return Ok(joined),
        }
    }
}

/// Joins these entries into their rows; those of each user apart if that fails for all of them.
async fn join_missing(store: &dyn Store, entries: &[LogEntry], now: Micros) -> Result<Joined, Error> {
    let states = states(entries, decode::latest(now, Duration::MAX));
    match join_states(store, states.clone(), now).await {
        Err(error) if error.may_concern_one_user() => {}
        joined => return joined,
    }
    let mut joined = Joined::default();
    for (user, state) in states {
        match join_states(store, HashMap::from([(user.clone(), state)]), now).await {
            Err(error) if error.may_concern_one_user() => {
                // Fails if the store does.
                state_records::load::<Position>(store, &POSITION).await?;
                joined.fail(user, &error_chain(&error));
            }
            one => joined.add(one?),
        }
    }
    Ok(joined)
}

async fn join_states(store: &dyn Store, mut states: States, now: Micros) -> Result<Joined, Error> {
    let users: Vec<UserId> = states.keys().cloned().collect();
    for row in store.load_to_write(&users).await? {
        let Some((logged, ..)) = states.get(&row.id) else { continue };
        let joined = row.state.clone().join(logged.clone());
        if row.revision > 0 && joined.eq_ignoring_last_seen(&row.state) {
            states.remove(&row.id);
        }
    }
    let mut joined = Joined::default();
    if !states.is_empty() {
        let Applied { changed, failed, .. } = apply_states(store, states, now).await?;
        joined.rows = changed.len();
        for (user, reason) in failed {
            joined.fail(user, &reason);
        }
    }
    Ok(joined)
}

/// The state that entries of each user lead to, with the version and the source of the newest of them.
type States = HashMap<UserId, (UserState, Version, Source)>;

/// Returns the join of the entries of each user, with the version and the source of the newest. What cannot be read is reported by
/// `kinsync rebuild --verify`.
fn states(entries: &[LogEntry], latest: Micros) -> States {
    let mut states = States::new();
    for entry in entries {
        let user = entry.user.as_deref().and_then(|user| UserId::parse(user).ok());
        let (Some(user), Some(version), Some(source), Ok(Some(state))) =
            (user, &entry.version, entry.source.of_user(), decode::state_of(entry, latest))
        else {
            continue;
        };
        let (joined, newest, newest_source) =
            states.entry(user).or_insert_with(|| (UserState::default(), version.clone(), source));
        *joined = std::mem::take(joined).join(state);
        if version >= newest {
            (*newest, *newest_source) = (version.clone(), source);
        }
    }
    states
}
