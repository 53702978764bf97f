//! Changes at Kinde, which Kinde delivers as webhooks, and requests of users, both at a constant rate.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::join_all;
use kinde_emulator::{Activity, NewUser, TokenSpec};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::interval;

use crate::Options;
use crate::deployment::Deployment;

/// Users that send requests. No change at Kinde concerns them.
const USERS: usize = 50;
const TIMEOUT: Duration = Duration::from_secs(5);

/// The number of answers by what they were.
pub type Answers = BTreeMap<String, u64>;

/// Tokens and ids of users.
pub type Users = Arc<[(String, String)]>;

/// The running load.
#[derive(Debug)]
pub struct Load {
    tasks: JoinSet<()>,
    users: Users,
    answers: Arc<Mutex<Answers>>,
}

impl Load {
    /// Starts both.
    pub fn start(deployment: &Deployment, options: &Options, seed: u64) -> anyhow::Result<Self> {
        let (mut tasks, answers) = (JoinSet::new(), Arc::new(Mutex::new(Answers::new())));
        let kinde = deployment.kinde.clone();
        let (mut changes, mut activity) = (every(options.changes), Activity::new(seed));
        let mut users = Vec::new();
        for number in 0..USERS {
            let email = format!("user.{number}@soak.example");
            let id = kinde.sign_up(NewUser::named(&email, "Ada", "Lovelace"))?.id;
            users.push((kinde.access_token(&id, &TokenSpec::default())?, id));
        }
        let users: Users = users.into();
        tasks.spawn(async move {
            loop {
                changes.tick().await;
                activity.step(&kinde);
            }
        });
        let client = reqwest::Client::builder().timeout(TIMEOUT).build()?;
        let url = format!("http://{}/api/me", deployment.address);
        let (mut requests, counts) = (every(options.requests), Arc::clone(&answers));
        let senders = Arc::clone(&users);
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            for (token, id) in senders.iter().cycle() {
                requests.tick().await;
                let (request, id) = (client.get(&url).bearer_auth(token), id.clone());
                let counts = Arc::clone(&counts);
                open.spawn(async move {
                    let answer = answer(request, &id).await;
                    *counts.lock().expect("no task panics with the lock").entry(answer).or_default() += 1;
                });
                while open.try_join_next().is_some() {}
            }
        });
        Ok(Self { tasks, users, answers })
    }

    /// Ends the load.
    pub async fn stop(mut self) -> anyhow::Result<(Users, Answers)> {
        let is_running = self.tasks.try_join_next().is_none();
        self.tasks.shutdown().await;
        anyhow::ensure!(is_running, "the load ended early");
        let answers = std::mem::take(&mut *self.answers.lock().ok().context("a request panicked")?);
        Ok((self.users, answers))
    }
}

fn every(per_second: f64) -> tokio::time::Interval {
    interval(Duration::from_secs_f64(1.0 / per_second.clamp(0.01, 10_000.0)))
}

/// What the answer is: `200`, another status, `no answer`, or `wrong` with a reason.
async fn answer(request: reqwest::RequestBuilder, id: &str) -> String {
    let Ok(answer) = request.send().await else { return "no answer".into() };
    let status = answer.status().as_u16();
    let body: Option<Value> = answer.json().await.ok();
    match (status, body) {
        (200, Some(body)) if body["kindeId"] == id => "200".into(),
        (200, None) => "no answer".into(),
        (200, Some(body)) => format!("wrong: {body}"),
        (status @ 500.., _) => status.to_string(),
        (status, body) => format!("wrong: {status} {body:?}"),
    }
}

/// Sends one request of each user to each process. Returns the answers that are not 200.
pub async fn ask_all(deployment: &Deployment, users: &Users) -> anyhow::Result<Vec<String>> {
    let client = reqwest::Client::builder().timeout(TIMEOUT).build()?;
    let requests = deployment.apps.iter().flat_map(|app| {
        let client = &client;
        users.iter().map(move |(token, id)| answer(client.get(app.url("/api/me")).bearer_auth(token), id))
    });
    Ok(join_all(requests).await.into_iter().filter(|answer| answer != "200").collect())
}
