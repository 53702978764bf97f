//! An entry as a row. `SQLite` does not notice a flipped bit in a value: each row has a checksum.

use bytes::Bytes;
use kinsync_core::Micros;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::state::Item;
use crate::queue::{Entry, Payload};

/// Bytes that a row takes beside its event id and payload, about.
const OVERHEAD: u64 = 64;

/// Columns that [`read`] expects, in order.
pub(super) const COLUMNS: &str = "id, event_id, scheme, received_at, signed_at, payload, checksum";

/// Size of an entry as it counts for the bound of the queue.
pub(super) fn size(entry: &Entry) -> u64 {
    (entry.event_id.len() + entry.payload.bytes().len()) as u64 + OVERHEAD
}

/// The same in SQL.
pub(super) fn size_in_sql() -> String {
    format!("octet_length(event_id) + octet_length(payload) + {OVERHEAD}")
}

/// Inserts entries with their ids.
pub(super) fn insert(sqlite: &Connection, entries: &[(i64, &Entry)]) -> rusqlite::Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut insert = sqlite.prepare_cached("INSERT INTO entries VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
    for (id, entry) in entries {
        let Entry { event_id, received_at, payload } = entry;
        insert.execute(params![
            id,
            event_id,
            payload.scheme(),
            received_at.0,
            payload.signed_at().map(|at| at.0),
            &payload.bytes()[..],
            checksum(entry),
        ])?;
    }
    Ok(())
}

/// Deletes entries by ascending ids, a run of consecutive ones at once.
pub(super) fn delete(sqlite: &Connection, ids: &[i64]) -> rusqlite::Result<()> {
    let mut delete = sqlite.prepare_cached("DELETE FROM entries WHERE id BETWEEN ?1 AND ?2")?;
    for run in ids.chunk_by(|one, next| *next == one + 1) {
        delete.execute((run.first(), run.last()))?;
    }
    Ok(())
}

/// Reads one entry; `None` if it is not in the file.
pub(super) fn find(sqlite: &Connection, id: i64) -> rusqlite::Result<Option<Item>> {
    let select = format!("SELECT {COLUMNS} FROM entries WHERE id = ?1");
    sqlite.prepare_cached(&select)?.query_row([id], read).optional()
}

/// Reads a row with [`COLUMNS`].
pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Item> {
    let entry = entry(row).filter(|entry| row.get(6).is_ok_and(|stored: u32| stored == checksum(entry)));
    Ok(Item { id: row.get(0)?, bytes: entry.as_ref().map_or(OVERHEAD, size), entry })
}

/// `None` if a value has another type than it was written with, which damage can cause.
fn entry(row: &Row<'_>) -> Option<Entry> {
    let signed_at = row.get::<_, Option<i64>>(4).ok()?.map(Micros);
    let body = Bytes::copy_from_slice(row.get_ref(5).ok()?.as_blob().ok()?);
    let payload = Payload::from_parts(row.get_ref(2).ok()?.as_str().ok()?, signed_at, body)?;
    Some(Entry { event_id: row.get(1).ok()?, received_at: Micros(row.get(3).ok()?), payload })
}

/// CRC-32 of the whole content of the entry.
pub(super) fn checksum(entry: &Entry) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    let Entry { event_id, received_at, payload } = entry;
    hasher.update(&received_at.0.to_le_bytes());
    hasher.update(&payload.signed_at().map_or([0xff; 8], |at| at.0.to_le_bytes()));
    for text in [event_id.as_bytes(), payload.scheme().as_bytes(), payload.bytes()] {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    hasher.finalize()
}
