//! What must hold before kinsync writes into a derived collection, and its indexes.
//!
//! The collection may be one of the application. kinsync uses it only if it has no documents of the application, or if the settings
//! name the key under which those have Kinde's code or id. Its only unique index is on its own sub-document, so it forbids the
//! application no document.

use std::sync::{PoisonError, atomic::Ordering};

use bson::{Document, RawDocument, doc};

use super::{
    super::{Inner, indexes::Index, read::Find, read::own_id},
    Derived, DerivedCollection,
};
use crate::store::{Error, Severity, StoreProblem};

/// The unique index on the identity of a document.
pub(super) const ID: &str = "kinsync_id";

const DOING: &str = "examine the collections of organizations, roles and memberships";

impl Inner {
    /// Examines the derived collections and creates their indexes. Returns why nothing is written into one, and what the
    /// application's rules refuse.
    pub(in super::super) async fn prepare_derived(&self) -> Result<Vec<StoreProblem>, Error> {
        let mut problems = Vec::new();
        for one in &self.derived {
            let there = self.indexes(&one.collection).await?;
            if let Some(problem) = self.foreign_documents(one, &there).await? {
                one.is_ready.store(false, Ordering::Release);
                problems.push(problem);
                continue;
            }
            let failed = self.make(&one.collection, &there, &one.wanted_indexes(), true).await?;
            let is_ready = failed.iter().all(|problem| problem.subject != format!("index {ID}"));
            one.is_ready.store(is_ready, Ordering::Release);
            problems.extend(failed);
            problems.extend(there.iter().filter_map(|index| one.greedy(index)));
            problems.extend(one.refused());
        }
        Ok(problems)
    }

    /// Returns the same problems without those of kinsync's indexes. Writes nothing.
    pub(in super::super) async fn examine_derived(&self) -> Result<Vec<StoreProblem>, Error> {
        let mut problems = Vec::new();
        for one in &self.derived {
            let there = self.indexes(&one.collection).await?;
            problems.extend(self.foreign_documents(one, &there).await?);
            problems.extend(there.iter().filter_map(|index| one.greedy(index)));
        }
        Ok(problems)
    }

    /// Returns the problem of a collection with documents of the application, unless the settings name their key or kinsync has
    /// used the collection before.
    async fn foreign_documents(
        &self,
        one: &DerivedCollection,
        there: &[Document],
    ) -> Result<Option<StoreProblem>, Error> {
        let is_used = there.iter().any(|index| index.get_str("name").is_ok_and(|name| name == ID));
        if is_used || one.paths.identity_is_named {
            return Ok(None);
        }
        let find = Find::new(doc! { "kinsync": null }).limit(1).projection(doc! { "_id": 1 });
        let id = |doc: &RawDocument| Some(own_id(doc));
        let found = self.find(DOING, &one.collection, find, id).await?;
        Ok(found.first().map(|id| one.foreign_problem(id)))
    }
}

impl DerivedCollection {
    fn foreign_problem(&self, example: &str) -> StoreProblem {
        let name = self.collection.name();
        let table = self.derived.table();
        let keys: Vec<String> = self.derived.identity().iter().map(|key| format!("`{key}`")).collect();
        StoreProblem {
            subject: format!("collection {name}"),
            severity: Severity::Error,
            what: format!(
                "the collection `{name}` has documents of the application, such as the one with `_id` {example}, so kinsync \
                 writes nothing into it"
            ),
            fix: format!(
                "name another collection, or name {} in [{table}]: the keys under which your documents have Kinde's values",
                keys.join(" and ")
            ),
        }
    }

    /// Returns the indexes: by the own identity, and by the keys of readers.
    fn wanted_indexes(&self) -> Vec<Index> {
        let mut indexes = vec![
            Index::unique_sparse(ID, doc! { "kinsync.id": 1 }),
            Index::sparse("kinsync_of", doc! { "kinsync.of": 1 }),
        ];
        let key = |key| self.paths.of(key);
        let readers: Vec<(&'static str, Vec<&str>)> = match self.derived {
            Derived::Organizations => vec![("kinsync_code", vec![self.path("code")])],
            Derived::Roles => {
                let by_key = key("key").map(|path| ("kinsync_key", vec![path]));
                [("kinsync_roleId", vec![self.path("id")])].into_iter().chain(by_key).collect()
            }
            Derived::Memberships => vec![
                ("kinsync_user", vec![self.path("kindeId"), self.path("code")]),
                ("kinsync_code", vec![self.path("code")]),
            ],
        };
        let document = |paths: Vec<&str>| paths.into_iter().map(|path| (path.to_owned(), 1.into())).collect();
        indexes.extend(readers.into_iter().map(|(name, paths)| Index::sparse(name, document(paths))));
        indexes
    }

    /// Returns the problem of a unique index of the application that allows only one document of kinsync.
    fn greedy(&self, index: &Document) -> Option<StoreProblem> {
        let flag = |key: &str| index.get_bool(key).unwrap_or_default();
        let name = index.get_str("name").ok()?;
        let keys: Vec<&str> = index.get_document("key").ok()?.keys().map(String::as_str).collect();
        let identifies = self.derived.identity().iter().all(|key| keys.contains(&self.path(key)));
        let is_harmless = !flag("unique")
            || flag("sparse")
            || index.contains_key("partialFilterExpression")
            || name == ID
            || name == "_id_"
            || identifies;
        (!is_harmless).then(|| StoreProblem {
            subject: format!("index {}.{name}", self.collection.name()),
            severity: Severity::Error,
            what: format!(
                "the unique index `{name}` of `{}` allows only one document without `{}`, and kinsync writes none",
                self.collection.name(),
                keys.join("`, `")
            ),
            fix: format!(
                "create it with `partialFilterExpression: {{ \"{}\": {{ $exists: true }} }}`",
                keys.first().unwrap_or(&"key")
            ),
        })
    }

    /// Returns the problem of documents that the database refused since the start.
    fn refused(&self) -> Option<StoreProblem> {
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.as_ref().map(|(count, reason)| StoreProblem {
            subject: format!("documents of {}", self.collection.name()),
            severity: Severity::Warning,
            what: format!(
                "the database refused {count} writes into `{}` since the start; the newest: {reason}",
                self.collection.name()
            ),
            fix: "change the rule; kinsync tries again every minute".into(),
        })
    }
}
