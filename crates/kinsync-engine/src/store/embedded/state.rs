//! kinsync's own records in SQL.

use rusqlite::{Connection, OptionalExtension};
use serde_json::Value;

use crate::store::{Saved, end_of, is_due};

pub(super) fn get(sqlite: &Connection, key: &str) -> rusqlite::Result<Option<Saved>> {
    let mut select = sqlite.prepare_cached("SELECT revision, value FROM state WHERE key = ?1")?;
    let row = select.query_row([key], |row| Ok((row.get(0)?, row.get::<_, String>(1)?))).optional()?;
    Ok(row.map(|(revision, text)| Saved { value: parse(text), revision }))
}

pub(super) fn put(sqlite: &Connection, key: &str, value: &Value, expected: i64) -> rusqlite::Result<bool> {
    let (text, is_due) = (value.to_string(), is_due(value));
    let written = if expected == 0 {
        let sql = "INSERT INTO state (key, revision, value, is_due) VALUES (?1, 1, ?2, ?3) ON CONFLICT (key) DO NOTHING";
        sqlite.prepare_cached(sql)?.execute((key, text, is_due))?
    } else {
        let sql = "UPDATE state SET revision = revision + 1, value = ?2, is_due = ?3 WHERE key = ?1 AND revision = ?4";
        sqlite.prepare_cached(sql)?.execute((key, text, is_due, expected))?
    };
    Ok(written == 1)
}

pub(super) fn list(
    sqlite: &Connection,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> rusqlite::Result<Vec<(String, Saved)>> {
    let sql = "SELECT key, revision, value FROM state WHERE key > ?1 AND key < ?2 ORDER BY key LIMIT ?3";
    let mut select = sqlite.prepare_cached(sql)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    select.query_map((after.unwrap_or(prefix), end_of(prefix), limit), record)?.collect()
}

pub(super) fn due(
    sqlite: &Connection,
    after: Option<&str>,
    limit: usize,
) -> rusqlite::Result<Vec<(String, Saved)>> {
    let sql = "SELECT key, revision, value FROM state INDEXED BY state_due WHERE is_due = 1 AND key > ?1 ORDER BY key LIMIT ?2";
    let mut select = sqlite.prepare_cached(sql)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    select.query_map((after.unwrap_or_default(), limit), record)?.collect()
}

fn record(row: &rusqlite::Row<'_>) -> rusqlite::Result<(String, Saved)> {
    Ok((row.get(0)?, Saved { revision: row.get(1)?, value: parse(row.get(2)?) }))
}

pub(super) fn count(sqlite: &Connection, prefix: &str) -> rusqlite::Result<u64> {
    let sql = "SELECT count(*) FROM state WHERE key > ?1 AND key < ?2";
    let mut select = sqlite.prepare_cached(sql)?;
    select.query_row((prefix, end_of(prefix)), |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}

pub(super) fn remove(sqlite: &Connection, records: &[(String, i64)]) -> rusqlite::Result<()> {
    let mut delete = sqlite.prepare_cached("DELETE FROM state WHERE key = ?1 AND revision = ?2")?;
    records.iter().try_for_each(|record| delete.execute((&record.0, record.1)).map(|_| ()))
}

/// A text that is not JSON becomes a string, which no record is.
fn parse(text: String) -> Value {
    serde_json::from_str(&text).unwrap_or_else(|_| text.into())
}
