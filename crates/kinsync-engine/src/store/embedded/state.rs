//! kinsync's own records in SQL.

use rusqlite::{Connection, OptionalExtension, types::Type};

use crate::store::Saved;

pub(super) fn get(sqlite: &Connection, key: &str) -> rusqlite::Result<Option<Saved>> {
    let mut select = sqlite.prepare_cached("SELECT revision, value FROM state WHERE key = ?1")?;
    let row = select.query_row([key], |row| Ok((row.get(0)?, row.get::<_, String>(1)?))).optional()?;
    row.map(|(revision, text)| Ok(Saved { value: parse(&text)?, revision })).transpose()
}

pub(super) fn put(sqlite: &Connection, key: &str, value: &str, expected: i64) -> rusqlite::Result<bool> {
    let written = if expected == 0 {
        let sql = "INSERT INTO state (key, revision, value) VALUES (?1, 1, ?2) ON CONFLICT (key) DO NOTHING";
        sqlite.prepare_cached(sql)?.execute((key, value))?
    } else {
        let sql = "UPDATE state SET revision = revision + 1, value = ?2 WHERE key = ?1 AND revision = ?3";
        sqlite.prepare_cached(sql)?.execute((key, value, expected))?
    };
    Ok(written == 1)
}

fn parse(text: &str) -> rusqlite::Result<serde_json::Value> {
    let parsed = serde_json::from_str(text);
    parsed.map_err(|error| rusqlite::Error::FromSqlConversionFailure(1, Type::Text, error.into()))
}
