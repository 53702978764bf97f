//! Keys, discovery and the user profile. Tokens are in `oauth/token.rs`.
//!
//! Source: the Account API's `OpenAPI` document, <https://docs.kinde.com/kinde-apis/frontend/>.

pub(super) mod token;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::response::ErrorResponse;
use crate::emulator::Emulator;

/// The keys. Rejects a request with credentials, as Kinde does.
pub(super) async fn jwks(State(emulator): State<Emulator>, headers: HeaderMap) -> Response {
    if headers.contains_key(header::AUTHORIZATION) {
        return ErrorResponse::forbidden("FORBIDDEN", "Send no Authorization header to this endpoint")
            .into_response();
    }
    Json(emulator.jwks()).into_response()
}

pub(super) async fn openid_configuration(State(emulator): State<Emulator>, headers: HeaderMap) -> Response {
    let issuer = emulator.issuer_of(&headers);
    Json(json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/oauth2/auth"),
        "token_endpoint": format!("{issuer}/oauth2/token"),
        "userinfo_endpoint": format!("{issuer}/oauth2/v2/user_profile"),
        "jwks_uri": format!("{issuer}/.well-known/jwks"),
        "end_session_endpoint": format!("{issuer}/logout"),
        "introspection_endpoint": format!("{issuer}/oauth2/introspect"),
        "revocation_endpoint": format!("{issuer}/oauth2/revoke"),
        "response_types_supported": ["code"],
        "grant_types_supported": ["authorization_code", "client_credentials", "refresh_token"],
        "scopes_supported": ["openid", "profile", "email", "offline"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic", "none"],
    }))
    .into_response()
}

/// The profile of the user of an access token of this domain. ID and M2M tokens are rejected.
pub(super) async fn user_profile(State(emulator): State<Emulator>, headers: HeaderMap) -> Response {
    let profile = || {
        let claims = emulator.verify(bearer(&headers)?)?;
        let is_own = claims.get("iss").and_then(Value::as_str) == Some(emulator.issuer_of(&headers));
        if !is_own || emulator.is_revoked(&claims) {
            return None;
        }
        let is_access_token = claims.contains_key("scp") && !claims.contains_key("gty");
        let user = emulator.user(claims.get("sub").filter(|_| is_access_token)?.as_str()?)?;
        user.deleted_on.is_none().then(|| user.profile())
    };
    match profile() {
        Some(profile) => Json(profile).into_response(),
        None => ErrorResponse::forbidden("INVALID_CREDENTIALS", "Invalid credentials").into_response(),
    }
}

pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}
