//! The key of a tenant, tokens signed in advance, and the endpoint of the public key.
//!
//! An RSA signature takes about half a millisecond, and a repeated delivery is a duplicate, which costs less than
//! a new one. So distinct tokens are signed before the measurement, on all cores, and kept with their key for the next
//! run. Each run sends them to a kinsync with an empty store.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, anyhow};
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::events::{Event, Source, user_id};
use crate::load::off_thread;

/// Colon-separated, like Kinde's key ids.
const KID: &str = "4c:fa:9e:d6:47:23:b7:39:c7:8f:97:28:45:a1:84:35";
/// Number of users in the tokens.
const USERS: u64 = 50_000;

/// A key and tokens signed with it.
#[derive(Debug)]
pub struct Tokens {
    key: Vec<u8>,
    tokens: Vec<String>,
}

impl Tokens {
    /// Reads `count` tokens from the cache or signs new ones.
    pub async fn prepare(cache: &Path, count: usize) -> anyhow::Result<Self> {
        let (key_file, token_file) = (cache.join("tenant-key.der"), cache.join("tokens.txt"));
        if let Ok((key, text)) =
            fs::read(&key_file).and_then(|key| Ok((key, fs::read_to_string(&token_file)?)))
        {
            let tokens: Vec<_> = text.lines().take(count).map(str::to_owned).collect();
            if tokens.len() == count {
                return Ok(Self { key, tokens });
            }
        }
        eprintln!("  signing {count} tokens, once; they are kept in {}", token_file.display());
        let made = off_thread(move || Self::make(count)).await??;
        // The key is written last, because tokens without their key are not read.
        let _ = fs::remove_file(&key_file);
        fs::write(&token_file, made.tokens.join("\n"))?;
        fs::write(&key_file, &made.key)?;
        Ok(made)
    }

    fn make(count: usize) -> anyhow::Result<Self> {
        let key = KeyPair::generate(KeySize::Rsa2048).map_err(|_| anyhow!("cannot generate an RSA key"))?;
        let der: Pkcs8V1Der<'_> = key.as_der().map_err(|_| anyhow!("cannot encode the RSA key"))?;
        let payloads: Vec<_> = Source::now().traffic(USERS, count).iter().map(Event::payload).collect();
        Ok(Self { key: der.as_ref().to_vec(), tokens: sign_all(&key, &payloads)? })
    }

    /// All tokens.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().map(String::as_str)
    }

    /// Access tokens for these users, in this order, signed with the same key. Tokens of one user differ. They are valid
    /// for a day. The issuer of the next run has another port, so they are not kept.
    pub async fn access(&self, issuer: &str, users: Vec<u64>) -> anyhow::Result<Vec<String>> {
        let (key, issuer) = (self.key_pair()?, issuer.to_owned());
        let now = jiff::Timestamp::now().as_second();
        let claims = users.into_iter().enumerate().map(|(number, user)| claims(&issuer, user, number, now));
        let payloads: Vec<_> = claims.collect();
        off_thread(move || sign_all(&key, &payloads)).await?
    }

    fn key_pair(&self) -> anyhow::Result<KeyPair> {
        KeyPair::from_pkcs8(&self.key).map_err(|error| anyhow!("the stored key is invalid: {error}"))
    }

    /// Writes the public key (`RSAPublicKey` of RFC 8017 as DER) into the folder and returns the file.
    pub fn write_public_key(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let file = folder.join("public-key.der");
        fs::write(&file, self.key_pair()?.public_key())?;
        Ok(file)
    }

    fn jwks(&self) -> anyhow::Result<Value> {
        let key = self.key_pair()?;
        let public = key.public_key();
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let n = text(public.modulus().big_endian_without_leading_zero());
        let e = text(public.exponent().big_endian_without_leading_zero());
        Ok(json!({ "keys": [{ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": KID, "n": n, "e": e }] }))
    }
}

/// The claims of Kinde's documentation.
fn claims(issuer: &str, user: u64, number: usize, now: i64) -> String {
    json!({
        "aud": [], "azp": "dee7f3c57b3c47e8b96edde2c7ecab7d", "exp": now + 86_400, "iat": now, "iss": issuer,
        "jti": format!("fbb6bc62-c5c2-4eac-8a1b-{number:012}"), "org_code": "org_590d7f1a86a",
        "permissions": ["create:todos", "read:todos"], "scp": ["openid", "profile", "email", "offline"],
        "sub": user_id(user),
    })
    .to_string()
}

/// Signs on all cores.
fn sign_all(key: &KeyPair, payloads: &[String]) -> anyhow::Result<Vec<String>> {
    let share = payloads.len().div_ceil(thread::available_parallelism()?.get()).max(1);
    let tokens = thread::scope(|scope| {
        let signed =
            |part: &[String]| part.iter().map(|payload| sign(key, payload)).collect::<Result<Vec<_>, _>>();
        let parts: Vec<_> = payloads.chunks(share).map(|part| scope.spawn(move || signed(part))).collect();
        let joined =
            parts.into_iter().map(|part| part.join().map_err(|_| anyhow!("a signing thread panicked"))?);
        joined.collect::<anyhow::Result<Vec<_>>>()
    })?;
    Ok(tokens.concat())
}

fn sign(key: &KeyPair, payload: &str) -> anyhow::Result<String> {
    let header = format!(r#"{{"alg":"RS256","kid":"{KID}","typ":"JWT"}}"#);
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature)
        .map_err(|_| anyhow!("signing failed"))?;
    Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// Serves the public key until dropped.
#[derive(Debug)]
pub struct Jwks {
    address: SocketAddr,
    _server: JoinSet<std::io::Result<()>>,
}

impl Jwks {
    /// Listens on a free port.
    pub async fn serve(tokens: &Tokens) -> anyhow::Result<Self> {
        let document = tokens.jwks()?;
        let answer = move || async move { Json(document) };
        let router = Router::new()
            .route("/.well-known/jwks.json", get(answer.clone()))
            .route("/.well-known/jwks", get(answer));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("listening for the JWKS")?;
        let address = listener.local_addr()?;
        let mut server = JoinSet::new();
        server.spawn(axum::serve(listener, router).into_future());
        Ok(Self { address, _server: server })
    }

    /// The setting `KINDE_DOMAIN`.
    pub fn domain(&self) -> String {
        format!("http://{}", self.address)
    }
}
