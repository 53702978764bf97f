//! Deletions that are inferred from absence: one budget for scans and checks of single users, whatever Kinde answers.

use std::{sync::Arc, time::Duration};

use kinde_emulator::{Fault, FaultKind, NewUser, Profile};
use kinsync_core::UserId;
use kinsync_engine::{
    Clock,
    internal::{
        pending_checks::PendingChecks,
        reconcile::{
            Config, Error, Reconciler, Thresholds,
            record::{DriftKind, Outcome, Run, RunMode},
        },
        store::Store,
    },
};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    reconcile::{DEADLINE, World, quick, until_requested},
    stores::{self, Fresh, on_every_store},
    suspended::Suspended,
};

on_every_store! {
    checks_of_single_users_delete_no_more_than_the_budget
    no_scan_deletes_most_of_a_small_tenant
    scans_and_checks_draw_on_one_budget
    a_scan_deletes_nothing_that_checks_have_drawn_meanwhile
    verified_deletions_draw_nothing
    a_process_that_was_suspended_during_its_deletions_deletes_no_more
    an_operator_approves_that_a_tenant_is_empty
}

async fn live(world: &World) -> usize {
    world.documents().await.values().filter(|user| !user.is_deleted).count()
}

fn ids(users: &[String]) -> Vec<UserId> {
    users.iter().map(|user| UserId::parse(user).expect("an id")).collect()
}

fn delete(world: &World, users: &[String]) {
    for user in users {
        world.kinde.delete_user(user, Profile::Remove).expect("there");
    }
}

/// Checks these users, and runs the scan that the checks request.
async fn check(world: &World, users: &[String]) -> Option<Run> {
    PendingChecks::request(&*world.fresh.store, &ids(users)).await.expect("kept");
    let is_scan = world.reconciler(10, quick()).run_pending_checks().await.expect("Kinde answers");
    if is_scan { Some(world.reconcile().await) } else { None }
}

async fn checks_of_single_users_delete_no_more_than_the_budget(fresh: Fresh) {
    let world = World::new(fresh).await;
    let users = world.import(60);
    world.reconcile().await;
    world.later().await;
    // Kinde's list is right, and single reads are wrong.
    // The first ones that Kinde lists are canary users.
    for user in &users[10..55] {
        world.kinde.set_fault(Fault::always(FaultKind::UserNotFound { status: 404, id: Some(user.clone()) }));
    }
    let rounds = [&users[10..25], &users[25..40], &users[40..55]];
    let mut scans = 0;
    for round in rounds {
        scans += usize::from(check(&world, round).await.is_some());
    }
    // The scans restore nothing: the reads are still wrong.
    assert_eq!((live(&world).await, scans), (45, 2), "{}", world.fresh.name);
    let pending = PendingChecks::load(&*world.fresh.store).await.expect("it answers");
    assert!(pending.users.is_empty() && pending.scan.is_some(), "the scan decides: {pending:?}");
}

async fn no_scan_deletes_most_of_a_small_tenant(fresh: Fresh) {
    let world = World::new(fresh).await;
    let users = world.import(21);
    world.reconcile().await;
    delete(&world, &users[..20]);
    world.later().await;
    let run = world.reconcile().await;
    assert_eq!(run.tally.of(DriftKind::DeletionHeld), 20, "{}: {run:?}", world.fresh.name);
    assert_eq!(live(&world).await, 21);
    let approved = world.run(RunMode::Approve(run.id)).await.expect("Kinde answers");
    assert_eq!(approved.tally.of(DriftKind::Deleted), 20, "{approved:?}");
}

async fn scans_and_checks_draw_on_one_budget(fresh: Fresh) {
    let world = World::new(fresh).await;
    let users = world.import(70);
    world.reconcile().await;
    delete(&world, &users[..12]);
    world.later().await;
    assert_eq!(world.reconcile().await.tally.of(DriftKind::Deleted), 12);
    // Nine more are held as a whole, by the check and by the scan that it requests.
    delete(&world, &users[12..21]);
    world.later().await;
    let dry = world.run(RunMode::DryRun).await.expect("Kinde answers");
    assert_eq!(dry.tally.of(DriftKind::DeletionHeld), 9, "{dry:?}");
    let held = check(&world, &users[12..21]).await.expect("a scan is requested");
    assert_eq!(
        (held.tally.of(DriftKind::DeletionHeld), held.tally.of(DriftKind::Deleted)),
        (9, 0),
        "{held:?}"
    );
    assert_eq!(live(&world).await, 58, "{}", world.fresh.name);
    // What is left is enough for eight. An approval draws nothing.
    world.run(RunMode::Approve(held.id)).await.expect("Kinde answers");
    delete(&world, &users[21..29]);
    world.later().await;
    assert_eq!(world.reconcile().await.tally.of(DriftKind::Deleted), 8);
    assert_eq!(live(&world).await, 41);
}

/// The scan reads the budget, then checks draw on it, then the scan draws.
async fn a_scan_deletes_nothing_that_checks_have_drawn_meanwhile(fresh: Fresh) {
    let world = World::new(fresh).await;
    let users = world.import(60);
    world.reconcile().await;
    delete(&world, &users[10..22]);
    world.later().await;
    let pause = Duration::from_secs(2);
    world.kinde.set_fault(Fault::times(FaultKind::Slow { min: pause, max: pause }, 1).on("user"));
    let config = Config { check_every: Duration::from_millis(50), ..quick() };
    let (reconciler, read) = (world.reconciler(10, config), world.kinde.requests("user"));
    let stop = CancellationToken::new();
    let checks = async {
        // The list is complete, and its missing users are within the budget.
        until_requested(&world, "user", read).await;
        delete(&world, &users[30..42]);
        PendingChecks::request(&*world.fresh.store, &ids(&users[30..42])).await.expect("kept");
    };
    let (run, ()) = tokio::join!(reconciler.run(RunMode::Reconcile, &|_| {}, &stop), checks);
    let run = run.expect("Kinde answers");
    let counts = [DriftKind::Deleted, DriftKind::DeletionHeld].map(|kind| run.tally.of(kind));
    assert_eq!((counts, live(&world).await), ([0, 12], 48), "{}: {run:?}", world.fresh.name);
}

async fn verified_deletions_draw_nothing(fresh: Fresh) {
    let world = World::new(fresh).await;
    let named = |n| NewUser::named(&format!("user{n}@example.com"), "First", "Last");
    let users: Vec<String> = (0..70).map(|n| world.kinde.create_user(named(n)).expect("new").id).collect();
    delete(&world, &users[..30]);
    world.deliver(world.events()).await;
    assert_eq!(live(&world).await, 40, "{}", world.fresh.name);
    delete(&world, &users[30..50]);
    world.later().await;
    let run = world.reconcile().await;
    assert_eq!(run.tally.of(DriftKind::Deleted), 20, "the whole budget is left: {run:?}");
}

/// Two processes that share a store: the first is suspended for longer than its lease after its first group of
/// deletions, and continues after the second has done the work.
async fn a_process_that_was_suspended_during_its_deletions_deletes_no_more(fresh: Fresh) {
    let lease = Duration::from_secs(2);
    let world = World::new(fresh).await;
    let users = world.import(300);
    world.reconcile().await;
    delete(&world, &users[..90]);
    world.later().await;
    let deletes = Thresholds { count: 95, share: 0.0 };
    let named = |name: &str| Config { name: name.into(), lease, deletes, ..quick() };
    let pause = Duration::from_millis(20);
    world.kinde.set_fault(Fault::always(FaultKind::Slow { min: pause, max: pause }).on("user"));
    let store = Suspended::new(world.fresh.store.clone());
    let first =
        Reconciler::new(world.client(10), Arc::clone(&store) as Arc<dyn Store>, Clock::system(), named("a"));
    let tasks = TaskTracker::new();
    let run =
        tasks.spawn(async move { first.run(RunMode::Reconcile, &|_| {}, &CancellationToken::new()).await });
    let deadline = Instant::now() + DEADLINE;
    while live(&world).await == 300 {
        assert!(Instant::now() < deadline && !run.is_finished(), "no user is deleted");
    }
    store.suspend();
    assert!(live(&world).await > 210, "it is in the middle of its deletions");
    let second = world.reconciler(10, named("b"));
    second.wait_until_free().await.expect("the store answers");
    let took_over = second.run(RunMode::Reconcile, &|_| {}, &CancellationToken::new()).await;
    assert_eq!(took_over.expect("Kinde answers").outcome, Outcome::Complete);
    assert_eq!(live(&world).await, 210, "{}", world.fresh.name);
    let state =
        async |key: &str| world.fresh.store.state(key).await.expect("it answers").expect("stored").value;
    let (spent, scans) = (state("reconcile.deletions").await, state("reconcile.scans").await);
    store.resume();
    let ended = run.await.expect("no panic");
    assert!(matches!(ended, Err(Error::LeaseLost)), "{ended:?}");
    assert_eq!(state("reconcile.deletions").await, spent, "it draws no more");
    assert_eq!(state("reconcile.scans").await, scans, "it proves nothing");
    let drawn: u64 = spent["value"]["hours"]
        .as_object()
        .expect("a map")
        .values()
        .filter_map(serde_json::Value::as_u64)
        .sum();
    assert_eq!(drawn, 90, "each user is drawn once");
    let runs = second.history().await.expect("it answers").runs;
    let outcomes: Vec<&Outcome> = runs.iter().map(|run| &run.outcome).collect();
    assert_eq!(
        outcomes,
        [&Outcome::Complete, &Outcome::Cut, &Outcome::Complete],
        "its own is not stored again"
    );
}

async fn an_operator_approves_that_a_tenant_is_empty(fresh: Fresh) {
    let world = World::new(fresh).await;
    let first = world
        .run(RunMode::Reconcile)
        .await
        .expect("a tenant without users needs no approval before the first one");
    assert!(first.is_complete(), "{first:?}");
    let users = world.import(3);
    world.reconcile().await;
    delete(&world, &users[..2]);
    world.later().await;
    let early = world.run(RunMode::ApproveEmptyTenant).await;
    assert!(matches!(early, Err(Error::TenantNotEmpty)), "{early:?}");
    assert_eq!(live(&world).await, 3);
    delete(&world, &users[2..]);
    world.later().await;
    let refused = world.run(RunMode::Reconcile).await;
    let Err(refused @ Error::EmptyTenant) = refused else { panic!("{refused:?}") };
    assert!(refused.to_string().contains("--approve-empty-tenant"), "{refused}");
    assert_eq!(live(&world).await, 3, "{}", world.fresh.name);
    let run = world.run(RunMode::ApproveEmptyTenant).await.expect("Kinde answers");
    assert_eq!((run.tally.of(DriftKind::Deleted), live(&world).await), (3, 0), "{run:?}");
    // The approval was for this state: the next user is deleted by the same rules as any.
    let user = world.kinde.import_user(NewUser::named("new@example.com", "N", "U")).expect("new").id;
    world.reconcile().await;
    delete(&world, &[user]);
    world.later().await;
    assert!(matches!(world.run(RunMode::Reconcile).await, Err(Error::EmptyTenant)));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_user_of_a_round_of_checks_is_read_once() {
    let world = World::new(stores::embedded()).await;
    let users = world.import(10);
    world.reconcile().await;
    PendingChecks::request(&*world.fresh.store, &ids(&users)).await.expect("kept");
    let read = world.kinde.requests("user");
    assert!(!world.reconciler(10, quick()).run_pending_checks().await.expect("Kinde answers"));
    let canaries = 2;
    assert_eq!(world.kinde.requests("user") - read, 10 + canaries);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_changed_too_recently_is_counted_and_checked_again() {
    let world = World::new(stores::embedded()).await;
    let named = |n| NewUser::named(&format!("user{n}@example.com"), "First", "Last");
    let users: Vec<String> = (0..4).map(|n| world.kinde.create_user(named(n)).expect("new").id).collect();
    world.deliver(world.events()).await;
    delete(&world, &users[..1]);
    // Kinde's clock has whole seconds: the read may be as old as the last change.
    let mut settings = world.settings(10);
    settings.clock_allowance = Duration::from_mins(1);
    let client = kinde::management::Client::new(settings).expect("the emulator's own settings");
    let reconciler = Reconciler::new(client, world.fresh.store.clone(), Clock::system(), quick());
    for mode in [RunMode::DryRun, RunMode::Reconcile] {
        let run = reconciler.run(mode, &|_| {}, &CancellationToken::new()).await.expect("Kinde answers");
        assert_eq!(run.tally.of(DriftKind::TooRecent), 1, "{run:?}");
    }
    PendingChecks::request(&*world.fresh.store, &ids(&users[..1])).await.expect("kept");
    assert!(!reconciler.run_pending_checks().await.expect("Kinde answers"));
    let pending = async || PendingChecks::load(&*world.fresh.store).await.expect("it answers").users.len();
    assert_eq!((pending().await, live(&world).await), (1, 4), "the user is checked again later");
    world.later().await;
    assert!(!world.reconciler(10, quick()).run_pending_checks().await.expect("Kinde answers"));
    assert_eq!((pending().await, live(&world).await), (0, 3));
}
