//! Applications that users sign in to.

use serde::{Deserialize, Serialize};

/// An application that sends its users to the login page.
///
/// Source: <https://docs.kinde.com/build/applications/about-applications/>.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Application {
    /// Client id; `azp` of its tokens.
    pub client_id: String,
    /// Client secret of a back end. An application without a secret must use PKCE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<String>,
    /// Name on the login page.
    pub name: String,
    /// Allowed redirect URIs, compared exactly.
    pub redirect_uris: Vec<String>,
    /// Allowed redirect URIs of `/logout`, compared exactly.
    pub logout_redirect_uris: Vec<String>,
    /// APIs that it may request with `audience`.
    pub audience: Vec<String>,
    /// Whether access tokens carry `email`; by default `tokens.email_in_access_token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email_in_access_token: Option<bool>,
}

impl Application {
    /// Creates a front-end application without a secret.
    #[must_use]
    pub fn public(client_id: &str, redirect_uri: &str) -> Self {
        Self {
            client_id: client_id.to_owned(),
            name: "My application".to_owned(),
            redirect_uris: vec![redirect_uri.to_owned()],
            ..Self::default()
        }
    }

    /// Creates a back-end application with a secret.
    #[must_use]
    pub fn confidential(client_id: &str, client_secret: &str, redirect_uri: &str) -> Self {
        Self { client_secret: Some(client_secret.to_owned()), ..Self::public(client_id, redirect_uri) }
    }
}
