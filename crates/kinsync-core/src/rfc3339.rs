//! Instants as RFC 3339 text in UTC with microseconds, such as `2024-05-01T07:41:45.592145Z`, the format of the HTTP API.
//! Used as `#[serde(with = "rfc3339")]` on a field of type [`Micros`].

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serializer, de};

use crate::version::Micros;

/// Formats an instant. An instant outside the years -9999 to 9999, which has no text form, becomes the nearest one inside.
pub fn format(at: Micros) -> String {
    let nearest = if at.0 < 0 { Timestamp::MIN } else { Timestamp::MAX };
    format!("{:.6}", Timestamp::from_microsecond(at.0).unwrap_or(nearest))
}

/// Parses a text and rounds it down to microseconds. Returns `None` if the text is not RFC 3339.
pub fn parse(text: &str) -> Option<Micros> {
    text.parse::<Timestamp>().ok().map(|at| Micros(at.as_microsecond()))
}

/// Serializes an instant as text.
pub fn serialize<S: Serializer>(at: &Micros, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*at))
}

/// Deserializes an instant from text.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Micros, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| de::Error::invalid_value(de::Unexpected::Str(&text), &"an RFC 3339 instant"))
}

/// The same format for `Option<Micros>`, with `skip_serializing_if = "Option::is_none"` and `default`.
pub mod optional {
    use super::{Deserializer, Micros, Serializer};

    /// Serializes an instant as text, `None` as null.
    pub fn serialize<S: Serializer>(at: &Option<Micros>, serializer: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => super::serialize(at, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Deserializes an instant from text. Fails on null.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Micros>, D::Error> {
        super::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formatted_instants_have_microseconds_and_parse_to_themselves() {
        let check = |micros: i64, text: &str| {
            assert_eq!(format(Micros(micros)), text);
            assert_eq!(parse(text), Some(Micros(micros)));
        };
        check(1_714_549_305_592_145, "2024-05-01T07:41:45.592145Z");
        check(0, "1970-01-01T00:00:00.000000Z");
        check(-1, "1969-12-31T23:59:59.999999Z");
        assert_eq!(parse("yesterday"), None);
    }

    #[test]
    fn an_instant_outside_the_calendar_becomes_the_nearest_one() {
        assert!(format(Micros(i64::MAX)).starts_with("9999-12-30T"), "{}", format(Micros(i64::MAX)));
        assert!(format(Micros(i64::MIN)).starts_with("-009999-01-02T"), "{}", format(Micros(i64::MIN)));
    }
}
