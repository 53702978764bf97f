//! A shared queue with the embedded queue of this process as its spool.
//!
//! While the shared queue does not accept an entry in time, the spool does, durably. A task moves what the spool holds into the
//! shared queue; until it succeeds, new entries go to the spool at once, unless its disk hangs. An entry may be in both: a repetition
//! changes nothing. What waits in a spool is on the disk of one machine: it is delayed while that machine is off, and lost with
//! its disk.
//!
//! Without an outage the spool is not used, so its disk is checked regularly: one that is full or broken would show only when both fail.
//!
//! Dead letters of the spool are those of the data folder before there was a shared queue, and entries that the shared queue never
//! accepts. They are listed before those of the shared queue, under ids of their own.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::{Instant, error::Elapsed, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Claimed, DeadLetter, Enqueued, Entry, EntryId, Error, MAX_LISTED, Matched, Matcher, Payload, Queue,
    Search, Spool, Stats, Transferred, apart, embedded::EmbeddedQueue, transfer,
};
/// Longest time that an entry waits for the shared queue. A webhook has to be answered within seconds.
const DEADLINE: Duration = Duration::from_secs(1);
/// Longest time that it waits for the disk of the spool, which may hang.
const SPOOL_DEADLINE: Duration = Duration::from_secs(3);
/// Longest time for one entry that moves from the spool.
const MOVE_DEADLINE: Duration = Duration::from_secs(10);
/// Entries that move at the same time.
const BATCH: usize = 128;
/// Lease of an entry that moves.
const LEASE: Duration = Duration::from_mins(1);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// Time between two checks of the disk, and longest time for one.
const CHECK_EVERY: Duration = Duration::from_secs(10);
/// Start of the ids of the dead letters of the spool.
const OF_SPOOL: &str = "spool-";

/// A shared queue with a spool.
#[derive(Debug)]
pub struct SpooledQueue {
    shared: Arc<dyn Queue>,
    spool: Arc<EmbeddedQueue>,
    /// Whether the shared queue did not accept the newest entry. Only one that it accepts ends this: a server without memory or
    /// without replicas answers every question.
    is_failing: AtomicBool,
    /// Whether the disk of the spool failed when it was checked last.
    is_spool_failing: AtomicBool,
    /// Whether the disk of the spool did not answer in time: deliveries do not wait for it then while the shared queue may answer.
    is_spool_hanging: AtomicBool,
    /// The last known state of the shared queue.
    last: Mutex<Option<(Instant, Stats)>>,
}

impl SpooledQueue {
    /// Combines both. [`Self::run`] moves entries from the spool.
    pub fn new(shared: Arc<dyn Queue>, spool: Arc<EmbeddedQueue>) -> Self {
        let [is_failing, is_spool_failing, is_spool_hanging] = [(); 3].map(|()| AtomicBool::new(false));
        Self { shared, spool, is_failing, is_spool_failing, is_spool_hanging, last: Mutex::default() }
    }

    /// Moves entries from the spool into the shared queue, and checks the disk of the spool, until the token is cancelled.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::join!(self.move_regularly(&stop), self.check_regularly(&stop));
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
                stop.run_until_cancelled(tokio::time::sleep(apart(PAUSE))).await;
            }
        }
    }

    async fn check_regularly(&self, stop: &CancellationToken) {
        let checks = async {
            loop {
                // A disk may also hang.
                let checked = timeout(CHECK_EVERY, self.spool.check()).await;
                self.is_spool_hanging.store(checked.is_err(), Relaxed);
                match checked
                    .unwrap_or_else(|elapsed| Err(unanswered_in_time("its disk", CHECK_EVERY, elapsed)))
                {
                    Err(Error::Closed) => return,
                    checked => self.note_spool(checked.err().as_ref()),
                }
                tokio::time::sleep(CHECK_EVERY).await;
            }
        };
        stop.run_until_cancelled(checks).await;
    }

    /// Moves entries. Those that the shared queue does not accept now stay in the spool; those that it never accepts become dead
    /// letters of the spool.
    async fn move_all(&self, claimed: Vec<Claimed>) -> Result<(), Error> {
        let accept = |entry| self.accept(entry, MOVE_DEADLINE);
        let Transferred { dead, failure, .. } = transfer(&*self.spool, claimed, accept).await?;
        if dead > 0 {
            tracing::error!(
                entries = dead,
                "the shared queue never accepts entries of this size; they became dead letters"
            );
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        // Also after slow answers: nothing is left that a faster one could follow.
        if self.spool.stats().await?.depth == 0 {
            self.note(None);
        }
        Ok(())
    }

    /// Offers an entry to the shared queue.
    async fn accept(&self, entry: Entry, deadline: Duration) -> Result<Enqueued, Error> {
        let started = Instant::now();
        let accepted = timeout(deadline, self.shared.enqueue(entry))
            .await
            .unwrap_or_else(|elapsed| Err(unanswered_in_time("the shared queue", deadline, elapsed)));
        match &accepted {
            // Not a slow one while others wait: deliveries would wait for the next ones.
            Ok(_) if started.elapsed() > DEADLINE => {}
            // A full queue answers.
            Ok(_) | Err(Error::Full { .. }) => self.note(None),
            Err(error @ (Error::Unavailable { .. } | Error::Refused { .. })) => self.note(Some(error)),
            Err(_) => {}
        }
        accepted
    }

    /// Stores an entry in the spool. After an error it may be stored all the same: a repetition changes nothing.
    async fn store(&self, entry: Entry) -> Result<Enqueued, Error> {
        timeout(SPOOL_DEADLINE, self.spool.enqueue(entry)).await.unwrap_or_else(|elapsed| {
            self.is_spool_hanging.store(true, Relaxed);
            Err(unanswered_in_time("the disk of the spool", SPOOL_DEADLINE, elapsed))
        })
    }

    /// Returns the newest known state of the shared queue, and how old it is if it is not of now.
    fn newest(&self, counted: Option<Stats>) -> (Stats, Option<Duration>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stats) = counted {
            *last = Some((Instant::now(), stats));
            return (stats, None);
        }
        last.map_or_else(Default::default, |(at, stats)| (stats, Some(at.elapsed())))
    }

    /// Logs when the shared queue begins and ends to fail.
    fn note(&self, failure: Option<&Error>) {
        match (failure, self.is_failing.swap(failure.is_some(), Relaxed)) {
            (Some(error), false) => tracing::error!(
                error = crate::breaker::error_chain(error),
                "the shared queue does not accept entries; they wait in the spool of this process"
            ),
            (None, true) => tracing::info!("the shared queue answers again"),
            _ => {}
        }
    }

    /// Logs when the disk of the spool begins and ends to fail.
    fn note_spool(&self, failure: Option<&Error>) {
        match (failure, self.is_spool_failing.swap(failure.is_some(), Relaxed)) {
            (Some(error), false) => tracing::error!(
                error = crate::breaker::error_chain(error),
                "the spool cannot store entries: they are refused while the shared queue does not accept them"
            ),
            (None, true) => tracing::info!("the spool can store entries again"),
            _ => {}
        }
    }
}

fn unanswered_in_time(part: &str, deadline: Duration, elapsed: Elapsed) -> Error {
    Error::Unavailable { hint: format!("{part} did not answer within {deadline:?}"), source: elapsed.into() }
}

/// The id of a dead letter of the spool, as callers know it.
fn of_spool(id: &EntryId) -> EntryId {
    EntryId::new(format!("{OF_SPOOL}{id}"))
}

/// The id in the spool; `None` for an id of the shared queue.
fn in_spool(id: &EntryId) -> Option<EntryId> {
    id.as_str().strip_prefix(OF_SPOOL).map(EntryId::new)
}

/// An error of the spool with the id that the caller knows.
fn renamed(error: Error) -> Error {
    match error {
        Error::NoSuchDeadLetter { id } => Error::NoSuchDeadLetter { id: of_spool(&id) },
        Error::PayloadRemoved { id } => Error::PayloadRemoved { id: of_spool(&id) },
        other => other,
    }
}

#[async_trait]
impl Queue for SpooledQueue {
    async fn enqueue(&self, entry: Entry) -> Result<Enqueued, Error> {
        if self.is_failing.load(Relaxed) && !self.is_spool_hanging.load(Relaxed) {
            return match self.store(entry.clone()).await {
                Err(Error::Unavailable { .. } | Error::Full { .. } | Error::Refused { .. }) => {
                    self.accept(entry, DEADLINE).await
                }
                answer => answer,
            };
        }
        match self.accept(entry.clone(), DEADLINE).await {
            // The next request of the user makes it again.
            full @ Err(Error::Full { .. }) if matches!(entry.payload, Payload::Sighting(_)) => full,
            Err(Error::Unavailable { .. } | Error::Refused { .. } | Error::Full { .. } | Error::Closed) => {
                self.store(entry).await
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

    async fn dead_letter(&self, entries: &[(EntryId, String)]) -> Result<(), Error> {
        self.shared.dead_letter(entries).await
    }

    /// Adds the state of the spool to that of the shared queue. While that does not answer, to the last known one.
    async fn stats(&self) -> Result<Stats, Error> {
        let (spool, shared) = tokio::join!(self.spool.stats(), timeout(DEADLINE, self.shared.stats()));
        let (spool, shared) = (spool?, shared.ok().and_then(Result::ok));
        let is_available = shared.is_some() && !self.is_failing.load(Relaxed);
        let (shared, age_of_shared_values) = self.newest(shared);
        let stats = shared.with_spool(&spool, is_available, age_of_shared_values);
        let is_failing = self.is_spool_failing.load(Relaxed);
        Ok(Stats { spool: stats.spool.map(|spool| Spool { is_failing, ..spool }), ..stats })
    }

    async fn dead_letters(&self, after: Option<&EntryId>, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        let limit = limit.min(MAX_LISTED);
        let after_in_spool = after.map(in_spool);
        // An id of the shared queue: those of the spool were before it.
        if after_in_spool == Some(None) {
            return self.shared.dead_letters(after, limit).await;
        }
        let mut letters = self.spool.dead_letters(after_in_spool.flatten().as_ref(), limit).await?;
        for letter in &mut letters {
            letter.id = of_spool(&letter.id);
        }
        if letters.len() < limit {
            letters.extend(self.shared.dead_letters(None, limit - letters.len()).await?);
        }
        Ok(letters)
    }

    async fn find_dead_letter(&self, id: &EntryId) -> Result<DeadLetter, Error> {
        let Some(inner) = in_spool(id) else { return self.shared.find_dead_letter(id).await };
        let found = self.spool.find_dead_letter(&inner).await.map_err(renamed)?;
        Ok(DeadLetter { id: id.clone(), ..found })
    }

    async fn retry_dead_letter(&self, id: &EntryId) -> Result<(), Error> {
        match in_spool(id) {
            Some(inner) => self.spool.retry_dead_letter(&inner).await.map_err(renamed),
            None => self.shared.retry_dead_letter(id).await,
        }
    }

    async fn drop_dead_letter(&self, id: &EntryId) -> Result<(), Error> {
        match in_spool(id) {
            Some(inner) => self.spool.drop_dead_letter(&inner).await.map_err(renamed),
            None => self.shared.drop_dead_letter(id).await,
        }
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
