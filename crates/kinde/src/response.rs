//! Responses of Kinde with the time of their request.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Tolerated error of the clock of this machine where a response has no `Date` header. kinsync tolerates as much for the
/// times of events.
const UNDATED_ALLOWANCE: Duration = Duration::from_mins(5);

/// The value of a response and the time of its request.
#[derive(Debug, Clone, PartialEq)]
pub struct Response<T> {
    /// The value of the response.
    pub value: T,
    /// The time of the request.
    pub timing: RequestTiming,
}

/// The time of a request by the clocks of Kinde and of this machine.
///
/// After retries, the times are those of the successful attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestTiming {
    /// An instant of Kinde's clock before the request was sent. Use it as the version of the response: the response
    /// contains every change up to this instant, and a later event is newer.
    ///
    /// `min(sent_at, server_date - elapsed) - allowance`. The `Date` header is truncated to seconds and written after
    /// Kinde received the request, so `server_date - elapsed` is never later than the sending. The local clock is an
    /// upper bound. The allowance covers replicas that lag and clocks that differ between Kinde's servers. An instant that
    /// is too early is safe; one that is too late is not.
    ///
    /// Without a `Date` header the clock of this machine is the only source, and 5 more minutes are subtracted: a clock
    /// that is ahead by less than that does no harm.
    pub as_of: Timestamp,
    /// An instant of Kinde's clock after the response was made: the response contains no change later than this instant.
    ///
    /// `server_date + 1 s + allowance`; without a `Date` header 5 minutes after the response arrived, by the clock of this
    /// machine.
    pub not_after: Timestamp,
    /// The clock of this machine when the request was sent.
    pub sent_at: Timestamp,
    /// The `Date` header of the response: Kinde's clock, truncated to seconds.
    pub server_date: Option<Timestamp>,
    /// The time from sending the request to receiving the head of the response.
    pub elapsed: Duration,
}

impl RequestTiming {
    pub(crate) fn new(
        local: Timestamp,
        date: Option<Timestamp>,
        elapsed: Duration,
        allowance: Duration,
    ) -> Self {
        let (sent, answered) = match date {
            Some(date) => (local.min(earlier(date, elapsed)), later(date, Duration::from_secs(1))),
            None => (earlier(local, UNDATED_ALLOWANCE), later(local, elapsed + UNDATED_ALLOWANCE)),
        };
        Self {
            as_of: earlier(sent, allowance),
            not_after: later(answered, allowance),
            sent_at: local,
            server_date: date,
            elapsed,
        }
    }

    /// Returns how far the clock of this machine is ahead of Kinde's (negative: behind); `None` without a `Date` header.
    ///
    /// Accurate to about one second plus half of [`Self::elapsed`].
    pub fn clock_skew(&self) -> Option<SignedDuration> {
        let half = SignedDuration::try_from(self.elapsed / 2).unwrap_or(SignedDuration::ZERO);
        // The truncation of the header removes half a second on average.
        self.server_date
            .map(|date| self.sent_at.duration_since(date) + half - SignedDuration::from_millis(500))
    }
}

fn earlier(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_sub(by).unwrap_or(Timestamp::MIN)
}

fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// Parses an HTTP date, such as `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7).
pub(crate) fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// A source of the current time: the clock of the machine, or another one for tests and simulations.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// Creates a clock from a function that returns the current time.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.0)()
    }
}

/// The clock of the machine.
impl Default for Clock {
    fn default() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place of this crate that reads the wall clock"
        )]
        Self::new(Timestamp::now)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Clock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[track_caller]
    fn check(local: &str, date: Option<&str>, elapsed: u64, as_of: &str, not_after: &str) {
        let (elapsed, allowance) = (Duration::from_secs(elapsed), Duration::from_secs(2));
        let timing = RequestTiming::new(at(local), date.map(at), elapsed, allowance);
        assert_eq!((timing.as_of, timing.not_after), (at(as_of), at(not_after)));
    }

    #[test]
    fn the_earlier_clock_is_used_minus_the_allowance() {
        let date = Some("2026-01-01T12:00:10Z");
        check("2026-01-01T12:00:10.5Z", date, 0, "2026-01-01T12:00:08Z", "2026-01-01T12:00:13Z");
        check("2026-01-01T11:00:00Z", date, 0, "2026-01-01T10:59:58Z", "2026-01-01T12:00:13Z");
        check("2026-01-01T13:00:00Z", date, 0, "2026-01-01T12:00:08Z", "2026-01-01T12:00:13Z");
    }

    #[test]
    fn without_a_date_the_local_clock_may_be_wrong_by_five_minutes() {
        check("2026-01-01T12:00:10.5Z", None, 10, "2026-01-01T11:55:08.5Z", "2026-01-01T12:05:22.5Z");
    }

    #[test]
    fn a_slow_response_has_the_time_of_its_request() {
        let date = Some("2026-01-01T12:00:30Z");
        check("2026-01-01T13:00:00Z", date, 20, "2026-01-01T12:00:08Z", "2026-01-01T12:00:33Z");
    }

    #[test]
    fn skew_is_positive_if_this_machine_is_ahead() {
        let timing = RequestTiming::new(
            at("2026-01-01T12:01:00Z"),
            Some(at("2026-01-01T12:00:00Z")),
            Duration::ZERO,
            Duration::ZERO,
        );
        assert_eq!(timing.clock_skew(), Some(SignedDuration::from_millis(59_500)));
    }

    #[test]
    fn http_dates_are_parsed() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(at("1994-11-06T08:49:37Z")));
        for text in ["", "GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "x GMT"] {
            assert_eq!(http_date(text), None, "{text}");
        }
    }
}
