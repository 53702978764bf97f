//! Makes the router from the list of routes.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state, map_response},
    response::{IntoResponse, Response},
    routing::{MethodRouter, any},
};
use http::{HeaderMap, HeaderValue, header};
use kinsync_tower::{KinsyncLayer, Problem};

use super::{
    answer::Failure,
    cors::{Cors, cross_origin},
    route::{Audience, Route, Verb},
    routes::routes,
};
use crate::{app::AppState, metrics::RouteMeter};

/// The routes of the main address. Those for monitoring and for operators are among them unless they have an address of
/// their own.
pub fn public(state: &Arc<AppState>) -> Router {
    let http = &state.config.http;
    let is_here = |route: &Route| match route.audience {
        Audience::Monitoring => http.metrics_bind.is_none(),
        Audience::Operator => http.admin_bind.is_none(),
        _ => true,
    };
    router(routes().into_iter().filter(is_here), state)
}

/// The routes of an address for one audience.
pub fn only(audience: Audience, state: &Arc<AppState>) -> Router {
    router(routes().into_iter().filter(|route| route.audience == audience), state)
}

fn router(routes: impl Iterator<Item = Route>, state: &Arc<AppState>) -> Router {
    let mut paths: Vec<PathRoutes> = Vec::new();
    for route in routes {
        match paths.iter_mut().find(|one| one.path == route.path) {
            Some(known) => known.add(route),
            None => paths.push(PathRoutes::new(route)),
        }
    }
    let unmatched = RouteMeter::new("unmatched");
    paths
        .into_iter()
        .fold(Router::new(), |router, path| path.mount(router, state))
        .fallback(move || {
            let response = Failure::from(Problem::NoRoute).into_response();
            unmatched.count(response.status());
            async { response }
        })
        .with_state(Arc::clone(state))
}

/// The routes of one path, by method.
struct PathRoutes {
    path: &'static str,
    aliases: &'static [&'static str],
    audience: Audience,
    /// The value of `Allow`; `None`: it answers every method.
    allow: Option<String>,
    methods: MethodRouter<Arc<AppState>>,
}

impl PathRoutes {
    fn new(route: Route) -> Self {
        Self {
            path: route.path,
            aliases: route.aliases,
            audience: route.audience,
            allow: (route.verb != Verb::Any).then(|| route.verb.allow().to_owned()),
            methods: route.handler,
        }
    }

    fn add(&mut self, route: Route) {
        self.allow = self.allow.take().map(|allow| format!("{allow}, {}", route.verb.allow()));
        self.methods = std::mem::take(&mut self.methods).merge(route.handler);
    }

    /// Adds the path with its checks, its deadline and its meter.
    fn mount(self, router: Router<Arc<AppState>>, state: &Arc<AppState>) -> Router<Arc<AppState>> {
        let Self { path, aliases, audience, allow, methods } = self;
        let (methods, allow) = match (audience, &state.authenticator) {
            // Everything that these routes wait for has a deadline of its own.
            (Audience::User, Some(authenticator)) => {
                let layer = KinsyncLayer::new(authenticator.clone());
                // The route that answers every method is the one for reverse proxies: nginx handles no refusal but 401 and 403.
                let layer = if allow.is_none() { layer.for_proxy() } else { layer };
                (methods.layer(layer), allow)
            }
            (Audience::Sender, _) => (methods, allow),
            (Audience::User, None) => (any(async || Failure::from(DISABLED)), None),
            _ => (methods.layer(from_fn_with_state(state.config.http.request_deadline, deadline)), allow),
        };
        let is_document = audience == Audience::User && allow.is_some();
        // The handler of every method is the fallback of the method router, and so is this one.
        let methods = match allow {
            Some(allow) => methods.fallback(move || async move {
                Failure::from(Problem::MethodNotAllowed { allow: allow.into() })
            }),
            None => methods,
        };
        let methods = match Cors::of(&state.config.http) {
            Some(cors) if is_document => methods.layer(from_fn_with_state(cors, cross_origin)),
            _ => methods,
        };
        let meter = RouteMeter::new(path);
        let methods = methods.layer(map_response(move |mut response: Response| {
            meter.count(response.status());
            protect(response.headers_mut(), audience);
            async { response }
        }));
        let paths = std::iter::once(&path).chain(aliases);
        paths.fold(router, |router, path| router.route(path, methods.clone()))
    }
}

/// Adds what keeps browsers from storing a response for operators, and from taking a response for another type.
fn protect(headers: &mut HeaderMap, audience: Audience) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if audience == Audience::Operator {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}

/// What the routes of users answer without a trusted issuer.
const DISABLED: Problem = Problem::Disabled { what: "routes for users", enabled_by: "KINDE_DOMAIN" };

/// Ends a request that takes too long. The webhook and the routes of users have deadlines of their own.
async fn deadline(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(passed) => Failure::unavailable(&passed).into_response(),
    }
}
