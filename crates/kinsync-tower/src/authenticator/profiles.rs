//! What tokens do not say, from Kinde's profile endpoint, with the user's own token.
//!
//! In the background for a user of whom nothing but a token is known, and for who asks. Never a storm: one question per
//! user at a time, whoever waits shares the answer; a shortest time between questions over all users; a back-off per
//! user, and a breaker for the endpoint. A profile is a snapshot: an event that lands meanwhile wins.
//!
//! Who waits has a deadline; a question that was begun goes on without them, so that its outcome counts whoever leaves.

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
use kinsync_engine::{
    breaker::{self, Breaker},
    snapshot,
};
use quick_cache::sync::Cache;
use tokio::{
    sync::{Mutex, OwnedMutexGuard, mpsc},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Config,
    users::{CachedUser, Users},
};
use crate::problem::chain;

/// Users who may wait to be filled in; others are by their next request.
const WAITING: usize = 4096;
/// The longest wait for a turn to ask.
const TURN: Duration = Duration::from_secs(1);
/// The longest time in which a user is not asked for again after failures, and nobody is after Kinde said "not before".
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// What became of a refresh.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RefreshOutcome {
    /// Kinde answered, and it is stored.
    Now,
    /// That was done a moment ago.
    Recently,
    /// Kinde does not take the token: the user is suspended or gone there, or the token was revoked.
    Refused,
    /// Kinde or the store did not answer in time: the document is as it was.
    Unavailable,
}

impl RefreshOutcome {
    /// A word for programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Now => "refreshed",
            Self::Recently => "recent",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A user of whom nothing but this token is known. The token is a credential: it is in memory only, and not shown.
pub(super) struct ProfileRequest {
    token: Arc<AccessToken>,
    sent: String,
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
    bare: mpsc::Sender<ProfileRequest>,
    histories: Cache<String, Arc<Mutex<RefreshState>>>,
    spacing: Duration,
    next_turn: Lock<Instant>,
    min_age: Duration,
    max_age: Duration,
    deadline: Duration,
    questions: TaskTracker,
}

/// How it went with one user. Whoever asks holds it, so that others wait and share.
#[derive(Default)]
struct RefreshState {
    refreshed_at: Option<Instant>,
    /// Refreshes in a row after which Kinde could still tell more: a profile that is older than an event of the same
    /// moment does not confirm it.
    unconfirmed: u32,
    failures: u32,
    not_before: Option<Instant>,
    /// The `exp` of the token that Kinde did not take: a newer one is tried at once.
    refused: Option<Timestamp>,
    /// Waits to be filled in.
    is_wanted: bool,
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

    /// How old a profile of this user may be when nobody insists: soon asked for again while it does not confirm the
    /// user, less and less often.
    fn enough(&self, min_age: Duration, max_age: Duration) -> Duration {
        match self.unconfirmed {
            0 => max_age,
            n => (min_age * 2_u32.pow(n.min(16))).min(max_age),
        }
    }

    fn failed(&mut self) {
        let pause = Duration::from_secs(1 << self.failures.min(9)).min(LONGEST_PAUSE);
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
        let (bare, receiver) = mpsc::channel(WAITING);
        let shared = Shared {
            clients,
            users,
            breaker: Breaker::new("kinde_profile", breaker::Config::default()),
            bare,
            histories: Cache::new(config.cached_users.max(1)),
            spacing: config.profile_spacing,
            next_turn: Lock::new(Instant::now()),
            min_age: config.profile_min_age,
            max_age: config.profile_max_age,
            deadline: config.profile_deadline,
            questions: TaskTracker::new(),
        };
        (Self(Arc::new(shared)), receiver)
    }

    /// Fills in this user in the background, unless that is being done or was tried a moment ago.
    pub(super) fn want(&self, token: &Arc<AccessToken>, sent: &str) {
        let history = self.0.history(&token.subject);
        // Held: somebody is asking.
        let Ok(mut history) = history.try_lock() else { return };
        let enough = history.enough(self.0.min_age, self.0.max_age);
        if !history.is_wanted && !history.must_wait(token) && !history.is_recent(enough) {
            let bare = ProfileRequest { token: Arc::clone(token), sent: sent.to_owned() };
            history.is_wanted = self.0.bare.try_send(bare).is_ok();
        }
    }

    /// Fills users in until told to stop.
    pub(super) async fn run(&self, bare: mpsc::Receiver<ProfileRequest>, stop: &CancellationToken) {
        let bare = Mutex::new(bare);
        let lane = async || {
            let next = async || bare.lock().await.recv().await;
            while let Some(Some(ProfileRequest { token, sent })) = stop.run_until_cancelled(next()).await {
                let history = self.0.history(&token.subject);
                let mut history = history.lock().await;
                history.is_wanted = false;
                let enough = history.enough(self.0.min_age, self.0.max_age);
                drop(history);
                // A webhook may have come first.
                if self.0.users.peek(&token.subject).is_none_or(|known| known.is_unconfirmed) {
                    stop.run_until_cancelled(self.refresh(&token, &sent, enough)).await;
                }
            }
        };
        tokio::join!(lane(), lane(), lane(), lane());
    }

    /// Asks Kinde, unless it answered less than `max_age` ago, and stores what it says. Waits for the deadline at
    /// most. Cancel safe: what was asked is stored all the same.
    pub(super) async fn refresh(
        &self,
        token: &Arc<AccessToken>,
        sent: &str,
        max_age: Duration,
    ) -> (RefreshOutcome, Option<Arc<CachedUser>>) {
        let refresh = Arc::clone(&self.0).refresh(token, sent, max_age);
        timeout(self.0.deadline, refresh).await.unwrap_or((RefreshOutcome::Unavailable, None))
    }
}

impl Shared {
    async fn refresh(
        self: Arc<Self>,
        token: &Arc<AccessToken>,
        sent: &str,
        max_age: Duration,
    ) -> (RefreshOutcome, Option<Arc<CachedUser>>) {
        let history = self.history(&token.subject).lock_owned().await;
        if history.is_recent(max_age) {
            return (RefreshOutcome::Recently, self.users.peek(&token.subject));
        }
        // Not to ask is no failure of this user, and what cannot be stored is not asked for.
        if history.must_wait(token) || !self.users.are_reachable() || !self.may_ask().await {
            return (RefreshOutcome::Unavailable, None);
        }
        let (token, sent) = (Arc::clone(token), sent.to_owned());
        let question = Arc::clone(&self).question(history, token, sent);
        self.questions.spawn(question).await.unwrap_or((RefreshOutcome::Unavailable, None))
    }

    /// Runs to its end on a task of its own; bounded by the client's deadline and the store's.
    async fn question(
        self: Arc<Self>,
        mut history: OwnedMutexGuard<RefreshState>,
        token: Arc<AccessToken>,
        sent: String,
    ) -> (RefreshOutcome, Option<Arc<CachedUser>>) {
        let told = match self.ask(&token, &sent).await {
            Ok(answer) => observation(answer),
            Err(refreshed) => {
                history.failed();
                history.refused = (refreshed == RefreshOutcome::Refused).then_some(token.expires_at);
                return (refreshed, None);
            }
        };
        let Some(told) = told else { return (RefreshOutcome::Unavailable, None) };
        // Kinde answered: that the store does not is seen by its own breaker.
        let Some(known) = self.users.tell(told).await else { return (RefreshOutcome::Unavailable, None) };
        history.succeeded(known.is_unconfirmed);
        (RefreshOutcome::Now, Some(known))
    }

    async fn ask(
        &self,
        token: &AccessToken,
        sent: &str,
    ) -> Result<kinde::Response<UserProfile>, RefreshOutcome> {
        let client = self.clients.iter().find(|(issuer, _)| *issuer == token.issuer);
        let (_, client) = client.ok_or(RefreshOutcome::Unavailable)?;
        let error = match client.user_profile(sent).await {
            Ok(answer) => {
                self.breaker.succeeded();
                let is_own = answer.value.id == token.subject;
                if !is_own {
                    tracing::error!(
                        user = token.subject,
                        "the profile of another user was answered; it is not used"
                    );
                }
                return is_own.then_some(answer).ok_or(RefreshOutcome::Unavailable);
            }
            Err(error) => error,
        };
        tracing::debug!(user = token.subject, error = chain(&error), "a profile could not be read");
        if let account::Error::RateLimited { retry_after: Some(reset) } = error {
            self.pause(reset);
        }
        // An answer that is odd for one user says nothing of the others.
        if error.is_transient() {
            self.breaker.failed(&error);
        } else {
            self.breaker.succeeded();
        }
        let is_refused = matches!(error, account::Error::TokenRejected);
        Err(if is_refused { RefreshOutcome::Refused } else { RefreshOutcome::Unavailable })
    }

    /// Waits for the next turn, if it comes soon and Kinde is not known to be away.
    async fn may_ask(&self) -> bool {
        let Some(turn) = self.take_turn() else { return false };
        sleep_until(turn).await;
        self.breaker.try_ready()
    }

    fn take_turn(&self) -> Option<Instant> {
        let mut next = self.next_turn.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let turn = now.max(*next);
        (turn <= now + TURN).then(|| {
            *next = turn + self.spacing;
            turn
        })
    }

    /// Kinde said when it will answer again.
    fn pause(&self, reset: Duration) {
        let mut next = self.next_turn.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(Instant::now() + reset.min(LONGEST_PAUSE));
    }

    fn history(&self, user: &str) -> Arc<Mutex<RefreshState>> {
        let made =
            self.histories.get_or_insert_with::<_, std::convert::Infallible>(user, || Ok(Arc::default()));
        match made {
            Ok(history) => history,
            Err(never) => match never {},
        }
    }
}

/// What a profile says. Its version is the time at which it was asked for.
fn observation(answer: kinde::Response<UserProfile>) -> Option<Observation> {
    let user = UserId::parse(&answer.value.id).ok()?;
    let told = snapshot::of_profile(answer.value);
    let version = snapshot::version(snapshot::sent_at(&answer.timing), &told);
    Some(Observation { user, version, source: Source::Profile, what: What::Fields(told) })
}
