//! `MongoDB`: the server and its set, what may be done there, the indexes, and addresses that several users have.

use std::time::Duration;

use kinsync_engine::store::{
    Error,
    mongo::{Forbidden, IndexFault, MongoStore, Server, Topology},
};
use kinsync_tower::problem::chain;
use secrecy::ExposeSecret;

use super::{Finding, some};
use crate::{app::start::mongo_config, config::Config};

const REACHABLE: &str = "mongodb.reachable";
const VERSION: &str = "mongodb.version";
const REPLICA_SET: &str = "mongodb.replica_set";
const MAJORITY: &str = "mongodb.majority";
const PRIVILEGES: &str = "mongodb.privileges";
const INDEXES: &str = "mongodb.indexes";
const EMAILS: &str = "mongodb.emails";
const CONFLICTS: &str = "mongodb.conflicts";

pub(super) const IDS: [&str; 8] =
    [REACHABLE, VERSION, REPLICA_SET, MAJORITY, PRIVILEGES, INDEXES, EMAILS, CONFLICTS];

/// The oldest that the driver talks to.
const OLDEST: (u32, u32) = (4, 4);
/// A majority that is further behind keeps every write waiting.
const LARGEST_LAG: Duration = Duration::from_secs(10);
/// All addresses are read for it.
const EMAILS_DEADLINE: Duration = Duration::from_secs(20);
const MOST_CONFLICTS: usize = 1000;

pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    let Some(uri) = &config.store.mongodb_uri else {
        let first = Finding::skipped(
            REACHABLE,
            "not in use: users are in a file of the data folder",
            "set MONGODB_URI to keep them in MongoDB",
        );
        return vec_with(first);
    };
    let store = match MongoStore::connect(mongo_config(&config.store, uri.expose_secret())).await {
        Ok(store) => store,
        Err(error) => return vec_with(Finding::failed(REACHABLE, chain(&error), fix_of(&error))),
    };
    let server = match store.server().await {
        Ok(server) => server,
        Err(error) => return vec_with(Finding::failed(REACHABLE, chain(&error), fix_of(&error))),
    };
    let database = store.database().name();
    let mut findings = vec![
        Finding::ok(REACHABLE, format!("database {database}")),
        version(&server),
        replica_set(&server),
        majority(&server),
        privileges(database, store.forbidden().await),
    ];
    let faults = store.index_faults().await;
    findings.push(indexes(&faults));
    if server.topology == Topology::Standalone {
        // What a majority has is read, and here is none.
        findings.extend([Finding::needs(EMAILS, REPLICA_SET), Finding::needs(CONFLICTS, REPLICA_SET)]);
        return findings;
    }
    let (emails, conflicts) = tokio::join!(emails(config, &store, &faults), conflicts(&store));
    findings.extend([emails, conflicts]);
    findings
}

/// The first finding, and the others that rest on it.
fn vec_with(first: Finding) -> Vec<Finding> {
    let rest = IDS[1..].iter().map(|id| Finding::needs(id, REACHABLE));
    std::iter::once(first).chain(rest).collect()
}

fn fix_of(error: &Error) -> String {
    match error {
        Error::Refused { hint, .. } => hint.clone(),
        _ => "check MONGODB_URI, that the server runs and has a primary, and that this machine may reach it"
            .into(),
    }
}

fn version(server: &Server) -> Finding {
    let mut numbers = server.version.split('.').map_while(|part| part.parse::<u32>().ok());
    let found = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    if found < OLDEST {
        let found = format!("{} is too old", server.version);
        return Finding::failed(VERSION, found, format!("use MongoDB {}.{} or later", OLDEST.0, OLDEST.1));
    }
    Finding::ok(VERSION, server.version.clone())
}

fn replica_set(server: &Server) -> Finding {
    match &server.topology {
        Topology::ReplicaSet { name, members: 1 } => {
            Finding::ok(REPLICA_SET, format!("{name}, of one member"))
        }
        Topology::ReplicaSet { name, members } => {
            Finding::ok(REPLICA_SET, format!("{name}, {members} members with data"))
        }
        Topology::Sharded => Finding::ok(REPLICA_SET, "a sharded cluster"),
        Topology::Standalone => Finding::failed(
            REPLICA_SET,
            "the server stands alone: what it acknowledges can be lost, and nothing can follow its changes",
            "start mongod with --replSet rs0, run rs.initiate() once, and add ?replicaSet=rs0 to MONGODB_URI",
        ),
    }
}

fn majority(server: &Server) -> Finding {
    match (server.majority_lag, &server.topology) {
        (_, Topology::Standalone) => Finding::needs(MAJORITY, REPLICA_SET),
        (None, _) => Finding::skipped(
            MAJORITY,
            "the server does not say how far a majority of its members is",
            "look at rs.status() on each shard",
        ),
        (Some(lag), _) if lag > LARGEST_LAG => Finding::failed(
            MAJORITY,
            format!("most members are {} s behind, and every write of a user waits for them", lag.as_secs()),
            "look at rs.status(): a member with data is down or too slow; an arbiter does not stand in for it",
        ),
        _ => Finding::ok(MAJORITY, "keeps up"),
    }
}

fn privileges(database: &str, forbidden: Result<Vec<Forbidden>, Error>) -> Finding {
    let forbidden = match forbidden {
        Ok(forbidden) if forbidden.is_empty() => return Finding::ok(PRIVILEGES, "may read and write"),
        Ok(forbidden) => forbidden,
        Err(error) => return Finding::skipped(PRIVILEGES, chain(&error), fix_of(&error)),
    };
    let each: Vec<String> =
        forbidden.iter().map(|one| format!("{} in {}", one.action, one.collection)).collect();
    Finding::failed(
        PRIVILEGES,
        format!("the user of MONGODB_URI may not {}", some(&each)),
        format!(
            "grant it the role readWrite on {database}: `db.grantRolesToUser(\"<user>\", [{{ role: \"readWrite\", db: \
             \"{database}\" }}])` in the database that it is defined in"
        ),
    )
}

fn indexes(faults: &Result<Vec<IndexFault>, Error>) -> Finding {
    let faults = match faults {
        Ok(faults) => faults,
        Err(error) => return Finding::failed(INDEXES, chain(error), fix_of(error)),
    };
    for fault in faults {
        match fault {
            IndexFault::Greedy { collection, name } => {
                return Finding::failed(
                    INDEXES,
                    format!(
                        "the unique index `{name}` lets only one document be without an address, but deleted users \
                         have none: `kinsync serve` does not start"
                    ),
                    format!(
                        "`db.{collection}.dropIndex(\"{name}\")`: kinsync makes its own, or make it sparse"
                    ),
                );
            }
            IndexFault::Changed { collection, name } => {
                return Finding::failed(
                    INDEXES,
                    format!("`{name}` is there with other options: `kinsync serve` does not start"),
                    format!("`db.{collection}.dropIndex(\"{name}\")`, then start it: it makes its own"),
                );
            }
            IndexFault::Missing { .. } => {}
        }
    }
    let missing: Vec<&str> = faults.iter().filter_map(IndexFault::missing).collect();
    if missing.is_empty() {
        return Finding::ok(INDEXES, "as they should be");
    }
    Finding::warning(
        INDEXES,
        format!("not there yet: {}", some(&missing)),
        "start `kinsync serve`, which makes them; on a large collection that takes minutes",
    )
}

async fn emails(config: &Config, store: &MongoStore, faults: &Result<Vec<IndexFault>, Error>) -> Finding {
    let unique = config.store.unique_email;
    let has_index = faults.as_ref().is_ok_and(|faults| !faults.iter().any(IndexFault::is_of_email));
    if unique && has_index {
        return Finding::ok(EMAILS, "a unique index keeps them apart");
    }
    let shared = match store.shared_emails(EMAILS_DEADLINE).await {
        Ok(shared) => shared,
        Err(error) => {
            let fix = "try again at a quieter hour: without an index every document is read";
            return Finding::warning(EMAILS, format!("could not be compared: {}", chain(&error)), fix);
        }
    };
    if shared.is_empty() {
        return Finding::ok(EMAILS, "no two documents show the same");
    }
    let found = format!("documents show the same one, by `_id`: {}", shared.join("; "));
    let merge = "merge these documents, or remove the address from one of each";
    if unique {
        let fix = format!("{merge}, or set KINSYNC_UNIQUE_EMAIL=false");
        return Finding::failed(EMAILS, format!("{found}: `kinsync serve` does not start"), fix);
    }
    Finding::warning(EMAILS, found, merge)
}

async fn conflicts(store: &MongoStore) -> Finding {
    let users = match store.email_conflicts(MOST_CONFLICTS).await {
        Ok(users) => users,
        Err(error) => return Finding::warning(CONFLICTS, chain(&error), fix_of(&error)),
    };
    match users.len() {
        0 => Finding::ok(CONFLICTS, "none"),
        count => Finding::warning(
            CONFLICTS,
            format!(
                "{}{count} users do not show their address, because another document does: {}",
                if count == MOST_CONFLICTS { "at least " } else { "" },
                some(&users)
            ),
            "`emailConflict` in each document says whose it is; `kinsync adopt --dry-run` shows what can be done \
             about rows of yours",
        ),
    }
}
