//! kinsync in this process: engine, webhook endpoint and authenticator. Copy this file.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Result;
use kinde::{
    Jwks,
    account::{self, ProfileClient},
    bearer::{self, CachingConfig, CachingVerifier},
    domain::issuer_of,
    jwks, management, webhook,
};
use kinsync_engine::{Engine, config};
use kinsync_tower::{
    KinsyncLayer, WebhookService,
    authenticator::{self, Authenticator, claims},
};
use url::Url;

/// Pause between requests for signing keys that are not known yet; the key set has a cool-down of its own.
const KEYS_PAUSE: Duration = Duration::from_secs(5);

/// A running kinsync.
pub(crate) struct Kinsync {
    /// Accepts deliveries of Kinde.
    pub(crate) webhook: WebhookService,
    /// Authenticates the requests of users.
    pub(crate) layer: KinsyncLayer,
    engine: Engine,
}

impl Kinsync {
    /// Keeps the users of this tenant in this MongoDB, else in the folder. Deliveries are queued in the folder either
    /// way: it must last, and each process needs its own. Without a Management API nothing repairs what webhooks miss.
    pub(crate) async fn start(
        tenant: Url,
        folder: &Path,
        mongodb: Option<config::Mongo>,
        management: Option<management::Config>,
    ) -> Result<Self> {
        let mut builder = Engine::builder(folder);
        if let Some(mongodb) = mongodb {
            builder = builder.mongodb(mongodb);
        }
        if let Some(management) = management {
            builder = builder.management(management);
        }
        let engine = builder.open().await?;
        let keys = Jwks::new(jwks::Config::new(tenant.clone()))?;

        // Deliveries go into the queue. `hmac_secrets` would accept signed ones from a relay, too.
        let verifier = webhook::Config { jwks: Some(keys.clone()), ..webhook::Config::default() };
        let verifier = webhook::Verifier::new(verifier)?;
        let limits = kinsync_tower::webhook::Config::default();
        let webhook = WebhookService::new(verifier, &engine, limits);

        // Requests carry tokens of this issuer. Name your API in `audiences` if your front end requests one.
        let issuer = issuer_of(&tenant);
        let tokens =
            bearer::Config { issuers: vec![(issuer.clone(), keys.clone())], ..bearer::Config::default() };
        let sources = authenticator::Sources {
            tokens: CachingVerifier::new(bearer::Verifier::new(tokens), &CachingConfig::default()),
            profiles: vec![(issuer, ProfileClient::new(account::Config::new(tenant))?)],
            claims: Arc::new(claims::Email),
        };
        let authenticator = Authenticator::start(&engine, sources, authenticator::Config::default());
        engine.supervisor().spawn_once("signing keys", fetch_keys(keys));
        engine.start();
        Ok(Self { webhook, layer: KinsyncLayer::new(authenticator), engine })
    }

    /// Finishes the current batch. What is not projected yet stays queued for the next start.
    pub(crate) async fn stop(self) {
        self.engine.stop().await;
    }
}

/// Fetches the tenant's keys before the first delivery needs them.
async fn fetch_keys(keys: Jwks) {
    while keys.refresh().await.is_err() {
        tokio::time::sleep(KEYS_PAUSE).await;
    }
}
