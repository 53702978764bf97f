//! One process of an application: an engine on a store that several processes may share, and the layer in front of a service.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use kinde::{
    Jwks,
    account::{self, ProfileClient},
    bearer::{self, CachingConfig, CachingVerifier, Verifier},
    jwks,
};
use kinde_emulator::{Emulator, NewUser, TokenSpec};
use kinsync_core::{Observation, Source, UserDocument, UserId, Version, What};
use kinsync_engine::{
    Clock, Engine,
    internal::{
        apply::apply,
        store::{
            Store,
            embedded::EmbeddedStore,
            mongo::{self, MongoStore},
        },
    },
};
use kinsync_testing::mongo::TestMongo;
use kinsync_tower::{
    Authenticator, CurrentUser, KinsyncLayer,
    authenticator::{Claims, Config, Sources, claims},
};
use serde_json::Value;
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};

/// Longer than any step of these tests takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

/// An authenticator and its engine. The store may be shared with other processes; the queue is its own.
pub(crate) struct Process {
    pub(crate) authenticator: Authenticator,
    pub(crate) engine: Engine,
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

/// A store in a database of its own, without its indexes.
pub(crate) async fn unprepared(server: &TestMongo) -> MongoStore {
    let config = mongo::Config { database: Some(server.database()), ..mongo::Config::new(server.uri()) };
    MongoStore::connect(config).await.unwrap()
}

pub(crate) async fn on_mongo(server: &TestMongo) -> Arc<dyn Store> {
    let store = unprepared(server).await;
    store.prepare().await.unwrap();
    Arc::new(store)
}

impl Process {
    pub(crate) async fn start(kinde: &Emulator, store: &Arc<dyn Store>, config: Config) -> Self {
        Self::with_audiences(kinde, store, config, Vec::new()).await
    }

    pub(crate) async fn start_three(kinde: &Emulator, store: &Arc<dyn Store>, config: Config) -> Vec<Self> {
        join_all((0..3).map(|_| Self::start(kinde, store, config))).await
    }

    pub(crate) async fn with_claims(
        kinde: &Emulator,
        store: &Arc<dyn Store>,
        claims: impl Claims + 'static,
    ) -> Self {
        Self::of(kinde, store, Config::default(), Vec::new(), Arc::new(claims)).await
    }

    pub(crate) async fn with_audiences(
        kinde: &Emulator,
        store: &Arc<dyn Store>,
        config: Config,
        audiences: Vec<String>,
    ) -> Self {
        Self::of(kinde, store, config, audiences, Arc::new(claims::Email)).await
    }

    async fn of(
        kinde: &Emulator,
        store: &Arc<dyn Store>,
        config: Config,
        audiences: Vec<String>,
        claims: Arc<dyn Claims>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::builder(folder.path()).store(Arc::clone(store)).open().await.unwrap();
        Self::with_engine(kinde, engine, folder, config, audiences, claims)
    }

    /// With an engine that is not started, so that its store is not prepared.
    pub(crate) async fn on_mongodb(kinde: &Emulator, server: &TestMongo, config: Config) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mongodb = mongo::Config { database: Some(server.database()), ..mongo::Config::new(server.uri()) };
        let engine = Engine::builder(folder.path()).mongodb(mongodb).open().await.unwrap();
        Self::with_engine(kinde, engine, folder, config, Vec::new(), Arc::new(claims::Email))
    }

    fn with_engine(
        kinde: &Emulator,
        engine: Engine,
        folder: tempfile::TempDir,
        config: Config,
        audiences: Vec<String>,
        claims: Arc<dyn Claims>,
    ) -> Self {
        let jwks = Jwks::new(jwks::Config::new(kinde.issuer().parse().unwrap())).unwrap();
        let issuers = vec![(kinde.issuer().to_owned(), jwks)];
        let verifier = Verifier::new(bearer::Config { issuers, audiences, ..bearer::Config::default() });
        let tokens = CachingVerifier::new(verifier, &CachingConfig::default());
        let profiles = ProfileClient::new(account::Config::new(kinde.issuer().parse().unwrap())).unwrap();
        let sources = Sources { tokens, profiles: vec![(kinde.issuer().to_owned(), profiles)], claims };
        Self { authenticator: Authenticator::start(&engine, sources, config), engine, _folder: folder }
    }

    /// Sends a request through the layer. The service behind it responds with what it receives.
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

    /// Starts the projector and waits until the queue is empty.
    pub(crate) async fn project(&self) {
        self.engine.start();
        until(async || self.engine.queue().stats().await.unwrap().depth == 0).await;
    }
}

pub(crate) async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "the condition is not met within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Sends requests until one is refused. Those that are sent a second after the change or later have to be, however long the machine
/// takes to answer them.
pub(crate) async fn refused_within_a_second(changed: Instant, request: impl AsyncFn() -> StatusCode) {
    loop {
        let sent = changed.elapsed();
        match request().await {
            StatusCode::FORBIDDEN => return,
            status => assert!(sent < Duration::from_secs(1), "{status} for a request after {sent:?}"),
        }
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

/// Writes an observation, as the projector of another process would.
pub(crate) async fn observe(store: &Arc<dyn Store>, id: &str, what: What) {
    let (user, now) = (UserId::parse(id).unwrap(), Clock::system().now());
    let version = Version::event(now, "event_1");
    apply(&**store, [Observation { user, version, source: Source::Webhook, what }], now).await.unwrap();
}
