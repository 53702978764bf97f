//! Embeds kinsync in any tower or axum application.
//!
//! - [`webhook`]: the service that takes deliveries: verify, enqueue, answer
//! - [`layer`]: in front of a service: the user of every request, known and stored
//! - [`authenticator`]: what the layer asks: token, user, refusal
//! - [`current_user`]: the proof, as a request extension and an axum extractor
//! - [`document`]: what is known of the user, as JSON
//! - [`activity`]: how deliveries are going, for a health page
//! - [`problem`]: every error answer, as RFC 9457 problem documents
//!
//! Without the feature `axum` there is no dependency on a web framework: a service is mounted with `axum::Router::route_service`, or called
//! from hyper or tower directly.
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
