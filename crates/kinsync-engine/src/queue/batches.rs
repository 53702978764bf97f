//! Entries that a shared queue stores together: what waits while calls run shares the next one.

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::{JoinError, JoinHandle},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Enqueued, Entry, Error, unanswered};

/// Entries in one call.
const BATCH: usize = 128;
/// Entries that wait for a call, beyond those in one.
const WAITING: usize = 16_384;

/// An entry that waits to be stored.
pub(super) struct Pending {
    pub(super) entry: Entry,
    pub(super) reply: oneshot::Sender<Result<Enqueued, Error>>,
}

/// The entries that wait to be stored.
pub(super) struct Batches {
    enqueues: mpsc::Sender<Pending>,
    /// Locked by [`Self::run`]. Kept here, so that entries wait for the next run after one that panicked.
    pending: Mutex<mpsc::Receiver<Pending>>,
}

impl Default for Batches {
    fn default() -> Self {
        let (enqueues, pending) = mpsc::channel(WAITING);
        Self { enqueues, pending: Mutex::new(pending) }
    }
}

impl Batches {
    /// Adds an entry and waits until a run has stored it.
    pub(super) async fn enqueue(&self, entry: Entry) -> Result<Enqueued, Error> {
        let (reply, stored) = oneshot::channel();
        self.enqueues.send(Pending { entry, reply }).await.map_err(|_| Error::Closed)?;
        stored
            .await
            .unwrap_or_else(|_| Err(if self.enqueues.is_closed() { Error::Closed } else { unanswered() }))
    }

    /// Stores what is added, with at most `in_flight` calls of `store` at a time among these tasks, until the token is cancelled. Panics
    /// if a call did. The other calls continue.
    pub(super) async fn run<F>(
        &self,
        in_flight: usize,
        tasks: &TaskTracker,
        stop: &CancellationToken,
        store: impl Fn(Vec<Pending>) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut pending = self.pending.lock().await;
        let mut batch = Vec::with_capacity(BATCH);
        let mut calls: FuturesUnordered<JoinHandle<()>> = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(ended) = calls.next() => {
                    if let Err(Ok(panic)) = ended.map_err(JoinError::try_into_panic) {
                        std::panic::resume_unwind(panic);
                    }
                }
                1.. = pending.recv_many(&mut batch, BATCH), if calls.len() < in_flight => {
                    calls.push(tasks.spawn(store(std::mem::take(&mut batch))));
                }
            }
        }
    }

    /// Waits until the run has ended, and refuses what still waits.
    pub(super) async fn close(&self) {
        let mut pending = self.pending.lock().await;
        pending.close();
        while pending.recv().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use bytes::Bytes;
    use kinsync_core::Micros;
    use tokio::time::timeout;

    use super::*;
    use crate::{queue::Payload, supervisor::Supervisor};

    const WITHIN: Duration = Duration::from_secs(30);

    fn entry(event_id: &str) -> Entry {
        let payload = Payload::Sighting(Bytes::new());
        Entry { event_id: event_id.into(), received_at: Micros(1), payload }
    }

    /// Stores each entry, and panics for one with the id `poison`.
    async fn store(batch: Vec<Pending>) {
        for Pending { entry, reply } in batch {
            assert_ne!(entry.event_id, "poison");
            _ = reply.send(Ok(Enqueued::New));
        }
    }

    fn supervised(supervisor: &Supervisor) -> Arc<Batches> {
        let batches = Arc::new(Batches::default());
        let run = Arc::clone(&batches);
        supervisor.spawn("batches", move |stop| {
            let run = Arc::clone(&run);
            async move { run.run(1, &TaskTracker::new(), &stop, store).await }
        });
        batches
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_panic_entries_are_stored_by_the_next_run() {
        let supervisor = Supervisor::default();
        let batches = supervised(&supervisor);
        assert!(matches!(batches.enqueue(entry("before")).await, Ok(Enqueued::New)));
        let lost = batches.enqueue(entry("poison")).await;
        assert!(matches!(lost, Err(Error::Unavailable { .. })), "{lost:?}");
        let stored = timeout(WITHIN, batches.enqueue(entry("after"))).await.expect("the task is restarted");
        assert!(matches!(stored, Ok(Enqueued::New)), "{stored:?}");
        let status = supervisor.status()["batches"].clone();
        assert!(status.restarts == 1 && status.failure.unwrap().contains("poison"));
        supervisor.stop().await;
    }

    #[tokio::test]
    async fn a_closed_queue_answers_what_waits() {
        let (batches, stop) = (Batches::default(), CancellationToken::new());
        let (waiting, ()) = tokio::join!(batches.enqueue(entry("waits")), batches.close());
        assert!(matches!(waiting, Err(Error::Closed)), "{waiting:?}");
        assert!(matches!(batches.enqueue(entry("late")).await, Err(Error::Closed)));
        stop.cancel();
        batches.run(1, &TaskTracker::new(), &stop, store).await;
    }
}
