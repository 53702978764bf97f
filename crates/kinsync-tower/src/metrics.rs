//! The counters of the webhook, looked up once: a delivery touches no registry.

use kinde::webhook::Scheme;
use metrics::{Counter, Histogram, counter, histogram};

/// How a delivery ended that was verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verified {
    /// Stored; 200.
    Accepted,
    /// Was stored already; 200.
    Duplicate,
    /// Could not be stored; 503.
    Unavailable,
}

/// How a delivery ended that was not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unverified {
    /// Not from who it says; 401.
    Refused,
    /// The keys are missing, or time ran out; 503.
    Unavailable,
    /// Larger than the limit; 413.
    TooLarge,
    /// The body did not come in time; 408.
    TooSlow,
    /// Broken or compressed body, wrong method; 4xx.
    Malformed,
}

/// The metrics of one webhook. `kinsync_deliveries_total{scheme,outcome}`: the scheme is `none` for deliveries that
/// were not verified.
pub(crate) struct Metrics {
    verified: [[Counter; 3]; Scheme::ALL.len()],
    unverified: [Counter; 5],
    seconds: Histogram,
}

impl Metrics {
    /// Uses the recorder that is installed at this time.
    pub(crate) fn new() -> Self {
        let unverified = ["refused", "unavailable", "too_large", "too_slow", "malformed"];
        Self {
            verified: Scheme::ALL.map(|scheme| {
                ["accepted", "duplicate", "unavailable"].map(|o| deliveries(scheme.as_str(), o))
            }),
            unverified: unverified.map(|outcome| deliveries("none", outcome)),
            seconds: histogram!("kinsync_delivery_seconds"),
        }
    }

    pub(crate) fn verified(&self, scheme: Scheme, outcome: Verified) {
        if let Some(n) = Scheme::ALL.iter().position(|known| *known == scheme) {
            self.verified[n][outcome as usize].increment(1);
        }
    }

    pub(crate) fn unverified(&self, outcome: Unverified) {
        self.unverified[outcome as usize].increment(1);
    }

    pub(crate) fn took(&self, seconds: f64) {
        self.seconds.record(seconds);
    }

    /// Rare enough to be looked up.
    pub(crate) fn failed(reason: &'static str) {
        counter!("kinsync_verification_failures_total", "reason" => reason).increment(1);
    }
}

fn deliveries(scheme: &'static str, outcome: &'static str) -> Counter {
    counter!("kinsync_deliveries_total", "scheme" => scheme, "outcome" => outcome)
}
