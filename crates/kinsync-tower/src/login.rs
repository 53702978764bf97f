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
//! In reading order: [`users`] (cache and loads), [`seen`] (written behind), [`token`] (of the request).

mod seen;
mod token;
mod users;

use std::{fmt, sync::Arc, time::Duration};

use http::HeaderMap;
use kinde::bearer::{AccessToken, Cached, Refusal};
use kinsync_core::UserId;
use kinsync_engine::{breaker::Breaker, clock::Clock, queue::Queue, sighting::Sighting, store::Store};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::{
    seen::Seen,
    users::{Found, Known, Users, Wanted},
};
use crate::{
    current_user::CurrentUser,
    problem::{Problem, RequestId, chain},
};

/// Bounds of a login.
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
}

impl Default for Config {
    fn default() -> Self {
        Self {
            deadline: Duration::from_millis(500),
            sighting_deadline: Duration::from_millis(250),
            keys_deadline: Duration::from_secs(2),
            retry_after: Duration::from_secs(2),
            cached_users: 100_000,
            refresh_after: Duration::from_millis(250),
            stale_after: Duration::from_millis(750),
            seen_resolution: Duration::from_mins(1),
            flush_every: Duration::from_secs(5),
        }
    }
}

/// Finds out whose request it is. Clones are cheap and share everything.
#[derive(Clone)]
pub struct Login(Arc<Shared>);

struct Shared {
    tokens: Cached,
    users: Users,
    seen: Seen,
    queue: Arc<dyn Queue>,
    clock: Clock,
    config: Config,
}

/// What a login does beside the requests: loads users and writes `lastSeenAt`. Requests are degraded until it runs.
#[derive(Debug)]
pub struct Work {
    login: Login,
    wanted: tokio::sync::mpsc::Receiver<Wanted>,
}

impl Login {
    /// A login, and the work that somebody has to run beside it.
    pub fn new(
        tokens: Cached,
        store: Arc<dyn Store>,
        queue: Arc<dyn Queue>,
        clock: Clock,
        config: Config,
    ) -> (Self, Work) {
        let (users, wanted) = Users::new(Arc::clone(&store), clock.clone(), &config);
        let seen = Seen::new(store, clock.clone(), &config);
        let login = Self(Arc::new(Shared { tokens, users, seen, queue, clock, config }));
        (login.clone(), Work { login, wanted })
    }

    /// The user of a request with these headers. Cancel safe.
    ///
    /// # Errors
    /// [`Problem::Unauthenticated`], [`Problem::UserRefused`], or [`Problem::Unavailable`] while the issuer's keys
    /// are not known. Each is counted in `kinsync_bearer_refusals_total{reason}`.
    pub async fn admit(&self, headers: &HeaderMap) -> Result<CurrentUser, Problem> {
        let token = self.0.verify(token::of(headers)?).await?;
        let found = self.0.users.find(&token, self.0.config.deadline).await;
        match found {
            Found::Fresh(known) => {
                live(&known)?;
                self.0.seen.note(&known.document, self.0.clock.now());
                Ok(CurrentUser::stored(token, Arc::clone(&known.document)))
            }
            Found::Stale(known) => {
                live(&known)?;
                count_degraded();
                self.0.seen.note(&known.document, self.0.clock.now());
                Ok(CurrentUser::degraded(token, Some(Arc::clone(&known.document))))
            }
            Found::Unknown => {
                count_degraded();
                self.0.keep(&token).await;
                Ok(CurrentUser::degraded(token, None))
            }
        }
    }

    /// Guards the store as requests see it.
    pub fn breaker(&self) -> &Breaker {
        self.0.users.breaker()
    }
}

impl Work {
    /// Runs until told to stop, then writes what is left of `lastSeenAt`.
    pub async fn run(self, stop: CancellationToken) {
        let shared = &self.login.0;
        tokio::join!(shared.users.run(self.wanted, &stop), shared.seen.run(&stop));
    }
}

impl Shared {
    async fn verify(&self, token: &str) -> Result<Arc<AccessToken>, Problem> {
        let now = jiff::Timestamp::from_microsecond(self.clock.now().0).unwrap_or(jiff::Timestamp::MAX);
        match timeout(self.config.keys_deadline, self.tokens.verify(token, now)).await {
            Ok(Ok(token)) => Ok(token),
            Ok(Err(refusal)) if refusal.is_unavailable() => Err(self.keys_unavailable(&refusal)),
            Ok(Err(refusal)) => Err(refused(&refusal)),
            Err(passed) => Err(self.keys_unavailable(&passed)),
        }
    }

    fn keys_unavailable(&self, cause: &dyn std::error::Error) -> Problem {
        count_refusal(Refusal::KeysUnavailable.reason());
        let request = RequestId::next();
        tracing::warn!(%request, error = chain(cause), "a token could not be verified: its issuer's keys are not known");
        Problem::Unavailable { retry_after: self.config.retry_after, request }
    }

    /// Makes the sighting durable. Failing that, the request still goes on: the next one sees the user again.
    async fn keep(&self, token: &AccessToken) {
        let Ok(user) = UserId::parse(&token.subject) else { return };
        let sighting = Sighting { user, email: token.email.clone(), seen_at: self.clock.now() };
        let kept = timeout(self.config.sighting_deadline, self.queue.enqueue(sighting.entry())).await;
        let error = match kept {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => chain(&error),
            Err(passed) => passed.to_string(),
        };
        metrics::counter!("kinsync_sightings_lost_total").increment(1);
        tracing::warn!(error, "a sighting could not be kept: the user appears with the next request instead");
    }
}

fn live(known: &Known) -> Result<(), Problem> {
    let Some(reason) = known.refused else { return Ok(()) };
    count_refusal(reason);
    Err(Problem::UserRefused { reason })
}

fn refused(refusal: &Refusal) -> Problem {
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

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("config", &self.0.config).finish_non_exhaustive()
    }
}
