//! Lists of users in SQL: one statement for each range of an index, which the statement names.

use rusqlite::{Connection, ToSql};

use super::users::{self, COLUMNS};
use crate::store::{
    Page, PageItem, Row, UserFilter, end_of,
    user_filter::{End, Index, Key, Position, Range},
};

pub(super) fn list(sqlite: &Connection, filter: &UserFilter) -> rusqlite::Result<Page<Row>> {
    let (mut read, wanted) = (Vec::new(), filter.limit.saturating_add(1));
    for range in filter.ranges() {
        if read.len() < wanted {
            read.extend(read_range(sqlite, &range, wanted - read.len())?);
        }
    }
    Ok(filter.page(read))
}

fn read_range(
    sqlite: &Connection,
    range: &Range,
    limit: usize,
) -> rusqlite::Result<Vec<PageItem<(Index, Row)>>> {
    let Some(statement) = Statement::of(range, limit) else { return Ok(Vec::new()) };
    let mut select = sqlite.prepare_cached(&statement.sql)?;
    let parameters: Vec<&dyn ToSql> = statement.parameters.iter().map(|one| &**one as &dyn ToSql).collect();
    let read = |columns: &rusqlite::Row<'_>| {
        let id: String = columns.get("id")?;
        let value = columns.get::<_, rusqlite::types::Value>("value")?;
        let position = Position::of(range, key(value), &id);
        let item = users::row(columns).map(|row| (range.index(), row)).map_err(|_| id);
        Ok(PageItem { position, item })
    };
    select.query_map(parameters.as_slice(), read)?.collect()
}

fn key(value: rusqlite::types::Value) -> Option<Key> {
    match value {
        rusqlite::types::Value::Integer(number) => Some(Key::Number(number)),
        rusqlite::types::Value::Text(text) => Some(Key::Text(text)),
        _ => None,
    }
}

/// A statement with its parameters, in order.
struct Statement {
    sql: String,
    parameters: Vec<Box<dyn ToSql>>,
}

impl Statement {
    /// Returns the statement of a range; `None` for an index that this store has not, because no user can be in it.
    fn of(range: &Range, limit: usize) -> Option<Self> {
        let Source { index, value, condition } = source(range.index())?;
        let mut parameters: Vec<Box<dyn ToSql>> = Vec::new();
        let order = match range {
            Range::From(..) | Range::After(..) => format!("{value}, id"),
            Range::Ids(..) | Range::Of(..) => "id".to_owned(),
        };
        let bounds = match range {
            Range::Ids(_, after) => {
                parameters.push(Box::new(after.clone()));
                "id > ?".to_owned()
            }
            Range::Of(_, key, after) => {
                parameters.extend([parameter(key), Box::new(after.clone()) as Box<dyn ToSql>]);
                format!("{value} = ? AND id > ?")
            }
            Range::From(_, key, end) | Range::After(_, key, end) => {
                parameters.push(parameter(key));
                let operator = if matches!(range, Range::From(..)) { ">=" } else { ">" };
                match end {
                    End::Open => format!("{value} {operator} ?"),
                    End::Prefix(prefix) => {
                        parameters.push(Box::new(end_of(prefix)));
                        format!("{value} {operator} ? AND {value} < ?")
                    }
                }
            }
        };
        parameters.push(Box::new(users::bound(limit)));
        let columns = COLUMNS.replace(" FROM users", &format!(", {value} AS value FROM users"));
        let sql = format!("{columns} {index} WHERE {condition} AND {bounds} ORDER BY {order} LIMIT ?");
        Some(Self { sql, parameters })
    }
}

fn parameter(key: &Key) -> Box<dyn ToSql> {
    match key {
        Key::Number(number) => Box::new(*number),
        Key::Text(text) => Box::new(text.clone()),
    }
}

/// An index: its clause, the expression of its values, and what it requires of a row.
struct Source {
    index: &'static str,
    value: &'static str,
    condition: &'static str,
}

fn source(index: Index) -> Option<Source> {
    let (index, value, condition) = match index {
        Index::Id => ("", "NULL", "true"),
        Index::Live => ("INDEXED BY users_live", "NULL", "live = 1"),
        Index::Email => ("INDEXED BY users_address", "trim(claim) COLLATE NOCASE", "true"),
        Index::FirstName => ("INDEXED BY users_first_name", "first_name COLLATE NOCASE", "true"),
        Index::LastName => ("INDEXED BY users_last_name", "last_name COLLATE NOCASE", "true"),
        Index::Phone => ("INDEXED BY users_phone", "phone", "true"),
        Index::ProvidedId => ("INDEXED BY users_provided_id", "provided_id", "true"),
        Index::DeletedAt => ("INDEXED BY users_deleted_at", "deleted_at", "live = 0"),
        Index::Suspended => ("INDEXED BY users_suspended", "NULL", "is_suspended = 1"),
        Index::InConflict => ("INDEXED BY users_in_conflict", "NULL", "held_by IS NOT NULL"),
        Index::UpdatedAt => ("INDEXED BY users_updated_at", "updated_at", "true"),
        // SQLite has no rules of an application.
        Index::Refused => return None,
    };
    Some(Source { index, value, condition })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Selection, embedded::file};

    fn ranges_of(selection: &Selection) -> Vec<Range> {
        let mut ranges = Vec::new();
        for with_deleted in [false, true] {
            let first = UserFilter { selection: selection.clone(), with_deleted, ..UserFilter::default() };
            for range in first.ranges() {
                let after = Position::of(&range, Some(Key::Text("ada".into())), "kp_1");
                let second = UserFilter { after: Some(after), ..first.clone() };
                ranges.extend(second.ranges());
                ranges.push(range);
            }
        }
        ranges
    }

    #[test]
    fn every_list_reads_a_range_of_an_index_in_its_order() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (_lock, sqlite) = file::for_writing(folder.path()).expect("an empty folder opens");
        for one in Selection::of_each_kind("ada") {
            for range in ranges_of(&one) {
                let Some(Statement { sql, parameters }) = Statement::of(&range, 10) else { continue };
                let parameters: Vec<&dyn ToSql> = parameters.iter().map(|one| &**one as &dyn ToSql).collect();
                let mut explain = sqlite.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("valid SQL");
                let plan = explain.query_map(parameters.as_slice(), |row| row.get::<_, String>("detail"));
                let plan: Vec<String> = plan.expect("a plan").map(|step| step.expect("a step")).collect();
                let [step] = plan.as_slice() else { panic!("{one:?} sorts: {plan:?}") };
                assert!(step.starts_with("SEARCH users USING"), "{one:?}: {step}");
            }
        }
    }
}
