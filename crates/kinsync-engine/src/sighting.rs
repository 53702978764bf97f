//! A user whom an authenticated request showed while the store could not be asked: kept in the
//! queue, so that the user appears when the store is back, without another request.
//!
//! Only kinsync writes these entries. Their scheme is no scheme of the webhook, so no delivery from
//! outside, signed or not, is ever read as one.

use bytes::Bytes;
use kinsync_core::{Micros, Observation, Profile, Source, UserId, Version, What};
use serde::{Deserialize, Serialize};

use crate::queue::{Entry, Payload};

/// The scheme of these entries.
pub const SCHEME: &str = "login";
/// Their type in the event log.
pub const EVENT_TYPE: &str = "kinsync.login";

/// Repetitions of one user within this time are one entry.
const BUCKET: i64 = 3_600_000_000;

/// What a verified token said, and when.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sighting {
    /// The token's subject.
    pub user: UserId,
    /// What the token's claims say of the user.
    #[serde(default, skip_serializing_if = "Profile::is_empty")]
    pub profile: Profile,
    /// When the request was seen, by our clock. Orders nothing: tokens make provisional versions.
    pub seen_at: Micros,
}

/// What is told is personal and stays out of it.
impl std::fmt::Debug for Sighting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sighting").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Sighting {
    /// The entry for the queue. Sightings of one user within one hour have one id.
    pub fn entry(&self) -> Entry {
        let hour = self.seen_at.0.div_euclid(BUCKET);
        Entry {
            event_id: format!("kinsync:login:{hour}:{}", self.user),
            received_at: self.seen_at,
            payload: Payload::Sighting(Bytes::from(
                serde_json::to_vec(self).expect("texts and a number are JSON"),
            )),
        }
    }

    /// That the user exists, with the lowest version of all: everything that Kinde says outranks it.
    pub fn existence(&self) -> Observation {
        self.observation(What::Fields(self.profile.clone()))
    }

    /// Existence, and the time at which the user was seen.
    pub fn observations(&self) -> Vec<Observation> {
        vec![self.existence(), self.observation(What::Seen(self.seen_at))]
    }

    fn observation(&self, what: What) -> Observation {
        Observation { user: self.user.clone(), version: Version::provisional(), source: Source::Login, what }
    }
}
