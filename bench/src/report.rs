//! The results as a table and as JSON. Met and missed targets are both reported.

use comfy_table::{Cell, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::machine::{Facts, Fsync};

/// The results of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: Facts,
    fsync: Option<Fsync>,
    rows: Vec<Row>,
}

/// One row.
#[derive(Debug, Serialize)]
pub struct Row {
    part: &'static str,
    what: String,
    value: f64,
    unit: Unit,
    /// The value as text, with its spread if there is one.
    measured: String,
    target: Option<Target>,
    verdict: Verdict,
    note: String,
}

/// The unit of a value.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A ratio.
    Ratio,
    /// Events, requests or documents per second.
    PerSecond,
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Millis,
    /// Microseconds.
    Micros,
    /// Bytes.
    Bytes,
    /// 2^20 bytes.
    MiB,
    /// A count.
    Count,
    /// A number with decimals.
    Exact,
}

/// A target.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// At least this value.
    AtLeast(f64),
    /// Below this value.
    Below(f64),
    /// At most this value.
    AtMost(f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Met,
    Missed,
    /// No target.
    Shown,
    /// The measurement is invalid.
    Invalid,
}

impl Unit {
    /// Its text in the table.
    pub fn text(self, value: f64) -> String {
        match self {
            Self::Ratio if value >= 10.0 => format!("{value:.1}x"),
            Self::Ratio => format!("{value:.2}x"),
            Self::PerSecond => format!("{}/s", grouped(value)),
            Self::Seconds => format!("{value:.1} s"),
            Self::Millis => format!("{value:.2} ms"),
            Self::Micros => format!("{value:.2} µs"),
            Self::Bytes => format!("{} B", grouped(value)),
            Self::MiB => format!("{value:.1} MiB"),
            Self::Count => grouped(value),
            Self::Exact => format!("{value:.1}"),
        }
    }
}

/// Groups digits: 12 345.
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
    /// Creates a row without a target.
    pub fn new(part: &'static str, what: impl Into<String>, value: f64, unit: Unit) -> Self {
        let (what, measured) = (what.into(), unit.text(value));
        Self { part, what, value, unit, measured, target: None, verdict: Verdict::Shown, note: String::new() }
    }

    /// Compares the value with a target.
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

    /// Adds the smallest and largest value of the rounds.
    pub fn spread(mut self, min: f64, max: f64) -> Self {
        if min < max {
            self.measured = format!("{} ({} – {})", self.measured, self.unit.text(min), self.unit.text(max));
        }
        self
    }

    /// Adds a note.
    pub fn note(mut self, note: impl AsRef<str>) -> Self {
        let note = note.as_ref();
        if !self.note.is_empty() && !note.is_empty() {
            self.note.push_str("; ");
        }
        self.note.push_str(note);
        self
    }

    /// Adds a reason if the target was missed.
    pub fn because(self, why: impl AsRef<str>) -> Self {
        if self.verdict == Verdict::Missed { self.note(why) } else { self }
    }

    /// Marks the row as invalid if there is a problem.
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
    /// Creates an empty report.
    pub fn new(machine: Facts) -> Self {
        Self { machine, fsync: None, rows: Vec::new() }
    }

    /// The facts of the machine.
    pub fn machine(&mut self) -> &mut Facts {
        &mut self.machine
    }

    /// Adds a row and prints it.
    pub fn add(&mut self, row: Row) {
        eprintln!("  {}: {} {}", row.what, row.measured, row.note);
        self.rows.push(row);
    }

    /// Adds a failed measurement.
    pub fn failed(&mut self, part: &str, error: &anyhow::Error) {
        let row = Row::new("failed", part, f64::NAN, Unit::Count).unless(Some(format!("{error:#}")));
        self.rows.push(row);
    }

    /// Whether a measurement failed or is invalid.
    pub fn has_failures(&self) -> bool {
        self.rows.iter().any(|row| row.verdict == Verdict::Invalid)
    }

    /// Adds the latency of the disk.
    pub fn finish(&mut self, fsync: Fsync) {
        self.fsync = Some(fsync);
    }

    /// The report as JSON.
    pub fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// The report as text.
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
