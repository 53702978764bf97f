//! The service that takes deliveries: body → verify → enqueue → answer.
//!
//! 200 means durable: it is said only after the queue has the delivery on disk, and it is exactly 200, because Kinde
//! takes nothing else for a success. Nothing is stored before the verification. What a delivery means is not looked at
//! here: an event that nobody understands is the projector's affair, and must not disable the webhook.

mod body;

use std::{
    borrow::Cow,
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Method, Request, Response, header, request::Parts};
use http_body_util::Full;
use kinde::webhook::{Delivery, Scheme, VerificationError, Verifier};
use kinsync_core::Micros;
use kinsync_engine::{
    clock::Clock,
    queue::{self, Enqueued, Entry, Payload, Queue},
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};
use tower_service::Service;

use crate::{
    activity::Activity,
    metrics::{Metrics, Unverified, Verified},
    problem::{Body, Problem, RequestId, chain},
};

/// Bounds of one delivery.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The largest body, in bytes.
    pub body_limit: usize,
    /// The longest time for the body to arrive.
    pub body_deadline: Duration,
    /// The longest time from the head of the request to the answer.
    pub deadline: Duration,
    /// After how long a sender is asked to come again when a delivery could not be stored.
    pub retry_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            body_limit: 256 * 1024,
            body_deadline: Duration::from_secs(15),
            deadline: Duration::from_secs(30),
            retry_after: Duration::from_secs(5),
        }
    }
}

/// Takes deliveries. Clones are cheap and share everything. Always ready; never fails, but answers.
///
/// Install the recorder of `metrics` before making one.
#[derive(Clone)]
pub struct WebhookService(Arc<Shared>);

struct Shared {
    verifier: Verifier,
    queue: Arc<dyn Queue>,
    clock: Clock,
    config: Config,
    activity: Activity,
    metrics: Metrics,
    how_to_sign: Vec<String>,
}

/// A delivery that is durable.
struct Accepted {
    event_id: String,
    scheme: Scheme,
    received_at: Micros,
    enqueued: Enqueued,
}

/// What an accepted delivery is answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct AcceptedDelivery<'a> {
    /// The id of the event.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub event_id: Cow<'a, str>,
    /// Whether the event was accepted before.
    pub duplicate: bool,
}

/// Why a delivery ended without a 200.
enum Stop {
    Request(Unverified, Problem),
    Rejected(VerificationError),
    Queue(Scheme, queue::Error),
    Deadline,
}

impl WebhookService {
    /// A service that verifies with this verifier and stores in this queue.
    pub fn new(verifier: Verifier, queue: Arc<dyn Queue>, clock: Clock, config: Config) -> Self {
        let on = Scheme::ALL.into_iter().filter(|scheme| verifier.is_enabled(*scheme));
        let how_to_sign = on.map(how_to_sign).map(str::to_owned).collect();
        let (activity, metrics) = (Activity::default(), Metrics::new());
        Self(Arc::new(Shared { verifier, queue, clock, config, activity, metrics, how_to_sign }))
    }

    /// What this delivery is answered. Cancel safe: at worst it is durable and its sender, not knowing, repeats it.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.0.answer(request).await
    }

    /// How deliveries are going.
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
        let shared = Arc::clone(&self.0);
        Box::pin(async move { Ok(shared.answer(request).await) })
    }
}

impl Shared {
    async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let began = Instant::now();
        match timeout(self.config.deadline, self.accept(request)).await {
            Ok(Ok(accepted)) => {
                self.metrics.took(began.elapsed().as_secs_f64());
                self.say_accepted(&accepted)
            }
            Ok(Err(stop)) => self.say_stopped(stop),
            Err(_) => self.say_stopped(Stop::Deadline),
        }
    }

    /// Cancel safe: at worst the delivery is durable and its sender, not knowing, repeats it.
    async fn accept<B>(&self, request: Request<B>) -> Result<Accepted, Stop>
    where
        B: http_body::Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        check(&head)?;
        let body = body::read(&head.headers, body, &self.config).await?;
        let now = self.clock.now();
        let delivery =
            self.verifier.verify(&head.headers, body, timestamp(now)).await.map_err(Stop::Rejected)?;
        let scheme = delivery.scheme();
        let entry = entry(&delivery, now);
        let event_id = entry.event_id.clone();
        let enqueued = self.queue.enqueue(entry).await.map_err(|error| Stop::Queue(scheme, error))?;
        Ok(Accepted { event_id, scheme, received_at: now, enqueued })
    }

    fn say_accepted(&self, accepted: &Accepted) -> Response<Body> {
        let duplicate = accepted.enqueued == Enqueued::Duplicate;
        let outcome = if duplicate { Verified::Duplicate } else { Verified::Accepted };
        self.metrics.verified(accepted.scheme, outcome);
        self.activity.delivered(accepted.received_at);
        tracing::debug!(event_id = accepted.event_id, duplicate, "delivery accepted");
        let document = AcceptedDelivery { event_id: accepted.event_id.as_str().into(), duplicate };
        let body = serde_json::to_vec(&document).expect("a struct of a text and a flag is JSON");
        let mut response = Response::new(Full::from(body));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    fn say_stopped(&self, stop: Stop) -> Response<Body> {
        match stop {
            Stop::Request(outcome, problem) => {
                self.metrics.unverified(outcome);
                problem.into_response()
            }
            Stop::Rejected(refusal) if refusal.is_unavailable() => {
                self.metrics.unverified(Unverified::Unavailable);
                self.unavailable(&refusal)
            }
            Stop::Rejected(refusal) => self.refused(&refusal),
            Stop::Queue(scheme, error) => {
                self.metrics.verified(scheme, Verified::Unavailable);
                self.unavailable(&error)
            }
            Stop::Deadline => {
                self.metrics.unverified(Unverified::Unavailable);
                self.unavailable(&DeadlinePassed)
            }
        }
    }

    fn refused(&self, refusal: &VerificationError) -> Response<Body> {
        let reason = refusal.reason();
        self.metrics.unverified(Unverified::Refused);
        Metrics::failed(reason);
        self.activity.refused(reason);
        tracing::debug!(reason, "delivery refused");
        let how_to_sign = self.how_to_sign.clone();
        Problem::Unverified { reason, detail: refusal.to_string(), how_to_sign }.into_response()
    }

    fn unavailable(&self, error: &dyn std::error::Error) -> Response<Body> {
        let request = RequestId::next();
        let error = chain(error);
        if self.activity.unavailable(self.clock.now()) {
            tracing::error!(%request, error, "a delivery could not be stored and was answered 503");
        } else {
            tracing::debug!(%request, error, "another delivery was answered 503");
        }
        Problem::Unavailable { retry_after: self.config.retry_after, request }.into_response()
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

fn entry(delivery: &Delivery, received_at: Micros) -> Entry {
    Entry {
        event_id: delivery.event_id().to_owned(),
        received_at,
        payload: Payload::Delivery {
            scheme: delivery.scheme(),
            signed_at: delivery.signed_at().map(|at| Micros(at.as_microsecond())),
            body: delivery.payload().clone(),
        },
    }
}

fn timestamp(now: Micros) -> jiff::Timestamp {
    jiff::Timestamp::from_microsecond(now.0).unwrap_or(jiff::Timestamp::MAX)
}

/// How a delivery of this scheme is made, for whoever reads a 401.
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
            "or send `webhook-id`, `webhook-timestamp` and `webhook-signature` as https://www.standardwebhooks.com \
             describes, with KINSYNC_STANDARD_WEBHOOKS_SECRET"
        }
        _ => "see the reference of the scheme",
    }
}

#[derive(Debug)]
struct DeadlinePassed;

impl fmt::Display for DeadlinePassed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the deadline of the request passed; look at the queue's disk and at the issuer's keys in /health")
    }
}

impl std::error::Error for DeadlinePassed {}

impl fmt::Debug for WebhookService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookService").field("config", &self.0.config).finish_non_exhaustive()
    }
}
