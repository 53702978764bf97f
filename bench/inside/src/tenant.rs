//! A tenant with stored users, their tokens, and the authenticator of their requests.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use http::{HeaderMap, HeaderValue, header};
use jiff::Timestamp;
use kinde::Jwks;
use kinde::bearer::{self, CachingConfig, CachingVerifier, Verifier};
use kinsync_core::{Field, Micros, Observation, Organization, Profile, Source, UserId, Value, Version, What};
use kinsync_engine::Engine;
use kinsync_engine::internal::apply::apply;
use kinsync_tower::authenticator::{self, Authenticator, Sources};
use serde_json::json;

use crate::key::FreeKey;

const ISSUER: &str = "https://acme.kinde.com";
const ORG: &str = "org_590d7f1a86a";
/// Users per write.
const BATCH: usize = 5_000;

/// The key of the tenant and the store of its users.
#[derive(Debug)]
pub struct Tenant {
    key: FreeKey,
    jwks: Jwks,
    /// Opened, not started: no delivery arrives during a measurement.
    engine: Engine,
    folder: PathBuf,
    now: Timestamp,
}

impl Tenant {
    /// Creates a tenant with this many users, with the fields of a webhook and a recent `lastSeenAt`.
    pub async fn with(folder: &Path, users: usize) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let key = FreeKey::new();
        let issuer = kinde::parse_domain(ISSUER)?;
        let jwks = Jwks::from_document(&issuer, key.jwks().to_string().as_bytes())?;
        let engine = Engine::builder(folder).open().await?;
        let tenant = Self { key, jwks, engine, folder: folder.to_owned(), now: Timestamp::now() };
        for first in (0..users).step_by(BATCH) {
            let observations = (first..users.min(first + BATCH)).flat_map(|user| tenant.observations(user));
            let applied = apply(&**tenant.engine.store(), observations, tenant.micros()).await?;
            anyhow::ensure!(applied.refused.is_empty(), "the store refused users");
        }
        Ok(tenant)
    }

    fn micros(&self) -> Micros {
        Micros(self.now.as_microsecond())
    }

    fn observations(&self, number: usize) -> [Observation; 2] {
        let user = UserId::parse(&user_id(number)).expect("an id is short text");
        let organization =
            Organization { roles: Some(Vec::new()), permissions: Some(Vec::new()), ..Organization::new(ORG) };
        let profile = Profile::new()
            .with(Field::Email, format!("daniel.rivers.{number}@example.com").as_str())
            .with(Field::FirstName, "Daniel")
            .with(Field::LastName, format!("Rivers{number:07}").as_str())
            .with(Field::Username, format!("daniel{number}").as_str())
            .with(Field::Organizations, Value::Organizations(vec![organization]));
        let version = Version::event(self.micros(), format!("event_{number:032x}"));
        let observation = |version, source, what| Observation { user: user.clone(), version, source, what };
        [
            observation(version, Source::Webhook, What::Fields(profile)),
            observation(Version::provisional(), Source::Login, What::Seen(self.micros())),
        ]
    }

    /// A token cache with this many entries.
    pub fn tokens(&self, entries: usize) -> CachingVerifier {
        let issuers = vec![(ISSUER.to_owned(), self.jwks.clone())];
        let verifier = Verifier::new(bearer::Config { issuers, ..bearer::Config::default() });
        CachingVerifier::new(verifier, &CachingConfig { entries, ..CachingConfig::default() })
    }

    /// Starts an authenticator in an engine of its own, on the store of the tenant.
    pub async fn open(
        &self,
        tokens: &CachingVerifier,
        config: authenticator::Config,
    ) -> anyhow::Result<Running> {
        let store = self.engine.store().clone();
        let engine = Engine::builder(self.folder.join("process")).store(store).open().await?;
        let claims = Arc::new(authenticator::claims::Email);
        let sources = Sources { tokens: tokens.clone(), profiles: Vec::new(), claims };
        Ok(Running { authenticator: Authenticator::start(&engine, sources, config), engine })
    }

    /// An access token of this user.
    pub fn token(&self, number: usize) -> String {
        self.key.sign(&claims(number, self.now))
    }

    /// The headers of a request of this user.
    pub fn headers(&self, number: usize) -> anyhow::Result<HeaderMap> {
        let bearer = HeaderValue::try_from(format!("Bearer {}", self.token(number)))?;
        Ok(HeaderMap::from_iter([(header::AUTHORIZATION, bearer)]))
    }

    /// The time at which its tokens are valid.
    pub fn now(&self) -> Timestamp {
        self.now
    }
}

/// A running authenticator and its engine.
#[derive(Debug)]
pub struct Running {
    /// The authenticator.
    pub authenticator: Authenticator,
    engine: Engine,
}

impl Running {
    /// Stops the background work and releases the memory.
    pub async fn end(self) {
        self.engine.stop().await;
    }
}

/// The id of the user with this number.
pub fn user_id(number: usize) -> String {
    format!("kp_{number:032x}")
}

/// The claims of Kinde's documentation.
pub fn claims(number: usize, now: Timestamp) -> serde_json::Value {
    let now = now.as_second();
    json!({
        "aud": [], "azp": "dee7f3c57b3c47e8b96edde2c7ecab7d", "exp": now + 86_400, "iat": now, "iss": ISSUER,
        "jti": format!("fbb6bc62-c5c2-4eac-8a1b-{number:012}"), "org_code": ORG,
        "permissions": ["create:todos", "read:todos"], "scp": ["openid", "profile", "email", "offline"],
        "sub": user_id(number),
    })
}

/// Runs a task for each user with this many concurrent tasks.
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
