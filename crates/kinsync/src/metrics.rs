//! Metrics for Prometheus: the list of all metrics, the recorder (one per process, as the facade requires), and the gauges
//! that are set at each scrape.

use std::{sync::OnceLock, time::Duration};

use kinsync_core::Micros;
use metrics::{describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::{
    api::time::age,
    app::AppState,
    health::{Code, Detail, Health},
};

pub mod labels;
mod process;
mod route_meter;

pub use route_meter::RouteMeter;

/// Interval at which samples are added to the histograms, so that they do not accumulate between scrapes.
pub const UPKEEP: Duration = Duration::from_secs(5);

/// Buckets from a fast disk to an abandoned call.
const CALLS: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Buckets from an idle projector to the end of Kinde's retries after 36 h.
const LAGS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0, 43_200.0,
    129_600.0,
];
/// Buckets of deliveries that share one sync.
const ENTRIES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Returns the recorder of this process and installs it at the first call.
pub fn recorder() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(install).clone()
}

fn install() -> PrometheusHandle {
    let recorder = PrometheusBuilder::new()
        .set_buckets(CALLS)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Full("kinsync_lag_seconds".into()), LAGS))
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Full("kinsync_queue_commit_entries".into()), ENTRIES)
        })
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Full("kinsync_time_to_consistency_seconds".into()), LAGS)
        })
        .expect("the buckets are constants and not empty")
        .build_recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("another metrics recorder is installed already: /metrics stays empty");
    }
    describe();
    handle
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// The name; its unit is in the suffix.
    pub name: &'static str,
    /// The kind.
    pub kind: Kind,
    /// One sentence, for `/metrics` and docs/reference/metrics.md.
    pub help: &'static str,
}

/// The kind of a metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// The present value.
    Gauge,
    /// Counts of values in buckets.
    Histogram,
}

impl Kind {
    /// The name in the Prometheus text format.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Every metric, by subject.
pub const METRICS: &[Metric] = &[
    Metric {
        name: "kinsync_http_requests_total",
        kind: Kind::Counter,
        help: "Answered requests, by route and status class",
    },
    Metric {
        name: "kinsync_http_request_duration_seconds",
        kind: Kind::Histogram,
        help: "Duration of requests, by route; deliveries have kinsync_delivery_duration_seconds instead",
    },
    Metric {
        name: "kinsync_health_problem",
        kind: Kind::Gauge,
        help: "1 while /health reports the problem with this code, else 0",
    },
    Metric {
        name: "kinsync_http_connections_refused_total",
        kind: Kind::Counter,
        help: "Connections above the limit per client, closed at once",
    },
    Metric {
        name: "kinsync_admin_requests_refused_total",
        kind: Kind::Counter,
        help: "Requests to the admin routes that were refused, by reason",
    },
    Metric {
        name: "kinsync_deliveries_total",
        kind: Kind::Counter,
        help: "Deliveries, by verification scheme (`none`: not verified) and outcome",
    },
    Metric {
        name: "kinsync_deliveries_without_time_total",
        kind: Kind::Counter,
        help: "Accepted deliveries without a time of the event",
    },
    Metric {
        name: "kinsync_delivery_verification_failures_total",
        kind: Kind::Counter,
        help: "Rejected deliveries, by reason",
    },
    Metric {
        name: "kinsync_delivery_duration_seconds",
        kind: Kind::Histogram,
        help: "Duration of accepted deliveries, from the head of the request to the response",
    },
    Metric {
        name: "kinsync_consecutive_verification_failures",
        kind: Kind::Gauge,
        help: "Failed verifications of signed deliveries since the last successful one",
    },
    Metric {
        name: "kinsync_last_delivery_timestamp_seconds",
        kind: Kind::Gauge,
        help: "Time of the last accepted delivery, in seconds since 1970",
    },
    Metric {
        name: "kinsync_queue_depth",
        kind: Kind::Gauge,
        help: "Accepted deliveries that are not processed yet",
    },
    Metric { name: "kinsync_queue_oldest_seconds", kind: Kind::Gauge, help: "Age of the oldest of them" },
    Metric {
        name: "kinsync_queue_bytes",
        kind: Kind::Gauge,
        help: "Size of the deliveries in the queue; with a shared queue, of those that wait for it",
    },
    Metric {
        name: "kinsync_queue_max_entries",
        kind: Kind::Gauge,
        help: "The limit of kinsync_queue_depth, at which deliveries are answered 503; with a shared queue, when the spool is full too",
    },
    Metric {
        name: "kinsync_queue_max_bytes",
        kind: Kind::Gauge,
        help: "The limit of kinsync_queue_bytes, at which deliveries are answered 503",
    },
    Metric {
        name: "kinsync_queue_spooled",
        kind: Kind::Gauge,
        help: "Deliveries of this process that wait for the shared queue; 0 without one",
    },
    Metric {
        name: "kinsync_queue_dead_letters",
        kind: Kind::Gauge,
        help: "Dead letters: deliveries that could not be processed",
    },
    Metric {
        name: "kinsync_queue_dead_letter_bytes",
        kind: Kind::Gauge,
        help: "Size of the payloads of the dead letters",
    },
    Metric {
        name: "kinsync_queue_dead_letters_reduced_total",
        kind: Kind::Counter,
        help: "Dead letters that lost their payload, to limit the size",
    },
    Metric {
        name: "kinsync_queue_dead_letters_removed_total",
        kind: Kind::Counter,
        help: "Dead letters that were deleted, by age or number; in Redis also to limit the memory",
    },
    Metric {
        name: "kinsync_queue_commit_duration_seconds",
        kind: Kind::Histogram,
        help: "Duration of one sync of the queue to disk",
    },
    Metric {
        name: "kinsync_queue_commit_entries",
        kind: Kind::Histogram,
        help: "Deliveries that share one sync",
    },
    Metric {
        name: "kinsync_queue_damaged_records_total",
        kind: Kind::Counter,
        help: "Records of the queue that could not be read back",
    },
    Metric { name: "kinsync_events_total", kind: Kind::Counter, help: "Processed events, by outcome" },
    Metric {
        name: "kinsync_lag_seconds",
        kind: Kind::Histogram,
        help: "Duration from the time of an event (`kinde`) or its receipt (`receipt`) to the store",
    },
    Metric {
        name: "kinsync_time_to_consistency_seconds",
        kind: Kind::Histogram,
        help: "Duration from a change at Kinde to the store, by source; for `reconcile` an upper bound",
    },
    Metric {
        name: "kinsync_users_erased_total",
        kind: Kind::Counter,
        help: "Erased users; a repetition counts again",
    },
    Metric {
        name: "kinsync_log_entries_removed_total",
        kind: Kind::Counter,
        help: "Entries of the event log that retention removed",
    },
    Metric {
        name: "kinsync_user_changes_total",
        kind: Kind::Counter,
        help: "Changes written to users, by source",
    },
    Metric {
        name: "kinsync_resurrections_refused_total",
        kind: Kind::Counter,
        help: "Events that are newer than the deletion of their user and change nothing",
    },
    Metric {
        name: "kinsync_store_call_duration_seconds",
        kind: Kind::Histogram,
        help: "Duration of calls to the store, by operation",
    },
    Metric {
        name: "kinsync_store_prepared",
        kind: Kind::Gauge,
        help: "1 once the store has its indexes, else 0",
    },
    Metric {
        name: "kinsync_refused_users",
        kind: Kind::Gauge,
        help: "Users with a document that an index or a validator of the database refuses",
    },
    Metric {
        name: "kinsync_incomplete_users",
        kind: Kind::Gauge,
        help: "Users with documents that lack keys, because an index or a validator of the database refuses their values",
    },
    Metric {
        name: "kinsync_spread_pending",
        kind: Kind::Gauge,
        help: "Changed organizations, roles and permissions that the documents of some users do not show yet",
    },
    Metric {
        name: "kinsync_outdated_users",
        kind: Kind::Gauge,
        help: "Users with documents that show a former organization, role or permission, because their write fails",
    },
    Metric {
        name: "kinsync_keys_refused_total",
        kind: Kind::Counter,
        help: "Documents written without keys that an index or a validator of the database refuses",
    },
    Metric {
        name: "kinsync_users_refused_total",
        kind: Kind::Counter,
        help: "Refusals of users by an index or a validator of the database, one per user and rule",
    },
    Metric {
        name: "kinsync_document_edits_total",
        kind: Kind::Counter,
        help: "Keys of kinsync that the application had changed in a document and that were restored, by key",
    },
    Metric {
        name: "kinsync_component_restarts_total",
        kind: Kind::Counter,
        help: "Restarts of a long-running task after a panic or an unexpected end, by component",
    },
    Metric {
        name: "kinsync_breaker_state",
        kind: Kind::Gauge,
        help: "State of a circuit breaker, by dependency and caller: 0 closed, 1 half-open, 2 open",
    },
    Metric {
        name: "kinsync_authentications_total",
        kind: Kind::Counter,
        help: "Requests of users, by outcome: `accepted`, `degraded` (without the store), `refused`, `forbidden`, \
               `unavailable`, `document_refused`",
    },
    Metric {
        name: "kinsync_authentication_failures_total",
        kind: Kind::Counter,
        help: "Requests of users that were not authenticated, by reason",
    },
    Metric {
        name: "kinsync_authorizations_refused_total",
        kind: Kind::Counter,
        help: "Requests that lacked a required role or permission, by reason; `roles_unknown` and `unavailable`: not known",
    },
    Metric {
        name: "kinsync_users_linked_total",
        kind: Kind::Counter,
        help: "Existing documents that were linked to users by email address",
    },
    Metric {
        name: "kinsync_users_created_by_requests_total",
        kind: Kind::Counter,
        help: "Users created by their first request",
    },
    Metric {
        name: "kinsync_sightings_lost_total",
        kind: Kind::Counter,
        help: "Requests that could be recorded neither in the store nor in the queue",
    },
    Metric {
        name: "kinsync_reconcile_runs_total",
        kind: Kind::Counter,
        help: "Scans of all users at Kinde, by outcome",
    },
    Metric {
        name: "kinsync_reconcile_last_duration_seconds",
        kind: Kind::Gauge,
        help: "Duration of the last scan of this process",
    },
    Metric {
        name: "kinsync_reconcile_last_timestamp_seconds",
        kind: Kind::Gauge,
        help: "Start of the last complete scan, in seconds since 1970",
    },
    Metric {
        name: "kinsync_reconcile_overdue",
        kind: Kind::Gauge,
        help: "1 while no scan has completed for more than three intervals, else 0",
    },
    Metric {
        name: "kinsync_users_in_drift",
        kind: Kind::Gauge,
        help: "Users that differed in the last scan, by kind of difference",
    },
    Metric {
        name: "kinsync_users_changed_between_scans",
        kind: Kind::Gauge,
        help: "Users that changed between the last two scans, by source of the newest change",
    },
    Metric {
        name: "kinsync_pending_checks",
        kind: Kind::Gauge,
        help: "Users that are read again from Kinde soon, with their roles, because something about them is uncertain",
    },
    Metric {
        name: "kinsync_directory_records",
        kind: Kind::Gauge,
        help: "Stored organizations, roles and permissions, deleted ones included",
    },
    Metric {
        name: "kinsync_roles_compared",
        kind: Kind::Gauge,
        help: "1 if the last scan compared the roles of all members, 0 if it could not (see /health); absent without reconcile.roles",
    },
    Metric {
        name: "kinsync_organizations",
        kind: Kind::Gauge,
        help: "Organizations with members that the last scan compared",
    },
    Metric {
        name: "kinsync_memberships",
        kind: Kind::Gauge,
        help: "Members of these organizations; a user counts in each of its organizations",
    },
    Metric {
        name: "kinsync_members_with_unknown_permissions",
        kind: Kind::Gauge,
        help: "Members with permissions that are still unknown after the last scan, because it reads those of a limited number of members",
    },
    Metric {
        name: "kinsync_memberships_in_drift",
        kind: Kind::Gauge,
        help: "Members that differed in the last scan: `changed` (missed by events) or `filled_in` (roles were unknown)",
    },
    Metric {
        name: "kinsync_webhook_silent",
        kind: Kind::Gauge,
        help: "1 while the webhook is probably disabled (see /health), else 0",
    },
    Metric {
        name: "kinde_jwks_fetches_total",
        kind: Kind::Counter,
        help: "Fetches of signing keys from Kinde, by outcome",
    },
    Metric {
        name: "kinde_api_requests_total",
        kind: Kind::Counter,
        help: "Requests to Kinde's APIs, by endpoint and outcome",
    },
    Metric {
        name: "kinde_api_tokens_total",
        kind: Kind::Counter,
        help: "Access tokens requested for the Management API",
    },
    Metric { name: "kinsync_jwks_keys", kind: Kind::Gauge, help: "Signing keys that are used, by issuer" },
    Metric {
        name: "process_resident_memory_bytes",
        kind: Kind::Gauge,
        help: "Resident memory of the process; only on Linux",
    },
    Metric {
        name: "process_open_fds",
        kind: Kind::Gauge,
        help: "Open file descriptors of the process; only on Linux",
    },
    Metric { name: "kinsync_build_info", kind: Kind::Gauge, help: "Always 1, with the version as a label" },
];

fn describe() {
    for Metric { name, kind, help } in METRICS.iter().copied() {
        match kind {
            Kind::Counter => describe_counter!(name, help),
            Kind::Gauge => describe_gauge!(name, help),
            Kind::Histogram => describe_histogram!(name, help),
        }
    }
    labels::register_counters();
}

/// Writes every metric in the Prometheus text format.
pub async fn render(state: &AppState) -> String {
    let now = state.engine.clock().now();
    let (health, queue) = tokio::join!(Health::of(state, Detail::Open), state.engine.queue().stats());
    for code in Code::ALL {
        let is_reported = health.problems().any(|problem| problem.code == *code);
        gauge!("kinsync_health_problem", "code" => code.as_str()).set(f64::from(u8::from(is_reported)));
    }
    gauge!("kinsync_queue_max_entries").set(float(state.config.queue.max_entries));
    gauge!("kinsync_queue_max_bytes").set(float(state.config.queue.max_bytes));
    // A queue that does not answer leaves its gauges as they were.
    if let Ok(queue) = queue {
        gauge!("kinsync_queue_depth").set(float(queue.depth));
        gauge!("kinsync_queue_oldest_seconds").set(queue.oldest_received_at.map_or(0.0, |at| age(at, now)));
        // The limit of bytes is that of the data folder.
        gauge!("kinsync_queue_bytes").set(float(queue.spool.map_or(queue.bytes, |spool| spool.bytes)));
        gauge!("kinsync_queue_spooled").set(float(queue.spool.map_or(0, |spool| spool.entries)));
        gauge!("kinsync_queue_dead_letters").set(float(queue.dead_letters));
        gauge!("kinsync_queue_dead_letter_bytes").set(float(queue.dead_letter_bytes));
    }
    gauge!("kinsync_consecutive_verification_failures")
        .set(float(state.webhook.activity().consecutive_failures()));
    if let Some(at) = state.webhook.activity().last_delivery() {
        gauge!("kinsync_last_delivery_timestamp_seconds").set(age(Micros(0), at));
    }
    for keys in &state.key_sets {
        let issuer = keys.issuer().to_owned();
        gauge!("kinsync_jwks_keys", "issuer" => issuer).set(float(keys.status().key_count as u64));
    }
    gauge!("kinsync_store_prepared").set(f64::from(u8::from(state.engine.store_failure().is_none())));
    let refused = state.engine.refused_by_store();
    gauge!("kinsync_refused_users").set(float(refused.users));
    gauge!("kinsync_incomplete_users").set(float(refused.incomplete_users));
    let spread = state.engine.spread_status();
    gauge!("kinsync_spread_pending").set(float(spread.pending as u64));
    gauge!("kinsync_outdated_users").set(float(spread.set_aside));
    process::export();
    gauge!("kinsync_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    state.metrics.render()
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; counts above 2^53 do not occur")]
fn float(count: u64) -> f64 {
    count as f64
}
