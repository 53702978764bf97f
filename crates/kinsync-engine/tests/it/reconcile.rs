//! Kinde and the store apart, and brought together by a scan: on both stores, against the emulator.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use kinde::{
    management::{self, Client},
    webhook::Scheme,
};
use kinde_emulator::{
    Emulator, Fault, FaultKind, NewUser, User, UserEdit, WebhookSpec,
    config::{Generated, Unknowns},
};
use kinsync_core::{Source, UserDocument, UserId};
use kinsync_engine::{
    Clock,
    internal::{
        pending_checks::PendingChecks,
        projector,
        queue::{Entry, Payload},
        reconcile::{
            Config, Error, Reconciler, Thresholds,
            record::{self, DriftKind, Outcome, Run, RunMode, Tally},
        },
        scan_watermark::ScanWatermarks,
        store::{Row, UserFilter},
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use secrecy::SecretString;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    pipeline::{dead_letters, drain, engine},
    stores::{self, Fresh, on_every_store},
};

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A local Kinde, a store, and what stands between them.
pub(crate) struct World {
    pub(crate) kinde: Emulator,
    pub(crate) fresh: Fresh,
    /// The folder of the queue.
    dir: tempfile::TempDir,
}

pub(crate) fn quick() -> Config {
    let pause = Duration::from_millis(5);
    Config { between_reads: pause, replica_lag: pause, ..Config::default() }
}

impl World {
    pub(crate) async fn new(fresh: Fresh) -> Self {
        Self::with(fresh, kinde_emulator::Config::default()).await
    }

    pub(crate) async fn with(fresh: Fresh, config: kinde_emulator::Config) -> Self {
        let kinde = Emulator::start(config).await.expect("a free port");
        // An endpoint without notifications: its deliveries list every event.
        kinde.set_fault(Fault::always(FaultKind::Drop));
        kinde.add_webhook(WebhookSpec::new("http://127.0.0.1:9/".parse().expect("an address")));
        Self { kinde, fresh, dir: tempfile::tempdir().expect("a temporary folder") }
    }

    pub(crate) fn client(&self, page_size: u32) -> Client {
        Client::new(self.settings(page_size)).expect("the emulator's own settings")
    }

    pub(crate) fn settings(&self, page_size: u32) -> management::Config {
        let config = self.kinde.config();
        let domain = self.kinde.issuer().parse().expect("an address");
        let secret = SecretString::from(config.client_secret.clone());
        let mut settings = management::Config::new(domain, config.client_id.as_str(), secret);
        settings.page_size = page_size;
        settings.clock_allowance = Duration::ZERO;
        settings.retry.max_attempts = 2;
        settings.retry.initial_backoff = Duration::from_millis(1);
        settings
    }

    pub(crate) fn reconciler(&self, page_size: u32, config: Config) -> Reconciler {
        Reconciler::new(self.client(page_size), self.fresh.store.clone(), Clock::system(), config)
    }

    pub(crate) async fn run(&self, mode: RunMode) -> Result<Run, Error> {
        self.reconciler(10, quick()).run(mode, &|_| {}, &CancellationToken::new()).await
    }

    pub(crate) async fn reconcile(&self) -> Run {
        self.run(RunMode::Reconcile).await.expect("Kinde and the store answer")
    }

    pub(crate) fn import(&self, users: usize) -> Vec<String> {
        let named = |n| NewUser::named(&format!("user{n}@example.com"), &format!("First {n}"), "Last");
        (0..users).map(|n| self.kinde.import_user(named(n)).expect("a new address").id).collect()
    }

    /// Every event that there was, in order.
    pub(crate) fn events(&self) -> Vec<Entry> {
        let deliveries = self.kinde.deliveries();
        let events = deliveries.iter().filter_map(|delivery| self.kinde.event(&delivery.event_id));
        events
            .map(|event| {
                let payload = serde_json::json!({
                    "type": event.kind, "event_id": event.id, "timestamp": event.at.to_string(), "data": event.data,
                });
                Entry {
                    event_id: event.id.clone(),
                    received_at: Clock::system().now(),
                    payload: Payload::Delivery {
                        scheme: Scheme::KindeJwt,
                        signed_at: None,
                        body: Bytes::from(payload.to_string()),
                    },
                }
            })
            .collect()
    }

    pub(crate) async fn deliver(&self, entries: Vec<Entry>) {
        let engine = engine(self.dir.path(), &self.fresh.store, projector::Config::default()).await;
        for entry in entries {
            engine.queue().enqueue(entry).await.expect("the queue takes it");
        }
        drain(&engine).await;
        assert_eq!(dead_letters(&engine).await, 0);
        engine.stop().await;
    }

    pub(crate) async fn documents(&self) -> BTreeMap<String, UserDocument> {
        let filter = UserFilter { with_deleted: true, limit: 10_000, ..UserFilter::default() };
        let rows = self.fresh.store.users(&filter).await.expect("the store answers");
        rows.iter().map(|row| (row.id.to_string(), row.document())).collect()
    }

    pub(crate) async fn row(&self, id: &str) -> Row {
        let id = UserId::parse(id).expect("an id");
        self.fresh.store.load(&[id]).await.expect("the store answers").pop().flatten().expect("stored")
    }

    /// Panics unless the live users of the store are Kinde's, field by field.
    pub(crate) async fn assert_equal(&self, when: &str) {
        let name = self.fresh.name;
        let stored = self.documents().await;
        let users = self.kinde.users();
        for user in &users {
            let found =
                stored.get(&user.id).unwrap_or_else(|| panic!("{name}, {when}: {} is missing", user.id));
            assert_eq!(difference(user, found), None, "{name}, {when}: {}", user.id);
        }
        let live = stored.values().filter(|document| !document.is_deleted).count();
        assert_eq!(live, users.len(), "{name}, {when}: no other user is live");
    }

    /// Waits until a read of Kinde is newer than everything that happened there, also one that takes a second longer.
    pub(crate) async fn later(&self) {
        let now = kinsync_testing::wall_clock() + Duration::from_secs(1);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let page = self.client(1).users().next().await.expect("Kinde answers").expect("a first page");
            if page.timing.as_of > now {
                return;
            }
            assert!(Instant::now() < deadline, "Kinde's clock stands");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Waits until Kinde was asked once more.
pub(crate) async fn until_requested(world: &World, route: &str, before: u64) {
    let deadline = Instant::now() + PATIENCE;
    while world.kinde.requests(route) <= before {
        assert!(Instant::now() < deadline, "Kinde is not asked");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Differences between a stored user and Kinde's, without addresses in a conflict.
fn difference(user: &User, found: &UserDocument) -> Option<String> {
    let email = found.email.clone().or_else(|| found.email_conflict.as_ref().map(|held| held.email.clone()));
    let codes = |mut codes: Vec<String>| {
        codes.sort();
        codes
    };
    let kinde = (
        (&user.email, &user.first_name, &user.last_name, &user.phone),
        (&user.username, &user.picture, &user.provided_id, Some(user.is_suspended)),
        codes(user.organizations.iter().map(|one| one.code.clone()).collect()),
        user.created_on.as_microsecond(),
        false,
    );
    let stored = (
        (&email, &found.first_name, &found.last_name, &found.phone),
        (&found.username, &found.picture, &found.provided_id, found.is_suspended),
        codes(found.organizations.iter().flatten().map(|one| one.code.clone()).collect()),
        found.created_at.0,
        found.is_deleted,
    );
    // Kinde writes down the sign-in, and then its event.
    let signed_in =
        (user.last_signed_in.map(jiff::Timestamp::as_microsecond), found.last_signed_in_at.map(|at| at.0));
    let is_same_sign_in = match signed_in {
        (Some(kinde), Some(stored)) => (0..1_000_000).contains(&(stored - kinde)),
        (kinde, stored) => kinde.is_none() && stored.is_none(),
    };
    (kinde != stored || !is_same_sign_in)
        .then(|| format!("Kinde has {kinde:?}, stored is {stored:?}, signed in {signed_in:?}"))
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

on_every_store! {
    after_one_complete_run_the_store_equals_kinde_and_no_late_delivery_changes_that
    a_late_event_about_a_user_that_a_scan_found_equal_changes_nothing
    a_late_event_during_a_scan_requests_a_check
    a_run_without_drift_writes_no_user
    a_run_counts_changes_by_source_and_missed_changes_by_previous_source
    a_dry_run_reports_the_drift_and_changes_nothing
    a_failed_scan_deletes_no_user
    only_a_complete_scan_deletes
    a_single_not_found_deletes_no_user
    an_unreadable_response_about_a_user_leaves_the_user_unchanged_and_stops_no_run
    an_empty_list_deletes_no_user
    many_deletions_are_held_until_an_operator_approves_them
    an_incomplete_list_holds_no_deletions
    a_user_made_after_the_scan_began_is_no_candidate
    two_reads_restore_a_user_that_kinsync_itself_deleted
    a_user_deleted_by_an_event_is_not_restored_by_a_list
    an_event_newer_than_the_deletion_requests_a_check
    an_interrupted_backfill_resumes_at_its_checkpoint
    a_backfill_interrupted_long_ago_starts_again
    an_interrupted_backfill_with_an_empty_next_page_starts_again
    one_scan_runs_at_a_time_and_another_process_takes_over_after_a_kill
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
    let scan = ScanWatermarks::start(store).await.expect("kept");
    ScanWatermarks::announce(store, scan, now, now).await.expect("kept");
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
    let (stop, asked) = (CancellationToken::new(), world.kinde.requests("users"));
    let changes = async {
        // The first page was asked for, and the last one was not.
        until_requested(&world, "users", asked).await;
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
    world.kinde.create_user(NewUser::named("told@example.com", "T", "O")).expect("new");
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

async fn a_single_not_found_deletes_no_user(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ids = world.import(11);
    world.reconcile().await;
    world.later().await;
    // The list leaves the eleventh out, and the first read of them says that there is none.
    world.kinde.set_fault(Fault::times(FaultKind::PaginationDrift { by: 1 }, 1));
    let absent = FaultKind::UserNotFound { status: 404, id: Some(ids[10].clone()) };
    world.kinde.set_fault(Fault::times(absent.clone(), 1));
    let run = world.reconcile().await;
    assert_eq!((run.tally.users, run.tally.of(DriftKind::Deleted)), (10, 0), "{}: {run:?}", world.fresh.name);
    let struck = world.kinde.faults().into_iter().find(|report| report.fault.kind == absent);
    assert_eq!(struck.map(|report| report.occurrences), Some(1), "a read said so");
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
        // The list leaves the last one out, and nothing that is said of them is an answer.
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
    // It lists all but one, and says of every single user that there is none.
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

async fn a_user_made_after_the_scan_began_is_no_candidate(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ids = world.import(5);
    let imported = Instant::now();
    world.reconcile().await;
    // A replica of Kinde's that lags: neither its list nor its single reads know the new user.
    let lag = Duration::from_secs(3);
    tokio::time::sleep_until(imported + lag).await;
    world.kinde.set_fault(Fault::always(FaultKind::StaleReplica { lag }));
    let pause = Duration::from_millis(100);
    world.kinde.set_fault(Fault::always(FaultKind::Slow { min: pause, max: pause }).on("users"));
    let reconciler = world.reconciler(2, quick());
    let stop = CancellationToken::new();
    let meanwhile = async {
        let asked = world.kinde.requests("users");
        while world.kinde.requests("users") == asked {
            tokio::task::yield_now().await;
        }
        let new = world.kinde.create_user(NewUser::named("new@example.com", "N", "U")).expect("new").id;
        world.deliver(world.events()).await;
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
    let ask = UserId::parse(&id).expect("an id");
    PendingChecks::request(&*world.fresh.store, &[ask]).await.expect("kept");
    world.reconciler(10, quick()).run_pending_checks().await.expect("Kinde answers");
    assert!(world.documents().await[&id].is_deleted, "{}: nor by being asked for", world.fresh.name);
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
    let ask = UserId::parse(&id).expect("an id");
    PendingChecks::request(&*world.fresh.store, &[ask]).await.expect("kept");
    world.later().await;
    assert!(!reconciler.run_pending_checks().await.expect("Kinde answers"));
    assert!(world.documents().await[&id].is_deleted);
}

async fn an_interrupted_backfill_resumes_at_its_checkpoint(fresh: Fresh) {
    let generated = Generated { users: 6_300, seed: 3 };
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
        assert!(cuts < 30, "it goes on");
    };
    assert!(cuts > 2, "{cuts}");
    assert_eq!((run.outcome.clone(), run.tally.users), (Outcome::Resumed, 6_300), "{run:?}");
    // 63 pages; what was fetched and not written is fetched again: some batches of ten pages at each cut.
    let fetched = world.kinde.requests("users");
    assert!(fetched <= 63 + cuts * 50, "{fetched} pages after {cuts} cuts");
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
    let generated = Generated { users: 4_500, seed: 3 };
    let world = World::with(fresh, kinde_emulator::Config { generated, ..Default::default() }).await;
    cut_backfill(&world).await;
    let later = Clock::from_fn(|| kinsync_core::Micros(Clock::system().now().0 + 13 * 3_600_000_000));
    let reconciler = Reconciler::new(world.client(100), world.fresh.store.clone(), later, quick());
    let run = reconciler.run(RunMode::Backfill, &|_| {}, &CancellationToken::new()).await;
    let run = run.expect("Kinde answers");
    assert_eq!((run.outcome, run.tally.users), (Outcome::Complete, 4_500), "{}", world.fresh.name);
    assert!(run.tally.unchanged >= 1_000, "users compared before are compared again");
}

async fn an_interrupted_backfill_with_an_empty_next_page_starts_again(fresh: Fresh) {
    let generated = Generated { users: 4_500, seed: 3 };
    let world = World::with(fresh, kinde_emulator::Config { generated, ..Default::default() }).await;
    cut_backfill(&world).await;
    world.kinde.set_fault(Fault::times(FaultKind::EmptyList, 1));
    let run = world.run(RunMode::Backfill).await.expect("Kinde answers");
    assert_eq!((run.outcome, run.tally.users), (Outcome::Complete, 4_500), "{}", world.fresh.name);
    world.assert_equal("after the backfill").await;
}

async fn one_scan_runs_at_a_time_and_another_process_takes_over_after_a_kill(fresh: Fresh) {
    // Longer than a busy machine forgets a task.
    let lease = Duration::from_secs(4);
    let world = World::new(fresh).await;
    world.import(3);
    let named = |name: &str| Config { name: name.into(), lease, ..quick() };
    let (first, second) = (world.reconciler(10, named("first")), world.reconciler(10, named("second")));
    world.kinde.set_fault(Fault::always(FaultKind::Slow { min: PATIENCE, max: PATIENCE }).on("users"));
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let scan = {
        let (first, stop) = (first.clone(), stop.clone());
        tasks.spawn(async move { first.run(RunMode::Reconcile, &|_| {}, &stop).await })
    };
    let held = |runs: &[Run]| runs.first().is_some_and(|run| run.outcome == Outcome::Running);
    let deadline = Instant::now() + PATIENCE;
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
        assert!(killed.elapsed() < PATIENCE, "{}: no process takes over", world.fresh.name);
    };
    assert_eq!(run.outcome, Outcome::Complete);
    let runs = record::runs(&*world.fresh.store).await.expect("it answers");
    assert_eq!(runs[1].outcome, Outcome::Cut, "the interrupted run is recorded");
    // Given back, it is free at once.
    first.run(RunMode::Reconcile, &|_| {}, &stop).await.expect("the lease is free");
}

#[tokio::test]
async fn a_check_requested_during_a_check_runs_again() {
    let world = World::new(stores::embedded()).await;
    let id = UserId::parse(&world.import(1)[0]).expect("an id");
    let store = &*world.fresh.store;
    PendingChecks::request(store, std::slice::from_ref(&id)).await.expect("kept");
    let slow = Duration::from_millis(500);
    world.kinde.set_fault(Fault::times(FaultKind::Slow { min: slow, max: slow }, 1).on("user"));
    let reconciler = world.reconciler(10, quick());
    let again = async {
        until_requested(&world, "user", 0).await;
        PendingChecks::request(store, std::slice::from_ref(&id)).await.expect("kept");
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
    assert_eq!(
        (checks.users.len(), checks.scan.is_some()),
        (1000, false),
        "asked for twice is asked for once"
    );
    PendingChecks::request(&*fresh.store, &users).await.expect("kept");
    let checks = PendingChecks::load(&*fresh.store).await.expect("it answers");
    assert_eq!((checks.users.len(), checks.scan.is_some()), (0, true));
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
