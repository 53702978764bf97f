//! A large tenant: a backfill into an empty MongoDB compared with the raw driver and the same documents, a reconciliation
//! without changes, and a backfill with a rate limit such as Kinde's. Then the same with the roles of members.
//!
//! Kinde is the emulator in a separate process on the same cores, with generated users. Times count from before the
//! process of kinsync is created until it has ended.

mod roles;

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::http;
use crate::kinsync::USERS;
use crate::mongo::Mongod;
use crate::options::Options;
use crate::process::{Process, Used, wait_until};
use crate::report::{Report, Row, Target, Unit};
use crate::work::{Work, free_address};
use crate::{oplog, raw};

const PART: &str = "reconcile";
const MIB: f64 = 1024.0 * 1024.0;
const START: Duration = Duration::from_secs(20);
const TIMEOUT: Duration = Duration::from_hours(2);
/// Users per page: the largest number in Kinde's documentation.
const PAGE: u64 = 500;
/// The rate limit: requests per window.
const LIMIT: u64 = 20;
const WINDOW: u64 = 5;
/// Smallest number of windows that the limited scan takes.
const WINDOWS: u64 = 4;

/// Measures backfill, reconciliation and rate limit.
pub async fn measure(work: &Work, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let mongod = Mongod::start(work, "mongod-reconcile").await?;
    report.machine().version("mongod", mongod.version().await?);
    let tenant = Tenant::start(work, "tenant", options.users, "").await?;
    let runs = Runs { work, mongod: &mongod, name: "users", settings: &[] };

    let backfill = runs.run(&tenant, PART, "backfill").await?;
    let bare = raw::copy(&mongod, PART, "raw-users").await?;
    let before = oplog::end(&mongod).await?;
    let again = runs.run(&tenant, PART, "reconcile").await?;
    let written = oplog::writes_since(&mongod, before, &format!("{PART}.{USERS}")).await?;
    add_rows(options.users, &backfill, bare, &again, written, report);
    drop(tenant);

    let limits = format!("[limits]\nrequests = {LIMIT}\nwindow = \"{WINDOW}s\"\n");
    let users = LIMIT * WINDOWS * PAGE;
    let tenant = Tenant::start(work, "limited", users, &limits).await?;
    let limited = runs.run(&tenant, "limited", "backfill").await?;
    let ratio = limited.rate() / (LIMIT * PAGE / WINDOW) as f64;
    let what = format!("backfill at {LIMIT} requests of {PAGE} users per {WINDOW} s, share of the limit");
    report.add(Row::new(PART, what, ratio, Unit::Ratio).note(limited.note()).unless(limited.problem(users)));
    drop(tenant);
    roles::measure(work, &mongod, options, report).await
}

/// A running emulator.
pub struct Tenant {
    process: Process,
    address: SocketAddr,
}

impl Tenant {
    /// Starts the emulator with generated users. `more` are further settings of `[generated]`, and tables after it.
    pub async fn start(work: &Work, name: &str, users: u64, more: &str) -> anyhow::Result<Self> {
        let (folder, address) = (work.folder(name)?, free_address()?);
        let config = folder.join("emulator.toml");
        fs::write(&config, format!("[generated]\nusers = {users}\nseed = 1\n{more}"))?;
        let mut command = Command::new(work.emulator()?);
        command.args(["serve", "--port", &address.port().to_string()]).arg("--config").arg(config);
        let mut process = Process::start("kinde-emulator", &command, &folder.join("emulator.log"))?;
        wait_until(&mut process, START, || async move {
            Ok(http::get(address, "/.well-known/jwks").await?.0 == 200)
        })
        .await?;
        Ok(Self { process, address })
    }

    /// The number of requests that it has received.
    async fn requests(&self) -> anyhow::Result<u64> {
        let (_, stats) = http::get(self.address, "/_emulator/stats").await?;
        let stats: Value = serde_json::from_str(&stats)?;
        let routes = stats["requests"].as_object().context("no requests in the statistics")?;
        Ok(routes.values().filter_map(Value::as_u64).sum())
    }

    /// Limits the requests per window of this many seconds.
    async fn limit(&self, requests: u64, window: u64) -> anyhow::Result<()> {
        let body = format!("{{\"requests\": {requests}, \"window\": \"{window}s\"}}");
        let head = format!("POST /_emulator/limits HTTP/1.1\r\nhost: {}\r\n", self.address);
        let length = format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        let mut connection = http::Connection::open(self.address).await?;
        let (status, _) = connection.send(format!("{head}{length}{body}").as_bytes()).await?;
        anyhow::ensure!(status == 200, "the emulator refused the limit with {status}");
        Ok(())
    }

    /// Sets the settings with which kinsync scans this tenant.
    pub fn configure(&self, command: &mut Command) {
        let (id, secret) = ("d4d3c5b74e064badb9625a4aa6241bcc", "emulator-secret");
        command.env("KINDE_DOMAIN", format!("http://{}", self.address));
        command.env("KINDE_M2M_CLIENT_ID", id).env("KINDE_M2M_CLIENT_SECRET", secret);
        command.env("KINSYNC_RECONCILE_PAGE_SIZE", PAGE.to_string());
    }
}

struct Runs<'a> {
    work: &'a Work,
    mongod: &'a Mongod,
    /// Prefix of the folders of the runs: a folder is used once.
    name: &'static str,
    /// Settings of kinsync as environment variables.
    settings: &'a [(&'static str, &'static str)],
}

/// The result of one command.
struct Done {
    run: Value,
    used: Used,
    /// CPU time of mongod and of the emulator during the command.
    beside: [Duration; 2],
}

impl Runs<'_> {
    /// Runs a command of kinsync.
    async fn run(&self, tenant: &Tenant, database: &str, what: &str) -> anyhow::Result<Done> {
        let folder = self.work.folder(&format!("{}-{database}-{what}", self.name))?;
        let mut command = Command::new(self.work.kinsync()?);
        command.args([what, "--json"]);
        tenant.configure(&mut command);
        command.envs(self.settings.iter().copied());
        command.env("MONGODB_URI", self.mongod.uri(database));
        command.env("KINSYNC_DATA_DIR", folder.join("data"));
        let cpu = || anyhow::Ok([self.mongod.cpu()?, tenant.process.cpu()?]);
        let before = cpu()?;
        let process = Process::start("kinsync", &command, &folder.join("kinsync.log"))?;
        let (printed, used) = process.watch(TIMEOUT).await?;
        let after = cpu()?;
        // Warnings may precede the line.
        let json = printed.find('{').map(|at| &printed[at..]).unwrap_or_default();
        let run = serde_json::from_str(json).with_context(|| format!("`{what}` printed {printed}"))?;
        Ok(Done { run, used, beside: [0, 1].map(|at| after[at].saturating_sub(before[at])) })
    }
}

impl Done {
    fn users(&self) -> u64 {
        self.run["users"].as_u64().unwrap_or_default()
    }

    fn rate(&self) -> f64 {
        self.users() as f64 / self.used.took.as_secs_f64()
    }

    fn note(&self) -> String {
        let share = |cpu: Duration| cpu.as_secs_f64() / self.used.took.as_secs_f64();
        let [mongod, emulator] = self.beside.map(share);
        let kinsync = share(self.used.cpu);
        format!(
            "{:.1?}; cores: kinsync {kinsync:.2}, mongod {mongod:.2}, emulator {emulator:.2}",
            self.used.took
        )
    }

    /// Why the result is invalid, if not all users were created.
    fn problem(&self, users: u64) -> Option<String> {
        let created = self.run["drift"]["missing"].as_u64();
        (self.run["outcome"] != "complete" || created != Some(users)).then(|| self.run.to_string())
    }
}

fn memory(what: &str, done: &Done) -> Row {
    let row = Row::new(PART, what, done.used.peak as f64 / MIB, Unit::MiB);
    row.target(Target::Below(128.0)).note("VmHWM")
}

fn add_rows(users: u64, backfill: &Done, bare: f64, again: &Done, written: u64, report: &mut Report) {
    let problem = backfill.problem(users);
    let what = format!("backfill of {users} users, pages of {PAGE}");
    let row = Row::new(PART, what, backfill.rate(), Unit::PerSecond);
    report.add(row.note(backfill.note()).unless(problem.clone()));
    let row = Row::new(PART, "raw driver, upserts of the same documents", bare, Unit::PerSecond);
    report.add(row.note("built before the measurement; same indexes"));
    let row = Row::new(PART, "backfill / raw upserts", backfill.rate() / bare, Unit::Ratio);
    let why = "the emulator and kinsync share the cores with MongoDB; the raw driver does not";
    report.add(row.target(Target::AtLeast(0.7)).because(why).unless(problem.clone()));
    report.add(memory("backfill: peak memory", backfill).unless(problem));

    let unchanged = again.run["unchanged"].as_u64();
    let problem = (unchanged != Some(users)).then(|| again.run.to_string());
    let row = Row::new(PART, "reconcile without drift", again.rate(), Unit::PerSecond);
    report.add(row.note(again.note()).unless(problem.clone()));
    let row =
        Row::new(PART, "reconcile without drift / backfill", again.rate() / backfill.rate(), Unit::Ratio);
    report.add(row.target(Target::AtLeast(3.0)).because(again.note()).unless(problem.clone()));
    let row = Row::new(PART, "reconcile without drift: users written", written as f64, Unit::Count);
    report.add(row.target(Target::AtMost(0.0)).note("from the oplog").unless(problem.clone()));
    report.add(memory("reconcile without drift: peak memory", again).unless(problem));
}
