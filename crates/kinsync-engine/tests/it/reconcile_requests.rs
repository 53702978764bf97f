//! What an operator requests is kept until it is done, whatever happens to the process that does it.

use std::time::Duration;

use kinde_emulator::{Fault, FaultKind, NewUser, Profile};
use kinsync_core::UserId;
use kinsync_engine::internal::{
    pending_checks::{Approval, PendingChecks},
    reconcile::record::{DriftKind, Outcome},
};
use tokio::time::Instant;

use crate::{
    reconcile::{DEADLINE, World, quick},
    reconcile_schedule::{often, start},
    stores::{Fresh, on_every_store},
};

on_every_store! {
    a_request_survives_the_end_of_the_process_that_carries_it_out
    a_scan_requested_during_a_scan_runs_after_it
    two_live_users_with_one_address_are_both_checked
}

async fn pending(world: &World) -> PendingChecks {
    PendingChecks::load(&*world.fresh.store).await.expect("the store answers")
}

/// Waits for a request for users to Kinde.
async fn until_scanning(world: &World, before: u64) {
    let deadline = Instant::now() + DEADLINE;
    while world.kinde.requests("users") <= before {
        assert!(Instant::now() < deadline, "no scan begins");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn a_request_survives_the_end_of_the_process_that_carries_it_out(fresh: Fresh) {
    let world = World::new(fresh).await;
    let users = world.import(60);
    world.reconcile().await;
    for user in &users[..30] {
        world.kinde.delete_user(user, Profile::Remove).expect("there");
    }
    world.later().await;
    let held = world.reconcile().await.id;
    let approval = Approval::Run(held);
    PendingChecks::approve(&*world.fresh.store, &approval).await.expect("kept");
    let slow = Fault::always(FaultKind::Slow { min: DEADLINE, max: DEADLINE }).on("users");
    world.kinde.set_fault(slow);
    let requested = world.kinde.requests("users");
    let working = start(world.reconciler(10, quick()), often());
    until_scanning(&world, requested).await;
    assert_eq!(pending(&world).await.scan.and_then(|scan| scan.approves), Some(approval.clone()));
    // Its tasks end at once, as those of a killed process: nothing is stored any more.
    working.kill().await;
    assert_eq!(pending(&world).await.scan.and_then(|scan| scan.approves), Some(approval));
    world.kinde.clear_faults();
    let runs = world.reconciler(10, quick()).history().await.expect("it answers").runs;
    assert_eq!(runs[0].outcome, Outcome::Running, "the lease of the killed process may still be valid");
    let quick = kinsync_engine::internal::reconcile::Config { lease: Duration::from_millis(500), ..quick() };
    let next = world.reconciler(10, quick);
    next.wait_until_free().await.expect("it expires");
    let runs = next.history().await.expect("it answers").runs;
    assert_eq!(runs[0].outcome, Outcome::Cut, "without another run");
    let _working = start(next, often());
    let deadline = Instant::now() + DEADLINE;
    while pending(&world).await != PendingChecks::default() {
        assert!(Instant::now() < deadline, "it is carried out");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let live = world.documents().await.values().filter(|user| !user.is_deleted).count();
    assert_eq!(live, 30, "{}", world.fresh.name);
}

async fn a_scan_requested_during_a_scan_runs_after_it(fresh: Fresh) {
    let world = World::new(fresh).await;
    world.import(3);
    world.reconcile().await;
    let store = &*world.fresh.store;
    PendingChecks::request_scan(store).await.expect("kept");
    let held = world.kinde.hold("users", 1);
    let requested = world.kinde.requests("users");
    let _working = start(world.reconciler(10, quick()), often());
    until_scanning(&world, requested).await;
    PendingChecks::request_scan(store).await.expect("kept");
    drop(held);
    let deadline = Instant::now() + DEADLINE;
    while pending(&world).await != PendingChecks::default() {
        assert!(Instant::now() < deadline, "both are done");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let runs = world.reconciler(10, quick()).history().await.expect("it answers").runs;
    assert_eq!(runs.len(), 3, "{}: {runs:?}", world.fresh.name);
    assert_eq!(runs[0].tally.of(DriftKind::Missing), 0);
}

/// The deletion of a user is lost, and the same person signs up again.
async fn two_live_users_with_one_address_are_both_checked(fresh: Fresh) {
    let world = World::new(fresh).await;
    world.import(3);
    let named = || NewUser::named("sam@example.com", "Sam", "S");
    let old = world.kinde.create_user(named()).expect("new").id;
    world.deliver(world.events()).await;
    world.reconcile().await;
    let known = world.events().len();
    world.kinde.delete_user(&old, Profile::Remove).expect("there");
    let lost = world.events().len();
    let new = world.kinde.create_user(named()).expect("the address is free").id;
    assert!(lost > known);
    world.later().await;
    world.deliver(world.events().split_off(lost)).await;
    assert_eq!(
        world.documents().await[&new].email,
        None,
        "{}: nothing is known of the deletion",
        world.fresh.name
    );
    let users = pending(&world).await.users;
    let mut both = [&*old, &*new];
    both.sort_unstable();
    assert_eq!(users.keys().map(UserId::as_str).collect::<Vec<_>>(), both);
    assert!(!world.reconciler(10, quick()).run_pending_checks().await.expect("Kinde answers"));
    let documents = world.documents().await;
    assert!(documents[&old].is_deleted, "{}", world.fresh.name);
    assert_eq!(documents[&new].email.as_deref(), Some("sam@example.com"));
    assert_eq!(documents[&new].email_conflict, None);
    assert!(pending(&world).await.users.is_empty(), "an old conflict requests nothing");
}
