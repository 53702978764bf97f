#![doc = include_str!("../README.md")]
#![warn(missing_docs)]
#![forbid(unsafe_code)]

pub mod account;
pub mod bearer;
pub mod discovery;
pub mod domain;
pub mod event;
mod http_client;
mod json;
pub mod jwks;
pub mod jws;
pub mod management;
pub mod patch;
mod random;
pub mod response;
mod secret;
pub mod sign;
pub mod timestamp;
pub mod webhook;

pub use domain::parse_domain;
pub use event::Event;
pub use jwks::Jwks;
pub use patch::Patch;
pub use response::{Clock, RequestTiming, Response};
