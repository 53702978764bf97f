//! The user document as it leaves over HTTP: instants as RFC 3339 text in UTC with microseconds, everything else as the
//! types say.

use std::fmt::Write as _;

use aws_lc_rs::digest;
use bytes::Bytes;
use http::HeaderValue;
use jiff::Timestamp;
use kinsync_core::{Micros, UserDocument};
use serde_json::Value;

/// The keys of a user document that are instants.
const TIMES: [&str; 5] = ["createdAt", "updatedAt", "lastSeenAt", "lastSignedInAt", "deletedAt"];

/// A document as text, with its entity tag. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Json {
    body: Bytes,
    etag: HeaderValue,
}

impl Json {
    pub(crate) fn of(document: &Value) -> Self {
        let body = Bytes::from(document.to_string());
        let etag = tag(&body);
        Self { body, etag }
    }

    /// The text.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// A strong tag (RFC 9110 section 8.8.3), of the bytes of the text.
    pub fn etag(&self) -> &HeaderValue {
        &self.etag
    }
}

fn tag(body: &[u8]) -> HeaderValue {
    let digest = digest::digest(&digest::SHA256, body);
    let mut text = String::from("\"");
    for byte in &digest.as_ref()[..16] {
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    text.push('"');
    HeaderValue::try_from(text).expect("quotes and hexadecimal digits")
}

/// A user document.
pub fn user(document: &UserDocument) -> Value {
    let mut user = serde_json::to_value(document).expect("a user document has only text keys");
    for key in TIMES {
        if let Some(at) = user.get(key).and_then(Value::as_i64) {
            user[key] = time(Micros(at));
        }
    }
    user
}

/// `2024-05-01T07:41:45.592145Z`; null for an instant that no calendar has.
pub fn time(at: Micros) -> Value {
    Timestamp::from_microsecond(at.0).map_or(Value::Null, |at| format!("{at:.6}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_rfc_3339_with_microseconds() {
        assert_eq!(time(Micros(1_714_549_305_592_145)), "2024-05-01T07:41:45.592145Z");
        assert_eq!(time(Micros(0)), "1970-01-01T00:00:00.000000Z");
        assert_eq!(time(Micros(-1)), "1969-12-31T23:59:59.999999Z");
        assert_eq!(time(Micros(i64::MAX)), Value::Null);
    }

    #[test]
    fn the_tag_is_half_the_sha_256_of_the_text_in_quotes() {
        // printf '{}' | sha256sum
        assert_eq!(tag(b"{}"), "\"44136fa355b3678a1146ad16f7e8649e\"");
    }
}
