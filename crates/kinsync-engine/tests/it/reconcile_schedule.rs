//! When a process reconciles, and the status that it reports: running schedules against the emulator.

use std::{sync::Arc, time::Duration};

use kinde::management::Client;
use kinde_emulator::{Fault, FaultKind};
use kinsync_core::{Micros, UserId};
use kinsync_engine::{
    Clock,
    internal::{
        pending_checks::{Approval, PendingChecks},
        queue,
        reconcile::{
            self, Error, Reconciler,
            record::{self, Outcome, Run, RunMode, Tally},
            schedule::{self, Schedule, Status},
            webhook_health::{self, SilentWebhook},
        },
        state_records::Term,
        store::{LogEntry, LogSource},
    },
};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    reconcile::{DEADLINE, World, quick},
    roles,
    stores::{self, Fresh, on_every_store},
};

/// A schedule at work until it is dropped.
pub(crate) struct Working {
    status: watch::Receiver<Status>,
    task: tokio::task::JoinHandle<()>,
    _stop: DropGuard,
}

impl Working {
    /// Ends it at once, wherever it is.
    pub(crate) async fn kill(self) {
        self.task.abort();
        _ = self.task.await;
    }

    async fn until(&mut self, what: &str, is_so: impl FnMut(&Status) -> bool) -> Status {
        let found = tokio::time::timeout(DEADLINE, self.status.wait_for(is_so)).await;
        found.unwrap_or_else(|_| panic!("{what}")).expect("the schedule works").clone()
    }
}

pub(crate) fn often() -> schedule::Config {
    schedule::Config {
        every: Some(Duration::from_hours(1)),
        every_while_webhook_silent: Duration::from_hours(1),
        poll_every: Duration::from_millis(20),
        review_every: Duration::from_millis(20),
        webhook_silent_after: Duration::from_hours(1),
    }
}

pub(crate) fn start(reconciler: Reconciler, config: schedule::Config) -> Working {
    let (schedule, status) = Schedule::new(reconciler, config, Arc::new(Notify::new()));
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let task = TaskTracker::new().spawn(async move { schedule.run(&stopped).await });
    Working { status, task, _stop: stop.drop_guard() }
}

async fn runs(world: &World) -> Vec<Run> {
    record::runs(&*world.fresh.store).await.expect("the store answers")
}

async fn checks(world: &World) -> PendingChecks {
    PendingChecks::load(&*world.fresh.store).await.expect("the store answers")
}

/// Waits until the newest runs are as they should be.
async fn until_runs(world: &World, what: &str, is_so: impl Fn(&[Run]) -> bool) -> Vec<Run> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let runs = runs(world).await;
        if is_so(&runs) {
            return runs;
        }
        assert!(Instant::now() < deadline, "{what}: {runs:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_has_the_newest_comparison_of_roles_after_a_scan_without_one() {
    let world = World::new(stores::embedded()).await;
    world.import(3);
    let compared = roles::reconcile(&world).await;
    let found = compared.memberships.expect("roles were compared");
    assert_eq!(found.members, 3);
    world.later().await;
    let run = world.reconcile().await;
    assert_eq!(run.memberships, None);
    let config = reconcile::Config { roles_every: Duration::from_hours(6), ..roles::with_roles() };
    let mut working = start(world.reconciler(10, config), often());
    let status = working.until("the runs are known", |status| status.latest.is_some()).await;
    let latest = status.latest.expect("a run");
    assert_eq!((latest.id, latest.memberships), (run.id, Some(found)));
    let mut working = start(world.reconciler(10, quick()), often());
    let status = working.until("the runs are known", |status| status.latest.is_some()).await;
    assert_eq!(status.latest.and_then(|run| run.memberships), None, "scans compare no roles");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_check_does_not_prevent_a_scan() {
    let world = World::new(stores::embedded()).await;
    let ids = world.import(5);
    let requested = UserId::parse(&ids[0]).expect("an id");
    // Of this one user there is no answer.
    let odd = FaultKind::UserNotFound { status: 422, id: Some(ids[0].clone()) };
    world.kinde.set_fault(Fault::always(odd));
    PendingChecks::request(&*world.fresh.store, std::slice::from_ref(&requested)).await.expect("kept");
    let _working = start(world.reconciler(10, quick()), often());
    until_runs(&world, "a scan is due", |runs| runs.first().is_some_and(Run::is_complete)).await;
    assert!(checks(&world).await.users.is_empty(), "the scan has looked at the user");
    // No single user can be read.
    world.kinde.set_fault(Fault::always(FaultKind::Status { status: 503 }).on("user"));
    PendingChecks::request(&*world.fresh.store, std::slice::from_ref(&requested)).await.expect("kept");
    PendingChecks::request_scan(&*world.fresh.store).await.expect("kept");
    until_runs(&world, "a scan was requested", |runs| {
        runs.len() == 2 && runs.first().is_some_and(Run::is_complete)
    })
    .await;
    assert_eq!(
        checks(&world).await.users.into_keys().collect::<Vec<_>>(),
        [requested],
        "the user still waits"
    );
}

on_every_store! {
    sightings_hide_no_events_from_the_webhook_assessment
}

async fn sightings_hide_no_events_from_the_webhook_assessment(fresh: Fresh) {
    const MINUTE: i64 = 60_000_000;
    let run = |began: i64, missed: u64| Run {
        id: began.to_string(),
        mode: RunMode::Reconcile,
        started_at: Micros(began * MINUTE),
        ended_at: Some(Micros(began * MINUTE + 1)),
        outcome: Outcome::Complete,
        term: Term::default(),
        start: 0,
        end: 0,
        memberships: None,
        properties: None,
        before: None,
        tally: Tally { drift: [(record::DriftKind::Changed, missed)].into(), ..Tally::default() },
    };
    let event = |id: String, scheme: &str, at: i64| LogEntry {
        id,
        kind: "any".into(),
        user: None,
        source: if scheme == queue::SIGHTING_SCHEME { LogSource::Login } else { LogSource::Webhook },
        version: None,
        at: None,
        received_at: Micros(at * MINUTE),
        scheme: scheme.into(),
        payload: "{}".into(),
    };
    let seen = (0..450).map(|n| event(format!("seen_{n}"), queue::SIGHTING_SCHEME, 120));
    let delivered = event("event_1".into(), "kinde_jwt", 110);
    let events: Vec<LogEntry> = seen.chain([delivered]).collect();
    fresh.store.log(&events[..450]).await.expect("kept");
    let runs = [run(130, 1), run(100, 0)];
    let listen = async || {
        let heard =
            webhook_health::assess(&*fresh.store, &runs, Micros(131 * MINUTE), Duration::from_hours(1)).await;
        heard.expect("the store answers")
    };
    let silent = listen().await;
    assert!(
        matches!(silent, Some(SilentWebhook::ChangesWithoutEvents { users: 1, .. })),
        "no event at all: {silent:?}"
    );
    fresh.store.log(&events[450..]).await.expect("kept");
    assert_eq!(listen().await, None, "{}: an event came between the scans", fresh.name);
}

/// A reconciler that fails each time, whatever others do.
fn failing(world: &World) -> Reconciler {
    let mut settings = world.settings(2);
    settings.max_pages = 1;
    let client = Client::new(settings).expect("the emulator's own settings");
    Reconciler::new(client, world.fresh.store.clone(), Clock::system(), quick())
}

#[tokio::test(flavor = "multi_thread")]
async fn pauses_between_scans_that_fail_grow() {
    let world = World::new(stores::embedded()).await;
    world.import(5);
    let config = schedule::Config { review_every: Duration::from_millis(100), ..often() };
    let _working = start(failing(&world), config);
    let runs = until_runs(&world, "it is tried again and again", |runs| {
        runs.len() > 7 && runs.iter().all(|run| run.ended_at.is_some())
    })
    .await;
    // Seven failures: at least 0.8 of 2^6 times 20 ms.
    let pause = runs[0].started_at.0 - runs[1].started_at.0;
    assert!(pause > 1_000_000, "{pause} µs after seven failures");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_reported_until_a_run_of_any_process_completes() {
    let world = World::new(stores::embedded()).await;
    world.import(5);
    let mut working = start(failing(&world), often());
    working.until("it fails", |status| status.failure.is_some()).await;
    let deadline = Instant::now() + DEADLINE;
    let other = world.reconciler(10, quick());
    while other.run(RunMode::Reconcile, &|_| {}, &CancellationToken::new()).await.is_err() {
        assert!(Instant::now() < deadline, "the lease is free now and then");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let status = working.until("it is over", |status| status.failure.is_none()).await;
    assert!(status.latest.is_some_and(|run| run.tally.users == 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_hides_no_deletion_that_is_held() {
    let world = World::new(stores::embedded()).await;
    let ids = world.import(60);
    world.reconcile().await;
    for id in &ids[..30] {
        world.kinde.delete_user(id, kinde_emulator::Profile::Remove).expect("there");
    }
    world.later().await;
    let held = world.reconcile().await;
    assert_eq!(held.tally.of(record::DriftKind::DeletionHeld), 30, "{held:?}");
    world.run(RunMode::Backfill).await.expect("Kinde answers");
    let mut working = start(world.reconciler(10, quick()), often());
    let status = working.until("it is looked at", |status| status.latest.is_some()).await;
    assert_eq!(status.latest.map(|run| run.id), Some(held.id));
    assert_eq!(runs(&world).await.len(), 3, "no scan was due");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requested_approval_is_carried_out_or_requested_again() {
    let world = World::new(stores::embedded()).await;
    let ids = world.import(60);
    world.reconcile().await;
    for id in &ids[..30] {
        world.kinde.delete_user(id, kinde_emulator::Profile::Remove).expect("there");
    }
    world.later().await;
    let held = world.reconcile().await.id;
    let approval = Approval::Run(held);
    PendingChecks::approve(&*world.fresh.store, &approval).await.expect("kept");
    let rarely = schedule::Config { poll_every: DEADLINE, ..often() };
    let mut failing = start(failing(&world), rarely);
    failing.until("it fails", |status| status.failure.is_some()).await;
    let pending = checks(&world).await.scan.and_then(|scan| scan.approves);
    assert_eq!(pending, Some(approval), "it still waits");
    drop(failing);
    let _working = start(world.reconciler(10, quick()), often());
    until_runs(&world, "it is carried out", |runs| runs[0].tally.of(record::DriftKind::Deleted) == 30).await;
    let deadline = Instant::now() + DEADLINE;
    while checks(&world).await != PendingChecks::default() {
        assert!(Instant::now() < deadline, "the request stays until the run is done, and no longer");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Stores a complete run that began this much later than now, by the clock of its process.
async fn run_ahead(world: &World, ahead: Duration) {
    let ahead = i64::try_from(ahead.as_micros()).expect("a few days");
    let clock = Clock::from_fn(move || Micros(Clock::system().now().0 + ahead));
    let client = Client::new(world.settings(10)).expect("the emulator's own settings");
    let reconciler = Reconciler::new(client, world.fresh.store.clone(), clock, quick());
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = reconciler.run(RunMode::Reconcile, &|_| {}, &CancellationToken::new()).await {
        assert!(matches!(error, Error::Busy { .. }) && Instant::now() < deadline, "{error:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_a_process_with_a_clock_ahead_delays_no_scan() {
    const DAYS: Duration = Duration::from_hours(48);
    let world = World::new(stores::embedded()).await;
    world.import(3);
    run_ahead(&world, DAYS).await;
    let every = Some(Duration::from_millis(300));
    let config =
        schedule::Config { every, every_while_webhook_silent: Duration::from_millis(300), ..often() };
    let _working = start(world.reconciler(10, quick()), config);
    until_runs(&world, "scans go on after the start", |runs| runs.len() >= 3).await;
    // The same while the process runs.
    run_ahead(&world, DAYS).await;
    let before = runs(&world).await.len();
    until_runs(&world, "scans go on", |runs| runs.len() >= before + 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_long_without_a_complete_scan_is_an_alarm_until_one_completes() {
    let world = World::new(stores::embedded()).await;
    world.import(5);
    let config = schedule::Config { every: Some(Duration::from_millis(100)), ..often() };
    let mut failing = start(failing(&world), config);
    let status = failing.until("no scan completes", |status| status.overdue.is_some()).await;
    assert!(status.overdue > Some(Duration::from_millis(300)), "{status:?}");
    let deadline = Instant::now() + DEADLINE;
    let other = world.reconciler(10, quick());
    while other.run(RunMode::Reconcile, &|_| {}, &CancellationToken::new()).await.is_err() {
        assert!(Instant::now() < deadline, "the lease is free now and then");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    failing.until("one of another process completed", |status| status.overdue.is_none()).await;
}
