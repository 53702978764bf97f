//! The webhook service on a real queue, without a socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod webhook;
