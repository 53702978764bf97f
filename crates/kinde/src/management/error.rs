//! The reasons why a call of the Management API fails, with the next step for an operator.

use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::error::Category;

use super::retry::Again;
use crate::labels::labels;
use crate::{event, json};

/// The reason why a call failed. Contains no credential and no personal data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No token is available, so no request was sent. All calls that waited for the token share the error.
    #[error("cannot get a token for Kinde's Management API")]
    TokenUnavailable(#[source] Arc<Error>),
    /// The token endpoint rejects the client id, secret, audience or scope.
    #[error(
        "kinde rejects the client credentials (`{code}`: {message}): check the client id and secret, and that the application is a machine-to-machine application that is authorised for the Kinde Management API"
    )]
    InvalidCredentials {
        /// `error` of the response, for example `invalid_client`.
        code: String,
        /// `error_description`.
        message: String,
    },
    /// The API rejects the token, a new one too.
    #[error(
        "kinde's Management API rejects the token (`{code}`: {message}): check that the domain is the kinde.com one (a custom domain does not serve the API) and that the audience is `https://<tenant>.kinde.com/api`, and grant the scope `{scope}`"
    )]
    Unauthorized {
        /// The scope that Kinde documents for the endpoint.
        scope: &'static str,
        /// Kinde's code; may be empty.
        code: String,
        /// Kinde's message; may be empty.
        message: String,
    },
    /// The application lacks a scope.
    #[error(
        "the machine-to-machine application lacks the scope `{scope}`: grant it in Kinde under Settings > APIs > Kinde Management API, then try again (a token is used for at least a minute)"
    )]
    MissingScope {
        /// The scope in Kinde's message, else the one that Kinde documents for the endpoint.
        scope: String,
    },
    /// Kinde limits the rate of requests, also after pauses.
    #[error("kinde limits the rate of requests: send fewer requests, or allow more time")]
    RateLimited {
        /// How long to wait, if the response had `RateLimit-Reset`.
        retry_after: Option<Duration>,
    },
    /// The limit of concurrent requests delayed the call until its time was over, or the runtime ended.
    #[error("too many concurrent requests: allow more of them, or more time")]
    ConcurrencyTimeout,
    /// No complete response within the time limit. A request that changes something may have taken effect.
    #[error("no complete response from kinde")]
    Unreachable(#[source] reqwest::Error),
    /// Another status.
    #[error("unexpected status {status} (`{code}`: {message})")]
    UnexpectedStatus {
        /// The status.
        status: StatusCode,
        /// Kinde's code; empty if the response does not come from the API but, for example, from a proxy.
        code: String,
        /// Kinde's message; may be empty.
        message: String,
    },
    /// The response exceeds the size limit.
    #[error("the response exceeds {limit} bytes: use smaller pages")]
    ResponseTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// A successful response is not a JSON object, for example a web page or incomplete JSON.
    #[error(
        "the response is not a JSON object ({problem}): check that no proxy answers in place of the domain"
    )]
    NotJson {
        /// `incomplete JSON`, `not JSON` or `other JSON`.
        problem: &'static str,
    },
    /// A successful response differs from the documentation of the API.
    #[error("the response differs from the documentation of the API")]
    InvalidResponse(#[source] event::Error),
    /// The response contains another user than the requested one.
    #[error("the response contains another user than the requested one")]
    WrongUser,
    /// The response contains another organization or role than the requested one.
    #[error("the response contains another object than the requested one")]
    WrongObject,
    /// The id is not valid, so no request was sent.
    #[error("not a valid id: 1 to 256 bytes without control characters")]
    InvalidIdentifier,
    /// The list refers to a page that was already read, so it would never end. Start again.
    #[error("the list refers to a page that was already read: start again")]
    RepeatedToken,
    /// The list has too many pages.
    #[error("the list has more than {limit} pages: increase the limit if the tenant is that large")]
    TooManyPages {
        /// The limit.
        limit: u32,
    },
}

impl Error {
    /// Returns true if the same call may succeed later without a change of configuration.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TokenUnavailable(source) => source.is_transient(),
            Self::RateLimited { .. }
            | Self::Unreachable(_)
            | Self::NotJson { .. }
            | Self::RepeatedToken
            | Self::ConcurrencyTimeout => true,
            Self::UnexpectedStatus { status, .. } => {
                status.is_server_error() || *status == StatusCode::REQUEST_TIMEOUT
            }
            _ => false,
        }
    }

    /// Returns the label of a result in metrics.
    pub(super) fn outcome_of(error: Option<&Self>) -> &'static str {
        error.map_or("ok", Self::outcome)
    }

    /// Returns whether and when the same request may succeed.
    pub(super) fn again(&self) -> Again {
        match self {
            Self::RateLimited { retry_after: Some(retry_after) } => Again::After(*retry_after),
            Self::RateLimited { .. } | Self::Unreachable(_) | Self::NotJson { .. } => Again::Soon,
            Self::UnexpectedStatus { .. } if self.is_transient() => Again::Soon,
            _ => Again::Never,
        }
    }
}

labels! {
    /// Every [`Self::outcome`]. Without an error it is `ok` or `absent`.
    OUTCOMES,
    /// Returns a stable label for metrics.
    outcome of Error {
        Self::TokenUnavailable(_) => "token_unavailable",
        Self::InvalidCredentials { .. } => "invalid_credentials",
        Self::Unauthorized { .. } => "unauthorized",
        Self::MissingScope { .. } => "missing_scope",
        Self::RateLimited { .. } => "rate_limited",
        Self::ConcurrencyTimeout => "concurrency_timeout",
        Self::Unreachable(_) => "unreachable",
        Self::UnexpectedStatus { .. } => "unexpected_status",
        Self::ResponseTooLarge { .. } => "response_too_large",
        Self::NotJson { .. } | Self::InvalidResponse(_) | Self::WrongUser | Self::WrongObject => "invalid_response",
        Self::InvalidIdentifier => "invalid_identifier",
        Self::RepeatedToken | Self::TooManyPages { .. } => "endless_pagination",
    }
}

/// Contains nothing of the body.
impl From<json::Error> for Error {
    fn from(error: json::Error) -> Self {
        match error {
            json::Error::Duplicate(member) => Self::InvalidResponse(event::Error::DuplicateMember { member }),
            json::Error::Syntax(error) => Self::NotJson {
                problem: match error.classify() {
                    Category::Eof => "incomplete JSON",
                    Category::Data => "other JSON",
                    Category::Io | Category::Syntax => "not JSON",
                },
            },
        }
    }
}
