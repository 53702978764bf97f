//! Days in UTC.

use std::{fmt, str::FromStr};

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use kinsync_core::Micros;
use serde::{Deserialize, Serialize};

/// Microseconds of a day. UTC has no other days.
const MICROS: i64 = 86_400_000_000;

/// Instants outside of these days count to the first or the last of them.
const FIRST: i64 = -719_162;
const LAST: i64 = 2_932_895;

/// A day in UTC, as text such as `2026-11-27`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Day(i64);

impl Day {
    /// Returns the day of an instant.
    pub fn of(at: Micros) -> Self {
        Self(at.0.div_euclid(MICROS).clamp(FIRST, LAST))
    }

    /// Returns the first instant.
    pub(super) fn start(self) -> Micros {
        match self.0 {
            FIRST => Micros(i64::MIN),
            day if day > LAST => Micros(i64::MAX),
            day => Micros(day * MICROS),
        }
    }

    pub(super) fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Returns the day before.
    #[must_use]
    pub fn previous(self) -> Self {
        Self((self.0 - 1).max(FIRST))
    }

    /// Returns the day this many days before.
    #[must_use]
    pub fn before(self, days: i64) -> Self {
        Self((self.0 - days).max(FIRST))
    }

    /// Returns the number of days from an earlier day to this one.
    pub fn days_since(self, earlier: Self) -> i64 {
        self.0 - earlier.0
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let date: Date = text.parse().ok()?;
        let start = date.to_zoned(TimeZone::UTC).ok()?.timestamp();
        Some(Self::of(Micros(start.as_microsecond())))
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = Timestamp::from_microsecond(self.0 * MICROS).unwrap_or_default();
        write!(f, "{}", start.to_zoned(TimeZone::UTC).date())
    }
}

impl FromStr for Day {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text).ok_or("not a day such as 2026-11-27")
    }
}

impl TryFrom<String> for Day {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Day> for String {
    fn from(day: Day) -> Self {
        day.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_begins_at_midnight_in_utc() {
        let at = |text: &str| Micros(text.parse::<Timestamp>().expect("a time").as_microsecond());
        let day = Day::of(at("2026-11-27T23:59:59.999999Z"));
        assert_eq!(
            (day.to_string().as_str(), day.next().start()),
            ("2026-11-27", at("2026-11-28T00:00:00Z"))
        );
        assert_eq!("2026-11-27".parse(), Ok(day));
        assert_eq!(Day::of(at("1969-12-31T23:00:00Z")).to_string(), "1969-12-31");
        for extreme in [i64::MIN, i64::MAX] {
            let day = Day::of(Micros(extreme));
            assert_eq!(day.to_string().parse(), Ok(day), "{day}");
            assert!((day.start()..=day.next().start()).contains(&Micros(extreme)));
        }
    }
}
