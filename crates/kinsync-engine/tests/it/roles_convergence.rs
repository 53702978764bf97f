//! Histories of lost, late and reordered events about roles, and kills of scans: one complete run makes every member equal Kinde.

use std::collections::{BTreeMap, BTreeSet};

use kinde_emulator::{OrganizationEdit, RoleEdit};
use kinsync_core::Organization;
use kinsync_engine::{
    Clock,
    internal::{
        reconcile::{Reconciler, record::RunMode, state_keys},
        state_records,
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio_util::sync::CancellationToken;

use crate::{
    reconcile::World,
    roles::{keys, membership, reconcile, reconciler, with_roles},
    stores::{Fresh, on_every_store},
    suspended::Suspended,
};

on_every_store! {
    a_kill_of_a_scan_at_any_call_leaves_roles_and_permissions_of_one_time
    after_one_complete_run_every_role_equals_kinde
}

async fn a_kill_of_a_scan_at_any_call_leaves_roles_and_permissions_of_one_time(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    let join = |role: &str, permission: &str| {
        world.kinde.add_to_organization(&ada, "org_1", &keys(&[role]), &keys(&[permission])).expect("a user");
    };
    join("member", "read");
    world.deliver(world.events()).await;
    reconcile(&world).await;
    let shown = async || {
        let found = membership(&world, &ada).await.expect("a member");
        (found.roles.expect("known"), found.permissions)
    };
    let [before, after] = [("member", "read"), ("admin", "write")]
        .map(|(role, permission)| (keys(&[role]), Some(keys(&[permission]))));
    assert_eq!(shown().await, before);
    join("admin", "write");
    world.later().await;
    for call in 0.. {
        let process = Suspended::new(world.fresh.store.clone());
        process.suspend_at_call(call);
        // Otherwise it waits until the lease of the killed one expires.
        for key in state_keys().into_iter().filter(|key| key.name == "reconcile.lease") {
            state_records::reset(&*world.fresh.store, key).await.expect("the store answers");
        }
        let scanner = Reconciler::new(world.client(10), process.clone(), Clock::system(), with_roles());
        let stop = CancellationToken::new();
        tokio::select! {
            run = scanner.run(RunMode::Reconcile, &|_| {}, &stop) => drop(run),
            () = process.until_suspended() => {}
        }
        let found = shown().await;
        if found == after {
            assert!(call > 10, "several calls precede the write: {call}");
            return;
        }
        assert_eq!(found, before, "{}, killed at call {call}", world.fresh.name);
    }
}

/// Changes of memberships and roles, each with or without an event.
fn live(world: &World, users: &[String], rng: &mut StdRng, steps: usize) {
    let kinde = &world.kinde;
    for _ in 0..steps {
        let user = &users[rng.random_range(0..users.len())];
        let code = format!("org_{}", rng.random_range(0..4));
        let roles: Vec<String> = ["admin", "member", "owner"]
            .into_iter()
            .filter(|_| rng.random_bool(0.4))
            .map(Into::into)
            .collect();
        let role = kinde.roles().into_iter().nth(rng.random_range(0..3));
        match (rng.random_range(0..14), role) {
            (12, Some(role)) => {
                let permission = ["read", "write"][rng.random_range(0..2)];
                let known = kinde.permissions().into_iter().find(|one| one.key == permission);
                let id = known
                    .unwrap_or_else(|| kinde.create_permission(RoleEdit::keyed(permission)).expect("new"))
                    .id;
                let (add, remove) =
                    if rng.random_bool(0.5) { (vec![id], vec![]) } else { (vec![], vec![id]) };
                drop(kinde.set_role_permissions(&role.id, &add, &remove));
            }
            (13, _) => {
                let name = format!("name-{}", rng.random_range(0..1000));
                let edit = OrganizationEdit { name: Some(name), ..OrganizationEdit::default() };
                drop(kinde.update_organization(&code, edit));
            }
            (0, Some(role)) => {
                let key = format!("key-{}", rng.random_range(0..1000));
                drop(kinde.update_role(&role.id, RoleEdit::keyed(&key)));
            }
            (1, Some(role)) => drop(kinde.delete_role(&role.id)),
            (2, _) => drop(kinde.delete_organization(&code)),
            (3, _) => drop(kinde.suspend_in_organization(user, &code, rng.random_bool(0.5))),
            (4 | 5, _) => drop(kinde.remove_from_organization(user, &code)),
            _ => drop(kinde.add_to_organization(user, &code, &roles, &[])),
        }
    }
}

async fn after_one_complete_run_every_role_equals_kinde(fresh: Fresh) {
    let world = World::new(fresh).await;
    let mut rng = StdRng::seed_from_u64(11);
    let users = world.import(15);
    for round in 0..3 {
        let known = world.events().len();
        live(&world, &users, &mut rng, 80);
        let mut events = world.events().split_off(known);
        events.shuffle(&mut rng);
        // A third is lost, for now.
        let late = events.split_off(events.len() * 2 / 3);
        world.deliver(events).await;
        reconcile(&world).await;
        assert_equal(&world, &format!("round {round}, after the run")).await;
        world.deliver(late).await;
        reconciler(&world).run_pending_checks().await.expect("Kinde answers");
        reconcile(&world).await;
        assert_equal(&world, &format!("round {round}, after late deliveries")).await;
    }
}

/// A membership with its name and the keys of its roles and permissions.
type Shown = (Option<String>, Option<Vec<String>>, Vec<String>);

/// Panics unless the memberships of every user are Kinde's, with names, roles and the permissions of the roles.
pub(crate) async fn assert_equal(world: &World, when: &str) {
    crate::rebuild::assert_explained(&*world.fresh.store, when).await;
    let stored = world.documents().await;
    let kinde = &world.kinde;
    let names: BTreeMap<String, String> =
        kinde.organizations().into_iter().map(|one| (one.code, one.name)).collect();
    let keys_of = |ids: &mut dyn Iterator<Item = String>| {
        let permissions = kinde.permissions();
        let key = |id: String| permissions.iter().find(|one| one.id == id).map(|one| one.key.clone());
        ids.filter_map(key).collect::<BTreeSet<String>>().into_iter().collect::<Vec<_>>()
    };
    for user in kinde.users() {
        let member = |member: &kinde_emulator::Membership| {
            let mut roles: Vec<String> = member.roles.iter().map(|grant| grant.key.clone()).collect();
            roles.sort();
            let granted =
                kinde.roles().into_iter().filter(|role| member.roles.iter().any(|one| one.id == role.id));
            let permissions = keys_of(&mut granted.flat_map(|role| role.permissions));
            (member.code.clone(), (names.get(&member.code).cloned(), Some(roles), permissions))
        };
        let expected: BTreeMap<String, Shown> = user.organizations.iter().map(member).collect();
        let found = stored[&user.id].organizations.clone().expect("listed");
        let shown = |one: Organization| {
            let name = one.name.or_else(|| names.get(&one.code).cloned());
            (one.code, (name, one.roles, one.permissions.unwrap_or_default()))
        };
        let found: BTreeMap<String, Shown> = found.into_iter().map(shown).collect();
        assert_eq!(found, expected, "{}, {when}: {}", world.fresh.name, user.id);
    }
}
