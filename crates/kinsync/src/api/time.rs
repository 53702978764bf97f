//! Instants as RFC 3339 text in UTC with microseconds, such as `2024-05-01T07:41:45.592145Z`.

use std::{fmt, str::FromStr, time::Duration};

use kinsync_core::{Micros, rfc3339};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An instant, as RFC 3339 text in UTC with microseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[schema(value_type = String, format = DateTime, example = "2024-05-01T07:41:45.592145Z")]
pub struct Time(#[serde(with = "rfc3339")] Micros);

impl From<Micros> for Time {
    fn from(at: Micros) -> Self {
        Self(at)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&rfc3339::format(self.0))
    }
}

impl From<Time> for Micros {
    fn from(at: Time) -> Self {
        at.0
    }
}

impl FromStr for Time {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_value(text.into())
    }
}

/// Seconds from one instant to a later one.
pub fn age(from: Micros, to: Micros) -> f64 {
    let micros = u64::try_from(to.0.saturating_sub(from.0)).unwrap_or_default();
    Duration::from_micros(micros).as_secs_f64()
}
