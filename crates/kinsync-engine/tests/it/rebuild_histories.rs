//! Random histories of a tenant through the whole pipeline, in processes that are killed: the log explains every user, a rebuild restores
//! every field of damaged users, and a rebuild beside the pipeline loses nothing.

use std::collections::BTreeMap;

use kinsync_core::{
    Field, Observation, Profile, Source, UserDocument, UserId, UserState, Value, Version, What,
};
use kinsync_engine::{
    Clock,
    internal::{
        apply::apply,
        email_ownership::Sweep,
        queue::Entry,
        rebuild::{Difference, Event, Finding, Mode, Rebuild},
        reconcile::{Error, Reconciler, record::RunMode},
        sighting::Sighting,
        store::{Row, Store},
    },
};
use kinsync_testing::repetitions;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use crate::{
    rebuild::{assert_explained, corrupted, documents, id, rebuild, rows, states},
    reconcile::World,
    roles::with_roles,
    roles_convergence::{Process, finish, release_lease, scan},
    roles_history::History,
    stores::{self, Fresh},
    suspended::Suspended,
};

/// Histories on one store, one after the other. A new tenant and a new store take longer than a history.
const PER_STORE: u32 = 25;

#[tokio::test(flavor = "multi_thread")]
async fn histories_with_kills_are_rebuilt_on_mongodb() {
    histories(async || stores::mongo().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_with_kills_are_rebuilt_on_the_embedded_store() {
    histories(async || stores::embedded()).await;
}

async fn histories(fresh: impl AsyncFn() -> Fresh) {
    // To repeat some, or to divide them among several processes.
    let start = repetitions("KINSYNC_TEST_FIRST_HISTORY", 0);
    let end = start + repetitions("KINSYNC_TEST_HISTORIES", PER_STORE);
    for first in (start..end).step_by(PER_STORE as usize) {
        let world = World::new(fresh().await).await;
        let mut history = History::new(&world, 6, u64::from(first));
        for n in first..end.min(first + PER_STORE) {
            let when = format!("{}, history {n}", world.fresh.name);
            Box::pin(live(&mut history)).await;
            Box::pin(is_rebuilt(&mut history, &when)).await;
            if history.rng.random_bool(0.3) {
                Box::pin(is_merged(&mut history, &when)).await;
            }
        }
    }
}

/// What a process reads beside the events.
enum Read {
    Scan(RunMode),
    Check(Vec<UserId>),
    /// A profile, or the claims of a token.
    Fields(Observation),
}

impl Read {
    fn random(world: &World, rng: &mut StdRng) -> Self {
        let users = world.kinde.users();
        let user = users.choose(rng).expect("a user");
        match rng.random_range(0..6) {
            0 => Self::Scan(RunMode::Backfill),
            1 | 2 => Self::Scan(RunMode::Reconcile),
            3 => Self::Check(users.iter().take(3).map(|user| id(&user.id)).collect()),
            _ => {
                let (source, version) = if rng.random_bool(0.5) {
                    (Source::Login, Version::provisional())
                } else {
                    (Source::Profile, Version::snapshot(Clock::system().now(), "profile"))
                };
                let profile = Profile::new()
                    .with(Field::FirstName, format!("First {}", rng.random_range(0..100)).as_str())
                    .with(Field::Email, user.email.as_deref().map_or(Value::Null, Value::from));
                Self::Fields(Observation { user: id(&user.id), version, source, what: What::Fields(profile) })
            }
        }
    }

    async fn run(self, world: &World, process: &Process) {
        let reconciler =
            || Reconciler::new(world.client(5), process.store.clone(), Clock::system(), with_roles());
        match self {
            Self::Scan(mode) => scan(world, &reconciler(), &mode).await,
            Self::Check(users) => check(world, &reconciler(), &users).await,
            Self::Fields(observation) => {
                let applied = apply(&*process.store, [observation], Clock::system().now()).await;
                assert!(applied.expect("the store answers").failed.is_empty());
            }
        }
    }
}

/// Checks users at once, although the lease of a killed process has not expired.
async fn check(world: &World, reconciler: &Reconciler, users: &[UserId]) {
    loop {
        release_lease(world).await;
        match reconciler.check(users).await {
            Err(Error::Busy { .. } | Error::LeaseLost) => {}
            checked => return drop(checked.expect("Kinde and the store answer")),
        }
    }
}

/// A request of a user while the store was unavailable.
fn sighting(world: &World, rng: &mut StdRng) -> Entry {
    let users = world.kinde.users();
    let user = users.choose(rng).expect("a user");
    let profile =
        user.email.as_deref().map_or_else(Profile::new, |email| Profile::new().with(Field::Email, email));
    Sighting { user: id(&user.id), profile, seen_at: Clock::system().now() }.entry()
}

/// Delivers events to a process that reads Kinde meanwhile and is killed at a random call of the store, and lets another one continue.
async fn live(history: &mut History<'_>) {
    let world = history.world;
    let steps = history.rng.random_range(3..10);
    let mut entries = history.live(steps);
    if let Some(user) = world.kinde.users().choose(&mut history.rng).filter(|_| steps % 2 == 0) {
        world.kinde.sign_in(&user.id).expect("there");
        entries.extend(world.events().pop());
    }
    if history.rng.random_bool(0.3) {
        entries.push(sighting(world, &mut history.rng));
    }
    if history.rng.random_bool(0.3) {
        entries.extend(history.late());
    }
    let (read, kill) = (Read::random(world, &mut history.rng), history.rng.random_range(3..250));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let process = Process::start(world, folder.path(), kill);
    let work = async |process: &Process| {
        process.enqueue(history, entries).await;
        tokio::join!(process.drain(world), read.run(world, process));
    };
    Box::pin(process.run(work)).await;
    settle(world, folder.path()).await;
}

/// Lets a process complete what killed ones have left, also the owners of addresses.
async fn settle(world: &World, folder: &std::path::Path) {
    Box::pin(finish(world, folder)).await;
    Sweep::default().run(&*world.fresh.store, Clock::system().now()).await.expect("the store answers");
}

/// Rebuilds damaged users, and kills the rebuild at random calls of the store: the users are as before.
async fn is_rebuilt(history: &mut History<'_>, when: &str) {
    let store = &*history.world.fresh.store;
    assert_explained(store, when).await;
    let before = users(store).await;
    let some = rows(store).await.into_iter().filter(|_| history.rng.random_bool(0.5)).collect::<Vec<_>>();
    let wrong: Vec<Row> = some.into_iter().map(|row| corrupted(row, &mut history.rng)).collect();
    store.write(&wrong).await.expect("the store answers");
    for _ in 0..history.rng.random_range(0..4) {
        interrupted_rebuild(history.world, history.rng.random_range(0..25)).await;
    }
    complete_rebuild(store, when).await;
    assert_eq!(users(store).await, before, "{when}");
}

async fn users(store: &dyn Store) -> (BTreeMap<UserId, UserState>, BTreeMap<String, UserDocument>) {
    (states(store).await, documents(store).await)
}

/// Starts a rebuild in a process that is killed instead of this call of the store.
async fn interrupted_rebuild(world: &World, kill: usize) {
    let process = Suspended::new(world.fresh.store.clone());
    process.suspend_at_call(kill);
    let mut listen = |_: Event<'_>| {};
    let rebuild = Rebuild::new(&*process, Mode::Replace, Clock::system().now(), &mut listen);
    tokio::select! {
        done = rebuild.run() => drop(done.expect("the store answers")),
        () = process.until_suspended() => {}
    }
}

async fn complete_rebuild(store: &dyn Store, when: &str) {
    let found = rebuild(store, Mode::Replace).await;
    let is_left = |one: &&Difference| !one.is_rebuilt || one.finding == Finding::Unexplained;
    assert_eq!(found.differences.iter().find(is_left), None, "{when}");
    Sweep::default().run(store, Clock::system().now()).await.expect("the store answers");
    assert_explained(store, when).await;
}

/// Rebuilds users with lost values while a process applies late events, and kills both: every delivered event is in the log, and the users
/// are what it says.
async fn is_merged(history: &mut History<'_>, when: &str) {
    let world = history.world;
    let store = &*world.fresh.store;
    let lost: Vec<Row> =
        rows(store).await.into_iter().map(|row| without_some(row, &mut history.rng)).collect();
    store.write(&lost).await.expect("the store answers");
    let entries = history.late();
    let ids: Vec<String> = entries.iter().map(|entry| entry.event_id.clone()).collect();
    let kills: Vec<usize> = (0..3).map(|_| history.rng.random_range(5..40)).collect();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let process = Process::start(world, folder.path(), kills[0]);
    // The queue has the events before the kill.
    process.enqueue(history, entries).await;
    let rebuilding = async {
        for kill in &kills[1..] {
            interrupted_rebuild(world, *kill).await;
        }
        rebuild(store, Mode::Replace).await;
    };
    tokio::join!(Box::pin(process.run(async |process| process.drain(world).await)), rebuilding);
    settle(world, folder.path()).await;
    complete_rebuild(store, when).await;
    for id in ids {
        assert!(
            store.event(&id).await.expect("the store answers").is_some(),
            "{when}: {id} is not in the log"
        );
    }
}

/// Loses values of a row. Another value, in place of one that a scan has compared, would be a value of that scan for an older event.
fn without_some(mut row: Row, rng: &mut StdRng) -> Row {
    match rng.random_range(0..4) {
        0 => row.state = UserState { last_seen: row.state.last_seen, ..UserState::default() },
        1 => row.state.deleted = None,
        2 => row.state.fields.retain(|_, _| rng.random_bool(0.5)),
        _ => {}
    }
    row
}
