//! An authenticator on a store in a folder, its users, and their tokens.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use http::{HeaderMap, HeaderValue, header};
use jiff::Timestamp;
use kinde::Jwks;
use kinde::bearer::{self, CachingConfig, CachingVerifier, Verifier};
use kinsync_core::{Field, Micros, Observation, Organization, Profile, Source, UserId, Value, Version, What};
use kinsync_engine::apply::apply;
use kinsync_engine::clock::Clock;
use kinsync_engine::queue::Queue;
use kinsync_engine::queue::embedded::{self, EmbeddedQueue};
use kinsync_engine::store::Store;
use kinsync_engine::store::embedded::EmbeddedStore;
use kinsync_tower::authenticator::{self, Authenticator};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::key::FreeKey;

const ISSUER: &str = "https://acme.kinde.com";
const ORG: &str = "org_590d7f1a86a";
/// Users written at once.
const BATCH: usize = 5_000;

/// The tenant, and where its users are stored.
#[derive(Debug)]
pub struct Town {
    key: FreeKey,
    jwks: Jwks,
    store: Arc<dyn Store>,
    queue: Arc<dyn Queue>,
    now: Timestamp,
}

impl Town {
    /// With this many users, each as a webhook tells of them, and seen a moment ago.
    pub async fn with(folder: &Path, users: usize) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let key = FreeKey::new();
        let issuer = kinde::parse_domain(ISSUER)?;
        let jwks = Jwks::from_document(&issuer, key.jwks().to_string().as_bytes())?;
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(folder)?);
        let queue = EmbeddedQueue::open(&folder.join("queue"), embedded::Config::default(), Clock::system())?;
        let town = Self { key, jwks, store, queue: Arc::new(queue), now: Timestamp::now() };
        for first in (0..users).step_by(BATCH) {
            let told = (first..users.min(first + BATCH)).flat_map(|user| town.told(user));
            let applied = apply(&*town.store, told, town.micros()).await?;
            anyhow::ensure!(applied.rejected.is_empty(), "the store refused users");
        }
        Ok(town)
    }

    fn micros(&self) -> Micros {
        Micros(self.now.as_microsecond())
    }

    fn told(&self, number: usize) -> [Observation; 2] {
        let user = UserId::parse(&user_id(number)).expect("an id is short text");
        let organization = Organization { code: ORG.to_owned(), roles: Vec::new(), permissions: Vec::new() };
        let profile = Profile::new()
            .with(Field::Email, format!("daniel.rivers.{number}@example.com").as_str())
            .with(Field::FirstName, "Daniel")
            .with(Field::LastName, format!("Rivers{number:07}").as_str())
            .with(Field::Username, format!("daniel{number}").as_str())
            .with(Field::Organizations, Value::Organizations(vec![organization]));
        let version = Version::event(self.micros(), format!("event_{number:032x}"));
        let told = |version, source, what| Observation { user: user.clone(), version, source, what };
        [
            told(version, Source::Webhook, What::Fields(profile)),
            told(Version::provisional(), Source::Login, What::Seen(self.micros())),
        ]
    }

    /// Remembers this many tokens.
    pub fn tokens(&self, entries: usize) -> CachingVerifier {
        let issuers = vec![(ISSUER.to_owned(), self.jwks.clone())];
        let verifier = Verifier::new(bearer::Config { issuers, ..bearer::Config::default() });
        CachingVerifier::new(verifier, &CachingConfig { entries, ..CachingConfig::default() })
    }

    /// An authenticator, with the work beside it.
    pub fn open(&self, tokens: &CachingVerifier, config: authenticator::Config) -> Running {
        let (store, queue) = (Arc::clone(&self.store), Arc::clone(&self.queue));
        let claims = Arc::new(authenticator::claims::Email);
        let (tokens, clock) = (tokens.clone(), Clock::system());
        let parts = authenticator::Dependencies { tokens, store, queue, clock, profiles: Vec::new(), claims };
        let (authenticator, work) = Authenticator::new(parts, config);
        let stop = CancellationToken::new();
        let work = tokio::spawn(work.run(stop.clone()));
        Running { authenticator, stop, work }
    }

    /// The token of this user.
    pub fn token(&self, number: usize) -> String {
        self.key.sign(&claims(number, self.now))
    }

    /// What a request of this user carries.
    pub fn headers(&self, number: usize) -> anyhow::Result<HeaderMap> {
        let bearer = HeaderValue::try_from(format!("Bearer {}", self.token(number)))?;
        Ok(HeaderMap::from_iter([(header::AUTHORIZATION, bearer)]))
    }

    /// What time it is for its tokens.
    pub fn now(&self) -> Timestamp {
        self.now
    }
}

/// An authenticator whose work runs.
#[derive(Debug)]
pub struct Running {
    /// To be asked.
    pub authenticator: Authenticator,
    stop: CancellationToken,
    work: JoinHandle<()>,
}

impl Running {
    /// Ends the work, so that nothing is held any more.
    pub async fn end(self) -> anyhow::Result<()> {
        self.stop.cancel();
        Ok(self.work.await?)
    }
}

/// The id of the user with this number.
pub fn user_id(number: usize) -> String {
    format!("kp_{number:032x}")
}

/// As Kinde's documentation shows them.
pub fn claims(number: usize, now: Timestamp) -> serde_json::Value {
    let now = now.as_second();
    json!({
        "aud": [], "azp": "dee7f3c57b3c47e8b96edde2c7ecab7d", "exp": now + 86_400, "iat": now, "iss": ISSUER,
        "jti": format!("fbb6bc62-c5c2-4eac-8a1b-{number:012}"), "org_code": ORG,
        "permissions": ["create:todos", "read:todos"], "scp": ["openid", "profile", "email", "offline"],
        "sub": user_id(number),
    })
}

/// Does the same for each of these users, many at a time.
pub async fn for_all<F>(
    users: usize,
    lanes: usize,
    of: impl Fn(usize) -> F + Clone + Send + 'static,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let tasks = (0..lanes).map(|lane| {
        let of = of.clone();
        tokio::spawn(async move {
            for user in (lane..users).step_by(lanes) {
                of(user).await?;
            }
            anyhow::Ok(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.context("a task of the measurement")??;
    }
    Ok(())
}
