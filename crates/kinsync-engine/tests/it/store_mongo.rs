//! What only the store in MongoDB promises: the application's documents and indexes are safe.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bson::{Bson, Document, doc};
use kinsync_core::{Directory, Entry, Fact, Field, Identity, Micros, Organization, Value, Version};
use kinsync_engine::internal::store::{
    DocumentKey, Holder, Outcome, Row, Store,
    mongo::{Config, FieldMapping, MongoStore},
};
use kinsync_testing::mongo::TestMongo;
use mongodb::Collection;

use crate::store_rows::{get, holder, outcome, put, row, stored, tombstone, with};

/// A store in a database of its own.
pub(crate) async fn store() -> MongoStore {
    prepared(fresh().await).await
}

pub(crate) async fn fresh() -> Config {
    let mongo = TestMongo::shared().await;
    Config { database: Some(mongo.database()), ..patient(mongo) }
}

/// Settings with which no call fails only because the machine is slow.
pub(crate) fn patient(mongo: &TestMongo) -> Config {
    let long = Duration::from_mins(3);
    Config {
        op_timeout: long,
        server_selection_timeout: long,
        connect_timeout: long,
        ..Config::new(mongo.uri())
    }
}

pub(crate) async fn prepared(config: Config) -> MongoStore {
    let store = MongoStore::connect(config).await.unwrap();
    store.prepare().await.unwrap();
    store
}

pub(crate) fn users(store: &MongoStore) -> Collection<Document> {
    store.database().unwrap().collection("users")
}

pub(crate) async fn document(store: &MongoStore, user: &str) -> Document {
    users(store).find_one(doc! { "kindeId": user }).await.unwrap().unwrap()
}

/// Prepares the store. Returns how the unique index on the address can be created.
async fn fix_of_email(store: &MongoStore) -> String {
    store.prepare().await.unwrap();
    let problems = store.examine().await.unwrap();
    problems.into_iter().find(|problem| problem.subject == "index kinsync_email").unwrap().fix
}

#[tokio::test]
async fn a_document_has_readable_fields() {
    let store = store().await;
    let mut ada = with(row("kp_ada", Some("ada@x.org")), Field::CreatedOn, Micros(1_500_000_000_000_999));
    ada.state.last_seen = Some(Micros(i64::MAX));
    put(&store, &ada).await;
    let found = document(&store, "kp_ada").await;
    assert!(found.get_object_id("_id").is_ok());
    assert_eq!(found.get_str("email").unwrap(), "ada@x.org");
    assert_eq!(found.get_datetime("createdAt").unwrap().timestamp_millis(), 1_500_000_000_000);
    assert_eq!(found.get_datetime("lastSeenAt").unwrap().timestamp_millis(), 8_640_000_000_000_000);
    assert!(!found.get_bool("isDeleted").unwrap());
    assert_eq!(found.get_str("source").unwrap(), "webhook");
    for absent in ["deletedAt", "emailConflict", "lastSignedInAt", "lastName", "createdOn"] {
        assert!(!found.contains_key(absent), "{absent} in {found}");
    }
    let metadata = found.get_document("kinsync").unwrap();
    assert_eq!(metadata.get_i64("revision").unwrap(), 1);
    let version = &metadata.get_array("versions").unwrap()[0];
    assert_eq!(version.as_document().unwrap().get_i64("t").unwrap(), 1_700_000_000_123_456);
}

#[tokio::test]
async fn a_document_omits_what_no_source_has_observed() {
    let store = store().await;
    let codes = Value::Codes(vec!["org_a".into()]);
    let passkey = Identity { kind: "passkey".into(), identity: None };
    let ada = with(row("kp_ada", None), Field::OrganizationCodes, codes);
    let mut ada = with(ada, Field::Identities, Value::Identities(vec![passkey.clone(), passkey]));
    ada.metadata.source = None;
    put(&store, &ada).await;
    let found = document(&store, "kp_ada").await;
    assert_eq!(found.get_array("organizations").unwrap(), &[doc! { "code": "org_a" }.into()]);
    let passkey = Bson::from(doc! { "kind": "passkey", "identity": null });
    assert_eq!(found.get_array("identities").unwrap(), &[passkey.clone(), passkey]);
    for absent in ["isSuspended", "isPasswordResetRequested", "picture", "source"] {
        assert!(!found.contains_key(absent), "{absent} in {found}");
    }
    assert_eq!(get(&store, "kp_ada").await, Some(stored(&ada)));
}

#[tokio::test]
async fn a_tombstone_and_a_conflict_show_no_address() {
    let store = store().await;
    let mut ada = put(&store, &row("kp_ada", Some("a@x.org"))).await;
    ada.metadata.holds_email = false;
    ada.metadata.email_held_by = Some("kp_older".into());
    let mut ada = put(&store, &ada).await;
    let found = document(&store, "kp_ada").await;
    assert!(!found.contains_key("email"));
    let conflict = doc! { "email": "a@x.org", "heldBy": "kp_older" };
    assert_eq!(found.get_document("emailConflict").unwrap(), &conflict);
    ada.state = ada.state.join(tombstone("kp_ada").state);
    put(&store, &ada).await;
    let found = document(&store, "kp_ada").await;
    assert!(found.get_bool("isDeleted").unwrap() && found.get_datetime("deletedAt").is_ok());
    assert!(!found.contains_key("email") && !found.contains_key("emailConflict"));
}

#[tokio::test]
async fn what_is_erased_from_a_tombstone_leaves_its_document() {
    let store = store().await;
    let mut ada = put(&store, &with(row("kp_ada", None), Field::LastName, "Lovelace")).await;
    ada.state = tombstone("kp_ada").state;
    put(&store, &ada).await;
    let found = document(&store, "kp_ada").await;
    assert!(!found.to_string().contains("Lovelace") && !found.contains_key("firstName"), "{found}");
}

#[tokio::test]
async fn the_applications_fields_survive() {
    let store = store().await;
    let ada = put(&store, &row("kp_ada", Some("a@x.org"))).await;
    let own = doc! { "plan": "pro", "lastName": "set by the application", "deep.er": [1, 2] };
    users(&store).update_one(doc! {}, doc! { "$set": own }).await.unwrap();
    let before = document(&store, "kp_ada").await;
    put(&store, &with(ada, Field::FirstName, "Augusta")).await;
    let after = document(&store, "kp_ada").await;
    for key in ["_id", "plan", "lastName", "deep"] {
        assert_eq!(before.get(key), after.get(key), "{key}");
    }
    assert_eq!(after.get_str("firstName").unwrap(), "Augusta");
}

#[tokio::test]
async fn a_document_of_the_application_may_hold_an_address() {
    let store = store().await;
    let own = users(&store).insert_one(doc! { "email": "a@x.org", "plan": "pro" }).await.unwrap();
    users(&store).insert_many([doc! { "email": "" }, doc! { "email": "" }, doc! {}, doc! {}]).await.unwrap();
    assert_eq!(outcome(&store, &row("kp_ada", Some("a@x.org"))).await, Outcome::EmailTaken);
    let holder = holder(&store, "a@x.org").await;
    let own = own.inserted_id.as_object_id().map(bson::oid::ObjectId::to_hex);
    assert_eq!(holder, own.map(Holder::Foreign));
    assert_eq!(store.claimants(&["a@x.org".into()]).await.unwrap(), []);
}

#[tokio::test]
async fn a_manually_damaged_field_counts_as_unknown() {
    let store = store().await;
    let ada = with(row("kp_ada", Some("a@x.org")), Field::Picture, "https://x.org/ada.png");
    put(&store, &with(ada, Field::LastName, "Lovelace")).await;
    let junk = doc! { "kinsync.values.lastName": 5, "organizations": "none", "kinsync.at.picture": "junk" };
    users(&store).update_one(doc! {}, doc! { "$set": junk }).await.unwrap();
    let found = get(&store, "kp_ada").await.unwrap();
    assert_eq!(found.state.text(Field::FirstName), Some("Ada"));
    assert_eq!((found.state.value(Field::LastName), found.state.value(Field::Picture)), (None, None));
    let repaired = put(&store, &with(found, Field::LastName, "Lovelace")).await;
    assert_eq!(get(&store, "kp_ada").await, Some(repaired));
    for junk in [Bson::from("many"), Bson::Null, Bson::from(-1), Bson::from(0.5), doc! { "n": 1 }.into()] {
        let change = doc! { "$set": { "kinsync.revision": junk.clone() } };
        users(&store).update_one(doc! {}, change).await.unwrap();
        assert_eq!(get(&store, "kp_ada").await, None, "{junk}");
        let ada = of_its_document(&store, &row("kp_ada", Some("a@x.org"))).await;
        let ada = put(&store, &ada).await;
        assert_eq!(get(&store, "kp_ada").await, Some(ada), "{junk}: written over");
    }
}

#[tokio::test]
async fn collections_and_keys_have_the_configured_names() {
    let names = [(Field::Email, "mail"), (Field::FirstName, "given")];
    let names = names.map(|(field, name)| (DocumentKey::Field(field), Some(name.to_owned())));
    let fields = FieldMapping { names: names.into(), ..FieldMapping::default() };
    let config = Config { users: "people".into(), events: "log".into(), fields, ..fresh().await };
    let store = prepared(config).await;
    let ada = put(&store, &row("kp_ada", Some("a@x.org"))).await;
    assert_eq!(get(&store, "kp_ada").await, Some(ada.clone()));
    let people = store.database().unwrap().collection::<Document>("people");
    let found = people.find_one(doc! { "mail": "a@x.org", "given": "Ada" }).await.unwrap().unwrap();
    assert!(!found.contains_key("email") && !found.contains_key("firstName"));
    assert_eq!(outcome(&store, &row("kp_eve", Some("a@x.org"))).await, Outcome::EmailTaken);
    assert_eq!(store.claimants(&["a@x.org".into()]).await.unwrap(), [ada]);
}

#[tokio::test]
async fn colliding_documents_are_reported_with_fixes() {
    let config = fresh().await;
    let store = MongoStore::connect(config.clone()).await.unwrap();
    let twins = [doc! { "_id": "one", "email": "a@x.org" }, doc! { "_id": "two", "email": "a@x.org" }];
    users(&store).insert_many(twins).await.unwrap();
    let fix = fix_of_email(&store).await;
    assert!(fix.contains("one and two") && fix.contains("unique_email = false"), "{fix}");
    assert!(!fix.contains("a@x.org"), "no address in a problem: {fix}");
    assert!(!store.enforces_unique_emails());
    let store = prepared(Config { unique_email: false, ..config.clone() }).await;
    put(&store, &row("kp_ada", Some("a@x.org"))).await;
    users(&store).delete_many(doc! { "_id": { "$in": ["one", "two"] } }).await.unwrap();
    let unique = MongoStore::connect(config).await.unwrap();
    let changed = fix_of_email(&unique).await;
    assert!(changed.contains(r#"dropIndex("kinsync_email")"#), "{changed}");
    users(&unique).drop_index("kinsync_email").await.unwrap();
    unique.prepare().await.unwrap();
    assert_eq!((unique.examine().await.unwrap(), unique.enforces_unique_emails()), (vec![], true));
}

/// As an application does it that reads a document, changes a field of its own and replaces it: the driver of Node
/// reads large integers as numbers, and writes those as doubles.

#[tokio::test]
async fn no_user_is_written_before_the_indexes_exist() {
    let store = MongoStore::connect(fresh().await).await.unwrap();
    let ada = row("kp_ada", Some("a@x.org"));
    let error = store.write(std::slice::from_ref(&ada)).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(store.load(std::slice::from_ref(&ada.id)).await.unwrap(), [None], "reading works");
    store.prepare().await.unwrap();
    put(&store, &ada).await;
}

/// The row as it is written over the document that the user has.
pub(crate) async fn of_its_document(store: &MongoStore, row: &Row) -> Row {
    let there = store.load_to_write(std::slice::from_ref(&row.id)).await.unwrap().remove(0);
    Row { document: there.document, ..row.clone() }
}

#[tokio::test]
async fn a_refused_row_does_not_delay_the_others() {
    let store = store().await;
    let validator = doc! { "collMod": "users", "validator": { "firstName": { "$ne": "bad" } } };
    store.database().unwrap().run_command(validator).await.unwrap();
    let large = "x".repeat(17 << 20);
    let batch = [
        with(row("kp_1", None), Field::FirstName, "good"),
        with(row("kp_2", None), Field::FirstName, "bad"),
        with(row("kp_3", None), Field::FirstName, large.as_str()),
        with(row("kp_4", None), Field::FirstName, &large[..7 << 20]),
        with(row("kp_5", None), Field::FirstName, &large[..7 << 20]),
    ];
    let outcomes = store.write(&batch).await.unwrap();
    assert!(
        matches!(&outcomes[1], Outcome::Refused(why) if why.reason.contains("validator")),
        "{outcomes:?}"
    );
    assert!(matches!(&outcomes[2], Outcome::Refused(why) if why.reason.contains("16 MiB")), "{outcomes:?}");
    for n in [0, 3, 4] {
        assert_eq!(outcomes[n], Outcome::Written, "{n}");
    }
    let update =
        [with(stored(&batch[0]), Field::FirstName, "bad"), with(stored(&batch[3]), Field::LastName, "b")];
    let outcomes = store.write(&update).await.unwrap();
    assert!(matches!(outcomes[..], [Outcome::Refused(_), Outcome::Written]), "{outcomes:?}");
}

#[tokio::test]
async fn documents_of_the_application_are_not_users() {
    let store = store().await;
    let foreign = [doc! { "email": "a@x.org" }, doc! { "kindeId": 5 }, doc! { "kindeId": "kp_theirs" }];
    users(&store).insert_many(foreign).await.unwrap();
    put(&store, &row("kp_ada", None)).await;
    let filter =
        kinsync_engine::internal::store::UserFilter { limit: 9, with_deleted: true, ..Default::default() };
    let listed = store.users(&filter).await.unwrap();
    assert_eq!(listed.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["kp_ada"]);
}

#[tokio::test]
async fn a_page_with_documents_that_cannot_be_decoded_is_shorter_and_not_the_last() {
    let store = store().await;
    for id in ["kp_a", "kp_b", "kp_c", "kp_d", "kp_e"] {
        put(&store, &row(id, None)).await;
    }
    let broken = doc! { "$set": { "kinsync.revision": "two" } };
    users(&store).update_many(doc! { "kindeId": { "$in": ["kp_a", "kp_c", "kp_d"] } }, broken).await.unwrap();
    let mut filter = kinsync_engine::internal::store::UserFilter { limit: 2, ..Default::default() };
    let (mut listed, mut undecodable) = (Vec::new(), Vec::new());
    loop {
        let page = store.users(&filter).await.unwrap();
        listed.extend(page.iter().map(|row| row.id.to_string()));
        undecodable.extend(page.undecodable);
        filter.after = page.next;
        if filter.after.is_none() {
            break;
        }
    }
    assert_eq!(listed, ["kp_b", "kp_e"]);
    assert_eq!(undecodable, ["kp_a", "kp_c", "kp_d"], "what cannot be decoded is listed as such");
}

#[tokio::test]
async fn no_error_and_no_debug_text_shows_the_password() {
    for uri in ["mongodb://me:hunter2@@:x/", "http://me:hunter2@h/", "mongodb://me:hunter2@h:1/?w=-9"] {
        let config = Config::new(uri);
        assert!(!format!("{config:?}").contains("hunter2"));
        let error = MongoStore::connect(config).await.expect_err(uri);
        assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
        assert!(!error.is_transient());
    }
    let store = MongoStore::connect(Config::new("mongodb://me:hunter2@127.0.0.1:1/")).await.unwrap();
    assert!(!format!("{store:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_null_is_an_absent_key_and_read_back() {
    let store = store().await;
    let index = |key: &str| {
        let index = doc! { "key": { key: 1 }, "unique": true, "sparse": true, "name": format!("own_{key}") };
        store.database().unwrap().run_command(doc! { "createIndexes": "users", "indexes": [index] })
    };
    for key in ["email", "phone", "username"] {
        index(key).await.unwrap();
    }
    for user in ["kp_ada", "kp_eve"] {
        let row = with(with(row(user, None), Field::Phone, Value::Null), Field::Username, Value::Null);
        let written = put(&store, &with(row, Field::LastName, Value::Null)).await;
        assert_eq!(get(&store, user).await, Some(written));
        let found = document(&store, user).await;
        let absent = ["email", "phone", "username", "lastName"];
        assert!(absent.iter().all(|key| !found.contains_key(key)), "{found}");
    }
    let ada = get(&store, "kp_ada").await.unwrap();
    let ada = put(&store, &with(ada, Field::Phone, "+61 1")).await;
    put(&store, &with(ada, Field::Phone, Value::Null)).await;
    assert!(!document(&store, "kp_ada").await.contains_key("phone"), "and taken away");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_membership_shows_the_name_of_the_organization_and_the_keys_of_roles_and_permissions() {
    let store = store().await;
    let version = Version::event(Micros(1), "e");
    let observed = |id: &str, fact, value: Value| (id.to_owned(), Entry::observed([(fact, value)], &version));
    let membership = Organization {
        roles: Some(vec!["r".into()]),
        permissions: Some(Vec::new()),
        ..Organization::new("org_1")
    };
    let list = Value::Organizations(vec![membership]);
    let mut ada = row("kp_ada", None);
    ada.state = ada.state.with_register(Field::Organizations, version.clone(), list);
    ada.state.directory = Directory::from_iter([
        observed("org_1", Fact::Name, "Acme".into()),
        observed("r", Fact::Key, "admin".into()),
        observed("r", Fact::Permissions, Value::Codes(vec!["p".into()])),
        observed("p", Fact::Key, "read".into()),
    ]);
    put(&store, &ada).await;
    let shown = document(&store, "kp_ada").await.get_array("organizations").unwrap().clone();
    let expected = doc! { "code": "org_1", "name": "Acme", "roles": ["admin"], "permissions": ["read"] };
    assert_eq!(shown, [Bson::Document(expected)]);
}
