//! An answer of Kinde's together with the time that it speaks of.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// What Kinde answered, and when it was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Response<T> {
    /// What it answered.
    pub value: T,
    /// When it was asked.
    pub timing: RequestTiming,
}

/// When a request was sent, by both clocks.
///
/// For the successful attempt, when there were several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestTiming {
    /// A moment of Kinde's clock at which the request had not yet been sent, for use as the version of what it
    /// answered: whatever happened at Kinde up to then is in the answer, whatever happens later outranks it.
    ///
    /// `min(local, date - elapsed) - allowance`. The header is cut to whole seconds and written after Kinde received
    /// the request, so `date - elapsed` is never later than the sending. The local clock bounds it, and stands alone
    /// where the header is missing. The allowance covers what neither knows: replicas that lag, and clocks that
    /// differ among Kinde's own servers. Too early is safe (an event wins that need not have), too late is not.
    pub as_of: Timestamp,
    /// This machine's clock when the request was sent.
    pub sent_at: Timestamp,
    /// The `Date` header of the answer: Kinde's clock, in whole seconds.
    pub server_date: Option<Timestamp>,
    /// From the sending to the head of the answer.
    pub elapsed: Duration,
}

impl RequestTiming {
    pub(crate) fn new(
        local: Timestamp,
        date: Option<Timestamp>,
        elapsed: Duration,
        allowance: Duration,
    ) -> Self {
        let by_kinde = date.map_or(local, |date| earlier(date, elapsed));
        Self { as_of: earlier(local.min(by_kinde), allowance), sent_at: local, server_date: date, elapsed }
    }

    /// How far this machine's clock is ahead of Kinde's (negative: behind); `None` without a `Date`.
    ///
    /// Right to about a second and half of [`Self::elapsed`].
    pub fn clock_skew(&self) -> Option<SignedDuration> {
        let half = SignedDuration::try_from(self.elapsed / 2).unwrap_or(SignedDuration::ZERO);
        // On average half a second was cut off the header.
        self.server_date
            .map(|date| self.sent_at.duration_since(date) + half - SignedDuration::from_millis(500))
    }
}

fn earlier(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_sub(by).unwrap_or(Timestamp::MIN)
}

/// Reads an HTTP date, such as `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7).
pub(crate) fn http_date(text: &str) -> Option<Timestamp> {
    let gmt = text.strip_suffix(" GMT")?;
    jiff::fmt::strtime::parse("%a, %d %b %Y %H:%M:%S", gmt)
        .and_then(|parts| parts.to_datetime())
        .and_then(|at| jiff::tz::Offset::UTC.to_timestamp(at))
        .ok()
}

/// Tells the time; the machine's clock unless a test or a simulation brings its own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// A clock that asks `now`.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.0)()
    }
}

/// The machine's clock.
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
    fn check(local: &str, date: Option<&str>, elapsed: u64, expect: &str) {
        let (elapsed, allowance) = (Duration::from_secs(elapsed), Duration::from_secs(2));
        let timing = RequestTiming::new(at(local), date.map(at), elapsed, allowance);
        assert_eq!(timing.as_of, at(expect));
    }

    #[test]
    fn the_earlier_clock_counts_less_the_allowance() {
        check("2026-01-01T12:00:10.5Z", None, 0, "2026-01-01T12:00:08.5Z");
        check("2026-01-01T12:00:10.5Z", Some("2026-01-01T12:00:10Z"), 0, "2026-01-01T12:00:08Z");
        check("2026-01-01T11:00:00Z", Some("2026-01-01T12:00:10Z"), 0, "2026-01-01T10:59:58Z");
        check("2026-01-01T13:00:00Z", Some("2026-01-01T12:00:10Z"), 0, "2026-01-01T12:00:08Z");
    }

    #[test]
    fn a_slow_answer_is_dated_by_its_request() {
        check("2026-01-01T13:00:00Z", Some("2026-01-01T12:00:30Z"), 20, "2026-01-01T12:00:08Z");
    }

    #[test]
    fn skew_is_positive_when_this_machine_is_ahead() {
        let timing = RequestTiming::new(
            at("2026-01-01T12:01:00Z"),
            Some(at("2026-01-01T12:00:00Z")),
            Duration::ZERO,
            Duration::ZERO,
        );
        assert_eq!(timing.clock_skew(), Some(SignedDuration::from_millis(59_500)));
    }

    #[test]
    fn http_dates_are_read_in_their_one_current_form() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(at("1994-11-06T08:49:37Z")));
        for text in ["", "GMT", "Sun, 06 Nov 1994 08:49:37 +0000", "Sunday, 06-Nov-94 08:49:37 GMT", "x GMT"]
        {
            assert_eq!(http_date(text), None, "{text}");
        }
    }
}
