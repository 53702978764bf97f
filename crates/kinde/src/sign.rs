//! Signs request bodies for the two schemes with a shared secret, for tests, relays and command lines.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::secret;

/// Returns the value of `x-kinde-signature`: lower-case hex of HMAC-SHA256 over the raw body.
///
/// ```
/// let signature = kinde::sign::hmac_hex("secret", b"{}");
/// assert_eq!(signature, "77325902caca812dc259733aacd046b73817372c777b8d95b402647474516e13");
/// ```
pub fn hmac_hex(secret: &str, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    hex(hmac::sign(&key, body).as_ref())
}

/// The error of a Standard Webhooks secret that is not base64 after the optional prefix `whsec_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the Standard Webhooks secret is not base64")]
pub struct InvalidSecret;

/// Returns the value of `webhook-signature`: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.
///
/// `timestamp` is in Unix seconds, as in the header `webhook-timestamp`. The secret is base64, with or without the prefix
/// `whsec_`.
pub fn standard_webhooks(
    secret: &str,
    id: &str,
    timestamp: i64,
    body: &[u8],
) -> Result<String, InvalidSecret> {
    let key = secret::standard_webhooks_bytes(secret).ok_or(InvalidSecret)?;
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &key));
    context.update(format!("{id}.{timestamp}.").as_bytes());
    context.update(body);
    Ok(format!("v1,{}", STANDARD.encode(context.sign())))
}

/// Encodes as lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let nibbles = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    nibbles.map(|nibble| char::from(DIGITS[usize::from(nibble)])).collect()
}
