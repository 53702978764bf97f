//! Every error answer, as a problem document (RFC 9457). One place, exhaustive.
//!
//! A 5xx says what the caller may do and carries a request id; its cause is in the log under the same id, never in
//! the answer.

use std::{
    borrow::Cow,
    collections::hash_map::RandomState,
    fmt,
    hash::BuildHasher,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::{Deserialize, Serialize};

/// The media type of RFC 9457 section 3.
pub const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The body of every answer that kinsync makes.
pub type Body = Full<Bytes>;

/// The reason of [`Problem::Unauthenticated`] when there is no token at all.
pub const NO_TOKEN: &str = "no_token";

/// What went wrong with a request.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Problem {
    /// There is no such route.
    NoRoute,
    /// The route exists, for these methods.
    MethodNotAllowed {
        /// The value of `Allow`.
        allow: Cow<'static, str>,
    },
    /// The body is larger than the limit, or says so.
    BodyTooLarge {
        /// In bytes.
        limit: usize,
    },
    /// The body did not arrive in time.
    BodyTooSlow {
        /// How long was waited.
        deadline: Duration,
    },
    /// The connection broke inside the body, or its framing is wrong.
    BodyBroken,
    /// The body is compressed: a signature is over the bytes as sent.
    EncodedBody,
    /// The delivery could not be verified. Nothing was stored.
    Unverified {
        /// A word for programs.
        reason: &'static str,
        /// A sentence for people.
        detail: String,
        /// How a delivery is signed so that it is taken, one text per scheme that is on.
        how_to_sign: Vec<String>,
    },
    /// There is no access token of a user, or it is not good.
    Unauthenticated {
        /// A word for programs.
        reason: &'static str,
        /// A sentence for people.
        detail: String,
    },
    /// The token is good and its user may not go on.
    UserRefused {
        /// `deleted` or `suspended`.
        reason: &'static str,
    },
    /// It could not be done now. The caller should send it again.
    Unavailable {
        /// When to come again.
        retry_after: Duration,
        /// Under which the cause is logged.
        request: RequestId,
    },
    /// A fault of ours.
    Internal {
        /// Under which the cause is logged.
        request: RequestId,
    },
    /// A parameter of the request is wrong.
    BadParameter {
        /// Which, and what would be right.
        detail: String,
    },
    /// The door is closed by a setting.
    Closed {
        /// What is behind it.
        what: &'static str,
        /// The variable that opens it.
        opened_by: &'static str,
    },
    /// The admin token is missing.
    NoToken,
    /// The admin token is not the right one.
    WrongToken,
    /// What was asked for is not there.
    NotFound {
        /// Such as `user`.
        what: &'static str,
    },
}

impl Problem {
    /// The status that the answer has.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadParameter { .. } | Self::BodyBroken => StatusCode::BAD_REQUEST,
            Self::Unverified { .. } | Self::Unauthenticated { .. } | Self::NoToken | Self::WrongToken => {
                StatusCode::UNAUTHORIZED
            }
            Self::UserRefused { .. } | Self::Closed { .. } => StatusCode::FORBIDDEN,
            Self::NoRoute | Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::EncodedBody => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The last part of `type`: what programs go by.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoRoute => "no-route",
            Self::MethodNotAllowed { .. } => "method-not-allowed",
            Self::BodyTooLarge { .. } => "body-too-large",
            Self::BodyTooSlow { .. } => "body-too-slow",
            Self::BodyBroken => "body-broken",
            Self::EncodedBody => "encoded-body",
            Self::Unverified { .. } => "unverified-delivery",
            Self::Unauthenticated { .. } => "unauthenticated",
            Self::UserRefused { .. } => "user-refused",
            Self::Unavailable { .. } => "unavailable",
            Self::Internal { .. } => "internal",
            Self::BadParameter { .. } => "bad-parameter",
            Self::Closed { .. } => "closed",
            Self::NoToken => "no-token",
            Self::WrongToken => "wrong-token",
            Self::NotFound { .. } => "not-found",
        }
    }

    fn title(&self) -> &'static str {
        match self {
            Self::NoRoute => "there is no such route",
            Self::MethodNotAllowed { .. } => "the method is not allowed here",
            Self::BodyTooLarge { .. } => "the body is too large",
            Self::BodyTooSlow { .. } => "the body did not arrive in time",
            Self::BodyBroken => "the body is broken",
            Self::EncodedBody => "a compressed body is not accepted",
            Self::Unverified { .. } => "the delivery could not be verified",
            Self::Unauthenticated { .. } => "the access token is missing or not good",
            Self::UserRefused { .. } => "the user may not go on",
            Self::Unavailable { .. } => "this cannot be done right now",
            Self::Internal { .. } => "something went wrong here",
            Self::BadParameter { .. } => "a parameter is wrong",
            Self::Closed { .. } => "this is closed",
            Self::NoToken => "the admin token is missing",
            Self::WrongToken => "the admin token is wrong",
            Self::NotFound { .. } => "it is not there",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::NoRoute => "GET / lists the routes".into(),
            Self::MethodNotAllowed { allow } => format!("allowed: {allow}"),
            Self::BodyTooLarge { limit } => format!("at most {limit} bytes are read; nothing was stored"),
            Self::BodyTooSlow { deadline } => {
                format!("it has to be complete after {} s; nothing was stored", deadline.as_secs_f32())
            }
            Self::BodyBroken => "the connection broke or the framing is wrong; nothing was stored".into(),
            Self::EncodedBody => {
                "the signature is over the bytes as sent: send without Content-Encoding".into()
            }
            Self::Unverified { detail, .. }
            | Self::Unauthenticated { detail, .. }
            | Self::BadParameter { detail } => detail.clone(),
            Self::UserRefused { reason } => {
                format!("the user of this token is {reason}; no new token helps before that changes at Kinde")
            }
            Self::Unavailable { retry_after, .. } => {
                format!("send it again in {} s; a repetition does no harm", retry_after.as_secs())
            }
            Self::Internal { .. } => "the cause is in the log under the request id".into(),
            Self::Closed { what, opened_by } => format!("{what} are closed; set {opened_by} to open them"),
            Self::NoToken => "send `Authorization: Bearer <KINSYNC_ADMIN_TOKEN>`".into(),
            Self::WrongToken => "the token is not the KINSYNC_ADMIN_TOKEN of this server".into(),
            Self::NotFound { what } => format!("there is no such {what}"),
        }
    }

    /// The document.
    pub fn document(&self) -> Document {
        let (reason, how_to_sign) = match self {
            Self::Unverified { reason, how_to_sign, .. } => {
                (Some((*reason).into()), Some(how_to_sign.clone()))
            }
            Self::Unauthenticated { reason, .. } | Self::UserRefused { reason } => {
                (Some((*reason).into()), None)
            }
            _ => (None, None),
        };
        let request_id = match self {
            Self::Unavailable { request, .. } | Self::Internal { request } => Some(request.to_string()),
            _ => None,
        };
        Document {
            kind: format!("urn:problem-type:kinsync:{}", self.code()),
            title: self.title().into(),
            status: self.status().as_u16(),
            detail: self.detail(),
            reason,
            how_to_sign,
            request_id,
            cause: None,
        }
    }

    /// The header that the status asks for, if any.
    fn header(&self) -> Option<(header::HeaderName, HeaderValue)> {
        Some(match self {
            Self::MethodNotAllowed { allow } => (header::ALLOW, HeaderValue::from_str(allow).ok()?),
            Self::EncodedBody => (header::ACCEPT_ENCODING, HeaderValue::from_static("identity")),
            Self::Unverified { .. } => {
                (header::WWW_AUTHENTICATE, HeaderValue::from_static("Signature realm=\"kinsync webhook\""))
            }
            // RFC 6750 section 3.1: a request without credentials is told no error code.
            Self::Unauthenticated { reason: NO_TOKEN, .. } => {
                (header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"kinsync\""))
            }
            Self::Unauthenticated { .. } => (
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"kinsync\", error=\"invalid_token\""),
            ),
            Self::NoToken => {
                (header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"kinsync admin\""))
            }
            Self::WrongToken => (
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"kinsync admin\", error=\"invalid_token\""),
            ),
            Self::Unavailable { retry_after, .. } => {
                (header::RETRY_AFTER, HeaderValue::from(retry_after.as_secs().max(1)))
            }
            // What is left of the body would be taken for the next request.
            Self::BodyTooLarge { .. } | Self::BodyTooSlow { .. } | Self::BodyBroken => {
                (header::CONNECTION, HeaderValue::from_static("close"))
            }
            _ => return None,
        })
    }

    /// The answer.
    pub fn into_response(self) -> Response<Body> {
        self.into_response_with_cause(None)
    }

    /// The answer to an operator, who may know the cause. [`chain`] writes one.
    pub fn into_response_with_cause(self, cause: Option<String>) -> Response<Body> {
        let document = Document { cause, ..self.document() };
        let document = serde_json::to_vec(&document).expect("a struct of texts and a number is JSON");
        let mut response = Response::new(Full::from(document));
        *response.status_mut() = self.status();
        response.headers_mut().insert(header::CONTENT_TYPE, MEDIA_TYPE);
        if let Some((name, value)) = self.header() {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// A problem document: the members of RFC 9457, and four of kinsync's own.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = Problem))]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// What kind of problem, for programs.
    #[serde(rename = "type")]
    pub kind: String,
    /// What kind of problem, for people.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub title: Cow<'static, str>,
    /// The status of the answer.
    pub status: u16,
    /// What is wrong this time, and what to do.
    pub detail: String,
    /// Why a delivery, a token or a user was refused, in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub reason: Option<Cow<'static, str>>,
    /// How it is signed so that it is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub how_to_sign: Option<Vec<String>>,
    /// Under which the cause is logged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// What failed, with all causes. Only on routes for operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// Names a request in the log and in the answer. Made only for answers that need one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestId(u64);

impl RequestId {
    /// A new one, unlike those of other processes.
    pub fn next() -> Self {
        static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Self(SEED.hash_one(COUNT.fetch_add(1, Ordering::Relaxed)))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "req_{:016x}", self.0)
    }
}

/// An error and its causes, in one line: for the log, never for an answer.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_5xx_names_the_request_and_says_when_to_come_again() {
        let request = RequestId::next();
        let problem = Problem::Unavailable { retry_after: Duration::from_secs(5), request };
        let document = problem.document();
        assert_eq!(document.request_id, Some(request.to_string()));
        assert_eq!(document.kind, "urn:problem-type:kinsync:unavailable");
        let response = problem.into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "5");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    }

    #[test]
    fn request_ids_differ() {
        assert_ne!(RequestId::next(), RequestId::next());
    }
}
