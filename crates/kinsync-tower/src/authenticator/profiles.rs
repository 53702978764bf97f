//! Requests profiles from Kinde's profile endpoint with the user's own token, for fields that a token lacks.
//!
//! In the background for a user that is known from a token only, and on demand. The load on Kinde is bounded: one request
//! per user at a time, shared by all callers; a shortest time between requests over all users; a back-off per user; a
//! circuit breaker for the endpoint. A profile is a snapshot: an event that arrives meanwhile has the higher version.
//!
//! Callers have a deadline; a request that was sent continues without them, so that its result is stored.

use std::{
    sync::{Arc, Mutex as Lock, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use kinde::{
    account::{self, ProfileClient, UserProfile},
    bearer::AccessToken,
};
use kinsync_core::{Observation, Source, UserId, What};
use kinsync_engine::internal::{
    breaker::{self, Breaker},
    fields, snapshot,
};
use quick_cache::sync::Cache;
use tokio::{
    sync::{Mutex, OwnedMutexGuard, mpsc},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Config, cached_user::CachedUser, users::Users};
use crate::problem::chain;

/// Capacity of the background queue. Users above it are queued by their next request.
const QUEUE_CAPACITY: usize = 4096;
/// Longest wait for the next free request slot.
const MAX_SLOT_WAIT: Duration = Duration::from_secs(1);
/// Longest back-off of one user after failures, and of all users after a `429` with a reset time.
const MAX_PAUSE: Duration = Duration::from_mins(5);

/// Outcome of a refresh.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RefreshOutcome {
    /// Kinde answered, and the profile is stored.
    Now,
    /// The last refresh is recent enough.
    Recently,
    /// Kinde rejected the token: the user is suspended or deleted there, or the token was revoked. The reconciler reads the
    /// user from Kinde soon.
    Refused,
    /// Kinde or the store did not respond in time. The profile may be stored later.
    Unavailable,
}

impl RefreshOutcome {
    /// Returns the value of the header `x-kinsync-profile`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Now => "refreshed",
            Self::Recently => "recent",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A user that is known from this token only. The token is a credential: it stays in memory and is not logged.
pub(super) struct ProfileRequest {
    token: Arc<AccessToken>,
    raw: String,
}

impl std::fmt::Debug for ProfileRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ProfileRequest").field(&self.token.subject).finish()
    }
}

pub(super) struct Profiles(Arc<Shared>);

struct Shared {
    clients: Vec<(String, ProfileClient)>,
    users: Arc<Users>,
    breaker: Breaker,
    queued: mpsc::Sender<ProfileRequest>,
    states: Cache<String, Arc<Mutex<RefreshState>>>,
    spacing: Duration,
    next_slot: Lock<Instant>,
    min_age: Duration,
    max_age: Duration,
    deadline: Duration,
    tasks: TaskTracker,
}

/// State of one user's refreshes. A caller holds the lock while it requests, so that others share the result.
#[derive(Default)]
struct RefreshState {
    refreshed_at: Option<Instant>,
    /// Consecutive refreshes that left the user unconfirmed: a profile with a lower version than an event of the same
    /// time does not confirm it.
    unconfirmed: u32,
    failures: u32,
    not_before: Option<Instant>,
    /// The `exp` of the token that Kinde rejected: a newer token is tried at once.
    refused: Option<Timestamp>,
    is_queued: bool,
}

impl RefreshState {
    fn is_recent(&self, max_age: Duration) -> bool {
        self.refreshed_at.is_some_and(|at| at.elapsed() < max_age)
    }

    fn must_wait(&self, token: &AccessToken) -> bool {
        let is_newer = self.refused.is_some_and(|refused| token.expires_at > refused);
        !is_newer && self.not_before.is_some_and(|until| Instant::now() < until)
    }

    fn succeeded(&mut self, is_unconfirmed: bool) {
        let unconfirmed = if is_unconfirmed { self.unconfirmed.saturating_add(1) } else { 0 };
        *self = Self { refreshed_at: Some(Instant::now()), unconfirmed, ..Self::default() };
    }

    /// Age from which a profile is requested again in the background. Starts at `min_age` for an unconfirmed user and
    /// doubles with each refresh that leaves it unconfirmed.
    fn background_age(&self, min_age: Duration, max_age: Duration) -> Duration {
        match self.unconfirmed {
            0 => max_age,
            n => (min_age * 2_u32.pow(n.min(16))).min(max_age),
        }
    }

    fn failed(&mut self) {
        let pause = Duration::from_secs(1 << self.failures.min(9)).min(MAX_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + pause);
        self.refused = None;
    }
}

impl Profiles {
    pub(super) fn new(
        clients: Vec<(String, ProfileClient)>,
        users: Arc<Users>,
        config: &Config,
    ) -> (Self, mpsc::Receiver<ProfileRequest>) {
        let (queued, receiver) = mpsc::channel(QUEUE_CAPACITY);
        let shared = Shared {
            clients,
            users,
            breaker: Breaker::new("kinde_account_api", "authenticator", breaker::Config::default()),
            queued,
            states: Cache::new(config.cached_users.max(1)),
            spacing: config.profile_spacing,
            next_slot: Lock::new(Instant::now()),
            min_age: config.profile_min_age,
            max_age: config.profile_max_age,
            deadline: config.profile_deadline,
            tasks: TaskTracker::new(),
        };
        (Self(Arc::new(shared)), receiver)
    }

    /// Queues a background request for this user, unless one is queued, running or recent.
    pub(super) fn request(&self, token: &Arc<AccessToken>, raw: &str) {
        let state = self.0.state(&token.subject);
        // The lock is held while a request runs.
        let Ok(mut state) = state.try_lock() else { return };
        let max_age = state.background_age(self.0.min_age, self.0.max_age);
        if !state.is_queued && !state.must_wait(token) && !state.is_recent(max_age) {
            let queued = ProfileRequest { token: Arc::clone(token), raw: raw.to_owned() };
            state.is_queued = self.0.queued.try_send(queued).is_ok();
        }
    }

    /// Runs the queued requests until the token is cancelled, and then until each profile that was read is stored.
    pub(super) async fn run(&self, queued: &Mutex<mpsc::Receiver<ProfileRequest>>, stop: &CancellationToken) {
        let lane = async || {
            let next = async || queued.lock().await.recv().await;
            while let Some(Some(ProfileRequest { token, raw })) = stop.run_until_cancelled(next()).await {
                let state = self.0.state(&token.subject);
                let Some(mut state) = stop.run_until_cancelled(state.lock()).await else { break };
                state.is_queued = false;
                let max_age = state.background_age(self.0.min_age, self.0.max_age);
                drop(state);
                // A webhook may have confirmed the user since.
                if self.0.users.peek(&token.subject).is_none_or(|user| user.is_unconfirmed) {
                    stop.run_until_cancelled(self.refresh(&token, &raw, max_age)).await;
                }
            }
        };
        tokio::join!(lane(), lane(), lane(), lane());
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Requests the profile, unless the last one is younger than `max_age`, and stores it. Waits for the deadline at
    /// most. Cancel safe: the result of a request that was sent is still stored.
    pub(super) async fn refresh(
        &self,
        token: &Arc<AccessToken>,
        raw: &str,
        max_age: Duration,
    ) -> (RefreshOutcome, Option<Arc<CachedUser>>) {
        let refresh = Arc::clone(&self.0).refresh(token, raw, max_age);
        timeout(self.0.deadline, refresh).await.unwrap_or((RefreshOutcome::Unavailable, None))
    }
}

impl Shared {
    async fn refresh(
        self: Arc<Self>,
        token: &Arc<AccessToken>,
        raw: &str,
        max_age: Duration,
    ) -> (RefreshOutcome, Option<Arc<CachedUser>>) {
        let state = self.state(&token.subject).lock_owned().await;
        if state.is_recent(max_age) {
            return (RefreshOutcome::Recently, self.users.peek(&token.subject));
        }
        // Skipping the request is not counted as a failure. A profile that cannot be stored is not requested.
        if state.must_wait(token) || !self.users.is_store_reachable() || !self.acquire_slot().await {
            return (RefreshOutcome::Unavailable, None);
        }
        let (token, raw) = (Arc::clone(token), raw.to_owned());
        let fetch_and_store = Arc::clone(&self).fetch_and_store(state, token, raw);
        self.tasks.spawn(fetch_and_store).await.unwrap_or((RefreshOutcome::Unavailable, None))
    }

    /// Runs on its own task to its end, bounded by the deadlines of the HTTP client and of the store.
    async fn fetch_and_store(
        self: Arc<Self>,
        mut state: OwnedMutexGuard<RefreshState>,
        token: Arc<AccessToken>,
        raw: String,
    ) -> (RefreshOutcome, Option<Arc<CachedUser>>) {
        let observation = match self.fetch(&token, &raw).await {
            Ok(response) => observation(response),
            Err(outcome) => {
                state.failed();
                if outcome == RefreshOutcome::Refused {
                    state.refused = Some(token.expires_at);
                    self.users.request_check(&token.subject).await;
                }
                return (outcome, None);
            }
        };
        let Some(observation) = observation else { return (RefreshOutcome::Unavailable, None) };
        // A failure of the store is counted by its own breaker.
        let Some(user) = self.users.apply(observation).await else {
            return (RefreshOutcome::Unavailable, None);
        };
        state.succeeded(user.is_unconfirmed);
        (RefreshOutcome::Now, Some(user))
    }

    async fn fetch(
        &self,
        token: &AccessToken,
        raw: &str,
    ) -> Result<kinde::Response<UserProfile>, RefreshOutcome> {
        let client = self.clients.iter().find(|(issuer, _)| *issuer == token.issuer);
        let (_, client) = client.ok_or(RefreshOutcome::Unavailable)?;
        let error = match client.user_profile(raw).await {
            Ok(response) => {
                self.breaker.succeeded();
                let is_own = response.value.id == token.subject;
                if !is_own {
                    tracing::error!(
                        user = token.subject,
                        "the response holds the profile of another user; it is not used"
                    );
                }
                return is_own.then_some(response).ok_or(RefreshOutcome::Unavailable);
            }
            Err(error) => error,
        };
        tracing::debug!(user = token.subject, error = chain(&error), "a profile could not be read");
        if let account::Error::RateLimited { retry_after: Some(reset) } = error {
            self.pause(reset);
        }
        // A permanent error concerns this user only.
        if error.is_transient() {
            self.breaker.failed(&error);
        } else {
            self.breaker.succeeded();
        }
        let is_refused = matches!(error, account::Error::TokenRejected);
        Err(if is_refused { RefreshOutcome::Refused } else { RefreshOutcome::Unavailable })
    }

    /// Waits for the next request slot. Returns whether one is free soon and the breaker lets the call through.
    async fn acquire_slot(&self) -> bool {
        let Some(slot) = self.take_slot() else { return false };
        sleep_until(slot).await;
        self.breaker.try_ready()
    }

    fn take_slot(&self) -> Option<Instant> {
        let mut next = self.next_slot.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let slot = now.max(*next);
        (slot <= now + MAX_SLOT_WAIT).then(|| {
            *next = slot + self.spacing;
            slot
        })
    }

    /// Delays all requests until the reset time of a `429`.
    fn pause(&self, reset: Duration) {
        let mut next = self.next_slot.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(Instant::now() + reset.min(MAX_PAUSE));
    }

    fn state(&self, user: &str) -> Arc<Mutex<RefreshState>> {
        let made = self.states.get_or_insert_with::<_, std::convert::Infallible>(user, || Ok(Arc::default()));
        match made {
            Ok(state) => state,
            Err(never) => match never {},
        }
    }
}

/// Converts a profile to an observation. Its version is the time at which the request was sent.
fn observation(response: kinde::Response<UserProfile>) -> Option<Observation> {
    let user = UserId::parse(&response.value.id).ok()?;
    let profile = fields::of_profile(response.value);
    let version = snapshot::version(snapshot::sent_at(&response.timing), &profile);
    Some(Observation { user, version, source: Source::Profile, what: What::Fields(profile) })
}
