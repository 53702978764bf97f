//! The authenticated user of a request. Only the layer creates this value, so it proves that the checks were made.

use std::{fmt, sync::Arc};

use kinde::bearer::AccessToken;
use kinsync_core::{Organization, UserDocument};

use crate::{
    authenticator::CachedUser,
    document::{Json, TokenUser},
    membership::Membership,
    problem::{Problem, RequestId},
};

/// Roles and permissions in the organization of the token where the store does not know them: before the first event about
/// the user or scan that compares roles, or while the store does not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum UnknownRoles {
    /// They stay unknown, and a request that needs one is refused.
    #[default]
    Refuse,
    /// Those of the token count, if it has any. A role or a membership that was taken away at Kinde then counts until the token
    /// expires, for up to a day. Stored roles and permissions always outrank the token.
    UseToken,
}

/// The authenticated user. Cheap to clone. With the feature `axum` it is an extractor: a handler that takes it runs
/// only for verified users that are neither deleted nor suspended.
#[derive(Clone)]
pub struct CurrentUser {
    token: Arc<AccessToken>,
    cached: Option<Arc<CachedUser>>,
    degraded: bool,
    unknown_roles: UnknownRoles,
}

impl CurrentUser {
    pub(crate) fn stored(token: Arc<AccessToken>, cached: Arc<CachedUser>) -> Self {
        Self { token, cached: Some(cached), degraded: false, unknown_roles: UnknownRoles::Refuse }
    }

    pub(crate) fn degraded(token: Arc<AccessToken>, cached: Option<Arc<CachedUser>>) -> Self {
        Self { token, cached, degraded: true, unknown_roles: UnknownRoles::Refuse }
    }

    pub(crate) fn with(self, unknown_roles: UnknownRoles) -> Self {
        Self { unknown_roles, ..self }
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

    /// Returns the document as JSON with its entity tag, as `/api/me` of the server sends it: without properties, among
    /// which private ones may be. Serialized once per change of the user. Without a document it holds the id and the email address of the token.
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

    /// Returns what the store has of the user in the organization of the token.
    pub fn membership(&self) -> Membership<'_> {
        let memberships = self.document().and_then(|document| document.organizations.as_deref());
        Membership::of(self.token.org_code.as_deref(), memberships)
    }

    /// Returns the code of the organization of the token, unless the store has that the user is no member or suspended there.
    /// A membership that is not known does not contradict the token.
    pub fn organization(&self) -> Option<&str> {
        match self.membership() {
            Membership::Unknown | Membership::Member(_) => self.token.org_code.as_deref(),
            Membership::NoOrganization | Membership::NotMember | Membership::Suspended(_) => None,
        }
    }

    /// Returns the keys of the roles in the organization of the token, as stored. Empty if the user has none there, or no
    /// organization or no active membership. `None` if they are not known, unless [`UnknownRoles::UseToken`] is set and the
    /// token has them.
    pub fn roles(&self) -> Option<Vec<&str>> {
        let claimed = || Some(self.token.roles()?.into_iter().map(|role| role.key).collect());
        self.granted(|member| member.roles.as_deref(), claimed)
    }

    /// Returns the keys of the permissions in the organization of the token, as [`Self::roles`] does: those that the roles
    /// give and those of the user. `None` while one of both parts is not known. Those of the token never count where the roles are
    /// known.
    pub fn permissions(&self) -> Option<Vec<&str>> {
        self.granted(|member| member.permissions.as_deref(), || self.token.permissions())
    }

    /// Returns the keys of the permissions that the user has for certain. All of them, if [`Self::permissions`] is known;
    /// otherwise those that the roles in the organization of the token give.
    pub(crate) fn certain_permissions(&self) -> Vec<&str> {
        let of_roles = || match (self.membership(), &self.cached) {
            (Membership::Member(member), Some(cached)) => cached.permissions_of_roles.get(&member.code),
            _ => None,
        };
        let of_roles = || of_roles().into_iter().flatten().map(String::as_str).collect();
        self.permissions().unwrap_or_else(of_roles)
    }

    fn granted<'a>(
        &'a self,
        stored: impl Fn(&'a Organization) -> Option<&'a [String]>,
        claimed: impl Fn() -> Option<Vec<&'a str>>,
    ) -> Option<Vec<&'a str>> {
        let (stored, are_roles_known) = match self.membership() {
            Membership::Member(member) => (stored(member), member.roles.is_some()),
            Membership::Unknown => (None, false),
            Membership::NoOrganization | Membership::NotMember | Membership::Suspended(_) => {
                (Some(&[][..]), true)
            }
        };
        match (stored, self.unknown_roles) {
            (Some(keys), _) => Some(keys.iter().map(String::as_str).collect()),
            // With known roles, the permissions of the token may be those of a former role.
            (None, UnknownRoles::UseToken) if !are_roles_known => claimed(),
            (None, _) => None,
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

/// Logs that the route of a request has no [`KinsyncLayer`](crate::KinsyncLayer) outside, and returns the 500.
pub(crate) fn without_layer(path: &str) -> Problem {
    let request = RequestId::next();
    tracing::error!(%request, path, "this route has no KinsyncLayer, or has it inside: add one as the outer layer");
    Problem::Internal { request }
}

#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl<S: Sync> axum_core::extract::FromRequestParts<S> for CurrentUser {
    type Rejection = axum_core::response::Response;

    async fn from_request_parts(
        head: &mut http::request::Parts,
        _: &S,
    ) -> Result<Self, axum_core::response::Response> {
        head.extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| without_layer(head.uri.path()).into_response().map(axum_core::body::Body::new))
    }
}
