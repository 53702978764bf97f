//! Three processes on one queue and one MongoDB, behind a load balancer, restarted one after the other under load.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bson::{Document, doc};
use futures_util::TryStreamExt as _;
use kinde_emulator::{Emulator, TokenSpec};
use kinsync_testing::{
    app::{TestApp, sign},
    mongo::TestMongo,
    redis::{DURABLE, TestRedis},
};
use mongodb::Collection;
use tokio::task::JoinSet;

use crate::{deployment::named, server::SECRET};

const BINARY: &str = env!("CARGO_BIN_EXE_kinsync");
const PROCESSES: usize = 3;
const SENDERS: usize = 6;
const WITHIN: Duration = Duration::from_mins(2);

/// Sends each request to the next process that is in rotation. A refused connection takes a process out of the rotation, and
/// the request goes to the next one; the health check of the test takes it in again. No other failure is repeated.
struct LoadBalancer {
    processes: Vec<(SocketAddr, AtomicBool)>,
    next: AtomicUsize,
    client: reqwest::Client,
    failures: Mutex<Vec<String>>,
}

impl LoadBalancer {
    fn new(apps: &[TestApp]) -> Self {
        // A connection for each request: a kept one may be closed by the process while a request is on its way.
        let client = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(WITHIN).build().unwrap();
        let processes = apps.iter().map(|app| (app.address(), AtomicBool::new(true))).collect();
        Self { processes, next: AtomicUsize::new(0), client, failures: Mutex::default() }
    }

    /// Sends a request, and notes every answer that is not 200.
    async fn send(&self, request: impl Fn(&reqwest::Client, SocketAddr) -> reqwest::RequestBuilder) {
        for _ in 0..10 * PROCESSES {
            let (address, in_rotation) = &self.processes[self.next.fetch_add(1, Relaxed) % PROCESSES];
            if !in_rotation.load(Relaxed) {
                continue;
            }
            match request(&self.client, *address).send().await {
                Ok(answer) if answer.status() == 200 => return,
                Ok(answer) => return self.failed(format!("{}: {:?}", answer.status(), answer.text().await)),
                Err(error) if error.is_connect() => in_rotation.store(false, Relaxed),
                Err(error) => return self.failed(format!("{error:?}")),
            }
        }
        self.failed("no process is in rotation".into());
    }

    fn failed(&self, failure: String) {
        self.failures.lock().unwrap().push(failure);
    }
}

/// The n-th change of a user, one second after the one before.
fn change(user: usize, n: usize) -> String {
    let (hours, minutes, seconds) = (n / 3600, n / 60 % 60, n % 60);
    format!(
        r#"{{"type":"user.updated","event_id":"event_{user}_{n}","timestamp":"2026-01-01T{hours:02}:{minutes:02}:{seconds:02}Z","data":{{"user":{{"id":"kp_{user}","first_name":"{n:06}"}}}}}}"#
    )
}

async fn deliver(balancer: Arc<LoadBalancer>, user: usize, stop: Arc<AtomicBool>) -> usize {
    let mut sent = 0;
    while !stop.load(Relaxed) {
        sent += 1;
        let body = change(user, sent);
        let signature = sign(SECRET, body.as_bytes());
        let request = |client: &reqwest::Client, address| {
            let request = client.post(format!("http://{address}/api/webhook"));
            request.header("x-kinde-signature", &signature).body(body.clone())
        };
        balancer.send(request).await;
    }
    sent
}

async fn request_the_user(balancer: Arc<LoadBalancer>, token: String, stop: Arc<AtomicBool>) {
    while !stop.load(Relaxed) {
        let request = |client: &reqwest::Client, address| {
            client.get(format!("http://{address}/api/me")).bearer_auth(&token)
        };
        balancer.send(request).await;
    }
}

async fn until_refused(in_rotation: &AtomicBool) {
    while in_rotation.load(Relaxed) {
        tokio::task::yield_now().await;
    }
}

async fn shown(users: &Collection<Document>) -> BTreeMap<String, String> {
    let found: Vec<Document> = users.find(doc! {}).await.unwrap().try_collect().await.unwrap();
    let text = |document: &Document, key| document.get_str(key).unwrap_or_default().to_owned();
    found.iter().map(|document| (text(document, "kindeId"), text(document, "firstName"))).collect()
}

/// Compares what the documents show, again and again: a version never decreases.
async fn watch(users: Collection<Document>, stop: Arc<AtomicBool>) -> Vec<String> {
    let (mut before, mut lowered) = (BTreeMap::new(), Vec::new());
    while !stop.load(Relaxed) {
        let now = shown(&users).await;
        for (user, value) in &before {
            if now.get(user).is_none_or(|new| new < value) {
                lowered.push(format!("{user}: {value}, then {:?}", now.get(user)));
            }
        }
        before = now;
    }
    lowered
}

async fn start(
    binary: &str,
    kinde: &Emulator,
    redis: &TestRedis,
    mongo: &TestMongo,
    database: &str,
) -> TestApp {
    let mut app = TestApp::new(binary).unwrap();
    app.with_mongodb(&mongo.uri(), database);
    app.set("KINSYNC_QUEUE", redis.url())
        .set("KINDE_DOMAIN", kinde.issuer())
        .set("KINDE_WEBHOOK_SECRET", SECRET);
    app.start().await.unwrap();
    app.prepared().await.unwrap();
    app
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_refuses_no_delivery_and_fails_no_request() {
    roll(BINARY).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the binary of an earlier commit, in KINSYNC_TEST_BEFORE"]
async fn a_rolling_upgrade_under_load_refuses_no_delivery_and_fails_no_request() {
    let before = std::env::vars().find(|(name, _)| name == "KINSYNC_TEST_BEFORE");
    roll(&before.expect("KINSYNC_TEST_BEFORE is set").1).await;
}

/// Starts this binary three times, and replaces it by the one of this build, one process after the other.
async fn roll(before: &str) {
    let (redis, mongo) = (TestRedis::start(DURABLE), TestMongo::shared().await);
    let kinde = Emulator::start(kinde_emulator::Config::default()).await.unwrap();
    let database = mongo.database();
    let mut apps = Vec::new();
    for _ in 0..PROCESSES {
        apps.push(start(before, &kinde, &redis, mongo, &database).await);
    }
    let user = kinde.create_user(named(1)).unwrap().id;
    let token = kinde.access_token(&user, &TokenSpec::default()).unwrap();
    let collections = mongo.client().await.database(&database);
    let users: Collection<Document> = collections.collection("users");

    let (balancer, stop) = (Arc::new(LoadBalancer::new(&apps)), Arc::new(AtomicBool::new(false)));
    let mut senders = JoinSet::new();
    for user in 0..SENDERS {
        let load = deliver(Arc::clone(&balancer), user, Arc::clone(&stop));
        senders.spawn(async move { (user, load.await) });
    }
    let (mut requests, mut watched) = (JoinSet::new(), JoinSet::new());
    requests.spawn(request_the_user(Arc::clone(&balancer), token, Arc::clone(&stop)));
    watched.spawn(watch(users.clone(), Arc::clone(&stop)));
    for (app, (_, in_rotation)) in apps.iter_mut().zip(&balancer.processes) {
        assert!(app.stop().await.unwrap().success());
        let met = tokio::time::timeout(WITHIN, until_refused(in_rotation)).await;
        met.expect("the load meets the stopped process");
        app.replace_binary(BINARY).start().await.unwrap();
        app.prepared().await.unwrap();
        in_rotation.store(true, Relaxed);
    }
    stop.store(true, Relaxed);
    let sent: BTreeMap<usize, usize> = senders.join_all().await.into_iter().collect();
    requests.join_all().await;
    for app in &mut apps {
        app.drained(WITHIN).await.unwrap();
    }

    assert_eq!(*balancer.failures.lock().unwrap(), Vec::<String>::new());
    assert_eq!(watched.join_all().await.concat(), Vec::<String>::new(), "no version is lowered");
    let shown = shown(&users).await;
    for (user, sent) in &sent {
        assert_eq!(shown[&format!("kp_{user}")], format!("{sent:06}"), "the last change of {user}");
    }
    let log: Collection<Document> = collections.collection("user_events");
    let logged = log.count_documents(doc! { "type": "user.updated" }).await.unwrap();
    assert_eq!(logged, sent.values().sum::<usize>() as u64, "each delivery is in the log once");
}
