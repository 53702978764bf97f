//! The list of all routes, and their common behaviour: request counters, faults, and the response to unknown routes.

mod control;
mod layer;
mod login;
mod management;
mod oauth;
mod response;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use futures_util::future::BoxFuture;

use crate::emulator::Emulator;
use control::directory;

pub(crate) use management::all_scopes;

/// A handler of any kind as one type. With a type for each, the compiler resolves the layers around each handler again.
#[derive(Clone)]
struct Run(Arc<dyn Fn(Request, Emulator) -> BoxFuture<'static, Response> + Send + Sync>);

impl Handler<(), Emulator> for Run {
    type Future = BoxFuture<'static, Response>;

    fn call(self, request: Request, emulator: Emulator) -> Self::Future {
        (self.0)(request, emulator)
    }
}

fn run<T>(handler: impl Handler<T, Emulator>) -> Run {
    Run(Arc::new(move |request, emulator| Box::pin(handler.clone().call(request, emulator))))
}

const MAX_IMPORT_BYTES: usize = 64 * 1024 * 1024;

pub(crate) fn router(emulator: Emulator) -> Router {
    let kinde = Router::new()
        .route("/.well-known/jwks.json", get(run(oauth::jwks)))
        .route("/.well-known/jwks", get(run(oauth::jwks)))
        .route("/.well-known/openid-configuration", get(run(oauth::openid_configuration)))
        .route("/oauth2/auth", get(run(login::show)).post(run(login::submit)))
        .route("/oauth2/token", post(run(oauth::token::token)))
        .route("/oauth2/introspect", post(run(oauth::token::introspect)))
        .route("/oauth2/revoke", post(run(oauth::token::revoke)))
        .route("/logout", get(run(login::logout)))
        .route("/oauth2/v2/user_profile", get(run(oauth::user_profile)))
        .merge(management::router(&emulator))
        .layer(from_fn_with_state(emulator.clone(), layer::count_and_fault));
    let control = Router::new()
        .route("/stats", get(run(control::stats)))
        .route("/reset", post(run(control::reset)))
        .route("/users", get(run(control::list_users)).post(run(control::create_user)))
        .route("/users/{id}", patch(run(control::update_user)).delete(run(control::delete_user)))
        .route("/users/{id}/sign-in", post(run(control::sign_in)))
        .route("/users/{id}/suspend", post(run(control::suspend)))
        .route("/users/{id}/unsuspend", post(run(control::unsuspend)))
        .route("/users/{id}/organizations", post(run(directory::join)))
        .route(
            "/users/{id}/organizations/{code}",
            patch(run(directory::suspend_member)).delete(run(directory::leave)),
        )
        .route("/users/{id}/properties", post(run(directory::set_properties)))
        .route("/properties", get(run(directory::properties)).post(run(directory::create_property)))
        .route("/organizations", get(run(directory::organizations)).post(run(directory::create_organization)))
        .route(
            "/organizations/{code}",
            patch(run(directory::update_organization)).delete(run(directory::delete_organization)),
        )
        .route("/roles", get(run(directory::roles)).post(run(directory::create_role)))
        .route("/roles/{id}", patch(run(directory::update_role)).delete(run(directory::delete_role)))
        .route("/roles/{id}/permissions", post(run(directory::set_role_permissions)))
        .route("/permissions", get(run(directory::permissions)).post(run(directory::create_permission)))
        .route(
            "/permissions/{id}",
            patch(run(directory::update_permission)).delete(run(directory::delete_permission)),
        )
        .route("/sign-up", post(run(control::sign_up)))
        .route("/import", post(run(control::import)))
        .route("/swap-emails", post(run(control::swap_emails)))
        .route("/generated", post(run(control::set_generated)))
        .route("/limits", post(run(control::set_limits)))
        .route("/events", post(run(control::emit)))
        .route(
            "/faults",
            get(run(control::faults)).post(run(control::set_fault)).delete(run(control::clear_faults)),
        )
        .route("/webhooks", get(run(control::webhooks)).post(run(control::add_webhook)))
        .route("/webhooks/{id}", delete(run(control::remove_webhook)))
        .route("/webhooks/{id}/enable", post(run(control::enable_webhook)))
        .route("/webhooks/{id}/disable", post(run(control::disable_webhook)))
        .route("/keys/rotate", post(run(control::rotate_keys)))
        .route("/applications", get(run(control::applications)).post(run(control::add_application)))
        .route("/tokens/access", post(run(control::access_token)))
        .route("/tokens/id", post(run(control::id_token)))
        .route("/tokens/m2m", post(run(control::m2m_token)))
        .route("/tokens/mint", post(run(control::mint)))
        .route("/deliveries", get(run(control::deliveries)))
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
