//! What an operator asks of a MongoDB, for `kinsync doctor`. Reads only.

use std::time::Duration;

use bson::{Bson, Document, doc};

use super::{
    Inner, MongoStore,
    indexes::{EMAIL, Index, greedy, of_events},
    read::{Find, name_of},
};
use crate::store::{Error, timed};

const DOING: &str = "look at the server";

/// The server that answers for the database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    /// Such as `6.0.5`.
    pub version: String,
    /// What it is part of.
    pub topology: Topology,
    /// By how much a majority of its set is behind it; `None` where it does not say so.
    pub majority_lag: Option<Duration>,
}

/// What a server is part of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Topology {
    /// A replica set.
    ReplicaSet {
        /// Its name.
        name: String,
        /// Members that keep data.
        members: usize,
    },
    /// A sharded cluster.
    Sharded,
    /// Nothing: it stands alone, and no majority can acknowledge a write.
    Standalone,
}

/// What is wrong with an index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IndexFault {
    /// It is not there; [`MongoStore::prepare`] makes it.
    Missing {
        /// Of which collection.
        collection: String,
        /// Its name.
        name: &'static str,
    },
    /// Another index has its name.
    Changed {
        /// Of which collection.
        collection: String,
        /// Its name.
        name: &'static str,
    },
    /// An index of the application lets only one document be without an address.
    Greedy {
        /// Of which collection.
        collection: String,
        /// Its name.
        name: String,
    },
}

impl IndexFault {
    /// The name of an index that is not there.
    pub fn missing(&self) -> Option<&'static str> {
        match self {
            Self::Missing { name, .. } => Some(name),
            _ => None,
        }
    }

    /// Whether nothing keeps two documents from showing the same address because of it.
    pub fn is_of_email(&self) -> bool {
        matches!(self, Self::Missing { name, .. } | Self::Changed { name, .. } if *name == EMAIL)
    }
}

impl MongoStore {
    /// Asks the server what it is.
    pub async fn server(&self) -> Result<Server, Error> {
        timed("mongo", "server", self.0.server()).await
    }

    /// What [`Self::prepare`] would do or complain of, without doing it.
    pub async fn index_faults(&self) -> Result<Vec<IndexFault>, Error> {
        timed("mongo", "index_faults", self.0.index_faults()).await
    }

    /// Documents that show the same address, a few pairs by `_id`. Reads every address: allow it some time.
    pub async fn shared_emails(&self, limit: Duration) -> Result<Vec<String>, Error> {
        timed("mongo", "shared_emails", self.0.shared(self.0.keys.email(), limit)).await
    }

    /// The ids of users who do not show their address because another document has it, at most this many.
    pub async fn email_conflicts(&self, limit: usize) -> Result<Vec<String>, Error> {
        timed("mongo", "email_conflicts", self.0.email_conflicts(limit)).await
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
        let greedy = greedy(&there, self.keys.email()).map(str::to_owned);
        let greedy = greedy.map(|name| IndexFault::Greedy { collection: self.users.name().to_owned(), name });
        let mut faults: Vec<IndexFault> = greedy.into_iter().collect();
        faults.extend(faults_of(self.users.name(), &there, &self.of_users()));
        let there = self.indexes(&self.events).await?;
        faults.extend(faults_of(self.events.name(), &there, &of_events()));
        Ok(faults)
    }

    async fn email_conflicts(&self, limit: usize) -> Result<Vec<String>, Error> {
        // The first condition is for the sparse index: an address that is not shown is held.
        let filter = doc! { "kinsync.held.email": { "$exists": true }, "emailConflict": { "$exists": true } };
        let find = Find::new(filter).projection(doc! { "kindeId": 1 }).limit(limit);
        self.find("list the conflicts", &self.users, find, |doc| Some(name_of(doc))).await
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

/// How much older the last write of a majority is than the last write.
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
    fn a_majority_is_as_far_behind_as_its_last_write() {
        let at = DateTime::from_millis;
        let hello = |last, majority| doc! { "lastWrite": { "lastWriteDate": at(last), "majorityWriteDate": at(majority) } };
        assert_eq!(majority_lag(&hello(90_000, 30_000)), Some(Duration::from_mins(1)));
        assert_eq!(majority_lag(&hello(30_000, 30_000)), Some(Duration::ZERO));
        assert_eq!(majority_lag(&hello(30_000, 31_000)), Some(Duration::ZERO));
        assert_eq!(majority_lag(&doc! {}), None);
    }

    #[test]
    fn what_a_server_is_part_of_is_told_by_its_hello() {
        let set =
            doc! { "setName": "rs0", "hosts": ["a:1", "b:1"], "passives": ["c:1"], "arbiters": ["d:1"] };
        assert_eq!(topology(&set), Topology::ReplicaSet { name: "rs0".into(), members: 3 });
        assert_eq!(topology(&doc! { "msg": "isdbgrid" }), Topology::Sharded);
        assert_eq!(topology(&doc! { "isWritablePrimary": true }), Topology::Standalone);
    }
}
