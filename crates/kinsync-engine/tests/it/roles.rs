//! The roles of members at Kinde and in the store apart, and brought together by a scan: on both stores, against the emulator.

use std::collections::{BTreeMap, BTreeSet};

use kinde_emulator::{Emulator, Fault, FaultKind, OrganizationEdit, RoleEdit, UserEdit, config};
use kinsync_core::{Organization, UserId, Value};
use kinsync_engine::{
    Clock,
    internal::{
        explain::explain,
        pending_checks::PendingChecks,
        reconcile::{
            Config, Reconciler,
            record::{DriftKind, Outcome, Run, RunMode},
            state_keys,
        },
        state_records,
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio_util::sync::CancellationToken;

use crate::{
    reconcile::{World, quick},
    stores::{Fresh, on_every_store},
    suspended::Suspended,
};

on_every_store! {
    a_role_that_was_taken_away_with_its_event_lost_is_repaired_and_counted_as_missed
    roles_that_no_event_contained_are_unknown_until_a_scan_reads_them
    a_scan_without_drift_writes_no_member
    without_the_scopes_users_are_compared_and_the_run_names_the_scope
    a_failure_of_the_reads_of_roles_fails_no_scan_and_no_check
    an_empty_list_of_members_takes_no_role
    a_third_of_the_members_missing_in_a_list_keeps_memberships_and_roles
    a_late_event_with_former_roles_requests_a_check_that_repairs_them
    permissions_do_not_outlive_the_role_that_gave_them
    direct_permissions_are_known_after_a_change_of_roles
    a_direct_permission_that_a_role_gave_too_is_read_again_when_the_role_loses_it
    a_check_shows_a_direct_permission_again_that_a_role_has_lost
    a_kill_of_a_scan_at_any_call_leaves_roles_and_permissions_of_one_time
    after_one_complete_run_every_role_equals_kinde
}

fn with_roles() -> Config {
    Config { roles: true, ..quick() }
}

fn reconciler(world: &World) -> Reconciler {
    world.reconciler(10, with_roles())
}

pub(crate) async fn reconcile(world: &World) -> Run {
    world.later().await;
    let run = reconciler(world).run(RunMode::Reconcile, &|_| {}, &CancellationToken::new()).await;
    run.expect("Kinde and the store answer")
}

pub(crate) fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

pub(crate) fn join(world: &World, user: &str, roles: &[&str]) {
    world.kinde.add_to_organization(user, "org_1", &keys(roles), &[]).expect("a user");
}

pub(crate) async fn membership(world: &World, user: &str) -> Option<Organization> {
    let found = world.documents().await.remove(user).expect("stored").organizations?;
    found.into_iter().find(|one| one.code == "org_1")
}

pub(crate) async fn roles(world: &World, user: &str) -> Option<Vec<String>> {
    membership(world, user).await?.roles
}

async fn a_role_that_was_taken_away_with_its_event_lost_is_repaired_and_counted_as_missed(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    join(&world, &ada, &["admin", "member"]);
    world.deliver(world.events()).await;
    reconcile(&world).await;
    assert_eq!(roles(&world, &ada).await, Some(keys(&["admin", "member"])));
    join(&world, &ada, &["member"]);
    let run = reconcile(&world).await;
    assert_eq!(roles(&world, &ada).await, Some(keys(&["member"])));
    assert_eq!((run.tally.of(DriftKind::Changed), run.tally.missed()), (1, 1));
    let compared = run.memberships.expect("roles were compared");
    assert_eq!((compared.organizations, compared.members, compared.changed), (2, 2, 1));
    assert_eq!((compared.filled_in, compared.not_compared), (0, None));
}

async fn roles_that_no_event_contained_are_unknown_until_a_scan_reads_them(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    join(&world, &ada, &["admin"]);
    world.kinde.suspend_in_organization(&ada, "org_1", true).expect("a member");
    world.later().await;
    world.reconcile().await;
    assert_eq!(
        membership(&world, &ada).await,
        Some(Organization::new("org_1")),
        "no role is known, and none is shown"
    );
    let run = reconcile(&world).await;
    let found = membership(&world, &ada).await.expect("a member");
    assert_eq!(
        (found.roles, found.permissions, found.is_suspended),
        (Some(keys(&["admin"])), None, Some(true))
    );
    let joined = world.kinde.user(&ada).expect("there").membership("org_1").expect("a member").joined_on;
    assert_eq!(found.joined_on.map(|at| at.0), Some(joined.as_microsecond()));
    assert_eq!((run.tally.missed(), run.memberships.map(|found| found.filled_in)), (0, Some(2)));
    let explained = explain(Some(&world.row(&ada).await), &[]);
    let values = explained.iter().flat_map(|one| &one.fields).filter_map(|field| field.value.as_ref());
    let lists = values.filter_map(|value| match value {
        Value::Organizations(list) => Some(list),
        _ => None,
    });
    let explained = lists.flatten().find(|one| one.code == "org_1").expect("explained");
    assert_eq!(explained.roles, Some(keys(&["admin"])), "keys and no ids");
}

async fn a_scan_without_drift_writes_no_member(fresh: Fresh) {
    let world = World::new(fresh).await;
    for user in world.import(25) {
        join(&world, &user, &["member"]);
    }
    world.deliver(world.events()).await;
    reconcile(&world).await;
    reconcile(&world).await;
    let revisions = async || {
        let mut revisions = Vec::new();
        for id in world.documents().await.keys() {
            revisions.push(world.row(id).await.revision);
        }
        revisions
    };
    let before = revisions().await;
    let run = reconcile(&world).await;
    assert_eq!(revisions().await, before);
    assert_eq!(run.tally.drift, BTreeMap::new());
    assert_eq!(run.memberships.map(|found| (found.members, found.filled_in)), Some((50, 0)));
}

async fn without_the_scopes_users_are_compared_and_the_run_names_the_scope(fresh: Fresh) {
    let scopes = vec!["read:users".to_owned(), "read:organizations".to_owned()];
    let world =
        World::with(fresh, kinde_emulator::Config { scopes, ..kinde_emulator::Config::default() }).await;
    let ada = world.import(1).remove(0);
    let run = reconcile(&world).await;
    assert_eq!((run.outcome, run.tally.users), (Outcome::Complete, 1));
    let reason = run.memberships.and_then(|found| found.not_compared).expect("a reason");
    assert!(reason.contains("read:organization_users"), "{reason}");
    let found = world.documents().await.remove(&ada).expect("stored").organizations.expect("listed");
    assert_eq!(found[0].roles, None, "unknown, not none");
    reconciler(&world)
        .check(&[UserId::parse(&ada).expect("an id")])
        .await
        .expect("a check needs no scope of roles");
}

async fn a_failure_of_the_reads_of_roles_fails_no_scan_and_no_check(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    join(&world, &ada, &["admin"]);
    reconcile(&world).await;
    let edit = UserEdit { first_name: Some("Grace".into()), ..UserEdit::default() };
    world.kinde.update_user(&ada, edit).expect("there");
    world.kinde.set_fault(Fault::always(FaultKind::Status { status: 418 }).on("members"));
    world.kinde.set_fault(Fault::always(FaultKind::Status { status: 418 }).on("member_permissions"));
    let run = reconcile(&world).await;
    assert_eq!((run.outcome, run.tally.of(DriftKind::Changed)), (Outcome::Complete, 1));
    let reason = run.memberships.and_then(|found| found.not_compared).expect("a reason");
    assert!(reason.contains("418"), "{reason}");
    let check = [UserId::parse(&ada).expect("an id")];
    reconciler(&world).check(&check).await.expect("the user itself can be read");
    assert_eq!(roles(&world, &ada).await, Some(keys(&["admin"])));
}

async fn an_empty_list_of_members_takes_no_role(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    join(&world, &ada, &["admin"]);
    reconcile(&world).await;
    world.kinde.set_fault(Fault::always(FaultKind::EmptyList).on("members"));
    let run = reconcile(&world).await;
    assert_eq!(run.memberships.map(|found| found.members), Some(0));
    assert_eq!(roles(&world, &ada).await, Some(keys(&["admin"])));
}

async fn a_third_of_the_members_missing_in_a_list_keeps_memberships_and_roles(fresh: Fresh) {
    let world = World::new(fresh).await;
    let users = world.import(30);
    for user in &users {
        join(&world, user, &["admin"]);
    }
    world.deliver(world.events()).await;
    reconcile(&world).await;
    world.kinde.set_fault(Fault::always(FaultKind::PaginationDrift { by: 5 }).on("members"));
    let run = reconcile(&world).await;
    let compared = run.memberships.expect("roles were compared");
    // Both organizations lack ten.
    assert_eq!((compared.organizations, compared.members, compared.changed), (2, 40, 0));
    assert_eq!(run.tally.drift, BTreeMap::new());
    for user in &users {
        assert_eq!(roles(&world, user).await, Some(keys(&["admin"])));
    }
}

async fn a_late_event_with_former_roles_requests_a_check_that_repairs_them(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    join(&world, &ada, &["admin"]);
    world.deliver(world.events()).await;
    join(&world, &ada, &[]);
    join(&world, &ada, &["admin"]);
    let late = world.events().split_off(1);
    reconcile(&world).await;
    // Both events are older than the scan, which found the member equal and wrote nothing.
    world.deliver(vec![late[0].clone()]).await;
    let pending = PendingChecks::load(&*world.fresh.store).await.expect("the store answers");
    assert_eq!(pending.users.keys().map(UserId::as_str).collect::<Vec<_>>(), [ada.as_str()]);
    reconciler(&world).run_pending_checks().await.expect("Kinde answers");
    assert_eq!(roles(&world, &ada).await, Some(keys(&["admin"])));
}

async fn direct_permissions_are_known_after_a_change_of_roles(fresh: Fresh) {
    permissions_do_not_outlive_the_role(fresh, config::UserPermissions::Direct).await;
}

async fn permissions_do_not_outlive_the_role_that_gave_them(fresh: Fresh) {
    permissions_do_not_outlive_the_role(fresh, config::UserPermissions::Effective).await;
}

async fn permissions_do_not_outlive_the_role(fresh: Fresh, user_permissions: config::UserPermissions) {
    let unknowns = config::Unknowns { user_permissions, ..config::Unknowns::default() };
    let world =
        World::with(fresh, kinde_emulator::Config { unknowns, ..kinde_emulator::Config::default() }).await;
    let kinde: &Emulator = &world.kinde;
    let admin = kinde.create_role(RoleEdit::keyed("admin")).expect("new").id;
    let delete = kinde.create_permission(RoleEdit::keyed("delete")).expect("new").id;
    kinde.set_role_permissions(&admin, std::slice::from_ref(&delete), &[]).expect("there");
    let ada = world.import(1).remove(0);
    kinde.add_to_organization(&ada, "org_1", &keys(&["admin"]), &keys(&["read"])).expect("a user");
    world.deliver(world.events()).await;
    reconcile(&world).await;
    let permissions = async || membership(&world, &ada).await.and_then(|found| found.permissions);
    assert_eq!(permissions().await, Some(keys(&["delete", "read"])));
    let check = [UserId::parse(&ada).expect("an id")];
    reconciler(&world).check(&check).await.expect("Kinde answers");
    kinde.set_role_permissions(&admin, &[], std::slice::from_ref(&delete)).expect("there");
    reconcile(&world).await;
    assert_eq!(permissions().await, Some(keys(&["read"])));
    kinde.set_role_permissions(&admin, &[delete], &[]).expect("there");
    reconcile(&world).await;
    assert_eq!(permissions().await, Some(keys(&["delete", "read"])));
    kinde.add_to_organization(&ada, "org_1", &[], &keys(&["read"])).expect("a user");
    reconcile(&world).await;
    let found = membership(&world, &ada).await.expect("a member");
    assert_eq!((found.roles, found.permissions), (Some(Vec::new()), Some(keys(&["read"]))));
}

async fn a_direct_permission_that_a_role_gave_too_is_read_again_when_the_role_loses_it(fresh: Fresh) {
    a_hidden_permission_is_shown_again_by(fresh, async |world, _| drop(reconcile(world).await)).await;
}

async fn a_check_shows_a_direct_permission_again_that_a_role_has_lost(fresh: Fresh) {
    let check = async |world: &World, ada: &str| {
        let user = [UserId::parse(ada).expect("an id")];
        // A read in the second in which the role lost the permission decides nothing.
        world.later().await;
        reconciler(world).check(&user).await.expect("Kinde answers");
    };
    a_hidden_permission_is_shown_again_by(fresh, check).await;
}

async fn a_hidden_permission_is_shown_again_by(fresh: Fresh, read: impl AsyncFn(&World, &str)) {
    let world = World::new(fresh).await;
    let kinde: &Emulator = &world.kinde;
    let admin = kinde.create_role(RoleEdit::keyed("admin")).expect("new").id;
    let delete = kinde.create_permission(RoleEdit::keyed("delete")).expect("new").id;
    kinde.set_role_permissions(&admin, std::slice::from_ref(&delete), &[]).expect("there");
    let ada = world.import(1).remove(0);
    kinde.add_to_organization(&ada, "org_1", &keys(&["admin"]), &keys(&["delete"])).expect("a user");
    world.deliver(world.events()).await;
    reconcile(&world).await;
    kinde.set_role_permissions(&admin, &[], &[delete]).expect("there");
    // It may have come from the role, and the permissions of the user cannot be read.
    kinde.set_fault(Fault::always(FaultKind::Status { status: 403 }).on("member_permissions"));
    reconcile(&world).await;
    let permissions = async || membership(&world, &ada).await.and_then(|found| found.permissions);
    assert_eq!(permissions().await, Some(Vec::new()));
    kinde.clear_faults();
    read(&world, &ada).await;
    assert_eq!(permissions().await, Some(keys(&["delete"])));
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
