//! The state of an engine, for the health page of an application.

use std::collections::BTreeMap;

use super::Engine;
use crate::{
    breaker::State,
    queue::{self, Stats},
};

/// State of an engine, as known without a request to MongoDB or Kinde. Only the dead letters of RabbitMQ are counted in MongoDB; while it
/// does not answer, the last count is returned.
#[derive(Debug)]
#[non_exhaustive]
pub struct Health {
    /// State of the queue, also while MongoDB is unavailable. If this is an error, no delivery is accepted. Deliveries are also refused
    /// while the queue is full or its disk fails, which only a delivery shows: `WebhookService::activity` of `kinsync-tower`
    /// says since when they are.
    pub queue: Result<Stats, queue::Error>,
    /// Why users cannot be written; `None` while they can. Deliveries stay queued in the meantime. May name hosts.
    pub store_failure: Option<String>,
    /// Why tasks failed, by the name of the task. A task that was restarted is left out after a minute or two without a failure.
    pub task_failures: BTreeMap<&'static str, String>,
    /// Why the webhook is probably disabled at Kinde. `None` also without a Management API.
    pub silent_webhook: Option<String>,
    /// Why the newest scan of this process failed, until a scan of any process completes. May name hosts.
    pub scan_failure: Option<String>,
}

impl Engine {
    /// Returns the state of the engine.
    pub async fn health(&self) -> Health {
        let is_failing = self.breaker().state() != State::Closed;
        let failure = self.store_failure().or_else(|| self.breaker().last_failure().filter(|_| is_failing));
        let tasks = self.supervisor().status().into_iter();
        let scans = self.reconciler().map(|reconciler| reconciler.status.borrow().clone());
        let scans = scans.unwrap_or_default();
        Health {
            queue: self.queue().stats().await,
            store_failure: failure.map(|failure| failure.chain),
            task_failures: tasks.filter_map(|(name, status)| Some((name, status.failure?))).collect(),
            silent_webhook: scans.silent_webhook.map(|silent| silent.to_string()),
            scan_failure: scans.failure,
        }
    }
}
