//! State of a Kinde user as a join of observations from any source.
//!
//! Pure: no I/O, no clock, no randomness. Every source (webhook, login, profile, reconcile) creates
//! [`Observation`]s, and [`UserState::join`] merges them. The join is associative, commutative and idempotent, so any
//! order and any repetition of the same observations gives the same state.
//!
//! In reading order:
//! - [`ids`]: user ids
//! - [`version`]: the order of observations
//! - [`field`]: the synced fields and their values
//! - [`observation`]: facts about one user from one source
//! - [`state`]: the state of one user
//! - [`join`]: the join of two states
//! - [`email`]: ownership of email addresses
//! - [`document`]: the user document that an application reads
//! - [`rfc3339`]: instants as text
//!
//! ```
//! use kinsync_core::{Field, Micros, Observation, Profile, Source, UserId, UserState, Version, What};
//!
//! let ada = UserId::parse("kp_ada").unwrap();
//! let event = |at, what| Observation {
//!     user: ada.clone(), version: Version::event(Micros(at), "event_1"), source: Source::Webhook, what,
//! };
//! let named = event(1, What::Fields(Profile::new().with(Field::FirstName, "Ada")));
//! let deleted = event(2, What::Deleted);
//!
//! // A late delivery does not restore a deleted user, in any order of arrival.
//! let state = UserState::of(&deleted).join(UserState::of(&named));
//! assert!(!state.is_live());
//! assert_eq!(state, UserState::of(&named).join(UserState::of(&deleted)));
//! ```
#![warn(missing_docs)]

pub mod ids;
pub mod version;

pub mod rfc3339;

pub mod field;

pub mod observation;

pub mod state;

pub mod join;

pub mod email;

pub mod document;

pub use document::{RowMetadata, UserDocument};
pub use field::{Field, Group, Identity, Organization, Profile, Value};
pub use ids::UserId;
pub use observation::{Observation, Source, What};
pub use state::{FirstVersions, Register, UserState};
pub use version::{Micros, Rank, Version};
