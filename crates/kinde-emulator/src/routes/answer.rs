//! Kinde's answers that are not about one route: success, errors in a list, and the error that is not in a list.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// `{"errors":[{"code","message"}]}` with a status.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(super) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(super) fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let error = json!({"code": self.code, "message": self.message});
        (self.status, Json(json!({"errors": [error]}))).into_response()
    }
}

/// The one error of Kinde's whose `errors` is an object.
pub(super) struct RouteNotFound;

impl IntoResponse for RouteNotFound {
    fn into_response(self) -> Response {
        let error = json!({"code": "ROUTE_NOT_FOUND", "message": "The requested API route does not exist"});
        (StatusCode::NOT_FOUND, Json(json!({"errors": error}))).into_response()
    }
}

/// 200 with `code` and `message` beside what `rest` has.
pub(super) fn success(code: &str, message: &str, mut rest: Value) -> Response {
    rest["code"] = json!(code);
    rest["message"] = json!(message);
    Json(rest).into_response()
}
