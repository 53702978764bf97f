//! Sightings: authenticated requests recorded while the store was unavailable. A sighting waits in the queue and creates the
//! user when the store is available again, without another request.
//!
//! Only kinsync writes these entries. Their scheme is not a scheme of the webhook, so a delivery from outside, signed or
//! not, is never decoded as a sighting.

use bytes::Bytes;
use kinsync_core::{Micros, Observation, Profile, Source, UserId, Version, What};
use serde::{Deserialize, Serialize};

use crate::queue::{Entry, Payload};

/// Length of a time bucket in microseconds. Sightings of one user in one bucket have the same id.
const BUCKET: i64 = 3_600_000_000;

/// Claims of a verified token and the time of the request.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sighting {
    /// Subject of the token.
    pub user: UserId,
    /// Fields from the claims of the token.
    #[serde(default, skip_serializing_if = "Profile::is_empty")]
    pub profile: Profile,
    /// Time of the request by kinsync's clock. Does not order fields: tokens have provisional versions.
    pub seen_at: Micros,
}

/// Omits the profile, which contains personal data.
impl std::fmt::Debug for Sighting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sighting").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Sighting {
    /// Returns the queue entry. Sightings of one user within one hour have the same event id, so the queue keeps one.
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

    /// Returns the observation of the token's fields, with the lowest version: every event and snapshot outranks it.
    pub fn existence(&self) -> Observation {
        self.observation(What::Fields(self.profile.clone()))
    }

    /// Returns the observation of the token's fields and the time of the request.
    pub fn observations(&self) -> Vec<Observation> {
        vec![self.existence(), self.observation(What::Seen(self.seen_at))]
    }

    fn observation(&self, what: What) -> Observation {
        Observation { user: self.user.clone(), version: Version::provisional(), source: Source::Login, what }
    }
}
