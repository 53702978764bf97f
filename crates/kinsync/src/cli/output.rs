//! What commands print: tables for people, JSON for programs. A reader who goes away (`| head`) is no failure.

use std::{
    io::{self, Write},
    time::Duration,
};

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// A line on stdout.
pub(super) fn say(text: &str) {
    let mut stdout = io::stdout().lock();
    // Nobody listens any more: there is nobody to tell either.
    _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}

/// A line on stderr.
pub(super) fn complain(text: &str) {
    _ = writeln!(io::stderr().lock(), "kinsync: {text}");
}

/// A value for programs.
pub(super) fn json(value: &Value) {
    say(&serde_json::to_string_pretty(value).expect("a JSON value has only text keys"));
}

/// Rows for people. Keys are those of the JSON objects.
pub(super) fn table(rows: &[Value], columns: &[(&str, &str)]) {
    let mut table = columns_only();
    table.set_header(columns.iter().map(|(title, _)| *title));
    for row in rows {
        table.add_row(columns.iter().map(|(_, key)| cell(&row[*key])));
    }
    say(&table.trim_fmt());
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

/// A page of a list, as the admin routes answer it.
pub(super) fn page(page: &Value, key: &str, columns: &[(&str, &str)], as_json: bool) {
    if as_json {
        return json(page);
    }
    let rows = page[key].as_array().map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        return say("there are none");
    }
    table(rows, columns);
    match &page["next"] {
        Value::Null => {}
        next => say(&format!("\nthere may be more: --after {}", cell(next))),
    }
}

/// One object, as the admin routes answer it.
pub(super) fn one(value: &Value, as_json: bool) {
    if as_json { json(value) } else { object(value) }
}

/// One object for people: a line for each key, nested values as JSON.
pub(super) fn object(value: &Value) {
    let mut table = columns_only();
    for (key, value) in value.as_object().into_iter().flatten() {
        table.add_row([key.clone(), cell(value)]);
    }
    say(&table.trim_fmt());
}

/// Text as it is, without control characters: what users send must not steer a terminal.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    plain(&text)
}

/// A text on one line that steers no terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Counts on a terminal while something takes long; silent elsewhere.
pub(super) fn counter(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::no_length().with_message(what);
    let style = ProgressStyle::with_template("{spinner} {human_pos} {msg}, {per_sec}, {elapsed}");
    bar.with_style(style.expect("the template is a constant"))
}

/// Counts up to an end that is known, with what is left.
pub(super) fn counter_to(what: &'static str, end: u64) -> ProgressBar {
    let bar = ProgressBar::new(end).with_message(what);
    let template = "{spinner} {human_pos} of about {human_len} {msg}, {per_sec}, {elapsed}, {eta} left";
    bar.with_style(ProgressStyle::with_template(template).expect("the template is a constant"))
}

/// Turns on a terminal while something is waited for; silent elsewhere.
pub(super) fn spinner(what: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
