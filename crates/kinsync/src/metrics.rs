//! Metrics for Prometheus. The recorder is one per process, as the facade wants it; the gauges of an app are set when
//! it is scraped.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::StatusCode;
use kinsync_core::Micros;
use metrics::{Counter, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::app::AppState;

/// How often samples are folded into the histograms, so that they do not grow between scrapes.
pub const UPKEEP: Duration = Duration::from_secs(5);

/// From a fast disk to a call that is given up.
const CALLS: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// From a projector that keeps up to the end of Kinde's retries after 36 h.
const LAGS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0, 43_200.0,
    129_600.0,
];
/// Deliveries that share one sync.
const ENTRIES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Installs the recorder of this process, once.
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
        tracing::warn!("another recorder of metrics is installed already: /metrics stays empty");
    }
    describe();
    handle
}

fn describe() {
    describe_counter!("kinsync_http_requests_total", "Answered requests, by route and status class");
    describe_counter!("kinsync_deliveries_total", "Deliveries by scheme (`none`: not verified) and outcome");
    describe_counter!("kinsync_verification_failures_total", "Deliveries that were refused, by reason");
    describe_counter!("kinsync_events_total", "Events that the projector finished, by outcome");
    describe_counter!("kinsync_resurrections_refused_total", "Events newer than the deletion of their user");
    describe_counter!("kinde_jwks_fetches_total", "Fetches of Kinde's keys, by outcome");
    describe_counter!("kinsync_bearer_refusals_total", "Requests of users that were refused, by reason");
    describe_counter!("kinsync_degraded_requests_total", "Requests that went on without the store");
    describe_counter!("kinsync_users_created_at_login_total", "Users whom their own request made");
    describe_counter!("kinsync_sightings_lost_total", "Users seen while neither store nor queue took them");
    describe_counter!("kinsync_user_changes_total", "Written changes of users, by the way they came");
    describe_counter!("kinsync_reconcile_runs_total", "Scans of all users at Kinde, by outcome");
    describe_gauge!(
        "kinsync_users_changed_between_scans",
        "Users who changed between the last two scans, by the way their newest change came"
    );
    describe_gauge!("kinsync_users_in_drift", "Users whom the last scan found different, by kind");
    describe_gauge!("kinsync_reconcile_last_seconds", Unit::Seconds, "How long the last scan here took");
    describe_gauge!(
        "kinsync_reconcile_last_timestamp_seconds",
        Unit::Seconds,
        "When the last complete scan began"
    );
    describe_gauge!("kinsync_webhook_silent", "1 while the webhook is probably disabled: /health says why");
    describe_histogram!(
        "kinsync_time_to_consistency_seconds",
        Unit::Seconds,
        "From a change at Kinde to the store, by the way it came; for reconcile the most that it can have been"
    );
    describe_histogram!(
        "kinsync_delivery_seconds",
        Unit::Seconds,
        "From the head of a delivery to its durable 200"
    );
    describe_histogram!(
        "kinsync_lag_seconds",
        Unit::Seconds,
        "From Kinde's time of an event, or from its receipt, to the store"
    );
    describe_histogram!("kinsync_store_seconds", Unit::Seconds, "Calls of the store, by operation");
    describe_histogram!("kinsync_queue_commit_seconds", Unit::Seconds, "One sync of the queue to disk");
    describe_histogram!("kinsync_queue_commit_entries", "Deliveries that shared one sync");
    describe_counter!("kinsync_queue_damaged_records_total", "Records that the disk spoiled");
    describe_gauge!("kinsync_queue_depth", "Deliveries that wait for the projector");
    describe_gauge!("kinsync_queue_oldest_seconds", Unit::Seconds, "How long the oldest of them waits");
    describe_gauge!("kinsync_queue_bytes", Unit::Bytes, "What the queue takes on disk");
    describe_gauge!("kinsync_queue_dead_letters", "Deliveries set aside for an operator");
    describe_gauge!("kinsync_breaker_state", "0 closed, 1 half-open, 2 open");
    describe_gauge!("kinsync_verification_failures_in_row", "Failed verifications since the last good one");
    describe_gauge!("kinsync_last_delivery_timestamp_seconds", Unit::Seconds, "When the last delivery came");
    describe_gauge!("kinsync_jwks_keys", "Keys of an issuer that are known");
    describe_gauge!("kinsync_store_prepared", "1 once the store has its indexes");
    describe_gauge!("kinsync_build_info", "1, with the version");
}

/// The page that Prometheus reads.
pub fn render(state: &AppState) -> String {
    let queue = state.queue.stats();
    let now = state.clock.now();
    gauge!("kinsync_queue_depth").set(float(queue.depth));
    gauge!("kinsync_queue_oldest_seconds").set(queue.oldest_received_at.map_or(0.0, |at| age(at, now)));
    gauge!("kinsync_queue_bytes").set(float(queue.bytes));
    gauge!("kinsync_queue_dead_letters").set(float(queue.dead_letters));
    gauge!("kinsync_verification_failures_in_row").set(float(state.activity.failed_in_row()));
    if let Some(at) = state.activity.last_delivery() {
        gauge!("kinsync_last_delivery_timestamp_seconds").set(age(Micros(0), at));
    }
    for keys in &state.key_sets {
        let issuer = keys.issuer().to_owned();
        gauge!("kinsync_jwks_keys", "issuer" => issuer).set(float(keys.status().key_count as u64));
    }
    gauge!("kinsync_store_prepared").set(f64::from(u8::from(state.store_error().is_none())));
    gauge!("kinsync_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    state.metrics.render()
}

/// Counts the answers of one route by status class: `kinsync_http_requests_total{route,status}`. Every series exists from
/// the start, and a request touches no registry.
#[derive(Clone)]
pub struct RouteMeter(Arc<[Counter; 5]>);

impl RouteMeter {
    /// The meter of this route. Uses the recorder that is installed at this time.
    pub fn new(route: &'static str) -> Self {
        let of = |status| counter!("kinsync_http_requests_total", "route" => route, "status" => status);
        Self(Arc::new(["1xx", "2xx", "3xx", "4xx", "5xx"].map(of)))
    }

    /// Counts an answer with this status.
    pub fn count(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5);
        self.0[class - 1].increment(1);
    }
}

impl fmt::Debug for RouteMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RouteMeter")
    }
}

/// Seconds from one instant to a later one.
pub fn age(from: Micros, to: Micros) -> f64 {
    let micros = u64::try_from(to.0.saturating_sub(from.0)).unwrap_or_default();
    Duration::from_micros(micros).as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; counts above 2^53 do not occur")]
fn float(count: u64) -> f64 {
    count as f64
}
