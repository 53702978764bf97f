//! Tokens of a second issuer, such as a custom domain: whether it belongs to the tenant, and what happens while that is open.

use std::time::Duration;

use axum::http::StatusCode;
use kinde::Jwks;
use kinde::bearer::{self, Verifier};
use kinde::jwks::Config;
use serde_json::{Value, json};

use crate::support::{
    KID, Server, TestKey, access_claims, foreign_key, header, now, status, tenant_key, with,
};

const COOL_DOWN: Duration = Duration::from_secs(30);
/// Longer than the longest pause after failures.
const PAST_EVERY_PAUSE: Duration = Duration::from_secs(151);

/// The servers of a tenant and of its custom domain, and the verifier with the key sets of both.
struct Domains {
    tenant: Server,
    custom: Server,
    tenant_keys: Jwks,
    verifier: Verifier,
}

impl Domains {
    async fn start(tenant: &TestKey, custom: &TestKey) -> Self {
        let (tenant, custom) =
            (Server::with_keys(vec![tenant.jwk(KID)]).await, Server::with_keys(vec![custom.jwk(KID)]).await);
        let keys = |server: &Server| Jwks::new(Config::new(server.domain.clone())).unwrap();
        let (tenant_keys, custom_keys) = (keys(&tenant), keys(&custom));
        let issuers = vec![(custom_keys.issuer().to_owned(), custom_keys)];
        let config =
            bearer::Config { issuers, tenant: Some(tenant_keys.clone()), ..bearer::Config::default() };
        Self { tenant, custom, tenant_keys, verifier: Verifier::new(config) }
    }

    /// The reason of the rejection of a token of the custom domain; `accepted` if there is none.
    async fn outcome(&self, key: &TestKey, kid: &str, changes: &Value) -> &'static str {
        let issuer = kinde::domain::issuer_of(&self.custom.domain);
        let claims = with(with(access_claims(), &json!({ "iss": issuer })), changes);
        let token = key.sign(&with(header(), &json!({ "kid": kid })), &claims);
        match self.verifier.verify(&token, now()).await {
            Ok(_) => "accepted",
            Err(error) => {
                let retry_after = error.retry_after();
                assert!(retry_after.is_none_or(|wait| wait >= Duration::from_secs(1)), "{retry_after:?}");
                assert_eq!(retry_after.is_some(), error.reason() == "keys_unavailable");
                error.reason()
            }
        }
    }

    async fn login(&self, key: &TestKey) -> &'static str {
        self.outcome(key, KID, &json!({})).await
    }
}

/// Advances tokio's clock. Sockets use real time.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn the_first_token_of_a_custom_domain_fetches_the_keys_of_the_tenant_and_is_accepted() {
    let domains = Domains::start(tenant_key(), tenant_key()).await;
    assert_eq!(domains.login(tenant_key()).await, "accepted");
    assert_eq!(domains.login(tenant_key()).await, "accepted");
    assert_eq!((domains.tenant.requests(), domains.custom.requests()), (1, 1));
}

#[tokio::test]
async fn until_the_keys_of_the_tenant_were_fetched_once_a_token_is_unavailable_and_not_rejected() {
    let domains = Domains::start(tenant_key(), tenant_key()).await;
    domains.tenant.answer(|_| status(StatusCode::BAD_GATEWAY));
    for _ in 0..3 {
        assert_eq!(domains.login(tenant_key()).await, "keys_unavailable");
    }
    assert_eq!(
        domains.outcome(tenant_key(), KID, &json!({"exp": 1})).await,
        "expired",
        "whatever the tenant is"
    );
    domains.tenant.answer_with_keys(vec![tenant_key().jwk(KID)]);
    pass(PAST_EVERY_PAUSE).await;
    assert_eq!(domains.login(tenant_key()).await, "accepted");
    domains.tenant.answer(|_| status(StatusCode::BAD_GATEWAY));
    pass(PAST_EVERY_PAUSE).await;
    assert_eq!(domains.login(tenant_key()).await, "accepted", "an outage after that changes nothing");
}

#[tokio::test]
async fn a_rotation_that_one_of_two_key_sets_has_not_seen_rejects_no_token() {
    let domains = Domains::start(tenant_key(), tenant_key()).await;
    assert_eq!(domains.login(tenant_key()).await, "accepted");
    pass(COOL_DOWN).await;
    // For something else, just before Kinde replaces all keys.
    domains.tenant_keys.refresh().await.unwrap();
    pass(Duration::from_secs(10)).await;
    for server in [&domains.tenant, &domains.custom] {
        server.answer_with_keys(vec![foreign_key().jwk("new")]);
    }
    let login = async || domains.outcome(foreign_key(), "new", &json!({})).await;
    assert_eq!(login().await, "keys_unavailable", "the tenant's keys are from before the rotation");
    domains.tenant.answer(|_| status(StatusCode::BAD_GATEWAY));
    pass(COOL_DOWN).await;
    assert_eq!(login().await, "keys_unavailable", "and cannot be fetched now");
    domains.tenant.answer_with_keys(vec![foreign_key().jwk("new")]);
    pass(PAST_EVERY_PAUSE).await;
    assert_eq!(login().await, "accepted");
}

#[tokio::test]
async fn an_issuer_of_another_tenant_is_rejected_without_a_fetch_for_each_token() {
    let domains = Domains::start(tenant_key(), foreign_key()).await;
    for _ in 0..3 {
        assert_eq!(domains.login(foreign_key()).await, "other_tenant");
    }
    assert_eq!((domains.tenant.requests(), domains.custom.requests()), (1, 1));
}

#[tokio::test]
async fn key_sets_of_different_times_are_compared_after_the_older_one_was_fetched_again() {
    let domains = Domains::start(tenant_key(), foreign_key()).await;
    domains.tenant_keys.refresh().await.unwrap();
    pass(Duration::from_secs(20)).await;
    assert_eq!(domains.login(foreign_key()).await, "keys_unavailable");
    pass(Duration::from_secs(10)).await;
    assert_eq!(domains.login(foreign_key()).await, "other_tenant");
}
