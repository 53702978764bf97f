//! From a request to a user, on the real binary and the embedded parts.

use kinde_emulator::{Emulator, MintOptions};
use serde_json::Value;

use crate::server::{BODY, Server};

#[test]
fn the_response_to_an_invalid_signature_explains_how_to_sign() {
    let server = Server::start(&[]);
    let headers = [("content-type", "application/json"), ("x-kinde-signature", "test")];
    let (status, body) = server.request("POST", "/api/webhook", &headers, BODY);
    let problem: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &problem["status"]), (401, &Value::from(401)));
    assert!(problem["detail"].as_str().unwrap().contains("x-kinde-signature"), "{problem}");
    assert!(problem["howToSign"].to_string().contains("openssl dgst -sha256 -hmac"), "{problem}");
    let (status, _) = server.admin("/api/admin/users/test");
    assert_eq!(status, 404, "nothing was stored");
}

#[test]
fn the_first_try_with_the_right_signature_makes_the_user() {
    let server = Server::start(&[]);
    let (status, body) = server.deliver(BODY);
    assert_eq!(status, 200, "{body}");
    let user = server.wait_for("/api/admin/users/test", |status, _| status == 200);
    assert_eq!(user["email"], "test@example.com");
    assert_eq!(user["isDeleted"], false);
    let updated = user["updatedAt"].as_str().unwrap();
    assert_eq!(updated.len(), "2024-05-01T07:41:45.592145Z".len(), "{updated}");

    let events =
        server.wait_for("/api/admin/events?user=test", |_, v| !v["events"].as_array().unwrap().is_empty());
    let id = events["events"][0]["eventId"].as_str().unwrap();
    let (_, event) = server.admin(&format!("/api/admin/events/{id}"));
    assert_eq!(event["payload"]["user"]["email"], "test@example.com");
}

#[test]
fn a_sender_that_leaves_out_the_time_is_warned_and_reported() {
    let server = Server::start(&[]);
    server.deliver(BODY);
    let health = server.wait_for("/health", |_, health| health["status"].is_string());
    assert!(!health["problems"].to_string().contains("the time of its events"), "{health}");
    let deleted = r#"{"type":"user.deleted","user":{"id":"test"}}"#;
    let (status, body) = server.deliver(deleted);
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["duplicate"]), (200, &Value::Bool(false)));
    assert!(body["warning"].as_str().unwrap().contains("`timestamp`"), "{body}");
    let health = server.wait_for("/health", |_, health| health["status"] == "degraded");
    assert!(health["problems"].to_string().contains("the time of its events"), "{health}");
    let user = server.wait_for("/api/admin/users/test", |_, user| user["isDeleted"] == true);
    assert!(user["deletedAt"].as_str().unwrap() > "2026-01-01", "{user}");
}

#[test]
fn a_delivery_that_cannot_be_understood_is_a_dead_letter_that_can_be_retried_and_dropped() {
    let server = Server::start(&[]);
    let (status, _) = server.deliver(
        r#"{"type":"user.updated","event_id":"event_x","timestamp":"2026-01-01T00:00:00Z","data":"moon"}"#,
    );
    assert_eq!(status, 200, "one poison event must not disable the webhook");
    let some = |_: u16, value: &Value| value["deadLetters"].as_array().is_some_and(|list| !list.is_empty());
    let list = server.wait_for("/api/admin/dead-letters", some);
    let letter = &list["deadLetters"][0];
    assert_eq!(letter["eventId"], "event_x");
    assert!(letter.get("payload").is_none(), "a list contains no personal data");

    let id = letter["id"].as_str().unwrap();
    let (_, whole) = server.admin(&format!("/api/admin/dead-letters/{id}"));
    assert_eq!(whole["payload"]["data"], "moon");
    let health = server.wait_for("/health", |_, health| health["status"] == "degraded");
    assert!(health["problems"].to_string().contains("dead-letters list"), "{health}");

    let token = [("authorization", format!("Bearer {}", crate::server::TOKEN))];
    let token: Vec<(&str, &str)> = token.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let (status, _) = server.request("POST", &format!("/api/admin/dead-letters/{id}/retry"), &token, "");
    assert_eq!(status, 200);
    let again = server.wait_for("/api/admin/dead-letters", some);
    let id = again["deadLetters"][0]["id"].as_str().unwrap();
    let (status, _) = server.request("DELETE", &format!("/api/admin/dead-letters/{id}"), &token, "");
    assert_eq!(status, 200);
    let (status, _) = server.request("DELETE", &format!("/api/admin/dead-letters/{id}"), &token, "");
    assert_eq!(status, 404, "the dead letter is removed");
}

#[test]
fn the_metrics_count_deliveries_failures_lag_and_the_store() {
    let server = Server::start(&[]);
    server.deliver(r#"{"type":"user.created","event_id":"e","timestamp":"2026-01-01T00:00:00Z","data":{"user":{"id":"test"}}}"#);
    server.request("POST", "/api/webhook", &[], BODY);
    server.wait_for("/api/admin/users/test", |status, _| status == 200);
    let wanted = [
        r#"kinsync_deliveries_total{scheme="hmac_sha256",outcome="accepted"} 1"#,
        r#"kinsync_deliveries_total{scheme="none",outcome="unsigned"} 1"#,
        r#"kinsync_delivery_verification_failures_total{reason="missing_signature"} 1"#,
        r#"kinsync_breaker_state{dependency="store",caller="projector"} 0"#,
        r#"kinsync_lag_seconds_bucket{from="receipt","#,
        r#"kinsync_lag_seconds_bucket{from="kinde","#,
        "# TYPE kinsync_store_call_duration_seconds histogram",
        "kinsync_queue_depth ",
        "kinsync_queue_oldest_seconds ",
    ];
    // Lag is measured a moment after the user can be seen.
    let metrics = std::cell::RefCell::new(String::new());
    server.wait_for("/health", |_, _| {
        *metrics.borrow_mut() = server.request("GET", "/metrics", &[], "").1;
        wanted.iter().all(|line| metrics.borrow().contains(line))
            || metrics.borrow().contains("kinsync_lag_seconds_count")
    });
    for line in wanted {
        assert!(metrics.borrow().contains(line), "{line} is missing in:\n{}", metrics.borrow());
    }
}

#[test]
fn the_log_holds_nothing_of_people() {
    let server = Server::start(&[("KINSYNC_LOG", "debug")]);
    server.deliver(r#"{"type":"user.created","event_id":"event_1","timestamp":"2026-01-01T00:00:00Z","data":{"user":{"id":"test","email":"canary@example.com","first_name":"Canaria"}}}"#);
    server.request("POST", "/api/webhook", &[("x-kinde-signature", "canary-signature")], "canary-body");
    server.wait_for("/api/admin/users/test", |status, _| status == 200);
    server.admin("/api/admin/users?email=canary@example.com");
    server.terminate();
    let (_, lines) = server.end();
    let log = lines.join("\n").to_lowercase();
    assert!(log.contains("event_1"), "the log has ids:\n{log}");
    for secret in ["canar", crate::server::SECRET, crate::server::TOKEN] {
        assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
}

#[test]
fn while_mongodb_is_down_deliveries_are_accepted_and_health_reports_it() {
    // Port 9 (discard) has no server.
    let server = Server::start(&[("MONGODB_URI", "mongodb://127.0.0.1:9/app")]);
    assert_eq!(server.deliver(BODY).0, 200);
    assert_eq!(server.request("GET", "/health/ready", &[], "").0, 200, "ready is about accepting deliveries");
    let (status, health) = server.admin("/health");
    assert_eq!((status, &health["status"]), (200, &Value::from("degraded")));
    assert_eq!(health["components"]["store"]["prepared"], false);
    assert_eq!(health["components"]["queue"]["depth"], 1);
    let (status, problem) = server.admin("/api/admin/users");
    assert_eq!(status, 503);
    assert!(problem["requestId"].is_string(), "{problem}");
    assert!(
        problem["cause"].as_str().unwrap().contains("127.0.0.1:9"),
        "the problem names the cause: {problem}"
    );
    server.terminate();
    assert_eq!(server.end().0.code(), Some(0), "a store that is down does not hold up the shutdown");
}

#[test]
fn a_delivery_that_was_answered_200_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let data = [("KINSYNC_DATA_DIR", folder.path().to_str().unwrap())];
    let down = [data[0], ("MONGODB_URI", "mongodb://127.0.0.1:9/app")];
    let server = Server::start(&down);
    assert_eq!(server.deliver(BODY).0, 200);
    // SIGKILL.
    drop(server);
    let server = Server::start(&data);
    server.wait_for("/api/admin/users/test", |status, _| status == 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_kinde_signed_is_stored_whatever_it_lacks() {
    let kinde = Emulator::start(kinde_emulator::Config::default()).await.unwrap();
    let user = serde_json::json!({"user": {"id": "kp_1", "email": "ada@example.com"}});
    let webhooks = [
        serde_json::json!({"type": "user.updated", "event_id": "event_1", "data": null}),
        serde_json::json!({"type": "user.updated", "event_id": "event_2", "data": user}),
        serde_json::json!({"type": "user.updated", "event_id": "x".repeat(257), "data": "moon"}),
        serde_json::json!({"event_id": "event_4"}),
    ];
    let tokens = webhooks.map(|claims| kinde.mint(claims.as_object().unwrap(), &MintOptions::default()));
    let issuer = kinde.issuer().to_owned();
    let checks = move || {
        let server = Server::start(&[("KINDE_DOMAIN", &issuer)]);
        for token in &tokens {
            let (status, body) =
                server.request("POST", "/api/webhook", &[("content-type", "application/jwt")], token);
            assert_eq!(status, 200, "Kinde would disable the webhook: {body}");
        }
        let all = |_: u16, value: &Value| value["deadLetters"].as_array().is_some_and(|list| list.len() == 4);
        let list = server.wait_for("/api/admin/dead-letters", all);
        for letter in list["deadLetters"].as_array().unwrap() {
            assert!(letter["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{letter}");
        }
    };
    tokio::task::spawn_blocking(checks).await.unwrap();
}
