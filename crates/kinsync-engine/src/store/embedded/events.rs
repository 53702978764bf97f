//! The event log in SQL.

use kinsync_core::Micros;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use crate::store::{EventFilter, LoggedEvent, Page};

const COLUMNS: &str = "SELECT event_id, type, user, at, received_at, scheme, payload FROM events";

pub(super) fn append(sqlite: &Connection, events: &[LoggedEvent]) -> rusqlite::Result<usize> {
    let sql = "INSERT INTO events (event_id, type, user, at, received_at, scheme, payload) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (event_id) DO NOTHING";
    let mut insert = sqlite.prepare_cached(sql)?;
    let mut new = 0;
    for event in events {
        new += insert.execute(params![
            event.event_id,
            event.event_type,
            event.user,
            event.at.map(|at| at.0),
            event.received_at.0,
            event.scheme,
            event.payload,
        ])?;
    }
    Ok(new)
}

pub(super) fn one(sqlite: &Connection, event_id: &str) -> rusqlite::Result<Option<LoggedEvent>> {
    let mut select = sqlite.prepare_cached(&format!("{COLUMNS} WHERE event_id = ?1"))?;
    select.query_row([event_id], event).optional()
}

pub(super) fn list(sqlite: &Connection, filter: &EventFilter) -> rusqlite::Result<Page<LoggedEvent>> {
    // Each shape of the filter is a statement of its own, so that each finds its index.
    let mut sql = format!("{COLUMNS} WHERE true");
    let mut parameters: Vec<&dyn ToSql> = Vec::new();
    if let Some(user) = &filter.user {
        sql.push_str(" AND user = ?");
        parameters.push(user);
    }
    if let Some(event_type) = &filter.event_type {
        sql.push_str(" AND type = ?");
        parameters.push(event_type);
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
    Ok(Page::new(events, filter.limit, |event| event.event_id.clone()))
}

fn event(row: &Row<'_>) -> rusqlite::Result<LoggedEvent> {
    Ok(LoggedEvent {
        event_id: row.get("event_id")?,
        event_type: row.get("type")?,
        user: row.get("user")?,
        at: row.get::<_, Option<i64>>("at")?.map(Micros),
        received_at: Micros(row.get("received_at")?),
        scheme: row.get("scheme")?,
        payload: row.get("payload")?,
    })
}
