//! Turns queued events into documents: claim a batch, decode it, apply it, ack it.
//!
//! What cannot be understood is logged and dead-lettered with a reason, and the others go on. A
//! store that does not answer pauses the projector and nothing else: the batch stays claimed, is
//! applied when the store is back, and is never dead-lettered for it.

use std::{sync::Arc, time::Duration};

use kinsync_core::{Micros, Observation, UserId};
use tokio_util::sync::CancellationToken;

use crate::{
    apply::{Applied, apply_over},
    breaker::Breaker,
    clock::Clock,
    decode::{self, Failure},
    email_ownership::Sweep,
    queue::{self, Claimed, EntryId, Queue},
    scan_watermark::ScanWatermarks,
    store::{self, LoggedEvent, Store},
};

/// How the projector works.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Entries claimed at once, at most. What waits for one user costs one write.
    pub batch: usize,
    /// Batches in work at once: one is decoded while another is written.
    pub workers: usize,
    /// How far ahead of our clock an event may be before it is quarantined.
    pub future_tolerance: Duration,
    /// How often rows are looked for that a crash left unsettled, or whose address became free.
    pub sweep_every: Duration,
    /// How long claimed entries are reserved for this projector. Afterwards another may claim them
    /// too, which changes nothing but costs work.
    pub lease: Duration,
}

/// Pause after the queue failed, and before entries are claimed again whose dead letter could not be
/// written.
const PAUSE: Duration = Duration::from_secs(1);

impl Default for Config {
    fn default() -> Self {
        Self {
            batch: 1280,
            workers: 2,
            future_tolerance: decode::FUTURE_TOLERANCE,
            sweep_every: Duration::from_mins(1),
            lease: Duration::from_mins(5),
        }
    }
}

/// Turns queued events into documents.
#[derive(Debug)]
pub struct Projector {
    queue: Arc<dyn Queue>,
    store: Arc<dyn Store>,
    breaker: Breaker,
    clock: Clock,
    config: Config,
}

/// A claimed batch, decoded.
#[derive(Default)]
struct Batch {
    events: Vec<LoggedEvent>,
    observations: Vec<Observation>,
    /// Of whom each understood entry speaks, to find the entries of a user again.
    done: Vec<(EntryId, Option<UserId>)>,
    poison: Vec<(EntryId, Failure)>,
    times: Vec<(Micros, Option<Micros>)>,
}

impl Projector {
    /// A projector that has not started.
    pub fn new(
        queue: Arc<dyn Queue>,
        store: Arc<dyn Store>,
        breaker: Breaker,
        clock: Clock,
        config: Config,
    ) -> Self {
        Self { queue, store, breaker, clock, config }
    }

    /// Works until told to stop, then finishes what it is writing. What it could not finish stays
    /// in the queue.
    pub async fn run(&self, stop: CancellationToken) {
        let workers = (0..self.config.workers).map(|_| self.work(&stop));
        tokio::join!(futures_util::future::join_all(workers), self.sweep_regularly(&stop));
    }

    async fn work(&self, stop: &CancellationToken) {
        while let Some(claimed) = stop.run_until_cancelled(self.claim()).await {
            match claimed {
                Ok(claimed) => self.project(claimed, stop).await,
                Err(queue::Error::Closed) => return,
                Err(error) => {
                    tracing::error!(
                        error = crate::breaker::error_chain(&error),
                        "claiming from the queue failed"
                    );
                    stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
                }
            }
        }
    }

    async fn claim(&self) -> Result<Vec<Claimed>, queue::Error> {
        self.queue.claim(self.config.batch, self.config.lease).await
    }

    /// Decodes, applies and acks one batch. Returns early, without an ack, only when stopped.
    async fn project(&self, claimed: Vec<Claimed>, stop: &CancellationToken) {
        let batch = self.decode(claimed).await;
        let Some(applied) = self.persist(&batch, stop).await else { return };
        self.measure(&batch);
        if let Err(error) = self.finish(batch, applied).await {
            // Not acked is not lost: the entries come again and change nothing then.
            tracing::error!(
                error = crate::breaker::error_chain(&error),
                "acking a batch failed; it comes again"
            );
        }
    }

    async fn decode(&self, claimed: Vec<Claimed>) -> Batch {
        let limit = decode::latest(self.clock.now(), self.config.future_tolerance);
        let mut batch = Batch::default();
        for (n, Claimed { id, entry, .. }) in claimed.into_iter().enumerate() {
            if n % 64 == 63 {
                // Deliveries that wait for their 200 come first.
                tokio::task::yield_now().await;
            }
            let decoded = decode::decode(&entry, limit);
            batch.times.push((entry.received_at, decoded.event.at));
            batch.events.push(decoded.event);
            match decoded.observations {
                Ok(observations) => {
                    batch.done.push((id, observations.first().map(|o| o.user.clone())));
                    batch.observations.extend(observations);
                }
                Err(failure) => batch.poison.push((id, failure)),
            }
        }
        batch
    }

    /// Logs the events and applies the observations, for as long as it takes. `None`: stopped.
    async fn persist(&self, batch: &Batch, stop: &CancellationToken) -> Option<Applied> {
        let mut logged = false;
        loop {
            stop.run_until_cancelled(self.breaker.ready()).await?;
            match self.try_persist(batch, &mut logged).await {
                Ok(applied) => {
                    self.breaker.succeeded();
                    return Some(applied);
                }
                Err(error) => self.breaker.failed(&error),
            }
        }
    }

    async fn try_persist(&self, batch: &Batch, logged: &mut bool) -> Result<Applied, store::Error> {
        if !*logged {
            let new = self.store.log(&batch.events).await?;
            count("duplicate", batch.events.len() - new.min(batch.events.len()));
            *logged = true;
        }
        // Read for each batch: what is older than a scan is no news after it.
        let scans = ScanWatermarks::load(&*self.store).await?;
        apply_over(&*self.store, batch.observations.iter().cloned(), self.clock.now(), &scans).await
    }

    /// Acks what was applied first: a dead letter that cannot be written holds nothing else up.
    async fn finish(&self, batch: Batch, applied: Applied) -> Result<(), queue::Error> {
        let mut acks = Vec::with_capacity(batch.done.len());
        let mut dead = batch.poison.into_iter().map(|(id, f)| (id, f.to_string())).collect::<Vec<_>>();
        for (id, user) in batch.done {
            match applied.rejected.iter().find(|(id, _)| user.as_ref() == Some(id)) {
                None => acks.push(id),
                Some((_, reason)) => dead.push((id, format!("the store refused the user: {reason}"))),
            }
        }
        for user in applied.users_to_recheck {
            metrics::counter!("kinsync_resurrections_refused_total").increment(1);
            tracing::warn!(
                user = user.as_str(),
                "a deleted user was told of again; events never restore one"
            );
        }
        self.queue.ack(&acks).await?;
        count("applied", acks.len());
        self.set_aside(&dead).await
    }

    /// Dead-letters entries. When that fails they are released, and claimed again after a pause.
    async fn set_aside(&self, dead: &[(EntryId, String)]) -> Result<(), queue::Error> {
        if dead.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.queue.dead_letter(dead).await {
            let ids: Vec<_> = dead.iter().map(|(id, _)| id.clone()).collect();
            self.queue.retry(&ids, PAUSE).await?;
            return Err(error);
        }
        for (id, reason) in dead {
            tracing::warn!(%id, reason, "an event was set aside as a dead letter");
        }
        count("dead_lettered", dead.len());
        Ok(())
    }

    fn measure(&self, batch: &Batch) {
        let now = self.clock.now();
        for (received_at, at) in &batch.times {
            metrics::histogram!("kinsync_lag_seconds", "from" => "receipt")
                .record(seconds(*received_at, now));
            if let Some(at) = at {
                metrics::histogram!("kinsync_lag_seconds", "from" => "kinde").record(seconds(*at, now));
                metrics::histogram!("kinsync_time_to_consistency_seconds", "source" => "webhook")
                    .record(seconds(*at, now));
            }
        }
    }

    async fn sweep_regularly(&self, stop: &CancellationToken) {
        let mut sweep = Sweep::default();
        loop {
            let Some(()) = stop.run_until_cancelled(self.breaker.ready()).await else { return };
            match sweep.run(&*self.store, self.clock.now()).await {
                Ok(0) => self.breaker.succeeded(),
                Ok(rows) => {
                    self.breaker.succeeded();
                    tracing::info!(
                        rows,
                        "settled addresses that an interrupted write left, or that a row of the application let go"
                    );
                }
                Err(error) => {
                    self.breaker.failed(&error);
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(self.config.sweep_every)).await.is_none() {
                return;
            }
        }
    }
}

fn count(outcome: &'static str, events: usize) {
    metrics::counter!("kinsync_events_total", "outcome" => outcome).increment(events as u64);
}

#[expect(clippy::cast_precision_loss, reason = "a metric")]
fn seconds(from: Micros, to: Micros) -> f64 {
    to.0.saturating_sub(from.0).max(0) as f64 / 1e6
}
