//! Tests against a running emulator over HTTP.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod activity;
mod cli;
mod deliveries;
mod directory;
mod faults;
mod generated;
mod login;
mod management;
mod receiver;
mod sdk;
mod sdk_directory;
mod secrets;
mod shapes;
mod tokens;
