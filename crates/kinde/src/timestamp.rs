//! Reads the times that Kinde writes.
//!
//! Kinde mixes forms: `2024-05-01T17:41:45.592145+10:00` in webhooks, `…Z` in newer ones, short offsets such as
//! `+11` in some API answers. All of them become one instant in UTC here. This module never asks for the
//! current time.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::Offset;
use serde_json::Value;

/// Numbers below this are taken as seconds, from it on as milliseconds (as seconds it would be the year 5138).
const FIRST_MILLISECOND_VALUE: u64 = 100_000_000_000;

/// Why a text or number is not a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It does not look like `2024-05-01T17:41:45.592145+10:00`.
    #[error("not a time of the form `2024-05-01T17:41:45.592145+10:00`")]
    Form,
    /// It has the right form but no such moment exists, for example 30 February.
    #[error("no such date, time of day or offset")]
    OutOfRange,
    /// The JSON value is neither a string nor a whole number.
    #[error("neither a string nor a whole number")]
    Type,
}

/// Parses an RFC 3339 time with any offset.
///
/// Beyond RFC 3339: a space instead of `T`, an offset without minutes (`+10`) or without colon (`+1000`), and no
/// offset at all, which is taken as UTC because Kinde's servers write UTC when they leave it out. Digits past the
/// nanosecond are dropped; a leap second is the second before it.
///
/// ```
/// let at = kinde::timestamp::parse("2024-05-01T17:41:45.592145+10")?;
/// assert_eq!(at.to_string(), "2024-05-01T07:41:45.592145Z");
/// # Ok::<(), kinde::timestamp::Error>(())
/// ```
pub fn parse(text: &str) -> Result<Timestamp, Error> {
    let mut cursor = Cursor { rest: text.as_bytes() };
    let date = cursor.date()?;
    cursor.one_of(b"Tt ")?;
    let time = cursor.time()?;
    let offset = cursor.offset()?;
    if !cursor.rest.is_empty() {
        return Err(Error::Form);
    }
    offset.to_timestamp(DateTime::from_parts(date, time)).map_err(|_| Error::OutOfRange)
}

/// Reads a time from a JSON value: a string as [`parse`] takes it, or a whole number of Unix seconds or milliseconds.
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

struct Cursor<'a> {
    rest: &'a [u8],
}

impl Cursor<'_> {
    fn date(&mut self) -> Result<Date, Error> {
        let year = self.number(4)?;
        self.one_of(b"-")?;
        let month = self.two_digits()?;
        self.one_of(b"-")?;
        let day = self.two_digits()?;
        Date::new(year, month, day).map_err(|_| Error::OutOfRange)
    }

    fn time(&mut self) -> Result<Time, Error> {
        let hour = self.two_digits()?;
        self.one_of(b":")?;
        let minute = self.two_digits()?;
        self.one_of(b":")?;
        let second = match self.two_digits()? {
            60 => 59,
            second => second,
        };
        let nanosecond = self.fraction()?;
        Time::new(hour, minute, second, nanosecond).map_err(|_| Error::OutOfRange)
    }

    fn fraction(&mut self) -> Result<i32, Error> {
        if !self.take(b".") {
            return Ok(0);
        }
        let digits = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return Err(Error::Form);
        }
        let (fraction, rest) = self.rest.split_at(digits);
        self.rest = rest;
        let padded = fraction.iter().copied().chain(std::iter::repeat(b'0'));
        Ok(padded.take(9).fold(0, |sum, digit| sum * 10 + i32::from(digit - b'0')))
    }

    fn offset(&mut self) -> Result<Offset, Error> {
        if self.rest.is_empty() || self.take(b"Zz") {
            return Ok(Offset::UTC);
        }
        let sign = if self.take(b"-") { -1 } else { i32::from(self.one_of(b"+")?.is_ascii()) };
        let hours = self.number(2)?;
        let colon = self.take(b":");
        let minutes = if self.rest.is_empty() && !colon { 0 } else { self.number(2)? };
        if hours > 23 || minutes > 59 {
            return Err(Error::OutOfRange);
        }
        Offset::from_seconds(sign * (i32::from(hours) * 3600 + i32::from(minutes) * 60))
            .map_err(|_| Error::OutOfRange)
    }

    fn two_digits(&mut self) -> Result<i8, Error> {
        self.number(2).and_then(|number| i8::try_from(number).map_err(|_| Error::Form))
    }

    fn number(&mut self, digits: usize) -> Result<i16, Error> {
        let (number, rest) = self.rest.split_at_checked(digits).ok_or(Error::Form)?;
        if !number.iter().all(u8::is_ascii_digit) {
            return Err(Error::Form);
        }
        self.rest = rest;
        Ok(number.iter().fold(0, |sum, digit| sum * 10 + i16::from(digit - b'0')))
    }

    fn one_of(&mut self, allowed: &[u8]) -> Result<u8, Error> {
        match self.rest.split_first() {
            Some((first, rest)) if allowed.contains(first) => {
                self.rest = rest;
                Ok(*first)
            }
            _ => Err(Error::Form),
        }
    }

    fn take(&mut self, allowed: &[u8]) -> bool {
        self.one_of(allowed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_form_that_kinde_writes_is_the_same_instant() {
        for text in [
            "2024-05-01T17:41:45.592145+10:00",
            "2024-05-01T17:41:45.592145+1000",
            "2024-05-01T17:41:45.592145+10",
            "2024-05-01 17:41:45.592145+10",
            "2024-05-01T07:41:45.592145Z",
            "2024-05-01t07:41:45.592145z",
            "2024-05-01T07:41:45.592145",
            "2024-05-01T07:41:45.592145000000Z",
            "2024-05-01T07:41:45.592145-00:00",
            "2024-05-01T02:11:45.592145-05:30",
        ] {
            assert_eq!(parse(text).map(Timestamp::as_microsecond), Ok(1_714_549_305_592_145), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_time_is_refused() {
        for (text, error) in [
            ("", Error::Form),
            ("2024-05-01", Error::Form),
            ("2024-05-01T17:41", Error::Form),
            ("2024-05-01T17:41:45.", Error::Form),
            ("2024-05-01T17:41:45Z ", Error::Form),
            (" 2024-05-01T17:41:45Z", Error::Form),
            ("2024-05-01T17:41:45+10:", Error::Form),
            ("2024-05-01T17:41:45+10:0", Error::Form),
            ("2024-05-01T17:41:45+1", Error::Form),
            ("2024-05-01T17:41:45\u{2212}10", Error::Form),
            ("٢٠٢٤-05-01T17:41:45Z", Error::Form),
            ("2024-02-30T17:41:45Z", Error::OutOfRange),
            ("2024-05-01T24:00:00Z", Error::OutOfRange),
            ("2024-05-01T17:41:45+24", Error::OutOfRange),
            ("2024-05-01T17:41:45+10:60", Error::OutOfRange),
            ("9999-12-31T23:59:59-23:59", Error::OutOfRange),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
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
        fn what_is_written_with_any_offset_is_read_back(
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
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn nothing_that_looks_like_a_time_makes_it_panic(text in "[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.+Zz-]{0,30}") {
            let _ = parse(&text);
        }
    }
}
