//! Routes for users with an access token. The signature of every handler takes a `CurrentUser`, which only a verified token
//! yields.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header, request::Parts};
use kinsync_tower::{CurrentUser, authenticator::Refresh, problem::Body};
use serde::Deserialize;
use utoipa::{IntoParams, openapi::path::OperationBuilder};

use super::{
    answer::{Failure, Result},
    openapi::{self, Schemas},
    route::Params,
};
use crate::{api::users::User, app::AppState};

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

/// GET /api/me: the user document as stored.
pub async fn me(_: Arc<AppState>, user: CurrentUser, head: Parts) -> Result<Response<Body>> {
    Ok(document(&user, &head.headers))
}

/// GET /api/profile: the same, refreshed from Kinde; the stored document when Kinde does not answer.
pub async fn profile(state: Arc<AppState>, user: CurrentUser, mut head: Parts) -> Result<Response<Body>> {
    let Params(query) = Params::<ProfileQuery>::from_request_parts(&mut head, &state).await?;
    let Some(authenticator) = &state.authenticator else {
        return Err(Failure::from(kinsync_tower::Problem::NoRoute));
    };
    let wanted = if query.refresh { Refresh::Force } else { Refresh::WhenOld };
    let (user, refreshed) = authenticator.refresh(user, &head.headers, wanted).await?;
    let mut response = document(&user, &head.headers);
    response.headers_mut().insert(PROFILE, HeaderValue::from_static(refreshed.as_str()));
    Ok(response)
}

/// The stored document; while the store is unavailable, the data of the token.
fn document(user: &CurrentUser, headers: &HeaderMap) -> Response<Body> {
    let json = user.json();
    let mut response = Response::new(Body::default());
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
