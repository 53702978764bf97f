//! `/api/v1/roles` and `/api/v1/permissions`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::cursor::PageRequest;
use super::organizations::{ListQuery, page};
use super::users::error_of;
use crate::config::Missing;
use crate::directory::{Permission, Role, RoleEdit};
use crate::emulator::Emulator;
use crate::event::Source;
use crate::routes::response::{Body, ErrorResponse, Params, optional, success};

fn request(emulator: &Emulator, route: &str, query: &ListQuery) -> Result<PageRequest, ErrorResponse> {
    PageRequest::new(emulator, route, query.page_size.as_deref(), query.next_token.as_deref())
}

pub(super) async fn list(
    State(emulator): State<Emulator>,
    Params(query): Params<ListQuery>,
) -> Result<Response, ErrorResponse> {
    let request = request(&emulator, "roles", &query)?;
    let missing = emulator.config().unknowns.missing_in_api;
    let tenant = emulator.tenant();
    let all = request.skip(tenant.directory.roles.positions());
    let (items, next) = request.turn(all.map(|(at, role)| (at, shown_role(role, missing))));
    Ok(page(&emulator, "roles", &items, next))
}

pub(super) fn shown_role(role: &Role, missing: Missing) -> Value {
    let mut item = json!({
        "id": role.id,
        "key": role.key,
        "name": role.name,
        "is_default_role": role.is_default_role,
    });
    optional(&mut item, "description", role.description.as_deref(), missing);
    item
}

pub(super) fn shown_permission(permission: &Permission, missing: Missing) -> Value {
    let mut item = json!({"id": permission.id, "key": permission.key, "name": permission.name});
    optional(&mut item, "description", permission.description.as_deref(), missing);
    item
}

pub(super) async fn read(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
) -> Result<Response, ErrorResponse> {
    let role = emulator.tenant().role(&id).cloned().map_err(|error| error_of(&emulator, &error))?;
    let role = shown_role(&role, emulator.config().unknowns.missing_in_api);
    Ok(success("OK", "Success", json!({"role": role})))
}

/// The fields of a role or a permission.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct RoleBody {
    name: Option<String>,
    description: Option<String>,
    key: Option<String>,
    is_default_role: Option<bool>,
}

impl From<RoleBody> for RoleEdit {
    fn from(body: RoleBody) -> Self {
        let RoleBody { name, description, key, is_default_role } = body;
        Self { key, name, description, is_default_role }
    }
}

/// A response with status 201, which Kinde documents for some changes.
fn created(code: &str, message: &str, rest: Value) -> Response {
    let mut response = success(code, message, rest);
    *response.status_mut() = StatusCode::CREATED;
    response
}

pub(super) async fn create(
    State(emulator): State<Emulator>,
    Body(body): Body<RoleBody>,
) -> Result<Response, ErrorResponse> {
    let role = emulator.create_role_as(body.into(), Source::Api);
    let role = role.map_err(|error| error_of(&emulator, &error))?;
    Ok(created("ROLE_CREATED", "Role successfully created", json!({"role": {"id": role.id}})))
}

pub(super) async fn update(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
    Body(body): Body<RoleBody>,
) -> Result<Response, ErrorResponse> {
    let updated = emulator.update_role_as(&id, body.into(), Source::Api);
    updated.map_err(|error| error_of(&emulator, &error))?;
    Ok(created("ROLE_UPDATED", "Role successfully updated", json!({})))
}

pub(super) async fn delete(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
) -> Result<Response, ErrorResponse> {
    emulator.delete_role_as(&id, Source::Api).map_err(|error| error_of(&emulator, &error))?;
    Ok(success("ROLE_DELETED", "Role successfully deleted", json!({})))
}

pub(super) async fn permissions(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
    Params(query): Params<ListQuery>,
) -> Result<Response, ErrorResponse> {
    let request = request(&emulator, "role_permissions", &query)?;
    let missing = emulator.config().unknowns.missing_in_api;
    let tenant = emulator.tenant();
    let role = tenant.role(&id).map_err(|error| error_of(&emulator, &error))?;
    let all = tenant.directory.permissions.positions();
    let of_role = all.filter(|(_, permission)| role.permissions.contains(&permission.id));
    let shown = request.skip(of_role).map(|(at, permission)| (at, shown_permission(permission, missing)));
    let (items, next) = request.turn(shown);
    Ok(page(&emulator, "permissions", &items, next))
}

#[derive(Deserialize)]
pub(super) struct PermissionsBody {
    permissions: Vec<PermissionChange>,
}

#[derive(Deserialize)]
struct PermissionChange {
    id: String,
    operation: Option<String>,
}

pub(super) async fn set_permissions(
    State(emulator): State<Emulator>,
    Path(role): Path<String>,
    Body(body): Body<PermissionsBody>,
) -> Result<Response, ErrorResponse> {
    let is_removed = |change: &PermissionChange| change.operation.as_deref() == Some("delete");
    let (removed, added): (Vec<_>, Vec<_>) = body.permissions.into_iter().partition(is_removed);
    let ids = |list: Vec<PermissionChange>| list.into_iter().map(|change| change.id).collect::<Vec<_>>();
    let (added, removed) = (ids(added), ids(removed));
    let set = emulator.set_role_permissions(&role, &added, &removed);
    set.map_err(|error| error_of(&emulator, &error))?;
    let body = json!({"permissions_added": added, "permissions_removed": removed});
    Ok(success("OK", "Success", body))
}

pub(super) async fn remove_permission(
    State(emulator): State<Emulator>,
    Path((role, permission)): Path<(String, String)>,
) -> Result<Response, ErrorResponse> {
    let removed = emulator.set_role_permissions(&role, &[], &[permission]);
    removed.map_err(|error| error_of(&emulator, &error))?;
    Ok(success("PERMISSION_REMOVED", "Permission successfully removed", json!({})))
}

/// Lists the users with a role, with the codes of the organizations in which they have it.
pub(super) async fn users(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
    Params(query): Params<ListQuery>,
) -> Result<Response, ErrorResponse> {
    users_with_role(&emulator, &id, &query, |user, codes| json!({"id": user, "org_codes": codes}))
}

/// Lists the users with a role in one organization.
pub(super) async fn users_in_organization(
    State(emulator): State<Emulator>,
    Path((code, id)): Path<(String, String)>,
    Params(query): Params<ListQuery>,
) -> Result<Response, ErrorResponse> {
    users_with_role(&emulator, &id, &query, |user, codes| {
        if codes.contains(&code.as_str()) { json!({"id": user}) } else { Value::Null }
    })
}

/// Lists the users with a role as `show` returns them for an id and codes; `null` leaves a user out.
fn users_with_role(
    emulator: &Emulator,
    id: &str,
    query: &ListQuery,
    show: impl Fn(&str, &[&str]) -> Value,
) -> Result<Response, ErrorResponse> {
    let request = request(emulator, "role_users", query)?;
    let tenant = emulator.tenant();
    tenant.role(id).map_err(|error| error_of(emulator, &error))?;
    let view = super::users::view(&tenant, &request.faults);
    let users = view.from(0).filter_map(|(position, user)| {
        let has_role = |member: &&crate::user::Membership| member.roles.iter().any(|grant| grant.id == id);
        let members = user.organizations.iter().filter(has_role);
        let codes: Vec<&str> = members.map(|member| member.code.as_str()).collect();
        let shown = if codes.is_empty() { Value::Null } else { show(&user.id, &codes) };
        (!shown.is_null()).then_some((position, shown))
    });
    let (items, next) = request.turn(request.skip(users));
    Ok(page(emulator, "users", &items, next))
}

pub(super) async fn list_permissions(
    State(emulator): State<Emulator>,
    Params(query): Params<ListQuery>,
) -> Result<Response, ErrorResponse> {
    let request = request(&emulator, "permissions", &query)?;
    let missing = emulator.config().unknowns.missing_in_api;
    let tenant = emulator.tenant();
    let all = request.skip(tenant.directory.permissions.positions());
    let (items, next) = request.turn(all.map(|(at, one)| (at, shown_permission(one, missing))));
    Ok(page(&emulator, "permissions", &items, next))
}

pub(super) async fn create_permission(
    State(emulator): State<Emulator>,
    Body(body): Body<RoleBody>,
) -> Result<Response, ErrorResponse> {
    let made = emulator.create_permission_as(body.into(), Source::Api);
    made.map_err(|error| error_of(&emulator, &error))?;
    Ok(created("PERMISSION_CREATED", "Permission successfully created", json!({})))
}

pub(super) async fn update_permission(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
    Body(body): Body<RoleBody>,
) -> Result<Response, ErrorResponse> {
    let updated = emulator.update_permission_as(&id, body.into(), Source::Api);
    updated.map_err(|error| error_of(&emulator, &error))?;
    Ok(success("PERMISSION_UPDATED", "Permission successfully updated", json!({})))
}

pub(super) async fn delete_permission(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
) -> Result<Response, ErrorResponse> {
    emulator.delete_permission_as(&id, Source::Api).map_err(|error| error_of(&emulator, &error))?;
    Ok(success("PERMISSION_DELETED", "Permission successfully deleted", json!({})))
}
