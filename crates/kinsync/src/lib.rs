//! The binary `kinsync`: command line, settings, HTTP server.
//!
//! In reading order:
//! - [`cli`]: one file per command
//! - [`config`]: the settings
//! - [`app`]: creates, starts and stops all parts
//! - `dev` (feature `dev`): the app beside a local Kinde with a demo tenant
//! - [`registration`]: the webhook at Kinde
//! - [`doctor`]: checks of the configuration and of every dependency
//! - [`http`]: connections and routes
//! - [`health`], [`metrics`], [`log`]: the output for operators
//! - [`api`]: the JSON documents of the HTTP API
//! - `plural`: counts with their nouns

pub mod api;
pub mod app;
pub mod cli;
pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
pub mod doctor;
pub mod health;
pub mod http;
pub mod log;
pub mod metrics;
mod plural;
pub mod registration;
