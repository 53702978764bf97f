//! When a part of the scans with an interval of its own was compared last.

use std::time::Duration;

use kinsync_core::Micros;
use serde::{Deserialize, Serialize};

use super::{Error, Inner, record::Run};
use crate::state_records::{self, Key};

/// The last complete comparison.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct LastComparison {
    /// What was compared: a part of it with another list is due at once.
    pub(super) keys: Vec<String>,
    began: Option<Micros>,
}

impl LastComparison {
    /// Returns whether the interval has passed, or more or less is to be compared than then.
    pub(super) fn is_due(&self, keys: &[String], every: Duration, now: Micros) -> bool {
        let every = i64::try_from(every.as_micros()).unwrap_or(i64::MAX);
        let is_recent = |began: Micros| (0..every).contains(&now.0.saturating_sub(began.0));
        self.keys != keys || !self.began.is_some_and(is_recent)
    }
}

impl Inner {
    pub(super) async fn last_comparison(&self, key: &Key) -> Result<LastComparison, Error> {
        Ok(self.retry_store(|| state_records::load(&*self.store, key)).await?)
    }

    /// Stores that this run compared everything, unless it is dry.
    pub(super) async fn ended_comparison(&self, key: &Key, keys: &[String], run: &Run) -> Result<(), Error> {
        self.record_comparison(key, LastComparison { keys: keys.to_vec(), began: Some(run.started_at) }, run)
            .await
    }

    /// Stores that the next run compares everything again, unless this one is dry.
    pub(super) async fn repeat_comparison(&self, key: &Key, run: &Run) -> Result<(), Error> {
        self.record_comparison(key, LastComparison::default(), run).await
    }

    async fn record_comparison(&self, key: &Key, ended: LastComparison, run: &Run) -> Result<(), Error> {
        let Some(term) = run.writes() else { return Ok(()) };
        let record = |last: &mut LastComparison| last.clone_from(&ended);
        let saved = self.retry_store(|| state_records::change_under(&*self.store, key, term, record)).await?;
        saved.ok_or(Error::LeaseLost)
    }
}
