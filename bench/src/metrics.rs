//! Reads kinsync's /metrics in the text format of Prometheus.

use std::net::SocketAddr;

use anyhow::Context as _;

use crate::http;

/// All samples at one moment.
#[derive(Debug, Default)]
pub struct Samples(Vec<Sample>);

#[derive(Debug)]
struct Sample {
    name: String,
    labels: String,
    value: f64,
}

impl Samples {
    /// Scrapes the server.
    pub async fn of(server: SocketAddr) -> anyhow::Result<Self> {
        let (status, text) = http::get(server, "/metrics").await.context("requesting /metrics")?;
        anyhow::ensure!(status == 200, "/metrics answered {status}");
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(lines.filter_map(sample).collect())
    }

    /// Number of queue entries.
    pub fn queue_depth(&self) -> anyhow::Result<u64> {
        let mut depths = self.0.iter().filter(|sample| sample.name == "kinsync_queue_depth");
        let first = depths.next().context("/metrics has no `kinsync_queue_depth`")?;
        // The count is a small whole number.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        Ok(first.value as u64)
    }

    /// The sum over all labels of one metric; 0 if there is none.
    pub fn total(&self, name: &str) -> f64 {
        self.0.iter().filter(|sample| sample.name == name).map(|sample| sample.value).sum()
    }

    /// The sum of the samples of one metric with this label.
    pub fn labelled(&self, name: &str, label: &str, value: &str) -> f64 {
        let samples =
            self.0.iter().filter(|sample| sample.name == name && sample.label(label) == Some(value));
        samples.map(|sample| sample.value).sum()
    }

    /// The 99th percentile of the lag from receipt in kinsync's histogram since `before`, in seconds: the upper
    /// bound of its bucket. `None` if there is no such histogram or nothing was recorded.
    pub fn lag_p99_since(&self, before: &Self) -> Option<f64> {
        let mut buckets: Vec<_> = self.lag_buckets().collect();
        let earlier: Vec<_> = before.lag_buckets().collect();
        for (bound, count) in &mut buckets {
            *count -= earlier
                .iter()
                .find(|(other, _)| other.total_cmp(bound).is_eq())
                .map_or(0.0, |(_, count)| *count);
        }
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        let total = buckets.last().map(|(_, count)| *count).filter(|total| *total > 0.0)?;
        buckets.iter().find(|(_, count)| *count >= 0.99 * total).map(|(bound, _)| *bound)
    }

    fn lag_buckets(&self) -> impl Iterator<Item = (f64, f64)> {
        let receipt = |sample: &&Sample| {
            sample.name == "kinsync_lag_seconds_bucket" && sample.label("from") == Some("receipt")
        };
        self.0
            .iter()
            .filter(receipt)
            .filter_map(|sample| Some((sample.label("le")?.parse().ok()?, sample.value)))
    }
}

impl Sample {
    fn label(&self, name: &str) -> Option<&str> {
        let of = |pair: &'_ str| {
            pair.split_once('=').filter(|(key, _)| *key == name).map(|(key, _)| key.len() + 1)
        };
        self.labels.split(',').find_map(|pair| of(pair).map(|at| pair[at..].trim_matches('"')))
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (key, value) = line.rsplit_once(' ')?;
    let (name, labels) = key.split_once('{').unwrap_or((key, ""));
    Some(Sample {
        name: name.to_owned(),
        labels: labels.trim_end_matches('}').to_owned(),
        value: value.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: &str = "# TYPE kinsync_lag_seconds histogram\n\
        kinsync_lag_seconds_bucket{from=\"receipt\",le=\"0.01\"} 60\n\
        kinsync_lag_seconds_bucket{from=\"receipt\",le=\"0.1\"} 110\n\
        kinsync_lag_seconds_bucket{from=\"receipt\",le=\"+Inf\"} 110\n\
        kinsync_lag_seconds_bucket{from=\"kinde\",le=\"+Inf\"} 1000\n\
        kinsync_queue_depth 17\n";

    #[test]
    fn a_percentile_is_the_bound_of_its_bucket_since_the_earlier_scrape() {
        let before = Samples::parse(
            "kinsync_lag_seconds_bucket{from=\"receipt\",le=\"0.01\"} 10\n\
            kinsync_lag_seconds_bucket{from=\"receipt\",le=\"0.1\"} 10\n\
            kinsync_lag_seconds_bucket{from=\"receipt\",le=\"+Inf\"} 10\n",
        );
        let after = Samples::parse(LATER);
        assert_eq!(after.lag_p99_since(&before), Some(0.1));
        assert_eq!(after.queue_depth().unwrap(), 17);
        assert_eq!(after.lag_p99_since(&after), None);
    }
}
