//! The embedded queue on real files: restarts, bounds, formats.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kinsync_core::Micros;
use kinsync_engine::{
    Clock,
    internal::queue::{
        Enqueued, Entry, Error, Payload, Queue,
        embedded::{Config, DeadLetterBounds, EmbeddedQueue, inspect, list},
    },
};
use rusqlite::Connection;

use crate::queue_conformance::{Fresh, LEASE, claim, counts, dead_letter, entry, ids};

pub(crate) fn open(dir: &Path, config: Config) -> Result<EmbeddedQueue, Error> {
    EmbeddedQueue::open(dir, config, Clock::from_fn(|| Micros(5_000)))
}

/// An empty queue.
pub(crate) async fn embedded() -> Fresh {
    let dir = tempfile::tempdir().unwrap();
    let queue = Arc::new(open(dir.path(), Config::default()).unwrap());
    Fresh { queue, _dir: Some(dir) }
}

pub(crate) async fn enqueue_all(queue: &dyn Queue, ids: impl IntoIterator<Item = impl ToString>) {
    for id in ids {
        assert_eq!(queue.enqueue(entry(&id.to_string())).await.unwrap(), Enqueued::New);
    }
}

/// All that can be claimed.
pub(crate) async fn drain(queue: &EmbeddedQueue) -> Vec<String> {
    let mut ids = Vec::new();
    while (ids.len() as u64) < counts(queue).await.0 {
        for claimed in claim(queue, 1000).await {
            let id = claimed.entry.event_id.clone();
            assert_eq!(claimed.entry, entry(&id), "a payload is right or not there");
            ids.push(id);
        }
    }
    ids
}

#[tokio::test]
async fn what_is_acked_stays_away_after_a_restart_and_the_rest_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path(), Config::default()).unwrap();
    for number in 0..100 {
        queue.enqueue(entry(&number.to_string())).await.unwrap();
    }
    let claimed = claim(&queue, 60).await;
    let acked: Vec<_> = claimed.iter().step_by(3).cloned().collect();
    queue.ack(&ids(&acked)).await.unwrap();
    queue.close().await;
    assert!(matches!(queue.enqueue(entry("late")).await, Err(Error::Closed)));
    assert!(matches!(queue.claim(1, LEASE).await, Err(Error::Closed)));

    let queue = open(dir.path(), Config::default()).unwrap();
    assert_eq!(counts(&queue).await.0, 80);
    assert_eq!(queue.stats().await.unwrap().oldest_received_at, Some(Micros(1_000)));
    let acked: BTreeSet<_> = acked.into_iter().map(|claimed| claimed.entry.event_id).collect();
    let expected: Vec<_> = (0..100).map(|n: u32| n.to_string()).filter(|id| !acked.contains(id)).collect();
    assert_eq!(drain(&queue).await, expected, "oldest first");
    assert_eq!(queue.enqueue(entry("99")).await.unwrap(), Enqueued::Duplicate);
}

#[tokio::test]
async fn dead_letters_stay_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(inspect(dir.path()).unwrap().dead_letters, 0);
    let queue = open(dir.path(), Config::default()).unwrap();
    for number in 0..4 {
        queue.enqueue(entry(&number.to_string())).await.unwrap();
    }
    dead_letter(&queue, &claim(&queue, 3).await, "why").await;
    let ids: Vec<_> = queue.dead_letters(None, 9).await.unwrap().into_iter().map(|dead| dead.id).collect();
    assert_eq!(inspect(dir.path()).unwrap().dead_letters, 3, "counted while the queue is open");
    queue.drop_dead_letter(&ids[0]).await.unwrap();
    queue.retry_dead_letter(&ids[1]).await.unwrap();
    let before = queue.dead_letters(None, 9).await.unwrap();
    assert_eq!(inspect(dir.path()).unwrap().dead_letters, 1, "removed dead letters are not counted");
    drop(queue);
    for _ in 0..3 {
        assert_eq!(inspect(dir.path()).unwrap().dead_letters, 1);
        let queue = open(dir.path(), Config::default()).unwrap();
        assert_eq!(queue.dead_letters(None, 9).await.unwrap(), before);
        assert_eq!(before.len(), 1);
        assert_eq!(drain(&queue).await, ["3", "1"]);
        assert_eq!(counts(&queue).await.1, 1);
    }
}

#[tokio::test]
async fn two_processes_cannot_open_the_same_folder() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path(), Config::default()).unwrap();
    assert!(matches!(open(dir.path(), Config::default()), Err(Error::Refused { .. })));
    queue.close().await;
    open(dir.path(), Config::default()).unwrap();
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
            queue.ack(&ids(&claimed)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn sightings_leave_half_of_the_queue_to_deliveries() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path(), Config { max_entries: 4, ..Config::default() }).unwrap();
    let sighting = |n: i64| Entry {
        event_id: format!("s{n}"),
        received_at: Micros(n),
        payload: Payload::Sighting(Bytes::from_static(b"{}")),
    };
    queue.enqueue(sighting(1)).await.unwrap();
    queue.enqueue(sighting(2)).await.unwrap();
    assert!(matches!(queue.enqueue(sighting(3)).await, Err(Error::Full { .. })));
    enqueue_all(&queue, ["a", "b"]).await;
}

#[tokio::test]
async fn poison_never_fills_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let dead_letters = DeadLetterBounds { max_bytes: 1_000, max_count: 50, ..DeadLetterBounds::default() };
    let config = Config { max_bytes: 3_000, max_entries: 20, dead_letters, ..Config::default() };
    for restart in 0..3 {
        let queue = open(dir.path(), config).unwrap();
        for round in 0..20 {
            enqueue_all(&queue, (0..10).map(|n| format!("{restart}-{round}-{n}"))).await;
            dead_letter(&queue, &claim(&queue, 10).await, "cannot be understood").await;
        }
        let stats = queue.stats().await.unwrap();
        assert_eq!((stats.depth, stats.bytes, stats.dead_letters), (0, 0, 50));
        assert!(stats.dead_letter_bytes <= 1_000, "{stats:?}");
    }
}

#[tokio::test]
async fn the_oldest_dead_letters_are_reduced_to_id_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let size = entry("1").payload.bytes().len() as u64;
    let dead_letters = DeadLetterBounds { max_bytes: 2 * size, max_count: 4, ..DeadLetterBounds::default() };
    let queue = open(dir.path(), Config { dead_letters, ..Config::default() }).unwrap();
    enqueue_all(&queue, 1..=6).await;
    for claimed in claim(&queue, 6).await {
        dead_letter(&queue, &[claimed], "cannot be understood").await;
    }
    let letters = queue.dead_letters(None, 9).await.unwrap();
    let found: Vec<_> =
        letters.iter().map(|letter| (letter.event_id.as_str(), letter.payload.is_some())).collect();
    assert_eq!(found, [("3", false), ("4", false), ("5", true), ("6", true)]);
    assert!(letters.iter().all(|letter| letter.reason == "cannot be understood"));
    let retried = queue.retry_dead_letter(&letters[0].id).await;
    assert!(matches!(retried, Err(Error::PayloadRemoved { .. })), "{retried:?}");
    assert_eq!(counts(&queue).await, (0, 4), "a refused retry removes nothing");
    queue.retry_dead_letter(&letters[3].id).await.unwrap();
    assert_eq!(counts(&queue).await, (1, 3));
}

#[tokio::test]
async fn dead_letters_are_deleted_at_their_age() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(0));
    let clock = {
        let now = Arc::clone(&now);
        Clock::from_fn(move || Micros(now.load(Ordering::Relaxed)))
    };
    let max_age = Duration::from_hours(1);
    let config = Config {
        dead_letters: DeadLetterBounds { max_age, ..DeadLetterBounds::default() },
        ..Config::default()
    };
    let queue = EmbeddedQueue::open(dir.path(), config, clock.clone()).unwrap();
    for (id, minutes) in [("old", 0), ("young", 50)] {
        now.store(minutes * 60_000_000, Ordering::Relaxed);
        enqueue_all(&queue, [id]).await;
        dead_letter(&queue, &claim(&queue, 1).await, "why").await;
    }
    assert_eq!(counts(&queue).await.1, 2);
    drop(queue);
    now.store(70 * 60_000_000, Ordering::Relaxed);
    let queue = EmbeddedQueue::open(dir.path(), config, clock).unwrap();
    enqueue_all(&queue, ["next"]).await;
    let left = queue.dead_letters(None, 9).await.unwrap();
    assert_eq!(left.into_iter().map(|letter| letter.event_id).collect::<Vec<_>>(), ["young"]);
}

#[tokio::test]
async fn an_entry_id_is_never_used_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = BTreeSet::new();
    for restart in 0..4 {
        let queue = open(dir.path(), Config { dedupe_window: 0, ..Config::default() }).unwrap();
        enqueue_all(&queue, [restart]).await;
        let claimed = claim(&queue, 9).await;
        assert!(seen.insert(claimed[0].id.clone()), "restart {restart}");
        queue.ack(&ids(&claimed)).await.unwrap();
    }
}

#[tokio::test]
async fn an_unknown_format_is_refused_with_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    enqueue_all(&open(dir.path(), Config::default()).unwrap(), ["a"]).await;
    let path = dir.path().join("queue/queue.sqlite");
    for (pragma, value) in [("user_version", 2), ("user_version", 0), ("application_id", 7)] {
        let sqlite = Connection::open(&path).unwrap();
        let before: i64 = sqlite.pragma_query_value(None, pragma, |row| row.get(0)).unwrap();
        sqlite.pragma_update(None, pragma, value).unwrap();
        for refused in [open(dir.path(), Config::default()).map(drop), inspect(dir.path()).map(drop)] {
            let error = refused.expect_err("the format is unknown");
            assert!(matches!(error, Error::Refused { .. }), "{pragma}: {error}");
            assert!(error.to_string().contains("move the file away"), "{error}");
        }
        sqlite.pragma_update(None, pragma, before).unwrap();
    }
    assert_eq!(drain(&open(dir.path(), Config::default()).unwrap()).await, ["a"], "nothing was changed");
}

#[tokio::test]
async fn the_file_can_be_read_beside_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(inspect(dir.path()).unwrap().depth, 0, "there is no file yet");
    let queue = open(dir.path(), Config::default()).unwrap();
    enqueue_all(&queue, ["a", "b", "c"]).await;
    dead_letter(&queue, &claim(&queue, 1).await, "why").await;
    let stats = inspect(dir.path()).unwrap();
    assert_eq!((stats.depth, stats.dead_letters), (2, 1));
    assert_eq!(stats.oldest_received_at, Some(Micros(1_000)));
    let listed = list(dir.path(), 1).unwrap();
    assert_eq!(
        (listed.len(), listed[0].event_id.as_str(), listed[0].scheme.as_str()),
        (1, "b", "hmac_sha256")
    );
}

#[tokio::test]
async fn the_file_of_an_empty_queue_gives_its_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let dead_letters = DeadLetterBounds { max_bytes: 0, ..DeadLetterBounds::default() };
    let queue = open(dir.path(), Config { dead_letters, ..Config::default() }).unwrap();
    let body = Bytes::from(vec![b'x'; 8 << 20]);
    for n in 0..12 {
        let payload = Payload::Sighting(body.clone());
        let large = Entry { event_id: n.to_string(), received_at: Micros(n), payload };
        queue.enqueue(large).await.unwrap();
    }
    let size = || fs::metadata(dir.path().join("queue/queue.sqlite")).unwrap().len();
    for _ in 0..12 {
        queue.ack(&ids(&claim(&queue, 1).await)).await.unwrap();
    }
    queue.close().await;
    assert!(size() < 8 << 20, "{} bytes", size());
}

#[cfg(unix)]
#[tokio::test]
async fn only_the_owner_can_read_the_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path(), Config::default()).unwrap();
    enqueue_all(&queue, ["a"]).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("queue")), 0o700);
    for file in fs::read_dir(dir.path().join("queue")).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}
