//! The properties of users at Kinde, which no event announces, and in the store: on both stores, against the emulator.

use std::{collections::BTreeMap, time::Duration};

use kinde_emulator::{Fault, FaultKind, PropertyEdit};
use kinsync_core::{Field, Micros, Observation, Profile, Properties, Source, UserId, Value, Version, What};
use kinsync_engine::internal::{
    apply::apply,
    reconcile::{
        Config, PropertyConfig, Reconciler,
        record::{DriftKind, Run, RunMode},
    },
};
use tokio_util::sync::CancellationToken;

use crate::{
    reconcile::{World, quick},
    stores::{Fresh, on_every_store},
};

on_every_store! {
    properties_are_absent_until_a_scan_reads_them_and_follow_each_change
    properties_are_compared_at_their_own_interval
    all_public_properties_are_mirrored_and_a_private_one_by_its_key_only
    without_the_scope_users_are_compared_and_the_run_names_the_scope
    a_late_read_of_properties_does_not_replace_a_newer_one
    a_check_of_one_user_compares_its_properties
    values_that_the_search_lacks_and_single_reads_find_stay
}

fn reconciler(world: &World, keys: &[&str], every: Duration) -> Reconciler {
    let keys = keys.iter().map(|key| (*key).to_owned()).collect();
    world.reconciler(2, Config { properties: PropertyConfig { keys, every }, ..quick() })
}

async fn reconcile(world: &World, keys: &[&str], every: Duration) -> Run {
    world.later().await;
    let reconciler = reconciler(world, keys, every);
    let run = reconciler.run(RunMode::Reconcile, &|_| {}, &CancellationToken::new()).await;
    run.expect("Kinde and the store answer")
}

/// Properties are compared by every scan.
const ALWAYS: Duration = Duration::ZERO;

fn set(world: &World, user: &str, values: &[(&str, Option<&str>)]) {
    let values = values.iter().map(|(key, value)| ((*key).to_owned(), value.map(ToOwned::to_owned)));
    world.kinde.set_properties(user, values).expect("a user");
}

async fn properties(world: &World, user: &str) -> Option<BTreeMap<String, String>> {
    world.documents().await.remove(user).expect("stored").properties
}

fn map(values: &[(&str, &str)]) -> BTreeMap<String, String> {
    values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

async fn properties_are_absent_until_a_scan_reads_them_and_follow_each_change(fresh: Fresh) {
    let world = World::new(fresh).await;
    let users = world.import(5);
    let (ada, bob) = (&users[0], &users[1]);
    set(&world, ada, &[("plan", Some("pro")), ("tier", Some("gold")), ("other", Some("x"))]);
    let run = reconcile(&world, &[], ALWAYS).await;
    assert_eq!((run.properties, properties(&world, ada).await), (None, None));
    let keys = ["plan", "tier"];
    let run = reconcile(&world, &keys, ALWAYS).await;
    let found = run.properties.expect("compared");
    assert_eq!((found.users, found.changed, found.not_compared), (5, 5, None));
    assert_eq!((run.tally.of(DriftKind::FilledIn), run.tally.missed()), (5, 0), "no event is missing");
    assert_eq!(properties(&world, ada).await, Some(map(&[("plan", "pro"), ("tier", "gold")])));
    assert_eq!(properties(&world, bob).await, Some(map(&[])), "known to have none");
    let revisions = async || {
        let rows = [world.row(ada).await, world.row(bob).await];
        rows.map(|row| row.revision)
    };
    let before = revisions().await;
    let run = reconcile(&world, &keys, ALWAYS).await;
    assert_eq!(run.properties.expect("compared").changed, 0);
    assert_eq!(revisions().await, before, "without drift nothing is written");
    set(&world, ada, &[("plan", Some("free")), ("tier", None)]);
    set(&world, bob, &[("tier", Some("silver"))]);
    let run = reconcile(&world, &keys, ALWAYS).await;
    assert_eq!(run.properties.expect("compared").changed, 2);
    assert_eq!(properties(&world, ada).await, Some(map(&[("plan", "free")])));
    assert_eq!(properties(&world, bob).await, Some(map(&[("tier", "silver")])));
    reconcile(&world, &["plan"], ALWAYS).await;
    assert_eq!(properties(&world, bob).await, Some(map(&[])), "a key that is no longer named disappears");
    assert_eq!(properties(&world, ada).await, Some(map(&[("plan", "free")])));
    let run = reconcile(&world, &[], ALWAYS).await;
    assert_eq!(run.properties.expect("compared once more").changed, 1);
    assert_eq!(properties(&world, ada).await, Some(map(&[])), "also the last one");
    assert_eq!(reconcile(&world, &[], ALWAYS).await.properties, None);
}

async fn properties_are_compared_at_their_own_interval(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    let day = Duration::from_hours(24);
    assert!(reconcile(&world, &["plan"], day).await.properties.is_some());
    set(&world, &ada, &[("plan", Some("pro"))]);
    assert_eq!(reconcile(&world, &["plan"], day).await.properties, None);
    assert_eq!(properties(&world, &ada).await, Some(map(&[])));
    assert!(reconcile(&world, &["plan"], ALWAYS).await.properties.is_some());
    assert!(
        reconcile(&world, &["plan", "tier"], day).await.properties.is_some(),
        "another key is due at once"
    );
    assert_eq!(properties(&world, &ada).await, Some(map(&[("plan", "pro")])));
}

async fn all_public_properties_are_mirrored_and_a_private_one_by_its_key_only(fresh: Fresh) {
    let world = World::new(fresh).await;
    let ada = world.import(1).remove(0);
    let private = PropertyEdit { key: "salary".into(), is_private: Some(true), ..PropertyEdit::default() };
    world.kinde.create_property(private).expect("a new key");
    set(&world, &ada, &[("a", Some("1")), ("b", Some("2")), ("c", Some("3")), ("salary", Some("4"))]);
    reconcile(&world, &["*"], ALWAYS).await;
    assert_eq!(properties(&world, &ada).await, Some(map(&[("a", "1"), ("b", "2"), ("c", "3")])));
    reconcile(&world, &["b", "salary"], ALWAYS).await;
    assert_eq!(properties(&world, &ada).await, Some(map(&[("b", "2"), ("salary", "4")])));
}

async fn without_the_scope_users_are_compared_and_the_run_names_the_scope(fresh: Fresh) {
    let scopes = vec!["read:users".to_owned()];
    let world =
        World::with(fresh, kinde_emulator::Config { scopes, ..kinde_emulator::Config::default() }).await;
    let ada = world.import(1).remove(0);
    let run = reconcile(&world, &["*"], ALWAYS).await;
    let reason = run.properties.as_ref().and_then(|found| found.not_compared.clone()).expect("a reason");
    assert!(reason.contains("read:properties"), "{reason}");
    assert!(run.is_complete());
    assert_eq!(properties(&world, &ada).await, None, "unknown is absent");
    let again = reconcile(&world, &["*"], Duration::from_hours(24)).await;
    assert!(again.properties.is_some(), "a failed comparison is due at the next scan");
}

async fn a_late_read_of_properties_does_not_replace_a_newer_one(fresh: Fresh) {
    let store = &fresh.store;
    let read = |at: i64, plan: Option<&str>| {
        let version = Version::snapshot(Micros(at), "");
        let values = [("plan".to_owned(), plan.map(ToOwned::to_owned))];
        let value = Value::Properties(Properties::read(values, &version));
        let user = UserId::parse("kp_1").expect("an id");
        let what = What::Fields(Profile::new().with(Field::Properties, value));
        Observation { user, version, source: Source::Reconcile, what }
    };
    for (at, plan, shown) in [
        (2, Some("pro"), Some("pro")),
        (1, Some("free"), Some("pro")),
        (3, None, None),
        (2, Some("pro"), None),
    ] {
        let applied = apply(&**store, [read(at, plan)], Micros(1)).await;
        applied.expect("the store answers");
        let row =
            store.load(&[UserId::parse("kp_1").expect("an id")]).await.expect("the store answers").remove(0);
        let document = row.expect("stored").document();
        assert_eq!(document.properties.expect("read").get("plan").map(String::as_str), shown);
    }
}

async fn a_check_of_one_user_compares_its_properties(fresh: Fresh) {
    let world = World::new(fresh).await;
    let users = world.import(2);
    let keys = ["plan", "tier"];
    reconcile(&world, &keys, ALWAYS).await;
    for user in &users {
        set(&world, user, &[("plan", Some("pro")), ("other", Some("x"))]);
    }
    world.later().await;
    let user = [UserId::parse(&users[0]).expect("an id")];
    let tally = reconciler(&world, &keys, ALWAYS).check(&user).await.expect("Kinde answers");
    assert_eq!(tally.of(DriftKind::FilledIn), 1);
    assert_eq!(properties(&world, &users[0]).await, Some(map(&[("plan", "pro")])), "{}", world.fresh.name);
    assert_eq!(properties(&world, &users[1]).await, Some(map(&[])), "the other one was not read");
    set(&world, &users[0], &[("plan", None)]);
    world.later().await;
    world.kinde.set_fault(Fault::always(FaultKind::Status { status: 403 }).on("properties"));
    reconciler(&world, &keys, ALWAYS).check(&user).await.expect("a check needs no scope of properties");
    assert_eq!(properties(&world, &users[0]).await, Some(map(&[("plan", "pro")])));
    world.kinde.clear_faults();
    set(&world, &users[0], &[("plan", Some("pro"))]);
    world.kinde.set_fault(Fault::times(FaultKind::NoProperties, 1).on("properties"));
    let tally = reconciler(&world, &keys, ALWAYS).check(&user).await.expect("Kinde answers");
    assert_eq!(tally.of(DriftKind::Undetermined), 1, "one read lacks them by mistake");
    assert_eq!(properties(&world, &users[0]).await, Some(map(&[("plan", "pro")])));
    set(&world, &users[0], &[("plan", None)]);
    reconciler(&world, &keys, ALWAYS).check(&user).await.expect("Kinde answers");
    assert_eq!(properties(&world, &users[0]).await, Some(map(&[])));
}

async fn values_that_the_search_lacks_and_single_reads_find_stay(fresh: Fresh) {
    let world = World::new(fresh).await;
    let users = world.import(5);
    for user in &users {
        set(&world, user, &[("plan", Some("pro"))]);
    }
    let day = Duration::from_hours(24);
    reconcile(&world, &["plan"], day).await;
    world.kinde.set_fault(Fault::always(FaultKind::NoProperties).on("search"));
    let run = reconcile(&world, &["plan"], ALWAYS).await;
    for user in &users {
        assert_eq!(properties(&world, user).await, Some(map(&[("plan", "pro")])), "{}", world.fresh.name);
    }
    let reason = run.properties.and_then(|found| found.not_compared).expect("a reason");
    assert!(reason.contains("single reads find"), "{reason}");
    for status in [400, 401, 403, 404] {
        world.later().await;
        world.kinde.set_fault(Fault::always(FaultKind::Status { status }).on("properties"));
        let run = reconcile(&world, &["plan"], ALWAYS).await;
        assert_eq!(properties(&world, &users[0]).await, Some(map(&[("plan", "pro")])), "{status}");
        let reason = run.properties.and_then(|found| found.not_compared).expect("a reason");
        assert!(reason.contains("no single read") || status == 401, "{status}: {reason}");
    }
    world.kinde.clear_faults();
    let own = reconcile(&world, &["plan", "tier"], day).await;
    assert!(own.properties.is_some_and(|found| found.not_compared.is_none()), "compared again");
    for user in &users {
        set(&world, user, &[("plan", None)]);
    }
    reconcile(&world, &["plan"], ALWAYS).await;
    assert_eq!(properties(&world, &users[0]).await, Some(map(&[])), "really removed");
}
