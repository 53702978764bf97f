//! The webhook endpoint as a service: accepted and refused deliveries, and the limits of bodies.

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
    Clock,
    internal::queue::{
        MAX_ENTRY, Queue,
        embedded::{Config as QueueConfig, EmbeddedQueue},
    },
};
use kinsync_tower::{WebhookService, webhook::Config};
use serde_json::Value;
use tower::ServiceExt;

const SECRET: &str = "a-secret-of-more-than-16-characters";
const BODY: &str = r#"{"type":"user.created","event_id":"event_1","timestamp":"2023-11-14T22:13:20Z","user":{"id":"test","email":"test@example.com"}}"#;

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
        let hmac_secrets = vec![SECRET.into()];
        Self::of(kinde::webhook::Config { hmac_secrets, ..kinde::webhook::Config::default() }, queue, config)
    }

    fn of(verifier: kinde::webhook::Config, queue: QueueConfig, config: Config) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::from_fn(|| Micros(1_700_000_000_000_000));
        let queue = Arc::new(EmbeddedQueue::open(folder.path(), queue, clock.clone()).unwrap());
        let verifier = Verifier::new(verifier).unwrap();
        let service = WebhookService::of_queue(verifier, Arc::clone(&queue) as Arc<dyn Queue>, clock, config);
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

fn signed_as(signature: &str) -> Builder {
    post().header("x-kinde-signature", signature)
}

fn signed(body: &'static str) -> Request<Full<Bytes>> {
    let signature = sign::hmac_hex(SECRET, body.as_bytes());
    post().header("x-kinde-signature", signature).body(text(body)).unwrap()
}

/// A body with the frames that a function returns.
struct Frames<F>(F);

impl<F: FnMut() -> Poll<Option<Bytes>> + Unpin> http_body::Body for Frames<F> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        (self.0)().map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A body that never ends. Records whether it was polled.
fn endless(read: Arc<AtomicBool>) -> impl http_body::Body<Data = Bytes, Error = Infallible> + Send {
    Frames(move || {
        read.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Bytes::from_static(&[b'x'; 16 * 1024])))
    })
}

/// A body that stops after its first bytes, or never arrives.
fn stalled(mut first: Option<Bytes>) -> impl http_body::Body<Data = Bytes, Error = Infallible> + Send {
    Frames(move || first.take().map_or(Poll::Pending, |bytes| Poll::Ready(Some(bytes))))
}

/// A body that arrives in pieces of 8 KiB.
fn in_pieces(bytes: &[u8]) -> impl http_body::Body<Data = Bytes, Error = Infallible> + Send + use<> {
    let pieces: Vec<Bytes> = bytes.chunks(8 * 1024).map(Bytes::copy_from_slice).collect();
    let mut pieces = pieces.into_iter();
    Frames(move || Poll::Ready(pieces.next()))
}

/// A delivery of 60 KiB and its signature.
fn large_delivery() -> (Vec<u8>, String) {
    let padding = "x".repeat(60 * 1024 - 60);
    let body = format!(r#"{{"type":"moon.landed","event_id":"large","padding":"{padding}"}}"#).into_bytes();
    let signature = sign::hmac_hex(SECRET, &body);
    (body, signature)
}

#[tokio::test]
async fn a_signed_delivery_is_stored_before_the_response_200() {
    let bench = Bench::new();
    let (head, body) = bench.send(signed(BODY)).await;
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(body, serde_json::json!({ "eventId": "event_1", "duplicate": false }));
    let claimed = bench.queue.claim(10, Duration::from_mins(1)).await.unwrap();
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].entry.payload.bytes(), BODY, "the payload is stored as it was sent");
    assert_eq!(claimed[0].entry.payload.scheme(), "hmac_sha256");
    assert_eq!(bench.service.activity().last_delivery(), Some(Micros(1_700_000_000_000_000)));
}

#[tokio::test]
async fn a_repeated_delivery_is_answered_200_and_stored_once() {
    let bench = Bench::new();
    bench.send(signed(BODY)).await;
    let (head, body) = bench.send(signed(BODY)).await;
    assert_eq!((head.status(), &body["duplicate"]), (StatusCode::OK, &Value::Bool(true)));
    assert_eq!(bench.queue.stats().await.unwrap().depth, 1);
}

#[tokio::test]
async fn a_repeated_request_without_an_id_is_a_new_event_and_is_warned_about() {
    let bench = Bench::new();
    let body = r#"{"type":"user.updated","user":{"id":"test","first_name":"A"}}"#;
    assert_eq!(bench.service.activity().last_without_time(), None);
    for _ in 0..2 {
        let (head, body) = bench.send(signed(body)).await;
        assert_eq!((head.status(), &body["duplicate"]), (StatusCode::OK, &Value::Bool(false)));
        assert!(body["warning"].as_str().unwrap().contains("`timestamp`"), "{body}");
    }
    assert!(bench.service.activity().last_without_time().is_some());
    let claimed = bench.queue.claim(10, Duration::from_mins(1)).await.unwrap();
    let [first, second] = [&claimed[0].entry, &claimed[1].entry];
    assert_ne!(first.event_id, second.event_id);
    assert!(first.received_at < second.received_at, "the clock of this test stands still");
}

#[tokio::test]
async fn the_response_to_a_wrong_signature_explains_how_to_sign() {
    let bench = Bench::new();
    let (head, body) = bench.send(post().header("x-kinde-signature", "test").body(text(BODY)).unwrap()).await;
    assert_eq!(head.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(head.headers()[header::CONTENT_TYPE], "application/problem+json");
    assert!(head.headers().contains_key(header::WWW_AUTHENTICATE));
    assert_eq!(body["status"], 401);
    let how = body["howToSign"].to_string();
    assert!(how.contains("openssl") && how.contains("x-kinde-signature"), "{how}");
    assert!(!how.contains("KINDE_DOMAIN"), "a disabled scheme is not explained: {how}");
    assert_eq!(bench.queue.stats().await.unwrap().depth, 0, "nothing is stored");
}

#[tokio::test]
async fn a_run_of_failures_is_counted_until_a_delivery_is_verified() {
    let bench = Bench::new();
    for _ in 0..3 {
        let (head, _) =
            bench.send(signed_as(&sign::hmac_hex("another secret", b"")).body(text(BODY)).unwrap()).await;
        assert_eq!(head.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(bench.service.activity().consecutive_failures(), 3);
    bench.send(signed(BODY)).await;
    assert_eq!(bench.service.activity().consecutive_failures(), 0);
}

#[tokio::test]
async fn requests_that_no_sender_signs_do_not_count_towards_the_alarm() {
    let jwks = kinde::Jwks::new(kinde::jwks::Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap();
    let config = kinde::webhook::Config {
        jwks: Some(jwks),
        hmac_secrets: vec![SECRET.into()],
        ..kinde::webhook::Config::default()
    };
    let bench = Bench::of(config, QueueConfig::default(), Config::default());
    let requests = [
        post().body(text(BODY)),
        signed_as("not a signature").body(text(BODY)),
        post().body(text("eyJhbGciOiJub25lIn0.e30.")),
        post().header(header::CONTENT_TYPE, "application/jwt").body(text(BODY)),
    ];
    for request in requests {
        let (head, body) = bench.send(request.unwrap()).await;
        assert_eq!((head.status(), body["status"].as_u64()), (StatusCode::UNAUTHORIZED, Some(401)), "{body}");
    }
    assert_eq!(bench.service.activity().consecutive_failures(), 0);
}

#[tokio::test]
async fn an_unknown_key_while_keys_cannot_be_fetched_leaves_the_endpoint_available() {
    let unreachable = "http://127.0.0.1:9".parse().unwrap();
    let jwks = kinde::Jwks::new(kinde::jwks::Config::new(unreachable)).unwrap();
    let config = kinde::webhook::Config { jwks: Some(jwks), ..kinde::webhook::Config::default() };
    let bench = Bench::of(config, QueueConfig::default(), Config::default());
    // {"alg":"RS256","kid":"random"}
    let token = "eyJhbGciOiJSUzI1NiIsImtpZCI6InJhbmRvbSJ9.e30.AAAA";
    for attempt in ["the fetch fails", "no fetch is allowed yet"] {
        let (head, _) = bench.send(post().body(text(token)).unwrap()).await;
        let retry_after =
            head.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        assert_eq!(head.status(), StatusCode::SERVICE_UNAVAILABLE, "{attempt}");
        assert!(
            retry_after.is_some_and(|seconds: u64| (1..=60).contains(&seconds)),
            "{attempt}: {retry_after:?}"
        );
    }
    assert_eq!(bench.service.activity().unavailable_since(), None, "no delivery was lost");
}

#[tokio::test]
async fn an_unsigned_body_is_refused_at_its_first_bytes() {
    let bench = Bench::new();
    let (head, body) = bench.send(post().body(endless(Arc::default())).unwrap()).await;
    assert_eq!((head.status(), &body["reason"]), (StatusCode::UNAUTHORIZED, &"missing_signature".into()));
    assert_eq!(head.headers()[header::CONNECTION], "close", "the rest of the body is not read");
}

#[tokio::test]
async fn large_bodies_share_a_budget_and_small_deliveries_do_not_need_it() {
    let config = Config { body_budget: 64 * 1024, ..Config::default() };
    let bench = Bench::with(QueueConfig::default(), config);
    let half = |length| signed_as("00").body(stalled(Some(vec![b'x'; length].into()))).unwrap();
    let mut filler = Box::pin(bench.service.clone().oneshot(half(60 * 1024)));
    assert!(futures_util::poll!(filler.as_mut()).is_pending());
    let (head, _) = bench.send(half(60 * 1024)).await;
    assert_eq!(head.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(head.headers()[header::CONNECTION], "close");
    let (large, signature) = large_delivery();
    let whole = || signed_as(&signature).body(Full::<Bytes>::from(large.clone())).unwrap();
    assert_eq!(bench.send(whole()).await.0.status(), StatusCode::SERVICE_UNAVAILABLE, "also in one piece");
    let (head, _) = bench.send(signed(BODY)).await;
    assert_eq!(head.status(), StatusCode::OK, "a usual delivery is accepted meanwhile");
    assert_eq!(bench.service.activity().unavailable_since(), None);
    drop(filler);
    assert_eq!(bench.send(whole()).await.0.status(), StatusCode::OK, "the budget is free again");
    let (head, _) = bench.send(signed_as(&signature).body(in_pieces(&large)).unwrap()).await;
    assert_eq!(head.status(), StatusCode::OK, "also for one in pieces");
}

#[tokio::test]
async fn an_event_of_a_user_in_300_organizations_is_accepted() {
    let organizations: Vec<_> = (0..300).map(|n| format!("org_{n:0>900}")).collect();
    let event = serde_json::json!({ "type": "user.updated", "event_id": "big", "user": { "id": "test", "organizations": organizations } });
    let body = event.to_string();
    assert!(body.len() > 256 * 1024, "{}", body.len());
    let bench = Bench::new();
    let signature = sign::hmac_hex(SECRET, body.as_bytes());
    let (head, _) = bench.send(signed_as(&signature).body(Full::<Bytes>::from(body)).unwrap()).await;
    assert_eq!(head.status(), StatusCode::OK);
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
async fn a_compressed_body_is_rejected_unread() {
    let bench = Bench::new();
    let read = Arc::new(AtomicBool::new(false));
    let request = post().header(header::CONTENT_ENCODING, "gzip").body(endless(Arc::clone(&read))).unwrap();
    let (head, _) = bench.send(request).await;
    assert_eq!(head.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert!(!read.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_content_length_above_the_limit_is_rejected_unread() {
    let bench = Bench::new();
    let read = Arc::new(AtomicBool::new(false));
    let request =
        post().header(header::CONTENT_LENGTH, 1024 * 1024 + 1).body(endless(Arc::clone(&read))).unwrap();
    let (head, _) = bench.send(request).await;
    assert_eq!(head.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(!read.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_body_without_content_length_is_read_up_to_the_limit() {
    let bench = Bench::new();
    let (head, _) = bench.send(signed_as("00").body(endless(Arc::default())).unwrap()).await;
    assert_eq!(head.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(head.headers()[header::CONNECTION], "close");
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_is_accepted() {
    let bench = Bench::new();
    let body = vec![b'x'; 1024 * 1024];
    let signature = sign::hmac_hex(SECRET, &body);
    let (head, _) = bench.send(signed_as(&signature).body(Full::<Bytes>::from(body)).unwrap()).await;
    assert_eq!(head.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_delivery_larger_than_the_queue_accepts_is_answered_413_and_not_503() {
    let config = Config { body_limit: 2 * MAX_ENTRY, body_budget: 4 * MAX_ENTRY, ..Config::default() };
    let bench = Bench::with(QueueConfig::default(), config);
    let body = vec![b'x'; MAX_ENTRY + 1];
    let signature = sign::hmac_hex(SECRET, &body);
    let (head, body) = bench.send(signed_as(&signature).body(Full::<Bytes>::from(body)).unwrap()).await;
    assert_eq!((head.status(), &body["status"]), (StatusCode::PAYLOAD_TOO_LARGE, &413.into()));
    assert!(body["detail"].as_str().unwrap().contains(&MAX_ENTRY.to_string()), "{body}");
    assert_eq!(head.headers().get(header::RETRY_AFTER), None, "sent again, it is as large");
    assert_eq!(bench.queue.stats().await.unwrap().depth, 0);
    assert_eq!(bench.service.activity().unavailable_since(), None);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_is_answered_408() {
    let config = Config { body_deadline: Duration::from_secs(15), ..Config::default() };
    let bench = Bench::with(QueueConfig::default(), config);
    let (head, _) = bench.send(post().body(stalled(None)).unwrap()).await;
    assert_eq!(head.status(), StatusCode::REQUEST_TIMEOUT);
}

#[tokio::test]
async fn a_full_queue_is_answered_503_with_a_request_id_and_without_the_cause() {
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
async fn a_verified_event_that_cannot_be_decoded_is_accepted() {
    let bench = Bench::new();
    for body in [r#"{"type":"moon.landed"}"#, "not json", "[]", ""] {
        let (head, _) = bench.send(signed(body)).await;
        assert_eq!(head.status(), StatusCode::OK, "{body:?}: one poison event must not disable the webhook");
    }
    assert_eq!(bench.queue.stats().await.unwrap().depth, 4);
}
