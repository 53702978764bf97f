//! Reads kinsync's metrics in the text format of Prometheus: totals, and quantiles of the last minute.

use std::{collections::VecDeque, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

/// Time over which quantiles are computed.
const WINDOW: Duration = Duration::from_mins(1);

/// The text of one scrape.
#[derive(Debug, Default)]
pub(super) struct Page<'a>(&'a str);

impl<'a> Page<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self(text)
    }

    /// Sums the series with this name and all of these labels, written as `name="value"`.
    pub(super) fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        self.series(name, labels).map(|(_, value)| whole(value)).sum()
    }

    /// Returns the upper bounds and cumulative counts of a histogram.
    fn buckets(&self, name: &str, label: &str) -> Vec<(f64, u64)> {
        let name = format!("{name}_bucket");
        let bound = |labels: &str| labels.split("le=\"").nth(1)?.split('"').next()?.parse().ok();
        self.series(&name, &[label])
            .filter_map(|(labels, value)| Some((bound(labels)?, whole(value))))
            .collect()
    }

    fn series(&self, name: &str, wanted: &[&str]) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.lines().filter_map(move |line| {
            let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
            let has_all = wanted.iter().all(|label| labels.contains(label));
            has_all.then(|| value.parse().ok().map(|value| (labels, value))).flatten()
        })
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts are non-negative whole numbers"
)]
fn whole(value: f64) -> u64 {
    value as u64
}

/// Quantiles in seconds, as upper bounds of histogram buckets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Quantiles {
    /// Upper bound of the median.
    pub(crate) p50: f64,
    /// Upper bound of the 99th percentile.
    pub(crate) p99: f64,
}

/// The counts of a histogram in the last minute.
#[derive(Debug, Default)]
pub(super) struct Window {
    pages: VecDeque<(Instant, Vec<(f64, u64)>)>,
}

impl Window {
    /// Adds the counts of a page and returns the quantiles of the window; `None` if nothing was counted.
    pub(super) fn advance(&mut self, page: &Page<'_>, name: &str, label: &str) -> Option<Quantiles> {
        let (now, latest) = (Instant::now(), page.buckets(name, label));
        // The newest page before the window is kept: its counts are subtracted.
        while self.pages.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.pages.pop_front();
        }
        let before = self.pages.front().map(|(_, buckets)| buckets.as_slice()).unwrap_or_default();
        let quantiles = quantiles(&since(before, &latest));
        self.pages.push_back((now, latest));
        quantiles
    }
}

fn since(before: &[(f64, u64)], latest: &[(f64, u64)]) -> Vec<(f64, u64)> {
    let earlier = |n: usize| before.get(n).map_or(0, |(_, count)| *count);
    latest.iter().enumerate().map(|(n, (bound, count))| (*bound, count.saturating_sub(earlier(n)))).collect()
}

fn quantiles(buckets: &[(f64, u64)]) -> Option<Quantiles> {
    let total = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0)?;
    let bound = |share: u64| {
        let wanted = (total * share).div_ceil(100);
        buckets.iter().find(|(_, count)| *count >= wanted).map_or(f64::INFINITY, |(bound, _)| *bound)
    };
    Some(Quantiles { p50: bound(50), p99: bound(99) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"# TYPE kinsync_deliveries_total counter
kinsync_deliveries_total{scheme="kinde_jwt",outcome="accepted"} 90
kinsync_deliveries_total{scheme="hmac",outcome="accepted"} 2
kinsync_deliveries_total{scheme="kinde_jwt",outcome="duplicate"} 7
kinsync_lag_seconds_bucket{from="receipt",le="0.005"} 90
kinsync_lag_seconds_bucket{from="receipt",le="0.01"} 98
kinsync_lag_seconds_bucket{from="receipt",le="+Inf"} 100
kinsync_lag_seconds_bucket{from="kinde",le="0.005"} 0
"#;

    #[test]
    fn totals_are_summed_over_the_other_labels() {
        let page = Page::new(PAGE);
        assert_eq!(page.sum("kinsync_deliveries_total", &["outcome=\"accepted\""]), 92);
        assert_eq!(page.sum("kinsync_deliveries_total", &["outcome=\"refused\""]), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn quantiles_cover_the_last_minute_only() {
        let mut window = Window::default();
        let mut read =
            |text: &str| window.advance(&Page::new(text), "kinsync_lag_seconds", "from=\"receipt\"");
        assert_eq!(read(PAGE), Some(Quantiles { p50: 0.005, p99: f64::INFINITY }));
        tokio::time::advance(WINDOW).await;
        let later = PAGE.replace("} 98", "} 108").replace("} 100", "} 110");
        assert_eq!(read(&later), Some(Quantiles { p50: 0.01, p99: 0.01 }));
        tokio::time::advance(WINDOW).await;
        assert_eq!(read(&later), None);
    }
}
