//! A shared queue with the embedded queue of this process as its spool.
//!
//! While the shared queue does not accept an entry in time, the spool does, durably. A task moves what the spool holds into the
//! shared queue; until it succeeds, new entries go to the spool at once. An entry may be in both for a moment: the shared queue
//! knows its id, and a repetition changes nothing. What waits in a spool is on the disk of one machine: it is delayed while
//! that machine is off, and lost with its disk.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    Claimed, DeadLetter, Enqueued, Entry, EntryId, Error, Matched, Matcher, Payload, Queue, Search, Spool,
    Stats,
};

/// Longest time that an entry waits for the shared queue. A webhook has to be answered within seconds.
const DEADLINE: Duration = Duration::from_secs(1);
/// Longest time for one entry that moves from the spool.
const MOVE_DEADLINE: Duration = Duration::from_secs(10);
/// Entries that move at the same time.
const BATCH: usize = 128;
/// Lease of an entry that moves.
const LEASE: Duration = Duration::from_mins(1);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// A shared queue with a spool.
#[derive(Debug)]
pub struct SpooledQueue {
    shared: Arc<dyn Queue>,
    spool: Arc<dyn Queue>,
    /// Whether the shared queue did not accept the newest entry.
    is_failing: AtomicBool,
}

impl SpooledQueue {
    /// Combines both. [`Self::run`] moves entries from the spool.
    pub fn new(shared: Arc<dyn Queue>, spool: Arc<dyn Queue>) -> Self {
        Self { shared, spool, is_failing: AtomicBool::new(false) }
    }

    /// Moves entries from the spool into the shared queue until the token is cancelled.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::join!(self.move_regularly(&stop), self.probe(&stop));
    }

    /// Finds out when a failing shared queue answers again. With an empty spool no entry would.
    async fn probe(&self, stop: &CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_some() {
            if self.is_failing.load(Relaxed)
                && matches!(timeout(DEADLINE, self.shared.stats()).await, Ok(Ok(_)))
            {
                self.note(None);
            }
        }
    }

    async fn move_regularly(&self, stop: &CancellationToken) {
        while let Some(claimed) = stop.run_until_cancelled(self.spool.claim(BATCH, LEASE)).await {
            let moved = match claimed {
                Ok(claimed) => self.move_all(claimed).await,
                Err(Error::Closed) => return,
                Err(error) => Err(error),
            };
            if let Err(error) = moved {
                tracing::warn!(error = crate::breaker::error_chain(&error), "the spool could not be emptied");
                stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
            }
        }
    }

    /// Moves entries. Those that the shared queue does not accept stay in the spool.
    async fn move_all(&self, claimed: Vec<Claimed>) -> Result<(), Error> {
        let moves = claimed.iter().map(|claimed| self.accept(claimed.entry.clone(), MOVE_DEADLINE));
        let outcomes = join_all(moves).await;
        let (mut moved, mut kept, mut failure) = (Vec::new(), Vec::new(), None);
        for (Claimed { id, entry, .. }, outcome) in claimed.into_iter().zip(outcomes) {
            match outcome {
                Ok(_) => moved.push(id),
                // The next request of the user makes it again; kept, it would hold up deliveries.
                Err(Error::Full { .. }) if matches!(entry.payload, Payload::Sighting(_)) => moved.push(id),
                Err(error) => {
                    kept.push(id);
                    failure = Some(error);
                }
            }
        }
        self.spool.ack(&moved).await?;
        self.spool.retry(&kept, PAUSE).await?;
        failure.map_or(Ok(()), Err)
    }

    /// Offers an entry to the shared queue.
    async fn accept(&self, entry: Entry, deadline: Duration) -> Result<Enqueued, Error> {
        let accepted = timeout(deadline, self.shared.enqueue(entry)).await.unwrap_or_else(|elapsed| {
            let hint = format!("the shared queue did not answer within {deadline:?}");
            Err(Error::Unavailable { hint, source: elapsed.into() })
        });
        match &accepted {
            Ok(_) => self.note(None),
            Err(error @ (Error::Unavailable { .. } | Error::Refused { .. })) => self.note(Some(error)),
            Err(_) => {}
        }
        accepted
    }

    /// Logs when the shared queue begins and ends to fail.
    fn note(&self, failure: Option<&Error>) {
        match (failure, self.is_failing.swap(failure.is_some(), Relaxed)) {
            (Some(error), false) => tracing::error!(
                error = crate::breaker::error_chain(error),
                "the shared queue does not accept entries; they wait in the spool of this process"
            ),
            (None, true) => tracing::info!("the shared queue accepts entries again"),
            _ => {}
        }
    }
}

#[async_trait]
impl Queue for SpooledQueue {
    async fn enqueue(&self, entry: Entry) -> Result<Enqueued, Error> {
        if self.is_failing.load(Relaxed) {
            return match self.spool.enqueue(entry.clone()).await {
                Err(Error::Unavailable { .. } | Error::Full { .. } | Error::Refused { .. }) => {
                    self.accept(entry, DEADLINE).await
                }
                answer => answer,
            };
        }
        match self.accept(entry.clone(), DEADLINE).await {
            // The next request of the user makes it again.
            full @ Err(Error::Full { .. }) if matches!(entry.payload, Payload::Sighting(_)) => full,
            Err(Error::Unavailable { .. } | Error::Refused { .. } | Error::Full { .. }) => {
                self.spool.enqueue(entry).await
            }
            answer => answer,
        }
    }

    async fn claim(&self, max: usize, lease: Duration) -> Result<Vec<Claimed>, Error> {
        self.shared.claim(max, lease).await
    }

    async fn ack(&self, ids: &[EntryId]) -> Result<(), Error> {
        self.shared.ack(ids).await
    }

    async fn retry(&self, ids: &[EntryId], after: Duration) -> Result<(), Error> {
        self.shared.retry(ids, after).await
    }

    async fn dead_letter(&self, entries: &[(EntryId, String)]) -> Result<Vec<Option<EntryId>>, Error> {
        self.shared.dead_letter(entries).await
    }

    /// Adds the entries of the spool to those of the shared queue. While that does not answer, the state is that of the spool.
    async fn stats(&self) -> Result<Stats, Error> {
        let (spool, shared) = tokio::join!(self.spool.stats(), timeout(DEADLINE, self.shared.stats()));
        let (spool, shared) = (spool?, shared.ok().and_then(Result::ok));
        let is_available = shared.is_some() && !self.is_failing.load(Relaxed);
        let shared = shared.unwrap_or_default();
        let oldest = [shared.oldest_received_at, spool.oldest_received_at];
        Ok(Stats {
            depth: shared.depth + spool.depth,
            oldest_received_at: oldest.into_iter().flatten().min(),
            bytes: shared.bytes + spool.bytes,
            spool: Some(Spool { entries: spool.depth, is_shared_queue_available: is_available }),
            ..shared
        })
    }

    async fn dead_letters(&self, after: Option<&EntryId>, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        self.shared.dead_letters(after, limit).await
    }

    async fn find_dead_letter(&self, id: &EntryId) -> Result<DeadLetter, Error> {
        self.shared.find_dead_letter(id).await
    }

    async fn retry_dead_letter(&self, id: &EntryId) -> Result<(), Error> {
        self.shared.retry_dead_letter(id).await
    }

    async fn drop_dead_letter(&self, id: &EntryId) -> Result<(), Error> {
        self.shared.drop_dead_letter(id).await
    }

    async fn search(&self, matcher: Matcher, search: Search) -> Result<Matched, Error> {
        // The spool first: what moves meanwhile is found in the shared queue.
        let in_spool = self.spool.search(Arc::clone(&matcher), search).await?;
        Ok(in_spool + self.shared.search(matcher, search).await?)
    }

    async fn close(&self) {
        tokio::join!(self.shared.close(), self.spool.close());
    }
}
