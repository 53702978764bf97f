//! The verification of new and of cached tokens, signed with a real key.

use std::time::Instant;

use anyhow::anyhow;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use kinde::Jwks;
use kinde::bearer::{CachingConfig, CachingVerifier, Config, Verifier};
use serde_json::{Value, json};

use crate::median;
use crate::tenant::claims;

const TOKENS: usize = 1_000;
const KID: &str = "real";

/// Measures the microseconds of a call for each round.
pub async fn measure(rounds: usize) -> anyhow::Result<Value> {
    let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| anyhow!("cannot generate an RSA key"))?;
    let now = Timestamp::now();
    let tokens =
        (0..TOKENS).map(|number| sign(&pair, &claims(number, now))).collect::<Result<Vec<_>, _>>()?;
    let issuer = claims(0, now)["iss"].as_str().unwrap_or_default().to_owned();
    let jwks = Jwks::from_document(&kinde::parse_domain(&issuer)?, document(&pair).to_string().as_bytes())?;
    let verifier = Verifier::new(Config { issuers: vec![(issuer, jwks)], ..Config::default() });
    let (mut new, mut known) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let cached = CachingVerifier::new(verifier.clone(), &CachingConfig::default());
        new.push(pass(&cached, &tokens, now).await?);
        known.push(pass(&cached, &tokens, now).await?);
        anyhow::ensure!(cached.hits() == TOKENS as u64, "the second pass did not use the cache");
    }
    Ok(json!({ "new": new, "known": known }))
}

async fn pass(cached: &CachingVerifier, tokens: &[String], now: Timestamp) -> anyhow::Result<f64> {
    let mut times = Vec::with_capacity(tokens.len());
    for token in tokens {
        let start = Instant::now();
        cached.verify(token, now).await?;
        times.push(u64::try_from(start.elapsed().as_nanos())?);
    }
    Ok(median(times) / 1000.0)
}

fn document(pair: &KeyPair) -> Value {
    let public = pair.public_key();
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let n = text(public.modulus().big_endian_without_leading_zero());
    let e = text(public.exponent().big_endian_without_leading_zero());
    json!({ "keys": [{ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": KID, "n": n, "e": e }] })
}

fn sign(pair: &KeyPair, claims: &Value) -> anyhow::Result<String> {
    let header = format!(r#"{{"alg":"RS256","kid":"{KID}","typ":"JWT"}}"#);
    let message =
        format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature)
        .map_err(|_| anyhow!("signing failed"))?;
    Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
