//! The JSON documents of the HTTP API: one type for each, apart from the records that the store keeps.
//!
//! The routes write these types, the commands and `kinsync doctor` read them, and `/openapi.json` describes them, so a
//! renamed key does not compile on one side alone. The query of a list defines the flags of its command. A value that is not
//! known is absent; a list or map that is known to be empty is there and empty.
//!
//! In reading order:
//! - `time`: instants
//! - [`users`], [`explain`]: users, and why one is as it is
//! - [`events`], [`dead_letters`]: the event log, and the dead letters
//! - [`runs`]: scans and what they found
//! - [`audit`]: requests of operators
//! - [`health`], [`stats`]: the state of the server
//! - [`projections`]: daily figures

pub mod audit;
pub mod dead_letters;
pub mod erasure;
pub mod events;
pub mod explain;
pub mod export;
pub mod health;
pub mod organizations;
pub mod projections;
pub mod runs;
pub mod stats;
pub mod time;
pub mod users;

pub use time::Time;

/// The event as JSON; as text where it is not valid JSON.
fn payload(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}
