//! Organizations, roles and permissions that change, are renamed or deleted: on both stores, against the emulator.

use std::{collections::BTreeSet, sync::Arc};

use kinde_emulator::{Fault, FaultKind, OrganizationEdit, RoleEdit};
use kinsync_core::Source;
use kinsync_engine::internal::{
    directory,
    pending_checks::PendingChecks,
    projector,
    reconcile::record::{DriftKind, RunMode},
    store::Store,
};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio_util::sync::CancellationToken;

use crate::{
    pipeline::{drain, engine},
    reconcile::{World, until_requested},
    roles::{join, keys, membership, reconcile, reconciler, roles as roles_of},
    roles_truth::{Known, assert_memberships},
    stores::{Fresh, on_every_store},
    suspended::Suspended,
};

on_every_store! {
    a_renamed_role_a_deleted_role_and_a_deleted_organization_change_every_member_at_once
    events_of_roles_organizations_and_members_have_one_result_in_any_order
    a_change_of_a_role_during_changes_of_its_members_reaches_all_of_them
    a_rename_while_another_process_writes_a_new_member_reaches_that_member
    one_scan_repairs_lost_events_of_roles_permissions_and_organizations
    a_key_that_moves_to_another_role_during_a_scan_changes_no_member
    an_empty_list_of_roles_or_organizations_deletes_nothing
    many_deletions_of_one_kind_are_held_until_an_operator_approves_them
    events_about_organizations_and_permissions_change_their_members_without_a_read
    roles_are_found_by_their_current_key
}

/// Delivers the events since `delivered`.
async fn deliver_new(world: &World, delivered: &mut usize) {
    let events = world.events();
    let new = events[*delivered..].to_vec();
    *delivered = events.len();
    world.deliver(new).await;
}

async fn a_renamed_role_a_deleted_role_and_a_deleted_organization_change_every_member_at_once(fresh: Fresh) {
    let world = World::new(fresh).await;
    let users = world.import(12);
    let organization = OrganizationEdit {
        code: Some("org_1".into()),
        name: Some("One".into()),
        ..OrganizationEdit::default()
    };
    world.kinde.create_organization(organization).expect("a new code");
    let admin = world.kinde.create_role(RoleEdit::keyed("admin")).expect("a new key").id;
    for user in &users {
        join(&world, user, &["admin"]);
    }
    let mut delivered = 0;
    deliver_new(&world, &mut delivered).await;
    let shown = async |user: &String| membership(&world, user).await.map(|found| (found.name, found.roles));
    for user in &users {
        assert_eq!(shown(user).await, Some((Some("One".into()), Some(keys(&["admin"])))));
    }
    world.kinde.update_role(&admin, RoleEdit::keyed("owner")).expect("there");
    let renamed = OrganizationEdit { name: Some("First".into()), ..OrganizationEdit::default() };
    world.kinde.update_organization("org_1", renamed).expect("there");
    deliver_new(&world, &mut delivered).await;
    for user in &users {
        assert_eq!(shown(user).await, Some((Some("First".into()), Some(keys(&["owner"])))));
        assert_eq!(world.documents().await[user].source, Some(Source::Webhook));
    }
    world.kinde.delete_role(&admin).expect("there");
    deliver_new(&world, &mut delivered).await;
    for user in &users {
        assert_eq!(roles_of(&world, user).await, Some(Vec::new()));
    }
    world.kinde.delete_organization("org_1").expect("there");
    deliver_new(&world, &mut delivered).await;
    for user in &users {
        assert_eq!(membership(&world, user).await, None);
    }
}

async fn events_of_roles_organizations_and_members_have_one_result_in_any_order(fresh: Fresh) {
    let world = World::new(fresh).await;
    let users = world.import(6);
    let roles = ["admin", "member"].map(|key| world.kinde.create_role(RoleEdit::keyed(key)).expect("new").id);
    for user in &users {
        join(&world, user, &["admin", "member"]);
        world.kinde.add_to_organization(user, "org_2", &keys(&["member"]), &[]).expect("a user");
    }
    world.kinde.update_role(&roles[0], RoleEdit::keyed("owner")).expect("there");
    join(&world, &users[0], &["owner"]);
    world.kinde.delete_role(&roles[1]).expect("there");
    world.kinde.delete_organization("org_2").expect("there");
    let mut rng = StdRng::seed_from_u64(5);
    let mut events = world.events();
    events.extend(events.clone().into_iter().step_by(3));
    events.shuffle(&mut rng);
    // One by one, so that each order of writes occurs.
    world.deliver_with(events, projector::Config { batch: 1, workers: 1, ..Default::default() }).await;
    assert_memberships(&world, Known::Roles, "in a random order").await;
}

async fn a_change_of_a_role_during_changes_of_its_members_reaches_all_of_them(fresh: Fresh) {
    let world = World::new(fresh).await;
    let users = world.import(40);
    let admin = world.kinde.create_role(RoleEdit::keyed("admin")).expect("a new key").id;
    for (n, user) in users.iter().enumerate() {
        let key = world.kinde.roles()[0].key.clone();
        join(&world, user, &[&key]);
        if n % 4 == 3 {
            world.kinde.update_role(&admin, RoleEdit::keyed(&format!("admin-{n}"))).expect("there");
        }
    }
    let mut events = world.events();
    events.shuffle(&mut StdRng::seed_from_u64(3));
    world.deliver_with(events, projector::Config { batch: 2, workers: 8, ..Default::default() }).await;
    assert_memberships(&world, Known::Roles, "after concurrent changes").await;
}

async fn a_rename_while_another_process_writes_a_new_member_reaches_that_member(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    let admin = world.kinde.create_role(RoleEdit::keyed("admin")).expect("a new key").id;
    world.deliver(world.events()).await;
    let known = world.events().len();
    join(&world, &ada, &["admin"]);
    let joined = world.events().split_off(known);
    world.kinde.update_role(&admin, RoleEdit::keyed("owner")).expect("there");
    let renamed = world.events().split_off(known + joined.len());
    // The other process has read the former key, and the rename finds no member.
    let other = Suspended::new(world.fresh.store.clone());
    other.suspend_at_write();
    let store: Arc<dyn Store> = other.clone();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let engine = engine(dir.path(), &store, projector::Config::default()).await;
    for entry in joined {
        engine.queue().enqueue(entry).await.expect("the queue takes it");
    }
    let rename = async {
        other.until_suspended().await;
        world.deliver(renamed).await;
        other.resume();
    };
    tokio::join!(drain(&engine), rename);
    engine.stop().await;
    assert_eq!(roles_of(&world, &ada).await, Some(keys(&["owner"])));
}

async fn one_scan_repairs_lost_events_of_roles_permissions_and_organizations(fresh: Fresh) {
    let world = World::new(fresh).await;
    let kinde = &world.kinde;
    let users = world.import(5);
    let [admin, member] =
        ["admin", "member"].map(|key| kinde.create_role(RoleEdit::keyed(key)).expect("new").id);
    let [read, write] =
        ["read", "write"].map(|key| kinde.create_permission(RoleEdit::keyed(key)).expect("new").id);
    for user in &users {
        join(&world, user, &["admin", "member"]);
        kinde.add_to_organization(user, "org_2", &keys(&["member"]), &[]).expect("a user");
    }
    world.deliver(world.events()).await;
    reconcile(&world).await;
    assert_memberships(&world, Known::Scanned(&BTreeSet::new()), "before").await;
    // No event of the following arrives.
    kinde.update_role(&admin, RoleEdit::keyed("owner")).expect("there");
    kinde.set_role_permissions(&admin, &[read.clone(), write.clone()], &[]).expect("there");
    kinde.delete_role(&member).expect("there");
    kinde.delete_organization("org_2").expect("there");
    reconcile(&world).await;
    assert_memberships(&world, Known::Scanned(&BTreeSet::new()), "after the first scan").await;
    let permissions = membership(&world, &users[0]).await.and_then(|found| found.permissions);
    assert_eq!(permissions, Some(keys(&["read", "write"])));
    kinde.update_permission(&write, RoleEdit::keyed("change")).expect("there");
    kinde.delete_permission(&read).expect("there");
    let run = reconcile(&world).await;
    assert_memberships(&world, Known::Scanned(&BTreeSet::new()), "after the second scan").await;
    let permissions = membership(&world, &users[0]).await.and_then(|found| found.permissions);
    assert_eq!(permissions, Some(keys(&["change"])));
    // Two permissions, and the role that had both.
    assert_eq!(run.memberships.map(|found| found.directory_changed), Some(3));
    let run = reconcile(&world).await;
    assert_eq!(run.memberships.map(|found| found.directory_changed), Some(0));
}

async fn a_key_that_moves_to_another_role_during_a_scan_changes_no_member(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    let [one, other] =
        ["one", "other"].map(|key| world.kinde.create_role(RoleEdit::keyed(key)).expect("new").id);
    join(&world, &ada, &["one"]);
    world.deliver(world.events()).await;
    reconcile(&world).await;
    // The list of members is slow; meanwhile both roles get the key of the other.
    let held = world.kinde.hold("members", 1);
    let before = world.kinde.requests("members");
    let swap = async {
        until_requested(&world, "members", before).await;
        for (id, key) in [(&one, "between"), (&other, "one"), (&one, "other")] {
            world.kinde.update_role(id, RoleEdit::keyed(key)).expect("there");
        }
        drop(held);
    };
    let (run, ()) = tokio::join!(reconcile(&world), swap);
    assert_eq!(run.memberships.map(|found| found.changed), Some(0));
    world.kinde.clear_faults();
    reconcile(&world).await;
    assert_memberships(&world, Known::Scanned(&BTreeSet::new()), "after the next scan").await;
}

async fn an_empty_list_of_roles_or_organizations_deletes_nothing(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    join(&world, &ada, &["admin"]);
    world.deliver(world.events()).await;
    reconcile(&world).await;
    for route in ["roles", "organizations"] {
        world.kinde.set_fault(Fault::always(FaultKind::EmptyList).on(route));
    }
    reconcile(&world).await;
    assert_eq!(roles_of(&world, &ada).await, Some(keys(&["admin"])));
    let stored = directory::list(&*world.fresh.store).await.expect("the store answers").stored;
    assert!(stored.values().all(|stored| stored.entry.is_live()));
}

async fn many_deletions_of_one_kind_are_held_until_an_operator_approves_them(fresh: Fresh) {
    let world = World::new(fresh).await;
    let kinde = &world.kinde;
    world.import(1);
    let keyed = |prefix: &str, n: usize| RoleEdit::keyed(&format!("{prefix}{n}"));
    let permissions: Vec<String> =
        (0..30).map(|n| kinde.create_permission(keyed("may", n)).expect("new").id).collect();
    let roles: Vec<String> = (0..30).map(|n| kinde.create_role(keyed("role", n)).expect("new").id).collect();
    reconcile(&world).await;
    permissions[..20].iter().for_each(|id| kinde.delete_permission(id).map(drop).expect("there"));
    roles[..20].iter().for_each(|id| kinde.delete_role(id).map(drop).expect("there"));
    let live = async |ids: &[String]| {
        let stored = directory::list(&*world.fresh.store).await.expect("the store answers").stored;
        ids.iter().filter(|id| stored[*id].entry.is_live()).count()
    };
    let held = reconcile(&world).await;
    assert_eq!(held.tally.of(DriftKind::RemovalHeld), 40, "{held:?}");
    assert_eq!((live(&permissions).await, live(&roles).await), (30, 30));
    // An incomplete list proves nothing about an older event.
    let again = reconcile(&world).await;
    assert_eq!(again.tally.of(DriftKind::RemovalHeld), 40, "{again:?}");
    world.later().await;
    let approve = RunMode::Approve(again.id);
    let approved = reconciler(&world).run(approve, &|_| {}, &CancellationToken::new()).await;
    assert_eq!(approved.expect("Kinde answers").tally.of(DriftKind::RemovalHeld), 0);
    assert_eq!((live(&permissions).await, live(&roles).await), (10, 10));
}

async fn events_about_organizations_and_permissions_change_their_members_without_a_read(fresh: Fresh) {
    let world = World::new(fresh).await;
    let kinde = &world.kinde;
    let edit = OrganizationEdit {
        code: Some("org_1".into()),
        name: Some("One".into()),
        ..OrganizationEdit::default()
    };
    kinde.create_organization(edit).expect("a new code");
    let admin = kinde.create_role(RoleEdit::keyed("admin")).expect("new").id;
    let [given, own] =
        ["given", "own"].map(|key| kinde.create_permission(RoleEdit::keyed(key)).expect("new").id);
    kinde.set_role_permissions(&admin, std::slice::from_ref(&given), &[]).expect("there");
    let ada = world.import(1).remove(0);
    kinde.add_to_organization(&ada, "org_1", &keys(&["admin"]), &keys(&["own"])).expect("a user");
    let mut delivered = 0;
    deliver_new(&world, &mut delivered).await;
    reconcile(&world).await;
    let shown = async || membership(&world, &ada).await.map(|found| (found.name, found.permissions));
    assert_eq!(shown().await, Some((Some("One".into()), Some(keys(&["given", "own"])))));
    let renamed = OrganizationEdit { name: Some("First".into()), ..OrganizationEdit::default() };
    kinde.update_organization("org_1", renamed).expect("there");
    kinde.update_permission(&given, RoleEdit::keyed("gave")).expect("there");
    kinde.delete_permission(&own).expect("there");
    let config = projector::Config { check_roles: true, ..projector::Config::default() };
    world.deliver_with(world.events().split_off(delivered), config).await;
    assert_eq!(shown().await, Some((Some("First".into()), Some(keys(&["gave"])))), "{}", world.fresh.name);
    let pending = PendingChecks::load(&*world.fresh.store).await.expect("the store answers");
    assert!(pending.is_empty(), "the events contain everything: {pending:?}");
}

async fn roles_are_found_by_their_current_key(fresh: Fresh) {
    let world = World::new(fresh).await;
    let store = &*world.fresh.store;
    let role = |key: &str| world.kinde.create_role(RoleEdit::keyed(key)).expect("a new key").id;
    let (admin, longer) = (role("admin"), role("admin/eu"));
    let mut delivered = 0;
    deliver_new(&world, &mut delivered).await;
    let found = async |key: &str| directory::roles_with_key(store, key).await.expect("the store answers");
    assert_eq!((found("admin").await, found("admin/eu").await), (vec![admin.clone()], vec![longer]));
    assert_eq!(found("adm").await, Vec::<String>::new());
    world.kinde.update_role(&admin, RoleEdit::keyed("owner")).expect("there");
    let second = role("admin");
    deliver_new(&world, &mut delivered).await;
    assert_eq!((found("owner").await, found("admin").await), (vec![admin.clone()], vec![second.clone()]));
    world.kinde.delete_role(&second).expect("there");
    world.kinde.update_role(&admin, RoleEdit::keyed("admin")).expect("there");
    reconcile(&world).await;
    let (mut now, mut both) = (found("admin").await, vec![admin, second]);
    now.sort();
    both.sort();
    assert_eq!((found("owner").await, now), (Vec::new(), both), "deleted ones too");
}
