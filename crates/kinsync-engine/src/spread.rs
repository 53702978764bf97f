//! Spreads changed organizations, roles and permissions to their own documents and to those of the users that refer to them.
//!
//! The write of a changed record marks it ([`crate::directory`]). This module walks the users of a marked record page by page,
//! writes their rows again, and removes the mark if no newer change was made meanwhile. It runs beside the projector, so an
//! organization with very many members delays no event.
//!
//! Any number of processes may do this at the same time: a repeated write of a row changes nothing. A walk of more than one page
//! has a durable position, which is also the claim of the process that works on it; another process continues a walk
//! after its position has not moved for a while, or at once if the other one was stopped. A user with a row that cannot be written
//! is set aside and tried again apart. What is not spread yet is joined into each load for a request ([`crate::known_users`]).

mod position;
mod rewrite;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use self::position::{Claims, Position};
use crate::{
    breaker::error_chain,
    clock::Clock,
    directory, random,
    store::{Error, Store},
};

/// Longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Marked records of which one query reads the users. Most have few.
const GROUP: usize = 64;

/// Failures one after the other after which the store counts as unavailable. One failing record among a group fails this often
/// before it is alone.
const FAILURES: u32 = GROUP.ilog2() + 3;

/// Interval of the search while other processes have claimed what is left.
const PENDING_POLL: Duration = Duration::from_secs(1);

/// Longest time for the page in progress at the end, and to leave walks to other processes. After it they take them over later.
const END: Duration = Duration::from_secs(1);

/// Pause while other processes work on all that is left.
const WAIT: Duration = Duration::from_millis(200);

/// Settings of the spread.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Users per page.
    pub page: usize,
    /// Interval of the search for marks of processes that ended.
    pub poll_every: Duration,
    /// Time without progress after which a process continues the walk of another one.
    pub take_over_after: Duration,
    /// Interval of the attempts to write the rows that were set aside.
    pub retry_every: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            page: 200,
            poll_every: Duration::from_secs(5),
            // A page takes some 50 ms. After a kill nothing else delays the others, and two processes at one walk do no harm.
            take_over_after: Duration::from_secs(3),
            retry_every: Duration::from_secs(30),
        }
    }
}

/// What is left to do, as of a few seconds ago.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SpreadStatus {
    /// Changed organizations, roles and permissions that the documents of some users may not show yet.
    pub pending: usize,
    /// Users with a row that cannot be written.
    pub set_aside: u64,
    /// Some of them, each with the reason.
    pub examples: Vec<(String, String)>,
    /// Why the last round failed; `None` after a complete one.
    pub failure: Option<String>,
}

/// Spreads marked records. Clones of its parts may run in any number of processes.
#[derive(Debug)]
pub struct Spread {
    store: Arc<dyn Store>,
    clock: Clock,
    config: Config,
    claims: Claims,
    woken: watch::Sender<()>,
    /// Whether the walks end after the page in progress.
    is_ending: AtomicBool,
    status: watch::Sender<SpreadStatus>,
}

/// Returns whether some rows may not show yet what is known of organizations, roles and permissions.
pub(crate) async fn is_any(store: &dyn Store) -> Result<bool, Error> {
    Ok(directory::is_any_due(store).await? || rewrite::is_any_set_aside(store).await?)
}

/// A marked record with its users still to be written.
struct Walk {
    id: String,
    /// The change that the users are to show.
    change: u64,
    position: Position,
}

impl Spread {
    /// Returns a spread. [`Self::run`] starts it.
    pub fn new(store: Arc<dyn Store>, clock: Clock, config: Config) -> Self {
        let claims = Claims::new(config.take_over_after);
        let (woken, status) = (watch::Sender::new(()), watch::Sender::default());
        Self { store, clock, config, claims, woken, is_ending: AtomicBool::new(false), status }
    }

    /// Makes [`Self::run`] look for marked records at once.
    pub fn wake(&self) {
        self.woken.send_replace(());
    }

    /// Returns what is left to do.
    pub fn status(&self) -> SpreadStatus {
        self.status.borrow().clone()
    }

    /// Runs until `stop` is cancelled, and leaves begun walks to other processes then. Logs failures and retries with growing pauses.
    pub async fn run(&self, stop: CancellationToken) {
        self.work_until(&stop).await;
        self.release().await;
    }

    /// Leaves begun walks to other processes. Without success they take them over a few seconds later.
    pub(crate) async fn release(&self) {
        match tokio::time::timeout(END, self.claims.release(&*self.store)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(error = error_chain(&error), "walks could not be left to other processes");
            }
            Err(_) => tracing::debug!("walks could not be left to other processes in time"),
        }
    }

    /// Does what is due. `None`: stopped.
    async fn round(&self, retries: bool, stop: &CancellationToken) -> Option<Result<(), Error>> {
        let mut work = Box::pin(self.work(retries));
        tokio::select! {
            done = &mut work => return Some(done),
            () = stop.cancelled() => self.is_ending.store(true, Ordering::Release),
        }
        // A cancelled write of a position may be made after the walk was left to others, and would claim it again.
        _ = tokio::time::timeout(END, work).await;
        None
    }

    async fn work_until(&self, stop: &CancellationToken) {
        let (mut woken, mut failures) = (self.woken.subscribe(), 0_u32);
        let mut retried = None;
        loop {
            woken.mark_unchanged();
            let is_due = retried.is_none_or(|at: Instant| at.elapsed() >= self.config.retry_every);
            let Some(done) = self.round(is_due, stop).await else { return };
            retried = retried.filter(|_| !is_due).or_else(|| Some(Instant::now()));
            failures = if done.is_ok() { 0 } else { failures + 1 };
            self.report(done.err());
            // What is pending after a round without a failure was claimed by another process, which may have ended.
            let poll_every = if self.status().pending > 0 { PENDING_POLL } else { LONGEST_PAUSE };
            let poll_every = self.config.poll_every.min(poll_every);
            let pause = (poll_every * (1 << failures.min(10))).min(LONGEST_PAUSE);
            tokio::select! {
                () = tokio::time::sleep(random::jitter(pause, 0.5..=1.0)) => {}
                // An event does not cause a call of a failing store.
                _ = woken.changed(), if failures == 0 => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn report(&self, failure: Option<Error>) {
        let failure = failure.map(|error| error_chain(&error));
        if let Some(cause) = failure.as_ref().filter(|cause| self.status().failure.as_ref() != Some(*cause)) {
            tracing::warn!(
                error = cause,
                "documents of some users do not show a changed organization, role or permission yet"
            );
        }
        self.status.send_modify(|status| status.failure = failure);
    }

    async fn work(&self, retries: bool) -> Result<(), Error> {
        // First: what is set aside must not wait for walks, which may be long.
        if retries {
            self.retry_set_aside().await?;
        }
        self.walk_all().await
    }

    /// Writes the rows of all users of marked records, except where another process does it. Returns when none is left that did not
    /// fail.
    ///
    /// # Errors
    /// Fails when the store fails. A repetition continues.
    pub(crate) async fn walk_all(&self) -> Result<(), Error> {
        let mut failed = Failed::default();
        loop {
            let due = directory::due(&*self.store).await?;
            self.status.send_modify(|status| status.pending = due.len());
            let mut walks = self.claims.open(&*self.store, due).await?;
            walks.retain(|walk| !failed.walks.contains(&walk.id));
            // In no fixed order: walks that fail end a round, and must not be before the same others each time.
            walks.sort_by_cached_key(|_| random::number::<u64>());
            if walks.is_empty() || self.is_ending.load(Ordering::Acquire) {
                return failed.newest.map_or(Ok(()), Err);
            }
            // New ones first, and one page of each other one in turn: a small organization does not wait for a large one.
            let (begun, new): (Vec<Walk>, Vec<Walk>) =
                walks.into_iter().partition(|walk| walk.position.is_begun);
            self.begin(new, &mut failed).await?;
            for walk in begun {
                if self.is_ending.load(Ordering::Acquire) {
                    break;
                }
                match self.next_page(&walk).await {
                    Ok(()) => failed.in_a_row = 0,
                    Err(error) => failed.add(&[walk], error)?,
                }
            }
        }
    }

    /// Waits until no record is marked, and works on what no other process works on.
    ///
    /// # Errors
    /// Fails when the store fails, or when rows cannot be written. A repetition continues.
    pub(crate) async fn finish(&self) -> Result<(), Error> {
        loop {
            self.walk_all().await?;
            if self.status.borrow().pending == 0 {
                return Ok(());
            }
            tokio::time::sleep(random::jitter(WAIT, 0.5..=1.0)).await;
        }
    }

    /// Spreads records with few users together, and claims the others.
    async fn begin(&self, walks: Vec<Walk>, failed: &mut Failed) -> Result<(), Error> {
        let mut groups = vec![walks];
        while let Some(mut group) = groups.pop().filter(|_| !self.is_ending.load(Ordering::Acquire)) {
            let outcome = match group.as_slice() {
                [] => continue,
                [_, ..] if group.len() > GROUP => Ok(false),
                group => self.only_page(group).await,
            };
            match (outcome, group.as_slice()) {
                (Ok(true), _) => failed.in_a_row = 0,
                (Ok(false), [walk]) => self.claims.claim(&*self.store, walk).await?,
                (Err(error), group @ [_]) => failed.add(group, error)?,
                // One of them has many users, or users that fail.
                (outcome, _) => {
                    outcome.map_or_else(|error| failed.add(&[], error), |_| Ok(()))?;
                    let half = group.split_off(group.len() / 2);
                    groups.extend([half, group]);
                }
            }
        }
        Ok(())
    }

    /// Writes the rows of all users of these records if they are fewer than a page. Returns whether they are.
    async fn only_page(&self, walks: &[Walk]) -> Result<bool, Error> {
        let ids: Vec<String> = walks.iter().map(|walk| walk.id.clone()).collect();
        let users = self.store.referring(&ids, None, self.config.page).await?;
        if users.len() >= self.config.page {
            return Ok(false);
        }
        self.write_again(&users).await?;
        self.store.show_directory(&ids, self.clock.now()).await?;
        for walk in walks {
            directory::mark_spread(&*self.store, &walk.id, walk.change).await?;
        }
        Ok(true)
    }

    /// Writes the rows of the next users, and stores the new position.
    async fn next_page(&self, walk: &Walk) -> Result<(), Error> {
        let after = walk.position.after.as_ref();
        let users = self.store.referring(std::slice::from_ref(&walk.id), after, self.config.page).await?;
        self.write_again(&users).await?;
        if users.len() >= self.config.page {
            return self.claims.advance(&*self.store, walk, users.last()).await;
        }
        self.store.show_directory(std::slice::from_ref(&walk.id), self.clock.now()).await?;
        // A kill in between repeats the pages. In the other order it would leave a position that nothing removes.
        self.claims.finish(&*self.store, walk).await?;
        directory::mark_spread(&*self.store, &walk.id, walk.change).await
    }
}

/// Walks that failed in a round.
#[derive(Default)]
struct Failed {
    walks: HashSet<String>,
    newest: Option<Error>,
    in_a_row: u32,
}

impl Failed {
    /// Adds a failure, and leaves out the walk if it is about a single one. Returns the error if nothing but failures occurred
    /// lately: then the store fails, and no walk in particular.
    fn add(&mut self, walks: &[Walk], error: Error) -> Result<(), Error> {
        self.in_a_row += 1;
        if self.in_a_row > FAILURES {
            return Err(error);
        }
        if let [walk] = walks {
            self.walks.insert(walk.id.clone());
            self.newest = Some(error);
        }
        Ok(())
    }
}
