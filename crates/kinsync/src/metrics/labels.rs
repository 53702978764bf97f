//! The labels of the metrics and their values.
//!
//! Counters with label values that are known in advance are registered with 0 at the start: Prometheus sees no increase when a series
//! first appears with 1, so an alert on it would miss the first event. A test compares the list with what a server exports.

use kinde::{Endpoint, account, bearer, jwks, management, webhook};
use metrics::counter;

use super::{Kind, METRICS};

/// A label of a metric.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    /// The metric.
    pub metric: &'static str,
    /// The label.
    pub name: &'static str,
    /// Its values, in lists; empty where they are not known in advance.
    pub values: Lists,
}

/// Lists of values; those of a library come from the library.
type Lists = &'static [&'static [&'static str]];

const fn label(metric: &'static str, name: &'static str, values: Lists) -> Label {
    Label { metric, name, values }
}

/// Values that are not known in advance.
const ANY: Lists = &[];
const SOURCES: Lists = &[&["webhook", "login", "profile", "reconcile", "unknown"]];

/// Every label.
pub const LABELS: &[Label] = &[
    label("kinsync_http_requests_total", "route", ANY),
    label("kinsync_http_requests_total", "status", &[&["1xx", "2xx", "3xx", "4xx", "5xx"]]),
    label("kinsync_http_request_duration_seconds", "route", ANY),
    label("kinsync_health_problem", "code", ANY),
    label("kinsync_admin_requests_refused_total", "reason", ADMIN_REFUSALS),
    label(
        "kinsync_deliveries_total",
        "scheme",
        &[&["kinde_jwt", "hmac_sha256", "standard_webhooks", "none"]],
    ),
    label("kinsync_deliveries_total", "outcome", DELIVERY_OUTCOMES),
    label("kinsync_delivery_verification_failures_total", "reason", VERIFICATION_FAILURES),
    label("kinsync_events_total", "outcome", &[&["applied", "duplicate", "dead_lettered"]]),
    label("kinsync_lag_seconds", "from", &[&["kinde", "receipt"]]),
    label("kinsync_time_to_consistency_seconds", "source", &[&["webhook", "reconcile"]]),
    label("kinsync_user_changes_total", "source", SOURCES),
    label("kinsync_store_call_duration_seconds", "store", &[&["mongo", "embedded"]]),
    label("kinsync_store_call_duration_seconds", "op", ANY),
    label("kinsync_document_edits_total", "key", ANY),
    label("kinsync_component_restarts_total", "component", ANY),
    label("kinsync_breaker_state", "dependency", &[&["store", "kinde_account_api"]]),
    label("kinsync_breaker_state", "caller", &[&["projector", "authenticator"]]),
    label("kinsync_authentications_total", "outcome", AUTHENTICATIONS),
    label("kinsync_authentication_failures_total", "reason", AUTHENTICATION_FAILURES),
    label("kinsync_authorizations_refused_total", "reason", AUTHORIZATION_REFUSALS),
    label("kinsync_reconcile_runs_total", "outcome", &[&["complete", "resumed", "cut", "failed", "running"]]),
    label("kinsync_users_in_drift", "kind", ANY),
    label("kinsync_users_changed_between_scans", "source", SOURCES),
    label("kinsync_memberships_in_drift", "kind", &[&["changed", "filled_in"]]),
    label("kinde_jwks_fetches_total", "outcome", &[&["ok"], jwks::FetchError::OUTCOMES]),
    label("kinde_api_requests_total", "endpoint", &[Endpoint::NAMES]),
    label("kinde_api_requests_total", "outcome", API_OUTCOMES),
    label("kinsync_jwks_keys", "issuer", ANY),
    label("kinsync_build_info", "version", ANY),
];

const API_OUTCOMES: Lists = &[&["ok", "absent"], management::Error::OUTCOMES, account::Error::OUTCOMES];

const ADMIN_REFUSALS: Lists =
    &[&["no-token", "wrong-token", "too-many-wrong-tokens", "missing-scope", "unknown-host", "disabled"]];

const DELIVERY_OUTCOMES: Lists = &[&[
    "accepted",
    "duplicate",
    "unavailable",
    "refused",
    "too_large",
    "too_slow",
    "malformed",
    "unsigned",
    "over_budget",
]];

const VERIFICATION_FAILURES: Lists = &[webhook::VerificationError::REASONS];

const AUTHENTICATIONS: Lists =
    &[&["accepted", "degraded", "refused", "forbidden", "unavailable", "document_refused"]];

const AUTHENTICATION_FAILURES: Lists = &[
    &["no_token", "several_tokens", "not_a_bearer_token", "cross_site_cookie"],
    bearer::VerificationError::REASONS,
    &["deleted", "suspended", "document_refused"],
];

const AUTHORIZATION_REFUSALS: Lists = &[&[
    "no_organization",
    "not_a_member",
    "suspended_in_organization",
    "missing_role",
    "missing_permission",
    "roles_unknown",
    "unavailable",
]];

/// Registers each counter that has no label, or one label with known values.
pub(super) fn register_counters() {
    for metric in METRICS.iter().filter(|metric| metric.kind == Kind::Counter) {
        let labels: Vec<&Label> = LABELS.iter().filter(|label| label.metric == metric.name).collect();
        match *labels {
            [] => counter!(metric.name).increment(0),
            [&Label { name, values, .. }] => {
                for value in values.iter().copied().flatten() {
                    counter!(metric.name, name => *value).increment(0);
                }
            }
            // The others are registered where they are counted, except those of requests to Kinde.
            _ => {}
        }
    }
    for endpoint in Endpoint::ALL.iter().copied() {
        let outcomes = match endpoint {
            Endpoint::UserProfile => account::Error::OUTCOMES,
            _ => management::Error::OUTCOMES,
        };
        for outcome in ["ok", "absent"].iter().chain(outcomes).copied() {
            counter!("kinde_api_requests_total", "endpoint" => endpoint.as_str(), "outcome" => outcome)
                .increment(0);
        }
    }
}
