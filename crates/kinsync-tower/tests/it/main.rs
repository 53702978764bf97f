//! The webhook service and the layer on real parts, without a socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod authenticator;
mod authorization;
mod process;
mod profiles;
mod recovery;
mod refusals;
mod webhook;
