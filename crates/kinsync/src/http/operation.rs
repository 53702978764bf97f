//! Health and metrics.

use std::sync::Arc;

use axum::{Json, extract::State, response::IntoResponse};
use http::{StatusCode, header};
use serde_json::{Value, json};

use crate::{app::AppState, health::Health, metrics as meters};

const NO_STORE: (header::HeaderName, &str) = (header::CACHE_CONTROL, "no-store");

/// GET /health: 503 only when deliveries cannot be accepted.
pub async fn health(State(state): State<Arc<AppState>>) -> impl IntoResponse {
    let health = Health::of(&state);
    (status(&health), [NO_STORE], Json(health.document()))
}

/// GET /health/live: the process answers.
pub async fn live() -> impl IntoResponse {
    ([NO_STORE], Json(json!({ "status": "ok" })))
}

/// GET /health/ready: deliveries can be accepted.
pub async fn ready(State(state): State<Arc<AppState>>) -> impl IntoResponse {
    let health = Health::of(&state);
    let document: Value = if health.is_ready() {
        json!({ "status": "ok" })
    } else {
        json!({ "status": "failing", "problems": health.failing })
    };
    (status(&health), [NO_STORE], Json(document))
}

/// GET /metrics
pub async fn metrics(State(state): State<Arc<AppState>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], meters::render(&state))
}

fn status(health: &Health) -> StatusCode {
    if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
