//! `/api/v1/organizations/{code}/users` with roles and permissions.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::cursor::PageRequest;
use super::organizations::page;
use super::roles::shown_permission;
use super::users::{error_of, view};
use crate::clock::ApiTime;
use crate::config::Missing;
use crate::emulator::Emulator;
use crate::event::Source;
use crate::faults::FaultKind;
use crate::routes::response::{Body, ErrorResponse, Params, optional, success};
use crate::tenant::{self, Assign};
use crate::user::{Membership, User};

#[derive(Deserialize)]
pub(super) struct ListQuery {
    page_size: Option<String>,
    next_token: Option<String>,
    roles: Option<String>,
    permissions: Option<String>,
}

/// The keys of a filter; members match that have all of them.
fn keys(text: Option<&str>) -> Vec<String> {
    let words = text.unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

pub(super) async fn list(
    State(emulator): State<Emulator>,
    Path(code): Path<String>,
    Params(query): Params<ListQuery>,
) -> Result<Response, ErrorResponse> {
    let request =
        PageRequest::new(&emulator, "members", query.page_size.as_deref(), query.next_token.as_deref())?;
    let (roles, permissions) = (keys(query.roles.as_deref()), keys(query.permissions.as_deref()));
    let missing = emulator.config().unknowns.missing_in_api;
    let tenant = emulator.tenant();
    if tenant.directory.organizations.get(&code).is_none() {
        return Err(error_of(&emulator, &tenant::Error::UnknownOrganization(code)));
    }
    let has = |member: &Membership| {
        roles.iter().all(|key| member.roles.iter().any(|grant| grant.key == *key))
            && permissions.iter().all(|key| member.permissions.iter().any(|grant| grant.key == *key))
    };
    let start = match request.from.pagination {
        crate::config::Pagination::Cursor => request.from.at,
        crate::config::Pagination::Offset => 0,
    };
    let view = view(&tenant, &request.faults);
    let has_roles = !request.faults.contains(&FaultKind::NoRoles);
    let members = view.members(&code, start).filter_map(|(position, user)| {
        let member = user.membership(&code).filter(|member| has(member))?;
        let mut item = shown(&user, member, missing);
        if !has_roles {
            item["roles"] = json!([]);
        }
        Some((position, item))
    });
    let (items, next) = request.turn(request.skip(members));
    Ok(page(&emulator, "organization_users", &items, next))
}

fn shown(user: &User, member: &Membership, missing: Missing) -> Value {
    let roles: Vec<&str> = member.roles.iter().map(|grant| grant.key.as_str()).collect();
    let mut item = json!({
        "id": user.id,
        "full_name": user.full_name(),
        "joined_on": ApiTime(member.joined_on),
        "last_accessed_on": user.last_signed_in.map(ApiTime),
        "is_suspended": member.is_suspended,
        "roles": roles,
    });
    let texts = [
        ("email", &user.email),
        ("last_name", &user.last_name),
        ("first_name", &user.first_name),
        ("picture", &user.picture),
    ];
    for (name, value) in texts {
        optional(&mut item, name, value.as_deref(), missing);
    }
    item
}

#[derive(Deserialize)]
pub(super) struct MembersBody {
    users: Vec<MemberBody>,
}

/// A member with the keys of all its roles and permissions.
#[derive(Deserialize)]
struct MemberBody {
    id: String,
    operation: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    permissions: Vec<String>,
}

pub(super) async fn add(
    State(emulator): State<Emulator>,
    Path(code): Path<String>,
    Body(body): Body<MembersBody>,
) -> Result<Response, ErrorResponse> {
    check(&emulator, &code)?;
    for user in &body.users {
        let added = emulator.add_to_organization(&user.id, &code, &user.roles, &user.permissions);
        added.map_err(|error| error_of(&emulator, &error))?;
    }
    let ids: Vec<&String> = body.users.iter().map(|user| &user.id).collect();
    Ok(success("OK", "Success", json!({"users_added": ids})))
}

pub(super) async fn update(
    State(emulator): State<Emulator>,
    Path(code): Path<String>,
    Body(body): Body<MembersBody>,
) -> Result<Response, ErrorResponse> {
    check(&emulator, &code)?;
    let (mut added, mut updated, mut removed) = (Vec::new(), Vec::new(), Vec::new());
    for MemberBody { id, operation, roles, permissions } in body.users {
        let is_member = emulator.user(&id).is_some_and(|user| user.membership(&code).is_some());
        let (list, changed) = match (operation.as_deref(), is_member) {
            (Some("delete"), _) => {
                (&mut removed, emulator.remove_from_organization_as(&id, &code, Source::Api))
            }
            (_, true) => (&mut updated, emulator.add_to_organization(&id, &code, &roles, &permissions)),
            (_, false) => (&mut added, emulator.add_to_organization(&id, &code, &roles, &permissions)),
        };
        changed.map_err(|error| error_of(&emulator, &error))?;
        list.push(id);
    }
    let body = json!({"users_added": added, "users_updated": updated, "users_removed": removed});
    Ok(success("OK", "Success", body))
}

fn check(emulator: &Emulator, code: &str) -> Result<(), ErrorResponse> {
    let known = emulator.tenant().directory.organizations.get(code).is_some();
    let unknown = || error_of(emulator, &tenant::Error::UnknownOrganization(code.to_owned()));
    known.then_some(()).ok_or_else(unknown)
}

pub(super) async fn remove(
    State(emulator): State<Emulator>,
    Path((code, id)): Path<(String, String)>,
) -> Result<Response, ErrorResponse> {
    let removed = emulator.remove_from_organization_as(&id, &code, Source::Api);
    removed.map_err(|error| error_of(&emulator, &error))?;
    Ok(success("OK", "User successfully removed", json!({})))
}

/// The user, with the faults of reading it applied, if it is a member.
fn member(emulator: &Emulator, code: &str, id: &str) -> Result<Membership, ErrorResponse> {
    let faults = emulator.faults_table().on_read(id);
    let user = view(&emulator.tenant(), &faults).by_id(id).map(std::borrow::Cow::into_owned);
    let user = user.ok_or_else(|| error_of(emulator, &tenant::Error::UnknownUser(id.to_owned())))?;
    let member = user.membership(code).cloned();
    member.ok_or_else(|| error_of(emulator, &tenant::Error::NotAMember(id.to_owned())))
}

pub(super) async fn roles(
    State(emulator): State<Emulator>,
    Path((code, id)): Path<(String, String)>,
) -> Result<Response, ErrorResponse> {
    let mut member = member(&emulator, &code, &id)?;
    if emulator.faults_table().empties("member_roles") {
        member.roles.clear();
    }
    let tenant = emulator.tenant();
    let roles = member.roles.iter().filter_map(|grant| tenant.directory.roles.get(&grant.id));
    let items: Vec<Value> =
        roles.map(|role| json!({"id": role.id, "key": role.key, "name": role.name})).collect();
    Ok(page(&emulator, "roles", &items, None))
}

#[derive(Deserialize)]
pub(super) struct PermissionsQuery {
    expand: Option<String>,
}

pub(super) async fn permissions(
    State(emulator): State<Emulator>,
    Path((code, id)): Path<(String, String)>,
    Params(query): Params<PermissionsQuery>,
) -> Result<Response, ErrorResponse> {
    let member = member(&emulator, &code, &id)?;
    let faults = emulator.faults_table().on_page("member_permissions");
    let is_empty = faults.contains(&FaultKind::EmptyList);
    let has_roles = query.expand.as_deref() == Some("roles") && !faults.contains(&FaultKind::NoRoles);
    let unknowns = &emulator.config().unknowns;
    let tenant = emulator.tenant();
    let listed = tenant.directory.permissions_of(&member, unknowns.user_permissions);
    let item = |(permission, roles): (&_, Vec<_>)| {
        let mut item = shown_permission(permission, unknowns.missing_in_api);
        if has_roles {
            let roles: Vec<Value> = roles.into_iter().map(shown_role_key).collect();
            item["roles"] = json!(roles);
        }
        item
    };
    let items: Vec<Value> = listed.into_iter().filter(|_| !is_empty).map(item).collect();
    Ok(success("OK", "Success", json!({"permissions": items})))
}

fn shown_role_key(role: &crate::directory::Role) -> Value {
    json!({"id": role.id, "key": role.key})
}

#[derive(Deserialize)]
pub(super) struct RoleBody {
    role_id: String,
}

#[derive(Deserialize)]
pub(super) struct PermissionBody {
    permission_id: String,
}

pub(super) async fn add_role(
    State(emulator): State<Emulator>,
    Path((code, id)): Path<(String, String)>,
    Body(body): Body<RoleBody>,
) -> Result<Response, ErrorResponse> {
    assign(&emulator, &code, &id, Assign::Role(&body.role_id))
}

pub(super) async fn remove_role(
    State(emulator): State<Emulator>,
    Path((code, id, role)): Path<(String, String, String)>,
) -> Result<Response, ErrorResponse> {
    assign(&emulator, &code, &id, Assign::RemoveRole(&role))
}

pub(super) async fn add_permission(
    State(emulator): State<Emulator>,
    Path((code, id)): Path<(String, String)>,
    Body(body): Body<PermissionBody>,
) -> Result<Response, ErrorResponse> {
    assign(&emulator, &code, &id, Assign::Permission(&body.permission_id))
}

pub(super) async fn remove_permission(
    State(emulator): State<Emulator>,
    Path((code, id, permission)): Path<(String, String, String)>,
) -> Result<Response, ErrorResponse> {
    assign(&emulator, &code, &id, Assign::RemovePermission(&permission))
}

fn assign(emulator: &Emulator, code: &str, id: &str, assign: Assign<'_>) -> Result<Response, ErrorResponse> {
    let assigned = emulator.assign_as(id, code, assign, Source::Api);
    assigned.map_err(|error| error_of(emulator, &error))?;
    Ok(success("OK", "Success", json!({})))
}
