//! Compares the stored memberships, organizations, roles and permissions with Kinde's.

use std::collections::{BTreeMap, BTreeSet};

use kinde_emulator::{Membership, Role, User};
use kinsync_core::{Fact, Organization, Value};
use kinsync_engine::internal::directory::{self, Kind};

use crate::reconcile::World;

/// What of the memberships has to be known.
#[derive(Clone, Copy)]
pub(crate) enum Known<'a> {
    /// The codes and the roles. The rest is right or unknown.
    Roles,
    /// What a complete scan compares: everything but the own permissions of members. These are right or unknown, except for the
    /// members, by user and code, with a change of which the event was lost: no list shows such a change.
    Scanned(&'a BTreeSet<(String, String)>),
    /// Everything.
    All,
}

/// Panics unless the documents of every user show Kinde's memberships, and the stored organizations, roles and permissions are Kinde's.
pub(crate) async fn assert_memberships(world: &World, known: Known<'_>, when: &str) {
    crate::rebuild::assert_explained(&*world.fresh.store, when).await;
    let documents = world.documents().await;
    let names = world.kinde.organizations().into_iter().map(|one| (one.code, one.name));
    let truth = Truth { roles: world.kinde.roles(), names: names.collect(), keys: permission_keys(world) };
    for user in world.kinde.users() {
        let found = documents.get(&user.id).and_then(|document| document.organizations.clone());
        let found = found.unwrap_or_else(|| panic!("{}, {when}: {} is not known", world.fresh.name, user.id));
        let problems = truth.problems(&user, &found, known);
        assert_eq!(problems, [""; 0], "{}, {when}: {}", world.fresh.name, user.id);
    }
    if !matches!(known, Known::Roles) {
        assert_directory(world, when).await;
    }
}

pub(crate) fn permission_keys(world: &World) -> BTreeMap<String, String> {
    world.kinde.permissions().into_iter().map(|one| (one.id, one.key)).collect()
}

struct Truth {
    roles: Vec<Role>,
    /// Names of the organizations, by code.
    names: BTreeMap<String, String>,
    /// Keys of the permissions, by id.
    keys: BTreeMap<String, String>,
}

impl Truth {
    fn problems(&self, user: &User, found: &[Organization], known: Known<'_>) -> Vec<String> {
        let expected: BTreeSet<&str> = user.organizations.iter().map(|member| member.code.as_str()).collect();
        let shown: BTreeSet<&str> = found.iter().map(|one| one.code.as_str()).collect();
        let codes = (expected != shown).then(|| format!("member of {expected:?}, shown {shown:?}"));
        let members = user.organizations.iter();
        let both =
            members.filter_map(|member| Some((member, found.iter().find(|one| one.code == member.code)?)));
        let parts = both.flat_map(|(member, one)| self.differences(&user.id, member, one, known));
        codes.into_iter().chain(parts).collect()
    }

    fn differences(
        &self,
        user: &str,
        member: &Membership,
        found: &Organization,
        known: Known<'_>,
    ) -> Vec<String> {
        let is_partly = matches!(known, Known::Roles);
        let mut roles: Vec<String> = member.roles.iter().map(|grant| grant.key.clone()).collect();
        roles.sort();
        let mut problems = Vec::new();
        let mut compare = |what: &str, found: String, expected: String, is_unknown: bool| {
            if found != expected && !(is_unknown && is_partly) {
                problems.push(format!("{what} in {}: {found}, not {expected}", member.code));
            }
        };
        let name = self.names.get(&member.code);
        compare("name", format!("{:?}", found.name.as_ref()), format!("{name:?}"), found.name.is_none());
        compare("roles", format!("{:?}", found.roles), format!("{:?}", Some(roles)), false);
        let suspended = Some(member.is_suspended);
        compare(
            "suspended",
            format!("{:?}", found.is_suspended),
            format!("{suspended:?}"),
            found.is_suspended.is_none(),
        );
        let joined = Some(member.joined_on.as_microsecond());
        let found_joined = found.joined_on.map(|at| at.0);
        compare("joined", format!("{found_joined:?}"), format!("{joined:?}"), found_joined.is_none());

        let (given, own) = self.permissions(member);
        let all: BTreeSet<&str> = given.union(&own).copied().collect();
        let shown: Option<BTreeSet<&str>> =
            found.permissions.as_ref().map(|keys| keys.iter().map(String::as_str).collect());
        let is_right = match (&shown, known) {
            (None, Known::Roles) => true,
            // Own permissions were never listed, and with none of a role a scan reads none.
            (None, Known::Scanned(_)) => given.is_empty(),
            (None, Known::All) => false,
            (Some(shown), Known::Scanned(outdated))
                if outdated.contains(&(user.to_owned(), member.code.clone())) =>
            {
                given.is_subset(shown)
            }
            (Some(shown), _) => *shown == all,
        };
        if !is_right {
            problems.push(format!("permissions in {}: {shown:?}, not {all:?}", member.code));
        }
        problems
    }

    /// Returns the keys of the permissions that the roles of a member give, and of its own.
    fn permissions<'a>(&'a self, member: &'a Membership) -> (BTreeSet<&'a str>, BTreeSet<&'a str>) {
        let has = |role: &&Role| member.roles.iter().any(|grant| grant.id == role.id);
        let given = self.roles.iter().filter(has).flat_map(|role| &role.permissions);
        let given = given.map(|id| self.keys[id].as_str()).collect();
        (given, member.permissions.iter().map(|grant| grant.key.as_str()).collect())
    }
}

/// Panics unless the stored organizations, roles and permissions that are not deleted are Kinde's, fact by fact.
async fn assert_directory(world: &World, when: &str) {
    type Facts = (Kind, BTreeMap<Fact, Value>);
    let all = directory::list(&*world.fresh.store).await.expect("the store answers");
    assert_eq!(all.unreadable, [], "{}, {when}", world.fresh.name);
    // No list has the time of the creation of an organization.
    let is_listed = |fact: Fact, value: &Value| fact != Fact::CreatedOn && *value != Value::Null;
    let live = all.stored.into_iter().filter(|(_, stored)| stored.entry.is_live());
    let found: BTreeMap<String, Facts> = live
        .map(|(id, stored)| {
            let facts = stored.entry.values().filter(|(fact, value)| is_listed(*fact, value));
            (id, (stored.kind, facts.map(|(fact, value)| (fact, value.clone())).collect()))
        })
        .collect();
    let kinde = &world.kinde;
    let text = |text: &str| Some(Value::from(text));
    let optional = |text: &Option<String>| text.as_deref().map(Value::from);
    let facts = |facts: Vec<(Fact, Option<Value>)>| {
        facts.into_iter().filter_map(|(fact, value)| Some((fact, value?))).collect::<BTreeMap<_, _>>()
    };
    let organizations = kinde.organizations().into_iter().map(|one| {
        let list = vec![
            (Fact::Name, text(&one.name)),
            (Fact::Handle, optional(&one.handle)),
            (Fact::ExternalId, optional(&one.external_id)),
        ];
        (one.code, (Kind::Organization, facts(list)))
    });
    let roles = kinde.roles().into_iter().map(|one| {
        let mut given = one.permissions;
        given.sort();
        let list = vec![
            (Fact::Key, text(&one.key)),
            (Fact::Name, text(&one.name)),
            (Fact::Description, optional(&one.description)),
            (Fact::Permissions, Some(Value::Codes(given))),
        ];
        (one.id, (Kind::Role, facts(list)))
    });
    let permissions = kinde.permissions().into_iter().map(|one| {
        let list = vec![
            (Fact::Key, text(&one.key)),
            (Fact::Name, text(&one.name)),
            (Fact::Description, optional(&one.description)),
        ];
        (one.id, (Kind::Permission, facts(list)))
    });
    let expected: BTreeMap<String, Facts> = organizations.chain(roles).chain(permissions).collect();
    assert_eq!(found, expected, "{}, {when}", world.fresh.name);
}
