//! The embedded queue in a process of its own: killed at any moment, and on a disk that is full.
//!
//! The test binary starts itself again for one of the ignored tests, which are what the child does.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use kinsync_engine::internal::queue::{Enqueued, Error, Queue, embedded::Config};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    queue_conformance::{claim, counts, entry, ids},
    queue_embedded::{drain, open},
};

pub(crate) const DIR: &str = "KINSYNC_QUEUE_TEST_DIR";

/// The folder that the parent process names; `None` without one.
pub(crate) fn child_dir() -> Option<PathBuf> {
    std::env::var_os(DIR).map(PathBuf::from)
}

pub(crate) fn child_arguments(test: &str) -> Vec<OsString> {
    ["--exact", test, "--ignored", "--nocapture", "--test-threads=1"].map(OsString::from).into()
}

#[tokio::test]
async fn whatever_was_acknowledged_is_there_after_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = StdRng::seed_from_u64(9);
    let mut acknowledged = BTreeSet::new();
    for round in 0..30 {
        let lines = random.random_range(0..300);
        acknowledged.extend(run_and_kill(dir.path().into(), round, lines));
        let queue = open(dir.path(), Config::default()).unwrap();
        let found: Vec<String> = drain(&queue).await;
        let distinct: BTreeSet<String> = found.iter().cloned().collect();
        assert_eq!(found.len(), distinct.len(), "round {round}: an entry doubled");
        let lost: Vec<_> = acknowledged.difference(&distinct).collect();
        assert!(lost.is_empty(), "round {round}: lost {lost:?}");
        assert!(!dir.path().join("queue/damaged").exists(), "round {round}: a kill is no damage");
    }
    assert!(acknowledged.len() > 1000, "{} acknowledged", acknowledged.len());
}

/// Starts a child that enqueues, kills it after some acknowledgements, and returns all acknowledged ids.
fn run_and_kill(dir: PathBuf, round: usize, lines: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(child_arguments("queue_crash::child_that_enqueues"))
        .env(DIR, dir)
        .env("KINSYNC_QUEUE_TEST_ROUND", round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let acked = |line: String| line.split_once("acked ").map(|(_, id)| id.to_owned());
    let mut ids: Vec<String> = output.by_ref().filter_map(acked).take(lines).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    // The last line may be cut off.
    ids.extend(output.filter_map(acked).filter_map(|id| id.strip_suffix('.').map(str::to_owned)));
    ids.into_iter().map(|id| id.trim_end_matches('.').to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child of another test"]
async fn child_that_enqueues() {
    let Some(dir) = child_dir() else { return };
    let round = std::env::var_os("KINSYNC_QUEUE_TEST_ROUND").unwrap().into_string().unwrap();
    let queue = Arc::new(open(&dir, Config::default()).unwrap());
    join_all((0..16).map(|task| {
        let (queue, round) = (Arc::clone(&queue), round.clone());
        async move {
            for number in 0.. {
                let id = format!("{round}-{task}-{number}");
                queue.enqueue(entry(&id)).await.unwrap();
                let line = format!("acked {id}.\n");
                std::io::stdout().write_all(line.as_bytes()).unwrap();
            }
        }
    }))
    .await;
}

/// Runs a test of this binary on a file system of this size. Needs a kernel that gives user namespaces, or root.
#[cfg(target_os = "linux")]
fn run_on_a_disk_of(size: &str, test: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mount = format!(r#"mount -t tmpfs -o size={size} tmpfs "$KINSYNC_QUEUE_TEST_DIR" && exec "$0" "$@""#);
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", &mount])
        .arg(std::env::current_exe().unwrap())
        .args(child_arguments(test))
        .env(DIR, dir.path())
        .output()
        .expect("`unshare` of util-linux is installed");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && printed.contains("it was full and recovered"),
        "{printed}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_refuses_and_recovers_without_a_restart() {
    run_on_a_disk_of("48m", "queue_crash::child_on_a_tiny_disk");
}

#[cfg(target_os = "linux")]
#[test]
fn a_check_fails_as_long_as_the_disk_is_full() {
    run_on_a_disk_of("96m", "queue_crash::child_that_checks_a_tiny_disk");
}

#[tokio::test]
#[ignore = "the child of another test"]
async fn child_that_checks_a_tiny_disk() {
    let Some(dir) = child_dir() else { return };
    let queue = open(&dir, Config { is_spool: true, ..Config::default() }).unwrap();
    for is_log_grown in [false, true] {
        if is_log_grown {
            for number in 0..150 {
                queue.enqueue(entry(&format!("{number}-{}", "x".repeat(40_000)))).await.unwrap();
            }
            assert_eq!(drain(&queue).await.len(), 150);
            assert!(fs::metadata(dir.join("queue/queue.sqlite-wal")).unwrap().len() > 4 << 20);
        }
        queue.check().await.unwrap();
        let other = dir.join("other");
        take_all_room(&other);
        for _ in 0..100 {
            let refused = queue.check().await;
            assert!(matches!(refused, Err(Error::Unavailable { .. })), "log is grown: {is_log_grown}");
        }
        let stored = async |number| queue.enqueue(entry(&format!("{number}-{is_log_grown}"))).await.is_ok();
        let mut number = 0;
        while stored(number).await {
            number += 1;
        }
        assert!(queue.stats().await.unwrap().is_failing);
        fs::remove_file(other).unwrap();
        until_it_stores(&queue, true).await;
        if number > 0 {
            queue.ack(&ids(&claim(&queue, 10_000).await)).await.unwrap();
        }
        for _ in 0..100 {
            queue.check().await.unwrap();
        }
    }
    drop(queue);
    // A disk that has room for the file from the start, and none for the reserve.
    fs::write(dir.join("gap"), vec![0; 1 << 20]).unwrap();
    fs::remove_file(dir.join("queue/reserve")).unwrap();
    take_all_room(&dir.join("other"));
    fs::remove_file(dir.join("gap")).unwrap();
    let queue = open(&dir, Config::default()).unwrap();
    until_it_stores(&queue, false).await;
    fs::remove_file(dir.join("other")).unwrap();
    until_it_stores(&queue, true).await;
    println!("it was full and recovered");
}

/// Reads the state as a health page does, without an entry.
async fn until_it_stores(queue: &dyn Queue, expected: bool) {
    let reported = async {
        while queue.stats().await.unwrap().is_failing == expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reported).await.expect("the state of the disk is reported");
    assert_eq!(queue.stats().await.unwrap().is_failing, !expected);
}

fn take_all_room(path: &Path) {
    let (mut file, mut size) = (File::create(path).unwrap(), 1 << 20);
    while size > 0 {
        if file.write_all(&vec![0; size]).is_err() {
            size /= 2;
        }
    }
}

#[tokio::test]
#[ignore = "the child of another test"]
async fn child_on_a_tiny_disk() {
    let Some(dir) = child_dir() else { return };
    let queue = open(&dir, Config::default()).unwrap();
    for round in 0..3 {
        let mut taken = fill_the_disk(&queue, round).await;
        assert_eq!(counts(&queue).await.0, taken.len() as u64);
        while !taken.is_empty() {
            let claimed = claim(&queue, 100).await;
            queue.ack(&ids(&claimed)).await.unwrap();
            for claimed in claimed {
                assert!(taken.remove(&claimed.entry.event_id), "only what was taken comes, once");
            }
        }
    }
    let left = fill_the_disk(&queue, 9).await;
    drop(queue);
    let queue = open(&dir, Config::default()).expect("a full disk does not keep it from starting");
    assert_eq!(drain(&queue).await.into_iter().collect::<BTreeSet<_>>(), left);
    println!("it was full and recovered");
}

async fn fill_the_disk(queue: &dyn Queue, round: usize) -> BTreeSet<String> {
    // The queue looks for room a few times a second.
    let accepted = async {
        while queue.enqueue(entry(&format!("{round}"))).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), accepted).await.expect("it recovers by itself");
    let mut taken = BTreeSet::from([round.to_string()]);
    for burst in 0.. {
        let ids: Vec<String> =
            (0..8).map(|number| format!("{round}-{burst}-{number}-{}", "x".repeat(40_000))).collect();
        let outcomes = join_all(ids.iter().map(|id| queue.enqueue(entry(id)))).await;
        let mut refused = None;
        for (id, outcome) in ids.into_iter().zip(outcomes) {
            match outcome {
                Ok(outcome) => {
                    assert_eq!(outcome, Enqueued::New);
                    taken.insert(id);
                }
                Err(error) => refused = Some(error),
            }
        }
        if let Some(error) = refused {
            assert!(matches!(error, Error::Unavailable { .. }), "{error}");
            assert!(taken.len() > 50, "round {round} took {}", taken.len());
            return taken;
        }
    }
    unreachable!("48 MiB is finite")
}
