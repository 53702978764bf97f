//! Counts requests per route, applies the rate limits and injects the HTTP faults.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use jiff::SignedDuration;
use tokio::time::Instant;

use super::response::ErrorResponse;
use crate::faults::FaultKind;
use crate::limits;
use crate::{clock, emulator::Emulator};

const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;
const RATE_LIMIT_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
/// Used for a number that is not a valid status.
const INVALID_STATUS: StatusCode = StatusCode::INTERNAL_SERVER_ERROR;

pub(super) async fn count_and_fault(
    State(emulator): State<Emulator>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let Some(route) = route_name(path) else { return next.run(request).await };
    let is_management = path.starts_with("/api/v1/");
    let slot = is_management.then(|| Slot::take(&emulator)).transpose();
    // Held before it is counted: a test sees the count and holds the next one.
    let released = slot.is_ok().then(|| emulator.held(route)).flatten();
    emulator.count_request(route);
    let _slot = match slot {
        Ok(slot) => slot,
        Err(wait) => return throttled(limits::seconds(wait)),
    };
    if let Some(released) = released {
        released.cancelled().await;
    }
    let mut faults = emulator.faults_table().on_request(route, is_management);
    for fault in &faults {
        if let FaultKind::Slow { min, max } = fault {
            wait(&emulator, *min, *max).await;
        }
    }
    faults.sort_by_key(order);
    faults.dedup_by_key(|fault| order(fault));
    let mut response = match replacement(&faults) {
        Some(response) => response,
        None => next.run(request).await,
    };
    for fault in &faults {
        response = modify(response, fault).await;
    }
    response
}

/// The order in which faults are applied to one response, independent of the order in which they were set. Of several
/// faults of one kind one is applied.
fn order(fault: &FaultKind) -> u8 {
    match fault {
        FaultKind::WrongDate { .. } | FaultKind::MissingDate => 1,
        FaultKind::Garbage => 2,
        FaultKind::TruncatedJson => 3,
        // The body cannot be read after this.
        FaultKind::CutBody => 4,
        FaultKind::RateLimit { .. } => 5,
        FaultKind::Status { .. } => 6,
        _ => 7,
    }
}

/// The name of a route in counters and faults; `None` for the control API.
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
        ["api", "v1", "users", _, "properties", ..] => "properties",
        ["api", "v1", "properties"] => "property_definitions",
        ["api", "v1", "users", ..] => "users",
        ["api", "v1", "search", "users"] => "search",
        ["api", "v1", "organizations"] => "organizations",
        ["api", "v1", "organization", ..] => "organization",
        ["api", "v1", "organizations", _, "users", _, "roles", ..] => "member_roles",
        ["api", "v1", "organizations", _, "users", _, "permissions", ..] => "member_permissions",
        ["api", "v1", "organizations", _, "users", ..] => "members",
        ["api", "v1", "roles", _, "permissions", ..] => "role_permissions",
        ["api", "v1", "roles", _, "users"] | ["api", "v1", "organizations", _, "roles", _, "users"] => {
            "role_users"
        }
        ["api", "v1", "roles", ..] => "roles",
        ["api", "v1", "permissions", ..] => "permissions",
        ["api", "v1", "user"] => "user",
        ["api", "v1", "webhooks", ..] => "webhooks",
        ["api", "v1", "event_types"] => "event_types",
        ["api", "v1", "events", _] => "events",
        _ => return None,
    })
}

/// One of the concurrent requests that the limits allow. Released at the response or when the client disconnects.
struct Slot(Emulator);

impl Slot {
    fn take(emulator: &Emulator) -> Result<Self, Duration> {
        emulator.limiter().enter(Instant::now())?;
        Ok(Self(emulator.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.limiter().leave();
    }
}

fn throttled(reset: u64) -> Response {
    let error =
        ErrorResponse::new(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_REQUESTS", "Request was throttled");
    ([(RATE_LIMIT_RESET, reset.to_string())], error).into_response()
}

async fn wait(emulator: &Emulator, min: Duration, max: Duration) {
    let wait = emulator.faults_table().between(min, max);
    tokio::time::sleep(wait).await;
}

/// The response that replaces that of the route. With both faults it has the status of one and the header of the other.
fn replacement(faults: &[FaultKind]) -> Option<Response> {
    let reset = faults.iter().find_map(|fault| match fault {
        FaultKind::RateLimit { reset } => Some(*reset),
        _ => None,
    });
    let status = faults.iter().find_map(|fault| match fault {
        FaultKind::Status { status } => StatusCode::from_u16(*status).ok().or(Some(INVALID_STATUS)),
        _ => None,
    });
    let Some(status) = status else { return reset.map(throttled) };
    let mut response =
        ErrorResponse::new(status, "EMULATED_FAULT", "This response is an injected fault").into_response();
    response.headers_mut().extend(reset.map(|reset| (RATE_LIMIT_RESET, HeaderValue::from(reset))));
    Some(response)
}

/// Applies a fault to a response. Other kinds of faults do not change it.
async fn modify(response: Response, fault: &FaultKind) -> Response {
    use FaultKind::{CutBody, Garbage, MissingDate, TruncatedJson, WrongDate};
    if !matches!(fault, WrongDate { .. } | MissingDate | Garbage | TruncatedJson | CutBody) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY_BYTES).await else {
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
        FaultKind::MissingDate => {
            // The server adds a `Date` to a response without this header.
            parts.headers.insert(header::DATE, HeaderValue::from_static(""));
            Response::from_parts(parts, Body::from(body))
        }
        FaultKind::TruncatedJson => Response::from_parts(parts, Body::from(half)),
        FaultKind::Garbage => {
            parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
            Response::from_parts(parts, Body::from("<html>not JSON</html>"))
        }
        _ => Response::from_parts(parts, Body::from(body)),
    }
}

/// A `Date` header (RFC 9110, 5.6.7) that is `ahead` seconds ahead.
fn date(ahead: i64) -> Option<HeaderValue> {
    let at = clock::now().checked_add(SignedDuration::from_secs(ahead)).ok()?;
    HeaderValue::from_str(&at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()).ok()
}

/// Sends these bytes and then closes the connection.
fn cut_after(bytes: Bytes) -> Body {
    let cut = std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "injected fault");
    Body::from_stream(stream::unfold(Some((Some(bytes), cut)), |state| async move {
        match state? {
            (Some(bytes), cut) => Some((Ok(bytes), Some((None, cut)))),
            (None, cut) => {
                // The first half must be sent before the error closes the connection.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some((Err(cut), None))
            }
        }
    }))
}
