//! Observations: facts about one user from one source.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    field::{Organization, Profile},
    ids::UserId,
    version::{Micros, Version},
};

/// A fact about one user from one source, with the version that orders it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Observation {
    /// The observed user.
    pub user: UserId,
    /// Provider time, rank and tie-break. Orders observations.
    pub version: Version,
    /// Source of the observation. Informational: the join ignores it.
    pub source: Source,
    /// The observed fact.
    pub what: What,
}

/// The fact that an observation states. The serialized form is that of the event log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum What {
    /// The fields had these values. `user.created` and `user.updated` events mean the same.
    Fields(Profile),
    /// The user had this membership, or none in this organization. Values that are absent stay unknown. Other memberships
    /// are not affected.
    Membership {
        /// Kinde's code of the organization.
        code: String,
        /// The membership; `None`: the user is no member.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        membership: Option<Organization>,
    },
    /// The user was deleted.
    Deleted,
    /// The user made an authenticated request at this time.
    Seen(Micros),
    /// The user signed in at Kinde at this time.
    SignedIn(Micros),
    /// Two reads of the Management API confirmed that the user exists, with this full profile. The only observation
    /// that restores a deleted user.
    Exists(Profile),
}

/// The source of an observation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A webhook delivery.
    Webhook,
    /// A token on an authenticated request.
    Login,
    /// Kinde's profile endpoint.
    Profile,
    /// A scan of the Management API.
    Reconcile,
}

impl Source {
    /// All sources.
    pub const ALL: [Self; 4] = [Self::Webhook, Self::Login, Self::Profile, Self::Reconcile];

    /// Returns the name used in documents and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Login => "login",
            Self::Profile => "profile",
            Self::Reconcile => "reconcile",
        }
    }

    /// Returns the source with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.as_str() == name)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
