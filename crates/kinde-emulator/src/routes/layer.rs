//! Counts requests per route, refuses those beyond the limits, and lets the HTTP faults strike.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::answer::Refusal;
use crate::emulator::Emulator;
use crate::faults::FaultKind;
use crate::limits;

const LARGEST_BODY: usize = 64 * 1024 * 1024;

pub(super) async fn count_and_fault(
    State(emulator): State<Emulator>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let Some(route) = route_name(path) else { return next.run(request).await };
    let is_management = path.starts_with("/api/v1/");
    emulator.count_request(route);
    let _place = match is_management.then(|| Place::take(&emulator)).transpose() {
        Ok(place) => place,
        Err(wait) => return throttled(limits::seconds(wait)),
    };
    let faults = emulator.faults_table().on_request(route, is_management);
    for fault in &faults {
        if let FaultKind::Slow { min, max } = fault {
            wait(&emulator, *min, *max).await;
        }
    }
    if let Some(refusal) = faults.iter().find_map(refusal) {
        return refusal;
    }
    let response = next.run(request).await;
    match faults.into_iter().find(|fault| !matches!(fault, FaultKind::Slow { .. })) {
        Some(fault) => mangle(response, &fault).await,
        None => response,
    }
}

/// The name of a route in counters and faults; the control API has none.
fn route_name(path: &str) -> Option<&'static str> {
    Some(match path.trim_start_matches('/').split('/').collect::<Vec<_>>()[..] {
        [".well-known", "jwks.json" | "jwks"] => "jwks",
        [".well-known", "openid-configuration"] => "openid",
        ["oauth2", "auth"] => "auth",
        ["oauth2", "token"] => "token",
        ["oauth2", "introspect"] => "introspect",
        ["oauth2", "revoke"] => "revoke",
        ["logout"] => "logout",
        ["oauth2", "v2", "user_profile"] => "profile",
        ["api", "v1", "users", ..] => "users",
        ["api", "v1", "user"] => "user",
        ["api", "v1", "webhooks", ..] => "webhooks",
        ["api", "v1", "event_types"] => "event_types",
        ["api", "v1", "events", _] => "events",
        _ => return None,
    })
}

/// A place among the requests at one time; freed when the answer is there or the caller has gone.
struct Place(Emulator);

impl Place {
    fn take(emulator: &Emulator) -> Result<Self, Duration> {
        emulator.limiter().enter(Instant::now())?;
        Ok(Self(emulator.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.limiter().leave();
    }
}

fn throttled(reset: u64) -> Response {
    let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_REQUESTS", "Request was throttled");
    ([("RateLimit-Reset", reset.to_string())], refusal).into_response()
}

async fn wait(emulator: &Emulator, min: Duration, max: Duration) {
    let wait = emulator.faults_table().between(min, max);
    tokio::time::sleep(wait).await;
}

/// The answer that stands in for the route's own.
fn refusal(fault: &FaultKind) -> Option<Response> {
    match fault {
        FaultKind::RateLimit { reset } => Some(throttled(*reset)),
        FaultKind::Status { status } => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Some(Refusal::new(status, "EMULATED_FAULT", "This answer was asked for").into_response())
        }
        _ => None,
    }
}

/// The route's own answer, spoilt.
async fn mangle(response: Response, fault: &FaultKind) -> Response {
    let (mut parts, body) = response.into_parts();
    let Ok(body) = to_bytes(body, LARGEST_BODY).await else {
        return Response::from_parts(parts, Body::empty());
    };
    let half = body.slice(..body.len() / 2);
    parts.headers.remove(header::CONTENT_LENGTH);
    match fault {
        FaultKind::CutBody => {
            parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
            Response::from_parts(parts, cut_after(half))
        }
        FaultKind::WrongDate { ahead } => {
            parts.headers.extend(date(*ahead).map(|date| (header::DATE, date)));
            Response::from_parts(parts, Body::from(body))
        }
        FaultKind::TruncatedJson => Response::from_parts(parts, Body::from(half)),
        FaultKind::Garbage => {
            parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
            Response::from_parts(parts, Body::from("<html>not what you asked for</html>"))
        }
        _ => Response::from_parts(parts, Body::from(body)),
    }
}

/// A `Date` (RFC 9110, 5.6.7) so many seconds ahead.
fn date(ahead: i64) -> Option<HeaderValue> {
    let at = Timestamp::now().checked_add(SignedDuration::from_secs(ahead)).ok()?;
    HeaderValue::from_str(&at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()).ok()
}

/// Sends these bytes and then breaks the connection.
fn cut_after(bytes: Bytes) -> Body {
    let cut = std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "cut on purpose");
    Body::from_stream(stream::unfold(Some((Some(bytes), cut)), |left| async move {
        match left? {
            (Some(bytes), cut) => Some((Ok(bytes), Some((None, cut)))),
            (None, cut) => {
                // Let the first half leave before the error closes the connection.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some((Err(cut), None))
            }
        }
    }))
}
