//! A local Kinde and real processes that share a MongoDB.

use std::time::Duration;

use bson::{Document, doc};
use kinde_emulator::{Emulator, NewUser, TokenSpec, User, WebhookSpec};
use kinsync_testing::{app::TestApp, mongo::TestMongo};
use mongodb::Collection;
use serde_json::Value;
use tokio::time::Instant;

use crate::server::TOKEN;

const BINARY: &str = env!("CARGO_BIN_EXE_kinsync");

/// Longer than any step takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_mins(2);

/// A local Kinde and some processes that share a MongoDB.
pub(crate) struct Deployment {
    pub(crate) kinde: Emulator,
    pub(crate) apps: Vec<TestApp>,
    pub(crate) users: Collection<Document>,
    pub(crate) uri: String,
    database: mongodb::Database,
}

impl Deployment {
    pub(crate) async fn start(mongo: &TestMongo, processes: usize) -> Self {
        Self::with(mongo, processes, &[]).await
    }

    pub(crate) async fn with(mongo: &TestMongo, processes: usize, settings: &[(&str, &str)]) -> Self {
        let kinde = Emulator::start(kinde_emulator::Config::default()).await.unwrap();
        let database = mongo.database();
        let mut apps = Vec::new();
        for _ in 0..processes {
            let mut app = TestApp::new(BINARY).unwrap();
            app.with_mongodb(&mongo.uri(), &database).set("KINDE_DOMAIN", kinde.issuer());
            for (name, value) in settings {
                app.set(name, *value);
            }
            app.start().await.unwrap();
            app.prepared().await.unwrap();
            kinde.add_webhook(WebhookSpec::new(app.url("/api/webhook").parse().unwrap()));
            apps.push(app);
        }
        let database = mongo.client().await.database(&database);
        Self { kinde, apps, users: database.collection("users"), uri: mongo.uri(), database }
    }

    pub(crate) fn database(&self) -> &mongodb::Database {
        &self.database
    }

    pub(crate) fn token(&self, user: &str) -> String {
        self.kinde.access_token(user, &TokenSpec::default()).unwrap()
    }

    /// Waits until the queue is empty and every document equals Kinde's user.
    pub(crate) async fn converged(&mut self) {
        self.kinde.quiesce(DEADLINE).await.unwrap();
        for app in &mut self.apps {
            app.drained(DEADLINE).await.unwrap();
        }
        let deadline = Instant::now() + DEADLINE;
        for user in self.kinde.users() {
            while let Some(wrong) = self.difference(&user).await {
                assert!(Instant::now() < deadline, "{}: {wrong}", user.id);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    pub(crate) async fn difference(&self, user: &User) -> Option<String> {
        let Some(found) = self.users.find_one(doc! { "kindeId": &user.id }).await.unwrap() else {
            return Some("not stored".into());
        };
        let text = |key: &str| found.get_str(key).ok();
        let fields = [
            ("email", text("email"), user.email.as_deref()),
            ("firstName", text("firstName"), user.first_name.as_deref()),
            ("lastName", text("lastName"), user.last_name.as_deref()),
        ];
        let wrong = fields.into_iter().find(|(_, found, expected)| found != expected);
        wrong.map(|(key, found, expected)| format!("{key} is {found:?} and not {expected:?}"))
    }

    /// With a reconciler that scans this often.
    pub(crate) async fn reconciled(processes: usize, every: &str) -> Self {
        let settings = settings(every);
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        Self::with(TestMongo::shared().await, processes, &settings).await
    }

    /// With a reconciler in each process, and this filter of their logs.
    pub(crate) async fn logging(every: &str, processes: usize, filter: &str) -> Self {
        let settings = settings(every);
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        let settings = [&settings[..], &[("KINSYNC_LOG", filter)]].concat();
        Self::with(TestMongo::shared().await, processes, &settings).await
    }

    /// With a reconciler that compares roles too, and scans on request.
    pub(crate) async fn comparing_roles() -> Self {
        let settings = settings("off");
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        let settings = [&settings[..], &[("KINSYNC_RECONCILE_ROLES", "true")]].concat();
        Self::with(TestMongo::shared().await, 1, &settings).await
    }

    /// Waits until the document of this user exists and matches the filter.
    pub(crate) async fn until_stored(&self, id: &str, filter: Document) {
        let mut query = doc! { "kindeId": id };
        query.extend(filter);
        let deadline = Instant::now() + DEADLINE;
        while self.users.find_one(query.clone()).await.unwrap().is_none() {
            assert!(Instant::now() < deadline, "{query} is not found");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends a request to an admin route of the first process.
    pub(crate) async fn admin(&self, method: reqwest::Method, path: &str) -> Value {
        let app = &self.apps[0];
        let answer = app.client().request(method, app.url(path)).bearer_auth(TOKEN).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {answer:?}");
        answer.json().await.unwrap()
    }
}

fn settings(every: &str) -> [(&'static str, String); 4] {
    let emulator = kinde_emulator::Config::default();
    [
        ("KINDE_M2M_CLIENT_ID", emulator.client_id),
        ("KINDE_M2M_CLIENT_SECRET", emulator.client_secret),
        ("KINSYNC_RECONCILE_EVERY", every.to_owned()),
        ("KINSYNC_ADMIN_TOKEN", TOKEN.to_owned()),
    ]
}

pub(crate) fn named(n: usize) -> NewUser {
    NewUser::named(&format!("user{n}@example.com"), &format!("First {n}"), &format!("Last {n}"))
}
