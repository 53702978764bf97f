//! The table `[fields]`: names of the keys of the user document, and the tables of the documents of organizations, roles and
//! memberships.

use std::collections::BTreeMap;

use kinsync_engine::{
    config::{Derived, DerivedConfig, FieldMapping},
    internal::store::{DocumentKey, Error},
};
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

/// Reads the tables of the other documents into their collections. Adds what is wrong to the problems.
pub fn derived(
    merged: &Merged,
    collections: &mut BTreeMap<Derived, DerivedConfig>,
    problems: &mut Vec<Problem>,
) {
    for derived in Derived::ALL {
        let table = derived.table();
        let Some(values) = merged.other_fields.get(table) else { continue };
        let config = collections.entry(derived).or_default();
        let known = problems.len();
        for (name, value) in values {
            if let Err(wrong) = read_derived(derived, config, name, value) {
                problems.push(Problem::new(format!("{table}.{name}"), wrong));
            }
        }
        if problems.len() == known
            && let Err(Error::Refused { hint, .. }) = config.check(derived)
        {
            problems.push(Problem::new(table, hint));
        }
    }
}

fn read_derived(
    derived: Derived,
    config: &mut DerivedConfig,
    name: &str,
    value: &Value,
) -> Result<(), String> {
    if name == "prefix" {
        config.prefix = Some(value.as_str().ok_or("is not a text")?.to_owned());
        return Ok(());
    }
    let keys = || derived.keys().iter().copied();
    if !keys().any(|key| key == name) {
        return Err(format!("`{name}` is not a key; there are {}", keys().collect::<Vec<_>>().join(", ")));
    }
    let path = match value {
        Value::String(path) => Some(path.clone()),
        Value::Bool(false) => None,
        _ => return Err("is neither a name nor `false`".into()),
    };
    config.names.insert(name.to_owned(), path);
    Ok(())
}
