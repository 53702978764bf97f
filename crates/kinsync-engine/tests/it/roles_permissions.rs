//! The permissions of members: those of their roles and their own, after events about roles and after scans.

use kinde_emulator::{Emulator, Fault, FaultKind, RoleEdit, config};
use kinsync_core::UserId;
use kinsync_engine::internal::{
    pending_checks::PendingChecks,
    projector,
    queue::Entry,
    reconcile::{Config, record::RunMode},
};
use tokio_util::sync::CancellationToken;

use crate::{
    reconcile::World,
    roles::{join, keys, membership, reconcile, reconciler, roles, with_role, with_roles},
    stores::{Fresh, on_every_store},
};

on_every_store! {
    the_permissions_of_more_members_than_a_scan_reads_are_read_by_the_next_ones
    an_event_about_a_role_reads_what_it_gives_and_the_members_that_this_concerns
    a_role_that_one_read_does_not_find_stays_and_requests_a_scan
    permissions_do_not_outlive_the_role_that_gave_them
    direct_permissions_are_known_after_a_change_of_roles
    a_direct_permission_that_a_role_gave_too_is_read_again_when_the_role_loses_it
    a_check_shows_a_direct_permission_again_that_a_role_has_lost
    a_check_stores_no_permission_of_a_role_as_the_members_own
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
    for (count, unknown) in [(2, 3), (4, 1), (5, 0)] {
        world.later().await;
        let run = reconciler.run(RunMode::Reconcile, &|_| {}, &CancellationToken::new()).await;
        let run = run.expect("Kinde and the store answer");
        assert_eq!(with_role(&world, "admin").await, 0, "the role itself is taken away at once");
        assert_eq!(known().await, count, "{}", world.fresh.name);
        let compared = run.memberships.expect("roles were compared");
        assert_eq!((compared.unknown_permissions, compared.not_compared), (unknown, None));
    }
    let revisions = async || {
        let mut revisions = Vec::new();
        for user in &users {
            revisions.push(world.row(user).await.revision);
        }
        revisions
    };
    let before = revisions().await;
    world.later().await;
    reconciler.run(RunMode::Reconcile, &|_| {}, &CancellationToken::new()).await.expect("they answer");
    assert_eq!(revisions().await, before, "rows that were read stay compared");
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

async fn direct_permissions_are_known_after_a_change_of_roles(fresh: Fresh) {
    permissions_do_not_outlive_the_role(fresh, config::UserPermissions::Direct).await;
}

async fn permissions_do_not_outlive_the_role_that_gave_them(fresh: Fresh) {
    permissions_do_not_outlive_the_role(fresh, config::UserPermissions::Effective).await;
}

/// A member with a role that gives `delete`, and with `read` of its own.
struct Ada {
    world: World,
    id: String,
    role: String,
    /// The id of `delete`.
    given: String,
}

async fn ada(fresh: Fresh, user_permissions: config::UserPermissions) -> Ada {
    let unknowns = config::Unknowns { user_permissions, ..config::Unknowns::default() };
    let world =
        World::with(fresh, kinde_emulator::Config { unknowns, ..kinde_emulator::Config::default() }).await;
    let kinde: &Emulator = &world.kinde;
    let role = kinde.create_role(RoleEdit::keyed("admin")).expect("new").id;
    let given = kinde.create_permission(RoleEdit::keyed("delete")).expect("new").id;
    kinde.set_role_permissions(&role, std::slice::from_ref(&given), &[]).expect("there");
    let id = world.import(1).remove(0);
    kinde.add_to_organization(&id, "org_1", &keys(&["admin"]), &keys(&["read"])).expect("a user");
    world.deliver(world.events()).await;
    reconcile(&world).await;
    Ada { world, id, role, given }
}

async fn permissions_do_not_outlive_the_role(fresh: Fresh, user_permissions: config::UserPermissions) {
    let Ada { world, id: ada, role: admin, given: delete } = ada(fresh, user_permissions).await;
    let kinde: &Emulator = &world.kinde;
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

async fn a_check_stores_no_permission_of_a_role_as_the_members_own(fresh: Fresh) {
    let Ada { world, id: ada, role: admin, .. } = ada(fresh, config::UserPermissions::Effective).await;
    let kinde: &Emulator = &world.kinde;
    world.later().await;
    reconciler(&world).check(&[UserId::parse(&ada).expect("an id")]).await.expect("Kinde answers");
    let shown = async || membership(&world, &ada).await.expect("a member");
    assert_eq!(shown().await.permissions, Some(keys(&["delete", "read"])));
    world.later().await;
    kinde.delete_role(&admin).expect("there");
    // Nothing reads the member again: the event alone decides.
    let is_deletion =
        |entry: &Entry| kinde.event(&entry.event_id).is_some_and(|event| event.kind == "role.deleted");
    let deletion: Vec<Entry> = world.events().into_iter().filter(is_deletion).collect();
    assert_eq!(deletion.len(), 1);
    world.deliver(deletion).await;
    let found = shown().await;
    assert_eq!((found.roles, found.permissions), (Some(Vec::new()), Some(keys(&["read"]))));
}
