//! Does it: queue, projector and stores on tokio. No HTTP server, no command line.
//!
//! In reading order:
//! - [`engine`]: queue, store, projector and reconciler as one part
//! - [`supervisor`]: runs and restarts the long-running tasks
//! - [`queue`]: where a delivery becomes durable, before anyone is told 200
//! - [`observe`]: what a delivery says of a user
//! - [`sighting`]: what a token said of a user while the store was away
//! - [`snapshot`]: what a read of Kinde says of a user
//! - [`projector`]: claim, fold, apply, ack
//! - [`apply`]: the one door to every write
//! - [`settle`]: who shows an address that several users have
//! - [`link`]: rows of an application that become users'
//! - [`floor`]: what scans make of events that come late
//! - [`checks`]: users of whom Kinde should be asked
//! - [`reconcile`]: what no delivery told of, found and repaired
//! - [`explain`]: why a stored user is as it is
//! - [`store`]: where users and the event log are kept
//! - [`breaker`]: when a dependency is left alone
//! - [`clock`]: what time it is

pub mod engine;

pub mod supervisor;

pub mod queue;

pub mod decode;

pub mod sighting;

pub mod snapshot;

pub mod projector;

pub mod apply;

pub mod email_ownership;

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
