#![doc = include_str!("../README.md")]
#![warn(missing_docs)]
#![forbid(unsafe_code)]

pub mod bearer;
pub mod domain;
pub mod event;
mod json;
pub mod jwks;
pub mod jws;
pub mod patch;
mod secret;
pub mod sign;
pub mod timestamp;
pub mod webhook;

pub use domain::parse_domain;
pub use event::Event;
pub use jwks::Jwks;
pub use patch::Patch;
