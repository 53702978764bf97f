//! `/oauth2/token`, `/oauth2/introspect` and `/oauth2/revoke`.
//!
//! Source: RFC 6749, RFC 7636, RFC 7662 and RFC 7009, as far as Kinde implements them.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Form, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bearer;
use crate::config::Application;
use crate::emulator::{Denied, Emulator};
use crate::routes::response::ErrorResponse;
use crate::tokens::TokenSpec;

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct TokenRequest {
    grant_type: String,
    client_id: String,
    client_secret: String,
    audience: String,
    scope: String,
    code: String,
    redirect_uri: String,
    code_verifier: String,
    refresh_token: String,
}

pub(crate) async fn token(
    State(emulator): State<Emulator>,
    headers: HeaderMap,
    Form(mut request): Form<TokenRequest>,
) -> Response {
    if let Some((id, secret)) = basic(&headers) {
        (request.client_id, request.client_secret) = (id, secret);
    }
    let issuer = emulator.issuer_of(&headers);
    let outcome = match request.grant_type.as_str() {
        "client_credentials" => client_credentials(&emulator, issuer, &request).map(json_response),
        "authorization_code" => application(&emulator, &request.client_id, &request.client_secret)
            .and_then(|application| {
                let TokenRequest { code, redirect_uri, code_verifier, .. } = &request;
                emulator.redeem(&application, issuer, code, redirect_uri, code_verifier)
            })
            .map(json_response),
        "refresh_token" => application(&emulator, &request.client_id, &request.client_secret)
            .and_then(|application| emulator.refresh(&application, issuer, &request.refresh_token))
            .map(json_response),
        _ => Err(Denied::new(
            "unsupported_grant_type",
            "grant_type must be client_credentials, authorization_code or refresh_token",
        )),
    };
    outcome.unwrap_or_else(|denied| error_response(&denied))
}

fn json_response(issued: impl Serialize) -> Response {
    ([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(issued)).into_response()
}

fn error_response(denied: &Denied) -> Response {
    let invalid_client = denied.error == "invalid_client";
    let status = if invalid_client { StatusCode::UNAUTHORIZED } else { StatusCode::BAD_REQUEST };
    let body = json!({"error": denied.error, "error_description": denied.description});
    (status, Json(body)).into_response()
}

/// Returns the application with these credentials.
fn application(emulator: &Emulator, client_id: &str, secret: &str) -> Result<Application, Denied> {
    let application = emulator.application(client_id);
    let known = |application: &Application| match &application.client_secret {
        Some(wanted) => wanted == secret,
        None => secret.is_empty(),
    };
    application.filter(known).ok_or_else(|| Denied::new("invalid_client", "Client authentication failed"))
}

/// Issues an M2M token, at the tenant's own domain only. At Kinde each call is billed, so clients should cache the token.
fn client_credentials(
    emulator: &Emulator,
    issuer: &str,
    request: &TokenRequest,
) -> Result<impl Serialize + use<>, Denied> {
    let config = emulator.config();
    if request.client_id != config.client_id || request.client_secret != config.client_secret {
        return Err(Denied::new("invalid_client", "Client authentication failed"));
    }
    if issuer != emulator.issuer() {
        let hint = format!("Use `{}`: a custom domain issues no M2M tokens", emulator.issuer());
        return Err(Denied::new("invalid_request", hint));
    }
    if request.audience != emulator.api_audience() {
        let hint = format!("The requested audience is not allowed: use `{}`", emulator.api_audience());
        return Err(Denied::new("invalid_request", hint));
    }
    let granted = if config.scopes.is_empty() { crate::routes::all_scopes() } else { config.scopes.clone() };
    let requested: Vec<String> = request.scope.split_whitespace().map(str::to_owned).collect();
    if let Some(scope) = requested.iter().find(|scope| !granted.contains(scope)) {
        return Err(Denied::new(
            "invalid_scope",
            format!("The application may not request the scope `{scope}`"),
        ));
    }
    let scopes = if requested.is_empty() { granted } else { requested };
    let token = emulator.m2m_token(&TokenSpec { scopes: Some(scopes.clone()), ..TokenSpec::default() });
    Ok(json!({
        "access_token": token,
        "expires_in": config.tokens.access_lifetime.as_secs(),
        "scope": scopes.join(" "),
        "token_type": "Bearer",
    }))
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct TokenForm {
    token: String,
    client_id: String,
    client_secret: String,
}

/// Describes a token to a caller with a valid token of this tenant.
pub(crate) async fn introspect(
    State(emulator): State<Emulator>,
    headers: HeaderMap,
    Form(form): Form<TokenForm>,
) -> Response {
    let caller = bearer(&headers).and_then(|token| emulator.verify(token));
    if caller.is_none_or(|claims| emulator.is_revoked(&claims)) {
        return ErrorResponse::forbidden("INVALID_CREDENTIALS", "Invalid credentials").into_response();
    }
    let issuer = Value::from(emulator.issuer_of(&headers));
    let claims = emulator.verify(&form.token);
    let active = claims.filter(|claims| claims.get("iss") == Some(&issuer) && !emulator.is_revoked(claims));
    match active {
        Some(claims) => {
            let of = |name: &str| claims.get(name).cloned().unwrap_or_default();
            json_response(json!({
                "active": true,
                "aud": of("aud"),
                "client_id": of("azp"),
                "exp": of("exp"),
                "iat": of("iat"),
            }))
        }
        None => json_response(json!({"active": false})),
    }
}

/// Responds with 200 whether or not the token existed.
pub(crate) async fn revoke(
    State(emulator): State<Emulator>,
    headers: HeaderMap,
    Form(form): Form<TokenForm>,
) -> Response {
    let (id, secret) = basic(&headers).unwrap_or((form.client_id, form.client_secret));
    match application(&emulator, &id, &secret) {
        Ok(application) => {
            emulator.revoke(&application, &form.token);
            StatusCode::OK.into_response()
        }
        Err(error) => error_response(&error),
    }
}

/// Client credentials in an `Authorization: Basic` header.
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let pair = String::from_utf8(STANDARD.decode(text).ok()?).ok()?;
    let (id, secret) = pair.split_once(':')?;
    Some((id.to_owned(), secret.to_owned()))
}
