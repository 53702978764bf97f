//! A failure of one user is never an outage, and an outage never makes a dead letter.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use bson::{Document, doc};
use kinsync_core::{Field, Micros, Observation, Profile, Source, Value, Version, What};
use kinsync_engine::{
    Engine,
    internal::{
        apply::{apply, apply_refused, apply_refused_keys},
        breaker, projector,
        queue::{Entry, Queue},
        refused_users,
        store::{RefusedKeys, Row, Store, embedded::EmbeddedStore, mongo},
    },
};
use kinsync_testing::mongo::TestMongo;
use tokio::time::Instant;

use crate::{
    pipeline::event_entry,
    requests::Requests,
    store_mongo::{prepared, store, users},
    store_rows::{get, id, put, row, with},
};

/// A started engine on a store that refuses writes or fails.
struct Pipeline {
    engine: Engine,
    queue: Arc<dyn Queue>,
    store: Arc<dyn Store>,
    _dir: tempfile::TempDir,
}

impl Pipeline {
    /// Enqueues the entries before the projector starts, so that they are claimed together.
    async fn start(store: Arc<dyn Store>, entries: Vec<Entry>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pause = Duration::from_millis(20);
        let breaker = breaker::Config { pause, max_pause: pause, ..breaker::Config::default() };
        let config = projector::Config {
            retry_after: Duration::from_millis(10),
            sweep_every: Duration::from_millis(200),
            ..projector::Config::default()
        };
        let builder = Engine::builder(dir.path()).store(store.clone()).projector(config, breaker);
        let engine = builder.open().await.unwrap();
        for entry in entries {
            engine.queue().enqueue(entry).await.unwrap();
        }
        engine.start();
        Self { queue: engine.queue().clone(), engine, store, _dir: dir }
    }

    async fn until(&self, what: &str, is_so: impl AsyncFn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_mins(2);
        while !is_so(self).await {
            let stats = self.queue.stats().await.unwrap();
            assert!(Instant::now() < deadline, "{what}: {stats:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn depth(&self) -> u64 {
        self.queue.stats().await.unwrap().depth
    }

    async fn shows(&self, user: &str, key: &str) -> bool {
        let row = get(&*self.store, user).await;
        row.is_some_and(|row| !row.refused.reasons().contains_key(key))
    }

    async fn is_stored(&self, user: &str) -> bool {
        get(&*self.store, user).await.is_some()
    }

    /// Ids of the events set aside, with their reasons.
    async fn dead(&self) -> Vec<(String, String)> {
        let dead = self.queue.dead_letters(None, 100).await.unwrap();
        dead.into_iter().map(|letter| (letter.event_id, letter.reason)).collect()
    }

    async fn end(self) {
        self.engine.stop().await;
    }
}

fn named(user: &str) -> Entry {
    let told_of = format!(r#"{{"id":"{user}","first_name":"Ada","organizations":[{{"code":"org_1"}}]}}"#);
    event_entry("user.created", 1, &format!("event_of_{user}"), &told_of)
}

fn forty_and(others: &[&str]) -> Vec<Entry> {
    let good = (0..40).map(|n| format!("kp_good_{n:02}"));
    let mut entries: Vec<Entry> = good.map(|user| named(&user)).collect();
    entries.extend(others.iter().map(|user| named(user)));
    entries.rotate_right(others.len().div_ceil(2));
    entries
}

async fn all_good_are_stored(pipeline: &Pipeline) -> bool {
    for n in 0..40 {
        if !pipeline.is_stored(&format!("kp_good_{n:02}")).await {
            return false;
        }
    }
    true
}

async fn index(store: &mongo::MongoStore, index: Document) {
    let command = doc! { "createIndexes": "users", "indexes": [index] };
    store.database().unwrap().run_command(command).await.unwrap();
}

/// The refused users, each with the rule.
async fn refused(store: &dyn Store) -> Vec<(String, String)> {
    let refused = refused_users::list(store, None, 100).await.unwrap();
    refused.into_iter().map(|refused| (refused.id.to_string(), refused.user.reason)).collect()
}

/// Refuses exactly these users with this reason, stores all others and makes no dead letter.
async fn only_these_are_refused(store: Arc<dyn Store>, bad: &[&str], reason: &str) {
    let pipeline = Pipeline::start(store.clone(), forty_and(bad)).await;
    pipeline.until("the others are stored", all_good_are_stored).await;
    pipeline.until("the queue is empty", async |p| p.depth().await == 0).await;
    assert_eq!(pipeline.dead().await, []);
    let refused = refused(&*store).await;
    let ids: Vec<&str> = refused.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, bad, "{refused:?}");
    assert!(refused.iter().all(|(_, why)| why.contains(reason)), "{refused:?}");
    pipeline.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compound_index_over_two_arrays_costs_the_users_it_refuses_their_own_array_alone() {
    let store = store().await;
    index(&store, doc! { "key": { "organizations.code": 1, "tags": 1 }, "name": "own" }).await;
    let own = ["kp_a", "kp_b"].map(|user| doc! { "kindeId": user, "tags": [] });
    users(&store).insert_many(own).await.unwrap();
    let pipeline = Pipeline::start(Arc::new(store.clone()), forty_and(&["kp_a", "kp_b"])).await;
    pipeline.until("all are stored", async |p| p.depth().await == 0).await;
    assert!(all_good_are_stored(&pipeline).await && pipeline.dead().await.is_empty());
    for user in ["kp_a", "kp_b"] {
        let reason = refused_key(&store, user, "organizations").await.unwrap();
        assert!(reason.contains("171"), "{reason}");
        assert_eq!(get(&store, user).await.unwrap().document().first_name.as_deref(), Some("Ada"));
    }
    users(&store).drop_index("own").await.unwrap();
    pipeline.until("it is shown", async |p| p.shows("kp_a", "organizations").await).await;
    pipeline.end().await;
}

/// Why a key of a document is refused, as recorded in the document.
async fn refused_key(store: &mongo::MongoStore, user: &str, key: &str) -> Option<String> {
    let found = users(store).find_one(doc! { "kindeId": user }).await.unwrap()?;
    let refused = found.get_document("kinsync").unwrap().get_document("refused").ok()?;
    assert!(!found.contains_key(key), "{found}");
    Some(refused.get_str(key).unwrap_or_default().to_owned())
}

fn with_phone(user: &str, at: i64, phone: &str) -> Entry {
    let told_of = format!(r#"{{"id":"{user}","phone":"{phone}","first_name":"Ada"}}"#);
    event_entry("user.updated", at, &format!("phone_{at}_of_{user}"), &told_of)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_a_unique_index_refuses_costs_that_key_alone_until_it_is_free() {
    let store = store().await;
    index(&store, doc! { "key": { "phone": 1 }, "unique": true, "sparse": true, "name": "phone_1" }).await;
    let pipeline = Pipeline::start(Arc::new(store.clone()), vec![with_phone("kp_a", 1, "+441")]).await;
    pipeline.until("one is stored", async |p| p.is_stored("kp_a").await).await;
    pipeline.queue.enqueue(with_phone("kp_b", 1, "+441")).await.unwrap();
    pipeline.until("both are stored", async |p| p.is_stored("kp_b").await).await;
    let reason = refused_key(&store, "kp_b", "phone").await.unwrap();
    assert!(reason.contains("`phone_1`") && !reason.contains("+441"), "{reason}");
    let bob = get(&store, "kp_b").await.unwrap();
    assert_eq!(
        (bob.document().phone.as_deref(), bob.document().first_name.as_deref()),
        (Some("+441"), Some("Ada"))
    );
    // A sweep that changes nothing writes nothing.
    assert_eq!(apply_refused_keys(&store, &mut None, Micros(9)).await.unwrap(), 0);
    assert_eq!(get(&store, "kp_b").await.unwrap().revision, bob.revision);
    pipeline.queue.enqueue(with_phone("kp_a", 2, "+442")).await.unwrap();
    pipeline.until("the number is shown", async |p| p.shows("kp_b", "phone").await).await;
    assert_eq!(refused_key(&store, "kp_b", "none").await, None);
    assert!(refused(&store).await.is_empty() && pipeline.dead().await.is_empty());
    pipeline.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_a_validator_refuses_cost_their_keys_alone() {
    let store = store().await;
    let properties =
        doc! { "phone": { "pattern": "^0" }, "source": { "enum": ["web"] }, "firstName": { "minLength": 9 } };
    rule(&store, doc! { "$jsonSchema": { "properties": properties } }).await.unwrap();
    let pipeline = Pipeline::start(Arc::new(store.clone()), vec![with_phone("kp_a", 1, "+441")]).await;
    pipeline.until("it is stored", async |p| p.is_stored("kp_a").await).await;
    for key in ["phone", "source", "firstName"] {
        let reason = refused_key(&store, "kp_a", key).await.unwrap();
        assert!(reason.contains("validator"), "{key}: {reason}");
    }
    rule(&store, doc! {}).await.unwrap();
    pipeline.until("all is shown", async |p| p.shows("kp_a", "source").await).await;
    pipeline.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_gets_a_placeholder_where_a_rule_demands_an_address_and_the_settings_allow_it() {
    let mongo = TestMongo::shared().await;
    let config = mongo::Config {
        database: Some(mongo.database()),
        tombstone_email: mongo::TombstoneEmail::Placeholder,
        ..mongo::Config::new(mongo.uri())
    };
    let store = prepared(config).await;
    index(&store, doc! { "key": { "email": 1 }, "unique": true, "name": "email_1" }).await;
    let pipeline =
        Pipeline::start(Arc::new(store.clone()), vec![with_email("kp_a"), with_email("kp_b")]).await;
    pipeline.until("both are stored", async |p| p.depth().await == 0).await;
    for user in ["kp_a", "kp_b"] {
        pipeline.queue.enqueue(deleted(user)).await.unwrap();
    }
    pipeline.until("the deletions are applied", async |p| p.depth().await == 0).await;
    // One document without an address is allowed.
    let found = users(&store).find_one(doc! { "email": { "$gt": "" } }).await.unwrap().unwrap();
    let placeholder = format!("deleted+{}@kinsync.invalid", found.get_str("kindeId").unwrap());
    assert!(
        found.get_bool("isDeleted").unwrap() && found.get_str("email").unwrap() == placeholder,
        "{found}"
    );
    pipeline.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_kinsync_cannot_read_back_are_named_and_not_looped_on() {
    let store = store().await;
    let own = [
        doc! { "_id": "mine_a", "kindeId": ["kp_a", "kp_z"] },
        doc! { "_id": "mine_b", "kindeId": "kp_b", "kinsync": [{ "revision": 1 }] },
        doc! { "_id": "mine_c", "kindeId": "kp_c", "kinsync": "x" },
        doc! { "_id": "mine_d", "kindeId": "kp_d", "kinsync": { "revision": [1] } },
    ];
    users(&store).insert_many(&own).await.unwrap();
    let bad = ["kp_a", "kp_b", "kp_c", "kp_d"];
    only_these_are_refused(Arc::new(store.clone()), &bad, "mine_").await;
    for document in own {
        let id = document.get_str("_id").unwrap();
        let found = users(&store).find_one(doc! { "_id": id }).await.unwrap();
        assert_eq!(found, Some(document), "it is as the application left it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_every_write_makes_no_dead_letter() {
    let mongo = TestMongo::start_own().await;
    for code in [2, 13, 121, 171, 14031] {
        let config = mongo::Config { database: Some(mongo.database()), ..mongo::Config::new(mongo.uri()) };
        let store = prepared(config).await;
        let fault = doc! { "failCommands": ["insert", "update"], "errorCode": code };
        let guard = mongo.fail_point(doc! { "times": 100 }, fault).await;
        let pipeline = Pipeline::start(Arc::new(store), forty_and(&["kp_z"])).await;
        pipeline.until("all are stored", async |p| p.depth().await == 0).await;
        assert_eq!(pipeline.dead().await, [], "{code}");
        assert!(pipeline.is_stored("kp_z").await && all_good_are_stored(&pipeline).await, "{code}");
        pipeline.end().await;
        drop(guard);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_the_embedded_store_that_cannot_be_read_is_refused_and_all_others_stored() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    put(&store, &row("kp_a", None)).await;
    let sqlite = rusqlite::Connection::open(dir.path().join("kinsync.sqlite")).unwrap();
    assert_eq!(sqlite.execute("UPDATE users SET state = '{' WHERE id = 'kp_a'", []).unwrap(), 1);
    only_these_are_refused(Arc::new(store), &["kp_a"], "cannot be decoded").await;
}

fn deleted(user: &str) -> Entry {
    event_entry("user.deleted", 5, &format!("deletion_of_{user}"), &format!(r#"{{"id":"{user}"}}"#))
}

fn with_email(user: &str) -> Entry {
    let told_of = format!(r#"{{"id":"{user}","first_name":"Ada","email":"{user}@example.com"}}"#);
    event_entry("user.created", 1, &format!("event_of_{user}"), &told_of)
}

/// How the request path sees a user.
async fn seen(store: &dyn Store, user: &str) -> kinsync_core::UserDocument {
    Requests::default().document(store, user).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unique_index_made_later_keeps_no_deletion_from_taking_effect() {
    let store = store().await;
    let four = ["kp_a", "kp_b", "kp_c"].map(with_email).into_iter().chain([named("kp_d")]);
    let pipeline = Pipeline::start(Arc::new(store.clone()), four.collect()).await;
    pipeline.until("all are stored", async |p| p.depth().await == 0).await;
    index(&store, doc! { "key": { "email": 1 }, "unique": true, "name": "email_1" }).await;
    for user in ["kp_a", "kp_b", "kp_c"] {
        pipeline.queue.enqueue(deleted(user)).await.unwrap();
    }
    pipeline.until("the deletions are applied", async |p| p.depth().await == 0).await;
    assert_eq!(pipeline.dead().await, []);
    for user in ["kp_a", "kp_b", "kp_c"] {
        assert!(get(&store, user).await.unwrap().document().is_deleted, "{user}");
        let found = users(&store).find_one(doc! { "kindeId": user }).await.unwrap().unwrap();
        assert!(found.get_bool("isDeleted").unwrap() && found.get_datetime("deletedAt").is_ok(), "{found}");
    }
    pipeline.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspension_that_a_validator_refuses_is_honoured_and_stored_once_it_can_be() {
    let store = store().await;
    let pipeline = Pipeline::start(Arc::new(store.clone()), vec![named("kp_a"), named("kp_b")]).await;
    pipeline.until("both are stored", async |p| p.depth().await == 0).await;
    let validator = |rule: Document| {
        store.database().unwrap().run_command(doc! { "collMod": "users", "validator": rule })
    };
    validator(doc! { "$jsonSchema": { "required": ["tenant"] } }).await.unwrap();
    let suspended = r#"{"id":"kp_a","is_suspended":true}"#;
    pipeline.queue.enqueue(event_entry("user.updated", 3, "suspension", suspended)).await.unwrap();
    pipeline.queue.enqueue(deleted("kp_b")).await.unwrap();
    pipeline.until("both are refused", async |p| refused(&*p.store).await.len() == 2).await;
    for (_, reason) in refused(&store).await {
        assert!(reason.contains("required") && reason.contains("tenant"), "{reason}");
    }
    assert!(seen(&store, "kp_a").await.is_suspended == Some(true) && seen(&store, "kp_b").await.is_deleted);
    pipeline.end().await;
    assert_eq!(apply_refused(&store, &mut None, Micros(1)).await.unwrap(), 0, "still refused");
    validator(doc! {}).await.unwrap();
    assert_eq!(apply_refused(&store, &mut None, Micros(1)).await.unwrap(), 2);
    assert_eq!(get(&store, "kp_a").await.unwrap().document().is_suspended, Some(true));
    assert!(get(&store, "kp_b").await.unwrap().document().is_deleted);
    assert_eq!(apply_refused(&store, &mut None, Micros(1)).await.unwrap(), 0, "nothing is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_write_of_the_marks_leaves_out_is_kept_and_shown_by_the_next_write() {
    let store = store().await;
    let ada = put(&store, &with(row("kp_a", Some("a@x.org")), Field::LastName, "Byron")).await;
    let ada = with(with(ada, Field::IsSuspended, Value::Flag(true)), Field::LastName, "Lovelace");
    let refused = RefusedKeys { all: Some("a rule".into()), ..RefusedKeys::default() };
    let ada = put(&store, &Row { refused, ..ada }).await;
    assert_eq!(get(&store, "kp_a").await.as_ref(), Some(&ada));
    let shown = || async { users(&store).find_one(doc! {}).await.unwrap().unwrap() };
    let found = shown().await;
    assert!(found.get_bool("isSuspended").unwrap(), "{found}");
    assert_eq!((found.get_str("lastName").unwrap(), found.get_str("email").unwrap()), ("Byron", "a@x.org"));
    let ada = put(&store, &Row { refused: RefusedKeys::default(), ..ada }).await;
    assert_eq!(get(&store, "kp_a").await, Some(ada));
    assert_eq!(shown().await.get_str("lastName").unwrap(), "Lovelace");
}

fn rule(store: &mongo::MongoStore, rule: Document) -> impl Future<Output = mongodb::error::Result<Document>> {
    let database = store.database().unwrap().clone();
    async move { database.run_command(doc! { "collMod": "users", "validator": rule }).await }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_that_a_validator_refuses_are_named_with_its_rule_and_stored_by_themselves_once_it_allows_them()
{
    let store = store().await;
    users(&store).insert_one(doc! { "tenant": "t" }).await.unwrap();
    rule(&store, doc! { "$jsonSchema": { "required": ["tenant"] } }).await.unwrap();
    let pipeline =
        Pipeline::start(Arc::new(store.clone()), vec![with_email("kp_a"), with_email("kp_b")]).await;
    pipeline.until("both are refused", async |p| refused(&*p.store).await.len() == 2).await;
    for (_, reason) in refused(&store).await {
        assert!(reason.contains("required") && reason.contains("`tenant`"), "{reason}");
    }
    // Further observations are kept as well.
    let renamed = r#"{"id":"kp_a","first_name":"Grace"}"#;
    pipeline.queue.enqueue(event_entry("user.updated", 3, "renamed", renamed)).await.unwrap();
    pipeline.queue.enqueue(deleted("kp_b")).await.unwrap();
    pipeline.until("the queue is empty", async |p| p.depth().await == 0).await;
    assert_eq!(seen(&store, "kp_a").await.first_name.as_deref(), Some("Grace"));
    assert!(seen(&store, "kp_b").await.is_deleted);
    assert!(!pipeline.is_stored("kp_a").await && pipeline.dead().await.is_empty());
    rule(&store, doc! {}).await.unwrap();
    pipeline.until("both are stored", async |p| p.is_stored("kp_a").await && p.is_stored("kp_b").await).await;
    let ada = get(&store, "kp_a").await.unwrap().document();
    assert_eq!((ada.email.as_deref(), ada.first_name.as_deref()), (Some("kp_a@example.com"), Some("Grace")));
    assert!(get(&store, "kp_b").await.unwrap().document().is_deleted);
    pipeline.until("no record is left", async |p| refused(&*p.store).await.is_empty()).await;
    pipeline.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unique_index_that_allows_one_user_without_a_username_refuses_the_others_until_it_is_dropped() {
    let store = store().await;
    index(&store, doc! { "key": { "username": 1 }, "unique": true, "name": "username_1" }).await;
    let five = ["kp_a", "kp_b", "kp_c", "kp_d", "kp_e"];
    let pipeline = Pipeline::start(Arc::new(store.clone()), five.map(with_email).to_vec()).await;
    pipeline.until("four are refused", async |p| refused(&*p.store).await.len() == 4).await;
    for (_, reason) in refused(&store).await {
        assert!(reason.contains("`username_1`") && reason.contains("without `username`"), "{reason}");
    }
    users(&store).drop_index("username_1").await.unwrap();
    pipeline
        .until("all are stored", async |p| {
            let stored = async |user: &&str| p.is_stored(user).await;
            futures_util::future::join_all(five.iter().map(stored)).await.iter().all(|stored| *stored)
        })
        .await;
    assert_eq!(pipeline.dead().await, []);
    pipeline.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_users_than_one_page_of_records_are_refused_and_stored_by_the_next_sweeps() {
    let store = store().await;
    rule(&store, doc! { "$jsonSchema": { "required": ["tenant"] } }).await.unwrap();
    let observations = (0..1_500).map(|n| Observation {
        user: id(&format!("kp_{n:04}")),
        version: Version::event(Micros(1), "event_1"),
        source: Source::Webhook,
        what: What::Fields(Profile::new()),
    });
    let applied = apply(&store, observations, Micros(1)).await.unwrap();
    assert_eq!((applied.refused.len(), refused_users::count(&store).await.unwrap()), (1_500, 1_500));
    let mut after = None;
    assert_eq!(apply_refused(&store, &mut after, Micros(1)).await.unwrap(), 0, "still refused");
    rule(&store, doc! {}).await.unwrap();
    let mut stored = 0;
    while stored < 1_500 {
        stored += apply_refused(&store, &mut after, Micros(1)).await.unwrap();
    }
    assert_eq!(refused_users::count(&store).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_of_a_write_changes_no_revision_and_fails_where_a_write_does() {
    let store = store().await;
    let ada = put(&store, &row("kp_a", None)).await;
    assert!(store.accepts_write_of(&ada).await.unwrap());
    assert_eq!(get(&store, "kp_a").await.as_ref(), Some(&ada));
    assert!(!store.accepts_write_of(&row("kp_b", None)).await.unwrap(), "there is no such document");
}
