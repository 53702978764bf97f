//! Reads the document of `OpenID` Connect Discovery 1.0, section 4, to check settings.
//!
//! No verification uses it: the operator configures the trusted issuers.

use std::time::Duration;

use reqwest::StatusCode;
use url::Url;

use crate::domain;
use crate::event;
use crate::event::reader::Reader;
use crate::http_client::{Failure, HttpClient, Limits};
use crate::json;
use crate::response::{Clock, Response};

/// Maximum size of a response, in bytes.
const MAX_BODY_BYTES: usize = 256 * 1024;

/// The domain and the time limits of [`discover`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The tenant or its custom domain, as [`crate::parse_domain`] returns it.
    pub domain: Url,
    /// Time limit for a connection.
    pub connect_timeout: Duration,
    /// Time limit for the complete response.
    pub timeout: Duration,
    /// The clock of this machine.
    pub clock: Clock,
}

impl Config {
    /// Returns the defaults: connect 3 s, response 5 s.
    pub fn new(domain: Url) -> Self {
        Self {
            domain,
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(5),
            clock: Clock::default(),
        }
    }
}

/// The document of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Discovery {
    /// The value of `iss` in tokens.
    pub issuer: String,
    /// The URL of the keys.
    pub jwks_uri: Option<String>,
}

/// The reason why there is no document.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The domain is not the `https` origin of a tenant.
    #[error("the domain cannot be used")]
    Domain(#[from] domain::Error),
    /// The HTTP client cannot be built, for example because there are no root certificates.
    #[error("the HTTP client cannot be built")]
    Client(#[source] reqwest::Error),
    /// No complete response within the time limit.
    #[error("no complete response")]
    Unreachable(#[source] reqwest::Error),
    /// A status other than 200. Redirects are not followed.
    #[error("unexpected status {0}: check the domain")]
    UnexpectedStatus(StatusCode),
    /// The response exceeds the size limit.
    #[error("the response exceeds {MAX_BODY_BYTES} bytes")]
    ResponseTooLarge,
    /// A successful response is not a JSON object.
    #[error("the response is not a JSON object: check the domain, and that no proxy answers in its place")]
    NotJson,
    /// The JSON object is not a discovery document.
    #[error("the response is not a discovery document")]
    InvalidResponse(#[from] event::Error),
}

/// Requests `/.well-known/openid-configuration`. One attempt. Cancel safe.
pub async fn discover(config: Config) -> Result<Response<Discovery>, Error> {
    let mut url = domain::parse_domain(config.domain.as_str())?;
    let limits = Limits {
        connect_timeout: config.connect_timeout,
        timeout: config.timeout,
        max_body_bytes: MAX_BODY_BYTES,
        clock_allowance: Duration::ZERO,
        clock: config.clock,
    };
    let exchange = HttpClient::new(&url, limits).map_err(Error::Client)?;
    url.set_path("/.well-known/openid-configuration");
    let request = exchange.client().get(url);
    let received = exchange.send(request).await.map_err(|failure| match failure {
        Failure::Unreachable(error) => Error::Unreachable(error),
        Failure::TooLong => Error::ResponseTooLarge,
    })?;
    if received.status != StatusCode::OK {
        return Err(Error::UnexpectedStatus(received.status));
    }
    let object = json::object(&received.body).map_err(|_| Error::NotJson)?;
    let mut reader = Reader::new(String::new(), object);
    let issuer = reader.required_id("issuer")?;
    let jwks_uri = reader.text("jwks_uri")?.into_value();
    Ok(Response { value: Discovery { issuer, jwks_uri }, timing: received.timing })
}
