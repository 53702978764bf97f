//! `MongoDB`: the server and its replica set, privileges, indexes, and email addresses that several documents show.

use std::time::Duration;

use kinsync_engine::{
    Clock,
    internal::{
        link::{self, Verdict},
        refused_users,
        store::{
            Error, Severity, StoreProblem,
            mongo::{
                Forbidden, IndexFault, KeptKey, MongoStore, REMEDIES, Server, Topology, UnwrittenSearch,
            },
        },
    },
};
use kinsync_tower::problem::chain;
use secrecy::ExposeSecret;

use tokio::time::Instant;

use super::{Finding, some};
use crate::{app::start::mongo_config, config::Config, plural::counted};

const REACHABLE: &str = "mongodb.reachable";
const VERSION: &str = "mongodb.version";
const REPLICA_SET: &str = "mongodb.replica_set";
const MAJORITY: &str = "mongodb.majority";
const PRIVILEGES: &str = "mongodb.privileges";
const INDEXES: &str = "mongodb.indexes";
const COLLECTIONS: &str = "mongodb.collections";
const VALIDATOR: &str = "mongodb.validator";
const EMAILS: &str = "mongodb.emails";
const CONFLICTS: &str = "mongodb.conflicts";
const OTHER_FORMS: &str = "mongodb.other_forms";
const REFUSED_USERS: &str = "mongodb.refused_users";
const KEPT: &str = "mongodb.kept_values";

pub(super) const IDS: [&str; 13] = [
    REACHABLE,
    VERSION,
    REPLICA_SET,
    MAJORITY,
    PRIVILEGES,
    INDEXES,
    COLLECTIONS,
    VALIDATOR,
    EMAILS,
    CONFLICTS,
    OTHER_FORMS,
    REFUSED_USERS,
    KEPT,
];

/// The oldest version that the driver supports.
const OLDEST: (u32, u32) = (4, 4);
/// Every write waits for a majority that is further behind.
const LARGEST_LAG: Duration = Duration::from_secs(10);
/// This check reads every email address.
const EMAILS_DEADLINE: Duration = Duration::from_secs(20);
/// The search for documents that kinsync has not written ends then.
const SEARCH_DEADLINE: Duration = Duration::from_secs(5);
const MOST_CONFLICTS: usize = 1000;
/// Refused users in the finding.
const SHOWN_USERS: usize = 3;

pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    let Some(uri) = &config.store.mongodb_uri else {
        let first = Finding::skipped(
            REACHABLE,
            "not in use: the users are stored in a file in the data folder",
            "set MONGODB_URI to store them in MongoDB",
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
    let database = store.database_name();
    let (collection, named_by) = store.place();
    let mut findings = vec![
        Finding::ok(REACHABLE, format!("users in {collection} (named by {named_by})")),
        version(&server),
        replica_set(&server),
        majority(&server),
        privileges(database, store.forbidden().await),
    ];
    let faults = store.index_faults().await;
    let rules = store.conflicting_rules().await;
    findings.extend([indexes(&faults, &rules), collections(config, &rules), validator(&rules)]);
    let (emails, conflicts, other_forms, refused_users, kept) = tokio::join!(
        emails(config, &store, &faults),
        conflicts(&store),
        other_forms(&store),
        refused_users(&store),
        kept(&store)
    );
    findings.extend([emails, conflicts, other_forms, refused_users, kept]);
    findings
}

/// The first finding, and the others, which need it.
fn vec_with(first: Finding) -> Vec<Finding> {
    let rest = IDS[1..].iter().map(|id| Finding::needs(id, REACHABLE));
    std::iter::once(first).chain(rest).collect()
}

fn fix_of(error: &Error) -> String {
    match error {
        Error::Refused { hint, .. } => hint.clone(),
        _ => "check MONGODB_URI, that the server runs and has a primary, and that this machine can reach it; a mongodb+srv URI \
              also needs DNS"
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
        Topology::Standalone => Finding::warning(
            REPLICA_SET,
            "the server is not a member of a replica set: existing documents are not linked to users, which needs a \
             transaction, changes cannot be watched, and nothing replaces the server when it is lost",
            "start mongod with `--replSet rs0`, and run `mongosh --eval 'rs.initiate()'` once",
        ),
    }
}

fn majority(server: &Server) -> Finding {
    match (server.majority_lag, &server.topology) {
        (_, Topology::Standalone) => Finding::ok(MAJORITY, "one server"),
        (None, _) => Finding::skipped(
            MAJORITY,
            "the server does not report the lag of a majority of its members",
            "check rs.status() on each shard",
        ),
        (Some(lag), _) if lag > LARGEST_LAG => Finding::failed(
            MAJORITY,
            format!("a majority of the members is {} s behind, and every write waits for it", lag.as_secs()),
            "check rs.status(): a data-bearing member is down or too slow; an arbiter does not replace it",
        ),
        _ => Finding::ok(MAJORITY, "up to date"),
    }
}

fn privileges(database: &str, forbidden: Result<Vec<Forbidden>, Error>) -> Finding {
    let forbidden = match forbidden {
        Ok(forbidden) if forbidden.is_empty() => return Finding::ok(PRIVILEGES, "read and write"),
        Ok(forbidden) => forbidden,
        Err(error) if !error.is_transient() => {
            return Finding::failed(PRIVILEGES, chain(&error), fix_of(&error));
        }
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

fn indexes(faults: &Result<Vec<IndexFault>, Error>, rules: &Result<Vec<StoreProblem>, Error>) -> Finding {
    let (faults, rules) = match (faults, rules) {
        (Ok(faults), Ok(rules)) => (faults, rules),
        (Err(error), _) | (_, Err(error)) => return Finding::failed(INDEXES, chain(error), fix_of(error)),
    };
    let changed = faults.iter().filter_map(|fault| match fault {
        IndexFault::Missing { .. } => None,
        IndexFault::Changed { collection, name } => Some(StoreProblem {
            subject: format!("index {name}"),
            severity: Severity::Error,
            what: format!("`{name}` exists with other options"),
            fix: format!("run `db.{collection}.dropIndex(\"{name}\")`; the server creates it again"),
        }),
    });
    let of_rules = rules.iter().filter(|problem| problem.subject.starts_with("index ")).cloned();
    let of_indexes: Vec<StoreProblem> = changed.chain(of_rules).collect();
    if !of_indexes.is_empty() {
        return conflicting(INDEXES, &of_indexes.iter().collect::<Vec<_>>());
    }
    let missing: Vec<&str> = faults.iter().filter_map(IndexFault::missing).collect();
    if missing.is_empty() {
        return Finding::ok(INDEXES, "all exist");
    }
    Finding::warning(
        INDEXES,
        format!("missing: {}", some(&missing)),
        "start `kinsync serve`, which creates them; on a large collection this takes minutes",
    )
}

/// Whether the collections of organizations, roles and memberships can be written.
fn collections(config: &Config, rules: &Result<Vec<StoreProblem>, Error>) -> Finding {
    let rules = match rules {
        Err(error) => return Finding::failed(COLLECTIONS, chain(error), fix_of(error)),
        Ok(rules) => rules,
    };
    let problems = rules.iter().filter(|problem| problem.subject.starts_with("collection "));
    let problems: Vec<&StoreProblem> = problems.collect();
    if !problems.is_empty() {
        return conflicting(COLLECTIONS, &problems);
    }
    let names = config.store.derived.values().filter_map(|one| one.collection.as_deref());
    let names: Vec<&str> = names.collect();
    if names.is_empty() {
        let found = "none for organizations, roles or memberships; KINSYNC_ORGANIZATIONS_COLLECTION, KINSYNC_ROLES_COLLECTION and \
                     KINSYNC_MEMBERSHIPS_COLLECTION name them";
        return Finding::ok(COLLECTIONS, found);
    }
    Finding::ok(COLLECTIONS, some(&names))
}

fn validator(rules: &Result<Vec<StoreProblem>, Error>) -> Finding {
    match rules {
        Err(error) => Finding::failed(VALIDATOR, chain(error), fix_of(error)),
        Ok(rules) => {
            let of_validator: Vec<&StoreProblem> =
                rules.iter().filter(|problem| problem.subject == "validator").collect();
            if of_validator.is_empty() {
                Finding::ok(VALIDATOR, "allows what kinsync writes")
            } else {
                conflicting(VALIDATOR, &of_validator)
            }
        }
    }
}

/// Each conflict with its fix.
fn conflicting(id: &'static str, problems: &[&StoreProblem]) -> Finding {
    let found: Vec<&str> = problems.iter().map(|problem| problem.what.as_str()).collect();
    let fixes: Vec<&str> = problems.iter().map(|problem| problem.fix.as_str()).collect();
    let (found, fix) = (found.join("; "), fixes.join("; "));
    if problems.iter().any(|problem| problem.severity == Severity::Error) {
        Finding::failed(id, found, fix)
    } else {
        Finding::warning(id, found, fix)
    }
}

async fn emails(config: &Config, store: &MongoStore, faults: &Result<Vec<IndexFault>, Error>) -> Finding {
    let unique = config.store.unique_email;
    let has_index = faults.as_ref().is_ok_and(|faults| !faults.iter().any(IndexFault::is_of_email));
    if unique && has_index {
        return Finding::ok(EMAILS, "a unique index prevents duplicates");
    }
    let shared = match store.shared_emails(EMAILS_DEADLINE).await {
        Ok(shared) => shared,
        Err(error) => {
            let fix = if error.is_transient() {
                "try again when the server has less load: without an index every document is read".into()
            } else {
                fix_of(&error)
            };
            return Finding::warning(EMAILS, format!("could not be compared: {}", chain(&error)), fix);
        }
    };
    if shared.is_empty() {
        return Finding::ok(EMAILS, "no duplicates");
    }
    let found = format!("documents show the same email address, by `_id`: {}", shared.join("; "));
    let merge = "merge these documents, or remove the address from all but one";
    if unique {
        let fix = format!("{merge}, or set KINSYNC_UNIQUE_EMAIL=false");
        return Finding::failed(EMAILS, format!("{found}: no unique index can be created"), fix);
    }
    Finding::warning(EMAILS, found, merge)
}

/// Values of the application under kinsync's keys. kinsync keeps them, so this is information and not an error.
async fn kept(store: &MongoStore) -> Finding {
    let (kept, unwritten, searched) = match tokio::try_join!(store.kept_keys(), unwritten(store)) {
        Ok((kept, search)) => (kept, search.0, search.1),
        Err(error) => return Finding::warning(KEPT, chain(&error), fix_of(&error)),
    };
    if kept.is_empty() && unwritten.is_empty() {
        let what = "no document has a value of your application under a key of kinsync";
        return Finding::ok(KEPT, format!("{what}{searched}"));
    }
    let each = |keys: Vec<KeptKey>, what: &str| -> Vec<String> {
        let one = |key: KeptKey| {
            let documents = counted(key.documents, "document", "documents");
            format!("{} {what} {documents} ({})", key.path, key.examples.join(", "))
        };
        keys.into_iter().map(one).collect()
    };
    let mut found = each(kept, "keeps the value of your application in");
    found.extend(each(unwritten, "has values, which stay unless they equal Kinde's, in at least"));
    Finding::warning(KEPT, format!("{}{searched}", found.join("; ")), REMEDIES)
}

/// Values in documents that kinsync has not written, and what part of the documents was searched, if not all.
async fn unwritten(store: &MongoStore) -> Result<(Vec<KeptKey>, String), Error> {
    let (mut search, started) = (UnwrittenSearch::default(), Instant::now());
    while !search.progress().is_done && started.elapsed() < SEARCH_DEADLINE {
        store.search_unwritten(&mut search).await?;
    }
    let progress = search.progress();
    let searched = format!(" (of the first {} documents; `kinsync serve` searches all)", progress.searched);
    let searched = if progress.is_done { String::new() } else { searched };
    Ok((store.unwritten_keys(search), searched))
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
                "{}{}, in which another document shows the address of the user: {}",
                if count == MOST_CONFLICTS { "at least " } else { "" },
                counted(count, "email conflict", "email conflicts"),
                some(&users)
            ),
            "`emailConflict` in each document names the other one; `kinsync link --dry-run` lists documents of your application \
             that can be linked",
        ),
    }
}

/// Documents of the application with the address of a user in another form. They look like documents without a user.
async fn other_forms(store: &MongoStore) -> Finding {
    let again = "run `kinsync link --dry-run`, which lists every document";
    let compared = link::link(store, Clock::system().now(), link::Run::Dry, &|_| {});
    let found = match tokio::time::timeout(EMAILS_DEADLINE, compared).await {
        Ok(Ok(found)) => found.candidates,
        Ok(Err(error)) => return Finding::warning(OTHER_FORMS, chain(&error), fix_of(&error)),
        Err(_) => {
            let late = format!("documents were not compared within {} s", EMAILS_DEADLINE.as_secs());
            return Finding::skipped(OTHER_FORMS, late, again);
        }
    };
    let of_form = found.iter().filter(|one| one.verdict == Verdict::OtherForm);
    let each: Vec<String> = of_form.map(|one| format!("{} ({})", one.row, one.user)).collect();
    if each.is_empty() {
        return Finding::ok(OTHER_FORMS, "no document shows the address of a user in another form");
    }
    let what = "documents of your application show the address of a user in another case or with spaces, by `_id` (user)";
    Finding::warning(OTHER_FORMS, format!("{what}: {}", some(&each)), Verdict::OtherForm.next_step())
}

async fn refused_users(store: &MongoStore) -> Finding {
    let found = tokio::try_join!(refused_users::count(store), refused_users::list(store, None, SHOWN_USERS));
    let (count, users) = match found {
        Ok(found) => found,
        Err(error) => return Finding::warning(REFUSED_USERS, chain(&error), fix_of(&error)),
    };
    if count == 0 {
        return Finding::ok(REFUSED_USERS, "none");
    }
    let each: Vec<String> =
        users.iter().map(|refused| format!("{}: {}", refused.id, refused.user.reason)).collect();
    Finding::failed(
        REFUSED_USERS,
        format!(
            "the database refuses documents of {}, such as {}",
            counted(count, "user", "users"),
            each.join("; ")
        ),
        "change the named index or validator; the users are stored within a minute after that",
    )
}
