//! Whose request this is, and whether it may go on: bearer token → verify → user from the cache → store; missing? made
//! now.
//!
//! **Nothing waits longer than its deadline.** A store that is down or slow costs [`Config::deadline`] at most; behind
//! an open breaker it costs nothing. The request then goes on with the token's data, and the sighting is made durable
//! in the queue, so that the user appears when the store is back, without another request.
//!
//! **A deleted or suspended user is refused within a second, in every process.** What is known of a user is served for
//! [`Config::refresh_after`] as it is, is loaded again in the background after that, and is never served without a
//! load once it is [`Config::stale_after`] old; the age counts from before the load. So another process that shares
//! the store learns of a deletion without being told, whatever feeds are broken. Concurrent loads share one call.
//! A refusal outlives the store: while it is away, who was known to be deleted stays refused.
//!
//! In reading order: `token` (of the request), [`claims`] (to fields), `users` (cache and loads), `profiles` (filled in from Kinde),
//! `last_seen` (written behind).

pub mod claims;
mod last_seen;
mod profiles;
mod token;
mod users;

use std::{fmt, sync::Arc, time::Duration};

use http::HeaderMap;
use kinde::{
    account::ProfileClient,
    bearer::{AccessToken, CachingVerifier, VerificationError},
};
use kinsync_core::UserId;
use kinsync_engine::{breaker::Breaker, clock::Clock, queue::Queue, sighting::Sighting, store::Store};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

pub(crate) use self::users::CachedUser;
pub use self::{claims::Claims, profiles::RefreshOutcome};
use self::{
    last_seen::LastSeenWriter,
    profiles::{ProfileRequest, Profiles},
    users::{CacheLookup, LoadQueues, Users},
};
use crate::{
    current_user::CurrentUser,
    problem::{Problem, RequestId, chain},
};

/// Bounds of an authenticator.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The longest wait for the store, on the path of a request.
    pub deadline: Duration,
    /// The longest wait for the queue to keep a sighting, after the store did not answer.
    pub sighting_deadline: Duration,
    /// The longest wait for keys that are not known yet.
    pub keys_deadline: Duration,
    /// After when to come again while keys cannot be fetched.
    pub retry_after: Duration,
    /// Users that are kept in memory; the least used ones make room.
    pub cached_users: usize,
    /// Age at which a cached user is loaded again, in the background.
    pub refresh_after: Duration,
    /// Age at which a cached user is not served before it was loaded again.
    pub stale_after: Duration,
    /// How exact `lastSeenAt` is.
    pub seen_resolution: Duration,
    /// How often `lastSeenAt` is written.
    pub flush_every: Duration,
    /// A profile younger than this is not asked for again.
    pub profile_max_age: Duration,
    /// The same when somebody insists.
    pub profile_min_age: Duration,
    /// The shortest time between two questions to Kinde's profile endpoint, over all users of this process.
    pub profile_spacing: Duration,
    /// The longest wait for a refresh, the store included. What was asked by then is stored without a wait.
    pub profile_deadline: Duration,
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
        }
    }
}

/// Finds out whose request it is. Clones are cheap and share everything.
#[derive(Clone)]
pub struct Authenticator(Arc<Shared>);

/// What an authenticator is made of.
#[derive(Debug)]
pub struct Dependencies {
    /// Verifies tokens.
    pub tokens: CachingVerifier,
    /// Where users are kept.
    pub store: Arc<dyn Store>,
    /// Where sightings wait for the store.
    pub queue: Arc<dyn Queue>,
    /// What time it is.
    pub clock: Clock,
    /// Where each issuer tells a user's profile. Users of an issuer that is not here are filled in by webhooks alone.
    pub profiles: Vec<(String, ProfileClient)>,
    /// What a token's claims say of a user who is not stored yet: [`claims::Email`], or your own.
    pub claims: Arc<dyn Claims>,
}

struct Shared {
    tokens: CachingVerifier,
    users: Arc<Users>,
    profiles: Profiles,
    seen: LastSeenWriter,
    queue: Arc<dyn Queue>,
    claims: Arc<dyn Claims>,
    clock: Clock,
    config: Config,
}

/// What an authenticator does beside the requests: loads users and writes `lastSeenAt`. Requests are degraded until it runs.
#[derive(Debug)]
pub struct BackgroundTasks {
    authenticator: Authenticator,
    loads: LoadQueues,
    bare: mpsc::Receiver<ProfileRequest>,
}

impl Authenticator {
    /// An authenticator, and the work that somebody has to run beside it.
    pub fn new(parts: Dependencies, config: Config) -> (Self, BackgroundTasks) {
        let Dependencies { tokens, store, queue, clock, profiles, claims } = parts;
        let (users, loads) = Users::new(Arc::clone(&store), Arc::clone(&claims), clock.clone(), &config);
        let users = Arc::new(users);
        let (profiles, bare) = Profiles::new(profiles, Arc::clone(&users), &config);
        let seen = LastSeenWriter::new(store, clock.clone(), &config);
        let authenticator =
            Self(Arc::new(Shared { tokens, users, profiles, seen, queue, claims, clock, config }));
        (authenticator.clone(), BackgroundTasks { authenticator, loads, bare })
    }

    /// The user of a request with these headers. Cancel safe.
    ///
    /// # Errors
    /// [`Problem::Unauthenticated`], [`Problem::UserRefused`], or [`Problem::Unavailable`] while the issuer's keys
    /// are not known. Each is counted in `kinsync_bearer_refusals_total{reason}`.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<CurrentUser, Problem> {
        let sent = token::of(headers)?;
        let token = self.0.verify(sent).await?;
        let found = self.0.users.find(&token, self.0.config.deadline).await;
        match found {
            CacheLookup::Fresh(known) => {
                live(&known)?;
                self.0.seen.note(&known, self.0.clock.now());
                if known.is_unconfirmed {
                    self.0.profiles.want(&token, sent);
                }
                Ok(CurrentUser::stored(token, known))
            }
            CacheLookup::Stale(known) => {
                live(&known)?;
                count_degraded();
                self.0.seen.note(&known, self.0.clock.now());
                Ok(CurrentUser::degraded(token, Some(known)))
            }
            CacheLookup::Miss => {
                count_degraded();
                self.0.keep(&token).await;
                Ok(CurrentUser::degraded(token, None))
            }
        }
    }

    /// Refreshes the user of an admitted request from Kinde's profile endpoint, unless that was done a moment ago. The
    /// user that is answered is the newest known; what became of the refresh is said beside.
    ///
    /// `insist`: a profile of up to a minute ago is not good enough; one of two seconds ago is. Those who ask for one
    /// user at once share one question. Waits for [`Config::profile_deadline`] at most. Cancel safe.
    pub async fn refresh(
        &self,
        user: CurrentUser,
        headers: &HeaderMap,
        insist: bool,
    ) -> Result<(CurrentUser, RefreshOutcome), Problem> {
        let sent = token::of(headers)?;
        let Config { profile_max_age, profile_min_age, .. } = self.0.config;
        let max_age = if insist { profile_min_age } else { profile_max_age };
        let (refreshed, known) = self.0.profiles.refresh(user.token(), sent, max_age).await;
        let Some(known) = known else { return Ok((user, refreshed)) };
        live(&known)?;
        let token = Arc::clone(user.token());
        Ok((CurrentUser::stored(token, known), refreshed))
    }

    /// Guards the store as requests see it.
    pub fn breaker(&self) -> &Breaker {
        self.0.users.breaker()
    }
}

impl BackgroundTasks {
    /// Runs until told to stop, then writes what is left of `lastSeenAt`.
    pub async fn run(self, stop: CancellationToken) {
        let shared = &self.authenticator.0;
        tokio::join!(
            shared.users.run(self.loads, &stop),
            shared.profiles.run(self.bare, &stop),
            shared.seen.run(&stop),
        );
    }
}

impl Shared {
    async fn verify(&self, token: &str) -> Result<Arc<AccessToken>, Problem> {
        let now = jiff::Timestamp::from_microsecond(self.clock.now().0).unwrap_or(jiff::Timestamp::MAX);
        // The usual request needs no timer.
        if let Some(known) = self.tokens.get(token, now) {
            return Ok(known);
        }
        match timeout(self.config.keys_deadline, self.tokens.verify(token, now)).await {
            Ok(Ok(token)) => Ok(token),
            Ok(Err(error)) => match error.retry_after() {
                Some(retry_after) => Err(keys_unavailable(&error, retry_after)),
                None => Err(refused(&error)),
            },
            Err(passed) => Err(keys_unavailable(&passed, self.config.retry_after)),
        }
    }

    /// Makes the sighting durable. Failing that, the request still goes on: the next one sees the user again.
    async fn keep(&self, token: &AccessToken) {
        let Ok(user) = UserId::parse(&token.subject) else { return };
        let sighting = Sighting { user, profile: self.claims.profile(token), seen_at: self.clock.now() };
        let error = match timeout(self.config.sighting_deadline, self.queue.enqueue(sighting.entry())).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => chain(&error),
            Err(passed) => passed.to_string(),
        };
        metrics::counter!("kinsync_sightings_lost_total").increment(1);
        tracing::debug!(
            error,
            "a sighting could not be kept: the user appears with the next request instead"
        );
    }
}

fn keys_unavailable(cause: &dyn std::error::Error, retry_after: Duration) -> Problem {
    count_refusal("keys_unavailable");
    let request = RequestId::next();
    // Every client can send a token, so this is not a warning: a failed fetch of keys is one.
    tracing::debug!(%request, error = chain(cause), "a token could not be verified: the keys of its issuer are not known");
    Problem::Unavailable { retry_after, request }
}

fn live(known: &CachedUser) -> Result<(), Problem> {
    let Some(reason) = known.refused else { return Ok(()) };
    count_refusal(reason);
    Err(Problem::UserRefused { reason })
}

fn refused(refusal: &VerificationError) -> Problem {
    count_refusal(refusal.reason());
    tracing::debug!(reason = refusal.reason(), "an access token was refused");
    Problem::Unauthenticated { reason: refusal.reason(), detail: refusal.to_string() }
}

fn count_refusal(reason: &'static str) {
    metrics::counter!("kinsync_bearer_refusals_total", "reason" => reason).increment(1);
}

fn count_degraded() {
    metrics::counter!("kinsync_degraded_requests_total").increment(1);
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("config", &self.0.config).finish_non_exhaustive()
    }
}
