//! Users, webhooks and events of the Management API, with the responses of its `OpenAPI` document.
//!
//! Source: <https://docs.kinde.com/kinde-apis/management/>.

mod cursor;
mod users;
mod webhooks;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch};
use serde_json::Value;

use super::oauth::bearer;
use super::response::{ErrorResponse, RouteNotFound};
use crate::emulator::Emulator;

/// The scope that a token needs, by method and first part of the path.
const SCOPES: &[(&str, &str, &str)] = &[
    ("GET", "users", "read:users"),
    ("GET", "user", "read:users"),
    ("POST", "user", "create:users"),
    ("PATCH", "user", "update:users"),
    ("DELETE", "user", "delete:users"),
    ("GET", "webhooks", "read:webhooks"),
    ("POST", "webhooks", "create:webhooks"),
    ("PATCH", "webhooks", "update:webhooks"),
    ("DELETE", "webhooks", "delete:webhooks"),
    ("GET", "event_types", "read:event_types"),
    ("GET", "events", "read:events"),
];

/// The scopes of all routes.
pub(crate) fn all_scopes() -> Vec<String> {
    let mut scopes: Vec<String> = SCOPES.iter().map(|(_, _, scope)| (*scope).to_owned()).collect();
    scopes.dedup();
    scopes
}

pub(super) fn router(emulator: &Emulator) -> Router<Emulator> {
    Router::new()
        .route("/api/v1/users", get(users::list))
        .route(
            "/api/v1/user",
            get(users::read).post(users::create).patch(users::update).delete(users::delete),
        )
        .route("/api/v1/webhooks", get(webhooks::list).post(webhooks::create))
        .route("/api/v1/webhooks/{id}", patch(webhooks::update).delete(webhooks::delete))
        .route("/api/v1/event_types", get(webhooks::event_types))
        .route("/api/v1/events/{id}", get(webhooks::event))
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
    let part = request.uri().path().split('/').nth(3).unwrap_or_default();
    let method = request.method().as_str();
    let scope = SCOPES.iter().find(|(verb, path, _)| *verb == method && *path == part);
    match scope {
        Some((_, _, scope)) if !has("scp", &Value::from(*scope)) => Err(ErrorResponse::forbidden(
            "TOKEN_MISSING_SCOPE",
            format!("The token lacks the scope `{scope}`"),
        )),
        _ => Ok(()),
    }
}
