//! Health and metrics.

use std::sync::Arc;

use http::StatusCode;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::{
    api::health::{HealthReport, HealthStatus, Liveness, Readiness},
    app::AppState,
    health::{self, Detail, Health},
    metrics as meters,
};

/// The Prometheus text format.
pub const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// GET /health: 503 only while deliveries cannot be accepted. Causes, which may name hosts, only with the admin token.
pub async fn health(state: Arc<AppState>, detail: Detail) -> (StatusCode, HealthReport) {
    let health = Health::of(&state, detail).await;
    (status(&health), health.report())
}

/// GET /health/live
pub async fn live(_: Arc<AppState>, _: Detail) -> (StatusCode, Liveness) {
    (StatusCode::OK, Liveness { status: HealthStatus::Ok })
}

/// The part of the server that a load balancer checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// `/api/webhook`. Without the role `ingest` the same as logins; ready at once without the role `api` too.
    #[default]
    Deliveries,
    /// `/api/me`, `/api/profile` and `/auth/verify`. A full queue does not affect them.
    Logins,
}

/// What readiness is about.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReadyQuery {
    /// Default: deliveries.
    #[serde(default, rename = "for")]
    #[param(inline, required = false)]
    role: Role,
}

/// GET /health/ready
pub async fn ready(state: Arc<AppState>, query: ReadyQuery) -> (StatusCode, Readiness) {
    let roles = state.engine.roles();
    let problems = match query.role {
        Role::Deliveries if roles.ingest => Health::of(&state, Detail::Open).await.failing,
        // What a process without deliveries is ready for.
        Role::Deliveries if !roles.api => Vec::new(),
        Role::Deliveries | Role::Logins => health::login_problems(&state),
    };
    let (code, status) = if problems.is_empty() {
        (StatusCode::OK, HealthStatus::Ok)
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, HealthStatus::Failing)
    };
    (code, Readiness { status, problems })
}

/// GET /metrics
pub async fn metrics(state: Arc<AppState>) -> String {
    meters::render(&state).await
}

fn status(health: &Health) -> StatusCode {
    if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
