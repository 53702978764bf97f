//! The turns of one server, and how they compare with those of another.

use super::PART;
use crate::load::Outcome;
use crate::report::{Row, Unit};

/// One turn.
#[derive(Debug)]
pub(super) struct Turn {
    rate: f64,
    p50: f64,
    p99: f64,
    max: f64,
    window: f64,
    cores: [(String, f64); 3],
    problem: Option<String>,
}

impl Turn {
    pub(super) fn new(outcome: &Outcome, cores: [(String, f64); 3]) -> Self {
        let millis = |micros: u64| micros as f64 / 1000.0;
        Self {
            rate: outcome.rate(),
            p50: millis(outcome.latency.value_at_quantile(0.5)),
            p99: millis(outcome.latency.value_at_quantile(0.99)),
            max: millis(outcome.latency.max()),
            window: outcome.window.as_secs_f64(),
            cores,
            problem: outcome.problem(),
        }
    }

    /// Notes that the turn does not count.
    pub(super) fn fail(&mut self, problem: Option<String>) {
        self.problem = self.problem.take().or(problem);
    }
}

/// The turns of one server, in the order of the rounds.
#[derive(Debug, Default)]
pub(super) struct Series(Vec<Turn>);

impl Series {
    pub(super) fn push(&mut self, turn: Turn) {
        self.0.push(turn);
    }

    fn spread(&self, of: impl Fn(&Turn) -> f64) -> Spread {
        Spread::of(&self.0.iter().map(of).collect::<Vec<_>>())
    }

    /// Milliseconds; the median of the rounds.
    pub(super) fn p50(&self) -> f64 {
        self.spread(|turn| turn.p50).median
    }

    /// Milliseconds; the median of the rounds.
    pub(super) fn p99(&self) -> f64 {
        self.spread(|turn| turn.p99).median
    }

    /// Why it does not count, if any turn does not.
    pub(super) fn problem(&self) -> Option<String> {
        self.0.iter().find_map(|turn| turn.problem.clone())
    }

    /// Cores in use, by who uses them.
    pub(super) fn cpu(&self) -> String {
        let Some(first) = self.0.first() else { return String::new() };
        let one =
            |at: usize| format!("{} {:.2}", first.cores[at].0, self.spread(|turn| turn.cores[at].1).median);
        (0..first.cores.len()).map(one).collect::<Vec<_>>().join(", ")
    }

    /// The line of this server.
    pub(super) fn row(&self, what: &str) -> Row {
        let rate = self.spread(|turn| turn.rate);
        let max = self.spread(|turn| turn.max).max;
        let window = self.spread(|turn| turn.window).min;
        let latency =
            format!("p50 {:.2}, p99 {:.2}, max {max:.1} ms in {window:.1} s", self.p50(), self.p99());
        Row::new(PART, what, rate.median, Unit::PerSecond)
            .spread(rate.min, rate.max)
            .note(latency)
            .note(format!("cores: {}", self.cpu()))
            .unless(self.problem())
    }

    /// Round by round.
    pub(super) fn over(&self, other: &Self) -> Spread {
        let pairs = self.0.iter().zip(&other.0);
        Spread::of(&pairs.map(|(one, other)| one.rate / other.rate).collect::<Vec<_>>())
    }

    /// The line that compares.
    pub(super) fn ratio(&self, what: &str, other: &Self) -> Row {
        let Spread { median, min, max } = self.over(other);
        let problem = self.problem().or_else(|| other.problem());
        Row::new(PART, what, median, Unit::Ratio).spread(min, max).unless(problem)
    }
}

/// Of some values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    pub(super) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) && !sorted.is_empty() {
            f64::midpoint(at(middle - 1), at(middle))
        } else {
            at(middle)
        };
        Self { median, min: at(0), max: at(sorted.len().saturating_sub(1)) }
    }
}
