//! Renders a snapshot as lines of text. Pure: depends on the size of the terminal only.

mod pages;
mod text;

use console::Style;

pub(crate) use self::pages::{page, preamble};
use self::text::{clock, counted, grouped, plain, span, sparkline};
use super::{
    hints::Addresses,
    meters::Quantiles,
    snapshot::{Outcome, Recent, Snapshot},
};
use crate::plural::plural;

/// Widths of the label, of the number and of its unit.
const LABEL: usize = 10;
const NUMBER: usize = 8;
const UNIT: usize = 8;
/// Lines above and below the events.
const ABOVE: usize = 14;
const BELOW: usize = 3;

/// The size of the output, and whether to use colors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Canvas {
    pub(crate) columns: usize,
    pub(crate) rows: usize,
    pub(crate) colors: bool,
}

impl Canvas {
    fn paint(self, style: Style, text: impl std::fmt::Display) -> String {
        style.force_styling(self.colors).apply_to(text).to_string()
    }

    fn bold(self, text: impl std::fmt::Display) -> String {
        self.paint(Style::new().bold(), text)
    }

    fn dim(self, text: impl std::fmt::Display) -> String {
        self.paint(Style::new().dim(), text)
    }

    fn good(self, text: impl std::fmt::Display) -> String {
        self.paint(Style::new().green(), text)
    }

    fn warning(self, text: impl std::fmt::Display) -> String {
        self.paint(Style::new().yellow(), text)
    }

    fn bad(self, text: impl std::fmt::Display) -> String {
        self.paint(Style::new().red().bold(), text)
    }

    /// Text that is highlighted unless the number is 0.
    fn warning_unless_zero(self, number: u64, text: String) -> String {
        if number == 0 { text } else { self.warning(text) }
    }

    /// Cuts lines to the size.
    fn fit(self, lines: Vec<String>) -> Vec<String> {
        let cut = |line: String| console::truncate_str(&line, self.columns, "…").into_owned();
        lines.into_iter().take(self.rows).map(cut).collect()
    }
}

/// The title of a run.
#[derive(Clone, Debug)]
pub(crate) struct Title {
    /// Such as `embedded store · faults: some · seed 1`.
    pub(crate) text: String,
    /// What differs from the options.
    pub(crate) note: Option<String>,
}

/// The live page.
pub(crate) fn live(now: &Snapshot, title: &Title, at: &Addresses, canvas: Canvas) -> Vec<String> {
    let mut lines = vec![header(now, title, canvas), String::new()];
    lines.extend(users(now, canvas));
    lines.push(repair(now, canvas));
    lines.extend(deliveries(now, canvas));
    lines.push(String::new());
    let room = canvas.rows.saturating_sub(ABOVE + BELOW);
    lines.extend(now.recent.iter().take(room).map(|recent| event(recent, canvas)));
    lines.resize(ABOVE + room, String::new());
    lines.push(title.note.as_ref().map(|note| canvas.warning(format!(" {note}"))).unwrap_or_default());
    lines.push(format!(
        " kinsync {}   local Kinde {}",
        canvas.paint(Style::new().cyan(), &at.kinsync),
        canvas.paint(Style::new().cyan(), &at.emulator)
    ));
    lines.push(canvas.dim(" c  addresses and commands to try · q  quit"));
    canvas.fit(lines)
}

fn header(now: &Snapshot, title: &Title, canvas: Canvas) -> String {
    let up = format!("up {}", clock(now.uptime));
    let used = 1 + "kinsync dev".len() + 3 + console::measure_text_width(&title.text) + up.len() + 1;
    let gap = canvas.columns.saturating_sub(used).max(2);
    format!(" {}   {}{:gap$}{}", canvas.bold("kinsync dev"), canvas.dim(&title.text), "", canvas.dim(up))
}

fn users(now: &Snapshot, canvas: Canvas) -> [String; 3] {
    let (users, drift) = (&now.users, &now.drift);
    let unknown = match drift.unknown {
        0 => String::new(),
        n => format!(" · {} unknown", grouped(n)),
    };
    let stored = format!(
        "{} in the store · {} deleted{unknown}",
        canvas.bold(grouped(users.in_store)),
        grouped(users.deleted)
    );
    let kinds = match &now.store_error {
        Some(_) => canvas.bad("as of the last answer of the store"),
        None => format!(
            "{} missing · {} outdated · {} to delete",
            grouped(drift.missing),
            grouped(drift.outdated),
            grouped(drift.should_be_deleted)
        ),
    };
    let unexplained = format!("{} unexplained", grouped(drift.unexplained));
    let unexplained = if drift.unexplained == 0 { canvas.good(unexplained) } else { canvas.bad(unexplained) };
    let causes = format!("on purpose · {} in flight · {unexplained}", grouped(drift.in_flight));
    let unit = |number| plural(number, "user", "users");
    [
        row("at Kinde", users.at_kinde, unit(users.at_kinde), &stored, canvas),
        row("drift", drift.users(), unit(drift.users()), &kinds, canvas),
        row("cause", drift.lost, "lost", &causes, canvas),
    ]
}

fn repair(now: &Snapshot, canvas: Canvas) -> String {
    let Some(reconciler) = &now.reconciler else {
        return row_of("repair", "off", "", "the database may hold users of another tenant", canvas);
    };
    let last = match (&reconciler.failure, reconciler.last_scan_seconds_ago) {
        (Some(failure), _) => canvas.warning(format!("last scan failed: {}", plain(failure))),
        (None, None) => "first scan pending".to_owned(),
        (None, Some(age)) => {
            let scans = counted(reconciler.scans, "scan", "scans");
            format!("repaired by {scans} · last scan {:.0} s ago", age.floor())
        }
    };
    row("repair", reconciler.repaired, plural(reconciler.repaired, "user", "users"), &last, canvas)
}

fn deliveries(now: &Snapshot, canvas: Canvas) -> Vec<String> {
    let (sent, faults) = (&now.deliveries, &now.injected_faults);
    let refused = canvas.warning_unless_zero(sent.refused, format!("{} refused", grouped(sent.refused)));
    let failed = match sent.failed {
        0 => String::new(),
        n => format!(" · {}", canvas.warning(format!("{} failed", grouped(n)))),
    };
    let silent = match faults.silent {
        0 => String::new(),
        n => format!(" · {} silent", grouped(n)),
    };
    let outcomes = format!(
        "{} accepted · {} · {refused}{failed}",
        grouped(sent.accepted),
        counted(sent.duplicates, "duplicate", "duplicates")
    );
    let injected = format!(
        "{} duplicated · {} reordered · {} delayed{silent}",
        grouped(faults.duplicated),
        grouped(faults.reordered),
        grouped(faults.delayed)
    );
    let attempts = plural(sent.attempts, "attempt", "attempts");
    vec![
        String::new(),
        row("deliveries", sent.attempts, attempts, &outcomes, canvas),
        row("faults", faults.dropped, "lost", &injected, canvas),
        lag("lag", now.lag.from_receipt, "from receipt to store", canvas),
        lag("", now.lag.from_kinde, "from event to store", canvas),
        queue(now, canvas),
        events(now, canvas),
    ]
}

fn queue(now: &Snapshot, canvas: Canvas) -> String {
    let queue = &now.queue;
    let dead = counted(queue.dead_letters, "dead letter", "dead letters");
    let dead = canvas.warning_unless_zero(queue.dead_letters, dead);
    let breaker = match now.breaker {
        "closed" => canvas.good("circuit breaker closed"),
        other => canvas.bad(format!("circuit breaker {other}")),
    };
    let oldest = queue.oldest_seconds.map(|age| format!("oldest {} · ", span(age))).unwrap_or_default();
    let unit = plural(queue.depth, "entry", "entries");
    row("queue", queue.depth, unit, &format!("{oldest}{dead} · {breaker}"), canvas)
}

fn events(now: &Snapshot, canvas: Canvas) -> String {
    let room = canvas.columns.saturating_sub(LABEL + NUMBER + UNIT + 6);
    let bars = canvas.paint(Style::new().cyan(), sparkline(&now.history, room));
    row_of("events", &format!("{:.1}", now.events_per_second), "per s", &bars, canvas)
}

fn lag(label: &str, quantiles: Option<Quantiles>, what: &str, canvas: Canvas) -> String {
    match quantiles {
        None => row_of(label, "–", "p50", &format!("{what}: none in the last minute"), canvas),
        Some(Quantiles { p50, p99 }) => {
            row_of(label, &format!("≤ {}", span(p50)), "p50", &format!("p99 ≤ {} {what}", span(p99)), canvas)
        }
    }
}

fn row(label: &str, number: u64, unit: &str, rest: &str, canvas: Canvas) -> String {
    row_of(label, &grouped(number), unit, rest, canvas)
}

fn row_of(label: &str, number: &str, unit: &str, rest: &str, canvas: Canvas) -> String {
    let number = format!("{number:>NUMBER$}");
    format!(" {} {} {unit:<UNIT$}  {rest}", canvas.dim(format!("{label:<LABEL$}")), canvas.bold(number))
}

fn event(recent: &Recent, canvas: Canvas) -> String {
    let outcome = match recent.outcome {
        Outcome::Delivered(1) => "delivered".to_owned(),
        Outcome::Delivered(times) => format!("delivered ×{times}"),
        Outcome::Pending => "pending".to_owned(),
        Outcome::Failed(status) => format!("answered {status}"),
        Outcome::Lost => "lost".to_owned(),
    };
    let outcome = format!("{outcome:<13}");
    let outcome = match recent.outcome {
        Outcome::Delivered(_) => canvas.good(outcome),
        Outcome::Pending => canvas.dim(outcome),
        Outcome::Failed(_) | Outcome::Lost => canvas.warning(outcome),
    };
    let at = recent.at.strftime("%H:%M:%SZ");
    // The name is last because terminals differ in the width of some characters.
    format!(" {}  {:<26} {outcome} {}", canvas.dim(at), plain(&recent.kind), plain(&recent.name))
}

/// A snapshot in one line.
pub(crate) fn line(now: &Snapshot) -> String {
    let (users, drift, sent) = (&now.users, &now.drift, &now.deliveries);
    let repaired = now.reconciler.as_ref().map(|reconciler| format!(" · {} repaired", reconciler.repaired));
    let lag = now.lag.from_receipt.map(|lag| format!(" · lag p99 ≤ {}", span(lag.p99))).unwrap_or_default();
    let error = now.store_error.as_ref().map(|error| format!(" · {error}")).unwrap_or_default();
    format!(
        "{:>7}  {} at Kinde · {} stored · drift {} ({} lost, {} in flight, {} unexplained){} · {} accepted · {} · \
         {} lost · queue {}{lag} · breaker {}{error}",
        clock(now.uptime),
        users.at_kinde,
        users.in_store,
        drift.users(),
        drift.lost,
        drift.in_flight,
        drift.unexplained,
        repaired.unwrap_or_default(),
        sent.accepted,
        counted(sent.duplicates, "duplicate", "duplicates"),
        now.injected_faults.dropped,
        now.queue.depth,
        now.breaker,
    )
}

/// The summary at the end of a run.
pub(crate) fn summary(now: &Snapshot, canvas: Canvas) -> Vec<String> {
    let (users, drift, sent) = (&now.users, &now.drift, &now.deliveries);
    let verdict = match (drift.unexplained, drift.in_flight) {
        _ if now.store_error.is_some() => canvas.bad("not known: the store could not be read"),
        (0, 0) => canvas.good("none: every delivered event is in the store"),
        (0, n) => canvas.warning(format!("not known: {} still pending", counted(n, "user is", "users are"))),
        (n, _) => {
            canvas.bad(format!("{}: a delivered event is not in the store", counted(n, "user", "users")))
        }
    };
    let mut facts = vec![
        (
            "users",
            format!(
                "{} at Kinde, {} in the store, {} deleted",
                grouped(users.at_kinde),
                grouped(users.in_store),
                grouped(users.deleted)
            ),
        ),
        ("events", grouped(now.events)),
        (
            "deliveries",
            format!(
                "{} accepted, {}",
                grouped(sent.accepted),
                counted(sent.duplicates, "duplicate", "duplicates")
            ),
        ),
        ("lost on purpose", counted(now.injected_faults.dropped, "delivery", "deliveries")),
    ];
    if let Some(reconciler) = &now.reconciler {
        let repaired = counted(reconciler.repaired, "user", "users");
        let scans = counted(reconciler.scans, "scan", "scans");
        let left = counted(drift.lost, "user", "users");
        facts.push(("repaired", format!("{repaired} by {scans}; the next scan would repair {left}")));
    }
    facts.push(("missing", verdict));
    if let Some(error) = &now.store_error {
        let waiting = counted(now.queue.depth, "entry", "entries");
        facts.push(("store", format!("{error}; {waiting} in the queue")));
    }
    let line = |(name, fact)| format!("{} {fact}", canvas.dim(format!("{name:<17}")));
    facts.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests;
