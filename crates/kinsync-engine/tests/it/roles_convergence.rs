//! Histories of lost, late, duplicate and reordered events, of imports, of scans that overlap with changes, and of kills: one complete
//! run makes the copy equal Kinde.

use std::{path::Path, sync::Arc, time::Duration};

use kinde_emulator::config::{Unknowns, UserPermissions};
use kinsync_core::UserId;
use kinsync_engine::{
    Clock,
    internal::{
        breaker::{self, Breaker},
        log_follower,
        projector::{self, Projector},
        queue::{
            Entry, Queue,
            embedded::{self, EmbeddedQueue},
        },
        reconcile::{
            Error, Reconciler,
            record::{DriftKind, RunMode},
            state_keys,
        },
        spread, state_records,
    },
};
use rand::Rng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    pipeline::until_spread,
    reconcile::{DEADLINE, World},
    roles::{keys, membership, reconcile, reconciler, with_roles},
    roles_history::History,
    roles_truth::{Known, assert_memberships},
    stores::{Fresh, on_every_store},
    suspended::Suspended,
};

on_every_store! {
    a_kill_of_a_scan_at_any_call_leaves_roles_and_permissions_of_one_time
    the_copy_equals_kinde_after_one_complete_run
    the_copy_equals_kinde_that_lists_the_permissions_of_roles_for_members
}

async fn a_kill_of_a_scan_at_any_call_leaves_roles_and_permissions_of_one_time(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    let join = |role: &str, permission: &str| {
        world.kinde.add_to_organization(&ada, "org_1", &keys(&[role]), &keys(&[permission])).expect("a user");
    };
    join("member", "read");
    world.deliver(world.events()).await;
    reconcile(&world).await;
    let shown = async || {
        let found = membership(&world, &ada).await.expect("a member");
        (found.roles.expect("known"), found.permissions)
    };
    let [before, after] = [("member", "read"), ("admin", "write")]
        .map(|(role, permission)| (keys(&[role]), Some(keys(&[permission]))));
    assert_eq!(shown().await, before);
    join("admin", "write");
    world.later().await;
    for call in 0.. {
        let process = Suspended::new(world.fresh.store.clone());
        process.suspend_at_call(call);
        let scanner = Reconciler::new(world.client(10), process.clone(), Clock::system(), with_roles());
        tokio::select! {
            () = scan(&world, &scanner, &RunMode::Reconcile) => {}
            () = process.until_suspended() => {}
        }
        let found = shown().await;
        if found == after {
            assert!(call > 10, "several calls precede the write: {call}");
            return;
        }
        assert_eq!(found, before, "{}, killed at call {call}", world.fresh.name);
    }
}

async fn the_copy_equals_kinde_after_one_complete_run(fresh: Fresh) {
    Box::pin(converges(fresh, UserPermissions::Direct, 11)).await;
}

async fn the_copy_equals_kinde_that_lists_the_permissions_of_roles_for_members(fresh: Fresh) {
    Box::pin(converges(fresh, UserPermissions::Effective, 12)).await;
}

/// A history with scans that overlap with changes, and with kills of processes at random calls of the store. After one complete run
/// everything that a scan compares equals Kinde, and after a check of all users everything does.
async fn converges(fresh: Fresh, user_permissions: UserPermissions, seed: u64) {
    let unknowns = Unknowns { user_permissions, ..Unknowns::default() };
    let world = World::with(fresh, kinde_emulator::Config { unknowns, ..Default::default() }).await;
    let mut history = History::new(&world, 14, seed);
    let events = history.live(60);
    Box::pin(apply(&mut history, events)).await;
    history.assert_only_what_events_say("before the first scan").await;
    for round in 0..2 {
        let mode = if round == 0 { RunMode::Backfill } else { RunMode::Reconcile };
        Box::pin(overlap(&mut history, mode)).await;
        history.assert_only_what_was(&format!("round {round}, during a scan")).await;
        let events = history.live(20);
        Box::pin(apply(&mut history, events)).await;
        assert_converged(&history, &format!("round {round}, after the run")).await;
        let late = history.late();
        Box::pin(apply(&mut history, late)).await;
        history.assert_only_what_was(&format!("round {round}, after late deliveries")).await;
        reconciler(&world).run_pending_checks().await.expect("Kinde answers");
        assert_converged(&history, &format!("round {round}, after late deliveries and a run")).await;
    }
}

/// Makes one complete run and a check of all users, and compares after each.
async fn assert_converged(history: &History<'_>, when: &str) {
    let world = history.world;
    let run = reconcile(world).await;
    if run.tally.of(DriftKind::RemovalHeld) + run.tally.of(DriftKind::DeletionHeld) > 0 {
        let stop = CancellationToken::new();
        let approved = reconciler(world).run(RunMode::Approve(run.id), &|_| {}, &stop).await;
        approved.expect("Kinde and the store answer");
    }
    world.assert_equal(when).await;
    assert_memberships(world, Known::Scanned(&history.outdated()), when).await;
    let users: Vec<UserId> =
        world.kinde.users().iter().map(|user| UserId::parse(&user.id).expect("an id")).collect();
    // Reads of one second have no order: those of the check could be older than those of the run.
    world.later().await;
    reconciler(world).check(&users).await.expect("Kinde and the store answer");
    assert_memberships(world, Known::All, &format!("{when}, after checks")).await;
}

/// One process on the store, with a queue in a folder.
pub(crate) struct Process {
    pub(crate) store: Arc<Suspended>,
    queue: Arc<dyn Queue>,
    projector: Projector,
}

impl Process {
    /// Starts a process that is killed instead of the call of the store after this number of calls.
    pub(crate) fn start(world: &World, folder: &Path, kill: usize) -> Self {
        let pause = Duration::from_millis(5);
        let config = projector::Config {
            batch: 7,
            check_roles: true,
            retry_after: pause,
            spread: spread::Config { page: 3, poll_every: pause, take_over_after: pause, retry_every: pause },
            ..projector::Config::default()
        };
        let queue: Arc<dyn Queue> = Arc::new(
            EmbeddedQueue::open(folder, embedded::Config::default(), Clock::system()).expect("a folder"),
        );
        let store = Suspended::new(world.fresh.store.clone());
        store.suspend_at_call(kill);
        let breaker = Breaker::new("store", "projector", breaker::Config::default());
        let (of_queue, of_store) = (Arc::clone(&queue), store.clone());
        let projector = Projector::new(of_queue, of_store, breaker, Clock::system(), config);
        Self { store, queue, projector }
    }

    /// Runs until this work is done, or until the process is killed. Returns whether it was.
    pub(crate) async fn run(self, work: impl AsyncFnOnce(&Self)) -> bool {
        let stop = CancellationToken::new();
        let tasks = async {
            tokio::join!(self.projector.run(stop.clone()), self.projector.spread().run(stop.clone()))
        };
        let is_killed = tokio::select! {
            _ = tasks => panic!("nothing stops the tasks"),
            () = work(&self) => false,
            () = self.store.until_suspended() => true,
        };
        self.queue.close().await;
        is_killed
    }

    pub(crate) async fn enqueue(&self, history: &mut History<'_>, entries: Vec<Entry>) {
        for entry in entries {
            let id = entry.event_id.clone();
            self.queue.enqueue(entry).await.expect("the queue takes it");
            history.delivered([id]);
        }
    }

    /// Waits until everything is applied and shown.
    pub(crate) async fn drain(&self, world: &World) {
        let deadline = Instant::now() + DEADLINE * 3;
        while self.queue.stats().await.expect("the queue is open").depth > 0 {
            assert!(Instant::now() < deadline, "the queue does not drain");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        until_spread(&*world.fresh.store).await;
        assert_eq!(self.queue.stats().await.expect("the queue is open").dead_letters, 0);
    }
}

/// Delivers events to a process that is killed, and lets another one continue.
async fn apply(history: &mut History<'_>, entries: Vec<Entry>) {
    let (world, kill) = (history.world, history.rng.random_range(5..60));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let process = Process::start(world, folder.path(), kill);
    process.enqueue(history, entries).await;
    Box::pin(process.run(async |process| process.drain(world).await)).await;
    finish(world, folder.path()).await;
}

/// Lets a process complete what killed ones have left.
pub(crate) async fn finish(world: &World, folder: &Path) {
    let process = Process::start(world, folder, usize::MAX);
    let work = async |process: &Process| {
        process.drain(world).await;
        let now = Clock::system().now();
        log_follower::follow(&*world.fresh.store, now, now).await.expect("the store answers");
        until_spread(&*world.fresh.store).await;
    };
    Box::pin(process.run(work)).await;
}

/// Scans while changes happen and their events arrive, in a process that is killed, and then in one that is not.
async fn overlap(history: &mut History<'_>, mode: RunMode) {
    let world = history.world;
    let folder = tempfile::tempdir().expect("a temporary folder");
    for is_killed in [true, false] {
        let kill = if is_killed { history.rng.random_range(20..300) } else { usize::MAX };
        let process = Process::start(world, folder.path(), kill);
        let scanner = Reconciler::new(world.client(5), process.store.clone(), Clock::system(), with_roles());
        let work = async |process: &Process| {
            tokio::select! {
                () = scan(world, &scanner, &mode) => {}
                () = change(history, process) => {}
            }
        };
        Box::pin(process.run(work)).await;
    }
    finish(world, folder.path()).await;
}

/// Scans at once, although the lease of a killed process has not expired. A call of that process may still reach the store.
pub(crate) async fn scan(world: &World, scanner: &Reconciler, mode: &RunMode) {
    loop {
        release_lease(world).await;
        match scanner.run(mode.clone(), &|_| {}, &CancellationToken::new()).await {
            Err(Error::Busy { .. } | Error::LeaseLost) => {}
            run => return drop(run.expect("Kinde and the store answer")),
        }
    }
}

/// Makes a change for each few requests to Kinde, and delivers its events.
async fn change(history: &mut History<'_>, process: &Process) {
    let world = history.world;
    let requests = || world.kinde.all_requests().values().sum::<u64>();
    let mut known = requests();
    loop {
        if requests() >= known + 3 {
            known = requests();
            let events = history.live(1);
            process.enqueue(history, events).await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Ends the lease of a killed process.
pub(crate) async fn release_lease(world: &World) {
    for key in state_keys().into_iter().filter(|key| key.name == "reconcile.lease") {
        state_records::reset(&*world.fresh.store, key).await.expect("the store answers");
    }
}
