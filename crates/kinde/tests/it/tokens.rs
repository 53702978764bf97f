//! Attacks on tokens: both verifiers reject them for the same reason.

use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use kinde::{bearer, webhook};
use serde_json::{Value, json};

use crate::support::{
    ISSUER, KID, TestKey, access_claims, foreign_key, header, now, tenant_jwks, tenant_key, webhook_claims,
    with,
};

async fn verify_webhook(token: &str) -> Result<webhook::Delivery, webhook::VerificationError> {
    let config = webhook::Config { jwks: Some(tenant_jwks()), ..webhook::Config::default() };
    let verifier = webhook::Verifier::new(config).unwrap();
    let mut headers = http::HeaderMap::new();
    headers.insert("content-type", "application/jwt".parse().unwrap());
    verifier.verify(&headers, token.to_owned().into(), now()).await
}

async fn verify_bearer(token: &str) -> Result<bearer::AccessToken, bearer::VerificationError> {
    let issuers = vec![(ISSUER.to_owned(), tenant_jwks())];
    bearer::Verifier::new(bearer::Config { issuers, ..bearer::Config::default() }).verify(token, now()).await
}

/// Applies the attack to a webhook and to an access token and expects `reason` for both.
async fn check(name: &str, attack: impl Fn(&Value) -> String, reason: &str) {
    let error = verify_webhook(&attack(&webhook_claims())).await.expect_err(name);
    assert_eq!(error.reason(), reason, "{name} as a webhook");
    assert!(!error.to_string().is_empty() && !error.is_unavailable());
    let error = verify_bearer(&attack(&access_claims())).await.expect_err(name);
    assert_eq!(error.reason(), reason, "{name} as a bearer token");
    assert!(!error.to_string().is_empty() && !error.is_unavailable());
}

fn signed(claims: &Value) -> String {
    tenant_key().sign(&header(), claims)
}

fn with_header(changes: &Value) -> impl Fn(&Value) -> String {
    let header = with(header(), changes);
    move |claims| tenant_key().sign(&header, claims)
}

fn parts(token: &str) -> [String; 3] {
    token.split('.').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap()
}

#[tokio::test]
async fn a_valid_token_is_accepted_by_its_verifier() {
    let delivery = verify_webhook(&signed(&webhook_claims())).await.unwrap();
    assert_eq!(delivery.event_id(), Some("event_018f331a3178f7fef284b95fe6770384"));
    let token = verify_bearer(&signed(&access_claims())).await.unwrap();
    assert_eq!(token.subject, "kp_1");
}

#[tokio::test]
async fn other_algorithms_are_rejected() {
    for alg in
        ["none", "None", "nOnE", "", "HS256", "PS256", "ES256", "RS512", "RS384", "rs256", "RS256 ", "EdDSA"]
    {
        check(alg, with_header(&json!({ "alg": alg })), "wrong_algorithm").await;
    }
    for alg in [json!(["RS256"]), json!(1), json!({"RS256": 1}), json!(null)] {
        check("a type of its own", with_header(&json!({ "alg": alg })), "wrong_algorithm").await;
    }
    let unsigned = |claims: &Value| {
        let [_, payload, _] = parts(&signed(claims));
        format!("{}.{payload}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"4c:fa:9e:d6"}"#))
    };
    check("alg none without a signature", unsigned, "wrong_algorithm").await;
}

#[tokio::test]
async fn the_public_key_is_not_an_hmac_secret() {
    use aws_lc_rs::hmac;
    let forge = |claims: &Value| {
        let [_, payload, _] = parts(&signed(claims));
        let input = format!("{}.{payload}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","kid":"4c:fa:9e:d6"}"#));
        let key = hmac::Key::new(hmac::HMAC_SHA256, &tenant_key().public_der());
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, input.as_bytes())))
    };
    check("HS256 with the public key", forge, "wrong_algorithm").await;
}

#[tokio::test]
async fn a_signature_must_be_complete_and_of_this_token() {
    let change = |change: fn(&mut Vec<u8>)| {
        move |claims: &Value| {
            let [header, payload, signature] = parts(&signed(claims));
            let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
            change(&mut signature);
            format!("{header}.{payload}.{}", URL_SAFE_NO_PAD.encode(signature))
        }
    };
    check("one bit flipped", change(|bytes| bytes[100] ^= 1), "signature_mismatch").await;
    check("one byte short", change(|bytes| bytes.truncate(255)), "signature_mismatch").await;
    check("one byte long", change(|bytes| bytes.push(0)), "signature_mismatch").await;
    check("one zero before", change(|bytes| bytes.insert(0, 0)), "signature_mismatch").await;
    check("all zero", change(|bytes| bytes.fill(0)), "signature_mismatch").await;
    check("all ones", change(|bytes| bytes.fill(0xff)), "signature_mismatch").await;
    check("empty", change(Vec::clear), "malformed_token").await;
    let swapped = |claims: &Value| {
        let [header, _, signature] = parts(&signed(&json!({"a": 1})));
        let [_, payload, _] = parts(&signed(claims));
        format!("{header}.{payload}.{signature}")
    };
    check("of another payload", swapped, "signature_mismatch").await;
    check("of a foreign key", |claims| foreign_key().sign(&header(), claims), "signature_mismatch").await;
}

#[tokio::test]
async fn the_form_is_strict() {
    let wrap = |prefix: &'static str, suffix: &'static str| {
        move |claims: &Value| format!("{prefix}{}{suffix}", signed(claims))
    };
    for (name, prefix, suffix) in [
        ("a fourth part", "", ".e30"),
        ("a fourth part that is empty", "", "."),
        ("a part before", "e30.", ""),
        ("padding", "", "="),
        ("Bearer before", "Bearer ", ""),
        ("a NUL after", "", "\0"),
    ] {
        check(name, wrap(prefix, suffix), "malformed_token").await;
    }
    let dots = |_: &Value| "eyJ".to_owned() + &".".repeat(8000);
    check("thousands of dots", dots, "malformed_token").await;
    check("no dot", |_| "eyJhbGciOiJSUzI1NiJ9".to_owned(), "malformed_token").await;
    check("nothing", |_| String::new(), "malformed_token").await;
    let inside = |claims: &Value| signed(claims).replacen('.', " .", 1);
    check("a space inside", inside, "malformed_token").await;
    let standard = |claims: &Value| {
        let [_, payload, signature] = parts(&signed(claims));
        format!("{}.{payload}.{signature}", URL_SAFE.encode(r#"{"alg":"RS256","kid":"4c:fa:9e"}"#))
    };
    check("a padded header", standard, "malformed_token").await;
    let trailing_bits = |claims: &Value| {
        let mut token = signed(claims);
        let last = token.pop().unwrap();
        // 256 bytes leave four unused bits in the last character: these must be zero.
        token.push(char::from(u8::try_from(last).unwrap() + 1));
        token
    };
    check("unused bits set", trailing_bits, "malformed_token").await;
    check("a header that is no object", |claims| raw(b"[]", claims), "malformed_token").await;
    check("a header that is no JSON", |claims| raw(b"{", claims), "malformed_token").await;
    check("a header that is no UTF-8", |claims| raw(b"{\"alg\":\"\xff\"}", claims), "malformed_token").await;
    let no_object = tenant_key().sign_raw(&bytes(&header()), b"[]");
    assert_eq!(verify_bearer(&no_object).await.unwrap_err().reason(), "malformed_token");
    let token = signed(&access_claims());
    for spaced in [format!("{token}\n"), format!(" {token}"), format!("\"{token}\"")] {
        assert_eq!(verify_bearer(&spaced).await.unwrap_err().reason(), "malformed_token", "{spaced}");
    }
}

fn raw(header: &[u8], claims: &Value) -> String {
    tenant_key().sign_raw(header, &bytes(claims))
}

fn bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

#[tokio::test]
async fn duplicate_members_are_rejected() {
    for header in [
        br#"{"alg":"RS256","alg":"RS256","kid":"4c:fa:9e:d6"}"#.as_slice(),
        br#"{"alg":"none","kid":"4c:fa:9e:d6","\u0061lg":"RS256"}"#,
        br#"{"alg":"RS256","kid":"x","kid":"4c:fa:9e:d6"}"#,
    ] {
        check("in the header", |claims| raw(header, claims), "duplicate_member").await;
    }
    for twice in [r#""sub":"kp_2","sub":"kp_2","#, r#""x":{"a":1,"a":2},"#] {
        let payload = format!("{{{twice}{}", &access_claims().to_string()[1..]);
        let token = tenant_key().sign_raw(&bytes(&header()), payload.as_bytes());
        assert_eq!(verify_bearer(&token).await.unwrap_err().reason(), "duplicate_member", "{payload}");
    }
}

#[tokio::test]
async fn headers_that_change_the_meaning_of_the_signature_are_rejected() {
    for member in ["crit", "b64", "zip"] {
        for value in [json!(["exp"]), json!([]), json!(true), json!("DEF")] {
            let reason = if member == "crit" { "critical_header" } else { "unsupported_header" };
            check(member, with_header(&json!({ member: value })), reason).await;
        }
    }
    let null = |claims: &Value| raw(br#"{"alg":"RS256","kid":"4c:fa:9e:d6","crit":null}"#, claims);
    check("crit null", null, "critical_header").await;
}

#[tokio::test]
async fn the_key_must_be_named_and_known() {
    check("no kid", with_header(&json!({"kid": null})), "missing_key_id").await;
    for kid in [json!(1), json!(""), json!([KID]), json!({"a": KID})] {
        check("kid of another type", with_header(&json!({ "kid": kid })), "missing_key_id").await;
    }
    for kid in ["x", "4C:FA:9E:D6", "4c:fa:9e:d6 ", "../../dev/null", "' OR 1=1 --", "$where"] {
        check(kid, with_header(&json!({ "kid": kid })), "unknown_key").await;
    }
}

#[tokio::test]
async fn a_key_in_the_header_is_neither_used_nor_fetched() {
    let canary = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/jwks.json", canary.local_addr().unwrap());
    let own = TestKey::generate(aws_lc_rs::rsa::KeySize::Rsa2048);
    for header in [
        with(header(), &json!({"jwk": own.jwk(KID)})),
        with(header(), &json!({"jku": address})),
        with(header(), &json!({"x5u": address, "x5c": ["MIIB"]})),
    ] {
        check("a key of its own", |claims| own.sign(&header, claims), "signature_mismatch").await;
        let unknown = with(header.clone(), &json!({"kid": "own"}));
        check("a key of its own, by name", |claims| own.sign(&unknown, claims), "unknown_key").await;
        // The header is ignored, so an otherwise valid token is accepted.
        verify_webhook(&tenant_key().sign(&header, &webhook_claims())).await.unwrap();
    }
    let connection = tokio::time::timeout(std::time::Duration::from_millis(50), canary.accept()).await;
    assert!(connection.is_err(), "the address in the token was requested");
}
