//! Users, organizations, roles, permissions, webhooks and events of the Management API, with the responses of its `OpenAPI` document.
//!
//! Source: <https://docs.kinde.com/kinde-apis/management/>.

mod cursor;
mod members;
mod organizations;
mod properties;
mod roles;
mod users;
mod webhooks;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, put};
use serde_json::Value;

use super::oauth::bearer;
use super::response::{ErrorResponse, RouteNotFound};
use super::run;
use crate::emulator::Emulator;

/// The scope that a token needs, by method and path.
const SCOPES: &[(&str, &str, &str)] = &[
    ("GET", "users", "read:users"),
    ("GET", "user", "read:users"),
    ("POST", "user", "create:users"),
    ("PATCH", "user", "update:users"),
    ("DELETE", "user", "delete:users"),
    ("GET", "users/{id}/properties", "read:user_properties"),
    ("PATCH", "users/{id}/properties", "update:user_properties"),
    ("PUT", "users/{id}/properties/{key}", "update:user_properties"),
    ("GET", "properties", "read:properties"),
    ("POST", "properties", "create:properties"),
    ("GET", "search/users", "read:users"),
    ("GET", "organizations", "read:organizations"),
    ("GET", "organization", "read:organizations"),
    ("POST", "organization", "create:organizations"),
    ("PATCH", "organization/{code}", "update:organizations"),
    ("DELETE", "organization/{code}", "delete:organizations"),
    ("GET", "organizations/{code}/users", "read:organization_users"),
    ("POST", "organizations/{code}/users", "create:organization_users"),
    ("PATCH", "organizations/{code}/users", "update:organization_users"),
    ("DELETE", "organizations/{code}/users/{id}", "delete:organization_users"),
    ("GET", "organizations/{code}/users/{id}/roles", "read:organization_user_roles"),
    ("POST", "organizations/{code}/users/{id}/roles", "create:organization_user_roles"),
    ("DELETE", "organizations/{code}/users/{id}/roles/{role}", "delete:organization_user_roles"),
    ("GET", "organizations/{code}/users/{id}/permissions", "read:organization_user_permissions"),
    ("POST", "organizations/{code}/users/{id}/permissions", "create:organization_user_permissions"),
    (
        "DELETE",
        "organizations/{code}/users/{id}/permissions/{permission}",
        "delete:organization_user_permissions",
    ),
    ("GET", "organizations/{code}/roles/{role}/users", "read:organization_user_roles"),
    ("GET", "roles", "read:roles"),
    ("POST", "roles", "create:roles"),
    ("GET", "roles/{role}", "read:roles"),
    ("PATCH", "roles/{role}", "update:roles"),
    ("DELETE", "roles/{role}", "delete:roles"),
    ("GET", "roles/{role}/users", "read:organization_user_roles"),
    ("GET", "roles/{role}/permissions", "read:role_permissions"),
    ("PATCH", "roles/{role}/permissions", "update:role_permissions"),
    ("DELETE", "roles/{role}/permissions/{permission}", "delete:role_permissions"),
    ("GET", "permissions", "read:permissions"),
    ("POST", "permissions", "create:permissions"),
    ("PATCH", "permissions/{permission}", "update:permissions"),
    ("DELETE", "permissions/{permission}", "delete:permissions"),
    ("GET", "webhooks", "read:webhooks"),
    ("POST", "webhooks", "create:webhooks"),
    ("PATCH", "webhooks/{id}", "update:webhooks"),
    ("DELETE", "webhooks/{id}", "delete:webhooks"),
    ("GET", "event_types", "read:event_types"),
    ("GET", "events/{id}", "read:events"),
];

/// The scopes of all routes.
pub(crate) fn all_scopes() -> Vec<String> {
    let mut scopes: Vec<String> = SCOPES.iter().map(|(_, _, scope)| (*scope).to_owned()).collect();
    let mut known = std::collections::HashSet::new();
    scopes.retain(|scope| known.insert(scope.clone()));
    scopes
}

pub(super) fn router(emulator: &Emulator) -> Router<Emulator> {
    Router::new()
        .route("/api/v1/users", get(run(users::list)))
        .route(
            "/api/v1/user",
            get(run(users::read))
                .post(run(users::create))
                .patch(run(users::update))
                .delete(run(users::delete)),
        )
        .route("/api/v1/properties", get(run(properties::definitions)).post(run(properties::create)))
        .route("/api/v1/users/{id}/properties", get(run(properties::list)).patch(run(properties::update)))
        .route("/api/v1/users/{id}/properties/{key}", put(run(properties::set)))
        .route("/api/v1/search/users", get(run(properties::search)))
        .route("/api/v1/organizations", get(run(organizations::list)))
        .route("/api/v1/organization", get(run(organizations::read)).post(run(organizations::create)))
        .route(
            "/api/v1/organization/{code}",
            patch(run(organizations::update)).delete(run(organizations::delete)),
        )
        .route(
            "/api/v1/organizations/{code}/users",
            get(run(members::list)).post(run(members::add)).patch(run(members::update)),
        )
        .route("/api/v1/organizations/{code}/users/{id}", delete(run(members::remove)))
        .route(
            "/api/v1/organizations/{code}/users/{id}/roles",
            get(run(members::roles)).post(run(members::add_role)),
        )
        .route("/api/v1/organizations/{code}/users/{id}/roles/{role}", delete(run(members::remove_role)))
        .route(
            "/api/v1/organizations/{code}/users/{id}/permissions",
            get(run(members::permissions)).post(run(members::add_permission)),
        )
        .route(
            "/api/v1/organizations/{code}/users/{id}/permissions/{permission}",
            delete(run(members::remove_permission)),
        )
        .route("/api/v1/organizations/{code}/roles/{role}/users", get(run(roles::users_in_organization)))
        .route("/api/v1/roles", get(run(roles::list)).post(run(roles::create)))
        .route(
            "/api/v1/roles/{role}",
            get(run(roles::read)).patch(run(roles::update)).delete(run(roles::delete)),
        )
        .route("/api/v1/roles/{role}/users", get(run(roles::users)))
        .route(
            "/api/v1/roles/{role}/permissions",
            get(run(roles::permissions)).patch(run(roles::set_permissions)),
        )
        .route("/api/v1/roles/{role}/permissions/{permission}", delete(run(roles::remove_permission)))
        .route("/api/v1/permissions", get(run(roles::list_permissions)).post(run(roles::create_permission)))
        .route(
            "/api/v1/permissions/{permission}",
            patch(run(roles::update_permission)).delete(run(roles::delete_permission)),
        )
        .route("/api/v1/webhooks", get(run(webhooks::list)).post(run(webhooks::create)))
        .route("/api/v1/webhooks/{id}", patch(run(webhooks::update)).delete(run(webhooks::delete)))
        .route("/api/v1/event_types", get(run(webhooks::event_types)))
        .route("/api/v1/events/{id}", get(run(webhooks::event)))
        .route_layer(from_fn_with_state(emulator.clone(), authorize))
}

/// Requires a machine-to-machine token of this tenant for its API with the scope of the route.
async fn authorize(State(emulator): State<Emulator>, request: Request, next: Next) -> Response {
    if emulator.issuer_of(request.headers()) != emulator.issuer() {
        // Custom domains serve sign-in only.
        return RouteNotFound.into_response();
    }
    match check(&emulator, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check(emulator: &Emulator, request: &Request) -> Result<(), ErrorResponse> {
    let invalid = |message: &str| ErrorResponse::forbidden("TOKEN_INVALID", message);
    let token = bearer(request.headers()).ok_or_else(|| invalid("A bearer token is required"))?;
    let claims = emulator.verify(token).ok_or_else(|| invalid("The token is invalid or has expired"))?;
    let audience = Value::from(emulator.api_audience());
    let has = |name: &str, wanted: &Value| {
        claims.get(name).and_then(Value::as_array).is_some_and(|list| list.contains(wanted))
    };
    if claims.get("iss").and_then(Value::as_str) != Some(emulator.issuer()) || !has("aud", &audience) {
        return Err(invalid("The token is not for this API"));
    }
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let route = route.trim_start_matches("/api/v1/");
    let method = request.method().as_str();
    let scope = SCOPES.iter().find(|(verb, path, _)| *verb == method && *path == route);
    match scope {
        Some((_, _, scope)) if !has("scp", &Value::from(*scope)) => Err(ErrorResponse::forbidden(
            "TOKEN_MISSING_SCOPE",
            format!("The token lacks the scope `{scope}`"),
        )),
        _ => Ok(()),
    }
}
