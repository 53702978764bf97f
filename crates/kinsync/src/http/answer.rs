//! Failures of the store and the queue as problem documents: what every caller may know, and what only operators and the
//! log may.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use kinsync_engine::internal::{queue, store};
use kinsync_tower::problem::{Problem, RequestId, chain};

/// The outcome of a handler.
pub type Result<T> = std::result::Result<T, Failure>;

/// Why a handler failed.
#[derive(Debug)]
pub struct Failure {
    /// What every caller may know.
    pub problem: Problem,
    /// What operators may know too.
    pub cause: Option<String>,
}

/// The pause before the next attempt, in a 503.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl Failure {
    /// A 503. The cause is logged.
    pub fn unavailable(cause: &dyn std::error::Error) -> Self {
        let (request, cause) = (RequestId::next(), chain(cause));
        tracing::warn!(%request, error = cause, "a request was answered 503");
        Self { problem: Problem::Unavailable { retry_after: RETRY_AFTER, request }, cause: Some(cause) }
    }

    /// A 500. The cause is logged.
    pub fn internal(cause: &dyn std::error::Error) -> Self {
        let (request, cause) = (RequestId::next(), chain(cause));
        tracing::error!(%request, error = cause, "a request was answered 500");
        Self { problem: Problem::Internal { request }, cause: Some(cause) }
    }

    /// The answer to an operator, with the cause.
    pub fn into_operator_response(self) -> Response {
        self.problem.into_response_with_cause(self.cause).map(axum::body::Body::new)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { problem, cause: None }
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        if error.is_transient() { Self::unavailable(&error) } else { Self::internal(&error) }
    }
}

impl From<queue::Error> for Failure {
    fn from(error: queue::Error) -> Self {
        match error {
            queue::Error::NoSuchDeadLetter { .. } => Problem::NotFound { what: "dead letter" }.into(),
            queue::Error::PayloadRemoved { .. } => {
                Problem::NotFound { what: "payload of this dead letter" }.into()
            }
            error => Self::unavailable(&error),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.problem.into_response().map(axum::body::Body::new)
    }
}
