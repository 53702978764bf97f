//! The access token of the machine-to-machine application.
//!
//! Kinde bills every token. Therefore one fetch runs at a time, a token is used until shortly before it expires, and a
//! token that the API rejects is replaced at most once per minute.
//!
//! <https://docs.kinde.com/developer-tools/kinde-api/access-token-for-api/>

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio::time::Instant;
use url::Url;

use super::Error;
use super::config::RetryPolicy;
use super::retry::Budget;
use crate::endpoint::Endpoint;
use crate::event;
use crate::http_client::{ApiError, Failure, HttpClient, RawResponse};
use crate::json;

/// Shortest time between two replacements of rejected tokens.
const REPLACE_COOL_DOWN: Duration = Duration::from_mins(1);
/// A token is replaced this long before it expires, or a tenth of its lifetime before if that is shorter.
const LONGEST_MARGIN: Duration = Duration::from_mins(1);
/// Bounds on the use of a token, whatever `expires_in` is. A missing `expires_in` means one hour.
const SHORTEST_USE: Duration = Duration::from_secs(10);
const LONGEST_USE: Duration = Duration::from_hours(24 * 7);
const DEFAULT_LIFE: Duration = Duration::from_hours(1);

/// The parameters of a token request.
pub(super) struct Credentials {
    pub(super) url: Url,
    pub(super) client_id: String,
    pub(super) client_secret: SecretString,
    pub(super) audience: String,
}

/// A token as a header value. It cannot be printed.
pub(super) struct Token {
    pub(super) authorization: HeaderValue,
    fetched_at: Instant,
    use_until: Instant,
}

type Outcome = Result<Arc<Token>, Arc<Error>>;

/// The current token. Clones share it.
#[derive(Clone)]
pub(super) struct Tokens(Arc<Inner>);

struct Inner {
    exchange: HttpClient,
    credentials: Credentials,
    retry: RetryPolicy,
    state: Mutex<State>,
    fetched: AtomicU64,
}

#[derive(Default)]
struct State {
    held: Option<Arc<Token>>,
    running: Option<watch::Receiver<Option<Outcome>>>,
    replaced_at: Option<Instant>,
}

impl Tokens {
    pub(super) fn new(exchange: HttpClient, credentials: Credentials, retry: RetryPolicy) -> Self {
        let (state, fetched) = (Mutex::default(), AtomicU64::new(0));
        Self(Arc::new(Inner { exchange, credentials, retry, state, fetched }))
    }

    /// Returns the token and fetches it if there is none. Concurrent callers share one fetch and its outcome.
    ///
    /// Cancel safe: the fetch continues for other callers if its caller is dropped.
    pub(super) async fn current(&self) -> Outcome {
        let mut running = match self.held_or_running() {
            Ok(token) => return Ok(token),
            Err(running) => running,
        };
        match running.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            Ok(None) | Err(_) => Err(Arc::new(Error::ConcurrencyTimeout)),
        }
    }

    /// Discards a token that the API rejects. `true` if a retry with another token makes sense.
    pub(super) fn replace_invalid(&self, rejected: &Arc<Token>) -> bool {
        let mut state = self.state();
        if state.held.as_ref().is_none_or(|held| !Arc::ptr_eq(held, rejected)) {
            return true;
        }
        if state.replaced_at.is_some_and(|at| at.elapsed() < REPLACE_COOL_DOWN) {
            return false;
        }
        state.replaced_at = Some(Instant::now());
        state.held = None;
        true
    }

    /// Discards a token that lacks a scope if it is so old that the scope may have been granted since.
    pub(super) fn replace_old(&self, rejected: &Arc<Token>) -> bool {
        rejected.fetched_at.elapsed() >= REPLACE_COOL_DOWN && self.replace_invalid(rejected)
    }

    /// Returns the number of tokens that Kinde has issued. Kinde bills each of them.
    pub(super) fn fetched(&self) -> u64 {
        self.0.fetched.load(Ordering::Relaxed)
    }

    fn held_or_running(&self) -> Result<Arc<Token>, watch::Receiver<Option<Outcome>>> {
        let mut state = self.state();
        if let Some(held) = state.held.as_ref().filter(|held| Instant::now() < held.use_until) {
            return Ok(Arc::clone(held));
        }
        if let Some(running) = &state.running {
            return Err(running.clone());
        }
        let (done, running) = watch::channel(None);
        state.running = Some(running.clone());
        drop(state);
        self.spawn_fetch(done);
        Err(running)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a fetch is billed and must outlive the call that started it; it ends within its own budget and holds nothing that a shutdown must wait for"
    )]
    fn spawn_fetch(&self, done: watch::Sender<Option<Outcome>>) {
        let running = Running(self.clone());
        tokio::spawn(async move {
            let outcome = running.0.0.fetch().await.map(Arc::new).map_err(Arc::new);
            running.0.state().held = outcome.as_ref().ok().map(Arc::clone);
            drop(running);
            done.send_replace(Some(outcome));
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Allows the next fetch, also if the task of this one panics or the runtime drops it.
struct Running(Tokens);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state().running = None;
    }
}

impl Inner {
    async fn fetch(&self) -> Result<Token, Error> {
        let mut budget = Budget::new(&self.retry);
        loop {
            let started = Instant::now();
            let outcome = self.attempt(&budget, started).await;
            let label = Error::outcome_of(outcome.as_ref().err());
            metrics::counter!("kinde_api_requests_total", "endpoint" => Endpoint::Token.as_str(), "outcome" => label)
                .increment(1);
            let error = match outcome {
                Ok(token) => return Ok(self.counted(token)),
                Err(error) => error,
            };
            if !budget.wait(error.again()).await {
                return Err(error);
            }
        }
    }

    fn counted(&self, token: Token) -> Token {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("kinde_api_tokens_total").increment(1);
        let seconds = token.use_until.duration_since(token.fetched_at).as_secs();
        tracing::debug!(seconds, "fetched a token for Kinde's Management API");
        token
    }

    async fn attempt(&self, budget: &Budget<'_>, started: Instant) -> Result<Token, Error> {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &self.credentials.client_id),
            ("client_secret", self.credentials.client_secret.expose_secret()),
            ("audience", &self.credentials.audience),
        ];
        let request = self.exchange.client().post(self.credentials.url.clone()).form(&form);
        match self.exchange.send_until(request, budget.deadline()).await {
            Ok(received) if received.status == StatusCode::OK => read(&received.body, started),
            Ok(received) => Err(self.rejection(&received)),
            Err(Failure::Unreachable(error)) => Err(Error::Unreachable(error)),
            Err(Failure::TooLong) => Err(Error::ResponseTooLarge { limit: self.exchange.max_body_bytes() }),
        }
    }

    fn rejection(&self, received: &RawResponse) -> Error {
        let status = received.status;
        if status == StatusCode::TOO_MANY_REQUESTS {
            return Error::RateLimited { retry_after: received.reset };
        }
        let oauth = ApiError::of_oauth(&received.body);
        let is_rejection = oauth.is_some() && status.is_client_error();
        let ApiError { code, message } =
            oauth.or_else(|| ApiError::of_api(&received.body)).unwrap_or_default();
        // Kinde should not repeat the secret; if it does, the message must not carry it into a log.
        let message = message.replace(self.credentials.client_secret.expose_secret(), "***");
        if is_rejection {
            Error::InvalidCredentials { code, message }
        } else {
            Error::UnexpectedStatus { status, code, message }
        }
    }
}

fn read(body: &[u8], started: Instant) -> Result<Token, Error> {
    let response: Map<String, Value> = json::object(body)?.into();
    let missing = || Error::InvalidResponse(event::Error::MissingField { field: "access_token".to_owned() });
    let secret = response.get("access_token").and_then(Value::as_str).filter(|token| !token.is_empty());
    let mut authorization =
        HeaderValue::try_from(format!("Bearer {}", secret.ok_or_else(missing)?)).map_err(|_| missing())?;
    authorization.set_sensitive(true);
    let life = response.get("expires_in").and_then(Value::as_u64).map_or(DEFAULT_LIFE, Duration::from_secs);
    let life = life.min(LONGEST_USE);
    let usable = life.saturating_sub(LONGEST_MARGIN.min(life / 10)).max(SHORTEST_USE);
    Ok(Token { authorization, fetched_at: started, use_until: started + usable })
}
