//! What Kinde says on the wire: webhook and token verification, JWKS, typed events.
#![warn(missing_docs)]
#![forbid(unsafe_code)]

pub mod domain;
pub mod event;
mod json;
pub mod patch;
mod secret;
pub mod sign;
pub mod timestamp;

pub use domain::parse_domain;
pub use event::Event;
pub use patch::Patch;
