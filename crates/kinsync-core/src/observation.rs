//! What one source says of one user.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    field::Profile,
    ids::UserId,
    version::{Micros, Version},
};

/// What one source says of one user, with the version that orders it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Observation {
    /// Who.
    pub user: UserId,
    /// When, by the provider's clock.
    pub version: Version,
    /// Which way it came. Never decides anything; kept for people who ask.
    pub source: Source,
    /// What.
    pub what: What,
}

/// The meaning of an observation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// These fields had these values. Created and updated are the same thing.
    Fields(Profile),
    /// The user was deleted.
    Deleted,
    /// An authenticated request was seen at this time.
    Seen(Micros),
    /// The user signed in at Kinde at this time.
    SignedIn(Micros),
    /// Two reads of the Management API agree that the user exists, with this full profile. The
    /// only observation that restores a deleted user.
    Exists(Profile),
}

/// Which way an observation came.
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
    /// Every way.
    pub const ALL: [Self; 4] = [Self::Webhook, Self::Login, Self::Profile, Self::Reconcile];

    /// The name used in documents and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Login => "login",
            Self::Profile => "profile",
            Self::Reconcile => "reconcile",
        }
    }

    /// The source of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.as_str() == name)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
