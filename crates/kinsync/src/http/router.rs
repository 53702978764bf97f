//! Every route, but for the two that the front answers itself.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{any, delete, get, post},
};
use kinsync_tower::{Authenticator, KinsyncLayer, Problem, WebhookService};

use super::{admin, answer::Failure, front::Front, operation, user_routes};
use crate::app::AppState;

const INDEX: &str = "\
kinsync keeps a true copy of Kinde's users in your database.

POST /api/webhook              deliveries (signed)
GET  /api/me                   the user of the access token, as stored
GET  /api/profile              the same, refreshed from Kinde; ?refresh=true insists
ANY  /auth/verify              forward-auth: 200 with X-Kinsync-User-Id, -Email, -Org, or 401 or 403
GET  /health                   how everything is
GET  /health/live              200 while the process runs
GET  /health/ready             200 while deliveries can be accepted
GET  /metrics                  for Prometheus
     /api/admin/...            with the admin token:
GET  /api/admin/stats
GET  /api/admin/users          ?email= &deleted=true &after= &limit=
GET  /api/admin/users/{id}
GET  /api/admin/users/{id}/explain   what was told of the user, and what became of it
POST /api/admin/users/{id}/check     ask Kinde about this user, soon
GET  /api/admin/drift          what the newest scan found
GET  /api/admin/runs
GET  /api/admin/runs/{id}
POST /api/admin/reconcile      scan soon; {\"approve\": \"RUN\"} carries out what that run held
GET  /api/admin/events         ?user= &type= &after= &limit=
GET  /api/admin/events/{id}
GET  /api/admin/dead-letters   ?after= &limit=
GET  /api/admin/dead-letters/{id}
POST /api/admin/dead-letters/{id}/retry
DELETE /api/admin/dead-letters/{id}
";

/// The routes for the world. Health and metrics are among them unless they have an address of their own.
pub fn public(state: &Arc<AppState>, webhook: WebhookService) -> Front {
    let mut routes = Router::new().route("/", get(INDEX)).merge(admin_routes());
    if state.config.http.metrics_bind.is_none() {
        routes = routes.merge(operation_routes());
    }
    let mut others = finish(routes, state);
    if let Some(authenticator) = &state.authenticator {
        others = others.merge(authenticated_routes(authenticator).with_state(Arc::clone(state)));
    }
    Front { webhook, authenticator: state.authenticator.clone(), others }
}

/// Health and metrics alone, for an address of their own.
pub fn operation(state: &Arc<AppState>) -> Router {
    finish(operation_routes(), state)
}

fn admin_routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/api/admin/stats", get(admin::stats))
        .route("/api/admin/users", get(admin::users))
        .route("/api/admin/users/{id}", get(admin::user))
        .route("/api/admin/users/{id}/explain", get(admin::explain_user))
        .route("/api/admin/users/{id}/check", post(admin::check_user))
        .route("/api/admin/runs", get(admin::runs))
        .route("/api/admin/runs/{id}", get(admin::run))
        .route("/api/admin/drift", get(admin::drift))
        .route("/api/admin/reconcile", post(admin::reconcile))
        .route("/api/admin/events", get(admin::events))
        .route("/api/admin/events/{id}", get(admin::event))
        .route("/api/admin/dead-letters", get(admin::dead_letters))
        .route("/api/admin/dead-letters/{id}", get(admin::dead_letter))
        .route("/api/admin/dead-letters/{id}", delete(admin::drop_dead_letter))
        .route("/api/admin/dead-letters/{id}/retry", post(admin::retry_dead_letter))
}

/// Each is behind the layer: a handler among these runs for verified, live users only. All that they wait for has a
/// deadline of its own. Of `/api/me` there is here what the front leaves.
fn authenticated_routes(authenticator: &Authenticator) -> Router<Arc<AppState>> {
    Router::new()
        .route("/api/profile", get(user_routes::profile))
        .route("/auth/verify", any(user_routes::verify))
        // Envoy puts the path of the request behind its prefix. A wildcard does not take an empty rest.
        .route("/auth/verify/", any(user_routes::verify))
        .route("/auth/verify/{*path}", any(user_routes::verify))
        .route_layer(KinsyncLayer::new(authenticator.clone()))
        .route("/api/me", any(method_not_allowed))
        .method_not_allowed_fallback(method_not_allowed)
}

fn operation_routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/health", get(operation::health))
        .route("/health/live", get(operation::live))
        .route("/health/ready", get(operation::ready))
        .route("/metrics", get(operation::metrics))
}

fn finish(routes: Router<Arc<AppState>>, state: &Arc<AppState>) -> Router {
    routes
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(no_route)
        .layer(from_fn_with_state(state.config.http.request_deadline, deadline))
        .with_state(Arc::clone(state))
}

async fn no_route() -> Failure {
    Failure(Problem::NoRoute)
}

async fn method_not_allowed(request: Request) -> Failure {
    let path = request.uri().path();
    let allow = match path.strip_prefix("/api/admin/dead-letters/") {
        Some(rest) if rest.ends_with("/retry") => "POST",
        Some(_) => "GET, HEAD, DELETE",
        None if path == "/api/admin/reconcile" || path.ends_with("/check") => "POST",
        None => "GET, HEAD",
    };
    Failure(Problem::MethodNotAllowed { allow })
}

/// Ends a request that takes too long. The webhook has its own deadline and its own words for it; so have the routes
/// of users.
async fn deadline(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(passed) => Failure::unavailable(&passed).into_response(),
    }
}
