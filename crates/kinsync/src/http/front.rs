//! Where every request comes in. The two routes that are asked most are answered here: a router, with its boxes and
//! extensions, costs about as much as all that they do.

use axum::Router;
use http::{Method, Request, Response};
use http_body_util::Either;
use hyper::body::Incoming;
use kinsync_tower::{Authenticator, WebhookService, problem};
use tower_service::Service as _;

use super::{
    cors::Cors,
    routes::{ME, WEBHOOK},
    user_routes,
};
use crate::metrics::RouteMeter;

/// What an answer is made of.
pub type Body = Either<problem::Body, axum::body::Body>;

/// What answers the requests of connections. Each connection has a clone.
pub trait Answer: Clone + Send + Sync + 'static {
    /// What this request is answered. Cancel safe.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send;
}

/// Every route for the world.
#[derive(Clone, Debug)]
pub struct Front {
    pub(super) webhook: WebhookService,
    pub(super) authenticator: Option<Authenticator>,
    pub(super) webhook_meter: RouteMeter,
    pub(super) me_meter: RouteMeter,
    pub(super) cors: Option<Cors>,
    pub(super) others: Router,
}

impl Answer for Front {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        match (request.uri().path(), &self.authenticator) {
            (WEBHOOK, _) => {
                let response = self.webhook.answer(request).await;
                self.webhook_meter.count(response.status());
                response.map(Either::Left)
            }
            (ME, Some(authenticator)) if matches!(*request.method(), Method::GET | Method::HEAD) => {
                let mut response = user_routes::me(authenticator, request.headers()).await;
                if let Some(cors) = &self.cors {
                    cors.allow(request.headers(), response.headers_mut());
                }
                self.me_meter.count(response.status());
                response.map(Either::Left)
            }
            _ => self.others.answer(request).await,
        }
    }
}

impl Answer for Router {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let Ok(response) = self.clone().call(request).await;
        response.map(Either::Right)
    }
}
