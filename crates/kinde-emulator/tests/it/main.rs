//! Tests against a running emulator, over HTTP, as an application would meet it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod cli;
mod deliveries;
mod faults;
mod generated;
mod login;
mod management;
mod receiver;
mod sdk;
mod shapes;
mod tokens;
mod town;
