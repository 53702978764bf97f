//! Counters of deliveries and authentications. Handles are created once, with the value zero, so that every series
//! exists from the start and a request makes no registry lookup.

use kinde::webhook::Scheme;
use metrics::{Counter, Histogram, counter, histogram};

/// Outcome of a delivery with a valid signature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verified {
    /// Stored in the queue; 200.
    Accepted,
    /// The queue already had the event; 200.
    Duplicate,
    /// The queue could not store it; 503.
    Unavailable,
}

/// Outcome of a request without a valid signature. Requests that no sender of this deployment signs (`unsigned`,
/// `malformed`, `too_large`, `too_slow`) are apart from deliveries that fail verification (`refused`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unverified {
    /// Signed, and the signature or its key does not match; 401.
    Refused,
    /// Keys could not be fetched, or the deadline passed; 503.
    Unavailable,
    /// Body above the limit; 413.
    TooLarge,
    /// Body incomplete at the deadline; 408.
    TooSlow,
    /// Wrong method, compressed or broken body, unreadable signature; 4xx.
    Malformed,
    /// No signature; 401.
    Unsigned,
    /// No memory left for the body; 503.
    OverBudget,
}

/// Metrics of one webhook endpoint: `kinsync_deliveries_total{scheme,outcome}`, where the scheme is `none` for
/// requests without a valid signature, and the duration of accepted deliveries.
pub(crate) struct DeliveryMetrics {
    verified: [[Counter; 3]; Scheme::ALL.len()],
    unverified: [Counter; 7],
    without_time: Counter,
    seconds: Histogram,
}

impl DeliveryMetrics {
    /// Registers the series with the recorder that is installed now.
    pub(crate) fn new() -> Self {
        let unverified =
            ["refused", "unavailable", "too_large", "too_slow", "malformed", "unsigned", "over_budget"];
        Self {
            verified: Scheme::ALL.map(|scheme| {
                ["accepted", "duplicate", "unavailable"].map(|o| deliveries(scheme.as_str(), o))
            }),
            unverified: unverified.map(|outcome| deliveries("none", outcome)),
            without_time: counter!("kinsync_deliveries_without_time_total"),
            seconds: histogram!("kinsync_delivery_duration_seconds"),
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

    pub(crate) fn without_time(&self) {
        self.without_time.increment(1);
    }

    pub(crate) fn accepted_after(&self, seconds: f64) {
        self.seconds.record(seconds);
    }

    /// Looks the counter up by its label: failed verifications are rare.
    pub(crate) fn verification_failed(reason: &'static str) {
        counter!("kinsync_delivery_verification_failures_total", "reason" => reason).increment(1);
    }
}

fn deliveries(scheme: &'static str, outcome: &'static str) -> Counter {
    counter!("kinsync_deliveries_total", "scheme" => scheme, "outcome" => outcome)
}

/// Outcome of one authentication.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Authentication {
    /// The user is stored.
    Accepted,
    /// Accepted with the token's data or an old document, because the store did not answer.
    Degraded,
    /// No token, or an invalid one; 401.
    Refused,
    /// The user is deleted or suspended; 403.
    Forbidden,
    /// The issuer's keys could not be fetched; 503.
    Unavailable,
    /// A rule of the database refuses the document of the user; 503, or 403 for a reverse proxy.
    DocumentRefused,
}

/// Metrics of one authenticator: `kinsync_authentications_total{outcome}`. The success rate is `accepted` and
/// `degraded` divided by these two and `unavailable`.
pub(crate) struct AuthenticationMetrics {
    outcomes: [Counter; 6],
    pub(crate) users_created: Counter,
    pub(crate) sightings_lost: Counter,
}

impl AuthenticationMetrics {
    /// Registers the series with the recorder that is installed now.
    pub(crate) fn new() -> Self {
        let outcomes = ["accepted", "degraded", "refused", "forbidden", "unavailable", "document_refused"];
        Self {
            outcomes: outcomes.map(|o| counter!("kinsync_authentications_total", "outcome" => o)),
            users_created: counter!("kinsync_users_created_by_requests_total"),
            sightings_lost: counter!("kinsync_sightings_lost_total"),
        }
    }

    pub(crate) fn count(&self, outcome: Authentication) {
        self.outcomes[outcome as usize].increment(1);
    }

    /// Looks the counter up by its label: failed authentications are rare.
    pub(crate) fn failed(reason: &'static str) {
        counter!("kinsync_authentication_failures_total", "reason" => reason).increment(1);
    }

    /// Looks the counter up by its label, as above.
    pub(crate) fn not_permitted(reason: &'static str) {
        counter!("kinsync_authorizations_refused_total", "reason" => reason).increment(1);
    }
}
