//! Finds entries by their payload, to erase them.

use std::fmt;

use rusqlite::Connection;

use super::rows::size_in_sql;
use crate::queue::{Matched, Matcher, Search};

/// A matcher, which has nothing to show.
pub(super) struct Shown(pub(super) Matcher);

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Matcher")
    }
}

/// What a search has found.
pub(super) struct Found {
    pub(super) matched: Matched,
    /// The removed entries, with their sizes.
    pub(super) removed: Vec<(i64, u64)>,
}

/// Reads every entry and every dead letter. Removes those that the matcher finds, unless they are only counted.
pub(super) fn run(sqlite: &Connection, matcher: &Matcher, search: Search) -> rusqlite::Result<Found> {
    let queued =
        find(sqlite, &format!("SELECT id, scheme, payload, {} FROM entries", size_in_sql()), matcher)?;
    let dead = find(sqlite, "SELECT id, scheme, payload, 0 FROM dead_letters", matcher)?;
    let matched = Matched { queued: queued.len() as u64, dead_letters: dead.len() as u64 };
    if search == Search::Count {
        return Ok(Found { matched, removed: Vec::new() });
    }
    for (table, found) in [("entries", &queued), ("dead_letters", &dead)] {
        let mut delete = sqlite.prepare_cached(&format!("DELETE FROM {table} WHERE id = ?1"))?;
        found.iter().try_for_each(|(id, _)| delete.execute([id]).map(|_| ()))?;
    }
    Ok(Found { matched, removed: queued })
}

/// A damaged value may have another type than its column.
fn find(sqlite: &Connection, select: &str, matcher: &Matcher) -> rusqlite::Result<Vec<(i64, u64)>> {
    let mut select = sqlite.prepare(select)?;
    let mut rows = select.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let scheme = row.get_ref(1)?.as_bytes().unwrap_or_default();
        let payload = row.get_ref(2)?.as_bytes_or_null()?.unwrap_or_default();
        if matcher(&String::from_utf8_lossy(scheme), payload) {
            found.push((row.get(0)?, row.get::<_, i64>(3)?.unsigned_abs()));
        }
    }
    Ok(found)
}
