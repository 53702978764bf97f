//! What commands print: tables for people, JSON for programs. A closed pipe (`| head`) is no failure.

use std::{
    fmt::Display,
    io::{self, Write},
    sync::OnceLock,
    time::Duration,
};

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

/// Width of text in a pipe, as of the help there.
const PIPE_WIDTH: u16 = 100;

/// Why stdout could not be written for the first time, for example because the disk is full.
static FAILURE: OnceLock<io::Error> = OnceLock::new();

/// Prints a line on stdout. The command continues after a failure, and fails at its end: see [`failure`].
pub(super) fn say(text: &str) {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        // A reader that closed the pipe has what it wanted.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => _ = FAILURE.set(error),
        _ => {}
    }
}

/// Returns why a line that this process printed is missing.
pub(super) fn failure() -> Option<&'static io::Error> {
    FAILURE.get()
}

/// Prints a line on stderr.
pub(super) fn complain(text: &str) {
    _ = writeln!(io::stderr().lock(), "kinsync: {text}");
}

/// Prints a document for programs.
pub(super) fn json(document: &impl Serialize) {
    say(&serde_json::to_string_pretty(document).expect("a document has only text keys"));
}

/// Prints a document for programs on one line.
pub(super) fn line(document: &impl Serialize) {
    say(&serde_json::to_string(document).expect("a document has only text keys"));
}

/// Prints records for people, or that there are none. In a pipe each record is one line, for `grep` and the like.
pub(super) fn table<'a>(
    titles: impl IntoIterator<Item = &'a str>,
    rows: impl IntoIterator<Item = impl IntoIterator<Item = String>>,
) {
    say(&filled(columns_only(), titles, rows));
}

/// Prints rows of text for people, or that there are none. In a pipe the cells wrap too, and nothing of them is left out.
pub(super) fn text_table<'a>(
    titles: impl IntoIterator<Item = &'a str>,
    rows: impl IntoIterator<Item = impl IntoIterator<Item = String>>,
) {
    let mut table = columns_only();
    if table.width().is_none() {
        table.set_width(PIPE_WIDTH);
    }
    say(&filled(table, titles, rows));
}

fn filled<'a>(
    mut table: Table,
    titles: impl IntoIterator<Item = &'a str>,
    rows: impl IntoIterator<Item = impl IntoIterator<Item = String>>,
) -> String {
    table.set_header(titles);
    for row in rows {
        table.add_row(row.into_iter().map(|cell| plain(&cell)));
    }
    if table.is_empty() { "none found".to_owned() } else { table.trim_fmt() }
}

/// A table without lines; its cells wrap at the width of the terminal, and not at all in a pipe.
fn columns_only() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    let terminal = console::Term::stdout();
    if let Some((_, columns)) = terminal.size_checked().filter(|_| terminal.is_term()) {
        table.set_width(columns);
    }
    table
}

/// The text of a cell; `-` for no value.
pub(super) fn cell(value: Option<&impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

/// Prints one document: JSON for programs, or a line for each key, with nested values as JSON.
pub(super) fn one(document: &impl Serialize, as_json: bool) {
    if as_json {
        return json(document);
    }
    let document = serde_json::to_value(document).expect("a document has only text keys");
    let mut table = columns_only();
    for (key, value) in document.as_object().into_iter().flatten() {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        table.add_row([key.clone(), plain(&text)]);
    }
    say(&table.trim_fmt());
}

/// The text on one line, without control characters: a name of a user must not control the terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A counter on a terminal for long work; silent elsewhere.
pub(super) fn counter(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::no_length().with_message(what);
    let style = ProgressStyle::with_template("{spinner} {human_pos} {msg}, {per_sec}, {elapsed}");
    bar.with_style(style.expect("the template is a constant"))
}

/// A counter up to a known end, with the time left.
pub(super) fn counter_to(what: &'static str, end: u64) -> ProgressBar {
    let bar = ProgressBar::new(end).with_message(what);
    let template = "{spinner} {human_pos} of about {human_len} {msg}, {per_sec}, {elapsed}, {eta} left";
    bar.with_style(ProgressStyle::with_template(template).expect("the template is a constant"))
}

/// A spinner on a terminal while something is awaited; silent elsewhere.
pub(super) fn spinner(what: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_wraps_at_the_width_of_a_pipe_and_nothing_is_left_out() {
        let picture = format!("picture = \"https://pictures.example/{}\"", "0123456789".repeat(12));
        let outcome = "superseded by user.updated event_01h5a7k3c9, which Kinde made later than this one";
        let mut table = columns_only();
        table.set_width(PIPE_WIDTH);
        let row = ["2026-11-28T09:00:00.000000Z", &picture, outcome].map(str::to_owned);
        let text = filled(table, ["TIME", "OBSERVATION", "OUTCOME"], [row]);
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(PIPE_WIDTH.into()), "{text}");
        let without_space = |text: &str| text.split_whitespace().collect::<String>();
        let joined = |column: usize| {
            // Continuation lines are below the start of their column.
            let title = text.lines().next().unwrap();
            let from = title.find(["TIME", "OBSERVATION", "OUTCOME"][column]).unwrap();
            let to = ["OBSERVATION", "OUTCOME"].get(column).and_then(|next| title.find(next));
            let part =
                |line: &str| line.chars().skip(from).take(to.unwrap_or(1000) - from).collect::<String>();
            without_space(&text.lines().skip(1).map(part).collect::<String>())
        };
        assert_eq!(joined(1), without_space(&picture), "{text}");
        assert_eq!(joined(2), without_space(outcome), "{text}");
    }
}
