//! The part of each process in the erasures of all: its own queue, its caches, and the continuation of interrupted ones.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use kinsync_core::{Micros, UserId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Eraser, Error, Subjects,
    record::{self, InProgress, Reason},
};
use crate::{
    breaker::error_chain,
    log_entry::LogEntry,
    log_snapshots,
    pending_checks::PendingChecks,
    queue::{DeadLetter, EntryId, Search},
};

/// Interval of the search for erasures: a cache must not show an erased user for more than a second.
const EVERY: Duration = Duration::from_millis(500);

/// Pause between two attempts to continue an erasure.
const RETRY_EVERY: Duration = Duration::from_secs(30);

/// Time in microseconds for which the record of an erasure that is over stays, so that the other processes search their own queues once more.
const SEEN_AFTER: i64 = 60_000_000;

/// Dead letters per read.
const DEAD_LETTERS: usize = 100;

/// What this process has done.
#[derive(Default)]
struct Done {
    /// The last pass of each erasure that this process has followed in its own queue and caches.
    local: HashMap<UserId, Micros>,
    /// When this process saw that an erasure is over.
    over: HashMap<UserId, Micros>,
    tried: HashMap<UserId, Instant>,
    dead_letters: bool,
}

impl Eraser {
    /// Runs until `stop` is cancelled.
    pub(crate) async fn run(&self, stop: &CancellationToken) {
        let mut done = Done::default();
        let mut failed = false;
        loop {
            let round = Box::pin(stop.run_until_cancelled(self.round(&mut done)));
            match round.await {
                None => return,
                Some(Ok(())) => failed = false,
                Some(Err(error)) if failed => {
                    tracing::debug!(error = error_chain(&error), "an erasure failed again");
                }
                Some(Err(error)) => {
                    failed = true;
                    tracing::warn!(error = error_chain(&error), "an erasure failed; it is repeated");
                }
            }
            let pause = if failed { RETRY_EVERY / 10 } else { EVERY };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    async fn round(&self, done: &mut Done) -> Result<(), Error> {
        if !done.dead_letters {
            self.drop_dead_letters().await?;
            done.dead_letters = true;
        }
        let known = record::in_progress(&*self.store).await?;
        let users: HashSet<&UserId> = known.iter().map(|(user, _)| user).collect();
        done.local.retain(|user, _| users.contains(user));
        done.over.retain(|user, _| users.contains(user));
        // A queue that cannot be searched delays neither the rows nor the log.
        let mut failed = self.follow(&known, done).await;
        for (user, progress) in known {
            if progress.is_over() && done.local.get(&user) == Some(&progress.pass()) {
                let now = self.clock.now();
                let since = *done.over.entry(user.clone()).or_insert(now);
                if now.0 - since.0 >= SEEN_AFTER {
                    record::remove(&*self.store, &user, progress.requested_at).await?;
                }
            }
            let is_pause_over = done.tried.get(&user).is_none_or(|at| at.elapsed() >= RETRY_EVERY);
            if progress.is_due(self.clock.now()) && is_pause_over {
                done.tried.insert(user.clone(), Instant::now());
                let known = match self.known(&user).await {
                    Ok(known) => known,
                    Err(Error::NotDeleted { .. }) => {
                        // Restored by Kinde between the request and the erasure of the row.
                        self.withdraw(&user, progress.requested_at).await?;
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                let fields = progress.application_fields;
                match self.erase_all(vec![known], fields, Reason::Continued, self.clock.now()).await {
                    Ok(report) if report.refused.is_none() => {
                        done.tried.remove(&user);
                    }
                    Ok(_) => {}
                    Err(error) => failed = Err(error),
                }
            }
        }
        failed
    }

    /// Erases the users of new passes from the caches and from the queue of this process.
    async fn follow(&self, known: &[(UserId, InProgress)], done: &mut Done) -> Result<(), Error> {
        let is_new =
            |(user, progress): &&(UserId, InProgress)| done.local.get(user) != Some(&progress.pass());
        let new: Vec<_> = known.iter().filter(is_new).collect();
        for (user, _) in &new {
            // Without a cache nothing reads it.
            _ = self.erased.send(user.clone());
        }
        for (user, progress) in new {
            self.in_queue(&progress.subjects(user), Search::Remove).await?;
            done.local.insert(user.clone(), progress.pass());
        }
        Ok(())
    }

    /// Takes an erasure back. Entries of the user may have been replaced by markers: one with the state of the row explains it.
    /// Deliveries of the user were removed from queues: a check reads the user from Kinde instead.
    async fn withdraw(&self, user: &UserId, requested_at: Micros) -> Result<(), Error> {
        let store = &*self.store;
        if !record::withdraw(store, user, requested_at).await? {
            return Ok(());
        }
        let rows = store.load_to_write(std::slice::from_ref(user)).await?.into_iter();
        let now = self.clock.now();
        let snapshots: Vec<LogEntry> =
            rows.map(|row| log_snapshots::snapshot(&row.id, row.state, now)).collect();
        store.log(&snapshots).await?;
        // The log may contain the same snapshot as a marker.
        store.replace_entries(&snapshots).await?;
        PendingChecks::request(store, std::slice::from_ref(user)).await?;
        Ok(record::remove(store, user, requested_at).await?)
    }

    /// Removes dead letters of users that were erased while this process did not run.
    async fn drop_dead_letters(&self) -> Result<(), Error> {
        let mut after: Option<EntryId> = None;
        let erased = record::ErasedUsers::default();
        loop {
            let page = self.queue.dead_letters(after.as_ref(), DEAD_LETTERS).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id.clone());
            let payload = |letter: &DeadLetter| letter.payload.clone().unwrap_or_default();
            let names = page.iter().flat_map(|letter| super::subjects::strings(&payload(letter))).collect();
            let mut subjects = Subjects::default();
            for user in erased.among(&*self.store, &names).await? {
                subjects.users.extend(UserId::parse(&user).ok());
            }
            for letter in &page {
                // A letter that only names the user is about another one, and is still to be applied.
                if !subjects.users.is_empty() && subjects.are_in(&letter.scheme, payload(letter).as_bytes()) {
                    self.queue.drop_dead_letter(&letter.id).await?;
                }
            }
        }
    }
}
