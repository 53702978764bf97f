//! Parses the timestamps that Kinde writes.
//!
//! Kinde mixes forms: `2024-05-01T17:41:45.592145+10:00` in webhooks, `…Z` in newer ones, and short offsets such as
//! `+11` in some API responses. Each form becomes one instant in UTC. This module never reads the current time.

use jiff::Timestamp;
use serde_json::Value;

/// Numbers below this are seconds, larger ones milliseconds (as seconds this would be the year 5138).
const FIRST_MILLISECOND_VALUE: u64 = 100_000_000_000;

/// The reason why a value is not a timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not a timestamp, or no such instant exists, for example on 30 February.
    #[error("not a time of the form `2024-05-01T17:41:45.592145+10:00`")]
    Form,
    /// The number is out of range.
    #[error("the number is out of the range of timestamps")]
    OutOfRange,
    /// The JSON value is neither a string nor an integer.
    #[error("neither a string nor an integer")]
    Type,
}

/// Parses an ISO 8601 timestamp with any offset.
///
/// Accepts RFC 3339 and what `jiff` accepts in addition, for example a space instead of `T` and an offset without minutes
/// (`+10`) or without colon (`+1000`). A timestamp without an offset is UTC, because Kinde omits the offset only where its
/// servers write UTC. A leap second becomes the second before it.
///
/// ```
/// let at = kinde::timestamp::parse("2024-05-01T17:41:45.592145+10")?;
/// assert_eq!(at.to_string(), "2024-05-01T07:41:45.592145Z");
/// # Ok::<(), kinde::timestamp::Error>(())
/// ```
pub fn parse(text: &str) -> Result<Timestamp, Error> {
    text.parse().or_else(|_| format!("{text}Z").parse()).map_err(|_| Error::Form)
}

/// Reads a timestamp from a JSON value: a string for [`parse`], or an integer of Unix seconds or milliseconds.
pub fn from_json(value: &Value) -> Result<Timestamp, Error> {
    match value {
        Value::String(text) => parse(text),
        Value::Number(number) => from_number(number.as_i64().ok_or(Error::Type)?),
        _ => Err(Error::Type),
    }
}

fn from_number(number: i64) -> Result<Timestamp, Error> {
    if number.unsigned_abs() < FIRST_MILLISECOND_VALUE {
        Timestamp::from_second(number)
    } else {
        Timestamp::from_millisecond(number)
    }
    .map_err(|_| Error::OutOfRange)
}

#[cfg(test)]
mod tests {
    use jiff::tz::Offset;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_form_that_kinde_writes_is_parsed() {
        for text in [
            "2024-05-01T17:41:45.592145+10:00",
            "2024-05-01T17:41:45.592145+1000",
            "2024-05-01T17:41:45.592145+10",
            "2024-05-01 17:41:45.592145+10",
            "2024-05-01T07:41:45.592145Z",
            "2024-05-01t07:41:45.592145z",
            "2024-05-01T07:41:45.592145",
            "2024-05-01T07:41:45.592145-00:00",
            "2024-05-01T02:11:45.592145-05:30",
        ] {
            assert_eq!(parse(text).map(Timestamp::as_microsecond), Ok(1_714_549_305_592_145), "{text}");
        }
    }

    #[test]
    fn other_texts_are_rejected() {
        for text in [
            "",
            "Z",
            "2024-05-01",
            "2024-05-01T17:41:45.",
            "2024-05-01T17:41:45Z ",
            "2024-05-01T17:41:45 ",
            " 2024-05-01T17:41:45Z",
            "2024-05-01T17:41:45+10:",
            "2024-05-01T17:41:45+10:0",
            "2024-05-01T17:41:45+1",
            "2024-05-01T17:41:45\u{2212}10",
            "٢٠٢٤-05-01T17:41:45Z",
            "2024-02-30T17:41:45Z",
            "2024-05-01T24:00:00Z",
            "2024-05-01T17:41:45+10:60",
            "9999-12-31T23:59:59-23:59",
        ] {
            assert_eq!(parse(text), Err(Error::Form), "{text}");
        }
    }

    #[test]
    fn numbers_are_seconds_or_milliseconds() {
        let at = parse("2024-05-01T07:41:45Z").unwrap();
        assert_eq!(from_json(&json!(1_714_549_305)), Ok(at));
        assert_eq!(from_json(&json!(1_714_549_305_000_i64)), Ok(at));
        assert_eq!(from_json(&json!("2024-05-01T07:41:45Z")), Ok(at));
        assert_eq!(from_json(&json!(1.5)), Err(Error::Type));
        assert_eq!(from_json(&json!(null)), Err(Error::Type));
        assert_eq!(from_json(&json!(i64::MAX)), Err(Error::OutOfRange));
        assert_eq!(from_json(&json!(i64::MIN)), Err(Error::OutOfRange));
    }

    proptest::proptest! {
        #[test]
        fn a_formatted_instant_with_any_offset_is_parsed(
            second in -62_000_000_000_i64..=250_000_000_000,
            nano in 0..1_000_000_000_i32,
            quarter in -92..=92_i32,
        ) {
            let at = Timestamp::new(second, nano).unwrap();
            let offset = Offset::from_seconds(quarter * 900).unwrap();
            let text = at.display_with_offset(offset).to_string();
            proptest::prop_assert_eq!(parse(&text), Ok(at));
        }

        #[test]
        fn no_text_causes_a_panic(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_text_like_a_timestamp_causes_a_panic(text in "[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.+Zz-]{0,30}") {
            let _ = parse(&text);
        }
    }
}
