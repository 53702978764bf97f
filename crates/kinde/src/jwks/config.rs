//! The source of a key set and the intervals of its fetches.

use std::time::Duration;

use url::Url;

use crate::domain;

/// The source of a key set and the intervals of its fetches.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The tenant, as [`crate::parse_domain`] returns it.
    pub issuer: Url,
    /// Shortest time between two fetches. After failures it grows up to four times, plus a quarter of jitter.
    pub cool_down: Duration,
    /// Age from which the keys are fetched again in the background, by the next call that uses them.
    pub refresh_after: Duration,
    /// Age from which the keys are not used. A key that Kinde withdrew is trusted for at most this long while the issuer
    /// is unreachable.
    pub max_age: Duration,
    /// Time limit for a connection.
    pub connect_timeout: Duration,
    /// Time limit for one complete response. A fetch requests at most two addresses.
    pub timeout: Duration,
}

impl Config {
    /// Returns the defaults: cool-down 30 s, refresh after 10 min, maximum age 24 h, connect 3 s, response 5 s.
    pub fn new(issuer: Url) -> Self {
        Self {
            issuer,
            cool_down: Duration::from_secs(30),
            refresh_after: Duration::from_mins(10),
            max_age: Duration::from_hours(24),
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(5),
        }
    }
}

/// The reason why a key set cannot be created.
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
