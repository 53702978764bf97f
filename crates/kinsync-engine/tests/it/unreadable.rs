//! Records and rows that this version cannot decode: each is named, changes no document, and stops no other.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bson::doc;
use kinsync_core::{
    Entry, Fact, Field, Micros, Observation, Organization, Profile, Source, Value, Version, What,
};
use kinsync_engine::internal::{
    apply::apply,
    directory::{self, Change, Kind},
    store::{Store, embedded::EmbeddedStore},
};
use serde_json::json;

use crate::{
    store_mongo::{store, users},
    store_rows::{get, id},
    stores::{Fresh, on_every_store},
};

on_every_store! {
    an_unreadable_record_of_a_role_changes_no_member_and_stops_nothing
}

fn version(at: i64) -> Version {
    Version::event(Micros(at), "e")
}

fn member(user: &str, at: i64, name: &str) -> Observation {
    let membership = Organization { roles: Some(vec!["r".into()]), ..Organization::new("org_1") };
    let what = Profile::new()
        .with(Field::FirstName, name)
        .with(Field::Organizations, Value::Organizations(vec![membership]));
    Observation { user: id(user), version: version(at), source: Source::Webhook, what: What::Fields(what) }
}

fn named(user: &str, at: i64, name: &str) -> Observation {
    let what = What::Fields(Profile::new().with(Field::FirstName, name));
    Observation { user: id(user), version: version(at), source: Source::Webhook, what }
}

fn role(key: &str, at: i64) -> Change {
    let entry = Entry::observed([(Fact::Key, Value::from(key))], &version(at));
    Change { kind: Kind::Role, id: "r".into(), entry }
}

async fn shown(store: &dyn Store, user: &str) -> (String, Vec<String>) {
    let document = get(store, user).await.unwrap().document();
    let roles = document.organizations.unwrap().remove(0).roles;
    (document.first_name.unwrap(), roles.unwrap())
}

async fn an_unreadable_record_of_a_role_changes_no_member_and_stops_nothing(fresh: Fresh) {
    let store = &*fresh.store;
    directory::observe(store, vec![role("admin", 1)]).await.unwrap();
    apply(store, [member("kp_ada", 1, "Ada")], Micros(1)).await.unwrap();
    let saved = store.state("directory/r").await.unwrap().unwrap();
    assert!(store.put_state("directory/r", &json!({ "format": 9 }), saved.revision).await.unwrap());
    let other = Change { id: "other".into(), ..role("owner", 2) };
    directory::observe(store, vec![role("member", 2), other]).await.unwrap();
    let applied = apply(store, [member("kp_ada", 2, "Augusta"), named("kp_eve", 2, "Eve")], Micros(2)).await;
    assert_eq!(applied.unwrap().changed.len(), 2);
    assert_eq!(shown(store, "kp_ada").await, ("Augusta".into(), vec!["admin".into()]));
    let all = directory::list(store).await.unwrap();
    assert_eq!(all.stored.keys().collect::<Vec<_>>(), ["other"]);
    let [unreadable] = all.unreadable.try_into().unwrap();
    assert!(unreadable.0.contains("kinsync state reset directory/r"), "{}", unreadable.0);
    assert!(directory::reset(store, "directory/r").await.unwrap());
    let changed = directory::observe(store, vec![role("member", 2)]).await.unwrap();
    assert!(changed, "documents are to be written");
    apply(store, [member("kp_ada", 3, "Augusta")], Micros(3)).await.unwrap();
    assert_eq!(shown(store, "kp_ada").await, ("Augusta".into(), vec!["member".into()]));
}

#[tokio::test]
async fn an_unreadable_directory_of_a_document_is_named_and_does_not_count_as_empty() {
    let store = store().await;
    directory::observe(&store, vec![role("admin", 1)]).await.unwrap();
    apply(&store, [member("kp_ada", 1, "Ada")], Micros(1)).await.unwrap();
    let before = users(&store).find_one(doc! {}).await.unwrap().unwrap();
    for damaged in [
        bson::bson!({ "versions": [], "entries": [{ "id": "r", "facts": [{ "fact": "key", "at": 7, "value": "null" }] }] }),
        bson::bson!(5),
    ] {
        let set = doc! { "$set": { "kinsync.directory": damaged } };
        users(&store).update_one(doc! { "kindeId": "kp_ada" }, set).await.unwrap();
        let observations = [named("kp_ada", 2, "Augusta"), named("kp_eve", 2, "Eve")];
        let applied = apply(&store, observations, Micros(2)).await.unwrap();
        let [(user, reason)] = applied.refused.try_into().unwrap();
        assert_eq!(user, id("kp_ada"));
        assert!(reason.contains("`kinsync.directory` of the document with `_id`"), "{reason}");
        assert!(reason.contains("remove the key"), "{reason}");
        let after = users(&store).find_one(doc! { "kindeId": "kp_ada" }).await.unwrap().unwrap();
        assert_eq!(after.get("organizations"), before.get("organizations"));
        assert!(get(&store, "kp_eve").await.is_some());
    }
    let unset = doc! { "$unset": { "kinsync.directory": 1 } };
    users(&store).update_one(doc! { "kindeId": "kp_ada" }, unset).await.unwrap();
    apply(&store, [named("kp_ada", 3, "Augusta")], Micros(3)).await.unwrap();
    assert_eq!(shown(&store, "kp_ada").await, ("Augusta".into(), vec!["admin".into()]));
}

#[tokio::test]
async fn an_unreadable_row_of_the_embedded_store_is_named_and_stops_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path()).unwrap();
    apply(&store, [named("kp_ada", 1, "Ada"), named("kp_eve", 1, "Eve")], Micros(1)).await.unwrap();
    let sqlite = rusqlite::Connection::open(folder.path().join("kinsync.sqlite")).unwrap();
    let damage =
        r#"UPDATE users SET state = '{"directory":{"versions":[],"entries":5}}' WHERE id = 'kp_ada'"#;
    assert_eq!(sqlite.execute(damage, []).unwrap(), 1);
    let observations = [named("kp_ada", 2, "Augusta"), named("kp_eve", 2, "Evelyn")];
    let applied = apply(&store, observations, Micros(2)).await.unwrap();
    let [(user, reason)] = applied.refused.try_into().unwrap();
    assert_eq!(user, id("kp_ada"));
    assert!(reason.contains("kp_ada in the embedded store cannot be decoded"), "{reason}");
    let eve = get(&store, "kp_eve").await.unwrap().document();
    assert_eq!(eve.first_name.as_deref(), Some("Evelyn"));
}
