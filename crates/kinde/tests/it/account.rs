//! The profile of the user of a token, from a server on a real socket.

use std::time::Duration;

use axum::response::{IntoResponse as _, Response};
use kinde::Patch;
use kinde::account::{Config, Error, ProfileClient};
use serde_json::json;

use crate::api::{Api, api_error, html, ok, raw, status};

fn client(api: &Api) -> ProfileClient {
    let mut config = Config::new(api.domain.clone());
    config.timeout = Duration::from_secs(2);
    ProfileClient::new(config).unwrap()
}

#[tokio::test]
async fn every_field_of_a_profile_is_read() {
    let api = Api::start(|_| {
        ok(&json!({
            "sub": "kp_1", "id": "kp_1", "provided_id": null, "name": "A B", "given_name": "A", "family_name": "B",
            "updated_at": 1_612_345_678, "email": "a@example.com", "email_verified": true, "picture": null, "new": 1,
        }))
    })
    .await;
    let answer = client(&api).user_profile("secret-token").await.unwrap();
    let profile = answer.value;
    assert_eq!((profile.id.as_str(), profile.updated_at.unwrap().as_second()), ("kp_1", 1_612_345_678));
    assert_eq!(profile.email, Patch::Value("a@example.com".to_owned()));
    assert_eq!(profile.email_verified, Patch::Value(true));
    assert!(profile.picture.is_null() && profile.preferred_username.is_absent());
    assert_eq!(profile.extra["new"], 1);
    assert!(!format!("{profile:?}").contains("example"));
    assert!(answer.timing.server_date.is_some() && answer.timing.as_of < answer.timing.sent_at);
    let request = &api.seen("/oauth2/v2/user_profile")[0];
    assert_eq!((request.method.as_str(), request.authorization.as_str()), ("GET", "Bearer secret-token"));
}

#[tokio::test]
async fn every_other_response_has_its_error_and_is_not_retried() {
    let throttled = || ([("RateLimit-Reset", "7")], status(429)).into_response();
    for (answer, outcome, transient) in [
        ((|| api_error(403, "INVALID_CREDENTIALS", "x")) as fn() -> Response, "token_rejected", false),
        (|| status(401), "token_rejected", false),
        (throttled, "rate_limited", true),
        (|| status(500), "unexpected_status", true),
        (|| status(302), "unexpected_status", false),
        (html, "invalid_response", true),
        (|| raw("{\"sub\":\"kp_1\""), "invalid_response", true),
        (|| ok(&json!({})), "invalid_response", false),
        (|| ok(&json!({"sub": "kp_1", "id": "kp_2"})), "invalid_response", false),
        (|| ok(&json!({"sub": "kp_1", "email": 1})), "invalid_response", false),
        (|| raw(" ".repeat(300_000)), "response_too_large", false),
    ] {
        let api = Api::start(move |_| answer()).await;
        let error = client(&api).user_profile("secret-token").await.unwrap_err();
        assert_eq!((error.outcome(), error.is_transient()), (outcome, transient), "{error}");
        assert!(!format!("{error:?} {error}").contains("secret-token"));
        assert_eq!(api.seen("/oauth2/v2/user_profile").len(), 1);
        if let Error::RateLimited { retry_after } = error {
            assert_eq!(retry_after, Some(Duration::from_secs(7)));
        }
    }
}

#[tokio::test]
async fn a_slow_response_ends_at_the_time_limit_and_an_invalid_token_is_not_sent() {
    let api = Api::start(|_| status(200)).await;
    api.answer_after(Duration::from_mins(1));
    assert!(matches!(client(&api).user_profile("x").await, Err(Error::Unreachable(_))));
    assert!(matches!(client(&api).user_profile("a\r\nb").await, Err(Error::TokenRejected)));
    assert!(matches!(client(&api).user_profile(&"a".repeat(20_000)).await, Err(Error::TokenRejected)));
    assert_eq!(api.seen("/oauth2/v2/user_profile").len(), 1);
}
