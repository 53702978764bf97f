//! What the app is made of, as the routes see it.

use std::fmt;

use aws_lc_rs::{constant_time, digest};
use kinde::{Jwks, webhook::Verifier};
use kinsync_engine::Engine;
use kinsync_tower::{Authenticator, WebhookService};
use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use crate::config::Config;

/// What the app is made of.
#[derive(Debug)]
pub struct AppState {
    /// What the operator decided.
    pub config: Config,
    /// Queue, store, projector and reconciler.
    pub engine: Engine,
    /// Verifies deliveries.
    pub verifier: Verifier,
    /// The keys of each issuer of tokens, and the tenant's, which sign webhooks.
    pub key_sets: Vec<Jwks>,
    /// Knows the users of requests, when there is an issuer.
    pub authenticator: Option<Authenticator>,
    /// Receives deliveries.
    pub webhook: WebhookService,
    /// Opens the admin routes.
    pub admin_token: Option<AdminToken>,
    /// What Prometheus reads.
    pub metrics: PrometheusHandle,
    /// When the app was made.
    pub started: Instant,
}

/// The digest of the admin token: compared in constant time, whatever the lengths.
pub struct AdminToken(digest::Digest);

impl AdminToken {
    /// The token that the operator set.
    pub fn new(token: &SecretString) -> Self {
        Self(digest::digest(&digest::SHA256, token.expose_secret().as_bytes()))
    }

    /// Whether this is the token.
    pub fn matches(&self, token: &[u8]) -> bool {
        let given = digest::digest(&digest::SHA256, token);
        constant_time::verify_slices_are_equal(self.0.as_ref(), given.as_ref()).is_ok()
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken")
    }
}
