//! Memory under load, time of a cold start, size of the binary.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::events::Source;
use crate::kinsync::{self, Kinsync, SECRET, Settings};
use crate::load::{self, Pace, Plan, off_thread};
use crate::mongo::Mongod;
use crate::options::Options;
use crate::process::{Memory, Process};
use crate::report::{Report, Row, Target, Unit};
use crate::requests::Requests;
use crate::work::Work;

const PART: &str = "footprint";
const MIB: f64 = 1024.0 * 1024.0;
/// More than kinsync accepts in this time; the load ends when they are used up.
const EVENTS_PER_SECOND: usize = 100_000;
const PEOPLE: u64 = 50_000;
const START: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_micros(200);

/// Measures memory, cold start and size.
pub async fn measure(work: &Work, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let size = work.kinsync()?.metadata()?.len() as f64 / MIB;
    let row = Row::new(PART, "size of the binary", size, Unit::MiB).target(Target::Below(30.0));
    let why = if cfg!(debug_assertions) {
        "a debug build"
    } else {
        "see `cargo bloat --release -p kinsync --crates`"
    };
    report.add(row.because(why));
    cold_start(work, options, report).await?;
    under_load(work, options, report).await
}

async fn under_load(work: &Work, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let mongod = Mongod::start(work, "mongod-footprint").await?;
    let settings = Settings { mongodb: Some(mongod.uri(PART)), ..Settings::default() };
    let kinsync = Kinsync::start(work, PART, &settings).await?;
    let idle = kinsync.process().memory()?;
    let count = EVENTS_PER_SECOND * usize::try_from(options.seconds)?;
    let make = move || Arc::new(Requests::hmac(SECRET, &Source::now().traffic(PEOPLE, count)));
    let plan = Plan {
        to: kinsync.address(),
        connections: options.connections,
        requests: off_thread(make).await?,
        cycle: false,
        warmup: Duration::ZERO,
        window: options.window(),
        pace: Pace::Closed,
    };
    let outcome = load::run(plan).await?;
    let memory = kinsync.process().memory()?;
    let row = memory_row("peak memory, HMAC load at full speed", memory);
    let queued = kinsync.metrics().await?.queue_depth()?;
    let before = format!("{:.1} MiB before the load", idle.now as f64 / MIB);
    report.add(row.note(before).note(format!("{queued} events queued at its end")).unless(outcome.problem()));
    Ok(())
}

/// The row of a memory peak with its target.
pub fn memory_row(what: &str, memory: Memory) -> Row {
    let row = Row::new(PART, what, memory.peak as f64 / MIB, Unit::MiB).target(Target::Below(64.0));
    row.note(format!("VmHWM; VmRSS {:.1} MiB", memory.now as f64 / MIB))
}

/// Time from before the process is created to the first 200 of /health/ready, with the embedded store in an empty folder.
async fn cold_start(work: &Work, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let mut times = Vec::new();
    for number in 0..options.starts.max(1) {
        let (command, log, address) =
            kinsync::prepare(work, &format!("start{number}"), &Settings::default())?;
        let start = Instant::now();
        let mut process = Process::start("kinsync", &command, &log)?;
        wait_ready(&mut process, address)?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        process.stop(START).await?;
    }
    times.sort_by(f64::total_cmp);
    let (least, most) = (times[0], times[times.len() - 1]);
    let row = Row::new(PART, "cold start to ready, embedded store", times[times.len() / 2], Unit::Millis);
    let row = row.spread(least, most).target(Target::Below(100.0));
    report.add(
        row.note(format!("median of {} starts", times.len()))
            .because("compare with fdatasync above the table"),
    );
    Ok(())
}

/// Blocks the thread, because the timer of the runtime is too coarse.
fn wait_ready(process: &mut Process, address: SocketAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + START;
    while !is_ready(address).unwrap_or_default() {
        process.check()?;
        anyhow::ensure!(Instant::now() < deadline, "kinsync was not ready in {START:?}");
        sleep(POLL);
    }
    Ok(())
}

fn is_ready(address: SocketAddr) -> anyhow::Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /health/ready HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")?;
    let mut start = [0; 12];
    stream.read_exact(&mut start).context("reading the status")?;
    Ok(&start == b"HTTP/1.1 200")
}
