//! A rebuild of all users from the log after their documents were lost, compared with the raw driver: it reads the same log and
//! upserts the documents that result. Then the same under a load of deliveries.
//!
//! The log is filled by deliveries. Times count from before the process of kinsync is created until it has ended.

mod live;

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bson::{Document, RawDocumentBuf, doc};
use serde_json::Value;

use crate::events::{Event, Kind, Source};
use crate::kinsync::{EVENTS, Kinsync, SECRET, Settings, USERS};
use crate::mongo::Mongod;
use crate::options::Options;
use crate::process::{Process, Used};
use crate::report::{Report, Row, Target, Unit};
use crate::work::Work;
use crate::{drain, raw};

const PART: &str = "rebuild";
const TIMEOUT: Duration = Duration::from_mins(30);
/// Events of each user.
const EVENTS_PER_USER: usize = 10;
const MIB: f64 = 1024.0 * 1024.0;

/// Measures a verification and a rebuild.
pub async fn measure(work: &Work, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let mongod = Mongod::start(work, "mongod-rebuild").await?;
    report.machine().version("mongod", mongod.version().await?);
    let mut source = Source::now();
    let events = Arc::new(histories(&mut source, options.logged_events));
    let settings = Settings { mongodb: Some(mongod.uri(PART)), ..Settings::default() };
    let mut kinsync = Kinsync::start(work, PART, &settings).await?;
    drain::fill(&kinsync, &events).await?;
    kinsync.drained(TIMEOUT).await?;
    kinsync.stop(TIMEOUT).await?;

    let run = Run { work, mongod: &mongod, events: &events };
    let verified = run.command("verify", &["--verify"]).await?;
    let bare = run.raw().await?;
    let users = mongod.database(PART).collection::<Document>(USERS);
    users.delete_many(doc! {}).await?;
    let rebuilt = run.command("rebuild", &[]).await?;
    let problem = drain::check(&mongod, PART, &events).await?;
    run.add_rows(&verified, &rebuilt, bare, problem, report);
    live::measure(&run, &mut source, &rebuilt, report).await
}

/// Ten events of each user, shuffled: created, then updated.
fn histories(source: &mut Source, count: usize) -> Vec<Event> {
    let users = (count / EVENTS_PER_USER) as u64;
    let mut events: Vec<Event> = (0..EVENTS_PER_USER)
        .flat_map(|n| (0..users).map(move |user| (user, if n == 0 { Kind::Created } else { Kind::Updated })))
        .map(|(user, kind)| source.event(user, kind))
        .collect();
    fastrand::Rng::with_seed(1).shuffle(&mut events);
    events
}

struct Run<'a> {
    work: &'a Work,
    mongod: &'a Mongod,
    events: &'a [Event],
}

/// The result of one command.
struct Done {
    report: Value,
    used: Used,
    mongod: Duration,
}

impl Run<'_> {
    async fn command(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Done> {
        let folder = self.work.folder(&format!("{PART}-{name}"))?;
        let mut command = Command::new(self.work.kinsync()?);
        command.args(["rebuild", "--json"]).args(arguments);
        command.env("MONGODB_URI", self.mongod.uri(PART)).env("KINSYNC_DATA_DIR", folder.join("data"));
        command.env("KINDE_WEBHOOK_SECRET", SECRET);
        let before = self.mongod.cpu()?;
        let process = Process::start("kinsync", &command, &folder.join("kinsync.log"))?;
        let (printed, used) = process.watch(TIMEOUT).await?;
        let mongod = self.mongod.cpu()?.saturating_sub(before);
        let line = printed.lines().last().unwrap_or_default();
        let last: Value = serde_json::from_str(line).with_context(|| format!("it printed {line}"))?;
        Ok(Done { report: last["report"].clone(), used, mongod })
    }

    /// Reads the log with the raw driver, then upserts the users. Returns events per second.
    async fn raw(&self) -> anyhow::Result<f64> {
        let start = Instant::now();
        let log = self.mongod.database(PART).collection::<RawDocumentBuf>(EVENTS);
        let mut cursor = log.find(doc! {}).batch_size(10_000).await?;
        let mut read = 0;
        while cursor.advance().await? {
            read += usize::from(!cursor.current().is_empty());
        }
        anyhow::ensure!(read == self.events.len(), "the log has {read} events");
        let reading = start.elapsed();
        let users = self.users() as f64;
        let rate = raw::copy(self.mongod, PART, "raw-rebuild").await?;
        Ok(read as f64 / (reading.as_secs_f64() + users / rate))
    }

    fn users(&self) -> usize {
        self.events.iter().map(|event| event.user).collect::<HashSet<_>>().len()
    }

    fn add_rows(
        &self,
        verified: &Done,
        rebuilt: &Done,
        bare: f64,
        problem: Option<String>,
        report: &mut Report,
    ) {
        let (count, users) = (self.events.len(), self.users());
        let rate = |done: &Done| count as f64 / done.used.took.as_secs_f64();
        let row =
            |what: &str, done: &Done| Row::new(PART, what, rate(done), Unit::PerSecond).note(done.note());
        let invalid = differs(verified, count, 0);
        report.add(row("verification: events", verified).unless(invalid.clone()));
        report.add(memory("verification: peak memory", verified).unless(invalid));
        let invalid = problem.or_else(|| differs(rebuilt, count, users));
        let what = format!("rebuild of {users} lost users from {count} events");
        report.add(row(&what, rebuilt).unless(invalid.clone()));
        let raw = Row::new(PART, "raw driver: reads the log, then upserts the users", bare, Unit::PerSecond);
        report.add(raw.note("upserts are built before the measurement; same indexes"));
        let ratio = Row::new(PART, "rebuild / raw driver", rate(rebuilt) / bare, Unit::Ratio);
        report.add(ratio.target(Target::AtLeast(0.5)).because(rebuilt.note()).unless(invalid.clone()));
        report.add(memory("rebuild: peak memory", rebuilt).unless(invalid));
    }
}

/// The report of a command if it has another number of entries or of different users.
fn differs(done: &Done, entries: usize, different: usize) -> Option<String> {
    let expected = done.report["entries"] == entries && done.report["different"] == different;
    (!expected).then(|| done.report.to_string())
}

impl Done {
    fn note(&self) -> String {
        let share = |cpu: Duration| cpu.as_secs_f64() / self.used.took.as_secs_f64();
        let (kinsync, mongod) = (share(self.used.cpu), share(self.mongod));
        format!("{:.1?}; cores: kinsync {kinsync:.2}, mongod {mongod:.2}", self.used.took)
    }
}

fn memory(what: &str, done: &Done) -> Row {
    Row::new(PART, what, done.used.peak as f64 / MIB, Unit::MiB).target(Target::Below(256.0)).note("VmHWM")
}
