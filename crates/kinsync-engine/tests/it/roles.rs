//! The roles of members at Kinde and in the store apart, and brought together by a scan: on both stores, against the emulator.

use std::{collections::BTreeMap, time::Duration};

use kinde_emulator::{Fault, FaultKind, UserEdit};
use kinsync_core::{Organization, Part, UserId, Value};
use kinsync_engine::internal::{
    explain::explain,
    pending_checks::PendingChecks,
    reconcile::{
        Config, Reconciler,
        record::{DriftKind, Outcome, Run, RunMode},
    },
};
use tokio_util::sync::CancellationToken;

use crate::{
    reconcile::{World, quick},
    stores::{Fresh, on_every_store},
};

on_every_store! {
    a_role_that_was_taken_away_with_its_event_lost_is_repaired_and_counted_as_missed
    roles_that_no_event_contained_are_unknown_until_a_scan_reads_them
    a_scan_without_drift_writes_no_member
    roles_are_compared_at_their_own_interval_and_by_a_requested_scan
    without_the_scopes_users_are_compared_and_the_run_names_the_scope
    a_failure_of_the_reads_of_roles_fails_no_scan_and_no_check
    a_late_event_with_former_roles_requests_a_check_that_repairs_them
}

pub(crate) fn with_roles() -> Config {
    Config { roles: true, ..quick() }
}

pub(crate) fn reconciler(world: &World) -> Reconciler {
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

pub(crate) async fn with_role(world: &World, role: &str) -> usize {
    let has = |document: &kinsync_core::UserDocument| {
        let all = document.organizations.iter().flatten();
        all.filter_map(|one| one.roles.as_ref()).flatten().any(|key| key == role)
    };
    world.documents().await.values().filter(|document| has(document)).count()
}

pub(crate) fn not_compared(run: &Run) -> Option<&str> {
    run.memberships.as_ref().expect("roles were compared").not_compared.as_deref()
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
    let roles = explained
        .iter()
        .flat_map(|one| &one.fields)
        .filter(|field| field.part == Some(Part::Roles) && field.organization.as_deref() == Some("org_1"));
    let roles: Vec<_> = roles.map(|field| (field.value.clone(), field.is_set)).collect();
    assert_eq!(roles, [(Value::Codes(keys(&["admin"])), true)], "keys and no ids");
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

async fn roles_are_compared_at_their_own_interval_and_by_a_requested_scan(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    join(&world, &ada, &["admin"]);
    let config = Config { roles_every: Duration::from_hours(6), ..with_roles() };
    let reconciler = world.reconciler(10, config);
    let compares = async |mode: RunMode| {
        world.later().await;
        let run = reconciler.run(mode, &|_| {}, &CancellationToken::new()).await;
        run.expect("Kinde and the store answer").memberships.is_some()
    };
    assert!(compares(RunMode::Reconcile).await, "the first one");
    join(&world, &ada, &[]);
    assert!(!compares(RunMode::Reconcile).await, "the interval has not passed");
    assert_eq!(roles(&world, &ada).await, Some(keys(&["admin"])));
    assert!(compares(RunMode::DryRun).await, "a report is complete");
    PendingChecks::request_scan(&*world.fresh.store).await.expect("the store answers");
    assert!(compares(RunMode::Reconcile).await, "an event of a role may have requested it");
    assert_eq!(roles(&world, &ada).await, Some(Vec::new()));
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
