//! Indexes of the application that refuse documents which kinsync writes. Pure.
//!
//! A unique index refuses the second of two documents with equal keys, and an absent key is equal to another absent one. So
//! the question for each index is: can two users have documents that the index contains with equal keys?

use bson::{Bson, Document};

use super::written::{Presence, Written};
use crate::store::{Severity, StoreProblem};

/// Collation strengths below this one treat two different texts as equal.
const EXACT: i64 = 3;

/// An index as `listIndexes` describes it.
struct Index<'a> {
    name: &'a str,
    keys: Vec<&'a str>,
    partial: Option<&'a Document>,
    is_sparse: bool,
    is_collated: bool,
    is_hidden: bool,
}

/// Returns the problems of the indexes of the collection of users, those of kinsync excepted.
pub(super) fn indexes(there: &[Document], written: &Written, collection: &str) -> Vec<StoreProblem> {
    let examiner = Examiner { written, collection };
    let of_the_application = there.iter().filter_map(|index| {
        let is_unique = index.get_bool("unique").unwrap_or_default();
        Index::of(index).filter(|index| !index.name.starts_with("kinsync_")).map(|index| (index, is_unique))
    });
    let problem = |(index, is_unique): (Index<'_>, bool)| {
        if is_unique { examiner.unique(&index) } else { examiner.parallel_arrays(&index) }
    };
    of_the_application.filter_map(problem).collect()
}

impl<'a> Index<'a> {
    fn of(index: &'a Document) -> Option<Self> {
        let flag = |key: &str| index.get_bool(key).unwrap_or_default();
        let strength =
            index.get_document("collation").ok().map(|collation| match collation.get("strength") {
                Some(Bson::Int32(strength)) => i64::from(*strength),
                Some(Bson::Int64(strength)) => *strength,
                _ => EXACT,
            });
        Some(Self {
            name: index.get_str("name").ok()?,
            keys: index.get_document("key").ok()?.keys().map(String::as_str).collect(),
            partial: index.get_document("partialFilterExpression").ok(),
            is_sparse: flag("sparse"),
            is_collated: strength.is_some_and(|strength| strength < EXACT),
            is_hidden: flag("hidden"),
        })
    }

    /// Returns whether the index contains no document without this key.
    fn excludes_documents_without(&self, key: &str) -> bool {
        self.partial.and_then(|filter| filter.get(key)).is_some_and(implies_existence)
    }
}

struct Examiner<'a> {
    written: &'a Written,
    collection: &'a str,
}

impl Examiner<'_> {
    fn unique(&self, index: &Index<'_>) -> Option<StoreProblem> {
        let presence = |key: &&str| self.written.presence(key);
        if index.keys.iter().any(|key| presence(key) == Presence::Identifies) {
            return index.is_collated.then(|| self.collated(index, Severity::Error));
        }
        if let [key] = *index.keys
            && presence(&key) == Presence::Shared
        {
            return Some(self.shared(index, key));
        }
        if self.contains_users_without_its_keys(index) {
            return Some(self.greedy(index));
        }
        index.is_collated.then(|| self.collated(index, Severity::Warning))
    }

    /// Returns whether two documents of kinsync without the optional keys of the index are both in it.
    fn contains_users_without_its_keys(&self, index: &Index<'_>) -> bool {
        let is_always = |key: &&str| self.written.presence(key) == Presence::Always;
        let mut optional = index.keys.iter().filter(|key| !is_always(key));
        if optional.any(|key| index.excludes_documents_without(key)) {
            return false;
        }
        // kinsync never writes this key, so the index contains none of its documents.
        let demands_unwritten = index.partial.is_some_and(|filter| {
            filter.iter().any(|(key, rule)| {
                self.written.presence(key) == Presence::Never
                    && !key.starts_with('$')
                    && implies_existence(rule)
            })
        });
        if demands_unwritten {
            return false;
        }
        // A sparse index contains a document with at least one of its keys.
        !index.is_sparse || index.keys.iter().any(is_always)
    }

    fn greedy(&self, index: &Index<'_>) -> StoreProblem {
        let is_always = |key: &&&str| self.written.presence(key) == Presence::Always;
        let optional: Vec<&str> = index.keys.iter().filter(|key| !is_always(key)).copied().collect();
        let names = listed(&optional);
        let never: Vec<&str> =
            optional.iter().filter(|key| self.written.presence(key) == Presence::Never).copied().collect();
        let why = if optional.is_empty() {
            "and several users have the same values".to_owned()
        } else if never.is_empty() {
            format!("and kinsync leaves {names} out of documents of users without it, deleted users included")
        } else {
            format!("and kinsync writes no {}", listed(&never))
        };
        let what = if optional.is_empty() {
            format!(
                "the unique index `{}` allows only one document with the same {}",
                index.label(),
                listed(&index.keys)
            )
        } else {
            format!("the unique index `{}` allows only one document without {names}", index.label())
        };
        problem(index, Severity::Error, format!("{what}, {why}"), self.partial_index(index, &optional))
    }

    fn shared(&self, index: &Index<'_>, key: &str) -> StoreProblem {
        let what = format!(
            "the unique index `{}` allows only one document with the same `{key}`, and several users can have the same \
             value: kinsync leaves the key out of the documents of the others",
            index.label()
        );
        let fix = format!("run `{}` and create the index without `unique`", self.drop_line(index));
        problem(index, Severity::Warning, what, fix)
    }

    fn collated(&self, index: &Index<'_>, severity: Severity) -> StoreProblem {
        let keys = listed(&index.keys);
        let what = format!(
            "the unique index `{}` compares {keys} by a collation that treats different texts as equal: of two such users it \
             accepts one",
            index.label()
        );
        let fix = format!(
            "run `{}` and create the index with `collation: {{ locale: \"simple\" }}`",
            self.drop_line(index)
        );
        problem(index, severity, what, fix)
    }

    /// An index over two arrays refuses a document with both.
    fn parallel_arrays(&self, index: &Index<'_>) -> Option<StoreProblem> {
        let top = |key: &str| key.split('.').next().unwrap_or_default().to_owned();
        let ours: Vec<&str> = index.keys.iter().filter(|key| self.written.is_array(key)).copied().collect();
        let others = index.keys.iter().filter(|key| ours.iter().all(|our| top(our) != top(key)));
        let others: Vec<&str> = others.filter(|key| !self.written.is_scalar(key)).copied().collect();
        let [first, ..] = *ours else { return None };
        let is_certain = ours.iter().any(|key| top(key) != top(first));
        if others.is_empty() && !is_certain {
            return None;
        }
        let what = format!(
            "the index `{}` covers {}: MongoDB refuses a document in which two of them are arrays, and kinsync then leaves \
             its own array out",
            index.label(),
            listed(&index.keys)
        );
        let fix = format!("run `{}` and create one index for each array", self.drop_line(index));
        Some(problem(index, Severity::Warning, what, fix))
    }

    fn drop_line(&self, index: &Index<'_>) -> String {
        format!("db.{}.dropIndex(\"{}\")", self.collection, index.name)
    }

    /// The commands that replace the index by one without documents that lack a key.
    fn partial_index(&self, index: &Index<'_>, optional: &[&str]) -> String {
        let drop = self.drop_line(index);
        if let [key] = *index.keys
            && self.written.is_email(key)
        {
            return format!(
                "run `{drop}`, because kinsync creates its own unique index, and remove `unique` from the schema of the \
                 application, which creates the index again"
            );
        }
        if optional.is_empty() {
            return format!("run `{drop}`");
        }
        let keys: Vec<String> = index.keys.iter().map(|key| format!("{}: 1", quoted(key))).collect();
        let filter: Vec<String> =
            optional.iter().map(|key| format!("{}: {{ $exists: true }}", quoted(key))).collect();
        format!(
            "run `{drop}; db.{}.createIndex({{ {} }}, {{ name: \"{}\", unique: true, partialFilterExpression: {{ {} }} }})`, \
             or rename the key of kinsync with the setting `fields`",
            self.collection,
            keys.join(", "),
            index.name,
            filter.join(", ")
        )
    }
}

fn problem(index: &Index<'_>, severity: Severity, what: String, fix: String) -> StoreProblem {
    StoreProblem { subject: format!("index {}", index.name), severity, what, fix }
}

impl Index<'_> {
    fn label(&self) -> String {
        if self.is_hidden {
            format!("{} (hidden, and still unique)", self.name)
        } else {
            self.name.to_owned()
        }
    }
}

/// Returns whether a condition of a partial index excludes documents without the key.
fn implies_existence(rule: &Bson) -> bool {
    match rule {
        Bson::Null => false,
        Bson::Document(rule) if rule.keys().any(|key| key.starts_with('$')) => {
            rule.iter().any(|(operator, value)| match operator.as_str() {
                "$exists" => !matches!(value, Bson::Boolean(false) | Bson::Int32(0)),
                "$gt" | "$lt" | "$type" => true,
                "$gte" | "$lte" | "$eq" => *value != Bson::Null,
                _ => false,
            })
        }
        _ => true,
    }
}

fn listed(keys: &[&str]) -> String {
    keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(" and ")
}

fn quoted(key: &str) -> String {
    let is_plain = key.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
    if is_plain { key.to_owned() } else { format!("\"{key}\"") }
}
