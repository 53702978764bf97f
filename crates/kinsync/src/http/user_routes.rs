//! Routes for users with an access token. A `CurrentUser` is the proof that they may: it stands in the signature of every
//! handler behind the layer, and `me` asks for it itself.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use kinsync_tower::{Authenticator, CurrentUser, layer::DEGRADED, problem};
use serde::Deserialize;

use super::{
    admin::Params,
    answer::{Failure, Result},
};
use crate::app::AppState;

const USER_ID: HeaderName = HeaderName::from_static("x-kinsync-user-id");
const EMAIL: HeaderName = HeaderName::from_static("x-kinsync-email");
const ORG: HeaderName = HeaderName::from_static("x-kinsync-org");
/// What became of the refresh: `refreshed`, `recent`, `refused` or `unavailable`.
const PROFILE: HeaderName = HeaderName::from_static("x-kinsync-profile");
/// A copy may be kept by the user's own browser, and must be asked about each time.
const CACHE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// Whether a profile of a moment ago is good enough.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileQuery {
    #[serde(default)]
    refresh: bool,
}

/// GET /api/me: the user document as stored.
pub async fn me(authenticator: &Authenticator, headers: &HeaderMap) -> http::Response<problem::Body> {
    let user = match authenticator.authenticate(headers).await {
        Ok(user) => user,
        Err(problem) => return problem.into_response(),
    };
    let mut response = document(&user, headers);
    if user.is_degraded() {
        response.headers_mut().insert(DEGRADED, HeaderValue::from_static("true"));
    }
    response
}

/// GET /api/profile: the same, after a refresh from Kinde; from the store when Kinde does not answer.
pub async fn profile(
    user: CurrentUser,
    State(state): State<Arc<AppState>>,
    Params(query): Params<ProfileQuery>,
    headers: HeaderMap,
) -> Result<Response> {
    let Some(authenticator) = &state.authenticator else {
        return Err(Failure(kinsync_tower::Problem::NoRoute));
    };
    let (user, refreshed) = authenticator.refresh(user, &headers, query.refresh).await?;
    let mut response = document(&user, &headers).map(Body::new);
    response.headers_mut().insert(PROFILE, HeaderValue::from_static(refreshed.as_str()));
    Ok(response)
}

/// ANY /auth/verify: 200 with who it is, for a proxy. A value that is not known is an empty header, and so is
/// `x-kinsync-degraded` (until the layer writes it), so that a proxy that copies it overwrites what the caller sent.
pub async fn verify(user: CurrentUser) -> impl IntoResponse {
    let text = |text: Option<&str>| {
        HeaderValue::from_bytes(text.unwrap_or_default().as_bytes())
            .unwrap_or_else(|_| HeaderValue::from_static(""))
    };
    let org = user.token().org_code.as_deref();
    let degraded = HeaderValue::from_static("");
    let headers = [
        (USER_ID, text(Some(user.id()))),
        (EMAIL, text(user.email())),
        (ORG, text(org)),
        (DEGRADED, degraded),
    ];
    (headers, [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))])
}

/// What the store has; while it is away, what the token says.
fn document(user: &CurrentUser, headers: &HeaderMap) -> http::Response<problem::Body> {
    let json = user.json();
    let mut response = http::Response::new(problem::Body::default());
    if is_known(headers, json.etag()) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        *response.body_mut() = json.body().clone().into();
        let media = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, media);
    }
    let sent = response.headers_mut();
    sent.insert(header::ETAG, json.etag().clone());
    sent.insert(header::CACHE_CONTROL, CACHE);
    sent.insert(header::VARY, HeaderValue::from_static("authorization"));
    response
}

/// RFC 9110 section 13.1.2, by weak comparison.
fn is_known(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let sent = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = sent.flat_map(|list| list.split(',')).map(str::trim);
    tags.any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one).as_bytes() == tag.as_bytes())
}
