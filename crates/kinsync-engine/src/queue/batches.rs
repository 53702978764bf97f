//! Entries that a shared queue stores together: what waits while calls run shares the next one.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures_util::{
    FutureExt as _,
    stream::{FuturesUnordered, StreamExt as _},
};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Enqueued, Entry, Error, SHARED_TASK, unanswered};
use crate::supervisor::Supervisor;

/// Entries in one call.
const BATCH: usize = 128;
/// Entries that wait for a call, beyond those in one.
const WAITING: usize = 16_384;

/// The outcome of each entry of a call, in their order.
pub(super) type Outcomes = Vec<Result<Enqueued, Error>>;

/// An entry that waits to be stored.
struct Pending {
    entry: Entry,
    reply: oneshot::Sender<Result<Enqueued, Error>>,
}

/// The entries that wait to be stored.
pub(super) struct Batches {
    enqueues: mpsc::Sender<Pending>,
    /// Locked by [`Self::run`].
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

    /// Stores what is added, with at most `in_flight` calls of `store` at a time among these tasks, until the token is cancelled.
    /// Refuses then what still waits. A panic of a call is reported to this supervisor, and its entries are stored one by one.
    pub(super) async fn run<F>(
        &self,
        in_flight: usize,
        tasks: &TaskTracker,
        stop: &CancellationToken,
        supervisor: &Supervisor,
        store: impl Fn(Arc<[Entry]>) -> F + Clone + Send + Sync + 'static,
    ) where
        F: Future<Output = Outcomes> + Send + 'static,
    {
        let mut pending = self.pending.lock().await;
        let mut batch = Vec::with_capacity(BATCH);
        let mut calls = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = calls.next() => {}
                1.. = pending.recv_many(&mut batch, BATCH), if calls.len() < in_flight => {
                    let batch = std::mem::take(&mut batch);
                    calls.push(tasks.spawn(store_together(batch, store.clone(), supervisor.clone())));
                }
            }
        }
        refuse(&mut pending).await;
    }

    /// Waits until the run has ended, and refuses what still waits.
    pub(super) async fn close(&self) {
        refuse(&mut *self.pending.lock().await).await;
    }
}

/// Accepts no further entry. The callers of those that wait get [`Error::Closed`].
async fn refuse(pending: &mut mpsc::Receiver<Pending>) {
    pending.close();
    while pending.recv().await.is_some() {}
}

async fn store_together<F: Future<Output = Outcomes> + Send>(
    mut batch: Vec<Pending>,
    store: impl Fn(Arc<[Entry]>) -> F + Send + Sync,
    supervisor: Supervisor,
) {
    // Their callers no longer wait: those of a spool, which has the entries meanwhile.
    batch.retain(|one| !one.reply.is_closed());
    if batch.is_empty() {
        return;
    }
    let (entries, replies): (Vec<_>, Vec<_>) = batch.into_iter().map(|one| (one.entry, one.reply)).unzip();
    let entries: Arc<[Entry]> = entries.into();
    let call = async |entries| match AssertUnwindSafe(store(entries)).catch_unwind().await {
        Ok(outcomes) => outcomes,
        Err(panic) => {
            supervisor.panicked(SHARED_TASK, &*panic);
            Vec::new()
        }
    };
    let mut outcomes = call(Arc::clone(&entries)).await;
    // One of them alone makes each call fail that it is a part of.
    if outcomes.is_empty() && entries.len() > 1 {
        for entry in &*entries {
            outcomes.push(call([entry.clone()].into()).await.pop().unwrap_or_else(|| Err(unanswered())));
        }
    }
    for (reply, outcome) in replies.into_iter().zip(outcomes) {
        // The caller may have been cancelled.
        _ = reply.send(outcome);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use kinsync_core::Micros;
    use tokio::{sync::Semaphore, time::timeout};

    use super::*;
    use crate::queue::Payload;

    const WITHIN: Duration = Duration::from_secs(30);

    fn entry(event_id: &str) -> Entry {
        let payload = Payload::Sighting(Bytes::new());
        Entry { event_id: event_id.into(), received_at: Micros(1), payload }
    }

    /// Stores entries, and panics with one with the id `poison`.
    async fn store(entries: Arc<[Entry]>) -> Outcomes {
        let store = |entry: &Entry| {
            assert_ne!(entry.event_id, "poison");
            Ok(Enqueued::New)
        };
        entries.iter().map(store).collect()
    }

    fn supervised<F: Future<Output = Outcomes> + Send + 'static>(
        supervisor: &Supervisor,
        store: impl Fn(Arc<[Entry]>) -> F + Clone + Send + Sync + 'static,
    ) -> Arc<Batches> {
        let batches = Arc::new(Batches::default());
        let (run, reported) = (Arc::clone(&batches), supervisor.clone());
        supervisor.spawn(SHARED_TASK, move |stop| {
            let (run, reported, store) = (Arc::clone(&run), reported.clone(), store.clone());
            async move { run.run(1, &TaskTracker::new(), &stop, &reported, store).await }
        });
        batches
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_that_panics_again_and_again_delays_no_other_and_is_reported() {
        let supervisor = Supervisor::default();
        let batches = supervised(&supervisor, store);
        for _ in 0..20 {
            let (lost, beside) = tokio::join!(batches.enqueue(entry("poison")), batches.enqueue(entry("a")));
            assert!(matches!(lost, Err(Error::Unavailable { .. })), "{lost:?}");
            assert!(matches!(beside, Ok(Enqueued::New)), "{beside:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            // The clock of the test advances only while nothing can be done.
            let stored = timeout(Duration::from_millis(1), batches.enqueue(entry("b"))).await;
            assert!(matches!(stored, Ok(Ok(Enqueued::New))), "{stored:?}");
        }
        let status = supervisor.status()[SHARED_TASK].clone();
        assert!(status.restarts == 0 && status.failure.unwrap().contains("poison"));
        tokio::time::sleep(Duration::from_mins(2)).await;
        assert_eq!(supervisor.status()[SHARED_TASK].failure, None);
        supervisor.stop().await;
    }

    #[tokio::test]
    async fn what_waits_when_the_run_is_stopped_is_refused_at_once_and_what_is_stored_is_answered() {
        let (supervisor, gate) = (Supervisor::default(), Arc::new(Semaphore::new(0)));
        let (entered, passed) = (Arc::new(Semaphore::new(0)), Arc::clone(&gate));
        let began = Arc::clone(&entered);
        let batches = supervised(&supervisor, move |entries| {
            let (began, passed) = (Arc::clone(&began), Arc::clone(&passed));
            async move {
                began.add_permits(1);
                passed.acquire().await.unwrap().forget();
                store(entries).await
            }
        });
        let first = TaskTracker::new().spawn({
            let batches = Arc::clone(&batches);
            async move { batches.enqueue(entry("first")).await }
        });
        entered.acquire().await.unwrap().forget();
        let (waits, ()) = tokio::join!(timeout(WITHIN, batches.enqueue(entry("waits"))), supervisor.stop());
        assert!(matches!(waits, Ok(Err(Error::Closed))), "{waits:?}");
        let late = timeout(WITHIN, batches.enqueue(entry("late"))).await;
        assert!(matches!(late, Ok(Err(Error::Closed))), "{late:?}");
        gate.add_permits(1);
        assert!(matches!(first.await.unwrap(), Ok(Enqueued::New)));
    }

    #[tokio::test]
    async fn a_closed_queue_answers_what_waits() {
        let (batches, stop) = (Batches::default(), CancellationToken::new());
        let (waiting, ()) = tokio::join!(batches.enqueue(entry("waits")), batches.close());
        assert!(matches!(waiting, Err(Error::Closed)), "{waiting:?}");
        assert!(matches!(batches.enqueue(entry("late")).await, Err(Error::Closed)));
        stop.cancel();
        batches.run(1, &TaskTracker::new(), &stop, &Supervisor::default(), store).await;
    }
}
