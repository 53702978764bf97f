//! Processes that share a queue in Redis or RabbitMQ and a MongoDB: kills, outages, and what doctor says of the servers.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{process::Command, sync::Arc, time::Duration};

use kinde_emulator::{NewUser, TokenSpec};
use kinsync_core::UserId;
use kinsync_engine::{
    Clock, config,
    internal::{
        queue::{Queue as _, rabbitmq::RabbitmqQueue},
        store::{Store, embedded::EmbeddedStore, mongo},
    },
};
use kinsync_testing::{
    app::TestApp,
    mongo::TestMongo,
    rabbitmq::TestRabbitmq,
    redis::{DURABLE, TestRedis},
};
use tokio_util::sync::CancellationToken;

use crate::{
    doctor::examine,
    server::{SECRET, kinsync},
    tenant::Tenant,
};

pub(crate) const WITHIN: Duration = Duration::from_mins(1);

pub(crate) fn created(user: &str) -> String {
    format!(
        r#"{{"type":"user.created","event_id":"event_of_{user}","timestamp":"2026-01-01T00:00:00Z","data":{{"user":{{"id":"{user}","first_name":"User"}}}}}}"#
    )
}

/// A process that shares the queue of this server.
pub(crate) async fn serve(queue: &str, mongo: &TestMongo, database: &str) -> TestApp {
    let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    app.with_mongodb(&mongo.uri(), database).set("KINSYNC_QUEUE", queue);
    app.start().await.unwrap();
    app
}

pub(crate) async fn store(mongo: &TestMongo, database: &str) -> mongo::MongoStore {
    let config = mongo::Config { database: Some(database.into()), ..mongo::Config::new(mongo.uri()) };
    mongo::MongoStore::connect(config).await.unwrap()
}

async fn stored(store: &mongo::MongoStore, users: &[String]) -> usize {
    let ids: Vec<UserId> = users.iter().map(|user| UserId::parse(user).unwrap()).collect();
    store.load(&ids).await.unwrap().iter().flatten().count()
}

pub(crate) async fn until_stored(store: &mongo::MongoStore, users: &[String]) {
    let all = async {
        while stored(store, users).await < users.len() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WITHIN, all).await.expect("every accepted user is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_process_accepts_another_stores_after_the_first_was_killed() {
    let (redis, mongo) = (TestRedis::start(DURABLE), TestMongo::start_own().await);
    let database = mongo.database();
    let mut first = serve(&redis.url(), &mongo, &database).await;
    // Without MongoDB no process stores anything yet.
    mongo.stop();
    let users: Vec<String> = (0..100).map(|n| format!("kp_{n:03}")).collect();
    for user in &users {
        assert_eq!(first.deliver(created(user)).await.unwrap(), 200);
    }
    first.kill().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (queue, folder) = (redis.url(), folder.path().display().to_string());
    let vars = [
        ("KINSYNC_QUEUE", &*queue),
        ("KINSYNC_DATA_DIR", &*folder),
        ("KINDE_WEBHOOK_SECRET", SECRET),
        ("KINSYNC_ROLE", "ingest"),
    ];
    let counted = kinsync(&["queue", "stats", "--json"], &vars).output().unwrap();
    let counted: serde_json::Value = serde_json::from_slice(&counted.stdout).unwrap();
    assert_eq!((&counted["depth"], &counted["spooled"]), (&100.into(), &0.into()), "{counted}");
    mongo.restart().await;
    let mut second = serve(&redis.url(), &mongo, &database).await;
    // What the first process had claimed comes at the end of its lease.
    second.drained(2 * WITHIN).await.unwrap();
    let store = store(&mongo, &database).await;
    assert_eq!(stored(&store, &users).await, users.len());
    second.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_accepted_while_redis_is_away_and_health_says_so() {
    let redis = TestRedis::start(DURABLE);
    deliveries_are_accepted_during_an_outage(&redis.url(), || redis.kill(), || redis.launch()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_accepted_while_rabbitmq_is_away_and_health_says_so() {
    let rabbitmq = TestRabbitmq::start();
    let kill = || {
        rabbitmq.until_saved("kinsync");
        rabbitmq.kill();
    };
    deliveries_are_accepted_during_an_outage(&rabbitmq.url(), kill, || rabbitmq.launch()).await;
}

async fn deliveries_are_accepted_during_an_outage(queue: &str, kill: impl Fn(), launch: impl Fn()) {
    let mongo = TestMongo::shared().await;
    let database = mongo.database();
    let mut app = serve(queue, mongo, &database).await;
    app.prepared().await.unwrap();
    assert_eq!(app.deliver(created("kp_before")).await.unwrap(), 200);
    until_stored(&store(mongo, &database).await, &["kp_before".to_owned()]).await;
    kill();
    let users: Vec<String> = (0..50).map(|n| format!("kp_{n:03}")).collect();
    for user in &users {
        assert_eq!(app.deliver(created(user)).await.unwrap(), 200);
    }
    let health = app.health().await.unwrap();
    assert!(health.to_string().contains("50 deliveries wait on this machine"), "{health}");
    assert_eq!(app.admin("/stats").await.unwrap().unwrap()["queue"]["spooled"], 50);
    launch();
    let store = store(mongo, &database).await;
    until_stored(&store, &users).await;
    app.drained(WITHIN).await.unwrap();
    let health = app.health().await.unwrap();
    assert!(!health.to_string().contains("KINSYNC_QUEUE"), "{health}");
    app.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_what_a_restart_of_redis_loses() {
    let mut tenant = Tenant::start().await;
    for (options, durable, eviction) in [
        (DURABLE, ("ok", "on the disk"), "ok"),
        (&["--appendonly", "yes", "--appendfsync", "everysec"], ("warning", "appendfsync always"), "ok"),
        (&["--maxmemory-policy", "allkeys-lru"], ("warning", "appendonly yes"), "failed"),
    ] {
        let redis = TestRedis::start(options);
        tenant.set("KINSYNC_QUEUE", redis.url());
        let examined = examine(&tenant, &[]);
        examined.is("queue.reachable", "ok", &["Redis"]).is("queue.durable", durable.0, &[durable.1]);
        examined.is("queue.eviction", eviction, &[]);
        redis.kill();
        examine(&tenant, &[]).is("queue.reachable", "failed", &["data folder"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_that_rabbitmq_keeps_deliveries_on_disk_and_what_it_cannot_see() {
    let (mut tenant, rabbitmq) = (Tenant::start().await, TestRabbitmq::shared());
    let prefix = TestRabbitmq::prefix();
    tenant.set("KINSYNC_QUEUE", rabbitmq.url()).set("KINSYNC_QUEUE_PREFIX", &prefix);
    let config = config::Rabbitmq { prefix, ..config::Rabbitmq::new(rabbitmq.url().into()) };
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(EmbeddedStore::open(folder.path()).unwrap());
    RabbitmqQueue::new(config, store, Clock::system()).unwrap().stats().await.unwrap();
    let examined = examine(&tenant, &[]);
    examined.is("queue.reachable", "ok", &["RabbitMQ"]).is(
        "queue.durable",
        "ok",
        &["quorum", "does not show"],
    );
    examined.is("queue.eviction", "skipped", &["policies"]);
    tenant.set("KINSYNC_QUEUE", rabbitmq.url().replace("//", "//guest:wrong@"));
    examine(&tenant, &[]).is("queue.reachable", "failed", &["password", "data folder"]);
}

/// How much a test of killed projectors does.
struct Scale {
    producers: usize,
    deliveries: usize,
    kill_every: Duration,
}

const SMALL: Scale = Scale { producers: 5, deliveries: 60, kill_every: Duration::from_millis(700) };
const FULL: Scale = Scale { producers: 20, deliveries: 500, kill_every: Duration::from_secs(3) };

#[tokio::test(flavor = "multi_thread")]
async fn every_delivery_takes_effect_once_while_projectors_on_redis_are_killed() {
    projectors_are_killed(&TestRedis::start(DURABLE).url(), SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_delivery_takes_effect_once_while_projectors_on_rabbitmq_are_killed() {
    projectors_are_killed(&TestRabbitmq::start().url(), SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: run with --ignored"]
async fn ten_thousand_deliveries_take_effect_once_while_projectors_are_killed() {
    projectors_are_killed(&TestRedis::start(DURABLE).url(), FULL).await;
    projectors_are_killed(&TestRabbitmq::start().url(), FULL).await;
}

/// One process accepts deliveries, four apply them, and one of the four after the other is killed and started again.
async fn projectors_are_killed(queue: &str, scale: Scale) {
    let mongo = TestMongo::shared().await;
    let database = mongo.database();
    let mut ingest = with_role("ingest", queue, mongo, &database);
    ingest.start().await.unwrap();
    let mut projectors: Vec<TestApp> = Vec::new();
    for _ in 0..4 {
        let mut app = with_role("project", queue, mongo, &database);
        app.start().await.unwrap();
        projectors.push(app);
    }
    let users: Vec<String> =
        (0..scale.producers * scale.deliveries).map(|number| format!("kp_{number:05}")).collect();
    let store = store(mongo, &database).await;
    let all_stored = CancellationToken::new();
    let produce = async {
        let produce = |users| produce(&ingest, users);
        futures_util::future::join_all(users.chunks(scale.deliveries).map(produce)).await;
        for users in users.chunks(100) {
            until_stored(&store, users).await;
        }
        all_stored.cancel();
    };
    let kill = async {
        for next in (0..4).cycle() {
            if tokio::time::timeout(scale.kill_every, all_stored.cancelled()).await.is_ok() {
                return;
            }
            projectors[next].kill().unwrap();
            projectors[next].start().await.unwrap();
        }
    };
    tokio::join!(produce, kill);
    // Also what killed processes had claimed.
    for app in projectors.iter_mut().chain([&mut ingest]) {
        app.drained(2 * WITHIN).await.unwrap();
    }
    let client = mongodb::Client::with_uri_str(mongo.uri()).await.unwrap();
    let log = client.database(&database).collection::<bson::Document>("user_events");
    let of_webhooks = bson::doc! { "_id": { "$regex": "^event_of_" } };
    assert_eq!(
        log.count_documents(of_webhooks).await.unwrap(),
        users.len() as u64,
        "each event is logged once"
    );
    for app in projectors.iter_mut().chain([&mut ingest]) {
        app.stop().await.unwrap();
    }
}

async fn produce(app: &TestApp, users: &[String]) {
    for user in users {
        assert_eq!(app.deliver(created(user)).await.unwrap(), 200);
    }
}

/// A process with this role, not started.
fn with_role(role: &str, queue: &str, mongo: &TestMongo, database: &str) -> TestApp {
    let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    app.set("KINSYNC_QUEUE", queue).set("KINSYNC_ROLE", role);
    if role != "ingest" {
        app.with_mongodb(&mongo.uri(), database);
    }
    app
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_with_one_role_each_work_together_and_go_on_after_a_kill() {
    let (redis, mongo, tenant) =
        (TestRedis::start(DURABLE), TestMongo::shared().await, Tenant::start().await);
    let database = mongo.database();
    let with = |role: &str| {
        let mut app = with_role(role, &redis.url(), mongo, &database);
        app.set("KINDE_DOMAIN", tenant.kinde.issuer());
        app
    };
    let (mut ingest, mut project, mut api, mut reconcile) =
        (with("ingest"), with("project"), with("api"), with("reconcile"));
    let config = tenant.kinde.config();
    reconcile.set("KINDE_M2M_CLIENT_ID", &config.client_id);
    reconcile.set("KINDE_M2M_CLIENT_SECRET", &config.client_secret);
    let store = store(mongo, &database).await;
    for round in 0..2 {
        for app in [&mut ingest, &mut project, &mut api, &mut reconcile] {
            app.start().await.unwrap();
        }
        let delivered = [format!("kp_delivered{round}")];
        assert_eq!(ingest.deliver(created(&delivered[0])).await.unwrap(), 200);
        until_stored(&store, &delivered).await;
        // Imported users are announced by no event.
        let named = |name: &str| NewUser::named(&format!("{name}{round}@example.com"), name, "User");
        let scanned = [tenant.kinde.import_user(named("scanned")).unwrap().id];
        let raised = Command::new("kill").arg("-USR1").arg(reconcile.pid().unwrap().to_string()).status();
        assert!(raised.unwrap().success());
        until_stored(&store, &scanned).await;
        let asking = tenant.kinde.import_user(named("asking")).unwrap().id;
        let token = tenant.kinde.access_token(&asking, &TokenSpec::default()).unwrap();
        let profile = api.client().get(api.url("/api/profile")).bearer_auth(&token).send().await.unwrap();
        assert_eq!(profile.status(), 200);
        until_stored(&store, &[asking]).await;
        // What another role does, a process does not answer.
        assert_eq!(project.deliver(created("kp_other")).await.unwrap(), 404);
        let elsewhere = ingest.client().get(ingest.url("/api/me")).bearer_auth(&token).send().await.unwrap();
        assert_eq!(elsewhere.status(), 404);
        let health = ingest.health().await.unwrap();
        assert_eq!(health["status"], "ok", "a process without a store is healthy: {health}");
        let logins = ingest.client().get(ingest.url("/health/ready?for=logins")).send().await.unwrap();
        assert_eq!(logins.status(), 503);
        let logins = logins.text().await.unwrap();
        assert!(logins.contains("lacks the role `api`"), "{logins}");
        // Its queue and its caches contain an erased user too.
        for (app, erases) in [(&ingest, false), (&project, true), (&api, true), (&reconcile, true)] {
            let health = app.health().await.unwrap();
            let erasure = health.pointer("/components/tasks/erasure");
            assert_eq!(erasure.is_some(), erases, "{health}");
        }
        for app in [&mut ingest, &mut project, &mut api, &mut reconcile] {
            app.kill().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_without_the_projector_report_a_store_that_is_away() {
    let (redis, mongo, tenant) =
        (TestRedis::start(DURABLE), TestMongo::start_own().await, Tenant::start().await);
    let mut api = with_role("api", &redis.url(), &mongo, &mongo.database());
    api.set("KINDE_DOMAIN", tenant.kinde.issuer());
    api.start().await.unwrap();
    api.prepared().await.unwrap();
    let until = async |status: &str| {
        let reported = async {
            while api.health().await.unwrap()["status"] != status {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(2), reported).await.unwrap();
    };
    until("ok").await;
    mongo.stop();
    until("degraded").await;
    let problems = api.health().await.unwrap()["problems"].to_string();
    assert!(problems.contains("store_unavailable"), "{problems}");
    mongo.restart().await;
    until("ok").await;
}

#[test]
fn a_body_limit_above_what_the_queue_accepts_is_refused() {
    for (queue, limit, is_refused) in [
        ("embedded", "15MiB", false),
        ("embedded", "16MiB", true),
        ("amqp://localhost", "6MiB", false),
        ("amqp://localhost", "7MiB", true),
    ] {
        let vars =
            [("KINDE_WEBHOOK_SECRET", SECRET), ("KINSYNC_QUEUE", queue), ("KINSYNC_BODY_LIMIT", limit)];
        let output = kinsync(&["config", "check"], &vars).output().unwrap();
        assert_eq!(!output.status.success(), is_refused, "{queue} {limit}: {output:?}");
    }
}

#[test]
fn a_role_that_needs_other_processes_is_refused_without_what_they_share() {
    let refused = |role: &str, vars: &[(&str, &str)]| {
        let mut all = vec![("KINDE_WEBHOOK_SECRET", SECRET), ("KINSYNC_ROLE", role)];
        all.extend(vars);
        let output = kinsync(&["config", "check"], &all).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
        (!output.status.success()).then_some(text)
    };
    let (mongo, redis) = (("MONGODB_URI", "mongodb://localhost"), ("KINSYNC_QUEUE", "redis://localhost"));
    for role in ["ingest", "api", "project", "ingest,reconcile", "project,reconcile"] {
        let text = refused(role, &[mongo]).unwrap_or_else(|| panic!("{role} on the embedded queue"));
        assert!(text.contains("KINSYNC_QUEUE"), "{text}");
    }
    for role in ["project", "api"] {
        let text = refused(role, &[redis]).unwrap_or_else(|| panic!("{role} on the embedded store"));
        assert!(text.contains("MONGODB_URI"), "{text}");
    }
    let text = refused("reconcile", &[mongo]).unwrap();
    assert!(text.contains("KINDE_M2M_CLIENT_ID") && text.contains("KINDE_DOMAIN"), "{text}");
    assert_eq!(refused("ingest", &[redis]), None);
    assert_eq!(refused("ingest,project,api", &[mongo]), None);
    assert_eq!(refused("all", &[]), None);
    let warned = |vars: &[(&str, &str)]| {
        let vars = [&[("KINDE_WEBHOOK_SECRET", SECRET)], vars].concat();
        let output = kinsync(&["config", "check"], &vars).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
        text.contains("before a second process uses the queue")
    };
    assert_eq!([warned(&[redis]), warned(&[redis, mongo]), warned(&[mongo])], [true, false, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_contains_what_waits_in_redis() {
    let (redis, mongo) = (TestRedis::start(DURABLE), TestMongo::shared().await);
    let database = mongo.database();
    let mut app = accepting(&redis.url(), mongo, &database).await;
    for user in ["kp_ada", "kp_bob"] {
        assert_eq!(app.deliver(created(user)).await.unwrap(), 200);
    }
    let export = app.admin("/users/kp_ada/export").await.unwrap().expect("it is queued");
    let queued = export["queued"].as_array().unwrap();
    assert_eq!((queued.len(), &queued[0]["eventId"]), (1, &"event_of_kp_ada".into()), "{export}");
    assert_eq!(queued[0]["payload"]["data"]["user"]["first_name"], "User", "{export}");
    app.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_contains_dead_letters_of_rabbitmq_and_fails_while_deliveries_wait() {
    let (rabbitmq, mongo) = (TestRabbitmq::start(), TestMongo::shared().await);
    let database = mongo.database();
    let mut app = accepting(&rabbitmq.url(), mongo, &database).await;
    let far = created("kp_ada").replace("2026-01-01", "2999-01-01");
    assert_eq!(app.deliver(far).await.unwrap(), 200);
    let why = app.admin("/users/kp_ada/export").await.unwrap_err().to_string();
    assert!(why.contains("503"), "{why}");
    let mut worker = serve(&rabbitmq.url(), mongo, &database).await;
    worker.leaves_entries();
    let exported = async {
        loop {
            if let Ok(Some(export)) = app.admin("/users/kp_ada/export").await
                && export["deadLetters"][0]["eventId"] == "event_of_kp_ada"
            {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WITHIN, exported).await.expect("the dead letter is exported");
    worker.stop().await.unwrap();
    app.stop().await.unwrap();
}

/// A process that accepts deliveries, serves the API and applies nothing.
async fn accepting(queue: &str, mongo: &TestMongo, database: &str) -> TestApp {
    let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    app.with_mongodb(&mongo.uri(), database).set("KINSYNC_QUEUE", queue).set("KINSYNC_ROLE", "ingest,api");
    app.leaves_entries();
    app.start().await.unwrap();
    app
}
