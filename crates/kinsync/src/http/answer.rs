//! Failures of the store and the queue as problem documents: what a caller may know, and what only the log says.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use kinsync_engine::{queue, store};
use kinsync_tower::problem::{Problem, RequestId, chain};

/// The outcome of a handler.
pub type Result<T> = std::result::Result<T, Failure>;

/// Why a handler did not do it.
#[derive(Debug)]
pub struct Failure(pub Problem);

/// When to ask again after a 503.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl Failure {
    /// A 503 whose cause is logged.
    pub fn unavailable(cause: &dyn std::error::Error) -> Self {
        let request = RequestId::next();
        tracing::warn!(%request, error = %chain(cause), "a request was answered 503");
        Self(Problem::Unavailable { retry_after: RETRY_AFTER, request })
    }

    /// A 500 whose cause is logged.
    pub fn internal(cause: &dyn std::error::Error) -> Self {
        let request = RequestId::next();
        tracing::error!(%request, error = %chain(cause), "a request was answered 500");
        Self(Problem::Internal { request })
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
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
            queue::Error::NoSuchDeadLetter { .. } => Self(Problem::NotFound { what: "dead letter" }),
            error => Self::unavailable(&error),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.0.into_response().map(axum::body::Body::new)
    }
}
