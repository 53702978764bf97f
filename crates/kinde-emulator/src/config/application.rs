//! Applications that users sign in to.

use serde::{Deserialize, Serialize};

/// An application that sends its users to the login page.
///
/// Source: <https://docs.kinde.com/build/applications/about-applications/>.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Application {
    /// `azp` of its users' tokens.
    pub client_id: String,
    /// Of a back end; an application without one must use PKCE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<String>,
    /// Shown on the login page.
    pub name: String,
    /// Where a code may be sent, compared letter by letter.
    pub redirect_uris: Vec<String>,
    /// Where `/logout` may send a user, compared letter by letter.
    pub logout_redirect_uris: Vec<String>,
    /// The APIs that it may ask for with `audience`.
    pub audience: Vec<String>,
    /// Token customization: whether access tokens carry `email`; as `tokens.email_in_access_token` otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email_in_access_token: Option<bool>,
}

impl Application {
    /// A front end without a secret.
    #[must_use]
    pub fn public(client_id: &str, redirect_uri: &str) -> Self {
        Self {
            client_id: client_id.to_owned(),
            name: "My application".to_owned(),
            redirect_uris: vec![redirect_uri.to_owned()],
            ..Self::default()
        }
    }

    /// A back end with a secret.
    #[must_use]
    pub fn confidential(client_id: &str, client_secret: &str, redirect_uri: &str) -> Self {
        Self { client_secret: Some(client_secret.to_owned()), ..Self::public(client_id, redirect_uri) }
    }
}
