#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
//!
//! # The public interface
//!
//! [`Engine::builder`] takes the settings in [`config`] and opens an [`Engine`], which answers with users and its [`Health`]. The crate
//! `kinsync-tower` takes the engine for the webhook endpoint and for the authentication of requests. Nothing else is public.
//!
//! # The code in reading order
//!
//! - `config`: settings of an engine
//! - `engine`: composes queue, store, projector and reconciler
//! - `supervisor`: runs and restarts the long-running tasks
//! - `thread`: threads of the embedded queue and store
//! - `queue`: durable storage of accepted deliveries, before the sender receives 200
//! - `decode`: from a delivery to observations
//! - `sighting`: authenticated requests recorded while the store was unavailable
//! - `fields`: from the user formats of Kinde to fields
//! - `snapshot`: the version of a read of Kinde
//! - `projector`: claim, fold, apply, acknowledge
//! - `apply`: the single write path of all observations
//! - `contention`: repeated compare-and-set attempts
//! - `refused_users`: users that a rule of the store refuses
//! - `known_users`: loads users for the request path, with what their rows do not show yet
//! - `email_ownership`: the owner of an email address that several users have
//! - `link`: existing documents of an application that become documents of users
//! - `scan_watermark`: treatment of events older than the last complete scan
//! - `pending_checks`: single users to re-read from Kinde
//! - `reconcile`: finds and repairs what the webhook missed
//! - `directory`: organizations, roles and permissions
//! - `spread`: their changes in the documents of the users
//! - `derived`: collections of organizations, roles and memberships
//! - `explain`: the observations behind the state of a user
//! - `log_entry`: entries of the event log
//! - `log_follower`: joins entries of the log into rows that lack them
//! - `log_snapshots`: completes the log of a store from before it contained every observation
//! - `replay`: applies entries of the log again
//! - `projections`: daily figures, from the log
//! - `erasure`: removes the personal data of a deleted user everywhere
//! - `retention`: replaces old entries of the log by one for each user
//! - `work_lease`: one process at a time does a background task
//! - `rebuild`: derives the stored users anew from the log
//! - `store`: storage of users and of the event log
//! - `state_records`: kinsync's own records in the store
//! - `audit`: which operator read personal data or changed something
//! - `breaker`: circuit breaker per dependency
//! - `clock`: the current time
//! - `random`: random numbers
//! - `trace`: spans of a delivery
//! - `internal`: what the other crates of the workspace use beside the public interface

mod apply;
mod audit;
mod breaker;
mod clock;
pub mod config;
mod contention;
mod decode;
mod derived;
mod directory;
mod email_ownership;
mod engine;
mod erasure;
mod explain;
mod fields;
mod known_users;
#[cfg(feature = "mongodb")]
mod link;
mod log_entry;
mod log_follower;
mod log_snapshots;
mod pending_checks;
mod projections;
mod projector;
mod queue;
mod random;
mod rebuild;
mod reconcile;
mod refused_users;
mod replay;
mod retention;
mod scan_watermark;
mod sighting;
mod snapshot;
mod spread;
mod state_records;
mod store;
mod supervisor;
mod thread;
mod trace;
mod work_lease;

#[doc(hidden)]
pub mod internal;

pub use clock::Clock;
pub use engine::{Builder, Engine, Error, Health, Roles};
pub use kinsync_core::{Micros, UserDocument, UserId};
pub use queue::{Error as QueueError, Spool, Stats as QueueStats};
pub use store::{Error as StoreError, Page, Selection, UserFilter};
pub use supervisor::Supervisor;
