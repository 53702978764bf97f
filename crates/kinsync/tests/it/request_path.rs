//! No authenticated request meets a missing user, on real parts: several real processes on one MongoDB, with the
//! webhooks of the same users arriving meanwhile, and with everything failing that can fail.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use bson::{Document, doc};
use futures_util::{StreamExt, stream};
use kinde_emulator::{Emulator, Fault, FaultKind, NewUser, TokenSpec, User, WebhookSpec};
use kinsync_testing::{app::TestApp, mongo::TestMongo};
use mongodb::Collection;
use serde_json::Value;
use tokio::time::Instant;

use crate::server::{SECRET, kinsync};

const BINARY: &str = env!("CARGO_BIN_EXE_kinsync");

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// What no request may take, whatever fails: far above the deadlines of kinsync (the longest are 500 ms for the store
/// and 250 ms for the queue), far below the 5 s for which parts are slow here.
const ANSWERED: Duration = Duration::from_secs(3);

/// From a webhook's 200 to the store, on a machine that is not too busy to tell.
const LAG: Duration = Duration::from_millis(250);

/// A local Kinde and some processes that share a MongoDB.
pub(crate) struct Town {
    pub(crate) kinde: Emulator,
    pub(crate) apps: Vec<TestApp>,
    pub(crate) users: Collection<Document>,
    pub(crate) uri: String,
    database: mongodb::Database,
}

struct Reply {
    status: u16,
    degraded: bool,
    body: Value,
    took: Duration,
}

impl Town {
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

    async fn ask(&self, process: usize, path: &str, token: &str) -> Reply {
        let app = &self.apps[process];
        let asked = Instant::now();
        let answer = app.client().get(app.url(path)).bearer_auth(token).send().await.unwrap();
        let took = asked.elapsed();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body = answer.json().await.unwrap_or_default();
        // Forward-auth sends it empty when all is well.
        let degraded = headers.get("x-kinsync-degraded").is_some_and(|value| value == "true");
        Reply { status, degraded, body, took }
    }

    /// Waits until every document is as Kinde has the user, and nothing is under way.
    pub(crate) async fn settled(&mut self) {
        self.kinde.quiesce(PATIENCE).await.unwrap();
        for app in &mut self.apps {
            app.drained(PATIENCE).await.unwrap();
        }
        let deadline = Instant::now() + PATIENCE;
        for user in self.kinde.users() {
            while let Some(wrong) = self.difference(&user).await {
                assert!(Instant::now() < deadline, "{}: {wrong}", user.id);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    async fn difference(&self, user: &User) -> Option<String> {
        let Some(found) = self.users.find_one(doc! { "kindeId": &user.id }).await.unwrap() else {
            return Some("not stored".into());
        };
        let text = |key: &str| found.get_str(key).ok();
        let fields = [
            ("email", text("email"), user.email.as_deref()),
            ("firstName", text("firstName"), user.first_name.as_deref()),
            ("lastName", text("lastName"), user.last_name.as_deref()),
        ];
        let wrong = fields.into_iter().find(|(_, found, told)| found != told);
        wrong.map(|(key, found, told)| format!("{key} is {found:?} and not {told:?}"))
    }
}

pub(crate) fn named(n: usize) -> NewUser {
    NewUser::named(&format!("user{n}@example.com"), &format!("First {n}"), &format!("Last {n}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_first_requests_and_their_webhooks_at_once_make_a_thousand_users() {
    const USERS: usize = 1_000;
    let mut town = Town::start(TestMongo::shared().await, 3).await;
    town.kinde.set_fault(Fault::chance(FaultKind::Duplicate { copies: 1 }, 0.2));
    let town_ref = &town;
    // Signing up sends `user.created` to all three; the user's own request goes to one of them at the same moment.
    let requests = stream::iter(0..USERS).map(async |n| {
        let user = town_ref.kinde.sign_up(named(n)).unwrap();
        let token = town_ref.token(&user.id);
        let reply = town_ref.ask(n % 3, ["/api/me", "/api/profile"][n % 2], &token).await;
        assert_eq!((reply.status, &reply.body["kindeId"]), (200, &Value::from(user.id)), "{}", reply.body);
    });
    requests.buffer_unordered(64).collect::<Vec<()>>().await;
    town.settled().await;
    assert_eq!(town.users.count_documents(doc! {}).await.unwrap(), USERS as u64);
    let sent = town.kinde.stats().delivered;
    assert!(sent >= 3 * USERS as u64, "each process heard of each user: {sent} deliveries");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_deleted_at_kinde_is_refused_within_a_second_by_every_process() {
    let mut town = Town::start(TestMongo::shared().await, 3).await;
    // One process alone hears of it: the others have the store in common with it, and nothing else.
    for webhook in town.kinde.webhooks().iter().skip(1) {
        town.kinde.remove_webhook(&webhook.id).unwrap();
    }
    let mut lags = Vec::new();
    for n in 0..5 {
        let user = town.kinde.sign_up(named(n)).unwrap();
        let token = town.token(&user.id);
        for process in 0..3 {
            assert_eq!(town.ask(process, "/api/me", &token).await.status, 200);
        }
        town.kinde.delete_user(&user.id, kinde_emulator::Profile::Remove).unwrap();
        town.kinde.quiesce(PATIENCE).await.unwrap();
        let told = Instant::now();
        let gone = doc! { "kindeId": &user.id, "isDeleted": true };
        let deadline = Instant::now() + PATIENCE;
        while town.users.find_one(gone.clone()).await.unwrap().is_none() {
            assert!(Instant::now() < deadline, "the deletion is not stored");
        }
        let lag = told.elapsed();
        lags.push(lag);
        // A second from the webhook; from the store, where the machine was so busy that the projector came late.
        let limit = if lag < LAG { Duration::from_secs(1) } else { lag + Duration::from_secs(1) };
        for process in [1, 2, 0] {
            loop {
                let asked = told.elapsed();
                let reply = town.ask(process, "/auth/verify", &token).await;
                if reply.status == 403 {
                    assert_eq!(reply.body["reason"], "deleted");
                    break;
                }
                // A machine so busy that the store misses its deadline degrades requests, and says so.
                assert!(reply.degraded || asked < limit, "process {process} after {asked:?}, lag {lag:?}");
            }
        }
    }
    assert!(lags.iter().any(|lag| *lag < LAG), "never within a second of the webhook: {lags:?}");
    town.apps.iter_mut().for_each(|app| _ = app.leaves_entries());
}

/// What fails, and what ends it.
#[derive(Clone, Copy, Debug)]
enum Outage {
    StoreStopped,
    StoreHangs,
    StoreSlow,
    KindeFails,
    KindeSlow,
    BothStopped,
    BothSlow,
}

impl Outage {
    const ALL: [Self; 7] = [
        Self::StoreStopped,
        Self::StoreHangs,
        Self::StoreSlow,
        Self::KindeFails,
        Self::KindeSlow,
        Self::BothStopped,
        Self::BothSlow,
    ];

    fn hits_store(self) -> bool {
        !matches!(self, Self::KindeFails | Self::KindeSlow)
    }

    async fn begin(self, town: &Town, mongo: &TestMongo) -> Option<kinsync_testing::mongo::FailPoint> {
        let slow = Duration::from_secs(5);
        match self {
            Self::KindeFails | Self::BothStopped => {
                town.kinde.set_fault(Fault::always(FaultKind::Status { status: 503 }));
            }
            Self::KindeSlow | Self::BothSlow => {
                town.kinde.set_fault(Fault::always(FaultKind::Slow { min: slow, max: slow }));
            }
            _ => {}
        }
        match self {
            Self::StoreStopped | Self::BothStopped => mongo.stop(),
            Self::StoreHangs => mongo.pause(),
            Self::StoreSlow | Self::BothSlow => {
                let commands = ["find", "insert", "update", "aggregate"];
                let data = doc! { "failCommands": commands, "blockConnection": true, "blockTimeMS": 5_000 };
                return Some(mongo.fail_point("alwaysOn", data).await);
            }
            _ => {}
        }
        None
    }

    async fn end(self, town: &Town, mongo: &TestMongo) {
        town.kinde.clear_faults();
        match self {
            Self::StoreStopped | Self::BothStopped => mongo.restart().await,
            Self::StoreHangs => mongo.resume(),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_requests_are_answered_in_time_nothing_is_lost_and_everything_heals() {
    let mongo = TestMongo::start_own().await;
    let mut town = Town::start(&mongo, 1).await;
    let known = town.kinde.sign_up(named(0)).unwrap();
    let known_token = town.token(&known.id);
    town.settled().await;
    for (round, outage) in Outage::ALL.into_iter().enumerate() {
        assert_eq!(town.ask(0, "/api/me", &known_token).await.status, 200, "before {outage:?}");
        let guard = outage.begin(&town, &mongo).await;
        for n in 1..=5 {
            // Imported: no webhook tells of them. One request each, and never again.
            let new = town.kinde.import_user(named(100 * (round + 1) + n)).unwrap();
            for (path, user) in [
                ("/api/me", &new.id),
                ("/auth/verify", &new.id),
                ("/api/me", &known.id),
                ("/api/profile?refresh=true", &known.id),
            ] {
                let reply = town.ask(0, path, &town.token(user)).await;
                assert_eq!(reply.status, 200, "{outage:?}: {path}: {}", reply.body);
                assert!(reply.took < ANSWERED, "{outage:?}: {path} took {:?}", reply.took);
                let is_new = *user == new.id;
                assert!(!is_new || reply.degraded == outage.hits_store(), "{outage:?}: {path}: degraded?");
            }
        }
        drop(guard);
        outage.end(&town, &mongo).await;
        assert_appears(&town, round).await;
    }
    town.kinde.shutdown().await;
    let reply = town.ask(0, "/api/profile", &known_token).await;
    assert_eq!((reply.status, &reply.body["firstName"]), (200, &"First 0".into()), "Kinde is gone");
}

/// The users of this round are stored, though they never came again.
async fn assert_appears(town: &Town, round: usize) {
    let emails: Vec<String> = (1..=5).map(|n| format!("user{}@example.com", 100 * (round + 1) + n)).collect();
    let ids: Vec<String> =
        emails.iter().map(|email| town.kinde.user_by_email(email).unwrap().id.clone()).collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stored =
            town.users.count_documents(doc! { "kindeId": { "$in": &ids } }).await.unwrap_or_default();
        if stored == 5 {
            break;
        }
        assert!(Instant::now() < deadline, "only {stored} of 5 appeared: {}", town.apps[0].log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // With the next request of each, Kinde tells the rest.
    for id in ids {
        let user = town.kinde.user(&id).unwrap();
        let token = town.token(&id);
        while let Some(wrong) = town.difference(&user).await {
            assert!(Instant::now() < deadline, "{id}: {wrong}: {}", town.apps[0].log());
            town.ask(0, "/api/me", &token).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_from_before_kinsync_becomes_the_users_who_signs_in_with_its_verified_address() {
    let mut town = Town::start(TestMongo::shared().await, 2).await;
    let own = doc! { "_id": "own", "email": "ada@example.com", "plan": "pro" };
    town.users.insert_one(own).await.unwrap();
    town.users.insert_one(doc! { "_id": "other", "email": "eve@example.com", "plan": "free" }).await.unwrap();
    let sign_up = |email: &str, email_verified| {
        town.kinde.sign_up(NewUser { email_verified, ..NewUser::named(email, "Ada", "Lovelace") }).unwrap().id
    };
    let (ada, eve) = (sign_up("ada@example.com", true), sign_up("eve@example.com", false));
    let deadline = Instant::now() + PATIENCE;
    let adopted = doc! { "_id": "own", "kindeId": &ada, "plan": "pro", "firstName": "Ada" };
    while town.users.find_one(adopted.clone()).await.unwrap().is_none() {
        assert!(Instant::now() < deadline, "not adopted: {}", town.apps[0].log());
        for (process, user) in [(0, &ada), (1, &ada), (1, &eve)] {
            assert_eq!(town.ask(process, "/api/me", &town.token(user)).await.status, 200);
        }
    }
    assert_eq!(town.users.count_documents(doc! { "kindeId": &ada }).await.unwrap(), 1);
    assert_eq!(town.ask(1, "/api/profile?refresh=true", &town.token(&eve)).await.status, 200);
    let other = town.users.find_one(doc! { "_id": "other" }).await.unwrap().unwrap();
    assert!(!other.contains_key("kindeId"), "an address that is not verified takes nothing over");
    let me = town.ask(0, "/api/me", &town.token(&eve)).await.body;
    assert_eq!(me["emailConflict"]["heldBy"], "other");
    // Their webhooks may still be under way.
    town.kinde.quiesce(PATIENCE).await.unwrap();
    for app in &mut town.apps {
        app.drained(PATIENCE).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn link_lists_what_would_be_linked_and_what_conflicts_and_then_does_it() {
    let mongo = TestMongo::shared().await;
    let town = Town::with(mongo, 1, &[("KINSYNC_LINK_BY_EMAIL", "never")]).await;
    for (id, email) in
        [("own", "ada@example.com"), ("other", "eve@example.com"), ("lone", "nobody@example.com")]
    {
        town.users.insert_one(doc! { "_id": id, "email": email, "plan": "pro" }).await.unwrap();
    }
    for (email, email_verified) in [("ada@example.com", true), ("eve@example.com", false)] {
        let new = NewUser { email_verified, ..NewUser::named(email, "Ada", "Lovelace") };
        let user = town.kinde.import_user(new).unwrap().id;
        assert_eq!(town.ask(0, "/api/profile", &town.token(&user)).await.status, 200);
    }
    let ada = town.kinde.user_by_email("ada@example.com").unwrap().id;
    let link = |args: &[&str], vars: &[(&str, &str)]| {
        let (uri, database) = (mongo.uri(), town.users.namespace().db);
        let usual =
            [("MONGODB_URI", &*uri), ("KINSYNC_DATABASE", &*database), ("KINDE_WEBHOOK_SECRET", SECRET)];
        let output =
            kinsync(&[&["link"], args].concat(), &usual).envs(vars.iter().copied()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, said, _) = link(&["--dry-run"], &[]);
    assert_eq!(code, 0);
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains(&format!("own {ada} would be linked nothing to do")), "{said}");
    assert!(words.contains("address not verified the user verifies the address at Kinde"), "{said}");
    assert!(said.ends_with(
        "3 documents of your application have an email address: 1 would be linked, 1 cannot be linked, 1 match no user\n"
    ));
    assert_eq!(town.users.count_documents(doc! { "_id": "own", "kindeId": &ada }).await.unwrap(), 0);
    let (code, _, stderr) = link(&[], &[("KINSYNC_LINK_BY_EMAIL", "never")]);
    assert_eq!(code, 1);
    assert!(stderr.contains("KINSYNC_LINK_BY_EMAIL=verified"), "{stderr}");
    let (code, json, _) = link(&["--json"], &[]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["linked"], &json["conflicts"]), (0, &1.into(), &1.into()), "{json}");
    let mine = doc! { "_id": "own", "kindeId": &ada, "plan": "pro", "emailConflict": { "$exists": false } };
    assert_eq!(town.users.count_documents(mine).await.unwrap(), 1);
    let (code, _, stderr) = link(&["--dry-run"], &[("KINSYNC_DATABASE", "nobody_is_loaded_here")]);
    assert!(code == 1 && stderr.contains("run `kinsync backfill` first"), "{stderr}");
    let (code, _, stderr) = link(&["--mongodb-uri", ""], &[("MONGODB_URI", "")]);
    assert!(code != 0 && stderr.contains("MONGODB_URI"), "{stderr}");
}
