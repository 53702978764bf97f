//! The event log in SQL.

use kinsync_core::Micros;
use rusqlite::{Connection, OptionalExtension, Row, Statement, ToSql, params, types::FromSqlError};

use crate::{
    log_entry::SCHEMA,
    store::{EventFilter, Kinds, LogEntry, LogSource, OldEntries, OldEntry, Page, UserEntries},
};

const COLUMNS: &str = "SELECT event_id, type, user, source, version, at, received_at, scheme, payload, schema, checksum \
                       FROM events";

/// Bytes of payload after which a page of [`of_users`] ends.
const PAGE_BYTES: usize = 8 << 20;

pub(super) fn append(sqlite: &Connection, entries: &[LogEntry]) -> rusqlite::Result<usize> {
    let sql = "INSERT INTO events \
               (event_id, type, user, source, version, at, received_at, scheme, payload, schema, checksum) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT (event_id) DO NOTHING";
    let mut insert = sqlite.prepare_cached(sql)?;
    let mut new = 0;
    for entry in entries {
        new += execute(&mut insert, entry)?;
    }
    Ok(new)
}

fn execute(statement: &mut Statement<'_>, entry: &LogEntry) -> rusqlite::Result<usize> {
    let version = entry.version.as_ref().map(|version| serde_json::json!(version).to_string());
    statement.execute(params![
        entry.id,
        entry.kind,
        entry.user,
        entry.source.as_str(),
        version,
        entry.at.map(|at| at.0),
        entry.received_at.0,
        entry.scheme,
        entry.payload,
        SCHEMA,
        entry.checksum(),
    ])
}

pub(super) fn one(sqlite: &Connection, event_id: &str) -> rusqlite::Result<Option<LogEntry>> {
    let mut select = sqlite.prepare_cached(&format!("{COLUMNS} WHERE event_id = ?1"))?;
    let read = |row: &Row<'_>| Ok(event(row).ok());
    select.query_row([event_id], read).optional().map(Option::flatten)
}

pub(super) fn list(sqlite: &Connection, filter: &EventFilter) -> rusqlite::Result<Page<LogEntry>> {
    // Each shape of the filter is a statement of its own, so that each finds its index.
    let mut sql = format!("{COLUMNS} WHERE true");
    let mut parameters: Vec<&dyn ToSql> = Vec::new();
    if let Some(id) = &filter.id {
        sql.push_str(" AND event_id = ?");
        parameters.push(id);
    }
    if let Some(user) = &filter.user {
        sql.push_str(" AND user = ?");
        parameters.push(user);
    }
    if filter.without_user {
        sql.push_str(" AND user IS NULL");
    }
    if let Some(kind) = &filter.kind {
        sql.push_str(" AND type = ?");
        parameters.push(kind);
    }
    let source = filter.source.map(LogSource::as_str);
    if let Some(source) = &source {
        sql.push_str(" AND source = ?");
        parameters.push(source);
    }
    let (since, until) = (filter.since.map(|at| at.0), filter.until.map(|at| at.0));
    if let Some(since) = &since {
        sql.push_str(" AND received_at >= ?");
        parameters.push(since);
    }
    if let Some(until) = &until {
        sql.push_str(" AND received_at < ?");
        parameters.push(until);
    }
    if let Some(after) = &filter.after {
        sql.push_str(" AND (received_at, event_id) < ");
        sql.push_str("(SELECT received_at, event_id FROM events WHERE event_id = ?)");
        parameters.push(after);
    }
    sql.push_str(" ORDER BY received_at DESC, event_id DESC LIMIT ?");
    let limit = i64::try_from(filter.limit.saturating_add(1)).unwrap_or(i64::MAX);
    parameters.push(&limit);
    let mut select = sqlite.prepare_cached(&sql)?;
    let read = |row: &Row<'_>| {
        let id: String = row.get("event_id")?;
        Ok(event(row).map_err(|_| id))
    };
    let events: Vec<_> = select.query_map(parameters.as_slice(), read)?.collect::<rusqlite::Result<_>>()?;
    Ok(Page::new(events, filter.limit, |event| event.id.clone()))
}

pub(super) fn of_users(
    sqlite: &Connection,
    after: &str,
    until: Option<&str>,
    limit: usize,
) -> rusqlite::Result<UserEntries> {
    let mut page = UserEntries::default();
    let sql = format!("{COLUMNS} WHERE user > ?1 AND (?2 IS NULL OR user <= ?2) ORDER BY user");
    let mut select = sqlite.prepare_cached(&sql)?;
    let mut rows = select.query((after, until))?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        if page.len() >= limit || bytes >= PAGE_BYTES {
            return Ok(page.without_last_user());
        }
        let (id, user): (String, String) = (row.get("event_id")?, row.get("user")?);
        let entry = event(row).map_err(|_| id);
        bytes += entry.as_ref().map_or(0, |entry| entry.payload.len());
        page.push(&user, entry);
    }
    Ok(page)
}

pub(super) fn replace(sqlite: &Connection, entries: &[LogEntry]) -> rusqlite::Result<()> {
    let sql = "UPDATE events SET type = ?2, user = ?3, source = ?4, version = ?5, at = ?6, received_at = ?7, scheme = ?8, \
               payload = ?9, schema = ?10, checksum = ?11 WHERE event_id = ?1";
    let mut update = sqlite.prepare_cached(sql)?;
    entries.iter().try_for_each(|entry| execute(&mut update, entry).map(|_| ()))
}

/// Lists entries by the index on the time of receipt, or on the type and that time.
pub(super) fn old(sqlite: &Connection, filter: &OldEntries, limit: usize) -> rusqlite::Result<Vec<OldEntry>> {
    let (is_of_kind, kinds) = match &filter.kinds {
        Kinds::One(kind) => ("type = ?", vec![kind.clone()]),
        Kinds::Except(kinds) => ("type NOT IN (SELECT value FROM json_each(?))", kinds.clone()),
    };
    let kinds = match &filter.kinds {
        Kinds::One(_) => kinds.concat(),
        Kinds::Except(_) => serde_json::json!(kinds).to_string(),
    };
    let (at, id) = filter.after.clone().unwrap_or((Micros(i64::MIN), String::new()));
    let sql = format!(
        "SELECT event_id, user, received_at FROM events WHERE {is_of_kind} AND received_at < ? \
         AND (received_at, event_id) > (?, ?) ORDER BY received_at, event_id LIMIT ?"
    );
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut select = sqlite.prepare_cached(&sql)?;
    let read =
        |row: &Row<'_>| Ok(OldEntry { id: row.get(0)?, user: row.get(1)?, received_at: Micros(row.get(2)?) });
    select.query_map(params![kinds, filter.before.0, at.0, id, limit], read)?.collect()
}

pub(super) fn remove(sqlite: &Connection, ids: &[String]) -> rusqlite::Result<()> {
    let mut delete = sqlite.prepare_cached("DELETE FROM events WHERE event_id = ?1")?;
    ids.iter().try_for_each(|id| delete.execute([id]).map(|_| ()))
}

pub(super) fn count_of(sqlite: &Connection, user: &str) -> rusqlite::Result<u64> {
    let mut select = sqlite.prepare_cached("SELECT count(*) FROM events WHERE user = ?1")?;
    select.query_row([user], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}

fn event(row: &Row<'_>) -> rusqlite::Result<LogEntry> {
    let source: String = row.get("source")?;
    let version: Option<String> = row.get("version")?;
    let damaged = |why: &str| FromSqlError::Other(why.into());
    let version = version.map(|version| serde_json::from_str(&version)).transpose();
    let entry = LogEntry {
        id: row.get("event_id")?,
        kind: row.get("type")?,
        user: row.get("user")?,
        source: LogSource::from_name(&source).ok_or_else(|| damaged("an unknown source"))?,
        version: version.map_err(|_| damaged("not a version"))?,
        at: row.get::<_, Option<i64>>("at")?.map(Micros),
        received_at: Micros(row.get("received_at")?),
        scheme: row.get("scheme")?,
        payload: row.get("payload")?,
    };
    let (schema, checksum): (_, Option<String>) = (row.get("schema")?, row.get("checksum")?);
    if entry.is_intact(schema, checksum.as_deref()) {
        Ok(entry)
    } else {
        Err(damaged("a wrong checksum").into())
    }
}
