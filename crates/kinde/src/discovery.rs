//! What a tenant says of itself: the document of `OpenID` Connect Discovery 1.0, section 4.
//!
//! For those who check settings. Nothing that verifies a token reads it: which issuer to trust is the operator's word.

use std::time::Duration;

use reqwest::StatusCode;
use url::Url;

use crate::domain;
use crate::event;
use crate::event::reader::Reader;
use crate::http_client::{Failure, HttpClient, Limits};
use crate::json;
use crate::response::{Clock, Response};

/// Longest answer that is read, in bytes.
const MAX_BODY_BYTES: usize = 256 * 1024;

/// Who is asked, and how patiently.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The tenant or its custom domain, as [`crate::parse_domain`] reads it.
    pub domain: Url,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for the whole answer.
    pub timeout: Duration,
    /// This machine's clock.
    pub clock: Clock,
}

impl Config {
    /// The defaults: connect 3 s, answer 5 s.
    pub fn new(domain: Url) -> Self {
        Self {
            domain,
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(5),
            clock: Clock::default(),
        }
    }
}

/// What the tenant says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Discovery {
    /// What stands in tokens as `iss`.
    pub issuer: String,
    /// Where it says that its keys are.
    pub jwks_uri: Option<String>,
}

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The domain is not the bare `https` address of a tenant.
    #[error("the domain cannot be used")]
    Domain(#[from] domain::Error),
    /// The HTTP client cannot be built, for example because there are no root certificates.
    #[error("the HTTP client cannot be built")]
    Client(#[source] reqwest::Error),
    /// No answer, or not all of it in time.
    #[error("no complete response")]
    Unreachable(#[source] reqwest::Error),
    /// An answer other than 200. Redirects are not followed.
    #[error("answered with status {0}: check the domain")]
    UnexpectedStatus(StatusCode),
    /// The answer is too long.
    #[error("the response is longer than {MAX_BODY_BYTES} bytes")]
    ResponseTooLarge,
    /// A success that is no JSON object.
    #[error("the response is not a JSON object: check the domain, and that no proxy stands before it")]
    NotJson,
    /// A JSON object that is no such document.
    #[error("the response has an unexpected shape")]
    InvalidResponse(#[from] event::Error),
}

/// Asks for the document at `/.well-known/openid-configuration`. One attempt. Cancel safe.
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
