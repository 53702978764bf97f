//! The embedded queue with damaged files: what can be read is kept, the rest raises an alarm.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use kinsync_engine::internal::queue::{Error, Queue, embedded::Config};
use tempfile::TempDir;

use crate::{
    queue_conformance::{claim, counts, ids},
    queue_embedded::{drain, enqueue_all, open},
};

const PAGE: usize = 4096;

pub(crate) fn file(dir: &Path, suffix: &str) -> PathBuf {
    dir.join(format!("queue/queue.sqlite{suffix}"))
}

/// A closed queue with the entries `0`, `1` and so on.
pub(crate) async fn written(count: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path(), Config::default()).unwrap();
    enqueue_all(&queue, 0..count).await;
    queue.close().await;
    dir
}

fn damaged(dir: &Path) -> usize {
    fs::read_dir(dir.join("queue/damaged")).map_or(0, Iterator::count)
}

/// Where the payload of an entry begins in the file.
pub(crate) fn payload_of(bytes: &[u8], id: usize) -> usize {
    let payload = format!("{{\"id\":\"{id}\"}}");
    bytes.windows(payload.len()).position(|window| window == payload.as_bytes()).unwrap()
}

fn numbers(found: Vec<String>) -> BTreeSet<usize> {
    found.into_iter().map(|id| id.parse().unwrap()).collect()
}

#[tokio::test]
async fn a_flipped_bit_costs_one_entry_which_becomes_a_dead_letter() {
    let dir = written(50).await;
    let mut bytes = fs::read(file(dir.path(), "")).unwrap();
    let at = payload_of(&bytes, 17) + 7;
    bytes[at] ^= 1;
    fs::write(file(dir.path(), ""), bytes).unwrap();
    let queue = open(dir.path(), Config::default()).unwrap();
    let expected: BTreeSet<usize> = (0..50).filter(|number| *number != 17).collect();
    assert_eq!(numbers(drain(&queue).await), expected);
    let letters = queue.dead_letters(None, 9).await.unwrap();
    assert_eq!((letters.len(), letters[0].event_id.as_str()), (1, "17"));
    assert!(letters[0].reason.contains("checksum"), "{}", letters[0].reason);
    assert_eq!(counts(&queue).await, (49, 1));
    assert_eq!(damaged(dir.path()), 0);
}

#[tokio::test]
async fn a_damaged_page_costs_its_entries_at_the_start() {
    let dir = written(2000).await;
    damage_page_of(dir.path(), 1000);
    for restart in 0..3 {
        let queue = open(dir.path(), Config::default()).unwrap();
        let found = numbers(drain(&queue).await);
        assert!(found.len() > 1900 && !found.contains(&1000), "restart {restart}: {}", found.len());
        assert!(found.contains(&0) && found.contains(&1999));
        enqueue_all(&queue, [5000 + restart]).await;
        assert_eq!(damaged(dir.path()), 1, "restart {restart}");
    }
}

#[tokio::test]
async fn a_damaged_page_costs_its_entries_while_the_queue_runs() {
    let dir = written(2000).await;
    let queue = open(dir.path(), Config::default()).unwrap();
    let first = claim(&queue, 10).await;
    damage_page_of(dir.path(), 1000);
    let mut found: BTreeSet<usize> = BTreeSet::new();
    while (found.len() as u64) < counts(&queue).await.0 - 10 {
        let claimed = claim(&queue, 300).await;
        found.extend(claimed.iter().map(|claimed| claimed.entry.event_id.parse::<usize>().unwrap()));
    }
    assert!(found.len() > 1890 && !found.contains(&1000) && found.contains(&1999), "{}", found.len());
    assert_eq!(damaged(dir.path()), 1);
    queue.ack(&ids(&first)).await.unwrap();
    enqueue_all(&queue, [5000]).await;
    queue.close().await;
    let queue = open(dir.path(), Config::default()).unwrap();
    let again = numbers(drain(&queue).await);
    assert!(again.contains(&5000) && !again.contains(&0), "acks are kept");
    assert_eq!(again.len(), found.len() + 1);
}

fn damage_page_of(dir: &Path, id: usize) {
    use std::os::unix::fs::FileExt as _;
    let bytes = fs::read(file(dir, "")).unwrap();
    let page = payload_of(&bytes, id) / PAGE;
    let file = fs::OpenOptions::new().write(true).open(file(dir, "")).unwrap();
    file.write_all_at(&[0xaa; PAGE], (page * PAGE) as u64).unwrap();
}

#[tokio::test]
async fn a_damaged_byte_anywhere_stops_nothing() {
    let dir = written(40).await;
    let bytes = fs::read(file(dir.path(), "")).unwrap();
    for at in (0..bytes.len()).step_by(131) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x41;
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("queue")).unwrap();
        fs::write(file(dir.path(), ""), &flipped).unwrap();
        match open(dir.path(), Config::default()) {
            // The header holds the format.
            Err(error) => {
                assert!(matches!(error, Error::Refused { .. }) && at < 100, "flipped at {at}: {error}");
            }
            Ok(queue) => {
                let found = numbers(drain(&queue).await);
                assert!(found.iter().all(|number| *number < 40), "flipped at {at}");
                enqueue_all(&queue, ["new"]).await;
                assert_eq!(claim(&queue, 1).await[0].entry.event_id, "new", "flipped at {at}");
            }
        }
    }
}

/// A copy of the files of a running queue, as a killed process leaves them.
fn killed(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("queue")).unwrap();
    fs::copy(file(dir, ""), file(copy.path(), "")).unwrap();
    let mut wal = fs::read(file(dir, "-wal")).unwrap();
    change(&mut wal);
    fs::write(file(copy.path(), "-wal"), wal).unwrap();
    copy
}

#[tokio::test]
async fn damage_inside_the_write_ahead_log_raises_an_alarm() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path(), Config::default()).unwrap();
    enqueue_all(&queue, 0..100).await;
    for (flip, expected, alarms) in [(None, 100, 0), (Some(2), 50, 1)] {
        let copy = killed(dir.path(), |wal| {
            if let Some(part) = flip {
                let at = wal.len() / part;
                wal[at] ^= 1;
            }
        });
        let queue = open(copy.path(), Config::default()).unwrap();
        let found = numbers(drain(&queue).await).len();
        assert!(found.abs_diff(expected) <= 10, "{flip:?}: {found}");
        assert_eq!(damaged(copy.path()), alarms, "{flip:?}");
        enqueue_all(&queue, ["new"]).await;
    }
}

#[tokio::test]
async fn a_write_ahead_log_that_was_cut_off_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path(), Config::default()).unwrap();
    enqueue_all(&queue, 0..20).await;
    let len = fs::metadata(file(dir.path(), "-wal")).unwrap().len();
    for cut in (len - 9_000..len).step_by(500) {
        let copy = killed(dir.path(), |wal| wal.truncate(usize::try_from(cut).unwrap()));
        let queue = open(copy.path(), Config::default()).unwrap();
        let found = numbers(drain(&queue).await);
        assert_eq!(found, (0..found.len()).collect(), "cut at {cut}");
        assert!(found.len() >= 17, "cut at {cut}: {}", found.len());
        assert_eq!(damaged(copy.path()), 0, "cut at {cut}");
    }
}
