//! Verification against real keys, real sockets and signatures made by other programs.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod account;
mod api;
mod bearer;
mod bearer_caching;
mod bearer_tenant;
mod directory;
mod emulator;
mod jwks;
mod management;
mod management_tokens;
mod never_panics;
mod readme;
mod support;
mod tokens;
mod webhook;
mod webhook_jwt;
