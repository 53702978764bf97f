//! Lists that lack roles, members or permissions: what is kept, and what is held until an operator approves it.

use std::{collections::BTreeMap, time::Duration};

use kinde_emulator::{Fault, FaultKind, RoleEdit};
use kinsync_core::UserId;
use kinsync_engine::internal::{
    pending_checks::PendingChecks,
    reconcile::{
        Config,
        record::{DriftKind, Run, RunMode},
    },
    store::EventFilter,
};
use tokio_util::sync::CancellationToken;

use crate::{
    reconcile::World,
    roles::{join, keys, membership, not_compared, reconcile, reconciler, roles, with_role, with_roles},
    stores::{Fresh, on_every_store},
};

on_every_store! {
    an_empty_list_of_members_takes_no_role
    a_third_of_the_members_missing_in_a_list_keeps_memberships_and_roles
    roles_that_a_list_lacks_and_single_reads_find_stay
    roles_stay_while_no_single_read_of_a_member_is_usable
    a_role_that_most_members_have_lost_is_held_until_an_approval
    a_held_removal_of_roles_stays_held_where_permissions_are_unknown
    a_read_of_permissions_takes_no_role
    a_check_of_a_role_logs_the_permissions_that_it_read
    a_check_of_a_member_reads_again_what_one_read_lacks
    held_removals_of_roles_are_held_by_each_scan_whatever_the_interval
    members_above_the_limit_of_reads_are_read_by_the_next_scans_whatever_the_interval
    a_member_with_permissions_that_no_read_makes_known_takes_no_reads_of_others
    permissions_that_one_list_of_a_role_lacks_stay
    a_role_that_has_lost_most_permissions_is_held_until_an_approval
    small_losses_of_many_roles_are_held_together
}

/// Users with this role, as events and a scan know them.
async fn with_members(fresh: Fresh, count: usize, role: &str) -> (World, Vec<String>) {
    let world = World::new(fresh).await;
    let users = world.import(count);
    for user in &users {
        join(&world, user, &[role]);
    }
    world.deliver(world.events()).await;
    reconcile(&world).await;
    (world, users)
}

async fn approve(world: &World, held: Run) -> Run {
    world.later().await;
    let mode = RunMode::Approve(held.id);
    Box::pin(reconciler(world).run(mode, &|_| {}, &CancellationToken::new())).await.expect("Kinde answers")
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

async fn roles_that_a_list_lacks_and_single_reads_find_stay(fresh: Fresh) {
    let (world, users) = with_members(fresh, 4, "admin").await;
    world.kinde.set_fault(Fault::always(FaultKind::NoRoles).on("members"));
    world.kinde.suspend_in_organization(&users[0], "org_1", true).expect("a member");
    let run = reconcile(&world).await;
    assert_eq!(run.tally.of(DriftKind::Undetermined), 4, "{:?}", run.tally);
    assert_eq!(with_role(&world, "admin").await, 4, "{}", world.fresh.name);
    let suspended = membership(&world, &users[0]).await.and_then(|found| found.is_suspended);
    assert_eq!(suspended, Some(true), "everything else takes effect");
}

async fn roles_stay_while_no_single_read_of_a_member_is_usable(fresh: Fresh) {
    let (world, users) = with_members(fresh, 12, "admin").await;
    users[..3].iter().for_each(|user| join(&world, user, &[]));
    // Kinde names a missing scope: a 403 of a proxy does not.
    for fault in [400, 403, 404].map(|status| FaultKind::Status { status }) {
        world.kinde.set_fault(Fault::always(fault.clone()).on("member_roles"));
        let run = reconcile(&world).await;
        world.kinde.clear_faults();
        assert_eq!(run.tally.of(DriftKind::Undetermined), 3, "{fault:?}: {:?}", run.tally);
        assert_eq!(with_role(&world, "admin").await, 12, "{}: {fault:?}", world.fresh.name);
    }
    // One usable read is enough.
    world.kinde.set_fault(Fault::times(FaultKind::Status { status: 400 }, 2).on("member_roles"));
    reconcile(&world).await;
    assert_eq!(with_role(&world, "admin").await, 9, "{}", world.fresh.name);
}

async fn a_role_that_most_members_have_lost_is_held_until_an_approval(fresh: Fresh) {
    let (world, users) = with_members(fresh, 12, "admin").await;
    users[..7].iter().for_each(|user| join(&world, user, &["viewer"]));
    world.kinde.suspend_in_organization(&users[0], "org_1", true).expect("a member");
    for _ in 0..2 {
        let held = reconcile(&world).await;
        assert_eq!(held.tally.of(DriftKind::RemovalHeld), 7, "{:?}", held.tally);
        assert_eq!(with_role(&world, "admin").await, 12, "held, however often the list repeats it");
    }
    let suspended = membership(&world, &users[0]).await.and_then(|found| found.is_suspended);
    assert_eq!(suspended, Some(true), "everything else takes effect");
    let held = reconcile(&world).await;
    let approved = approve(&world, held).await;
    assert_eq!((approved.tally.of(DriftKind::RemovalHeld), approved.tally.of(DriftKind::Changed)), (0, 7));
    assert_eq!((with_role(&world, "admin").await, with_role(&world, "viewer").await), (5, 7));
    users[7..9].iter().for_each(|user| join(&world, user, &[]));
    reconcile(&world).await;
    assert_eq!(with_role(&world, "admin").await, 3, "a few at once");
}

/// Members with a role that gives a permission, and with unknown permissions.
async fn with_unknown_permissions(fresh: Fresh, count: usize) -> (World, Vec<String>) {
    let world = World::new(fresh).await;
    let read = world.kinde.create_permission(RoleEdit::keyed("read")).expect("new").id;
    let admin = world.kinde.create_role(RoleEdit::keyed("admin")).expect("new").id;
    world.kinde.set_role_permissions(&admin, &[read], &[]).expect("there");
    let users = world.import(count);
    for user in &users {
        join(&world, user, &["admin"]);
    }
    let run = reconcile_with(&world, Config { member_reads: 0, ..with_roles() }).await;
    assert_eq!(unknown_permissions(&run), count as u64);
    assert_eq!(with_role(&world, "admin").await, count);
    (world, users)
}

async fn reconcile_with(world: &World, config: Config) -> Run {
    world.later().await;
    let run = world.reconciler(10, config).run(RunMode::Reconcile, &|_| {}, &CancellationToken::new()).await;
    run.expect("Kinde and the store answer")
}

fn unknown_permissions(run: &Run) -> u64 {
    run.memberships.as_ref().expect("roles were compared").unknown_permissions
}

async fn a_held_removal_of_roles_stays_held_where_permissions_are_unknown(fresh: Fresh) {
    let (world, users) = with_unknown_permissions(fresh, 30).await;
    for user in &users {
        join(&world, user, &[]);
    }
    world.kinde.suspend_in_organization(&users[0], "org_1", true).expect("a member");
    for _ in 0..2 {
        let held = reconcile(&world).await;
        assert_eq!((held.tally.of(DriftKind::RemovalHeld), unknown_permissions(&held)), (30, 30));
        assert_eq!(with_role(&world, "admin").await, 30, "{}", world.fresh.name);
    }
    let suspended = membership(&world, &users[0]).await.and_then(|found| found.is_suspended);
    assert_eq!(suspended, Some(true), "everything else takes effect");
    let held = reconcile(&world).await;
    assert_eq!(approve(&world, held).await.tally.of(DriftKind::RemovalHeld), 0);
    assert_eq!(with_role(&world, "admin").await, 0);
}

async fn a_read_of_permissions_takes_no_role(fresh: Fresh) {
    let (world, users) = with_unknown_permissions(fresh, 3).await;
    for user in &users {
        join(&world, user, &[]);
    }
    let row = world.row(&users[0]).await;
    let stored = row.state.memberships().and_then(|all| all.organization("org_1"));
    let admin = stored.and_then(|one| one.roles).expect("known").into_iter().collect();
    PendingChecks::request_roles(&*world.fresh.store, &admin).await.expect("the store answers");
    let before = world.kinde.requests("member_permissions");
    world.later().await;
    reconciler(&world).run_pending_checks().await.expect("Kinde answers");
    assert_eq!(world.kinde.requests("member_permissions"), before + 3);
    assert_eq!(with_role(&world, "admin").await, 3, "{}: the next lists decide", world.fresh.name);
}

async fn a_check_of_a_role_logs_the_permissions_that_it_read(fresh: Fresh) {
    let (world, ada, roles) = with_permissions(fresh, &[4]).await;
    let (role, given) = &roles[0];
    let store = &*world.fresh.store;
    let of_role =
        EventFilter { kind: Some("kinsync.directory.read".into()), limit: 1000, ..EventFilter::default() };
    let logged = async || {
        let entries = store.events(&of_role).await.expect("the store answers").items;
        entries.iter().filter(|entry| entry.payload.contains(role)).count()
    };
    let before = logged().await;
    world.kinde.set_role_permissions(role, &[], &given[..1]).expect("there");
    PendingChecks::request_roles(store, &[role.clone()].into()).await.expect("the store answers");
    world.later().await;
    reconciler(&world).run_pending_checks().await.expect("Kinde answers");
    assert_eq!(permissions(&world, &ada).await, 3, "{}", world.fresh.name);
    assert_eq!(logged().await, before + 1);
}

async fn a_check_of_a_member_reads_again_what_one_read_lacks(fresh: Fresh) {
    let world = World::new(fresh).await;
    world.kinde.create_permission(RoleEdit::keyed("read")).expect("new");
    let ada = world.import(1).remove(0);
    let found = world.kinde.user(&ada).expect("there");
    world.kinde.add_to_organization(&ada, "org_1", &keys(&["admin"]), &keys(&["read"])).expect("a user");
    for other in found.organizations {
        // A fault is meant for the reads of one membership.
        world.kinde.remove_from_organization(&ada, &other.code).expect("a member");
    }
    world.deliver(world.events()).await;
    reconcile(&world).await;
    let store = &*world.fresh.store;
    let is_requested = async || !PendingChecks::load(store).await.expect("the store answers").is_empty();
    let check = async || {
        PendingChecks::request(store, &[UserId::parse(&ada).expect("an id")]).await.expect("kept");
        world.later().await;
        reconciler(&world).run_pending_checks().await.expect("Kinde answers");
        let found = membership(&world, &ada).await.expect("a member");
        (found.roles.expect("known"), found.permissions.expect("known"))
    };
    for list in ["member_roles", "member_permissions"] {
        world.kinde.set_fault(Fault::times(FaultKind::EmptyList, 1).on(list));
        assert_eq!(check().await, (keys(&["admin"]), keys(&["read"])), "{}: {list}", world.fresh.name);
        assert!(is_requested().await, "the reads differ: {list}");
        assert_eq!(check().await, (keys(&["admin"]), keys(&["read"])), "{}: {list}", world.fresh.name);
        assert!(!is_requested().await, "{list}");
    }
    world.kinde.add_to_organization(&ada, "org_1", &[], &[]).expect("a user");
    assert_eq!(check().await, (Vec::new(), Vec::new()), "{}: both reads lack them", world.fresh.name);
    assert!(!is_requested().await);
}

fn seldom() -> Config {
    Config { roles_every: Duration::from_hours(6), ..with_roles() }
}

async fn held_removals_of_roles_are_held_by_each_scan_whatever_the_interval(fresh: Fresh) {
    let (world, users) = with_members(fresh, 12, "admin").await;
    users[..7].iter().for_each(|user| join(&world, user, &[]));
    PendingChecks::request_scan(&*world.fresh.store).await.expect("the store answers");
    assert_eq!(reconcile_with(&world, seldom()).await.tally.of(DriftKind::RemovalHeld), 7);
    let scan = PendingChecks::load(&*world.fresh.store).await.expect("the store answers");
    PendingChecks::remove(&*world.fresh.store, &scan).await.expect("the store answers");
    let held = reconcile_with(&world, seldom()).await;
    assert_eq!(held.tally.of(DriftKind::RemovalHeld), 7, "{}: not decided yet", world.fresh.name);
    approve(&world, held).await;
    assert_eq!(with_role(&world, "admin").await, 5);
    assert_eq!(reconcile_with(&world, seldom()).await.memberships, None, "the interval counts again");
}

async fn members_above_the_limit_of_reads_are_read_by_the_next_scans_whatever_the_interval(fresh: Fresh) {
    let (world, _) = with_unknown_permissions(fresh, 5).await;
    assert_eq!(reconcile_with(&world, seldom()).await.memberships, None, "without reads none continues");
    PendingChecks::request_scan(&*world.fresh.store).await.expect("the store answers");
    for unknown in [3, 1, 0] {
        let run = reconcile_with(&world, Config { member_reads: 2, ..seldom() }).await;
        assert_eq!(unknown_permissions(&run), unknown, "{}", world.fresh.name);
        let scan = PendingChecks::load(&*world.fresh.store).await.expect("the store answers");
        PendingChecks::remove(&*world.fresh.store, &scan).await.expect("the store answers");
    }
    assert_eq!(reconcile_with(&world, seldom()).await.memberships, None, "all are read");
}

async fn a_member_with_permissions_that_no_read_makes_known_takes_no_reads_of_others(fresh: Fresh) {
    let world = World::new(fresh).await;
    let kinde = &world.kinde;
    let role = |key: &str, permission: &str| {
        let permission = kinde.create_permission(RoleEdit::keyed(permission)).expect("new").id;
        let role = kinde.create_role(RoleEdit::keyed(key)).expect("new").id;
        kinde.set_role_permissions(&role, std::slice::from_ref(&permission), &[]).expect("there");
        (role, permission)
    };
    let (former, read) = role("former", "read");
    role("admin", "write");
    reconcile(&world).await;
    kinde.set_role_permissions(&former, &[], &[read]).expect("there");
    // The first member in every list has a permission that the role may have given: without its roles, a list does not tell.
    let users = world.import(3);
    kinde.add_to_organization(&users[0], "org_1", &keys(&["former"]), &keys(&["read"])).expect("a user");
    world.deliver(vec![world.events().pop().expect("an event")]).await;
    users[1..].iter().for_each(|user| join(&world, user, &["admin"]));
    kinde.set_fault(Fault::always(FaultKind::NoRoles).on("member_permissions"));
    let mut unknown = 3;
    for _ in 0..64 {
        let run = reconcile_with(&world, Config { member_reads: 1, ..with_roles() }).await;
        unknown = unknown_permissions(&run);
        if unknown == 1 {
            break;
        }
    }
    assert_eq!(unknown, 1, "{}", world.fresh.name);
    for user in &users[1..] {
        assert_eq!(
            membership(&world, user).await.and_then(|found| found.permissions),
            Some(keys(&["write"]))
        );
    }
}

/// A member with roles that give these numbers of permissions.
async fn with_permissions(fresh: Fresh, numbers: &[usize]) -> (World, String, Vec<(String, Vec<String>)>) {
    let world = World::new(fresh).await;
    let mut roles = Vec::new();
    for (n, count) in numbers.iter().enumerate() {
        let key = |one| format!("permission_{n}_{one}");
        let permission = |one| world.kinde.create_permission(RoleEdit::keyed(&key(one))).expect("new").id;
        let permissions: Vec<String> = (0..*count).map(permission).collect();
        let role = world.kinde.create_role(RoleEdit::keyed(&format!("role_{n}"))).expect("new").id;
        world.kinde.set_role_permissions(&role, &permissions, &[]).expect("there");
        roles.push((role, permissions));
    }
    let ada = world.import(1).remove(0);
    let assigned: Vec<String> = (0..numbers.len()).map(|n| format!("role_{n}")).collect();
    world.kinde.add_to_organization(&ada, "org_1", &assigned, &[]).expect("a user");
    reconcile(&world).await;
    assert_eq!(permissions(&world, &ada).await, numbers.iter().sum::<usize>());
    (world, ada, roles)
}

async fn permissions(world: &World, user: &str) -> usize {
    membership(world, user).await.and_then(|found| found.permissions).expect("known").len()
}

async fn permissions_that_one_list_of_a_role_lacks_stay(fresh: Fresh) {
    let (world, ada, _) = with_permissions(fresh, &[4]).await;
    world.kinde.set_fault(Fault::times(FaultKind::EmptyList, 1).on("role_permissions"));
    let run = reconcile(&world).await;
    assert_eq!(permissions(&world, &ada).await, 4, "{}", world.fresh.name);
    let reason = not_compared(&run).expect("a reason");
    assert!(reason.contains("two lists of them differ"), "{reason}");
    assert_eq!(not_compared(&reconcile(&world).await), None);
}

async fn a_role_that_has_lost_most_permissions_is_held_until_an_approval(fresh: Fresh) {
    let (world, ada, roles) = with_permissions(fresh, &[8, 8]).await;
    let (role, given) = &roles[0];
    world.kinde.set_role_permissions(role, &[], &given[..6]).expect("there");
    let held = reconcile(&world).await;
    assert_eq!((held.tally.of(DriftKind::RemovalHeld), permissions(&world, &ada).await), (6, 16));
    approve(&world, held).await;
    assert_eq!(permissions(&world, &ada).await, 10, "{}", world.fresh.name);
    let (role, given) = &roles[1];
    world.kinde.set_role_permissions(role, &[], &given[..3]).expect("there");
    assert_eq!(reconcile(&world).await.tally.of(DriftKind::RemovalHeld), 0);
    assert_eq!(permissions(&world, &ada).await, 7, "a few at once");
}

async fn small_losses_of_many_roles_are_held_together(fresh: Fresh) {
    let (world, ada, roles) = with_permissions(fresh, &[3, 3, 3, 3]).await;
    world.kinde.set_fault(Fault::always(FaultKind::EmptyList).on("role_permissions"));
    let held = reconcile(&world).await;
    assert_eq!((held.tally.of(DriftKind::RemovalHeld), permissions(&world, &ada).await), (12, 12));
    world.kinde.clear_faults();
    let (role, given) = &roles[0];
    world.kinde.set_role_permissions(role, &[], given).expect("there");
    assert_eq!(reconcile(&world).await.tally.of(DriftKind::RemovalHeld), 0);
    assert_eq!(permissions(&world, &ada).await, 9, "one role alone");
}
