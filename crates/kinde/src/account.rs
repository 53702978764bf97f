//! Reads the profile of the user of an access token.
//!
//! There is no retry and no cache: the call is part of a user's request, and only the caller can decide whether an old profile
//! is acceptable. No machine-to-machine token is needed.
//!
//! <https://docs.kinde.com/kinde-apis/account/>

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use serde_json::{Map, Value};
use url::Url;

use crate::domain;
use crate::endpoint::Endpoint;
use crate::event;
use crate::event::reader::Reader;
use crate::http_client::{Failure, HttpClient, Limits, RawResponse};
use crate::json;
use crate::labels::labels;
use crate::patch::Patch;
use crate::response::{Clock, Response};

/// Maximum length of an access token, in bytes.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Maximum size of a response, in bytes.
const MAX_BODY_BYTES: usize = 256 * 1024;

/// The issuer and the time limits of a [`ProfileClient`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The issuer of the access tokens, which may be a custom domain.
    pub issuer: Url,
    /// Time limit for a connection.
    pub connect_timeout: Duration,
    /// Time limit for the complete response.
    pub timeout: Duration,
    /// Subtracted from the time of a request: see [`crate::response::RequestTiming::as_of`].
    pub clock_allowance: Duration,
    /// The clock of this machine.
    pub clock: Clock,
}

impl Config {
    /// Returns the defaults: connect 2 s, response 5 s, allowance 2 s.
    pub fn new(issuer: Url) -> Self {
        Self {
            issuer,
            connect_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(5),
            clock_allowance: Duration::from_secs(2),
            clock: Clock::default(),
        }
    }
}

/// The reason why a client cannot be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The issuer is not the `https` origin of a tenant.
    #[error("the issuer cannot be used")]
    Issuer(#[from] domain::Error),
    /// The HTTP client cannot be built, for example because there are no root certificates.
    #[error("the HTTP client cannot be built")]
    Client(#[source] reqwest::Error),
}

/// The reason why there is no profile. Contains no token and no personal data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Kinde rejects the token: it has expired, or its user is suspended or deleted.
    #[error("kinde rejects the access token: sign in again")]
    TokenRejected,
    /// Kinde limits the rate of requests.
    #[error("kinde limits the rate of requests: send fewer requests")]
    RateLimited {
        /// How long to wait, if the response had `RateLimit-Reset`.
        retry_after: Option<Duration>,
    },
    /// No complete response within the time limit.
    #[error("no complete response from kinde")]
    Unreachable(#[source] reqwest::Error),
    /// Another status. Redirects are not followed.
    #[error("unexpected status {0}: check the issuer")]
    UnexpectedStatus(StatusCode),
    /// The response exceeds the size limit.
    #[error("the response exceeds {MAX_BODY_BYTES} bytes")]
    ResponseTooLarge,
    /// A successful response is not a JSON object.
    #[error("the response is not a JSON object: check that no proxy answers in place of the issuer")]
    NotJson,
    /// A successful response differs from the documentation of the API.
    #[error("the response differs from the documentation of the API")]
    InvalidResponse(#[from] event::Error),
    /// `sub` and `id` of the response differ.
    #[error("the response contains two different user ids")]
    ConflictingIds,
}

impl Error {
    /// Returns true if the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Unreachable(_) | Self::NotJson => true,
            Self::UnexpectedStatus(status) => {
                status.is_server_error() || *status == StatusCode::REQUEST_TIMEOUT
            }
            _ => false,
        }
    }
}

labels! {
    /// Every [`Self::outcome`]. That of a profile is `ok`.
    OUTCOMES,
    /// Returns a stable label for metrics.
    outcome of Error {
        Self::TokenRejected => "token_rejected",
        Self::RateLimited { .. } => "rate_limited",
        Self::Unreachable(_) => "unreachable",
        Self::UnexpectedStatus(_) => "unexpected_status",
        Self::ResponseTooLarge => "response_too_large",
        Self::NotJson | Self::InvalidResponse(_) | Self::ConflictingIds => "invalid_response",
    }
}

/// The profile of a user. Fields that the scopes of the token do not cover are absent.
#[derive(Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct UserProfile {
    /// `sub`, else `id`: opaque, 1 to 256 bytes without control characters.
    pub id: String,
    /// Id that an import assigned.
    pub provided_id: Patch<String>,
    /// Full name.
    pub name: Patch<String>,
    /// Given name.
    pub given_name: Patch<String>,
    /// Family name.
    pub family_name: Patch<String>,
    /// Time of the last change.
    pub updated_at: Option<Timestamp>,
    /// Email address; an empty string is [`Patch::Null`].
    pub email: Patch<String>,
    /// True if the email address is verified.
    pub email_verified: Patch<bool>,
    /// URL of the picture.
    pub picture: Patch<String>,
    /// User name.
    pub preferred_username: Patch<String>,
    /// Unknown members.
    pub extra: Map<String, Value>,
}

/// Prints the id only: the other fields are personal data.
impl fmt::Debug for UserProfile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("UserProfile").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Reads profiles from one issuer. Clones share the connections.
#[derive(Debug, Clone)]
pub struct ProfileClient {
    exchange: HttpClient,
    url: Url,
}

impl ProfileClient {
    /// Checks the configuration. Sends no request.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let mut url = domain::parse_domain(config.issuer.as_str())?;
        let limits = Limits {
            connect_timeout: config.connect_timeout,
            timeout: config.timeout,
            max_body_bytes: MAX_BODY_BYTES,
            clock_allowance: config.clock_allowance,
            clock: config.clock,
        };
        let exchange = HttpClient::new(&url, limits).map_err(ConfigError::Client)?;
        url.set_path("/oauth2/v2/user_profile");
        Ok(Self { exchange, url })
    }

    /// Reads the profile of the user of an access token, given without `Bearer `. One attempt. Cancel safe.
    ///
    /// Pass verified tokens only, and compare [`UserProfile::id`] with their subject.
    pub async fn user_profile(&self, access_token: &str) -> Result<Response<UserProfile>, Error> {
        let outcome = self.request_profile(access_token).await;
        let label = outcome.as_ref().map_or_else(Error::outcome, |_| "ok");
        metrics::counter!("kinde_api_requests_total", "endpoint" => Endpoint::UserProfile.as_str(), "outcome" => label)
            .increment(1);
        outcome
    }

    async fn request_profile(&self, access_token: &str) -> Result<Response<UserProfile>, Error> {
        if access_token.len() > MAX_TOKEN_BYTES {
            return Err(Error::TokenRejected);
        }
        let mut authorization =
            HeaderValue::try_from(format!("Bearer {access_token}")).map_err(|_| Error::TokenRejected)?;
        authorization.set_sensitive(true);
        let request = self.exchange.client().get(self.url.clone()).header(AUTHORIZATION, authorization);
        let received = self.exchange.send(request).await.map_err(|failure| match failure {
            Failure::Unreachable(error) => Error::Unreachable(error),
            Failure::TooLong => Error::ResponseTooLarge,
        })?;
        read(&received)
    }
}

fn read(received: &RawResponse) -> Result<Response<UserProfile>, Error> {
    match received.status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(Error::TokenRejected),
        StatusCode::TOO_MANY_REQUESTS => return Err(Error::RateLimited { retry_after: received.reset }),
        status => return Err(Error::UnexpectedStatus(status)),
    }
    let object = json::object(&received.body).map_err(|error| match error {
        json::Error::Duplicate(member) => Error::InvalidResponse(event::Error::DuplicateMember { member }),
        json::Error::Syntax(_) => Error::NotJson,
    })?;
    let value = read_profile(Reader::new(String::new(), object))?;
    Ok(Response { value, timing: received.timing })
}

fn read_profile(mut reader: Reader<'_>) -> Result<UserProfile, Error> {
    let (sub, id) = (reader.optional_id("sub")?, reader.optional_id("id")?);
    if sub.is_some() && id.is_some() && sub != id {
        return Err(Error::ConflictingIds);
    }
    Ok(UserProfile {
        id: sub.or(id).ok_or_else(|| event::Error::MissingField { field: "sub".to_owned() })?,
        provided_id: reader.text("provided_id")?,
        name: reader.text("name")?,
        given_name: reader.text("given_name")?,
        family_name: reader.text("family_name")?,
        updated_at: reader.time("updated_at")?,
        email: reader.address("email")?,
        email_verified: reader.flag("email_verified")?,
        picture: reader.text("picture")?,
        preferred_username: reader.text("preferred_username")?,
        extra: reader.into_rest(),
    })
}
