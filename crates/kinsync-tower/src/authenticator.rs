//! Authenticates a request: verifies its bearer token, loads or creates its user, and rejects deleted and suspended
//! users.
//!
//! **Every wait has a deadline.** A store that is down or slow delays a request by [`Config::deadline`] at most, and by
//! nothing while the breaker is open. The request then continues with the token's data, marked as degraded. A sighting is
//! stored in the queue, so that the user appears when the store answers again, without another request.
//!
//! **A deleted or suspended user is rejected within a second, in every process.** A cached user is used as it is for
//! [`Config::refresh_after`], is reloaded in the background after that, and is not used without a reload after
//! [`Config::stale_after`]; the age counts from before the load. Other processes that share the store therefore apply a
//! deletion without any message. Concurrent loads share one call. While the store is unavailable, users that the cache
//! holds as deleted or suspended stay rejected.
//!
//! In reading order: `token` (finds the token in the request), [`claims`] (claims → profile fields), `users` (cache and
//! loads), `profiles` (fields from Kinde's profile endpoint), `last_seen` (background writes).

mod cached_user;
pub mod claims;
mod last_seen;
mod profiles;
mod token;
mod users;

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode};
use kinde::{
    account::ProfileClient,
    bearer::{AccessToken, CachingVerifier, VerificationError},
};
use kinsync_core::{Micros, UserId};
use kinsync_engine::{
    Clock, Engine,
    internal::{breaker::Breaker, queue::Queue, sighting::Sighting},
};
use tokio::{
    sync::{Mutex, broadcast, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::cached_user::CachedUser;
pub use self::{claims::Claims, profiles::RefreshOutcome};
use self::{
    last_seen::LastSeenWriter,
    profiles::{ProfileRequest, Profiles},
    users::{CacheLookup, LoadQueues, Users},
};
pub use crate::current_user::UnknownRoles;
use crate::{
    current_user::CurrentUser,
    metrics::{Authentication, AuthenticationMetrics},
    problem::{Problem, RequestId, chain},
};

/// Limits and intervals of an authenticator.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Longest time that a request waits for the store.
    pub deadline: Duration,
    /// Longest time that a request waits for the queue to store a sighting, after the store did not answer.
    pub sighting_deadline: Duration,
    /// Longest time that a request waits for keys of the issuer that are not cached.
    pub keys_deadline: Duration,
    /// `Retry-After` of a 503 while keys cannot be fetched.
    pub retry_after: Duration,
    /// Users in the cache; above it the least recently used ones are dropped.
    pub cached_users: usize,
    /// Age at which a cached user is reloaded in the background.
    pub refresh_after: Duration,
    /// Age at which a cached user is not used without a reload.
    pub stale_after: Duration,
    /// Resolution of `lastSeenAt`: newer requests do not change it.
    pub seen_resolution: Duration,
    /// Interval between writes of `lastSeenAt`.
    pub flush_every: Duration,
    /// A profile younger than this is not requested again.
    pub profile_max_age: Duration,
    /// The same for [`Refresh::Force`].
    pub profile_min_age: Duration,
    /// Shortest time between two requests to Kinde's profile endpoint, over all users of this process.
    pub profile_spacing: Duration,
    /// Longest time that a request waits for a refresh, the store included. A refresh that takes longer is still stored.
    pub profile_deadline: Duration,
    /// What happens to requests of a user that the store refuses.
    pub refused_users: RefusedUsers,
    /// Roles and permissions of a user where the store does not know them.
    pub unknown_roles: UnknownRoles,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            deadline: Duration::from_millis(500),
            sighting_deadline: Duration::from_millis(250),
            keys_deadline: Duration::from_secs(2),
            retry_after: Duration::from_secs(2),
            cached_users: 100_000,
            refresh_after: Duration::from_millis(400),
            stale_after: Duration::from_millis(750),
            seen_resolution: Duration::from_mins(1),
            flush_every: Duration::from_secs(5),
            profile_max_age: Duration::from_mins(1),
            profile_min_age: Duration::from_secs(2),
            profile_spacing: Duration::from_millis(20),
            profile_deadline: Duration::from_secs(2),
            refused_users: RefusedUsers::default(),
            unknown_roles: UnknownRoles::default(),
        }
    }
}

/// What happens to requests of a user that the store has no document of, because an index or a validator of the database
/// refuses it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RefusedUsers {
    /// They are answered [`Problem::DocumentRefused`].
    #[default]
    Refuse,
    /// They continue, marked as degraded, with the data of the user that kinsync has.
    Pass,
}

/// How old a profile may be for [`Authenticator::refresh`] not to request it again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refresh {
    /// As old as [`Config::profile_max_age`].
    WhenOld,
    /// As old as [`Config::profile_min_age`]: the client requested a new one.
    Force,
}

/// Authenticates requests. Clones are cheap and share everything.
#[derive(Clone)]
pub struct Authenticator {
    shared: Arc<Shared>,
    cookie: Option<Arc<str>>,
}

/// What an authenticator verifies tokens with and fills new users from.
#[derive(Debug)]
pub struct Sources {
    /// Verifies tokens.
    pub tokens: CachingVerifier,
    /// The profile endpoint of each issuer. Users of other issuers get their fields from webhooks and scans only.
    pub profiles: Vec<(String, ProfileClient)>,
    /// Profile fields from a token, for a user that is not stored yet: [`claims::Email`], or your own implementation.
    pub claims: Arc<dyn Claims>,
}

struct Shared {
    tokens: CachingVerifier,
    users: Arc<Users>,
    profiles: Profiles,
    last_seen: LastSeenWriter,
    queue: Arc<dyn Queue>,
    claims: Arc<dyn Claims>,
    clock: Clock,
    config: Config,
    metrics: Arc<AuthenticationMetrics>,
}

/// The background tasks of an authenticator: they load users, request profiles and write `lastSeenAt`. Every request is
/// degraded until they run.
struct BackgroundTasks {
    authenticator: Authenticator,
    loads: LoadQueues,
    profile_requests: Mutex<mpsc::Receiver<ProfileRequest>>,
    erased: Mutex<broadcast::Receiver<UserId>>,
}

impl Authenticator {
    /// Creates an authenticator on the store and the queue of the engine, and starts its background tasks under the
    /// engine's supervisor: they load users, request profiles and write `lastSeenAt`. [`Engine::stop`] ends them.
    ///
    /// Install the recorder of `metrics` before.
    pub fn start(engine: &Engine, sources: Sources, config: Config) -> Self {
        let Sources { tokens, profiles, claims } = sources;
        let (store, queue, clock) =
            (Arc::clone(engine.store()), Arc::clone(engine.queue()), engine.clock().clone());
        let metrics = Arc::new(AuthenticationMetrics::new());
        let created = metrics.users_created.clone();
        let (users, loads) = Users::new(
            Arc::clone(&store),
            engine.store_preparation(),
            Arc::clone(&claims),
            clock.clone(),
            created,
            &config,
        );
        let users = Arc::new(users);
        let (profiles, profile_requests) = Profiles::new(profiles, Arc::clone(&users), &config);
        let last_seen = LastSeenWriter::new(store, clock.clone(), &config);
        let shared = Shared { tokens, users, profiles, last_seen, queue, claims, clock, config, metrics };
        let authenticator = Self { shared: Arc::new(shared), cookie: None };
        let profile_requests = Mutex::new(profile_requests);
        let erased = Mutex::new(engine.eraser().subscribe());
        let tasks = BackgroundTasks { authenticator: authenticator.clone(), loads, profile_requests, erased };
        let tasks = Arc::new(tasks);
        engine.supervisor().spawn("authenticator", move |stop| {
            let tasks = Arc::clone(&tasks);
            async move { tasks.run(stop).await }
        });
        authenticator
    }

    /// Returns an authenticator that also accepts the token in the cookie of this name, if there is no `Authorization`
    /// header. Shares everything else with this one.
    ///
    /// Browsers attach cookies to requests that other sites cause. The application must set the cookie with
    /// `SameSite=Lax` or `Strict`, and needs its own protection against CSRF for requests that change something.
    #[must_use]
    pub fn with_token_cookie(&self, name: impl Into<Arc<str>>) -> Self {
        Self { shared: Arc::clone(&self.shared), cookie: Some(name.into()) }
    }

    /// Authenticates a request by its headers and loads or creates its user. Cancel safe. Counted in
    /// `kinsync_authentications_total{outcome}`.
    ///
    /// # Errors
    /// [`Problem::Unauthenticated`], [`Problem::UserRefused`], [`Problem::DocumentRefused`], or [`Problem::Unavailable`]
    /// while the issuer's keys cannot be fetched. Counted in `kinsync_authentication_failures_total{reason}`.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<CurrentUser, Problem> {
        let outcome = self.current_user(headers).await;
        let metrics = &self.shared.metrics;
        match &outcome {
            Ok(user) if user.is_degraded() => metrics.count(Authentication::Degraded),
            Ok(_) => metrics.count(Authentication::Accepted),
            Err(problem) => {
                metrics.count(match problem {
                    Problem::Unavailable { .. } => Authentication::Unavailable,
                    Problem::UserRefused { .. } => Authentication::Forbidden,
                    Problem::DocumentRefused { .. } => Authentication::DocumentRefused,
                    _ => Authentication::Refused,
                });
                let reason = problem.reason().unwrap_or("keys_unavailable");
                AuthenticationMetrics::failed(reason);
            }
        }
        outcome
    }

    async fn current_user(&self, headers: &HeaderMap) -> Result<CurrentUser, Problem> {
        let user = self.loaded_user(headers).await?;
        Ok(user.with(self.shared.config.unknown_roles))
    }

    async fn loaded_user(&self, headers: &HeaderMap) -> Result<CurrentUser, Problem> {
        let shared = &self.shared;
        let raw = token::find(headers, self.cookie.as_deref())?;
        let now = shared.clock.now();
        let token = shared.verify(raw, now).await?;
        match shared.users.lookup(&token, shared.config.deadline).await {
            CacheLookup::Fresh(user) if user.is_document_refused => shared.without_document(token, user),
            CacheLookup::Fresh(user) => {
                require_active(&user)?;
                shared.last_seen.record(&user, now);
                if user.is_unconfirmed {
                    shared.profiles.request(&token, raw);
                }
                Ok(CurrentUser::stored(token, user))
            }
            CacheLookup::Stale(user) => {
                require_active(&user)?;
                shared.last_seen.record(&user, now);
                Ok(CurrentUser::degraded(token, Some(user)))
            }
            CacheLookup::Miss => {
                shared.store_sighting(&token).await;
                Ok(CurrentUser::degraded(token, None))
            }
        }
    }

    /// Refreshes an authenticated user from Kinde's profile endpoint, unless the last refresh is recent enough. Returns
    /// the newest known user and the outcome of the refresh.
    ///
    /// Concurrent calls for one user share one request. Waits for [`Config::profile_deadline`] at most. Cancel safe: a
    /// request that was sent is still stored.
    ///
    /// # Errors
    /// [`Problem::UserRefused`] if the refreshed user is deleted or suspended, [`Problem::DocumentRefused`] if the store
    /// refuses it.
    pub async fn refresh(
        &self,
        user: CurrentUser,
        headers: &HeaderMap,
        refresh: Refresh,
    ) -> Result<(CurrentUser, RefreshOutcome), Problem> {
        let raw = token::find(headers, self.cookie.as_deref())?;
        let Config { profile_max_age, profile_min_age, .. } = self.shared.config;
        let max_age = match refresh {
            Refresh::WhenOld => profile_max_age,
            Refresh::Force => profile_min_age,
        };
        let (outcome, refreshed) = self.shared.profiles.refresh(user.token(), raw, max_age).await;
        let Some(refreshed) = refreshed else { return Ok((user, outcome)) };
        require_active(&refreshed)?;
        let token = Arc::clone(user.token());
        let user = if refreshed.is_document_refused {
            self.shared.without_document(token, refreshed)?
        } else {
            CurrentUser::stored(token, refreshed)
        };
        Ok((user.with(self.shared.config.unknown_roles), outcome))
    }

    /// Returns the circuit breaker between requests and the store.
    pub fn breaker(&self) -> &Breaker {
        self.shared.users.breaker()
    }
}

impl BackgroundTasks {
    /// Runs until the token is cancelled, then writes the pending `lastSeenAt` values. May be called again after it
    /// panicked: pending requests are kept.
    async fn run(&self, stop: CancellationToken) {
        let shared = &self.authenticator.shared;
        // Boxed: an embedding application should not carry this large future in its own.
        let tasks = Box::pin(async {
            tokio::join!(
                shared.users.run(&self.loads, &stop),
                shared.profiles.run(&self.profile_requests, &stop),
                shared.last_seen.run(&stop),
                shared.users.remove_erased(&self.erased, &stop),
            )
        });
        tasks.await;
    }
}

impl Shared {
    /// Decides about a user that the store has no document of, because a rule of the database refuses it.
    fn without_document(
        &self,
        token: Arc<AccessToken>,
        user: Arc<CachedUser>,
    ) -> Result<CurrentUser, Problem> {
        match self.config.refused_users {
            RefusedUsers::Refuse => Err(Problem::DocumentRefused { status: StatusCode::SERVICE_UNAVAILABLE }),
            RefusedUsers::Pass => Ok(CurrentUser::degraded(token, Some(user))),
        }
    }

    async fn verify(&self, raw: &str, now: Micros) -> Result<Arc<AccessToken>, Problem> {
        let now = jiff::Timestamp::from_microsecond(now.0).unwrap_or(jiff::Timestamp::MAX);
        // A cached token needs no timer.
        if let Some(token) = self.tokens.get(raw, now) {
            return Ok(token);
        }
        match timeout(self.config.keys_deadline, self.tokens.verify(raw, now)).await {
            Ok(Ok(token)) => Ok(token),
            Ok(Err(error)) => match error.retry_after() {
                Some(retry_after) => Err(keys_unavailable(&error, retry_after)),
                None => Err(unauthenticated(&error)),
            },
            Err(elapsed) => Err(keys_unavailable(&elapsed, self.config.retry_after)),
        }
    }

    /// Stores a sighting in the queue. If that fails, the request continues, and the user's next request stores it.
    async fn store_sighting(&self, token: &AccessToken) {
        let Ok(user) = UserId::parse(&token.subject) else { return };
        let sighting = Sighting { user, profile: self.claims.profile(token), seen_at: self.clock.now() };
        let error = match timeout(self.config.sighting_deadline, self.queue.enqueue(sighting.entry())).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => chain(&error),
            Err(elapsed) => elapsed.to_string(),
        };
        self.metrics.sightings_lost.increment(1);
        tracing::debug!(error, "a sighting could not be stored: the user's next request stores it");
    }
}

fn keys_unavailable(cause: &dyn std::error::Error, retry_after: Duration) -> Problem {
    let request = RequestId::next();
    // At debug level: any client can cause this line, and a failed fetch of keys is logged where it happens.
    tracing::debug!(%request, error = chain(cause), "the keys of a token's issuer are not known");
    Problem::Unavailable { retry_after, request }
}

fn require_active(user: &CachedUser) -> Result<(), Problem> {
    user.refused.map_or(Ok(()), |reason| Err(Problem::UserRefused { reason }))
}

fn unauthenticated(error: &VerificationError) -> Problem {
    tracing::debug!(reason = error.reason(), "an access token was rejected");
    Problem::Unauthenticated { reason: error.reason(), detail: error.to_string() }
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
