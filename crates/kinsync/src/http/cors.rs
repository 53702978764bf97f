//! Cross-origin requests of browsers (the CORS protocol of the Fetch standard) to the routes that return a user.
//!
//! Off until `http.cors_origins` names the origins of front ends. Every response to such an origin can be read by it,
//! error responses included.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::mount::Finish;
use crate::config::Http;

/// How long a browser may reuse the response to a preflight, in seconds.
const MAX_AGE: &str = "600";
/// Response headers that scripts may read.
const EXPOSED: &str = "etag, retry-after, www-authenticate, x-kinsync-degraded, x-kinsync-profile";

/// The allowed origins.
#[derive(Clone, Debug)]
pub struct Cors {
    origins: Arc<[HeaderValue]>,
    /// Whether the browser may send cookies: only where a cookie may carry the token.
    with_cookies: bool,
}

impl Cors {
    /// Returns the allowed origins of the settings; `None` when there are none.
    pub fn of(http: &Http) -> Option<Self> {
        let origins: Arc<[HeaderValue]> = http.cors_origins.as_slice().into();
        (!origins.is_empty()).then_some(Self { origins, with_cookies: http.token_cookie.is_some() })
    }

    /// Adds the headers that let the origin of this request read the response.
    fn allow(&self, request: &HeaderMap, response: &mut HeaderMap) {
        response.append(header::VARY, HeaderValue::from_static("origin"));
        let Some(origin) = self.origin(request) else { return };
        response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        if self.with_cookies {
            let header = header::ACCESS_CONTROL_ALLOW_CREDENTIALS;
            response.insert(header, HeaderValue::from_static("true"));
        }
    }

    fn origin(&self, request: &HeaderMap) -> Option<&HeaderValue> {
        let sent = request.get(header::ORIGIN)?;
        self.origins.iter().find(|origin| *origin == sent)
    }

    /// Returns the response to a preflight from an allowed origin.
    fn preflight(&self, method: &Method, request: &HeaderMap) -> Option<Response> {
        let is_preflight =
            *method == Method::OPTIONS && request.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if !is_preflight || self.origin(request).is_none() {
            return None;
        }
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        for (name, value) in [
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD"),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, if-none-match"),
            (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        self.allow(request, headers);
        Some(response)
    }
}

/// The allowed origins of a path, and what its responses get.
#[derive(Clone, Debug)]
pub struct CrossOrigin {
    /// The allowed origins.
    pub cors: Cors,
    /// Applied to preflights, which do not reach the services of the path.
    pub finish: Finish,
}

/// Answers preflights and adds the headers to every other response.
pub async fn cross_origin(
    State(CrossOrigin { cors, finish }): State<CrossOrigin>,
    request: Request,
    next: Next,
) -> Response {
    if let Some(response) = cors.preflight(request.method(), request.headers()) {
        return finish.apply(response);
    }
    let headers = request.headers().clone();
    let mut response = next.run(request).await;
    cors.allow(&headers, response.headers_mut());
    response
}
