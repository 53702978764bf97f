//! Existing documents of an application are linked to the users with their verified address.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bson::{Document, doc};
use futures_util::{TryStreamExt, future::join_all};
use kinsync_core::{Field, Micros, Observation, Profile, Source, Value, Version, What};
use kinsync_engine::internal::{
    apply::apply,
    link::{self, Run, Verdict},
    store::{
        Outcome, Row, Store,
        mongo::{Config, LinkByEmail, MongoStore},
    },
};
use kinsync_testing::mongo::TestMongo;

use crate::{
    store_mongo::{fresh, prepared, store, users},
    store_rows::{get, id},
};

pub(crate) const NOW: Micros = Micros(9_000_000);

/// The observation of the address by an event.
pub(crate) fn event(user: &str, at: i64, email: &str) -> Observation {
    let version = Version::event(Micros(at), format!("event_{at}"));
    let what = What::Fields(Profile::new().with(Field::Email, email));
    Observation { user: id(user), version, source: Source::Webhook, what }
}

/// The observation of the address by Kinde's profile endpoint.
pub(crate) fn profile(user: &str, at: i64, email: &str, verified: bool) -> Observation {
    let fields = Profile::new().with(Field::Email, email).with(Field::EmailVerified, Value::Flag(verified));
    let version = Version::snapshot(Micros(at), format!("profile_{at}"));
    Observation { user: id(user), version, source: Source::Profile, what: What::Fields(fields) }
}

/// The observation of the address by a scan. The list does not contain whether it is verified.
fn listed(user: &str, at: i64, email: &str) -> Observation {
    let what = What::Fields(Profile::new().with(Field::Email, email));
    Observation { source: Source::Reconcile, what, ..profile(user, at, email, false) }
}

pub(crate) async fn observe(store: &MongoStore, observations: Vec<Observation>) {
    for observation in observations {
        apply(store, [observation], NOW).await.unwrap();
    }
}

pub(crate) async fn everything(store: &MongoStore) -> Vec<Document> {
    let users = users(store);
    users.find(doc! {}).sort(doc! { "_id": 1 }).await.unwrap().try_collect().await.unwrap()
}

pub(crate) fn text<'a>(doc: &'a Document, key: &str) -> Option<&'a str> {
    doc.get_str(key).ok()
}

pub(crate) async fn with_own_row(store: &MongoStore) {
    users(store).insert_one(doc! { "_id": "own", "email": "a@x.org", "plan": "pro" }).await.unwrap();
}

/// Whether the application's row is the user's now, with everything in it.
pub(crate) async fn is_linked(store: &MongoStore) -> bool {
    let all = everything(store).await;
    let own = all.iter().find(|doc| text(doc, "_id") == Some("own")).unwrap();
    assert_eq!(text(own, "plan"), Some("pro"), "the application's fields stay");
    assert_eq!(text(own, "email"), Some("a@x.org"));
    if !own.contains_key("kindeId") {
        assert!(!own.contains_key("kinsync"), "either all or nothing: {own}");
        return false;
    }
    assert_eq!(text(own, "kindeId"), Some("kp_ada"));
    assert_eq!(all.len(), 1, "the document that kinsync created is deleted");
    assert!(!own.contains_key("emailConflict"));
    true
}

#[tokio::test]
async fn a_document_with_the_verified_address_of_a_user_is_linked() {
    let store = store().await;
    with_own_row(&store).await;
    observe(&store, vec![event("kp_ada", 1, "a@x.org")]).await;
    assert!(!is_linked(&store).await, "an event does not say that an address is verified");
    observe(&store, vec![profile("kp_ada", 2, "a@x.org", true)]).await;
    assert!(is_linked(&store).await);
    observe(&store, vec![event("kp_ada", 3, "b@x.org")]).await;
    let all = everything(&store).await;
    assert_eq!((all.len(), text(&all[0], "email")), (1, Some("b@x.org")), "it is kept true from now on");
    assert_eq!((text(&all[0], "_id"), text(&all[0], "plan")), (Some("own"), Some("pro")));
}

#[tokio::test]
async fn a_document_with_a_kinde_id_as_its_own_id_is_linked_like_any_other() {
    // The id of its own user, or of another claimant of the address.
    for id in ["kp_ada", "kp_bob"] {
        let store = store().await;
        users(&store).insert_one(doc! { "_id": id, "email": "a@x.org", "plan": "pro" }).await.unwrap();
        observe(&store, vec![event("kp_ada", 1, "a@x.org"), event("kp_bob", 2, "a@x.org")]).await;
        let ada = get(&store, "kp_ada").await.unwrap();
        assert_eq!(ada.metadata.email_held_by.as_deref(), Some(id));
        observe(&store, vec![profile("kp_ada", 3, "a@x.org", true)]).await;
        let all = everything(&store).await;
        let own = all.iter().find(|doc| text(doc, "_id") == Some(id)).unwrap();
        assert_eq!((text(own, "kindeId"), text(own, "plan")), (Some("kp_ada"), Some("pro")));
    }
}

#[tokio::test]
async fn a_document_that_an_index_of_the_application_refuses_is_not_linked_and_blocks_no_user() {
    let store = store().await;
    with_own_row(&store).await;
    // One first name for each plan, and another document on this plan has it.
    let index = doc! { "key": { "plan": 1, "firstName": 1 }, "unique": true, "name": "own",
    "partialFilterExpression": { "plan": "pro" } };
    store
        .database()
        .unwrap()
        .run_command(doc! { "createIndexes": "users", "indexes": [index] })
        .await
        .unwrap();
    users(&store).insert_one(doc! { "_id": "other", "plan": "pro", "firstName": "Ada" }).await.unwrap();
    let named = What::Fields(Profile::new().with(Field::FirstName, "Ada"));
    let named = Observation { what: named, ..event("kp_ada", 1, "a@x.org") };
    observe(&store, vec![named, profile("kp_ada", 2, "a@x.org", true)]).await;
    let ada = get(&store, "kp_ada").await.unwrap();
    assert_eq!(ada.metadata.email_held_by.as_deref(), Some("own"), "a conflict, and no outage");
    assert!(
        !everything(&store)
            .await
            .iter()
            .any(|doc| text(doc, "_id") == Some("own") && doc.contains_key("kindeId"))
    );
}

#[tokio::test]
async fn a_document_is_linked_again_after_both_were_lost() {
    let store = store().await;
    for now in [NOW, Micros(NOW.0 + 1)] {
        users(&store).delete_many(doc! {}).await.unwrap();
        with_own_row(&store).await;
        apply(&store, [profile("kp_ada", 2, "a@x.org", true)], now).await.unwrap();
        assert!(is_linked(&store).await);
    }
}

#[tokio::test]
async fn a_new_user_with_a_verified_address_is_linked_at_once() {
    let store = store().await;
    with_own_row(&store).await;
    observe(&store, vec![profile("kp_ada", 2, "a@x.org", true)]).await;
    assert!(is_linked(&store).await);
}

#[tokio::test]
async fn an_unverified_address_links_no_document() {
    let histories = [
        vec![event("kp_ada", 1, "a@x.org")],
        vec![profile("kp_ada", 1, "a@x.org", false)],
        // Verified was another address.
        vec![profile("kp_ada", 1, "other@x.org", true), event("kp_ada", 2, "a@x.org")],
        vec![event("kp_ada", 2, "a@x.org"), profile("kp_ada", 1, "other@x.org", true)],
        vec![profile("kp_ada", 1, "other@x.org", true), listed("kp_ada", 2, "a@x.org")],
        // Verified once, then observed again without a verification.
        vec![event("kp_ada", 2, "a@x.org"), profile("kp_ada", 1, "a@x.org", true)],
    ];
    for history in histories {
        let store = store().await;
        with_own_row(&store).await;
        observe(&store, history.clone()).await;
        assert!(!is_linked(&store).await, "{history:?}");
        let user = users(&store).find_one(doc! { "kindeId": "kp_ada" }).await.unwrap().unwrap();
        let conflict = user.get_document("emailConflict").unwrap();
        assert_eq!(conflict, &doc! { "email": "a@x.org", "heldBy": "own" });
    }
}

#[tokio::test]
async fn a_document_with_fields_of_the_application_is_not_deleted() {
    let store = store().await;
    with_own_row(&store).await;
    observe(&store, vec![event("kp_ada", 1, "a@x.org")]).await;
    users(&store).update_one(doc! { "kindeId": "kp_ada" }, doc! { "$set": { "cart": [1] } }).await.unwrap();
    observe(&store, vec![profile("kp_ada", 2, "a@x.org", true)]).await;
    assert!(!is_linked(&store).await);
    let found = link::link(&store, NOW, Run::Link, &|_| {}).await.unwrap();
    assert_eq!(found.candidates[0].verdict, Verdict::FieldsInBoth);
    users(&store).update_one(doc! { "kindeId": "kp_ada" }, doc! { "$unset": { "cart": 1 } }).await.unwrap();
    let found = link::link(&store, NOW, Run::Link, &|_| {}).await.unwrap();
    assert_eq!(found.candidates[0].verdict, Verdict::Linked);
    assert!(is_linked(&store).await);
}

#[tokio::test]
async fn linking_can_be_disabled() {
    let store = prepared(Config { link_by_email: LinkByEmail::Never, ..fresh().await }).await;
    with_own_row(&store).await;
    observe(&store, vec![profile("kp_ada", 2, "a@x.org", true)]).await;
    assert!(!is_linked(&store).await);
    let found = link::link(&store, NOW, Run::Link, &|_| {}).await.unwrap();
    assert_eq!(found.candidates[0].verdict, Verdict::Refused);
    assert!(!is_linked(&store).await);
}

#[tokio::test]
async fn a_dry_run_lists_links_and_conflicts_and_changes_nothing() {
    let config = Config { unique_email: false, ..fresh().await };
    let store = prepared(Config { link_by_email: LinkByEmail::Never, ..config.clone() }).await;
    let own = [("own", "a@x.org"), ("one", "twins@x.org"), ("two", "twins@x.org"), ("eve", "e@x.org")];
    let rows = own.map(|(id, email)| doc! { "_id": id, "email": email, "plan": "pro" });
    users(&store).insert_many(rows).await.unwrap();
    let many = (0..1500).map(|n| doc! { "email": format!("user{n}@x.org") });
    users(&store).insert_many(many).await.unwrap();
    let profiles =
        [("kp_ada", "a@x.org", true), ("kp_twin", "twins@x.org", true), ("kp_eve", "e@x.org", false)];
    observe(&store, profiles.map(|(user, email, verified)| profile(user, 1, email, verified)).into()).await;
    let before = everything(&store).await;
    let store = prepared(Config { link_by_email: LinkByEmail::Verified, ..config }).await;
    let pages = std::sync::Mutex::new(Vec::new());
    let progress = |seen: &link::LinkReport| pages.lock().unwrap().push(seen.rows);
    let found = link::link(&store, NOW, Run::Dry, &progress).await.unwrap();
    assert_eq!(everything(&store).await, before);
    assert_eq!((found.rows, found.unlinked), (1504, 1500));
    assert_eq!(pages.into_inner().unwrap().last(), Some(&1504));
    let verdicts: Vec<_> =
        found.candidates.iter().map(|one| (one.row.as_str(), one.user.as_str(), one.verdict)).collect();
    let expected = [
        ("own", "kp_ada", Verdict::Linked),
        ("eve", "kp_eve", Verdict::NotVerified),
        ("one", "kp_twin", Verdict::SeveralRows),
    ];
    assert_eq!(verdicts, expected);
    let done = link::link(&store, NOW, Run::Link, &|_| {}).await.unwrap();
    assert_eq!(done, found, "a dry run foretells what is done");
    let own = users(&store).find_one(doc! { "_id": "own" }).await.unwrap().unwrap();
    assert_eq!(text(&own, "kindeId"), Some("kp_ada"));
    assert_eq!(users(&store).count_documents(doc! {}).await.unwrap(), before.len() as u64 - 1);
}

#[tokio::test]
async fn of_several_documents_with_one_address_none_is_linked() {
    let store = prepared(Config { unique_email: false, ..fresh().await }).await;
    users(&store).insert_many(["own", "too"].map(|id| doc! { "_id": id, "email": "a@x.org" })).await.unwrap();
    observe(&store, vec![profile("kp_ada", 1, "a@x.org", true)]).await;
    let before = everything(&store).await;
    // As the decision of an owner passes it: the row shows the address.
    let mut ada = get(&store, "kp_ada").await.unwrap();
    ada.metadata.holds_email = true;
    ada.metadata.email_held_by = None;
    assert_eq!(store.link(&ada).await.unwrap(), Outcome::EmailTaken);
    assert_eq!(everything(&store).await, before);
    users(&store).delete_one(doc! { "_id": "too" }).await.unwrap();
    let stale = Row { revision: ada.revision + 1, ..ada.clone() };
    assert_eq!(store.link(&stale).await.unwrap(), Outcome::Stale, "a concurrent write of the user");
    assert_eq!(store.link(&ada).await.unwrap(), Outcome::Written);
}

#[tokio::test]
async fn concurrent_links_of_one_document_link_it_once() {
    for _ in 0..10 {
        let store = store().await;
        with_own_row(&store).await;
        let observe = |n| {
            let observation = if n % 2 == 0 {
                profile("kp_ada", n, "a@x.org", true)
            } else {
                event("kp_ada", n, "a@x.org")
            };
            apply(&store, [observation], NOW)
        };
        join_all((1..9).map(observe)).await.into_iter().for_each(|applied| _ = applied.unwrap());
        assert!(is_linked(&store).await, "the newest observation verifies the address");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_during_a_link_leaves_both_documents_or_one() {
    let mongo = TestMongo::start_own().await;
    for command in ["find", "aggregate", "delete", "update", "commitTransaction"] {
        let store = prepared(Config { database: Some(mongo.database()), ..Config::new(mongo.uri()) }).await;
        with_own_row(&store).await;
        observe(&store, vec![event("kp_ada", 1, "a@x.org")]).await;
        let data = doc! { "failCommands": [command], "closeConnection": true };
        let fail = mongo.fail_point(doc! { "times": 3 }, data).await;
        _ = apply(&store, [profile("kp_ada", 2, "a@x.org", true)], NOW).await;
        drop(fail);
        is_linked(&store).await; // checks that it is all or nothing
        observe(&store, vec![profile("kp_ada", 2, "a@x.org", true)]).await;
        assert!(is_linked(&store).await, "after `{command}` broke");
    }
}
