//! What the app is made of, as the routes see it.

use std::{fmt, sync::Arc, time::Instant};

use aws_lc_rs::{constant_time, digest};
use kinde::{Jwks, webhook::Verifier};
use kinsync_engine::{breaker::Breaker, clock::Clock, queue::Queue, store::Store};
use kinsync_tower::Activity;
use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;

use crate::config::Config;

/// What the app is made of.
#[derive(Debug)]
pub struct Parts {
    /// What the operator decided.
    pub config: Config,
    /// Where deliveries wait.
    pub queue: Arc<dyn Queue>,
    /// Where users are kept.
    pub store: Arc<dyn Store>,
    /// `mongodb` or `embedded`.
    pub store_kind: &'static str,
    /// Guards the store.
    pub breaker: Breaker,
    /// What time it is.
    pub clock: Clock,
    /// Verifies deliveries.
    pub verifier: Verifier,
    /// The tenant's keys, when there is a tenant.
    pub jwks: Option<Jwks>,
    /// How deliveries are going.
    pub activity: Activity,
    /// Opens the admin routes.
    pub admin_token: Option<AdminToken>,
    /// What Prometheus reads.
    pub metrics: PrometheusHandle,
    /// When the app was made.
    pub started: Instant,
    /// Why the store is not prepared; `None` once it is.
    pub(super) unprepared: watch::Receiver<Option<String>>,
}

impl Parts {
    /// Why the store is not prepared yet, if it is not.
    pub fn store_error(&self) -> Option<String> {
        self.unprepared.borrow().clone()
    }
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
