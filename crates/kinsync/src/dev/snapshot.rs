//! A snapshot of the run: what the emulator and kinsync report at one moment.

use std::time::Duration;

use jiff::Timestamp;
use kinde_emulator::{Delivery, DeliveryState, Emulator, Stats, User};
use serde::{Serialize, Serializer};

use super::{
    drift::Drift,
    meters::{Page, Quantiles},
};

/// Largest number of recent events in a snapshot: as many as a tall terminal shows.
const RECENT: usize = 60;

/// What is reported at one moment.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Snapshot {
    /// Time since the start, in seconds.
    #[serde(serialize_with = "seconds")]
    pub(crate) uptime: Duration,
    pub(crate) users: Users,
    pub(crate) drift: Drift,
    /// `None` without a reconciler.
    pub(crate) reconciler: Option<Reconciler>,
    pub(crate) deliveries: Deliveries,
    pub(crate) injected_faults: InjectedFaults,
    pub(crate) lag: Lag,
    pub(crate) queue: Queue,
    pub(crate) breaker: &'static str,
    /// Why the users of the store are those of an earlier snapshot, if they are.
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

/// Numbers of users of this run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Users {
    pub(crate) at_kinde: u64,
    pub(crate) in_store: u64,
    pub(crate) deleted: u64,
}

/// What the scans found and repaired.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reconciler {
    /// Complete scans.
    pub(crate) scans: u64,
    /// Users that were repaired.
    pub(crate) repaired: u64,
    /// Time since the end of the last complete scan.
    pub(crate) last_scan_seconds_ago: Option<f64>,
    /// Why the last scan failed, if it did.
    pub(crate) failure: Option<String>,
}

/// Delivery attempts as the emulator counts them, outcomes as kinsync's metrics count them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Deliveries {
    pub(crate) attempts: u64,
    pub(crate) accepted: u64,
    pub(crate) duplicates: u64,
    /// Answered 401.
    pub(crate) refused: u64,
    /// Without a signature, or answered 503 or another 4xx.
    pub(crate) failed: u64,
    /// Waiting at the emulator or being sent.
    pub(crate) pending: u64,
}

impl Deliveries {
    pub(super) fn read(stats: &Stats, page: &Page<'_>) -> Self {
        let outcome = |name| page.sum("kinsync_deliveries_total", &[&format!("outcome=\"{name}\"")]);
        Self {
            attempts: stats.attempts,
            accepted: outcome("accepted"),
            duplicates: outcome("duplicate"),
            refused: outcome("refused"),
            failed: ["unavailable", "too_large", "too_slow", "malformed", "unsigned", "over_budget"]
                .into_iter()
                .map(outcome)
                .sum(),
            pending: stats.pending,
        }
    }
}

/// Faults that the emulator injected.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct InjectedFaults {
    pub(crate) dropped: u64,
    pub(crate) silent: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    pub(crate) delayed: u64,
}

impl From<&Stats> for InjectedFaults {
    fn from(stats: &Stats) -> Self {
        Self {
            dropped: stats.dropped,
            silent: stats.silenced,
            duplicated: stats.duplicated,
            reordered: stats.reordered,
            delayed: stats.delayed,
        }
    }
}

/// Time until a change is in the store, over the last minute.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lag {
    /// From the receipt of the delivery.
    pub(crate) from_receipt: Option<Quantiles>,
    /// From Kinde's time of the event.
    pub(crate) from_kinde: Option<Quantiles>,
}

/// State of the queue.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Queue {
    pub(crate) depth: u64,
    pub(crate) oldest_seconds: Option<f64>,
    pub(crate) dead_letters: u64,
}

/// An event and the outcome of its deliveries.
#[derive(Clone, Debug)]
pub(crate) struct Recent {
    pub(crate) at: Timestamp,
    pub(crate) kind: String,
    pub(crate) outcome: Outcome,
    /// Name of the generated user.
    pub(crate) name: String,
}

/// The outcome of an event's deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answered 200 this many times.
    Delivered(u32),
    /// Not answered yet.
    Pending,
    /// Answered with this status; Kinde will retry.
    Failed(u16),
    /// Never sent.
    Lost,
}

impl Outcome {
    fn of(deliveries: &[&Delivery]) -> Self {
        let count = |state| deliveries.iter().filter(|delivery| delivery.state == state).count();
        let failed =
            deliveries.iter().filter_map(|delivery| delivery.last_status).find(|status| *status != 200);
        match (count(DeliveryState::Delivered), count(DeliveryState::Pending), failed) {
            (0, 0, _) => Self::Lost,
            (0, _, Some(status)) => Self::Failed(status),
            (0, ..) => Self::Pending,
            (times, ..) => Self::Delivered(u32::try_from(times).unwrap_or(u32::MAX)),
        }
    }
}

/// The latest events with the outcome of all their deliveries, newest first.
pub(super) fn recent(
    emulator: &Emulator,
    deliveries: &[Delivery],
    name_of: impl Fn(&str) -> Option<String>,
) -> Vec<Recent> {
    let mut by_event: Vec<(&str, Vec<&Delivery>)> = Vec::new();
    for delivery in deliveries.iter().rev() {
        match by_event.iter().position(|(id, _)| *id == delivery.event_id) {
            Some(known) => by_event[known].1.push(delivery),
            None if by_event.len() == RECENT => break,
            None => by_event.push((&delivery.event_id, vec![delivery])),
        }
    }
    let line = |(id, deliveries): (&str, Vec<&Delivery>)| {
        let event = emulator.event(id)?;
        let name = event.user_id().and_then(&name_of).unwrap_or_default();
        Some(Recent { at: event.at, kind: event.kind.clone(), outcome: Outcome::of(&deliveries), name })
    };
    by_event.into_iter().filter_map(line).collect()
}

/// First and last name, else the email, phone, username or id.
pub(super) fn display_name(user: &User) -> String {
    let name = user.full_name();
    let others = [&user.email, &user.phone, &user.username];
    let other = others.into_iter().flatten().next();
    if name.trim().is_empty() { other.unwrap_or(&user.id).clone() } else { name }
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((time.as_secs_f64() * 10.0).round() / 10.0)
}
