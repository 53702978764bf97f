//! The scripted town at its pace, and what goes wrong with its deliveries on purpose.

use std::time::Duration;

use kinde_emulator::{Emulator, Fault, FaultKind, Town, town::Step};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often the town is asked for its next events.
const TICK: Duration = Duration::from_millis(20);

/// How much goes wrong on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Faults {
    /// Nothing.
    None,
    /// As on a bad day.
    #[default]
    Some,
    /// As on the worst one.
    Many,
}

impl Faults {
    /// The word on the command line.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Some => "some",
            Self::Many => "many",
        }
    }

    /// What goes wrong, and how often. No fault holds a delivery for more than a second.
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

/// Lets the town grow to `users`, then live at `rate` events per second until it is told to stop.
pub(super) async fn live(mut town: Town, emulator: Emulator, plan: Plan, stop: CancellationToken) {
    if stop.run_until_cancelled(grow(&mut town, &emulator, plan.users)).await.is_none() || plan.then_rest {
        return;
    }
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut owed, mut last) = (0.0, tokio::time::Instant::now());
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        owed += plan.rate * last.elapsed().as_secs_f64().min(1.0);
        last = tokio::time::Instant::now();
        while owed >= 1.0 {
            owed -= events_of_a_step(&mut town, &emulator);
        }
    }
}

/// What the town should do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Users to begin with.
    pub(super) users: usize,
    /// Events per second after that.
    pub(super) rate: f64,
    /// Nothing happens after the beginning.
    pub(super) then_rest: bool,
}

async fn grow(town: &mut Town, emulator: &Emulator, users: usize) {
    let mut living = 0;
    while living < users {
        match town.step(emulator) {
            Step::SignUp | Step::Import => living += 1,
            Step::Delete => living = living.saturating_sub(1),
            _ => {}
        }
        tokio::task::yield_now().await;
    }
}

/// A step makes none, one or two events; one that makes none costs a little, so that there is an end.
#[expect(clippy::cast_precision_loss, reason = "a handful")]
fn events_of_a_step(town: &mut Town, emulator: &Emulator) -> f64 {
    let before = emulator.stats().events;
    town.step(emulator);
    (emulator.stats().events.saturating_sub(before) as f64).max(0.1)
}
