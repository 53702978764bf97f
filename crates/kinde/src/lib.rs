#![cfg_attr(
    all(feature = "webhook", feature = "bearer", feature = "fetch", feature = "management", feature = "account"),
    doc = include_str!("../README.md")
)]
#![cfg_attr(
    not(all(
        feature = "webhook",
        feature = "bearer",
        feature = "fetch",
        feature = "management",
        feature = "account"
    )),
    doc = "Kinde for Rust. The documentation of the crate needs all features."
)]
#![warn(missing_docs)]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "account")]
pub mod account;
#[cfg(feature = "bearer")]
pub mod bearer;
#[cfg(feature = "fetch")]
pub mod discovery;
pub mod domain;
#[cfg(feature = "_http")]
mod endpoint;
#[cfg_attr(
    not(feature = "management"),
    expect(dead_code, reason = "some field types occur in responses of the Management API only")
)]
pub mod event;
#[cfg(feature = "_http")]
#[cfg_attr(
    not(feature = "management"),
    expect(dead_code, reason = "retries and API errors are for the Management API only")
)]
mod http_client;
#[cfg_attr(
    not(feature = "_keys"),
    expect(dead_code, reason = "tokens need parts of the reader that events do not need")
)]
mod json;
#[cfg(feature = "_keys")]
pub mod jwks;
#[cfg(feature = "_keys")]
pub mod jws;
#[cfg(any(feature = "_keys", feature = "_http"))]
mod labels;
#[cfg(feature = "management")]
pub mod management;
pub mod patch;
#[cfg(any(feature = "fetch", feature = "management"))]
mod random;
#[cfg(feature = "_http")]
pub mod response;
#[cfg(feature = "webhook")]
mod secret;
#[cfg(feature = "webhook")]
pub mod sign;
pub mod timestamp;
mod user;
#[cfg(feature = "webhook")]
pub mod webhook;

// The crates with types that are part of the API.
#[cfg(feature = "webhook")]
#[doc(no_inline)]
pub use bytes;
pub use domain::parse_domain;
#[cfg(feature = "_http")]
pub use endpoint::Endpoint;
pub use event::Event;
#[cfg(feature = "webhook")]
#[doc(no_inline)]
pub use http;
#[doc(no_inline)]
pub use jiff;
#[cfg(feature = "_keys")]
pub use jwks::Jwks;
pub use patch::Patch;
#[cfg(feature = "_http")]
pub use response::{Clock, RequestTiming, Response};
#[cfg(any(feature = "webhook", feature = "management"))]
#[doc(no_inline)]
pub use secrecy;
#[doc(no_inline)]
pub use url;
