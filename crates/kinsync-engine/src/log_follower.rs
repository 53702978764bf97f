//! Joins entries of the log into rows that lack them.
//!
//! An entry is stored before the row that it explains, so a process that is killed between both leaves a row without the entry, and
//! so does a write that fails or is cancelled there. A delivery is repeated: it is in the queue until its row is written. Nothing
//! repeats what kinsync observed itself, and a later read of Kinde may be equal to the row. So each of these entries is compared with
//! its row once more, a while after it was logged. A row that has it is not written.

use std::{collections::HashMap, time::Duration};

use kinsync_core::{Micros, Source, UserId, UserState, Version};
use serde::{Deserialize, Serialize};

use crate::{
    apply::{Applied, apply_states},
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

/// Value of the record.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Position {
    /// Entries that were received before this time were compared. Microseconds since 1970.
    until: i64,
}

/// Compares the entries that were received before this time, and since those that were compared before, with their rows. Returns the
/// number of rows that lacked one. Any number of processes may do it.
///
/// `until` is so long ago that no process is still between the entry and the row, whatever its clock shows.
///
/// # Errors
/// Fails when the store fails. The next call repeats what was not completed.
pub async fn follow(store: &dyn Store, until: Micros, now: Micros) -> Result<usize, Error> {
    let Position { until: since } = state_records::load(store, &POSITION).await?;
    if since >= until.0 {
        return Ok(0);
    }
    let (mut rows, mut is_empty) = (0, true);
    for source in SOURCES {
        let mut filter = EventFilter {
            source: Some(source),
            since: Some(Micros(since)),
            until: Some(until),
            limit: PAGE,
            ..EventFilter::default()
        };
        loop {
            let page = store.events(&filter).await?;
            is_empty &= page.items.is_empty();
            rows += join_missing(store, &page.items, now).await?;
            match page.next {
                Some(next) => filter.after = Some(next),
                None => break,
            }
        }
    }
    // Without an entry, the next call reads the same empty range: no write while nothing happens.
    if !is_empty {
        let advance = |position: &mut Position| position.until = position.until.max(until.0);
        state_records::change(store, &POSITION, advance).await?;
    }
    Ok(rows)
}

/// Joins these entries into their rows. Returns the number of rows that lacked one.
async fn join_missing(store: &dyn Store, entries: &[LogEntry], now: Micros) -> Result<usize, Error> {
    let mut states = states(entries, decode::latest(now, Duration::MAX));
    let users: Vec<UserId> = states.keys().cloned().collect();
    for row in store.load_to_write(&users).await? {
        let Some((logged, ..)) = states.get(&row.id) else { continue };
        let joined = row.state.clone().join(logged.clone());
        if row.revision > 0 && joined.eq_ignoring_last_seen(&row.state) {
            states.remove(&row.id);
        }
    }
    if states.is_empty() {
        return Ok(0);
    }
    let Applied { changed, failed, .. } = apply_states(store, states, now).await?;
    for (user, reason) in failed {
        tracing::warn!(user = user.as_str(), reason, "an entry of the log could not be joined into the user");
    }
    Ok(changed.len())
}

/// Returns the join of the entries of each user, with the version and the source of the newest. What cannot be read is reported by
/// `kinsync rebuild --verify`.
fn states(entries: &[LogEntry], latest: Micros) -> HashMap<UserId, (UserState, Version, Source)> {
    let mut states: HashMap<UserId, (UserState, Version, Source)> = HashMap::new();
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
