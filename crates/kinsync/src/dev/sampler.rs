//! Takes snapshots of one run.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use kinde_emulator::{Delivery, Emulator, User};
use kinsync_core::UserDocument;
use kinsync_engine::internal::{
    breaker::State,
    reconcile::record::{DriftKind, Run},
    store::UserFilter,
};
use tokio::time::{Instant, timeout};

use super::{
    drift::{self, Drift},
    history::History,
    meters::{Page, Window},
    snapshot::{Deliveries, Lag, Queue, Reconciler, Snapshot, Users, display_name, recent},
};
use crate::{api::time::age, app::AppState, metrics};

/// Users per read of the store.
const PAGE: usize = 1000;
/// Timeout for reading all users of the store.
const READ_DEADLINE: Duration = Duration::from_secs(3);
/// Time until a delivered change must be in the store.
const GRACE: Duration = Duration::from_secs(2);
/// Seconds of the event rate that are kept: as many as a wide terminal shows.
const RATE_SECONDS: usize = 240;

/// Takes snapshots, each of which builds on the ones before.
pub(super) struct Sampler {
    emulator: Emulator,
    state: Arc<AppState>,
    started: Instant,
    history: History,
    /// Time since when users are unexplained.
    suspects: HashMap<String, Instant>,
    drift: Drift,
    users: Users,
    names: HashMap<String, String>,
    scans: ScanWatermarks,
    from_receipt: Window,
    from_kinde: Window,
    rate: Rate,
}

impl Sampler {
    pub(super) fn new(emulator: Emulator, state: Arc<AppState>) -> Self {
        let started = Instant::now();
        Self {
            emulator,
            state,
            started,
            history: History::default(),
            suspects: HashMap::new(),
            drift: Drift::default(),
            users: Users::default(),
            names: HashMap::new(),
            scans: ScanWatermarks::default(),
            from_receipt: Window::default(),
            from_kinde: Window::default(),
            rate: Rate { second: started, before: 0, counts: VecDeque::new() },
        }
    }

    /// Takes a snapshot. Not cancel safe for the comparison, which then stays that of the snapshot before.
    pub(super) async fn sample(&mut self) -> Snapshot {
        let at = Timestamp::from_microsecond(self.state.engine.clock().now().0).unwrap_or(Timestamp::MAX);
        let kinde = self.emulator.users();
        let deliveries = self.emulator.deliveries();
        self.history.read(&deliveries, |id| self.emulator.event(id));
        for user in &kinde {
            self.history.sample(at, user);
            self.names.insert(user.id.clone(), display_name(user));
        }
        let store_error = self.compare(&kinde).await.err();
        self.snapshot(&deliveries, store_error).await
    }

    /// Takes a snapshot with the users of the store as they were in the one before.
    pub(super) async fn sample_without_store(&mut self) -> Snapshot {
        let deliveries = self.emulator.deliveries();
        self.snapshot(&deliveries, Some("the store was not read again".to_owned())).await
    }

    /// Compares both sides.
    ///
    /// # Errors
    /// Why the store could not be read; the last comparison is kept.
    async fn compare(&mut self, kinde: &[User]) -> Result<(), String> {
        if self.state.engine.breaker().state() != State::Closed {
            let failure = self.state.engine.breaker().last_failure();
            return Err(
                failure.map_or_else(|| "the store is unavailable".to_owned(), |failure| failure.chain)
            );
        }
        let read = timeout(READ_DEADLINE, stored(&self.state)).await;
        let stored = read.map_err(|_| "listing the users of the store timed out".to_owned())??;
        self.drift = drift::compare(kinde, &stored, &self.history);
        let (deleted, live): (Vec<_>, Vec<_>) = stored.iter().partition(|user| user.is_deleted);
        let known = deleted.iter().filter(|user| self.history.user(user.kinde_id.as_str()).is_some());
        self.users = Users {
            at_kinde: kinde.len() as u64,
            in_store: (live.len() as u64).saturating_sub(self.drift.unknown),
            deleted: known.count() as u64,
        };
        let is_draining = self.state.engine.queue().stats().await.is_ok_and(|stats| stats.depth > 0);
        self.apply_grace(is_draining);
        Ok(())
    }

    /// Counts users that became unexplained within the grace period as in flight: a batch may still be written.
    fn apply_grace(&mut self, is_draining: bool) {
        let (now, details) = (Instant::now(), std::mem::take(&mut self.drift.details));
        self.suspects.retain(|id, _| details.iter().any(|(user, _)| user == id));
        for (user, fields) in details {
            let since = *self.suspects.entry(user.clone()).or_insert(now);
            if now.duration_since(since) < GRACE || is_draining {
                self.drift.unexplained -= 1;
                self.drift.in_flight += 1;
            } else {
                tracing::warn!(user, ?fields, "a delivered event is not in the store");
                self.drift.details.push((user, fields));
            }
        }
    }

    async fn snapshot(&mut self, deliveries: &[Delivery], store_error: Option<String>) -> Snapshot {
        let (stats, queue) =
            (self.emulator.stats(), self.state.engine.queue().stats().await.unwrap_or_default());
        let text = metrics::render(&self.state).await;
        let page = Page::new(&text);
        let lag = "kinsync_lag_seconds";
        self.rate.advance(stats.events);
        Snapshot {
            uptime: self.started.elapsed(),
            users: Users { at_kinde: self.emulator.user_count() as u64, ..self.users },
            drift: self.drift.clone(),
            reconciler: self.reconciler(),
            deliveries: Deliveries::read(&stats, &page),
            injected_faults: (&stats).into(),
            lag: Lag {
                from_receipt: self.from_receipt.advance(&page, lag, "from=\"receipt\""),
                from_kinde: self.from_kinde.advance(&page, lag, "from=\"kinde\""),
            },
            queue: Queue {
                depth: queue.depth,
                oldest_seconds: queue.oldest_received_at.map(|at| age(at, self.state.engine.clock().now())),
                dead_letters: queue.dead_letters,
            },
            breaker: self.state.engine.breaker().state().as_str(),
            store_error,
            events: stats.events,
            events_per_second: self.rate.average(),
            history: self.rate.counts.iter().copied().collect(),
            recent: recent(&self.emulator, deliveries, |user| self.names.get(user).cloned()),
        }
    }

    fn reconciler(&mut self) -> Option<Reconciler> {
        let status = self.state.engine.reconciler()?.status.borrow().clone();
        if let Some(run) = &status.latest {
            self.scans.add(run);
        }
        let ended_at = status.latest.and_then(|run| run.ended_at);
        Some(Reconciler {
            scans: self.scans.count,
            repaired: self.scans.repaired,
            last_scan_seconds_ago: ended_at.map(|at| age(at, self.state.engine.clock().now())),
            failure: status.failure,
        })
    }
}

/// Sums over the scans of this run.
#[derive(Default)]
struct ScanWatermarks {
    latest: Option<String>,
    count: u64,
    repaired: u64,
}

impl ScanWatermarks {
    fn add(&mut self, run: &Run) {
        if self.latest.as_ref() != Some(&run.id) {
            // Not `Filled`: those are fields that no event carries.
            const REPAIRED: [DriftKind; 5] = [
                DriftKind::Missing,
                DriftKind::Changed,
                DriftKind::SignedIn,
                DriftKind::Deleted,
                DriftKind::Restored,
            ];
            self.latest = Some(run.id.clone());
            self.count += 1;
            self.repaired += REPAIRED.map(|kind| run.tally.of(kind)).iter().sum::<u64>();
        }
    }
}

/// All documents of the store, also of deleted users.
async fn stored(state: &AppState) -> Result<Vec<UserDocument>, String> {
    let mut documents = Vec::new();
    let mut filter = UserFilter { with_deleted: true, limit: PAGE, ..UserFilter::default() };
    loop {
        let rows = state
            .engine
            .store()
            .users(&filter)
            .await
            .map_err(|error| kinsync_tower::problem::chain(&error))?;
        documents.extend(rows.iter().map(kinsync_engine::internal::store::Row::document));
        filter.after = rows.next;
        if filter.after.is_none() {
            return Ok(documents);
        }
    }
}

/// Events in each second.
struct Rate {
    second: Instant,
    before: u64,
    counts: VecDeque<u64>,
}

impl Rate {
    fn advance(&mut self, events: u64) {
        let passed = self.second.elapsed().as_secs();
        if passed == 0 {
            return;
        }
        // A late sample is spread over the seconds since the one before.
        let share = events.saturating_sub(self.before) / passed;
        for _ in 0..passed.min(RATE_SECONDS as u64) {
            if self.counts.len() == RATE_SECONDS {
                self.counts.pop_front();
            }
            self.counts.push_back(share);
        }
        self.second += Duration::from_secs(passed);
        self.before = events;
    }

    /// Average over the last ten seconds.
    #[expect(clippy::cast_precision_loss, reason = "for display only")]
    fn average(&self) -> f64 {
        let (sum, seconds) =
            self.counts.iter().rev().take(10).fold((0, 0), |(sum, n), count| (sum + count, n + 1));
        if seconds == 0 { 0.0 } else { sum as f64 / f64::from(seconds) }
    }
}
