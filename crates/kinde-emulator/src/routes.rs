//! The list of all routes, and their common behaviour: request counters, faults, and the response to unknown routes.

mod control;
mod layer;
mod login;
mod management;
mod oauth;
mod response;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};

use crate::emulator::Emulator;
use control::directory;

pub(crate) use management::all_scopes;

const MAX_IMPORT_BYTES: usize = 64 * 1024 * 1024;

pub(crate) fn router(emulator: Emulator) -> Router {
    let kinde = Router::new()
        .route("/.well-known/jwks.json", get(oauth::jwks))
        .route("/.well-known/jwks", get(oauth::jwks))
        .route("/.well-known/openid-configuration", get(oauth::openid_configuration))
        .route("/oauth2/auth", get(login::show).post(login::submit))
        .route("/oauth2/token", post(oauth::token::token))
        .route("/oauth2/introspect", post(oauth::token::introspect))
        .route("/oauth2/revoke", post(oauth::token::revoke))
        .route("/logout", get(login::logout))
        .route("/oauth2/v2/user_profile", get(oauth::user_profile))
        .merge(management::router(&emulator))
        .layer(from_fn_with_state(emulator.clone(), layer::count_and_fault));
    let control = Router::new()
        .route("/stats", get(control::stats))
        .route("/reset", post(control::reset))
        .route("/users", get(control::list_users).post(control::create_user))
        .route("/users/{id}", patch(control::update_user).delete(control::delete_user))
        .route("/users/{id}/sign-in", post(control::sign_in))
        .route("/users/{id}/suspend", post(control::suspend))
        .route("/users/{id}/unsuspend", post(control::unsuspend))
        .route("/users/{id}/organizations", post(directory::join))
        .route("/users/{id}/organizations/{code}", patch(directory::suspend_member).delete(directory::leave))
        .route("/users/{id}/properties", post(directory::set_properties))
        .route("/properties", get(directory::properties).post(directory::create_property))
        .route("/organizations", get(directory::organizations).post(directory::create_organization))
        .route(
            "/organizations/{code}",
            patch(directory::update_organization).delete(directory::delete_organization),
        )
        .route("/roles", get(directory::roles).post(directory::create_role))
        .route("/roles/{id}", patch(directory::update_role).delete(directory::delete_role))
        .route("/roles/{id}/permissions", post(directory::set_role_permissions))
        .route("/permissions", get(directory::permissions).post(directory::create_permission))
        .route("/permissions/{id}", patch(directory::update_permission).delete(directory::delete_permission))
        .route("/sign-up", post(control::sign_up))
        .route("/import", post(control::import))
        .route("/swap-emails", post(control::swap_emails))
        .route("/generated", post(control::set_generated))
        .route("/limits", post(control::set_limits))
        .route("/events", post(control::emit))
        .route("/faults", get(control::faults).post(control::set_fault).delete(control::clear_faults))
        .route("/webhooks", get(control::webhooks).post(control::add_webhook))
        .route("/webhooks/{id}", delete(control::remove_webhook))
        .route("/webhooks/{id}/enable", post(control::enable_webhook))
        .route("/webhooks/{id}/disable", post(control::disable_webhook))
        .route("/keys/rotate", post(control::rotate_keys))
        .route("/applications", get(control::applications).post(control::add_application))
        .route("/tokens/access", post(control::access_token))
        .route("/tokens/id", post(control::id_token))
        .route("/tokens/m2m", post(control::m2m_token))
        .route("/tokens/mint", post(control::mint))
        .route("/deliveries", get(control::deliveries))
        .layer(DefaultBodyLimit::max(MAX_IMPORT_BYTES));
    kinde
        .nest("/_emulator", control)
        .fallback(route_not_found)
        .method_not_allowed_fallback(route_not_found)
        .with_state(emulator)
}

async fn route_not_found() -> Response {
    response::RouteNotFound.into_response()
}
