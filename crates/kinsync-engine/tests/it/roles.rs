//! The roles of members at Kinde and in the store apart, and brought together by a scan: on both stores, against the emulator.

use std::collections::{BTreeMap, BTreeSet};

use kinde_emulator::{Emulator, Fault, FaultKind, OrganizationEdit, RoleEdit, UserEdit, config};
use kinsync_core::{Organization, UserId, Value};
use kinsync_engine::{
    Clock,
    internal::{
        explain::explain,
        pending_checks::PendingChecks,
        projector,
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
    roles_that_a_list_lacks_and_single_reads_find_stay
    a_role_that_most_members_have_lost_is_held_until_an_approval
    permissions_that_one_list_of_a_role_lacks_stay
    a_role_that_has_lost_most_permissions_is_held_until_an_approval
    small_losses_of_many_roles_are_held_together
    the_permissions_of_more_members_than_a_scan_reads_are_read_by_the_next_ones
    an_event_about_a_role_reads_what_it_gives_and_the_members_that_this_concerns
    a_role_that_one_read_does_not_find_stays_and_requests_a_scan
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

async fn with_role(world: &World, role: &str) -> usize {
    let has = |document: &kinsync_core::UserDocument| {
        let all = document.organizations.iter().flatten();
        all.filter_map(|one| one.roles.as_ref()).flatten().any(|key| key == role)
    };
    world.documents().await.values().filter(|document| has(document)).count()
}

async fn approve(world: &World, held: Run) -> Run {
    world.later().await;
    let mode = RunMode::Approve(held.id);
    Box::pin(reconciler(world).run(mode, &|_| {}, &CancellationToken::new())).await.expect("Kinde answers")
}

fn not_compared(run: &Run) -> Option<&str> {
    run.memberships.as_ref().expect("roles were compared").not_compared.as_deref()
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

async fn the_permissions_of_more_members_than_a_scan_reads_are_read_by_the_next_ones(fresh: Fresh) {
    let world = World::new(fresh).await;
    let users = world.import(5);
    let read = keys(&["read"]);
    for user in &users {
        world.kinde.add_to_organization(user, "org_1", &keys(&["admin"]), &read).expect("a user");
    }
    world.deliver(world.events()).await;
    reconcile(&world).await;
    for user in &users {
        world.kinde.add_to_organization(user, "org_1", &[], &read).expect("a user");
    }
    let reconciler = world.reconciler(10, Config { member_reads: 2, ..with_roles() });
    let known = async || {
        let has = |document: &kinsync_core::UserDocument| {
            let mut all = document.organizations.iter().flatten();
            all.any(|one| one.code == "org_1" && one.permissions.as_ref() == Some(&read))
        };
        world.documents().await.values().filter(|document| has(document)).count()
    };
    for (count, postponed) in [(2, Some(3)), (4, Some(1)), (5, None)] {
        world.later().await;
        let run = reconciler.run(RunMode::Reconcile, &|_| {}, &CancellationToken::new()).await;
        let run = run.expect("Kinde and the store answer");
        assert_eq!(with_role(&world, "admin").await, 0, "the role itself is taken away at once");
        assert_eq!(known().await, count, "{}", world.fresh.name);
        let reason =
            postponed.map(|members| format!("the permissions of {members} members are not compared"));
        let found = not_compared(&run);
        assert!(found.is_some() == reason.is_some(), "{found:?}");
        assert!(found.is_none_or(|found| found.contains(reason.as_deref().unwrap_or_default())), "{found:?}");
    }
}

/// Delivers new events as a process with a reconciler that compares roles, and carries out the checks that they request.
async fn deliver_and_check(world: &World, delivered: &mut usize) {
    let new = world.events().split_off(*delivered);
    *delivered += new.len();
    let config = projector::Config { check_roles: true, ..projector::Config::default() };
    world.deliver_with(new, config).await;
    world.later().await;
    reconciler(world).run_pending_checks().await.expect("Kinde answers");
    let pending = PendingChecks::load(&*world.fresh.store).await.expect("the store answers");
    assert!(pending.is_empty(), "{pending:?}");
}

async fn an_event_about_a_role_reads_what_it_gives_and_the_members_that_this_concerns(fresh: Fresh) {
    let world = World::new(fresh).await;
    let kinde: &Emulator = &world.kinde;
    let admin = kinde.create_role(RoleEdit::keyed("admin")).expect("new").id;
    let [delete, read] =
        ["delete", "read"].map(|key| kinde.create_permission(RoleEdit::keyed(key)).expect("new").id);
    kinde.set_role_permissions(&admin, std::slice::from_ref(&delete), &[]).expect("there");
    let users = world.import(3);
    let (ada, eve, bob) = (&users[0], &users[1], &users[2]);
    kinde.add_to_organization(ada, "org_1", &keys(&["admin"]), &keys(&["delete"])).expect("a user");
    kinde.add_to_organization(eve, "org_1", &keys(&["admin"]), &[]).expect("a user");
    join(&world, bob, &["viewer"]);
    let mut delivered = 0;
    deliver_and_check(&world, &mut delivered).await;
    reconcile(&world).await;
    let permissions = async |user: &str| membership(&world, user).await.and_then(|found| found.permissions);
    assert_eq!(permissions(eve).await, Some(keys(&["delete"])));
    // Kinde sends no event of the first change.
    kinde.set_role_permissions(&admin, &[read], &[delete]).expect("there");
    kinde.update_role(&admin, RoleEdit::keyed("owner")).expect("there");
    let requests = || (kinde.requests("members"), kinde.requests("member_permissions"));
    let before = requests();
    deliver_and_check(&world, &mut delivered).await;
    assert_eq!(permissions(eve).await, Some(keys(&["read"])), "{}", world.fresh.name);
    assert_eq!(
        permissions(ada).await,
        Some(keys(&["delete", "read"])),
        "read again: the role may have given it"
    );
    assert_eq!(roles(&world, eve).await, Some(keys(&["owner"])));
    assert_eq!(
        requests(),
        (before.0, before.1 + 2),
        "no list of members, and each member with the role once"
    );
    kinde.delete_role(&admin).expect("there");
    deliver_and_check(&world, &mut delivered).await;
    assert_eq!(
        (roles(&world, eve).await, permissions(ada).await),
        (Some(Vec::new()), Some(keys(&["delete"])))
    );
}

async fn a_role_that_one_read_does_not_find_stays_and_requests_a_scan(fresh: Fresh) {
    let world = World::new(fresh).await;
    let admin = world.kinde.create_role(RoleEdit::keyed("admin")).expect("new").id;
    let ada = world.import(1).remove(0);
    join(&world, &ada, &["admin"]);
    let mut delivered = 0;
    deliver_and_check(&world, &mut delivered).await;
    reconcile(&world).await;
    world.kinde.update_role(&admin, RoleEdit::keyed("owner")).expect("there");
    let config = projector::Config { check_roles: true, ..projector::Config::default() };
    world.deliver_with(world.events().split_off(delivered), config).await;
    world.kinde.set_fault(Fault::always(FaultKind::Status { status: 404 }).on("roles"));
    world.later().await;
    let is_scan_requested = reconciler(&world).run_pending_checks().await.expect("Kinde answers");
    assert!(is_scan_requested, "the list of all roles decides");
    assert_eq!(roles(&world, &ada).await, Some(keys(&["owner"])));
    world.kinde.clear_faults();
    reconcile(&world).await;
    assert_eq!(roles(&world, &ada).await, Some(keys(&["owner"])));
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
