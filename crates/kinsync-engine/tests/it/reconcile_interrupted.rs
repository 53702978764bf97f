//! Backfills, scans and checks that are interrupted, or requested while another one runs.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use kinde_emulator::{Fault, FaultKind, config::Generated};
use kinsync_core::{Field, Micros, Observation, Profile, Source, UserId, Version, What};
use kinsync_engine::{
    Clock,
    internal::{
        apply::apply,
        pending_checks::PendingChecks,
        reconcile::{
            Config, Error, Reconciler,
            record::{self, Outcome, Run, RunMode, Tally},
        },
    },
};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    reconcile::{DEADLINE, World, quick, until_requested},
    stores::{self, Fresh, on_every_store},
};

on_every_store! {
    an_interrupted_backfill_resumes_at_its_checkpoint
    a_backfill_interrupted_long_ago_starts_again
    an_interrupted_backfill_with_an_empty_next_page_starts_again
    one_scan_runs_at_a_time_and_another_process_takes_over_after_a_kill
    a_process_that_waits_for_a_scan_begins_soon_after_its_end
    the_second_read_of_a_user_without_a_recent_change_waits_for_no_replica
}

async fn an_interrupted_backfill_resumes_at_its_checkpoint(fresh: Fresh) {
    let generated = Generated { users: 6_300, seed: 3, ..Generated::default() };
    let config = kinde_emulator::Config { generated, ..Default::default() };
    let world = World::with(fresh, config).await;
    let (mut cuts, written) = (0, AtomicU64::new(0));
    let run = loop {
        // Cut as soon as more was written than before.
        let stop = CancellationToken::new();
        let cut = |tally: &Tally| {
            if tally.users < 6_300 && tally.pages > written.fetch_max(tally.pages, Ordering::SeqCst) {
                stop.cancel();
            }
        };
        match world.reconciler(100, quick()).run(RunMode::Backfill, &cut, &stop).await {
            Ok(run) => break run,
            Err(Error::Stopped) => cuts += 1,
            Err(error) => panic!("{error:?}"),
        }
        assert!(cuts < 30, "it continues");
    };
    assert!(cuts > 2, "{cuts}");
    assert_eq!((run.outcome.clone(), run.tally.users), (Outcome::Resumed, 6_300), "{run:?}");
    // 63 pages; what was fetched and not written is fetched again: four batches of five pages and the page in
    // flight at each cut, at most.
    let fetched = world.kinde.requests("users");
    assert!(fetched <= 63 + cuts * 21, "{fetched} pages after {cuts} cuts");
    world.assert_equal("after the backfill").await;
    let again = world.run(RunMode::Backfill).await.expect("Kinde answers");
    assert_eq!(
        (again.outcome, again.tally.unchanged),
        (Outcome::Complete, 6_300),
        "nothing is left of the cut"
    );
}

/// Cuts a backfill of this tenant in the middle.
async fn cut_backfill(world: &World) {
    let stop = CancellationToken::new();
    let cut = |_: &Tally| stop.cancel();
    let outcome = world.reconciler(100, quick()).run(RunMode::Backfill, &cut, &stop).await;
    assert!(matches!(outcome, Err(Error::Stopped)), "{outcome:?}");
}

async fn a_backfill_interrupted_long_ago_starts_again(fresh: Fresh) {
    let generated = Generated { users: 4_500, seed: 3, ..Generated::default() };
    let world = World::with(fresh, kinde_emulator::Config { generated, ..Default::default() }).await;
    cut_backfill(&world).await;
    let later = Clock::from_fn(|| kinsync_core::Micros(Clock::system().now().0 + 13 * 3_600_000_000));
    let reconciler = Reconciler::new(world.client(100), world.fresh.store.clone(), later, quick());
    let run = reconciler.run(RunMode::Backfill, &|_| {}, &CancellationToken::new()).await;
    let run = run.expect("Kinde answers");
    assert_eq!((run.outcome, run.tally.users), (Outcome::Complete, 4_500), "{}", world.fresh.name);
    assert!(run.tally.unchanged >= 500, "users compared before are compared again");
}

async fn an_interrupted_backfill_with_an_empty_next_page_starts_again(fresh: Fresh) {
    let generated = Generated { users: 4_500, seed: 3, ..Generated::default() };
    let world = World::with(fresh, kinde_emulator::Config { generated, ..Default::default() }).await;
    cut_backfill(&world).await;
    world.kinde.set_fault(Fault::times(FaultKind::EmptyList, 1));
    let run = world.run(RunMode::Backfill).await.expect("Kinde answers");
    assert_eq!((run.outcome, run.tally.users), (Outcome::Complete, 4_500), "{}", world.fresh.name);
    world.assert_equal("after the backfill").await;
}

async fn one_scan_runs_at_a_time_and_another_process_takes_over_after_a_kill(fresh: Fresh) {
    // Longer than a busy machine leaves a task unscheduled.
    let lease = Duration::from_secs(4);
    let world = World::new(fresh).await;
    world.import(3);
    let named = |name: &str| Config { name: name.into(), lease, ..quick() };
    let (first, second) = (world.reconciler(10, named("first")), world.reconciler(10, named("second")));
    world.kinde.set_fault(Fault::always(FaultKind::Slow { min: DEADLINE, max: DEADLINE }).on("users"));
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let scan = {
        let (first, stop) = (first.clone(), stop.clone());
        tasks.spawn(async move { first.run(RunMode::Reconcile, &|_| {}, &stop).await })
    };
    let held = |runs: &[Run]| runs.first().is_some_and(|run| run.outcome == Outcome::Running);
    let deadline = Instant::now() + DEADLINE;
    while !held(&record::runs(&*world.fresh.store).await.expect("it answers")) {
        assert!(Instant::now() < deadline, "the first one does not begin");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Alive, it keeps the lease for as long as it scans.
    let since = Instant::now();
    while since.elapsed() < lease * 2 {
        let refused = second.run(RunMode::Reconcile, &|_| {}, &stop).await;
        assert!(matches!(&refused, Err(Error::Busy { holder }) if holder == "first"), "{refused:?}");
        tokio::time::sleep(lease / 8).await;
    }
    // Killed, it does not.
    scan.abort();
    _ = scan.await;
    world.kinde.clear_faults();
    let killed = Instant::now();
    let run = loop {
        match second.run(RunMode::Reconcile, &|_| {}, &stop).await {
            Ok(run) => break run,
            Err(Error::Busy { .. }) => tokio::time::sleep(lease / 8).await,
            Err(error) => panic!("{error:?}"),
        }
        assert!(killed.elapsed() < DEADLINE, "{}: no process takes over", world.fresh.name);
    };
    assert_eq!(run.outcome, Outcome::Complete);
    let runs = record::runs(&*world.fresh.store).await.expect("it answers");
    assert_eq!(runs[1].outcome, Outcome::Cut, "the interrupted run is recorded");
    // Given back, it is free at once.
    first.run(RunMode::Reconcile, &|_| {}, &stop).await.expect("the lease is free");
}

async fn a_process_that_waits_for_a_scan_begins_soon_after_its_end(fresh: Fresh) {
    let world = World::new(fresh).await;
    world.import(3);
    let slow = Duration::from_millis(400);
    world.kinde.set_fault(Fault::times(FaultKind::Slow { min: slow, max: slow }, 1).on("users"));
    // Much longer than the pauses of the wait.
    let config = Config { lease: DEADLINE, ..quick() };
    let (first, second) = (world.reconciler(10, config.clone()), world.reconciler(10, config));
    let (stop, requested) = (CancellationToken::new(), world.kinde.requests("users"));
    let scan = async {
        first.run(RunMode::Reconcile, &|_| {}, &stop).await.expect("Kinde answers");
        Instant::now()
    };
    let wait = async {
        until_requested(&world, "users", requested).await;
        second.wait_until_free().await.expect("the store answers");
        Instant::now()
    };
    let (ended, free) = tokio::join!(scan, wait);
    let late = free.saturating_duration_since(ended);
    assert!(late < DEADLINE / 2, "{}: free {late:?} after the end", world.fresh.name);
}

async fn the_second_read_of_a_user_without_a_recent_change_waits_for_no_replica(fresh: Fresh) {
    let world = World::new(fresh).await;
    world.import(2);
    world.reconcile().await;
    let deleted = UserId::parse("kp_deleted").expect("an id");
    let seen = Observation {
        user: deleted.clone(),
        version: Version::event(Micros(1), "created"),
        source: Source::Webhook,
        what: What::Fields(Profile::new().with(Field::FirstName, "Ada")),
    };
    apply(&*world.fresh.store, [seen], Clock::system().now()).await.expect("the store answers");
    PendingChecks::request(&*world.fresh.store, &[deleted]).await.expect("kept");
    let reconciler = world.reconciler(10, Config { replica_lag: 2 * DEADLINE, ..quick() });
    let checked = tokio::time::timeout(DEADLINE, reconciler.run_pending_checks()).await;
    checked.expect("it waits for no replica").expect("Kinde answers");
    assert!(world.row("kp_deleted").await.document().is_deleted, "{}", world.fresh.name);
}

#[tokio::test]
async fn a_check_requested_during_a_check_runs_again() {
    let world = World::new(stores::embedded()).await;
    let id = UserId::parse(&world.import(1)[0]).expect("an id");
    let store = &*world.fresh.store;
    PendingChecks::request(store, std::slice::from_ref(&id)).await.expect("kept");
    let held = world.kinde.hold("user", 1);
    let reconciler = world.reconciler(10, quick());
    let again = async {
        until_requested(&world, "user", 0).await;
        PendingChecks::request(store, std::slice::from_ref(&id)).await.expect("kept");
        drop(held);
    };
    let (answered, ()) = tokio::join!(reconciler.run_pending_checks(), again);
    assert!(!answered.expect("Kinde answers"));
    let waits = async || PendingChecks::load(store).await.expect("it answers").users.len();
    assert_eq!(waits().await, 1);
    reconciler.run_pending_checks().await.expect("Kinde answers");
    assert_eq!(waits().await, 0);
}

#[tokio::test]
async fn too_many_pending_checks_become_one_scan() {
    let fresh = stores::embedded();
    let users: Vec<UserId> = (0..1001).filter_map(|n| UserId::parse(&format!("kp_{n}")).ok()).collect();
    PendingChecks::request(&*fresh.store, &users[..1000]).await.expect("kept");
    PendingChecks::request(&*fresh.store, &users[..1000]).await.expect("kept");
    let checks = PendingChecks::load(&*fresh.store).await.expect("it answers");
    assert_eq!((checks.users.len(), checks.scan.is_some()), (1000, false), "two requests are one");
    PendingChecks::request(&*fresh.store, &users).await.expect("kept");
    let checks = PendingChecks::load(&*fresh.store).await.expect("it answers");
    assert_eq!((checks.users.len(), checks.scan.is_some()), (0, true));
}
