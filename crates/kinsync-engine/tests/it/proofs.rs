//! What a scan proves and what it does not, with wrong clocks and incomplete lists: against the emulator.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kinde::{management::Client, webhook::Scheme};
use kinde_emulator::{Fault, FaultKind, NewUser, UserEdit, config::Generated};
use kinsync_core::{Field, Micros, Observation, Profile, Source, UserId, Version, What};
use kinsync_engine::{
    Clock,
    internal::{
        apply::apply,
        pending_checks::PendingChecks,
        queue::{Entry, Payload},
        reconcile::{
            Config, Error, Reconciler,
            record::{DriftKind, Run, RunMode},
        },
        scan_watermark::{ScanWatermark, ScanWatermarks},
        state_records::Term,
        store::Store,
    },
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    reconcile::{DEADLINE, World, quick, until_requested},
    stores::{Fresh, on_every_store},
    suspended::Suspended,
};

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// A clock that is ahead by this many microseconds; negative if it is behind.
fn ahead(micros: i64) -> Clock {
    Clock::from_fn(move || Micros(Clock::system().now().0 + micros))
}

/// A reconciler on a machine with a clock that is ahead.
fn reconciler_ahead(world: &World, micros: i64) -> Reconciler {
    let mut settings = world.settings(10);
    let by = jiff::SignedDuration::from_micros(micros);
    settings.clock = kinde::Clock::new(move || kinsync_testing::wall_clock() + by);
    let client = Client::new(settings).expect("the emulator's own settings");
    Reconciler::new(client, world.fresh.store.clone(), ahead(micros), quick())
}

async fn run(reconciler: &Reconciler) -> Run {
    let stop = CancellationToken::new();
    reconciler.run(RunMode::Reconcile, &|_| {}, &stop).await.expect("Kinde and the store answer")
}

async fn checks(world: &World) -> PendingChecks {
    PendingChecks::load(&*world.fresh.store).await.expect("the store answers")
}

fn user(id: &str) -> UserId {
    UserId::parse(id).expect("an id")
}

fn rename(name: &str) -> UserEdit {
    UserEdit { first_name: Some(name.into()), ..UserEdit::default() }
}

/// An event about this user, `ago` microseconds ago.
fn event(id: &str, name: &str, ago: i64) -> Entry {
    let event_id = format!("event_{name}");
    let at = kinsync_testing::wall_clock() - jiff::SignedDuration::from_micros(ago);
    let payload = serde_json::json!({
        "type": "user.updated", "event_id": event_id, "timestamp": at.to_string(),
        "data": { "user": { "id": id, "first_name": name } },
    });
    let payload = Payload::Delivery {
        scheme: Scheme::KindeJwt,
        signed_at: None,
        body: Bytes::from(payload.to_string()),
    };
    Entry { event_id, received_at: Clock::system().now(), payload }
}

on_every_store! {
    a_scan_proves_nothing_about_a_user_that_its_list_leaves_out
    events_about_a_user_first_stored_during_a_scan_apply_in_order_with_any_clocks
    a_difference_that_cannot_be_ordered_is_never_unchanged
    a_difference_from_the_time_of_the_scan_is_repaired_by_the_same_run
    a_user_stored_while_the_clock_was_ahead_is_deleted_by_the_next_scan
    a_scan_with_a_clock_ahead_makes_no_later_event_stale
    a_newer_change_of_another_field_keeps_the_proof
    a_process_that_was_suspended_during_its_scan_announces_and_proves_nothing_more
    a_scan_under_an_outdated_lease_proves_nothing
    proofs_and_deletions_reach_beyond_one_batch
    a_false_not_found_about_a_listed_user_deletes_no_user
    without_dates_a_scan_repairs_and_deletes_later_but_right
}

async fn a_scan_proves_nothing_about_a_user_that_its_list_leaves_out(fresh: Fresh) {
    let world = World::new(fresh).await;
    let id = world.import(11).pop().expect("the one on the last page");
    world.reconcile().await;
    world.kinde.suspend(&id).expect("there");
    let late = world.events();
    world.later().await;
    // The list leaves the eleventh user out, and a profile read is stored during the scan: no single read decides.
    world.kinde.set_fault(Fault::times(FaultKind::PaginationDrift { by: 1 }, 1));
    let held = world.kinde.hold("users", 1);
    let requested = world.kinde.requests("users");
    let profile_read = async {
        until_requested(&world, "users", requested).await;
        let now = Clock::system().now();
        let profile = Profile::new().with(Field::Picture, "https://example.com/new.png");
        let observation = Observation {
            user: user(&id),
            version: Version::snapshot(Micros(now.0 + SECOND), "profile"),
            source: Source::Profile,
            what: What::Fields(profile),
        };
        apply(&*world.fresh.store, [observation], now).await.expect("the store answers");
        drop(held);
    };
    let (run, ()) = tokio::join!(world.reconcile(), profile_read);
    assert_eq!(run.tally.users, 10, "{run:?}");
    assert_eq!(run.tally.of(DriftKind::TooRecent), 1, "the run mentions the user: {run:?}");
    world.kinde.clear_faults();
    world.deliver(late).await;
    assert_eq!(
        world.documents().await[&id].is_suspended,
        Some(true),
        "{}: no scan saw otherwise",
        world.fresh.name
    );
    assert!(checks(&world).await.users.contains_key(&user(&id)));
}

async fn events_about_a_user_first_stored_during_a_scan_apply_in_order_with_any_clocks(fresh: Fresh) {
    let world = World::new(fresh).await;
    world.import(10);
    world.reconcile().await;
    let id = world.kinde.import_user(NewUser::named("new@example.com", "New", "L")).expect("new").id;
    world.later().await;
    world.kinde.set_fault(Fault::times(FaultKind::PaginationDrift { by: 1 }, 1));
    let held = world.kinde.hold("users", 1);
    let (scanner, requested) = (reconciler_ahead(&world, 30 * SECOND), world.kinde.requests("users"));
    let first = async {
        until_requested(&world, "users", requested).await;
        world.deliver(vec![event(&id, "One", 40 * SECOND)]).await;
        drop(held);
    };
    tokio::join!(run(&scanner), first);
    world.kinde.clear_faults();
    world.deliver(vec![event(&id, "Two", 20 * SECOND)]).await;
    assert_eq!(world.documents().await[&id].first_name.as_deref(), Some("Two"), "{}", world.fresh.name);
    assert!(checks(&world).await.users.contains_key(&user(&id)), "older than a scan, and not proved");
}

async fn a_difference_that_cannot_be_ordered_is_never_unchanged(fresh: Fresh) {
    let world = World::new(fresh).await;
    let id = world.kinde.create_user(NewUser::named("ada@example.com", "Ada", "L")).expect("new").id;
    world.deliver(world.events()).await;
    world.kinde.update_user(&id, rename("Countess")).expect("there");
    world.later().await;
    let requested = world.kinde.requests("user");
    let behind = run(&reconciler_ahead(&world, -600 * SECOND)).await;
    assert_eq!(behind.tally.unchanged, 0, "{behind:?}");
    assert_eq!(behind.tally.of(DriftKind::TooRecent), 1, "{behind:?}");
    assert!(world.kinde.requests("user") > requested, "the user is read again");
    world.deliver(world.events().split_off(1)).await;
    assert_eq!(world.documents().await[&id].first_name.as_deref(), Some("Countess"));
}

async fn a_difference_from_the_time_of_the_scan_is_repaired_by_the_same_run(fresh: Fresh) {
    let world = World::new(fresh).await;
    let id = world.kinde.create_user(NewUser::named("ada@example.com", "Ada", "L")).expect("new").id;
    let created = world.events();
    world.kinde.update_user(&id, rename("Countess")).expect("there");
    world.deliver(created).await;
    let run = world.reconcile().await;
    assert_eq!(run.tally.of(DriftKind::Changed), 1, "{}: {run:?}", world.fresh.name);
    world.assert_equal("after one run").await;
}

async fn a_user_stored_while_the_clock_was_ahead_is_deleted_by_the_next_scan(fresh: Fresh) {
    let world = World::new(fresh).await;
    world.import(3);
    let id = world.kinde.create_user(NewUser::named("ada@example.com", "Ada", "L")).expect("new").id;
    let created = Observation {
        user: user(&id),
        version: Version::event(Clock::system().now(), "event_created"),
        source: Source::Webhook,
        what: What::Fields(Profile::new().with(Field::FirstName, "Ada")),
    };
    apply(&*world.fresh.store, [created], ahead(10 * DAY).now()).await.expect("the store answers");
    world.kinde.delete_user(&id, kinde_emulator::Profile::Remove).expect("there");
    world.later().await;
    let run = world.reconcile().await;
    assert_eq!(run.tally.of(DriftKind::Deleted), 1, "{}: {run:?}", world.fresh.name);
    world.assert_equal("after one run").await;
}

async fn a_scan_with_a_clock_ahead_makes_no_later_event_stale(fresh: Fresh) {
    let world = World::new(fresh).await;
    let id = world.import(3).remove(0);
    run(&reconciler_ahead(&world, 2 * DAY)).await;
    let scans = ScanWatermarks::load(&*world.fresh.store).await.expect("the store answers");
    let until = scans.newest.expect("it compared users").until;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while Clock::system().now() <= until {
        assert!(tokio::time::Instant::now() < deadline, "the scan ends in the future: {until:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.kinde.update_user(&id, rename("Countess")).expect("there");
    world.deliver(world.events()).await;
    assert_eq!(world.documents().await[&id].first_name.as_deref(), Some("Countess"), "{}", world.fresh.name);
    assert_eq!(
        checks(&world).await,
        PendingChecks::default(),
        "{}: it is newer than the scan",
        world.fresh.name
    );
}

async fn a_newer_change_of_another_field_keeps_the_proof(fresh: Fresh) {
    let world = World::new(fresh).await;
    let id = world.import(3).remove(0);
    world.kinde.update_user(&id, rename("Wrong")).expect("there");
    world.kinde.update_user(&id, rename("First 0")).expect("there");
    let late = world.events().remove(0);
    world.later().await;
    world.reconcile().await;
    let picture = Profile::new().with(Field::Picture, "https://example.com/new.png");
    let read = Observation {
        user: user(&id),
        version: Version::snapshot(Micros(Clock::system().now().0 + 10 * SECOND), "profile"),
        source: Source::Profile,
        what: What::Fields(picture),
    };
    apply(&*world.fresh.store, [read], Clock::system().now()).await.expect("the store answers");
    world.deliver(vec![late]).await;
    assert_eq!(world.documents().await[&id].first_name.as_deref(), Some("First 0"), "{}", world.fresh.name);
    assert_eq!(checks(&world).await, PendingChecks::default(), "what is proved needs no check");
}

/// Two processes that share a store: the first is suspended for longer than its lease while it reads a page, and continues
/// after the second has scanned.
async fn a_process_that_was_suspended_during_its_scan_announces_and_proves_nothing_more(fresh: Fresh) {
    let world = World::new(fresh).await;
    world.import(3);
    let lease = Duration::from_secs(2);
    let named = |name: &str| Config { name: name.into(), lease, ..quick() };
    let held = world.kinde.hold("users", 1);
    let store = Suspended::new(world.fresh.store.clone());
    let (shared, clock) = (Arc::clone(&store) as Arc<dyn Store>, Clock::system());
    let first = Reconciler::new(world.client(10), shared, clock, named("first"));
    let (tasks, requested) = (TaskTracker::new(), world.kinde.requests("users"));
    let stop = CancellationToken::new();
    let scan = tasks.spawn(async move { first.run(RunMode::Reconcile, &|_| {}, &stop).await });
    until_requested(&world, "users", requested).await;
    store.suspend();
    drop(held);
    let second = world.reconciler(10, named("second"));
    second.wait_until_free().await.expect("the store answers");
    run(&second).await;
    let scans = async || ScanWatermarks::load(&*world.fresh.store).await.expect("the store answers");
    let known = scans().await;
    store.resume();
    let ended = scan.await.expect("no panic");
    assert!(matches!(ended, Err(Error::LeaseLost)), "{}: {ended:?}", world.fresh.name);
    assert_eq!(scans().await, known, "{}: the record is that of the second scan", world.fresh.name);
}

async fn a_scan_under_an_outdated_lease_proves_nothing(fresh: Fresh) {
    let (store, now) = (&*fresh.store, Clock::system().now());
    let scan = ScanWatermarks::start(store, Term(1)).await.expect("kept").expect("no newer lease");
    let announce =
        async || ScanWatermarks::announce(store, Term(1), scan, (now, now)).await.expect("it answers");
    let last_comparison = announce().await.expect("no newer lease");
    ScanWatermarks::start(store, Term(2)).await.expect("kept").expect("no newer lease");
    let known = ScanWatermarks::load(store).await.expect("it answers");
    let watermark = ScanWatermark { at: now, last_comparison, fields: Vec::new(), unproven: [].into() };
    let proved = ScanWatermarks::record_proof(store, Term(1), &watermark).await.expect("it answers");
    assert_eq!((announce().await, proved), (None, None), "{}", fresh.name);
    assert_eq!(ScanWatermarks::load(store).await.expect("it answers"), known);
}

async fn proofs_and_deletions_reach_beyond_one_batch(fresh: Fresh) {
    let generated = Generated { users: 2_600, seed: 5, ..Generated::default() };
    let config = kinde_emulator::Config { generated, ..Default::default() };
    let world = Arc::new(World::with(fresh, config).await);
    let scan = async || {
        let reconciler = world.reconciler(100, quick());
        run(&reconciler).await
    };
    assert_eq!(scan().await.tally.of(DriftKind::Missing), 2_600);
    let users = world.kinde.users();
    // One user in each batch, and one more that is deleted.
    let ids: Vec<String> = [10, 1_300, 2_550].iter().map(|n: &usize| users[*n].id.clone()).collect();
    for id in &ids {
        world.kinde.suspend(id).expect("there");
        world.kinde.unsuspend(id).expect("there");
    }
    world.kinde.delete_user(&users[1_900].id, kinde_emulator::Profile::Remove).expect("there");
    let late: Vec<Entry> = world.events().into_iter().step_by(2).take(3).collect();
    world.later().await;
    let second = scan().await;
    assert_eq!((second.tally.of(DriftKind::Deleted), second.tally.unchanged), (1, 2_599), "{second:?}");
    world.deliver(late).await;
    let documents = world.documents().await;
    assert!(
        ids.iter().all(|id| documents[id].is_suspended == Some(false)),
        "{}: all three are proved",
        world.fresh.name
    );
    assert_eq!(checks(&world).await, PendingChecks::default());
    let third = scan().await;
    assert_eq!((third.tally.drift.len(), third.tally.unchanged), (0, 2_599), "{third:?}");
}

async fn a_false_not_found_about_a_listed_user_deletes_no_user(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ids = world.import(12);
    world.reconcile().await;
    world.later().await;
    for id in &ids[2..] {
        world.kinde.set_fault(Fault::always(FaultKind::UserNotFound { status: 404, id: Some(id.clone()) }));
    }
    let run = world.reconcile().await;
    assert_eq!((run.tally.drift.len(), run.tally.unchanged), (0, 12), "{}: {run:?}", world.fresh.name);
    world.assert_equal("while most reads fail").await;
}

async fn without_dates_a_scan_repairs_and_deletes_later_but_right(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ids = world.import(4);
    world.kinde.set_fault(Fault::always(FaultKind::MissingDate));
    world.reconcile().await;
    world.assert_equal("after the first run").await;
    // A clock that is ahead by less than the tolerance makes no read newer than an event that follows it.
    world.kinde.update_user(&ids[0], rename("Lost")).expect("there");
    run(&reconciler_ahead(&world, 240 * SECOND)).await;
    assert_eq!(world.documents().await[&ids[0]].first_name.as_deref(), Some("Lost"));
    world.kinde.update_user(&ids[0], rename("Kept")).expect("there");
    world.deliver(world.events().split_off(1)).await;
    assert_eq!(world.documents().await[&ids[0]].first_name.as_deref(), Some("Kept"), "{}", world.fresh.name);
    // A deletion waits until the read is certainly newer than the last change of the user.
    world.kinde.delete_user(&ids[0], kinde_emulator::Profile::Remove).expect("there");
    world.kinde.delete_user(&ids[1], kinde_emulator::Profile::Remove).expect("there");
    let run = run(&world.reconciler(10, quick())).await;
    assert_eq!((run.tally.of(DriftKind::TooRecent), run.tally.of(DriftKind::Deleted)), (1, 1), "{run:?}");
    assert!(!world.documents().await[&ids[0]].is_deleted);
}
