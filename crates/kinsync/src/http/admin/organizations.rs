//! Organizations and roles.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kinsync_engine::internal::{
    directory::{self, Kind, Stored},
    store::Store,
};

use super::{Params, limit, not_found};
use crate::{
    api::organizations::{
        OrganizationDetails, OrganizationPage, OrganizationsQuery, RoleDetails, RolePage, RolesQuery,
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
