//! The order of observations: provider time, then kind of source, then tie-break.
//!
//! The time of receipt is part of a version only if the sender sent no time at all: it makes the order of arrival matter.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// An instant in microseconds since 1970-01-01T00:00:00Z. Kinde sends microseconds; the milliseconds of a BSON date
/// would make different times equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Micros(pub i64);

impl Micros {
    /// Returns milliseconds, rounded down, as in a BSON date.
    pub fn as_millis(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

/// The kind of source of a version. At equal times the greater rank wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rank {
    /// A token on a request. Every event and snapshot outranks it.
    Provisional,
    /// A webhook event without a time of its own, ordered by the time of its signature or of its receipt.
    Receipt,
    /// A webhook event.
    Event,
    /// A read of Kinde's Management API or profile endpoint.
    Snapshot,
}

impl Rank {
    /// All ranks, in ascending order.
    pub const ALL: [Self; 4] = [Self::Provisional, Self::Receipt, Self::Event, Self::Snapshot];

    /// Returns the name in a stored version.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provisional => "provisional",
            Self::Receipt => "receipt",
            Self::Event => "event",
            Self::Snapshot => "snapshot",
        }
    }

    /// Returns the rank with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rank| rank.as_str() == name)
    }
}

/// The totally ordered version of an observation: (provider time, rank, tie-break).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Provider time in UTC.
    #[serde(rename = "t")]
    pub at: Micros,
    /// Kind of source.
    #[serde(rename = "r")]
    pub rank: Rank,
    /// Event id, content hash of a snapshot, or position in the order of receipt.
    #[serde(rename = "i")]
    pub tie: Arc<str>,
}

impl Version {
    /// Returns the version of an event that happened at `at` by Kinde's clock.
    pub fn event(at: Micros, event_id: impl Into<Arc<str>>) -> Self {
        Self { at, rank: Rank::Event, tie: event_id.into() }
    }

    /// Returns the version of an event without a time that was signed or received at `at`. `position` orders the events of
    /// one instant; it must be unique and sort as a text in the order of receipt.
    pub fn receipt(at: Micros, position: impl Into<Arc<str>>) -> Self {
        Self { at, rank: Rank::Receipt, tie: position.into() }
    }

    /// Returns the version of a snapshot that was requested at `sent_at` by Kinde's clock.
    pub fn snapshot(sent_at: Micros, content_hash: impl Into<Arc<str>>) -> Self {
        Self { at: sent_at, rank: Rank::Snapshot, tie: content_hash.into() }
    }

    /// Returns the lowest version: any event or snapshot outranks it.
    pub fn provisional() -> Self {
        Self { at: Micros(i64::MIN), rank: Rank::Provisional, tie: Arc::from("") }
    }

    /// Returns whether this version comes from a token.
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
            Version::receipt(Micros(1), "b"),
            Version::receipt(Micros(1), "c"),
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
