//! The TOML file: the settings under their keys, and renamed fields. Unknown keys are errors, so that a typo does not
//! silently have no effect.

use std::collections::BTreeMap;

use kinsync_engine::config::Derived;
use toml::{Table, Value};

use super::{problem::Problem, setting::settings};

/// The content of a file.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// Values by dotted key, as the text of a variable.
    pub values: BTreeMap<String, String>,
    /// The table of the keys of the user document, as in the file.
    pub fields: BTreeMap<String, serde_json::Value>,
    /// The tables of the keys of other documents, by the name of the table.
    pub other_fields: BTreeMap<String, BTreeMap<String, serde_json::Value>>,
    /// The table of defaults, as in the file.
    pub defaults: BTreeMap<String, serde_json::Value>,
}

/// Parses the text of a file. Adds what is wrong to the problems.
pub fn parse(path: &str, text: &str, problems: &mut Vec<Problem>) -> File {
    let mut file = File::default();
    match text.parse::<Table>() {
        Ok(table) => file.read("", table, problems),
        Err(error) => problems.push(Problem::new(path, format!("is not TOML: {}", place(text, &error)))),
    }
    file
}

impl File {
    fn read(&mut self, prefix: &str, table: Table, problems: &mut Vec<Problem>) {
        for (name, value) in table {
            let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            match value {
                Value::Table(table) if key == "fields" => read_table(&key, table, &mut self.fields, problems),
                Value::Table(table) if is_table_of_fields(&key) => {
                    read_table(&key, table, self.other_fields.entry(key.clone()).or_default(), problems);
                }
                Value::Table(table) if key == "defaults" => {
                    read_table(&key, table, &mut self.defaults, problems);
                }
                Value::Table(table) if is_table(&key) => self.read(&key, table, problems),
                value if is_key(&key) => match text_of(value) {
                    Ok(text) if text.is_empty() => {}
                    Ok(text) => _ = self.values.insert(key, text),
                    Err(wrong) => problems.push(Problem::new(key, wrong)),
                },
                _ => problems.push(unknown(key)),
            }
        }
    }
}

fn read_table(
    name: &str,
    table: Table,
    target: &mut BTreeMap<String, serde_json::Value>,
    problems: &mut Vec<Problem>,
) {
    for (key, value) in table {
        match (contains_date(&value), serde_json::to_value(value)) {
            (false, Ok(value)) => _ = target.insert(key, value),
            _ => problems.push(Problem::new(
                format!("{name}.{key}"),
                "is not a text, a number, `true`, `false`, a list or a table",
            )),
        }
    }
}

fn contains_date(value: &Value) -> bool {
    match value {
        Value::Datetime(_) => true,
        Value::Array(list) => list.iter().any(contains_date),
        Value::Table(table) => table.values().any(contains_date),
        _ => false,
    }
}

fn unknown(key: String) -> Problem {
    let keys = settings().map(|setting| setting.key);
    let tables = Derived::ALL.map(Derived::table);
    let message = match nearest(&key, keys.chain(["fields", "defaults"]).chain(tables)) {
        Some(near) => format!("is not a setting; did you mean `{near}`?"),
        None => "is not a setting; `kinsync config show` lists them all".to_owned(),
    };
    Problem::new(key, message)
}

fn is_table_of_fields(key: &str) -> bool {
    Derived::ALL.iter().any(|derived| derived.table() == key)
}

fn is_table(key: &str) -> bool {
    settings().any(|setting| setting.key.split_once('.').is_some_and(|(table, _)| table == key))
}

fn is_key(key: &str) -> bool {
    settings().any(|s| {
        s.key == key || (s.has_file() && key.strip_suffix("_file").is_some_and(|stem| stem == s.key))
    })
}

/// The value as the text of a variable.
fn text_of(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Boolean(flag) => Ok(flag.to_string()),
        Value::Array(items) => {
            items.into_iter().map(item_of).collect::<Result<Vec<_>, _>>().map(|l| l.join(","))
        }
        _ => Err("is not a text, a number, `true`, `false` or a list of texts".into()),
    }
}

fn item_of(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) if !text.contains(',') => Ok(text),
        Value::String(_) => Err("holds a text with a comma; commas separate values".into()),
        _ => Err("is not a list of texts".into()),
    }
}

/// The line and the message of a syntax error, without the content of the line, which may be a secret.
fn place(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    format!("line {line}: {}", error.message())
}

/// The known name that is close enough to be meant.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 3.min(candidate.len() / 3))
        .min()
        .map(|(_, candidate)| candidate)
}
