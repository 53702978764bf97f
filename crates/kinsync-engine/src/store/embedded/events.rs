//! The event log in SQL.

use kinsync_core::Micros;
use rusqlite::{Connection, OptionalExtension, Row, Statement, ToSql, params, types::FromSqlError};

use crate::{
    log_entry::SCHEMA,
    store::{
        EventFilter, EventPosition, Kinds, LogEntry, LogSource, OldEntries, OldEntry, Page, PageItem,
        UserEntries,
    },
};

const COLUMNS: &str = "SELECT event_id, type, user, source, version, at, received_at, scheme, payload, schema, checksum \
                       FROM events";

/// Bytes of payload after which a page of [`of_users`] ends.
const PAGE_BYTES: usize = 8 << 20;

/// Returns the positions of the entries with a known id.
pub(super) fn append(sqlite: &Connection, entries: &[LogEntry]) -> rusqlite::Result<Vec<usize>> {
    let sql = "INSERT INTO events \
               (event_id, type, user, source, version, at, received_at, scheme, payload, schema, checksum) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT (event_id) DO NOTHING";
    let mut insert = sqlite.prepare_cached(sql)?;
    let mut known = Vec::new();
    for (n, entry) in entries.iter().enumerate() {
        if execute(&mut insert, entry)? == 0 {
            known.push(n);
        }
    }
    Ok(known)
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
    let Some((conditions, parameters)) = conditions(filter) else {
        return Ok(Page::new(Vec::new(), filter.limit));
    };
    let mut parameters: Vec<&dyn ToSql> = parameters.iter().map(|one| &**one).collect();
    let limit = i64::try_from(filter.limit.saturating_add(1)).unwrap_or(i64::MAX);
    parameters.push(&limit);
    let mut select = sqlite.prepare_cached(&list_statement(&conditions))?;
    let read = |row: &Row<'_>| {
        let id: String = row.get("event_id")?;
        let position = EventPosition::of(row.get("received_at")?, &id);
        Ok(PageItem { position, item: event(row).map_err(|_| id) })
    };
    let events: Vec<_> = select.query_map(parameters.as_slice(), read)?.collect::<rusqlite::Result<_>>()?;
    Ok(Page::new(events, filter.limit))
}

fn list_statement(conditions: &str) -> String {
    format!("{COLUMNS} WHERE {conditions} ORDER BY received_at DESC, event_id DESC LIMIT ?")
}

pub(super) fn count(sqlite: &Connection, filter: &EventFilter) -> rusqlite::Result<u64> {
    let Some((conditions, parameters)) = conditions(filter) else { return Ok(0) };
    let parameters: Vec<&dyn ToSql> = parameters.iter().map(|one| &**one).collect();
    let mut select = sqlite.prepare_cached(&format!("SELECT count(*) FROM events WHERE {conditions}"))?;
    select.query_row(parameters.as_slice(), |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}

/// Returns the conditions of a filter with their parameters; `None` if its position is none. Each shape of the filter is a
/// statement of its own, so that each finds its index.
fn conditions(filter: &EventFilter) -> Option<(String, Vec<Box<dyn ToSql>>)> {
    let mut sql = "true".to_owned();
    let mut parameters: Vec<Box<dyn ToSql>> = Vec::new();
    let mut add = |condition: &str, values: Vec<Box<dyn ToSql>>| {
        sql.push_str(" AND ");
        sql.push_str(condition);
        parameters.extend(values);
    };
    let texts = [
        ("event_id = ?", filter.id.clone()),
        ("user = ?", filter.user.clone()),
        ("type = ?", filter.kind.clone()),
        ("source = ?", filter.source.map(|source| source.as_str().to_owned())),
    ];
    for (condition, text) in texts {
        if let Some(text) = text {
            add(condition, vec![Box::new(text)]);
        }
    }
    if filter.without_user {
        add("user IS NULL", Vec::new());
    }
    for (condition, time) in [("received_at >= ?", filter.since), ("received_at < ?", filter.until)] {
        if let Some(time) = time {
            add(condition, vec![Box::new(time.0)]);
        }
    }
    if let Some(after) = &filter.after {
        let EventPosition { received_at, id } = EventPosition::parse(after)?;
        add("(received_at, event_id) < (?, ?)", vec![Box::new(received_at), Box::new(id)]);
    }
    Some((sql, parameters))
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

#[cfg(test)]
mod tests {
    use kinsync_core::Micros;

    use super::*;
    use crate::store::embedded::file;

    #[test]
    fn every_list_of_the_log_reads_a_range_of_an_index_in_its_order() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (_lock, sqlite) = file::for_writing(folder.path()).expect("an empty folder opens");
        // Names every part of the filter, so that a new one does not compile without a place here.
        let EventFilter {
            id: _,
            user: _,
            without_user: _,
            kind: _,
            source: _,
            since: _,
            until: _,
            after: _,
            limit,
        } = EventFilter::default();
        let all = EventFilter { limit, ..EventFilter::default() };
        let text = || Some("a".to_owned());
        let of = [
            all.clone(),
            EventFilter { user: text(), ..all.clone() },
            EventFilter { without_user: true, ..all.clone() },
            EventFilter { kind: text(), ..all.clone() },
            EventFilter { source: Some(LogSource::Webhook), ..all.clone() },
            EventFilter { user: text(), kind: text(), ..all },
        ];
        let times =
            |one: &EventFilter| EventFilter { since: Some(Micros(1)), until: Some(Micros(9)), ..one.clone() };
        let after = |one: &EventFilter| EventFilter { after: Some("5:a".into()), ..one.clone() };
        for one in of.iter().flat_map(|one| [one.clone(), times(one), after(one), after(&times(one))]) {
            let (conditions, parameters) = conditions(&one).expect("a position");
            let mut parameters: Vec<&dyn ToSql> = parameters.iter().map(|one| &**one).collect();
            parameters.push(&9);
            let explain = format!("EXPLAIN QUERY PLAN {}", list_statement(&conditions));
            let mut explain = sqlite.prepare(&explain).expect("valid SQL");
            let plan = explain.query_map(parameters.as_slice(), |row| row.get::<_, String>("detail"));
            let plan: Vec<String> = plan.expect("a plan").map(|step| step.expect("a step")).collect();
            let [step] = plan.as_slice() else { panic!("{one:?} sorts: {plan:?}") };
            assert!(step.contains("USING INDEX events_") && !step.contains("autoindex"), "{one:?}: {step}");
        }
    }
}
