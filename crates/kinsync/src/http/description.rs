//! The server's description of itself: the index for people, OpenAPI for programs. Both are made from the list of routes.

use std::{
    fmt::Write as _,
    sync::{Arc, LazyLock},
};

use super::{openapi, route::Audience, routes::routes};
use crate::app::AppState;

/// GET /openapi.json
pub async fn openapi(_: Arc<AppState>) -> String {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
        openapi::document().to_pretty_json().expect("the description has only text keys") + "\n"
    });
    DOCUMENT.clone()
}

/// GET /
pub async fn index(_: Arc<AppState>) -> String {
    let mut text = String::from("kinsync mirrors Kinde users into your database.\n");
    let routes = routes();
    let width = routes.iter().map(|route| route.path.len()).max().unwrap_or_default();
    for audience in Audience::ALL {
        _ = write!(text, "\n{}\n", audience.heading());
        for route in routes.iter().filter(|route| route.audience == audience) {
            _ = writeln!(text, "  {:6} {:width$}  {}", route.verb.as_str(), route.path, route.summary);
        }
    }
    text
}
