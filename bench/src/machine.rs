//! The machine and the versions of a run.

use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::work::{Work, on_path};

const SYNCS: usize = 300;

/// The machine, the versions and the commit.
#[derive(Debug, Serialize)]
pub struct Facts {
    commit: String,
    build: &'static str,
    cores: usize,
    cpu: String,
    memory: String,
    kernel: String,
    filesystem: String,
    versions: Vec<(String, String)>,
}

/// Latency of a durable write.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Fsync {
    p50_us: u64,
    p99_us: u64,
}

/// Reads the facts of this machine.
pub fn facts(work: &Work) -> anyhow::Result<Facts> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let build = if cfg!(debug_assertions) { "DEBUG: not valid" } else { "release" };
    Ok(Facts {
        commit: commit(work.root()),
        build,
        cores: std::thread::available_parallelism()?.get(),
        cpu: field(&read("/proc/cpuinfo"), "model name"),
        memory: field(&read("/proc/meminfo"), "MemTotal"),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        filesystem: filesystem(work.path(), &read("/proc/mounts")),
        versions: versions(work),
    })
}

impl Facts {
    /// Adds a version.
    pub fn version(&mut self, of: &str, version: String) {
        if !self.versions.iter().any(|(name, _)| name == of) {
            self.versions.push((of.to_owned(), version));
        }
    }
}

fn field(text: &str, name: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

fn commit(root: &Path) -> String {
    let git = |args: &[&str]| first_line(Command::new("git").arg("-C").arg(root).args(args));
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|line| !line.is_empty());
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    if dirty { format!("{commit} with changes") } else { commit }
}

/// The file system type of the mount of `path`.
fn filesystem(path: &Path, mounts: &str) -> String {
    let rows = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let holds = rows.filter(|(at, _)| path.starts_with(at));
    holds.max_by_key(|(at, _)| at.len()).map(|(_, kind)| kind.to_owned()).unwrap_or_default()
}

fn versions(work: &Work) -> Vec<(String, String)> {
    let peer = work.root().join("bench/peers/express-mongoose/node_modules");
    let package = |name: &str| {
        let text = fs::read_to_string(peer.join(name).join("package.json")).ok()?;
        let json: serde_json::Value = serde_json::from_str(&text).ok()?;
        json["version"].as_str().map(str::to_owned)
    };
    let program = |name: &str| first_line(Command::new(on_path(name)?).arg("--version"));
    let kinsync = work.kinsync().ok().and_then(|path| first_line(Command::new(path).arg("--version")));
    let all = [
        ("kinsync", kinsync),
        ("rustc", program("rustc")),
        ("node", program("node")),
        ("express", package("express")),
        ("mongoose", package("mongoose")),
        ("jose", package("jose")),
    ];
    let bare = |name: &str, version: String| version.strip_prefix(name).unwrap_or(&version).trim().to_owned();
    all.into_iter().filter_map(|(name, version)| Some((name.to_owned(), bare(name, version?)))).collect()
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.lines().next().unwrap_or_default().to_owned())
}

/// Measures appends of 512 bytes with fdatasync.
pub fn fsync(folder: &Path) -> anyhow::Result<Fsync> {
    let path = folder.join("fsync");
    let mut file = File::create(&path)?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let start = Instant::now();
        file.write_all(&[7; 512])?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    fs::remove_file(&path)?;
    times.sort_unstable();
    let micros = |at: usize| u64::try_from(Duration::as_micros(&times[at])).unwrap_or(u64::MAX);
    Ok(Fsync { p50_us: micros(SYNCS / 2), p99_us: micros(SYNCS * 99 / 100) })
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { commit, build, cores, cpu, memory, kernel, filesystem, versions } = self;
        writeln!(f, "commit {commit}, build {build}")?;
        writeln!(f, "{cores} cores of {cpu}, {memory} memory, Linux {kernel}, {filesystem}")?;
        let versions: Vec<_> = versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        write!(f, "{}", versions.join(" · "))
    }
}

impl fmt::Display for Fsync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "append and fdatasync: p50 {} µs, p99 {} µs (after the run, its servers stopped)",
            self.p50_us, self.p99_us
        )
    }
}
