//! Values that the application wrote under kinsync's keys stay, and kinsync's own values stay true.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bson::{DateTime, Document, doc};
use kinsync_core::{Field, Micros, Observation, Profile, Source, Value, Version, What};
use kinsync_engine::internal::{
    apply::apply,
    email_ownership::Sweep,
    link::{self, Run},
    reconcile::record::{DriftKind, RunMode},
    store::{
        DocumentKey, Store,
        mongo::{Config, FieldMapping, KeptKey, MongoStore, UnwrittenSearch},
    },
};

use crate::{
    reconcile::World,
    store_mongo::{fresh, prepared, store, users},
    store_rows::{get, id},
    stores,
};

pub(crate) const NOW: Micros = Micros(1_790_000_000_000_000);

/// The fields of a document that an application with Mongoose timestamps created years ago.
pub(crate) fn of_the_application() -> Document {
    let then = DateTime::from_millis(1_577_923_200_000);
    doc! {
        "email": "ada@example.com", "username": "ada99", "phone": "+4412345", "picture": "/avatars/1.png",
        "createdAt": then, "updatedAt": then, "source": "newsletter", "isDeleted": false, "lastSeenAt": then,
        "organizations": ["acme"], "identities": ["github"], "role": "admin",
    }
}

/// A read of Kinde with every field: no username, no phone, no picture.
pub(crate) fn profile(user: &str, at: i64) -> Observation {
    let fields = Profile::new()
        .with(Field::Email, "ada@example.com")
        .with(Field::EmailVerified, true)
        .with(Field::FirstName, "Ada")
        .with(Field::Username, Value::Null)
        .with(Field::Phone, Value::Null)
        .with(Field::Picture, Value::Null)
        .with(Field::Organizations, Value::Organizations(Vec::new()))
        .with(Field::Identities, Value::Identities(Vec::new()));
    let version = Version::snapshot(Micros(at), format!("profile_{at}"));
    Observation { user: id(user), version, source: Source::Profile, what: What::Fields(fields) }
}

pub(crate) fn event(user: &str, at: i64, fields: Profile) -> Observation {
    let version = Version::event(Micros(at), format!("event_{at}"));
    Observation { user: id(user), version, source: Source::Webhook, what: What::Fields(fields) }
}

pub(crate) async fn observe(store: &dyn Store, observations: impl IntoIterator<Item = Observation>) {
    for observation in observations {
        let applied = apply(store, [observation], NOW).await.unwrap();
        assert_eq!((applied.refused, applied.failed), (vec![], vec![]));
    }
}

pub(crate) async fn document(store: &MongoStore) -> Document {
    let all = users(store).count_documents(doc! {}).await.unwrap();
    assert_eq!(all, 1, "one document for the user");
    users(store).find_one(doc! {}).await.unwrap().unwrap()
}

pub(crate) fn assert_unchanged(before: &Document, after: &Document) {
    for (key, value) in before {
        assert_eq!(after.get(key), Some(value), "`{key}` of the application in {after}");
    }
}

#[tokio::test]
async fn a_linked_document_keeps_every_value_of_the_application() {
    let store = store().await;
    users(&store).insert_one(of_the_application()).await.unwrap();
    let created = event("kp_ada", 1, Profile::new().with(Field::Email, "ada@example.com"));
    observe(&store, [created, profile("kp_ada", 2)]).await;
    let linked = document(&store).await;
    assert_eq!(linked.get_str("kindeId").unwrap(), "kp_ada");
    assert_unchanged(&of_the_application(), &linked);
    assert_eq!(linked.get_str("firstName").unwrap(), "Ada", "an absent key is kinsync's");
}

#[tokio::test]
async fn a_document_that_has_the_kinde_id_keeps_every_value_of_the_application() {
    let store = store().await;
    let mut own = of_the_application();
    own.insert("kindeId", "kp_ada");
    users(&store).insert_one(own.clone()).await.unwrap();
    let updated = Profile::new()
        .with(Field::Email, "ada@example.com")
        .with(Field::Username, Value::Null)
        .with(Field::FirstName, "Ada");
    observe(&store, [event("kp_ada", 1, updated), profile("kp_ada", 2)]).await;
    let known = document(&store).await;
    assert_unchanged(&own, &known);
    assert_eq!(known.get_str("firstName").unwrap(), "Ada");
}

#[tokio::test]
async fn a_null_of_kinde_removes_only_a_value_that_kinsync_wrote() {
    let store = store().await;
    users(&store).insert_one(doc! { "kindeId": "kp_ada", "phone": "+44" }).await.unwrap();
    let fields = |name: Value, phone: Value| {
        Profile::new()
            .with(Field::Username, name)
            .with(Field::Phone, phone)
            .with(Field::LastName, Value::Null)
    };
    observe(&store, [event("kp_ada", 1, fields("ada".into(), "+61".into()))]).await;
    assert_eq!(document(&store).await.get_str("phone").unwrap(), "+44");
    assert_eq!(document(&store).await.get_str("username").unwrap(), "ada");
    observe(&store, [event("kp_ada", 2, fields(Value::Null, Value::Null))]).await;
    let found = document(&store).await;
    assert_eq!((found.get_str("phone").unwrap(), found.contains_key("username")), ("+44", false));
    // What the application writes under a key that kinsync has left is the application's.
    users(&store).update_one(doc! {}, doc! { "$set": { "username": "own" } }).await.unwrap();
    observe(&store, [event("kp_ada", 3, fields("ada".into(), Value::Null))]).await;
    assert_eq!(document(&store).await.get_str("username").unwrap(), "own");
    // So is a value that it wrote over one of kinsync, once Kinde has none.
    let name = |name: Value| Profile::new().with(Field::FirstName, name);
    observe(&store, [event("kp_ada", 4, name("Ada".into()))]).await;
    users(&store).update_one(doc! {}, doc! { "$set": { "firstName": "Zed" } }).await.unwrap();
    observe(&store, [event("kp_ada", 5, name(Value::Null))]).await;
    assert_eq!(document(&store).await.get_str("firstName").unwrap(), "Zed");
}

#[tokio::test]
async fn values_of_other_types_stay_and_both_values_are_shown() {
    let store = store().await;
    let own = doc! { "kindeId": "kp_ada", "username": ["a", "b"], "firstName": 7, "lastName": { "de": "L" },
    "organizations": { "acme": true }, "emailVerified": "yes", "source": null };
    users(&store).insert_one(own.clone()).await.unwrap();
    let fields = Profile::new().with(Field::Username, "ada").with(Field::FirstName, "Ada");
    let fields = fields.with(Field::LastName, "Lovelace").with(Field::EmailVerified, true);
    observe(&store, [event("kp_ada", 1, fields), profile("kp_ada", 2)]).await;
    let found = document(&store).await;
    for key in ["username", "firstName", "lastName", "organizations", "emailVerified"] {
        assert_eq!(found.get(key), own.get(key), "{key}");
    }
    assert_eq!(found.get_str("source").unwrap(), "profile", "null is no value");
    let shown = get(&store, "kp_ada").await.unwrap().document();
    assert_eq!((shown.first_name.as_deref(), shown.last_name.as_deref()), (Some("Ada"), Some("Lovelace")));
    assert_eq!(shown.kept["username"], serde_json::json!(["a", "b"]));
    assert_eq!(shown.kept["firstName"], serde_json::json!(7));
}

#[tokio::test]
async fn a_value_that_the_application_changes_is_never_read_as_kindes_and_is_restored() {
    let store = store().await;
    let fields = Profile::new().with(Field::FirstName, "Ada").with(Field::Email, "a@x.org");
    observe(&store, [event("kp_ada", 1, fields.clone())]).await;
    let edit = doc! { "$set": { "firstName": "Zed", "plan": "pro" }, "$unset": { "email": 1 } };
    users(&store).update_one(doc! {}, edit).await.unwrap();
    let row = get(&store, "kp_ada").await.unwrap();
    assert_eq!(row.state.text(Field::FirstName), Some("Ada"));
    assert!(row.is_outdated());
    // The same event again contains nothing new.
    observe(&store, [event("kp_ada", 1, fields)]).await;
    let found = document(&store).await;
    assert_eq!((found.get_str("firstName").unwrap(), found.get_str("email").unwrap()), ("Ada", "a@x.org"));
    assert_eq!(found.get_str("plan").unwrap(), "pro");
    assert!(!get(&store, "kp_ada").await.unwrap().is_outdated());
}

#[tokio::test]
async fn a_user_that_keeps_an_address_of_the_application_competes_for_no_other() {
    let store = store().await;
    users(&store).insert_one(doc! { "kindeId": "kp_ada", "email": "old@x.org" }).await.unwrap();
    let with_email = |user: &str, at, email: &str| event(user, at, Profile::new().with(Field::Email, email));
    observe(&store, [with_email("kp_ada", 1, "new@x.org"), with_email("kp_bob", 2, "new@x.org")]).await;
    let of = async |user: &str| users(&store).find_one(doc! { "kindeId": user }).await.unwrap().unwrap();
    assert_eq!(of("kp_bob").await.get_str("email").unwrap(), "new@x.org", "bob is the only claimant");
    let ada = of("kp_ada").await;
    assert_eq!((ada.get_str("email").unwrap(), ada.contains_key("emailConflict")), ("old@x.org", false));
    let shown = get(&store, "kp_ada").await.unwrap().document();
    assert_eq!(
        (shown.email.as_deref(), shown.kept["email"].as_str()),
        (Some("new@x.org"), Some("old@x.org"))
    );
    // The address that the document shows is held by it.
    observe(&store, [with_email("kp_eve", 3, "old@x.org")]).await;
    assert_eq!(get(&store, "kp_eve").await.unwrap().metadata.email_held_by.as_deref(), Some("kp_ada"));
    // Without the kept address the user competes again, and is the older one.
    users(&store).update_one(doc! { "kindeId": "kp_ada" }, doc! { "$unset": { "email": 1 } }).await.unwrap();
    observe(&store, [with_email("kp_ada", 1, "new@x.org")]).await;
    Sweep::default().run(&store, NOW).await.unwrap();
    assert_eq!(of("kp_ada").await.get_str("email").unwrap(), "new@x.org");
    assert_eq!(of("kp_eve").await.get_str("email").unwrap(), "old@x.org");
    assert_eq!(get(&store, "kp_bob").await.unwrap().metadata.email_held_by.as_deref(), Some("kp_ada"));
}

#[tokio::test]
async fn a_value_that_appears_between_read_and_write_is_not_lost() {
    let store = store().await;
    users(&store).insert_one(doc! { "kindeId": "kp_ada" }).await.unwrap();
    let mut row = store.load_to_write(&[id("kp_ada")]).await.unwrap().remove(0);
    row.state = row.state.observe(&event("kp_ada", 1, Profile::new().with(Field::Username, "ada")));
    users(&store).update_one(doc! {}, doc! { "$set": { "username": "own" } }).await.unwrap();
    let outcome = store.write(std::slice::from_ref(&row)).await.unwrap().remove(0);
    assert_eq!(outcome, kinsync_engine::internal::store::Outcome::Stale);
    assert_eq!(document(&store).await.get_str("username").unwrap(), "own");
}

fn mapped(names: &[(&str, Option<&str>)]) -> FieldMapping {
    let names =
        names.iter().map(|(key, name)| (DocumentKey::from_name(key).unwrap(), name.map(ToOwned::to_owned)));
    FieldMapping { names: names.collect(), ..FieldMapping::default() }
}

#[tokio::test]
async fn every_key_can_be_moved_below_one_sub_document() {
    let fields = FieldMapping { prefix: Some("kinde".into()), ..FieldMapping::default() };
    let store = prepared(Config { fields, ..fresh().await }).await;
    let own = of_the_application();
    users(&store).insert_one(own.clone()).await.unwrap();
    users(&store)
        .update_one(doc! {}, doc! { "$set": { "kindeId": "kp_ada", "kinde": { "own": 1 } } })
        .await
        .unwrap();
    let fields = Profile::new().with(Field::Username, "ada").with(Field::Email, "a@x.org");
    observe(&store, [event("kp_ada", 1, fields.clone()), event("kp_bob", 2, fields)]).await;
    let ada = users(&store).find_one(doc! { "kinde.email": "a@x.org" }).await.unwrap().unwrap();
    assert_unchanged(&own, &ada);
    let below = ada.get_document("kinde").unwrap();
    assert_eq!((below.get_str("username").unwrap(), below.get_i32("own").unwrap()), ("ada", 1));
    assert!(below.get_datetime("createdAt").is_ok() && !below.get_bool("isDeleted").unwrap());
    let bob = users(&store).find_one(doc! { "kindeId": "kp_bob" }).await.unwrap().unwrap();
    let names: Vec<_> = bob.keys().map(String::as_str).collect();
    assert_eq!(names, ["_id", "kindeId", "kinde", "kinsync"], "of a document that kinsync made");
    assert_eq!(get(&store, "kp_bob").await.unwrap().metadata.email_held_by.as_deref(), Some("kp_ada"));
    observe(&store, [event("kp_ada", 3, Profile::new().with(Field::Username, Value::Null))]).await;
    let ada = users(&store).find_one(doc! { "kindeId": "kp_ada" }).await.unwrap().unwrap();
    assert!(!ada.get_document("kinde").unwrap().contains_key("username"));
}

#[tokio::test]
async fn a_key_that_is_switched_off_is_never_written() {
    let off: Vec<_> = DocumentKey::ALL.into_iter().skip(1).map(|key| (key.name(), None)).collect();
    let store = prepared(Config { fields: mapped(&off), ..fresh().await }).await;
    let fields = Profile::new().with(Field::Username, "ada").with(Field::Email, "a@x.org");
    observe(&store, [event("kp_ada", 1, fields.clone()), event("kp_bob", 2, fields)]).await;
    let found = users(&store).find_one(doc! { "kindeId": "kp_ada" }).await.unwrap().unwrap();
    let names: Vec<_> = found.keys().map(String::as_str).collect();
    assert_eq!(names, ["_id", "kindeId", "kinsync"]);
    assert_eq!(get(&store, "kp_ada").await.unwrap().document().username.as_deref(), Some("ada"));
    let deleted = Observation { what: What::Deleted, ..event("kp_ada", 3, Profile::new()) };
    observe(&store, [deleted]).await;
    assert_eq!(store.counts().await.unwrap().deleted_users, 1);
}

#[tokio::test]
async fn a_key_that_the_operator_names_is_taken_over_with_a_record_of_the_former_value() {
    let fields =
        FieldMapping { take_over: vec![DocumentKey::Field(Field::Username)], ..FieldMapping::default() };
    let store = prepared(Config { fields, ..fresh().await }).await;
    users(&store).insert_one(doc! { "kindeId": "kp_ada", "username": "own", "phone": "1" }).await.unwrap();
    let fields = |name: &str| Profile::new().with(Field::Username, name).with(Field::Phone, "2");
    observe(&store, [event("kp_ada", 1, fields("ada")), event("kp_ada", 2, fields("augusta"))]).await;
    let found = document(&store).await;
    assert_eq!((found.get_str("username").unwrap(), found.get_str("phone").unwrap()), ("augusta", "1"));
    let metadata = found.get_document("kinsync").unwrap();
    let replaced = metadata.get_document("replaced").unwrap();
    assert_eq!(replaced.get_document("username").unwrap().get_str("value").unwrap(), "own");
    assert_eq!(metadata.get_array("kept").unwrap().len(), 1, "{metadata}");
}

#[tokio::test]
async fn a_field_of_a_newer_version_survives_writes_of_this_one() {
    let store = store().await;
    observe(&store, [event("kp_ada", 1, Profile::new().with(Field::FirstName, "Ada"))]).await;
    // A newer kinsync has a field `locale`, which it shows and owns.
    let owned = document(&store).await.get_document("kinsync").unwrap().get_i64("owned").unwrap() | 1 << 40;
    let newer = doc! { "locale": "en", "kinsync.values.locale": "en", "kinsync.at.locale": 0, "kinsync.owned": owned };
    users(&store).update_one(doc! {}, doc! { "$set": newer }).await.unwrap();
    let version_of_locale = |document: &Document| {
        let metadata = document.get_document("kinsync").unwrap();
        let position = metadata.get_document("at").unwrap().get_i32("locale").unwrap();
        let versions = metadata.get_array("versions").unwrap();
        versions[usize::try_from(position).unwrap()].as_document().unwrap().clone()
    };
    let before = version_of_locale(&document(&store).await);
    observe(&store, [event("kp_ada", 2, Profile::new().with(Field::FirstName, "Augusta"))]).await;
    let after = document(&store).await;
    assert_eq!(after.get_str("firstName").unwrap(), "Augusta");
    assert_eq!(after.get_str("locale").unwrap(), "en");
    let metadata = after.get_document("kinsync").unwrap();
    assert_eq!(metadata.get_document("values").unwrap().get_str("locale").unwrap(), "en");
    assert_eq!(
        version_of_locale(&after),
        before,
        "the version of a field that this version does not know is not raised"
    );
    assert_eq!(metadata.get_i64("owned").unwrap() & 1 << 40, 1 << 40, "the key still belongs to kinsync");
}

#[tokio::test]
async fn a_document_in_an_unknown_format_is_refused_by_name() {
    let store = store().await;
    observe(&store, [event("kp_ada", 1, Profile::new())]).await;
    for (change, expected) in [
        (doc! { "$set": { "kinsync.format": 2 } }, "format 2"),
        (doc! { "$unset": { "kinsync.format": 1 } }, "not kinsync's"),
        (doc! { "$set": { "kinsync": "x" } }, "no sub-document"),
        (doc! { "$set": { "kinsync": [1] } }, "a list"),
    ] {
        users(&store).update_one(doc! {}, change).await.unwrap();
        let before = document(&store).await;
        let applied = apply(&store, [event("kp_ada", 2, Profile::new().with(Field::FirstName, "A"))], NOW);
        let applied = applied.await.unwrap();
        assert!(applied.refused[0].1.contains(expected), "{:?}", applied.refused);
        assert!(applied.refused[0].1.contains(&before.get_object_id("_id").unwrap().to_hex()));
        assert_eq!(document(&store).await, before);
    }
}

#[tokio::test]
async fn documents_move_to_new_names_and_nothing_is_lost_or_shown_as_null() {
    let config = fresh().await;
    let first = prepared(config.clone()).await;
    let fields = |n: i64| {
        Profile::new().with(Field::Username, &*format!("u{n}")).with(Field::Email, &*format!("{n}@x.org"))
    };
    let many = (0..700).map(|n| event(&format!("kp_{n:03}"), 1, fields(n)));
    apply(&first, many, NOW).await.unwrap();
    let own = doc! { "$set": { "kinde": { "own": 1 }, "handle": "own", "username": "edited" } };
    users(&first).update_one(doc! { "kindeId": "kp_001" }, own).await.unwrap();
    let names = [
        ("username", Some("handle")),
        ("email", Some("kinde.email")),
        ("source", None),
        ("kindeId", Some("kinde_id")),
    ];
    let second = prepared(Config { fields: mapped(&names), ..config.clone() }).await;
    // Before the move the users are found, and an event moves one of them.
    assert_eq!(get(&second, "kp_600").await.unwrap().document().username.as_deref(), Some("u600"));
    observe(&second, [event("kp_600", 2, Profile::new().with(Field::FirstName, "Ada"))]).await;
    let moved = users(&second).find_one(doc! { "kinde_id": "kp_600" }).await.unwrap().unwrap();
    assert_eq!((moved.get_str("handle").unwrap(), moved.get_str("firstName").unwrap()), ("u600", "Ada"));
    assert_eq!(second.move_documents(NOW).await.unwrap(), 699);
    assert_eq!(second.move_documents(NOW).await.unwrap(), 0);
    assert!(!second.has_documents_to_move());
    let all = users(&second);
    let left = doc! { "$or": [{ "kindeId": { "$exists": true } }, { "email": { "$exists": true } }, { "source": { "$exists": true } }] };
    assert_eq!(all.count_documents(left).await.unwrap(), 0, "what kinsync wrote has moved");
    assert_eq!(all.count_documents(doc! { "kinde.email": { "$exists": true } }).await.unwrap(), 700);
    let edited = all.find_one(doc! { "kinde_id": "kp_001" }).await.unwrap().unwrap();
    assert_eq!((edited.get_str("handle").unwrap(), edited.get_str("username").unwrap()), ("own", "edited"));
    assert_eq!(edited.get_document("kinde").unwrap().get_i32("own").unwrap(), 1);
    // Back again, with the first names.
    let third = prepared(config).await;
    assert_eq!(third.move_documents(NOW).await.unwrap(), 700);
    let back = all.find_one(doc! { "kindeId": "kp_600" }).await.unwrap().unwrap();
    assert_eq!((back.get_str("username").unwrap(), back.get_str("email").unwrap()), ("u600", "600@x.org"));
    assert!(!back.contains_key("handle") && !back.contains_key("kinde_id"));
}

#[tokio::test]
async fn names_that_two_keys_exchange_move_too() {
    let config = fresh().await;
    let first = prepared(config.clone()).await;
    let fields = Profile::new().with(Field::FirstName, "Ada").with(Field::LastName, "Lovelace");
    observe(&first, [event("kp_ada", 1, fields)]).await;
    let names = [("firstName", Some("lastName")), ("lastName", Some("firstName"))];
    let second = prepared(Config { fields: mapped(&names), ..config }).await;
    assert_eq!(second.move_documents(NOW).await.unwrap(), 1);
    let found = document(&second).await;
    assert_eq!(
        (found.get_str("lastName").unwrap(), found.get_str("firstName").unwrap()),
        ("Ada", "Lovelace")
    );
}

#[tokio::test]
async fn defaults_are_set_on_insert_only_and_give_way_to_values_of_kinde() {
    let defaults = [
        ("role", serde_json::json!("member")),
        ("__v", serde_json::json!(0)),
        ("settings", serde_json::json!({ "theme": "dark", "tags": [] })),
        ("username", serde_json::json!("user-{kindeId}")),
    ];
    let defaults = defaults.map(|(name, value)| (name.to_owned(), value)).into();
    let store = prepared(Config { defaults, ..fresh().await }).await;
    users(&store).insert_one(doc! { "kindeId": "kp_old", "plan": "pro" }).await.unwrap();
    let named = |user: &str, at, name: Value| event(user, at, Profile::new().with(Field::Username, name));
    observe(&store, [named("kp_ada", 1, Value::Null), named("kp_old", 1, Value::Null)]).await;
    let of = async |user: &str| users(&store).find_one(doc! { "kindeId": user }).await.unwrap().unwrap();
    let ada = of("kp_ada").await;
    assert_eq!((ada.get_str("role").unwrap(), ada.get_i32("__v").unwrap()), ("member", 0));
    assert_eq!(ada.get_document("settings").unwrap(), &doc! { "theme": "dark", "tags": [] });
    assert_eq!(ada.get_str("username").unwrap(), "user-kp_ada");
    let old = of("kp_old").await;
    assert!(!old.contains_key("role") && !old.contains_key("username"), "it was there before: {old}");
    users(&store)
        .update_one(doc! { "kindeId": "kp_ada" }, doc! { "$set": { "role": "admin" } })
        .await
        .unwrap();
    observe(&store, [named("kp_ada", 2, "ada".into())]).await;
    let ada = of("kp_ada").await;
    assert_eq!((ada.get_str("role").unwrap(), ada.get_str("username").unwrap()), ("admin", "ada"));
    observe(&store, [named("kp_ada", 3, Value::Null)]).await;
    assert_eq!(of("kp_ada").await.get_str("username").unwrap(), "user-kp_ada");
    assert!(!get(&store, "kp_ada").await.unwrap().is_outdated());
}

async fn unwritten(store: &MongoStore) -> Vec<KeptKey> {
    let mut search = UnwrittenSearch::default();
    while !search.progress().is_done {
        store.search_unwritten(&mut search).await.unwrap();
    }
    store.unwritten_keys(search)
}

#[tokio::test]
async fn the_search_for_unwritten_documents_reads_a_large_collection_in_steps() {
    let store = store().await;
    let written = |n| doc! { "kindeId": format!("kp_{n:05}"), "kinsync": { "format": 1, "revision": 1_i64 } };
    let last = doc! { "_id": "last", "kindeId": "kp_last", "username": "own" };
    let lists = [["a", "b"], ["kp_x", "kp_y"]].map(|ids| doc! { "kindeId": ids.to_vec() });
    users(&store).insert_many((0..10_500).map(written).chain(lists).chain([last])).await.unwrap();
    let mut search = UnwrittenSearch::default();
    let mut step = async || {
        store.search_unwritten(&mut search).await.unwrap();
        let progress = search.progress();
        (progress.searched, progress.unwritten, progress.is_done)
    };
    assert_eq!([step().await, step().await], [(10_000, 0, false), (10_503, 1, true)]);
    assert_eq!(store.unwritten_keys(search)[0].examples, ["last"]);
}

#[tokio::test]
async fn values_that_stay_are_listed_by_key_before_and_after_the_first_write() {
    let store = store().await;
    let own =
        |n: i32| doc! { "_id": n, "kindeId": format!("kp_{n}"), "username": format!("own{n}"), "phone": "1" };
    users(&store).insert_many((0..5).map(own)).await.unwrap();
    users(&store)
        .insert_one(doc! { "_id": "mail", "email": "ada@example.com", "firstName": "own" })
        .await
        .unwrap();
    let keys = |keys: &[KeptKey]| {
        keys.iter().map(|key| (key.path.clone(), key.documents, key.examples.len())).collect::<Vec<_>>()
    };
    assert_eq!(keys(&unwritten(&store).await), [("phone".into(), 5, 3), ("username".into(), 5, 3)]);
    let fields = Profile::new().with(Field::Username, "ada").with(Field::Phone, "1");
    observe(&store, (0..2).map(|n| event(&format!("kp_{n}"), 1, fields.clone()))).await;
    let kept = store.kept_keys().await.unwrap();
    assert_eq!(keys(&kept), [("username".into(), 2, 2)], "an equal value is kinsync's");
    assert_eq!(keys(&unwritten(&store).await), [("phone".into(), 3, 3), ("username".into(), 3, 3)]);
    // A dry run of linking.
    let created = event("kp_ada", 1, Profile::new().with(Field::Email, "ada@example.com"));
    let verified = prepared(Config {
        database: Some(store.database_name().to_owned()),
        link_by_email: kinsync_engine::config::LinkByEmail::Never,
        ..fresh().await
    });
    let verified = verified.await;
    observe(&verified, [created, profile("kp_ada", 2)]).await;
    let found = link::link(&store, NOW, Run::Dry, &|_| {}).await.unwrap();
    assert_eq!(keys(&found.kept), [("firstName".into(), 1, 1)]);
    assert_eq!(found.candidates[0].kept, [DocumentKey::Field(Field::FirstName)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_restores_and_reports_values_that_the_application_changed() {
    let store = store().await;
    let world = World::new(stores::over(store.clone())).await;
    let ids = world.import(3);
    world.reconcile().await;
    let user = doc! { "kindeId": &ids[1] };
    let edit = doc! { "$set": { "firstName": "Zed", "plan": "pro" } };
    users(&store).update_one(user.clone(), edit).await.unwrap();
    let edited = async |mode| world.run(mode).await.unwrap().tally.of(DriftKind::Edited);
    assert_eq!(edited(RunMode::DryRun).await, 1);
    assert_eq!(edited(RunMode::Reconcile).await, 1);
    let found = users(&store).find_one(user).await.unwrap().unwrap();
    assert_eq!((found.get_str("firstName").unwrap(), found.get_str("plan").unwrap()), ("First 1", "pro"));
    assert_eq!(edited(RunMode::Reconcile).await, 0);
}
