//! Generated activity at the local Kinde, and the faults that are injected into its deliveries.

use std::time::Duration;

use kinde_emulator::{Activity, Emulator, Fault, FaultKind, activity::Action};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Interval in which due events are generated.
const TICK: Duration = Duration::from_millis(20);

/// How many faults are injected into deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Faults {
    /// No faults
    None,
    /// Some duplicates, reordered, delayed and lost deliveries
    #[default]
    Some,
    /// The same faults several times as often, and changes without an event
    Many,
}

impl Faults {
    /// The value of the command-line option.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Some => "some",
            Self::Many => "many",
        }
    }

    /// The faults and their probabilities. No fault delays a delivery by more than a second.
    pub(super) fn list(self) -> Vec<Fault> {
        let (duplicate, reorder, delay, drop, silent) = match self {
            Self::None => return Vec::new(),
            Self::Some => (0.10, 0.10, 0.15, 0.02, 0.0),
            Self::Many => (0.40, 0.40, 0.40, 0.10, 0.02),
        };
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(1));
        vec![
            Fault::chance(FaultKind::Duplicate { copies: 1 }, duplicate),
            Fault::chance(FaultKind::Reorder { behind: 3, hold: max }, reorder),
            Fault::chance(FaultKind::Delay { min, max }, delay),
            Fault::chance(FaultKind::Drop, drop),
            Fault::chance(FaultKind::Silent, silent),
        ]
        .into_iter()
        .filter(|fault| fault.chance > 0.0)
        .collect()
    }
}

/// Which activity to generate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Number of users at the start.
    pub(super) users: usize,
    /// Events per second after that.
    pub(super) rate: f64,
    /// Whether to generate nothing after the initial users.
    pub(super) initial_only: bool,
}

/// Creates the initial users, then generates events at the planned rate until `stop` is cancelled.
pub(super) async fn generate(
    mut activity: Activity,
    emulator: Emulator,
    plan: Plan,
    stop: CancellationToken,
) {
    let initial = create_users(&mut activity, &emulator, plan.users);
    if stop.run_until_cancelled(initial).await.is_none() || plan.initial_only {
        return;
    }
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut due, mut last) = (0.0, tokio::time::Instant::now());
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        due += plan.rate * last.elapsed().as_secs_f64().min(1.0);
        last = tokio::time::Instant::now();
        while due >= 1.0 {
            due -= events_of_a_step(&mut activity, &emulator);
        }
    }
}

async fn create_users(activity: &mut Activity, emulator: &Emulator, users: usize) {
    let mut count = 0;
    while count < users {
        match activity.step(emulator) {
            Action::SignUp | Action::Import => count += 1,
            Action::Delete => count = count.saturating_sub(1),
            _ => {}
        }
        tokio::task::yield_now().await;
    }
}

/// Runs a step and returns the number of its events. A step without an event counts as 0.1, so that the caller's loop
/// ends.
#[expect(clippy::cast_precision_loss, reason = "a step has few events")]
fn events_of_a_step(activity: &mut Activity, emulator: &Emulator) -> f64 {
    let before = emulator.stats().events;
    activity.step(emulator);
    (emulator.stats().events.saturating_sub(before) as f64).max(0.1)
}
