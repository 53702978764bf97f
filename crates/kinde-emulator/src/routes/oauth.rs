//! Keys, discovery, client credentials and the user's profile.
//!
//! Source: <https://docs.kinde.com/developer-tools/kinde-api/access-token-for-api/> and the Account API's
//! `OpenAPI` document.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Form, Json};
use serde::Deserialize;
use serde_json::json;

use super::answer::Refusal;
use crate::emulator::Emulator;
use crate::tokens::TokenSpec;

/// The keys; like Kinde, refuses a request that carries credentials.
pub(super) async fn jwks(State(emulator): State<Emulator>, headers: HeaderMap) -> Response {
    if headers.contains_key(header::AUTHORIZATION) {
        return Refusal::forbidden("FORBIDDEN", "Send no Authorization header to this endpoint")
            .into_response();
    }
    Json(emulator.jwks()).into_response()
}

pub(super) async fn openid_configuration(State(emulator): State<Emulator>) -> Response {
    let issuer = emulator.issuer();
    Json(json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/oauth2/auth"),
        "token_endpoint": format!("{issuer}/oauth2/token"),
        "userinfo_endpoint": format!("{issuer}/oauth2/v2/user_profile"),
        "jwks_uri": format!("{issuer}/.well-known/jwks"),
        "end_session_endpoint": format!("{issuer}/logout"),
        "introspection_endpoint": format!("{issuer}/oauth2/introspect"),
        "revocation_endpoint": format!("{issuer}/oauth2/revoke"),
        "response_types_supported": ["code", "id_token", "token", "code token", "code id_token"],
        "grant_types_supported": ["authorization_code", "client_credentials", "refresh_token"],
        "scopes_supported": ["openid", "profile", "email", "offline"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["client_secret_post"],
    }))
    .into_response()
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
pub(super) struct TokenRequest {
    grant_type: String,
    client_id: String,
    client_secret: String,
    audience: String,
    scope: String,
}

/// Client credentials alone: every call is one billed M2M token at Kinde, so callers should cache.
pub(super) async fn token(State(emulator): State<Emulator>, Form(request): Form<TokenRequest>) -> Response {
    let config = emulator.config();
    if request.grant_type != "client_credentials" {
        return oauth_error(
            StatusCode::BAD_REQUEST,
            "unsupported_grant_type",
            "this emulator only has `client_credentials`",
        );
    }
    if request.client_id != config.client_id || request.client_secret != config.client_secret {
        return oauth_error(StatusCode::UNAUTHORIZED, "invalid_client", "Client authentication failed");
    }
    if request.audience != emulator.api_audience() {
        let hint = format!("Requested audience is not allowed: ask for `{}`", emulator.api_audience());
        return oauth_error(StatusCode::BAD_REQUEST, "invalid_request", &hint);
    }
    let granted = if config.scopes.is_empty() { super::all_scopes() } else { config.scopes.clone() };
    let asked: Vec<String> = request.scope.split_whitespace().map(str::to_owned).collect();
    if let Some(scope) = asked.iter().find(|scope| !granted.contains(scope)) {
        let hint = format!("The application may not ask for the scope `{scope}`");
        return oauth_error(StatusCode::BAD_REQUEST, "invalid_scope", &hint);
    }
    let scopes = if asked.is_empty() { granted } else { asked };
    let token = emulator.m2m_token(&TokenSpec { scopes: Some(scopes.clone()), ..TokenSpec::default() });
    Json(json!({
        "access_token": token,
        "expires_in": config.tokens.access_lifetime.as_secs(),
        "scope": scopes.join(" "),
        "token_type": "Bearer",
    }))
    .into_response()
}

fn oauth_error(status: StatusCode, error: &str, description: &str) -> Response {
    (status, Json(json!({"error": error, "error_description": description}))).into_response()
}

/// The profile of the user whose access token this is; an ID or M2M token is no good.
pub(super) async fn user_profile(State(emulator): State<Emulator>, headers: HeaderMap) -> Response {
    let profile = || {
        let claims = emulator.verify(bearer(&headers)?)?;
        let is_access_token = claims.contains_key("scp") && !claims.contains_key("gty");
        let user = emulator.user(claims.get("sub").filter(|_| is_access_token)?.as_str()?)?;
        let revoked = user.is_suspended && emulator.config().unknowns.suspension_revokes_tokens;
        (!revoked && user.deleted_on.is_none()).then(|| user.profile())
    };
    match profile() {
        Some(profile) => Json(profile).into_response(),
        None => Refusal::forbidden("INVALID_CREDENTIALS", "Invalid credentials").into_response(),
    }
}

pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}
