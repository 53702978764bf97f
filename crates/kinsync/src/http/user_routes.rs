//! Routes for users with an access token. The signature of every handler takes a `CurrentUser`, which only a verified token
//! yields.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use kinsync_tower::{CurrentUser, authenticator::Refresh, layer::DEGRADED, problem};
use serde::Deserialize;
use utoipa::{IntoParams, openapi::path::OperationBuilder};

use super::{
    answer::{Failure, Result},
    openapi::{self, Schemas},
    route::Params,
};
use crate::{api::users::User, app::AppState};

const USER_ID: HeaderName = HeaderName::from_static("x-kinsync-user-id");
const EMAIL: HeaderName = HeaderName::from_static("x-kinsync-email");
const ORG: HeaderName = HeaderName::from_static("x-kinsync-org");
/// Names of the headers with values that no header can carry. They are sent empty.
const OMITTED: HeaderName = HeaderName::from_static("x-kinsync-omitted");
/// Longest value in a header. Proxies limit all headers of a response together, usually to 4 KiB.
const MAX_VALUE_BYTES: usize = 512;
/// The outcome of the refresh: `refreshed`, `recent`, `refused` or `unavailable`.
const PROFILE: HeaderName = HeaderName::from_static("x-kinsync-profile");
/// The user's own browser may keep a copy and has to revalidate it each time.
const CACHE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// How to refresh the profile.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ProfileQuery {
    /// Read the profile from Kinde even if it was read a moment ago. Default: false.
    #[serde(default)]
    #[param(required = false)]
    refresh: bool,
}

/// Describes `GET /api/me`.
pub fn describe_me(operation: OperationBuilder, schemas: &mut Schemas) -> OperationBuilder {
    let degraded = "While the store is unavailable, the answer has `x-kinsync-degraded: true` and only the members `kindeId` \
                    and `email`, from the token.";
    openapi::answers::<User>(operation.description(Some(degraded)), StatusCode::OK, schemas)
}

/// Describes `GET /api/profile`.
pub fn describe_profile(operation: OperationBuilder, schemas: &mut Schemas) -> OperationBuilder {
    describe_me(openapi::query::<ProfileQuery>(operation), schemas)
}

/// Describes `/auth/verify`.
pub fn describe_verify(operation: OperationBuilder, _: &mut Schemas) -> OperationBuilder {
    let headers = [
        (USER_ID, "The Kinde id of the user."),
        (EMAIL, "The email address of the user; empty when there is none."),
        (ORG, "The code of the organization in the token; empty when there is none."),
        (OMITTED, "Names of the headers with a value that is too long or cannot be sent; else empty."),
        (DEGRADED, "`true` while the store is unavailable and only the token is known; else empty."),
    ];
    openapi::answers_headers(operation, &headers)
}

/// GET /api/me: the user document as stored.
pub async fn me(user: CurrentUser, headers: HeaderMap) -> Response {
    document(&user, &headers).map(Body::new)
}

/// GET /api/profile: the same, refreshed from Kinde; the stored document when Kinde does not answer.
pub async fn profile(
    user: CurrentUser,
    State(state): State<Arc<AppState>>,
    Params(query): Params<ProfileQuery>,
    headers: HeaderMap,
) -> Result<Response> {
    let Some(authenticator) = &state.authenticator else {
        return Err(Failure::from(kinsync_tower::Problem::NoRoute));
    };
    let wanted = if query.refresh { Refresh::Force } else { Refresh::WhenOld };
    let (user, refreshed) = authenticator.refresh(user, &headers, wanted).await?;
    let mut response = document(&user, &headers).map(Body::new);
    response.headers_mut().insert(PROFILE, HeaderValue::from_static(refreshed.as_str()));
    Ok(response)
}

/// ANY /auth/verify: 200 with the identity of the user in headers, for a proxy. An unknown value is an empty header, and so
/// is `x-kinsync-degraded` (until the layer writes it): a proxy that copies the headers overwrites those of the caller.
pub async fn verify(user: CurrentUser) -> impl IntoResponse {
    let mut headers = HeaderMap::new();
    let mut omitted = Vec::new();
    let values = [
        (USER_ID, Some(user.id())),
        (EMAIL, user.email()),
        (ORG, user.token().org_code.as_deref()),
        (DEGRADED, None),
    ];
    for (name, value) in values {
        let value = value.unwrap_or_default();
        let fits = value.len() <= MAX_VALUE_BYTES;
        let value = HeaderValue::from_bytes(value.as_bytes()).ok().filter(|_| fits);
        if value.is_none() {
            omitted.push(name.as_str().to_owned());
        }
        headers.insert(name, value.unwrap_or(HeaderValue::from_static("")));
    }
    let omitted = HeaderValue::try_from(omitted.join(", ")).expect("header names are ASCII");
    headers.insert(OMITTED, omitted);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers
}

/// The stored document; while the store is unavailable, the data of the token.
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
    sent.insert(header::VARY, HeaderValue::from_static("authorization, cookie"));
    response
}

/// RFC 9110 section 13.1.2, by weak comparison.
fn is_known(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let sent = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = sent.flat_map(|list| list.split(',')).map(str::trim);
    tags.any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one).as_bytes() == tag.as_bytes())
}
