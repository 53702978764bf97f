//! Histories of a tenant, as a replica sees them: events, complete lists and reads, in any order, with duplicates and in any
//! batches. The document depends only on what arrived, and with a final list of everything it is the truth.
//!
//! One exception, if the event of a deletion is lost: a list ends only what the replica has stored of the object, so an event of the user
//! about an organization without a record ends with the list only if it arrives after it, and a read of the user that is
//! older than the list and arrives after it shows a role or a permission again. The next read of the user ends both.

use std::collections::{BTreeMap, BTreeSet};

use kinsync_core::{
    Directory, Entry, Fact, Field, Micros, Observation, Organization, Profile, Source, UserState, Value,
    Version, What,
};
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::strategies::{shuffled_with_duplicates, user};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Organization,
    Role,
    Permission,
}

const CODES: [&str; 2] = ["org_a", "org_b"];

/// What arrives at the replica.
#[derive(Clone, Debug)]
enum Message {
    User(Observation),
    Object(Kind, String, Entry),
    /// A complete list.
    List(Kind, Version, Vec<(String, Entry)>),
}

#[derive(Clone, Debug, Default)]
struct Role {
    key: String,
    permissions: BTreeSet<String>,
}

/// The tenant at Kinde, with one user.
#[derive(Debug, Default)]
struct Tenant {
    now: i64,
    /// Whether lists of permissions contain those of roles.
    is_effective: bool,
    /// Whether each event of a deletion arrives.
    keeps_deletions: bool,
    organizations: BTreeMap<String, String>,
    roles: BTreeMap<String, Role>,
    permissions: BTreeMap<String, String>,
    /// Roles and permissions of the member, by organization.
    members: BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)>,
    sent: Vec<Message>,
}

/// A change or a read, the objects that it is about, and whether its event is lost.
type Step = (u8, Index, Index, bool);

impl Tenant {
    fn event(&self) -> Version {
        Version::event(Micros(self.now), "e")
    }

    fn read(&self) -> Version {
        Version::snapshot(Micros(self.now), "")
    }

    fn step(&mut self, (step, one, other, is_lost): Step) {
        self.now += 10;
        let code = CODES[one.index(2)].to_owned();
        let role = self.roles.keys().nth(one.index(self.roles.len().max(1))).cloned();
        let permission = self.permissions.keys().nth(other.index(self.permissions.len().max(1))).cloned();
        let sent = match (step, role, permission) {
            (0, ..) => self.rename_organization(&code),
            (1, ..) if self.organizations.remove(&code).is_some() => {
                self.members.remove(&code);
                vec![Message::Object(Kind::Organization, code, Entry::deleted(&self.event()))]
            }
            (2, ..) => self.rename_role(format!("role_{}", self.now)),
            (3, Some(role), _) => self.rename_role(role),
            (4, Some(role), _) => {
                self.roles.remove(&role);
                self.members.values_mut().for_each(|(roles, _)| roles.retain(|id| *id != role));
                vec![Message::Object(Kind::Role, role, Entry::deleted(&self.event()))]
            }
            (5, Some(role), Some(permission)) => {
                let given = &mut self.roles.get_mut(&role).expect("there").permissions;
                if !given.remove(&permission) {
                    given.insert(permission);
                }
                Vec::new()
            }
            (6, ..) => self.rename_permission(format!("permission_{}", self.now)),
            (7, _, Some(permission)) => self.rename_permission(permission),
            (8, _, Some(permission)) => {
                self.permissions.remove(&permission);
                self.roles.values_mut().for_each(|role| role.permissions.retain(|id| *id != permission));
                self.members.values_mut().for_each(|(_, direct)| direct.retain(|id| *id != permission));
                vec![Message::Object(Kind::Permission, permission, Entry::deleted(&self.event()))]
            }
            (9 | 10, role, permission) if self.organizations.contains_key(&code) => {
                let direct = permission.filter(|_| other.index(3) == 0);
                self.members.insert(code, (role.into_iter().collect(), direct.into_iter().collect()));
                self.user_updated()
            }
            (11, ..) if self.members.remove(&code).is_some() => self.user_updated(),
            (12, ..) => self.listed_codes(),
            (13, ..) => vec![self.listed(Kind::Organization)],
            (14, ..) => vec![self.listed(Kind::Role)],
            (15, ..) => vec![self.listed(Kind::Permission)],
            (16, ..) => self.member_read(&code),
            _ => Vec::new(),
        };
        let is_kept = self.keeps_deletions && matches!(step, 1 | 4 | 8);
        self.sent.extend(sent.into_iter().filter(|_| is_kept || !is_lost));
    }

    /// Reads everything, so that the replica can be equal.
    fn read_everything(&mut self) {
        for kind in [Kind::Organization, Kind::Role, Kind::Permission] {
            self.now += 10;
            let list = self.listed(kind);
            self.sent.push(list);
        }
        self.now += 10;
        let codes = self.listed_codes();
        self.sent.extend(codes);
        for code in CODES {
            self.now += 10;
            let read = self.member_read(code);
            self.sent.extend(read);
        }
    }

    fn rename_organization(&mut self, code: &str) -> Vec<Message> {
        let name = format!("name {}", self.now);
        self.organizations.insert(code.to_owned(), name);
        vec![Message::Object(
            Kind::Organization,
            code.to_owned(),
            self.entry(Kind::Organization, code, &self.event()),
        )]
    }

    fn rename_role(&mut self, id: String) -> Vec<Message> {
        self.roles.entry(id.clone()).or_default().key = format!("key {}", self.now);
        let key = Value::from(self.roles[&id].key.as_str());
        vec![Message::Object(Kind::Role, id, Entry::observed([(Fact::Key, key)], &self.event()))]
    }

    fn rename_permission(&mut self, id: String) -> Vec<Message> {
        self.permissions.insert(id.clone(), format!("key {}", self.now));
        let entry = self.entry(Kind::Permission, &id, &self.event());
        vec![Message::Object(Kind::Permission, id, entry)]
    }

    fn entry(&self, kind: Kind, id: &str, version: &Version) -> Entry {
        let facts = match kind {
            Kind::Organization => vec![(Fact::Name, Value::from(self.organizations[id].as_str()))],
            Kind::Permission => vec![(Fact::Key, Value::from(self.permissions[id].as_str()))],
            Kind::Role => {
                let Role { key, permissions } = &self.roles[id];
                let given = Value::Codes(permissions.iter().cloned().collect());
                vec![(Fact::Key, Value::from(key.as_str())), (Fact::Permissions, given)]
            }
        };
        Entry::observed(facts, version)
    }

    fn listed(&self, kind: Kind) -> Message {
        let ids: Vec<&String> = match kind {
            Kind::Organization => self.organizations.keys().collect(),
            Kind::Role => self.roles.keys().collect(),
            Kind::Permission => self.permissions.keys().collect(),
        };
        let version = self.read();
        let list = ids.into_iter().map(|id| (id.clone(), self.entry(kind, id, &version))).collect();
        Message::List(kind, version, list)
    }

    fn given(&self, roles: &BTreeSet<String>) -> BTreeSet<String> {
        roles.iter().flat_map(|role| self.roles[role].permissions.clone()).collect()
    }

    fn membership(&self, code: &str, is_effective: bool) -> Organization {
        let (roles, direct) = &self.members[code];
        let mut permissions = direct.clone();
        if is_effective {
            permissions.extend(self.given(roles));
        }
        Organization {
            roles: Some(roles.iter().cloned().collect()),
            permissions: Some(permissions.into_iter().collect()),
            ..Organization::new(code)
        }
    }

    /// The event, with the keys in it.
    fn user_updated(&self) -> Vec<Message> {
        let list: Vec<Organization> =
            self.members.keys().map(|code| self.membership(code, self.is_effective)).collect();
        let mut sent = self.keys_in(&list);
        let list = Profile::new().with(Field::Organizations, Value::Organizations(list));
        sent.push(observed(self.event(), What::Fields(list)));
        sent
    }

    /// The keys of the roles and permissions in memberships.
    fn keys_in(&self, list: &[Organization]) -> Vec<Message> {
        let ids = list.iter().flat_map(|one| one.roles.iter().chain(&one.permissions).flatten());
        let named = ids.map(|id| {
            let kind = kind_of(id);
            let key = if kind == Kind::Role { &self.roles[id].key } else { &self.permissions[id] };
            let key = (Fact::Key, Value::from(key.as_str()));
            Message::Object(kind, id.clone(), Entry::observed([key], &Version::provisional()))
        });
        named.collect()
    }

    fn listed_codes(&self) -> Vec<Message> {
        let codes = Value::Codes(self.members.keys().cloned().collect());
        vec![observed(self.read(), What::Fields(Profile::new().with(Field::OrganizationCodes, codes)))]
    }

    fn member_read(&self, code: &str) -> Vec<Message> {
        let membership = self.members.contains_key(code).then(|| self.membership(code, false));
        let mut sent = self.keys_in(membership.as_slice());
        sent.push(observed(self.read(), What::Membership { code: code.to_owned(), membership }));
        sent
    }

    /// The memberships as a document shows them.
    fn truth(&self) -> Vec<Organization> {
        let keys = |ids: BTreeSet<String>, key: &dyn Fn(&String) -> String| {
            let mut keys: Vec<String> = ids.iter().map(key).collect();
            keys.sort();
            keys
        };
        let member = |(code, (roles, direct)): (&String, &(BTreeSet<String>, BTreeSet<String>))| {
            let permissions = self.given(roles).union(direct).cloned().collect();
            Organization {
                name: Some(self.organizations[code].clone()),
                roles: Some(keys(roles.clone(), &|id| self.roles[id].key.clone())),
                permissions: Some(keys(permissions, &|id| self.permissions[id].clone())),
                ..Organization::new(code)
            }
        };
        self.members.iter().map(member).collect()
    }
}

fn observed(version: Version, what: What) -> Message {
    Message::User(Observation { user: user("kp_1"), version, source: Source::Webhook, what })
}

fn kind_of(id: &str) -> Kind {
    match id.split_once('_') {
        Some(("role", _)) => Kind::Role,
        Some(("permission", _)) => Kind::Permission,
        _ => Kind::Organization,
    }
}

/// The objects that an event of the user names, with its version. A read names only what exists.
fn objects_in(observation: &Observation) -> Vec<(Kind, String, Version)> {
    let What::Fields(profile) = &observation.what else { return Vec::new() };
    let Some(Value::Organizations(list)) = profile.value(Field::Organizations) else { return Vec::new() };
    let ids = list.iter().flat_map(|one| {
        let others = one.roles.iter().chain(&one.permissions).flatten();
        std::iter::once(&one.code).chain(others)
    });
    ids.map(|id| (kind_of(id), id.clone(), observation.version.clone())).collect()
}

/// What a replica has stored.
#[derive(Default)]
struct Replica {
    objects: BTreeMap<String, (Kind, Entry)>,
    listed: BTreeMap<Kind, Version>,
    state: UserState,
}

impl Replica {
    fn of(messages: &[Message], batch: usize) -> Option<Vec<Organization>> {
        let mut replica = Self::default();
        messages.chunks(batch).for_each(|batch| replica.apply(batch));
        replica.state.organizations()
    }

    fn apply(&mut self, batch: &[Message]) {
        let is_list = |message: &Message| matches!(message, Message::List(..));
        for part in batch.chunk_by(|one, other| is_list(one) == is_list(other)) {
            self.apply_part(part);
            self.spread();
        }
    }

    fn apply_part(&mut self, part: &[Message]) {
        let mut objects: BTreeMap<String, (Kind, Entry)> = BTreeMap::new();
        let mut named: Vec<(Kind, String, Version)> = Vec::new();
        let mut delta = UserState::default();
        for message in part {
            match message {
                Message::User(observation) => {
                    delta = delta.observe(observation);
                    named.extend(objects_in(observation));
                }
                Message::Object(kind, id, entry) => {
                    let (_, known) = objects.entry(id.clone()).or_insert((*kind, Entry::default()));
                    *known = std::mem::take(known).join(entry.clone());
                }
                Message::List(kind, version, list) => self.list(*kind, version, list),
            }
        }
        for (kind, id, version) in named {
            let listed = self.listed.get(&kind).cloned();
            self.name(kind, id, &version, listed.as_ref());
        }
        for (id, (kind, entry)) in objects {
            self.observe(kind, id, entry);
        }
        self.state = std::mem::take(&mut self.state).join(delta);
    }

    fn name(&mut self, kind: Kind, id: String, version: &Version, listed: Option<&Version>) {
        let known = self.objects.get(&id).map(|(_, known)| known);
        if let Some(entry) = Entry::unlisted(known, version, listed) {
            self.observe(kind, id, entry);
        }
    }

    fn observe(&mut self, kind: Kind, id: String, entry: Entry) {
        let known = self.objects.remove(&id).map(|(_, known)| known);
        self.objects.insert(id, (kind, Entry::observe(known, entry, self.listed.get(&kind))));
    }

    fn list(&mut self, kind: Kind, version: &Version, list: &[(String, Entry)]) {
        let is_listed = |id: &String| list.iter().any(|(listed, _)| listed == id);
        let unlisted = self
            .objects
            .iter()
            .filter(|(id, (known, entry))| *known == kind && entry.is_live() && !is_listed(id));
        let unlisted: Vec<String> = unlisted.map(|(id, _)| id.clone()).collect();
        for (id, entry) in list {
            if self.objects.get(id).is_none_or(|(_, known)| known.differs(entry)) {
                self.observe(kind, id.clone(), entry.clone());
            }
        }
        for id in unlisted {
            self.observe(kind, id, Entry::deleted(version));
        }
        let known = self.listed.entry(kind).or_insert_with(|| version.clone());
        *known = known.clone().max(version.clone());
    }

    /// Shows what is known of the objects in the document.
    fn spread(&mut self) {
        let entry = |id: String| {
            let entry = self.objects.get(&id).map(|(_, entry)| entry.clone());
            (id, entry.unwrap_or_default())
        };
        let given = |id: &String| {
            self.objects.get(id).and_then(|(_, entry)| entry.permissions()).unwrap_or_default().to_vec()
        };
        let mut ids = self.state.references();
        ids.extend(ids.iter().flat_map(given).collect::<Vec<_>>());
        let directory: Directory = ids.into_iter().map(entry).collect();
        self.state = std::mem::take(&mut self.state).with_directory(&directory);
    }
}

fn history(keeps_deletions: bool) -> impl Strategy<Value = Tenant> {
    let step = (0..17_u8, any::<Index>(), any::<Index>(), prop::bool::weighted(0.3));
    (vec(step, 1..25), any::<bool>()).prop_map(move |(steps, is_effective)| {
        let mut tenant = Tenant { is_effective, keeps_deletions, ..Tenant::default() };
        for step in steps {
            tenant.step(step);
        }
        tenant
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_document_depends_only_on_what_arrived(
        (original, shuffled) in history(true).prop_flat_map(|tenant| shuffled_with_duplicates(tenant.sent)),
        batch in 1..5_usize,
    ) {
        prop_assert_eq!(Replica::of(&shuffled, batch), Replica::of(&original, 1));
    }

    #[test]
    fn after_a_read_of_everything_the_document_is_the_truth_whatever_was_lost(
        (truth, shuffled) in history(false).prop_flat_map(|mut tenant| {
            tenant.read_everything();
            (Just(tenant.truth()), shuffled_with_duplicates(tenant.sent))
        }).prop_map(|(truth, (_, shuffled))| (truth, shuffled)),
        batch in 1..5_usize,
    ) {
        prop_assert_eq!(Replica::of(&shuffled, batch), Some(truth));
    }
}

#[test]
fn a_list_without_an_organization_ends_its_memberships_whenever_the_organization_was_deleted() {
    let event = |at| Version::event(Micros(at), "e");
    let member = Value::Organizations(vec![Organization::new("org_a")]);
    let profile = Profile::new().with(Field::Organizations, member);
    let observation = Observation {
        user: user("kp_1"),
        version: event(9),
        source: Source::Webhook,
        what: What::Fields(profile),
    };
    let joined = Message::User(observation);
    let deleted = Message::Object(Kind::Organization, "org_a".to_owned(), Entry::deleted(&event(6)));
    // The organization was created again after the deletion, and deleted again before the list.
    let list = Message::List(Kind::Organization, Version::snapshot(Micros(12), ""), Vec::new());
    let orders = [[&deleted, &list, &joined], [&list, &deleted, &joined], [&joined, &list, &deleted]];
    for order in orders {
        assert_eq!(Replica::of(&order.map(Clone::clone), 1), Some(Vec::new()), "{order:?}");
    }
    // Both events of the organization are lost.
    let newer = Message::List(Kind::Organization, Version::snapshot(Micros(8), ""), Vec::new());
    let shown = |messages: &[&Message]| {
        let messages: Vec<Message> = messages.iter().map(|message| (*message).clone()).collect();
        Replica::of(&messages, 1).map(|shown| shown.len())
    };
    assert_eq!(shown(&[&list, &joined]), Some(0));
    assert_eq!(shown(&[&newer, &joined]), Some(1), "the list is older than the event");
    // The exception: the list comes after the event, and nothing stored names the organization.
    assert_eq!(shown(&[&newer, &joined, &list]), Some(1));
    let codes = Profile::new().with(Field::OrganizationCodes, Value::Codes(Vec::new()));
    let read = observed(Version::snapshot(Micros(14), ""), What::Fields(codes));
    assert_eq!(shown(&[&newer, &joined, &list, &read]), Some(0), "until the next read of the user");
}
