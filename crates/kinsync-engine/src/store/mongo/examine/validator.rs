//! Rules of the collection's validator that refuse documents which kinsync writes. Pure.
//!
//! Examines `$jsonSchema` (required, types, `additionalProperties`, restrictions of single keys), conditions on single keys
//! and `$and`. Anything else is reported as not examined.

use bson::{Bson, Document, doc};

use super::written::{Presence, Written, WrittenKey};
use crate::store::{Severity, StoreProblem};

/// Keywords of JSON schema that restrict the values of a key.
const RESTRICTIONS: [&str; 9] = [
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minimum",
    "maximum",
    "uniqueItems",
];

/// Longest command that a fix prints.
const MAX_COMMAND: usize = 1500;

/// Returns the problems of the validator. `options` are the options of the collection.
pub(super) fn validator(options: &Document, written: &Written, collection: &str) -> Vec<StoreProblem> {
    let is_off = options.get_str("validationLevel").is_ok_and(|level| level == "off");
    let only_warns = options.get_str("validationAction").is_ok_and(|action| action == "warn");
    let Ok(rule) = options.get_document("validator") else { return Vec::new() };
    if is_off || only_warns {
        return Vec::new();
    }
    let mut examiner = Examiner { written, collection, rule, found: Vec::new() };
    examiner.query(rule);
    examiner.found
}

struct Examiner<'a> {
    written: &'a Written,
    collection: &'a str,
    rule: &'a Document,
    found: Vec<StoreProblem>,
}

impl Examiner<'_> {
    /// Examines a validator of query operators.
    fn query(&mut self, rule: &Document) {
        for (key, demanded) in rule {
            match (key.as_str(), demanded) {
                ("$jsonSchema", Bson::Document(schema)) => self.schema(schema, ""),
                ("$and", Bson::Array(all)) => {
                    all.iter().filter_map(Bson::as_document).for_each(|rule| self.query(rule));
                }
                ("$comment", _) => {}
                (operator, _) if operator.starts_with('$') => self.not_examined(operator),
                (key, Bson::Document(operators)) if operators.keys().any(|key| key.starts_with('$')) => {
                    self.condition(key, operators);
                }
                (key, _) => self.required(key),
            }
        }
    }

    fn condition(&mut self, key: &str, operators: &Document) {
        let demands = |operator: &str| operators.get(operator);
        let exists =
            demands("$exists").is_some_and(|exists| !matches!(exists, Bson::Boolean(false) | Bson::Int32(0)));
        if exists || demands("$ne") == Some(&Bson::Null) || demands("$type").is_some() {
            self.required(key);
        }
        if let Some(types) = demands("$type") {
            self.types(key, types);
        }
        let known = ["$exists", "$ne", "$type"];
        if let Some(operator) = operators.keys().find(|operator| !known.contains(&operator.as_str())) {
            match self.written.key(key) {
                Some(_) => self.restricted(key, operator),
                None => self.required(key),
            }
        }
    }

    /// Examines a schema of the document, or of the sub-document at `prefix`, which ends with a dot.
    fn schema(&mut self, schema: &Document, prefix: &str) {
        let texts = |key: &str| {
            let list = schema.get_array(key).map(Vec::as_slice).unwrap_or_default();
            list.iter().filter_map(Bson::as_str).map(|name| format!("{prefix}{name}")).collect::<Vec<_>>()
        };
        for key in texts("required") {
            self.required(&key);
        }
        let properties = schema.get_document("properties").ok();
        if schema.get_bool("additionalProperties").is_ok_and(|allowed| !allowed) {
            self.additional(schema, prefix);
        }
        for (name, property) in properties.into_iter().flatten() {
            if let Bson::Document(property) = property {
                self.property(&format!("{prefix}{name}"), property);
            }
        }
        for rule in ["allOf"].iter().filter_map(|key| schema.get_array(key).ok()).flatten() {
            rule.as_document().into_iter().for_each(|rule| self.schema(rule, prefix));
        }
        for operator in ["anyOf", "oneOf", "not", "dependencies", "minProperties", "maxProperties"] {
            if schema.contains_key(operator) {
                self.not_examined(operator);
            }
        }
    }

    fn property(&mut self, path: &str, property: &Document) {
        if let Some(key) = self.written.keys.iter().find(|key| key.path == path) {
            if key.path == super::super::keys::METADATA || key.kind == "object" {
                return;
            }
            for keyword in ["bsonType", "type"] {
                property.get(keyword).into_iter().for_each(|types| self.types(path, types));
            }
            if let Some(keyword) = RESTRICTIONS.iter().find(|keyword| property.contains_key(**keyword)) {
                self.restricted(path, keyword);
            }
        } else if self.written.keys.iter().any(|key| key.path.starts_with(&format!("{path}."))) {
            self.schema(property, &format!("{path}."));
        }
    }

    fn required(&mut self, path: &str) {
        if path == "_id" {
            return;
        }
        let is_outer = self.written.keys.iter().any(|key| key.path.starts_with(&format!("{path}.")));
        let why = match self.written.presence(path) {
            Presence::Identifies | Presence::Always => return,
            Presence::Never if is_outer => return,
            Presence::Never => "which kinsync does not write",
            Presence::Distinct | Presence::Shared => {
                "which kinsync leaves out of the documents of users without it"
            }
        };
        let what = format!("the validator requires `{path}`, {why}: those users cannot be stored");
        self.push(Severity::Error, what, &without_required(self.rule, path));
    }

    fn types(&mut self, path: &str, types: &Bson) {
        let Some(WrittenKey { kind, presence, .. }) = self.written.key(path).cloned() else { return };
        let allowed: Vec<&str> = match types {
            Bson::String(one) => vec![one],
            Bson::Array(list) => list.iter().filter_map(Bson::as_str).collect(),
            _ => return self.not_examined("$type"),
        };
        let matches = |allowed: &str| allowed == kind || (allowed == "boolean" && kind == "bool");
        if allowed.iter().any(|allowed| matches(allowed)) {
            return;
        }
        let (severity, then) = if presence == Presence::Identifies {
            (Severity::Error, "no user can be stored")
        } else {
            (Severity::Warning, "kinsync leaves the key out")
        };
        let what = format!(
            "the validator demands the type {} for `{path}`, and kinsync writes the type {kind}: {then}",
            allowed.join(" or ")
        );
        self.push(severity, what, &self.exempted());
    }

    fn restricted(&mut self, path: &str, keyword: &str) {
        let what = format!(
            "the validator restricts `{path}` by `{keyword}`: kinsync leaves the key out of documents with another value"
        );
        self.push(Severity::Warning, what, &self.exempted());
    }

    fn additional(&mut self, schema: &Document, prefix: &str) {
        let properties = schema.get_document("properties").ok();
        let is_listed = |name: &str| properties.is_some_and(|properties| properties.contains_key(name));
        let mut missing: Vec<String> = Vec::new();
        let ours = self.written.keys.iter().filter_map(|key| key.path.strip_prefix(prefix));
        let ours = ours.map(|path| path.split('.').next().unwrap_or_default());
        for name in ours.chain(prefix.is_empty().then_some("_id")) {
            let path = format!("{prefix}{name}");
            if !is_listed(name) && !missing.contains(&path) && schema.get("patternProperties").is_none() {
                missing.push(path);
            }
        }
        let is_needed = |path: &String| path == "_id" || self.written.presence(path) == Presence::Identifies;
        let (severity, then) = if missing.iter().any(is_needed) {
            (Severity::Error, "no user can be stored")
        } else {
            (Severity::Warning, "kinsync leaves them out")
        };
        if missing.is_empty() {
            return;
        }
        let keys: Vec<String> = missing.iter().map(|key| format!("`{key}`")).collect();
        let what = format!(
            "the validator allows no additional properties and does not list {}: {then}",
            keys.join(", ")
        );
        self.push(severity, what, &self.exempted());
    }

    fn not_examined(&mut self, operator: &str) {
        let what = format!("the validator uses `{operator}`, which is not examined: it may refuse users");
        self.push(Severity::Warning, what, &self.exempted());
    }

    /// The validator without effect on documents of kinsync.
    fn exempted(&self) -> Document {
        let id = self.written.keys.iter().find(|key| key.presence == Presence::Identifies);
        let id = id.map_or("kindeId", |key| key.path.as_str());
        doc! { "$or": [{ id: { "$type": "string" } }, self.rule.clone()] }
    }

    fn push(&mut self, severity: Severity, what: String, validator: &Document) {
        if self.found.iter().any(|known| known.what == what) {
            return;
        }
        let rule = serde_json::to_string(validator).unwrap_or_default();
        let command = format!("db.runCommand({{ collMod: \"{}\", validator: {rule} }})", self.collection);
        let fix = if command.len() > MAX_COMMAND {
            "remove the rule from the validator with `collMod`, or exempt documents with a Kinde id by `$or`"
                .to_owned()
        } else {
            format!("run `{command}`")
        };
        self.found.push(StoreProblem { subject: "validator".to_owned(), severity, what, fix });
    }
}

/// Returns the validator without the demand for this key.
fn without_required(rule: &Document, path: &str) -> Document {
    let mut rule = rule.clone();
    remove_required(&mut rule, path);
    rule
}

fn remove_required(rule: &mut Document, path: &str) {
    rule.remove(path);
    if let Ok(all) = rule.get_array_mut("$and") {
        all.iter_mut().filter_map(Bson::as_document_mut).for_each(|rule| remove_required(rule, path));
        all.retain(|rule| rule.as_document().is_none_or(|rule| !rule.is_empty()));
        if all.is_empty() {
            rule.remove("$and");
        }
    }
    let Ok(mut schema) = rule.get_document_mut("$jsonSchema") else { return };
    let mut name = path;
    while let Some((outer, rest)) = name.split_once('.') {
        let Ok(inner) = schema.get_document_mut("properties").and_then(|all| all.get_document_mut(outer))
        else {
            return;
        };
        (schema, name) = (inner, rest);
    }
    if let Ok(required) = schema.get_array_mut("required") {
        required.retain(|key| key.as_str() != Some(name));
        if required.is_empty() {
            schema.remove("required");
        }
    }
}
