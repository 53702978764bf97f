//! An entry of the log that was changed is reported and never used.

use bson::{Document, doc};
use kinsync_core::{Micros, UserState};
use kinsync_engine::internal::{
    rebuild::Mode,
    replay::{self, replay_one},
    store::{EventFilter, Store, embedded::EmbeddedStore},
};

use crate::{
    rebuild::{documents, id, named, observe, rebuild},
    store_mongo,
};

/// Ada, with two entries, and Bob.
async fn two_users(store: &dyn Store) -> String {
    observe(store, [named("kp_ada", 1, "Ada")]).await;
    observe(store, [named("kp_ada", 2, "Augusta"), named("kp_bob", 1, "Bob")]).await;
    let filter = EventFilter { user: Some("kp_ada".into()), limit: 9, ..EventFilter::default() };
    let mut entries = store.events(&filter).await.expect("the store answers").items;
    entries.sort_by_key(|entry| entry.at);
    assert_eq!(entries.len(), 2);
    let mut row =
        store.load(&[id("kp_ada")]).await.expect("the store answers").pop().flatten().expect("stored");
    row.state = UserState::default();
    store.write(&[row]).await.expect("the store answers");
    entries.remove(0).id
}

async fn assert_reports_damage(store: &dyn Store, entry: &str, where_: &str) {
    let found = rebuild(store, Mode::ReplaceUnexplained).await;
    let replayed = replay_one(store, entry, replay::Mode::Dry, Micros(9)).await.expect("the store answers");
    assert!(replayed.expect("in the log").skipped.contains_key(entry), "{where_}");
    let ids: Vec<&str> = found.damaged.iter().map(|one| one.id.as_str()).collect();
    assert_eq!(ids, [entry], "{where_}");
    let of_user: Vec<(&str, bool)> =
        found.differences.iter().map(|one| (one.user.as_str(), one.is_rebuilt)).collect();
    assert_eq!(of_user, [("kp_ada", false)], "{where_}: {found:?}");
    assert_eq!(documents(store).await["kp_ada"].first_name, None, "{where_}: the user is not written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_entry_in_mongodb_is_reported_and_never_used() {
    let store = store_mongo::store().await;
    let entry = two_users(&store).await;
    let events = store.database().expect("connected").collection::<Document>("user_events");
    let intact = events.find_one(doc! { "_id": &entry }).await.expect("it answers").expect("stored");
    let set = |key: &str, value: bson::Bson| doc! { "$set": { key: value } };
    let changes = [
        set("payload", r#"{"fields":{"firstName":{"text":"Eda"}}}"#.into()),
        set("type", "kinsync.check.reae".into()),
        set("source", "profile".into()),
        set("scheme", "kinsync.observatiom".into()),
        set("kinsync.receivedAt", 7_i64.into()),
        set("kinsync.at", 7_i64.into()),
        set("kinsync.version.at", 7_i64.into()),
        set("kinsync.version.rank", "event".into()),
        set("kinsync.version.tie", "h2".into()),
        set("kinsync.schema", 2.into()),
        set("kinsync.checksum", "00".into()),
        doc! { "$rename": { "kinsync.schema": "kinsync.schemb" } },
        doc! { "$unset": { "kinsync.checksum": 1 } },
        doc! { "$unset": { "kinsync.version": 1 } },
    ];
    for change in changes {
        events.update_one(doc! { "_id": &entry }, change.clone()).await.expect("it answers");
        assert_reports_damage(&store, &entry, &change.to_string()).await;
        events.replace_one(doc! { "_id": &entry }, &intact).await.expect("it answers");
    }
    assert_eq!(rebuild(&store, Mode::Replace).await.report.rebuilt, 1);
    assert_eq!(documents(&store).await["kp_ada"].first_name.as_deref(), Some("Augusta"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_entry_in_the_embedded_store_is_reported_and_never_used() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = EmbeddedStore::open(dir.path()).expect("an empty folder opens");
    let entry = two_users(&store).await;
    let sqlite = rusqlite::Connection::open(dir.path().join("kinsync.sqlite")).expect("it opens");
    for (change, back) in [
        ("payload = replace(payload, 'Ada', 'Eda')", "payload = replace(payload, 'Eda', 'Ada')"),
        ("received_at = received_at + 1", "received_at = received_at - 1"),
        (
            "version = replace(version, 'snapshot', 'event')",
            "version = replace(version, 'event', 'snapshot')",
        ),
        ("source = 'profile'", "source = 'reconcile'"),
        ("schema = 2", "schema = 1"),
    ] {
        let update = |change: &str| {
            let sql = format!("UPDATE events SET {change} WHERE event_id = ?1");
            assert_eq!(sqlite.execute(&sql, [&entry]).expect("it answers"), 1);
        };
        update(change);
        assert_reports_damage(&store, &entry, change).await;
        update(back);
    }
    assert_eq!(rebuild(&store, Mode::Replace).await.report.rebuilt, 1);
    assert_eq!(documents(&store).await["kp_ada"].first_name.as_deref(), Some("Augusta"));
}
