//! What a scan finds and repairs, and what it leaves when it fails: on both stores, against the emulator.

use std::{collections::BTreeMap, time::Duration};

use kinde::management::Client;
use kinde_emulator::{Fault, FaultKind, NewUser, UserEdit};
use kinsync_core::{Source, UserId};
use kinsync_engine::{
    Clock,
    internal::{
        pending_checks::PendingChecks,
        reconcile::{
            Reconciler,
            record::{self, DriftKind, Outcome, RunMode},
        },
        scan_watermark::ScanWatermarks,
        state_records::Term,
        store::UserFilter,
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio_util::sync::CancellationToken;

use crate::{
    reconcile::{World, quick, until_requested},
    stores::{self, Fresh, on_every_store},
};

on_every_store! {
    after_one_complete_run_the_store_equals_kinde_and_no_late_delivery_changes_that
    a_late_event_about_a_user_that_a_scan_found_equal_changes_nothing
    a_late_event_during_a_scan_requests_a_check
    a_run_without_drift_writes_no_user
    a_run_counts_changes_by_source_and_missed_changes_by_previous_source
    a_dry_run_reports_the_drift_and_changes_nothing
    a_failed_scan_deletes_no_user
    only_a_complete_scan_deletes
}

/// Some life in the tenant.
fn live(world: &World, rng: &mut StdRng, steps: usize) {
    let kinde = &world.kinde;
    for step in 0..steps {
        let users = kinde.users();
        let pick = |rng: &mut StdRng| users[rng.random_range(0..users.len())].id.clone();
        let name = format!("{step}-{}", rng.random_range(0..1000));
        let new = NewUser::named(&format!("u{name}@example.com"), "First", "Last");
        let edit = UserEdit { first_name: Some(format!("Name {name}")), ..UserEdit::default() };
        match rng.random_range(0..9) {
            _ if users.len() < 12 => drop(kinde.create_user(new)),
            0 => drop(kinde.create_user(new)),
            1 => drop(kinde.import_user(new)),
            2 | 3 => drop(kinde.update_user(&pick(rng), edit)),
            4 => drop(kinde.sign_in(&pick(rng))),
            5 => drop(kinde.suspend(&pick(rng))),
            6 => drop(kinde.unsuspend(&pick(rng))),
            7 => drop(kinde.swap_emails(&pick(rng), &pick(rng))),
            _ => drop(kinde.delete_user(&pick(rng), kinde_emulator::Profile::Remove)),
        }
    }
}

async fn after_one_complete_run_the_store_equals_kinde_and_no_late_delivery_changes_that(fresh: Fresh) {
    let world = World::new(fresh).await;
    let mut rng = StdRng::seed_from_u64(7);
    for round in 0..3 {
        let known = world.events().len();
        live(&world, &mut rng, 120);
        let mut events = world.events().split_off(known);
        events.shuffle(&mut rng);
        // A third is lost, for now.
        let late = events.split_off(events.len() * 2 / 3);
        world.deliver(events).await;
        world.later().await;
        let run = world.reconcile().await;
        assert_eq!(run.outcome, Outcome::Complete, "{run:?}");
        world.assert_equal(&format!("round {round}, after the run")).await;
        let deleted: Vec<String> = world
            .documents()
            .await
            .into_iter()
            .filter(|(_, user)| user.is_deleted)
            .map(|(id, _)| id)
            .collect();
        for entry in late {
            world.deliver(vec![entry]).await;
            let documents = world.documents().await;
            assert!(deleted.iter().all(|id| documents[id].is_deleted), "no deleted user is visible again");
        }
        // Users first observed by late events are re-read.
        assert!(!world.reconciler(10, quick()).run_pending_checks().await.expect("Kinde answers"));
        world.assert_equal(&format!("round {round}, after late deliveries")).await;
    }
}

async fn a_late_event_about_a_user_that_a_scan_found_equal_changes_nothing(fresh: Fresh) {
    let world = World::new(fresh).await;
    let id = world.kinde.create_user(NewUser::named("ada@example.com", "Ada", "L")).expect("new").id;
    world.deliver(world.events()).await;
    let rename = |name: &str| UserEdit { first_name: Some(name.into()), ..UserEdit::default() };
    world.kinde.update_user(&id, rename("Wrong")).expect("there");
    world.kinde.update_user(&id, rename("Ada")).expect("there");
    let late = world.events().split_off(1);
    world.later().await;
    let run = world.reconcile().await;
    assert_eq!(
        run.tally.of(DriftKind::Changed),
        0,
        "both renames were lost, and no difference is left: {run:?}"
    );
    let before = world.row(&id).await;
    world.deliver(vec![late[0].clone()]).await;
    assert_eq!(world.documents().await[&id].first_name.as_deref(), Some("Ada"), "{}", world.fresh.name);
    let checks = PendingChecks::load(&*world.fresh.store).await.expect("the store answers");
    assert_eq!(checks, PendingChecks::default(), "what is proved needs no question");
    world.deliver(vec![late[1].clone()]).await;
    assert_eq!(world.documents().await[&id].first_name.as_deref(), Some("Ada"));
    assert_eq!(world.row(&id).await.state.first_version(), before.state.first_version(), "by a proof");
    // What happens after the scan counts as ever.
    world.kinde.update_user(&id, rename("Countess")).expect("there");
    world.deliver(world.events().split_off(3)).await;
    assert_eq!(world.documents().await[&id].first_name.as_deref(), Some("Countess"));
}

async fn a_late_event_during_a_scan_requests_a_check(fresh: Fresh) {
    let world = World::new(fresh).await;
    let id = world.kinde.create_user(NewUser::named("ada@example.com", "Ada", "L")).expect("new").id;
    world.deliver(world.events()).await;
    let rename = |name: &str| UserEdit { first_name: Some(name.into()), ..UserEdit::default() };
    world.kinde.update_user(&id, rename("Wrong")).expect("there");
    world.kinde.update_user(&id, rename("Ada")).expect("there");
    let late = world.events().remove(1);
    let (store, now) = (&*world.fresh.store, Clock::system().now());
    world.later().await;
    // A scan that was cut after it compared the user.
    let term = Term(1);
    let scan = ScanWatermarks::start(store, term).await.expect("kept").expect("no newer lease");
    ScanWatermarks::announce(store, term, scan, (now, now)).await.expect("kept");
    world.deliver(vec![late]).await;
    assert_eq!(world.documents().await[&id].first_name.as_deref(), Some("Wrong"), "nothing proves it wrong");
    let reconciler = world.reconciler(10, quick());
    assert!(!reconciler.run_pending_checks().await.expect("Kinde answers"), "no scan was requested");
    assert_eq!(world.documents().await[&id].first_name.as_deref(), Some("Ada"), "{}", world.fresh.name);
    let checks = PendingChecks::load(&*world.fresh.store).await.expect("the store answers");
    assert_eq!(checks, PendingChecks::default(), "it is answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_from_the_middle_of_a_scan_that_arrives_after_it_requests_a_check() {
    let world = World::new(stores::embedded()).await;
    let id = world.import(3).pop().expect("the one on the last page");
    world.reconcile().await;
    world.later().await;
    let slow = Duration::from_millis(1200);
    world.kinde.set_fault(Fault::always(FaultKind::Slow { min: slow, max: slow }).on("users"));
    let rename = |name: &str| UserEdit { first_name: Some(name.into()), ..UserEdit::default() };
    let reconciler = world.reconciler(1, quick());
    let (stop, requested) = (CancellationToken::new(), world.kinde.requests("users"));
    let changes = async {
        // The first page was requested, and the last one was not.
        until_requested(&world, "users", requested).await;
        world.kinde.update_user(&id, rename("Wrong")).expect("there");
        world.kinde.update_user(&id, rename("First 2")).expect("there");
    };
    let (run, ()) = tokio::join!(reconciler.run(RunMode::Reconcile, &|_| {}, &stop), changes);
    let run = run.expect("Kinde answers");
    assert_eq!(run.tally.unchanged, 3, "both renames were lost, and no difference is left: {run:?}");
    let late = world.events().remove(0);
    world.deliver(vec![late]).await;
    let checks = PendingChecks::load(&*world.fresh.store).await.expect("the store answers");
    assert_eq!(checks.users.keys().map(UserId::as_str).collect::<Vec<_>>(), [&*id]);
    reconciler.run_pending_checks().await.expect("Kinde answers");
    assert_eq!(world.documents().await[&id].first_name.as_deref(), Some("First 2"));
}

async fn a_run_without_drift_writes_no_user(fresh: Fresh) {
    let world = World::new(fresh).await;
    world.import(45);
    let first = world.reconcile().await;
    assert_eq!((first.tally.of(DriftKind::Missing), first.tally.users, first.tally.pages), (45, 45, 5));
    let rows = |world: &World| {
        let (store, limit) = (world.fresh.store.clone(), 100);
        async move { store.users(&UserFilter { limit, ..UserFilter::default() }).await.expect("it answers") }
    };
    let before = rows(&world).await;
    let second = world.reconcile().await;
    assert_eq!((second.tally.unchanged, second.tally.drift.len()), (45, 0), "{second:?}");
    assert_eq!(rows(&world).await, before, "not even a revision");
    let saved = record::runs(&*world.fresh.store).await.expect("the store answers");
    assert_eq!(saved, [second, first], "both are saved, the newest first");
}

async fn a_run_counts_changes_by_source_and_missed_changes_by_previous_source(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ids = world.import(4);
    world.kinde.create_user(NewUser::named("early@example.com", "E", "R")).expect("new");
    world.deliver(world.events()).await;
    let first = world.reconcile().await;
    assert_eq!(
        (first.before, &first.tally.changes_by_source),
        (None, &BTreeMap::from([(Source::Reconcile, 4)]))
    );
    let edit = || UserEdit { first_name: Some("New".into()), ..UserEdit::default() };
    world.kinde.create_user(NewUser::named("known@example.com", "T", "O")).expect("new");
    world.kinde.update_user(&ids[0], edit()).expect("there");
    world.kinde.delete_user(&ids[1], kinde_emulator::Profile::Remove).expect("there");
    world.deliver(world.events()).await;
    world.kinde.update_user(&ids[0], UserEdit { last_name: Some("Lost".into()), ..edit() }).expect("there");
    world.kinde.update_user(&ids[2], edit()).expect("there");
    world.kinde.import_user(NewUser::named("lost@example.com", "L", "O")).expect("new");
    world.later().await;
    let second = world.reconcile().await.tally;
    let changes_by_source = [(Source::Webhook, 2), (Source::Reconcile, 3)];
    assert_eq!(
        second.changes_by_source,
        BTreeMap::from(changes_by_source),
        "{}: {second:?}",
        world.fresh.name
    );
    let previous_source = [("nothing", 1), ("reconcile", 1), ("webhook", 1)];
    assert_eq!(second.previous_source, previous_source.map(|(way, users)| (way.to_owned(), users)).into());
    let third = world.reconcile().await.tally;
    assert_eq!((third.changes_by_source.len(), third.previous_source.len()), (0, 0), "{third:?}");
}

async fn a_dry_run_reports_the_drift_and_changes_nothing(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ids = world.import(30);
    world.reconcile().await;
    let edit = UserEdit { first_name: Some("New".into()), ..UserEdit::default() };
    world.kinde.update_user(&ids[3], edit).expect("there");
    world.kinde.delete_user(&ids[4], kinde_emulator::Profile::Remove).expect("there");
    world.kinde.sign_in(&ids[5]).expect("there");
    world.kinde.import_user(NewUser::named("new@example.com", "N", "U")).expect("new");
    world.later().await;
    let before = world.documents().await;
    let dry = world.run(RunMode::DryRun).await.expect("Kinde answers");
    let drift =
        [(DriftKind::Missing, 1), (DriftKind::Changed, 1), (DriftKind::SignedIn, 1), (DriftKind::Deleted, 1)];
    assert_eq!(dry.tally.drift, BTreeMap::from(drift), "{dry:?}");
    assert_eq!(dry.tally.missed(), 3);
    let changed = dry.tally.examples.iter().find(|one| one.kind == DriftKind::Changed).expect("an example");
    assert_eq!((changed.user.as_str(), changed.fields[0].key()), (ids[3].as_str(), "firstName"));
    assert_eq!(world.documents().await, before);
    assert_eq!(record::runs(&*world.fresh.store).await.expect("it answers").len(), 1, "it is not kept");
    let run = world.reconcile().await;
    assert_eq!(run.tally.drift, dry.tally.drift, "the dry run reports what the run repairs");
    world.assert_equal("after the run").await;
}

async fn a_failed_scan_deletes_no_user(fresh: Fresh) {
    let breaks = [
        (FaultKind::Status { status: 503 }, "users", 2),
        (FaultKind::TruncatedJson, "users", 2),
        (FaultKind::CutBody, "users", 2),
        (FaultKind::Garbage, "users", 2),
        (FaultKind::EmptyList, "users", 1),
        (FaultKind::EmptyPage, "users", 1),
        (FaultKind::RepeatedNextToken, "users", 1),
        (FaultKind::PaginationDrift { by: 3 }, "users", 1),
        (FaultKind::PaginationDrift { by: -3 }, "users", 1),
        (FaultKind::Status { status: 404 }, "users", 2),
    ];
    let world = World::new(fresh).await;
    world.import(45);
    world.reconcile().await;
    for (fault, route, times) in &breaks {
        // On each page in turn: pages before it are read well.
        for page in 0..5 {
            let pages_before = page;
            let reconciler = world.reconciler(10, quick());
            world.kinde.clear_faults();
            world.kinde.set_fault(Fault::always(FaultKind::Drop));
            // An empty list of the first page is the whole list.
            let skip = world.kinde.requests("users");
            let armed = async {
                while world.kinde.requests("users") < skip + pages_before {
                    tokio::task::yield_now().await;
                }
                world.kinde.set_fault(Fault::times(fault.clone(), *times).on(route));
            };
            let stop = CancellationToken::new();
            let ((), outcome) = tokio::join!(armed, reconciler.run(RunMode::Reconcile, &|_| {}, &stop));
            let stored = world.documents().await;
            let live = stored.values().filter(|document| !document.is_deleted).count();
            assert_eq!(live, 45, "{}: {fault:?} at page {page}: {outcome:?}", world.fresh.name);
        }
    }
    world.kinde.clear_faults();
    world.reconcile().await;
    world.assert_equal("after all that").await;
}

async fn only_a_complete_scan_deletes(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ids = world.import(1025);
    world.reconcile().await;
    world.kinde.delete_user(&ids[0], kinde_emulator::Profile::Remove).expect("there");
    world.later().await;
    // The list breaks when pages of it were compared already.
    let mut settings = world.settings(100);
    settings.max_pages = 10;
    let client = Client::new(settings).expect("the emulator's own settings");
    let reconciler = Reconciler::new(client, world.fresh.store.clone(), Clock::system(), quick());
    let outcome = reconciler.run(RunMode::Reconcile, &|_| {}, &CancellationToken::new()).await;
    assert!(outcome.is_err(), "{}: {outcome:?}", world.fresh.name);
    assert!(!world.documents().await[&ids[0]].is_deleted, "{}", world.fresh.name);
    assert_eq!(world.reconcile().await.tally.of(DriftKind::Deleted), 1);
    world.assert_equal("after a complete one").await;
}
