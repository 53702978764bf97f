//! The authenticated user of a request. Only the layer creates this value, so it proves that the checks were made.

use std::{fmt, sync::Arc};

use kinde::bearer::AccessToken;
use kinsync_core::UserDocument;

use crate::{
    authenticator::CachedUser,
    document::{Json, TokenUser},
};

/// The authenticated user. Cheap to clone. With the feature `axum` it is an extractor: a handler that takes it runs
/// only for verified users that are neither deleted nor suspended.
#[derive(Clone)]
pub struct CurrentUser {
    token: Arc<AccessToken>,
    cached: Option<Arc<CachedUser>>,
    degraded: bool,
}

impl CurrentUser {
    pub(crate) fn stored(token: Arc<AccessToken>, cached: Arc<CachedUser>) -> Self {
        Self { token, cached: Some(cached), degraded: false }
    }

    pub(crate) fn degraded(token: Arc<AccessToken>, cached: Option<Arc<CachedUser>>) -> Self {
        Self { token, cached, degraded: true }
    }

    /// Returns Kinde's id of the user.
    pub fn id(&self) -> &str {
        &self.token.subject
    }

    /// Returns the stored user document, at most a second old. `None` only while degraded: the store did not answer
    /// and the cache has no entry. The user is then stored when the store answers again, without another request.
    pub fn document(&self) -> Option<&Arc<UserDocument>> {
        self.cached.as_ref().map(|cached| &cached.document)
    }

    /// Returns the document as JSON with its entity tag, as `/api/me` of the server sends it. Serialized once per
    /// change of the user. Without a document it holds the id and the email address of the token.
    pub fn json(&self) -> Json {
        match &self.cached {
            Some(cached) => cached.json().clone(),
            None => Json::of(&TokenUser { kinde_id: self.id(), email: self.email() }),
        }
    }

    /// Returns the email address of the document, or of the token if there is no document. An attribute, not an
    /// identity: use [`CurrentUser::id`] as the key.
    pub fn email(&self) -> Option<&str> {
        match self.document() {
            Some(document) => document.email.as_deref(),
            None => self.token.email.as_deref(),
        }
    }

    /// Returns the verified token.
    pub fn token(&self) -> &Arc<AccessToken> {
        &self.token
    }

    /// Returns whether the store did not answer in time, so that the document is missing or old.
    pub fn is_degraded(&self) -> bool {
        self.degraded
    }
}

/// Shows the id only: other fields are personal data.
impl fmt::Debug for CurrentUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CurrentUser")
            .field("id", &self.id())
            .field("degraded", &self.degraded)
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl<S: Sync> axum_core::extract::FromRequestParts<S> for CurrentUser {
    type Rejection = axum_core::response::Response;

    async fn from_request_parts(
        head: &mut http::request::Parts,
        _: &S,
    ) -> Result<Self, axum_core::response::Response> {
        head.extensions.get::<Self>().cloned().ok_or_else(|| {
            let request = crate::problem::RequestId::next();
            tracing::error!(%request, path = head.uri.path(), "this handler has no KinsyncLayer: add one to its route");
            crate::Problem::Internal { request }.into_response().map(axum_core::body::Body::new)
        })
    }
}
