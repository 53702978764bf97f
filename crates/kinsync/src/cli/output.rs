//! What commands print: tables for people, JSON for programs. A closed pipe (`| head`) is no failure.

use std::{
    fmt::Display,
    io::{self, Write},
    sync::OnceLock,
    time::Duration,
};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

/// Width of text in a pipe, as of the help there.
const PIPE_WIDTH: u16 = 100;

/// Titles of columns with ids, which never wrap, so that they can be copied.
const IDS: [&str; 9] = ["CODE", "DOCUMENT", "EVENT", "ID", "RECORD", "RUN", "SKIPPED", "USER", "WEBHOOK"];

/// Columns of text that are narrower are hard to read.
const NARROW: u16 = 12;

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
    if table.is_empty() {
        return "none found".to_owned();
    }
    keep_ids_whole(&mut table);
    table.trim_fmt()
}

/// Wraps no cell of a column with ids. When too little of the width is left for the other columns, nothing wraps: the
/// terminal breaks the lines then, and what is copied from it is whole.
fn keep_ids_whole(table: &mut Table) {
    let Some(width) = table.width() else { return };
    let titles: Vec<String> =
        table.header().into_iter().flat_map(|row| row.cell_iter().map(comfy_table::Cell::content)).collect();
    let widths = table.column_max_content_widths();
    let mut least = 0;
    for ((title, content), column) in titles.iter().zip(widths).zip(table.column_iter_mut()) {
        let has_ids = IDS.contains(&title.as_str());
        if has_ids {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
        least += usize::from(column.padding_width());
        least += usize::from(if has_ids { content } else { content.min(NARROW) });
    }
    if least > width.into() {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
}

/// Prints a text that wraps between words at the width of the terminal, or of a pipe. Later lines begin with this many spaces.
pub(super) fn say_wrapped(text: &str, indent: usize) {
    let columns = terminal_width().unwrap_or(PIPE_WIDTH);
    say(&wrapped(text, indent, columns.into()));
}

/// Words stay whole, so that what is copied is complete.
fn wrapped(text: &str, indent: usize, columns: usize) -> String {
    // A narrow terminal breaks the lines itself.
    let columns = columns.max(indent + usize::from(NARROW) * 2);
    let (mut lines, mut width) = (String::new(), 0);
    for word in text.split_inclusive(' ') {
        let (all, visible) =
            (console::measure_text_width(word), console::measure_text_width(word.trim_end()));
        if width + visible > columns && width > indent {
            lines.truncate(lines.trim_end().len());
            lines.push('\n');
            lines.extend(std::iter::repeat_n(' ', indent));
            width = indent;
        }
        lines.push_str(word);
        width += all;
    }
    lines
}

fn terminal_width() -> Option<u16> {
    let terminal = console::Term::stdout();
    terminal.size_checked().filter(|_| terminal.is_term()).map(|(_, columns)| columns)
}

/// A table without lines; its cells wrap at the width of the terminal, and not at all in a pipe.
fn columns_only() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(columns) = terminal_width() {
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
    let mut longest_word = 0;
    for (key, value) in document.as_object().into_iter().flatten() {
        let text = match value {
            Value::String(text) => {
                if !text.contains(' ') {
                    longest_word = longest_word.max(console::measure_text_width(text));
                }
                text.clone()
            }
            other => other.to_string(),
        };
        table.add_row([key.clone(), plain(&text)]);
    }
    // An id is not broken: then the terminal breaks the lines.
    let keys = table.column_max_content_widths().first().copied().unwrap_or_default();
    let padding: u16 = table.column_iter().map(comfy_table::Column::padding_width).sum();
    let least = usize::from(keys) + usize::from(padding) + longest_word;
    if table.width().is_some_and(|width| least > width.into()) {
        table.set_content_arrangement(ContentArrangement::Disabled);
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

    fn rows(width: u16, titles: [&str; 3], row: [&str; 3]) -> String {
        let mut table = columns_only();
        table.set_width(width);
        filled(table, titles, [row.map(str::to_owned)])
    }

    #[test]
    fn an_id_is_never_broken() {
        let (event, user) = ("event_0190932d7592c68bda50d62b2ffa8cbb", "kp_0190932d7592c68bda50d62b2ffa8cbb");
        let reason = "the document is refused by a unique index of the application on the key `email`";
        let text = rows(80, ["ID", "EVENT", "REASON"], ["17", event, reason]);
        assert!(text.contains(event) && text.lines().all(|line| line.chars().count() <= 80), "{text}");
        // Not even where nothing is left for the others.
        let text = rows(80, ["EVENT", "USER", "REASON"], [event, user, reason]);
        assert!([event, user, reason].iter().all(|cell| text.contains(cell)), "{text}");
        let text = rows(20, ["RUN", "OUTCOME", "DONE"], ["20261123-101500-3fa2", "complete", "-"]);
        assert!(text.contains("20261123-101500-3fa2"), "{text}");
    }

    #[test]
    fn a_long_line_wraps_between_words_below_its_text() {
        let text =
            "ok  server.health  https://kinsync.example.com/with/a/long/path accepts deliveries of users";
        let expected = "ok  server.health  https://kinsync.example.com/with/a/long/path
                   accepts deliveries of users";
        assert_eq!(wrapped(text, 19, 60), expected);
        assert_eq!(wrapped("a  b", 0, 60), "a  b");
    }

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
