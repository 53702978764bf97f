//! Runs it: the command line, the settings, the HTTP server.
//!
//! In reading order:
//! - [`cli`]: one file per command
//! - [`config`]: what the operator decided
//! - [`app`]: the composition: everything is made, started and stopped here
//! - `dev` (feature `dev`): the app beside a local Kinde with a demo tenant
//! - [`registration`]: the webhook at Kinde
//! - [`doctor`]: whether all that kinsync needs is as it should be
//! - [`http`]: connections and routes
//! - [`health`], [`metrics`], [`log`]: what an operator sees
//! - [`json`]: the shape of users and events over HTTP

pub mod app;
pub mod cli;
pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
pub mod doctor;
pub mod health;
pub mod http;
pub mod json;
pub mod log;
pub mod metrics;
mod random;
pub mod registration;
