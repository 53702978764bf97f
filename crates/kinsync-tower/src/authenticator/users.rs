//! Users for requests: a bounded cache in front of loads that share calls of the store.
//!
//! A missing user is created through `apply` with the lowest version, so that any number of processes may do it at the
//! same time. A request waits for its own deadline only; the load continues and serves the next request.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use kinde::bearer::AccessToken;
use kinsync_core::{Micros, Observation, UserId};
use kinsync_engine::{
    Clock,
    internal::{
        apply::apply,
        breaker::{self, Breaker, Failure, State},
        known_users::{KnownUser, KnownUsers},
        pending_checks::PendingChecks,
        sighting::Sighting,
        store::{Digest, Error, Reloaded, Store},
    },
};
use metrics::Counter;
use quick_cache::sync::{Cache, EntryAction, EntryResult};
use tokio::{
    sync::{
        Mutex,
        broadcast::{self, error::RecvError},
        mpsc, oneshot, watch,
    },
    time::{Instant, error::Elapsed, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Config, cached_user::CachedUser, claims::Claims};
use crate::problem::chain;

/// Users per load while requests wait for them.
const BATCH: usize = 256;
/// Users per background reload.
const RELOAD_BATCH: usize = 4096;
/// Capacity of each load queue. Requests above it are degraded at once.
const QUEUE_CAPACITY: usize = 16_384;
/// Time to collect background reloads: one call for many users costs the store a fraction of many calls.
const COLLECT: Duration = Duration::from_millis(50);
/// Time after the start in which requests wait for a store that is not prepared yet, instead of being degraded at once.
const COLD_START: Duration = Duration::from_secs(15);
/// Interval of the probes while the breaker is open.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Time after which a call of the store counts as failed. Longer than any request waits, so that a creation is not cut off.
const CALL_DEADLINE: Duration = Duration::from_secs(2);

/// Result of a lookup for a request.
pub(super) enum CacheLookup {
    /// As stored less than `stale_after` ago.
    Fresh(Arc<CachedUser>),
    /// The store did not answer in time; the last loaded value.
    Stale(Arc<CachedUser>),
    /// The store did not answer in time, and the cache has no value.
    Miss,
}

#[derive(Clone)]
struct Entry {
    user: Arc<CachedUser>,
    /// Time before the load began: changes that it missed are later.
    loaded_at: Instant,
    /// For the next reload.
    digest: Option<Digest>,
}

impl Entry {
    fn of(user: &KnownUser, loaded_at: Instant, digest: Option<Digest>) -> Self {
        Self { user: CachedUser::of(user), loaded_at, digest }
    }
}

/// A request to load one user.
#[derive(Debug)]
struct LoadRequest {
    user: UserId,
    token: Arc<AccessToken>,
    /// Receives the user; dropped if the store does not answer.
    reply: Option<oneshot::Sender<Arc<CachedUser>>>,
}

pub(super) struct Users {
    store: Arc<dyn Store>,
    known: KnownUsers,
    breaker: Breaker,
    claims: Arc<dyn Claims>,
    clock: Clock,
    created: Counter,
    cache: Cache<UserId, Entry>,
    loads: mpsc::Sender<LoadRequest>,
    reloads: mpsc::Sender<LoadRequest>,
    refresh_after: Duration,
    stale_after: Duration,
    started_at: Instant,
    /// Why the store is not prepared yet.
    unprepared: watch::Receiver<Option<Failure>>,
}

/// The queues of pending loads.
#[derive(Debug)]
pub(super) struct LoadQueues {
    /// Loads that requests wait for.
    loads: Mutex<mpsc::Receiver<LoadRequest>>,
    /// Background reloads of cached users.
    reloads: Mutex<mpsc::Receiver<LoadRequest>>,
}

/// All requests that wait for one user of a batch.
struct Waiters {
    token: Arc<AccessToken>,
    replies: Vec<oneshot::Sender<Arc<CachedUser>>>,
}

impl Users {
    pub(super) fn new(
        store: Arc<dyn Store>,
        unprepared: watch::Receiver<Option<Failure>>,
        claims: Arc<dyn Claims>,
        clock: Clock,
        created: Counter,
        config: &Config,
    ) -> (Self, LoadQueues) {
        let (loads, pending_loads) = mpsc::channel(QUEUE_CAPACITY);
        let (reloads, pending_reloads) = mpsc::channel(QUEUE_CAPACITY);
        // Shorter pauses than the projector has: a probe costs one call, and requests wait for its outcome.
        let breaker = breaker::Config {
            max_pause: Duration::from_secs(1),
            probe_deadline: CALL_DEADLINE,
            ..breaker::Config::default()
        };
        let users = Self {
            store,
            known: KnownUsers::default(),
            breaker: Breaker::new("store", "authenticator", breaker),
            claims,
            clock,
            created,
            cache: Cache::new(config.cached_users.max(1)),
            loads,
            reloads,
            refresh_after: config.refresh_after,
            stale_after: config.stale_after,
            started_at: Instant::now(),
            unprepared,
        };
        (users, LoadQueues { loads: Mutex::new(pending_loads), reloads: Mutex::new(pending_reloads) })
    }

    pub(super) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Returns the user of a token, created if the store does not have it. Waits for the deadline at most. Cancel safe.
    pub(super) async fn lookup(&self, token: &Arc<AccessToken>, deadline: Duration) -> CacheLookup {
        let mut stale = None;
        if let Some(entry) = self.cache.get(token.subject.as_str()) {
            let age = entry.loaded_at.elapsed();
            if age < self.stale_after {
                if age >= self.refresh_after && !entry.user.is_reloading.swap(true, Relaxed) {
                    self.request_load(token, None);
                }
                return CacheLookup::Fresh(entry.user);
            }
            stale = Some(entry.user);
        }
        match (timeout(deadline, self.loaded(token)).await.ok().flatten(), stale) {
            (Some(user), _) => CacheLookup::Fresh(user),
            (None, Some(user)) => CacheLookup::Stale(user),
            (None, None) => CacheLookup::Miss,
        }
    }

    /// Returns the user as loaded; `None` if the store does not answer. Soon after the start this waits, until the caller's
    /// deadline, for a store that is not prepared yet.
    async fn loaded(&self, token: &Arc<AccessToken>) -> Option<Arc<CachedUser>> {
        if self.started_at.elapsed() < COLD_START {
            self.unprepared.clone().wait_for(Option::is_none).await.ok()?;
        }
        let (reply, loaded) = oneshot::channel();
        self.request_load(token, Some(reply));
        loaded.await.ok()
    }

    /// Returns the cached user, however old.
    pub(super) fn peek(&self, user: &str) -> Option<Arc<CachedUser>> {
        self.cache.peek(user).map(|entry| entry.user)
    }

    /// Drops erased users from the cache until the token is cancelled.
    pub(super) async fn remove_erased(
        &self,
        erased: &Mutex<broadcast::Receiver<UserId>>,
        stop: &CancellationToken,
    ) {
        let mut erased = erased.lock().await;
        loop {
            match stop.run_until_cancelled(erased.recv()).await {
                Some(Ok(user)) => _ = self.cache.remove(user.as_str()),
                Some(Err(RecvError::Lagged(_))) => self.cache.clear(),
                Some(Err(RecvError::Closed)) | None => return,
            }
        }
    }

    /// Whether the breaker lets calls of the store through.
    pub(super) fn is_store_reachable(&self) -> bool {
        self.breaker.state() != breaker::State::Open
    }

    /// Requests a check of a user against Kinde. A failure is only logged: the next refused profile requests it again.
    pub(super) async fn request_check(&self, user: &str) {
        let Ok(user) = UserId::parse(user) else { return };
        let requested =
            timeout(CALL_DEADLINE, PendingChecks::request(&*self.store, std::slice::from_ref(&user))).await;
        if let Ok(Err(error)) = requested {
            tracing::debug!(user = user.as_str(), error = chain(&error), "a check could not be requested");
        }
    }

    /// Applies an observation of one user and returns the user as stored; `None` if the store failed. A store that does not answer in
    /// time opens the breaker, and the call continues up to the deadlines of the store: the log may contain the observation already,
    /// and nothing repeats it. For the same reason the caller runs this on a task of its own.
    pub(super) async fn apply(&self, observation: Observation) -> Option<Arc<CachedUser>> {
        if !self.breaker.try_ready() {
            return None;
        }
        let mut call = pin!(self.apply_and_load(observation));
        match timeout(CALL_DEADLINE, &mut call).await {
            Ok(Ok(user)) => {
                self.breaker.succeeded();
                return user;
            }
            Ok(Err(error)) => self.breaker.failed(&error),
            Err(elapsed) => {
                self.breaker.failed(&elapsed);
                return call.await.ok().flatten();
            }
        }
        None
    }

    async fn apply_and_load(&self, observation: Observation) -> Result<Option<Arc<CachedUser>>, Error> {
        let user = observation.user.clone();
        apply(&*self.store, [observation], self.clock.now()).await?;
        let loaded_at = Instant::now();
        let user = self.known.load(&*self.store, &[user]).await?.pop().flatten();
        Ok(user.map(|user| self.remember(&user.row.id, Entry::of(&user, loaded_at, None))))
    }

    fn existence(&self, user: &UserId, token: &AccessToken, now: Micros) -> Observation {
        Sighting { user: user.clone(), profile: self.claims.profile(token), seen_at: now }.existence()
    }

    fn request_load(&self, token: &Arc<AccessToken>, reply: Option<oneshot::Sender<Arc<CachedUser>>>) {
        if let Ok(user) = UserId::parse(&token.subject) {
            let queue = if reply.is_some() { &self.loads } else { &self.reloads };
            // If the queue is full or closed, a waiting request is degraded, and a reload is requested again once stale.
            _ = queue.try_send(LoadRequest { user, token: Arc::clone(token), reply });
        }
    }

    /// Loads users, and probes the store after failures, until the token is cancelled. A slow call delays one of the four lanes for waiting requests.
    pub(super) async fn run(&self, queues: &LoadQueues, stop: &CancellationToken) {
        let LoadQueues { loads, reloads } = queues;
        let lane = || self.lane(loads, Duration::ZERO, BATCH, stop);
        let reload = self.lane(reloads, COLLECT, RELOAD_BATCH, stop);
        tokio::join!(lane(), lane(), lane(), lane(), reload, self.probe(stop));
    }

    /// Closes the breaker after an outage also without requests: `/health` shows it.
    async fn probe(&self, stop: &CancellationToken) {
        while stop.run_until_cancelled(sleep(PROBE_EVERY)).await.is_some() {
            if self.breaker.state() != State::Closed && self.breaker.try_ready() {
                self.report(timeout(CALL_DEADLINE, self.store.ping()).await);
            }
        }
    }

    fn report(&self, outcome: Result<Result<(), Error>, Elapsed>) {
        match outcome {
            Ok(Ok(())) => self.breaker.succeeded(),
            Ok(Err(error)) => self.breaker.failed(&error),
            Err(elapsed) => self.breaker.failed(&elapsed),
        }
    }

    async fn lane(
        &self,
        queue: &Mutex<mpsc::Receiver<LoadRequest>>,
        collect: Duration,
        limit: usize,
        stop: &CancellationToken,
    ) {
        let next = async || {
            let mut batch = Vec::new();
            if !collect.is_zero() {
                sleep(collect).await;
            }
            queue.lock().await.recv_many(&mut batch, limit).await;
            batch
        };
        while let Some(batch) = stop.run_until_cancelled(next()).await {
            if self.breaker.try_ready() {
                self.report(timeout(CALL_DEADLINE, self.load(batch)).await);
            }
        }
    }

    /// Loads the users of a batch and replies; then creates the missing ones.
    async fn load(&self, batch: Vec<LoadRequest>) -> Result<(), Error> {
        let mut waiters = by_user(batch);
        self.reply_with_stored(&mut waiters).await?;
        if waiters.is_empty() {
            return Ok(());
        }
        let (loaded_at, now) = (Instant::now(), self.clock.now());
        let missing = waiters.iter().map(|(user, waiters)| self.existence(user, &waiters.token, now));
        let applied = apply(&*self.store, missing, now).await?;
        self.created.increment(applied.changed.len() as u64);
        for row in applied.changed {
            let user = KnownUser { row, is_document_refused: false };
            self.reply(&user.row.id, Entry::of(&user, loaded_at, None), &mut waiters);
        }
        for (user, reason) in applied.failed {
            tracing::error!(user = user.as_str(), reason, "storing the user of a request failed");
            waiters.remove(&user);
        }
        if !applied.refused.is_empty() {
            self.known.expect_refused();
        }
        // Another process has created the others in the meantime.
        self.reply_with_stored(&mut waiters).await
    }

    async fn reply_with_stored(&self, waiters: &mut HashMap<UserId, Waiters>) -> Result<(), Error> {
        if waiters.is_empty() {
            return Ok(());
        }
        let loaded_at = Instant::now();
        let cached: Vec<Option<Entry>> = waiters.keys().map(|id| self.cache.peek(id.as_str())).collect();
        let digests = cached.iter().map(|entry| entry.as_ref()?.digest);
        let users: Vec<_> = waiters.keys().cloned().zip(digests).collect();
        let found = self.known.reload(&*self.store, &users).await?;
        for (((id, _), cached), found) in users.iter().zip(cached).zip(found) {
            let entry = match (found, cached) {
                (Reloaded::Loaded(user, digest), _) => Entry::of(&user, loaded_at, digest),
                (Reloaded::Unchanged, Some(cached)) => Entry { loaded_at, ..cached },
                (Reloaded::Absent | Reloaded::Unchanged, _) => continue,
            };
            self.reply(id, entry, waiters);
        }
        Ok(())
    }

    /// Caches a loaded user, unless a load that began later has finished before. Returns the newer user.
    fn remember(&self, id: &UserId, loaded: Entry) -> Arc<CachedUser> {
        let user = Arc::clone(&loaded.user);
        let update = |_: &UserId, cached: &mut Entry| {
            if cached.loaded_at <= loaded.loaded_at {
                // An equivalent user keeps its serialized JSON.
                let is_equivalent = Arc::ptr_eq(&cached.user, &user) || cached.user.is_equivalent_to(&user);
                let user = if is_equivalent { &cached.user } else { &user };
                *cached = Entry { user: Arc::clone(user), ..loaded };
                cached.user.is_reloading.store(false, Relaxed);
            }
            EntryAction::Retain(Arc::clone(&cached.user))
        };
        match self.cache.entry(id, None, update) {
            EntryResult::Retained(newest) => newest,
            EntryResult::Vacant(place) => {
                user.is_reloading.store(false, Relaxed);
                // Fails only if another load has filled the entry since.
                _ = place.insert(loaded);
                user
            }
            _ => user,
        }
    }

    fn reply(&self, id: &UserId, loaded: Entry, waiters: &mut HashMap<UserId, Waiters>) {
        let user = self.remember(id, loaded);
        for reply in waiters.remove(id).into_iter().flat_map(|waiters| waiters.replies) {
            // The request may have ended.
            _ = reply.send(Arc::clone(&user));
        }
    }
}

fn by_user(batch: Vec<LoadRequest>) -> HashMap<UserId, Waiters> {
    let mut waiters: HashMap<UserId, Waiters> = HashMap::with_capacity(batch.len());
    for LoadRequest { user, token, reply } in batch {
        let of_user = waiters.entry(user).or_insert_with(|| Waiters { token, replies: Vec::new() });
        of_user.replies.extend(reply);
    }
    waiters
}

#[cfg(test)]
mod tests {
    use kinsync_core::{Field, Profile, Properties, Source, Value, Version, What};
    use kinsync_engine::internal::store::{Row, embedded::EmbeddedStore};

    use super::*;

    #[test]
    fn properties_are_for_the_application_and_not_for_the_client_of_the_user() {
        let row = Row::unknown(UserId::parse("kp_ada").unwrap());
        let at = Version::event(Micros(1), "event_1");
        let properties = Properties::read([("secret".to_owned(), Some("s3cr3t".to_owned()))], &at);
        let profile = Profile::new().with(Field::Properties, Value::Properties(properties));
        let what = What::Fields(profile.with(Field::FirstName, "Ada"));
        let read = Observation { user: row.id.clone(), version: at, source: Source::Reconcile, what };
        let row = Row { state: row.state.clone().observe(&read), ..row };
        let user = CachedUser::of(&KnownUser { row, is_document_refused: false });
        assert_eq!(user.document.properties.as_ref().unwrap()["secret"], "s3cr3t");
        let json = String::from_utf8(user.json().body().to_vec()).unwrap();
        assert!(json.contains("Ada") && !json.contains("properties"), "{json}");
    }

    #[tokio::test]
    async fn a_load_that_began_earlier_and_ends_later_does_not_restore_a_deleted_user() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(EmbeddedStore::open(folder.path()).unwrap());
        let claims = Arc::new(super::super::claims::Email);
        let (_, prepared) = watch::channel(None);
        let (users, _loads) =
            Users::new(store, prepared, claims, Clock::system(), Counter::noop(), &Config::default());
        let (earlier, later) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let known = |row| KnownUser { row, is_document_refused: false };
        let remember =
            |user: &KnownUser, loaded_at| users.remember(&user.row.id, Entry::of(user, loaded_at, None));
        let live = Row::unknown(UserId::parse("kp_ada").unwrap());
        let deletion = Observation {
            user: live.id.clone(),
            version: Version::event(Micros(1), "event_1"),
            source: Source::Webhook,
            what: What::Deleted,
        };
        let deleted = known(Row { state: live.state.clone().observe(&deletion), ..live.clone() });
        let live = known(live);
        assert_eq!(remember(&deleted, later).refused, Some("deleted"));
        assert_eq!(
            remember(&live, earlier).refused,
            Some("deleted"),
            "a waiting request gets the newest value"
        );
        assert_eq!(users.peek("kp_ada").unwrap().refused, Some("deleted"));
        assert_eq!(remember(&live, later + Duration::from_secs(1)).refused, None);
    }
}
