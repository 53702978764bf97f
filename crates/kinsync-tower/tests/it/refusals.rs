//! Each refused token and its reason. No token causes a request to an address that it names.

use http::{StatusCode, header};
use kinde_emulator::{NewUser, TokenSpec};
use kinsync_engine::internal::store::UserFilter;
use kinsync_testing::tokens::{AUDIENCE, refused, spec, with_kid};
use kinsync_tower::authenticator::Config;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::process::{Process, embedded, kinde};

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_a_problem_document_with_its_reason_and_causes_no_request() {
    let canary = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = format!("http://{}", canary.local_addr().unwrap());
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let audiences = vec![AUDIENCE.to_owned()];
    let process = Process::with_audiences(&kinde, &store, Config::default(), audiences).await;
    let ada = kinde.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap().id;
    for (reason, token) in refused(&kinde, &ada, &address) {
        let answer = process.get(&token).await;
        assert_eq!((answer.status, &answer.body["reason"]), (StatusCode::UNAUTHORIZED, &Value::from(reason)));
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/problem+json");
        let challenge = answer.headers[header::WWW_AUTHENTICATE].to_str().unwrap();
        assert!(challenge.contains(r#"error="invalid_token""#), "{reason}: {challenge}");
    }
    assert!(store.users(&UserFilter { limit: 9, ..UserFilter::default() }).await.unwrap().is_empty());
    let good = kinde.access_token(&ada, &spec(&json!({}))).unwrap();
    assert_eq!(process.get(&good).await.status, StatusCode::OK, "a valid token is accepted");
    let called = tokio::time::timeout(std::time::Duration::ZERO, canary.accept()).await;
    assert!(called.is_err(), "a token caused a request");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_issuer_is_unavailable_unknown_keys_are_a_503_and_known_keys_stay_valid() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let ada = kinde.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap().id;
    let token = kinde.access_token(&ada, &TokenSpec::default()).unwrap();
    let with_keys = Process::start(&kinde, &store, Config::default()).await;
    assert_eq!(with_keys.get(&token).await.status, StatusCode::OK);
    kinde.shutdown().await;
    assert_eq!(with_keys.get(&token).await.status, StatusCode::OK);
    let without_keys = Process::start(&kinde, &store, Config::default()).await;
    let answer = without_keys.get(&token).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
    assert!(answer.body["requestId"].as_str().unwrap().starts_with("req_"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_within_the_cool_down_is_a_503_with_retry_after() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let ada = kinde.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap().id;
    let process = Process::start(&kinde, &store, Config::default()).await;
    let token = kinde.access_token(&ada, &TokenSpec::default()).unwrap();
    assert_eq!(process.get(&token).await.status, StatusCode::OK);
    let response = process.get(&kinde.access_token(&ada, &with_kid("another")).unwrap()).await;
    assert_eq!(response.status, StatusCode::SERVICE_UNAVAILABLE);
    let seconds: u64 = response.headers[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=31).contains(&seconds), "{seconds}");
}
