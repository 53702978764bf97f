//! kinsync's own records: a record of another version, or one that an operator changed, is refused and never read as empty.

use kinsync_core::UserId;
use kinsync_engine::internal::{
    pending_checks::PendingChecks,
    reconcile::{
        self,
        record::{self, Run},
    },
    state_records,
    store::Error,
};
use serde_json::{Value, json};

use crate::{
    reconcile::World,
    stores::{Fresh, on_every_store},
};

on_every_store! {
    a_record_of_another_version_is_refused_by_name_until_it_is_reset
    a_run_of_another_version_hides_no_other_run_and_stays_as_it_is
}

async fn a_record_of_another_version_is_refused_by_name_until_it_is_reset(fresh: Fresh) {
    let store = &*fresh.store;
    for key in reconcile::state_keys() {
        for (revision, unusable) in [
            json!({ "format": 2, "term": 0, "value": [] }),
            json!({ "users": {} }),
            json!("{ cut in the mid"),
            json!(null),
        ]
        .into_iter()
        .enumerate()
        {
            let revision = i64::try_from(revision).expect("a few");
            assert!(store.put_state(key.name, &unusable, revision).await.expect("it answers"));
            let refused = state_records::check(store, key).await;
            let Err(Error::Refused { hint, .. }) = refused else {
                panic!("{}: {unusable}: {refused:?}", key.name)
            };
            let way_out = format!("kinsync state reset {}", key.name);
            assert!(hint.contains(&way_out) && hint.contains("run the version"), "{hint}");
        }
        assert!(state_records::reset(store, key).await.expect("it answers"));
        assert!(state_records::check(store, key).await.expect("it is empty"));
    }
    // A value that the format does not allow.
    let unusable = json!({ "format": 1, "term": 3, "value": { "users": 5, "scan": null } });
    assert!(store.put_state("reconcile.checks", &unusable, 5).await.expect("it answers"));
    let user = UserId::parse("kp_ada").expect("an id");
    let refused = PendingChecks::request(store, std::slice::from_ref(&user)).await;
    assert!(matches!(refused, Err(Error::Refused { .. })), "{}: {refused:?}", fresh.name);
    assert_eq!(
        store.state("reconcile.checks").await.expect("it answers").map(|saved| saved.value),
        Some(unusable)
    );
}

async fn a_run_of_another_version_hides_no_other_run_and_stays_as_it_is(fresh: Fresh) {
    let world = World::new(fresh).await;
    world.import(2);
    let ids: Vec<String> = [world.reconcile().await, world.reconcile().await].map(|run| run.id).into();
    let store = &*world.fresh.store;
    let saved = store.state("reconcile.runs").await.expect("it answers").expect("stored");
    let mut value = saved.value;
    value["value"][0]["format"] = json!(2);
    value["value"][0]["mode"] = json!({ "in": "another way" });
    let other: Value = value["value"][0].clone();
    assert!(store.put_state("reconcile.runs", &value, saved.revision).await.expect("it answers"));
    let third = world.reconcile().await.id;
    let history = record::history(store).await.expect("it answers");
    let known: Vec<&str> = history.runs.iter().map(|run: &Run| run.id.as_str()).collect();
    assert_eq!(known, [&*third, &*ids[0]], "{}", world.fresh.name);
    assert_eq!(history.undecodable, [ids[1].as_str()]);
    let saved = store.state("reconcile.runs").await.expect("it answers").expect("stored");
    assert_eq!(saved.value["value"][1], other, "the version that wrote it can still read it");
}
