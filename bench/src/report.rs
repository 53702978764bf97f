//! What was measured, as a table for people and as JSON for programs. A missed target is told like a met one.

use comfy_table::{Cell, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::machine::{Facts, Fsync};

/// Everything of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: Facts,
    fsync: Option<Fsync>,
    rows: Vec<Row>,
}

/// One line.
#[derive(Debug, Serialize)]
pub struct Row {
    part: &'static str,
    what: String,
    value: f64,
    unit: Unit,
    /// The value as text, perhaps with its spread.
    measured: String,
    target: Option<Target>,
    verdict: Verdict,
    note: String,
}

/// What a value is counted in.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A quotient.
    Ratio,
    /// Events, requests or documents per second.
    PerSecond,
    /// Milliseconds.
    Millis,
    /// Microseconds.
    Micros,
    /// Just bytes.
    Bytes,
    /// 2^20 bytes.
    MiB,
    /// Just a number.
    Count,
    /// A number with its decimals.
    Exact,
}

/// What it should be.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// This or more.
    AtLeast(f64),
    /// Less than this.
    Below(f64),
    /// This or less.
    AtMost(f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Met,
    Missed,
    /// There is no target.
    Shown,
    /// It was not measured rightly, so it says nothing.
    Invalid,
}

impl Unit {
    /// As people read it.
    pub fn text(self, value: f64) -> String {
        match self {
            Self::Ratio if value >= 10.0 => format!("{value:.1}x"),
            Self::Ratio => format!("{value:.2}x"),
            Self::PerSecond => format!("{}/s", grouped(value)),
            Self::Millis => format!("{value:.2} ms"),
            Self::Micros => format!("{value:.2} µs"),
            Self::Bytes => format!("{} B", grouped(value)),
            Self::MiB => format!("{value:.1} MiB"),
            Self::Count => grouped(value),
            Self::Exact => format!("{value:.1}"),
        }
    }
}

/// Thousands apart: 12 345.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

impl Row {
    /// A value without a target.
    pub fn new(part: &'static str, what: impl Into<String>, value: f64, unit: Unit) -> Self {
        let (what, measured) = (what.into(), unit.text(value));
        Self { part, what, value, unit, measured, target: None, verdict: Verdict::Shown, note: String::new() }
    }

    /// Judges the value.
    pub fn target(mut self, target: Target) -> Self {
        let met = match target {
            Target::AtLeast(bound) => self.value >= bound,
            Target::Below(bound) => self.value < bound,
            Target::AtMost(bound) => self.value <= bound,
        };
        self.target = Some(target);
        if self.verdict != Verdict::Invalid {
            self.verdict = if met { Verdict::Met } else { Verdict::Missed };
        }
        self
    }

    /// Says between what the rounds lay.
    pub fn spread(mut self, min: f64, max: f64) -> Self {
        if min < max {
            self.measured = format!("{} ({} – {})", self.measured, self.unit.text(min), self.unit.text(max));
        }
        self
    }

    /// Adds a remark.
    pub fn note(mut self, note: impl AsRef<str>) -> Self {
        let note = note.as_ref();
        if !self.note.is_empty() && !note.is_empty() {
            self.note.push_str("; ");
        }
        self.note.push_str(note);
        self
    }

    /// Adds the reason, if the target was missed.
    pub fn because(self, why: impl AsRef<str>) -> Self {
        if self.verdict == Verdict::Missed { self.note(why) } else { self }
    }

    /// Takes the verdict away if something went wrong.
    pub fn unless(mut self, problem: Option<String>) -> Self {
        if let Some(problem) = problem {
            self.verdict = Verdict::Invalid;
            return self.note(problem);
        }
        self
    }

    fn target_text(&self) -> String {
        match self.target {
            None => String::new(),
            Some(Target::AtLeast(bound)) => format!("≥ {}", self.unit.text(bound)),
            Some(Target::Below(bound)) => format!("< {}", self.unit.text(bound)),
            Some(Target::AtMost(bound)) => format!("≤ {}", self.unit.text(bound)),
        }
    }
}

impl Report {
    /// An empty one.
    pub fn new(machine: Facts) -> Self {
        Self { machine, fsync: None, rows: Vec::new() }
    }

    /// The facts, to add versions.
    pub fn machine(&mut self) -> &mut Facts {
        &mut self.machine
    }

    /// Adds a line, and shows it at once.
    pub fn add(&mut self, row: Row) {
        eprintln!("  {}: {} {}", row.what, row.measured, row.note);
        self.rows.push(row);
    }

    /// Says that a part could not be measured.
    pub fn failed(&mut self, part: &str, error: &anyhow::Error) {
        let row = Row::new("failed", part, f64::NAN, Unit::Count).unless(Some(format!("{error:#}")));
        self.rows.push(row);
    }

    /// Whether a part could not be measured, or not rightly.
    pub fn has_failures(&self) -> bool {
        self.rows.iter().any(|row| row.verdict == Verdict::Invalid)
    }

    /// Adds what is measured last.
    pub fn finish(&mut self, fsync: Fsync) {
        self.fsync = Some(fsync);
    }

    /// For programs.
    pub fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
        if table.width().is_none() {
            table.set_width(160);
        }
        table.set_header(["part", "what", "measured", "target", "", "remarks"]);
        for row in &self.rows {
            let verdict = match row.verdict {
                Verdict::Met => "met",
                Verdict::Missed => "MISSED",
                Verdict::Shown => "",
                Verdict::Invalid => "INVALID",
            };
            let cells = [row.part, &row.what, &row.measured, &row.target_text(), verdict, &row.note];
            table.add_row(cells.map(Cell::new));
        }
        let fsync = self.fsync.as_ref().map(|fsync| format!("\n{fsync}")).unwrap_or_default();
        format!("{}{fsync}\n{table}\n{}", self.machine, self.summary())
    }

    fn summary(&self) -> String {
        let count = |verdict| self.rows.iter().filter(|row| row.verdict == verdict).count();
        let (met, missed, invalid) = (count(Verdict::Met), count(Verdict::Missed), count(Verdict::Invalid));
        format!("targets: {met} met, {missed} missed; {invalid} lines invalid")
    }
}
