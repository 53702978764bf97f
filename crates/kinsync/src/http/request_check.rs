//! Checks of a request head that the HTTP parser does not make. Each failure is a clean response, after which the
//! connection closes.

use http::{HeaderMap, Request, Version, header};
use kinsync_tower::Problem;

/// Largest request head, in bytes. Larger ones are answered 431.
pub const MAX_HEAD_BYTES: usize = 32 * 1024;
/// Largest number of header lines.
pub const MAX_HEADERS: usize = 100;

/// Returns why the request is refused, if it is.
pub fn refusal<B>(request: &Request<B>) -> Option<Problem> {
    let headers = request.headers();
    if head_bytes(request) > MAX_HEAD_BYTES {
        return Some(Problem::HeadTooLarge { limit: MAX_HEAD_BYTES });
    }
    if !has_one_host(headers, request.version()) {
        return Some(Problem::BadHost);
    }
    // RFC 9112 section 6.1: codings under the chunked framing are not decoded here.
    let codings = headers.get_all(header::TRANSFER_ENCODING);
    let is_chunked = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    let is_known = codings.iter().count() <= 1 && codings.iter().all(is_chunked);
    (!is_known).then_some(Problem::UnknownTransferCoding)
}

/// RFC 9112 section 3.2: exactly one `Host` in HTTP/1.1; older clients may omit it.
fn has_one_host(headers: &HeaderMap, version: Version) -> bool {
    match headers.get_all(header::HOST).iter().count() {
        0 => version < Version::HTTP_11,
        count => count == 1,
    }
}

/// The size of the head as sent, if each header line has one space after the colon.
fn head_bytes<B>(request: &Request<B>) -> usize {
    let target = request.uri().path_and_query().map_or(1, |target| target.as_str().len());
    let line = request.method().as_str().len() + target + " HTTP/1.1".len() + 3;
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    line + fields.sum::<usize>() + 2
}
