//! Layers that pass on only requests of users with a role or a permission in the organization of their token.
//!
//! They belong inside a [`KinsyncLayer`](crate::KinsyncLayer), which authenticates the user. In axum the layer that is added
//! last is the outermost one, so [`require_role`] comes first:
//!
//! ```
//! # #[cfg(feature = "axum")]
//! # mod example {
//! use axum::{Router, routing::delete};
//! use kinsync_tower::{Authenticator, KinsyncLayer, require_permission, require_role};
//!
//! fn admin(authenticator: Authenticator) -> Router {
//!     Router::new()
//!         .route("/admin/things/{id}", delete(async || "deleted\n"))
//!         // Both are required. `require_any_role` accepts several roles.
//!         .route_layer(require_permission("delete:things"))
//!         .route_layer(require_role("admin"))
//!         .route_layer(KinsyncLayer::new(authenticator))
//! }
//! # }
//! ```
//!
//! In the wrong order, or without a [`KinsyncLayer`](crate::KinsyncLayer), every request is answered 500, and the log names
//! the missing layer. A handler can check a [`Requirement`] itself:
//!
//! ```
//! use kinsync_tower::{CurrentUser, Problem, Requirement};
//!
//! fn may_publish(user: &CurrentUser) -> Result<(), Problem> {
//!     Requirement::any_role(["editor", "admin"]).check(user)
//! }
//! ```

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::Either;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    current_user::{self, CurrentUser},
    membership::Membership,
    metrics::AuthenticationMetrics,
    problem::{Body, Problem, RequestId},
    requirement::Kind,
};

pub use crate::requirement::Requirement;

/// `Retry-After` while the store does not answer and no document of the user is cached.
const RETRY_AFTER: Duration = Duration::from_secs(2);

impl Requirement {
    /// Checks whether the user meets the requirement. A refusal is counted in
    /// `kinsync_authorizations_refused_total{reason}`.
    ///
    /// While the store does not answer, the last loaded roles count. A permission that a role gives counts also while those of the
    /// user are not known.
    ///
    /// # Errors
    /// [`Problem::NotPermitted`]; [`Problem::RolesUnknown`] if roles or permissions are not known and
    /// [`UnknownRoles`](crate::authenticator::UnknownRoles) allows nothing else; [`Problem::Unavailable`] if the store did not
    /// answer and has no part in the answer so far.
    pub fn check(&self, user: &CurrentUser) -> Result<(), Problem> {
        let outcome = self.outcome(user);
        if let Err(problem) = &outcome {
            AuthenticationMetrics::not_permitted(problem.reason().unwrap_or("unavailable"));
        }
        outcome
    }

    fn outcome(&self, user: &CurrentUser) -> Result<(), Problem> {
        let refused = |reason| Err(Problem::NotPermitted { reason, needed: self.clone() });
        match user.membership() {
            Membership::NoOrganization => return refused("no_organization"),
            Membership::NotMember => return refused("not_a_member"),
            Membership::Suspended(_) => return refused("suspended_in_organization"),
            Membership::Unknown | Membership::Member(_) => {}
        }
        let (certain, is_known, missing) = match self.kind {
            Kind::Role => (user.roles().unwrap_or_default(), user.roles().is_some(), "missing_role"),
            Kind::Permission => {
                (user.certain_permissions(), user.permissions().is_some(), "missing_permission")
            }
        };
        if self.any_of.iter().any(|key| certain.contains(&key.as_str())) {
            return Ok(());
        }
        if is_known {
            return refused(missing);
        }
        match () {
            () if user.document().is_none() => {
                let request = RequestId::next();
                tracing::debug!(%request, "the store does not answer: the roles of a user are not known");
                Err(Problem::Unavailable { retry_after: RETRY_AFTER, request })
            }
            () => Err(Problem::RolesUnknown { needed: self.clone() }),
        }
    }
}

/// Passes on requests of users with this role in the organization of the token.
pub fn require_role(key: impl Into<String>) -> RequireLayer {
    Requirement::role(key).into()
}

/// Passes on requests of users with one of these roles.
pub fn require_any_role(keys: impl IntoIterator<Item = impl Into<String>>) -> RequireLayer {
    Requirement::any_role(keys).into()
}

/// Passes on requests of users with this permission in the organization of the token.
pub fn require_permission(key: impl Into<String>) -> RequireLayer {
    Requirement::permission(key).into()
}

/// Passes on requests of users with one of these permissions.
pub fn require_any_permission(keys: impl IntoIterator<Item = impl Into<String>>) -> RequireLayer {
    Requirement::any_permission(keys).into()
}

/// A layer that answers requests of other users with the problem of [`Requirement::check`]. Several layers require all of
/// their requirements.
#[derive(Clone, Debug)]
pub struct RequireLayer {
    requirement: Requirement,
}

impl From<Requirement> for RequireLayer {
    fn from(requirement: Requirement) -> Self {
        Self { requirement }
    }
}

impl<S> Layer<S> for RequireLayer {
    type Service = RequireService<S>;

    fn layer(&self, inner: S) -> RequireService<S> {
        RequireService { inner, requirement: self.requirement.clone() }
    }
}

/// A service that receives only requests of users that meet a requirement.
#[derive(Clone, Debug)]
pub struct RequireService<S> {
    inner: S,
    requirement: Requirement,
}

impl<S, B, R> Service<Request<B>> for RequireService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<Either<R, Body>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let checked = match request.extensions().get::<CurrentUser>() {
            Some(user) => self.requirement.check(user),
            None => Err(current_user::without_layer(request.uri().path())),
        };
        match checked {
            Ok(()) => {
                let response = self.inner.call(request);
                Box::pin(async move { Ok(response.await?.map(Either::Left)) })
            }
            Err(problem) => Box::pin(async move { Ok(problem.into_response().map(Either::Right)) }),
        }
    }
}
