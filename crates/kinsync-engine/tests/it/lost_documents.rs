//! Documents that an application deletes, or replaces without the sub-document `kinsync`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bson::{Bson, Document, doc};
use kinsync_core::{Field, Micros, Observation, Profile, UserDocument, What};
use kinsync_engine::internal::store::{Reloaded, Store as _, mongo::MongoStore};

use crate::{
    own_keys::{document, event, observe, profile},
    requests::Requests,
    store_mongo::{store, users},
    store_rows::{get, id, put, tombstone},
};

fn suspended(at: i64, is_suspended: bool) -> Observation {
    event("kp_ada", at, Profile::new().with(Field::IsSuspended, is_suspended))
}

/// The user as the next request finds it.
async fn on_request(store: &MongoStore) -> UserDocument {
    observe(store, [Observation { what: What::Seen(Micros(9)), ..event("kp_ada", 9, Profile::new()) }]).await;
    Requests::default().document(store, "kp_ada").await.unwrap()
}

#[tokio::test]
async fn a_user_stays_suspended_after_the_document_lost_its_metadata_or_was_deleted() {
    let store = store().await;
    observe(&store, [suspended(1, true)]).await;
    let lost = doc! { "kindeId": "kp_ada", "plan": "pro" };
    users(&store).replace_one(doc! {}, lost).await.unwrap();
    assert_eq!(on_request(&store).await.is_suspended, Some(true));
    users(&store).delete_many(doc! {}).await.unwrap();
    assert_eq!(on_request(&store).await.is_suspended, Some(true));
    observe(&store, [suspended(0, false)]).await;
    assert_eq!(on_request(&store).await.is_suspended, Some(true), "an older event changes nothing");
}

#[tokio::test]
async fn a_suspension_that_ended_does_not_return_with_the_next_loss() {
    let store = store().await;
    for (at, is_lost_before) in [(1, false), (4, true)] {
        observe(&store, [suspended(at, true)]).await;
        if is_lost_before {
            users(&store).delete_many(doc! {}).await.unwrap();
        }
        observe(&store, [suspended(at + 1, false)]).await;
        users(&store).delete_many(doc! {}).await.unwrap();
        assert_eq!(on_request(&store).await.is_suspended, Some(false));
    }
    let records = store.database().unwrap().collection::<Document>("kinsync_state");
    let count =
        async || records.count_documents(doc! { "_id": { "$gt": "lockout/", "$lt": "lockout0" } }).await;
    assert_eq!(count().await.unwrap(), 1);
    observe(&store, [event("kp_bob", 1, Profile::new().with(Field::IsSuspended, false))]).await;
    assert_eq!(count().await.unwrap(), 1, "a user that was never suspended has no record");
}

#[tokio::test]
async fn a_document_that_lost_its_metadata_is_rebuilt_and_loses_nothing() {
    let store = store().await;
    let fields = Profile::new().with(Field::FirstName, "Ada").with(Field::Username, "ada");
    observe(&store, [event("kp_ada", 1, fields)]).await;
    let replaced = doc! { "kindeId": "kp_ada", "firstName": "Ada", "username": "zed", "plan": "pro" };
    users(&store).replace_one(doc! {}, replaced).await.unwrap();
    let fields = Profile::new().with(Field::FirstName, "Augusta").with(Field::Username, "ada");
    observe(&store, [profile("kp_ada", 2), event("kp_ada", 3, fields)]).await;
    let found = document(&store).await;
    assert_eq!((found.get_str("username").unwrap(), found.get_str("plan").unwrap()), ("zed", "pro"));
    assert_eq!(found.get_str("firstName").unwrap(), "Augusta", "an equal value is kinsync's");
}

#[tokio::test]
async fn after_the_application_deletes_two_documents_only_the_live_user_returns() {
    let store = store().await;
    let created = |user: &str, at| event(user, at, Profile::new().with(Field::FirstName, "A"));
    let deleted = Observation { what: What::Deleted, ..created("kp_eve", 5) };
    observe(&store, [created("kp_ada", 1), created("kp_eve", 1), deleted]).await;
    users(&store).delete_many(doc! {}).await.unwrap();
    let seen = |user: &str| Observation { what: What::Seen(Micros(9)), ..created(user, 9) };
    observe(&store, [seen("kp_ada"), seen("kp_eve"), created("kp_eve", 2)]).await;
    assert!(get(&store, "kp_ada").await.unwrap().state.is_live());
    let eve = get(&store, "kp_eve").await.unwrap();
    assert!(!eve.state.is_live(), "{eve:?}");
    assert_eq!(eve.state.deleted_at(), Some(Micros(5)));
    // The application inserts a document of its own with the id.
    users(&store).delete_many(doc! {}).await.unwrap();
    users(&store).insert_one(doc! { "kindeId": "kp_eve", "plan": "pro" }).await.unwrap();
    observe(&store, [seen("kp_eve")]).await;
    assert!(!get(&store, "kp_eve").await.unwrap().state.is_live());
    // Two reads of Kinde restore the user, also after the next loss.
    let exists = Observation { what: What::Exists(Profile::new()), ..profile("kp_eve", 20) };
    observe(&store, [exists]).await;
    users(&store).delete_many(doc! {}).await.unwrap();
    observe(&store, [seen("kp_eve")]).await;
    assert!(get(&store, "kp_eve").await.unwrap().state.is_live());
}

#[tokio::test]
async fn a_tombstone_that_an_application_replaced_stays_one() {
    let store = store().await;
    let eve = put(&store, &tombstone("kp_eve")).await;
    let mut copy = users(&store).find_one(doc! { "kindeId": "kp_eve" }).await.unwrap().unwrap();
    copy.insert("plan", "pro");
    as_node_writes(&mut copy);
    users(&store).replace_one(doc! { "kindeId": "kp_eve" }, copy).await.unwrap();
    assert_eq!(get(&store, "kp_eve").await, Some(eve.clone()));
    put(&store, &eve).await;
}

#[expect(clippy::cast_precision_loss, reason = "that is the point")]
fn as_node_writes(doc: &mut Document) {
    for (key, value) in doc.iter_mut() {
        match value {
            Bson::Document(inner) => as_node_writes(inner),
            Bson::Int64(whole) if *key != "writer" => {
                *value = i32::try_from(*whole).map_or(Bson::Double(*whole as f64), Bson::Int32);
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_reload_decodes_a_document_only_if_it_has_changed() {
    let store = store().await;
    let reload = async |digest| {
        let mut found = store.reload(&[(id("kp_ada"), digest), (id("kp_bob"), None)]).await.unwrap();
        assert!(matches!(found.pop(), Some(Reloaded::Absent)));
        found.pop().unwrap()
    };
    let changed = async |digest| {
        let Reloaded::Loaded(row, digest) = reload(digest).await else { panic!("unchanged") };
        assert_eq!(Some(&row), get(&store, "kp_ada").await.as_ref());
        (row.document(), digest)
    };
    let name = |at, name| event("kp_ada", at, Profile::new().with(Field::FirstName, name));
    observe(&store, [name(1, "Ada")]).await;
    let (_, first) = changed(None).await;
    assert!(matches!(reload(first).await, Reloaded::Unchanged));
    users(&store).update_one(doc! {}, doc! { "$set": { "plan": "pro" } }).await.unwrap();
    assert!(matches!(reload(first).await, Reloaded::Unchanged), "kinsync does not read this key");
    observe(&store, [name(2, "Grace")]).await;
    let (user, second) = changed(first).await;
    assert_eq!(user.first_name.as_deref(), Some("Grace"));
    assert!(matches!(reload(second).await, Reloaded::Unchanged));
    users(&store).update_one(doc! {}, doc! { "$set": { "firstName": "Edited" } }).await.unwrap();
    let (_, third) = changed(second).await;
    assert!(third.is_some() && third != second && third != first);
    users(&store).delete_many(doc! {}).await.unwrap();
    assert!(matches!(reload(third).await, Reloaded::Absent));
}
