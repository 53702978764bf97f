//! User rows in SQL.

use std::collections::{BTreeSet, HashMap};

use kinsync_core::{Field, Micros, RowMetadata, SharedEntries, Source, UserId, UserState, Value};
use rusqlite::{
    Connection, ErrorCode, OptionalExtension, Params, named_params,
    types::{FromSqlError, Type},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::store::{Counts, Holder, Outcome, RefusedKeys, Row};

pub(super) const COLUMNS: &str = "SELECT id, revision, state, holds_email, held_by, inserted_at, updated_at, source, \
                       compared_since, changed_after, pending_emails FROM users";

const INSERT: &str = "INSERT INTO users (id, revision, live, email, claim, state, holds_email, held_by, \
                      inserted_at, updated_at, source, compared_since, changed_after, pending_emails, \
                      first_name, last_name, phone, provided_id, is_suspended, deleted_at) \
                      SELECT :id, :revision + 1, :live, :email, :claim, :state, :holds_email, :held_by, \
                      :inserted_at, :updated_at, :source, :compared_since, :changed_after, :pending_emails, \
                      :first_name, :last_name, :phone, :provided_id, :is_suspended, :deleted_at \
                      WHERE :revision = 0 \
                      ON CONFLICT (id) DO NOTHING";

const UPDATE: &str = "UPDATE users SET revision = :revision + 1, live = :live, email = :email, \
                      claim = :claim, state = :state, holds_email = :holds_email, held_by = :held_by, \
                      inserted_at = :inserted_at, updated_at = :updated_at, source = :source, \
                      compared_since = :compared_since, changed_after = :changed_after, \
                      pending_emails = :pending_emails, first_name = :first_name, last_name = :last_name, \
                      phone = :phone, provided_id = :provided_id, is_suspended = :is_suspended, \
                      deleted_at = :deleted_at WHERE id = :id AND revision = :revision";

pub(super) fn load(sqlite: &Connection, ids: &[UserId]) -> rusqlite::Result<Vec<Option<Row>>> {
    let mut select = sqlite.prepare_cached(&format!("{COLUMNS} WHERE id = ?1"))?;
    let mut shared = SharedEntries::default();
    let mut one = |id: &UserId| {
        // A row that cannot be decoded is refused when it is written, and must not stop the others.
        let mut row = select.query_row([id.as_str()], readable).optional()?.flatten();
        if let Some(row) = &mut row {
            row.state.directory.share(&mut shared);
        }
        Ok(row)
    };
    ids.iter().map(&mut one).collect()
}

/// Decodes a row; `None` if it cannot be decoded.
fn readable(columns: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Row>> {
    match row(columns) {
        Err(rusqlite::Error::FromSqlConversionFailure(..)) => Ok(None),
        decoded => decoded.map(Some),
    }
}

/// Returns why the row of a user cannot be decoded; `None` if it can.
fn fault(sqlite: &Connection, id: &UserId) -> rusqlite::Result<Option<String>> {
    let mut select = sqlite.prepare_cached(&format!("{COLUMNS} WHERE id = ?1"))?;
    match select.query_row([id.as_str()], row).optional() {
        Err(rusqlite::Error::FromSqlConversionFailure(.., error)) => Ok(Some(format!(
            "the row of the user {id} in the embedded store cannot be decoded ({error}): run the version of kinsync that wrote it, \
             or restore the data folder"
        ))),
        decoded => decoded.map(|_| None),
    }
}

pub(super) fn write(sqlite: &Connection, rows: &[Row]) -> rusqlite::Result<Vec<Outcome>> {
    rows.iter().map(|row| write_one(sqlite, row)).collect()
}

fn write_one(sqlite: &Connection, row: &Row) -> rusqlite::Result<Outcome> {
    let (state, metadata) = (&row.state, &row.metadata);
    let sql = if row.revision == 0 { INSERT } else { UPDATE };
    let pending_emails = (!row.pending_emails.is_empty()).then(|| json(&row.pending_emails)).transpose()?;
    let written = sqlite.prepare_cached(sql)?.execute(named_params! {
        ":id": row.id.as_str(),
        ":revision": row.revision,
        ":live": state.is_live(),
        ":email": state.shown_email(metadata),
        ":claim": state.stored_email(metadata),
        ":state": json(state)?,
        ":holds_email": metadata.holds_email,
        ":held_by": metadata.email_held_by,
        ":inserted_at": metadata.inserted_at.0,
        ":updated_at": metadata.updated_at.0,
        ":source": metadata.source.map(Source::as_str),
        ":compared_since": metadata.compared_since,
        ":changed_after": metadata.changed_after,
        ":pending_emails": pending_emails,
        ":first_name": state.text(Field::FirstName),
        ":last_name": state.text(Field::LastName),
        ":phone": state.text(Field::Phone),
        ":provided_id": state.text(Field::ProvidedId),
        ":is_suspended": state.value(Field::IsSuspended) == Some(&Value::Flag(true)),
        ":deleted_at": state.deleted_at().map(|at| at.0),
    });
    match written {
        Ok(0) => {
            let fault = if row.revision == 0 { fault(sqlite, &row.id)? } else { None };
            Ok(fault.map_or(Outcome::Stale, |why| Outcome::Refused(why.into())))
        }
        Ok(_) => write_references(sqlite, row).map(|()| Outcome::Written),
        // The only remaining constraint: `email` is unique.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
            Ok(Outcome::EmailTaken)
        }
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::TooBig) => {
            Ok(Outcome::Refused("SQLite accepts texts up to 1 GB".into()))
        }
        Err(error) => Err(error),
    }
}

/// Keeps the index of [`referring`]. Unchanged references cost no write.
fn write_references(sqlite: &Connection, row: &Row) -> rusqlite::Result<()> {
    let (user, ids): (_, Vec<&str>) =
        (row.id.as_str(), row.state.directory.iter().map(|(id, _)| id).collect());
    let ids = json(&ids)?;
    let delete =
        "DELETE FROM user_references WHERE user = ?1 AND reference NOT IN (SELECT value FROM json_each(?2))";
    sqlite.prepare_cached(delete)?.execute((user, &ids))?;
    let insert = "INSERT OR IGNORE INTO user_references SELECT ?1, value FROM json_each(?2)";
    sqlite.prepare_cached(insert)?.execute((user, &ids)).map(|_| ())
}

pub(super) fn claimants(sqlite: &Connection, emails: &[String]) -> rusqlite::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for email in emails {
        rows.extend(select(sqlite, "WHERE claim = ?1", [email])?);
    }
    Ok(rows)
}

pub(super) fn email_holders(
    sqlite: &Connection,
    emails: Vec<String>,
) -> rusqlite::Result<HashMap<String, Holder>> {
    let mut select = sqlite.prepare_cached("SELECT id FROM users WHERE email = ?1")?;
    let mut holders = HashMap::new();
    for email in emails {
        let id: Option<String> = select.query_row([&email], |row| row.get(0)).optional()?;
        let holder = id.map(|id| UserId::parse(&id).map_or(Holder::Foreign(id), Holder::User));
        holders.extend(holder.map(|holder| (email, holder)));
    }
    Ok(holders)
}

pub(super) fn pending_emails(sqlite: &Connection, after: &str, limit: usize) -> rusqlite::Result<Vec<Row>> {
    let filter = "WHERE pending_emails IS NOT NULL AND id > ?1 ORDER BY id LIMIT ?2";
    select(sqlite, filter, (after, bound(limit)))
}

pub(super) fn ids(
    sqlite: &Connection,
    after: Option<&UserId>,
    limit: usize,
) -> rusqlite::Result<Vec<UserId>> {
    let mut select = sqlite.prepare_cached("SELECT id FROM users WHERE id > ?1 ORDER BY id LIMIT ?2")?;
    let ids = select.query_map((after.map_or("", UserId::as_str), bound(limit)), id)?;
    ids.collect()
}

pub(super) fn deleted_before(
    sqlite: &Connection,
    at: Micros,
    after: &str,
    limit: usize,
) -> rusqlite::Result<Vec<UserId>> {
    let sql = "SELECT id FROM users WHERE live = 0 AND id > ?1 AND json_extract(state, '$.deleted.t') < ?2 \
               AND json_extract(state, '$.erased') IS NULL ORDER BY id LIMIT ?3";
    let mut select = sqlite.prepare_cached(sql)?;
    select.query_map((after, at.0, bound(limit)), id)?.collect()
}

pub(super) fn referring(
    sqlite: &Connection,
    ids: &[String],
    after: Option<&UserId>,
    limit: usize,
) -> rusqlite::Result<Vec<UserId>> {
    let sql = "SELECT user FROM user_references WHERE reference = ?1 AND user > ?2 ORDER BY user LIMIT ?3";
    let mut select = sqlite.prepare_cached(sql)?;
    let after = after.map_or("", UserId::as_str);
    let mut users = BTreeSet::new();
    // Each page costs one range of the index for each reference, also where the references have many users.
    for reference in ids {
        for user in select.query_map((reference, after, bound(limit)), id)? {
            users.insert(user?);
        }
    }
    Ok(users.into_iter().take(limit).collect())
}

pub(super) fn count_members(
    sqlite: &Connection,
    codes: Vec<String>,
) -> rusqlite::Result<HashMap<String, u64>> {
    let sql = "SELECT count(*) FROM user_references JOIN users ON users.id = user_references.user \
               WHERE user_references.reference = ?1 AND users.live = 1";
    let mut select = sqlite.prepare_cached(sql)?;
    let count = |code: String| {
        let count: i64 = select.query_row([&code], |row| row.get(0))?;
        Ok((code, count.unsigned_abs()))
    };
    codes.into_iter().map(count).collect()
}

fn id(columns: &rusqlite::Row<'_>) -> rusqlite::Result<UserId> {
    let id: String = columns.get(0)?;
    Ok(UserId::parse(&id).map_err(|error| FromSqlError::Other(error.into()))?)
}

pub(super) fn counts(sqlite: &Connection) -> rusqlite::Result<Counts> {
    let count = |sql: &str| {
        sqlite.prepare_cached(sql)?.query_row([], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
    };
    let users = count("SELECT count(*) FROM users")?;
    let deleted_users = count("SELECT count(*) FROM users WHERE live = 0")?;
    let events = count("SELECT count(*) FROM events")?;
    Ok(Counts { live_users: users - deleted_users, deleted_users, events })
}

pub(super) fn bound(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Returns rows. Those that cannot be decoded are left out.
fn select(sqlite: &Connection, tail: &str, parameters: impl Params) -> rusqlite::Result<Vec<Row>> {
    let mut select = sqlite.prepare_cached(&format!("{COLUMNS} {tail}"))?;
    let rows = select.query_map(parameters, readable)?;
    rows.filter_map(Result::transpose).collect()
}

pub(super) fn row(columns: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let id: String = columns.get("id")?;
    let id = UserId::parse(&id).map_err(|error| FromSqlError::Other(error.into()))?;
    let source: Option<String> = columns.get("source")?;
    let pending_emails: Option<String> = columns.get("pending_emails")?;
    Ok(Row {
        id,
        revision: columns.get("revision")?,
        state: parse::<UserState>(&columns.get::<_, String>("state")?)?,
        metadata: RowMetadata {
            holds_email: columns.get("holds_email")?,
            keeps_email: false,
            lowercases_email: false,
            email_held_by: columns.get("held_by")?,
            inserted_at: Micros(columns.get("inserted_at")?),
            updated_at: Micros(columns.get("updated_at")?),
            source: source.as_deref().and_then(Source::from_name),
            compared_since: columns.get("compared_since")?,
            changed_after: columns.get("changed_after")?,
        },
        pending_emails: pending_emails.as_deref().map(parse).transpose()?.unwrap_or_default(),
        refused: RefusedKeys::default(),
        has_unshown_memberships: false,
        is_recorded: false,
        document: None,
    })
}

fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

fn parse<T: DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    let parsed = serde_json::from_str(text);
    parsed.map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into()))
}
