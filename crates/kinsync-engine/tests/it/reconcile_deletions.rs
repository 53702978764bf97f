//! Users that Kinde no longer has, or seems not to have: which of them are deleted, held or restored.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use kinde::webhook::Scheme;
use kinde_emulator::{Fault, FaultKind, NewUser, UserEdit, config::Unknowns};
use kinsync_core::{UserDocument, UserId};
use kinsync_engine::{
    Clock,
    internal::{
        pending_checks::PendingChecks,
        queue::{Entry, Payload},
        reconcile::{
            Config, Error, Thresholds,
            record::{self, DriftKind, Outcome, RunMode},
        },
        scan_watermark::ScanWatermarks,
    },
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    reconcile::{World, quick, until_requested},
    stores::{self, Fresh, on_every_store},
};

on_every_store! {
    a_single_not_found_deletes_no_user
    an_unreadable_response_about_a_user_leaves_the_user_unchanged_and_stops_no_run
    an_empty_list_deletes_no_user
    many_deletions_are_held_until_an_operator_approves_them
    an_incomplete_list_holds_no_deletions
    a_user_made_after_the_scan_began_is_no_candidate
    two_reads_restore_a_user_that_kinsync_itself_deleted
    a_user_deleted_by_an_event_is_not_restored_by_a_list
    an_event_newer_than_the_deletion_requests_a_check
}

async fn a_single_not_found_deletes_no_user(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ids = world.import(11);
    world.reconcile().await;
    world.later().await;
    // The list leaves the eleventh out, and the first read of that user answers that it does not exist.
    world.kinde.set_fault(Fault::times(FaultKind::PaginationDrift { by: 1 }, 1));
    let absent = FaultKind::UserNotFound { status: 404, id: Some(ids[10].clone()) };
    world.kinde.set_fault(Fault::times(absent.clone(), 1));
    let run = world.reconcile().await;
    assert_eq!((run.tally.users, run.tally.of(DriftKind::Deleted)), (10, 0), "{}: {run:?}", world.fresh.name);
    let struck = world.kinde.faults().into_iter().find(|report| report.fault.kind == absent);
    assert_eq!(struck.map(|report| report.occurrences), Some(1), "one read was answered so");
    world.assert_equal("after one wrong response").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_deleted_during_a_scan_does_not_fail_the_canary_check() {
    let world = World::new(stores::embedded()).await;
    let ids = world.import(3);
    world.reconcile().await;
    world.kinde.delete_user(&ids[1], kinde_emulator::Profile::Remove).expect("there");
    world.later().await;
    for leaves in [&ids[0], &ids[2]] {
        world
            .kinde
            .set_fault(Fault::always(FaultKind::UserNotFound { status: 404, id: Some(leaves.clone()) }));
        let run = world.run(RunMode::DryRun).await.expect("Kinde answers");
        assert_eq!(run.tally.of(DriftKind::Deleted), 1, "{run:?}");
        world.kinde.clear_faults();
    }
}

async fn an_unreadable_response_about_a_user_leaves_the_user_unchanged_and_stops_no_run(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ids = world.import(12);
    world.reconcile().await;
    world.kinde.delete_user(&ids[3], kinde_emulator::Profile::Remove).expect("there");
    world.later().await;
    for (round, status) in [422, 500].into_iter().enumerate() {
        // The list leaves the last one out, and no read of that user gets a usable response.
        world.kinde.set_fault(Fault::times(FaultKind::PaginationDrift { by: 1 }, 1));
        let odd = FaultKind::UserNotFound { status, id: Some(ids[11].clone()) };
        world.kinde.set_fault(Fault::always(odd));
        let run = world.reconcile().await;
        let drift = [(DriftKind::Deleted, u64::from(round == 0)), (DriftKind::Undetermined, 1)];
        let drift: BTreeMap<_, _> = drift.into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(run.tally.drift, drift, "{}, {status}: {run:?}", world.fresh.name);
        assert!(!world.documents().await[&ids[11]].is_deleted);
        let scans = ScanWatermarks::load(&*world.fresh.store).await.expect("it answers");
        let unproven = scans.proof.expect("the other users are covered").unproven;
        let is_unlisted = |id: &&String| *id == &ids[11] || (round == 0 && *id == &ids[3]);
        let expected = ids.iter().filter(is_unlisted).map(|id| UserId::parse(id).expect("an id"));
        assert_eq!(unproven, expected.collect(), "nothing is proved of them");
        world.kinde.clear_faults();
    }
    world.assert_equal("after all that").await;
}

async fn an_empty_list_deletes_no_user(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ids = world.import(12);
    world.reconcile().await;
    // The list is empty: not even few users are deleted.
    world.kinde.set_fault(Fault::always(FaultKind::EmptyList));
    assert!(matches!(world.run(RunMode::Reconcile).await, Err(Error::EmptyTenant)));
    // It lists all but one, and answers every read of a single user with "does not exist".
    world.kinde.clear_faults();
    world.kinde.delete_user(&ids[0], kinde_emulator::Profile::Remove).expect("there");
    world.later().await;
    for status in [400, 404] {
        world.kinde.set_fault(Fault::always(FaultKind::UserNotFound { status, id: None }));
        let outcome = world.run(RunMode::Reconcile).await;
        assert!(matches!(outcome, Err(Error::CanariesUnknown)), "{outcome:?}");
        world.kinde.clear_faults();
    }
    let live = world.documents().await.values().filter(|user| !user.is_deleted).count();
    assert_eq!(live, 12, "{}", world.fresh.name);
    let runs = record::runs(&*world.fresh.store).await.expect("it answers");
    assert!(matches!(&runs[0].outcome, Outcome::Failed { reason } if reason.contains("as unknown")));
    let run = world.reconcile().await;
    assert_eq!(run.tally.of(DriftKind::Deleted), 1);
    world.assert_equal("after the storm").await;
}

async fn many_deletions_are_held_until_an_operator_approves_them(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ids = world.import(100);
    world.reconcile().await;
    for id in &ids[..30] {
        world.kinde.delete_user(id, kinde_emulator::Profile::Remove).expect("there");
    }
    let edit = UserEdit { first_name: Some("New".into()), ..UserEdit::default() };
    world.kinde.update_user(&ids[50], edit).expect("there");
    world.kinde.import_user(NewUser::named("new@example.com", "N", "U")).expect("new");
    world.later().await;
    let held = world.reconcile().await;
    let drift = [(DriftKind::Missing, 1), (DriftKind::Changed, 1), (DriftKind::DeletionHeld, 30)];
    assert_eq!(held.tally.drift, BTreeMap::from(drift), "the others flow: {held:?}");
    let live = |documents: BTreeMap<String, UserDocument>| {
        documents.values().filter(|user| !user.is_deleted).count()
    };
    assert_eq!(live(world.documents().await), 101);
    let wrong = world.run(RunMode::Approve("20200101-000000-0000".into())).await;
    assert!(matches!(wrong, Err(Error::NothingHeld { .. })), "{wrong:?}");
    let approved = world.run(RunMode::Approve(held.id.clone())).await.expect("Kinde answers");
    assert_eq!(approved.tally.drift, BTreeMap::from([(DriftKind::Deleted, 30)]), "{approved:?}");
    world.assert_equal("after the approval").await;
    assert_eq!(world.reconcile().await.tally.drift.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn held_deletions_are_not_counted_as_missed_again_and_the_first_alert_stays_valid() {
    let world = World::new(stores::embedded()).await;
    let ids = world.import(100);
    world.reconcile().await;
    let delete = |ids: &[String]| {
        for id in ids {
            world.kinde.delete_user(id, kinde_emulator::Profile::Remove).expect("there");
        }
    };
    delete(&ids[..30]);
    world.later().await;
    let first = world.reconcile().await;
    let second = world.reconcile().await;
    for run in [&first, &second] {
        assert_eq!((run.tally.of(DriftKind::DeletionHeld), run.tally.missed()), (30, 0), "{run:?}");
    }
    // One more: that is another decision.
    delete(&ids[30..31]);
    world.later().await;
    let third = world.reconcile().await;
    assert_eq!(third.tally.of(DriftKind::DeletionHeld), 31, "{third:?}");
    let refused = world.run(RunMode::Approve(second.id)).await;
    assert!(matches!(refused, Err(Error::NothingHeld { .. })), "{refused:?}");
    let fourth = world.reconcile().await;
    assert_eq!(fourth.tally.of(DriftKind::DeletionHeld), 31, "{fourth:?}");
    let approved = world.run(RunMode::Approve(third.id)).await.expect("Kinde answers");
    assert_eq!(approved.tally.drift, BTreeMap::from([(DriftKind::Deleted, 31)]), "{approved:?}");
    world.assert_equal("after the approval").await;
}

async fn an_incomplete_list_holds_no_deletions(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ids = world.import(100);
    world.reconcile().await;
    // One user is really deleted.
    world.kinde.delete_user(&ids[50], kinde_emulator::Profile::Remove).expect("there");
    world.later().await;
    world.kinde.set_fault(Fault::times(FaultKind::PaginationDrift { by: 60 }, 1));
    let outcome = world.run(RunMode::Reconcile).await;
    assert!(matches!(outcome, Err(Error::ListIncomplete)), "{}: {outcome:?}", world.fresh.name);
    let live = world.documents().await.values().filter(|user| !user.is_deleted).count();
    assert_eq!(live, 100);
    assert_eq!(world.reconcile().await.tally.of(DriftKind::Deleted), 1);
    world.assert_equal("after a whole list").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_covers_the_held_users_only() {
    let world = World::new(stores::embedded()).await;
    let ids = world.import(100);
    world.reconcile().await;
    for id in &ids[..30] {
        world.kinde.delete_user(id, kinde_emulator::Profile::Remove).expect("there");
    }
    world.later().await;
    let held = world.reconcile().await;
    for id in &ids[30..60] {
        world.kinde.delete_user(id, kinde_emulator::Profile::Remove).expect("there");
    }
    world.later().await;
    let approved = world.run(RunMode::Approve(held.id)).await.expect("Kinde answers");
    assert_eq!(
        approved.tally.drift,
        BTreeMap::from([(DriftKind::Deleted, 30), (DriftKind::DeletionHeld, 30)]),
        "{approved:?}"
    );
    let documents = world.documents().await;
    assert!(ids[..30].iter().all(|id| documents[id].is_deleted));
    assert!(ids[30..].iter().all(|id| !documents[id].is_deleted));
}

#[tokio::test]
async fn thresholds_hold_what_exceeds_both() {
    let config = Config { deletes: Thresholds { count: 2, share: 0.5 }, ..quick() };
    for (users, absent, held) in [(10, 2, 0), (10, 5, 0), (10, 6, 6), (3, 1, 0), (3, 2, 2)] {
        let world = World::new(stores::embedded()).await;
        let ids = world.import(users);
        world.reconcile().await;
        for id in &ids[..absent] {
            world.kinde.delete_user(id, kinde_emulator::Profile::Remove).expect("there");
        }
        world.later().await;
        let reconciler = world.reconciler(10, config.clone());
        let run =
            reconciler.run(RunMode::Reconcile, &|_| {}, &CancellationToken::new()).await.expect("it answers");
        assert_eq!(run.tally.of(DriftKind::DeletionHeld), held, "{absent} of {users}: {run:?}");
        assert_eq!(run.tally.of(DriftKind::Deleted), absent as u64 - held);
    }
}

async fn a_user_made_after_the_scan_began_is_no_candidate(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ids = world.import(5);
    let imported = Instant::now();
    world.reconcile().await;
    // A replica of Kinde's that lags: neither its list nor its single reads know the new user.
    // Longer than the scan takes on a busy machine.
    let lag = Duration::from_secs(10);
    tokio::time::sleep_until(imported + lag).await;
    world.kinde.set_fault(Fault::always(FaultKind::StaleReplica { lag }));
    let held = world.kinde.hold("users", 1);
    let requested = world.kinde.requests("users");
    let reconciler = world.reconciler(2, quick());
    let stop = CancellationToken::new();
    let meanwhile = async {
        until_requested(&world, "users", requested).await;
        let new = world.kinde.create_user(NewUser::named("new@example.com", "N", "U")).expect("new").id;
        world.deliver(world.events()).await;
        drop(held);
        new
    };
    let (run, new) = tokio::join!(reconciler.run(RunMode::Reconcile, &|_| {}, &stop), meanwhile);
    let run = run.expect("Kinde answers");
    assert_eq!((run.tally.of(DriftKind::Deleted), run.tally.users), (0, ids.len() as u64), "{run:?}");
    assert!(!world.documents().await[&new].is_deleted, "{}", world.fresh.name);
}

async fn two_reads_restore_a_user_that_kinsync_itself_deleted(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ids = world.import(8);
    world.reconcile().await;
    // Kinde hides one user for a while, in the list and alone: the worst of answers.
    world.kinde.set_fault(Fault::always(FaultKind::PaginationDrift { by: 1 }).on("users"));
    let reconciler = world.reconciler(4, quick());
    let stop = CancellationToken::new();
    let hidden = ids[4].clone();
    _ = reconciler.run(RunMode::Reconcile, &|_| {}, &stop).await.expect("Kinde answers");
    assert!(!world.documents().await[&hidden].is_deleted, "a single read shows the user");
    world.kinde.clear_faults();
    let absent = kinsync_core::Observation {
        user: UserId::parse(&hidden).expect("an id"),
        version: kinsync_core::Version::snapshot(Clock::system().now(), "gone"),
        source: kinsync_core::Source::Reconcile,
        what: kinsync_core::What::Deleted,
    };
    let now = Clock::system().now();
    kinsync_engine::internal::apply::apply(&*world.fresh.store, [absent], now).await.expect("it answers");
    assert!(world.documents().await[&hidden].is_deleted);
    world.later().await;
    let run = world.reconcile().await;
    assert_eq!(run.tally.drift, BTreeMap::from([(DriftKind::Restored, 1)]), "{run:?}");
    world.assert_equal("after the run").await;
}

async fn a_user_deleted_by_an_event_is_not_restored_by_a_list(fresh: Fresh) {
    let unknowns = Unknowns { list_includes_deleted: true, ..Default::default() };
    let config = kinde_emulator::Config { unknowns, ..Default::default() };
    let world = World::with(fresh, config).await;
    let id = world.kinde.create_user(NewUser::named("ada@example.com", "Ada", "L")).expect("new").id;
    world.kinde.create_user(NewUser::named("eve@example.com", "Eve", "L")).expect("new");
    world.kinde.delete_user(&id, kinde_emulator::Profile::Keep).expect("there");
    world.deliver(world.events()).await;
    world.later().await;
    let run = world.reconcile().await;
    assert_eq!(run.tally.of(DriftKind::ListedAfterDeletion), 1, "{run:?}");
    assert!(world.documents().await[&id].is_deleted, "{}", world.fresh.name);
    let user = UserId::parse(&id).expect("an id");
    PendingChecks::request(&*world.fresh.store, &[user]).await.expect("kept");
    world.reconciler(10, quick()).run_pending_checks().await.expect("Kinde answers");
    assert!(world.documents().await[&id].is_deleted, "{}: nor by a requested check", world.fresh.name);
}

async fn an_event_newer_than_the_deletion_requests_a_check(fresh: Fresh) {
    let world = World::new(fresh).await;
    world.import(2);
    let id = world.kinde.create_user(NewUser::named("ada@example.com", "Ada", "L")).expect("new").id;
    let mut events = world.events();
    // A false deletion with a valid signature, and a newer event.
    let deleted = format!(
        r#"{{"type":"user.deleted","event_id":"event_false","timestamp":"{}","data":{{"user":{{"id":"{id}"}}}}}}"#,
        kinsync_testing::wall_clock()
    );
    let body = Bytes::from(deleted);
    let payload = Payload::Delivery { scheme: Scheme::KindeJwt, signed_at: None, body };
    events.push(Entry { event_id: "event_false".into(), payload, ..events[0].clone() });
    let edit = UserEdit { first_name: Some("New".into()), ..UserEdit::default() };
    world.kinde.update_user(&id, edit).expect("there");
    world.deliver(events).await;
    assert!(world.documents().await[&id].is_deleted);
    world.deliver(world.events()).await;
    assert!(world.documents().await[&id].is_deleted, "an event alone never restores");
    world.later().await;
    let reconciler = world.reconciler(10, quick());
    assert!(!reconciler.run_pending_checks().await.expect("Kinde answers"));
    assert!(!world.documents().await[&id].is_deleted, "{}: two reads do", world.fresh.name);
    // The reverse: a check of a user deleted at Kinde. Most of the users are never deleted.
    world.reconcile().await;
    world.kinde.delete_user(&id, kinde_emulator::Profile::Remove).expect("there");
    let user = UserId::parse(&id).expect("an id");
    PendingChecks::request(&*world.fresh.store, &[user]).await.expect("kept");
    world.later().await;
    assert!(!reconciler.run_pending_checks().await.expect("Kinde answers"));
    assert!(world.documents().await[&id].is_deleted);
}
