//! Mirrors Kinde users into a store: durable queue, projector, stores and reconciler on tokio. Contains no HTTP server and no
//! command line.
//!
//! In reading order:
//! - [`engine`]: composes queue, store, projector and reconciler
//! - [`supervisor`]: runs and restarts the long-running tasks
//! - [`queue`]: durable storage of accepted deliveries, before the sender receives 200
//! - [`decode`]: from a delivery to observations
//! - [`sighting`]: authenticated requests recorded while the store was unavailable
//! - [`snapshot`]: from a read of Kinde to fields
//! - [`projector`]: claim, fold, apply, acknowledge
//! - [`apply`]: the single write path of all observations
//! - [`email_ownership`]: the owner of an email address that several users have
//! - [`link`]: existing documents of an application that become documents of users
//! - [`scan_watermark`]: treatment of events older than the last complete scan
//! - [`pending_checks`]: single users to re-read from Kinde
//! - [`reconcile`]: finds and repairs what the webhook missed
//! - [`explain`]: the observations behind the state of a user
//! - [`store`]: storage of users and of the event log
//! - [`breaker`]: circuit breaker per dependency
//! - [`clock`]: the current time

pub mod engine;

pub mod supervisor;

pub mod queue;

pub mod decode;

pub mod sighting;

pub mod snapshot;

pub mod projector;

pub mod apply;

pub mod email_ownership;

pub mod refused_users;

pub mod link;

pub mod scan_watermark;

pub mod pending_checks;

pub mod reconcile;

pub mod explain;

pub mod store;

pub mod breaker;

pub mod clock;

mod random;

mod state_records;

pub use engine::Engine;
