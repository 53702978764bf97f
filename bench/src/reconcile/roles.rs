//! The roles of members: a backfill with `reconcile.roles`, a reconciliation without changes, and the same with a rate limit.
//!
//! Each user is a member of two organizations: the one of the tenant, which has all users, and one with 200 members.

use super::{Done, PART, Runs, Tenant, memory};
use crate::mongo::Mongod;
use crate::oplog::{self, Position};
use crate::options::Options;
use crate::report::{Report, Row, Target, Unit};
use crate::work::Work;

const DATABASE: &str = "roles";
/// No reads of the permissions of single members: without a limit they would be two requests for each member with a role.
const SETTINGS: &[(&str, &str)] = &[("KINSYNC_RECONCILE_ROLES", "true"), ("KINSYNC_PERMISSION_READS", "0")];
const MEMBERS: u64 = 200;
const MEMBERSHIPS: u64 = 2;
const ROLES: u64 = 20;
/// The rate limit: requests per window of this many seconds. Kinde publishes no numbers.
const LIMIT: u64 = 100;
const WINDOW: u64 = 5;
/// kinsync's own records, among them the result of each run and its lease.
const RECORDS: &str = "kinsync_state";

/// Measures the three runs.
pub async fn measure(
    work: &Work,
    mongod: &Mongod,
    options: &Options,
    report: &mut Report,
) -> anyhow::Result<()> {
    let size = Size { users: options.role_users, organizations: options.role_users / MEMBERS };
    let more = format!(
        "organizations = {}\nmemberships_per_user = {MEMBERSHIPS}\nroles = {ROLES}\n",
        size.organizations
    );
    let tenant = Tenant::start(work, DATABASE, size.users, &more).await?;
    let run = async |name: &'static str, what: &str| {
        let before = tenant.requests().await?;
        let done = Runs { work, mongod, name, settings: SETTINGS }.run(&tenant, DATABASE, what).await?;
        anyhow::Ok((done, tenant.requests().await? - before))
    };
    let what = format!(
        "roles: backfill of {} users, {} memberships in {} organizations",
        size.users,
        size.users * MEMBERSHIPS,
        size.organizations
    );
    let backfill = run("first", "backfill").await?;
    size.add_rows(&what, &backfill, "missing", report);

    let before = oplog::end(mongod).await?;
    let again = run("again", "reconcile").await?;
    let (written, collections) = written_since(mongod, before).await?;
    size.add_rows("roles: reconcile without drift", &again, "unchanged", report);
    let row =
        Row::new(PART, "roles: reconcile without drift, documents written", written as f64, Unit::Count);
    let problem = size.problem(&again.0, "unchanged");
    report
        .add(row.target(Target::AtMost(0.0)).note(format!("from the oplog; {collections}")).unless(problem));

    tenant.limit(LIMIT, WINDOW).await?;
    let limited = run("limited", "reconcile").await?;
    let what = format!("roles: the same at {LIMIT} requests per {WINDOW} s");
    size.add_rows(&what, &limited, "unchanged", report);
    Ok(())
}

struct Size {
    users: u64,
    organizations: u64,
}

impl Size {
    fn add_rows(&self, what: &str, (done, requests): &(Done, u64), kind: &str, report: &mut Report) {
        let problem = self.problem(done, kind);
        let row = Row::new(PART, what, done.used.took.as_secs_f64(), Unit::Seconds);
        report.add(row.note(done.note()).unless(problem.clone()));
        let row = Row::new(PART, format!("{what}, requests"), *requests as f64, Unit::Count);
        report.add(row.note("received by the emulator").unless(problem.clone()));
        report.add(memory(&format!("{what}, peak memory"), done).unless(problem));
    }

    /// Why the result is invalid, if not all users and members were compared.
    fn problem(&self, done: &Done, kind: &str) -> Option<String> {
        let run = &done.run;
        let users = if kind == "missing" { &run["drift"][kind] } else { &run[kind] };
        let members = &run["roles"];
        let is_complete = run["outcome"] == "complete"
            && *users == self.users
            && members["organizations"] == self.organizations
            && members["members"] == self.users * MEMBERSHIPS
            && members["notCompared"].is_null()
            && (kind == "missing" || members["changed"] == 0 && members["filledIn"] == 0);
        (!is_complete).then(|| run.to_string())
    }
}

/// Counts the documents written since `from`, without kinsync's own records, and names the collections.
async fn written_since(mongod: &Mongod, from: Position) -> anyhow::Result<(u64, String)> {
    let (mut written, mut parts) = (0, Vec::new());
    for name in mongod.database(DATABASE).list_collection_names().await? {
        let count = oplog::writes_since(mongod, from, &format!("{DATABASE}.{name}")).await?;
        written += if name == RECORDS { 0 } else { count };
        parts.push(format!("{name}: {count}"));
    }
    parts.sort();
    Ok((written, parts.join(", ")))
}
