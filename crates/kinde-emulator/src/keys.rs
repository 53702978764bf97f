//! The RSA keys of the tenant: generated at the start, published as a JWKS, rotated on request.
//!
//! Signs and verifies RS256 with its own code, so that a verifier under test is not tested with itself.

use std::fmt::Write as _;
use std::sync::Arc;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, UnparsedPublicKey};
use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The crypto library could not generate a key.
#[derive(Debug, thiserror::Error)]
#[error("cannot generate an RSA-2048 key: the crypto library reports no reason")]
#[non_exhaustive]
pub struct Error;

/// Whether a rotation keeps the old keys published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The old keys stay in the JWKS; their signatures remain valid.
    Keep,
    /// The old keys are removed from the JWKS immediately.
    Drop,
}

/// An RSA-2048 key with its Kinde-style `kid`: sixteen bytes as colon-separated hex.
pub(crate) struct Key {
    pair: KeyPair,
    pub(crate) kid: String,
    n: String,
    e: String,
}

impl Key {
    pub(crate) fn generate() -> Result<Self, Error> {
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| Error)?;
        let (n, e) = integers(pair.public_key().as_ref()).ok_or(Error)?;
        let kid = fingerprint(pair.public_key().as_ref());
        let (n, e) = (URL_SAFE_NO_PAD.encode(n), URL_SAFE_NO_PAD.encode(e));
        Ok(Self { pair, kid, n, e })
    }

    fn jwk(&self) -> Value {
        json!({"e": self.e, "n": self.n, "alg": "RS256", "kid": self.kid, "kty": "RSA", "use": "sig"})
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
            .expect("a generated RSA-2048 key signs any message");
        signature
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.pair.public_key().as_ref())
            .verify(message, signature)
            .is_ok()
    }

    /// The public key as PEM: the secret of the HS256 algorithm confusion attack.
    pub(crate) fn public_pem(&self) -> String {
        let der = self.pair.public_key().as_der().expect("a generated key has an X.509 form");
        let text = STANDARD.encode(der.as_ref());
        let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
        for line in text.as_bytes().chunks(64) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem + "-----END PUBLIC KEY-----\n"
    }
}

/// The published keys. The last one signs.
pub(crate) struct Keyring {
    keys: Vec<Arc<Key>>,
}

impl Keyring {
    pub(crate) fn new(first: Key) -> Self {
        Self { keys: vec![Arc::new(first)] }
    }

    pub(crate) fn active(&self) -> Arc<Key> {
        Arc::clone(self.keys.last().expect("a keyring always contains a key"))
    }

    pub(crate) fn rotate(&mut self, new: Key, overlap: Overlap) {
        if overlap == Overlap::Drop {
            self.keys.clear();
        }
        self.keys.push(Arc::new(new));
    }

    pub(crate) fn jwks(&self) -> Value {
        json!({"keys": self.keys.iter().rev().map(|key| key.jwk()).collect::<Vec<_>>()})
    }

    pub(crate) fn verifies(&self, kid: &str, message: &[u8], signature: &[u8]) -> bool {
        self.keys.iter().any(|key| key.kid == kid && key.verifies(message, signature))
    }
}

pub(crate) fn hmac_sha256(secret: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    })
}

fn fingerprint(der: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, der);
    let pairs: Vec<String> = hash.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(":")
}

/// Modulus and exponent of an RFC 8017 `RSAPublicKey`: SEQUENCE { INTEGER n, INTEGER e }.
fn integers(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (sequence, _) = element(der, 0x30)?;
    let (n, rest) = element(sequence, 0x02)?;
    let (e, _) = element(rest, 0x02)?;
    Some((n.strip_prefix(&[0]).unwrap_or(n), e))
}

/// Returns the content of the first DER element and the bytes after it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk()?;
    let size_bytes = if first < 0x80 { 0 } else { usize::from(first & 0x7f) };
    let (size, rest) = rest.split_at_checked(size_bytes)?;
    let long = size.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    let length = if size_bytes == 0 { usize::from(first) } else { long };
    (found == tag).then(|| rest.split_at_checked(length))?
}

/// A compact JWS of `payload` with Kinde's header.
pub(crate) fn sign_rs256(key: &Key, payload: &Value) -> String {
    let message = jws_message(&json!({"alg": "RS256", "kid": key.kid, "typ": "JWT"}), payload);
    let signature = key.sign(message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The signed part of a compact JWS.
pub(crate) fn jws_message(header: &Value, payload: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", encode(header), encode(payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_the_shape_of_a_kinde_key() {
        let key = Key::generate().unwrap();
        let jwk = key.jwk();
        assert_eq!(jwk["e"], "AQAB");
        assert_eq!(URL_SAFE_NO_PAD.decode(jwk["n"].as_str().unwrap()).unwrap().len(), 256);
        assert_eq!(key.kid.len(), 47);
        assert_eq!(key.sign(b"text").len(), 256);
        assert!(key.public_pem().starts_with("-----BEGIN PUBLIC KEY-----\nMIIB"));
    }

    #[test]
    fn a_rotation_without_overlap_invalidates_old_signatures() {
        let mut ring = Keyring::new(Key::generate().unwrap());
        let (old, signature) = (ring.active(), ring.active().sign(b"text"));
        ring.rotate(Key::generate().unwrap(), Overlap::Keep);
        assert!(ring.verifies(&old.kid, b"text", &signature));
        ring.rotate(Key::generate().unwrap(), Overlap::Drop);
        assert!(!ring.verifies(&old.kid, b"text", &signature));
    }
}
