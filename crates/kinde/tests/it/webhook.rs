//! Webhook verification: signatures with a secret, and the errors of all schemes by their reason.
//!
//! The expected signatures were computed with openssl, not with this crate, by the commands next to them.

use bytes::Bytes;
use http::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use kinde::webhook::{Config, ConfigError, Delivery, Scheme, VerificationError, Verifier};
use kinde::{Jwks, sign};
use secrecy::SecretString;
use serde_json::Value;

use crate::support::{access_claims, foreign_key, header, now, tenant_jwks, tenant_key, webhook_claims};

const BODY: &str = r#"{"type":"user.created","event_id":"event_1","user":{"id":"test"}}"#;
/// `printf '%s' "$BODY" | openssl dgst -sha256 -hmac secret`
const HEX: &str = "2e13a995439928f4c1287c7fe1440d019e7e2ccaf025455a19ab9fca59d4df64";
/// The same with `-binary | base64`.
const BASE64: &str = "LhOplUOZKPTBKHx/4UQNAZ5+LMrwJUVaGaufylnU32Q=";
/// `printf '%s' "$BODY" | openssl dgst -sha256 -hmac old`
const HEX_OLD: &str = "172d1f83aaed90af8f1529e1ca08094b5b08c48c11e20d3f223e174fc723f35f";
/// `new Webhook(STANDARD_SECRET).sign("msg_1", new Date(1714550400000), BODY)` of npm `standardwebhooks` 1.0.0.
const STANDARD: &str = "v1,OiyVbVa/HEaB9kre/xzjSrc4awAzU0Hmhh4MSQyrszA=";
const STANDARD_SECRET: &str = "whsec_YWJjZA==";
/// 2024-05-01T08:00:00Z, which is [`now`].
const SECONDS: &str = "1714550400";

/// The test vector of the Standard Webhooks libraries.
mod published {
    pub(super) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    pub(super) const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    pub(super) const SECONDS: &str = "1614265330";
    pub(super) const BODY: &str = r#"{"test": 2432232314}"#;
    pub(super) const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
}

fn secrets(secrets: &[&str]) -> Vec<SecretString> {
    secrets.iter().map(|secret| SecretString::from(*secret)).collect()
}

pub(crate) fn verifier(hmac: &[&str], standard: &[&str], jwks: Option<Jwks>) -> Verifier {
    let (hmac_secrets, standard_webhooks_secrets) = (secrets(hmac), secrets(standard));
    Verifier::new(Config { jwks, hmac_secrets, standard_webhooks_secrets, ..Config::default() }).unwrap()
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, value.parse().unwrap());
    }
    headers
}

/// Verifies a request with all schemes on.
async fn post_at(
    now: Timestamp,
    pairs: &[(&'static str, &str)],
    body: &str,
) -> Result<Delivery, VerificationError> {
    let verifier = verifier(&["secret", "old"], &[STANDARD_SECRET, published::SECRET], Some(tenant_jwks()));
    verifier.verify(&headers(pairs), Bytes::copy_from_slice(body.as_bytes()), now).await
}

pub(crate) async fn post(pairs: &[(&'static str, &str)], body: &str) -> Result<Delivery, VerificationError> {
    post_at(now(), pairs, body).await
}

pub(crate) async fn check(pairs: &[(&'static str, &str)], body: &str, reason: &str) {
    let error = post(pairs, body).await.expect_err(reason);
    assert_eq!(error.reason(), reason, "{pairs:?}");
    assert!(!error.to_string().is_empty() && !error.is_unavailable());
}

#[tokio::test]
async fn an_hmac_is_accepted_in_every_common_encoding() {
    let url = BASE64.replace('+', "-").replace('/', "_");
    let upper = HEX.to_uppercase();
    for value in [HEX, &upper, BASE64, BASE64.trim_end_matches('='), &url, url.trim_end_matches('='), HEX_OLD]
    {
        for value in [value.to_owned(), format!("sha256={value}")] {
            let delivery = post(&[("x-kinde-signature", &value)], BODY).await.expect(&value);
            assert_eq!((delivery.event_id(), delivery.event_type()), (Some("event_1"), "user.created"));
            assert_eq!(delivery.scheme(), Scheme::Hmac);
            assert_eq!((delivery.payload().as_ref(), delivery.signed_at()), (BODY.as_bytes(), None));
        }
    }
    assert_eq!(sign::hmac_hex("secret", BODY.as_bytes()), HEX);
}

#[tokio::test]
async fn an_incomplete_hmac_is_malformed() {
    let long = format!("{HEX}00");
    let not_hex = HEX.replace('2', "g");
    for value in [
        "test",
        "",
        "sha256=",
        "v1,",
        &HEX[..62],
        &HEX[..63],
        &long,
        &not_hex,
        &BASE64[..42],
        &format!("v1,{BASE64}"),
        &format!("SHA256={HEX}"),
        &format!("sha256=sha256={HEX}"),
        &format!("sha256= {HEX}"),
        &format!("{HEX},{HEX}"),
        &format!("{HEX} {HEX}"),
    ] {
        check(&[("x-kinde-signature", value)], BODY, "malformed_signature").await;
    }
    let mut not_text = HeaderMap::new();
    not_text.insert("x-kinde-signature", http::HeaderValue::from_bytes(b"\xff\xfe").unwrap());
    let error = verifier(&["secret"], &[], None).verify(&not_text, BODY.into(), now()).await.unwrap_err();
    assert_eq!(error.reason(), "malformed_signature");
}

#[tokio::test]
async fn an_hmac_of_another_body_does_not_match() {
    let flipped = HEX.replacen('2', "3", 1);
    check(&[("x-kinde-signature", &flipped)], BODY, "signature_mismatch").await;
    check(&[("x-kinde-signature", HEX)], &format!("{BODY}\n"), "signature_mismatch").await;
    check(&[("x-kinde-signature", HEX)], "", "signature_mismatch").await;
    check(&[("x-kinde-signature", &sign::hmac_hex("", BODY.as_bytes()))], BODY, "signature_mismatch").await;
    check(&[("x-kinde-signature", &sign::hmac_hex("secre", BODY.as_bytes()))], BODY, "signature_mismatch")
        .await;
    check(&[("x-kinde-signature", &"0".repeat(64))], BODY, "signature_mismatch").await;
}

#[tokio::test]
async fn two_signatures_are_ambiguous_even_if_one_is_valid() {
    check(&[("x-kinde-signature", HEX), ("x-kinde-signature", HEX_OLD)], BODY, "malformed_signature").await;
    for twice in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        let right = standard();
        let value = right.iter().find(|(name, _)| *name == twice).unwrap().1;
        let pairs = [&right[..], &[(twice, value)]].concat();
        check(&pairs, BODY, "malformed_signature").await;
    }
}

#[tokio::test]
async fn a_body_without_an_event_id_has_none() {
    // printf '%s' "$BODY" | openssl dgst -sha256 -hmac secret
    let body = r#"{"type":"user.created","user":{"id":"test","email":"test@example.com"}}"#;
    let hmac = "f0873086e01bad58b927a38415df2ca046b7946c848a6e062c12f7099613461d";
    let delivery = post(&[("x-kinde-signature", hmac)], body).await.unwrap();
    assert_eq!((delivery.event_id(), delivery.event_type()), (None, "user.created"));
    assert!(!delivery.has_event_time());
}

#[tokio::test]
async fn a_verified_body_that_cannot_be_decoded_is_still_a_delivery() {
    // printf '%s' "not json" | openssl dgst -sha256 -hmac secret
    let hmac = "19e44cefdf4796e0dc616e940e49c2ecd3fc476343e40c7c95d39a75dc10e958";
    let delivery = post(&[("x-kinde-signature", hmac)], "not json").await.unwrap();
    assert_eq!((delivery.event_id(), delivery.event_type()), (None, ""));
    assert!(delivery.decode().is_err());

    for (body, event_type, has_id) in [
        (r#"{"type":"x","event_id":7}"#, "x", false),
        (r#"{"type":7,"event_id":"e"}"#, "", true),
        (r#"{"type":"x","event_id":""}"#, "x", false),
        (r#"{"type":"x","event_id":"a\u0000b"}"#, "x", false),
        (r#"{"type":"x\n","event_id":"e"}"#, "", true),
        (r#"{"type":"x","event_id":null}"#, "x", false),
        (r#"{"event_id":"e","type":"\u0078"}"#, "x", true),
        (r#"{"type":"x","type":"y","event_id":"e"}"#, "", false),
        ("[]", "", false),
        ("", "", false),
    ] {
        let hmac = sign::hmac_hex("secret", body.as_bytes());
        let delivery = post(&[("x-kinde-signature", &hmac)], body).await.expect(body);
        assert_eq!(delivery.event_type(), event_type, "{body}");
        assert_eq!(delivery.event_id(), has_id.then_some("e"), "{body}");
    }
}

#[tokio::test]
async fn a_delivery_reports_whether_its_event_has_a_time() {
    for (body, has_time) in [
        (r#"{"type":"x","timestamp":"2024-05-01T07:41:45Z"}"#, true),
        (r#"{"type":"x","event_timestamp":1714549305}"#, true),
        (r#"{"type":"x","timestamp":null}"#, false),
        (r#"{"type":"x","data":{"timestamp":"2024-05-01T07:41:45Z"}}"#, false),
        ("not json", false),
    ] {
        let hmac = sign::hmac_hex("secret", body.as_bytes());
        let delivery = post(&[("x-kinde-signature", &hmac)], body).await.expect(body);
        assert_eq!(delivery.has_event_time(), has_time, "{body}");
    }
}

fn standard() -> [(&'static str, &'static str); 3] {
    [("webhook-id", "msg_1"), ("webhook-timestamp", SECONDS), ("webhook-signature", STANDARD)]
}

async fn check_standard(changed: (&'static str, &str), reason: &str) {
    let pairs = standard().map(|(name, value)| if name == changed.0 { changed } else { (name, value) });
    check(&pairs, BODY, reason).await;
}

#[tokio::test]
async fn a_standard_webhook_is_accepted() {
    let delivery = post(&standard(), BODY).await.unwrap();
    assert_eq!((delivery.scheme(), delivery.signed_at()), (Scheme::StandardWebhooks, Some(now())));
    assert_eq!(delivery.event_id(), Some("event_1"));
    assert_eq!(
        sign::standard_webhooks(STANDARD_SECRET, "msg_1", now().as_second(), BODY.as_bytes()).as_deref(),
        Ok(STANDARD)
    );

    let several = format!("v1a,AAAA v1,{} {STANDARD} nonsense", "A".repeat(43) + "=");
    let pairs =
        standard().map(|(name, value)| (name, if name == "webhook-signature" { &*several } else { value }));
    post(&pairs, BODY).await.unwrap();
}

#[tokio::test]
async fn the_published_vector_of_standard_webhooks_verifies() {
    use published::{BODY, ID, SECONDS, SECRET, SIGNATURE};
    let at = Timestamp::from_second(SECONDS.parse().unwrap()).unwrap();
    let pairs = [("webhook-id", ID), ("webhook-timestamp", SECONDS), ("webhook-signature", SIGNATURE)];
    let delivery = post_at(at, &pairs, BODY).await.unwrap();
    assert_eq!((delivery.event_id(), delivery.event_type()), (Some(ID), ""));
    assert_eq!(
        sign::standard_webhooks(SECRET, ID, at.as_second(), BODY.as_bytes()).as_deref(),
        Ok(SIGNATURE)
    );
}

#[tokio::test]
async fn invalid_standard_webhooks_are_rejected() {
    let zero = format!("v1,{}=", "A".repeat(43));
    for signature in
        ["", "v1", "v1,", "v1,AAAA", &STANDARD[3..], &STANDARD[..46], &STANDARD.replace("v1,", "v2,")]
    {
        check_standard(("webhook-signature", signature), "malformed_signature").await;
    }
    check_standard(("webhook-signature", &zero), "signature_mismatch").await;
    check_standard(("webhook-id", "msg_2"), "signature_mismatch").await;
    check_standard(("webhook-id", ""), "malformed_signature").await;
    check_standard(("webhook-id", &"x".repeat(257)), "malformed_signature").await;
    check_standard(("webhook-timestamp", "1714550401"), "signature_mismatch").await;
    for seconds in
        ["", "+1714550400", "-1", "1714550400.0", "1714550400 ", "0x1", "1e9", "99999999999999999999"]
    {
        check_standard(("webhook-timestamp", seconds), "malformed_signature").await;
    }
    check(&standard()[1..], BODY, "malformed_signature").await;
    check(&[standard()[0], standard()[2]], BODY, "malformed_signature").await;
    check(&standard()[..2], BODY, "missing_signature").await;
    check(&standard(), "{}", "signature_mismatch").await;
}

#[tokio::test]
async fn the_tolerance_applies_in_both_directions() {
    for (seconds, expect) in [(-301, false), (-300, true), (0, true), (300, true), (301, false)] {
        let at = now() + SignedDuration::from_secs(seconds);
        let found = post_at(at, &standard(), BODY).await.map_err(|error| error.reason());
        assert_eq!(found.is_ok(), expect, "{seconds}");
        assert!(expect || found == Err("stale_timestamp"));
    }
}

#[tokio::test]
async fn the_error_for_an_unsigned_request_explains_how_to_sign() {
    check(&[], BODY, "missing_signature").await;
    check(&[("webhook-id", "msg_1")], BODY, "missing_signature").await;
    check(&[("content-type", "application/json")], "", "missing_signature").await;
    let error = post(&[], BODY).await.unwrap_err();
    assert!(error.to_string().contains("x-kinde-signature: sha256="));
}

pub(crate) fn jwt(claims: &Value) -> String {
    tenant_key().sign(&header(), claims)
}

#[tokio::test]
async fn a_secret_of_standard_webhooks_is_base64_with_or_without_its_prefix() {
    // `new Webhook(secret).sign("msg_1", new Date(1714550400000), BODY)` of npm `standardwebhooks` 1.0.0.
    for (secret, signature) in [
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "v1,o+QWGUszOFeUb7jxQ4Y6ccozaTMx7uDyu3t9HqGtzR0="),
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "v1,o+QWGUszOFeUb7jxQ4Y6ccozaTMx7uDyu3t9HqGtzR0="),
        ("secretss", "v1,cP60uLs4iiMN2wKprb7NL3DOF7xx8IEKTu1DH5whRvg="),
        ("YWJjZA", "v1,OiyVbVa/HEaB9kre/xzjSrc4awAzU0Hmhh4MSQyrszA="),
        ("YWJj/+8=", "v1,sk0btEOlghLm6KN0tm44LZdphFNi2Vb1gF8E2xirnDQ="),
    ] {
        let pairs =
            [("webhook-id", "msg_1"), ("webhook-timestamp", SECONDS), ("webhook-signature", signature)];
        let verifier = verifier(&[], &[secret], None);
        verifier.verify(&headers(&pairs), BODY.into(), now()).await.expect(secret);
        assert_eq!(
            sign::standard_webhooks(secret, "msg_1", 1_714_550_400, BODY.as_bytes()).as_deref(),
            Ok(signature)
        );
    }
    assert_eq!(sign::standard_webhooks("YWJj_-8=", "msg_1", 0, b""), Err(sign::InvalidSecret));
}

#[tokio::test]
async fn a_signature_of_another_scheme_does_not_count() {
    let token = jwt(&access_claims());
    let hmac = sign::hmac_hex("secret", token.as_bytes());
    check(&[("x-kinde-signature", &hmac)], &token, "token_not_webhook").await;
    check(&[("x-kinde-signature", HEX), ("content-type", "application/jwt")], BODY, "malformed_token").await;
    let mut pairs = standard().to_vec();
    pairs.push(("x-kinde-signature", "test"));
    check(&pairs, BODY, "malformed_signature").await;
    let mut pairs = vec![("x-kinde-signature", HEX)];
    pairs.extend(standard());
    assert_eq!(post(&pairs, BODY).await.unwrap().scheme(), Scheme::Hmac);
}

#[tokio::test]
async fn a_scheme_that_is_not_configured_is_rejected() {
    let rejection = async |verifier: Verifier, pairs: &[(&'static str, &str)], body: &str| {
        verifier.verify(&headers(pairs), Bytes::copy_from_slice(body.as_bytes()), now()).await.unwrap_err()
    };
    let token = jwt(&webhook_claims());
    let hmac_only = verifier(&["secret"], &[], None);
    assert_eq!(
        rejection(hmac_only.clone(), &[], &token).await,
        VerificationError::SchemeNotConfigured { scheme: Scheme::KindeJwt }
    );
    let signed = sign::hmac_hex("secret", token.as_bytes());
    let with_hmac = rejection(hmac_only, &[("x-kinde-signature", &signed)], &token).await;
    assert_eq!(with_hmac.reason(), "scheme_not_configured");
    let jwt_only = verifier(&[], &[], Some(tenant_jwks()));
    let closed = rejection(jwt_only.clone(), &[("x-kinde-signature", HEX)], BODY).await;
    assert_eq!(closed, VerificationError::SchemeNotConfigured { scheme: Scheme::Hmac });
    let closed = rejection(jwt_only.clone(), &standard(), BODY).await;
    assert_eq!(closed, VerificationError::SchemeNotConfigured { scheme: Scheme::StandardWebhooks });
    let closed = rejection(verifier(&["secret"], &[], None), &standard(), BODY).await;
    assert_eq!(closed.reason(), "scheme_not_configured", "HMAC alone");
    let closed =
        rejection(verifier(&[], &[STANDARD_SECRET], None), &[("x-kinde-signature", HEX)], BODY).await;
    assert_eq!(closed.reason(), "scheme_not_configured", "Standard Webhooks alone");
    assert_eq!(Scheme::ALL.map(|scheme| jwt_only.is_enabled(scheme)), [true, false, false]);
}

#[test]
fn unusable_secrets_are_rejected() {
    let (hmac, standard) = (Scheme::Hmac, Scheme::StandardWebhooks);
    for (hmac_secrets, standard_secrets, error) in [
        (&[""][..], &[][..], ConfigError::EmptySecret { scheme: hmac, number: 1 }),
        (&["a", ""], &[], ConfigError::EmptySecret { scheme: hmac, number: 2 }),
        (&[], &["YWJj", "whsec_"], ConfigError::EmptySecret { scheme: standard, number: 2 }),
        (&[], &["whsec_not base64"], ConfigError::InvalidBase64 { number: 1 }),
        (&[], &["not base64"], ConfigError::InvalidBase64 { number: 1 }),
        (&["whsec_YWJj"], &["whsec_YWJj"], ConfigError::SharedSecret { number: 1 }),
        (&["x", "abc"], &["ZGVm", "YWJj"], ConfigError::SharedSecret { number: 2 }),
    ] {
        let found = Verifier::new(Config {
            hmac_secrets: secrets(hmac_secrets),
            standard_webhooks_secrets: secrets(standard_secrets),
            ..Config::default()
        });
        assert_eq!(found.unwrap_err(), error);
    }
    assert!(!format!("{:?}", verifier(&["hush"], &[], None)).contains("hush"));
}

#[tokio::test]
async fn errors_of_genuine_senders_are_distinguished_from_requests_without_a_signature() {
    let error = async |pairs: &[(&'static str, &str)], body: &str| post(pairs, body).await.unwrap_err();
    let forged = foreign_key().sign(&header(), &webhook_claims());
    for genuine in [
        error(&[("x-kinde-signature", &sign::hmac_hex("newer", BODY.as_bytes()))], BODY).await,
        error(&[], &forged).await,
        post_at(now() + SignedDuration::from_hours(1), &standard(), BODY).await.unwrap_err(),
    ] {
        assert!(genuine.can_come_from_genuine_sender(), "{genuine}");
    }
    for anonymous in [
        error(&[], BODY).await,
        error(&[("x-kinde-signature", "x")], BODY).await,
        error(&[("content-type", "application/jwt")], "eyJ").await,
        error(&[], &jwt(&access_claims())).await,
    ] {
        assert!(!anonymous.can_come_from_genuine_sender(), "{anonymous}");
    }
}

#[test]
fn a_scheme_is_parsed_from_its_name() {
    for scheme in Scheme::ALL {
        assert_eq!(scheme.as_str().parse(), Ok(scheme));
    }
    assert!("HMAC".parse::<Scheme>().is_err());
}
