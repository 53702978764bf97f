//! What surrounds the handler of each route: the count of its responses, their headers and its deadline.
//!
//! Each service is wrapped once and boxed once, by its type: a layer of the router would add a box per request.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Bytes,
    extract::Request,
    handler::Handler as _,
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter, any_service, on_service},
};
use futures_util::future::BoxFuture;
use http::{HeaderValue, header};
use kinsync_tower::Problem;
use tokio::time::timeout;
use tower::{BoxError, Service, ServiceExt as _, service_fn};

use super::{
    answer::Failure,
    route::{Audience, Verb},
};
use crate::{app::AppState, metrics::RouteMeter};

/// A handler of any kind as one type. With a type for each, the compiler needs a third longer for this crate: it resolves
/// every layer around every handler again.
pub type Run = Arc<dyn Fn(Arc<AppState>, Request) -> BoxFuture<'static, Response> + Send + Sync>;

/// What the routes of one path share.
#[derive(Clone, Debug)]
pub struct Mount {
    state: Arc<AppState>,
    finish: Finish,
}

impl Mount {
    /// `path` is the `route` label of the request metrics.
    pub fn new(state: &Arc<AppState>, path: &'static str, audience: Audience) -> Self {
        Self { state: Arc::clone(state), finish: Finish { meter: RouteMeter::new(path), audience } }
    }

    /// Returns what every response of the path gets.
    pub fn finish(&self) -> &Finish {
        &self.finish
    }

    /// Returns the state of the application.
    pub fn state(&self) -> &Arc<AppState> {
        &self.state
    }

    /// Adds a service that has its own deadline.
    pub fn service<S, B>(&self, verb: Verb, service: S) -> MethodRouter
    where
        S: Service<Request, Response = http::Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let service = self.counted(service);
        match verb {
            Verb::Get => on_service(MethodFilter::GET, service),
            Verb::Post => on_service(MethodFilter::POST, service),
            Verb::Delete => on_service(MethodFilter::DELETE, service),
            Verb::Any => any_service(service),
        }
    }

    /// Adds a handler with a deadline.
    pub fn handler(&self, verb: Verb, run: Run) -> MethodRouter {
        let state = Arc::clone(&self.state);
        let run = move |request: Request| {
            let response = timeout(state.config.http.request_deadline, run(Arc::clone(&state), request));
            async move {
                Ok(response.await.unwrap_or_else(|passed| Failure::unavailable(&passed).into_response()))
            }
        };
        self.service(verb, service_fn(run))
    }

    /// Adds the response to every other method.
    pub fn or_method_not_allowed(&self, methods: MethodRouter, allow: String) -> MethodRouter {
        let refuse = async move || Failure::from(Problem::MethodNotAllowed { allow: allow.into() });
        methods.fallback_service(self.counted(refuse.with_state(())))
    }

    fn counted<S, B>(
        &self,
        service: S,
    ) -> impl Service<
        Request,
        Response = http::Response<B>,
        Error = S::Error,
        Future: Future<Output = Result<http::Response<B>, S::Error>> + Send + 'static,
    > + Clone
    + Send
    + Sync
    + use<S, B>
    where
        S: Service<Request, Response = http::Response<B>> + Clone + Send + Sync,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        B: Send + 'static,
    {
        let finish = self.finish.clone();
        service.map_future(move |response: S::Future| {
            let (finish, began) = (finish.clone(), finish.meter.begin());
            async move {
                let response = response.await?;
                finish.meter.took(began);
                Ok(finish.apply(response))
            }
        })
    }
}

/// What every response of a path gets.
#[derive(Clone, Debug)]
pub struct Finish {
    meter: RouteMeter,
    audience: Audience,
}

impl Finish {
    /// Counts the response, and adds what keeps browsers from storing a response for operators and from taking a response
    /// for another type.
    pub fn apply<B>(&self, mut response: http::Response<B>) -> http::Response<B> {
        self.meter.count(response.status());
        let headers = response.headers_mut();
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if self.audience == Audience::Operator {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        response
    }
}
