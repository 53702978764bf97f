//! Inspects MongoDB for `kinsync doctor`. Writes nothing.

use std::time::Duration;

use bson::{Bson, Document, doc};

use super::{
    Inner, MongoStore,
    indexes::{EMAIL, Index, of_events, of_state},
    read::Find,
};
use crate::store::{Error, StoreProblem, timed};

const DOING: &str = "inspect the server";

/// The server of the database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    /// Version such as `6.0.5`.
    pub version: String,
    /// Topology.
    pub topology: Topology,
    /// Replication lag of the majority; `None` if the server does not report it.
    pub majority_lag: Option<Duration>,
}

/// Topology of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Topology {
    /// A replica set.
    ReplicaSet {
        /// Name of the set.
        name: String,
        /// Number of data-bearing members.
        members: usize,
    },
    /// A sharded cluster.
    Sharded,
    /// A standalone server, which supports no transactions.
    Standalone,
}

/// A problem with an index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IndexFault {
    /// The index is missing; [`MongoStore::prepare`] creates it.
    Missing {
        /// Collection.
        collection: String,
        /// Name of the index.
        name: &'static str,
    },
    /// Another index has the same name.
    Changed {
        /// Collection.
        collection: String,
        /// Name of the index.
        name: &'static str,
    },
}

impl IndexFault {
    /// Returns the name of a missing index.
    pub fn missing(&self) -> Option<&'static str> {
        match self {
            Self::Missing { name, .. } => Some(name),
            Self::Changed { .. } => None,
        }
    }

    /// Returns whether the fault allows two documents with the same address.
    pub fn is_of_email(&self) -> bool {
        matches!(self, Self::Missing { name, .. } | Self::Changed { name, .. } if *name == EMAIL)
    }
}

impl MongoStore {
    /// Returns version, topology and replication lag of the server.
    pub async fn server(&self) -> Result<Server, Error> {
        timed("mongo", "server", self.inner()?.server()).await
    }

    /// Returns the indexes that [`Self::prepare`] would create or refuse. Creates none.
    pub async fn index_faults(&self) -> Result<Vec<IndexFault>, Error> {
        timed("mongo", "index_faults", self.inner()?.index_faults()).await
    }

    /// Returns what the indexes and the validator of the application refuse of the documents that kinsync writes. Creates
    /// no index.
    pub async fn conflicting_rules(&self) -> Result<Vec<StoreProblem>, Error> {
        let inner = self.inner()?;
        let rules = async {
            let mut rules = inner.examine(&inner.collection_of_users().await?);
            rules.extend(inner.examine_derived().await?);
            Ok(rules)
        };
        timed("mongo", "conflicting_rules", rules).await
    }

    /// Returns a few pairs of documents with the same address, by `_id`. Reads every address, which may take long.
    pub async fn shared_emails(&self, limit: Duration) -> Result<Vec<String>, Error> {
        let Some(email) = self.keys().email() else { return Ok(Vec::new()) };
        timed("mongo", "shared_emails", self.inner()?.shared(email, limit)).await
    }

    /// Returns at most `limit` ids of users with an email conflict.
    pub async fn email_conflicts(&self, limit: usize) -> Result<Vec<String>, Error> {
        timed("mongo", "email_conflicts", self.inner()?.email_conflicts(limit)).await
    }
}

impl Inner {
    async fn server(&self) -> Result<Server, Error> {
        let database = self.database.clone();
        let ask = async move {
            let hello = database.run_command(doc! { "hello": 1 }).await?;
            let build = database.run_command(doc! { "buildInfo": 1 }).await?;
            Ok((hello, build))
        };
        let (hello, build) = self.calls.run(DOING, self.op_timeout, ask).await?;
        let version = build.get_str("version").unwrap_or_default().to_owned();
        Ok(Server { version, topology: topology(&hello), majority_lag: majority_lag(&hello) })
    }

    async fn index_faults(&self) -> Result<Vec<IndexFault>, Error> {
        let there = self.indexes(&self.users).await?;
        let mut faults = faults_of(self.users.name(), &there, &self.of_users());
        let there = self.indexes(&self.events).await?;
        faults.extend(faults_of(self.events.name(), &there, &of_events()));
        let there = self.indexes(&self.state).await?;
        faults.extend(faults_of(self.state.name(), &there, &[of_state()]));
        Ok(faults)
    }

    async fn email_conflicts(&self, limit: usize) -> Result<Vec<String>, Error> {
        let id = self.keys.kinde_id();
        let filter = doc! { "kinsync.heldBy": { "$exists": true }, id: { "$gt": "" } };
        let find = Find::new(filter).projection(doc! { id: 1 }).limit(limit);
        let keys = self.keys.clone();
        self.find("list the conflicts", &self.users, find, move |doc| Some(keys.name_of(doc))).await
    }
}

fn faults_of(collection: &str, there: &[Document], wanted: &[Index]) -> Vec<IndexFault> {
    let unserved = wanted.iter().filter(|index| !there.iter().any(|there| index.is_served_by(there)));
    let fault = |index: &Index| {
        let (collection, name) = (collection.to_owned(), index.name);
        if index.has_its_name_taken(there) {
            IndexFault::Changed { collection, name }
        } else {
            IndexFault::Missing { collection, name }
        }
    };
    unserved.map(fault).collect()
}

/// <https://www.mongodb.com/docs/manual/reference/command/hello/>
fn topology(hello: &Document) -> Topology {
    if hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid") {
        return Topology::Sharded;
    }
    let Ok(name) = hello.get_str("setName") else { return Topology::Standalone };
    let count = |key| hello.get_array(key).map_or(0, Vec::len);
    Topology::ReplicaSet { name: name.to_owned(), members: count("hosts") + count("passives") }
}

/// Returns the lag of the majority's last write behind the last write.
fn majority_lag(hello: &Document) -> Option<Duration> {
    let last = hello.get_document("lastWrite").ok()?;
    let at = |key| last.get(key).and_then(Bson::as_datetime).map(|at| at.timestamp_millis());
    let behind = at("lastWriteDate")?.saturating_sub(at("majorityWriteDate")?);
    Some(Duration::from_millis(u64::try_from(behind).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use bson::DateTime;

    use super::*;

    #[test]
    fn the_lag_of_a_majority_is_the_lag_of_its_last_write() {
        let at = DateTime::from_millis;
        let hello = |last, majority| doc! { "lastWrite": { "lastWriteDate": at(last), "majorityWriteDate": at(majority) } };
        assert_eq!(majority_lag(&hello(90_000, 30_000)), Some(Duration::from_mins(1)));
        assert_eq!(majority_lag(&hello(30_000, 30_000)), Some(Duration::ZERO));
        assert_eq!(majority_lag(&hello(30_000, 31_000)), Some(Duration::ZERO));
        assert_eq!(majority_lag(&doc! {}), None);
    }

    #[test]
    fn the_topology_is_read_from_hello() {
        let set =
            doc! { "setName": "rs0", "hosts": ["a:1", "b:1"], "passives": ["c:1"], "arbiters": ["d:1"] };
        assert_eq!(topology(&set), Topology::ReplicaSet { name: "rs0".into(), members: 3 });
        assert_eq!(topology(&doc! { "msg": "isdbgrid" }), Topology::Sharded);
        assert_eq!(topology(&doc! { "isWritablePrimary": true }), Topology::Standalone);
    }
}
