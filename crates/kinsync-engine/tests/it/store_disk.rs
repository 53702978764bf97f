//! The embedded store on a disk that is full or fails, with the real queue and projector in front of it.
//!
//! `disk.c` stands between the store and the system. The queue is on the same disk and works.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kinsync_core::{Field, Micros, Observation, Profile, Source, Version, What};
use kinsync_engine::{
    Engine,
    internal::{
        apply::apply_logged,
        breaker, projector,
        store::{Store, embedded::EmbeddedStore},
    },
};
use tokio::time::{Instant, sleep};

use crate::{
    pipeline::event_entry,
    queue_crash::child_dir,
    queue_disk::{CONTROL, child},
    store_rows::{get, id},
};

const USERS: usize = 12;

/// Bytes of a page of the store.
const PAGE: usize = 4096;

/// More failures than make a dead letter of one user.
const ENOUGH: u64 = 300;

const LIMIT: Duration = Duration::from_mins(3);

/// Store, queue and projector of a child process.
struct Pipeline {
    store: Arc<dyn Store>,
    engine: Engine,
}

impl Pipeline {
    async fn open(dir: &Path) -> Self {
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(dir).unwrap());
        let pause = Duration::from_millis(2);
        let limits = breaker::Config { pause, max_pause: pause, ..breaker::Config::default() };
        let config = projector::Config { retry_after: pause, ..projector::Config::default() };
        let builder = Engine::builder(dir).store(Arc::clone(&store)).projector(config, limits);
        let engine = builder.open().await.unwrap();
        engine.start();
        Self { store, engine }
    }

    async fn enqueue(&self, user: &str, event: &str, name: &str) {
        let payload = format!(r#"{{"id":"{user}","last_name":"{name}"}}"#);
        self.engine.queue().enqueue(event_entry("user.updated", 9, event, &payload)).await.unwrap();
    }

    async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !is_so().await {
            let failure = self.engine.breaker().last_failure();
            assert!(Instant::now() < deadline, "not {what}: {failure:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_empty(&self) {
        self.until("empty", async || self.engine.queue().stats().await.unwrap().depth == 0).await;
    }

    async fn dead_letters(&self) -> Vec<(String, String)> {
        let dead = self.engine.queue().dead_letters(None, 100).await.unwrap();
        dead.into_iter().map(|letter| (letter.event_id, letter.reason)).collect()
    }

    async fn last_name(&self, user: &str) -> Option<String> {
        get(&*self.store, user).await?.document().last_name
    }
}

#[test]
fn a_disk_that_is_full_or_fails_holds_everything_and_loses_nothing() {
    let (dir, control) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let faults = [(CONTROL, control.path().display().to_string())];
    let printed = child("store_disk::child_on_a_disk_that_fails_for_all", dir.path(), &faults);
    assert!(printed.contains("all of it is stored"), "{printed}");
}

/// Makes the disk fail from now on: a space ends the failures.
fn set_fault(control: &Path, fault: char) {
    let mut content = [0; 16];
    content[0] = u8::try_from(fault).unwrap();
    fs::write(control, content).unwrap();
}

fn failures(control: &Path) -> u64 {
    fs::read(control).unwrap().get(8..16).map_or(0, |count| u64::from_le_bytes(count.try_into().unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of another test"]
async fn child_on_a_disk_that_fails_for_all() {
    let Some(dir) = child_dir() else { return };
    let control = PathBuf::from(std::env::var_os(CONTROL).unwrap());
    let pipeline = Pipeline::open(&dir).await;
    let mut before = 0;
    // A full disk, and one that fails to write, to sync and to read.
    for fault in ['N', 'W', 'S', 'R'] {
        set_fault(&control, fault);
        let user = |n: usize| format!("kp_{fault}_{n:02}");
        for n in 0..USERS {
            pipeline.enqueue(&user(n), &format!("{fault}{n}"), "New").await;
        }
        pipeline.until("failed often", async || failures(&control) > before + ENOUGH).await;
        assert_eq!(pipeline.dead_letters().await, [], "{fault}: an outage makes no dead letter");
        assert!(pipeline.engine.queue().stats().await.unwrap().depth > 0, "{fault}: it is held");
        let named = pipeline.engine.breaker().last_failure().unwrap().chain;
        assert!(named.contains("disk"), "{fault}: {named}");
        before = failures(&control);
        set_fault(&control, ' ');
        pipeline.until_empty().await;
        for n in 0..USERS {
            assert_eq!(pipeline.last_name(&user(n)).await.as_deref(), Some("New"), "{}", user(n));
        }
        assert_eq!(pipeline.dead_letters().await, [], "{fault}");
    }
    pipeline.engine.stop().await;
    println!("all of it is stored");
}

#[tokio::test]
async fn an_unreadable_sector_costs_the_events_of_the_user_on_it() {
    let dir = tempfile::tempdir().unwrap();
    // No index contains this value: a page of an index concerns other users too.
    let long = "z".repeat(20_000);
    let user = |name: &str, picture: &str| Observation {
        user: id(name),
        version: Version::event(Micros(1), "created"),
        source: Source::Webhook,
        what: What::Fields(Profile::new().with(Field::Picture, picture)),
    };
    let store = EmbeddedStore::open(dir.path()).unwrap();
    let users = (0..USERS).map(|n| user(&format!("kp_{n:02}"), "Ada")).chain([user("kp_bad", &long)]);
    // The log contains no second copy of the name.
    apply_logged(&store, users, Micros(1)).await.unwrap();
    // The file contains everything after this.
    drop(store);
    let path = dir.path().join("kinsync.sqlite");
    let bytes = fs::read(&path).unwrap();
    // A page that contains the middle of the name and no other user: SQLite puts a pointer before it.
    let is_of_the_name = |page: &[u8]| page[4..].iter().all(|byte| *byte == b'z');
    let sector = PAGE * bytes.chunks_exact(PAGE).position(is_of_the_name).unwrap() + PAGE / 2;
    let bad = format!("{} {sector} {}", fs::metadata(&path).unwrap().ino(), sector + 511);
    let test = "store_disk::child_on_a_disk_that_fails_for_one";
    let printed = child(test, dir.path(), &[("KINSYNC_DISK_BAD", bad)]);
    assert!(printed.contains("the others are stored"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of another test"]
async fn child_on_a_disk_that_fails_for_one() {
    let Some(dir) = child_dir() else { return };
    let pipeline = Pipeline::open(&dir).await;
    pipeline.enqueue("kp_bad", "bad", "New").await;
    for n in 0..USERS {
        pipeline.enqueue(&format!("kp_{n:02}"), &format!("good_{n}"), "New").await;
    }
    pipeline.until_empty().await;
    for n in 0..USERS {
        assert_eq!(pipeline.last_name(&format!("kp_{n:02}")).await.as_deref(), Some("New"));
    }
    let dead = pipeline.dead_letters().await;
    let [(event, reason)] = &dead[..] else { panic!("{dead:?}") };
    assert!(event == "bad" && reason.contains("disk image is malformed"), "{event}: {reason}");
    pipeline.engine.stop().await;
    println!("the others are stored");
}
