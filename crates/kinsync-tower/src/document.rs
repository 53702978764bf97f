//! The user document in the response of `/api/me`: JSON text with an entity tag.

use std::fmt::Write as _;

use aws_lc_rs::digest;
use bytes::Bytes;
use http::HeaderValue;
use serde::Serialize;

/// A serialized document with its entity tag. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Json {
    body: Bytes,
    etag: HeaderValue,
}

impl Json {
    pub(crate) fn of(document: &impl Serialize) -> Self {
        let body = Bytes::from(serde_json::to_vec(document).expect("a document has only text keys"));
        let etag = tag(&body);
        Self { body, etag }
    }

    /// Returns the JSON text.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Returns the strong entity tag (RFC 9110 section 8.8.3) of the text.
    pub fn etag(&self) -> &HeaderValue {
        &self.etag
    }
}

/// The document of a user while the store is unavailable: the data of the token.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TokenUser<'a> {
    pub(crate) kinde_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) email: Option<&'a str>,
}

fn tag(body: &[u8]) -> HeaderValue {
    let digest = digest::digest(&digest::SHA256, body);
    let mut text = String::from("\"");
    for byte in &digest.as_ref()[..16] {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
    }
    text.push('"');
    HeaderValue::try_from(text).expect("quotes and hexadecimal digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_half_the_sha_256_of_the_text_in_quotes() {
        // printf '{}' | sha256sum
        assert_eq!(tag(b"{}"), "\"44136fa355b3678a1146ad16f7e8649e\"");
    }
}
