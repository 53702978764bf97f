//! Error responses as problem documents (RFC 9457): status, code, texts and headers of each problem in one place.
//!
//! A 5xx describes what the client can do and carries a request id. Its cause is logged under the same id and is not part of
//! the response.

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

use crate::requirement::Requirement;

/// The media type of RFC 9457 section 3.
pub const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The body of every response that this crate makes.
pub type Body = Full<Bytes>;

/// The reason of [`Problem::Unauthenticated`] for a request without a token.
pub const NO_TOKEN: &str = "no_token";

/// Why a request failed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Problem {
    /// No route has this path.
    NoRoute,
    /// The route does not support the method.
    MethodNotAllowed {
        /// The value of `Allow`.
        allow: Cow<'static, str>,
    },
    /// The request head is larger than the limit.
    HeadTooLarge {
        /// In bytes.
        limit: usize,
    },
    /// The request has no `Host`, or several.
    BadHost,
    /// The request has a `Transfer-Encoding` other than `chunked`.
    UnknownTransferCoding,
    /// The body or its `Content-Length` is larger than the limit.
    BodyTooLarge {
        /// In bytes.
        limit: usize,
    },
    /// The body did not arrive in time.
    BodyTooSlow {
        /// Time that the body had.
        deadline: Duration,
    },
    /// The connection closed inside the body, or the framing of the body is wrong.
    BodyBroken,
    /// The body is compressed. Signatures cover the bytes as sent.
    EncodedBody,
    /// The verification of the delivery failed. Nothing was stored.
    Unverified {
        /// A stable code for programs.
        reason: &'static str,
        /// An explanation in English.
        detail: String,
        /// How to sign a delivery, one text per enabled scheme.
        how_to_sign: Vec<String>,
    },
    /// The access token is missing or invalid.
    Unauthenticated {
        /// A stable code for programs.
        reason: &'static str,
        /// An explanation in English.
        detail: String,
    },
    /// The token is valid, and its user is deleted or suspended.
    UserRefused {
        /// `deleted` or `suspended`.
        reason: &'static str,
    },
    /// The user has not the role or permission that the request needs in the organization of the token.
    NotPermitted {
        /// `missing_role`, `missing_permission`, `no_organization`, `not_a_member` or `suspended_in_organization`.
        reason: &'static str,
        /// What the request needs.
        needed: Requirement,
    },
    /// The request needs a role or a permission, and the store does not know those of the user.
    RolesUnknown {
        /// What the request needs.
        needed: Requirement,
    },
    /// The token is valid, and the store has no document of its user, because an index or a validator of the database
    /// refuses it.
    DocumentRefused {
        /// 503, or 403 for a reverse proxy that handles no other refusal.
        status: StatusCode,
    },
    /// The request cannot be processed at the moment. The client should send it again.
    Unavailable {
        /// Time to wait before the next attempt.
        retry_after: Duration,
        /// Identifies the request in the log.
        request: RequestId,
    },
    /// An error of the server.
    Internal {
        /// Identifies the request in the log.
        request: RequestId,
    },
    /// A parameter of the request is invalid.
    BadParameter {
        /// Which parameter, and what is valid.
        detail: String,
    },
    /// The feature is disabled by a setting.
    Disabled {
        /// The feature.
        what: &'static str,
        /// The environment variable that enables it.
        enabled_by: &'static str,
    },
    /// The admin token is missing.
    NoToken,
    /// The admin token is wrong.
    WrongToken,
    /// The client sent wrong admin tokens before. Further requests of it are refused for a time.
    TooManyWrongTokens {
        /// Time until the next attempt is accepted.
        retry_after: Duration,
    },
    /// The admin token is right and does not have the scope of the route.
    MissingScope {
        /// The scope that the route needs.
        scope: &'static str,
    },
    /// The `Host` is not one under which the admin routes are served.
    UnknownHost,
    /// The requested record does not exist.
    NotFound {
        /// Such as `user`.
        what: &'static str,
    },
}

impl Problem {
    /// Returns the status of the response.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadParameter { .. } | Self::BodyBroken | Self::BadHost => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UnknownTransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::Unverified { .. } | Self::Unauthenticated { .. } | Self::NoToken | Self::WrongToken => {
                StatusCode::UNAUTHORIZED
            }
            Self::TooManyWrongTokens { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::UnknownHost => StatusCode::MISDIRECTED_REQUEST,
            Self::UserRefused { .. }
            | Self::NotPermitted { .. }
            | Self::RolesUnknown { .. }
            | Self::Disabled { .. }
            | Self::MissingScope { .. } => StatusCode::FORBIDDEN,
            Self::NoRoute | Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::EncodedBody => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::DocumentRefused { status } => *status,
        }
    }

    /// Returns the last part of `type`, a stable code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoRoute => "no-route",
            Self::MethodNotAllowed { .. } => "method-not-allowed",
            Self::HeadTooLarge { .. } => "head-too-large",
            Self::BadHost => "bad-host",
            Self::UnknownTransferCoding => "unknown-transfer-coding",
            Self::BodyTooLarge { .. } => "body-too-large",
            Self::BodyTooSlow { .. } => "body-too-slow",
            Self::BodyBroken => "body-broken",
            Self::EncodedBody => "encoded-body",
            Self::Unverified { .. } => "unverified-delivery",
            Self::Unauthenticated { .. } => "unauthenticated",
            Self::UserRefused { .. } => "user-refused",
            Self::NotPermitted { .. } => "not-permitted",
            Self::RolesUnknown { .. } => "roles-unknown",
            Self::DocumentRefused { .. } => "document-refused",
            Self::Unavailable { .. } => "unavailable",
            Self::Internal { .. } => "internal",
            Self::BadParameter { .. } => "bad-parameter",
            Self::Disabled { .. } => "disabled",
            Self::NoToken => "no-token",
            Self::WrongToken => "wrong-token",
            Self::TooManyWrongTokens { .. } => "too-many-wrong-tokens",
            Self::MissingScope { .. } => "missing-scope",
            Self::UnknownHost => "unknown-host",
            Self::NotFound { .. } => "not-found",
        }
    }

    fn title(&self) -> &'static str {
        match self {
            Self::NoRoute => "route not found",
            Self::MethodNotAllowed { .. } => "method not allowed",
            Self::HeadTooLarge { .. } => "request head too large",
            Self::BadHost => "invalid Host header",
            Self::UnknownTransferCoding => "unsupported Transfer-Encoding",
            Self::BodyTooLarge { .. } => "request body too large",
            Self::BodyTooSlow { .. } => "request body incomplete at the deadline",
            Self::BodyBroken => "request body broken",
            Self::EncodedBody => "compressed request body",
            Self::Unverified { .. } => "delivery not verified",
            Self::Unauthenticated { .. } => "access token missing or invalid",
            Self::UserRefused { .. } => "user deleted or suspended",
            Self::NotPermitted { .. } => "role or permission missing",
            Self::RolesUnknown { .. } => "roles not known",
            Self::DocumentRefused { .. } => "document of the user refused",
            Self::Unavailable { .. } => "temporarily unavailable",
            Self::Internal { .. } => "internal error",
            Self::BadParameter { .. } => "invalid parameter",
            Self::Disabled { .. } => "disabled by configuration",
            Self::NoToken => "admin token missing",
            Self::WrongToken => "admin token wrong",
            Self::TooManyWrongTokens { .. } => "too many wrong admin tokens",
            Self::MissingScope { .. } => "admin token lacks the scope",
            Self::UnknownHost => "unknown Host header",
            Self::NotFound { .. } => "record not found",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::NoRoute => "GET / lists the routes".into(),
            Self::MethodNotAllowed { allow } => format!("this route supports {allow}"),
            Self::HeadTooLarge { limit } => format!("the limit for all header lines is {limit} bytes"),
            Self::BadHost => "send exactly one Host header".into(),
            Self::UnknownTransferCoding => "send the body with Content-Length, or as `chunked` alone".into(),
            Self::BodyTooLarge { limit } => format!("the limit is {limit} bytes; nothing was stored"),
            Self::BodyTooSlow { deadline } => {
                format!("the body must arrive within {} s; nothing was stored", deadline.as_secs_f32())
            }
            Self::BodyBroken => {
                "the connection closed inside the body, or its framing is wrong; nothing was stored".into()
            }
            Self::EncodedBody => {
                "signatures cover the bytes as sent: send the body without Content-Encoding".into()
            }
            Self::Unverified { detail, .. }
            | Self::Unauthenticated { detail, .. }
            | Self::BadParameter { detail } => detail.clone(),
            Self::UserRefused { reason } => {
                format!("the user of this token is {reason} at Kinde; a new token does not change that")
            }
            Self::NotPermitted { reason, needed } => not_permitted(reason, needed),
            Self::RolesUnknown { needed } => format!(
                "this needs {needed} in the organization of the token, and those of the user are not known yet. They come with \
                 the next event about the user, or with scans that compare roles: KINSYNC_RECONCILE_ROLES=true, and the scopes \
                 that `kinsync doctor` names. KINSYNC_UNKNOWN_ROLES=token uses the claims of the token until then"
            ),
            Self::DocumentRefused { .. } => {
                "a rule of the database refuses the document of this user; `kinsync users explain` names the rule, and \
                 the user is stored as soon as the rule allows it"
                    .into()
            }
            Self::Unavailable { retry_after, .. } => {
                format!("send the request again in {} s; repeating it is safe", retry_after.as_secs())
            }
            Self::Internal { .. } => "the server's log has the cause under the request id".into(),
            Self::Disabled { what, enabled_by } => {
                format!("{what} are disabled; set {enabled_by} to enable them")
            }
            Self::NoToken => "send `Authorization: Bearer <KINSYNC_ADMIN_TOKEN>`".into(),
            Self::WrongToken => {
                "the token is neither KINSYNC_ADMIN_TOKEN nor one of KINSYNC_ADMIN_TOKENS of this server".into()
            }
            Self::TooManyWrongTokens { retry_after } => format!(
                "wrong tokens came from this address; it is refused for {} s, right tokens included",
                retry_after.as_secs().max(1)
            ),
            Self::MissingScope { scope } => format!("this route needs a token with the scope `{scope}`"),
            Self::UnknownHost => {
                "the admin routes are served under localhost, an IP address and the host of KINSYNC_PUBLIC_URL; add others to \
                 KINSYNC_ADMIN_HOSTS"
                    .into()
            }
            Self::NotFound { what } => format!("no {what} has this id"),
        }
    }

    /// Returns the reason that a delivery, a token or a user was refused, as a stable code.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Unverified { reason, .. }
            | Self::Unauthenticated { reason, .. }
            | Self::UserRefused { reason }
            | Self::NotPermitted { reason, .. } => Some(reason),
            Self::RolesUnknown { .. } => Some("roles_unknown"),
            Self::DocumentRefused { .. } => Some("document_refused"),
            _ => None,
        }
    }

    /// Returns the problem document.
    pub fn document(&self) -> Document {
        let how_to_sign = match self {
            Self::Unverified { how_to_sign, .. } => Some(how_to_sign.clone()),
            _ => None,
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
            reason: self.reason().map(Cow::Borrowed),
            how_to_sign,
            request_id,
            cause: None,
        }
    }

    /// Returns the header that the status requires, if any.
    fn header(&self) -> Option<(header::HeaderName, HeaderValue)> {
        Some(match self {
            Self::MethodNotAllowed { allow } => (header::ALLOW, HeaderValue::from_str(allow).ok()?),
            Self::EncodedBody => (header::ACCEPT_ENCODING, HeaderValue::from_static("identity")),
            Self::Unverified { .. } => {
                (header::WWW_AUTHENTICATE, HeaderValue::from_static("Signature realm=\"kinsync webhook\""))
            }
            // RFC 6750 section 3.1: no error code for a request without credentials.
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
            Self::Unavailable { retry_after, .. } | Self::TooManyWrongTokens { retry_after } => {
                (header::RETRY_AFTER, HeaderValue::from(retry_after.as_secs().max(1)))
            }
            // The server tries to store the user once a minute.
            Self::DocumentRefused { status: StatusCode::SERVICE_UNAVAILABLE } => {
                (header::RETRY_AFTER, HeaderValue::from_static("60"))
            }
            // The unread rest of the body would be parsed as the next request.
            Self::BodyTooLarge { .. } | Self::BodyTooSlow { .. } | Self::BodyBroken => {
                (header::CONNECTION, HeaderValue::from_static("close"))
            }
            _ => return None,
        })
    }

    /// Converts the problem to a response.
    pub fn into_response(self) -> Response<Body> {
        self.into_response_with_cause(None)
    }

    /// Converts the problem to a response for an operator, with the cause. [`chain`] formats one.
    pub fn into_response_with_cause(self, cause: Option<String>) -> Response<Body> {
        let document = Document { cause, ..self.document() };
        let mut document = serde_json::to_vec(&document).expect("texts and a number serialize to JSON");
        // For terminals.
        document.push(b'\n');
        let mut response = Response::new(Full::from(document));
        *response.status_mut() = self.status();
        response.headers_mut().insert(header::CONTENT_TYPE, MEDIA_TYPE);
        if let Some((name, value)) = self.header() {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

fn not_permitted(reason: &str, needed: &Requirement) -> String {
    match reason {
        "no_organization" => {
            format!("this needs {needed}, and the token names no organization: sign in to one")
        }
        "not_a_member" => format!(
            "this needs {needed} in the organization of the token, and the user is not a member of it, or it was deleted"
        ),
        "suspended_in_organization" => {
            format!("this needs {needed} in the organization of the token, and the user is suspended in it")
        }
        _ => format!("this needs {needed} in the organization of the token, and the user does not have it"),
    }
}

/// A problem document: the members of RFC 9457, and the extensions `reason`, `howToSign`, `requestId` and `cause`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = Problem))]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// URN of the problem type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Summary of the problem type.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub title: Cow<'static, str>,
    /// Status of the response.
    pub status: u16,
    /// Explanation of this occurrence, with the next step.
    pub detail: String,
    /// Stable code of the reason that a delivery, a token or a user was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub reason: Option<Cow<'static, str>>,
    /// How to sign a delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub how_to_sign: Option<Vec<String>>,
    /// Identifies the request in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// What failed, with all causes. Only on routes for operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// Identifies a request in the log and in the response. Created only for responses that carry one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestId(u64);

impl RequestId {
    /// Creates an id that differs from those of other processes.
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

/// Formats an error and its causes in one line, for the log.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_503_carries_the_request_id_and_retry_after() {
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
