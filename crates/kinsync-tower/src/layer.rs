//! In front of any tower service: the user of every request, known and stored, or a refusal.
//!
//! The service behind sees a [`CurrentUser`](crate::CurrentUser) among the extensions of the request, and no
//! `x-kinsync-…` header of the caller: those are kinsync's to write. An answer that was made while the store was away
//! carries `x-kinsync-degraded: true`.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::Either;
use tower_layer::Layer;
use tower_service::Service;

use crate::{authenticator::Authenticator, problem::Body};

/// Says that the store did not answer and the request went on with the token's data.
pub const DEGRADED: HeaderName = HeaderName::from_static("x-kinsync-degraded");
/// What the headers begin with that only kinsync writes.
const OWN: &str = "x-kinsync-";

/// Puts a [`Authenticator`] in front of services. Cheap to clone.
#[derive(Clone, Debug)]
pub struct KinsyncLayer(Authenticator);

impl KinsyncLayer {
    /// A layer that asks this authenticator.
    pub fn new(authenticator: Authenticator) -> Self {
        Self(authenticator)
    }
}

impl<S> Layer<S> for KinsyncLayer {
    type Service = AuthenticatedService<S>;

    fn layer(&self, inner: S) -> AuthenticatedService<S> {
        AuthenticatedService { inner, authenticator: self.0.clone() }
    }
}

/// A service that only verified, live users reach.
#[derive(Clone, Debug)]
pub struct AuthenticatedService<S> {
    inner: S,
    authenticator: Authenticator,
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
        // The service that was polled ready is the one that is called.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let authenticator = self.authenticator.clone();
        Box::pin(async move {
            strip(request.headers_mut());
            let user = match authenticator.authenticate(request.headers()).await {
                Ok(user) => user,
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

/// Takes away what the caller says in kinsync's name.
fn strip(headers: &mut HeaderMap) {
    while let Some(name) = headers.keys().find(|name| name.as_str().starts_with(OWN)).cloned() {
        headers.remove(name);
    }
}
