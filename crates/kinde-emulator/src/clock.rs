//! Time and ids: a strictly increasing microsecond clock and a seeded source of ids.

use std::fmt;

use jiff::Timestamp;
use jiff::tz::{Offset as Zone, TimeZone};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Serialize, Serializer};

use crate::config::{Offset, Precision};

/// Returns the time of the machine's clock.
pub(crate) fn now() -> Timestamp {
    #[expect(clippy::disallowed_methods, reason = "the one place of this crate that reads the wall clock")]
    Timestamp::now()
}

/// Assigns a distinct time to each event, and ids that depend on the seed (event ids also on the time, as Kinde's do).
pub(crate) struct Clock {
    last: Timestamp,
    rng: StdRng,
}

impl Clock {
    pub(crate) fn new(seed: u64) -> Self {
        Self { last: Timestamp::UNIX_EPOCH, rng: StdRng::seed_from_u64(seed) }
    }

    /// Returns the current time in whole microseconds, later than every time returned before.
    pub(crate) fn tick(&mut self) -> Timestamp {
        let now = now().as_microsecond().max(self.last.as_microsecond() + 1);
        self.last = Timestamp::from_microsecond(now).expect("the present is in range");
        self.last
    }

    pub(crate) fn user_id(&mut self) -> String {
        format!("kp_{:032x}", self.rng.random::<u128>())
    }

    /// `event_` and 32 hex digits. The first twelve digits are the time in milliseconds, as in Kinde's ids.
    pub(crate) fn event_id(&mut self, at: Timestamp) -> String {
        let random = self.rng.random::<u128>() & ((1 << 80) - 1);
        format!("event_{:012x}{random:020x}", at.as_millisecond())
    }

    pub(crate) fn webhook_id(&mut self) -> String {
        format!("webhook_{:032x}", self.rng.random::<u128>())
    }

    pub(crate) fn org_code(&mut self) -> String {
        format!("org_{:011x}", self.rng.random::<u64>() >> 20)
    }

    pub(crate) fn property_id(&mut self) -> String {
        format!("prop_{:032x}", self.rng.random::<u128>())
    }

    /// A code, refresh token or session id. Not predictable without the seed.
    pub(crate) fn secret(&mut self) -> String {
        format!("{:032x}{:032x}", self.rng.random::<u128>(), self.rng.random::<u128>())
    }

    /// A UUID of version 4, as in `jti` and the ids of roles.
    pub(crate) fn uuid(&mut self) -> String {
        let bits = self.rng.random::<u128>() & !(0xf << 76) & !(0x3 << 62) | 4 << 76 | 2 << 62;
        let hex = format!("{bits:032x}");
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

/// Formats the timestamp of a webhook with the configured offset and precision.
pub(crate) fn webhook_time(at: Timestamp, offset: Offset, precision: Precision) -> String {
    let hours = if offset == Offset::Utc { 0 } else { 10 };
    let local = at.to_zoned(TimeZone::fixed(Zone::constant(hours)));
    let digits = match precision {
        Precision::Seconds => "%Y-%m-%dT%H:%M:%S",
        Precision::Millis => "%Y-%m-%dT%H:%M:%S.%3f",
        Precision::Micros => "%Y-%m-%dT%H:%M:%S.%6f",
    };
    let suffix = match offset {
        Offset::Utc => "Z",
        Offset::Sydney => "+10:00",
        Offset::Short => "+10",
    };
    format!("{}{suffix}", local.strftime(digits))
}

/// A date of the Management API: `2025-02-12T18:02:23.614638+00:00`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ApiTime(pub(crate) Timestamp);

impl fmt::Display for ApiTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not `strftime`, which parses its format for each of the million users of a scan.
        let at = Zone::UTC.to_datetime(self.0);
        let (date, time) = (at.date(), at.time());
        let micros = time.subsec_nanosecond() / 1000;
        write!(f, "{:04}-{:02}-{:02}", date.year(), date.month(), date.day())?;
        write!(f, "T{:02}:{:02}:{:02}.{micros:06}+00:00", time.hour(), time.minute(), time.second())
    }
}

impl Serialize for ApiTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_look_like_the_captured_ones() {
        let at: Timestamp = "2024-05-01T07:41:45.592145Z".parse().unwrap();
        let text = |offset, precision| webhook_time(at, offset, precision);
        assert_eq!(text(Offset::Sydney, Precision::Micros), "2024-05-01T17:41:45.592145+10:00");
        assert_eq!(text(Offset::Short, Precision::Seconds), "2024-05-01T17:41:45+10");
        assert_eq!(text(Offset::Utc, Precision::Millis), "2024-05-01T07:41:45.592Z");
        assert_eq!(ApiTime(at).to_string(), "2024-05-01T07:41:45.592145+00:00");
    }

    #[test]
    fn ids_have_kindes_form_and_sort_by_time() {
        let mut clock = Clock::new(7);
        let (first, later) = (clock.tick(), clock.tick() + jiff::SignedDuration::from_millis(1));
        let (a, b) = (clock.event_id(first), clock.event_id(later));
        assert!(a < b, "{a} {b}");
        assert_eq!((a.len(), clock.user_id().len()), (38, 35));
        assert_eq!(Clock::new(7).user_id(), Clock::new(7).user_id());
        assert_eq!(&clock.uuid()[14..15], "4");
    }
}
