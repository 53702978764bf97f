//! The proof that a request is a user's: a value that only the layer makes.

use std::{fmt, sync::Arc};

use kinde::bearer::AccessToken;
use kinsync_core::UserDocument;

use crate::{
    authenticator::CachedUser,
    document::{Json, TokenUser},
};

/// Who makes this request. Cheap to clone. With the feature `axum`, an extractor: a handler that has it in its
/// signature runs for verified, live users only.
#[derive(Clone)]
pub struct CurrentUser {
    token: Arc<AccessToken>,
    known: Option<Arc<CachedUser>>,
    degraded: bool,
}

impl CurrentUser {
    pub(crate) fn stored(token: Arc<AccessToken>, known: Arc<CachedUser>) -> Self {
        Self { token, known: Some(known), degraded: false }
    }

    pub(crate) fn degraded(token: Arc<AccessToken>, known: Option<Arc<CachedUser>>) -> Self {
        Self { token, known, degraded: true }
    }

    /// Kinde's id of the user.
    pub fn id(&self) -> &str {
        &self.token.subject
    }

    /// The user as stored, at most a second old. `None` only while degraded: the store did not answer, the user is
    /// known from the token alone, and appears in the store without another request.
    pub fn document(&self) -> Option<&Arc<UserDocument>> {
        self.known.as_ref().map(|known| &known.document)
    }

    /// The document as JSON with its entity tag: what `/api/me` of the standalone kinsync answers. Made once for each
    /// change of the user and kept with the user. Without a document: the id and the address, from the token.
    pub fn json(&self) -> Json {
        match &self.known {
            Some(known) => known.json().clone(),
            None => Json::of(&TokenUser { kinde_id: self.id(), email: self.email() }),
        }
    }

    /// The address that the document shows, else the token's. An attribute, never an identity.
    pub fn email(&self) -> Option<&str> {
        match self.document() {
            Some(document) => document.email.as_deref(),
            None => self.token.email.as_deref(),
        }
    }

    /// The verified token.
    pub fn token(&self) -> &Arc<AccessToken> {
        &self.token
    }

    /// Whether the store did not answer in time, so that the document is missing or old.
    pub fn is_degraded(&self) -> bool {
        self.degraded
    }
}

/// The id alone: the rest is personal data.
impl fmt::Debug for CurrentUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CurrentUser")
            .field("id", &self.id())
            .field("degraded", &self.degraded)
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "axum")]
impl<S: Sync> axum_core::extract::FromRequestParts<S> for CurrentUser {
    type Rejection = axum_core::response::Response;

    async fn from_request_parts(
        head: &mut http::request::Parts,
        _: &S,
    ) -> Result<Self, axum_core::response::Response> {
        head.extensions.get::<Self>().cloned().ok_or_else(|| {
            let request = crate::problem::RequestId::next();
            tracing::error!(%request, path = head.uri.path(), "no KinsyncLayer is in front of this handler: add one");
            crate::Problem::Internal { request }.into_response().map(axum_core::body::Body::new)
        })
    }
}
