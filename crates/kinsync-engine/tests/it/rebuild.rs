//! The log explains the state of every user, and a rebuild derives the users from it.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::atomic::{AtomicBool, Ordering},
};

use bson::doc;
use futures_util::FutureExt as _;
use kinsync_core::{
    Field, Micros, Observation, Profile, Source, UserDocument, UserId, UserState, Value, Version, What,
};
use kinsync_engine::{
    Clock,
    internal::{
        apply::apply,
        log_entry::{LogSource, kind},
        log_snapshots, projector,
        rebuild::{Difference, Event, Finding, Mode, Rebuild, Report},
        store::{DamagedEntry, EventFilter, LogEntry, Outcome, Row, Store},
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::{
    faulty::{Fault, FaultyStore},
    histories::{Arrival, History, deliveries},
    pipeline::{drain, engine, event_entry},
    reconcile::World,
    store_mongo,
    stores::{Fresh, on_every_store},
};

on_every_store! {
    the_log_explains_random_histories_and_a_rebuild_restores_every_field
    a_value_that_no_entry_explains_is_reported_and_stays
    a_rebuild_under_live_observations_loses_none
    an_observation_between_the_two_reads_of_a_rebuild_is_kept
    a_user_with_more_entries_than_a_page_is_rebuilt_page_by_page
    an_interrupted_rebuild_continues
    users_from_before_the_log_was_complete_are_logged_once
    an_undisturbed_scan_logs_nothing
    a_repeated_observation_is_logged_once
}

/// What a rebuild reported.
#[derive(Debug, Default)]
pub(crate) struct Reported {
    pub(crate) report: Report,
    pub(crate) differences: Vec<Difference>,
    pub(crate) damaged: Vec<DamagedEntry>,
}

pub(crate) async fn rebuild(store: &dyn Store, mode: Mode) -> Reported {
    let mut reported = Reported::default();
    let mut listen = |event: Event<'_>| match event {
        Event::Different(one) => reported.differences.push(one.clone()),
        Event::Damaged(one) => reported.damaged.push(one.clone()),
        Event::Progress(_) | Event::Continues(..) => {}
    };
    let done = Rebuild::new(store, mode, Clock::system().now(), &mut listen).run().await;
    reported.report = done.expect("the store answers");
    reported
}

/// Starts a rebuild at this time, and interrupts it after the first page.
pub(crate) async fn interrupt(store: &dyn Store, mode: Mode, now: Micros) {
    // Unwinds: a future that is dropped after a page may have compared the next ones in the same poll.
    let mut listen = |event: Event<'_>| {
        if matches!(event, Event::Progress(_)) {
            resume_unwind(Box::new("interrupted"));
        }
    };
    let run = AssertUnwindSafe(Rebuild::new(store, mode, now, &mut listen).run());
    run.catch_unwind().await.expect_err("it is interrupted after its first page");
}

/// Panics unless the log explains the state of every user.
pub(crate) async fn assert_explained(store: &dyn Store, when: &str) {
    let found = rebuild(store, Mode::Verify).await;
    assert_eq!(found.damaged, [], "{when}");
    assert_eq!(found.differences, [], "{when}");
}

pub(crate) async fn rows(store: &dyn Store) -> Vec<Row> {
    let ids = store.ids(None, 100_000).await.expect("the store answers");
    store.load(&ids).await.expect("the store answers").into_iter().flatten().collect()
}

/// What readers see, apart from the time of the newest write.
pub(crate) async fn documents(store: &dyn Store) -> BTreeMap<String, UserDocument> {
    let rows = rows(store).await.into_iter();
    let document = |row: Row| UserDocument { updated_at: Micros(0), ..row.document() };
    rows.map(|row| (row.id.to_string(), document(row))).collect()
}

pub(crate) async fn states(store: &dyn Store) -> BTreeMap<UserId, UserState> {
    rows(store).await.into_iter().map(|row| (row.id, row.state)).collect()
}

pub(crate) fn id(user: &str) -> UserId {
    UserId::parse(user).expect("a plain id")
}

pub(crate) fn named(user: &str, at: i64, name: &str) -> Observation {
    Observation {
        user: id(user),
        version: Version::snapshot(Micros(at), format!("h{at}")),
        source: Source::Reconcile,
        what: What::Fields(Profile::new().with(Field::FirstName, name)),
    }
}

pub(crate) async fn observe(store: &dyn Store, observations: impl IntoIterator<Item = Observation>) {
    let applied = apply(store, observations, Clock::system().now()).await.expect("the store answers");
    assert!(applied.failed.is_empty() && applied.refused.is_empty(), "{applied:?}");
}

/// Observations of the sources that are no events, about the users of events.
pub(crate) fn read(arrival: &Arrival, rng: &mut StdRng) -> Observation {
    let observation = arrival.observation.clone();
    let at = Micros(observation.version.at.0 + rng.random_range(-2..3));
    let snapshot = Version::snapshot(at, format!("h{}", rng.random_range(0..3)));
    match (rng.random_range(0..3), &observation.what) {
        (0, What::Fields(_)) => {
            Observation { version: Version::provisional(), source: Source::Login, ..observation }
        }
        (1, What::Fields(profile)) if rng.random_bool(0.3) => {
            let what = What::Exists(profile.clone());
            Observation { version: snapshot, source: Source::Reconcile, what, ..observation }
        }
        (1, _) => Observation { version: snapshot, source: Source::Profile, ..observation },
        _ => Observation { version: snapshot, source: Source::Reconcile, ..observation },
    }
}

/// Makes the state of a row wrong without a version that no entry contains.
pub(crate) fn corrupted(mut row: Row, rng: &mut StdRng) -> Row {
    let fields: Vec<Field> = row.state.fields.keys().copied().collect();
    match rng.random_range(0..5) {
        0 => row.state = UserState { last_seen: row.state.last_seen, ..UserState::default() },
        1 => row.state.deleted = None,
        2 => row.state.first = kinsync_core::FirstVersions::default(),
        3 if !fields.is_empty() => {
            let field = fields[rng.random_range(0..fields.len())];
            row.state.fields.remove(&field);
        }
        _ => {
            for register in row.state.fields.values_mut() {
                if matches!(register.value, Value::Text(_)) {
                    register.value = Value::Text("".into());
                }
            }
        }
    }
    row
}

async fn the_log_explains_random_histories_and_a_rebuild_restores_every_field(fresh: Fresh) {
    const SEED: u64 = 20_261_127;
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut arriving: Vec<Arrival> = Vec::new();
    for n in 0..300_u64 {
        arriving.extend(deliveries(History::random(&format!("r{n}"), SEED + n), &mut rng));
    }
    arriving.shuffle(&mut rng);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let engine =
        engine(dir.path(), &fresh.store, projector::Config { batch: 50, ..Default::default() }).await;
    let mut reads = Vec::new();
    for arrival in &arriving {
        engine.queue().enqueue(arrival.entry.clone()).await.expect("the queue takes it");
        if rng.random_bool(0.5) {
            reads.push(read(arrival, &mut rng));
        }
    }
    let reading = async {
        for some in reads.chunks(20) {
            observe(&*fresh.store, some.to_vec()).await;
        }
    };
    tokio::join!(drain(&engine), reading);
    engine.stop().await;
    let when = format!("{} with seed {SEED}", fresh.name);
    assert_explained(&*fresh.store, &when).await;

    let before = (states(&*fresh.store).await, documents(&*fresh.store).await);
    let wrong: Vec<Row> = rows(&*fresh.store).await.into_iter().map(|row| corrupted(row, &mut rng)).collect();
    for some in wrong.chunks(500) {
        fresh.store.write(some).await.expect("the store answers");
    }
    assert_ne!(states(&*fresh.store).await, before.0, "{when}");
    let found = rebuild(&*fresh.store, Mode::Replace).await;
    assert!(found.report.rebuilt > 100, "{found:?}");
    let is_repaired = |one: &Difference| one.is_rebuilt && one.finding == Finding::Different;
    assert!(found.differences.iter().all(is_repaired), "{when}: {:?}", found.differences);
    assert_explained(&*fresh.store, &when).await;
    assert_eq!(states(&*fresh.store).await, before.0, "{when}");
    assert_eq!(documents(&*fresh.store).await, before.1, "{when}");
}

async fn a_value_that_no_entry_explains_is_reported_and_stays(fresh: Fresh) {
    let store = &*fresh.store;
    observe(store, [named("kp_ada", 1, "Ada"), named("kp_bob", 1, "Bob")]).await;
    let mut row =
        store.load(&[id("kp_ada")]).await.expect("the store answers").pop().flatten().expect("stored");
    let unknown = Version::snapshot(Micros(7), "lost");
    row.state = row.state.with_register(Field::FirstName, unknown, Value::Text("Countess".into()));
    assert_eq!(store.write(&[row]).await.expect("the store answers"), [Outcome::Written]);
    let found = rebuild(store, Mode::Replace).await;
    let [one] = found.differences.as_slice() else { panic!("{found:?}") };
    assert_eq!((one.user.as_str(), one.finding, one.is_rebuilt), ("kp_ada", Finding::Unexplained, false));
    assert_eq!((one.fields[0].field.as_str(), one.fields.len()), ("firstName", 1), "{one:?}");
    let since = one.fields[0].since.clone().expect("an entry of the log");
    assert!(store.event(&since).await.expect("the store answers").is_some());
    let name = async || documents(store).await["kp_ada"].first_name.clone();
    assert_eq!(name().await.as_deref(), Some("Countess"));
    let found = rebuild(store, Mode::ReplaceUnexplained).await;
    assert!(found.differences[0].is_rebuilt);
    assert_eq!(name().await.as_deref(), Some("Ada"));
    assert_explained(store, fresh.name).await;
}

async fn a_rebuild_under_live_observations_loses_none(fresh: Fresh) {
    const USERS: usize = 60;
    let mut rng = StdRng::seed_from_u64(5);
    let all: Vec<Observation> = (1..1200)
        .map(|n| named(&format!("kp_{}", rng.random_range(0..USERS)), 1_000_000 + n, &format!("Name {n}")))
        .collect();
    let mut expected: BTreeMap<UserId, UserState> = BTreeMap::new();
    for one in &all {
        let state = expected.entry(one.user.clone()).or_default();
        *state = std::mem::take(state).observe(one);
    }
    let is_done = AtomicBool::new(false);
    let live = async {
        for some in all.chunks(5) {
            observe(&*fresh.store, some.to_vec()).await;
        }
        is_done.store(true, Ordering::Release);
    };
    let rebuilding = async {
        let mut rebuilt = 0;
        while !is_done.load(Ordering::Acquire) {
            // The rebuild has something to write all the time.
            let wrong: Vec<Row> =
                rows(&*fresh.store).await.into_iter().map(|row| corrupted(row, &mut rng)).collect();
            fresh.store.write(&wrong).await.expect("the store answers");
            // Replaces whatever the log that it has read does not explain.
            rebuilt += rebuild(&*fresh.store, Mode::ReplaceUnexplained).await.report.rebuilt;
        }
        rebuilt
    };
    let ((), rebuilt) = tokio::join!(live, rebuilding);
    assert!(rebuilt > 20, "{}: {rebuilt} users were rebuilt", fresh.name);
    rebuild(&*fresh.store, Mode::Replace).await;
    assert_eq!(states(&*fresh.store).await, expected, "{}", fresh.name);
    assert_explained(&*fresh.store, fresh.name).await;
}

async fn an_observation_between_the_two_reads_of_a_rebuild_is_kept(fresh: Fresh) {
    let store = &*fresh.store;
    let ada = id("kp_ada");
    observe(store, [named("kp_ada", 1, "Ada")]).await;
    let runs = [Mode::Verify, Mode::ReplaceUnexplained].map(|mode| [(mode, false), (mode, true)]);
    for (n, (mode, is_of_one)) in (2..).zip(runs.into_iter().flatten()) {
        let name = format!("Name {n}");
        let (live, observation) = (fresh.store.clone(), named("kp_ada", n, &name));
        let fault = Fault::after_first_read(async move { observe(&*live, [observation]).await });
        let faulty = FaultyStore { store: fresh.store.clone(), fault };
        let mut differences = Vec::new();
        let mut listen = |event: Event<'_>| differences.extend(is_difference(&event));
        let rebuild = Rebuild::new(&faulty, mode, Micros(1), &mut listen);
        let done = if is_of_one { rebuild.run_one(&ada).await } else { rebuild.run().await };
        let when = format!("{}, {mode:?}, of one: {is_of_one}", fresh.name);
        assert_eq!(done.expect("the store answers").rebuilt, 0, "{when}");
        assert_eq!(differences, [], "{when}");
        assert_eq!(documents(store).await["kp_ada"].first_name.as_deref(), Some(&*name), "{when}");
        assert_explained(store, &when).await;
    }
}

fn is_difference(event: &Event<'_>) -> Option<Difference> {
    match event {
        Event::Different(one) => Some((*one).clone()),
        _ => None,
    }
}

async fn a_user_with_more_entries_than_a_page_is_rebuilt_page_by_page(fresh: Fresh) {
    const ENTRIES: i64 = 250;
    let store = &*fresh.store;
    let long = "x".repeat(40_000);
    for user in ["kp_a", "kp_m", "kp_z"] {
        observe(store, [named(user, 1, "Ada")]).await;
    }
    for n in 2..=ENTRIES {
        observe(store, [named("kp_m", n, &format!("{n} {long}"))]).await;
    }
    let page = store.user_entries("kp_a", None, 20_000).await.expect("the store answers");
    let found = (page.large.as_deref(), page.next.as_deref(), page.entries.len());
    assert_eq!(found, (Some("kp_m"), Some("kp_m"), 0), "{}", fresh.name);
    let before = states(store).await;
    let found = rebuild(store, Mode::Verify).await;
    assert_eq!((found.report.users, found.report.entries), (3, 252), "{}", fresh.name);
    assert_eq!(found.differences, [], "{}", fresh.name);
    let mut wrong = rows(store).await;
    for row in &mut wrong {
        row.state = UserState::default();
    }
    store.write(&wrong).await.expect("the store answers");
    let found = rebuild(store, Mode::Replace).await;
    assert_eq!(found.report.rebuilt, 3, "{}: {found:?}", fresh.name);
    let since = found.differences.iter().map(|one| one.fields[0].since.clone());
    for since in since {
        let entry = store.event(&since.expect("an entry")).await.expect("the store answers").expect("logged");
        let newest = if entry.user.as_deref() == Some("kp_m") { ENTRIES } else { 1 };
        assert_eq!(entry.at, Some(Micros(newest)), "{}", fresh.name);
    }
    assert_eq!(states(store).await, before, "{}", fresh.name);
}

async fn an_interrupted_rebuild_continues(fresh: Fresh) {
    let store = &*fresh.store;
    // Three pages: a write of the second one may have begun when the rebuild is interrupted.
    observe(store, (0..4500).map(|n| named(&format!("kp_{n:04}"), 1, "Ada"))).await;
    let wipe = async |user: &str| {
        let mut row =
            store.load(&[id(user)]).await.expect("the store answers").pop().flatten().expect("stored");
        row.state = UserState::default();
        store.write(&[row]).await.expect("the store answers");
    };
    let name = async |user: &str| documents(store).await[user].first_name.clone();
    wipe("kp_0001").await;
    wipe("kp_4400").await;
    interrupt(store, Mode::Replace, Clock::system().now()).await;
    assert_eq!(name("kp_0001").await.as_deref(), Some("Ada"));
    assert_eq!(name("kp_4400").await, None, "it was interrupted before");
    wipe("kp_0001").await;
    let found = rebuild(store, Mode::Replace).await;
    assert_eq!((found.report.users, found.report.rebuilt), (4500, 2), "both parts count: {found:?}");
    assert_eq!(name("kp_4400").await.as_deref(), Some("Ada"));
    assert_eq!(name("kp_0001").await, None, "the first page is not read again");
    rebuild(store, Mode::Replace).await;
    assert_explained(store, "a new rebuild begins at the first user").await;
}

async fn users_from_before_the_log_was_complete_are_logged_once(fresh: Fresh) {
    let store = &*fresh.store;
    let observations = (0..1100).map(|n| named(&format!("kp_{n:04}"), 1, "Ada"));
    let unlogged: Vec<Row> = observations
        .map(|one| {
            let mut row = Row::unknown(one.user.clone());
            row.state = row.state.observe(&one);
            row
        })
        .collect();
    store.write(&unlogged).await.expect("the store answers");
    assert!(!log_snapshots::is_complete(store).await.expect("the store answers"));
    let clock = Clock::system();
    // Two processes at once.
    let (one, other) =
        tokio::join!(log_snapshots::complete(store, &clock), log_snapshots::complete(store, &clock));
    assert!(one.expect("the store answers") + other.expect("the store answers") >= 1100);
    assert_explained(store, fresh.name).await;
    let logged = async || {
        let filter = EventFilter { kind: Some(kind::SNAPSHOT.into()), limit: 9999, ..EventFilter::default() };
        store.events(&filter).await.expect("the store answers").items
    };
    assert_eq!(logged().await.len(), 1100, "{}", fresh.name);
    assert!(logged().await.iter().all(|entry| entry.source == LogSource::Kinsync));
    observe(store, [named("kp_0001", 2, "Augusta"), named("kp_new", 2, "Grace")]).await;
    assert_eq!(log_snapshots::complete(store, &clock).await.expect("the store answers"), 0);
    assert_eq!(logged().await.len(), 1100);
    assert_explained(store, fresh.name).await;
}

async fn an_undisturbed_scan_logs_nothing(fresh: Fresh) {
    let world = World::new(fresh).await;
    world.import(25);
    let all = async || {
        let filter = EventFilter { limit: 1000, ..EventFilter::default() };
        world.fresh.store.events(&filter).await.expect("the store answers").items
    };
    world.reconcile().await;
    let entries = all().await;
    let read = |entry: &&LogEntry| entry.kind == kind::SCAN_READ && entry.source == LogSource::Reconcile;
    assert_eq!(entries.iter().filter(read).count(), 25, "{entries:?}");
    assert_explained(&*world.fresh.store, world.fresh.name).await;
    world.later().await;
    world.reconcile().await;
    assert_eq!(all().await, entries, "{}", world.fresh.name);
}

async fn a_repeated_observation_is_logged_once(fresh: Fresh) {
    let store = &*fresh.store;
    let seen = Observation { what: What::Seen(Micros(9)), source: Source::Login, ..named("kp_ada", 9, "") };
    for _ in 0..2 {
        // As after a kill between the entries and the row.
        let stored = store.load(&[id("kp_ada")]).await.expect("the store answers").pop().flatten();
        let wiped = stored.map(|row| Row { state: UserState::default(), ..row });
        store.write(wiped.as_slice()).await.expect("the store answers");
        observe(store, [named("kp_ada", 3, "Ada"), named("kp_ada", 2, "Augusta"), named("kp_ada", 3, "Ada")])
            .await;
        observe(store, [seen.clone()]).await;
    }
    let filter = EventFilter { user: Some("kp_ada".into()), limit: 9, ..EventFilter::default() };
    let logged = store.events(&filter).await.expect("the store answers");
    assert_eq!(logged.len(), 2, "{}: {logged:?}", fresh.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_documents_come_back_and_those_of_the_application_stay() {
    let store = store_mongo::store().await;
    let users = store_mongo::users(&store);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let shared: std::sync::Arc<dyn Store> = std::sync::Arc::new(store.clone());
    let engine = engine(dir.path(), &shared, projector::Config::default()).await;
    for n in 0..20 {
        let user = format!(r#"{{"id":"kp_{n:02}","email":"{n}@example.com","first_name":"Ada"}}"#);
        let entry = event_entry("user.created", n, &format!("e{n}"), &user);
        engine.queue().enqueue(entry).await.expect("the queue takes it");
    }
    drain(&engine).await;
    let before = documents(&store).await;
    users
        .update_one(doc! { "kindeId": "kp_03" }, doc! { "$set": { "plan": "pro", "firstName": "Eve" } })
        .await
        .expect("it answers");
    users.delete_many(doc! { "kindeId": { "$gte": "kp_10" } }).await.expect("it answers");
    let own = doc! { "_id": "own", "kindeId": "kp_application", "plan": "free" };
    users.insert_one(own.clone()).await.expect("it answers");
    let found = rebuild(&store, Mode::Replace).await;
    let missing = found.differences.iter().filter(|one| one.finding == Finding::Missing).count();
    let edited: Vec<_> = found.differences.iter().filter(|one| one.finding == Finding::Edited).collect();
    assert_eq!(
        (missing, edited.len(), edited[0].fields[0].field.as_str()),
        (10, 1, "firstName"),
        "{found:?}"
    );
    assert_eq!(documents(&store).await, before);
    let stored = store_mongo::document(&store, "kp_03").await;
    assert_eq!(stored.get_str("plan").ok(), Some("pro"), "{stored}");
    assert_eq!(users.find_one(doc! { "_id": "own" }).await.expect("it answers"), Some(own));
    assert_explained(&store, "rebuilt").await;
}
