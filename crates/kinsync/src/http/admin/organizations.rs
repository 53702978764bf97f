//! Organizations and roles, and users by organization and role.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kinsync_core::UserId;
use kinsync_engine::internal::{
    directory::{self, Kind, Stored},
    store::{Page, Row, Store, UserFilter},
};

use super::{Params, limit, not_found};
use crate::{
    api::{
        organizations::{
            OrganizationDetails, OrganizationPage, OrganizationsQuery, RoleDetails, RolePage, RolesQuery,
        },
        users::UsersQuery,
    },
    app::AppState,
    http::{answer::Result, route::Id},
};

/// GET /api/admin/organizations
pub async fn organizations(
    state: Arc<AppState>,
    Params(query): Params<OrganizationsQuery>,
) -> Result<OrganizationPage> {
    let limit = limit(query.limit)?;
    let after = query.after.unwrap_or_default();
    let is_shown = |stored: &Stored| query.deleted || stored.entry.is_live();
    let store = state.engine.store();
    let page = directory::page(&**store, Kind::Organization, &after, limit, is_shown).await?;
    let codes: Vec<String> = page.items.iter().map(|(code, _)| code.clone()).collect();
    let (counts, now) = (store.count_members(&codes).await?, state.engine.clock().now());
    let (next, undecodable) = (page.next, page.undecodable);
    let details = |(code, stored): (String, Stored)| {
        let count = counts.get(&code).copied().unwrap_or_default();
        OrganizationDetails::new(code, &stored, (count, now))
    };
    Ok(OrganizationPage { organizations: page.items.into_iter().map(details).collect(), next, undecodable })
}

/// GET /api/admin/organizations/{id}
pub async fn organization(state: Arc<AppState>, Id(code): Id) -> Result<OrganizationDetails> {
    let store = state.engine.store();
    let stored = directory::find(&**store, &code).await?;
    let stored = stored.filter(|stored| stored.kind == Kind::Organization);
    let stored = stored.ok_or_else(|| not_found("organization"))?;
    let counts = store.count_members(std::slice::from_ref(&code)).await?;
    let count = counts.get(&code).copied().unwrap_or_default();
    Ok(OrganizationDetails::new(code, &stored, (count, state.engine.clock().now())))
}

/// GET /api/admin/roles
pub async fn roles(state: Arc<AppState>, Params(query): Params<RolesQuery>) -> Result<RolePage> {
    let limit = limit(query.limit)?;
    let after = query.after.unwrap_or_default();
    let is_shown = |stored: &Stored| query.deleted || stored.entry.is_live();
    let store = state.engine.store();
    let page = directory::page(&**store, Kind::Role, &after, limit, is_shown).await?;
    let permissions = permissions(&**store, page.items.iter().map(|(_, stored)| stored)).await?;
    let (next, undecodable) = (page.next, page.undecodable);
    let details = |(id, stored): (String, Stored)| RoleDetails::new(id, &stored, &permissions);
    Ok(RolePage { roles: page.items.into_iter().map(details).collect(), next, undecodable })
}

/// GET /api/admin/roles/{id}
pub async fn role(state: Arc<AppState>, Id(id): Id) -> Result<RoleDetails> {
    let store = state.engine.store();
    let stored = directory::find(&**store, &id).await?.filter(|stored| stored.kind == Kind::Role);
    let stored = stored.ok_or_else(|| not_found("role"))?;
    let permissions = permissions(&**store, [&stored].into_iter()).await?;
    Ok(RoleDetails::new(id, &stored, &permissions))
}

/// Returns the permissions that these roles give.
async fn permissions<'a>(
    store: &dyn Store,
    roles: impl Iterator<Item = &'a Stored>,
) -> Result<BTreeMap<String, Stored>> {
    let given = roles.flat_map(|role| role.entry.permissions().into_iter().flatten());
    let given: BTreeSet<String> = given.cloned().collect();
    Ok(directory::read(store, &given.into_iter().collect::<Vec<_>>()).await?)
}

/// Returns the users that the filter finds and that are members of the organization of the query, with its role. A page may
/// contain fewer users than the limit, also if it is not the last one.
pub(super) async fn members(state: &AppState, filter: &UserFilter, query: &UsersQuery) -> Result<Page<Row>> {
    let store = state.engine.store();
    let is_by_value = filter.email.is_some() || filter.provided_id.is_some();
    let mut page = match references(state, query).await? {
        Some(ids) if !is_by_value => {
            let after = filter.after.as_deref().and_then(|id| UserId::parse(id).ok());
            let users = store.referring(&ids, after.as_ref(), filter.limit).await?;
            let next = users.last().map(ToString::to_string).filter(|_| users.len() == filter.limit);
            let items = store.load(&users).await?.into_iter().flatten().collect();
            Page { items, next, undecodable: Vec::new() }
        }
        _ => store.users(filter).await?,
    };
    page.items.retain(|row| (filter.with_deleted || row.state.is_live()) && is_member(row, query));
    Ok(page)
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
