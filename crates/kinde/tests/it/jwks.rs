//! The key set against a server on a real socket: how often it asks, and what it keeps.

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
/// Longer than the longest pause after failures: four times the cool-down, and a quarter of jitter.
const PAST_EVERY_PAUSE: Duration = Duration::from_secs(151);

fn jwks(server: &Server) -> Jwks {
    Jwks::new(Config::new(server.domain.clone())).unwrap()
}

/// Moves the clock; sockets see real time only.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
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
            assert_eq!(found, Err(Error::UnknownKey));
        }
        jwks.key(KID).await.unwrap();
        assert_eq!(server.requests(), 1 + round);
    }
}

#[tokio::test]
async fn old_keys_are_served_while_the_server_is_away() {
    let server = Server::with_keys(tenant_keys()).await;
    let jwks = jwks(&server);
    jwks.key(KID).await.unwrap();
    server.answer(|_| status(StatusCode::SERVICE_UNAVAILABLE));
    for round in 1..=4 {
        pass(PAST_EVERY_PAUSE).await;
        assert_eq!(jwks.key("new").await.unwrap_err(), Error::Unavailable);
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
async fn nothing_known_and_nobody_there_is_unavailable_and_cools_down() {
    let server = Server::with_keys(tenant_keys()).await;
    let jwks = jwks(&server);
    drop(server);
    for _ in 0..3 {
        assert_eq!(jwks.key(KID).await.unwrap_err(), Error::Unavailable);
        assert_eq!(jwks.refresh().await, Err(Error::Unavailable));
    }
    assert_eq!(jwks.fetch_count(), 1);
    pass(COOL_DOWN * 5 / 4 + Duration::from_secs(1)).await;
    assert_eq!(jwks.key(KID).await.unwrap_err(), Error::Unavailable);
    assert_eq!(jwks.fetch_count(), 2);
}

#[tokio::test]
async fn a_valid_token_does_not_wait_for_the_fetch_of_another() {
    let server = Server::with_keys(tenant_keys()).await;
    let jwks = jwks(&server);
    jwks.key(KID).await.unwrap();
    server.answer_after(Duration::from_mins(1));
    pass(COOL_DOWN).await;
    let slow = jwks.clone();
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn(async move { slow.key("unknown").await.map(|_| ()) });
    eventually(|| server.requests() == 2).await;
    tokio::time::timeout(Duration::from_millis(50), jwks.key(KID)).await.expect("it waited").unwrap();
    assert_eq!(jwks.fetch_count(), 2);
}

#[tokio::test]
async fn a_slow_answer_ends_in_time() {
    let server = Server::with_keys(tenant_keys()).await;
    server.answer_after(Duration::from_mins(1));
    let mut config = Config::new(server.domain.clone());
    config.timeout = Duration::from_millis(100);
    let jwks = Jwks::new(config).unwrap();
    assert_eq!(jwks.key(KID).await.unwrap_err(), Error::Unavailable);
    assert!(jwks.status().last_error.unwrap().starts_with("no answer"));
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_end_the_fetch() {
    let server = Server::with_keys(tenant_keys()).await;
    server.answer_after(Duration::from_millis(50));
    let jwks = jwks(&server);
    assert!(tokio::time::timeout(Duration::from_millis(5), jwks.key(KID)).await.is_err());
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
    assert_eq!(jwks.key(KID).await.unwrap_err(), Error::UnknownKey);
    let token = foreign_key().sign(&header(), &webhook_claims());
    kinde::jws::Unverified::parse(&token, 16_384).unwrap().verify(&new).unwrap();
}

#[tokio::test]
async fn garbage_never_wipes_the_keys() {
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
        assert_eq!(jwks.key("unknown").await.unwrap_err(), Error::Unavailable);
        let status = jwks.status();
        assert_eq!((status.key_count, status.consecutive_failures), (1, failures));
    }
    jwks.key(KID).await.unwrap();
}

#[tokio::test]
async fn the_documented_address_is_asked_when_the_usual_one_has_no_keys() {
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
    assert_eq!(jwks(&server).key(KID).await.unwrap_err(), Error::Unavailable);
    assert_eq!(other.requests(), 0);
}

#[tokio::test]
async fn only_keys_that_may_sign_are_taken() {
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
    assert_eq!(jwks.status().key_count, 3);
    jwks.key("good").await.unwrap();
    jwks.key("bare").await.unwrap();
    let first = jwks.key("first").await.unwrap();
    let token = foreign_key().sign(&header(), &webhook_claims());
    kinde::jws::Unverified::parse(&token, 16_384).unwrap().verify(&first).unwrap();
    assert_eq!(jwks.key("short").await.unwrap_err(), Error::UnknownKey);
    assert_eq!((jwks.fetch_count(), jwks.issuer()), (0, ISSUER));
}

#[test]
fn keys_are_not_fetched_in_the_clear() {
    let domain = "http://acme.kinde.com".parse().unwrap();
    assert!(matches!(Jwks::new(Config::new(domain)), Err(ConfigError::Issuer(_))));
}

#[tokio::test]
async fn a_blip_at_the_start_costs_a_second_and_not_a_cool_down() {
    let server = Server::with_keys(tenant_keys()).await;
    server.answer(|_| status(StatusCode::SERVICE_UNAVAILABLE));
    let jwks = jwks(&server);
    assert_eq!(jwks.key(KID).await.unwrap_err(), Error::Unavailable);
    server.answer_with_keys(tenant_keys());
    assert_eq!(jwks.key(KID).await.unwrap_err(), Error::Unavailable, "not at once");
    pass(Duration::from_millis(1300)).await;
    jwks.key(KID).await.unwrap();
    assert_eq!(jwks.status().fetch_count, 2);
}
