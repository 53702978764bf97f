//! The text form of durations in settings and JSON: `"250ms"`, `"5s"`, `"12h"`.

/// For a field of type `Duration`.
pub(crate) use jiff::fmt::serde::unsigned_duration::friendly::compact::required as one;

/// For a field of type `Vec<Duration>`.
pub(crate) mod many {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Item(#[serde(with = "super::one")] Duration);

    pub(crate) fn serialize<S: Serializer>(spans: &[Duration], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(spans.iter().copied().map(Item))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Duration>, D::Error> {
        Ok(Vec::<Item>::deserialize(deserializer)?.into_iter().map(|item| item.0).collect())
    }
}
