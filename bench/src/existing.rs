//! The first scan of a cold `kinsync serve` on a collection with documents of an application that have the addresses of the
//! users, compared with the same scan on an empty collection.
//!
//! Each user gets a document of its own, and the ownership of its address is decided against the application's document.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use bson::{Document, doc};
use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use serde_json::Value;

use crate::http;
use crate::kinsync::{self, ADMIN_TOKEN, Settings, USERS};
use crate::mongo::Mongod;
use crate::options::Options;
use crate::process::{Process, wait_until};
use crate::reconcile::Tenant;
use crate::report::{Report, Row, Target, Unit};
use crate::work::Work;

const PART: &str = "existing";
/// Users. Nearly all of them have an address.
const USER_COUNT: u64 = 4000;
const TIMEOUT: Duration = Duration::from_mins(2);

/// Measures the first scans, in rounds.
pub async fn measure(work: &Work, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let mongod = Mongod::start(work, "mongod-existing").await?;
    report.machine().version("mongod", mongod.version().await?);
    let tenant = Tenant::start(work, "existing", USER_COUNT, "").await?;
    let (mut empty, mut existing, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let [without, with] = ["empty", "filled"].map(|what| format!("{PART}-{what}-{round}"));
        let first = scan(work, &mongod, &tenant, &without).await?;
        let documents = fill(&mongod, &without, &with).await?;
        let second = scan(work, &mongod, &tenant, &with).await?;
        check(&mongod, &with, documents).await?;
        empty.push(first);
        existing.push(second);
        ratios.push(second / first);
    }
    let row = |what: &str, values: Vec<f64>, unit| {
        let (median, min, max) = median(values);
        Row::new(PART, what, median, unit).spread(min, max)
    };
    let users = format!("first scan of {USER_COUNT} users, empty collection");
    report.add(row(&users, empty, Unit::Millis));
    report.add(row("first scan, a document with each address", existing, Unit::Millis));
    report.add(row("existing documents / empty collection", ratios, Unit::Ratio).target(Target::AtMost(3.0)));
    Ok(())
}

fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

/// Inserts a document for each address in another database. Returns their number.
async fn fill(mongod: &Mongod, from: &str, to: &str) -> anyhow::Result<u64> {
    let users = mongod.database(from).collection::<Document>(USERS);
    let users: Vec<Document> =
        users.find(doc! {}).projection(doc! { "email": 1 }).await?.try_collect().await?;
    let own =
        users.iter().filter_map(|user| Some(doc! { "email": user.get_str("email").ok()?, "plan": "pro" }));
    let own: Vec<Document> = own.collect();
    let count = own.len() as u64;
    anyhow::ensure!(count > USER_COUNT * 9 / 10, "only {count} users have an address");
    mongod.database(to).collection::<Document>(USERS).insert_many(own).await?;
    Ok(count)
}

/// Fails unless every user has a document and every conflict names the document of the application.
async fn check(mongod: &Mongod, database: &str, documents: u64) -> anyhow::Result<()> {
    let users = mongod.database(database).collection::<Document>(USERS);
    let decided = doc! { "kindeId": { "$gt": "" }, "emailConflict.heldBy": { "$gt": "" }, "kinsync.pendingEmails": null };
    let count = users.count_documents(decided).await?;
    anyhow::ensure!(count == documents, "{count} of {documents} conflicts are decided");
    Ok(())
}

/// Starts a server and returns the milliseconds of its first scan.
async fn scan(work: &Work, mongod: &Mongod, tenant: &Tenant, database: &str) -> anyhow::Result<f64> {
    let settings = Settings { mongodb: Some(mongod.uri(database)), ..Settings::default() };
    let (mut command, log, address) = kinsync::prepare(work, database, &settings)?;
    tenant.configure(&mut command);
    let mut process = Process::start("kinsync", &command, &log)?;
    wait_until(&mut process, TIMEOUT, || async move { Ok(first_run(address).await.is_ok()) }).await?;
    let run = first_run(address).await?;
    process.stop(TIMEOUT).await?;
    let missing = run["drift"]["missing"].as_u64();
    anyhow::ensure!(missing == Some(USER_COUNT), "the scan found {run}");
    let at = |key: &str| run[key].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let took = at("startedAt").zip(at("endedAt")).map(|(start, end)| end.duration_since(start));
    Ok(took.context("the scan has no times")?.as_secs_f64() * 1e3)
}

/// Returns the newest scan, if it is complete.
async fn first_run(address: SocketAddr) -> anyhow::Result<Value> {
    let (status, body) = http::get_as(address, "/api/admin/runs", ADMIN_TOKEN).await?;
    anyhow::ensure!(status == 200, "{status}");
    let run =
        serde_json::from_str::<Value>(&body)?["runs"].get(0).cloned().context("no scan is recorded yet")?;
    anyhow::ensure!(run["outcome"] == "complete", "the scan is not complete");
    Ok(run)
}
