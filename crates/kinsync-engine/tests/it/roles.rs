//! The roles of members at Kinde and in the store apart, and brought together by a scan: on both stores, against the emulator.

use std::collections::BTreeMap;

use kinde_emulator::{Emulator, Fault, FaultKind, OrganizationEdit, RoleEdit, config};
use kinsync_core::{Organization, UserId};
use kinsync_engine::internal::{
    pending_checks::PendingChecks,
    projector,
    reconcile::{
        Config, Reconciler,
        record::{DriftKind, Outcome, Run, RunMode},
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio_util::sync::CancellationToken;

use crate::{
    reconcile::{World, quick},
    stores::{Fresh, on_every_store},
};

on_every_store! {
    a_role_that_was_taken_away_with_its_event_lost_is_repaired_and_counted_as_missed
    roles_that_no_event_contained_are_unknown_until_a_scan_reads_them
    a_scan_without_drift_writes_no_member
    a_renamed_or_deleted_role_and_a_deleted_organization_request_a_scan_that_repairs_every_member
    without_the_scopes_users_are_compared_and_the_run_names_the_scope
    an_empty_list_of_members_takes_no_role
    a_late_event_with_former_roles_requests_a_check_that_repairs_them
    permissions_do_not_outlive_the_role_that_gave_them
    direct_permissions_are_known_after_a_change_of_roles
    after_one_complete_run_every_role_equals_kinde
}

fn with_roles() -> Config {
    Config { roles: true, ..quick() }
}

fn reconciler(world: &World) -> Reconciler {
    world.reconciler(10, with_roles())
}

async fn reconcile(world: &World) -> Run {
    world.later().await;
    let run = reconciler(world).run(RunMode::Reconcile, &|_| {}, &CancellationToken::new()).await;
    run.expect("Kinde and the store answer")
}

fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

fn join(world: &World, user: &str, roles: &[&str]) {
    world.kinde.add_to_organization(user, "org_1", &keys(roles), &[]).expect("a user");
}

async fn membership(world: &World, user: &str) -> Option<Organization> {
    let found = world.documents().await.remove(user).expect("stored").organizations?;
    found.into_iter().find(|one| one.code == "org_1")
}

async fn roles(world: &World, user: &str) -> Option<Vec<String>> {
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

/// What a schedule does with the pending requests.
async fn scan_if_requested(world: &World) -> bool {
    let requested = reconciler(world).run_pending_checks().await.expect("Kinde answers");
    if requested {
        reconcile(world).await;
        let done = PendingChecks::load(&*world.fresh.store).await.expect("the store answers");
        PendingChecks::remove(&*world.fresh.store, &done).await.expect("the store answers");
    }
    requested
}

async fn a_renamed_or_deleted_role_and_a_deleted_organization_request_a_scan_that_repairs_every_member(
    fresh: Fresh,
) {
    let world = World::new(fresh).await;
    let users = world.import(12);
    let organization = OrganizationEdit { code: Some("org_1".into()), ..OrganizationEdit::default() };
    world.kinde.create_organization(organization).expect("a new code");
    let admin = world.kinde.create_role(RoleEdit::keyed("admin")).expect("a new key").id;
    for user in &users {
        join(&world, user, &["admin"]);
    }
    let config =
        projector::Config { check_without_time: true, compares_roles: true, ..projector::Config::default() };
    let mut delivered = 0;
    let mut deliver = async || {
        let events = world.events();
        let new = events[delivered..].to_vec();
        delivered = events.len();
        world.deliver_with(new, config).await;
    };
    deliver().await;
    assert!(!scan_if_requested(&world).await, "a new role and a new organization change no member");
    reconcile(&world).await;
    world.kinde.update_role(&admin, RoleEdit::keyed("owner")).expect("there");
    deliver().await;
    assert!(scan_if_requested(&world).await);
    for user in &users {
        assert_eq!(roles(&world, user).await, Some(keys(&["owner"])), "{}", world.fresh.name);
    }
    world.kinde.delete_role(&admin).expect("there");
    deliver().await;
    assert!(scan_if_requested(&world).await);
    for user in &users {
        assert_eq!(roles(&world, user).await, Some(Vec::new()));
    }
    world.kinde.delete_organization("org_1").expect("there");
    deliver().await;
    assert!(scan_if_requested(&world).await);
    for user in &users {
        assert_eq!(membership(&world, user).await, None);
    }
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
    kinde.set_role_permissions(&admin, &[delete], &[]).expect("there");
    let ada = world.import(1).remove(0);
    kinde.add_to_organization(&ada, "org_1", &keys(&["admin"]), &keys(&["read"])).expect("a user");
    world.deliver(world.events()).await;
    reconcile(&world).await;
    let listed = membership(&world, &ada).await.and_then(|found| found.permissions).expect("known");
    let is_effective = user_permissions == config::UserPermissions::Effective;
    assert_eq!(listed.contains(&"delete".to_owned()), is_effective);
    kinde.add_to_organization(&ada, "org_1", &[], &keys(&["read"])).expect("a user");
    reconcile(&world).await;
    let found = membership(&world, &ada).await.expect("a member");
    assert_eq!((found.roles, found.permissions), (Some(Vec::new()), Some(keys(&["read"]))));
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
        match (rng.random_range(0..12), role) {
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

/// Panics unless the memberships of every user are Kinde's, with roles.
async fn assert_equal(world: &World, when: &str) {
    let stored = world.documents().await;
    for user in world.kinde.users() {
        let member = |member: &kinde_emulator::Membership| {
            let mut roles: Vec<String> = member.roles.iter().map(|grant| grant.key.clone()).collect();
            roles.sort();
            (member.code.clone(), (Some(roles), Some(member.is_suspended)))
        };
        let kinde: BTreeMap<_, _> = user.organizations.iter().map(member).collect();
        let found = stored[&user.id].organizations.clone().expect("listed");
        let found: BTreeMap<_, _> =
            found.into_iter().map(|one| (one.code, (one.roles, one.is_suspended))).collect();
        assert_eq!(found, kinde, "{}, {when}: {}", world.fresh.name, user.id);
    }
}
