//! Sends one request and reads the response, with limits on time and size, and records the time of the request.
//!
//! Credentials, retries and the meaning of a response belong to the callers.

use std::time::Duration;

use reqwest::header::{DATE, HeaderMap};
use reqwest::{Client, RequestBuilder, StatusCode, redirect};
use serde_json::{Map, Value};
use tokio::time::Instant;
use url::Url;

use crate::domain::is_loopback;
use crate::json;
use crate::response::{Clock, RequestTiming, http_date};

/// Maximum accepted value of `RateLimit-Reset`.
const LONGEST_RESET: Duration = Duration::from_hours(1);
/// Maximum length of the code and the message of an API error, in characters.
const LONGEST_TEXT: usize = 200;

/// The limits of a request and the clock.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
    pub(crate) max_body_bytes: usize,
    pub(crate) clock_allowance: Duration,
    pub(crate) clock: Clock,
}

/// An HTTP client for one domain.
#[derive(Debug, Clone)]
pub(crate) struct HttpClient {
    client: Client,
    limits: Limits,
}

/// A response with its complete body.
#[derive(Debug)]
pub(crate) struct RawResponse {
    pub(crate) status: StatusCode,
    /// `RateLimit-Reset`, at most an hour.
    pub(crate) reset: Option<Duration>,
    pub(crate) body: Vec<u8>,
    pub(crate) timing: RequestTiming,
}

/// The reason why there is no response.
#[derive(Debug)]
pub(crate) enum Failure {
    Unreachable(reqwest::Error),
    TooLong,
}

impl HttpClient {
    pub(crate) fn new(domain: &Url, limits: Limits) -> Result<Self, reqwest::Error> {
        let mut builder = Client::builder()
            .connect_timeout(limits.connect_timeout)
            .timeout(limits.timeout)
            .redirect(redirect::Policy::none())
            .https_only(domain.scheme() == "https")
            .user_agent(concat!("kinde-rust/", env!("CARGO_PKG_VERSION")));
        if is_loopback(domain) {
            builder = builder.no_proxy();
        }
        Ok(Self { client: builder.build()?, limits })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn max_body_bytes(&self) -> usize {
        self.limits.max_body_bytes
    }

    /// As [`Self::send`], with a deadline in addition to the time limit.
    pub(crate) async fn send_until(
        &self,
        request: RequestBuilder,
        deadline: Instant,
    ) -> Result<RawResponse, Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.send(request.timeout(self.limits.timeout.min(left))).await
    }

    /// Sends a request of [`Self::client`] and reads the complete response. Redirects are not followed.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<RawResponse, Failure> {
        let (local, started) = (self.limits.clock.now(), Instant::now());
        // Errors contain the URL, and URLs contain ids of users.
        let unreachable = |error: reqwest::Error| Failure::Unreachable(error.without_url());
        let mut response = request.send().await.map_err(unreachable)?;
        let elapsed = started.elapsed();
        let date = header(response.headers(), DATE.as_str()).and_then(http_date);
        let reset = header(response.headers(), "ratelimit-reset").and_then(reset_after);
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > self.limits.max_body_bytes {
                return Err(Failure::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        let timing = RequestTiming::new(local, date, elapsed, self.limits.clock_allowance);
        Ok(RawResponse { status, reset, body, timing })
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Seconds, rounded up.
fn reset_after(text: &str) -> Option<Duration> {
    let seconds: f64 = text.trim().parse().ok()?;
    let reset = Duration::try_from_secs_f64(seconds.ceil()).ok()?;
    Some(reset.min(LONGEST_RESET))
}

/// Code and message of an API error, shortened for logs; empty if the response has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) code: String,
    pub(crate) message: String,
}

impl ApiError {
    /// Reads `{"errors":[{code,message}]}`, or the same with an object in place of the list. `None` if the body is not an
    /// error of the API.
    pub(crate) fn of_api(body: &[u8]) -> Option<Self> {
        let found = match json::map(body).ok()?.remove("errors")? {
            Value::Array(errors) => errors.into_iter().next()?,
            other => other,
        };
        let Value::Object(found) = found else { return None };
        Some(Self { code: text(&found, "code"), message: text(&found, "message") })
    }

    /// Reads `{"error","error_description"}` (RFC 6749, 5.2).
    pub(crate) fn of_oauth(body: &[u8]) -> Option<Self> {
        let found = json::map(body).ok()?;
        let complaint = Self { code: text(&found, "error"), message: text(&found, "error_description") };
        (!complaint.code.is_empty()).then_some(complaint)
    }
}

fn text(map: &Map<String, Value>, key: &str) -> String {
    let text = map.get(key).and_then(Value::as_str).unwrap_or_default();
    text.chars().filter(|char| !char.is_control()).take(LONGEST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_errors_are_read() {
        let expect = Some(ApiError { code: "A".to_owned(), message: "b".to_owned() });
        assert_eq!(ApiError::of_api(br#"{"errors":[{"code":"A","message":"b"},{"code":"C"}]}"#), expect);
        assert_eq!(ApiError::of_api(br#"{"errors":{"code":"A","message":"b"}}"#), expect);
        assert_eq!(ApiError::of_oauth(br#"{"error":"A","error_description":"b"}"#), expect);
        for body in
            ["", "<html>", "[]", "{}", r#"{"errors":[]}"#, r#"{"errors":["A"]}"#, r#"{"errors":null}"#]
        {
            assert_eq!(ApiError::of_api(body.as_bytes()), None, "{body}");
            assert_eq!(ApiError::of_oauth(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn a_reset_is_a_number_of_seconds_up_to_an_hour() {
        for (text, expect) in [
            ("0", Some(0)),
            ("7", Some(7)),
            (" 1.2 ", Some(2)),
            ("99999999", Some(3600)),
            ("-1", None),
            ("inf", None),
            ("NaN", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(reset_after(text), expect.map(Duration::from_secs), "{text}");
        }
    }
}
