//! The webhook endpoint: reads the body, verifies the delivery, stores it in the queue, answers.
//!
//! The response is 200 only after the queue has written the delivery to disk, and it is exactly 200, because Kinde
//! accepts no other status as success. Nothing is stored before the verification. The content of a delivery is decoded
//! by the projector, not here: an event that cannot be decoded must not disable the webhook.

mod body;

use std::{
    borrow::Cow,
    convert::Infallible,
    fmt,
    future::{Future, ready},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, header, request::Parts};
use http_body_util::Full;
use kinde::webhook::{Delivery, Scheme, VerificationError, Verifier};
use kinsync_core::Micros;
use kinsync_engine::{
    Clock, Engine,
    internal::{
        clock::ReceiptClock,
        queue::{self, Enqueued, Entry, Queue},
        trace,
    },
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tower_service::Service;
use tracing::field::Empty;

use crate::{
    activity::Activity,
    metrics::{DeliveryMetrics, Unverified, Verified},
    problem::{Body, Problem, RequestId, chain},
};

/// Limits of the webhook endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Largest body, in bytes. Kinde sends a user with all organizations in one event.
    pub body_limit: usize,
    /// Memory for the bodies of all requests in progress, in bytes. Above it large bodies are answered 503; the first 8
    /// KiB of each body are not counted.
    pub body_budget: usize,
    /// Longest time for the body to arrive.
    pub body_deadline: Duration,
    /// Longest time from the head of the request to the response.
    pub deadline: Duration,
    /// `Retry-After` of a 503.
    pub retry_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            body_limit: 1024 * 1024,
            body_budget: 64 * 1024 * 1024,
            body_deadline: Duration::from_secs(15),
            deadline: Duration::from_secs(30),
            retry_after: Duration::from_secs(5),
        }
    }
}

/// The webhook endpoint as a tower service. Clones are cheap and share everything. Always ready; never returns an
/// error, because every failure has a response.
///
/// Install the recorder of `metrics` before creating one.
#[derive(Clone)]
pub struct WebhookService(Arc<Shared>);

struct Shared {
    verifier: Verifier,
    queue: Arc<dyn Queue>,
    clock: Clock,
    receipts: ReceiptClock,
    config: Config,
    body_budget: Semaphore,
    activity: Activity,
    metrics: DeliveryMetrics,
    how_to_sign: Vec<String>,
}

/// A delivery that the queue has stored.
struct Accepted {
    event_id: String,
    scheme: Scheme,
    received_at: Micros,
    enqueued: Enqueued,
    is_ordered: bool,
}

/// Body of the response to an accepted delivery.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct AcceptedDelivery<'a> {
    /// The id of the event.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub event_id: Cow<'a, str>,
    /// Whether the event was accepted before.
    pub duplicate: bool,
    /// What the sender should change, although the event was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub warning: Option<Cow<'a, str>>,
}

/// Warning about an event that has no time.
const NO_TIME: &str = "the event has no time, so it takes effect in the order of receipt, which retries and several hosts \
                       can change: send `event_id` and `timestamp` with each event";

/// Why a request ended without a 200.
enum Stop {
    /// The request itself is wrong.
    Request(Unverified, Problem),
    /// No signature header, and the body does not begin like a JWT. The rest of the body was not read.
    Unsigned,
    /// The bodies in progress use all the memory that they may.
    OverBudget,
    /// The verification failed, or the keys for it could not be fetched.
    Verification(VerificationError),
    /// The queue did not store a verified delivery.
    Queue(Scheme, queue::Error),
    /// The deadline passed before the verification was finished.
    UnverifiedAtDeadline,
    /// The deadline passed while the queue stored a verified delivery.
    VerifiedAtDeadline,
}

impl WebhookService {
    /// Creates an endpoint that verifies with this verifier and stores in the queue of this engine.
    pub fn new(verifier: Verifier, engine: &Engine, config: Config) -> Self {
        Self::of_queue(verifier, Arc::clone(engine.queue()), engine.clock().clone(), config)
    }

    /// Creates an endpoint without an engine, for tests of one.
    #[doc(hidden)]
    pub fn of_queue(verifier: Verifier, queue: Arc<dyn Queue>, clock: Clock, config: Config) -> Self {
        let enabled = Scheme::ALL.into_iter().filter(|scheme| verifier.is_enabled(*scheme));
        let how_to_sign = enabled.map(how_to_sign).map(str::to_owned).collect();
        let body_budget = Semaphore::new(config.body_budget.min(Semaphore::MAX_PERMITS));
        let (activity, metrics) = (Activity::default(), DeliveryMetrics::new());
        let receipts = ReceiptClock::new(clock.clone());
        Self(Arc::new(Shared {
            verifier,
            queue,
            clock,
            receipts,
            config,
            body_budget,
            activity,
            metrics,
            how_to_sign,
        }))
    }

    /// Handles one request. Cancel safe: at worst the delivery is stored and its sender, without a response, sends it
    /// again.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        if let Some(response) = self.0.refusal(&head) {
            return response;
        }
        let Ok(response) = Arc::clone(&self.0).answer(head.headers, body).await;
        response
    }

    /// Returns the state of this endpoint, for a health page.
    pub fn activity(&self) -> Activity {
        self.0.activity.clone()
    }
}

impl<B> Service<Request<B>> for WebhookService
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The future does not keep the whole head: a small one is allocated faster.
        let (head, body) = request.into_parts();
        if let Some(response) = self.0.refusal(&head) {
            return Box::pin(ready(Ok(response)));
        }
        Box::pin(Arc::clone(&self.0).answer(head.headers, body))
    }
}

impl Shared {
    /// The response to a head that no delivery has.
    fn refusal(&self, head: &Parts) -> Option<Response<Body>> {
        check(head).err().map(|stop| self.stopped(stop))
    }

    async fn answer<B>(self: Arc<Self>, headers: HeaderMap, body: B) -> Result<Response<Body>, Infallible>
    where
        B: http_body::Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (started, verified, body) = (Instant::now(), AtomicBool::new(false), pin!(body));
        let accepted = self.accept(&headers, body, &verified);
        Ok(match timeout(self.config.deadline, accepted).await {
            Ok(Ok(accepted)) => {
                self.metrics.accepted_after(started.elapsed().as_secs_f64());
                self.accepted(&accepted)
            }
            Ok(Err(stop)) => self.stopped(stop),
            Err(_) if verified.load(Relaxed) => self.stopped(Stop::VerifiedAtDeadline),
            Err(_) => self.stopped(Stop::UnverifiedAtDeadline),
        })
    }

    /// Sets `verified` when the verification has succeeded. Cancel safe: at worst the delivery is stored and its sender,
    /// without a response, sends it again.
    async fn accept<B>(
        &self,
        headers: &HeaderMap,
        body: Pin<&mut B>,
        verified: &AtomicBool,
    ) -> Result<Accepted, Stop>
    where
        B: http_body::Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        // Exported only with an id: what cannot be verified belongs to no event.
        let span =
            tracing::trace_span!(target: trace::TARGET, trace::RECEIVE, event_id = Empty, outcome = Empty);
        let body = body::read(headers, body, &self.config, &self.body_budget).await?;
        let now = self.clock.now();
        let verification = self.verifier.verify(headers, body.bytes.clone(), timestamp(now));
        let delivery = verification.await.map_err(Stop::Verification)?;
        verified.store(true, Relaxed);
        let scheme = delivery.scheme();
        let entry = Entry::new(&delivery, self.receipts.next());
        let event_id = entry.event_id.clone();
        span.record("event_id", event_id.as_str());
        let enqueued = self.queue.enqueue(entry).await.map_err(|error| Stop::Queue(scheme, error))?;
        span.record("outcome", if enqueued == Enqueued::New { "accepted" } else { "duplicate" });
        Ok(Accepted { event_id, scheme, received_at: now, enqueued, is_ordered: is_ordered(&delivery) })
    }

    fn accepted(&self, accepted: &Accepted) -> Response<Body> {
        let duplicate = accepted.enqueued == Enqueued::Duplicate;
        let outcome = if duplicate { Verified::Duplicate } else { Verified::Accepted };
        self.metrics.verified(accepted.scheme, outcome);
        self.activity.delivered(accepted.received_at);
        tracing::debug!(event_id = accepted.event_id, duplicate, "delivery accepted");
        if !accepted.is_ordered {
            self.metrics.without_time();
            self.activity.without_time(accepted.received_at);
        }
        let warning = (!accepted.is_ordered).then_some(NO_TIME.into());
        let document = AcceptedDelivery { event_id: accepted.event_id.as_str().into(), duplicate, warning };
        let body = serde_json::to_vec(&document).expect("a struct of a text and a flag is JSON");
        let mut response = Response::new(Full::from(body));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    fn stopped(&self, stop: Stop) -> Response<Body> {
        let retry_after = self.config.retry_after;
        match stop {
            Stop::Request(outcome, problem) => {
                self.metrics.unverified(outcome);
                problem.into_response()
            }
            Stop::Unsigned => closing(self.refused(&VerificationError::MissingSignature)),
            Stop::OverBudget => closing(self.unavailable(
                Unverified::OverBudget,
                &"the bodies in progress use all their memory",
                retry_after,
            )),
            Stop::Verification(error) => match error.retry_after() {
                Some(retry_after) => self.unavailable(Unverified::Unavailable, &chain(&error), retry_after),
                None => self.refused(&error),
            },
            Stop::UnverifiedAtDeadline => self.unavailable(
                Unverified::Unavailable,
                &"the deadline passed before the verification",
                retry_after,
            ),
            // Sent again, it is as large.
            Stop::Queue(_, queue::Error::TooLarge { max, .. }) => {
                self.metrics.unverified(Unverified::TooLarge);
                Problem::BodyTooLarge { limit: max }.into_response()
            }
            Stop::Queue(scheme, error) => {
                self.metrics.verified(scheme, Verified::Unavailable);
                self.not_stored(&chain(&error))
            }
            Stop::VerifiedAtDeadline => {
                self.metrics.unverified(Unverified::Unavailable);
                self.not_stored(&"the deadline passed while the queue stored it")
            }
        }
    }

    fn refused(&self, error: &VerificationError) -> Response<Body> {
        let (reason, outcome) = (error.reason(), outcome(error));
        self.metrics.unverified(outcome);
        DeliveryMetrics::verification_failed(reason);
        if outcome == Unverified::Refused {
            self.activity.verification_failed(reason);
        }
        tracing::debug!(reason, "a request to the webhook was refused");
        let how_to_sign = self.how_to_sign.clone();
        Problem::Unverified { reason, detail: error.to_string(), how_to_sign }.into_response()
    }

    /// A 503 to a sender that is not verified: it must not change the readiness, nor fill the log.
    fn unavailable(
        &self,
        outcome: Unverified,
        error: &dyn fmt::Display,
        retry_after: Duration,
    ) -> Response<Body> {
        self.metrics.unverified(outcome);
        let request = RequestId::next();
        tracing::debug!(%request, %error, "a request to the webhook could not be verified and was answered 503");
        Problem::Unavailable { retry_after, request }.into_response()
    }

    fn not_stored(&self, error: &dyn fmt::Display) -> Response<Body> {
        let request = RequestId::next();
        if self.activity.unavailable(self.clock.now()) {
            tracing::error!(%request, %error, "a verified delivery could not be stored and was answered 503");
        } else {
            tracing::debug!(%request, %error, "a verified delivery could not be stored and was answered 503");
        }
        Problem::Unavailable { retry_after: self.config.retry_after, request }.into_response()
    }
}

/// The rest of the body was not read: without this header it would be taken for the next request.
fn closing(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Separates deliveries that fail because of a wrong setting or a forged signature from requests that no sender with any
/// setting would make. Only the former count towards the alarm.
fn outcome(error: &VerificationError) -> Unverified {
    match error {
        VerificationError::MissingSignature => Unverified::Unsigned,
        error if error.can_come_from_genuine_sender() => Unverified::Refused,
        _ => Unverified::Malformed,
    }
}

fn check(head: &Parts) -> Result<(), Stop> {
    if head.method != Method::POST {
        return Err(Stop::Request(Unverified::Malformed, Problem::MethodNotAllowed { allow: "POST".into() }));
    }
    match head.headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(Stop::Request(Unverified::Malformed, Problem::EncodedBody))
        }
        _ => Ok(()),
    }
}

/// Returns whether the delivery contains the time of its event. A body that is no event needs none, and a webhook of Kinde
/// without one becomes a dead letter.
fn is_ordered(delivery: &Delivery) -> bool {
    delivery.scheme() == Scheme::KindeJwt
        || delivery.event_type().is_empty()
        || delivery.signed_at().is_some()
        || delivery.has_event_time()
}

fn timestamp(now: Micros) -> jiff::Timestamp {
    jiff::Timestamp::from_microsecond(now.0).unwrap_or(jiff::Timestamp::MAX)
}

/// How to sign a delivery by this scheme, for the response 401.
fn how_to_sign(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::KindeJwt => {
            "Kinde signs its webhooks itself: the body is its JWT, as sent. Add this address in Kinde under Settings > \
             Webhooks, and set KINDE_DOMAIN to the same tenant"
        }
        Scheme::Hmac => {
            "send the header `x-kinde-signature` with the hex of HMAC-SHA256 over the raw body, keyed with \
             KINDE_WEBHOOK_SECRET: printf %s \"$BODY\" | openssl dgst -sha256 -hmac \"$KINDE_WEBHOOK_SECRET\""
        }
        Scheme::StandardWebhooks => {
            "send `webhook-id`, `webhook-timestamp` and `webhook-signature` as https://www.standardwebhooks.com \
             describes, with KINSYNC_STANDARD_WEBHOOKS_SECRET"
        }
        _ => "see the documentation of the scheme",
    }
}

impl fmt::Debug for WebhookService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookService").field("config", &self.0.config).finish_non_exhaustive()
    }
}
