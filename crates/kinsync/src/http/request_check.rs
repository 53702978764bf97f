//! Checks of a request head that the HTTP parser does not make. Each failure is a clean response, after which the
//! connection closes.

use http::{Request, Version, header};
use kinsync_tower::Problem;

/// Largest request head, in bytes. Larger ones are answered 431.
pub const MAX_HEAD_BYTES: usize = 32 * 1024;
/// Largest number of header lines.
pub const MAX_HEADERS: usize = 100;

/// Returns why the request is refused, if it is.
pub fn refusal<B>(request: &Request<B>) -> Option<Problem> {
    // One pass: this runs for every request.
    let mut bytes = line_bytes(request);
    let (mut hosts, mut codings) = (0, 0);
    for (name, value) in request.headers() {
        // One space after the colon.
        bytes += name.as_str().len() + value.len() + 4;
        if name == header::HOST {
            hosts += 1;
        } else if name == header::TRANSFER_ENCODING {
            // RFC 9112 section 6.1: codings under the chunked framing are not decoded here.
            let is_chunked = value.as_bytes().eq_ignore_ascii_case(b"chunked");
            codings += if is_chunked { 1 } else { 2 };
        }
    }
    // RFC 9112 section 3.2: exactly one `Host` in HTTP/1.1; older clients may omit it.
    let may_omit_host = request.version() < Version::HTTP_11;
    match () {
        () if bytes > MAX_HEAD_BYTES => Some(Problem::HeadTooLarge { limit: MAX_HEAD_BYTES }),
        () if hosts > 1 || (hosts == 0 && !may_omit_host) => Some(Problem::BadHost),
        () if codings > 1 => Some(Problem::UnknownTransferCoding),
        () => None,
    }
}

/// The size of the request line and of the empty line at the end of the head.
fn line_bytes<B>(request: &Request<B>) -> usize {
    let target = request.uri().path_and_query().map_or(1, |target| target.as_str().len());
    request.method().as_str().len() + target + " HTTP/1.1".len() + 3 + 2
}
