//! How one document of a derived collection changes. Pure.
//!
//! The law of user documents: kinsync sets and removes only values that it wrote. The sub-document `kinsync` records each with
//! its path. An absent key or one with an equal value becomes kinsync's; another value of the application stays and is recorded as
//! kept. A value that kinsync wrote and the application changed is restored, and is left where kinsync has none any more.

use std::collections::HashSet;

use bson::{Bson, Document, doc};

use super::{content::Wanted, settings::Paths};

/// Version of the sub-document `kinsync` in these documents.
const FORMAT: i32 = 1;

/// A document as it was read.
#[derive(Clone, Debug)]
pub(super) struct Existing {
    /// `_id` of the document.
    pub(super) key: Bson,
    /// What kinsync recorded in it; `None` for a document of the application.
    pub(super) ours: Option<Ours>,
    document: Document,
}

/// What kinsync recorded in a document.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Ours {
    /// Identity within the collection.
    pub(super) id: String,
    /// Organization, role or user that the document belongs to.
    pub(super) owner: String,
    revision: i64,
    /// Paths with the values that kinsync wrote.
    written: Vec<(String, Bson)>,
    /// Paths with values of the application that stay.
    kept: Vec<String>,
}

/// A write of one document.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Change {
    /// A new document.
    Insert(Document),
    /// The condition and the update of an existing one.
    Update(Document, Document),
}

impl Existing {
    /// Reads a document. Keeps these top-level keys and those that kinsync wrote under former names. `None` if its sub-document
    /// `kinsync` is not of this format: it is left as it is.
    pub(super) fn read(document: Document, keys: &HashSet<String>) -> Option<Self> {
        let key = document.get("_id")?.clone();
        let ours = match document.get("kinsync") {
            None | Some(Bson::Null) => None,
            Some(Bson::Document(recorded)) => Some(Ours::read(recorded)?),
            Some(_) => return None,
        };
        let written = ours.iter().flat_map(|ours| &ours.written);
        let former: HashSet<&str> =
            written.map(|(path, _)| path.split('.').next().unwrap_or_default()).collect();
        let is_kept = |(name, _): &(String, Bson)| keys.contains(name) || former.contains(name.as_str());
        let document = document.into_iter().filter(is_kept).collect();
        Some(Self { key, ours, document })
    }

    /// Returns the value under a path.
    pub(super) fn value(&self, path: &str) -> Option<&Bson> {
        let value = match path.split_once('.') {
            None => self.document.get(path),
            Some((outer, last)) => self.document.get_document(outer).ok()?.get(last),
        };
        value.filter(|value| !matches!(value, Bson::Null | Bson::Undefined))
    }

    /// Returns whether the path leads through a value that is no sub-document.
    fn is_blocked(&self, path: &str) -> bool {
        let outer = path.split_once('.').and_then(|(outer, _)| self.document.get(outer));
        outer.is_some_and(|outer| outer.as_document().is_none())
    }

    /// Returns the value that kinsync wrote under a path and that the document still has.
    pub(super) fn written(&self, path: &str) -> Option<&Bson> {
        let (_, written) = self.ours.as_ref()?.written.iter().find(|(known, _)| known == path)?;
        self.value(path).filter(|value| *value == written)
    }
}

impl Ours {
    fn read(recorded: &Document) -> Option<Self> {
        if recorded.get("format").and_then(number)? != i64::from(FORMAT) {
            return None;
        }
        let written = recorded.get_array("written").map(Vec::as_slice).unwrap_or_default();
        let written = written.iter().filter_map(|one| {
            let one = one.as_document()?;
            Some((one.get_str("path").ok()?.to_owned(), one.get("value")?.clone()))
        });
        let kept = recorded.get_array("kept").map(Vec::as_slice).unwrap_or_default();
        Some(Self {
            id: recorded.get_str("id").ok()?.to_owned(),
            owner: recorded.get_str("of").ok()?.to_owned(),
            revision: recorded.get("revision").and_then(number)?,
            written: written.collect(),
            kept: kept.iter().filter_map(|path| Some(path.as_str()?.to_owned())).collect(),
        })
    }

    fn document(&self) -> Document {
        let written = self.written.iter().map(|(path, value)| doc! { "path": path, "value": value.clone() });
        let mut recorded = doc! {
            "format": FORMAT,
            "revision": self.revision,
            "id": &self.id,
            "of": &self.owner,
            "written": written.collect::<Vec<_>>(),
        };
        if !self.kept.is_empty() {
            recorded.insert("kept", &self.kept);
        }
        recorded
    }
}

/// Returns the write that makes a document show what is wanted; `None` if it does.
pub(super) fn change(existing: Option<&Existing>, wanted: &Wanted, paths: &Paths) -> Option<Change> {
    let values = wanted.values.iter().filter_map(|(key, value)| Some((paths.of(key)?, value)));
    match existing {
        None => Some(insertion(wanted, values)),
        Some(existing) => update(existing, wanted, values),
    }
}

fn insertion<'a>(wanted: &Wanted, values: impl Iterator<Item = (&'a str, &'a Bson)>) -> Change {
    let mut document = doc! { "_id": bson::oid::ObjectId::new() };
    let mut written = Vec::new();
    for (path, value) in values {
        match path.split_once('.') {
            None => _ = document.insert(path, value.clone()),
            Some((outer, last)) => {
                let inner = document.entry(outer.to_owned()).or_insert_with(|| Document::new().into());
                inner.as_document_mut().map(|inner| inner.insert(last, value.clone()));
            }
        }
        written.push((path.to_owned(), value.clone()));
    }
    let (id, owner) = (wanted.id.clone(), wanted.owner.clone());
    document.insert("kinsync", Ours { id, owner, revision: 1, written, kept: Vec::new() }.document());
    Change::Insert(document)
}

fn update<'a>(
    existing: &Existing,
    wanted: &Wanted,
    values: impl Iterator<Item = (&'a str, &'a Bson)>,
) -> Option<Change> {
    let (mut set, mut unset, mut conditions) = (Document::new(), Document::new(), Document::new());
    let known = existing.ours.as_ref();
    let was_written =
        |path: &str| known.is_some_and(|ours| ours.written.iter().any(|(known, _)| known == path));
    let was_kept = |path: &str| known.is_some_and(|ours| ours.kept.iter().any(|known| known == path));
    let (mut written, mut kept) = (Vec::new(), Vec::new());
    for (path, value) in values {
        let there = existing.value(path);
        let is_equal = there == Some(value);
        if existing.is_blocked(path)
            || (there.is_some() && !was_written(path) && (!is_equal || was_kept(path)))
        {
            kept.push(path.to_owned());
            continue;
        }
        if !is_equal {
            set.insert(path, value.clone());
        }
        if !was_written(path) {
            // The application may write the key meanwhile.
            conditions.insert(path, doc! { "$eq": there.cloned().unwrap_or(Bson::Null) });
        }
        written.push((path.to_owned(), value.clone()));
    }
    let former = known.iter().flat_map(|ours| &ours.written).map(|(path, _)| path);
    for path in former.filter(|path| !written.iter().any(|(shown, _)| shown == *path)) {
        // What the application wrote over it is its own.
        if let Some(value) = existing.written(path) {
            conditions.insert(path, doc! { "$eq": value.clone() });
            unset.insert(path, true);
        }
    }
    let next = Ours {
        id: wanted.id.clone(),
        owner: wanted.owner.clone(),
        revision: known.map_or(1, |ours| ours.revision + 1),
        written,
        kept,
    };
    let is_recorded = known.is_some_and(|known| Ours { revision: next.revision, ..known.clone() } == next);
    if set.is_empty() && unset.is_empty() && is_recorded {
        return None;
    }
    let mut query = doc! { "_id": existing.key.clone() };
    match known {
        Some(ours) => query.insert("kinsync.revision", ours.revision),
        None => query.insert("kinsync", Bson::Null),
    };
    if !conditions.is_empty() {
        query.insert("$and", [conditions]);
    }
    set.insert("kinsync", next.document());
    let mut update = doc! { "$set": set };
    if !unset.is_empty() {
        update.insert("$unset", unset);
    }
    Some(Change::Update(query, update))
}

fn number(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        #[expect(clippy::cast_possible_truncation, reason = "an integer was stored")]
        Bson::Double(number) => Some(*number as i64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::settings::{Derived, DerivedConfig},
        *,
    };

    fn wanted(values: &[(&'static str, &str)]) -> Wanted {
        let values = values.iter().map(|(key, value)| (*key, Bson::from(*value))).collect();
        Wanted { id: "org_1".into(), owner: "org_1".into(), values }
    }

    /// Applies the change to the document as the server does, and reads it again.
    fn apply(document: &Document, wanted: &Wanted, config: &DerivedConfig) -> Document {
        let paths = Paths::new(config, Derived::Organizations).expect("valid");
        let keys = paths.first().map(ToOwned::to_owned).collect();
        let existing = Existing::read(document.clone(), &keys).expect("readable");
        let mut next = document.clone();
        if let Some(Change::Update(_, update)) = change(Some(&existing), wanted, &paths) {
            for (path, value) in update.get_document("$set").expect("always set") {
                next.insert(path, value.clone());
            }
            update.get_document("$unset").into_iter().flatten().for_each(|(path, _)| _ = next.remove(path));
        }
        next
    }

    fn own(document: &Document) -> Document {
        document
            .iter()
            .filter(|(key, _)| *key != "kinsync" && *key != "_id")
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }

    fn config(names: &[(&str, &str)]) -> DerivedConfig {
        let names = names.iter().map(|(key, name)| ((*key).to_owned(), Some((*name).to_owned())));
        DerivedConfig { names: names.collect(), ..DerivedConfig::default() }
    }

    #[test]
    fn a_document_of_the_application_keeps_its_values_and_gets_the_others() {
        let default = DerivedConfig::default();
        let document = doc! { "_id": 1, "code": "org_1", "name": "Ours", "plan": "pro" };
        let next =
            apply(&document, &wanted(&[("code", "org_1"), ("name", "Acme"), ("handle", "acme")]), &default);
        assert_eq!(own(&next), doc! { "code": "org_1", "name": "Ours", "plan": "pro", "handle": "acme" });
        // Where Kinde no longer has a value, the application's value stays.
        let next = apply(&next, &wanted(&[("code", "org_1")]), &default);
        assert_eq!(own(&next), doc! { "code": "org_1", "name": "Ours", "plan": "pro" });
    }

    #[test]
    fn an_edit_is_restored_and_what_replaced_a_removed_value_stays() {
        let default = DerivedConfig::default();
        let shown = wanted(&[("code", "org_1"), ("name", "Acme")]);
        let Some(Change::Insert(mut document)) =
            change(None, &shown, &Paths::new(&default, Derived::Organizations).expect("valid"))
        else {
            panic!("a new document");
        };
        document.insert("name", "Edited");
        assert_eq!(own(&apply(&document, &shown, &default)), doc! { "code": "org_1", "name": "Acme" });
        let without = apply(&document, &wanted(&[("code", "org_1")]), &default);
        assert_eq!(own(&without), doc! { "code": "org_1", "name": "Edited" });
        assert_eq!(
            apply(&without, &wanted(&[("code", "org_1")]), &default),
            without,
            "nothing is written twice"
        );
    }

    #[test]
    fn a_renamed_key_moves() {
        let shown = wanted(&[("code", "org_1"), ("name", "Acme")]);
        let paths = Paths::new(&DerivedConfig::default(), Derived::Organizations).expect("valid");
        let Some(Change::Insert(document)) = change(None, &shown, &paths) else { panic!("a new document") };
        let renamed = config(&[("name", "title")]);
        assert_eq!(own(&apply(&document, &shown, &renamed)), doc! { "code": "org_1", "title": "Acme" });
    }
}
