//! The turns of one server, compared with those of another.

use std::time::Instant;

use crate::load::{self, Outcome, Plan};
use crate::mongo::Mongod;
use crate::process::{Process, own_cpu};
use crate::report::{Row, Unit};

/// The result of one turn.
#[derive(Debug)]
pub struct Turn {
    rate: f64,
    p50: f64,
    p99: f64,
    max: f64,
    window: f64,
    cores: [(String, f64); 3],
    /// CPU time of the server per response in microseconds.
    cpu: f64,
    problem: Option<String>,
}

impl Turn {
    /// Runs the plan and reads the CPU time of all processes.
    pub async fn run(plan: Plan, server: &Process, mongod: &Mongod) -> anyhow::Result<(Outcome, Self)> {
        let cpu = || anyhow::Ok([server.cpu()?, mongod.cpu()?, own_cpu()?]);
        let (before, start) = (cpu()?, Instant::now());
        let outcome = load::run(plan).await?;
        let (after, took) = (cpu()?, start.elapsed());
        let used = |at: usize| after[at].saturating_sub(before[at]).as_secs_f64();
        let share = |at: usize| used(at) / took.as_secs_f64();
        let cores =
            [(server.name().to_owned(), share(0)), ("mongod".into(), share(1)), ("load".into(), share(2))];
        let cpu = used(0) * 1e6 / outcome.accepted.max(1) as f64;
        let turn = Self::new(&outcome, cores, cpu);
        Ok((outcome, turn))
    }

    fn new(outcome: &Outcome, cores: [(String, f64); 3], cpu: f64) -> Self {
        let millis = |micros: u64| micros as f64 / 1000.0;
        Self {
            rate: outcome.rate(),
            p50: millis(outcome.latency.value_at_quantile(0.5)),
            p99: millis(outcome.latency.value_at_quantile(0.99)),
            max: millis(outcome.latency.max()),
            window: outcome.window.as_secs_f64(),
            cores,
            cpu,
            problem: outcome.problem(),
        }
    }

    /// Marks the turn as invalid.
    pub fn fail(&mut self, problem: Option<String>) {
        self.problem = self.problem.take().or(problem);
    }
}

/// The turns of one server in one part of the bench, in the order of the rounds.
#[derive(Debug)]
pub struct Series {
    part: &'static str,
    turns: Vec<Turn>,
}

impl Series {
    /// Creates a series without turns.
    pub fn new(part: &'static str) -> Self {
        Self { part, turns: Vec::new() }
    }

    /// Adds a turn.
    pub fn push(&mut self, turn: Turn) {
        self.turns.push(turn);
    }

    fn spread(&self, of: impl Fn(&Turn) -> f64) -> Spread {
        Spread::of(&self.turns.iter().map(of).collect::<Vec<_>>())
    }

    /// Median of the rounds in milliseconds.
    pub fn p50(&self) -> f64 {
        self.spread(|turn| turn.p50).median
    }

    /// Median of the rounds in milliseconds.
    pub fn p99(&self) -> f64 {
        self.spread(|turn| turn.p99).median
    }

    /// Why a turn is invalid, if one is.
    pub fn problem(&self) -> Option<String> {
        self.turns.iter().find_map(|turn| turn.problem.clone())
    }

    /// Used cores by process.
    pub fn cpu(&self) -> String {
        let Some(first) = self.turns.first() else { return String::new() };
        let one =
            |at: usize| format!("{} {:.2}", first.cores[at].0, self.spread(|turn| turn.cores[at].1).median);
        (0..first.cores.len()).map(one).collect::<Vec<_>>().join(", ")
    }

    /// CPU time of the server per response beyond that of another, in microseconds, for each round.
    pub fn cpu_beyond(&self, other: &Self) -> Spread {
        let pairs = self.turns.iter().zip(&other.turns);
        Spread::of(&pairs.map(|(one, other)| one.cpu - other.cpu).collect::<Vec<_>>())
    }

    /// CPU time of the server per response divided by that of another plus `added` microseconds, for each round.
    pub fn cpu_over(&self, other: &Self, added: f64) -> Spread {
        let pairs = self.turns.iter().zip(&other.turns);
        Spread::of(&pairs.map(|(one, other)| one.cpu / (other.cpu + added)).collect::<Vec<_>>())
    }

    /// The row of the CPU time of the server per response, from the kernel's accounting of its process.
    pub fn cpu_row(&self, what: &str) -> Row {
        let Spread { median, min, max } = self.spread(|turn| turn.cpu);
        Row::new(self.part, what, median, Unit::Micros).spread(min, max).unless(self.problem())
    }

    /// The row of this server.
    pub fn row(&self, what: &str) -> Row {
        let rate = self.spread(|turn| turn.rate);
        let max = self.spread(|turn| turn.max).max;
        let window = self.spread(|turn| turn.window).min;
        let latency =
            format!("p50 {:.2}, p99 {:.2}, max {max:.1} ms in {window:.1} s", self.p50(), self.p99());
        Row::new(self.part, what, rate.median, Unit::PerSecond)
            .spread(rate.min, rate.max)
            .note(latency)
            .note(format!("cores: {}", self.cpu()))
            .unless(self.problem())
    }

    /// The ratio for each round.
    pub fn over(&self, other: &Self) -> Spread {
        let pairs = self.turns.iter().zip(&other.turns);
        Spread::of(&pairs.map(|(one, other)| one.rate / other.rate).collect::<Vec<_>>())
    }

    /// The row of the ratio.
    pub fn ratio(&self, what: &str, other: &Self) -> Row {
        let Spread { median, min, max } = self.over(other);
        let problem = self.problem().or_else(|| other.problem());
        Row::new(self.part, what, median, Unit::Ratio).spread(min, max).unless(problem)
    }
}

/// Statistics of values.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
}

impl Spread {
    /// Computes the statistics; NaN without values.
    pub fn of(values: &[f64]) -> Self {
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
