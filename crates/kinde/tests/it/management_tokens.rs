//! The machine-to-machine token. Kinde bills every token, so the tests count fetches.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use kinde::management::{Client, Error};
use serde_json::json;

use crate::api::{Api, SECRET, Seen, api_error, html, ok, page, pass, raw, status, token};
use crate::support::eventually;

fn empty_list(seen: &Seen) -> Response {
    if seen.path == "/oauth2/token" { pass() } else { ok(&json!({"event_types": []})) }
}

/// Advances tokio's clock. Sockets use real time.
async fn wait(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn many_calls_use_one_token() {
    let api = Api::start(empty_list).await;
    let client = api.client();
    for _ in 0..20 {
        client.clone().event_types().await.unwrap();
    }
    assert_eq!((api.tokens(), client.tokens_fetched()), (1, 1));
    let request = &api.seen("/oauth2/token")[0];
    let audience = format!("http%3A%2F%2F127.0.0.1%3A{}%2Fapi", api.domain.port().unwrap());
    let expect = format!(
        "grant_type=client_credentials&client_id=client-1&client_secret={SECRET}&audience={audience}"
    );
    assert_eq!((request.method.as_str(), request.body.as_str()), ("POST", expect.as_str()));
}

#[tokio::test]
async fn a_thousand_first_calls_at_once_share_one_token() {
    let api = Api::start(empty_list).await;
    api.answer_after(Duration::from_millis(30));
    let mut config = api.config();
    config.max_concurrent_requests = 1000;
    let client = Client::new(config).unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let client = client.clone();
        calls.spawn(async move { client.event_types().await.map(|_| ()) });
    }
    let failed = calls.join_all().await.into_iter().find_map(Result::err);
    assert!(failed.is_none(), "{failed:?}");
    assert_eq!(api.tokens(), 1);
}

#[tokio::test]
async fn a_dropped_caller_does_not_discard_the_token() {
    let api = Api::start(empty_list).await;
    api.answer_after(Duration::from_millis(500));
    let client = api.client();
    tokio::select! {
        _ = client.event_types() => panic!("the answer takes half a second"),
        () = eventually(|| api.tokens() == 1) => {}
    }
    client.event_types().await.unwrap();
    assert_eq!(api.tokens(), 1);
}

#[tokio::test]
async fn a_token_is_replaced_shortly_before_it_expires() {
    let api = Api::start(empty_list).await;
    let client = api.client();
    client.event_types().await.unwrap();
    wait(Duration::from_secs(3500)).await;
    client.event_types().await.unwrap();
    assert_eq!(api.tokens(), 1);
    wait(Duration::from_secs(45)).await;
    client.event_types().await.unwrap();
    assert_eq!(api.tokens(), 2);
    assert_eq!(api.seen("/api/v1/event_types").last().unwrap().authorization, "Bearer token-2");
}

#[tokio::test]
async fn a_token_without_a_lifetime_is_used_for_several_calls() {
    for life in [json!(0), json!(null), json!("soon")] {
        let answer = json!({"access_token": "t", "expires_in": life});
        let api = Api::start(move |seen| {
            if seen.path == "/oauth2/token" { ok(&answer) } else { ok(&json!({"event_types": []})) }
        })
        .await;
        let client = api.client();
        for _ in 0..5 {
            client.event_types().await.unwrap();
        }
        assert_eq!(api.tokens(), 1);
    }
}

#[tokio::test]
async fn a_rejected_token_is_replaced_once() {
    for reject in [
        (|| api_error(403, "TOKEN_INVALID", "The token is invalid")) as fn() -> Response,
        || api_error(401, "INVALID_TOKEN", "expired"),
        || status(401),
    ] {
        let api = Api::start(move |seen| match seen.authorization.as_str() {
            _ if seen.path == "/oauth2/token" => pass(),
            "Bearer token-1" => reject(),
            _ => ok(&json!({"event_types": []})),
        })
        .await;
        let client = api.client();
        for _ in 0..3 {
            client.event_types().await.unwrap();
        }
        assert_eq!((api.tokens(), api.seen("/api/v1/event_types").len()), (2, 4));
    }
}

#[tokio::test]
async fn an_api_that_rejects_every_token_causes_no_loop() {
    let api = Api::start(|seen| {
        if seen.path == "/oauth2/token" {
            pass()
        } else {
            api_error(403, "TOKEN_INVALID", "not for this API")
        }
    })
    .await;
    let client = api.client();
    for _ in 0..10 {
        let error = client.event_types().await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }) && !error.is_transient());
        assert!(error.to_string().contains("kinde.com one"), "{error}");
    }
    assert_eq!((api.tokens(), api.seen("/api/v1/event_types").len()), (2, 11));
    wait(Duration::from_secs(61)).await;
    client.event_types().await.unwrap_err();
    assert_eq!(api.tokens(), 3);
}

#[tokio::test]
async fn a_missing_scope_is_named_and_used_after_it_is_granted() {
    let lacks = |message: &'static str| {
        move |seen: &Seen| match seen.path.as_str() {
            "/oauth2/token" => pass(),
            _ => api_error(403, "TOKEN_MISSING_SCOPE", message),
        }
    };
    let api = Api::start(lacks("The token lacks the scope `read:user_things`")).await;
    let client = api.client();
    let error = client.users().next().await.unwrap_err();
    assert!(error.to_string().contains("lacks the scope `read:user_things`: grant it in Kinde"), "{error}");
    api.answer(lacks("Scope missing"));
    let error = client.users().next().await.unwrap_err();
    assert!(matches!(&error, Error::MissingScope { scope } if scope == "read:users"));
    assert_eq!(api.tokens(), 1);
    api.answer(|seen| match seen.authorization.as_str() {
        _ if seen.path == "/oauth2/token" => pass(),
        "Bearer token-1" => api_error(403, "TOKEN_MISSING_SCOPE", "`read:users`"),
        _ => page(&[], &json!(null)),
    });
    wait(Duration::from_secs(61)).await;
    client.users().next().await.unwrap();
    assert_eq!(api.tokens(), 2);
}

#[tokio::test]
async fn a_failure_of_the_token_endpoint_is_retried_and_a_rejection_is_not() {
    for failure in [html as fn() -> Response, || status(500), || status(429), || raw("{\"access_tok")] {
        let api = Api::start(move |seen| match seen.path.as_str() {
            "/oauth2/token" if seen.earlier < 2 => failure(),
            _ => empty_list(seen),
        })
        .await;
        api.client().event_types().await.unwrap();
        assert_eq!(api.tokens(), 3);
    }
    for (code, body) in [
        (401, json!({"error": "invalid_client", "error_description": "Client authentication failed"})),
        (400, json!({"error": "invalid_request", "error_description": "Requested audience is not allowed"})),
    ] {
        let answer = (StatusCode::from_u16(code).unwrap(), axum::Json(body));
        let api = Api::start(move |_| answer.clone().into_response()).await;
        let error = api.client().event_types().await.unwrap_err();
        assert!(
            matches!(&error, Error::TokenUnavailable(cause) if cause.to_string().contains("check the client id"))
        );
        assert!(!error.is_transient());
        assert_eq!((api.tokens(), api.seen("/api/v1/event_types").len()), (1, 0));
    }
}

#[tokio::test]
async fn a_response_without_a_usable_token_is_an_error() {
    for answer in
        [json!({}), json!({"access_token": ""}), json!({"access_token": "a\nb"}), json!({"access_token": 1})]
    {
        let api = Api::start(move |_| ok(&answer)).await;
        let error = api.client().event_types().await.unwrap_err();
        assert!(
            matches!(&error, Error::TokenUnavailable(cause) if matches!(**cause, Error::InvalidResponse(_))),
            "{error:?}"
        );
    }
    let api = Api::start(|_| token("t", 60)).await;
    assert!(matches!(api.client().event_types().await, Err(Error::InvalidResponse(_))));
}
