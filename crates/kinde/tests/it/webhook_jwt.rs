//! Verification of webhooks that Kinde signed: the body is a JWT.

use bytes::Bytes;
use http::HeaderMap;
use kinde::webhook::Scheme;
use kinde::{Jwks, jwks};
use serde_json::{Value, json};

use crate::support::{
    KID, Server, access_claims, header, id_token_claims, machine_claims, now, tenant_key, webhook_claims,
    with,
};
use crate::webhook::{check, jwt, post, verifier};

fn signed_raw(payload: &[u8]) -> String {
    tenant_key().sign_raw(header().to_string().as_bytes(), payload)
}

#[tokio::test]
async fn a_webhook_that_kinde_signed_is_accepted() {
    let body = jwt(&webhook_claims());
    for pairs in [
        &[("content-type", "application/jwt")][..],
        &[("content-type", "Application/JWT; charset=utf-8"), ("webhook-id", "msg_1")],
        &[("content-type", "application/json")],
        &[],
    ] {
        let delivery = post(pairs, &body).await.unwrap();
        assert_eq!(delivery.scheme(), Scheme::KindeJwt);
        assert_eq!(delivery.event_id(), Some("event_018f331a3178f7fef284b95fe6770384"));
        assert_eq!(delivery.event_type(), "user.updated");
        assert_eq!(serde_json::from_slice::<Value>(delivery.payload()).unwrap(), webhook_claims());
        assert_eq!(delivery.decode().unwrap().body.user_id(), Some("kp_1"));
        assert!(!format!("{delivery:?}").contains("example.com"));
    }
}

#[tokio::test]
async fn an_unusual_webhook_with_a_valid_signature_is_a_delivery() {
    for changes in
        [json!({"data": {}}), json!({"type": "moon.landed"}), json!({"timestamp": "?"}), json!({"iss": "x"})]
    {
        post(&[], &jwt(&with(webhook_claims(), &changes))).await.unwrap();
    }
}

#[tokio::test]
async fn tokens_of_users_and_machines_are_not_webhooks() {
    for claims in [access_claims(), id_token_claims(), machine_claims()] {
        check(&[], &jwt(&claims), "token_not_webhook").await;
        check(&[], &jwt(&with(claims, &webhook_claims())), "token_not_webhook").await;
    }
    for claim in ["sub", "azp", "scp", "gty", "exp"] {
        check(&[], &jwt(&with(webhook_claims(), &json!({ claim: 1 }))), "token_not_webhook").await;
    }
}

#[tokio::test]
async fn an_incomplete_webhook_of_kinde_is_a_delivery_that_cannot_be_decoded() {
    for claim in ["type", "data", "event_id", "timestamp"] {
        for value in [json!(null), json!(true), json!([])] {
            let delivery = post(&[], &jwt(&with(webhook_claims(), &json!({ claim: value })))).await.unwrap();
            assert!(delivery.decode().is_err(), "{claim} {value}");
        }
    }
    // The flat shape is for relays only.
    let flat = with(webhook_claims(), &json!({"data": null, "user": {"id": "kp_1"}}));
    assert!(post(&[], &jwt(&flat)).await.unwrap().decode().is_err());
    let null_data = webhook_claims().to_string().replacen("\"data\":{", "\"data\":null,\"x\":{", 1);
    let delivery = post(&[], &signed_raw(null_data.as_bytes())).await.unwrap();
    assert_eq!(delivery.event_id(), Some("event_018f331a3178f7fef284b95fe6770384"));
    assert!(delivery.decode().is_err());
}

#[tokio::test]
async fn a_payload_of_kinde_without_a_usable_event_id_is_a_delivery() {
    let long = "x".repeat(257);
    for (payload, event_type) in [
        (&b"{}"[..], ""),
        (b"[]", ""),
        (b"not json", ""),
        (br#"{"event_id":"","type":"user.created"}"#, "user.created"),
        (br#"{"event_id":"a\u0000","type":"user.created"}"#, "user.created"),
        (format!(r#"{{"event_id":"{long}","type":"user.created"}}"#).as_bytes(), "user.created"),
        (br#"{"event_id":"e","event_id":"e","type":"user.created"}"#, ""),
        (b"{\"event_id\":\"\xe9\",\"type\":\"user.created\"}", "user.created"),
    ] {
        let text = String::from_utf8_lossy(payload).into_owned();
        let delivery = post(&[], &signed_raw(payload)).await.expect(&text);
        assert_eq!(delivery.event_id(), None, "{text}");
        assert_eq!((delivery.event_type(), delivery.payload().as_ref()), (event_type, payload), "{text}");
        assert!(delivery.decode().is_err(), "{text}");
    }
    let latin1 = b"{\"event_id\":\"e\",\"type\":\"user.created\",\"data\":{\"user\":{\"id\":\"\xe9\"}}}";
    let delivery = post(&[], &signed_raw(latin1)).await.unwrap();
    assert_eq!((delivery.event_id(), delivery.event_type()), (Some("e"), "user.created"));
    assert!(delivery.decode().is_err());
}

#[tokio::test]
async fn a_claim_of_a_token_is_found_in_any_payload() {
    for payload in [
        &br#"{"sub":"kp_1","type":"x","type":"y"}"#[..],
        br#"{"type":"x","\u0073ub":"kp_1"}"#,
        br#"{"exp":1,"exp":2}"#,
        b"{\"sub\":\"kp_1\",\"name\":\"\xe9\"}",
    ] {
        check(&[], &signed_raw(payload), "token_not_webhook").await;
    }
}

#[tokio::test]
async fn white_space_and_json_quotes_around_the_token_are_removed() {
    let token = jwt(&webhook_claims());
    for body in [
        format!("{token}\n"),
        format!(" \t\r\n{token}\r\n"),
        format!("\"{token}\""),
        format!(" \"{token}\"\n"),
        format!("\" {token} \""),
    ] {
        for pairs in
            [&[][..], &[("content-type", "application/jwt")], &[("content-type", "application/json")]]
        {
            let delivery = post(pairs, &body).await.expect(&body);
            assert_eq!(delivery.scheme(), Scheme::KindeJwt);
        }
    }
    for body in [format!("\"{token}"), format!("{token}\""), format!("'{token}'"), format!("[\"{token}\"]")] {
        let reason = if body.starts_with(['\'', '[']) { "missing_signature" } else { "malformed_token" };
        check(&[], &body, reason).await;
    }
}

#[tokio::test]
async fn a_long_header_is_rejected_before_it_is_decoded() {
    let padded = |length: usize| {
        let header = json!({"alg": "RS256", "kid": KID, "x": "a".repeat(length)}).to_string();
        tenant_key().sign_raw(header.as_bytes(), webhook_claims().to_string().as_bytes())
    };
    post(&[], &padded(2_900)).await.unwrap();
    let error = post(&[], &padded(3_200)).await.unwrap_err();
    assert!(error.to_string().contains("the header of the token exceeds 4096 bytes"), "{error}");
}

#[tokio::test]
async fn a_webhook_of_kinde_that_cannot_be_decoded_is_still_a_delivery() {
    let signed = |data: &str, timestamp: &str| {
        let text = format!(
            r#"{{"type":"user.created","event_id":"event_1","timestamp":{timestamp},"data":{data}}}"#
        );
        tenant_key().sign_raw(header().to_string().as_bytes(), text.as_bytes())
    };
    let time = r#""2026-01-01T00:00:00Z""#;
    let deep = format!(r#"{{"user":{}}}"#, "[".repeat(200) + &"]".repeat(200));
    for (data, timestamp) in [
        (r#"{"user":{"id":"kp_1","id":"kp_2"}}"#, time),
        (&*deep, time),
        (r#"{"user":{"id":"kp_1","n":1e999}}"#, time),
        (r#"{"user":{"id":7}}"#, time),
        (r#"{"user":{"id":"kp_1"}}"#, "1767225600"),
    ] {
        let delivery = post(&[], &signed(data, timestamp)).await.expect(data);
        assert_eq!((delivery.event_id(), delivery.event_type()), (Some("event_1"), "user.created"));
        assert_eq!(delivery.decode().is_ok(), timestamp != time, "{data}");
    }
}

#[tokio::test]
async fn unavailable_keys_are_an_outage_and_not_a_rejection() {
    let server = Server::with_keys(vec![tenant_key().jwk(KID)]).await;
    let jwks = Jwks::new(jwks::Config::new(server.domain.clone())).unwrap();
    drop(server);
    let body = Bytes::from(jwt(&webhook_claims()));
    let error = verifier(&[], &[], Some(jwks)).verify(&HeaderMap::new(), body, now()).await.unwrap_err();
    assert!(error.is_unavailable());
    assert_eq!(error.reason(), "keys_unavailable");
}
