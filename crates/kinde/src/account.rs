//! What Kinde tells a user about themselves: the profile of the bearer of an access token.
//!
//! One request, one answer: there is no retry and no cache here, for this stands in the path of requests and its
//! caller knows what a stale answer is worth. No machine-to-machine token is needed.
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
use crate::event;
use crate::event::reader::Reader;
use crate::http_client::{Failure, HttpClient, Limits, RawResponse};
use crate::json;
use crate::jws::MAX_TOKEN_BYTES;
use crate::patch::Patch;
use crate::response::{Clock, Response};

/// Longest answer that is read, in bytes.
const MAX_BODY_BYTES: usize = 256 * 1024;

/// Where profiles are asked for, and how patiently.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The issuer of the users' tokens, which may be a custom domain.
    pub issuer: Url,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for the whole answer.
    pub timeout: Duration,
    /// What is taken off the time of a request: see [`crate::response::RequestTiming::at`].
    pub clock_allowance: Duration,
    /// This machine's clock.
    pub clock: Clock,
}

impl Config {
    /// The defaults: connect 2 s, answer 5 s, allowance 2 s.
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

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The issuer is not the bare `https` address of a tenant.
    #[error("the issuer cannot be used")]
    Issuer(#[from] domain::Error),
    /// The HTTP client cannot be built, for example because there are no root certificates.
    #[error("the HTTP client cannot be built")]
    Client(#[source] reqwest::Error),
}

/// Why there is no profile. No token and nothing of a user is in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Kinde does not take the token: it expired, or its user is suspended or gone.
    #[error("kinde refuses the access token: sign in again")]
    TokenRejected,
    /// Too many requests.
    #[error("kinde throttles the requests: ask less often")]
    RateLimited {
        /// How long to wait, if the response had `RateLimit-Reset`.
        retry_after: Option<Duration>,
    },
    /// No answer, or not all of it in time.
    #[error("no complete response from kinde")]
    Unreachable(#[source] reqwest::Error),
    /// Another status.
    #[error("kinde answered with status {0}: check the issuer")]
    UnexpectedStatus(StatusCode),
    /// The answer is too long.
    #[error("the response is longer than {MAX_BODY_BYTES} bytes")]
    ResponseTooLarge,
    /// A success that is no JSON object.
    #[error("the response is not a JSON object: check that no proxy stands before the issuer")]
    NotJson,
    /// A success of another shape than the API documents.
    #[error("the response has an unexpected shape")]
    InvalidResponse(#[from] event::Error),
    /// `sub` and `id` of the answer differ.
    #[error("the response names two users")]
    ConflictingIds,
}

impl Error {
    /// True when the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Unreachable(_) | Self::NotJson => true,
            Self::UnexpectedStatus(status) => {
                status.is_server_error() || *status == StatusCode::REQUEST_TIMEOUT
            }
            _ => false,
        }
    }

    /// A stable label, for metrics.
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::TokenRejected => "token_rejected",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unreachable(_) => "unreachable",
            Self::UnexpectedStatus(_) => "unexpected_status",
            Self::ResponseTooLarge => "response_too_large",
            Self::NotJson | Self::InvalidResponse(_) | Self::ConflictingIds => "invalid_response",
        }
    }
}

/// A user as Kinde's profile endpoint tells it. What a scope does not allow is absent.
#[derive(Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct UserProfile {
    /// `sub`, else `id`: opaque, 1 to 256 bytes without control characters.
    pub id: String,
    /// The id that an import gave.
    pub provided_id: Patch<String>,
    /// Both names.
    pub name: Patch<String>,
    /// Given name.
    pub given_name: Patch<String>,
    /// Family name.
    pub family_name: Patch<String>,
    /// When the user last changed.
    pub updated_at: Option<Timestamp>,
    /// The address; an empty string is [`Patch::Null`].
    pub email: Patch<String>,
    /// True when the address is known to be the user's.
    pub email_verified: Patch<bool>,
    /// Address of the picture.
    pub picture: Patch<String>,
    /// User name.
    pub preferred_username: Patch<String>,
    /// Members that are not known here.
    pub extra: Map<String, Value>,
}

/// The id alone: the rest is personal data.
impl fmt::Debug for UserProfile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("UserProfile").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Asks one issuer for profiles. Clones share the connections.
#[derive(Debug, Clone)]
pub struct ProfileClient {
    exchange: HttpClient,
    url: Url,
}

impl ProfileClient {
    /// Checks the configuration; asks nothing yet.
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

    /// The profile of the user whose access token this is, given without `Bearer `. One attempt. Cancel safe.
    ///
    /// Send verified tokens only, and compare [`UserProfile::id`] with their subject.
    pub async fn user_profile(&self, access_token: &str) -> Result<Response<UserProfile>, Error> {
        let outcome = self.ask(access_token).await;
        let label = outcome.as_ref().map_or_else(Error::outcome, |_| "ok");
        metrics::counter!("kinde_api_requests_total", "endpoint" => "user_profile", "outcome" => label)
            .increment(1);
        outcome
    }

    async fn ask(&self, access_token: &str) -> Result<Response<UserProfile>, Error> {
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
