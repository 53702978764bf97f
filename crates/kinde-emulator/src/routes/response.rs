//! Response shapes of Kinde that several routes share: success and the two forms of errors.

use std::borrow::Cow;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::config::Missing;

/// An error response: `{"errors":[{"code","message"}]}` with a status.
#[derive(Debug)]
pub(super) struct ErrorResponse {
    pub(super) status: StatusCode,
    pub(super) code: Cow<'static, str>,
    pub(super) message: String,
}

impl ErrorResponse {
    pub(super) fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self { status, code: code.into(), message: message.into() }
    }

    pub(super) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(super) fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, message)
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        let error = json!({"code": self.code, "message": self.message});
        (self.status, Json(json!({"errors": [error]}))).into_response()
    }
}

/// The error of an unknown route. Only in this one `errors` is an object.
pub(super) struct RouteNotFound;

impl IntoResponse for RouteNotFound {
    fn into_response(self) -> Response {
        let error = json!({"code": "ROUTE_NOT_FOUND", "message": "The requested API route does not exist"});
        (StatusCode::NOT_FOUND, Json(json!({"errors": error}))).into_response()
    }
}

/// A JSON body of any content type; an empty body is `{}`. An invalid body is answered with an error of Kinde's shape.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ErrorResponse;

    async fn from_request(request: Request, state: &S) -> Result<Self, ErrorResponse> {
        let invalid = |detail: String| ErrorResponse::bad_request("REQUEST_BODY_INVALID", detail);
        let bytes = Bytes::from_request(request, state).await.map_err(|error| invalid(error.body_text()))?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map(Self).map_err(|error| invalid(error.to_string()))
    }
}

/// Query parameters. Invalid ones are answered with an error of Kinde's shape.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ErrorResponse;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ErrorResponse> {
        let query = Query::from_request_parts(parts, state).await;
        let Query(params) =
            query.map_err(|error| ErrorResponse::bad_request("PARAMETER_INVALID", error.body_text()))?;
        Ok(Self(params))
    }
}

/// Sets a text, or the representation of an absent one.
pub(super) fn optional(body: &mut Value, name: &str, text: Option<&str>, missing: Missing) {
    match (text, missing) {
        (Some(text), _) => body[name] = json!(text),
        (None, Missing::Null) => body[name] = Value::Null,
        (None, Missing::Empty) => body[name] = json!(""),
        (None, Missing::Absent) => {}
    }
}

/// A response with status 200 and this body.
pub(super) fn json(body: &Value) -> Response {
    Json(body).into_response()
}

/// A response with status 200 that adds `code` and `message` to `rest`.
pub(super) fn success(code: &str, message: &str, mut rest: Value) -> Response {
    rest["code"] = json!(code);
    rest["message"] = json!(message);
    Json(rest).into_response()
}
