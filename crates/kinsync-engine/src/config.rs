//! Settings of an engine, for the methods of [`Builder`](crate::Builder). Each has defaults, and a `new` if an address is required.

#[cfg(feature = "rabbitmq")]
pub use crate::queue::rabbitmq::Config as Rabbitmq;
#[cfg(feature = "redis")]
pub use crate::queue::redis::Config as Redis;
#[cfg(feature = "mongodb")]
pub use crate::store::mongo::{
    Config as Mongo, Derived, DerivedConfig, FieldMapping, LinkByEmail, TombstoneEmail,
};
pub use crate::{
    queue::{
        SharedQueue,
        embedded::{Config as Queue, DeadLetterBounds},
    },
    reconcile::{Config as Reconcile, PropertyConfig, Thresholds},
    retention::Rules as Retention,
};
