//! The table `[fields]`: names of the keys of the user document.

use kinsync_engine::internal::store::{DocumentKey, Error, mongo::FieldMapping};
use serde_json::Value;

use super::{file::nearest, problem::Problem, source::Merged};

/// Reads the table. Adds what is wrong to the problems.
pub fn mapping(merged: &Merged, problems: &mut Vec<Problem>) -> FieldMapping {
    let mut mapping = FieldMapping::default();
    let known = problems.len();
    for (name, value) in &merged.fields {
        if let Err(wrong) = read(&mut mapping, name, value) {
            problems.push(Problem::new(format!("fields.{name}"), wrong));
        }
    }
    if problems.len() == known
        && let Err(Error::Refused { hint, .. }) = mapping.check(&merged.defaults)
    {
        problems.push(Problem::new("fields, defaults", hint));
    }
    mapping
}

fn read(mapping: &mut FieldMapping, name: &str, value: &Value) -> Result<(), String> {
    match (name, value) {
        ("prefix", Value::String(prefix)) => mapping.prefix = Some(prefix.clone()),
        ("prefix", _) => return Err("is not a text".into()),
        ("take_over", Value::Array(names)) => {
            let names = names.iter().map(|name| key(name.as_str().unwrap_or_default()));
            mapping.take_over = names.collect::<Result<_, _>>()?;
        }
        ("take_over", _) => return Err("is not a list of keys".into()),
        (name, Value::String(path)) => _ = mapping.names.insert(key(name)?, Some(path.clone())),
        (name, Value::Bool(false)) => _ = mapping.names.insert(key(name)?, None),
        (name, _) => {
            key(name)?;
            return Err("is neither a name nor `false`".into());
        }
    }
    Ok(())
}

fn key(name: &str) -> Result<DocumentKey, String> {
    let names = || DocumentKey::ALL.into_iter().map(DocumentKey::name);
    DocumentKey::from_name(name).ok_or_else(|| {
        let hint = match nearest(name, names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are {}", names().collect::<Vec<_>>().join(", ")),
        };
        format!("`{name}` is not a key of the user document; {hint}")
    })
}
