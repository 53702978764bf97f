//! Old entries are removed after one entry contains what they say.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kinsync_core::{Micros, Observation, UserId};
use kinsync_engine::{
    Clock,
    internal::{
        apply::apply,
        explain::explain,
        log_entry::kind,
        projector,
        rebuild::{Event, Finding, Mode, Rebuild},
        retention::{Removed, Retention, Rules},
        store::{EventFilter, Row, Store},
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::{
    faulty::{Failure, Fault, FaultyStore},
    histories::{Arrival, History, deliveries},
    pipeline::{deliver, drain, engine, entry, event_entry},
    rebuild::{assert_explained, corrupted, documents, read, rebuild, rows, states},
    stores::{Fresh, on_every_store},
    suspended::Suspended,
};

on_every_store! {
    a_rebuild_after_retention_restores_random_histories
    a_removal_that_ends_halfway_is_continued
    each_type_has_its_own_age_and_an_entry_explains_what_was_removed
    one_process_at_a_time_removes_entries
    a_rebuild_beside_a_removal_reports_no_value_as_unexplained
    dead_letters_and_events_from_the_future_are_kept
}

const DAY: Duration = Duration::from_hours(24);

fn rules(days: u32) -> Rules {
    Rules { others: Some(DAY * days), ..Rules::default() }
}

/// A clock that is this many days ahead.
fn ahead(days: i64) -> Clock {
    Clock::from_fn(move || Micros(Clock::system().now().0 + days * 86_400_000_000))
}

async fn round(store: &Arc<dyn Store>, clock: Clock, rules: Rules) -> Removed {
    Retention::new(Arc::clone(store), clock, rules).round().await.expect("the store answers")
}

async fn entries(store: &dyn Store, kind: Option<&str>) -> usize {
    let kind = kind.map(str::to_owned);
    let filter = EventFilter { kind, limit: 1_000_000, ..EventFilter::default() };
    store.events(&filter).await.expect("the store answers").items.len()
}

async fn a_rebuild_after_retention_restores_random_histories(fresh: Fresh) {
    const SEED: u64 = 20_261_128;
    const HISTORIES: u64 = 2_000;
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut arriving: Vec<Arrival> = Vec::new();
    for n in 0..HISTORIES {
        arriving.extend(deliveries(History::random(&format!("r{n}"), SEED + n), &mut rng));
    }
    arriving.shuffle(&mut rng);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let engine = engine(dir.path(), &fresh.store, projector::Config::default()).await;
    // The events are from 2024, and the reads are recent.
    let mut reads: Vec<Observation> = Vec::new();
    for arrival in &arriving {
        engine.queue().enqueue(arrival.entry.clone()).await.expect("the queue takes it");
        if rng.random_bool(0.3) {
            reads.push(read(arrival, &mut rng));
        }
    }
    drain(&engine).await;
    engine.stop().await;
    for some in reads.chunks(200) {
        let applied = apply(&*fresh.store, some.to_vec(), Clock::system().now()).await;
        assert!(applied.expect("the store answers").failed.is_empty());
    }
    let store = &*fresh.store;
    let when = format!("{} with seed {SEED}", fresh.name);
    let before = (states(store).await, documents(store).await, entries(store, None).await);
    let removed = round(&fresh.store, Clock::system(), rules(7)).await;
    assert!(removed.entries > HISTORIES * 4 && removed.users > HISTORIES, "{when}: {removed:?}");
    let left = entries(store, None).await;
    assert_eq!(left as u64, before.2 as u64 - removed.entries + removed.users, "{when}");
    assert!(left < before.2, "{when}: {left} of {}", before.2);
    assert_explained(store, &when).await;
    assert_eq!(round(&fresh.store, Clock::system(), rules(7)).await, Removed::default(), "{when}");

    // The reads are old too, and so are the entries that replaced the events.
    round(&fresh.store, ahead(30), rules(7)).await;
    assert_eq!(entries(store, Some(kind::SCAN_READ)).await, 0, "{when}");
    assert_eq!(entries(store, Some(kind::RETENTION)).await, before.0.len(), "{when}: one for each user");
    assert_explained(store, &when).await;
    let wrong: Vec<Row> = rows(store).await.into_iter().map(|row| corrupted(row, &mut rng)).collect();
    for some in wrong.chunks(500) {
        store.write(some).await.expect("the store answers");
    }
    assert_ne!(states(store).await, before.0, "{when}");
    let found = rebuild(store, Mode::Replace).await;
    let is_repaired = |one: &kinsync_engine::internal::rebuild::Difference| {
        one.is_rebuilt && one.finding == Finding::Different
    };
    assert!(found.differences.iter().all(is_repaired), "{when}");
    assert_eq!(states(store).await, before.0, "{when}");
    assert_eq!(documents(store).await, before.1, "{when}");
}

fn old_entries(users: usize) -> Vec<kinsync_engine::internal::queue::Entry> {
    let user = |n: usize| format!(r#"{{"id":"kp_{n}","first_name":"Ada {n}","email":"{n}@example.com"}}"#);
    let of = |n: usize| {
        let created = event_entry("user.created", 1, &format!("c{n}"), &user(n));
        let updated = event_entry("user.updated", 2, &format!("u{n}"), &user(n));
        let deleted = event_entry("user.deleted", 3, &format!("d{n}"), &format!(r#"{{"id":"kp_{n}"}}"#));
        [created, updated, deleted]
    };
    (0..users).flat_map(of).collect()
}

async fn a_removal_that_ends_halfway_is_continued(fresh: Fresh) {
    for operation in ["log", "remove_entries"] {
        for failure in [Failure::Transient, Failure::UnknownOutcome] {
            let (engine, _dir) = deliver(&fresh, old_entries(10)).await;
            engine.stop().await;
            let before = states(&*fresh.store).await;
            let fault = Fault::new(operation, failure);
            let store = FaultyStore { store: Arc::clone(&fresh.store), fault: Arc::clone(&fault) };
            let store: Arc<dyn Store> = Arc::new(store);
            let retention = Retention::new(store, ahead(30), rules(7));
            let mut failures = 0;
            while retention.round().await.is_err() {
                failures += 1;
                assert_explained(&*fresh.store, fresh.name).await;
            }
            assert!(failures > 0, "{operation} has failed");
            assert_explained(&*fresh.store, fresh.name).await;
            assert_eq!(states(&*fresh.store).await, before, "{}", fresh.name);
            assert_eq!(entries(&*fresh.store, Some("user.updated")).await, 0, "{}", fresh.name);
        }
    }
}

async fn each_type_has_its_own_age_and_an_entry_explains_what_was_removed(fresh: Fresh) {
    let store = &*fresh.store;
    let (engine, _dir) = deliver(&fresh, old_entries(3)).await;
    let before = states(store).await;
    let by_kind =
        BTreeMap::from([("user.updated".to_owned(), DAY * 90), ("user.deleted".to_owned(), DAY * 7)]);
    let rules = Rules { by_kind, others: None };
    round(&fresh.store, ahead(30), rules.clone()).await;
    let count = async |kind| entries(store, Some(kind)).await;
    assert_eq!(
        (count("user.created").await, count("user.updated").await, count("user.deleted").await),
        (3, 3, 0),
        "{}",
        fresh.name
    );
    let newest = store.event("u1").await.expect("the store answers").expect("logged").received_at;
    round(&fresh.store, ahead(100), Rules { others: Some(DAY * 40), ..rules }).await;
    assert_eq!((count("user.created").await, count("user.updated").await), (0, 0), "{}", fresh.name);
    assert_eq!(count(kind::RETENTION).await, 3, "{}", fresh.name);
    assert_eq!(states(store).await, before, "{}", fresh.name);
    assert_explained(store, fresh.name).await;

    // The tombstone outlives the entry of the deletion: a repeated event restores nothing and is logged again.
    let late = event_entry("user.updated", 2, "u1", r#"{"id":"kp_1","first_name":"Ada 1"}"#);
    engine.queue().enqueue(late).await.expect("the queue takes it");
    while engine.queue().stats().await.expect("the queue is open").depth > 0 {
        tokio::task::yield_now().await;
    }
    engine.stop().await;
    let id = UserId::parse("kp_1").expect("a plain id");
    let row = store.load(&[id]).await.expect("the store answers").pop().flatten().expect("stored");
    assert!(!row.state.is_live());
    let filter = EventFilter { user: Some("kp_1".into()), limit: 100, ..EventFilter::default() };
    let page = store.events(&filter).await.expect("the store answers");
    let explained = explain(Some(&row), &page);
    let one = explained.iter().find(|one| one.kind == kind::RETENTION).expect("explained");
    assert_eq!(one.outcome, "replaced the older entries, which retention removed; set 2 of 2 fields");
    assert_eq!(one.received_at, Some(newest), "at the time of the newest entry that it replaced");
}

async fn dead_letters_and_events_from_the_future_are_kept(fresh: Fresh) {
    let role = |id: &str, at: &str| {
        let role = r#"{"role":{"id":"r","key":"admin","name":"Admin"}}"#;
        entry(id, &format!(r#"{{"type":"role.created","event_id":"{id}","timestamp":"{at}","data":{role}}}"#))
    };
    let entries = vec![
        event_entry("user.updated", 1, "old", r#"{"id":"kp_1","first_name":"Ada"}"#),
        event_entry("user.updated", 4_000_000_000, "far", r#"{"id":"kp_1","first_name":"Far"}"#),
        event_entry("user.updated", 1, "broken", r#"{"id":"kp_1","first_name":{"no":"text"}}"#),
        entry("unreadable", "{\"half of an event"),
        role("role", "2024-01-01T00:00:00Z"),
        role("far role", "2999-01-01T00:00:00Z"),
    ];
    let (engine, _dir) = deliver(&fresh, entries).await;
    let dead = engine.queue().stats().await.expect("the queue is open").dead_letters;
    engine.stop().await;
    assert_eq!(dead, 4, "{}", fresh.name);
    let removed = round(&fresh.store, ahead(30), rules(7)).await;
    assert_eq!(removed, Removed { entries: 2, users: 1 }, "{}", fresh.name);
    let filter = EventFilter { limit: 100, ..EventFilter::default() };
    let page = fresh.store.events(&filter).await.expect("the store answers");
    let mut left: Vec<&str> =
        page.items.iter().map(|entry| entry.id.split(':').next().unwrap_or_default()).collect();
    left.sort_unstable();
    assert_eq!(left, ["broken", "far", "far role", kind::RETENTION, "unreadable"], "{}", fresh.name);
    assert_explained(&*fresh.store, fresh.name).await;
}

async fn one_process_at_a_time_removes_entries(fresh: Fresh) {
    let (engine, _dir) = deliver(&fresh, old_entries(30)).await;
    engine.stop().await;
    let retention = || Retention::new(Arc::clone(&fresh.store), ahead(30), rules(7));
    let (one, other) = (retention(), retention());
    let (one, other) = tokio::join!(one.round(), other.round());
    let (one, other) = (one.expect("the store answers"), other.expect("the store answers"));
    assert_eq!(one.entries.max(other.entries), 90, "{}: {one:?} {other:?}", fresh.name);
    assert_eq!(one.entries.min(other.entries), 0, "{}: {one:?} {other:?}", fresh.name);
}

async fn a_rebuild_beside_a_removal_reports_no_value_as_unexplained(fresh: Fresh) {
    // More entries of one user than are read at once.
    let events = (0..600).map(|n| {
        let user = format!(r#"{{"id":"kp_ada","first_name":"Ada {n}"}}"#);
        event_entry("user.updated", n, &format!("event_{n:03}"), &user)
    });
    _ = deliver(&fresh, events).await;
    // The row and the first page of the entries are read.
    let process = Suspended::new(Arc::clone(&fresh.store));
    process.suspend_at_call(2);
    let mut differences = Vec::new();
    let mut listen = |event: Event<'_>| {
        if let Event::Different(one) = event {
            differences.push(one.clone());
        }
    };
    let user = UserId::parse("kp_ada").expect("a plain id");
    let rebuild = Rebuild::new(&*process, Mode::Verify, Clock::system().now(), &mut listen).run_one(&user);
    let removal = async {
        process.until_suspended().await;
        let removed = round(&fresh.store, ahead(30), rules(7)).await;
        process.resume();
        removed.entries
    };
    let (report, removed) = tokio::join!(rebuild, removal);
    report.expect("the store answers");
    assert_eq!((removed, differences), (600, Vec::new()), "{}", fresh.name);
}
