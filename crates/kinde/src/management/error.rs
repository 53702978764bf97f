//! Why a call of the Management API failed, with the next step for an operator.

use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;

use crate::event;

/// Why a call failed. No credential and nothing of a user is in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No token could be got, so nothing was asked. Shared by all calls that waited for it.
    #[error("cannot get a token for Kinde's Management API")]
    TokenUnavailable(#[source] Arc<Error>),
    /// The token endpoint refuses client id, secret, audience or scope.
    #[error(
        "kinde refuses the client credentials (`{code}`: {message}): check the client id and secret, and that the application is a machine-to-machine application that is authorised for the Kinde Management API"
    )]
    InvalidCredentials {
        /// `error` of the answer, for example `invalid_client`.
        code: String,
        /// `error_description`.
        message: String,
    },
    /// The API refuses the token, a new one too.
    #[error(
        "kinde's Management API refuses the token (`{code}`: {message}): check that the domain is the kinde.com one (a custom domain does not serve the API) and that the audience is `https://<tenant>.kinde.com/api`, and grant the scope `{scope}`"
    )]
    Unauthorized {
        /// The scope that Kinde documents for the endpoint.
        scope: &'static str,
        /// Kinde's code; may be empty.
        code: String,
        /// Kinde's message; may be empty.
        message: String,
    },
    /// The application was not given a scope.
    #[error(
        "the machine-to-machine application lacks the scope `{scope}`: grant it in Kinde under Settings > APIs > Kinde Management API, then try again (a token is used for at least a minute)"
    )]
    MissingScope {
        /// The scope that Kinde names, else the one that Kinde documents for the endpoint.
        scope: String,
    },
    /// Too many requests, also after waiting.
    #[error("kinde throttles the requests: ask less often, or allow more time")]
    RateLimited {
        /// How long to wait, if the response had `RateLimit-Reset`.
        retry_after: Option<Duration>,
    },
    /// The call waited for its turn until its time was over, or the runtime ended.
    #[error("the call did not get its turn in time: allow more requests in flight, or more time")]
    ConcurrencyTimeout,
    /// No answer, or not all of it in time. Whether a request that changes something took effect is not known.
    #[error("no complete response from kinde")]
    Unreachable(#[source] reqwest::Error),
    /// Another status that is no success.
    #[error("kinde answered with status {status} (`{code}`: {message})")]
    UnexpectedStatus {
        /// The status.
        status: StatusCode,
        /// Kinde's code; empty when the answer is not one of the API, as from a proxy.
        code: String,
        /// Kinde's message; may be empty.
        message: String,
    },
    /// The answer is too long.
    #[error("the response is longer than {limit} bytes: ask for smaller pages")]
    ResponseTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// A success that is no JSON object: a web page, or JSON that was cut off.
    #[error(
        "the response is {problem} instead of a JSON object: check that no proxy stands before the domain"
    )]
    NotJson {
        /// `cut off`, `not JSON` or `other JSON`.
        problem: &'static str,
    },
    /// A success of another shape than the API documents.
    #[error("the response has an unexpected shape")]
    InvalidResponse(#[source] event::Error),
    /// The answer is about another user than the one asked for.
    #[error("the response is about another user than the one asked for")]
    WrongUser,
    /// Not an identifier: it is not sent.
    #[error("not an identifier: 1 to 256 bytes without control characters")]
    InvalidIdentifier,
    /// The list leads back to a page of this scan: it would never end. Begin the scan anew.
    #[error("the list of users leads back to a page that was already read: begin the scan anew")]
    RepeatedToken,
    /// The list has more pages than are allowed.
    #[error("the list of users has more than {limit} pages: raise the limit if the tenant is that large")]
    TooManyPages {
        /// The limit.
        limit: u32,
    },
}

impl Error {
    /// True when the same call may succeed later without anybody's doing anything.
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

    /// A stable label, for metrics.
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::TokenUnavailable(_) => "token_unavailable",
            Self::InvalidCredentials { .. } => "invalid_credentials",
            Self::Unauthorized { .. } => "unauthorized",
            Self::MissingScope { .. } => "missing_scope",
            Self::RateLimited { .. } => "rate_limited",
            Self::ConcurrencyTimeout => "concurrency_timeout",
            Self::Unreachable(_) => "unreachable",
            Self::UnexpectedStatus { .. } => "unexpected_status",
            Self::ResponseTooLarge { .. } => "response_too_large",
            Self::NotJson { .. } | Self::InvalidResponse(_) | Self::WrongUser => "invalid_response",
            Self::InvalidIdentifier => "invalid_identifier",
            Self::RepeatedToken | Self::TooManyPages { .. } => "endless_pagination",
        }
    }
}
