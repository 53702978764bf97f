//! Bodies and signatures of deliveries, and the retry schedule.

use std::collections::HashSet;
use std::time::Duration;

use kinde_emulator::config::{Missing, Offset, Precision, Retry, Unknowns};
use kinde_emulator::{
    Config, DeliveryState, Emulator, NewUser, Overlap, Profile, Scheme, UserEdit, WebhookSpec,
};
use serde_json::{Value, json};

use crate::receiver::{DEADLINE, Receiver, is_signed_by, part, start};

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn a_webhook_is_a_signed_jwt_without_registered_claims() {
    let (emulator, receiver) = start(Config::default()).await;
    let user = emulator.create_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap();
    let arrival = receiver.wait_for(1).await.remove(0);

    assert_eq!(arrival.header("content-type"), "application/jwt");
    assert!(!arrival.header("webhook-id").is_empty());
    let token = std::str::from_utf8(&arrival.body).unwrap();
    assert!(is_signed_by(&emulator.jwks(), token));
    assert_eq!(keys(&part(token, 0)), ["alg", "kid", "typ"]);

    let payload = arrival.payload();
    assert_eq!(keys(&payload), ["data", "event_id", "event_timestamp", "source", "timestamp", "type"]);
    assert_eq!(
        keys(&payload["data"]["user"]),
        [
            "email",
            "first_name",
            "id",
            "is_password_reset_requested",
            "is_suspended",
            "last_name",
            "organizations",
            "phone",
            "username"
        ]
    );
    assert_eq!(payload["data"]["user"]["id"], user.id);
    assert_eq!(
        payload["data"]["user"]["organizations"],
        json!([{"code": "org_590d7f1a86a", "permissions": null, "roles": null}])
    );
    let (event_id, timestamp) =
        (payload["event_id"].as_str().unwrap(), payload["timestamp"].as_str().unwrap());
    assert_eq!(event_id.len(), "event_".len() + 32);
    assert_eq!(timestamp.len(), "2024-05-01T17:41:45.592145+10:00".len());
    let at: jiff::Timestamp = timestamp.parse().unwrap();
    assert_eq!(i64::from_str_radix(&event_id[6..18], 16).unwrap(), at.as_millisecond());
}

#[tokio::test]
async fn each_change_of_a_user_sends_the_event_that_kinde_sends() {
    let mut config = Config::default();
    config.delivery.max_in_flight = 1;
    let (emulator, receiver) = start(config).await;
    let user = emulator.sign_up(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap();
    emulator.suspend(&user.id).unwrap();
    assert!(emulator.sign_in(&user.id).is_err());
    emulator.add_to_organization(&user.id, "org_11111111111", &["admin".to_owned()], &[]).unwrap();
    emulator.delete_user(&user.id, Profile::Remove).unwrap();
    emulator.import_user(NewUser::named("silent@example.com", "Silent", "Import")).unwrap();
    emulator.quiesce(DEADLINE).await.unwrap();

    let arrivals = receiver.arrivals();
    let kinds: Vec<String> = arrivals.iter().map(super::receiver::Arrival::kind).collect();
    assert_eq!(
        kinds,
        [
            "user.created",
            "user.authenticated",
            "user.updated",
            "user.authentication_failed",
            "user.updated",
            "user.deleted"
        ]
    );
    let payloads: Vec<Value> = arrivals.iter().map(super::receiver::Arrival::payload).collect();
    assert_eq!(payloads[1]["data"], json!({"user": {"id": user.id}}));
    assert!(payloads[1]["ip_address"].is_string());
    assert_eq!(payloads[2]["data"]["user"]["is_suspended"], true);
    assert_eq!(payloads[4]["data"]["user"]["organizations"][1]["roles"][0]["key"], "admin");
    assert_eq!(payloads[5]["data"], json!({"user": {"id": user.id}}));
    let ids: Vec<&str> = payloads.iter().map(|payload| payload["event_id"].as_str().unwrap()).collect();
    assert!(ids.windows(2).all(|pair| pair[0][..18] <= pair[1][..18]), "ids sort by millisecond: {ids:?}");
}

#[tokio::test]
async fn an_attempt_follows_the_schedule_with_the_same_id_and_body() {
    let config = Config { time_scale: 100.0, ..Config::default() };
    let (emulator, receiver) = start(config).await;
    receiver.answer(204);
    emulator.create_user(NewUser::default()).unwrap();
    let arrivals = receiver.wait_for(4).await;
    receiver.answer(200);
    let waits: Vec<Duration> = arrivals.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    for (wait, millis) in waits.iter().zip([50, 300, 1200]) {
        let wanted = Duration::from_millis(millis);
        // What a busy machine adds is far below the last pause without the scale, two minutes.
        assert!(*wait >= wanted && *wait < wanted + Duration::from_secs(20), "{waits:?}");
    }
    assert!(arrivals.iter().all(|arrival| arrival.body == arrivals[0].body), "the same JWT each time");
    let ids: HashSet<&str> = arrivals.iter().map(|arrival| arrival.header("webhook-id")).collect();
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn a_delivery_ends_at_the_end_of_the_schedule() {
    let config = Config { time_scale: 1e5, ..Config::default() };
    let (emulator, receiver) = start(config).await;
    receiver.answer(500);
    emulator.create_user(NewUser::default()).unwrap();
    emulator.quiesce(DEADLINE).await.unwrap();
    let delivery = emulator.deliveries().remove(0);
    assert_eq!((delivery.state, delivery.attempts), (DeliveryState::GivenUp, 9));
    assert_eq!((delivery.last_status, receiver.arrivals().len()), (Some(500), 9));
    let stats = emulator.stats();
    assert_eq!((stats.given_up, stats.failures, stats.attempts), (1, 9, 9));
}

#[tokio::test]
async fn an_endpoint_that_fails_for_72_hours_is_disabled_until_it_is_enabled() {
    let retry = Retry { until: Duration::from_hours(100), jitter: 0.0, ..Retry::default() };
    let config = Config { time_scale: 500_000.0, retry, ..Config::default() };
    let (emulator, receiver) = start(config).await;
    let id = emulator.webhooks()[0].id.clone();
    receiver.answer(401);
    emulator.create_user(NewUser::default()).unwrap();
    emulator.quiesce(DEADLINE).await.unwrap();
    assert!(emulator.webhooks()[0].disabled);
    assert_eq!((emulator.stats().disabled, emulator.stats().abandoned), (1, 1));

    let before = receiver.arrivals().len();
    receiver.answer(200);
    emulator.create_user(NewUser::default()).unwrap();
    emulator.quiesce(DEADLINE).await.unwrap();
    assert_eq!(receiver.arrivals().len(), before, "a disabled endpoint receives nothing");

    emulator.enable_webhook(&id).unwrap();
    emulator.create_user(NewUser::default()).unwrap();
    receiver.wait_for(before + 1).await;
    emulator.quiesce(DEADLINE).await.unwrap();
    assert_eq!(emulator.stats().delivered, 1);
}

#[tokio::test]
async fn an_attempt_that_times_out_is_retried() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = Config { time_scale: 1e5, ..Config::default() };
    config.delivery.timeout = Duration::from_millis(20);
    let emulator = Emulator::start(config).await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    emulator.add_webhook(WebhookSpec::new(url));
    emulator.create_user(NewUser::default()).unwrap();
    emulator.quiesce(DEADLINE).await.unwrap();
    let delivery = emulator.deliveries().remove(0);
    assert_eq!((delivery.state, delivery.last_status), (DeliveryState::GivenUp, None));
    let error = delivery.last_error.unwrap();
    assert!(error.contains("time"), "{error}");
}

#[tokio::test]
async fn the_unknowns_change_the_payload() {
    let unknowns = Unknowns {
        timestamp_changes_between_attempts: true,
        event_timestamp: false,
        offset: Offset::Short,
        precision: Precision::Millis,
        missing_email: Missing::Absent,
        sign_up_events: vec!["user.updated".to_owned(), "user.created".to_owned()],
        ..Unknowns::default()
    };
    let mut config = Config { time_scale: 100.0, unknowns, ..Config::default() };
    config.delivery.max_in_flight = 1;
    let (emulator, receiver) = start(config).await;
    receiver.answer(503);
    let phone = NewUser { phone: Some("+442071838750".to_owned()), ..NewUser::default() };
    emulator.sign_up(phone).unwrap();
    let arrivals = receiver.wait_for(4).await;
    receiver.answer(200);
    let first = arrivals[0].payload();
    assert_eq!((arrivals[0].kind().as_str(), arrivals[1].kind().as_str()), ("user.updated", "user.created"));
    assert!(first.get("event_timestamp").is_none() && first["data"]["user"].get("email").is_none());
    assert!(first["timestamp"].as_str().unwrap().ends_with("+10"));
    let again = arrivals[2..].iter().map(super::receiver::Arrival::payload);
    let again: Vec<Value> = again.filter(|payload| payload["event_id"] == first["event_id"]).collect();
    assert!(again.iter().all(|payload| payload["timestamp"] != first["timestamp"]));
    assert!(!again.is_empty());
}

#[tokio::test]
async fn a_relay_receives_json_with_an_hmac() {
    use aws_lc_rs::hmac;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    let emulator = Emulator::start(Config::default()).await.unwrap();
    let (relay, standard) = (Receiver::start().await, Receiver::start().await);
    let secret = "top secret".to_owned();
    emulator.add_webhook(WebhookSpec::new(relay.url.clone()).with_scheme(Scheme::Hmac { secret }));
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned();
    emulator
        .add_webhook(WebhookSpec::new(standard.url.clone()).with_scheme(Scheme::StandardWebhooks { secret }));
    emulator.create_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap();

    let arrival = relay.wait_for(1).await.remove(0);
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"top secret"), &arrival.body);
    let header = arrival.header("x-kinde-signature");
    let sent: Vec<u8> =
        (0..32).map(|byte| u8::from_str_radix(&header[2 * byte..2 * byte + 2], 16).unwrap()).collect();
    assert_eq!((sent.as_slice(), header.len()), (signature.as_ref(), 64));
    assert_eq!(arrival.header("content-type"), "application/json");
    assert_eq!(serde_json::from_slice::<Value>(&arrival.body).unwrap()["type"], "user.created");

    let arrival = standard.wait_for(1).await.remove(0);
    let key = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let (id, time) = (arrival.header("webhook-id"), arrival.header("webhook-timestamp"));
    let message = [format!("{id}.{time}.").as_bytes(), &arrival.body].concat();
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), &message);
    let wanted = format!("v1,{}", STANDARD.encode(signature.as_ref()));
    assert_eq!(arrival.header("webhook-signature"), wanted);
}

#[tokio::test]
async fn a_rotation_changes_the_kid_of_new_deliveries_and_may_keep_the_old_key() {
    let (emulator, receiver) = start(Config::default()).await;
    emulator.create_user(NewUser::default()).unwrap();
    let old = receiver.wait_for(1).await.remove(0);
    emulator.rotate_keys(Overlap::Keep).unwrap();
    emulator.create_user(NewUser::default()).unwrap();
    let new = receiver.wait_for(2).await.remove(1);
    let token = |arrival: &super::receiver::Arrival| String::from_utf8(arrival.body.to_vec()).unwrap();
    assert_ne!(part(&token(&old), 0)["kid"], part(&token(&new), 0)["kid"]);
    assert!(is_signed_by(&emulator.jwks(), &token(&old)) && is_signed_by(&emulator.jwks(), &token(&new)));
    emulator.rotate_keys(Overlap::Drop).unwrap();
    assert_eq!(emulator.jwks()["keys"].as_array().unwrap().len(), 1);
    assert!(!is_signed_by(&emulator.jwks(), &token(&new)));
}

#[tokio::test]
async fn two_users_swap_emails_and_an_email_in_use_is_rejected() {
    let (emulator, receiver) = start(Config::default()).await;
    let a = emulator.create_user(NewUser::named("a@example.com", "A", "A")).unwrap();
    let b = emulator.create_user(NewUser::named("b@example.com", "B", "B")).unwrap();
    let steal = UserEdit { email: Some("B@example.com".to_owned()), ..UserEdit::default() };
    assert!(emulator.update_user(&a.id, steal.clone()).is_err());
    emulator.swap_emails(&a.id, &b.id).unwrap();
    assert_eq!(emulator.user_by_email("b@example.com").unwrap().id, a.id);
    assert_eq!(emulator.user(&b.id).unwrap().email.as_deref(), Some("a@example.com"));
    emulator.delete_user(&a.id, Profile::Keep).unwrap();
    emulator.update_user(&b.id, steal).unwrap();
    assert_eq!(receiver.wait_for(6).await.len(), 6);
}
