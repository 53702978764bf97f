//! Fetches a JWKS document over HTTP, with limits on time and size.

use std::error::Error as _;

use reqwest::{Client, StatusCode, redirect};
use url::Url;

use super::Config;
use super::document::{self, Document, DocumentError};
use crate::labels::labels;

/// Paths of the document: the one that Kinde's SDKs use, then the one in Kinde's documentation.
const PATHS: [&str; 2] = ["/.well-known/jwks.json", "/.well-known/jwks"];
/// Maximum size of a response, in bytes.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// The reason why a fetch failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No complete response within the time limit.
    #[error("no complete response")]
    Unreachable(#[source] reqwest::Error),
    /// A status other than 200. Redirects are not followed.
    #[error("unexpected status {0}: check the domain of the issuer")]
    UnexpectedStatus(StatusCode),
    /// The response exceeds the size limit.
    #[error("the response exceeds 1 MiB")]
    ResponseTooLarge,
    /// The response is not a usable key set.
    #[error("the response cannot be used")]
    Document(#[source] DocumentError),
}

labels! {
    /// Every [`Self::outcome`]. That of a successful fetch is `ok`.
    OUTCOMES,
    /// Returns a stable label for metrics.
    outcome of FetchError {
        Self::Unreachable(_) => "unreachable",
        Self::UnexpectedStatus(_) => "unexpected_status",
        Self::ResponseTooLarge | Self::Document(_) => "invalid_response",
    }
}

impl FetchError {
    /// Returns the message with those of all causes on one line.
    pub(super) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

pub(super) struct Fetcher {
    client: Client,
    issuer: Url,
}

impl Fetcher {
    pub(super) fn new(config: &Config, loopback: bool) -> Result<Self, reqwest::Error> {
        let mut builder = Client::builder()
            .connect_timeout(config.connect_timeout)
            .timeout(config.timeout)
            .redirect(redirect::Policy::none())
            .https_only(config.issuer.scheme() == "https")
            .user_agent(concat!("kinde-rust/", env!("CARGO_PKG_VERSION")));
        if loopback {
            builder = builder.no_proxy();
        }
        Ok(Self { client: builder.build()?, issuer: config.issuer.clone() })
    }

    /// Requests the first path and, if its response is not a key set, the second. Stops if there is no response.
    pub(super) async fn fetch(&self) -> Result<Document, FetchError> {
        match self.fetch_from(PATHS[0]).await {
            Ok(document) => Ok(document),
            Err(error @ FetchError::Unreachable(_)) => Err(error),
            Err(first) => self.fetch_from(PATHS[1]).await.map_err(|_| first),
        }
    }

    async fn fetch_from(&self, path: &str) -> Result<Document, FetchError> {
        let mut url = self.issuer.clone();
        url.set_path(path);
        let mut response = self.client.get(url).send().await.map_err(FetchError::Unreachable)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::UnexpectedStatus(response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(FetchError::Unreachable)? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(FetchError::ResponseTooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        document::parse(&body).map_err(FetchError::Document)
    }
}
