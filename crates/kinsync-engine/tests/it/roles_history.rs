//! Random histories of a tenant: changes of users, organizations, memberships, roles and permissions at Kinde, with events that are
//! delivered, late, duplicate, reordered or lost, and what each part of a membership ever was.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use kinde_emulator::{Membership, NewUser, OrganizationEdit, Profile, RoleEdit, User, UserEdit};
use kinsync_core::Organization;
use kinsync_engine::internal::queue::Entry;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::{reconcile::World, roles_truth::permission_keys};

const MAX_USERS: usize = 18;
const KEYS: [&str; 4] = ["read", "write", "delete", "audit"];

/// A user and the code of an organization.
type Member = (String, String);

/// Own permissions of a user, by the code of the organization.
type Own = BTreeMap<String, BTreeSet<String>>;

/// A history of this tenant.
pub(crate) struct History<'a> {
    pub(crate) world: &'a World,
    pub(crate) rng: StdRng,
    imported: usize,
    /// Number of events that are accounted for.
    seen: usize,
    /// Own permissions of a user by code after each event and each other change, in order. Only an event has an id.
    own: Vec<(Option<String>, String, Own)>,
    delivered: HashSet<String>,
    late: Vec<Entry>,
    ever: Ever,
}

/// Every value that something ever had.
#[derive(Default)]
struct Ever {
    members: HashMap<Member, Parts>,
    names: HashMap<String, BTreeSet<String>>,
    role_keys: HashMap<String, BTreeSet<String>>,
    given: HashMap<String, BTreeSet<String>>,
    permission_keys: HashMap<String, BTreeSet<String>>,
}

#[derive(Default)]
struct Parts {
    roles: BTreeSet<String>,
    permissions: BTreeSet<String>,
    suspended: BTreeSet<bool>,
    joined: BTreeSet<i64>,
}

impl<'a> History<'a> {
    pub(crate) fn new(world: &'a World, users: usize, seed: u64) -> Self {
        let mut history = Self {
            world,
            rng: StdRng::seed_from_u64(seed),
            imported: 0,
            seen: 0,
            own: Vec::new(),
            delivered: HashSet::new(),
            late: Vec::new(),
            ever: Ever::default(),
        };
        (0..users).for_each(|_| history.import());
        history.remember();
        history
    }

    /// Makes changes at Kinde. Returns the events of them to deliver now, in another order and some of them twice. Of the others, some
    /// are late and some are lost.
    pub(crate) fn live(&mut self, steps: usize) -> Vec<Entry> {
        let mut now = Vec::new();
        for _ in 0..steps {
            self.step();
            self.remember();
            for entry in self.new_events() {
                match self.rng.random_range(0..20) {
                    0..10 => now.push(entry),
                    10 => now.extend([entry.clone(), entry]),
                    11..16 => self.late.push(entry),
                    _ => {}
                }
            }
        }
        now.shuffle(&mut self.rng);
        now
    }

    /// Records that a queue has these events.
    pub(crate) fn delivered(&mut self, event_ids: impl IntoIterator<Item = String>) {
        self.delivered.extend(event_ids);
    }

    /// Returns the late events, and some that were delivered before.
    pub(crate) fn late(&mut self) -> Vec<Entry> {
        let mut late = std::mem::take(&mut self.late);
        let again = self.world.events().into_iter().filter(|entry| self.delivered.contains(&entry.event_id));
        let again: Vec<Entry> = again.filter(|_| self.rng.random_bool(0.2)).collect();
        late.extend(again);
        late.shuffle(&mut self.rng);
        late
    }

    fn import(&mut self) {
        self.imported += 1;
        let n = self.imported;
        let new = NewUser::named(&format!("user{n}@example.com"), &format!("First {n}"), "Last");
        self.world.kinde.import_user(new).expect("a new address");
    }

    fn step(&mut self) {
        let kinde = &self.world.kinde;
        let rng = &mut self.rng;
        let users = kinde.users();
        let user = users[rng.random_range(0..users.len())].id.clone();
        let code = format!("org_{}", rng.random_range(0..4));
        let roles = kinde.roles();
        let role = (!roles.is_empty()).then(|| roles[rng.random_range(0..roles.len())].id.clone());
        let permissions = kinde.permissions();
        let permission =
            (!permissions.is_empty()).then(|| permissions[rng.random_range(0..permissions.len())].id.clone());
        let key = format!("key-{}", rng.random_range(0..1000));
        let edit = RoleEdit { name: Some(format!("Name {key}")), ..RoleEdit::keyed(&key) };
        let renamed = OrganizationEdit { name: Some(format!("Name {key}")), ..OrganizationEdit::default() };
        // A change that is not possible now, such as of a member that there is not, is none.
        match (rng.random_range(0..32), role, permission) {
            (0..3, Some(role), Some(permission)) => {
                let is_added = rng.random_bool(0.6);
                let (add, remove) =
                    if is_added { (vec![permission], vec![]) } else { (vec![], vec![permission]) };
                drop(kinde.set_role_permissions(&role, &add, &remove));
            }
            (3, Some(role), _) => drop(kinde.update_role(&role, edit)),
            (4, Some(role), _) => drop(kinde.delete_role(&role)),
            (5, ..) => drop(kinde.create_role(edit)),
            (6, _, Some(permission)) => drop(kinde.update_permission(&permission, edit)),
            (7, _, Some(permission)) => drop(kinde.delete_permission(&permission)),
            (8, ..) => drop(kinde.create_permission(edit)),
            (9, ..) => drop(kinde.update_organization(&code, renamed)),
            (10, ..) => drop(kinde.delete_organization(&code)),
            (11, ..) => drop(kinde.create_organization(OrganizationEdit { code: Some(code), ..renamed })),
            (12 | 13, ..) => drop(kinde.suspend_in_organization(&user, &code, rng.random_bool(0.5))),
            (14..17, ..) => drop(kinde.remove_from_organization(&user, &code)),
            (17, ..) => {
                let edit = UserEdit { first_name: Some(format!("First {key}")), ..UserEdit::default() };
                drop(kinde.update_user(&user, edit));
            }
            (18, ..) if users.len() > 10 => drop(kinde.delete_user(&user, Profile::Remove)),
            (19, ..) if users.len() < MAX_USERS => self.import(),
            (20, ..) if users.len() < MAX_USERS => {
                self.imported += 1;
                let new = NewUser::named(&format!("user{}@example.com", self.imported), "First", "Last");
                drop(kinde.sign_up(new));
            }
            _ => {
                let mut some = |keys: &[&str], chance| -> Vec<String> {
                    let keys = keys.iter().filter(|_| rng.random_bool(chance));
                    keys.map(|key| (*key).to_owned()).collect()
                };
                let (roles, own) = (some(&["admin", "member", "owner"], 0.4), some(&KEYS, 0.2));
                drop(kinde.add_to_organization(&user, &code, &roles, &own));
            }
        }
    }

    fn new_events(&mut self) -> Vec<Entry> {
        let new = self.world.events().split_off(self.seen);
        self.seen += new.len();
        for entry in &new {
            let event = self.world.kinde.event(&entry.event_id).expect("kept");
            if !matches!(event.kind.as_str(), "user.created" | "user.updated") {
                continue;
            }
            let id = event.data["user"]["id"].as_str().expect("the event of a user").to_owned();
            let own = self.world.kinde.user(&id).map(|user| own_of(&user)).unwrap_or_default();
            self.own.push((Some(entry.event_id.clone()), id, own));
        }
        // An organization that is deleted ends memberships without an event of the users.
        for user in self.world.kinde.users() {
            let own = own_of(&user);
            let known = self.own.iter().rev().find(|(_, of, _)| *of == user.id);
            if known.is_none_or(|(.., known)| *known != own) {
                self.own.push((None, user.id, own));
            }
        }
        new
    }

    /// Returns the members with a change of their own permissions after the newest delivered event of the user.
    pub(crate) fn outdated(&self) -> BTreeSet<Member> {
        let mut outdated = BTreeSet::new();
        for user in self.world.kinde.users() {
            let changes: Vec<_> = self.own.iter().filter(|(_, of, _)| *of == user.id).collect();
            let is_delivered =
                |id: &Option<String>| id.as_ref().is_some_and(|id| self.delivered.contains(id));
            let newest = changes.iter().rposition(|(id, ..)| is_delivered(id)).unwrap_or(0);
            for member in &user.organizations {
                // Also that there was no membership: it ends what was known of the own permissions.
                let lists: BTreeSet<_> =
                    changes[newest..].iter().map(|(.., own)| own.get(&member.code)).collect();
                if lists.len() > 1 {
                    outdated.insert((user.id.clone(), member.code.clone()));
                }
            }
        }
        outdated
    }

    fn remember(&mut self) {
        let (kinde, ever) = (&self.world.kinde, &mut self.ever);
        for one in kinde.organizations() {
            ever.names.entry(one.code).or_default().insert(one.name);
        }
        for (id, key) in permission_keys(self.world) {
            ever.permission_keys.entry(id).or_default().insert(key);
        }
        for role in kinde.roles() {
            ever.role_keys.entry(role.id.clone()).or_default().insert(role.key);
            ever.given.entry(role.id).or_default().extend(role.permissions);
        }
        for user in kinde.users() {
            for member in user.organizations {
                let parts = ever.members.entry((user.id.clone(), member.code)).or_default();
                parts.roles.extend(member.roles.into_iter().map(|grant| grant.id));
                parts.permissions.extend(member.permissions.into_iter().map(|grant| grant.id));
                parts.suspended.insert(member.is_suspended);
                parts.joined.insert(member.joined_on.as_microsecond());
            }
        }
    }

    /// Panics if a document shows a value that it never had at Kinde.
    pub(crate) async fn assert_only_what_was(&self, when: &str) {
        for (user, document) in self.world.documents().await {
            for one in document.organizations.into_iter().flatten() {
                let problem = self.ever.problem(&user, &one);
                assert_eq!(problem, None, "{}, {when}: {user}: {one:?}", self.world.fresh.name);
            }
        }
    }

    /// Panics if a document shows what no event contains, before a first scan.
    pub(crate) async fn assert_only_what_events_say(&self, when: &str) {
        self.assert_only_what_was(when).await;
        for (user, document) in self.world.documents().await {
            let name = self.world.fresh.name;
            let is_delivered =
                |id: &Option<String>| id.as_ref().is_some_and(|id| self.delivered.contains(id));
            let delivered: Vec<_> =
                self.own.iter().filter(|(id, of, _)| *of == user && is_delivered(id)).collect();
            let Some(shown) = document.organizations else { continue };
            assert_ne!(delivered.len(), 0, "{name}, {when}: {user} shows memberships: {shown:?}");
            for one in shown {
                let is_listed = delivered.iter().any(|(.., own)| own.contains_key(&one.code));
                // No event has the permissions of a role.
                let is_unknown = one.permissions.is_none() || one.roles.as_ref().is_some_and(Vec::is_empty);
                let no_scan = (one.is_suspended, one.joined_on);
                assert!(is_listed && is_unknown, "{name}, {when}: {user}: {one:?}");
                assert_eq!(no_scan, (None, None), "{name}, {when}: {user}: {one:?}");
            }
        }
    }
}

fn own_of(user: &User) -> Own {
    let ids = |member: &Membership| member.permissions.iter().map(|grant| grant.id.clone()).collect();
    user.organizations.iter().map(|member| (member.code.clone(), ids(member))).collect()
}

impl Ever {
    fn problem(&self, user: &str, shown: &Organization) -> Option<&'static str> {
        let Some(parts) = self.members.get(&(user.to_owned(), shown.code.clone())) else {
            return Some("never a member");
        };
        let keys = |known: &HashMap<String, BTreeSet<String>>, ids: &mut dyn Iterator<Item = &String>| {
            ids.filter_map(|id| known.get(id)).flatten().cloned().collect::<BTreeSet<String>>()
        };
        let roles = keys(&self.role_keys, &mut parts.roles.iter());
        let given = parts.roles.iter().filter_map(|id| self.given.get(id)).flatten();
        let permissions = keys(&self.permission_keys, &mut given.chain(&parts.permissions));
        let had = |shown: &Option<Vec<String>>, had: &BTreeSet<String>| {
            shown.iter().flatten().all(|key| had.contains(key))
        };
        let names = self.names.get(&shown.code);
        let checks = [
            (shown.name.as_ref().is_none_or(|name| names.is_some_and(|had| had.contains(name))), "the name"),
            (had(&shown.roles, &roles), "a role"),
            (had(&shown.permissions, &permissions), "a permission"),
            (shown.is_suspended.is_none_or(|is| parts.suspended.contains(&is)), "the suspension"),
            (shown.joined_on.is_none_or(|at| parts.joined.contains(&at.0)), "the time of joining"),
        ];
        checks.into_iter().find(|(is_right, _)| !is_right).map(|(_, what)| what)
    }
}
