//! Complete lists of organizations, roles and permissions as proofs for older events: what they lack did not exist, and when they are
//! no proof. On both stores, against the emulator.

use std::collections::{BTreeMap, BTreeSet};

use kinde_emulator::{Fault, FaultKind, OrganizationEdit, RoleEdit, config::Generated};
use kinsync_engine::internal::{
    directory,
    queue::Entry,
    reconcile::{
        Error,
        record::{RunMode, Tally},
    },
};
use tokio_util::sync::CancellationToken;

use crate::{
    rebuild::assert_explained,
    reconcile::{World, until_requested},
    roles::{join, keys, reconcile, reconciler, roles as roles_of, with_roles},
    roles_truth::{Known, assert_memberships},
    stores::{Fresh, on_every_store},
};

on_every_store! {
    an_old_event_about_an_object_that_a_list_lacked_restores_nothing
    what_only_an_older_event_of_a_user_names_did_not_exist_at_the_list
    an_empty_list_is_no_proof_for_what_an_older_event_names
    a_list_that_lacks_an_organization_by_mistake_is_no_proof
    a_reset_record_makes_no_older_event_a_proof
    a_resumed_backfill_makes_no_list_a_proof
    a_failed_confirmation_of_a_list_leaves_the_comparison_whole
}

async fn an_old_event_about_an_object_that_a_list_lacked_restores_nothing(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    world.kinde.create_role(RoleEdit::keyed("member")).expect("new");
    let lost = world.kinde.create_role(RoleEdit::keyed("admin")).expect("new").id;
    join(&world, &ada, &["admin"]);
    let events = world.events();
    world.kinde.delete_role(&lost).expect("there");
    reconcile(&world).await;
    world.deliver(events).await;
    let stored = directory::list(&*world.fresh.store).await.expect("the store answers").stored;
    assert!(!stored[&lost].entry.is_live());
    assert_eq!(roles_of(&world, &ada).await, Some(Vec::new()));
}

async fn what_only_an_older_event_of_a_user_names_did_not_exist_at_the_list(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    // Only the event of the user arrives.
    let joined = |code: &str| {
        let edit = OrganizationEdit { code: Some(code.to_owned()), ..OrganizationEdit::default() };
        world.kinde.create_organization(edit).expect("a new code");
        world.kinde.add_to_organization(&ada, code, &keys(&["admin"]), &[]).expect("a user");
        let is_of_user = |entry: &Entry| {
            world.kinde.event(&entry.event_id).is_some_and(|event| event.kind == "user.updated")
        };
        world.events().into_iter().rfind(is_of_user).expect("an event")
    };
    world.kinde.create_role(RoleEdit::keyed("admin")).expect("new");
    let live = |stored: &BTreeMap<String, directory::Stored>, code: &str| {
        stored.get(code).map(|stored| stored.entry.is_live())
    };
    let read = async || {
        let stored = directory::list(&*world.fresh.store).await.expect("the store answers").stored;
        stored.into_iter().collect::<BTreeMap<_, _>>()
    };
    let shown = async || {
        let document = world.documents().await.remove(&ada).expect("stored");
        let codes = document.organizations.expect("listed").into_iter().map(|one| one.code);
        codes.collect::<BTreeSet<String>>()
    };
    joined("org_1");
    world.deliver(world.events()).await;
    let gone = joined("org_gone");
    world.kinde.delete_organization("org_gone").expect("there");
    world.later().await;
    // The run finds the user unchanged, and ends after the list of organizations: it proves nothing of the user.
    let stop = CancellationToken::new();
    let (held, before) = (world.kinde.hold("members", 1), world.kinde.requests("members"));
    let stopped = async {
        until_requested(&world, "members", before).await;
        stop.cancel();
        drop(held);
    };
    let scanner = reconciler(&world);
    let (run, ()) = tokio::join!(scanner.run(RunMode::Reconcile, &|_| {}, &stop), stopped);
    run.expect_err("it was stopped");
    world.deliver(vec![gone.clone()]).await;
    assert_explained(&*world.fresh.store, "after the older event").await;
    assert_eq!(live(&read().await, "org_gone"), Some(false), "{}", world.fresh.name);
    let is_shown = shown().await;
    assert!(is_shown.contains("org_1") && !is_shown.contains("org_gone"), "{is_shown:?}");
    reconcile(&world).await;
    assert_explained(&*world.fresh.store, "after a run").await;
    world.later().await;
    let new = joined("org_new");
    world.deliver(vec![new.clone(), gone.clone()]).await;
    // Of a newer one nothing follows: no list could contain it.
    assert_eq!(live(&read().await, "org_new"), None);
    let is_shown = shown().await;
    assert!(is_shown.contains("org_new") && !is_shown.contains("org_gone"), "{is_shown:?}");
    assert_explained(&*world.fresh.store, "after a newer event").await;

    // Between two lists it exists again, and only another event of the user tells it.
    let again = joined("org_gone");
    let events: Vec<Entry> = world.events();
    world.kinde.delete_organization("org_gone").expect("there");
    world.kinde.delete_organization("org_new").expect("there");
    reconcile(&world).await;
    let later = events.into_iter().filter(|entry| entry.event_id == again.event_id);
    world.deliver(later.chain([new]).collect()).await;
    assert_eq!((live(&read().await, "org_gone"), live(&read().await, "org_new")), (Some(false), Some(false)));
    let is_shown = shown().await;
    assert!(!is_shown.contains("org_new") && !is_shown.contains("org_gone"), "{is_shown:?}");
    assert_explained(&*world.fresh.store, "after the second list").await;
}

/// Returns whether an organization, a role or a permission exists; `None` without a record.
async fn is_live(world: &World, id: &str) -> Option<bool> {
    let stored = directory::find(&*world.fresh.store, id).await.expect("the store answers");
    stored.map(|stored| stored.entry.is_live())
}

/// Returns the event of the user about its organizations.
fn joined(world: &World, user: &str, code: &str) -> Entry {
    world.kinde.add_to_organization(user, code, &[], &[]).expect("a user");
    world.events().pop().expect("an event")
}

async fn an_empty_list_is_no_proof_for_what_an_older_event_names(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    let late = joined(&world, &ada, "org_1");
    // No page of users names an organization, and no record an object that the list lacks.
    for member in world.kinde.user(&ada).expect("there").organizations {
        world.kinde.remove_from_organization(&ada, &member.code).expect("a member");
    }
    world.kinde.set_fault(Fault::always(FaultKind::EmptyList).on("organizations"));
    reconcile(&world).await;
    world.deliver(vec![late]).await;
    assert_eq!(is_live(&world, "org_1").await, None, "{}", world.fresh.name);
}

async fn a_list_that_lacks_an_organization_by_mistake_is_no_proof(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    for code in ["org_1", "org_2", "org_3"] {
        let edit = OrganizationEdit { code: Some(code.to_owned()), ..OrganizationEdit::default() };
        world.kinde.create_organization(edit).expect("a new code");
    }
    let scan = async || {
        world.later().await;
        let scanner = world.reconciler(2, with_roles());
        let run = scanner.run(RunMode::Reconcile, &|_| {}, &CancellationToken::new()).await;
        run.expect("Kinde and the store answer");
    };
    let late = joined(&world, &ada, "org_2");
    world.kinde.remove_from_organization(&ada, "org_2").expect("a member");
    // The second page of the first list begins too late, and no page of users names the organization.
    let drift = FaultKind::PaginationDrift { by: 1 };
    world.kinde.set_fault(Fault::times(drift.clone(), 1).on("organizations"));
    scan().await;
    assert_eq!(is_live(&world, "org_3").await, Some(true), "listed");
    assert_eq!(is_live(&world, "org_2").await, None, "not listed");
    world.deliver(vec![late]).await;
    assert_eq!(is_live(&world, "org_2").await, None, "{}: a second list has it", world.fresh.name);

    let late = joined(&world, &ada, "org_2");
    world.kinde.set_fault(Fault::always(drift).on("organizations"));
    scan().await;
    world.deliver(vec![late]).await;
    assert_eq!(is_live(&world, "org_2").await, None, "{}: a page of users has it", world.fresh.name);
    let shown = async || {
        let document = world.documents().await.remove(&ada).expect("stored");
        document.organizations.expect("listed").into_iter().any(|one| one.code == "org_2")
    };
    assert!(shown().await, "{}", world.fresh.name);
    world.kinde.clear_faults();
    scan().await;
    assert_memberships(&world, Known::Scanned(&BTreeSet::new()), "after a complete scan").await;
}

async fn a_reset_record_makes_no_older_event_a_proof(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    join(&world, &ada, &["admin"]);
    world.deliver(world.events()).await;
    let gone = world.kinde.create_role(RoleEdit::keyed("gone")).expect("new").id;
    let created = world.events().pop().expect("an event");
    world.kinde.delete_role(&gone).expect("there");
    // Its event arrives after the list and the reset.
    join(&world, &ada, &["admin", "member"]);
    let late = world.events().pop().expect("an event");
    world.later().await;
    reconcile(&world).await;
    let key = format!("{}org_1", directory::PREFIX);
    assert!(directory::reset(&*world.fresh.store, &key).await.expect("the store answers"));
    world.deliver(vec![created, late]).await;
    assert_eq!(is_live(&world, &gone).await, Some(false), "the list of roles is still a proof");
    assert_eq!(roles_of(&world, &ada).await, Some(keys(&["admin", "member"])), "{}", world.fresh.name);
    let stored = directory::list(&*world.fresh.store).await.expect("the store answers").stored;
    assert!(stored.get("org_1").is_none_or(|organization| organization.entry.is_live()), "{stored:?}");
    reconcile(&world).await;
    assert_memberships(&world, Known::Scanned(&BTreeSet::new()), "after the next scan").await;
}

async fn a_resumed_backfill_makes_no_list_a_proof(fresh: Fresh) {
    let generated = Generated { users: 2_500, seed: 3, ..Generated::default() };
    let world = World::with(fresh, kinde_emulator::Config { generated, ..Default::default() }).await;
    let ada = world.kinde.users().first().expect("generated").id.clone();
    for number in 1..=21 {
        let code = Some(format!("org_{number:02}"));
        world
            .kinde
            .create_organization(OrganizationEdit { code, ..OrganizationEdit::default() })
            .expect("new");
    }
    // Both lists lack it, and the user is on a page before the cut.
    let late = joined(&world, &ada, "org_20");
    world.later().await;
    world.kinde.set_fault(Fault::always(FaultKind::PaginationDrift { by: 1 }).on("organizations"));
    let scanner = world.reconciler(20, with_roles());
    let stop = CancellationToken::new();
    let cut = |_: &Tally| stop.cancel();
    let outcome = scanner.run(RunMode::Backfill, &cut, &stop).await;
    assert!(matches!(outcome, Err(Error::Stopped)), "{outcome:?}");
    let run = scanner.run(RunMode::Backfill, &|_| {}, &CancellationToken::new()).await;
    assert_eq!(run.expect("Kinde and the store answer").tally.users, 2_500);
    assert_eq!(is_live(&world, "org_21").await, Some(true), "listed");
    assert_eq!(is_live(&world, "org_20").await, None, "not listed");
    world.deliver(vec![late]).await;
    assert_eq!(is_live(&world, "org_20").await, None, "{}", world.fresh.name);
}

async fn a_failed_confirmation_of_a_list_leaves_the_comparison_whole(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    join(&world, &ada, &["admin"]);
    let late = joined(&world, &ada, "org_late");
    world.kinde.remove_from_organization(&ada, "org_late").expect("a member");
    world.kinde.delete_organization("org_late").expect("there");
    world.later().await;
    let (held, before) = (world.kinde.hold("organizations", 1), world.kinde.requests("organizations"));
    let fail_the_second = async {
        until_requested(&world, "organizations", before).await;
        let second = world.kinde.hold("organizations", 1);
        drop(held);
        until_requested(&world, "organizations", before + 1).await;
        world.kinde.set_fault(Fault::always(FaultKind::Status { status: 500 }).on("organizations"));
        drop(second);
    };
    let scanner = reconciler(&world);
    let stop = CancellationToken::new();
    let (run, ()) = tokio::join!(scanner.run(RunMode::Reconcile, &|_| {}, &stop), fail_the_second);
    run.expect("Kinde and the store answer");
    assert_eq!(
        roles_of(&world, &ada).await,
        Some(keys(&["admin"])),
        "{}: members are compared",
        world.fresh.name
    );
    world.deliver(vec![late]).await;
    assert_eq!(is_live(&world, "org_late").await, None, "the list is no proof");
}
