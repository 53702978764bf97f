//! The webhook endpoint of an application, and a verifier that shares no code with the emulator.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kinde_emulator::{Config, Emulator, WebhookSpec};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

pub(crate) const DEADLINE: Duration = Duration::from_mins(2);

/// A received request.
#[derive(Clone)]
pub(crate) struct Arrival {
    pub(crate) at: Instant,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Arrival {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The payload of a Kinde JWT, not verified.
    pub(crate) fn payload(&self) -> Value {
        claims(std::str::from_utf8(&self.body).unwrap())
    }

    pub(crate) fn kind(&self) -> String {
        self.payload()["type"].as_str().unwrap().to_owned()
    }
}

/// An endpoint on its own port that answers with `status` and records requests.
#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) url: url::Url,
    shared: Arc<Shared>,
}

struct Shared {
    status: AtomicU16,
    arrivals: Mutex<Vec<Arrival>>,
    arrived: Notify,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/webhook", listener.local_addr().unwrap()).parse().unwrap();
        let shared = Arc::new(Shared {
            status: AtomicU16::new(200),
            arrivals: Mutex::default(),
            arrived: Notify::new(),
        });
        let receiver = Self { url, shared };
        let this = receiver.clone();
        let app = Router::new()
            .fallback(move |headers: HeaderMap, body: Bytes| async move { this.receive(headers, body) });
        TaskTracker::new().spawn(async move { axum::serve(listener, app).await });
        receiver
    }

    fn receive(&self, headers: HeaderMap, body: Bytes) -> StatusCode {
        self.shared.arrivals.lock().unwrap().push(Arrival { at: Instant::now(), headers, body });
        self.shared.arrived.notify_waiters();
        StatusCode::from_u16(self.shared.status.load(Ordering::SeqCst)).unwrap()
    }

    pub(crate) fn answer(&self, status: u16) {
        self.shared.status.store(status, Ordering::SeqCst);
    }

    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.shared.arrivals.lock().unwrap().clone()
    }

    /// Waits until `count` requests have arrived.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<Arrival> {
        let arrived = async {
            loop {
                let news = self.shared.arrived.notified();
                tokio::pin!(news);
                news.as_mut().enable();
                if self.arrivals().len() >= count {
                    return;
                }
                news.await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, arrived).await;
        assert!(waited.is_ok(), "{} of {count} requests arrived in time", self.arrivals().len());
        self.arrivals()
    }
}

/// Starts an emulator with one endpoint.
pub(crate) async fn start(config: Config) -> (Emulator, Receiver) {
    let receiver = Receiver::start().await;
    let emulator = Emulator::start(config).await.unwrap();
    emulator.add_webhook(WebhookSpec::new(receiver.url.clone()));
    (emulator, receiver)
}

/// Waits until `ready` is true.
pub(crate) async fn until(what: &str, ready: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !ready() {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        tokio::task::yield_now().await;
    }
}

/// The header and claims of a token without verification.
pub(crate) fn part(token: &str, index: usize) -> Value {
    let text = token.split('.').nth(index).expect("a token has three parts");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap()
}

pub(crate) fn claims(token: &str) -> Value {
    part(token, 1)
}

/// Whether the key of the JWKS with the token's `kid` signed it with RS256.
pub(crate) fn is_signed_by(jwks: &Value, token: &str) -> bool {
    let header = part(token, 0);
    let bytes = |value: &Value| URL_SAFE_NO_PAD.decode(value.as_str().unwrap()).unwrap();
    let Some(key) = jwks["keys"].as_array().unwrap().iter().find(|key| key["kid"] == header["kid"]) else {
        return false;
    };
    let (message, signature) = token.rsplit_once('.').unwrap();
    let key = RsaPublicKeyComponents { n: bytes(&key["n"]), e: bytes(&key["e"]) };
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    header["alg"] == "RS256"
        && key.verify(&RSA_PKCS1_2048_8192_SHA256, message.as_bytes(), &signature).is_ok()
}

/// An HTTP client with a timeout.
pub(crate) fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(DEADLINE).no_proxy().build().unwrap()
}

/// The status and the JSON of a GET.
pub(crate) async fn get(url: &str, token: Option<&str>) -> (u16, Value) {
    let mut request = client().get(url);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}
