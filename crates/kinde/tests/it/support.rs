//! A tenant for tests: keys, tokens, and a server that counts requests.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use kinde::Jwks;
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub(crate) const ISSUER: &str = "https://acme.kinde.com";
/// Contains colons like the key ids of Kinde.
pub(crate) const KID: &str = "4c:fa:9e:d6";

pub(crate) struct TestKey {
    pair: KeyPair,
}

impl TestKey {
    pub(crate) fn generate(size: KeySize) -> Self {
        Self { pair: KeyPair::generate(size).unwrap() }
    }

    pub(crate) fn jwk(&self, kid: &str) -> Value {
        // PKCS#1: the modulus precedes the exponent 65537, in DER `02 03 01 00 01`.
        let der = self.pair.public_key().as_ref();
        let end = der.len() - 5;
        assert_eq!(der[end..], [2, 3, 1, 0, 1]);
        let modulus = &der[end - self.pair.public_modulus_len()..end];
        json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": URL_SAFE_NO_PAD.encode(modulus), "e": "AQAB"})
    }

    pub(crate) fn public_der(&self) -> Vec<u8> {
        self.pair.public_key().as_ref().to_vec()
    }

    /// Signs raw header and payload bytes, valid or not.
    pub(crate) fn sign_raw(&self, header: &[u8], payload: &[u8]) -> String {
        let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input.as_bytes(), &mut signature).unwrap();
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    pub(crate) fn sign(&self, header: &Value, payload: &Value) -> String {
        self.sign_raw(&serde_json::to_vec(header).unwrap(), &serde_json::to_vec(payload).unwrap())
    }
}

/// The tenant's key. Generated once because generation is slow.
pub(crate) fn tenant_key() -> &'static TestKey {
    static KEY: OnceLock<TestKey> = OnceLock::new();
    KEY.get_or_init(|| TestKey::generate(KeySize::Rsa2048))
}

/// A key that no tenant has.
pub(crate) fn foreign_key() -> &'static TestKey {
    static KEY: OnceLock<TestKey> = OnceLock::new();
    KEY.get_or_init(|| TestKey::generate(KeySize::Rsa2048))
}

pub(crate) fn fixed_jwks(keys: &[Value]) -> Jwks {
    let document = serde_json::to_vec(&json!({ "keys": keys })).unwrap();
    Jwks::from_document(&kinde::parse_domain(ISSUER).unwrap(), &document).unwrap()
}

pub(crate) fn tenant_jwks() -> Jwks {
    fixed_jwks(&[tenant_key().jwk(KID)])
}

pub(crate) fn header() -> Value {
    json!({"alg": "RS256", "kid": KID, "typ": "JWT"})
}

pub(crate) fn now() -> Timestamp {
    kinde::timestamp::parse("2024-05-01T08:00:00Z").unwrap()
}

/// The claims of a webhook of Kinde.
pub(crate) fn webhook_claims() -> Value {
    json!({
        "data": {"user": {"id": "kp_1", "email": "a@example.com", "first_name": "A", "last_name": null,
            "is_suspended": false, "organizations": [{"code": "org_1", "permissions": null, "roles": null}]}},
        "event_id": "event_018f331a3178f7fef284b95fe6770384",
        "source": "admin",
        "timestamp": "2024-05-01T17:41:45.592145+10:00",
        "type": "user.updated",
    })
}

/// The claims of an access token as in Kinde's documentation.
pub(crate) fn access_claims() -> Value {
    let now = now().as_second();
    json!({
        "aud": [], "azp": "dee7f3c57b3c47e8b96edde2c7ecab7d", "exp": now + 86_400, "iat": now, "iss": ISSUER,
        "jti": "fbb6bc62", "org_code": "org_1", "permissions": ["create:x"], "scp": ["openid", "offline"], "sub": "kp_1",
        "feature_flags": {"theme": {"t": "s", "v": "pink"}},
    })
}

pub(crate) fn id_token_claims() -> Value {
    let now = now().as_second();
    json!({
        "at_hash": "VZ6cU0Ay0RKB5EosbWuTCQ", "aud": [ISSUER], "auth_time": now, "azp": "dee7f3c5",
        "email": "a@example.com", "exp": now + 3600, "iat": now, "iss": ISSUER, "jti": "x", "name": "A B",
        "org_codes": ["org_1"], "sub": "kp_1", "updated_at": now,
    })
}

pub(crate) fn machine_claims() -> Value {
    let now = now().as_second();
    json!({
        "aud": ["api"], "azp": "d4d3c5b7", "exp": now + 86_400, "gty": ["client_credentials"], "iat": now,
        "iss": ISSUER, "jti": "x", "scope": "read:users", "scp": ["read:users"], "v": "2",
    })
}

/// The JSON with members set or, for null, removed.
pub(crate) fn with(mut value: Value, changes: &Value) -> Value {
    for (name, change) in changes.as_object().unwrap() {
        if change.is_null() {
            value.as_object_mut().unwrap().remove(name);
        } else {
            value[name] = change.clone();
        }
    }
    value
}

/// Returns the response for a path.
pub(crate) type Handler = dyn Fn(&str) -> Response + Send + Sync;

/// A tenant on a real socket.
pub(crate) struct Server {
    pub(crate) domain: url::Url,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    answer: Mutex<Arc<Handler>>,
    delay_ms: AtomicU64,
    requests: AtomicUsize,
}

impl Server {
    #[expect(clippy::disallowed_methods, reason = "the server is aborted when the test drops it")]
    pub(crate) async fn start(answer: impl Fn(&str) -> Response + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared {
            answer: Mutex::new(Arc::new(answer)),
            delay_ms: AtomicU64::new(0),
            requests: AtomicUsize::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let domain = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let app = Router::new().fallback(respond).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { domain, shared, task }
    }

    /// Starts a server that returns these keys for every path.
    pub(crate) async fn with_keys(keys: Vec<Value>) -> Self {
        Self::start(move |_| key_set(&keys)).await
    }

    pub(crate) fn answer(&self, answer: impl Fn(&str) -> Response + Send + Sync + 'static) {
        *self.shared.answer.lock().unwrap() = Arc::new(answer);
    }

    pub(crate) fn answer_with_keys(&self, keys: Vec<Value>) {
        self.answer(move |_| key_set(&keys));
    }

    pub(crate) fn answer_after(&self, delay: Duration) {
        self.shared.delay_ms.store(u64::try_from(delay.as_millis()).unwrap(), Ordering::SeqCst);
    }

    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn key_set(keys: &[Value]) -> Response {
    axum::Json(json!({ "keys": keys })).into_response()
}

pub(crate) fn status(status: StatusCode) -> Response {
    status.into_response()
}

async fn respond(State(shared): State<Arc<Shared>>, uri: Uri) -> Response {
    shared.requests.fetch_add(1, Ordering::SeqCst);
    let delay = shared.delay_ms.load(Ordering::SeqCst);
    if delay > 0 {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let answer = Arc::clone(&shared.answer.lock().unwrap());
    answer(uri.path())
}

/// Waits until the predicate is true, for at most a minute.
pub(crate) async fn eventually(holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), wait).await.expect("the predicate stayed false");
}
