//! Prints the cost of one verification, cached and uncached: `cargo run --release -p kinde --example bearer_bench`.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "an example that prints what it measured")]

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use kinde::Jwks;
use kinde::bearer::{CachingConfig, CachingVerifier, Config, Verifier};
use serde_json::{Value, json};
use tokio::time::Instant;

const ISSUER: &str = "https://acme.kinde.com";
const TOKENS: usize = 2_000;
const ROUNDS: usize = 100;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let document = serde_json::to_vec(&json!({"keys": [jwk(&pair)]})).unwrap();
    let jwks = Jwks::from_document(&kinde::parse_domain(ISSUER).unwrap(), &document).unwrap();
    let verifier = Verifier::new(Config { issuers: vec![(ISSUER.to_owned(), jwks)], ..Config::default() });
    let cached = CachingVerifier::new(verifier.clone(), &CachingConfig::default());
    #[expect(clippy::disallowed_methods, reason = "the tokens are valid at the present time")]
    let now = Timestamp::now();
    let tokens: Vec<String> = (0..TOKENS).map(|number| sign(&pair, &claims(number, now))).collect();
    println!("{TOKENS} tokens of {} bytes", tokens[0].len());

    let started = Instant::now();
    for token in &tokens {
        verifier.verify(token, now).await.unwrap();
    }
    report("uncached", started, TOKENS);

    for token in &tokens {
        cached.verify(token, now).await.unwrap();
    }
    let started = Instant::now();
    for token in std::iter::repeat_n(&tokens, ROUNDS).flatten() {
        cached.verify(token, now).await.unwrap();
    }
    report("cached", started, TOKENS * ROUNDS);
    assert_eq!(cached.misses(), TOKENS as u64);
}

fn report(what: &str, started: Instant, count: usize) {
    let nanos = started.elapsed().as_nanos() / count as u128;
    println!("{what:>12}: {nanos} ns per token");
}

/// The claims in Kinde's documentation.
fn claims(number: usize, now: Timestamp) -> Value {
    json!({
        "aud": [], "azp": "dee7f3c57b3c47e8b96edde2c7ecab7d", "exp": now.as_second() + 86_400,
        "iat": now.as_second(), "iss": ISSUER, "jti": format!("fbb6bc62-{number}"), "org_code": "org_1",
        "permissions": ["create:todos", "read:todos"], "scp": ["openid", "profile", "email", "offline"],
        "sub": format!("kp_c3143a4b50ad43c88e541d9077681782_{number}"),
    })
}

fn jwk(pair: &KeyPair) -> Value {
    // PKCS#1: the modulus precedes the exponent 65537, in DER `02 03 01 00 01`.
    let der = pair.public_key().as_ref();
    let end = der.len() - 5;
    let modulus = &der[end - pair.public_modulus_len()..end];
    json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "k", "n": URL_SAFE_NO_PAD.encode(modulus), "e": "AQAB"})
}

fn sign(pair: &KeyPair, claims: &Value) -> String {
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(serde_json::to_vec(part).unwrap());
    let input = format!("{}.{}", encode(&json!({"alg": "RS256", "kid": "k", "typ": "JWT"})), encode(claims));
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input.as_bytes(), &mut signature).unwrap();
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
}
