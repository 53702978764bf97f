//! The configuration of the Management API client.

use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use crate::domain;
use crate::response::Clock;

/// Maximum page size in Kinde's documentation (<https://docs.kinde.com/developer-tools/kinde-api/api-rate-limits/>).
pub const MAX_PAGE_SIZE: u32 = 500;
/// Codes of a 400 that mean that the user does not exist.
const UNKNOWN_USER_CODES: [&str; 6] = [
    "USER_NOT_FOUND",
    "USER_INVALID",
    "INVALID_USER",
    "USER_DOES_NOT_EXIST",
    "NOT_FOUND",
    "RESOURCE_NOT_FOUND",
];

/// The tenant, the credentials and the limits of a client.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The kinde.com domain of the tenant, as [`crate::parse_domain`] returns it. Custom domains do not serve the API.
    pub domain: Url,
    /// Client id of the machine-to-machine application.
    pub client_id: String,
    /// Client secret of the application.
    pub client_secret: SecretString,
    /// Audience of the token; `{domain}/api` if not set.
    pub audience: Option<String>,
    /// Additional data of users. Kinde counts expansions against the rate limit.
    pub expand: Expand,
    /// Users per page, 1 to [`MAX_PAGE_SIZE`]. If Kinde rejects the size, the client requests smaller pages.
    pub page_size: u32,
    /// Maximum number of pages of one list. More pages are an error, so that an endless list ends.
    pub max_pages: u32,
    /// Maximum number of concurrent requests of all clones, at least 1.
    pub max_concurrent_requests: usize,
    /// Time limit for a connection.
    pub connect_timeout: Duration,
    /// Time limit for one complete response.
    pub timeout: Duration,
    /// Maximum size of a response, in bytes.
    pub max_body_bytes: usize,
    /// The retries of a call.
    pub retry: RetryPolicy,
    /// Codes of a 400 that mean that the user does not exist. Kinde documents none; another code is an error that
    /// contains it.
    pub unknown_user_codes: Vec<String>,
    /// Subtracted from the time of a request: see [`crate::response::RequestTiming::as_of`].
    pub clock_allowance: Duration,
    /// The clock of this machine.
    pub clock: Clock,
}

impl Config {
    /// Returns the defaults: all expansions, 200 users per page, 4 concurrent requests, connect 3 s, response 30 s and
    /// 32 MiB, allowance 2 s.
    pub fn new(domain: Url, client_id: impl Into<String>, client_secret: SecretString) -> Self {
        Self {
            domain,
            client_id: client_id.into(),
            client_secret,
            audience: None,
            expand: Expand::default(),
            page_size: 200,
            max_pages: 1_000_000,
            max_concurrent_requests: 4,
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(30),
            max_body_bytes: 32 * 1024 * 1024,
            retry: RetryPolicy::default(),
            unknown_user_codes: UNKNOWN_USER_CODES.map(str::to_owned).into(),
            clock_allowance: Duration::from_secs(2),
            clock: Clock::default(),
        }
    }
}

/// Additional data in users. Data that is not requested is [`crate::Patch::Absent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expand {
    /// Codes of the organizations.
    pub organizations: bool,
    /// Emails, phones, user names and connections.
    pub identities: bool,
}

impl Default for Expand {
    /// Both.
    fn default() -> Self {
        Self { organizations: true, identities: true }
    }
}

impl Expand {
    /// The value of the query parameter `expand`.
    pub(super) const fn query(self) -> Option<&'static str> {
        match (self.organizations, self.identities) {
            (true, true) => Some("organizations,identities"),
            (true, false) => Some("organizations"),
            (false, true) => Some("identities"),
            (false, false) => None,
        }
    }
}

/// The budget of one call with all retries. The first limit that is reached ends the call.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Maximum number of attempts, at least 1. An attempt with a response 429 and `RateLimit-Reset` does not count.
    pub max_attempts: u32,
    /// Maximum time for all attempts and pauses.
    pub max_elapsed: Duration,
    /// The first pause. It doubles with every attempt and is shortened by up to half at random.
    pub initial_backoff: Duration,
    /// The longest pause. A pause that Kinde requires is added to it.
    pub max_backoff: Duration,
}

impl Default for RetryPolicy {
    /// 8 attempts within 3 minutes, pauses of 0.25 s to 20 s.
    fn default() -> Self {
        Self {
            max_attempts: 8,
            max_elapsed: Duration::from_mins(3),
            initial_backoff: Duration::from_millis(250),
            max_backoff: Duration::from_secs(20),
        }
    }
}

/// The reason why a client cannot be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The domain is not the `https` origin of a tenant.
    #[error("the domain cannot be used")]
    Domain(#[from] domain::Error),
    /// The page size is out of range.
    #[error("the page size must be 1 to {MAX_PAGE_SIZE}, not {0}")]
    PageSize(u32),
    /// The client id or the client secret is empty.
    #[error(
        "the client id and the client secret must not be empty: copy both from the machine-to-machine application in Kinde"
    )]
    NoCredentials,
    /// The HTTP client cannot be built, for example because there are no root certificates.
    #[error("the HTTP client cannot be built")]
    Client(#[source] reqwest::Error),
}
