//! Deliveries, lag and drift of a day.

use std::{collections::BTreeMap, time::Duration};

use kinsync_core::Micros;
use serde::{Deserialize, Serialize};

use super::Projection;
use crate::log_entry::{LogEntry, LogSource};

/// Operation of kinsync on a day.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct System {
    /// Deliveries by event type.
    pub deliveries: BTreeMap<String, u64>,
    /// Time from an event to the receipt of its delivery.
    pub lag: Lag,
    /// Differences from Kinde that scans and checks found, by cause: `deleted`, `restored`, `membership`, `fields`, or `unknown`
    /// for one that cannot be read.
    pub drift: BTreeMap<String, u64>,
    /// Entries of the log by source.
    pub entries: BTreeMap<String, u64>,
}

/// A histogram of lags with a relative error of at most 5 %. Two of them merge exactly, by the sums of their buckets.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lag(BTreeMap<u16, u64>);

/// Each bound of a bucket is this multiple of the bound before.
const RATIO: f64 = 1.1;

impl Lag {
    fn add(&mut self, micros: i64) {
        *self.0.entry(bucket(micros)).or_default() += 1;
    }

    /// Adds another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.0 {
            *self.0.entry(*bucket).or_default() += count;
        }
    }

    /// Returns the lags up to this one, with an error of at most 5 %.
    #[must_use]
    pub fn up_to(&self, longest: Duration) -> Self {
        let last = bucket(i64::try_from(longest.as_micros()).unwrap_or(i64::MAX));
        Self(self.0.range(..=last).map(|(bucket, count)| (*bucket, *count)).collect())
    }

    /// Returns the number of lags.
    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// Returns the lag in seconds below or at which this share of all lags is; `None` without lags.
    pub fn percentile(&self, share: f64) -> Option<f64> {
        let count = self.count();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank between 1 and the count"
        )]
        let rank = ((count as f64 * share).ceil() as u64).max(1);
        let mut sum = 0;
        let found = self.0.iter().find(|(_, count)| {
            sum += **count;
            sum >= rank
        });
        found.map(|(bucket, _)| middle(*bucket))
    }
}

/// Returns the bucket of a lag: 0 up to a millisecond, then by powers of [`RATIO`].
fn bucket(micros: i64) -> u16 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the logarithm of an i64 is below 500"
    )]
    let bucket = ((micros.max(1) as f64 / 1000.0).ln() / RATIO.ln()).ceil().max(0.0) as u16;
    bucket
}

/// Returns the value of a bucket in seconds that differs from each lag in it by at most 5 %.
fn middle(bucket: u16) -> f64 {
    RATIO.powi(bucket.into()) * 2.0 / (1.0 + RATIO) / 1000.0
}

/// Counts the entries of a day.
#[derive(Debug, Default)]
pub(super) struct Projector(System);

impl Projection for Projector {
    type Figures = System;

    const NAME: &'static str = "system";

    fn add(&mut self, entry: &LogEntry) {
        let figures = &mut self.0;
        *figures.entries.entry(entry.source.as_str().to_owned()).or_default() += 1;
        match entry.source {
            LogSource::Webhook => {
                *figures.deliveries.entry(entry.kind.clone()).or_default() += 1;
                if let Some(Micros(at)) = entry.at {
                    figures.lag.add(entry.received_at.0.saturating_sub(at));
                }
            }
            LogSource::Reconcile => {
                let cause = entry.cause().unwrap_or("unknown");
                *figures.drift.entry(cause.to_owned()).or_default() += 1;
            }
            LogSource::Login | LogSource::Profile | LogSource::Operator | LogSource::Kinsync => {}
        }
    }

    fn figures(self) -> System {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_within_five_percent_and_merges_exactly() {
        let (mut even, mut odd, mut all) = (Lag::default(), Lag::default(), Lag::default());
        for n in 1..=10_000_i64 {
            let half = if n % 2 == 0 { &mut even } else { &mut odd };
            half.add(n * 1000);
            all.add(n * 1000);
        }
        even.merge(&odd);
        assert_eq!(even, all);
        for (share, seconds) in [(0.5, 5.0), (0.95, 9.5), (0.99, 9.9)] {
            let found = all.percentile(share).expect("there are lags");
            assert!((found / seconds - 1.0).abs() < 0.05, "{share}: {found}");
        }
        assert_eq!(Lag::default().percentile(0.5), None);
        let short = all.up_to(Duration::from_secs(5)).count();
        assert!((4_750..=5_500).contains(&short), "{short}");
        assert_eq!(all.up_to(Duration::MAX), all);
        let mut extreme = Lag::default();
        for lag in [i64::MIN, 0, i64::MAX] {
            extreme.add(lag);
        }
        assert_eq!(extreme.count(), 3);
    }
}
