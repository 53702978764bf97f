//! The properties of the fuzz targets with generated inputs: no input makes the crate panic.

use std::sync::OnceLock;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use kinde::webhook::{Config, Verifier};
use kinde::{event, sign};
use proptest::prelude::*;
use serde_json::Value;

use crate::support::{header, now, tenant_jwks, tenant_key};

fn verifier() -> &'static Verifier {
    static VERIFIER: OnceLock<Verifier> = OnceLock::new();
    VERIFIER.get_or_init(|| {
        Verifier::new(Config {
            jwks: Some(tenant_jwks()),
            hmac_secrets: vec!["secret".into()],
            standard_webhooks_secrets: vec!["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into()],
            ..Config::default()
        })
        .unwrap()
    })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn header_map(pairs: &[(&'static str, Vec<u8>)]) -> HeaderMap {
    let valid = pairs.iter().filter_map(|(name, value)| Some((*name, HeaderValue::from_bytes(value).ok()?)));
    valid.fold(HeaderMap::new(), |mut headers, (name, value)| {
        headers.append(name, value);
        headers
    })
}

/// JSON that resembles events: known names, arbitrary values.
fn eventlike() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z.]{0,12}".prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
        Just(Value::from("user.created")),
        Just(Value::from("2024-05-01T17:41:45+10")),
    ];
    let name = prop_oneof![
        Just("type"),
        Just("data"),
        Just("user"),
        Just("id"),
        Just("email"),
        Just("organizations"),
        Just("code"),
        Just("roles"),
        Just("event_id"),
        Just("timestamp"),
        Just("event_timestamp"),
        Just("is_suspended"),
        Just("x"),
    ];
    leaf.prop_recursive(6, 48, 6, move |inner| {
        let object =
            proptest::collection::btree_map(name.clone().prop_map(str::to_owned), inner.clone(), 0..6);
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(Value::from),
            object.prop_map(|object| Value::Object(object.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn decoding_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = event::decode(&bytes);
    }

    #[test]
    fn decoding_any_event(value in eventlike(), event_type in "(user|role|organization)\\.(created|updated|deleted)") {
        let mut value = value;
        if let Some(object) = value.as_object_mut() {
            object.insert("type".to_owned(), event_type.into());
        }
        let _ = event::decode(&serde_json::to_vec(&value).unwrap());
    }

    #[test]
    fn verifying_any_request(
        body in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..256),
            "eyJ[A-Za-z0-9_.=-]{0,128}".prop_map(String::into_bytes),
            "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ\\.[A-Za-z0-9_-]{0,16}\\.[A-Za-z0-9_-]{0,400}".prop_map(String::into_bytes),
        ],
        signature in prop_oneof![proptest::collection::vec(any::<u8>(), 0..80), "(sha256=|v1,)?[0-9a-f]{60,66}".prop_map(String::into_bytes)],
        seconds in "[0-9]{0,21}",
        standard in any::<bool>(),
    ) {
        let name = if standard { "webhook-signature" } else { "x-kinde-signature" };
        let headers = header_map(&[(name, signature), ("webhook-id", b"x".to_vec()), ("webhook-timestamp", seconds.into_bytes())]);
        let verified = block_on(verifier().verify(&headers, Bytes::from(body), now()));
        prop_assert!(verified.is_err(), "the request has no valid signature");
    }

    #[test]
    fn any_signed_body_is_a_delivery_with_an_id(body in proptest::collection::vec(any::<u8>(), 0..256)) {
        prop_assume!(!body.starts_with(b"eyJ"));
        let signature = sign::hmac_hex("secret", &body).into_bytes();
        let headers = header_map(&[("x-kinde-signature", signature)]);
        let delivery = block_on(verifier().verify(&headers, Bytes::from(body), now())).unwrap();
        prop_assert!(delivery.event_id().is_none_or(|id| !id.is_empty() && id.len() <= 256));
        let _ = delivery.decode();
    }

    #[test]
    fn any_signed_claims_are_judged(value in eventlike()) {
        let token = tenant_key().sign(&header(), &value);
        let _ = block_on(verifier().verify(&HeaderMap::new(), Bytes::from(token), now()));
    }
}
