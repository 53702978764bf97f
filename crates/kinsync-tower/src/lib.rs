//! Embeds kinsync in any tower or axum application.
//!
//! - [`webhook`]: the service that takes deliveries: verify, enqueue, answer
//! - [`activity`]: how deliveries are going, for a health page
//! - [`problem`]: every error answer, as RFC 9457 problem documents
//!
//! There is no dependency on a web framework: a service is mounted with `axum::Router::route_service`, or called
//! from hyper or tower directly.
#![warn(missing_docs)]

pub mod activity;
mod meters;
pub mod problem;
pub mod webhook;

pub use activity::Activity;
pub use problem::Problem;
pub use webhook::WebhookService;
