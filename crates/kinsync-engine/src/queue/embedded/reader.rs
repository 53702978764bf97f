//! Reads entries for claims: first those with a wait that has ended, then the next unread ones.
//!
//! What was read goes to [`State`] and is claimed from there without waiting, so
//! that a cancelled claim takes nothing with it.

use tokio::time::Instant;

use super::{
    Shared,
    file::Failure,
    rows,
    state::{Item, State},
};

/// Bytes of payload read for one claim, about.
const FILL_BYTES: u64 = 8 << 20;
/// Reason of the dead letter that a damaged entry becomes.
pub(super) const DAMAGED: &str =
    "the disk damaged this entry (its checksum is wrong): check the disk; a scan repairs the user";

/// Makes up to `max` entries ready to claim. Returns the ids of entries with a wrong checksum.
pub(super) fn fill(shared: &Shared, max: usize) -> Result<Vec<i64>, Failure> {
    let sqlite = shared.reader();
    if shared.state().has_ready() {
        return Ok(Vec::new());
    }
    let mut damaged = Vec::new();
    let mut read = read_again(shared, &sqlite, max, &mut damaged);
    if read.is_ok() && !shared.state().has_ready() {
        read = read_next(shared, &sqlite, max, &mut damaged);
    }
    if shared.state().has_ready() {
        // The caller may have been cancelled: another claim takes them.
        shared.wake.notify_waiters();
        return Ok(damaged);
    }
    read.map(|()| damaged)
}

fn read_again(
    shared: &Shared,
    sqlite: &rusqlite::Connection,
    max: usize,
    damaged: &mut Vec<i64>,
) -> Result<(), Failure> {
    let now = Instant::now();
    let mut due = shared.state().take_due(now, max).into_iter();
    while let Some(id) = due.next() {
        match rows::find(sqlite, id) {
            Ok(Some(Item { entry: Some(entry), .. })) => shared.state().offer_again(id, entry),
            Ok(found) => {
                shared.state().remove(id);
                damaged.extend(found.map(|item| item.id));
            }
            Err(error) => {
                let mut state = shared.state();
                std::iter::once(id).chain(due).for_each(|id| state.postpone(id, now));
                return Err(error.into());
            }
        }
    }
    Ok(())
}

fn read_next(
    shared: &Shared,
    sqlite: &rusqlite::Connection,
    max: usize,
    damaged: &mut Vec<i64>,
) -> Result<(), Failure> {
    let (after, last) = State::unread_range(&shared.state());
    let select =
        format!("SELECT {} FROM entries WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3", rows::COLUMNS);
    let mut statement = sqlite.prepare_cached(&select)?;
    let limit = i64::try_from(max).unwrap_or(i64::MAX);
    let mut found = statement.query([after, last, limit])?;
    let (mut items, mut bytes, mut end) = (Vec::new(), 0, last);
    while let Some(row) = found.next()? {
        let item = rows::read(row)?;
        bytes += item.bytes;
        damaged.extend(item.entry.is_none().then_some(item.id));
        items.push(item);
        if items.len() == max || bytes >= FILL_BYTES {
            end = items.last().map_or(end, |item| item.id);
            break;
        }
    }
    shared.state().offer(items, end);
    Ok(())
}
