#![doc = include_str!("../README.md")]
//!
//! ## Modules
//!
//! - [`webhook`]: receives Kinde's deliveries: verifies, stores in the queue, answers
//! - [`layer`]: authenticates each request to a service and passes the user on
//! - [`authenticator`]: verifies the token, loads or creates the user, rejects deleted and suspended users
//! - [`current_user`]: the authenticated user, as a request extension and an axum extractor
//! - [`membership`]: the user in the organization of the token
//! - [`require`]: layers that require a role or a permission
//! - `requirement`: a required role or permission
//! - [`document`]: the user document as JSON
//! - [`activity`]: the state of the webhook, for a health page
//! - [`problem`]: every error response, as RFC 9457 problem documents
//! - `metrics`: the counters of both services
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod activity;
pub mod authenticator;
pub mod current_user;
pub mod document;
pub mod layer;
pub mod membership;
mod metrics;
pub mod problem;
pub mod require;
mod requirement;
pub mod webhook;

pub use activity::Activity;
pub use authenticator::Authenticator;
pub use current_user::CurrentUser;
pub use layer::KinsyncLayer;
pub use membership::Membership;
pub use problem::Problem;
pub use require::{Requirement, require_any_permission, require_any_role, require_permission, require_role};
pub use webhook::WebhookService;

/// Compiles the code of the guide to embedding.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../../../docs/guides/embedding.md")]
struct EmbeddingGuide;

/// Compiles the code of the guide to authorization.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../../../docs/guides/authorization.md")]
struct AuthorizationGuide;
