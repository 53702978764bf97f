//! What has to hold after the load and all faults.

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use bson::{Document, doc};
use futures_util::TryStreamExt as _;
use kinde_emulator::DeliveryState;
use kinsync_testing::mongo::TestMongo;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::deployment::{DATABASE, Deployment};
use crate::load::{self, Users};
use crate::samples::clients;

/// Longest time until all deliveries are accepted and applied. A batch that a killed process had claimed in Redis comes again after 30
/// seconds.
pub const DRAIN: Duration = Duration::from_mins(8);
/// Longest time until each row has its entries of the log.
const FOLLOWED: Duration = Duration::from_mins(8);
/// Longest time until idle connections are closed.
const IDLE: Duration = Duration::from_mins(1);
/// Differences that a scan repairs.
const REPAIRED: [&str; 5] = ["missing", "changed", "filled_in", "signed_in", "deleted"];

/// What was found, and whether it is as it has to be.
#[derive(Debug, Default)]
pub struct Verdicts(Vec<(bool, String)>);

impl Verdicts {
    /// Adds and prints one.
    pub fn add(&mut self, holds: bool, what: String) {
        println!("{} {what}", if holds { "ok   " } else { "FALSE" });
        self.0.push((holds, what));
    }

    /// Prints the number of each; fails if something is false.
    pub fn finish(&self) -> ExitCode {
        let wrong = self.0.iter().filter(|(holds, _)| !holds).count();
        println!("{} checks hold, {wrong} do not", self.0.len() - wrong);
        if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Waits until all deliveries are applied, and checks the result. `may_be_lost`: events that a fault may have deleted from the queue.
pub async fn check(
    mut deployment: Deployment,
    users: &Users,
    may_be_lost: &HashSet<String>,
    verdicts: &mut Verdicts,
) -> anyhow::Result<()> {
    let deleted = deliveries(&mut deployment, may_be_lost, verdicts).await?;
    let wrong = load::ask_all(&deployment, users).await?;
    verdicts.add(wrong.is_empty(), format!("requests at each process that are not answered 200: {wrong:?}"));
    differences(&deployment, &deleted, verdicts).await?;
    rebuild(&deployment, verdicts).await?;
    let address = deployment.apps[0].address();
    let idle =
        deployment.apps[0].until("it has no clients", IDLE, async |_| Ok(clients(address.port()) == Some(0)));
    verdicts.add(idle.await.is_ok(), "the first process has no connection of a client after the load".into());
    for app in &mut deployment.apps {
        let status = app.stop().await?;
        verdicts.add(status.success(), format!("a process ended with {status}"));
        let panics = app.log().matches("panicked at").count();
        verdicts.add(panics == 0, format!("panics in its log: {panics}"));
    }
    Ok(())
}

/// Every event that was accepted is in the log, unless a fault deleted it from the queue, and nothing waits. Returns the deleted ones.
async fn deliveries(
    deployment: &mut Deployment,
    may_be_lost: &HashSet<String>,
    verdicts: &mut Verdicts,
) -> anyhow::Result<HashSet<String>> {
    let Deployment { apps, kinde, mongo, .. } = deployment;
    let accepted = kinde.quiesce(DRAIN).await;
    let stats = kinde.stats();
    let all = accepted.is_ok() && stats.given_up + stats.abandoned == 0;
    verdicts.add(all, format!("every delivery that was sent is accepted: {stats:?}"));
    for (number, app) in apps.iter_mut().enumerate() {
        let drained = app.drained(DRAIN).await;
        let health = app.health().await?;
        let queue = &health["components"]["queue"];
        let letters = queue["deadLetters"].as_u64();
        let empty = drained.is_ok() && letters == Some(0);
        verdicts.add(
            empty,
            format!("queue of process {number}: depth {}, dead letters {letters:?}", queue["depth"]),
        );
    }
    let deliveries = kinde.deliveries().into_iter();
    let accepted: HashSet<String> = deliveries
        .filter(|delivery| delivery.state == DeliveryState::Delivered)
        .map(|delivery| delivery.event_id)
        .collect();
    let logged = logged(mongo).await?;
    let missing = accepted.difference(&logged).cloned();
    let (deleted, unexplained): (HashSet<_>, HashSet<_>) =
        missing.partition(|event| may_be_lost.contains(event));
    let what = format!(
        "accepted events that are not in the log, of {}: {:?}; {} more were deleted from the queue, of at most {}",
        accepted.len(),
        unexplained.iter().take(10).collect::<Vec<_>>(),
        deleted.len(),
        may_be_lost.len()
    );
    verdicts.add(unexplained.is_empty() && !accepted.is_empty(), what);
    Ok(deleted)
}

/// The ids of the entries of the log.
pub async fn logged(mongo: &TestMongo) -> anyhow::Result<HashSet<String>> {
    let log = mongo.client().await.database(DATABASE).collection::<Document>("user_events");
    let ids = log.find(doc! {}).projection(doc! { "_id": 1 }).await?;
    let ids: Vec<Document> = ids.try_collect().await?;
    Ok(ids.iter().filter_map(|one| Some(one.get_str("_id").ok()?.to_owned())).collect())
}

/// Users differ only after a lost event or without any event with their fields; not after a scan; and the next scan finds nothing.
async fn differences(
    deployment: &Deployment,
    deleted: &HashSet<String>,
    verdicts: &mut Verdicts,
) -> anyhow::Result<()> {
    // Kinde's clock has whole seconds.
    sleep(Duration::from_secs(3)).await;
    let deliveries = deployment.kinde.deliveries();
    let of = |state: DeliveryState, kinds: &[&str]| -> HashSet<&str> {
        let selected = deliveries
            .iter()
            .filter(|one| one.state == state && (kinds.is_empty() || kinds.contains(&&*one.event_type)));
        selected.filter_map(|one| one.user_id.as_deref()).collect()
    };
    let mut lost = of(DeliveryState::Dropped, &[]);
    let of_deleted = deliveries.iter().filter(|one| deleted.contains(&one.event_id));
    lost.extend(of_deleted.filter_map(|one| one.user_id.as_deref()));
    let announced = of(DeliveryState::Delivered, &["user.created", "user.updated"]);
    let before = differing(deployment, false).await?;
    let is_explained = |user: &&String| lost.contains(&***user) || !announced.contains(&***user);
    let unexplained: Vec<_> = before.iter().filter(|user| !is_explained(user)).collect();
    let what = format!("users that differ from Kinde: {}, without a reason: {unexplained:?}", before.len());
    verdicts.add(unexplained.is_empty(), what);

    let scanned = scan(deployment).await?;
    let drift = scanned["drift"].as_object().context("the scan has no `drift`")?;
    let is_complete = scanned["outcome"] == "complete";
    let holds = is_complete && drift.keys().all(|kind| REPAIRED.contains(&&**kind));
    verdicts.add(holds, format!("a scan repairs {drift:?}; {} users have a lost event", lost.len()));
    let after = differing(deployment, true).await?;
    verdicts.add(after.is_empty(), format!("users that differ from Kinde afterwards: {after:?}"));
    let again = scan(deployment).await?;
    let none = again["drift"].as_object().is_some_and(|drift| drift.values().all(|count| count == 0));
    verdicts.add(none && again["outcome"] == "complete", format!("the next scan finds {}", again["drift"]));
    Ok(())
}

/// The users with another document than at Kinde. Which of several users shows an address depends on events of all of them.
async fn differing(deployment: &Deployment, with_email: bool) -> anyhow::Result<Vec<String>> {
    let client = deployment.mongo.client().await;
    let users = client.database(DATABASE).collection::<Document>("users");
    let live: Vec<Document> = users.find(doc! { "isDeleted": false }).await?.try_collect().await?;
    let text = |document: &Document, key| document.get_str(key).ok().map(str::to_owned);
    let stored = live.iter().filter_map(|document| {
        let email = text(document, "email").filter(|_| with_email);
        let suspended = document.get_bool("isSuspended").unwrap_or_default();
        Some((
            text(document, "kindeId")?,
            (text(document, "firstName"), text(document, "lastName"), email, suspended),
        ))
    });
    let mut stored: HashMap<_, _> = stored.collect();
    let mut differing = Vec::new();
    for user in deployment.kinde.users() {
        let expect = (user.first_name, user.last_name, user.email.filter(|_| with_email), user.is_suspended);
        if stored.remove(&user.id).is_none_or(|found| found != expect) {
            differing.push(user.id);
        }
    }
    differing.extend(stored.into_keys());
    Ok(differing)
}

/// The log alone leads to what is at Kinde. Entries that a killed process logged without their rows are joined into them five minutes
/// later.
async fn rebuild(deployment: &Deployment, verdicts: &mut Verdicts) -> anyhow::Result<()> {
    let deadline = Instant::now() + FOLLOWED;
    loop {
        let (code, printed) = deployment.run(&["rebuild", "--verify"]).await?;
        if code == 0 || Instant::now() > deadline {
            let findings: Vec<_> = printed.lines().filter(|line| line.starts_with("kp_")).collect();
            let compared = printed.lines().last().unwrap_or_default();
            verdicts.add(code == 0, format!("rebuild --verify: {compared}; findings: {findings:?}"));
            break;
        }
        sleep(Duration::from_secs(10)).await;
    }
    let (code, printed) = deployment.run(&["rebuild"]).await?;
    let after = differing(deployment, true).await?;
    let what = format!(
        "users that differ from Kinde after a rebuild: {after:?}; {}",
        printed.lines().last().unwrap_or_default()
    );
    verdicts.add(code == 0 && after.is_empty(), what);
    let (code, printed) = deployment.run(&["rebuild", "--verify"]).await?;
    verdicts
        .add(code == 0, format!("rebuild --verify after it: {}", printed.lines().last().unwrap_or_default()));
    Ok(())
}

/// Runs `reconcile`, which waits for the scan of another process.
async fn scan(deployment: &Deployment) -> anyhow::Result<Value> {
    let (code, printed) = deployment.run(&["reconcile", "--json"]).await?;
    let json = printed.find('{').map(|at| &printed[at..]).unwrap_or_default();
    serde_json::from_str(json).with_context(|| format!("reconcile ended with {code}: {printed}"))
}
