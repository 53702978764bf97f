//! The embedded queue on a disk that loses power, fails to sync and fails to read.
//!
//! `disk.c` stands between the queue and the system: it records every write and sync of a child process, and fails some.
//! What a power cut leaves is computed from the record: all that was synced, and any part of what was not.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
};

use futures_util::future::join_all;
use kinsync_engine::internal::queue::{Enqueued, Error, Queue, embedded::Config};
use kinsync_testing::redis::{DURABLE, TestRedis};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::timeout;

use crate::{
    queue_conformance::{LEASE, claim_all, counts, entry, event_ids, ids},
    queue_crash::{DIR, child_arguments, child_dir},
    queue_damage::{file, payload_of, written},
    queue_embedded::{drain, enqueue_all, open},
    queue_rabbitmq::WITHIN,
    queue_spooled::World,
};

/// Names the file that controls the faults of `disk.c`.
pub(crate) const CONTROL: &str = "KINSYNC_DISK_CONTROL";

/// Returns the compiled `disk.c`.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<(PathBuf, tempfile::TempDir)> = OnceLock::new();
    let (path, _) = LIBRARY.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/disk.c");
        let compiler = ["-shared", "-fPIC", "-O1", "-o"];
        let compiled = Command::new("cc").args(compiler).arg(&path).arg(source).status();
        assert!(compiled.expect("a C compiler is needed, as for SQLite").success());
        (path, dir)
    });
    path
}

/// Runs a test of this binary in a process with these faults of its disk. Returns its output.
pub(crate) fn child(test: &str, dir: &Path, faults: &[(&str, String)]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(child_arguments(test))
        .env(DIR, dir)
        .env("LD_PRELOAD", library())
        .envs(faults.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    printed
}

/// One step of a child process.
#[derive(Debug)]
enum Step {
    Write(String, usize, Vec<u8>),
    Truncate(String, usize),
    Sync(String),
    /// The system drops the data that it could not write, and the next sync succeeds.
    FailedSync(String),
    Remove(String),
    Print(String),
}

fn steps(trace: &Path) -> Vec<Step> {
    let bytes = fs::read(trace).unwrap();
    let (mut steps, mut at) = (Vec::new(), 0);
    while let Some(end) = bytes[at..].iter().position(|byte| *byte == b'\n') {
        let head = std::str::from_utf8(&bytes[at..at + end]).unwrap();
        at += end + 1;
        let parts: Vec<&str> = head.split(' ').collect();
        let (name, offset): (String, usize) = (parts[1].to_owned(), parts[2].parse().unwrap());
        let length: usize = parts[3].parse().unwrap();
        let mut take = || {
            let data = bytes[at..at + length].to_vec();
            at += length;
            data
        };
        steps.push(match parts[0] {
            "W" => Step::Write(name, offset, take()),
            "P" => Step::Print(String::from_utf8_lossy(&take()).into_owned()),
            "T" => Step::Truncate(name, offset),
            "S" => Step::Sync(name),
            "F" => Step::FailedSync(name),
            "U" => Step::Remove(name),
            other => unreachable!("{other}"),
        });
    }
    steps
}

/// What was promised until a power cut, and the files that it leaves.
#[derive(Default)]
struct Disk {
    durable: BTreeMap<String, Vec<u8>>,
    pending: BTreeMap<String, Vec<Step>>,
    acknowledged: BTreeSet<String>,
    /// Acked by the consumer: may come again.
    done: BTreeSet<String>,
}

impl Disk {
    fn after(steps: Vec<Step>) -> Self {
        let mut disk = Self::default();
        for step in steps {
            match step {
                Step::Write(ref name, ..) | Step::Truncate(ref name, _) => {
                    disk.pending.entry(name.clone()).or_default().push(step);
                }
                Step::Sync(name) => {
                    for step in disk.pending.remove(&name).unwrap_or_default() {
                        apply(disk.durable.entry(name.clone()).or_default(), &step);
                    }
                }
                Step::FailedSync(name) => drop(disk.pending.remove(&name)),
                Step::Remove(name) => {
                    disk.pending.remove(&name);
                    disk.durable.remove(&name);
                }
                Step::Print(text) => {
                    for line in text.lines() {
                        disk.acknowledged.extend(line.strip_prefix("acked ").map(str::to_owned));
                        disk.done.extend(line.strip_prefix("done ").map(str::to_owned));
                    }
                }
            }
        }
        disk
    }

    /// Any of the unsynced writes may have reached the disk.
    fn cut_power(mut self, random: &mut StdRng, dir: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
        for (name, steps) in &self.pending {
            for step in steps {
                if random.random_bool(0.5) {
                    apply(self.durable.entry(name.clone()).or_default(), step);
                }
            }
        }
        fs::create_dir(dir.join("queue")).unwrap();
        for (name, content) in &self.durable {
            fs::write(dir.join("queue").join(name), content).unwrap();
        }
        (self.acknowledged, self.done)
    }
}

fn apply(content: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(_, offset, data) => {
            content.resize(content.len().max(offset + data.len()), 0);
            content[*offset..offset + data.len()].copy_from_slice(data);
        }
        Step::Truncate(_, len) => content.resize(*len, 0),
        _ => {}
    }
}

async fn check(steps: Vec<Step>, random: &mut StdRng, case: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (acknowledged, done) = Disk::after(steps).cut_power(random, dir.path());
    let queue = open(dir.path(), Config::default()).unwrap_or_else(|error| panic!("{case}: {error}"));
    let found: BTreeSet<String> = drain(&queue).await.into_iter().collect();
    let lost: Vec<_> = acknowledged.difference(&done).filter(|id| !found.contains(*id)).collect();
    assert!(lost.is_empty(), "{case}: {} of {} lost: {lost:?}", lost.len(), acknowledged.len());
    enqueue_all(&queue, ["afterwards"]).await;
}

#[tokio::test]
async fn a_power_cut_at_any_moment_loses_nothing_acknowledged() {
    let (dir, trace) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let faults = [("KINSYNC_DISK_TRACE", trace.path().display().to_string())];
    child("queue_disk::child_that_works", dir.path(), &faults);
    let total = steps(trace.path()).len();
    assert!(total > 3000, "{total} steps");
    let mut random = StdRng::seed_from_u64(5);
    for _ in 0..40 {
        let cut = random.random_range(0..=total);
        let mut steps = steps(trace.path());
        steps.truncate(cut);
        check(steps, &mut random, &format!("power cut after {cut} of {total} steps")).await;
    }
}

#[tokio::test]
async fn a_failed_sync_loses_nothing_acknowledged() {
    let mut random = StdRng::seed_from_u64(6);
    // The first syncs are those of the start.
    for nth in [30, 60, 100] {
        let (dir, trace) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
        let faults = [
            ("KINSYNC_DISK_TRACE", trace.path().display().to_string()),
            ("KINSYNC_DISK_FAIL_SYNC", nth.to_string()),
        ];
        let printed = child("queue_disk::child_that_works", dir.path(), &faults);
        assert!(printed.contains("refused"), "sync {nth} is not reached, or its failure is not reported");
        check(steps(trace.path()), &mut random, &format!("sync {nth} failed, then a power cut")).await;
    }
}

#[tokio::test]
#[ignore = "the child of another test"]
async fn child_that_works() {
    let Some(dir) = child_dir() else { return };
    let queue = Arc::new(open(&dir, Config::default()).unwrap());
    let produce = join_all((0..8).map(|task| {
        let queue = Arc::clone(&queue);
        async move {
            for number in 0..150 {
                let id = format!("{task}-{number}-{}", "x".repeat(1500));
                if queue.enqueue(entry(&id)).await.is_err() {
                    print_line(&format!("refused {id}"));
                    // Sent again, it is no duplicate: nothing of it is stored.
                    assert_eq!(queue.enqueue(entry(&id)).await.unwrap(), Enqueued::New);
                }
                print_line(&format!("acked {id}"));
            }
        }
    }));
    let consume = async {
        loop {
            let claimed = queue.claim(5, LEASE).await.unwrap();
            for claimed in &claimed {
                print_line(&format!("done {}", claimed.entry.event_id));
            }
            let _ = queue.ack(&ids(&claimed[..claimed.len() / 2])).await;
        }
    };
    tokio::select! {
        _ = produce => {}
        () = consume => {}
    }
}

#[test]
fn the_dead_letters_of_a_batch_cost_one_sync() {
    let (dir, trace) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let faults = [("KINSYNC_DISK_TRACE", trace.path().display().to_string())];
    child("queue_disk::child_that_sets_a_batch_aside", dir.path(), &faults);
    let is_after = |step: &Step, line: &str| matches!(step, Step::Print(text) if text.starts_with(line));
    let steps = steps(trace.path());
    let steps = steps.iter().skip_while(|step| !is_after(step, "claimed"));
    let meanwhile = steps.take_while(|step| !is_after(step, "set aside"));
    assert_eq!(meanwhile.filter(|step| matches!(step, Step::Sync(_))).count(), 1);
}

#[tokio::test]
#[ignore = "the child of another test"]
async fn child_that_sets_a_batch_aside() {
    let Some(dir) = child_dir() else { return };
    let queue = open(&dir, Config::default()).unwrap();
    let names: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    enqueue_all(&queue, names.iter().map(String::as_str)).await;
    let claimed = queue.claim(200, LEASE).await.unwrap();
    assert_eq!(claimed.len(), 200);
    let letters: Vec<_> = ids(&claimed).into_iter().map(|id| (id, "poison".to_owned())).collect();
    print_line("claimed");
    queue.dead_letter(&letters).await.unwrap();
    print_line("set aside");
}

fn print_line(line: &str) {
    use std::io::Write as _;
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}

#[test]
fn a_disk_of_the_spool_that_hangs_delays_no_delivery_that_the_shared_queue_accepts() {
    let (dir, control) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let faults = [(CONTROL, control.path().display().to_string())];
    let printed = child("queue_disk::child_with_a_spool_that_hangs", dir.path(), &faults);
    assert!(printed.contains("all was accepted"), "{printed}");
}

/// Makes the disk hang until it is dropped.
struct Hang<'a>(&'a Path);

impl<'a> Hang<'a> {
    fn begin(control: &'a Path) -> Self {
        fs::write(control, "H").unwrap();
        Self(control)
    }
}

impl Drop for Hang<'_> {
    fn drop(&mut self) {
        _ = fs::write(self.0, " ");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of another test"]
async fn child_with_a_spool_that_hangs() {
    let Some(dir) = child_dir() else { return };
    let control = PathBuf::from(std::env::var_os(CONTROL).unwrap());
    let redis = TestRedis::start(DURABLE);
    let world = World::start(&redis, &dir);
    world.queue.enqueue(entry("before")).await.unwrap();
    let hang = Hang::begin(&control);
    redis.kill();
    let refused = timeout(WITHIN, world.queue.enqueue(entry("outage"))).await.expect("it is answered");
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    redis.launch();
    let accepted = async { while world.queue.enqueue(entry("outage")).await.is_err() {} };
    timeout(WITHIN, accepted).await.expect("the shared queue accepts it");
    drop(hang);
    assert_eq!(event_ids(&claim_all(&*world.queue, 2).await), ["before", "outage"]);
    world.end().await;
    println!("all was accepted");
}

#[tokio::test]
async fn an_unreadable_sector_costs_the_entries_on_it() {
    let dir = written(2000).await;
    let path = file(dir.path(), "");
    let sector = payload_of(&fs::read(&path).unwrap(), 1000) / 512 * 512;
    let bad = format!("{} {sector} {}", fs::metadata(&path).unwrap().ino(), sector + 511);
    let printed = child("queue_disk::child_that_drains", dir.path(), &[("KINSYNC_DISK_BAD", bad)]);
    let found: BTreeSet<&str> =
        printed.lines().filter_map(|line| line.split_once("found ")).map(|(_, id)| id).collect();
    assert!(found.len() > 1900 && found.contains("1999") && !found.contains("1000"), "{} found", found.len());
    assert!(printed.contains("it accepts entries"), "{printed}");
    assert_eq!(fs::read_dir(dir.path().join("queue/damaged")).unwrap().count(), 1);
}

#[tokio::test]
#[ignore = "the child of another test"]
async fn child_that_drains() {
    let Some(dir) = child_dir() else { return };
    let queue = open(&dir, Config::default()).unwrap();
    drain(&queue).await.iter().for_each(|id| print_line(&format!("found {id}")));
    assert!(counts(&queue).await.0 > 1900);
    enqueue_all(&queue, ["new"]).await;
    print_line("it accepts entries");
}
