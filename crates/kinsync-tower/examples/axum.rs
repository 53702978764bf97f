//! An axum application that receives Kinde's webhooks and authenticates its users.
//!
//! ```sh
//! cargo run -p kinsync-tower --example axum --features axum -- https://acme.kinde.com
//! curl -H "Authorization: Bearer $ACCESS_TOKEN" http://127.0.0.1:3000/me
//! ```

use std::{error::Error, sync::Arc};

use axum::{Router, routing::get};
use kinde::{
    Jwks,
    account::{self, ProfileClient},
    bearer::{self, CachingConfig, CachingVerifier},
    domain::issuer_of,
    jwks, webhook,
};
use kinsync_engine::Engine;
use kinsync_tower::{
    Authenticator, CurrentUser, KinsyncLayer, WebhookService,
    authenticator::{self, claims},
};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let domain = std::env::args().nth(1).ok_or("usage: axum https://TENANT.kinde.com")?;
    let tenant = kinde::parse_domain(&domain)?;
    let engine = Engine::builder("kinsync-data").open().await?;
    let keys = Jwks::new(jwks::Config::new(tenant.clone()))?;

    // Deliveries: verified by the tenant's keys, stored in the queue before the response 200.
    let verifier =
        webhook::Verifier::new(webhook::Config { jwks: Some(keys.clone()), ..webhook::Config::default() })?;
    let limits = kinsync_tower::webhook::Config::default();
    let webhook = WebhookService::new(verifier, &engine, limits);

    // Requests: the token is verified, and its user is loaded or created.
    let issuer = issuer_of(&tenant);
    let tokens = bearer::Config { issuers: vec![(issuer.clone(), keys)], ..bearer::Config::default() };
    let sources = authenticator::Sources {
        tokens: CachingVerifier::new(bearer::Verifier::new(tokens), &CachingConfig::default()),
        profiles: vec![(issuer, ProfileClient::new(account::Config::new(tenant))?)],
        claims: Arc::new(claims::Email),
    };
    let authenticator = Authenticator::start(&engine, sources, authenticator::Config::default());
    engine.start();

    let app = Router::new()
        .route("/me", get(me))
        .route_layer(KinsyncLayer::new(authenticator))
        .route_service("/api/webhook", webhook);
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    axum::serve(listener, app).with_graceful_shutdown(ctrl_c()).await?;
    engine.stop().await;
    Ok(())
}

/// Runs only for verified users that are neither deleted nor suspended.
async fn me(user: CurrentUser) -> String {
    let name = user.document().and_then(|document| document.first_name.as_deref());
    format!("{} ({})\n", name.unwrap_or("no first name yet"), user.id())
}

async fn ctrl_c() {
    _ = tokio::signal::ctrl_c().await;
}
