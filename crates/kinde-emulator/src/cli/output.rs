//! Output of the commands: JSON, or tables and lines of text.

use std::io::Write as _;

use serde_json::Value;

/// Prints text. A closed pipe is not an error.
pub(super) fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a response of the control API.
pub(super) fn show(response: &Value, json: bool) {
    if json {
        return print(&format!("{response:#}"));
    }
    match sole_list(response) {
        Some(items) if items.is_empty() => print("none"),
        Some(items) => {
            print(&table(items));
            if let Some(next) = response["next"].as_str() {
                print(&format!("more: --after {next}"));
            }
        }
        None => match response["token"].as_str() {
            Some(token) => print(token),
            None => print(&lines("", response)),
        },
    }
}

/// Returns the list of a response that contains only a list or a page of it.
fn sole_list(response: &Value) -> Option<&Vec<Value>> {
    let mut values = response.as_object()?.iter().filter(|(name, _)| *name != "next").map(|(_, value)| value);
    let first = values.next()?.as_array();
    first.filter(|_| values.next().is_none())
}

/// Keys that are shown as columns; `--json` shows all.
const COLUMNS: &[&str] = &[
    "number",
    "kind",
    "chance",
    "times",
    "on",
    "occurrences",
    "id",
    "code",
    "key",
    "name",
    "endpoint",
    "disabled",
    "email",
    "first_name",
    "last_name",
    "is_suspended",
    "last_signed_in",
    "event_type",
    "user_id",
    "state",
    "attempts",
    "last_status",
    "last_error",
];

fn table(items: &[Value]) -> String {
    let columns: Vec<&str> =
        COLUMNS.iter().copied().filter(|name| items.iter().any(|item| !item[*name].is_null())).collect();
    let head = columns.iter().map(|name| name.to_uppercase()).collect();
    let row = |item: &Value| columns.iter().map(|name| plain(&item[*name])).collect::<Vec<String>>();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(items.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn lines(prefix: &str, value: &Value) -> String {
    let Some(object) = value.as_object() else { return format!("{prefix}: {}", plain(value)) };
    let line = |(name, value): (&String, &Value)| {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        lines(&path, value)
    };
    object.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A value on one line, without control characters.
fn plain(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}

/// Parses KEY=VALUE, where VALUE is JSON or plain text.
pub(super) fn key_value(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("must have the form KEY=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((key.to_owned(), value))
}
