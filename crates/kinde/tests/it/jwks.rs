//! The key set against a server on a real socket: when it fetches, and which keys it keeps.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::IntoResponse;
use kinde::Jwks;
use kinde::jwks::{Config, ConfigError, Error};
use serde_json::{Value, json};

use crate::support::{
    Handler, ISSUER, KID, Server, eventually, fixed_jwks, foreign_key, header, key_set, status, tenant_key,
    webhook_claims,
};

const COOL_DOWN: Duration = Duration::from_secs(30);
/// Longer than the longest pause after failures: four times the cool-down plus a quarter of jitter.
const PAST_EVERY_PAUSE: Duration = Duration::from_secs(151);

fn jwks(server: &Server) -> Jwks {
    Jwks::new(Config::new(server.domain.clone())).unwrap()
}

/// Advances tokio's clock. Sockets use real time.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

fn is_unavailable<T>(found: &Result<T, Error>) -> bool {
    matches!(found, Err(Error::Unavailable { retry_after }) if *retry_after >= Duration::from_secs(1))
}

fn tenant_keys() -> Vec<Value> {
    vec![tenant_key().jwk(KID)]
}

fn html(_: &str) -> axum::response::Response {
    axum::response::Html("<h1>maintenance</h1>").into_response()
}

#[tokio::test]
async fn the_first_use_fetches_and_the_next_ones_do_not() {
    let server = Server::with_keys(tenant_keys()).await;
    let jwks = jwks(&server);
    assert_eq!((jwks.fetch_count(), jwks.status().key_count), (0, 0));
    for _ in 0..3 {
        jwks.key(KID).await.unwrap();
    }
    let status = jwks.status();
    assert_eq!(
        (status.fetch_count, status.key_count, status.consecutive_failures, server.requests()),
        (1, 1, 0, 1)
    );
    assert!(status.last_success_age.is_some() && status.last_error.is_none());
}

#[tokio::test]
async fn a_thousand_first_uses_at_once_share_one_fetch() {
    let server = Server::with_keys(tenant_keys()).await;
    server.answer_after(Duration::from_millis(50));
    let jwks = jwks(&server);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let jwks = jwks.clone();
        tasks.spawn(async move { jwks.key(KID).await });
    }
    assert!(tasks.join_all().await.iter().all(Result::is_ok));
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn a_flood_of_unknown_keys_is_one_fetch_per_cool_down() {
    let server = Server::with_keys(tenant_keys()).await;
    let jwks = jwks(&server);
    jwks.key(KID).await.unwrap();
    for round in 1..=3 {
        pass(COOL_DOWN).await;
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..1000 {
            let jwks = jwks.clone();
            tasks.spawn(async move { jwks.key(&format!("{round}-{number}")).await.map(|_| ()) });
        }
        for found in tasks.join_all().await {
            assert!(matches!(found, Err(Error::UnknownKey | Error::Unavailable { .. })));
        }
        jwks.key(KID).await.unwrap();
        assert_eq!(server.requests(), 1 + round);
    }
}

#[tokio::test]
async fn old_keys_are_used_while_the_issuer_is_unreachable() {
    let server = Server::with_keys(tenant_keys()).await;
    let jwks = jwks(&server);
    jwks.key(KID).await.unwrap();
    server.answer(|_| status(StatusCode::SERVICE_UNAVAILABLE));
    for round in 1..=4 {
        pass(PAST_EVERY_PAUSE).await;
        assert!(is_unavailable(&jwks.key("new").await));
        assert_eq!(jwks.status().consecutive_failures, round);
        jwks.key(KID).await.unwrap();
    }
    assert!(jwks.status().last_error.unwrap().contains("503"));
    server.answer(|_| key_set(&[tenant_key().jwk(KID), foreign_key().jwk("new")]));
    pass(PAST_EVERY_PAUSE).await;
    jwks.key("new").await.unwrap();
    assert_eq!((jwks.status().consecutive_failures, jwks.status().last_error), (0, None));
}

#[tokio::test]
async fn an_unreachable_issuer_without_known_keys_is_unavailable() {
    let server = Server::with_keys(tenant_keys()).await;
    let jwks = jwks(&server);
    drop(server);
    for _ in 0..3 {
        assert!(is_unavailable(&jwks.key(KID).await));
        assert!(is_unavailable(&jwks.refresh().await));
    }
    assert_eq!(jwks.fetch_count(), 1);
    pass(COOL_DOWN * 5 / 4 + Duration::from_secs(1)).await;
    assert!(is_unavailable(&jwks.key(KID).await));
    assert_eq!(jwks.fetch_count(), 2);
}

#[tokio::test]
async fn a_known_key_does_not_wait_for_a_running_fetch() {
    let server = Server::with_keys(tenant_keys()).await;
    let jwks = jwks(&server);
    jwks.key(KID).await.unwrap();
    server.answer_after(Duration::from_mins(1));
    pass(COOL_DOWN).await;
    let slow = jwks.clone();
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn(async move { slow.key("unknown").await.map(|_| ()) });
    eventually(|| server.requests() == 2).await;
    tokio::time::timeout(Duration::from_secs(30), jwks.key(KID)).await.expect("it waited").unwrap();
    assert_eq!(jwks.fetch_count(), 2);
}

#[tokio::test]
async fn a_slow_response_ends_at_the_time_limit() {
    let server = Server::with_keys(tenant_keys()).await;
    server.answer_after(Duration::from_mins(1));
    let mut config = Config::new(server.domain.clone());
    config.timeout = Duration::from_millis(100);
    let jwks = Jwks::new(config).unwrap();
    assert!(is_unavailable(&jwks.key(KID).await));
    assert!(jwks.status().last_error.unwrap().starts_with("no complete response"));
}

#[tokio::test]
async fn a_dropped_caller_does_not_end_the_fetch() {
    let server = Server::with_keys(tenant_keys()).await;
    server.answer_after(Duration::from_millis(500));
    let jwks = jwks(&server);
    tokio::select! {
        _ = jwks.key(KID) => panic!("the answer takes half a second"),
        () = eventually(|| server.requests() == 1) => {}
    }
    eventually(|| jwks.status().key_count == 1).await;
    assert_eq!((jwks.fetch_count(), server.requests()), (1, 1));
}

#[tokio::test]
async fn old_keys_are_refreshed_in_the_background() {
    let server = Server::with_keys(tenant_keys()).await;
    let jwks = jwks(&server);
    jwks.key(KID).await.unwrap();
    pass(Duration::from_mins(11)).await;
    jwks.key(KID).await.unwrap();
    eventually(|| server.requests() == 2).await;
    jwks.key(KID).await.unwrap();
    assert_eq!(jwks.fetch_count(), 2);
}

#[tokio::test]
async fn a_withdrawn_key_is_dropped_and_a_new_one_is_found() {
    let server = Server::with_keys(tenant_keys()).await;
    let jwks = jwks(&server);
    jwks.key(KID).await.unwrap();
    server.answer_with_keys(vec![foreign_key().jwk("new")]);
    pass(COOL_DOWN).await;
    let new = jwks.key("new").await.unwrap();
    assert!(is_unavailable(&jwks.key(KID).await), "during the cool-down it is open whether the key exists");
    pass(COOL_DOWN).await;
    assert_eq!(jwks.key(KID).await.unwrap_err(), Error::UnknownKey);
    let token = foreign_key().sign(&header(), &webhook_claims());
    kinde::jws::Unverified::parse(&token, 16_384).unwrap().verify(&new).unwrap();
}

#[tokio::test]
async fn an_invalid_response_never_removes_keys() {
    let server = Server::with_keys(tenant_keys()).await;
    let jwks = jwks(&server);
    jwks.key(KID).await.unwrap();
    let keys = json!({"keys": [tenant_key().jwk("unknown")]});
    let big = format!("{}{keys}", " ".repeat(1024 * 1024));
    let answers: [Box<Handler>; 8] = [
        Box::new(html),
        Box::new(|_| key_set(&[])),
        Box::new(|_| axum::Json(json!({"keys": {}})).into_response()),
        Box::new(|_| axum::Json(json!({})).into_response()),
        Box::new(|_| key_set(&[json!({"kty": "EC", "kid": KID})])),
        Box::new(move |_| big.clone().into_response()),
        Box::new(|_| status(StatusCode::OK)),
        Box::new(|_| (StatusCode::FORBIDDEN, axum::Json(json!({"keys": tenant_keys()}))).into_response()),
    ];
    for (answer, failures) in answers.into_iter().zip(1..) {
        server.answer(answer);
        pass(PAST_EVERY_PAUSE).await;
        assert!(is_unavailable(&jwks.key("unknown").await));
        let status = jwks.status();
        assert_eq!((status.key_count, status.consecutive_failures), (1, failures));
    }
    jwks.key(KID).await.unwrap();
}

#[tokio::test]
async fn the_documented_path_is_requested_if_the_usual_one_has_no_keys() {
    let usual: [fn(&str) -> axum::response::Response; 2] = [|_| status(StatusCode::NOT_FOUND), html];
    for usual in usual {
        let server = Server::start(move |path| match path {
            "/.well-known/jwks" => key_set(&tenant_keys()),
            path => usual(path),
        })
        .await;
        let jwks = jwks(&server);
        jwks.key(KID).await.unwrap();
        assert_eq!((server.requests(), jwks.fetch_count()), (2, 1));
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let other = Server::with_keys(tenant_keys()).await;
    let target = other.domain.join("/.well-known/jwks.json").unwrap().to_string();
    let server = Server::start(move |_| axum::response::Redirect::temporary(&target).into_response()).await;
    assert!(is_unavailable(&jwks(&server).key(KID).await));
    assert_eq!(other.requests(), 0);
}

#[tokio::test]
async fn only_keys_for_rs256_verification_are_used() {
    // openssl genrsa 1024 | openssl rsa -noout -modulus
    let short = "y2w00rJE-URYkv9FBLoOBWiNGNm9UALLG51HD0d3FZgcW2SCOKHKwnzLK559sdbeNEKWYCkapd4yrRohk9O8wVbq6JPacGdNixav7rh0YFkGAiotyJ9S2dCQTeoKD802HiS6viUhBixseUi2ufC17lky_FVVaWxmDucOG1PsTys";
    let good = tenant_key().jwk("good");
    let variant = |kid: &str, member: &str, value: Value| {
        let mut jwk = tenant_key().jwk(kid);
        jwk[member] = value;
        jwk
    };
    let mut bare = tenant_key().jwk("bare");
    bare.as_object_mut().unwrap().retain(|name, _| name != "use" && name != "alg");
    let jwks = fixed_jwks(&[
        json!(7),
        json!({"kid": "symmetric", "kty": "oct", "k": "AAAA"}),
        variant("encryption", "use", json!("enc")),
        variant("other_alg", "alg", json!("RS512")),
        variant("other_kty", "kty", json!("EC")),
        variant("signing_only", "key_ops", json!(["sign"])),
        variant("no_operation", "key_ops", json!([])),
        variant("wrong_operations", "key_ops", json!("verify")),
        variant("verifying", "key_ops", json!(["sign", "verify"])),
        variant("short", "n", json!(short)),
        variant("padded", "e", json!("AQAB=")),
        variant("even", "e", json!("AQAA")),
        variant("one", "e", json!("AQ")),
        variant("empty", "e", json!("")),
        variant("", "use", json!("sig")),
        foreign_key().jwk("first"),
        tenant_key().jwk("first"),
        bare,
        good,
    ]);
    assert_eq!(jwks.status().key_count, 4);
    jwks.key("verifying").await.unwrap();
    jwks.key("good").await.unwrap();
    jwks.key("bare").await.unwrap();
    let first = jwks.key("first").await.unwrap();
    let token = foreign_key().sign(&header(), &webhook_claims());
    kinde::jws::Unverified::parse(&token, 16_384).unwrap().verify(&first).unwrap();
    assert_eq!(jwks.key("short").await.unwrap_err(), Error::UnknownKey);
    assert_eq!((jwks.fetch_count(), jwks.issuer()), (0, ISSUER));
}

#[test]
fn keys_are_not_fetched_over_plain_http() {
    let domain = "http://acme.kinde.com".parse().unwrap();
    assert!(matches!(Jwks::new(Config::new(domain)), Err(ConfigError::Issuer(_))));
}

#[tokio::test]
async fn a_failure_at_the_start_costs_a_second_and_not_a_cool_down() {
    let server = Server::with_keys(tenant_keys()).await;
    server.answer(|_| status(StatusCode::SERVICE_UNAVAILABLE));
    let jwks = jwks(&server);
    assert!(is_unavailable(&jwks.key(KID).await));
    server.answer_with_keys(tenant_keys());
    assert!(is_unavailable(&jwks.key(KID).await), "not at once");
    pass(Duration::from_millis(1300)).await;
    jwks.key(KID).await.unwrap();
    assert_eq!(jwks.status().fetch_count, 2);
}

#[tokio::test]
async fn an_unknown_key_within_the_cool_down_is_unavailable_until_the_cool_down_ends() {
    let server = Server::with_keys(tenant_keys()).await;
    let jwks = jwks(&server);
    jwks.key(KID).await.unwrap();
    let Err(Error::Unavailable { retry_after }) = jwks.key("other").await else { panic!("not unavailable") };
    assert!((Duration::from_secs(20)..=COOL_DOWN).contains(&retry_after), "{retry_after:?}");
    assert_eq!(jwks.fetch_count(), 1);
    pass(retry_after).await;
    assert_eq!(jwks.key("other").await.unwrap_err(), Error::UnknownKey);
    assert_eq!(jwks.fetch_count(), 2);
}

#[tokio::test]
async fn keys_older_than_the_maximum_age_are_not_used() {
    let server = Server::with_keys(tenant_keys()).await;
    let mut config = Config::new(server.domain.clone());
    config.max_age = Duration::from_hours(1);
    let jwks = Jwks::new(config).unwrap();
    jwks.key(KID).await.unwrap();
    server.answer(|_| status(StatusCode::SERVICE_UNAVAILABLE));
    pass(Duration::from_mins(59)).await;
    jwks.key(KID).await.unwrap();
    eventually(|| jwks.status().consecutive_failures == 1).await;
    assert_eq!(jwks.status().key_count, 1);
    pass(Duration::from_mins(2)).await;
    assert!(is_unavailable(&jwks.key(KID).await));
    assert_eq!(jwks.status().key_count, 0);
    server.answer_with_keys(tenant_keys());
    pass(PAST_EVERY_PAUSE).await;
    jwks.key(KID).await.unwrap();
}

#[tokio::test]
async fn a_mismatch_under_a_known_key_fetches_once_per_cool_down_and_tries_the_new_key() {
    let server = Server::with_keys(tenant_keys()).await;
    let jwks = jwks(&server);
    let config = kinde::webhook::Config { jwks: Some(jwks.clone()), ..kinde::webhook::Config::default() };
    let verifier = kinde::webhook::Verifier::new(config).unwrap();
    let verify = async |key: &crate::support::TestKey| {
        let body = key.sign(&header(), &webhook_claims()).into();
        verifier
            .verify(&http::HeaderMap::new(), body, crate::support::now())
            .await
            .map_err(|error| error.reason())
    };
    verify(tenant_key()).await.unwrap();
    // The issuer replaces the key under the same `kid`.
    server.answer_with_keys(vec![foreign_key().jwk(KID)]);
    assert_eq!(verify(foreign_key()).await.unwrap_err(), "signature_mismatch", "within the cool-down");
    assert_eq!(jwks.fetch_count(), 1);
    pass(COOL_DOWN).await;
    verify(foreign_key()).await.unwrap();
    for _ in 0..10 {
        assert_eq!(verify(tenant_key()).await.unwrap_err(), "signature_mismatch");
    }
    assert_eq!(jwks.fetch_count(), 2);
}

#[tokio::test]
async fn private_key_material_in_the_document_is_reported() {
    let private = |name: &str| {
        let mut jwk = tenant_key().jwk(KID);
        jwk[name] = json!("AAAA");
        fixed_jwks(&[jwk]).status()
    };
    for name in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
        let status = private(name);
        assert!(status.exposes_private_key && status.key_count == 1, "{name}");
    }
    assert!(!fixed_jwks(&tenant_keys()).status().exposes_private_key);
}

#[tokio::test]
async fn supplied_keys_can_be_replaced() {
    let jwks = fixed_jwks(&tenant_keys());
    jwks.replace(&serde_json::to_vec(&json!({"keys": [foreign_key().jwk("new")]})).unwrap()).unwrap();
    jwks.key("new").await.unwrap();
    assert_eq!(jwks.key(KID).await.unwrap_err(), Error::UnknownKey);
    assert!(jwks.replace(b"{}").is_err());
    jwks.key("new").await.unwrap();
}
