//! Users as requests see them: a bounded cache in front of loads that share calls of the store.
//!
//! A user who is missing is made through the one door, with the lowest version, so any number of processes may do it
//! at once. Who asks waits for its own deadline only; the load goes on and serves the next request.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use kinde::bearer::AccessToken;
use kinsync_core::{Micros, UserDocument, UserId};
use kinsync_engine::{
    apply::apply,
    breaker::{self, Breaker},
    clock::Clock,
    sighting::Sighting,
    store::{Error, Row, Store},
};
use quick_cache::sync::Cache;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::Config;

/// Users in one call of the store.
const BATCH: usize = 256;
/// Users that may wait to be loaded; more are degraded at once.
const WAITING: usize = 16_384;
/// Calls of the store for more than this are failures. Longer than any request waits: what is being made is finished.
const PATIENCE: Duration = Duration::from_secs(2);

/// A user as stored a moment ago.
pub(super) struct Known {
    pub(super) document: Arc<UserDocument>,
    /// Why the user may not go on.
    pub(super) refused: Option<&'static str>,
}

impl Known {
    fn of(row: &Row) -> Arc<Self> {
        let document = Arc::new(row.document());
        let refused = match () {
            () if document.is_deleted => Some("deleted"),
            () if document.is_suspended => Some("suspended"),
            () => None,
        };
        Arc::new(Self { document, refused })
    }
}

/// What is known of a user at the time of a request.
pub(super) enum Found {
    /// As the store has it, or had it less than `stale_after` ago.
    Fresh(Arc<Known>),
    /// The store does not answer; this is what it said before.
    Stale(Arc<Known>),
    /// The store does not answer, and nothing is known.
    Unknown,
}

struct Entry {
    known: Arc<Known>,
    /// Before the load began: what it missed cannot be older.
    asked_at: Instant,
    refreshing: AtomicBool,
}

/// Somebody wants to know this user.
#[derive(Debug)]
pub(super) struct Wanted {
    user: UserId,
    email: Option<String>,
    /// Dropped unanswered when the store did not answer.
    answer: Option<oneshot::Sender<Arc<Known>>>,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known").field("refused", &self.refused).finish_non_exhaustive()
    }
}

pub(super) struct Users {
    store: Arc<dyn Store>,
    breaker: Breaker,
    clock: Clock,
    cache: Cache<Arc<str>, Arc<Entry>>,
    wanted: mpsc::Sender<Wanted>,
    refresh_after: Duration,
    stale_after: Duration,
}

/// All who wait for one user in a batch.
#[derive(Default)]
struct Waiting {
    email: Option<String>,
    answers: Vec<oneshot::Sender<Arc<Known>>>,
}

impl Users {
    pub(super) fn new(
        store: Arc<dyn Store>,
        clock: Clock,
        config: &Config,
    ) -> (Self, mpsc::Receiver<Wanted>) {
        let (wanted, receiver) = mpsc::channel(WAITING);
        // Requests come back to a store sooner than the projector does: a probe costs one call.
        let probing = breaker::Config {
            max_pause: Duration::from_secs(1),
            probe_deadline: PATIENCE,
            ..breaker::Config::default()
        };
        let users = Self {
            store,
            breaker: Breaker::new("store_login", probing),
            clock,
            cache: Cache::new(config.cached_users.max(1)),
            wanted,
            refresh_after: config.refresh_after,
            stale_after: config.stale_after,
        };
        (users, receiver)
    }

    pub(super) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// The user of a token; made, if the store does not have it. Waits for the deadline at most. Cancel safe.
    pub(super) async fn find(&self, token: &AccessToken, deadline: Duration) -> Found {
        let entry = self.cache.get(token.subject.as_str());
        if let Some(entry) = &entry {
            let age = entry.asked_at.elapsed();
            if age < self.stale_after {
                if age >= self.refresh_after && !entry.refreshing.swap(true, Relaxed) {
                    self.want(token, None);
                }
                return Found::Fresh(Arc::clone(&entry.known));
            }
        }
        let (answer, answered) = oneshot::channel();
        self.want(token, Some(answer));
        match (timeout(deadline, answered).await, entry) {
            (Ok(Ok(known)), _) => Found::Fresh(known),
            (_, Some(entry)) => Found::Stale(Arc::clone(&entry.known)),
            (_, None) => Found::Unknown,
        }
    }

    fn want(&self, token: &AccessToken, answer: Option<oneshot::Sender<Arc<Known>>>) {
        if let Ok(user) = UserId::parse(&token.subject) {
            // Nobody takes it, or too many wait: the answer is dropped, and the request is degraded.
            _ = self.wanted.try_send(Wanted { user, email: token.email.clone(), answer });
        }
    }

    /// Loads what is wanted until told to stop. A slow call holds up one lane of four.
    pub(super) async fn run(&self, wanted: mpsc::Receiver<Wanted>, stop: &CancellationToken) {
        let wanted = Mutex::new(wanted);
        let lane = || self.lane(&wanted, stop);
        tokio::join!(lane(), lane(), lane(), lane());
    }

    async fn lane(&self, wanted: &Mutex<mpsc::Receiver<Wanted>>, stop: &CancellationToken) {
        let next = async || {
            let mut batch = Vec::new();
            wanted.lock().await.recv_many(&mut batch, BATCH).await;
            batch
        };
        while let Some(batch) = stop.run_until_cancelled(next()).await {
            if !self.breaker.try_ready() {
                continue;
            }
            match timeout(PATIENCE, self.load(batch)).await {
                Ok(Ok(())) => self.breaker.succeeded(),
                Ok(Err(error)) => self.breaker.failed(&error),
                Err(passed) => self.breaker.failed(&passed),
            }
        }
    }

    /// Loads the users of a batch and answers; then makes those who are missing.
    async fn load(&self, batch: Vec<Wanted>) -> Result<(), Error> {
        let mut waiting = by_user(batch);
        self.answer_stored(&mut waiting).await?;
        if waiting.is_empty() {
            return Ok(());
        }
        let (asked_at, now) = (Instant::now(), self.clock.now());
        let applied =
            apply(&*self.store, waiting.iter().map(|(user, w)| existence(user, w, now)), now).await?;
        metrics::counter!("kinsync_users_created_at_login_total").increment(applied.changed.len() as u64);
        for row in &applied.changed {
            self.answer(row, asked_at, &mut waiting);
        }
        for (user, reason) in applied.rejected {
            tracing::error!(user = user.as_str(), reason, "the store refused a user who signed in");
            waiting.remove(&user);
        }
        // Somebody else made the others in the meantime.
        self.answer_stored(&mut waiting).await
    }

    async fn answer_stored(&self, waiting: &mut HashMap<UserId, Waiting>) -> Result<(), Error> {
        if waiting.is_empty() {
            return Ok(());
        }
        let asked_at = Instant::now();
        let ids: Vec<UserId> = waiting.keys().cloned().collect();
        for row in self.store.load(&ids).await?.iter().flatten() {
            self.answer(row, asked_at, waiting);
        }
        Ok(())
    }

    fn answer(&self, row: &Row, asked_at: Instant, waiting: &mut HashMap<UserId, Waiting>) {
        let known = Known::of(row);
        let entry = Entry { known: Arc::clone(&known), asked_at, refreshing: AtomicBool::new(false) };
        self.cache.insert(row.id.as_str().into(), Arc::new(entry));
        for answer in waiting.remove(&row.id).into_iter().flat_map(|waiting| waiting.answers) {
            // Who is gone does not need it.
            _ = answer.send(Arc::clone(&known));
        }
    }
}

fn by_user(batch: Vec<Wanted>) -> HashMap<UserId, Waiting> {
    let mut waiting: HashMap<UserId, Waiting> = HashMap::with_capacity(batch.len());
    for Wanted { user, email, answer } in batch {
        let of_user = waiting.entry(user).or_default();
        of_user.email = of_user.email.take().or(email);
        of_user.answers.extend(answer);
    }
    waiting
}

fn existence(user: &UserId, waiting: &Waiting, now: Micros) -> kinsync_core::Observation {
    Sighting { user: user.clone(), email: waiting.email.clone(), seen_at: now }.existence()
}
