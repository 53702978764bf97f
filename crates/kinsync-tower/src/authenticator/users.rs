//! Users as requests see them: a bounded cache in front of loads that share calls of the store.
//!
//! A user who is missing is made through the one door, with the lowest version, so any number of processes may do it
//! at once. Who asks waits for its own deadline only; the load goes on and serves the next request.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use kinde::bearer::AccessToken;
use kinsync_core::{Micros, Observation, UserDocument, UserId};
use kinsync_engine::{
    apply::apply,
    breaker::{self, Breaker},
    clock::Clock,
    sighting::Sighting,
    store::{Error, Row, Store},
};
use quick_cache::sync::{Cache, EntryAction, EntryResult};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Config, claims::Claims};
use crate::document::Json;

/// Users for whom requests wait, in one load.
const BATCH: usize = 256;
/// Users for whom nobody waits, in one load.
const GATHERED: usize = 4096;
/// Users that may wait to be loaded; more are degraded at once.
const WAITING: usize = 16_384;
/// How long users for whom nobody waits gather: one load of many costs the store a fraction of many loads.
const GATHER: Duration = Duration::from_millis(50);
/// Calls of the store for more than this are failures. Longer than any request waits: what is being made is finished.
const PATIENCE: Duration = Duration::from_secs(2);

/// A user as stored a moment ago.
pub(crate) struct CachedUser {
    pub(crate) document: Arc<UserDocument>,
    /// Made when first asked for.
    json: OnceLock<Json>,
    /// Here too, so that a usual request need not touch the document.
    pub(super) last_seen_at: Option<Micros>,
    /// Why the user may not go on.
    pub(super) refused: Option<&'static str>,
    /// Whether Kinde's profile endpoint can tell more: nothing but tokens and sign-ins has told of the user, or
    /// somebody else's row shows the address, which is given up if it is verified to be this user's.
    pub(super) is_unconfirmed: bool,
}

impl CachedUser {
    fn of(row: &Row) -> Arc<Self> {
        let document = Arc::new(row.document());
        let refused = match () {
            () if document.is_deleted => Some("deleted"),
            () if document.is_suspended => Some("suspended"),
            () => None,
        };
        let is_contested = document.email_conflict.is_some() && !row.state.has_verified_email();
        let is_unconfirmed = row.state.has_no_kinde_fields() || is_contested;
        let (last_seen_at, json) = (document.last_seen_at, OnceLock::new());
        Arc::new(Self { document, json, last_seen_at, refused, is_unconfirmed })
    }

    pub(crate) fn json(&self) -> &Json {
        self.json.get_or_init(|| Json::of(&*self.document))
    }

    /// Whether a request would see no difference.
    fn says_the_same_as(&self, other: &Self) -> bool {
        let parts = |known: &Self| (known.refused, known.is_unconfirmed);
        parts(self) == parts(other) && self.document == other.document
    }
}

/// What is known of a user at the time of a request.
pub(super) enum CacheLookup {
    /// As the store has it, or had it less than `stale_after` ago.
    Fresh(Arc<CachedUser>),
    /// The store does not answer; this is what it said before.
    Stale(Arc<CachedUser>),
    /// The store does not answer, and nothing is known.
    Miss,
}

struct Entry {
    known: Arc<CachedUser>,
    /// Before the load began: what it missed cannot be older.
    asked_at: Instant,
    refreshing: AtomicBool,
}

/// Somebody wants to know this user.
#[derive(Debug)]
struct LoadRequest {
    user: UserId,
    token: Arc<AccessToken>,
    /// Dropped unanswered when the store did not answer.
    answer: Option<oneshot::Sender<Arc<CachedUser>>>,
}

impl std::fmt::Debug for CachedUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedUser").field("refused", &self.refused).finish_non_exhaustive()
    }
}

pub(super) struct Users {
    store: Arc<dyn Store>,
    breaker: Breaker,
    claims: Arc<dyn Claims>,
    clock: Clock,
    cache: Cache<Arc<str>, Arc<Entry>>,
    wanted: mpsc::Sender<LoadRequest>,
    aged: mpsc::Sender<LoadRequest>,
    refresh_after: Duration,
    stale_after: Duration,
}

/// Who is to be loaded.
#[derive(Debug)]
pub(super) struct LoadQueues {
    /// For requests that wait.
    wanted: mpsc::Receiver<LoadRequest>,
    /// Still fresh enough to be served, but not for long.
    aged: mpsc::Receiver<LoadRequest>,
}

/// All who wait for one user in a batch.
struct Waiters {
    token: Arc<AccessToken>,
    answers: Vec<oneshot::Sender<Arc<CachedUser>>>,
}

impl Users {
    pub(super) fn new(
        store: Arc<dyn Store>,
        claims: Arc<dyn Claims>,
        clock: Clock,
        config: &Config,
    ) -> (Self, LoadQueues) {
        let (wanted, waiting) = mpsc::channel(WAITING);
        let (aged, aging) = mpsc::channel(WAITING);
        // Requests come back to a store sooner than the projector does: a probe costs one call.
        let probing = breaker::Config {
            max_pause: Duration::from_secs(1),
            probe_deadline: PATIENCE,
            ..breaker::Config::default()
        };
        let users = Self {
            store,
            breaker: Breaker::new("store_login", probing),
            claims,
            clock,
            cache: Cache::new(config.cached_users.max(1)),
            wanted,
            aged,
            refresh_after: config.refresh_after,
            stale_after: config.stale_after,
        };
        (users, LoadQueues { wanted: waiting, aged: aging })
    }

    pub(super) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// The user of a token; made, if the store does not have it. Waits for the deadline at most. Cancel safe.
    pub(super) async fn find(&self, token: &Arc<AccessToken>, deadline: Duration) -> CacheLookup {
        let entry = self.cache.get(token.subject.as_str());
        if let Some(entry) = &entry {
            let age = entry.asked_at.elapsed();
            if age < self.stale_after {
                if age >= self.refresh_after && !entry.refreshing.swap(true, Relaxed) {
                    self.want(token, None);
                }
                return CacheLookup::Fresh(Arc::clone(&entry.known));
            }
        }
        let (answer, answered) = oneshot::channel();
        self.want(token, Some(answer));
        match (timeout(deadline, answered).await, entry) {
            (Ok(Ok(known)), _) => CacheLookup::Fresh(known),
            (_, Some(entry)) => CacheLookup::Stale(Arc::clone(&entry.known)),
            (_, None) => CacheLookup::Miss,
        }
    }

    /// What is in memory of this user, however old.
    pub(super) fn peek(&self, user: &str) -> Option<Arc<CachedUser>> {
        self.cache.peek(user).map(|entry| Arc::clone(&entry.known))
    }

    /// Whether the store is not known to be away.
    pub(super) fn are_reachable(&self) -> bool {
        self.breaker.state() != breaker::State::Open
    }

    /// Joins what was learned of one user into the store, and answers the user as stored then.
    pub(super) async fn tell(&self, told: Observation) -> Option<Arc<CachedUser>> {
        if !self.breaker.try_ready() {
            return None;
        }
        match timeout(PATIENCE, self.join(told)).await {
            Ok(Ok(known)) => {
                self.breaker.succeeded();
                return known;
            }
            Ok(Err(error)) => self.breaker.failed(&error),
            Err(passed) => self.breaker.failed(&passed),
        }
        None
    }

    async fn join(&self, told: Observation) -> Result<Option<Arc<CachedUser>>, Error> {
        let user = told.user.clone();
        apply(&*self.store, [told], self.clock.now()).await?;
        let asked_at = Instant::now();
        let row = self.store.load(&[user]).await?.pop().flatten();
        Ok(row.map(|row| self.remember(&row, asked_at)))
    }

    fn existence(&self, user: &UserId, token: &AccessToken, now: Micros) -> Observation {
        Sighting { user: user.clone(), profile: self.claims.profile(token), seen_at: now }.existence()
    }

    fn want(&self, token: &Arc<AccessToken>, answer: Option<oneshot::Sender<Arc<CachedUser>>>) {
        if let Ok(user) = UserId::parse(&token.subject) {
            let loads = if answer.is_some() { &self.wanted } else { &self.aged };
            // Nobody takes it, or too many wait: who waits is degraded, who has aged is wanted again when stale.
            _ = loads.try_send(LoadRequest { user, token: Arc::clone(token), answer });
        }
    }

    /// Loads what is wanted until told to stop. A slow call holds up one of the four lanes for requests that wait.
    pub(super) async fn run(&self, loads: LoadQueues, stop: &CancellationToken) {
        let (wanted, aged) = (Mutex::new(loads.wanted), Mutex::new(loads.aged));
        let lane = || self.lane(&wanted, Duration::ZERO, BATCH, stop);
        tokio::join!(lane(), lane(), lane(), lane(), self.lane(&aged, GATHER, GATHERED, stop));
    }

    async fn lane(
        &self,
        loads: &Mutex<mpsc::Receiver<LoadRequest>>,
        gather: Duration,
        limit: usize,
        stop: &CancellationToken,
    ) {
        let next = async || {
            let mut batch = Vec::new();
            if !gather.is_zero() {
                sleep(gather).await;
            }
            loads.lock().await.recv_many(&mut batch, limit).await;
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
    async fn load(&self, batch: Vec<LoadRequest>) -> Result<(), Error> {
        let mut waiting = by_user(batch);
        self.answer_stored(&mut waiting).await?;
        if waiting.is_empty() {
            return Ok(());
        }
        let (asked_at, now) = (Instant::now(), self.clock.now());
        let made = waiting.iter().map(|(user, waiting)| self.existence(user, &waiting.token, now));
        let applied = apply(&*self.store, made, now).await?;
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

    async fn answer_stored(&self, waiting: &mut HashMap<UserId, Waiters>) -> Result<(), Error> {
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

    /// What is now known of this user: the row, unless a load that began later has answered before.
    fn remember(&self, row: &Row, asked_at: Instant) -> Arc<CachedUser> {
        let known = CachedUser::of(row);
        let entry =
            |known: Arc<CachedUser>| Arc::new(Entry { known, asked_at, refreshing: AtomicBool::new(false) });
        let update = |_: &Arc<str>, there: &mut Arc<Entry>| {
            if there.asked_at <= asked_at {
                // What was made of the document before stays good as long as it is the same.
                let same = there.known.says_the_same_as(&known);
                *there = entry(Arc::clone(if same { &there.known } else { &known }));
            }
            EntryAction::Retain(Arc::clone(&there.known))
        };
        match self.cache.entry(&Arc::<str>::from(row.id.as_str()), None, update) {
            EntryResult::Retained(newest) => newest,
            EntryResult::Vacant(place) => {
                // Only a place that was taken from us refuses: then somebody else has answered.
                _ = place.insert(entry(Arc::clone(&known)));
                known
            }
            _ => known,
        }
    }

    fn answer(&self, row: &Row, asked_at: Instant, waiting: &mut HashMap<UserId, Waiters>) {
        let known = self.remember(row, asked_at);
        for answer in waiting.remove(&row.id).into_iter().flat_map(|waiting| waiting.answers) {
            // Who is gone does not need it.
            _ = answer.send(Arc::clone(&known));
        }
    }
}

fn by_user(batch: Vec<LoadRequest>) -> HashMap<UserId, Waiters> {
    let mut waiting: HashMap<UserId, Waiters> = HashMap::with_capacity(batch.len());
    for LoadRequest { user, token, answer } in batch {
        let of_user = waiting.entry(user).or_insert_with(|| Waiters { token, answers: Vec::new() });
        of_user.answers.extend(answer);
    }
    waiting
}

#[cfg(test)]
mod tests {
    use kinsync_core::{Source, Version, What};
    use kinsync_engine::store::embedded::EmbeddedStore;

    use super::*;

    #[tokio::test]
    async fn a_load_that_began_earlier_and_ends_later_does_not_bring_a_deleted_user_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(EmbeddedStore::open(folder.path()).unwrap());
        let claims = Arc::new(super::super::claims::Email);
        let (users, _loads) = Users::new(store, claims, Clock::system(), &Config::default());
        let (earlier, later) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let live = Row::unknown(UserId::parse("kp_ada").unwrap());
        let deletion = Observation {
            user: live.id.clone(),
            version: Version::event(Micros(1), "event_1"),
            source: Source::Webhook,
            what: What::Deleted,
        };
        let deleted = Row { state: live.state.clone().observe(&deletion), ..live.clone() };
        assert_eq!(users.remember(&deleted, later).refused, Some("deleted"));
        assert_eq!(users.remember(&live, earlier).refused, Some("deleted"), "who waits hears the newest");
        assert_eq!(users.peek("kp_ada").unwrap().refused, Some("deleted"));
        assert_eq!(users.remember(&live, later + Duration::from_secs(1)).refused, None);
    }
}
