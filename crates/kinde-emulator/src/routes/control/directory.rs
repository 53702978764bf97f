//! Organizations, memberships, roles, permissions and properties in the control API.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::json;

use super::{Reply, reply};
use crate::directory::{OrganizationEdit, PropertyEdit, RoleEdit};
use crate::emulator::Emulator;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::routes) struct JoinBody {
    code: String,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    permissions: Vec<String>,
}

pub(in crate::routes) async fn join(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
    Json(body): Json<JoinBody>,
) -> Reply {
    reply(json!(emulator.add_to_organization(&id, &body.code, &body.roles, &body.permissions)?))
}

pub(in crate::routes) async fn leave(
    State(emulator): State<Emulator>,
    Path((id, code)): Path<(String, String)>,
) -> Reply {
    reply(json!(emulator.remove_from_organization(&id, &code)?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::routes) struct SuspendBody {
    is_suspended: bool,
}

pub(in crate::routes) async fn suspend_member(
    State(emulator): State<Emulator>,
    Path((id, code)): Path<(String, String)>,
    Json(body): Json<SuspendBody>,
) -> Reply {
    reply(json!(emulator.suspend_in_organization(&id, &code, body.is_suspended)?))
}

pub(in crate::routes) async fn set_properties(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
    Json(values): Json<BTreeMap<String, Option<String>>>,
) -> Reply {
    reply(json!(emulator.set_properties(&id, values)?))
}

pub(in crate::routes) async fn properties(State(emulator): State<Emulator>) -> Reply {
    reply(json!({"properties": emulator.properties()}))
}

pub(in crate::routes) async fn create_property(
    State(emulator): State<Emulator>,
    Json(new): Json<PropertyEdit>,
) -> Reply {
    reply(json!(emulator.create_property(new)?))
}

pub(in crate::routes) async fn organizations(State(emulator): State<Emulator>) -> Reply {
    reply(json!({"organizations": emulator.organizations()}))
}

pub(in crate::routes) async fn create_organization(
    State(emulator): State<Emulator>,
    Json(new): Json<OrganizationEdit>,
) -> Reply {
    reply(json!(emulator.create_organization(new)?))
}

pub(in crate::routes) async fn update_organization(
    State(emulator): State<Emulator>,
    Path(code): Path<String>,
    Json(edit): Json<OrganizationEdit>,
) -> Reply {
    reply(json!(emulator.update_organization(&code, edit)?))
}

pub(in crate::routes) async fn delete_organization(
    State(emulator): State<Emulator>,
    Path(code): Path<String>,
) -> Reply {
    emulator.delete_organization(&code)?;
    reply(json!({"code": code}))
}

pub(in crate::routes) async fn roles(State(emulator): State<Emulator>) -> Reply {
    reply(json!({"roles": emulator.roles()}))
}

pub(in crate::routes) async fn create_role(
    State(emulator): State<Emulator>,
    Json(new): Json<RoleEdit>,
) -> Reply {
    reply(json!(emulator.create_role(new)?))
}

pub(in crate::routes) async fn update_role(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
    Json(edit): Json<RoleEdit>,
) -> Reply {
    reply(json!(emulator.update_role(&id, edit)?))
}

pub(in crate::routes) async fn delete_role(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
) -> Reply {
    emulator.delete_role(&id)?;
    reply(json!({"id": id}))
}

/// Ids of permissions.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::routes) struct PermissionsBody {
    add: Vec<String>,
    remove: Vec<String>,
}

pub(in crate::routes) async fn set_role_permissions(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
    Json(body): Json<PermissionsBody>,
) -> Reply {
    reply(json!(emulator.set_role_permissions(&id, &body.add, &body.remove)?))
}

pub(in crate::routes) async fn permissions(State(emulator): State<Emulator>) -> Reply {
    reply(json!({"permissions": emulator.permissions()}))
}

pub(in crate::routes) async fn create_permission(
    State(emulator): State<Emulator>,
    Json(new): Json<RoleEdit>,
) -> Reply {
    reply(json!(emulator.create_permission(new)?))
}

pub(in crate::routes) async fn update_permission(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
    Json(edit): Json<RoleEdit>,
) -> Reply {
    reply(json!(emulator.update_permission(&id, edit)?))
}

pub(in crate::routes) async fn delete_permission(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
) -> Reply {
    emulator.delete_permission(&id)?;
    reply(json!({"id": id}))
}
