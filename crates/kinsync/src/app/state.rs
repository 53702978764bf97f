//! What the app is made of, as the routes see it.

use std::{fmt, sync::Arc};

use aws_lc_rs::{constant_time, digest};
use kinde::{Jwks, webhook::Verifier};
use kinsync_core::UserId;
use kinsync_engine::{
    breaker::Breaker,
    clock::Clock,
    pending_checks::PendingChecks,
    queue::Queue,
    reconcile::{Reconciler, schedule::Status},
    store::{self, Store},
};
use kinsync_tower::{Authenticator, WebhookService};
use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::config::Config;

/// What the app is made of.
#[derive(Debug)]
pub struct AppState {
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
    /// The keys of each issuer of tokens, and the tenant's, which sign webhooks.
    pub key_sets: Vec<Jwks>,
    /// Knows the users of requests, when there is an issuer.
    pub authenticator: Option<Authenticator>,
    /// Compares Kinde with the store, when there is a machine-to-machine application.
    pub reconcile: Option<ReconcilerHandle>,
    /// Receives deliveries.
    pub webhook: WebhookService,
    /// Opens the admin routes.
    pub admin_token: Option<AdminToken>,
    /// What Prometheus reads.
    pub metrics: PrometheusHandle,
    /// When the app was made.
    pub started: Instant,
    /// Why the store is not prepared; `None` once it is.
    pub(super) unprepared: watch::Receiver<Option<String>>,
}

/// The reconciler of this process.
#[derive(Debug)]
pub struct ReconcilerHandle {
    /// Asks Kinde.
    pub reconciler: Reconciler,
    /// What its schedule knows.
    pub status: watch::Receiver<Status>,
    /// Makes the schedule look at once.
    pub wake: Arc<Notify>,
}

impl AppState {
    /// Asks for a scan, which some process that shares the store makes soon.
    pub async fn ask_for_scan(&self) -> Result<(), store::Error> {
        PendingChecks::request_scan(&*self.store).await?;
        self.wake_reconciler();
        Ok(())
    }

    /// Asks for a scan that carries out the deletions that this run held.
    pub async fn approve(&self, run: &str) -> Result<(), store::Error> {
        PendingChecks::approve(&*self.store, run).await?;
        self.wake_reconciler();
        Ok(())
    }

    /// Asks for a check of one user.
    pub async fn ask_for_check(&self, user: UserId) -> Result<(), store::Error> {
        PendingChecks::request(&*self.store, &[user]).await?;
        self.wake_reconciler();
        Ok(())
    }

    fn wake_reconciler(&self) {
        if let Some(reconcile) = &self.reconcile {
            reconcile.wake.notify_one();
        }
    }

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
