//! What is so at one moment: collected from the emulator on one side and from kinsync on the other.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use kinde_emulator::{Delivery, DeliveryState, Emulator, User};
use kinsync_core::UserDocument;
use kinsync_engine::{breaker::State, store::UserFilter};
use serde::{Serialize, Serializer};
use tokio::time::{Instant, timeout};

use super::{
    drift::{self, Drift},
    ledger::Ledger,
    meters::{Page, Quantiles, Window},
};
use crate::{app::AppState, metrics};

/// Users read from the store at once.
const PAGE: usize = 1000;
/// The longest time for reading all of them.
const READ_DEADLINE: Duration = Duration::from_secs(3);
/// What was just delivered may need this long until it is seen in the store.
const SETTLING: Duration = Duration::from_secs(2);
/// Seconds of history, and events shown: as many as the widest and highest terminal may want.
const HISTORY: usize = 240;
const RECENT: usize = 60;

/// What is so at one moment.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Snapshot {
    #[serde(serialize_with = "seconds")]
    pub(crate) uptime: Duration,
    pub(crate) users: Users,
    pub(crate) drift: Drift,
    pub(crate) deliveries: Deliveries,
    pub(crate) on_purpose: OnPurpose,
    pub(crate) lag: Lag,
    pub(crate) queue: Queue,
    pub(crate) breaker: &'static str,
    /// Why the users of the store are those of an earlier moment, if they are.
    pub(crate) store_error: Option<String>,
    pub(crate) events: u64,
    pub(crate) events_per_second: f64,
    /// Events in each of the last seconds, oldest first.
    #[serde(skip)]
    pub(crate) history: Vec<u64>,
    /// The latest events, newest first.
    #[serde(skip)]
    pub(crate) recent: Vec<Recent>,
}

/// How many users there are, of this town.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Users {
    pub(crate) at_kinde: u64,
    pub(crate) in_store: u64,
    pub(crate) deleted: u64,
}

/// What became of deliveries: attempts by Kinde's count, the rest by kinsync's own metrics.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Deliveries {
    pub(crate) attempts: u64,
    pub(crate) accepted: u64,
    pub(crate) duplicates: u64,
    pub(crate) refused: u64,
    /// Answered 503 or 4xx for another reason.
    pub(crate) failed: u64,
    /// Waiting at Kinde, or being tried.
    pub(crate) pending: u64,
}

/// What went wrong on purpose.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct OnPurpose {
    pub(crate) dropped: u64,
    pub(crate) silent: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    pub(crate) delayed: u64,
}

/// From what to the store, over the last minute.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lag {
    pub(crate) from_receipt: Option<Quantiles>,
    pub(crate) from_kinde: Option<Quantiles>,
}

/// How the queue is doing.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Queue {
    pub(crate) depth: u64,
    pub(crate) oldest_seconds: Option<f64>,
    pub(crate) dead_letters: u64,
}

/// An event and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Recent {
    pub(crate) at: Timestamp,
    pub(crate) kind: String,
    pub(crate) fate: Fate,
    /// What the user is called: generated, like all of the town.
    pub(crate) name: String,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Answered 200, so many times.
    Delivered(u32),
    /// Not yet.
    OnTheWay,
    /// Answered with something else; it comes again.
    Refused(u16),
    /// Never sent.
    Lost,
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((time.as_secs_f64() * 10.0).round() / 10.0)
}

/// Collects snapshots of one run.
pub(super) struct Sampler {
    emulator: Emulator,
    state: Arc<AppState>,
    started: Instant,
    ledger: Ledger,
    /// Users who are behind, since when.
    suspects: HashMap<String, Instant>,
    drift: Drift,
    users: Users,
    names: HashMap<String, String>,
    from_receipt: Window,
    from_kinde: Window,
    history: History,
}

impl Sampler {
    pub(super) fn new(emulator: Emulator, state: Arc<AppState>) -> Self {
        let started = Instant::now();
        Self {
            emulator,
            state,
            started,
            ledger: Ledger::default(),
            suspects: HashMap::new(),
            drift: Drift::default(),
            users: Users::default(),
            names: HashMap::new(),
            from_receipt: Window::default(),
            from_kinde: Window::default(),
            history: History { second: started, before: 0, counts: VecDeque::new() },
        }
    }

    /// What is so now.
    pub(super) async fn sample(&mut self) -> Snapshot {
        let kinde = self.emulator.users();
        let deliveries = self.emulator.deliveries();
        self.note(&kinde, &deliveries);
        let store_error = self.compare(&kinde).await.err();
        self.snapshot(&deliveries, store_error)
    }

    /// What is so now, but for the users of the store: they are those of the last look.
    pub(super) fn sample_without_store(&mut self) -> Snapshot {
        let deliveries = self.emulator.deliveries();
        self.snapshot(&deliveries, Some("the store was not asked again".to_owned()))
    }

    fn note(&mut self, kinde: &[User], deliveries: &[Delivery]) {
        self.ledger.read(deliveries, |id| self.emulator.event(id));
        for user in kinde {
            self.ledger.meet(&user.id);
            self.names.insert(user.id.clone(), called(user));
        }
    }

    /// Compares both sides. `Err`: why the store could not be read; the last comparison stands.
    async fn compare(&mut self, kinde: &[User]) -> Result<(), String> {
        if self.state.breaker.state() != State::Closed {
            let error = self.state.breaker.last_error();
            return Err(error.unwrap_or_else(|| "the store does not answer".to_owned()));
        }
        let read = timeout(READ_DEADLINE, stored(&self.state)).await;
        let stored = read.map_err(|_| "the store takes too long to list its users".to_owned())??;
        self.drift = drift::compare(kinde, &stored, &self.ledger);
        let (deleted, live): (Vec<_>, Vec<_>) = stored.iter().partition(|row| row.is_deleted);
        let of_town = deleted.iter().filter(|row| self.ledger.knows(row.kinde_id.as_str()));
        self.users = Users {
            at_kinde: kinde.len() as u64,
            in_store: (live.len() as u64).saturating_sub(self.drift.strangers),
            deleted: of_town.count() as u64,
        };
        self.give_time();
        Ok(())
    }

    /// A user who has been behind for a moment only is on the way.
    fn give_time(&mut self) {
        let (now, behind) = (Instant::now(), std::mem::take(&mut self.drift.behind));
        self.suspects.retain(|id, _| behind.iter().any(|(user, _)| user == id));
        for (user, fields) in behind {
            let since = *self.suspects.entry(user.clone()).or_insert(now);
            if now.duration_since(since) < SETTLING || self.state.queue.stats().depth > 0 {
                self.drift.unexplained -= 1;
                self.drift.on_the_way += 1;
            } else {
                self.drift.behind.push((user, fields));
            }
        }
    }

    fn snapshot(&mut self, deliveries: &[Delivery], store_error: Option<String>) -> Snapshot {
        let (stats, queue) = (self.emulator.stats(), self.state.queue.stats());
        let text = metrics::render(&self.state);
        let page = Page::new(&text);
        let outcome = |name| page.sum("kinsync_deliveries_total", &[&format!("outcome=\"{name}\"")]);
        let lag = "kinsync_lag_seconds";
        self.history.advance(stats.events);
        Snapshot {
            uptime: self.started.elapsed(),
            users: Users { at_kinde: self.emulator.user_count() as u64, ..self.users },
            drift: self.drift.clone(),
            deliveries: Deliveries {
                attempts: stats.attempts,
                accepted: outcome("accepted"),
                duplicates: outcome("duplicate"),
                refused: outcome("refused"),
                failed: ["unavailable", "too_large", "too_slow", "malformed"].into_iter().map(outcome).sum(),
                pending: stats.pending,
            },
            on_purpose: OnPurpose {
                dropped: stats.dropped,
                silent: stats.silenced,
                duplicated: stats.duplicated,
                reordered: stats.reordered,
                delayed: stats.delayed,
            },
            lag: Lag {
                from_receipt: self.from_receipt.advance(&page, lag, "from=\"receipt\""),
                from_kinde: self.from_kinde.advance(&page, lag, "from=\"kinde\""),
            },
            queue: Queue {
                depth: queue.depth,
                oldest_seconds: queue.oldest_received_at.map(|at| metrics::age(at, self.state.clock.now())),
                dead_letters: queue.dead_letters,
            },
            breaker: self.state.breaker.state().as_str(),
            store_error,
            events: stats.events,
            events_per_second: self.history.rate(),
            history: self.history.counts.iter().copied().collect(),
            recent: self.recent(deliveries),
        }
    }

    /// The latest events, each with all its deliveries.
    fn recent(&self, deliveries: &[Delivery]) -> Vec<Recent> {
        let mut order: Vec<&str> = Vec::new();
        let mut of_event: HashMap<&str, Vec<&Delivery>> = HashMap::new();
        for delivery in deliveries.iter().rev() {
            let known = of_event.contains_key(delivery.event_id.as_str());
            if !known && order.len() == RECENT {
                break;
            }
            if !known {
                order.push(&delivery.event_id);
            }
            of_event.entry(&delivery.event_id).or_default().push(delivery);
        }
        let line = |id: &str| {
            let event = self.emulator.event(id)?;
            let name = event.user_id().and_then(|user| self.names.get(user)).cloned();
            Some(Recent {
                at: event.at,
                kind: event.kind.clone(),
                fate: fate(&of_event[id]),
                name: name.unwrap_or_default(),
            })
        };
        order.into_iter().filter_map(line).collect()
    }
}

fn fate(deliveries: &[&Delivery]) -> Fate {
    let count = |state| deliveries.iter().filter(|delivery| delivery.state == state).count();
    let refused = deliveries.iter().filter_map(|delivery| delivery.last_status).find(|status| *status != 200);
    match (count(DeliveryState::Delivered), count(DeliveryState::Pending), refused) {
        (0, 0, _) => Fate::Lost,
        (0, _, Some(status)) => Fate::Refused(status),
        (0, ..) => Fate::OnTheWay,
        (times, ..) => Fate::Delivered(u32::try_from(times).unwrap_or(u32::MAX)),
    }
}

/// First and last name, else whatever there is.
fn called(user: &User) -> String {
    let name = user.full_name();
    let others = [&user.email, &user.phone, &user.username];
    let other = others.into_iter().flatten().next();
    if name.trim().is_empty() { other.unwrap_or(&user.id).clone() } else { name }
}

/// All rows of the store, tombstones too.
async fn stored(state: &AppState) -> Result<Vec<UserDocument>, String> {
    let mut documents = Vec::new();
    let mut filter = UserFilter { with_deleted: true, limit: PAGE, ..UserFilter::default() };
    loop {
        let rows = state.store.users(&filter).await.map_err(|error| kinsync_tower::problem::chain(&error))?;
        documents.extend(rows.iter().map(kinsync_engine::store::Row::document));
        match rows.last() {
            Some(row) if rows.len() == PAGE => filter.after = Some(row.id.to_string()),
            _ => return Ok(documents),
        }
    }
}

/// Events by second.
struct History {
    second: Instant,
    before: u64,
    counts: VecDeque<u64>,
}

impl History {
    fn advance(&mut self, events: u64) {
        let passed = self.second.elapsed().as_secs();
        if passed == 0 {
            return;
        }
        // A sample that came late speaks for all the seconds since the last one.
        let share = events.saturating_sub(self.before) / passed;
        for _ in 0..passed.min(HISTORY as u64) {
            if self.counts.len() == HISTORY {
                self.counts.pop_front();
            }
            self.counts.push_back(share);
        }
        self.second += Duration::from_secs(passed);
        self.before = events;
    }

    /// Over the last ten seconds.
    #[expect(clippy::cast_precision_loss, reason = "a display")]
    fn rate(&self) -> f64 {
        let (sum, seconds) =
            self.counts.iter().rev().take(10).fold((0, 0), |(sum, n), count| (sum + count, n + 1));
        if seconds == 0 { 0.0 } else { sum as f64 / f64::from(seconds) }
    }
}
