//! The client against a server on a real socket: what it reads, what it rejects, and when it retries.

use std::error::Error as _;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use kinde::management::{Client, ConfigError, Error, NewWebhook, Page, User, WebhookUpdate};
use kinde::{Clock, Patch};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::{
    Api, SECRET, Seen, api_error, api_error_in_object, html, ok, page, pass, raw, status, token, user,
};

/// The `Display` and `Debug` texts of an error and its causes.
fn all_text(error: &Error) -> String {
    let mut text = format!("{error:?} {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

async fn all_pages(client: &Client) -> Result<Vec<Page<User>>, Error> {
    let (mut pages, mut found) = (client.users(), Vec::new());
    while let Some(page) = pages.next().await? {
        found.push(page);
    }
    Ok(found)
}

fn ids(pages: &[Page<User>]) -> Vec<&str> {
    pages.iter().flat_map(|page| &page.items).map(|user| user.id.as_str()).collect()
}

/// Returns these responses in order, and the last one for all further requests.
fn in_turn(answers: Vec<fn() -> Response>) -> impl Fn(&Seen) -> Response + Send + Sync {
    move |seen| {
        if seen.path == "/oauth2/token" {
            return pass();
        }
        answers[seen.earlier.min(answers.len() - 1)]()
    }
}

fn last_page() -> Response {
    page(&["kp_1"], &Value::Null)
}

#[tokio::test]
async fn every_field_of_a_listed_user_is_read() {
    let api = Api::start(in_turn(vec![last_page])).await;
    let pages = all_pages(&api.client()).await.unwrap();
    let user = &pages[0].items[0];
    assert_eq!(user.email, Patch::Value("a@example.com".to_owned()));
    assert_eq!((&user.phone, &user.picture, &user.provided_id), (&Patch::Null, &Patch::Null, &Patch::Null));
    assert_eq!(user.is_suspended, Patch::Value(false));
    assert_eq!((user.total_sign_ins, user.failed_sign_ins), (Some(3), None));
    assert_eq!(user.last_signed_in.unwrap().to_string(), "2025-02-12T18:02:23.614638Z");
    assert_eq!(user.created_on.unwrap().to_string(), "2025-04-01T02:04:20Z");
    assert_eq!(user.organizations, Patch::Value(vec!["org_1".to_owned()]));
    let identity = &user.identities.value().unwrap()[0];
    assert_eq!(
        (identity.identity_type.as_str(), identity.identity.as_deref()),
        ("email", Some("a@example.com"))
    );
    assert_eq!(identity.extra["new"], 1);
    assert_eq!(user.extra["billing"]["customer_id"], "customer_1");
    assert!(!format!("{user:?} {identity:?}").contains("example.com"));
    let request = &api.seen("/api/v1/users")[0];
    assert_eq!(request.query, "page_size=200&expand=organizations%2Cidentities");
    assert_eq!(request.authorization, "Bearer token-1");
}

#[tokio::test]
async fn a_missing_field_is_absent_and_not_null() {
    let api = Api::start(in_turn(vec![|| ok(&json!({"users": [{"id": "kp_1"}]}))])).await;
    let pages = all_pages(&api.client()).await.unwrap();
    let user = &pages[0].items[0];
    assert!(user.email.is_absent() && user.organizations.is_absent() && user.identities.is_absent());
    assert!(user.is_suspended.is_absent() && user.created_on.is_none() && user.extra.is_empty());
}

#[tokio::test]
async fn all_pages_are_read_and_a_list_can_be_resumed() {
    for end in [json!(null), json!("")] {
        let api = Api::start(move |seen| match seen.query.split("next_token=").nth(1) {
            _ if seen.path == "/oauth2/token" => pass(),
            None => page(&["kp_1", "kp_2"], &json!("a b&c")),
            // A user that moved between pages is listed twice. An empty page is not the end.
            Some("a+b%26c&expand=organizations%2Cidentities") => page(&[], &json!("d")),
            Some(_) => page(&["kp_2", "kp_3"], &end),
        })
        .await;
        let client = api.client();
        let pages = all_pages(&client).await.unwrap();
        assert_eq!(ids(&pages), ["kp_1", "kp_2", "kp_2", "kp_3"]);
        assert_eq!(pages[0].next_token.as_deref(), Some("a b&c"));
        let mut rest = client.users_from("d");
        assert_eq!(rest.next().await.unwrap().unwrap().items.len(), 2);
        assert_eq!(rest.next().await.unwrap(), None);
        assert_eq!((rest.next().await.unwrap(), api.tokens()), (None, 1));
    }
}

#[tokio::test]
async fn a_list_that_refers_to_an_earlier_page_is_an_error() {
    let api = Api::start(|seen| match seen.query.split("next_token=").nth(1) {
        _ if seen.path == "/oauth2/token" => pass(),
        None => page(&["kp_1"], &json!("a")),
        Some(token) if token.starts_with('a') => page(&["kp_2"], &json!("b")),
        Some(_) => page(&["kp_3"], &json!("a")),
    })
    .await;
    let mut config = api.config();
    config.max_pages = 20;
    assert!(matches!(all_pages(&Client::new(config).unwrap()).await, Err(Error::RepeatedToken)));
    let mut resumed = api.client().users_from("b");
    assert!(resumed.next().await.is_ok());
    assert!(matches!(resumed.next().await, Err(Error::RepeatedToken)));
}

#[tokio::test]
async fn an_endless_list_is_an_error() {
    let api = Api::start(|seen| match seen.path.as_str() {
        "/oauth2/token" => pass(),
        _ => page(&[], &json!(format!("token {}", seen.earlier))),
    })
    .await;
    let mut config = api.config();
    config.max_pages = 5;
    let error = all_pages(&Client::new(config).unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::TooManyPages { limit: 5 }));
    assert_eq!(api.seen("/api/v1/users").len(), 5);
}

#[tokio::test]
async fn a_rejected_page_size_is_reduced() {
    let api = Api::start(|seen| match seen.path.as_str() {
        "/oauth2/token" => pass(),
        _ if seen.query.contains("page_size=200") => api_error(400, "PAGE_SIZE_LIMIT_EXCEEDED", "too many"),
        _ if seen.query.contains("page_size=100&") => page(&["kp_1"], &Value::Null),
        _ => status(500),
    })
    .await;
    assert_eq!(ids(&all_pages(&api.client()).await.unwrap()), ["kp_1"]);
}

#[tokio::test]
async fn a_response_of_another_shape_is_an_error_and_never_an_empty_list() {
    for (body, expect) in [
        (json!({}), "`users` is missing"),
        (json!({"users": null}), "`users` is missing"),
        (json!({"users": {}}), "`users` is an object, not a list"),
        (json!({"users": [1]}), "`users[0]` is a number, not an object"),
        (json!({"users": [{}]}), "`users[0].id` is missing"),
        (json!({"users": [{"id": 7}]}), "`users[0].id` is a number, not a string"),
        (
            json!({"users": [{"id": "k", "is_suspended": "a@example.com"}]}),
            "`users[0].is_suspended` is a string",
        ),
        (json!({"users": [{"id": "k", "total_sign_ins": -1}]}), "`users[0].total_sign_ins` is a number"),
        (json!({"users": [{"id": "k", "created_on": "today"}]}), "`users[0].created_on` is not a time"),
        (json!({"users": [{"id": "k", "organizations": [{}]}]}), "`users[0].organizations[0]` is an object"),
        (json!({"users": [{"id": "k", "identities": ["x"]}]}), "`users[0].identities[0]` is a string"),
        (json!({"users": [], "next_token": 1}), "`next_token` is a number"),
    ] {
        let api = Api::start(move |seen| if seen.path == "/oauth2/token" { pass() } else { ok(&body) }).await;
        let error = all_pages(&api.client()).await.unwrap_err();
        let text = all_text(&error);
        assert!(matches!(error, Error::InvalidResponse(_)) && text.contains(expect), "{text}");
        assert!(!text.contains("example.com") && !error.is_transient());
        assert_eq!(api.seen("/api/v1/users").len(), 1, "{expect}");
    }
}

fn cut_connection() -> Response {
    let whole = r#"{"users":[{"id":"kp_1"#;
    let parts = [Ok(whole.to_owned()), Err(std::io::Error::other("cut on purpose"))];
    raw(Body::from_stream(futures_util::stream::iter(parts)))
}

fn truncated_json() -> Response {
    raw(r#"{"code":"OK","users":[{"id":"kp_1"},{"id"#)
}

fn empty() -> Response {
    raw("")
}

#[tokio::test]
async fn a_transient_failure_is_retried() {
    for failure in [
        html,
        truncated_json,
        cut_connection,
        empty,
        || status(500),
        || api_error(503, "UNAVAILABLE", "x"),
        || status(408),
        || status(429),
        || api_error(429, "TOO_MANY_REQUESTS", "x"),
    ] {
        let api = Api::start(in_turn(vec![failure, failure, failure, last_page])).await;
        assert_eq!(ids(&all_pages(&api.client()).await.unwrap()), ["kp_1"]);
        assert_eq!((api.seen("/api/v1/users").len(), api.tokens()), (4, 1));
    }
}

#[tokio::test]
async fn a_persistent_failure_is_an_error_after_the_last_attempt() {
    for (failure, outcome) in [
        (html as fn() -> Response, "invalid_response"),
        (truncated_json, "invalid_response"),
        (cut_connection, "unreachable"),
        (|| status(502), "unexpected_status"),
        (|| status(429), "rate_limited"),
    ] {
        let api = Api::start(in_turn(vec![failure])).await;
        let error = all_pages(&api.client()).await.unwrap_err();
        assert_eq!((error.outcome(), error.is_transient()), (outcome, true), "{error}");
        assert_eq!(api.seen("/api/v1/users").len(), 4);
    }
}

#[tokio::test]
async fn a_failed_page_is_requested_again_and_none_is_skipped() {
    let broken = || status(500);
    let api =
        Api::start(in_turn(vec![|| page(&["kp_1"], &json!("a")), broken, broken, broken, broken, last_page]))
            .await;
    let client = api.client();
    let mut pages = client.users();
    assert!(pages.next().await.is_ok());
    assert!(pages.next().await.is_err());
    assert!(pages.next().await.unwrap().unwrap().next_token.is_none());
    let request = api.seen("/api/v1/users");
    assert!(request[1..].iter().all(|seen| seen.query.contains("next_token=a")), "{request:?}");
}

#[tokio::test]
async fn a_rate_limited_call_waits_as_long_as_kinde_requires() {
    let api =
        Api::start(in_turn(vec![|| ([("RateLimit-Reset", "1")], status(429)).into_response(), last_page]))
            .await;
    let started = Instant::now();
    all_pages(&api.client()).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_429_with_a_reset_time_does_not_count_as_an_attempt() {
    let throttled: fn() -> Response = || ([("RateLimit-Reset", "0")], status(429)).into_response();
    let api = Api::start(in_turn([vec![throttled; 5], vec![last_page]].concat())).await;
    let mut config = api.config();
    config.retry.max_attempts = 2;
    all_pages(&Client::new(config).unwrap()).await.unwrap();
    assert_eq!(api.seen("/api/v1/users").len(), 6);
}

#[tokio::test]
async fn a_pause_beyond_the_budget_is_an_error_at_once() {
    let api = Api::start(in_turn(vec![|| ([("RateLimit-Reset", "60")], status(429)).into_response()])).await;
    let client = api.client();
    let started = Instant::now();
    let error = all_pages(&client).await.unwrap_err();
    assert!(
        matches!(error, Error::RateLimited { retry_after: Some(reset) } if reset == Duration::from_mins(1))
    );
    // Other calls know it without a request.
    assert!(matches!(client.user("kp_1").await, Err(Error::RateLimited { .. })));
    assert_eq!((api.seen("/api/v1/users").len(), api.seen("/api/v1/user").len()), (1, 0));
    assert!(started.elapsed() < Duration::from_secs(45), "below the minute of the pause");
}

#[tokio::test]
async fn the_time_and_the_size_of_a_response_are_limited() {
    let api = Api::start(in_turn(vec![last_page])).await;
    let mut config = api.config();
    config.retry.max_attempts = 2;
    config.timeout = Duration::from_secs(1);
    let client = Client::new(config.clone()).unwrap();
    all_pages(&client).await.unwrap();
    api.answer_after(Duration::from_mins(1));
    assert!(matches!(all_pages(&client).await, Err(Error::Unreachable(_))));
    assert_eq!(api.seen("/api/v1/users").len(), 3);
    api.answer_after(Duration::ZERO);
    config.max_body_bytes = 400;
    assert!(matches!(
        all_pages(&Client::new(config).unwrap()).await,
        Err(Error::ResponseTooLarge { limit: 400 })
    ));
}

#[tokio::test]
async fn a_single_user_is_read_with_its_preferred_email() {
    let api = Api::start(|seen| {
        let mut user = user("kp_1");
        let email = user.as_object_mut().unwrap().remove("email").unwrap();
        user["preferred_email"] = email;
        if seen.path == "/oauth2/token" { pass() } else { ok(&user) }
    })
    .await;
    let client = api.client();
    let answer = client.user("kp_1").await.unwrap();
    let found = answer.value.unwrap();
    assert_eq!(found.email, Patch::Value("a@example.com".to_owned()));
    assert!(!found.extra.contains_key("preferred_email"));
    assert_eq!(api.seen("/api/v1/user")[0].query, "id=kp_1&expand=organizations%2Cidentities");
    assert!(matches!(client.user("kp_2").await, Err(Error::WrongUser)));
    for id in ["", "a\nb", ".."] {
        assert!(matches!(client.user(id).await, Err(Error::InvalidIdentifier)));
    }
}

#[tokio::test]
async fn an_absent_user_is_distinguished_from_every_failure() {
    let bad = "unexpected status";
    for (answer, expect) in [
        ((|| api_error(404, "USER_NOT_FOUND", "x")) as fn() -> Response, "None"),
        (|| api_error_in_object(404, "USER_NOT_FOUND"), "None"),
        (|| api_error(400, "USER_NOT_FOUND", "x"), "None"),
        (|| api_error(400, "USER_INVALID", "x"), "None"),
        (
            || api_error(400, "USER_ID_REQUIRED", "x"),
            "unexpected status 400 Bad Request (`USER_ID_REQUIRED`: x)",
        ),
        (|| api_error_in_object(404, "ROUTE_NOT_FOUND"), bad),
        (|| api_error(410, "USER_NOT_FOUND", "x"), bad),
        (|| status(400), bad),
        (|| status(404), bad),
        (|| (axum::http::StatusCode::NOT_FOUND, html()).into_response(), bad),
        (|| status(302), bad),
        (|| ok(&json!({})), "the response differs from the documentation of the API"),
    ] {
        let api = Api::start(move |seen| if seen.path == "/oauth2/token" { pass() } else { answer() }).await;
        let found = match api.client().user("kp_1").await {
            Ok(answer) => format!("{:?}", answer.value),
            Err(error) => error.to_string(),
        };
        assert!(found.starts_with(expect), "{found}");
    }
}

#[tokio::test]
async fn a_code_for_unknown_users_can_be_configured() {
    let api = Api::start(in_turn(vec![|| api_error(400, "NO_SUCH_PERSON", "x")])).await;
    assert!(api.client().user("kp_1").await.unwrap_err().to_string().contains("NO_SUCH_PERSON"));
    let mut config = api.config();
    config.unknown_user_codes = vec!["NO_SUCH_PERSON".to_owned()];
    assert_eq!(Client::new(config).unwrap().user("kp_1").await.unwrap().value, None);
}

#[tokio::test]
async fn webhooks_event_types_and_events_are_read_and_written() {
    let api = Api::start(|seen| match (seen.method.as_str(), seen.path.as_str()) {
        ("POST", "/oauth2/token") => pass(),
        ("GET", "/api/v1/webhooks") => ok(&json!({"code": "OK", "webhooks": [
            {"id": "webhook_1", "name": "n", "endpoint": "https://e.example/x", "description": null,
             "event_types": ["user.created"], "created_on": "2025-04-01T13:04:20.5+11", "new": true}]})),
        ("POST", "/api/v1/webhooks") => {
            ok(&json!({"webhook": {"id": "webhook_2", "endpoint": "https://e.example/"}}))
        }
        ("PATCH", "/api/v1/webhooks/a%2Fb") => ok(&json!({"webhook": {"id": "a/b"}})),
        ("GET", "/api/v1/event_types") => ok(&json!({"event_types": [
            {"id": "et_1", "code": "user.created", "name": "N", "origin": "kinde", "schema": {"a": 1}}]})),
        ("GET", "/api/v1/events/event_1") => ok(&json!({"event": {
            "type": "user.deleted", "source": "api", "event_id": "event_1", "timestamp": 1_700_000_000,
            "data": {"user": {"id": "kp_1"}}}})),
        _ => api_error(400, "EVENT_INVALID", "x"),
    })
    .await;
    let client = api.client();
    let webhook = client.webhooks().await.unwrap().value.remove(0);
    assert_eq!(
        (webhook.id.as_str(), webhook.event_types.as_slice()),
        ("webhook_1", &["user.created".to_owned()][..])
    );
    assert_eq!(webhook.created_on.unwrap().to_string(), "2025-04-01T02:04:20.5Z");
    assert_eq!(webhook.extra["new"], true);
    let new = NewWebhook {
        endpoint: "https://e.example/".parse().unwrap(),
        event_types: vec!["user.created".to_owned()],
        name: "kinsync".to_owned(),
        description: None,
    };
    assert_eq!(client.create_webhook(&new).await.unwrap().value, "webhook_2");
    let sent = &api.seen("/api/v1/webhooks")[1].body;
    assert_eq!(sent, r#"{"endpoint":"https://e.example/","event_types":["user.created"],"name":"kinsync"}"#);
    let edit = WebhookUpdate { name: Some("n".to_owned()), ..WebhookUpdate::default() };
    client.update_webhook("a/b", &edit).await.unwrap();
    assert_eq!(api.seen("/api/v1/webhooks/a%2Fb")[0].body, r#"{"name":"n"}"#);
    let types = client.event_types().await.unwrap().value;
    assert_eq!((types[0].code.as_str(), types[0].schema.is_some()), ("user.created", true));
    let event = client.event("event_1").await.unwrap().value.unwrap();
    assert_eq!((event.body.user_id(), event.time.unwrap().as_second()), (Some("kp_1"), 1_700_000_000));
    assert_eq!(client.event("event_2").await.unwrap().value, None);
}

#[tokio::test]
async fn a_creating_request_is_repeated_only_if_it_had_no_effect() {
    let new = NewWebhook {
        endpoint: "https://e.example/".parse().unwrap(),
        event_types: Vec::new(),
        name: "n".to_owned(),
        description: None,
    };
    for failure in [html as fn() -> Response, truncated_json, cut_connection, || status(500)] {
        let api = Api::start(in_turn(vec![failure])).await;
        api.client().create_webhook(&new).await.unwrap_err();
        assert_eq!(api.seen("/api/v1/webhooks").len(), 1);
    }
    let done = || ok(&json!({"webhook": {"id": "webhook_1"}}));
    let api = Api::start(in_turn(vec![|| status(429), done])).await;
    assert_eq!(api.client().create_webhook(&new).await.unwrap().value, "webhook_1");
}

#[tokio::test]
async fn a_response_has_the_earlier_time_of_two_clocks() {
    let dated = || ([("date", "Thu, 12 Feb 2026 18:02:23 GMT")], last_page()).into_response();
    let api = Api::start(in_turn(vec![dated, || ([("date", "soon")], last_page()).into_response()])).await;
    let mut config = api.config();
    config.clock = Clock::new(|| "2026-02-12T19:00:00Z".parse().unwrap());
    let client = Client::new(config).unwrap();
    let sent = all_pages(&client).await.unwrap()[0].timing;
    assert_eq!(sent.server_date.unwrap().to_string(), "2026-02-12T18:02:23Z");
    assert_eq!(sent.sent_at.to_string(), "2026-02-12T19:00:00Z");
    assert!(sent.as_of <= "2026-02-12T18:02:21Z".parse().unwrap(), "{sent:?}");
    assert!(sent.as_of > "2026-02-12T18:02:10Z".parse().unwrap(), "{sent:?}");
    let undated = all_pages(&client).await.unwrap()[0].timing;
    assert_eq!((undated.server_date, undated.as_of.to_string()), (None, "2026-02-12T18:54:58Z".to_owned()));
}

#[tokio::test]
async fn concurrent_requests_are_limited() {
    let api = Api::start(in_turn(vec![|| ok(&json!({"event_types": []}))])).await;
    let mut config = api.config();
    config.max_concurrent_requests = 2;
    let client = Client::new(config).unwrap();
    client.event_types().await.unwrap();
    api.answer_after(Duration::from_millis(60));
    let started = Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let client = client.clone();
        calls.spawn(async move { client.event_types().await.map(|_| ()) });
    }
    assert!(calls.join_all().await.iter().all(Result::is_ok));
    assert!(started.elapsed() >= Duration::from_millis(180), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_invalid_setting_is_rejected() {
    let domain: url::Url = "https://acme.kinde.com".parse().unwrap();
    let config = |domain: &url::Url| kinde::management::Config::new(domain.clone(), "id", SECRET.into());
    assert!(Client::new(config(&domain)).is_ok());
    for size in [0, 501] {
        let mut config = config(&domain);
        config.page_size = size;
        assert!(matches!(Client::new(config), Err(ConfigError::PageSize(found)) if found == size));
    }
    let insecure = "http://acme.kinde.com".parse().unwrap();
    assert!(matches!(Client::new(config(&insecure)), Err(ConfigError::Domain(_))));
    let mut empty = config(&domain);
    empty.client_secret = "".into();
    assert!(matches!(Client::new(empty), Err(ConfigError::NoCredentials)));
    assert!(!format!("{:?} {:?}", config(&domain), Client::new(config(&domain)).unwrap()).contains(SECRET));
}

#[tokio::test]
async fn no_error_contains_the_secret_or_the_token() {
    let echo = |seen: &Seen| match seen.path.as_str() {
        "/oauth2/token" => {
            let body = json!({"error": "invalid_client", "error_description": format!("no: {}", seen.body)});
            (axum::http::StatusCode::UNAUTHORIZED, axum::Json(body)).into_response()
        }
        _ => pass(),
    };
    let api = Api::start(echo).await;
    let error = api.client().user("kp_1").await.unwrap_err();
    assert!(
        matches!(&error, Error::TokenUnavailable(cause) if matches!(**cause, Error::InvalidCredentials { .. }))
    );
    assert!(!all_text(&error).contains(SECRET), "{}", all_text(&error));
    for failure in [html as fn() -> Response, cut_connection, || status(403), || status(400)] {
        let api = Api::start(
            move |seen| {
                if seen.path == "/oauth2/token" { token("t0k3n", 3600) } else { failure() }
            },
        )
        .await;
        let error = api.client().user("kp_1").await.unwrap_err();
        assert!(!all_text(&error).contains("t0k3n") && !all_text(&error).contains(SECRET));
    }
}
