//! The CPU time of what every server needs for a durable delivery, beside the HTTP request: the verification of the signature, and a
//! row in SQLite with its share of the sync. Measured with the libraries alone, by the kernel's accounting of this process.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::own_cpu;
use crate::queue::messages;
use crate::queue::raw::{Raw as _, Sqlite};

/// Length of one measurement. The kernel counts in steps of 10 ms.
const LENGTH: Duration = Duration::from_secs(1);
/// Calls between two looks at the clock.
const CALLS: u32 = 64;

/// What is verified and stored.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Measurements of each part.
    pub rounds: usize,
    /// Bytes of a body with an HMAC, which are stored.
    pub hmac: usize,
    /// Bytes of a signed token.
    pub token: usize,
    /// Rows of a transaction.
    pub group: usize,
}

/// Measures microseconds of CPU time for one delivery, for each round.
pub async fn measure(folder: &Path, sizes: Sizes) -> anyhow::Result<Value> {
    anyhow::ensure!(sizes.group > 0, "a transaction has at least one row");
    let (mut hmacs, mut signatures, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    let sqlite = Sqlite::open(&folder.join("parts.sqlite"))?;
    let stored = messages(0, sizes.group, sizes.hmac);
    for _ in 0..sizes.rounds {
        hmacs.push(verify_hmac(sizes.hmac)?);
        signatures.push(verify_rsa(sizes.token)?);
        let (cpu, start, mut count) = (own_cpu()?, Instant::now(), 0);
        while start.elapsed() < LENGTH {
            sqlite.store(&stored).await?;
            count += stored.len();
        }
        rows.push((own_cpu()? - cpu) * 1e6 / count as f64);
    }
    Ok(json!({ "hmac": hmacs, "rsa": signatures, "append": rows }))
}

fn verify_hmac(bytes: usize) -> anyhow::Result<f64> {
    let (key, body) = (hmac::Key::new(hmac::HMAC_SHA256, b"secret"), vec![b'x'; bytes]);
    let tag = hmac::sign(&key, &body);
    each(|| hmac::verify(&key, &body, tag.as_ref()).is_ok())
}

fn verify_rsa(bytes: usize) -> anyhow::Result<f64> {
    let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| anyhow!("cannot generate an RSA key"))?;
    let (token, mut signature) = (vec![b'x'; bytes], vec![0; pair.public_modulus_len()]);
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &token, &mut signature)
        .map_err(|_| anyhow!("signing failed"))?;
    let public = pair.public_key().as_ref().to_vec();
    each(|| UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &public).verify(&token, &signature).is_ok())
}

/// Microseconds of CPU time of one call.
fn each(call: impl Fn() -> bool) -> anyhow::Result<f64> {
    let (cpu, start, mut count) = (own_cpu()?, Instant::now(), 0_u32);
    while start.elapsed() < LENGTH {
        for _ in 0..CALLS {
            anyhow::ensure!(call(), "a valid signature is refused");
        }
        count = count.checked_add(CALLS).context("too many calls")?;
    }
    Ok((own_cpu()? - cpu) * 1e6 / f64::from(count))
}
