//! What orders observations: the provider's time, then the kind of source, then a tie-break.
//!
//! The time at which kinsync received something is never part of a version.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// An instant in microseconds since 1970-01-01T00:00:00Z. Kinde sends microseconds; a BSON date
/// keeps only milliseconds and would make ties of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Micros(pub i64);

impl Micros {
    /// Milliseconds, rounded down, as a BSON date has them.
    pub fn as_millis(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

/// What kind of source a version comes from; at equal times the greater one wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rank {
    /// Made from a token before anything else was known: anything outranks it.
    Provisional,
    /// A webhook event.
    Event,
    /// A read of Kinde's Management API or profile endpoint.
    Snapshot,
}

/// (provider time, rank, tie-break): a total order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Provider time in UTC.
    #[serde(rename = "t")]
    pub at: Micros,
    /// What kind of source.
    #[serde(rename = "r")]
    pub rank: Rank,
    /// The event's id, or the content hash of a snapshot.
    #[serde(rename = "i")]
    pub tie: Arc<str>,
}

impl Version {
    /// The version of an event that happened at `at` by Kinde's clock.
    pub fn event(at: Micros, event_id: impl Into<Arc<str>>) -> Self {
        Self { at, rank: Rank::Event, tie: event_id.into() }
    }

    /// The version of a read whose request was sent at `sent_at` by Kinde's clock.
    pub fn snapshot(sent_at: Micros, content_hash: impl Into<Arc<str>>) -> Self {
        Self { at: sent_at, rank: Rank::Snapshot, tie: content_hash.into() }
    }

    /// The lowest version of all: any event or snapshot outranks it.
    pub fn provisional() -> Self {
        Self { at: Micros(i64::MIN), rank: Rank::Provisional, tie: Arc::from("") }
    }

    /// Whether this is the version of a user made from a token alone.
    pub fn is_provisional(&self) -> bool {
        self.rank == Rank::Provisional
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:?}/{}", self.at.0, self.rank, self.tie)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_order_by_time_then_rank_then_tie() {
        let ascending = [
            Version::provisional(),
            Version::event(Micros(-5), "b"),
            Version::event(Micros(1), "a"),
            Version::event(Micros(1), "b"),
            Version::snapshot(Micros(1), "a"),
            Version::event(Micros(2), ""),
        ];
        assert!(ascending.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn milliseconds_round_down_before_1970_too() {
        assert_eq!(Micros(1_999).as_millis(), 1);
        assert_eq!(Micros(-1).as_millis(), -1);
    }
}
