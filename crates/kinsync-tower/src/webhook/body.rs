//! Reads the body of a delivery within three bounds: its size, its time, and the memory of all bodies together.
//!
//! A request without a signature header is refused as soon as its first bytes are not those of a JWT, because nothing
//! that follows could make it a delivery.

use std::pin::Pin;

use bytes::{Buf, Bytes};
use http::{
    HeaderMap,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body_util::BodyExt;
use kinde::webhook::{SIGNATURE_HEADER, STANDARD_SIGNATURE_HEADER};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{Config, Stop};
use crate::{metrics::Unverified, problem::Problem};

/// Bytes of each body that are not charged to the shared budget: usual deliveries are smaller, so that large bodies of
/// other clients cannot keep them out. The number of connections bounds their sum.
const UNCHARGED: usize = 8 * 1024;

/// A whole body, with its share of the budget until it is dropped.
pub(super) struct Buffered<'a> {
    pub(super) bytes: Bytes,
    _share: Option<SemaphorePermit<'a>>,
}

/// Reads the whole body. It is copied, so that it does not keep the larger buffer of the connection while the queue has it.
pub(super) async fn read<'a, B>(
    headers: &HeaderMap,
    body: Pin<&mut B>,
    config: &Config,
    budget: &'a Semaphore,
) -> Result<Buffered<'a>, Stop>
where
    B: http_body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let limit = config.body_limit;
    // `Content-Length` is used only to reject oversized bodies early.
    if content_length(headers).is_some_and(|length| length > limit as u64) {
        return Err(too_large(limit));
    }
    let reader = Reader { signed: is_signed(headers), limit, budget, buffer: Vec::new(), share: None };
    match timeout(config.body_deadline, reader.read(body)).await {
        Ok(outcome) => outcome,
        Err(_) => {
            Err(Stop::Request(Unverified::TooSlow, Problem::BodyTooSlow { deadline: config.body_deadline }))
        }
    }
}

struct Reader<'a> {
    signed: bool,
    limit: usize,
    budget: &'a Semaphore,
    buffer: Vec<u8>,
    share: Option<SemaphorePermit<'a>>,
}

impl<'a> Reader<'a> {
    async fn read<B>(mut self, mut body: Pin<&mut B>) -> Result<Buffered<'a>, Stop>
    where
        B: http_body::Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let broken = |_| Stop::Request(Unverified::Malformed, Problem::BodyBroken);
        while let Some(frame) = body.frame().await {
            let Ok(mut data) = frame.map_err(broken)?.into_data() else { continue };
            self.append(&mut data)?;
            // A whole body without a signature is refused by the verifier.
            if !self.signed && !body.is_end_stream() && !may_begin_jwt(&self.buffer) {
                return Err(Stop::Unsigned);
            }
        }
        Ok(Buffered { bytes: self.buffer.into(), _share: self.share })
    }

    fn append(&mut self, data: &mut impl Buf) -> Result<(), Stop> {
        let length = self.buffer.len() + data.remaining();
        if length > self.limit {
            return Err(too_large(self.limit));
        }
        self.reserve(length)?;
        while data.has_remaining() {
            let chunk = data.chunk();
            self.buffer.extend_from_slice(chunk);
            data.advance(chunk.len());
        }
        Ok(())
    }

    /// Grows the buffer to at least this length, if the budget has room for its capacity.
    fn reserve(&mut self, length: usize) -> Result<(), Stop> {
        let capacity = self.buffer.capacity();
        if length <= capacity {
            return Ok(());
        }
        let new = length.max(2 * capacity).min(self.limit);
        let more = new.saturating_sub(UNCHARGED) - capacity.saturating_sub(UNCHARGED);
        if more > 0 {
            let count = u32::try_from(more).unwrap_or(u32::MAX);
            let more = self.budget.try_acquire_many(count).map_err(|_| Stop::OverBudget)?;
            match &mut self.share {
                Some(share) => share.merge(more),
                None => self.share = Some(more),
            }
        }
        self.buffer.reserve_exact(new - self.buffer.len());
        Ok(())
    }
}

/// Whether the headers announce a signature or a JWT.
fn is_signed(headers: &HeaderMap) -> bool {
    let is_jwt = |value: &http::HeaderValue| {
        let value = value.as_bytes().trim_ascii_start();
        value.get(..15).is_some_and(|essence| essence.eq_ignore_ascii_case(b"application/jwt"))
    };
    headers.contains_key(&SIGNATURE_HEADER)
        || headers.contains_key(&STANDARD_SIGNATURE_HEADER)
        || headers.get_all(CONTENT_TYPE).iter().any(is_jwt)
}

/// Whether a body that begins with these bytes may be a JWT: `eyJ` is base64url for `{"`. White space around it and a
/// JSON string are accepted.
fn may_begin_jwt(bytes: &[u8]) -> bool {
    let bytes = bytes.trim_ascii_start();
    let bytes = bytes.strip_prefix(b"\"").unwrap_or(bytes);
    bytes.iter().zip(b"eyJ").all(|(byte, expected)| byte == expected)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large(limit: usize) -> Stop {
    Stop::Request(Unverified::TooLarge, Problem::BodyTooLarge { limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_bytes_of_a_jwt_may_begin_one() {
        for bytes in ["", " ", "e", "\n\teyJhbGciOi", "\"eyJ", "\""] {
            assert!(may_begin_jwt(bytes.as_bytes()), "{bytes:?}");
        }
        for bytes in ["{", " {\"type\":1}", "ey{", "x", "\"x", "\0eyJ"] {
            assert!(!may_begin_jwt(bytes.as_bytes()), "{bytes:?}");
        }
    }
}
