//! Every token that is refused, with its reason; and that no token makes the server call out.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use http::{StatusCode, header};
use kinde_emulator::{Alg, Emulator, MintOptions, NewUser, Signer, TokenSpec};
use kinsync_engine::store::UserFilter;
use kinsync_tower::login::Config;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::login::{Process, embedded, kinde};

const AUDIENCE: &str = "https://api.example.com";

fn spec(claims: &Value) -> TokenSpec {
    let claims = claims.as_object().unwrap().clone();
    TokenSpec { audience: Some(vec![AUDIENCE.to_owned()]), claims, ..TokenSpec::default() }
}

fn signed(sign: MintOptions) -> TokenSpec {
    TokenSpec { sign, ..spec(&json!({})) }
}

fn with_alg(alg: Alg) -> TokenSpec {
    signed(MintOptions { alg, ..MintOptions::default() })
}

fn with_kid(kid: &str) -> TokenSpec {
    signed(MintOptions { kid: Some(kid.to_owned()), ..MintOptions::default() })
}

/// A token of this header and these claims, under a signature of something else.
fn made_up(header: &str, claims: &str) -> String {
    format!("{}.{}.{}", BASE64.encode(header), BASE64.encode(claims), BASE64.encode([7; 256]))
}

/// A reason, and a token that is refused for it.
fn refused(kinde: &Emulator, user: &str, canary: &str) -> Vec<(&'static str, String)> {
    let token = |spec: TokenSpec| kinde.access_token(user, &spec).unwrap();
    let now = jiff::Timestamp::now().as_second();
    let foreign = MintOptions { signer: Signer::Foreign, ..MintOptions::default() };
    let webhook = json!({ "type": "user.created", "event_id": "e", "data": {}, "timestamp": "x" });
    let (kid, issuer) = (kinde.active_kid(), kinde.issuer());
    let header = format!(r#"{{"alg":"RS256","kid":"{kid}"}}"#);
    let claims = format!(r#"{{"iss":"{issuer}","sub":"kp_x","exp":9999999999}}"#);
    let pointing = format!(r#"{{"alg":"RS256","kid":"{kid}","jku":"{canary}/jku","x5u":"{canary}/x5u"}}"#);
    let critical = format!(r#"{{"alg":"RS256","kid":"{kid}","crit":["b64"],"b64":true}}"#);
    let twice = format!(r#"{{"iss":"{issuer}","sub":"kp_x","sub":"kp_y","exp":9999999999}}"#);
    vec![
        ("malformed_token", "abc".to_owned()),
        ("malformed_token", "a.b.c".to_owned()),
        ("too_long", "a".repeat(64 * 1024)),
        ("wrong_algorithm", token(with_alg(Alg::None))),
        ("wrong_algorithm", token(with_alg(Alg::HS256))),
        ("missing_key_id", token(with_kid(""))),
        ("unknown_key", token(with_kid("another"))),
        ("signature_mismatch", token(signed(foreign))),
        ("signature_mismatch", made_up(&header, &claims)),
        ("unsupported_header", made_up(&critical, &claims)),
        ("duplicate_member", made_up(&header, &twice)),
        ("unknown_issuer", token(spec(&json!({ "iss": canary })))),
        ("unknown_issuer", token(spec(&json!({ "iss": format!("{issuer}/") })))),
        ("missing_claim", token(spec(&json!({ "iss": null })))),
        ("missing_claim", token(spec(&json!({ "sub": null })))),
        ("missing_claim", token(spec(&json!({ "exp": null })))),
        ("malformed_claim", token(spec(&json!({ "sub": 7 })))),
        ("malformed_claim", token(spec(&json!({ "sub": "" })))),
        ("malformed_claim", token(spec(&json!({ "exp": "tomorrow" })))),
        ("expired", token(TokenSpec { expires_in: Some(-120), ..spec(&json!({})) })),
        ("not_yet_valid", token(spec(&json!({ "nbf": now + 3600 })))),
        ("wrong_audience", token(spec(&json!({ "aud": "https://other.example.com" })))),
        ("wrong_audience", token(spec(&json!({ "aud": [] })))),
        ("wrong_audience", token(spec(&json!({ "aud": null })))),
        ("machine_token", token(spec(&json!({ "gty": "client_credentials" })))),
        ("machine_token", kinde.m2m_token(&spec(&json!({})))),
        ("id_token", kinde.id_token(user, &spec(&json!({}))).unwrap()),
        ("webhook", kinde.mint(webhook.as_object().unwrap(), &MintOptions::default())),
        // Wherever a token says its keys are, they are the issuer's.
        ("signature_mismatch", made_up(&pointing, &claims)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_a_problem_document_with_its_reason_and_nobody_is_called() {
    let canary = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = format!("http://{}", canary.local_addr().unwrap());
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let audience = Some(AUDIENCE.to_owned());
    let process = Process::with_audience(&kinde, &store, Config::default(), audience);
    let ada = kinde.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap().id;
    for (reason, token) in refused(&kinde, &ada, &address) {
        let answer = process.get(&token).await;
        assert_eq!((answer.status, &answer.body["reason"]), (StatusCode::UNAUTHORIZED, &Value::from(reason)));
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/problem+json");
        let challenge = answer.headers[header::WWW_AUTHENTICATE].to_str().unwrap();
        assert!(challenge.contains(r#"error="invalid_token""#), "{reason}: {challenge}");
    }
    assert!(store.users(&UserFilter { limit: 9, ..UserFilter::default() }).await.unwrap().is_empty());
    let good = kinde.access_token(&ada, &spec(&json!({}))).unwrap();
    assert_eq!(process.get(&good).await.status, StatusCode::OK, "only what is wrong is refused");
    let called = tokio::time::timeout(std::time::Duration::ZERO, canary.accept()).await;
    assert!(called.is_err(), "a token made the server call out");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_keys_of_an_issuer_that_is_away_are_a_503_and_known_ones_stay_good() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let ada = kinde.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap().id;
    let token = kinde.access_token(&ada, &TokenSpec::default()).unwrap();
    let knowing = Process::start(&kinde, &store, Config::default());
    assert_eq!(knowing.get(&token).await.status, StatusCode::OK);
    kinde.shutdown().await;
    assert_eq!(knowing.get(&token).await.status, StatusCode::OK);
    let unknowing = Process::start(&kinde, &store, Config::default());
    let answer = unknowing.get(&token).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
    assert!(answer.body["requestId"].as_str().unwrap().starts_with("req_"));
}
