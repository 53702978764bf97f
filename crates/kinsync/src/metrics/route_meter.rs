//! Counts and measures the requests of one route.

use std::{fmt, sync::Arc};

use http::StatusCode;
use metrics::{Counter, Histogram, counter, histogram};
use tokio::time::Instant;

/// The route of deliveries.
const DELIVERIES: &str = "/api/webhook";

/// Counts the answers of one route by status class, `kinsync_http_requests_total{route,status}`, and measures their duration,
/// `kinsync_http_request_duration_seconds{route}`. Every series exists from the start, and a request touches no registry.
#[derive(Clone)]
pub struct RouteMeter {
    answers: Arc<[Counter; 5]>,
    /// `None` for deliveries, which their endpoint measures.
    seconds: Option<Histogram>,
}

impl RouteMeter {
    /// The meter of this route. Uses the recorder that is installed at this time.
    pub fn new(route: &'static str) -> Self {
        let of = |status| counter!("kinsync_http_requests_total", "route" => route, "status" => status);
        let seconds = || histogram!("kinsync_http_request_duration_seconds", "route" => route);
        Self {
            answers: Arc::new(["1xx", "2xx", "3xx", "4xx", "5xx"].map(of)),
            seconds: (route != DELIVERIES).then(seconds),
        }
    }

    /// The time at the start of a request; `None` if its duration is not measured here.
    pub fn begin(&self) -> Option<Instant> {
        self.seconds.as_ref().map(|_| Instant::now())
    }

    /// Counts an answer with this status.
    pub fn count(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5);
        self.answers[class - 1].increment(1);
    }

    /// Records the duration of a request that began then.
    pub fn took(&self, began: Option<Instant>) {
        if let Some((seconds, began)) = self.seconds.as_ref().zip(began) {
            seconds.record(began.elapsed());
        }
    }
}

impl fmt::Debug for RouteMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RouteMeter")
    }
}
