//! What a client of the Management API needs to know.

use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use crate::domain;
use crate::response::Clock;

/// Largest page that Kinde's documentation names (<https://docs.kinde.com/developer-tools/kinde-api/api-rate-limits/>).
pub const MAX_PAGE_SIZE: u32 = 500;
/// What a 400 may call a user that does not exist.
const UNKNOWN_USER_CODES: [&str; 6] = [
    "USER_NOT_FOUND",
    "USER_INVALID",
    "INVALID_USER",
    "USER_DOES_NOT_EXIST",
    "NOT_FOUND",
    "RESOURCE_NOT_FOUND",
];

/// What a client asks, as whom, and how patiently.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The kinde.com address of the tenant, as [`crate::parse_domain`] reads it. A custom domain does not serve the API.
    pub domain: Url,
    /// The machine-to-machine application.
    pub client_id: String,
    /// Its secret.
    pub client_secret: SecretString,
    /// What the token is for; `{domain}/api` unless set.
    pub audience: Option<String>,
    /// What users are listed with. Kinde counts an expansion against the rate limit.
    pub expand: Expand,
    /// Users per page, 1 to [`MAX_PAGE_SIZE`]. Where Kinde allows fewer, the client asks for fewer.
    pub page_size: u32,
    /// Most pages of one scan; a scan that goes on is an error, for a list that never ends is no list.
    pub max_pages: u32,
    /// Requests in flight at once, over all clones; at least 1.
    pub max_concurrent_requests: usize,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for one whole answer.
    pub timeout: Duration,
    /// Longest answer that is read, in bytes.
    pub max_body_bytes: usize,
    /// How often and how long a call is tried.
    pub retry: RetryPolicy,
    /// Codes of a 400 that say that there is no such user. Kinde documents none: an unknown one is an error that names it.
    pub unknown_user_codes: Vec<String>,
    /// What is taken off the time of a request: see [`crate::response::RequestTiming::at`].
    pub clock_allowance: Duration,
    /// This machine's clock.
    pub clock: Clock,
}

impl Config {
    /// The defaults: all expansions, 200 users a page, 4 requests in flight, connect 3 s, answer 30 s and 32 MiB,
    /// allowance 2 s.
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

/// What stands in a user beyond its own fields; what is not asked for is [`crate::Patch::Absent`].
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

/// The budget of one call, retries included. It ends with whichever limit is reached first.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Attempts in all; at least 1. One that Kinde throttles and says for how long (`RateLimit-Reset`) does not count.
    pub max_attempts: u32,
    /// Longest time for all attempts and the pauses between them.
    pub max_elapsed: Duration,
    /// The first pause; it doubles with every attempt, and a random part of up to half is taken off.
    pub initial_backoff: Duration,
    /// The longest pause. One that Kinde demands is added to it.
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

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The domain is not the bare `https` address of a tenant.
    #[error("the domain cannot be used")]
    Domain(#[from] domain::Error),
    /// A page size that Kinde refuses.
    #[error("the page size must be 1 to {MAX_PAGE_SIZE}, not {0}")]
    PageSize(u32),
    /// No client id or no secret.
    #[error(
        "the client id and the client secret must not be empty: copy both from the machine-to-machine application in Kinde"
    )]
    NoCredentials,
    /// The HTTP client cannot be built, for example because there are no root certificates.
    #[error("the HTTP client cannot be built")]
    Client(#[source] reqwest::Error),
}
