#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
//!
//! # The code in reading order
//!
//! - [`ids`]: user ids
//! - [`version`]: the order of observations
//! - [`field`]: the synced fields and their values
//! - [`membership`]: the memberships in organizations
//! - [`directory`]: the organizations, roles and permissions that memberships refer to
//! - [`property`]: the properties of users
//! - [`observation`]: facts about one user from one source
//! - [`register`]: the newest value of one field
//! - [`state`]: the state of one user
//! - [`join`]: the join of two states
//! - `packed`: the versions in a stored value, each one once
//! - [`email`]: ownership of email addresses
//! - [`document`]: the user document that an application reads
//! - [`rfc3339`]: instants as text
#![warn(missing_docs)]

pub mod ids;
pub mod version;

pub mod rfc3339;

pub mod field;

pub mod membership;

pub mod directory;

pub mod property;

pub mod observation;

pub mod register;

pub mod state;

pub mod join;

mod packed;

pub mod email;

pub mod document;

pub use directory::{Directory, Entry, Fact, SharedEntries};
pub use document::{RowMetadata, UserDocument};
pub use field::{Field, Group, Identity, Organization, Profile, Value, ValueKind};
pub use ids::UserId;
pub use membership::{MembershipPart, Memberships, Part};
pub use observation::{Observation, Source, What};
pub use property::Properties;
pub use register::Register;
pub use state::{FirstVersions, UserState};
pub use version::{Micros, Rank, Version};
