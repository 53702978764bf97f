//! Finds entries by their payload, to export or erase them.

use std::fmt;

use kinsync_core::Micros;
use rusqlite::Connection;

use super::rows::size_in_sql;
use crate::queue::{Found, Matched, Matcher, Search};

/// A matcher, which has nothing to show.
pub(super) struct Shown(pub(super) Matcher);

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Matcher")
    }
}

/// What a search of the writer has found.
pub(super) struct Removed {
    pub(super) matched: Matched,
    /// The removed entries, with their sizes.
    pub(super) removed: Vec<(i64, u64)>,
}

/// Reads every entry and every dead letter. Removes those that the matcher finds, unless they are only counted.
pub(super) fn run(sqlite: &Connection, matcher: &Matcher, search: Search) -> rusqlite::Result<Removed> {
    let queued =
        find(sqlite, &format!("SELECT id, scheme, payload, {} FROM entries", size_in_sql()), matcher)?;
    let dead = find(sqlite, "SELECT id, scheme, payload, 0 FROM dead_letters", matcher)?;
    let matched =
        Matched { queued: queued.len() as u64, dead_letters: dead.len() as u64, entries: Vec::new() };
    if search != Search::Remove {
        return Ok(Removed { matched, removed: Vec::new() });
    }
    for (table, found) in [("entries", &queued), ("dead_letters", &dead)] {
        let mut delete = sqlite.prepare_cached(&format!("DELETE FROM {table} WHERE id = ?1"))?;
        found.iter().try_for_each(|(id, _)| delete.execute([id]).map(|_| ()))?;
    }
    Ok(Removed { matched, removed: queued })
}

/// Reads every entry and every dead letter, and returns the entries that the matcher finds.
pub(super) fn list(sqlite: &Connection, matcher: &Matcher) -> rusqlite::Result<Matched> {
    let found = run(sqlite, matcher, Search::Count)?;
    let mut select =
        sqlite.prepare("SELECT event_id, scheme, received_at, payload FROM entries ORDER BY id")?;
    let mut rows = select.query([])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        let text = |column| -> rusqlite::Result<String> {
            let bytes = row.get_ref(column)?.as_bytes_or_null()?.unwrap_or_default();
            Ok(String::from_utf8_lossy(bytes).into_owned())
        };
        let (scheme, payload) = (text(1)?, row.get_ref(3)?.as_bytes_or_null()?.unwrap_or_default());
        if matcher(&scheme, payload) {
            let received_at = Micros(row.get(2)?);
            entries.push(Found { event_id: text(0)?, scheme, received_at, payload: text(3)? });
        }
    }
    Ok(Matched { queued: entries.len() as u64, entries, ..found.matched })
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
