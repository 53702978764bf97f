//! The two schemes with a shared secret: HMAC in `x-kinde-signature`, and Standard Webhooks.
//!
//! Standard Webhooks: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>

use std::time::Duration;

use aws_lc_rs::hmac::{self, HMAC_SHA256, Key};
use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD};
use bytes::Bytes;
use http::HeaderMap;
use http::header::AsHeaderName;
use jiff::{SignedDuration, Timestamp};

use super::{Delivery, SIGNATURE_HEADER, STANDARD_SIGNATURE_HEADER, Scheme, VerificationError};
use crate::json::is_id;
use crate::secret;

/// Length of an HMAC-SHA256, in bytes.
const TAG_BYTES: usize = 32;
/// Maximum number of signatures in one `webhook-signature` header that are checked.
const MAX_SIGNATURES: usize = 16;

const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, secret::ANY_PADDING);

type Tag = [u8; TAG_BYTES];

pub(super) fn key(secret: &[u8]) -> Key {
    Key::new(HMAC_SHA256, secret)
}

/// Verifies HMAC-SHA256 of the raw body in `x-kinde-signature`: hex or base64, with or without `sha256=`.
pub(super) fn verify_plain(
    keys: &[Key],
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Delivery, VerificationError> {
    let scheme = Scheme::Hmac;
    if keys.is_empty() {
        return Err(VerificationError::SchemeNotConfigured { scheme });
    }
    let value = single(headers, &SIGNATURE_HEADER)?;
    let tag = read_tag(value).ok_or(VerificationError::MalformedSignature {
        problem: "`x-kinde-signature` must be HMAC-SHA256 of the raw body, as 64 hex digits or base64, with or without the prefix `sha256=`",
    })?;
    if !keys.iter().any(|key| hmac::verify(key, &body, &tag).is_ok()) {
        return Err(VerificationError::SignatureMismatch { scheme });
    }
    Ok(Delivery::from_payload(scheme, body, None, None))
}

/// Verifies HMAC-SHA256 over `id.timestamp.body`, as Standard Webhooks defines it.
pub(super) fn verify_standard(
    keys: &[Key],
    headers: &HeaderMap,
    body: Bytes,
    now: Timestamp,
    tolerance: Duration,
) -> Result<Delivery, VerificationError> {
    let scheme = Scheme::StandardWebhooks;
    if keys.is_empty() {
        return Err(VerificationError::SchemeNotConfigured { scheme });
    }
    let id = single(headers, "webhook-id")?;
    let timestamp = single(headers, "webhook-timestamp")?;
    let tags = read_tags(single(headers, &STANDARD_SIGNATURE_HEADER)?)?;
    if !is_id(id) {
        return Err(malformed("`webhook-id` must be 1 to 256 bytes without control characters"));
    }
    let signed_at = read_seconds(timestamp)?;
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", &body].concat();
    let matches = |tag: &Tag| keys.iter().any(|key| hmac::verify(key, &signed, tag).is_ok());
    if !tags.iter().any(matches) {
        return Err(VerificationError::SignatureMismatch { scheme });
    }
    if now.duration_since(signed_at).abs()
        > SignedDuration::try_from(tolerance).unwrap_or(SignedDuration::MAX)
    {
        return Err(VerificationError::StaleTimestamp);
    }
    Ok(Delivery::from_payload(scheme, body, Some(id.to_owned()), Some(signed_at)))
}

/// The value of a header that must occur once: of two values it is open which one was signed.
fn single(headers: &HeaderMap, name: impl AsHeaderName) -> Result<&str, VerificationError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().map_err(|_| malformed("a signature header is not plain text")),
        (Some(_), Some(_)) => Err(malformed("a signature header occurs more than once")),
        (None, _) => Err(malformed(
            "Standard Webhooks requires `webhook-id`, `webhook-timestamp` and `webhook-signature`",
        )),
    }
}

fn read_tag(value: &str) -> Option<Tag> {
    let value = value.strip_prefix("sha256=").unwrap_or(value);
    if value.len() == 2 * TAG_BYTES {
        return unhex(value);
    }
    let bytes = secret::BASE64.decode(value).or_else(|_| BASE64_URL.decode(value)).ok()?;
    bytes.try_into().ok()
}

fn unhex(text: &str) -> Option<Tag> {
    let mut tag = [0; TAG_BYTES];
    for (byte, pair) in tag.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(0)? << 4 | digit(1)?;
    }
    Some(tag)
}

/// The `v1` entries. Other versions are ignored, as the specification requires.
fn read_tags(value: &str) -> Result<Vec<Tag>, VerificationError> {
    let tags: Vec<Tag> = value.split(' ').take(MAX_SIGNATURES).filter_map(read_entry).collect();
    if tags.is_empty() {
        return Err(malformed("`webhook-signature` must contain `v1,<base64 of HMAC-SHA256>`"));
    }
    Ok(tags)
}

fn read_entry(entry: &str) -> Option<Tag> {
    STANDARD.decode(entry.strip_prefix("v1,")?).ok()?.try_into().ok()
}

fn read_seconds(text: &str) -> Result<Timestamp, VerificationError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = if digits { text.parse().ok() } else { None };
    seconds
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .ok_or_else(|| malformed("`webhook-timestamp` must be Unix seconds, digits only"))
}

fn malformed(problem: &'static str) -> VerificationError {
    VerificationError::MalformedSignature { problem }
}
