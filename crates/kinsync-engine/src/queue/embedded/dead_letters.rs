//! Entries that were set aside, and their bounds: no amount of them makes the queue refuse an entry.

use std::time::Duration;

use kinsync_core::Micros;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{
    DeadLetterBounds,
    state::{DeadLetters, entry_id},
};
use crate::queue::{DeadLetter, Entry, Error, Payload};

/// Bytes of a reason that are kept.
const MAX_REASON: usize = 1024;

/// Moves an entry to the dead letters. Nothing happens if the file does not have it. A damaged value
/// may have another type than its column.
pub(super) fn set_aside(sqlite: &Connection, id: i64, reason: &str, now: Micros) -> rusqlite::Result<()> {
    let reason = &reason[..reason.floor_char_boundary(MAX_REASON)];
    let insert = "INSERT OR IGNORE INTO dead_letters
        SELECT id, CAST(event_id AS TEXT), CAST(scheme AS TEXT), CAST(received_at AS INTEGER),
            CAST(signed_at AS INTEGER), ?2, ?3, CAST(payload AS BLOB)
        FROM entries WHERE id = ?1";
    sqlite.prepare_cached(insert)?.execute(params![id, now.0, reason])?;
    sqlite.prepare_cached("DELETE FROM entries WHERE id = ?1")?.execute([id])?;
    Ok(())
}

/// Takes a dead letter out, to be enqueued again.
pub(super) fn take(sqlite: &Connection, id: i64) -> rusqlite::Result<Result<Entry, Error>> {
    let select = "SELECT event_id, scheme, received_at, signed_at, payload FROM dead_letters WHERE id = ?1";
    let found = sqlite.prepare_cached(select)?.query_row([id], |row| {
        let (event_id, received_at) = (row.get(0)?, Micros(row.get(2)?));
        let (scheme, signed_at) = (row.get::<_, String>(1)?, row.get::<_, Option<i64>>(3)?);
        let body: Option<Vec<u8>> = row.get(4)?;
        let payload = body.and_then(|body| Payload::from_parts(&scheme, signed_at.map(Micros), body.into()));
        Ok(payload.map(|payload| Entry { event_id, received_at, payload }))
    });
    Ok(match found.optional()? {
        None => Err(Error::NoSuchDeadLetter { id: entry_id(id) }),
        Some(None) => Err(Error::PayloadRemoved { id: entry_id(id) }),
        Some(Some(entry)) => {
            remove(sqlite, id)?;
            Ok(entry)
        }
    })
}

/// Deletes a dead letter. False if there is none with this id.
pub(super) fn remove(sqlite: &Connection, id: i64) -> rusqlite::Result<bool> {
    Ok(sqlite.prepare_cached("DELETE FROM dead_letters WHERE id = ?1")?.execute([id])? > 0)
}

/// Up to `limit` dead letters in the order of their ids, from the one after `after`.
pub(super) fn list(sqlite: &Connection, after: i64, limit: usize) -> rusqlite::Result<Vec<DeadLetter>> {
    let select = "SELECT id, event_id, scheme, received_at, dead_at, reason, payload
        FROM dead_letters WHERE id > ?1 ORDER BY id LIMIT ?2";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement = sqlite.prepare_cached(select)?;
    let rows = statement.query_map([after, limit], |row| {
        let payload: Option<Vec<u8>> = row.get(6)?;
        Ok(DeadLetter {
            id: entry_id(row.get(0)?),
            event_id: text(row, 1)?,
            scheme: text(row, 2)?,
            received_at: Micros(row.get(3)?),
            dead_at: Micros(row.get(4)?),
            reason: text(row, 5)?,
            payload: payload.map(|body| String::from_utf8_lossy(&body).into_owned()),
        })
    })?;
    rows.collect()
}

fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(String::from_utf8_lossy(row.get_ref(column)?.as_bytes()?).into_owned())
}

/// How many there are, and the bytes of their payloads.
pub(super) fn count(sqlite: &Connection) -> rusqlite::Result<DeadLetters> {
    let select = "SELECT count(*), coalesce(sum(octet_length(payload)), 0) FROM dead_letters";
    sqlite.prepare_cached(select)?.query_row([], |row| {
        Ok(DeadLetters {
            count: row.get::<_, i64>(0)?.unsigned_abs(),
            bytes: row.get::<_, i64>(1)?.unsigned_abs(),
        })
    })
}

/// Reduces the oldest to id and reason, and deletes what is beyond the number or the age allowed.
pub(super) fn enforce(sqlite: &Connection, bounds: &DeadLetterBounds, now: Micros) -> rusqlite::Result<()> {
    let oldest = now.0.saturating_sub(micros(bounds.max_age));
    let mut removed =
        sqlite.prepare_cached("DELETE FROM dead_letters WHERE dead_at < ?1")?.execute([oldest])?;
    let DeadLetters { count, bytes } = count(sqlite)?;
    if count > bounds.max_count {
        let excess = "DELETE FROM dead_letters WHERE id <=
            (SELECT id FROM dead_letters ORDER BY id DESC LIMIT 1 OFFSET ?1)";
        removed += sqlite.prepare_cached(excess)?.execute([signed(bounds.max_count)])?;
    }
    let mut reduced = 0;
    if bytes > bounds.max_bytes {
        let reduce = "UPDATE dead_letters SET payload = NULL WHERE id IN (SELECT id FROM (
            SELECT id, sum(octet_length(payload)) OVER (ORDER BY id DESC) AS total
            FROM dead_letters WHERE payload IS NOT NULL) WHERE total > ?1)";
        reduced = sqlite.prepare_cached(reduce)?.execute([signed(bounds.max_bytes)])?;
    }
    report_bounded(removed as u64, reduced as u64);
    Ok(())
}

/// Counts and logs the dead letters that were deleted or lost their payload, of any backend.
pub(in crate::queue) fn report_bounded(removed: u64, reduced: u64) {
    metrics::counter!("kinsync_queue_dead_letters_removed_total").increment(removed);
    metrics::counter!("kinsync_queue_dead_letters_reduced_total").increment(reduced);
    if removed + reduced > 0 {
        tracing::warn!(
            removed,
            reduced,
            "old dead letters were deleted or lost their payload, to keep their bound"
        );
    }
}

fn signed(bound: u64) -> i64 {
    i64::try_from(bound).unwrap_or(i64::MAX)
}

fn micros(age: Duration) -> i64 {
    i64::try_from(age.as_micros()).unwrap_or(i64::MAX)
}
