//! Every access token is rejected unless the tenant's key signed it and its claims are those of a user's access token.
//!
//! The first line of the input is the JOSE header, the second the claims, the rest the signature. The target signs an
//! input that begins with `!`, so that the code after the verification runs too. An input of one line is the token itself.

use std::sync::OnceLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use kinde::Jwks;
use kinde::bearer::{Config, Verifier};

const ISSUER: &str = "https://acme.kinde.com";
const NOW: i64 = 1_700_000_000;

struct Tenant {
    key: KeyPair,
    verifier: Verifier,
}

fn tenant() -> &'static Tenant {
    static TENANT: OnceLock<Tenant> = OnceLock::new();
    TENANT.get_or_init(|| {
        let key = KeyPair::generate(KeySize::Rsa2048).expect("a key");
        // PKCS#1: the modulus precedes the exponent 65537, in DER `02 03 01 00 01`.
        let der = key.public_key().as_ref();
        let modulus = &der[der.len() - 5 - key.public_modulus_len()..der.len() - 5];
        let keys = format!(
            r#"{{"keys":[{{"kty":"RSA","use":"sig","alg":"RS256","kid":"k","n":"{}","e":"AQAB"}}]}}"#,
            URL_SAFE_NO_PAD.encode(modulus)
        );
        let domain = kinde::parse_domain(ISSUER).expect("a domain");
        let jwks = Jwks::from_document(&domain, keys.as_bytes()).expect("a key set");
        let issuers = vec![(jwks.issuer().to_owned(), jwks)];
        Tenant { key, verifier: Verifier::new(Config { issuers, ..Config::default() }) }
    })
}

fn token(signed: bool, input: &[u8]) -> Option<String> {
    let mut lines = input.splitn(3, |byte| *byte == b'\n');
    let header = lines.next().unwrap_or_default();
    let Some(claims) = lines.next() else { return String::from_utf8(input.to_vec()).ok() };
    let unsigned = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let mut signature = lines.next().unwrap_or_default().to_vec();
    if signed {
        let key = &tenant().key;
        signature = vec![0; key.public_modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), unsigned.as_bytes(), &mut signature)
            .expect("a signature");
    }
    Some(format!("{unsigned}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

pub fn run(input: &[u8]) {
    let (signed, input) = input.strip_prefix(b"!").map_or((false, input), |input| (true, input));
    let Some(token) = token(signed, input) else { return };
    let now = Timestamp::from_second(NOW).expect("an instant");
    let verified = tenant().verifier.verify(&token, now).now_or_never().expect("a fixed key set never waits");
    match verified {
        Ok(token) => {
            assert!(signed, "the token has no valid signature");
            let subject = &token.subject;
            assert!(!subject.is_empty() && subject.len() <= 256 && subject.trim() == subject, "{subject:?}");
            let grant = token.claims.get("gty").map(ToString::to_string).unwrap_or_default();
            assert!(!grant.contains("\"client_credentials\""), "a machine token was accepted");
        }
        Err(refusal) => assert!(!refusal.reason().is_empty() && !refusal.is_unavailable()),
    }
}
