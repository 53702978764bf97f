//! Health and metrics.

use std::sync::Arc;

use http::StatusCode;

use crate::{
    api::health::{HealthReport, HealthStatus, Liveness, Readiness},
    app::AppState,
    health::Health,
    metrics as meters,
};

/// The Prometheus text format.
pub const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// GET /health: 503 only while deliveries cannot be accepted.
pub async fn health(state: Arc<AppState>) -> (StatusCode, HealthReport) {
    let health = Health::of(&state).await;
    (status(&health), health.report())
}

/// GET /health/live
pub async fn live(_: Arc<AppState>) -> (StatusCode, Liveness) {
    (StatusCode::OK, Liveness { status: HealthStatus::Ok })
}

/// GET /health/ready
pub async fn ready(state: Arc<AppState>) -> (StatusCode, Readiness) {
    let health = Health::of(&state).await;
    let word = if health.is_ready() { HealthStatus::Ok } else { HealthStatus::Failing };
    (status(&health), Readiness { status: word, problems: health.failing })
}

/// GET /metrics
pub async fn metrics(state: Arc<AppState>) -> String {
    meters::render(&state).await
}

fn status(health: &Health) -> StatusCode {
    if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
