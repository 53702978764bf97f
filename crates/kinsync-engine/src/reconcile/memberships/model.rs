//! A model of memberships, explored in full: every interleaving of a process that applies events of the user, one that applies
//! events of organizations and roles, a scan and a check, with the changes at Kinde. The model calls the real join, classifier,
//! records and comparisons; only Kinde, the store and the order of the steps are modelled.
//!
//! Bounds: one user, one organization, two roles, one of which gives a permission that the lists of events contain too; three
//! changes at Kinde, most of them with an event, which is lost or late; in two histories one event arrives twice; one scan, and a kill of a
//! process at any step: a killed scan is one without a further step.
//!
//! Properties, in every state:
//! - a role or a membership that ended does not come back, unless Kinde has assigned it again;
//! - permissions are shown only with the lists of all roles, and only those that the member had at some time;
//! - when nothing is in flight, the document shows the memberships, roles and permissions of Kinde, or leaves roles and
//!   permissions out, unless an event was lost and no complete scan has read everything since.

mod responses;
mod steps;
mod world;

use std::{cell::Cell, collections::HashSet, hash::BuildHasherDefault};

use kinsync_core::{
    Entry, Fact, Field, Micros, Observation, Organization, Profile, Source, UserId, Value, Version, What,
};

use self::{steps::successors, world::World};
use crate::{
    directory::{Kind, Stored},
    reconcile::model::explore::{Memo, Shared, Words, hash},
    scan_watermark::ScanWatermarks,
    store::Row,
};

/// No revision of a row of the model.
const OUTDATED: i64 = -1;

/// Results of the real code: it runs once for each combination of arguments.
#[derive(Debug, Default)]
struct Memos {
    rows: Memo<(Option<Shared<Row>>, bool)>,
    records: Memo<Shared<Stored>>,
    watermarks: Memo<Shared<ScanWatermarks>>,
    stale: Memo<bool>,
    problems: Memo<Option<&'static str>>,
    exact: Memo<bool>,
    /// Deletions that followed from a list and an older event of the user.
    unlisted: Cell<u64>,
}

/// Later than every instant of the model.
const NOW: Micros = Micros(1_000_000);

const CODE: &str = "org_1";
const ROLES: [&str; 2] = ["role_1", "role_2"];
const PERMISSION: &str = "delete";

/// The tenant at one time.
#[derive(Clone, Copy, Debug)]
struct Tenant {
    /// Positions of the roles of the member; `None`: the user is no member.
    member: Option<&'static [usize]>,
    /// Whether the organization exists.
    has_organization: bool,
    /// Key of each role, and whether it gives the permission; `None`: the role does not exist.
    roles: [Option<(&'static str, bool)>; 2],
}

impl Tenant {
    fn organization(self) -> Option<Organization> {
        let ids: Vec<String> = self.member?.iter().map(|role| ROLES[*role].to_owned()).collect();
        let permissions = Some(self.permissions());
        Some(Organization { roles: Some(ids), permissions, ..Organization::new(CODE) })
    }

    /// The permissions of the member, all from roles.
    fn permissions(self) -> Vec<String> {
        let gives = |role: &usize| self.roles[*role].is_some_and(|(_, gives)| gives);
        let is_given = self.member.unwrap_or_default().iter().any(gives);
        is_given.then(|| PERMISSION.to_owned()).into_iter().collect()
    }

    /// The keys of the roles of the member, sorted.
    fn keys(self) -> Vec<String> {
        let key = |role: &usize| self.roles[*role].map(|(key, _)| key.to_owned());
        let mut keys: Vec<String> = self.member.unwrap_or_default().iter().filter_map(key).collect();
        keys.sort();
        keys
    }

    fn codes(self) -> Profile {
        let codes = self.member.map(|_| CODE.to_owned()).into_iter().collect();
        Profile::new().with(Field::OrganizationCodes, Value::Codes(codes))
    }

    /// Returns an organization or a role, as an event or a list contains it; `None` if it does not exist.
    fn object(self, object: usize, version: &Version, is_list: bool) -> Option<Entry> {
        let Some(role) = object.checked_sub(1) else {
            return self.has_organization.then(|| Entry::observed([(Fact::Name, "One".into())], version));
        };
        let (key, gives) = self.roles[role]?;
        let ids = gives.then(|| PERMISSION.to_owned()).into_iter().collect();
        let given = is_list.then_some((Fact::Permissions, Value::Codes(ids)));
        Some(Entry::observed(std::iter::once((Fact::Key, key.into())).chain(given), version))
    }
}

/// The organization is the first object, and the roles follow.
fn kind(object: usize) -> Kind {
    if object == 0 { Kind::Organization } else { Kind::Role }
}

fn object_id(object: usize) -> &'static str {
    object.checked_sub(1).map_or(CODE, |role| ROLES[role])
}

/// What Kinde sends after a change.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The memberships of the user.
    User,
    /// The organization or a role.
    Object(usize),
    /// Nothing.
    None,
}

/// What is explored: the tenant before, and the changes in order, each with the tenant after it.
#[derive(Clone, Copy, Debug)]
struct History {
    before: Tenant,
    changes: &'static [(Event, Tenant)],
    /// Whether a former scan has listed the permissions of the roles.
    is_listed: bool,
    /// Events that arrive twice.
    duplicates: u8,
    /// Whether there are other organizations, so that no list of them is empty.
    has_others: bool,
}

impl History {
    fn tenant(&self, changes: usize) -> Tenant {
        changes.checked_sub(1).map_or(self.before, |last| self.changes[last].1)
    }

    fn version(change: usize) -> Version {
        Version::event(time(change + 1, 0), format!("event_{change}"))
    }

    fn user_event(&self, change: usize) -> Observation {
        memberships(self.changes[change].1, Self::version(change))
    }

    fn object_event(&self, change: usize, object: usize) -> Entry {
        let version = Self::version(change);
        let entry = self.changes[change].1.object(object, &version, false);
        entry.unwrap_or_else(|| Entry::deleted(&version))
    }
}

fn memberships(tenant: Tenant, version: Version) -> Observation {
    let list = Value::Organizations(tenant.organization().into_iter().collect());
    let what = What::Fields(Profile::new().with(Field::Organizations, list));
    Observation { user: id(), version, source: Source::Webhook, what }
}

fn id() -> UserId {
    UserId::parse("kp_a").expect("an id")
}

/// Returns a time after this many changes: a change happens at each hundred.
fn time(changes: usize, rest: i64) -> Micros {
    Micros(100 * i64::try_from(changes).expect("few changes") + rest)
}

/// Returns a property that a step or a state violates.
fn violation(history: &History, memos: &Memos, before: &World, world: &World) -> Option<&'static str> {
    let (was, is) = (before.row, world.row);
    let problem = memos.problems.get((0, was, is, world.changes), || changed(history, before, world));
    let is_final = world.is_quiet() && world.lost == 0;
    let end = || untrue(history.tenant(world.changes), shown(&is));
    problem.or_else(|| is_final.then(|| memos.problems.get((1, is, world.changes), end)).flatten())
}

/// Returns what a step must not do to the row.
fn changed(history: &History, before: &World, world: &World) -> Option<&'static str> {
    let (was, is) = (shown(&before.row), shown(&world.row));
    let until_now = || (0..=world.changes).map(|changes| history.tenant(changes));
    let is_new = |has: &dyn Fn(Tenant) -> bool| {
        let all: Vec<bool> = until_now().map(has).collect();
        all.windows(2).any(|pair| pair == [false, true])
    };
    if was.is_none() && is.is_some() && !is_new(&|tenant| tenant.member.is_some()) {
        return Some("is a member again");
    }
    let had = |one: &Option<Organization>, role: &str| {
        let roles = one.as_ref()?.roles.as_ref()?;
        Some(roles.iter().any(|key| key == role))
    };
    for (position, role) in ROLES.iter().enumerate() {
        let has = |tenant: Tenant| tenant.member.is_some_and(|roles| roles.contains(&position));
        let (was, is) = (stored(&before.row), stored(&world.row));
        if had(&was, role) == Some(false) && had(&is, role) == Some(true) && !is_new(&has) {
            return Some("has a role again");
        }
    }
    if let Some(permissions) = is.as_ref().and_then(|one| one.permissions.as_ref()) {
        let is_known = |role: &String| {
            let entry = world.row.state.directory.entry(role);
            entry.is_some_and(|entry| entry.permissions().is_some() || !entry.is_live())
        };
        if !stored(&world.row).and_then(|one| one.roles).is_some_and(|roles| roles.iter().all(is_known)) {
            return Some("shows permissions without the list of a role");
        }
        if !permissions.is_empty() && until_now().all(|tenant| tenant.permissions().is_empty()) {
            return Some("shows a permission that the member never had");
        }
    }
    None
}

/// The membership in the document.
fn shown(row: &Row) -> Option<Organization> {
    row.state.organizations()?.pop()
}

/// The membership with the ids of the roles that exist.
fn stored(row: &Row) -> Option<Organization> {
    let mut stored = row.state.memberships()?.organization(CODE)?;
    let exists = |role: &String| row.state.directory.entry(role).is_none_or(Entry::is_live);
    stored.roles.iter_mut().for_each(|roles| roles.retain(exists));
    Some(stored)
}

/// Returns how the document differs from Kinde.
fn untrue(tenant: Tenant, shown: Option<Organization>) -> Option<&'static str> {
    let Some(shown) = shown else { return tenant.member.map(|_| "is not shown as a member") };
    if tenant.member.is_none() {
        return Some("is shown as a member");
    }
    if shown.roles.is_some_and(|roles| roles != tenant.keys()) {
        return Some("has other roles than at Kinde");
    }
    let differs = shown.permissions.is_some_and(|permissions| permissions != tenant.permissions());
    differs.then_some("has other permissions than at Kinde")
}

/// Explores every reachable state. Fewer states than `at_least` show that the model no longer explores what it did. Returns how
/// often a deletion followed from a list and an older event of the user.
fn check(history: &History, at_least: usize) -> u64 {
    let memos = Memos::default();
    let start = World::new(history);
    let mut known: HashSet<u64, BuildHasherDefault<Words>> = HashSet::default();
    known.insert(hash(start));
    let mut steps: Vec<(usize, &'static str)> = vec![(0, "start")];
    let (mut frontier, mut exact) = (vec![(0, start)], 0);
    while let Some((at, world)) = frontier.pop() {
        for (label, next) in successors(history, &memos, &world) {
            if !known.insert(hash(next)) {
                continue;
            }
            steps.push((at, label));
            if let Some(problem) = violation(history, &memos, &world, &next) {
                panic!("the user {problem}: {:#?}{}", *next.row, path(&steps));
            }
            let is_known = |one: Organization| one.roles.is_some() && one.permissions.is_some();
            let shows_all = || shown(&next.row).is_some_and(is_known);
            exact += usize::from(next.is_quiet() && memos.exact.get(next.row, shows_all));
            frontier.push((steps.len() - 1, next));
        }
    }
    eprintln!("{} states, {exact} of them quiet and without an unknown value: {history:?}", known.len());
    assert!(known.len() >= at_least, "{} states of {history:?}", known.len());
    assert!(exact > 0, "no state shows everything: {history:?}");
    memos.unlisted.get()
}

fn path(steps: &[(usize, &'static str)]) -> String {
    let (mut at, mut labels) = (steps.len() - 1, Vec::new());
    while at > 0 {
        labels.push(steps[at].1);
        at = steps[at].0;
    }
    labels.iter().rev().fold(String::new(), |text, label| text + "\n  " + label)
}

const ADMIN: Tenant = Tenant {
    member: Some(&[0]),
    has_organization: true,
    roles: [Some(("admin", true)), Some(("member", false))],
};
const WITHOUT_ROLES: Tenant = Tenant { member: Some(&[]), ..ADMIN };
const MEMBER: Tenant = Tenant { member: Some(&[1]), ..ADMIN };
const BOTH: Tenant = Tenant { member: Some(&[0, 1]), ..ADMIN };
const NO_MEMBER: Tenant = Tenant { member: None, ..ADMIN };

#[test]
fn a_role_that_was_taken_away_does_not_come_back() {
    let changes = &[(Event::User, WITHOUT_ROLES), (Event::User, NO_MEMBER), (Event::User, MEMBER)];
    check(&History { before: ADMIN, changes, is_listed: true, duplicates: 0, has_others: false }, 688_000);
}

#[test]
fn a_role_that_is_assigned_again_is_shown() {
    let changes = &[(Event::User, MEMBER), (Event::User, ADMIN), (Event::User, NO_MEMBER)];
    check(&History { before: ADMIN, changes, is_listed: true, duplicates: 0, has_others: false }, 740_000);
}

#[test]
fn a_renamed_role_keeps_its_members_and_a_deleted_one_has_none() {
    const RENAMED: Tenant = Tenant { roles: [Some(("owner", true)), Some(("member", false))], ..BOTH };
    const DELETED: Tenant = Tenant { member: Some(&[1]), roles: [None, Some(("member", false))], ..BOTH };
    const LEFT: Tenant = Tenant { member: Some(&[]), ..DELETED };
    let changes = &[(Event::Object(1), RENAMED), (Event::Object(1), DELETED), (Event::User, LEFT)];
    check(&History { before: BOTH, changes, is_listed: true, duplicates: 0, has_others: false }, 146_000);
}

#[test]
fn a_permission_outlives_neither_its_role_nor_its_place_in_the_role() {
    const LOST: Tenant = Tenant { roles: [Some(("admin", false)), Some(("member", false))], ..ADMIN };
    const DELETED: Tenant = Tenant { member: Some(&[]), roles: [None, Some(("member", false))], ..ADMIN };
    const JOINED: Tenant = Tenant { member: Some(&[1]), ..DELETED };
    let changes = &[(Event::None, LOST), (Event::Object(1), DELETED), (Event::User, JOINED)];
    check(&History { before: ADMIN, changes, is_listed: false, duplicates: 1, has_others: false }, 128_000);
}

#[test]
fn a_deleted_organization_that_is_created_again_has_no_former_member() {
    const DELETED: Tenant = Tenant { member: None, has_organization: false, ..ADMIN };
    const AGAIN: Tenant = Tenant { member: None, ..ADMIN };
    let changes = &[(Event::Object(0), DELETED), (Event::Object(0), AGAIN), (Event::User, MEMBER)];
    check(&History { before: ADMIN, changes, is_listed: true, duplicates: 0, has_others: false }, 281_000);
}

#[test]
fn an_organization_of_which_no_event_arrived_ends_with_the_list_that_lacks_it() {
    const BEFORE: Tenant = Tenant { member: None, has_organization: false, ..ADMIN };
    let changes = &[(Event::None, NO_MEMBER), (Event::User, MEMBER), (Event::None, BEFORE)];
    let history = History { before: BEFORE, changes, is_listed: true, duplicates: 1, has_others: true };
    assert!(check(&history, 71_000) > 0, "no event names what a newer list lacks");
}
