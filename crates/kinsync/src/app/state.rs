//! The parts of the app, for the routes.

use kinde::{Jwks, domain::issuer_of, webhook::Verifier};
use kinsync_engine::Engine;
use kinsync_tower::{Authenticator, WebhookService};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::time::Instant;

use crate::{config::Config, http::admin_access::AdminAccess};

/// The parts of the app.
#[derive(Debug)]
pub struct AppState {
    /// The settings.
    pub config: Config,
    /// Queue, store, projector and reconciler.
    pub engine: Engine,
    /// Verifies deliveries.
    pub verifier: Verifier,
    /// The keys of each issuer of tokens, and the tenant's, which sign webhooks.
    pub key_sets: Vec<Jwks>,
    /// Authenticates requests of users; `None` without an issuer.
    pub authenticator: Option<Authenticator>,
    /// Receives deliveries.
    pub webhook: WebhookService,
    /// Verifies and records requests of operators.
    pub admin: AdminAccess,
    /// The metrics for Prometheus.
    pub metrics: PrometheusHandle,
    /// When the app was created.
    pub started: Instant,
}

impl AppState {
    /// The keys of the tenant: those of `KINDE_DOMAIN`, else of the first issuer. `None` without either.
    pub fn tenant_keys(&self) -> Option<&Jwks> {
        let domain = self.config.kinde.domain.as_ref().map(issuer_of);
        let of_domain = self.key_sets.iter().find(|keys| Some(keys.issuer()) == domain.as_deref());
        of_domain.or(self.key_sets.first())
    }
}
