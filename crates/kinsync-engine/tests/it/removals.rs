//! Memberships that the list of users lacks: removed, held, or left, on both stores.

use std::collections::BTreeSet;

use kinde_emulator::{Fault, FaultKind};
use kinsync_engine::internal::reconcile::record::{DriftKind, RunMode};

use crate::{
    reconcile::{World, quick, until_requested},
    roles::join,
    stores::{Fresh, on_every_store},
};

on_every_store! {
    a_third_of_the_members_missing_in_the_list_of_users_is_held_until_an_approval
    a_few_members_that_left_are_removed_by_the_next_scan
    many_small_rounds_remove_no_more_than_one_large_one
    members_that_a_single_read_finds_keep_their_membership
    members_stay_while_no_single_read_of_them_is_usable
}

fn leave(world: &World, users: &[String]) {
    for user in users {
        world.kinde.remove_from_organization(user, "org_1").expect("a member");
    }
}

async fn members(world: &World) -> BTreeSet<String> {
    let is_member = |document: &kinsync_core::UserDocument| {
        document.organizations.iter().flatten().any(|one| one.code == "org_1")
    };
    world
        .documents()
        .await
        .into_iter()
        .filter(|(_, document)| is_member(document))
        .map(|(id, _)| id)
        .collect()
}

async fn with_members(fresh: Fresh, count: usize) -> (World, Vec<String>) {
    let world = World::new(fresh).await;
    let users = world.import(count);
    for user in &users {
        join(&world, user, &[]);
    }
    world.later().await;
    world.reconcile().await;
    assert_eq!(members(&world).await.len(), count);
    (world, users)
}

async fn a_third_of_the_members_missing_in_the_list_of_users_is_held_until_an_approval(fresh: Fresh) {
    let (world, users) = with_members(fresh, 80).await;
    leave(&world, &users[..25]);
    world.kinde.add_to_organization(&users[0], "org_2", &[], &[]).expect("a user");
    world.later().await;
    let dry = world.run(RunMode::DryRun).await.expect("Kinde answers");
    assert_eq!((dry.tally.of(DriftKind::RemovalHeld), members(&world).await.len()), (25, 80), "{dry:?}");
    let held = world.reconcile().await;
    assert_eq!(
        (held.tally.of(DriftKind::RemovalHeld), held.tally.of(DriftKind::Changed)),
        (25, 0),
        "{held:?}"
    );
    assert_eq!(members(&world).await.len(), 80, "{}", world.fresh.name);
    let codes =
        world.documents().await.remove(&users[0]).and_then(|user| user.organizations).expect("listed");
    assert!(codes.iter().any(|one| one.code == "org_2"), "everything else takes effect");
    // Two reads within one second have no order.
    world.later().await;
    let again = world.reconcile().await;
    assert_eq!(again.tally.of(DriftKind::RemovalHeld), 25, "held, however often the list repeats it");
    world.later().await;
    let approved = world.run(RunMode::Approve(held.id)).await.expect("Kinde answers");
    assert_eq!((approved.tally.of(DriftKind::RemovalHeld), approved.tally.of(DriftKind::Changed)), (0, 25));
    assert_eq!(members(&world).await, users[25..].iter().cloned().collect());
}

async fn a_few_members_that_left_are_removed_by_the_next_scan(fresh: Fresh) {
    let (world, users) = with_members(fresh, 12).await;
    leave(&world, &users[..3]);
    world.later().await;
    let run = world.reconcile().await;
    assert_eq!((run.tally.of(DriftKind::Changed), run.tally.missed()), (3, 3), "{run:?}");
    assert_eq!(members(&world).await, users[3..].iter().cloned().collect());
    world.later().await;
    assert_eq!(world.reconcile().await.tally.of(DriftKind::Changed), 0);
}

async fn many_small_rounds_remove_no_more_than_one_large_one(fresh: Fresh) {
    let (world, users) = with_members(fresh, 60).await;
    for round in users[..40].chunks(10) {
        leave(&world, round);
        world.later().await;
        world.reconcile().await;
    }
    assert_eq!(members(&world).await.len(), 40, "{}", world.fresh.name);
}

async fn members_that_a_single_read_finds_keep_their_membership(fresh: Fresh) {
    let (world, users) = with_members(fresh, 30).await;
    leave(&world, &users[..4]);
    world.later().await;
    let mut held = world.kinde.hold("users", 1);
    let listed = world.kinde.requests("users");
    let reconciler = world.reconciler(10, quick());
    let rejoin = async {
        // The pages with the first users were sent, and the last one was not.
        for page in 0..2 {
            until_requested(&world, "users", listed + page).await;
            held = world.kinde.hold("users", 1);
        }
        until_requested(&world, "users", listed + 2).await;
        for user in &users[..4] {
            join(&world, user, &[]);
        }
        drop(held);
    };
    let stop = tokio_util::sync::CancellationToken::new();
    let (run, ()) = tokio::join!(reconciler.run(RunMode::Reconcile, &|_| {}, &stop), rejoin);
    let run = run.expect("Kinde answers");
    assert_eq!(run.tally.of(DriftKind::Changed), 0, "{run:?}");
    assert_eq!(members(&world).await.len(), 30, "{}", world.fresh.name);
}

async fn members_stay_while_no_single_read_of_them_is_usable(fresh: Fresh) {
    let (world, users) = with_members(fresh, 12).await;
    leave(&world, &users[..3]);
    let unknown = FaultKind::UserNotFound { status: 404, id: None };
    for fault in [FaultKind::Status { status: 400 }, unknown] {
        world.later().await;
        world.kinde.set_fault(Fault::always(fault.clone()).on("user"));
        let run = world.reconcile().await;
        world.kinde.clear_faults();
        let counted = (run.tally.of(DriftKind::Undetermined), run.tally.of(DriftKind::Changed));
        assert_eq!(counted, (3, 0), "{fault:?}: {run:?}");
        assert_eq!(members(&world).await.len(), 12, "{}: {fault:?}", world.fresh.name);
    }
    // One usable read is enough.
    world.later().await;
    world.kinde.set_fault(Fault::times(FaultKind::Status { status: 400 }, 2).on("user"));
    let run = world.reconcile().await;
    assert_eq!(run.tally.of(DriftKind::Changed), 3, "{run:?}");
    assert_eq!(members(&world).await, users[3..].iter().cloned().collect(), "{}", world.fresh.name);
}
