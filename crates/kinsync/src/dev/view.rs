//! Draws a snapshot as lines of text: pure. Says nothing of terminals but their size.

use std::time::Duration;

use console::Style;

use super::{
    hints::{Addresses, Step},
    meters::Quantiles,
    snapshot::{Fate, Recent, Snapshot},
};

/// Columns of the label and of the first number.
const LABEL: usize = 10;
const NUMBER: usize = 8;
/// Lines that are always there; what is left is for events.
const FIXED: usize = 17;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// How much room there is, and whether colours are wanted.
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

    fn odd(self, text: impl std::fmt::Display) -> String {
        self.paint(Style::new().yellow(), text)
    }

    fn bad(self, text: impl std::fmt::Display) -> String {
        self.paint(Style::new().red().bold(), text)
    }

    /// Lines cut to the size.
    fn fit(self, lines: Vec<String>) -> Vec<String> {
        let cut = |line: String| console::truncate_str(&line, self.columns, "…").into_owned();
        lines.into_iter().take(self.rows).map(cut).collect()
    }
}

/// What a run is, in a few words.
#[derive(Clone, Debug)]
pub(crate) struct Title {
    /// Such as `embedded store · faults some · seed 1`.
    pub(crate) text: String,
    /// What is not as it was asked for.
    pub(crate) note: Option<String>,
}

/// The live page.
pub(crate) fn live(now: &Snapshot, title: &Title, at: &Addresses, canvas: Canvas) -> Vec<String> {
    let mut lines = vec![header(now, title, canvas), String::new()];
    lines.extend(users(now, canvas));
    lines.push(String::new());
    lines.extend(deliveries(now, canvas));
    lines.push(String::new());
    let room = canvas.rows.saturating_sub(FIXED);
    lines.extend(now.recent.iter().take(room).map(|recent| event(recent, canvas)));
    lines.resize(FIXED - 3 + room, String::new());
    lines.push(title.note.as_ref().map(|note| canvas.odd(format!(" {note}"))).unwrap_or_default());
    lines.push(format!(
        " kinsync {}   Kinde {}",
        canvas.paint(Style::new().cyan(), &at.kinsync),
        canvas.paint(Style::new().cyan(), &at.emulator)
    ));
    lines.push(canvas.dim(" c  addresses, secrets and curl lines to try    q  quit"));
    canvas.fit(lines)
}

fn header(now: &Snapshot, title: &Title, canvas: Canvas) -> String {
    let up = format!("up {}", clock(now.uptime));
    let used = 1 + "kinsync dev".len() + 3 + console::measure_text_width(&title.text) + up.len() + 1;
    let gap = canvas.columns.saturating_sub(used).max(2);
    format!(" {}   {}{:gap$}{}", canvas.bold("kinsync dev"), canvas.dim(&title.text), "", canvas.dim(up))
}

fn users(now: &Snapshot, canvas: Canvas) -> Vec<String> {
    let (users, drift) = (&now.users, &now.drift);
    let strangers = match drift.strangers {
        0 => String::new(),
        n => format!(" · {} other", grouped(n)),
    };
    let explain = format!(
        "on purpose · {} on the way · {}",
        grouped(drift.on_the_way),
        if drift.unexplained == 0 {
            canvas.good("0 unexplained")
        } else {
            canvas.bad(format!("{} unexplained", grouped(drift.unexplained)))
        }
    );
    let differ = match &now.store_error {
        Some(_) => canvas.bad("as it was when the store last answered"),
        None => format!(
            "{} missing · {} stale · {} to delete",
            grouped(drift.missing),
            grouped(drift.stale),
            grouped(drift.should_be_deleted)
        ),
    };
    vec![
        row(
            "users",
            users.at_kinde,
            "at Kinde",
            &format!(
                "{} in the store · {} deleted{strangers}",
                canvas.bold(grouped(users.in_store)),
                grouped(users.deleted)
            ),
            canvas,
        ),
        row("drift", drift.users(), "differ", &differ, canvas),
        row("", drift.lost, "lost", &explain, canvas),
        canvas
            .dim(format!("{:LABEL$}  Lost ones stay until that user changes again: no reconciler yet.", "")),
    ]
}

fn deliveries(now: &Snapshot, canvas: Canvas) -> Vec<String> {
    let (sent, purpose, queue) = (&now.deliveries, &now.on_purpose, &now.queue);
    let alarming = |n: u64, text: String| if n == 0 { text } else { canvas.odd(text) };
    let refused = alarming(sent.refused, format!("{} refused", grouped(sent.refused)));
    let failed = match sent.failed {
        0 => String::new(),
        n => format!(" · {}", canvas.odd(format!("{} failed", grouped(n)))),
    };
    let silent = match purpose.silent {
        0 => String::new(),
        n => format!(" · {} silent", grouped(n)),
    };
    let dead = alarming(queue.dead_letters, format!("{} dead letters", grouped(queue.dead_letters)));
    let breaker = match now.breaker {
        "closed" => canvas.good("breaker closed"),
        other => canvas.bad(format!("breaker {other}")),
    };
    let oldest = queue.oldest_seconds.map(|age| format!("oldest {} · ", span(age))).unwrap_or_default();
    let room = canvas.columns.saturating_sub(LABEL + NUMBER + 14);
    vec![
        row(
            "deliveries",
            sent.attempts,
            "attempts",
            &format!(
                "{} accepted · {} duplicates · {refused}{failed}",
                grouped(sent.accepted),
                grouped(sent.duplicates)
            ),
            canvas,
        ),
        row(
            "on purpose",
            purpose.dropped,
            "dropped",
            &format!(
                "{} doubled · {} reordered · {} delayed{silent}",
                grouped(purpose.duplicated),
                grouped(purpose.reordered),
                grouped(purpose.delayed)
            ),
            canvas,
        ),
        lag("lag", now.lag.from_receipt, "from receipt to the store", canvas),
        lag("", now.lag.from_kinde, "from Kinde's time, delays included", canvas),
        row("queue", queue.depth, "waiting", &format!("{oldest}{dead} · {breaker}"), canvas),
        row_of(
            "events",
            &format!("{:.1}", now.events_per_second),
            "a second",
            &canvas.paint(Style::new().cyan(), sparkline(&now.history, room)),
            canvas,
        ),
    ]
}

fn lag(label: &str, quantiles: Option<Quantiles>, what: &str, canvas: Canvas) -> String {
    match quantiles {
        None => row_of(label, "–", "p50", &format!("{what}: none of late"), canvas),
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
    format!(" {} {} {unit:<8}  {rest}", canvas.dim(format!("{label:<LABEL$}")), canvas.bold(number))
}

fn event(recent: &Recent, canvas: Canvas) -> String {
    let fate = match recent.fate {
        Fate::Delivered(1) => "delivered".to_owned(),
        Fate::Delivered(times) => format!("delivered ×{times}"),
        Fate::OnTheWay => "on the way".to_owned(),
        Fate::Refused(status) => format!("answered {status}"),
        Fate::Lost => "lost".to_owned(),
    };
    let fate = format!("{fate:<13}");
    let fate = match recent.fate {
        Fate::Delivered(_) => canvas.good(fate),
        Fate::OnTheWay => canvas.dim(fate),
        Fate::Refused(_) | Fate::Lost => canvas.odd(fate),
    };
    let at = recent.at.strftime("%H:%M:%SZ");
    // The name is last: how wide it is, terminals do not agree.
    format!(" {}  {:<26} {fate} {}", canvas.dim(at), plain(&recent.kind), plain(&recent.name))
}

/// The page of addresses and lines to paste; `page` counts from 0 and wraps.
pub(crate) fn hints(at: &Addresses, steps: &[Step], page: usize, canvas: Canvas) -> Vec<String> {
    let pages = pages(at, steps, canvas);
    let page = page % pages.len();
    let mut lines = pages[page].clone();
    lines.resize(canvas.rows.saturating_sub(1).max(lines.len()), String::new());
    let more = if pages.len() > 1 {
        format!("page {} of {} · c  next · ", page + 1, pages.len())
    } else {
        String::new()
    };
    lines.push(canvas.dim(format!("{more}esc  back · q  quit")));
    lines
}

/// Addresses and steps, never torn over two pages.
fn pages(at: &Addresses, steps: &[Step], canvas: Canvas) -> Vec<Vec<String>> {
    let blocks = std::iter::once(addresses(at, canvas))
        .chain(steps.iter().enumerate().map(|(n, s)| step(n, s, canvas)));
    let mut pages: Vec<Vec<String>> = vec![Vec::new()];
    for block in blocks {
        let page = pages.last_mut().expect("there is always one page");
        if page.is_empty() || page.len() + block.len() + 2 <= canvas.rows {
            page.extend(block);
        } else {
            pages.push(block);
        }
    }
    pages
}

fn addresses(at: &Addresses, canvas: Canvas) -> Vec<String> {
    let line = |(name, value): (&str, &str)| format!("{} {value}", canvas.dim(format!("{name:<15}")));
    at.table().into_iter().map(line).chain([String::new()]).collect()
}

/// From the first column on: what is copied can be pasted.
fn step(n: usize, step: &Step, canvas: Canvas) -> Vec<String> {
    let title = canvas.paint(Style::new().cyan(), format!("# {}. {}", n + 1, step.title));
    std::iter::once(title).chain(step.command.lines().map(str::to_owned)).chain([String::new()]).collect()
}

/// Everything there is to say at the beginning, for who has no live view.
pub(crate) fn preamble(at: &Addresses, steps: &[Step], canvas: Canvas) -> Vec<String> {
    let steps = steps.iter().enumerate().flat_map(|(n, each)| step(n, each, canvas));
    addresses(at, canvas).into_iter().chain(steps).collect()
}

/// The moment in one line.
pub(crate) fn line(now: &Snapshot) -> String {
    let (users, drift, sent) = (&now.users, &now.drift, &now.deliveries);
    let lag = now.lag.from_receipt.map(|lag| format!(" · p99 ≤ {}", span(lag.p99))).unwrap_or_default();
    let error = now.store_error.as_ref().map(|error| format!(" · {error}")).unwrap_or_default();
    format!(
        "{:>7}  {} at Kinde · {} stored · drift {} ({} lost, {} on the way, {} unexplained) · {} accepted, {} duplicates, \
         {} dropped · queue {}{lag} · breaker {}{error}",
        clock(now.uptime),
        users.at_kinde,
        users.in_store,
        drift.users(),
        drift.lost,
        drift.on_the_way,
        drift.unexplained,
        sent.accepted,
        sent.duplicates,
        now.on_purpose.dropped,
        now.queue.depth,
        now.breaker,
    )
}

/// The end of it.
pub(crate) fn summary(now: &Snapshot, canvas: Canvas) -> Vec<String> {
    let (users, drift, sent) = (&now.users, &now.drift, &now.deliveries);
    let left = drift.on_the_way + drift.unexplained;
    let verdict = match (drift.unexplained, drift.on_the_way) {
        _ if now.store_error.is_some() => canvas.bad("when the store was last read"),
        (0, 0) => canvas.good("everything that was delivered is in the store"),
        (0, n) => canvas.odd(format!("{} of them were still on the way", grouped(n))),
        (n, _) => canvas.bad(format!("{} were told and are not in the store", grouped(n))),
    };
    let facts = [
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
            "delivered",
            format!("{} accepted, {} duplicates", grouped(sent.accepted), grouped(sent.duplicates)),
        ),
        (
            "lost on purpose",
            format!(
                "{} deliveries dropped, imports not told; {} users differ",
                grouped(now.on_purpose.dropped),
                grouped(drift.lost)
            ),
        ),
        ("drift without it", format!("{}: {verdict}", canvas.bold(grouped(left)))),
    ];
    let trouble = (now.store_error.iter()).map(|error| {
        ("the store", format!("{error}; {} deliveries wait in the queue", grouped(now.queue.depth)))
    });
    let line = |(name, fact)| format!("{} {fact}", canvas.dim(format!("{name:<17}")));
    facts.into_iter().chain(trouble).map(line).collect()
}

/// 1204 as `1,204`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds as `25 ms`, `1.5 s` or `2 min`.
fn span(seconds: f64) -> String {
    match seconds {
        s if s.is_infinite() => "∞".to_owned(),
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 10.0 && s.fract() > 0.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s => format!("{:.0} min", s / 60.0),
    }
}

/// `1:02:03`, `2:03`.
fn clock(time: Duration) -> String {
    let (hours, minutes, seconds) = (time.as_secs() / 3600, time.as_secs() / 60 % 60, time.as_secs() % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// The last counts as bars, the highest one full.
fn sparkline(counts: &[u64], room: usize) -> String {
    let shown = &counts[counts.len().saturating_sub(room)..];
    let highest = shown.iter().copied().max().unwrap_or_default().max(1);
    let bar = |count: u64| BARS[usize::try_from((count * 7).div_ceil(highest)).unwrap_or(7).min(7)];
    shown.iter().copied().map(bar).collect()
}

/// Text that cannot steer a terminal: no control characters, and none that turn the direction of the line.
fn plain(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.chars().map(|c| if steers(c) { '·' } else { c }).collect()
}

#[cfg(test)]
mod tests;
