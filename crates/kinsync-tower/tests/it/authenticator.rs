//! The layer on real parts: tokens of a local Kinde, a queue on disk, stores that fail for real.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bson::doc;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use kinde::{
    Jwks,
    account::{self, ProfileClient},
    bearer::{self, AccessToken, CachingConfig, CachingVerifier, Verifier},
    jwks,
};
use kinde_emulator::{Emulator, Fault, FaultKind, NewUser, TokenSpec};
use kinsync_core::{Field, Micros, Observation, Profile, Source, UserDocument, UserId, Version, What};
use kinsync_engine::{
    Clock,
    internal::{
        apply::apply,
        breaker::{self, Breaker},
        projector::{self, Projector},
        queue::{
            Queue,
            embedded::{Config as QueueConfig, EmbeddedQueue},
        },
        store::{
            Store, UserFilter,
            embedded::EmbeddedStore,
            mongo::{self, MongoStore},
        },
        supervisor::Supervisor,
    },
};
use kinsync_testing::mongo::TestMongo;
use kinsync_tower::{
    Authenticator, CurrentUser, KinsyncLayer,
    authenticator::{self, Claims, Config},
};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceExt, service_fn};

/// Longer than anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// One process: an authenticator on a store that others may share, a queue of its own.
pub(crate) struct Process {
    pub(crate) authenticator: Authenticator,
    pub(crate) queue: Arc<dyn Queue>,
    store: Arc<dyn Store>,
    pub(crate) supervisor: Supervisor,
    _folder: tempfile::TempDir,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

pub(crate) async fn kinde() -> Emulator {
    Emulator::start(kinde_emulator::Config::default()).await.unwrap()
}

pub(crate) fn embedded() -> (Arc<dyn Store>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Arc::new(EmbeddedStore::open(folder.path()).unwrap()), folder)
}

pub(crate) async fn on_mongo(server: &TestMongo) -> Arc<dyn Store> {
    let config = mongo::Config { database: Some(server.database()), ..mongo::Config::new(server.uri()) };
    let store = MongoStore::connect(config).await.unwrap();
    store.prepare().await.unwrap();
    Arc::new(store)
}

impl Process {
    pub(crate) fn start(kinde: &Emulator, store: &Arc<dyn Store>, config: Config) -> Self {
        Self::with_audiences(kinde, store, config, Vec::new())
    }

    fn with_claims(kinde: &Emulator, store: &Arc<dyn Store>, claims: impl Claims + 'static) -> Self {
        Self::of(kinde, store, Config::default(), Vec::new(), Arc::new(claims))
    }

    pub(crate) fn with_audiences(
        kinde: &Emulator,
        store: &Arc<dyn Store>,
        config: Config,
        audiences: Vec<String>,
    ) -> Self {
        Self::of(kinde, store, config, audiences, Arc::new(authenticator::claims::Email))
    }

    fn of(
        kinde: &Emulator,
        store: &Arc<dyn Store>,
        config: Config,
        audiences: Vec<String>,
        claims: Arc<dyn Claims>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let queue = EmbeddedQueue::open(folder.path(), QueueConfig::default(), clock.clone()).unwrap();
        let queue: Arc<dyn Queue> = Arc::new(queue);
        let jwks = Jwks::new(jwks::Config::new(kinde.issuer().parse().unwrap())).unwrap();
        let issuers = vec![(kinde.issuer().to_owned(), jwks)];
        let verifier = Verifier::new(bearer::Config { issuers, audiences, ..bearer::Config::default() });
        let tokens = CachingVerifier::new(verifier, &CachingConfig::default());
        let profiles = ProfileClient::new(account::Config::new(kinde.issuer().parse().unwrap())).unwrap();
        let parts = authenticator::Dependencies {
            tokens,
            store: Arc::clone(store),
            queue: Arc::clone(&queue),
            clock,
            profiles: vec![(kinde.issuer().to_owned(), profiles)],
            claims,
        };
        let (authenticator, work) = Authenticator::new(parts, config);
        let supervisor = Supervisor::default();
        let work = Arc::new(work);
        supervisor.spawn("authenticator", move |stop| {
            let work = Arc::clone(&work);
            async move { work.run(stop).await }
        });
        Self { authenticator, queue, store: Arc::clone(store), supervisor, _folder: folder }
    }

    /// Sends a request through the layer; the service behind tells what it sees.
    pub(crate) async fn send(&self, request: Request<()>) -> Answer {
        let service = service_fn(async |request: Request<()>| {
            let user = request.extensions().get::<CurrentUser>().unwrap();
            let own = request.headers().keys().filter(|name| name.as_str().starts_with("x-kinsync")).count();
            let body = serde_json::json!({
                "id": user.id(), "email": user.email(), "stored": user.document().is_some(), "own": own,
            });
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(body.to_string())))
        });
        let response =
            KinsyncLayer::new(self.authenticator.clone()).layer(service).oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, body: serde_json::from_slice(&body).unwrap() }
    }

    pub(crate) async fn get(&self, token: &str) -> Answer {
        self.send(Request::get("/").header("authorization", format!("Bearer {token}")).body(()).unwrap())
            .await
    }

    /// Runs the projector until the queue is empty.
    async fn project(&self) {
        let breaker = Breaker::new("store", "projector", breaker::Config::default());
        let (queue, store) = (Arc::clone(&self.queue), Arc::clone(&self.store));
        let projector = Projector::new(queue, store, breaker, Clock::system(), projector::Config::default());
        let stop = CancellationToken::new();
        let empty = async {
            until(async || self.queue.stats().await.unwrap().depth == 0).await;
            stop.cancel();
        };
        tokio::join!(projector.run(stop.clone()), empty);
    }

    async fn finish(&self) {
        self.supervisor.stop().await;
    }
}

pub(crate) async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "waited in vain");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn token(kinde: &Emulator, email: &str) -> (String, String) {
    let user = kinde.import_user(NewUser::named(email, "Ada", "Lovelace")).unwrap();
    let spec = TokenSpec { email: Some(true), ..TokenSpec::default() };
    let token = kinde.access_token(&user.id, &spec).unwrap();
    (user.id, token)
}

pub(crate) async fn stored(store: &Arc<dyn Store>, id: &str) -> Option<UserDocument> {
    let rows = store.load(&[UserId::parse(id).unwrap()]).await.unwrap();
    rows.into_iter().flatten().next().map(|row| row.document())
}

pub(crate) async fn tell(store: &Arc<dyn Store>, id: &str, what: What) {
    let (user, now) = (UserId::parse(id).unwrap(), Clock::system().now());
    let version = Version::event(now, "event_1");
    apply(&**store, [Observation { user, version, source: Source::Webhook, what }], now).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_request_of_a_user_finds_the_user_stored() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let process = Process::start(&kinde, &store, Config::default());
    let (id, token) = token(&kinde, "ada@example.com");
    let answer = process.get(&token).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!(answer.body["stored"], true);
    assert!(!answer.headers.contains_key("x-kinsync-degraded"));
    let ada = stored(&store, &id).await.unwrap();
    assert_eq!((ada.email.as_deref(), ada.source), (Some("ada@example.com"), Some(Source::Login)));
    tell(&store, &id, What::Fields(Profile::new().with(Field::Email, "new@example.com"))).await;
    assert_eq!(stored(&store, &id).await.unwrap().email.as_deref(), Some("new@example.com"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_request_waits_for_a_store_that_is_still_being_prepared() {
    let (kinde, server) = (kinde().await, TestMongo::shared().await);
    let config = mongo::Config { database: Some(server.database()), ..mongo::Config::new(server.uri()) };
    let store = Arc::new(MongoStore::connect(config).await.unwrap());
    let shared: Arc<dyn Store> = store.clone();
    let process = Process::start(&kinde, &shared, Config { deadline: PATIENCE, ..Config::default() });
    let (_, token) = token(&kinde, "ada@example.com");
    let prepared = async {
        // Long enough for the breaker to open, if it counted the refusals until now.
        tokio::time::sleep(Duration::from_millis(300)).await;
        store.prepare().await.unwrap();
    };
    let (answer, ()) = tokio::join!(process.get(&token), prepared);
    assert_eq!((answer.status, &answer.body["stored"]), (StatusCode::OK, &Value::Bool(true)));
    assert!(!answer.headers.contains_key("x-kinsync-degraded"));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_first_requests_at_once_in_many_processes_make_each_user_once() {
    let server = TestMongo::shared().await;
    let (embedded, _folder) = embedded();
    for store in [on_mongo(server).await, embedded] {
        let kinde = kinde().await;
        let config = Config { deadline: PATIENCE, ..Config::default() };
        let processes: Vec<_> = (0..3).map(|_| Process::start(&kinde, &store, config)).collect();
        let tokens: Vec<_> = (0..100).map(|n| token(&kinde, &format!("u{n}@example.com")).1).collect();
        let requests = tokens.iter().flat_map(|token| processes.iter().map(|p| p.get(token)));
        for answer in futures_util::future::join_all(requests).await {
            assert_eq!((answer.status, &answer.body["stored"]), (StatusCode::OK, &Value::Bool(true)));
        }
        let all = UserFilter { limit: 1000, with_deleted: true, ..UserFilter::default() };
        assert_eq!(store.users(&all).await.unwrap().len(), 100);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_and_suspended_users_are_refused_within_a_second_in_every_process() {
    let changes = [
        ("deleted", What::Deleted),
        ("suspended", What::Fields(Profile::new().with(Field::IsSuspended, true))),
    ];
    for (reason, change) in changes {
        let (kinde, (store, _folder)) = (kinde().await, embedded());
        let processes: Vec<_> = (0..3).map(|_| Process::start(&kinde, &store, Config::default())).collect();
        let (id, token) = token(&kinde, "ada@example.com");
        for process in &processes {
            assert_eq!(process.get(&token).await.status, StatusCode::OK);
        }
        tell(&store, &id, change).await;
        let told = Instant::now();
        for process in &processes {
            until(async || process.get(&token).await.status == StatusCode::FORBIDDEN).await;
        }
        assert!(told.elapsed() < Duration::from_secs(1), "{:?}", told.elapsed());
        let answer = processes[0].get(&token).await;
        assert_eq!((answer.status, &answer.body["reason"]), (StatusCode::FORBIDDEN, &Value::from(reason)));
        if reason == "deleted" {
            assert!(stored(&store, &id).await.unwrap().is_deleted, "a token does not bring anybody back");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_and_suspensions_that_a_validator_refuses_are_honoured() {
    let server = TestMongo::shared().await;
    let config = mongo::Config { database: Some(server.database()), ..mongo::Config::new(server.uri()) };
    let mongo = MongoStore::connect(config).await.unwrap();
    mongo.prepare().await.unwrap();
    let (kinde, store): (_, Arc<dyn Store>) = (kinde().await, Arc::new(mongo.clone()));
    let process = Process::start(&kinde, &store, Config { deadline: PATIENCE, ..Config::default() });
    let (ada, eve) = (token(&kinde, "ada@example.com"), token(&kinde, "eve@example.com"));
    for (_, token) in [&ada, &eve] {
        assert_eq!(process.get(token).await.status, StatusCode::OK);
    }
    let validator = doc! { "$jsonSchema": { "required": ["tenant"] } };
    mongo.database().run_command(doc! { "collMod": "users", "validator": validator }).await.unwrap();
    tell(&store, &ada.0, What::Deleted).await;
    tell(&store, &eve.0, What::Fields(Profile::new().with(Field::IsSuspended, true))).await;
    for ((_, token), reason) in [(&ada, "deleted"), (&eve, "suspended")] {
        until(async || process.get(token).await.status == StatusCode::FORBIDDEN).await;
        assert_eq!(process.get(token).await.body["reason"], reason);
    }
    process.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_whom_nobody_waits_for_are_loaded_together() {
    let (kinde, server) = (kinde().await, TestMongo::start_own().await);
    let store = on_mongo(&server).await;
    // Nobody becomes so old that a request waits.
    let config =
        Config { refresh_after: Duration::from_secs(1), stale_after: PATIENCE * 2, ..Config::default() };
    let process = Process::start(&kinde, &store, config);
    let tokens: Vec<_> = (0..200).map(|n| token(&kinde, &format!("u{n}@example.com"))).collect();
    let named = async |name: &str| {
        for (n, (id, _)) in tokens.iter().enumerate() {
            let email = format!("{name}{n}@example.com");
            tell(&store, id, What::Fields(Profile::new().with(Field::Email, email.as_str()))).await;
        }
    };
    let admin = server.client().await.database("admin");
    let finds = async || {
        let status = admin.run_command(doc! { "serverStatus": 1 }).await.unwrap();
        status.get_document("opcounters").unwrap().get_i64("query").unwrap()
    };
    named("old").await;
    for (_, token) in &tokens {
        assert_eq!(process.get(token).await.body["stored"], true);
    }
    named("new").await;
    tokio::time::sleep(config.refresh_after).await;
    let (before, started) = (finds().await, Instant::now());
    for (n, (_, token)) in tokens.iter().enumerate() {
        let email = process.get(token).await.body["email"].clone();
        assert_eq!(email, format!("old{n}@example.com"), "nobody waits");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    for (n, (_, token)) in tokens.iter().enumerate() {
        let email = format!("new{n}@example.com");
        until(async || process.get(token).await.body["email"] == email.as_str()).await;
    }
    let loads = finds().await - before;
    let gathered = i64::try_from(started.elapsed().as_millis() / 50).unwrap();
    assert!(loads <= gathered + 5, "{loads} loads for {} users", tokens.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_json_of_a_user_is_made_once_for_each_change() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    // Each request loads the user.
    let config = Config { stale_after: Duration::ZERO, flush_every: PATIENCE, ..Config::default() };
    let process = Process::start(&kinde, &store, config);
    let (id, token) = token(&kinde, "ada@example.com");
    let named =
        async |name| tell(&store, &id, What::Fields(Profile::new().with(Field::FirstName, name))).await;
    let bearer = format!("Bearer {token}").parse().unwrap();
    let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, bearer)]);
    let json = async || process.authenticator.authenticate(&headers).await.unwrap().json();
    named("Ada").await;
    let (first, again) = (json().await, json().await);
    assert_eq!(first.body().as_ptr(), again.body().as_ptr(), "the user did not change");
    named("Augusta").await;
    let changed = json().await;
    let body: Value = serde_json::from_slice(changed.body()).unwrap();
    assert_eq!((&body["kindeId"], &body["firstName"]), (&id.as_str().into(), &"Augusta".into()));
    assert_ne!(changed.etag(), first.etag());
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_in_the_name_of_kinsync_do_not_get_through() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let process = Process::start(&kinde, &store, Config::default());
    let (_, token) = token(&kinde, "ada@example.com");
    let request = Request::get("/")
        .header("authorization", format!("Bearer {token}"))
        .header("X-Kinsync-User-Id", "kp_admin")
        .header("x-kinsync-user-id", "kp_root")
        .header("x-kinsync-email", "root@example.com");
    let answer = process.send(request.body(()).unwrap()).await;
    assert_eq!(answer.body["own"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_noted_as_last_seen_and_written_behind() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let config = Config { flush_every: Duration::from_millis(20), ..Config::default() };
    let process = Process::start(&kinde, &store, config);
    let (id, token) = token(&kinde, "ada@example.com");
    let before = Clock::system().now();
    process.get(&token).await;
    until(async || stored(&store, &id).await.unwrap().last_seen_at.is_some_and(|at| at >= before)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pending_of_last_seen_is_written_at_the_end() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let process = Process::start(&kinde, &store, Config::default());
    let (id, token) = token(&kinde, "ada@example.com");
    process.get(&token).await;
    process.finish().await;
    assert!(stored(&store, &id).await.unwrap().last_seen_at > Some(Micros(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_degrades_requests_within_the_deadline_and_loses_nobody() {
    let (kinde, server) = (kinde().await, TestMongo::start_own().await);
    let store = on_mongo(&server).await;
    let config = Config::default();
    let process = Process::start(&kinde, &store, config);
    let (gone, gone_token) = token(&kinde, "gone@example.com");
    let (known, known_token) = token(&kinde, "known@example.com");
    assert_eq!(process.get(&gone_token).await.status, StatusCode::OK);
    assert_eq!(process.get(&known_token).await.body["stored"], true);
    tell(&store, &gone, What::Deleted).await;
    until(async || process.get(&gone_token).await.status == StatusCode::FORBIDDEN).await;
    server.pause();
    tokio::time::sleep(config.stale_after).await;
    let bound = config.deadline + config.sighting_deadline + Duration::from_millis(500);
    let mut made = Vec::new();
    for n in 0..8 {
        let (id, token) = token(&kinde, &format!("u{n}@example.com"));
        let began = Instant::now();
        let answer = process.get(&token).await;
        assert!(began.elapsed() < bound, "request {n}: {:?}", began.elapsed());
        assert_eq!((answer.status, &answer.body["stored"]), (StatusCode::OK, &Value::Bool(false)));
        assert_eq!(answer.headers["x-kinsync-degraded"], "true");
        made.push(id);
    }
    let answer = process.get(&known_token).await;
    assert_eq!((answer.body["id"].as_str(), &answer.body["stored"]), (Some(&*known), &Value::Bool(true)));
    assert_eq!(answer.headers["x-kinsync-degraded"], "true");
    assert_eq!(process.get(&gone_token).await.status, StatusCode::FORBIDDEN, "a refusal outlives the store");
    assert_eq!(process.queue.stats().await.unwrap().depth, 8, "who was seen is on disk");
    server.resume();
    process.project().await;
    for id in made {
        assert!(stored(&store, &id).await.is_some(), "{id} appears without another request");
    }
    until(async || !process.get(&known_token).await.headers.contains_key("x-kinsync-degraded")).await;
}

/// Tokens of an application that had Kinde add a name to them.
#[derive(Debug)]
struct Named;

impl Claims for Named {
    fn profile(&self, token: &AccessToken) -> Profile {
        let name = token.claims.get("first_name").and_then(Value::as_str).unwrap_or_default();
        authenticator::claims::Email.profile(token).with(Field::FirstName, name)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_of_the_applications_own_fill_a_new_user_and_kinde_outranks_them() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    kinde.set_fault(Fault::always(FaultKind::Status { status: 503 }).on("profile"));
    let ada = kinde.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap().id;
    let claims = serde_json::json!({ "first_name": "Token", "email": "token@example.com" });
    let claims = claims.as_object().unwrap().clone();
    let token = kinde.access_token(&ada, &TokenSpec { claims, ..TokenSpec::default() }).unwrap();
    let process = Process::with_claims(&kinde, &store, Named);
    assert_eq!(process.get(&token).await.body["email"], "token@example.com");
    let first_name = async || stored(&store, &ada).await.unwrap().first_name;
    assert_eq!(first_name().await.as_deref(), Some("Token"));
    kinde.clear_faults();
    until(async || {
        process.get(&token).await;
        first_name().await.as_deref() == Some("Ada")
    })
    .await;
}

/// Claims with a fault: the first call panics, in the task that loads users.
#[derive(Debug, Default)]
struct PanicsOnce(AtomicBool);

impl Claims for PanicsOnce {
    fn profile(&self, token: &AccessToken) -> Profile {
        assert!(self.0.swap(true, Ordering::SeqCst), "a fault in the application's claims");
        authenticator::claims::Email.profile(token)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_the_loader_is_reported_and_degrades_requests_only_for_a_moment() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let ada = kinde.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap().id;
    let process = Process::with_claims(&kinde, &store, PanicsOnce::default());
    let token = kinde.access_token(&ada, &TokenSpec::default()).unwrap();
    let answer = process.get(&token).await;
    assert!(answer.headers.contains_key("x-kinsync-degraded"), "the load panicked");
    let status = process.supervisor.status()["authenticator"].clone();
    assert!(status.failure.is_some_and(|cause| cause.contains("a fault in the application's claims")));
    until(async || !process.get(&token).await.headers.contains_key("x-kinsync-degraded")).await;
    assert_eq!(process.supervisor.status()["authenticator"].restarts, 1);
    process.finish().await;
}
