//! 200 means durable: the real binary, killed with SIGKILL under load, and while MongoDB is unavailable.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use kinsync_core::UserId;
use kinsync_engine::internal::store::{Store, embedded::EmbeddedStore, mongo};
use kinsync_testing::{
    app::{SECRET, TestApp, sign},
    mongo::TestMongo,
    repetitions,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_kinsync");
const SENDERS: u64 = 16;
const SEED: u64 = 4711;

/// Users with a creation that was answered 200.
type Acked = Arc<Mutex<BTreeSet<u64>>>;

fn user_id(n: u64) -> String {
    format!("kp_{n:08}")
}

fn created(n: u64) -> String {
    let id = user_id(n);
    format!(
        r#"{{"type":"user.created","event_id":"event_{n:08}","timestamp":"2026-01-01T00:00:00.{:06}Z","data":{{"user":{{"id":"{id}","email":"{n}@example.com","first_name":"User"}}}}}}"#,
        n % 1_000_000
    )
}

/// Delivers new users, some of them twice, until `stop` is set; records those answered 200. Answers
/// how many were refused.
async fn send(
    client: reqwest::Client,
    url: String,
    next: Arc<AtomicU64>,
    acked: Acked,
    stop: Arc<AtomicBool>,
) -> u64 {
    let mut refused = 0;
    while !stop.load(Ordering::Relaxed) {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let body = created(n);
        for _ in 0..=u64::from(n.is_multiple_of(5)) {
            let request = client.post(&url).header("x-kinde-signature", sign(SECRET, body.as_bytes()));
            match request.body(body.clone()).send().await {
                Ok(answer) if answer.status().as_u16() == 200 => {
                    acked.lock().expect("no holder panicked").insert(n);
                }
                Ok(_) => refused += 1,
                Err(_) => break,
            }
        }
    }
    refused
}

/// Sends from several tasks while `during` runs; answers how many deliveries were refused.
async fn under_load(
    app: &mut TestApp,
    next: &Arc<AtomicU64>,
    acked: &Acked,
    during: impl AsyncFnOnce(&mut TestApp) -> Result<()>,
) -> Result<u64> {
    let stop = Arc::new(AtomicBool::new(false));
    let url = app.url("/api/webhook");
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..SENDERS {
        senders.spawn(send(app.client().clone(), url.clone(), next.clone(), acked.clone(), stop.clone()));
    }
    let outcome = during(app).await;
    stop.store(true, Ordering::Relaxed);
    let refused = senders.join_all().await.into_iter().sum();
    outcome.map(|()| refused)
}

/// Every acked user is stored, written once, and its event logged.
async fn assert_all_there(store: &dyn Store, acked: &Acked) -> Result<()> {
    let acked: Vec<u64> = acked.lock().expect("no holder panicked").iter().copied().collect();
    for chunk in acked.chunks(1_000) {
        let ids: Vec<UserId> = chunk.iter().map(|n| UserId::parse(&user_id(*n))).collect::<Result<_, _>>()?;
        for (id, row) in ids.iter().zip(store.load(&ids).await?) {
            let row = row.unwrap_or_else(|| panic!("{id} was answered 200 and is not stored"));
            assert_eq!(row.revision, 1, "{id} was written more than once");
            assert_eq!(row.document().first_name.as_deref(), Some("User"));
        }
    }
    let counts = store.counts().await?;
    assert_eq!(counts.events, counts.live_users, "one event of each user is in the log, once");
    assert!(counts.live_users >= acked.len() as u64);
    Ok(())
}

async fn killed_under_load(mut app: TestApp) -> Result<(TestApp, Acked)> {
    let mut rng = StdRng::seed_from_u64(SEED);
    let (next, acked) = (Arc::new(AtomicU64::new(0)), Acked::default());
    let kills = repetitions("KINSYNC_TEST_KILLS", 200);
    for _ in 0..kills {
        app.start().await?;
        let alive = Duration::from_millis(rng.random_range(0..200));
        under_load(&mut app, &next, &acked, async |app| {
            tokio::time::sleep(alive).await;
            app.kill()
        })
        .await?;
    }
    app.start().await?;
    app.drained(Duration::from_mins(1)).await?;
    let answered = acked.lock().expect("no holder panicked").len();
    assert!(answered > 2 * kills as usize, "only {answered} deliveries were answered: that is no load");
    assert!(!app.log().contains("panicked"), "no panic in the log");
    let status = app.stop().await?;
    assert!(status.success(), "SIGTERM ends it cleanly: {status}");
    Ok((app, acked))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_answered_200_is_lost_by_kills_on_the_embedded_store() -> Result<()> {
    let (app, acked) = killed_under_load(TestApp::new(BINARY)?).await?;
    let store = EmbeddedStore::open(&app.data_dir())?;
    assert_all_there(&store, &acked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_answered_200_is_lost_by_kills_on_mongodb() -> Result<()> {
    let mongo = TestMongo::shared().await;
    let database = mongo.database();
    let mut app = TestApp::new(BINARY)?;
    app.with_mongodb(&mongo.uri(), &database);
    let (_app, acked) = killed_under_load(app).await?;
    assert_all_there(&mongo_store(&mongo.uri(), database).await?, &acked).await
}

async fn mongo_store(uri: &str, database: String) -> Result<mongo::MongoStore> {
    let config = mongo::Config { database: Some(database), ..mongo::Config::new(uri) };
    Ok(mongo::MongoStore::connect(config).await?)
}

/// Stops MongoDB for 30 seconds under load; returns when deliveries are projected again.
async fn outage(app: &mut TestApp, mongo: &TestMongo, acked: &Acked) -> Result<()> {
    let answered = || acked.lock().expect("no holder panicked").len();
    let before = answered();
    app.until("deliveries are answered", Duration::from_mins(1), async |_| Ok(answered() > before)).await?;
    // Before that nothing is projected, and the breaker has no call to judge.
    app.until("the store is prepared", Duration::from_mins(1), async |app| {
        Ok(app.health().await?.pointer("/components/store/prepared") == Some(&Value::Bool(true)))
    })
    .await?;
    mongo.stop();
    breaker(app, |state| state != "closed").await?;
    // The length of the outage is what is tested.
    tokio::time::sleep(Duration::from_secs(30)).await;
    mongo.restart().await;
    breaker(app, |state| state == "closed").await
}

async fn breaker(app: &mut TestApp, is_right: impl Fn(&Value) -> bool) -> Result<()> {
    app.until("the breaker changes", Duration::from_mins(1), async |app| {
        Ok(app.health().await?.pointer("/components/store/breaker").is_some_and(&is_right))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_mongodb_of_30_seconds_refuses_no_delivery_and_loses_no_user() -> Result<()> {
    let mongo = TestMongo::start_own().await;
    let mut app = TestApp::new(BINARY)?;
    app.with_mongodb(&mongo.uri(), "outage");
    app.start().await?;
    let pid = app.pid();
    let (next, acked) = (Arc::new(AtomicU64::new(0)), Acked::default());
    let refused = under_load(&mut app, &next, &acked, async |app| {
        for _ in 0..repetitions("KINSYNC_TEST_OUTAGES", 1) {
            outage(app, &mongo, &acked).await?;
        }
        Ok(())
    })
    .await?;
    assert_eq!(refused, 0, "no delivery is refused while MongoDB is unavailable");
    app.drained(Duration::from_mins(2)).await?;
    assert_eq!(app.pid(), pid, "kinsync was not restarted");
    let dead = app.health().await?.pointer("/components/queue/deadLetters").cloned();
    assert_eq!(dead, Some(0.into()), "an outage is never a reason for a dead letter");
    app.stop().await?;
    assert_all_there(&mongo_store(&mongo.uri(), "outage".into()).await?, &acked).await
}
