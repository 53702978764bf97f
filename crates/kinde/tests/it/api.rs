//! A Management API for tests: a server that records requests and returns the responses of a test.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use kinde::management::{Client, Config, RetryPolicy};
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub(crate) const SECRET: &str = "s3cr3t-of-the-application";

/// One received request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) authorization: String,
    pub(crate) body: String,
    /// Number of earlier requests of this path.
    pub(crate) earlier: usize,
}

type Handler = dyn Fn(&Seen) -> Response + Send + Sync;

/// A tenant on a real socket. `/oauth2/token` issues `token-1`, `token-2`, … unless a test handles it.
pub(crate) struct Api {
    pub(crate) domain: url::Url,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    answer: Mutex<Arc<Handler>>,
    seen: Mutex<Vec<Seen>>,
    delay: Mutex<Duration>,
}

impl Api {
    #[expect(clippy::disallowed_methods, reason = "the server is aborted when the test drops it")]
    pub(crate) async fn start(answer: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared {
            answer: Mutex::new(Arc::new(answer)),
            seen: Mutex::default(),
            delay: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let domain = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let app = Router::new().fallback(respond).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { domain, shared, task }
    }

    pub(crate) fn answer(&self, answer: impl Fn(&Seen) -> Response + Send + Sync + 'static) {
        *self.shared.answer.lock().unwrap() = Arc::new(answer);
    }

    pub(crate) fn answer_after(&self, delay: Duration) {
        *self.shared.delay.lock().unwrap() = delay;
    }

    pub(crate) fn seen(&self, path: &str) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().iter().filter(|seen| seen.path == path).cloned().collect()
    }

    pub(crate) fn tokens(&self) -> usize {
        self.seen("/oauth2/token").len()
    }

    /// Pauses of a millisecond, four attempts.
    pub(crate) fn config(&self) -> Config {
        let mut config = Config::new(self.domain.clone(), "client-1", SECRET.into());
        config.retry = RetryPolicy {
            max_attempts: 4,
            max_elapsed: Duration::from_secs(30),
            initial_backoff: Duration::from_millis(1),
            max_backoff: Duration::from_millis(5),
        };
        config
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.config()).unwrap()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn respond(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path().to_owned();
    let authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let seen = {
        let mut all = shared.seen.lock().unwrap();
        let earlier = all.iter().filter(|seen| seen.path == path).count();
        let seen = Seen {
            method,
            query: uri.query().unwrap_or_default().to_owned(),
            authorization: authorization.unwrap_or_default(),
            body: String::from_utf8(body.to_vec()).unwrap(),
            earlier,
            path,
        };
        all.push(seen.clone());
        seen
    };
    let delay = *shared.delay.lock().unwrap();
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let answer = Arc::clone(&shared.answer.lock().unwrap());
    let response = answer(&seen);
    if seen.path == "/oauth2/token" && response.status() == StatusCode::NOT_IMPLEMENTED {
        return token(&format!("token-{}", seen.earlier + 1), 3600);
    }
    response
}

/// Makes the server issue a token. For other paths it is an error that is not retried.
pub(crate) fn pass() -> Response {
    StatusCode::NOT_IMPLEMENTED.into_response()
}

pub(crate) fn token(secret: &str, expires_in: u64) -> Response {
    ok(
        &json!({"access_token": secret, "token_type": "Bearer", "expires_in": expires_in, "scope": "read:users"}),
    )
}

pub(crate) fn ok(body: &Value) -> Response {
    axum::Json(body.clone()).into_response()
}

/// `{"errors":[{code,message}]}`, the usual shape.
pub(crate) fn api_error(status: u16, code: &str, message: &str) -> Response {
    let body = json!({"errors": [{"code": code, "message": message}]});
    (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response()
}

pub(crate) fn status(status: u16) -> Response {
    StatusCode::from_u16(status).unwrap().into_response()
}

pub(crate) fn raw(body: impl Into<Body>) -> Response {
    Response::new(body.into())
}

pub(crate) fn html() -> Response {
    axum::response::Html("<h1>maintenance</h1>").into_response()
}

/// `{"errors":{code,message}}`, the other shape.
pub(crate) fn api_error_in_object(status: u16, code: &str) -> Response {
    let body = json!({"errors": {"code": code, "message": "x"}});
    (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response()
}

/// A user as in the API's documentation.
pub(crate) fn user(id: &str) -> Value {
    json!({
        "id": id, "provided_id": null, "email": "a@example.com", "phone": "", "username": null,
        "last_name": "B", "first_name": "A", "is_suspended": false, "picture": null, "total_sign_ins": 3,
        "failed_sign_ins": null, "last_signed_in": "2025-02-12T18:02:23.614638+00:00",
        "created_on": "2025-04-01T13:04:20+11", "organizations": ["org_1"],
        "identities": [{"type": "email", "identity": "a@example.com", "connection_id": null, "new": 1}],
        "billing": {"customer_id": "customer_1"},
    })
}

/// A page of users with these ids.
pub(crate) fn page(ids: &[&str], next_token: &Value) -> Response {
    let users: Vec<Value> = ids.iter().map(|id| user(id)).collect();
    ok(&json!({"code": "OK", "message": "Success", "users": users, "next_token": next_token}))
}
