//! The cache of verified tokens: what it saves, and what it must never accept.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kinde::Jwks;
use kinde::bearer::{CachingConfig, CachingVerifier, Config, Verifier};
use serde_json::{Value, json};

use crate::support::{
    ISSUER, KID, Server, access_claims, eventually, foreign_key, header, now, status, tenant_jwks,
    tenant_key, with,
};

fn cached_with(jwks: Jwks, config: &CachingConfig) -> CachingVerifier {
    let issuers = vec![(ISSUER.to_owned(), jwks)];
    CachingVerifier::new(Verifier::new(Config { issuers, ..Config::default() }), config)
}

fn cached() -> CachingVerifier {
    cached_with(tenant_jwks(), &CachingConfig::default())
}

fn sign(changes: &Value) -> String {
    tenant_key().sign(&header(), &with(access_claims(), changes))
}

fn later(seconds: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() + seconds).unwrap()
}

async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_token_is_verified_once() {
    let (cached, token) = (cached(), sign(&json!({})));
    assert!(cached.get(&token, now()).is_none());
    let first = cached.verify(&token, now()).await.unwrap();
    let second = cached.clone().verify(&token, later(60)).await.unwrap();
    assert!(Arc::ptr_eq(&first, &second) && Arc::ptr_eq(&first, &cached.get(&token, now()).unwrap()));
    assert_eq!((cached.hits(), cached.misses(), cached.len()), (2, 1, 1));
    assert!(!format!("{cached:?}").contains("kp_1"));
}

#[tokio::test]
async fn a_forged_signature_after_cached_claims_is_rejected() {
    let (cached, token) = (cached(), sign(&json!({})));
    cached.verify(&token, now()).await.unwrap();
    let forged = foreign_key().sign(&header(), &access_claims());
    assert_eq!(cached.verify(&forged, now()).await.unwrap_err().reason(), "signature_mismatch");
    let (body, _) = token.rsplit_once('.').unwrap();
    assert_eq!(cached.verify(&format!("{body}."), now()).await.unwrap_err().reason(), "malformed_token");
    assert_eq!(cached.verify(&"a".repeat(20_000), now()).await.unwrap_err().reason(), "token_too_long");
    assert_eq!(cached.len(), 1);
}

#[tokio::test]
async fn a_cached_token_expires_with_its_exp() {
    let (cached, token) = (cached(), sign(&json!({"exp": now().as_second() + 100})));
    cached.verify(&token, now()).await.unwrap();
    assert!(cached.get(&token, later(99)).is_some());
    assert!(cached.get(&token, later(100)).is_none());
    cached.verify(&token, later(130)).await.expect("within the leeway");
    assert_eq!((cached.len(), cached.misses()), (0, 2));
    assert_eq!(cached.verify(&token, later(160)).await.unwrap_err().reason(), "expired");
}

#[tokio::test]
async fn no_token_is_cached_longer_than_the_maximum_age() {
    let config = CachingConfig { max_age: Duration::from_secs(10), ..CachingConfig::default() };
    let (cached, token) = (cached_with(tenant_jwks(), &config), sign(&json!({})));
    cached.verify(&token, now()).await.unwrap();
    assert!(cached.get(&token, later(9)).is_some() && cached.get(&token, later(10)).is_none());
}

#[tokio::test]
async fn rejected_tokens_are_not_cached() {
    let (cached, token) = (cached(), sign(&json!({"nbf": now().as_second() + 600})));
    assert_eq!(cached.verify(&token, now()).await.unwrap_err().reason(), "not_yet_valid");
    assert!(cached.is_empty());
    cached.verify(&token, later(600)).await.unwrap();
}

#[tokio::test]
async fn the_cache_is_bounded() {
    let config = CachingConfig { entries: 8, ..CachingConfig::default() };
    let cached = cached_with(tenant_jwks(), &config);
    for number in 0..64 {
        cached.verify(&sign(&json!({"jti": number.to_string()})), now()).await.unwrap();
        assert!(cached.len() <= 8);
    }
    assert!(!cached.is_empty());
}

#[tokio::test]
async fn a_token_with_many_claims_counts_as_several() {
    let config = CachingConfig { entries: 64, ..CachingConfig::default() };
    let cached = cached_with(tenant_jwks(), &config);
    let flags: serde_json::Map<_, _> =
        (0..40).map(|n| (format!("flag{n}"), json!({"t": "b", "v": true}))).collect();
    for number in 0..64 {
        let claims = json!({"jti": number.to_string(), "feature_flags": flags});
        cached.verify(&sign(&claims), now()).await.unwrap();
    }
    // About 28 KB each, of 64 times 2 KiB.
    assert!((1..=5).contains(&cached.len()), "{}", cached.len());
}

#[tokio::test]
async fn the_tokens_of_a_withdrawn_key_are_rejected() {
    let server = Server::with_keys(vec![tenant_key().jwk(KID)]).await;
    let jwks = Jwks::new(kinde::jwks::Config::new(server.domain.clone())).unwrap();
    let cached = cached_with(jwks.clone(), &CachingConfig::default());
    let token = sign(&json!({}));
    cached.verify(&token, now()).await.unwrap();
    server.answer(|_| status(axum::http::StatusCode::SERVICE_UNAVAILABLE));
    pass(Duration::from_mins(11)).await;
    assert!(cached.get(&token, now()).is_some());
    eventually(|| jwks.status().consecutive_failures == 1).await;
    assert!(cached.get(&token, now()).is_some(), "old keys are used while Kinde is unreachable");
    server.answer_with_keys(vec![tenant_key().jwk(KID)]);
    pass(Duration::from_mins(11)).await;
    assert!(cached.get(&token, now()).is_some());
    eventually(|| jwks.status().consecutive_failures == 0).await;
    assert!(cached.get(&token, now()).is_some(), "the same key fetched anew is the same key");
    // A rotation that reuses the `kid`.
    server.answer_with_keys(vec![foreign_key().jwk(KID)]);
    pass(Duration::from_mins(11)).await;
    // A cache hit alone must start the refresh.
    eventually(|| cached.get(&token, now()).is_none()).await;
    assert_eq!(cached.verify(&token, now()).await.unwrap_err().reason(), "signature_mismatch");
    assert!(cached.is_empty());
}
