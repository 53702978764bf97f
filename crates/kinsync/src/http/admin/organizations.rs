//! Organizations, and users by organization and role.

use std::sync::Arc;

use kinsync_core::{Fact, UserId};
use kinsync_engine::internal::{
    directory::{self, Kind, Stored},
    store::{Page, Row, UserFilter},
};

use super::{Params, limit, not_found};
use crate::{
    api::{
        organizations::{OrganizationDetails, OrganizationPage, OrganizationsQuery},
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
    let page = directory::organizations(&**state.engine.store(), &after, limit, is_shown).await?;
    let (next, undecodable) = (page.next, page.undecodable);
    let organizations = page.items.into_iter().map(|(code, stored)| OrganizationDetails::new(code, &stored));
    Ok(OrganizationPage { organizations: organizations.collect(), next, undecodable })
}

/// GET /api/admin/organizations/{id}
pub async fn organization(state: Arc<AppState>, Id(code): Id) -> Result<OrganizationDetails> {
    let stored = directory::find(&**state.engine.store(), &code).await?;
    let stored = stored.filter(|stored| stored.kind == Kind::Organization);
    stored.map(|stored| OrganizationDetails::new(code, &stored)).ok_or_else(|| not_found("organization"))
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
    let all = directory::list(&**state.engine.store()).await?.stored;
    let has_key = |(_, stored): &(&String, &Stored)| stored.entry.text(Fact::Key) == Some(role);
    let ids = all.iter().filter(has_key).map(|(id, _)| id.clone());
    // An old event contains keys alone.
    Ok(Some(ids.chain([role.clone()]).collect()))
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
