//! Every request is rejected or becomes a delivery, and no request without a valid signature is accepted.
//!
//! The first line of the input is the value of the signature header, the second chooses the scheme, the rest is the
//! body. The target signs an input that begins with `!`, so that the code after the verification runs too.

use std::sync::OnceLock;

use axum::body::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue};
use jiff::Timestamp;
use kinde::webhook::{Config, Verifier};
use kinde::{Jwks, sign};

const SECRET: &str = "a secret that no input guesses: 7d1c2f2a9b";
const STANDARD_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const KEYS: &[u8] = include_bytes!("jwks.json");
const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn verifier() -> &'static Verifier {
    static VERIFIER: OnceLock<Verifier> = OnceLock::new();
    VERIFIER.get_or_init(|| {
        let domain = kinde::parse_domain("https://acme.kinde.com").expect("a domain");
        let jwks = Jwks::from_document(&domain, KEYS).expect("a key set");
        let config = Config {
            jwks: Some(jwks),
            hmac_secrets: vec![SECRET.into()],
            standard_webhooks_secrets: vec![STANDARD_SECRET.into()],
            ..Config::default()
        };
        Verifier::new(config).expect("valid secrets")
    })
}

pub fn run(input: &[u8]) {
    let (signed, input) = input.strip_prefix(b"!").map_or((false, input), |input| (true, input));
    let mut lines = input.splitn(3, |byte| *byte == b'\n');
    let signature = lines.next().unwrap_or_default().to_vec();
    let scheme = lines.next().unwrap_or_default();
    let body = lines.next().unwrap_or_default();
    let standard = scheme.first() == Some(&b's');
    let signature = match (signed, standard) {
        (false, _) => signature,
        (true, true) => {
            sign::standard_webhooks(STANDARD_SECRET, "msg_1", 0, body).expect("base64").into_bytes()
        }
        (true, false) => sign::hmac_hex(SECRET, body).into_bytes(),
    };
    let mut headers = HeaderMap::new();
    let name = if standard { "webhook-signature" } else { "x-kinde-signature" };
    let Ok(signature) = HeaderValue::from_bytes(&signature) else { return };
    headers.insert(name, signature);
    headers.insert("webhook-id", HeaderValue::from_static("msg_1"));
    headers.insert("webhook-timestamp", HeaderValue::from_static("0"));
    if scheme.last() == Some(&b'j') {
        headers.insert("content-type", HeaderValue::from_static("application/jwt"));
    }
    let verify = verifier().verify(&headers, Bytes::copy_from_slice(body), NOW);
    let verified = verify.now_or_never().expect("a fixed key set never waits");
    match verified {
        Ok(delivery) => {
            assert!(signed, "the request has no valid signature");
            assert!(delivery.event_id().is_none_or(|id| !id.is_empty() && id.len() <= 256));
            let _ = delivery.decode();
        }
        Err(refusal) => assert!(!refusal.reason().is_empty() && !refusal.is_unavailable()),
    }
}
