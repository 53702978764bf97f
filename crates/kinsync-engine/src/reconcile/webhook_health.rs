//! Detects a disabled webhook.
//!
//! Kinde disables a webhook after 72 hours of failures, and its API does not show that. Two signs show it: scans find changes
//! while no event arrives, or no event arrives for much longer than usual.

use std::time::Duration;

use kinsync_core::Micros;
use serde::Serialize;

use super::record::Run;
use crate::store::{Error, EventFilter, LogSource, Store};

/// Number of newest events that define the usual pause.
const EVENTS: usize = 200;
/// Maximum pages of the log to search for them. The log also contains sightings, which are skipped.
const PAGES: usize = 50;
/// Minimum number of events for a usual pause.
const MIN_EVENTS: usize = 20;
/// Multiple of the longest usual pause that counts as unusual.
const MUCH: i64 = 3;

/// Instructions for the operator.
pub const FIX: &str = "in Kinde, under Settings > Webhooks, open the webhook of this endpoint and enable it again: \
                       Kinde disables one after 72 hours of failures; then look at why deliveries failed, with \
                       `kinsync doctor`";

/// Reason why the webhook is considered silent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase", tag = "because")]
pub enum SilentWebhook {
    /// A scan found changes, and no event arrived since the start of the previous scan.
    #[serde(rename_all = "camelCase")]
    ChangesWithoutEvents {
        /// Number of users with a difference.
        users: u64,
        /// Id of the run.
        run: String,
        /// Receipt of the last event, by kinsync's clock.
        last_event_at: Option<Micros>,
    },
    /// No event arrived for much longer than usual.
    #[serde(rename_all = "camelCase")]
    UnusualPause {
        /// Receipt of the last event, by kinsync's clock.
        last_event_at: Micros,
        /// The longest pause among the last events, in seconds.
        usual_seconds: i64,
    },
}

impl std::fmt::Display for SilentWebhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ChangesWithoutEvents { users, run, .. } => {
                let changes = if *users == 1 { "change" } else { "changes" };
                write!(
                    f,
                    "run {run} found {users} {changes} and no event arrived: the webhook is probably disabled"
                )
            }
            Self::UnusualPause { usual_seconds, .. } => {
                write!(
                    f,
                    "no event arrived for more than {MUCH} times the longest usual pause of {usual_seconds} s: the \
                     webhook may be disabled"
                )
            }
        }
    }
}

/// Assesses the webhook from the event log and the newest runs. Pauses shorter than `silent_after` never count.
pub async fn assess(
    store: &dyn Store,
    runs: &[Run],
    now: Micros,
    silent_after: Duration,
) -> Result<Option<SilentWebhook>, Error> {
    let received = received(store, now).await?;
    Ok(missed(&received, runs).or_else(|| quiet(&received, runs, now, silent_after)))
}

/// Returns the times of receipt of Kinde's newest events, newest first. A time in the future comes from a wrong clock and
/// shows nothing.
async fn received(store: &dyn Store, now: Micros) -> Result<Vec<Micros>, Error> {
    let mut filter =
        EventFilter { source: Some(LogSource::Webhook), limit: EVENTS, ..EventFilter::default() };
    let mut received = Vec::new();
    for _ in 0..PAGES {
        let page = store.events(&filter).await?;
        received.extend(page.iter().map(|event| event.received_at).filter(|at| *at <= now));
        if page.next.is_none() || received.len() >= EVENTS {
            received.truncate(EVENTS);
            return Ok(received);
        }
        filter.after = page.next;
    }
    // The search ends here. The next entry counts as an event, so that an incomplete search raises no alarm.
    let end = store.events(&EventFilter { limit: 1, ..filter }).await?;
    received.extend(end.first().map(|event| event.received_at));
    Ok(received)
}

/// Returns the newest unannounced changes. Only an event clears them: a later scan without drift shows that the scan before
/// it repaired the drift, not that the webhook works.
fn missed(received: &[Micros], runs: &[Run]) -> Option<SilentWebhook> {
    let last_event_at = received.first().copied();
    let is_unannounced = |run: &&Run| {
        // Users missing at the very first scan existed before kinsync.
        let before = runs
            .iter()
            .filter(|before| before.is_complete() && before.started_at < run.started_at)
            .map(|before| before.started_at)
            .max();
        before.is_some_and(|before| last_event_at < Some(before))
    };
    let run =
        runs.iter().filter(|run| run.is_representative() && run.tally.missed() > 0).find(is_unannounced)?;
    Some(SilentWebhook::ChangesWithoutEvents {
        users: run.tally.missed(),
        run: run.id.clone(),
        last_event_at,
    })
}

fn quiet(received: &[Micros], runs: &[Run], now: Micros, silent_after: Duration) -> Option<SilentWebhook> {
    let last_event_at = *received.first()?;
    if received.len() < MIN_EVENTS {
        return None;
    }
    // The scans since then found no changes: there was nothing to announce.
    let mut since =
        runs.iter().filter(|run| run.is_representative() && run.started_at > last_event_at).peekable();
    if since.peek().is_some() && since.all(|run| run.tally.missed() == 0) {
        return None;
    }
    let longest = received.windows(2).map(|pair| pair[0].0.saturating_sub(pair[1].0)).max()?;
    let usual = longest.max(i64::try_from(silent_after.as_micros()).unwrap_or(i64::MAX) / MUCH);
    let pause = now.0.saturating_sub(last_event_at.0);
    (pause > usual.saturating_mul(MUCH))
        .then_some(SilentWebhook::UnusualPause { last_event_at, usual_seconds: longest / 1_000_000 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::record::{Drift, DriftKind, Outcome, RunMode};

    const HOUR: i64 = 3_600_000_000;

    #[test]
    fn one_change_is_singular() {
        let text = |users| {
            SilentWebhook::ChangesWithoutEvents { users, run: "r".into(), last_event_at: None }.to_string()
        };
        assert!(
            text(1).contains("found 1 change and") && text(2).contains("found 2 changes and"),
            "{}",
            text(1)
        );
    }

    fn run(began: i64, missed: u64) -> Run {
        let mut run = Run::new(RunMode::Reconcile, Micros(began));
        run.ended(Outcome::Complete, Micros(began + 1));
        for n in 0..missed {
            let user = kinsync_core::UserId::parse(&format!("kp_{n}")).unwrap();
            run.tally.add(Drift {
                user,
                kind: DriftKind::Changed,
                fields: Vec::new(),
                known_at: None,
                previous_source: None,
            });
        }
        run
    }

    fn hourly(last: i64) -> Vec<Micros> {
        (0..30).map(|n| Micros(last - n * HOUR)).collect()
    }

    #[test]
    fn changes_without_any_event_between_two_scans_mean_a_silent_webhook() {
        let runs = [run(20 * HOUR, 3), run(10 * HOUR, 0)];
        let silent = missed(&[Micros(9 * HOUR)], &runs);
        assert!(matches!(silent, Some(SilentWebhook::ChangesWithoutEvents { users: 3, .. })), "{silent:?}");
        assert_eq!(missed(&[Micros(11 * HOUR)], &runs), None, "one change was lost, other events arrived");
        assert_eq!(missed(&[], &runs[..1]), None, "every user is missing at the first scan");
        assert_eq!(
            missed(&[Micros(9 * HOUR)], &[run(30 * HOUR, 0), run(20 * HOUR, 3)]),
            None,
            "the first scan, seen later"
        );
    }

    #[test]
    fn only_an_event_ends_the_alarm() {
        let runs = [run(40 * HOUR, 0), run(30 * HOUR, 0), run(20 * HOUR, 3), run(10 * HOUR, 0)];
        let silent = missed(&[Micros(9 * HOUR)], &runs);
        assert!(matches!(silent, Some(SilentWebhook::ChangesWithoutEvents { users: 3, .. })), "{silent:?}");
        assert_eq!(missed(&[Micros(31 * HOUR)], &runs), None, "an event came");
    }

    #[test]
    fn a_pause_much_longer_than_usual_means_a_silent_webhook() {
        let silent_after = Duration::from_mins(1);
        let events = hourly(0);
        assert_eq!(quiet(&events, &[], Micros(2 * HOUR), silent_after), None);
        assert!(quiet(&events, &[], Micros(4 * HOUR), silent_after).is_some());
        assert_eq!(
            quiet(&events, &[], Micros(4 * HOUR), Duration::from_hours(5)),
            None,
            "a longer pause is allowed"
        );
        assert_eq!(
            quiet(&events[..5], &[], Micros(400 * HOUR), silent_after),
            None,
            "five events define no usual pause"
        );
        assert_eq!(quiet(&[], &[], Micros(400 * HOUR), silent_after), None);
    }

    #[test]
    fn a_pause_means_nothing_while_scans_find_no_changes() {
        let (events, silent_after) = (hourly(0), Duration::from_mins(1));
        let after = |run: Run| quiet(&events, &[run, self::run(-1, 0)], Micros(12 * HOUR), silent_after);
        assert_eq!(after(run(HOUR, 0)), None, "no changes");
        assert!(after(run(HOUR, 1)).is_some(), "a change was missed");
        assert!(after(run(-HOUR, 0)).is_some(), "no scan since");
    }
}
