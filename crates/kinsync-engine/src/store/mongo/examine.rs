//! Examines the indexes and the validator of the collection of users against what kinsync writes.
//!
//! The same examination serves the start, `kinsync doctor` and the running server, which repeats it: an application may
//! create an index or change a validator at any time.

mod indexes;
#[cfg(test)]
mod tests;
mod validator;
mod written;

use std::{sync::atomic::Ordering, time::Duration};

use bson::{Document, doc};
use mongodb::options::Collation;
use tokio::time::Instant;

use self::written::Written;
use super::{
    Inner,
    indexes::{EMAIL, Index, of_events},
};
use crate::store::{Error, StoreProblem};

/// Time after which kinsync tries again to create an index that could not be created: each attempt reads the collection.
const BUILD_AGAIN: Duration = Duration::from_mins(10);

const DOING: &str = "examine the collection of users";

/// The last attempt to create the indexes.
#[derive(Debug, Default)]
pub(super) struct LastBuild {
    at: Option<Instant>,
    problems: Vec<StoreProblem>,
}

/// The collection of users as the server describes it.
#[derive(Clone, Debug, Default)]
pub(super) struct Collection {
    /// Its options; empty if it does not exist yet.
    pub(super) options: Document,
    /// Its indexes.
    pub(super) indexes: Vec<Document>,
}

impl Collection {
    /// Returns whether the collection compares texts by a collation unless a command names another one.
    pub(super) fn is_collated(&self) -> bool {
        self.options
            .get_document("collation")
            .is_ok_and(|collation| collation.get_str("locale").is_ok_and(|locale| locale != "simple"))
    }
}

impl Inner {
    /// Reads the options and the indexes of the collection of users.
    pub(super) async fn collection_of_users(&self) -> Result<Collection, Error> {
        let (database, name) = (self.database.clone(), self.users.name().to_owned());
        let list = async move {
            let filter = doc! { "name": name };
            database.run_command(doc! { "listCollections": 1, "filter": filter }).await
        };
        let reply = self.calls.run(DOING, self.op_timeout, list).await?;
        let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
        let first = batch.ok().and_then(|batch| batch.first()).and_then(|first| first.as_document());
        let options = first.and_then(|found| found.get_document("options").ok().cloned()).unwrap_or_default();
        Ok(Collection { options, indexes: self.indexes(&self.users).await? })
    }

    /// Returns what the rules of the application refuse of the documents that kinsync writes.
    pub(super) fn examine(&self, collection: &Collection) -> Vec<StoreProblem> {
        let (written, name) = (Written::by(&self.keys), self.users.name());
        let mut found = indexes::indexes(&collection.indexes, &written, name);
        found.extend(validator::validator(&collection.options, &written, name));
        found
    }

    /// Creates the indexes before the first write.
    pub(super) async fn prepare(&self) -> Result<(), Error> {
        let collection = self.collection_of_users().await?;
        self.compare_bytes_if(collection.is_collated());
        self.build_indexes(&collection).await?;
        self.prepare_derived().await?;
        Ok(())
    }

    /// Examines the collection again, and creates missing indexes.
    pub(super) async fn examine_again(&self) -> Result<Vec<StoreProblem>, Error> {
        let collection = self.collection_of_users().await?;
        self.compare_bytes_if(collection.is_collated());
        let mut problems = self.index_problems(&collection).await?;
        problems.extend(self.examine(&collection));
        problems.extend(self.prepare_derived().await?);
        Ok(problems)
    }

    /// Returns the problems of kinsync's own indexes. Creates those that are missing, unless that failed a moment ago.
    async fn index_problems(&self, users: &Collection) -> Result<Vec<StoreProblem>, Error> {
        let events = self.indexes(&self.events).await?;
        let is_missing =
            |index: &&Index, there: &[Document]| !there.iter().any(|there| index.is_served_by(there));
        let of_users = self.of_users();
        let of_events = of_events();
        let missing: Vec<String> = of_users
            .iter()
            .filter(|index| is_missing(index, &users.indexes))
            .chain(of_events.iter().filter(|index| is_missing(index, &events)))
            .map(|index| format!("index {}", index.name))
            .collect();
        let known: Vec<StoreProblem> = {
            let last = self.last_build();
            let is_recent = last.at.is_some_and(|at| at.elapsed() < BUILD_AGAIN);
            let problems = last.problems.iter().filter(|problem| missing.contains(&problem.subject));
            if is_recent { problems.cloned().collect() } else { Vec::new() }
        };
        if known.len() == missing.len() {
            let at = self.last_build().at;
            self.remember_build(known.clone(), at);
            return Ok(known);
        }
        self.build_indexes(users).await
    }

    async fn build_indexes(&self, users: &Collection) -> Result<Vec<StoreProblem>, Error> {
        let problems = self.make_indexes(users).await?;
        self.remember_build(problems.clone(), Some(Instant::now()));
        Ok(problems)
    }

    fn remember_build(&self, problems: Vec<StoreProblem>, at: Option<Instant>) {
        let email = format!("index {EMAIL}");
        let is_enforced = self.unique_email && problems.iter().all(|problem| problem.subject != email);
        self.enforces_unique_emails.store(is_enforced, Ordering::Release);
        *self.last_build() = LastBuild { at, problems };
    }

    fn last_build(&self) -> std::sync::MutexGuard<'_, LastBuild> {
        self.last_build.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn compare_bytes_if(&self, is_collated: bool) {
        self.is_collated.store(is_collated, Ordering::Release);
    }

    /// Returns the collation that queries need: the comparison of bytes, if the collection has another one.
    pub(super) fn collation(&self) -> Option<Collation> {
        let is_collated = self.is_collated.load(Ordering::Acquire);
        is_collated.then(|| Collation::builder().locale("simple").build())
    }
}
