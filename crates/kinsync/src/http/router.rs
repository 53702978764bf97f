//! Makes the router from the list of routes.

use std::sync::Arc;

use axum::{Router, middleware::from_fn_with_state, response::IntoResponse, routing::MethodRouter};
use kinsync_tower::Problem;

use super::{
    answer::Failure,
    cors::{Cors, CrossOrigin, cross_origin},
    mount::Mount,
    route::{AddHandler, Audience, Route, Verb},
    routes::routes,
};
use crate::{app::AppState, metrics::RouteMeter};

/// The routes of the main address. Those for monitoring and for operators are among them unless they have an address of
/// their own.
pub fn public(state: &Arc<AppState>) -> Router {
    let http = &state.config.http;
    let roles = state.config.roles;
    let is_here = |route: &Route| match route.audience {
        Audience::Sender => roles.ingest,
        Audience::User => roles.api,
        Audience::Monitoring => http.metrics_bind.is_none(),
        Audience::Operator => roles.api && http.admin_bind.is_none(),
        Audience::Public => true,
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
    paths.into_iter().fold(Router::new(), |router, path| path.mount(router, state)).fallback(move || {
        let response = Failure::from(Problem::NoRoute).into_response();
        unmatched.count(response.status());
        async { response }
    })
}

/// The routes of one path, by method.
struct PathRoutes {
    path: &'static str,
    aliases: &'static [&'static str],
    audience: Audience,
    /// The value of `Allow`; `None`: it answers every method.
    allow: Option<String>,
    handlers: Vec<AddHandler>,
}

impl PathRoutes {
    fn new(route: Route) -> Self {
        Self {
            path: route.path,
            aliases: route.aliases,
            audience: route.audience,
            allow: (route.verb != Verb::Any).then(|| route.verb.allow().to_owned()),
            handlers: vec![route.add],
        }
    }

    fn add(&mut self, route: Route) {
        self.allow = self.allow.take().map(|allow| format!("{allow}, {}", route.verb.allow()));
        self.handlers.push(route.add);
    }

    fn mount(self, router: Router, state: &Arc<AppState>) -> Router {
        let Self { path, aliases, audience, allow, handlers } = self;
        let mount = Mount::new(state, path, audience);
        let methods =
            handlers.into_iter().fold(MethodRouter::new(), |methods, add| methods.merge(add(&mount)));
        let is_document = audience == Audience::User && allow.is_some();
        // The handler of every method is the fallback of the method router, and so is this one.
        let methods = match allow {
            Some(allow) => mount.or_method_not_allowed(methods, allow),
            None => methods,
        };
        let methods = match Cors::of(&state.config.http) {
            Some(cors) if is_document => {
                let cross = CrossOrigin { cors, finish: mount.finish().clone() };
                methods.layer(from_fn_with_state(cross, cross_origin))
            }
            _ => methods,
        };
        let paths = std::iter::once(&path).chain(aliases);
        paths.fold(router, |router, path| router.route(path, methods.clone()))
    }
}
