//! Tests against a running emulator, over HTTP, as an application would meet it.

mod control;
mod deliveries;
mod faults;
mod management;
mod receiver;
mod sdk;
mod tokens;
mod town;
