//! The embedded queue on real files: what stays over restarts, damage, bounds.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use kinsync_core::Micros;
use kinsync_engine::{
    clock::Clock,
    queue::{
        Enqueued, Error, Queue,
        embedded::{Config, EmbeddedQueue, dead_letters_in},
    },
};
use tempfile::TempDir;

use crate::queue_conformance::{claim, entry, receipts, suite};

pub(crate) fn open(dir: &Path, config: Config) -> Result<EmbeddedQueue, Error> {
    EmbeddedQueue::open(dir, config, Clock::from_fn(|| Micros(5_000)))
}

fn small() -> Config {
    Config { segment_bytes: 2_000, ..Config::default() }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir.join("queue"))
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.file_stem().unwrap().to_string_lossy().starts_with("0000"))
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    paths
}

/// All that can be claimed.
pub(crate) async fn drain(queue: &EmbeddedQueue) -> Vec<String> {
    let mut ids = Vec::new();
    while (ids.len() as u64) < queue.stats().depth {
        for claimed in claim(queue, 1000).await {
            let id = claimed.entry.event_id.clone();
            assert_eq!(claimed.entry, entry(&id), "a payload is right or not there");
            ids.push(id);
        }
    }
    ids
}

#[tokio::test]
async fn the_embedded_queue_conforms() {
    let dirs = Mutex::new(Vec::<TempDir>::new());
    for config in [Config::default(), small()] {
        suite(&|| {
            let dir = tempfile::tempdir().unwrap();
            let queue = open(dir.path(), config).unwrap();
            dirs.lock().unwrap().push(dir);
            Arc::new(queue)
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_acked_stays_away_after_a_restart_and_the_rest_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path(), small()).unwrap();
    for number in 0..100 {
        queue.enqueue(entry(&number.to_string())).await.unwrap();
    }
    let claimed = claim(&queue, 60).await;
    let acked: Vec<_> = claimed.iter().step_by(3).cloned().collect();
    queue.ack(&receipts(&acked)).await.unwrap();
    queue.close().await;
    assert!(matches!(queue.enqueue(entry("late")).await, Err(Error::Closed)));
    assert!(matches!(queue.claim(1).await, Err(Error::Closed)));

    let queue = open(dir.path(), small()).unwrap();
    assert_eq!(queue.stats().depth, 80);
    assert_eq!(queue.stats().oldest_received_at, Some(Micros(1_000)));
    let acked: BTreeSet<_> = acked.into_iter().map(|claimed| claimed.entry.event_id).collect();
    let expected: Vec<_> = (0..100).map(|n: u32| n.to_string()).filter(|id| !acked.contains(id)).collect();
    assert_eq!(drain(&queue).await, expected, "oldest first");
    assert_eq!(queue.enqueue(entry("99")).await.unwrap(), Enqueued::Duplicate);
}

#[tokio::test]
async fn finished_files_are_deleted_and_stuck_entries_survive_that() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path(), small()).unwrap();
    for number in 0..200 {
        queue.enqueue(entry(&number.to_string())).await.unwrap();
    }
    let before = segments(dir.path()).len();
    assert!(before > 5);
    let claimed = claim(&queue, 200).await;
    queue.ack(&receipts(&claimed[1..])).await.unwrap();
    queue.close().await;
    assert_eq!(segments(dir.path()).len(), 2, "the one with the stuck entry and the last");
    let queue = open(dir.path(), small()).unwrap();
    assert_eq!(drain(&queue).await, ["0"], "what the deleted files said is not forgotten");
}

#[tokio::test]
async fn an_ack_outlives_the_file_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    // The entries fill a file exactly, so that the ack stands in one of its own, without entries.
    let ids = ["a", "b", "c"];
    let size = written(&ids).await.0.len() as u64;
    let config = Config { segment_bytes: size, ..Config::default() };
    let queue = open(dir.path(), config).unwrap();
    for id in ids {
        queue.enqueue(entry(id)).await.unwrap();
    }
    let claimed = claim(&queue, 1).await;
    queue.ack(&receipts(&claimed)).await.unwrap();
    drop(queue);
    for restart in 0..4 {
        let queue = open(dir.path(), config).unwrap();
        assert_eq!(queue.stats().depth, 2, "restart {restart}");
        queue.close().await;
    }
}

#[tokio::test]
async fn dead_letters_stay_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(dead_letters_in(dir.path()).unwrap(), 0);
    let queue = open(dir.path(), small()).unwrap();
    for number in 0..4 {
        queue.enqueue(entry(&number.to_string())).await.unwrap();
    }
    for claimed in claim(&queue, 3).await {
        queue.dead_letter(claimed.receipt, "why").await.unwrap();
    }
    let ids: Vec<_> = queue.dead_letters(None, 9).await.unwrap().iter().map(|dead| dead.id).collect();
    assert_eq!(dead_letters_in(dir.path()).unwrap(), 3, "counted while the queue is open");
    queue.drop_dead_letter(ids[0]).await.unwrap();
    queue.retry_dead_letter(ids[1]).await.unwrap();
    let before = queue.dead_letters(None, 9).await.unwrap();
    assert_eq!(dead_letters_in(dir.path()).unwrap(), 1, "those that are gone do not count");
    drop(queue);
    for _ in 0..3 {
        assert_eq!(dead_letters_in(dir.path()).unwrap(), 1);
        let queue = open(dir.path(), small()).unwrap();
        assert_eq!(queue.dead_letters(None, 9).await.unwrap(), before);
        assert_eq!(before.len(), 1);
        assert_eq!(drain(&queue).await, ["3", "1"]);
        assert_eq!(queue.stats().dead_letters, 1);
    }
}

#[tokio::test]
async fn a_dead_letter_says_that_its_entry_is_done_when_a_power_cut_took_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path(), Config::default()).unwrap();
    queue.enqueue(entry("a")).await.unwrap();
    queue.enqueue(entry("b")).await.unwrap();
    let log = segments(dir.path()).pop().unwrap();
    let synced = fs::read(&log).unwrap();
    let claimed = claim(&queue, 1).await;
    queue.dead_letter(claimed[0].receipt, "why").await.unwrap();
    drop(queue);
    fs::write(&log, synced).unwrap();
    let queue = open(dir.path(), Config::default()).unwrap();
    assert_eq!((queue.stats().depth, queue.stats().dead_letters), (1, 1));
    assert_eq!(drain(&queue).await, ["b"]);
}

#[tokio::test]
async fn two_processes_cannot_open_the_same_folder() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path(), small()).unwrap();
    assert!(matches!(open(dir.path(), small()), Err(Error::InUse { .. })));
    queue.close().await;
    open(dir.path(), small()).unwrap();
}

#[tokio::test]
async fn a_full_queue_refuses_and_takes_more_when_it_has_room() {
    for config in
        [Config { max_entries: 10, ..Config::default() }, Config { max_bytes: 1_200, ..Config::default() }]
    {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(dir.path(), config).unwrap();
        for round in 0..5 {
            let mut taken = 0;
            let refusal = loop {
                match queue.enqueue(entry(&format!("{round}-{taken}"))).await {
                    Ok(outcome) => assert_eq!(outcome, Enqueued::New),
                    Err(error) => break error,
                }
                taken += 1;
                assert!(taken <= 100);
            };
            assert!(matches!(refusal, Error::Full { .. }), "{refusal}");
            assert!(taken >= 5, "round {round} took {taken}");
            assert_eq!(queue.enqueue(entry(&format!("{round}-0"))).await.unwrap(), Enqueued::Duplicate);
            let claimed = claim(&queue, 100).await;
            queue.ack(&receipts(&claimed)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), small()).unwrap().enqueue(entry("a")).await.unwrap();
    let path = segments(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 2;
    let crc = crc32fast::hash(&bytes[..24]).to_le_bytes();
    bytes[24..28].copy_from_slice(&crc);
    fs::write(&path, bytes).unwrap();
    assert!(matches!(open(dir.path(), small()), Err(Error::Newer { .. })));
}

#[cfg(unix)]
#[tokio::test]
async fn nobody_else_can_read_the_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path(), small()).unwrap();
    queue.enqueue(entry("a")).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("queue")), 0o700);
    assert_eq!(mode(&segments(dir.path())[0]), 0o600);
}

/// A closed queue of some entries in one file: its bytes and where each record ends.
async fn written(ids: &[&str]) -> (Vec<u8>, Vec<usize>) {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path(), Config::default()).unwrap();
    let mut ends = Vec::new();
    for id in ids {
        queue.enqueue(entry(id)).await.unwrap();
        ends.push(usize::try_from(fs::metadata(&segments(dir.path())[0]).unwrap().len()).unwrap());
    }
    queue.close().await;
    (fs::read(&segments(dir.path())[0]).unwrap(), ends)
}

async fn reopened(bytes: &[u8]) -> (TempDir, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("queue")).unwrap();
    fs::write(dir.path().join("queue/00000000000000000001.log"), bytes).unwrap();
    let queue = open(dir.path(), Config::default()).unwrap();
    let ids = drain(&queue).await;
    queue.enqueue(entry("new")).await.unwrap();
    assert_eq!(claim(&queue, 9).await[0].entry.event_id, "new", "it goes on");
    queue.close().await;
    (dir, ids)
}

#[tokio::test]
async fn a_file_cut_off_anywhere_opens_with_all_whole_records() {
    let ids = ["a", "b", "c", "d", "e"];
    let (bytes, ends) = written(&ids).await;
    for cut in ends[1]..bytes.len() {
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let (dir, found) = reopened(&bytes[..cut]).await;
        assert_eq!(found, ids[..whole], "cut at {cut}");
        assert!(!dir.path().join("queue/damaged").exists(), "a torn end is no damage");
    }
    let zeros = [&bytes[..], &[0; 500]].concat();
    let (dir, found) = reopened(&zeros).await;
    assert_eq!(found, ids);
    assert!(!dir.path().join("queue/damaged").exists());
}

#[tokio::test]
async fn a_flipped_byte_costs_one_record_and_is_kept_aside() {
    let ids = ["a", "b", "c", "d"];
    let (bytes, ends) = written(&ids).await;
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x41;
        let hit = (at >= 28).then(|| ends.iter().filter(|end| **end <= at).count());
        let expected: Vec<_> = (0..ids.len()).filter(|i| Some(*i) != hit).map(|i| ids[i]).collect();
        let (dir, found) = reopened(&flipped).await;
        assert_eq!(found, expected, "flipped at {at}");
        // The length of the last record cannot be told from an append that was cut off.
        if at < ends[2] {
            assert_eq!(fs::read_dir(dir.path().join("queue/damaged")).unwrap().count(), 1, "flipped at {at}");
        }
    }
}
