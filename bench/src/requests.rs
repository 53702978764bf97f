//! Signed requests as bytes, built before the measurement so that the load generator uses little CPU.
//!
//! The signatures are created without code of kinsync, which verifies them.

use std::ops::Range;

use aws_lc_rs::hmac;
use memchr::memmem;

use crate::events::Event;

/// Requests in one buffer.
#[derive(Debug, Default)]
pub struct Requests {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    body_bytes: usize,
    /// Text that the body of each response must contain; empty allows any body.
    wanted: Vec<String>,
}

impl Requests {
    /// HMAC deliveries: JSON with the hex HMAC-SHA256 of the body in `x-kinde-signature`.
    pub fn hmac<'a>(secret: &str, events: impl IntoIterator<Item = &'a Event>) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let mut requests = Self::default();
        for event in events {
            let body = event.payload();
            let signature = hex(hmac::sign(&key, body.as_bytes()).as_ref());
            let headers = format!("content-type: application/json\r\nx-kinde-signature: {signature}\r\n");
            requests.push(&headers, body.as_bytes());
        }
        requests
    }

    /// Deliveries of Kinde: the body is a signed token.
    pub fn jwt<'a>(tokens: impl IntoIterator<Item = &'a str>) -> Self {
        let mut requests = Self::default();
        for token in tokens {
            requests.push("content-type: application/jwt\r\n", token.as_bytes());
        }
        requests
    }

    /// Requests of users for their document: the token of each, and the id that the response must have.
    pub fn me<'a>(people: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        let mut requests = Self::default();
        for (token, id) in people {
            let head = format!(
                "GET /api/me HTTP/1.1\r\nhost: 127.0.0.1\r\nuser-agent: bench\r\naccept: */*\r\nauthorization: Bearer {token}\r\n\r\n"
            );
            requests.bytes.extend_from_slice(head.as_bytes());
            requests.ends.push(requests.bytes.len());
            requests.wanted.push(format!(r#""kindeId":"{id}""#));
        }
        requests
    }

    fn push(&mut self, headers: &str, body: &[u8]) {
        let head = format!(
            "POST /api/webhook HTTP/1.1\r\nhost: 127.0.0.1\r\nuser-agent: bench\r\naccept: */*\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        self.bytes.extend_from_slice(head.as_bytes());
        self.bytes.extend_from_slice(body);
        self.ends.push(self.bytes.len());
        self.body_bytes += body.len();
    }

    /// Number of requests.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// One request.
    pub fn get(&self, at: usize) -> &[u8] {
        let range: Range<usize> = at.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[at];
        &self.bytes[range]
    }

    /// Whether the body is correct.
    pub fn is_answered_by(&self, at: usize, body: &[u8]) -> bool {
        self.wanted.get(at).is_none_or(|wanted| memmem::find(body, wanted.as_bytes()).is_some())
    }

    /// Average size of a body.
    pub fn body_bytes(&self) -> usize {
        self.body_bytes / self.len().max(1)
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Kind, Source};

    #[test]
    fn a_request_carries_the_hmac_of_its_body() {
        let event = Source::now().event(1, Kind::Created);
        let requests = Requests::hmac("secret", [&event, &event]);
        let text = std::str::from_utf8(requests.get(1)).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, event.payload());
        assert!(head.contains(&format!("content-length: {}", body.len())));
        assert_eq!(requests.get(0), requests.get(1));
    }

    #[test]
    fn a_response_with_the_id_of_another_user_is_wrong() {
        let requests = Requests::me([("token", "kp_1".to_owned())]);
        assert!(requests.get(0).ends_with(b"authorization: Bearer token\r\n\r\n"));
        assert!(requests.is_answered_by(0, br#"{"email":null,"kindeId":"kp_1"}"#));
        assert!(!requests.is_answered_by(0, br#"{"email":null,"kindeId":"kp_11"}"#));
        assert!(!requests.is_answered_by(0, b""));
    }

    #[test]
    fn the_hmac_equals_a_known_vector() {
        // Created with: printf '{}' | openssl dgst -sha256 -hmac secret
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
        let expect = "77325902caca812dc259733aacd046b73817372c777b8d95b402647474516e13";
        assert_eq!(hex(hmac::sign(&key, b"{}").as_ref()), expect);
    }
}
