//! What is accepted, what is refused, and what is said of it.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header, request::Builder};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use kinde::{sign, webhook::Verifier};
use kinsync_core::Micros;
use kinsync_engine::{
    clock::Clock,
    queue::{
        Queue,
        embedded::{Config as QueueConfig, EmbeddedQueue},
    },
};
use kinsync_tower::{WebhookService, webhook::Config};
use serde_json::Value;
use tower::ServiceExt;

const SECRET: &str = "a-secret-of-more-than-16-characters";
const BODY: &str =
    r#"{"type":"user.created","event_id":"event_1","user":{"id":"test","email":"test@example.com"}}"#;

struct Bench {
    service: WebhookService,
    queue: Arc<EmbeddedQueue>,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self::with(QueueConfig::default(), Config::default())
    }

    fn with(queue: QueueConfig, config: Config) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::from_fn(|| Micros(1_700_000_000_000_000));
        let queue = Arc::new(EmbeddedQueue::open(folder.path(), queue, clock.clone()).unwrap());
        let verifier = Verifier::new(kinde::webhook::Config {
            hmac_secrets: vec![SECRET.into()],
            ..kinde::webhook::Config::default()
        });
        let service =
            WebhookService::new(verifier.unwrap(), Arc::clone(&queue) as Arc<dyn Queue>, clock, config);
        Self { service, queue, _folder: folder }
    }

    async fn send<B>(&self, request: Request<B>) -> (Response<()>, Value)
    where
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = self.service.clone().oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (Response::from_parts(head, ()), serde_json::from_slice(&body).unwrap())
    }
}

fn text(body: &'static str) -> Full<Bytes> {
    Full::from(body)
}

fn post() -> Builder {
    Request::post("/api/webhook")
}

fn signed(body: &'static str) -> Request<Full<Bytes>> {
    let signature = sign::hmac_hex(SECRET, body.as_bytes());
    post().header("x-kinde-signature", signature).body(text(body)).unwrap()
}

/// A body that never ends; it says whether anybody asked for more.
struct Endless(Arc<AtomicBool>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 16 * 1024])))))
    }
}

/// A body that never comes.
struct Silent;

impl http_body::Body for Silent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }
}

#[tokio::test]
async fn a_signed_delivery_is_durable_and_answered_200_exactly() {
    let bench = Bench::new();
    let (head, body) = bench.send(signed(BODY)).await;
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(body, serde_json::json!({ "eventId": "event_1", "duplicate": false }));
    let claimed = bench.queue.claim(10, Duration::from_mins(1)).await.unwrap();
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].entry.payload.bytes(), BODY, "the payload is the sender's own bytes");
    assert_eq!(claimed[0].entry.payload.scheme(), "hmac_sha256");
    assert_eq!(bench.service.activity().last_delivery(), Some(Micros(1_700_000_000_000_000)));
}

#[tokio::test]
async fn a_repetition_is_answered_200_and_kept_once() {
    let bench = Bench::new();
    bench.send(signed(BODY)).await;
    let (head, body) = bench.send(signed(BODY)).await;
    assert_eq!((head.status(), &body["duplicate"]), (StatusCode::OK, &Value::Bool(true)));
    assert_eq!(bench.queue.stats().await.unwrap().depth, 1);
}

#[tokio::test]
async fn a_wrong_signature_is_a_problem_document_that_says_how_to_sign() {
    let bench = Bench::new();
    let (head, body) = bench.send(post().header("x-kinde-signature", "test").body(text(BODY)).unwrap()).await;
    assert_eq!(head.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(head.headers()[header::CONTENT_TYPE], "application/problem+json");
    assert!(head.headers().contains_key(header::WWW_AUTHENTICATE));
    assert_eq!(body["status"], 401);
    let how = body["howToSign"].to_string();
    assert!(how.contains("openssl") && how.contains("x-kinde-signature"), "{how}");
    assert!(!how.contains("KINDE_DOMAIN"), "a scheme that is off is not offered: {how}");
    assert_eq!(bench.queue.stats().await.unwrap().depth, 0, "nothing is stored");
}

#[tokio::test]
async fn a_run_of_failures_is_counted_until_a_delivery_is_verified() {
    let bench = Bench::new();
    for _ in 0..3 {
        bench.send(post().body(text(BODY)).unwrap()).await;
    }
    assert_eq!(bench.service.activity().failed_in_row(), 3);
    bench.send(signed(BODY)).await;
    assert_eq!(bench.service.activity().failed_in_row(), 0);
}

#[tokio::test]
async fn only_post_is_allowed() {
    let bench = Bench::new();
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let request = Request::builder().method(method).body(text(BODY)).unwrap();
        let (head, _) = bench.send(request).await;
        assert_eq!(head.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
        assert_eq!(head.headers()[header::ALLOW], "POST");
    }
}

#[tokio::test]
async fn a_compressed_body_is_refused_before_it_is_read() {
    let bench = Bench::new();
    let read = Arc::new(AtomicBool::new(false));
    let request = post().header(header::CONTENT_ENCODING, "gzip").body(Endless(Arc::clone(&read))).unwrap();
    let (head, _) = bench.send(request).await;
    assert_eq!(head.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert!(!read.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_body_that_says_it_is_too_large_is_refused_before_it_is_read() {
    let bench = Bench::new();
    let read = Arc::new(AtomicBool::new(false));
    let request =
        post().header(header::CONTENT_LENGTH, 256 * 1024 + 1).body(Endless(Arc::clone(&read))).unwrap();
    let (head, _) = bench.send(request).await;
    assert_eq!(head.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(!read.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_body_that_says_nothing_of_its_size_is_cut_at_the_limit() {
    let bench = Bench::new();
    let (head, _) = bench.send(post().body(Endless(Arc::default())).unwrap()).await;
    assert_eq!(head.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(head.headers()[header::CONNECTION], "close");
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_is_read() {
    let bench = Bench::new();
    let body = Full::<Bytes>::from(vec![b'x'; 256 * 1024]);
    let (head, _) = bench.send(post().body(body).unwrap()).await;
    assert_eq!(head.status(), StatusCode::UNAUTHORIZED, "it is not signed, but it is not too large");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_given_up() {
    let config = Config { body_deadline: Duration::from_secs(15), ..Config::default() };
    let bench = Bench::with(QueueConfig::default(), config);
    let (head, _) = bench.send(post().body(Silent).unwrap()).await;
    assert_eq!(head.status(), StatusCode::REQUEST_TIMEOUT);
}

#[tokio::test]
async fn a_full_queue_is_a_503_with_a_request_id_and_without_the_cause() {
    let bench = Bench::with(QueueConfig { max_entries: 1, ..QueueConfig::default() }, Config::default());
    bench.send(signed(BODY)).await;
    let (head, body) = bench.send(signed(r#"{"type":"user.created","event_id":"event_2"}"#)).await;
    assert_eq!(head.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(head.headers()[header::RETRY_AFTER], "5");
    assert!(body["requestId"].as_str().unwrap().starts_with("req_"));
    assert!(!body.to_string().contains("queue"), "{body}");
    assert!(bench.service.activity().unavailable_since().is_some());
}

#[tokio::test]
async fn a_verified_event_that_nobody_understands_is_accepted() {
    let bench = Bench::new();
    for body in [r#"{"type":"moon.landed"}"#, "not json", "[]", ""] {
        let (head, _) = bench.send(signed(body)).await;
        assert_eq!(head.status(), StatusCode::OK, "{body:?}: one poison event must not disable the webhook");
    }
    assert_eq!(bench.queue.stats().await.unwrap().depth, 4);
}
