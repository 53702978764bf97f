//! Routes for users with an access token. `CurrentUser` stands in every handler's signature: it is the proof.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use kinsync_tower::{CurrentUser, layer::DEGRADED};
use serde::Deserialize;

use super::{
    admin::Params,
    answer::{Failure, Result},
};
use crate::app::Parts;

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
pub async fn me(user: CurrentUser, request: Request) -> Response {
    document(&user, request.headers())
}

/// GET /api/profile: the same, after a refresh from Kinde; from the store when Kinde does not answer.
pub async fn profile(
    user: CurrentUser,
    State(parts): State<Arc<Parts>>,
    Params(query): Params<ProfileQuery>,
    headers: HeaderMap,
) -> Result<Response> {
    let Some(login) = &parts.login else { return Err(Failure(kinsync_tower::Problem::NoRoute)) };
    let (user, refreshed) = login.refresh(user, &headers, query.refresh).await?;
    let mut response = document(&user, &headers);
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
fn document(user: &CurrentUser, headers: &HeaderMap) -> Response {
    let json = user.json();
    let etag = json.etag().clone();
    let common = [(header::CACHE_CONTROL, CACHE), (header::VARY, HeaderValue::from_static("authorization"))];
    if is_known(headers, &etag) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, etag)], common).into_response();
    }
    let media = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, media), (header::ETAG, etag)], common, json.body().clone()).into_response()
}

/// RFC 9110 section 13.1.2, by weak comparison.
fn is_known(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let sent = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = sent.flat_map(|list| list.split(',')).map(str::trim);
    tags.any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one).as_bytes() == tag.as_bytes())
}
