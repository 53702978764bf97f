//! Lists of users. An index answers one filter; the others are compared with what it selects.

use std::{collections::BTreeMap, sync::Arc};

use kinsync_core::{Field, Micros, UserId, Value, email::folded};
use kinsync_engine::internal::{
    directory,
    known_users::KnownUser,
    refused_users,
    store::{Page, Row, Selection, Store, UserFilter},
};

use super::{NO_POSITION, bad_parameter, limit};
use crate::{
    api::users::{STATES, UserPage, UsersQuery},
    app::AppState,
    http::{answer::Result, route::Params},
};

/// A state to filter by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    Live,
    Deleted,
    Suspended,
    Conflict,
    Refused,
}

impl Standing {
    /// In the order of [`STATES`].
    const ALL: [Self; STATES.len()] =
        [Self::Live, Self::Deleted, Self::Suspended, Self::Conflict, Self::Refused];

    fn parse(name: &str) -> Result<Self> {
        let known = STATES.iter().zip(Self::ALL).find(|(known, _)| **known == name);
        let unknown = || bad_parameter(format!("`state` must be one of {}", STATES.join(", ")));
        known.map(|(_, state)| state).ok_or_else(unknown)
    }
}

/// What an index answers.
enum Answer {
    Selection(Selection),
    /// The users with one of these references: the code of an organization, or ids of roles.
    References(Vec<String>),
    /// The users with a document or a part of it that the database refuses.
    Refused,
}

/// GET /api/admin/users
pub async fn users(state: Arc<AppState>, Params(query): Params<UsersQuery>) -> Result<UserPage> {
    let limit = limit(query.limit)?;
    let standing = query.state.as_deref().map(Standing::parse).transpose()?;
    let with_deleted = match standing {
        Some(Standing::Live) => false,
        Some(Standing::Deleted | Standing::Refused) => true,
        Some(Standing::Suspended | Standing::Conflict) | None => query.deleted,
    };
    let store = &**state.engine.store();
    let mut filter =
        UserFilter { selection: Selection::All, with_deleted, after: query.after.clone(), limit };
    let mut page = match answer(&state, &query, standing).await? {
        Answer::Selection(selection) => {
            filter.selection = selection;
            if !filter.has_valid_position() {
                return Err(bad_parameter(NO_POSITION));
            }
            store.users(&filter).await?
        }
        Answer::References(ids) => referring(store, &ids, &filter).await?,
        Answer::Refused => refused(store, &filter).await?,
    };
    page.items.retain(|row| (with_deleted || row.state.is_live()) && is_listed(row, &query, standing));
    let users = page.iter().map(Row::document).collect();
    Ok(UserPage { users, next: page.next, undecodable: page.undecodable })
}

/// Chooses the filter that an index answers.
async fn answer(state: &AppState, query: &UsersQuery, standing: Option<Standing>) -> Result<Answer> {
    let selects_few = query.email.is_some() || query.provided_id.is_some() || query.phone.is_some();
    if selects_few && standing == Some(Standing::Refused) {
        // No index of a value contains the users without a document.
        return Ok(Answer::Refused);
    }
    if let Some(email) = &query.email {
        return Ok(Answer::Selection(Selection::Email(email.clone())));
    }
    if let Some(id) = &query.provided_id {
        return Ok(Answer::Selection(Selection::ProvidedId(id.clone())));
    }
    if let Some(phone) = &query.phone {
        return Ok(Answer::Selection(Selection::Phone(phone.clone())));
    }
    only_one(query, standing)?;
    if let Some(prefix) = &query.email_prefix {
        return Ok(Answer::Selection(Selection::EmailPrefix(prefix.clone())));
    }
    if let Some(prefix) = &query.name_prefix {
        return Ok(Answer::Selection(Selection::NamePrefix(prefix.clone())));
    }
    if let Some(since) = query.changed_since {
        return Ok(Answer::Selection(Selection::ChangedSince(since.into())));
    }
    if let Some(ids) = references(state, query).await? {
        return Ok(Answer::References(ids));
    }
    Ok(match standing {
        None | Some(Standing::Live) => Answer::Selection(Selection::All),
        Some(Standing::Deleted) => Answer::Selection(Selection::Deleted),
        Some(Standing::Suspended) => Answer::Selection(Selection::Suspended),
        Some(Standing::Conflict) => Answer::Selection(Selection::InConflict),
        Some(Standing::Refused) => Answer::Refused,
    })
}

/// Refuses filters that select many users each: no index answers both.
fn only_one(query: &UsersQuery, standing: Option<Standing>) -> Result<()> {
    let wide = [
        ("email_prefix", query.email_prefix.is_some()),
        ("name_prefix", query.name_prefix.is_some()),
        ("organization", query.organization.is_some()),
        ("role", query.role.is_some() && query.organization.is_none()),
        ("state", standing.is_some_and(|standing| standing != Standing::Live)),
        ("changed_since", query.changed_since.is_some()),
    ];
    let set: Vec<&str> = wide.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect();
    if let [one, other, ..] = set[..] {
        return Err(bad_parameter(format!(
            "`{one}` and `{other}` cannot be combined: an index answers one of them; leave one out, or add `email`, `phone` or \
             `provided_id`, which select few users"
        )));
    }
    let is_blank = |prefix: &Option<String>| prefix.as_deref().is_some_and(|prefix| prefix.trim().is_empty());
    if is_blank(&query.email_prefix) || is_blank(&query.name_prefix) {
        return Err(bad_parameter("a prefix must contain a character other than white space"));
    }
    Ok(())
}

/// Returns the code of the organization, else the ids of the roles with the key; `None` without such a filter.
async fn references(state: &AppState, query: &UsersQuery) -> Result<Option<Vec<String>>> {
    let Some(role) = query.role.as_ref().filter(|_| query.organization.is_none()) else {
        return Ok(query.organization.clone().map(|code| vec![code]));
    };
    let ids = directory::roles_with_key(&**state.engine.store(), role).await?;
    // An old event contains keys alone.
    Ok(Some(ids.into_iter().chain([role.clone()]).collect()))
}

async fn referring(store: &dyn Store, ids: &[String], filter: &UserFilter) -> Result<Page<Row>> {
    let users = store.referring(ids, after(filter).as_ref(), filter.limit).await?;
    let next = users.last().map(ToString::to_string).filter(|_| users.len() == filter.limit);
    let items = store.load(&users).await?.into_iter().flatten().collect();
    Ok(Page { items, next, undecodable: Vec::new() })
}

fn after(filter: &UserFilter) -> Option<UserId> {
    filter.after.as_deref().and_then(|id| UserId::parse(id).ok())
}

/// Lists the users with refused keys and the users without a document of their newest state, in the order of their ids.
async fn refused(store: &dyn Store, filter: &UserFilter) -> Result<Page<Row>> {
    let filter = UserFilter { selection: Selection::WithRefusedKeys, with_deleted: true, ..filter.clone() };
    let keys = store.users(&filter).await?;
    let records = refused_users::list(store, after(&filter).as_ref(), filter.limit).await?;
    // Behind the end of either page the other one is not complete.
    let end_of_records =
        records.last().filter(|_| records.len() == filter.limit).map(|one| one.id.to_string());
    let end = keys.next.clone().into_iter().chain(end_of_records).min();
    let ids: Vec<UserId> = records.iter().map(|one| one.id.clone()).collect();
    let rows = store.load(&ids).await?;
    let known = records.into_iter().zip(rows);
    let known = known.filter_map(|(one, row)| KnownUser::of(&one.id, row, Some(one.user))).map(|one| one.row);
    let all: BTreeMap<UserId, Row> =
        keys.items.into_iter().chain(known).map(|row| (row.id.clone(), row)).collect();
    let is_within = |row: &Row| end.as_deref().is_none_or(|end| row.id.as_str() <= end);
    let mut items: Vec<Row> = all.into_values().filter(is_within).collect();
    let next = if items.len() > filter.limit { Some(items[filter.limit - 1].id.to_string()) } else { end };
    items.truncate(filter.limit);
    Ok(Page { items, next, undecodable: keys.undecodable })
}

/// Returns whether a user has everything that the query filters by, apart from the state `refused`, which the list of these users answers.
fn is_listed(row: &Row, query: &UsersQuery, standing: Option<Standing>) -> bool {
    let (state, claimed) = (&row.state, row.state.claimed_email().map(folded));
    let is = |field, wanted: &Option<String>| {
        wanted.as_deref().is_none_or(|wanted| state.text(field) == Some(wanted))
    };
    let begins = |text: Option<&str>, prefix: &str| {
        text.is_some_and(|text| text.to_ascii_lowercase().starts_with(&folded(prefix)))
    };
    let names = [Field::FirstName, Field::LastName].map(|field| state.text(field));
    let has_state = match standing {
        None | Some(Standing::Refused) => true,
        Some(Standing::Live) => state.is_live(),
        Some(Standing::Deleted) => !state.is_live(),
        Some(Standing::Suspended) => state.value(Field::IsSuspended) == Some(&Value::Flag(true)),
        Some(Standing::Conflict) => row.metadata.email_held_by.is_some(),
    };
    has_state
        && query.email.as_deref().is_none_or(|email| claimed.as_deref() == Some(&folded(email)))
        && query.email_prefix.as_deref().is_none_or(|prefix| begins(claimed.as_deref(), prefix))
        && query.name_prefix.as_deref().is_none_or(|prefix| names.iter().any(|name| begins(*name, prefix)))
        && is(Field::Phone, &query.phone)
        && is(Field::ProvidedId, &query.provided_id)
        && query.changed_since.is_none_or(|since| row.metadata.updated_at >= Micros::from(since))
        && is_member(row, query)
}

fn is_member(row: &Row, query: &UsersQuery) -> bool {
    if query.organization.is_none() && query.role.is_none() {
        return true;
    }
    row.state.organizations().into_iter().flatten().any(|one| {
        let has_role = |key| one.roles.iter().flatten().any(|known| known == key);
        query.organization.as_ref().is_none_or(|code| one.code == *code)
            && query.role.as_ref().is_none_or(has_role)
    })
}
