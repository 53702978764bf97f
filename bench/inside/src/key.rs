//! A key with signatures that cost nothing, and tokens signed with it.
//!
//! Signing a million tokens with a real key would take a quarter of an hour. This key satisfies what a verifier can check
//! (2048 bits, an odd exponent), but it is not secret: its modulus is a product of many small primes p whose p − 1 all divide
//! a number L, and its exponent is L + 1. So s^(L+1) = s for every s, and the padded hash is its own signature. The
//! verification takes slightly longer than with the usual exponent 65537, because the exponent is longer.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// 2^5 · 3^3 · 5^2 · 7 · 11 · 13 · 17 · 19, which has more divisors than any smaller number.
const FACTORS: [(u64, u32); 8] = [(2, 5), (3, 3), (5, 2), (7, 1), (11, 1), (13, 1), (17, 1), (19, 1)];
const BITS: usize = 2048;
const KID: &str = "free";
/// The DER of the SHA-256 `DigestInfo` before the hash (RFC 8017, 9.2, note 1).
const DIGEST_INFO: [u8; 19] =
    [0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20];

/// The key. Its modulus is a product of small primes.
#[derive(Debug)]
pub struct FreeKey {
    /// Big-endian.
    modulus: Vec<u8>,
    exponent: u64,
}

impl FreeKey {
    /// Creates the key, which is always the same.
    pub fn new() -> Self {
        let divisors = FACTORS.iter().fold(vec![1_u64], |all, (prime, most)| {
            all.iter().flat_map(|divisor| (0..=*most).map(move |n| divisor * prime.pow(n))).collect()
        });
        let mut primes: Vec<u64> =
            divisors.iter().map(|n| n + 1).filter(|n| *n > 2 && is_prime(*n)).collect();
        primes.sort_unstable();
        let mut modulus = vec![1];
        while modulus.len() * 8 < BITS + 8 {
            times(&mut modulus, primes.pop().expect("there are more than 600 of them"));
        }
        Self { modulus, exponent: FACTORS.iter().map(|(prime, most)| prime.pow(*most)).product::<u64>() + 1 }
    }

    /// The JWKS of the tenant.
    pub fn jwks(&self) -> Value {
        let exponent: Vec<u8> =
            self.exponent.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
        let (n, e) = (URL_SAFE_NO_PAD.encode(&self.modulus), URL_SAFE_NO_PAD.encode(exponent));
        json!({ "keys": [{ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": KID, "n": n, "e": e }] })
    }

    /// A signed token.
    pub fn sign(&self, claims: &Value) -> String {
        let header = format!(r#"{{"alg":"RS256","kid":"{KID}","typ":"JWT"}}"#);
        let message =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let hash = digest(&SHA256, message.as_bytes());
        let mut block = vec![0xff; self.modulus.len()];
        let end = block.len() - hash.as_ref().len();
        block[..2].copy_from_slice(&[0, 1]);
        block[end - DIGEST_INFO.len() - 1] = 0;
        block[end - DIGEST_INFO.len()..end].copy_from_slice(&DIGEST_INFO);
        block[end..].copy_from_slice(hash.as_ref());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(block))
    }
}

fn is_prime(number: u64) -> bool {
    (2..number).take_while(|n| n * n <= number).all(|n| !number.is_multiple_of(n))
}

/// Multiplies a big-endian number.
fn times(number: &mut Vec<u8>, factor: u64) {
    let mut carry = 0;
    for byte in number.iter_mut().rev() {
        let product = u64::from(*byte) * factor + carry;
        *byte = product.to_le_bytes()[0];
        carry = product >> 8;
    }
    while carry > 0 {
        number.insert(0, carry.to_le_bytes()[0]);
        carry >>= 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_big_number_is_multiplied() {
        let mut number = vec![1];
        times(&mut number, 0x1_0000_0001);
        times(&mut number, 0xff);
        assert_eq!(number, [0xff, 0, 0, 0, 0xff]);
    }
}
