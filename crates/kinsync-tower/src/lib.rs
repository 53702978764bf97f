//! Embeds kinsync in any tower or axum application: a webhook endpoint and authenticated requests.
//!
//! - [`webhook`]: receives Kinde's deliveries: verifies, stores in the queue, answers
//! - [`layer`]: authenticates each request to a service and passes the user on
//! - [`authenticator`]: verifies the token, loads or creates the user, rejects deleted and suspended users
//! - [`current_user`]: the authenticated user, as a request extension and an axum extractor
//! - [`document`]: the user document as JSON
//! - [`activity`]: the state of the webhook, for a health page
//! - [`problem`]: every error response, as RFC 9457 problem documents
//!
//! Without the feature `axum` the crate depends on no web framework: mount a service with
//! `axum::Router::route_service`, or call it from hyper or tower.
#![warn(missing_docs)]

pub mod activity;
pub mod authenticator;
pub mod current_user;
pub mod document;
pub mod layer;
mod metrics;
pub mod problem;
pub mod webhook;

pub use activity::Activity;
pub use authenticator::Authenticator;
pub use current_user::CurrentUser;
pub use layer::KinsyncLayer;
pub use problem::Problem;
pub use webhook::WebhookService;
