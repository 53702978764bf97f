//! The labels of the metrics and their values.
//!
//! Counters with label values that are known in advance are registered with 0 at the start: Prometheus sees no increase when a series
//! first appears with 1, so an alert on it would miss the first event. A test compares the list with what a server exports.

use metrics::counter;

use super::{Kind, METRICS};

/// A label of a metric.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    /// The metric.
    pub metric: &'static str,
    /// The label.
    pub name: &'static str,
    /// Its values; empty where they are not known in advance.
    pub values: &'static [&'static str],
}

const fn label(metric: &'static str, name: &'static str, values: &'static [&'static str]) -> Label {
    Label { metric, name, values }
}

/// Values that are not known in advance.
const ANY: &[&str] = &[];
const SOURCES: &[&str] = &["webhook", "login", "profile", "reconcile", "unknown"];

/// Every label.
pub const LABELS: &[Label] = &[
    label("kinsync_http_requests_total", "route", ANY),
    label("kinsync_http_requests_total", "status", &["1xx", "2xx", "3xx", "4xx", "5xx"]),
    label("kinsync_http_request_seconds", "route", ANY),
    label("kinsync_health_problem", "code", ANY),
    label("kinsync_admin_requests_refused_total", "reason", ADMIN_REFUSALS),
    label("kinsync_deliveries_total", "scheme", &["kinde_jwt", "hmac_sha256", "standard_webhooks", "none"]),
    label("kinsync_deliveries_total", "outcome", DELIVERY_OUTCOMES),
    label("kinsync_delivery_verification_failures_total", "reason", VERIFICATION_FAILURES),
    label("kinsync_events_total", "outcome", &["applied", "duplicate", "dead_lettered"]),
    label("kinsync_lag_seconds", "from", &["kinde", "receipt"]),
    label("kinsync_time_to_consistency_seconds", "source", &["webhook", "reconcile"]),
    label("kinsync_user_changes_total", "source", SOURCES),
    label("kinsync_store_seconds", "store", &["mongo", "embedded"]),
    label("kinsync_store_seconds", "op", ANY),
    label("kinsync_document_edits_total", "key", ANY),
    label("kinsync_component_restarts_total", "component", ANY),
    label("kinsync_breaker_state", "dependency", &["store", "kinde_account_api"]),
    label("kinsync_breaker_state", "caller", &["projector", "authenticator"]),
    label("kinsync_authentications_total", "outcome", AUTHENTICATIONS),
    label("kinsync_authentication_failures_total", "reason", AUTHENTICATION_FAILURES),
    label("kinsync_authorizations_refused_total", "reason", AUTHORIZATION_REFUSALS),
    label("kinsync_reconcile_runs_total", "outcome", &["complete", "resumed", "cut", "failed", "running"]),
    label("kinsync_users_in_drift", "kind", ANY),
    label("kinsync_users_changed_between_scans", "source", SOURCES),
    label("kinsync_memberships_in_drift", "kind", &["changed", "filled_in"]),
    label(
        "kinde_jwks_fetches_total",
        "outcome",
        &["ok", "unreachable", "unexpected_status", "invalid_response"],
    ),
    label("kinde_api_requests_total", "endpoint", ENDPOINTS),
    label("kinde_api_requests_total", "outcome", ANY),
    label("kinsync_jwks_keys", "issuer", ANY),
    label("kinsync_build_info", "version", ANY),
];

const ENDPOINTS: &[&str] = &[
    "token",
    "user",
    "users",
    "search_users",
    "properties",
    "user_properties",
    "organizations",
    "organization",
    "organization_users",
    "user_roles",
    "user_permissions",
    "roles",
    "role",
    "role_permissions",
    "role_users",
    "permissions",
    "event",
    "user_profile",
];

const ADMIN_REFUSALS: &[&str] =
    &["no-token", "wrong-token", "too-many-wrong-tokens", "missing-scope", "unknown-host", "disabled"];

const DELIVERY_OUTCOMES: &[&str] = &[
    "accepted",
    "duplicate",
    "unavailable",
    "refused",
    "too_large",
    "too_slow",
    "malformed",
    "unsigned",
    "over_budget",
];

const VERIFICATION_FAILURES: &[&str] = &[
    "missing_signature",
    "malformed_signature",
    "signature_mismatch",
    "scheme_not_configured",
    "stale_timestamp",
    "token_not_webhook",
    "token_too_long",
    "malformed_token",
    "duplicate_member",
    "wrong_algorithm",
    "missing_key_id",
    "critical_header",
    "unsupported_header",
    "unknown_key",
    "keys_unavailable",
];

const AUTHENTICATIONS: &[&str] =
    &["accepted", "degraded", "refused", "forbidden", "unavailable", "not_storable"];

const AUTHENTICATION_FAILURES: &[&str] = &[
    "no_token",
    "several_tokens",
    "not_a_bearer_token",
    "cross_site_cookie",
    "token_too_long",
    "malformed_token",
    "duplicate_member",
    "wrong_algorithm",
    "missing_key_id",
    "critical_header",
    "unsupported_header",
    "signature_mismatch",
    "unknown_key",
    "keys_unavailable",
    "api_key",
    "unknown_issuer",
    "other_tenant",
    "missing_subject",
    "missing_claim",
    "malformed_claim",
    "expired",
    "not_yet_valid",
    "issued_in_future",
    "wrong_audience",
    "unauthorized_client",
    "machine_token",
    "id_token",
    "webhook_token",
    "deleted",
    "suspended",
    "not_storable",
];

const AUTHORIZATION_REFUSALS: &[&str] = &[
    "no_organization",
    "not_a_member",
    "suspended_in_organization",
    "missing_role",
    "missing_permission",
    "roles_unknown",
    "unavailable",
];

/// Registers each counter that has no label, or one label with known values.
pub(super) fn register_counters() {
    for metric in METRICS.iter().filter(|metric| metric.kind == Kind::Counter) {
        let labels: Vec<&Label> = LABELS.iter().filter(|label| label.metric == metric.name).collect();
        match *labels {
            [] => counter!(metric.name).increment(0),
            [&Label { name, values, .. }] => {
                for value in values {
                    counter!(metric.name, name => *value).increment(0);
                }
            }
            // The others are registered where they are counted, except the outcomes of requests to Kinde.
            _ => {}
        }
    }
    for endpoint in ENDPOINTS {
        counter!("kinde_api_requests_total", "endpoint" => *endpoint, "outcome" => "rate_limited")
            .increment(0);
    }
}
