//! A tower layer that authenticates each request before it reaches the service.
//!
//! The service finds a [`CurrentUser`](crate::CurrentUser) among the extensions of the request. Headers of the client
//! that begin with `x-kinsync-` are removed, because only kinsync may write them. A response that was made while the
//! store was unavailable carries `x-kinsync-degraded: true`.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Either;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    authenticator::Authenticator,
    problem::{Body, Problem},
};

/// Set to `true` when the store did not answer and the request went on with the token's data.
pub const DEGRADED: HeaderName = HeaderName::from_static("x-kinsync-degraded");
/// Prefix of all headers that only kinsync writes.
const PREFIX: &str = "x-kinsync-";

/// Authenticates requests with an [`Authenticator`]. Cheap to clone.
#[derive(Clone, Debug)]
pub struct KinsyncLayer {
    authenticator: Authenticator,
    document_refused: StatusCode,
}

impl KinsyncLayer {
    /// Creates a layer that uses this authenticator.
    pub fn new(authenticator: Authenticator) -> Self {
        Self { authenticator, document_refused: StatusCode::SERVICE_UNAVAILABLE }
    }

    /// Answers 403 instead of 503 to a user that the store refuses, for a reverse proxy that handles no other refusal.
    #[must_use]
    pub fn for_proxy(self) -> Self {
        Self { document_refused: StatusCode::FORBIDDEN, ..self }
    }
}

impl<S> Layer<S> for KinsyncLayer {
    type Service = AuthenticatedService<S>;

    fn layer(&self, inner: S) -> AuthenticatedService<S> {
        AuthenticatedService { inner, layer: self.clone() }
    }
}

/// A service that receives only requests of verified users that are neither deleted nor suspended.
#[derive(Clone, Debug)]
pub struct AuthenticatedService<S> {
    inner: S,
    layer: KinsyncLayer,
}

impl<S, B, R> Service<Request<B>> for AuthenticatedService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<Either<R, Body>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // tower requires that the service that was polled ready is the one that is called.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let KinsyncLayer { authenticator, document_refused } = self.layer.clone();
        Box::pin(async move {
            strip(request.headers_mut());
            let user = match authenticator.authenticate(request.headers()).await {
                Ok(user) => user,
                Err(Problem::DocumentRefused { .. }) => {
                    let problem = Problem::DocumentRefused { status: document_refused };
                    return Ok(problem.into_response().map(Either::Right));
                }
                Err(problem) => return Ok(problem.into_response().map(Either::Right)),
            };
            let degraded = user.is_degraded();
            request.extensions_mut().insert(user);
            let mut response = inner.call(request).await?;
            if degraded {
                response.headers_mut().insert(DEGRADED, HeaderValue::from_static("true"));
            }
            Ok(response.map(Either::Left))
        })
    }
}

/// Removes every header with kinsync's prefix.
fn strip(headers: &mut HeaderMap) {
    while let Some(name) = headers.keys().find(|name| name.as_str().starts_with(PREFIX)).cloned() {
        headers.remove(name);
    }
}
