//! The collections of organizations, roles and memberships, on the real server.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, sync::Arc};

use bson::{Document, doc};
use futures_util::TryStreamExt;
use kinsync_core::{
    Entry, Fact, Field, Micros, Observation, Organization, Profile, Source, UserId, Value, Version, What,
};
use kinsync_engine::{
    Clock,
    internal::{
        apply::apply,
        derived,
        directory::{self, Change, Kind},
        spread::{Config, Spread},
        store::{
            Store, StoreProblem,
            mongo::{self, Derived, DerivedConfig, MongoStore},
        },
    },
};
use kinsync_testing::mongo::TestMongo;
use mongodb::{Collection, Database};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{reconcile::DEADLINE, suspended::Suspended};

type Collections = BTreeMap<Derived, DerivedConfig>;

/// A database with a store that writes all three collections.
struct Fresh {
    store: Arc<dyn Store>,
    mongo: MongoStore,
    database: Database,
}

fn named(collection: &str, names: &[(&str, Option<&str>)]) -> DerivedConfig {
    let names = names.iter().map(|(key, name)| ((*key).to_owned(), name.map(ToOwned::to_owned)));
    DerivedConfig { collection: Some(collection.into()), names: names.collect(), ..DerivedConfig::default() }
}

fn all() -> Collections {
    Collections::from([
        (Derived::Organizations, named("organizations", &[])),
        (Derived::Roles, named("roles", &[])),
        (Derived::Memberships, named("memberships", &[])),
    ])
}

async fn open(database: &str, collections: Collections) -> Fresh {
    let server = TestMongo::shared().await;
    let config = mongo::Config {
        database: Some(database.to_owned()),
        derived: collections,
        ..mongo::Config::new(server.uri())
    };
    let mongo = MongoStore::connect(config).await.unwrap();
    mongo.prepare().await.unwrap();
    let database = server.client().await.database(database);
    Fresh { store: Arc::new(mongo.clone()), mongo, database }
}

async fn fresh() -> Fresh {
    open(&TestMongo::shared().await.database(), all()).await
}

impl Fresh {
    fn collection(&self, name: &str) -> Collection<Document> {
        self.database.collection(name)
    }

    /// The documents of a collection without `_id` and `kinsync`.
    async fn shown(&self, name: &str) -> Vec<Document> {
        let collection = self.collection(name);
        let found = collection.find(doc! {}).projection(doc! { "_id": 0, "kinsync": 0 });
        let mut found: Vec<Document> = found.await.unwrap().try_collect().await.unwrap();
        found.sort_by_key(ToString::to_string);
        found
    }

    async fn one(&self, name: &str, filter: Document) -> Document {
        let collection = self.collection(name);
        let found = collection.find_one(filter).projection(doc! { "_id": 0, "kinsync": 0 });
        found.await.unwrap().expect("the document exists")
    }

    async fn problems(&self) -> Vec<StoreProblem> {
        self.mongo.examine().await.unwrap()
    }

    /// Stores observations of organizations, roles and permissions, and spreads them.
    async fn observe(&self, changes: Vec<Change>) {
        directory::observe(&*self.store, changes).await.unwrap();
        let spread = Spread::new(self.store.clone(), Clock::system(), Config::default());
        let stop = CancellationToken::new();
        let done = async {
            until("nothing is marked", async || self.store.due_states(None, 1).await.unwrap().is_empty())
                .await;
            stop.cancel();
        };
        tokio::join!(spread.run(stop.clone()), done);
    }

    /// Runs the task of the derived collections until this holds.
    async fn maintain_until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let stop = CancellationToken::new();
        let done = async {
            until(what, is_so).await;
            stop.cancel();
        };
        tokio::join!(derived::run(self.store.clone(), Clock::system(), stop.clone()), done);
    }
}

async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn change(kind: Kind, id: &str, facts: &[(Fact, Value)], at: i64) -> Change {
    let entry = Entry::observed(facts.iter().cloned(), &Version::event(Micros(at), format!("{id} {at}")));
    Change { kind, id: id.into(), entry }
}

fn deleted(kind: Kind, id: &str, at: i64) -> Change {
    Change { kind, id: id.into(), entry: Entry::deleted(&Version::event(Micros(at), "deleted")) }
}

fn user(id: &str) -> UserId {
    UserId::parse(id).unwrap()
}

fn observation(id: &str, at: i64, what: What) -> Observation {
    let version = Version::event(Micros(at), format!("{id} {at}"));
    Observation { user: user(id), version, source: Source::Webhook, what }
}

/// The user is a member of these organizations with this role.
fn member(id: &str, codes: &[&str], role: &str, at: i64) -> Observation {
    let organization = |code: &&str| Organization {
        roles: Some(vec![role.to_owned()]),
        permissions: Some(Vec::new()),
        ..Organization::new(*code)
    };
    let list = Value::Organizations(codes.iter().map(organization).collect());
    observation(id, at, What::Fields(Profile::new().with(Field::Organizations, list)))
}

async fn write(store: &dyn Store, observations: Vec<Observation>) {
    let applied = apply(store, observations, Micros(1)).await.unwrap();
    assert_eq!((applied.failed, applied.refused), (vec![], vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_shows_its_facts_and_members_until_it_is_deleted() {
    let fresh = fresh().await;
    write(&*fresh.store, vec![member("kp_1", &["org_1"], "r", 1), member("kp_2", &["org_1"], "r", 1)]).await;
    write(&*fresh.store, vec![observation("kp_2", 2, What::Deleted)]).await;
    let facts = [(Fact::Name, Value::from("Acme")), (Fact::ExternalId, Value::from("c-1"))];
    fresh.observe(vec![change(Kind::Organization, "org_1", &facts, 3)]).await;
    let organizations = fresh.collection("organizations");
    organizations.update_one(doc! { "code": "org_1" }, doc! { "$set": { "plan": "pro" } }).await.unwrap();
    let shown = fresh.one("organizations", doc! { "code": "org_1" }).await;
    assert!(shown.get_datetime("membersAsOf").is_ok(), "{shown}");
    assert_eq!((shown.get_i64("memberCount").unwrap(), shown.get_bool("isDeleted").unwrap()), (1, false));
    assert_eq!((shown.get_str("name").unwrap(), shown.get_str("externalId").unwrap()), ("Acme", "c-1"));
    // A fact that no user document shows.
    fresh.observe(vec![change(Kind::Organization, "org_1", &[(Fact::Handle, Value::from("acme"))], 4)]).await;
    assert_eq!(fresh.one("organizations", doc! { "code": "org_1" }).await.get_str("handle").unwrap(), "acme");
    fresh.observe(vec![deleted(Kind::Organization, "org_1", 5)]).await;
    let shown = fresh.one("organizations", doc! { "code": "org_1" }).await;
    assert_eq!((shown.get_i64("memberCount").unwrap(), shown.get_bool("isDeleted").unwrap()), (0, true));
    assert_eq!((shown.get_datetime("deletedAt").is_ok(), shown.get_str("plan").unwrap()), (true, "pro"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_shows_the_keys_of_its_permissions_as_they_are() {
    let fresh = fresh().await;
    let permissions = Value::Codes(vec!["p1".into(), "p2".into()]);
    let changes = vec![
        change(Kind::Role, "r1", &[(Fact::Key, Value::from("admin")), (Fact::Permissions, permissions)], 1),
        change(Kind::Permission, "p1", &[(Fact::Key, Value::from("read"))], 1),
        change(Kind::Permission, "p2", &[(Fact::Key, Value::from("write"))], 1),
    ];
    fresh.observe(changes).await;
    let shown =
        async || fresh.one("roles", doc! { "key": "admin" }).await.get_array("permissions").unwrap().clone();
    assert_eq!(
        shown().await,
        [doc! { "id": "p1", "key": "read" }.into(), doc! { "id": "p2", "key": "write" }.into()]
    );
    fresh.observe(vec![change(Kind::Permission, "p1", &[(Fact::Key, Value::from("view"))], 2)]).await;
    fresh.observe(vec![deleted(Kind::Permission, "p2", 2)]).await;
    assert_eq!(shown().await, [doc! { "id": "p1", "key": "view" }.into()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_membership_ends_and_begins_again_and_keeps_what_the_application_wrote() {
    let fresh = fresh().await;
    write(&*fresh.store, vec![member("kp_1", &["org_1", "org_2"], "r", 1)]).await;
    let memberships = fresh.collection("memberships");
    let filter = doc! { "kindeId": "kp_1", "code": "org_1" };
    memberships.update_one(filter.clone(), doc! { "$set": { "desk": 7 } }).await.unwrap();
    write(&*fresh.store, vec![member("kp_1", &["org_2"], "r", 2)]).await;
    let ended = doc! { "code": "org_1", "desk": 7, "isDeleted": true, "kindeId": "kp_1" };
    let same = |found: &Document, expected: &Document| {
        found.iter().count() == expected.iter().count()
            && expected.iter().all(|(key, value)| found.get(key) == Some(value))
    };
    let found = fresh.one("memberships", filter.clone()).await;
    assert!(same(&found, &ended), "{found}");
    write(&*fresh.store, vec![member("kp_1", &["org_1", "org_2"], "s", 3)]).await;
    let found = fresh.one("memberships", filter.clone()).await;
    let again = doc! { "code": "org_1", "desk": 7, "isDeleted": false, "kindeId": "kp_1", "roles": ["s"] };
    assert!(same(&found, &again), "{found}");
    write(&*fresh.store, vec![observation("kp_1", 4, What::Deleted)]).await;
    assert_eq!(memberships.count_documents(doc! { "isDeleted": false }).await.unwrap(), 0);
    assert_eq!(fresh.store.unshown_memberships(None, 9).await.unwrap(), []);
}

/// Kills the process at each call of the write of a user, and lets another one continue.
#[tokio::test(flavor = "multi_thread")]
async fn a_membership_is_shown_whatever_call_of_the_write_is_the_last_one() {
    let fresh = fresh().await;
    let mut was_marked = false;
    for call in 0.. {
        let id = format!("kp_{call}");
        write(&*fresh.store, vec![member(&id, &["org_1"], "r", 1)]).await;
        let process = Suspended::new(fresh.store.clone());
        process.suspend_at_call(call);
        let view: Arc<dyn Store> = process.clone();
        let is_killed = tokio::select! {
            () = process.until_suspended() => true,
            () = write(&*view, vec![member(&id, &["org_2"], "r", 2)]) => false,
        };
        let marked = fresh.store.unshown_memberships(None, 9).await.unwrap();
        was_marked |= !marked.is_empty();
        derived::show_marked(&*fresh.store).await.unwrap();
        let row = fresh.store.load(&[user(&id)]).await.unwrap().remove(0).unwrap();
        let codes: Vec<String> = row.state.organizations().unwrap().into_iter().map(|one| one.code).collect();
        let filter = doc! { "kindeId": &id, "isDeleted": false };
        let shown = fresh.collection("memberships").distinct("code", filter).await.unwrap();
        assert_eq!(shown, codes.iter().map(bson::Bson::from).collect::<Vec<_>>(), "killed at call {call}");
        if !is_killed {
            break;
        }
    }
    assert!(was_marked, "no process was killed between the row and the document");
    assert_eq!(fresh.store.unshown_memberships(None, 9).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writes_of_one_user_leave_the_newest_memberships() {
    let fresh = fresh().await;
    for round in 0..5_i64 {
        let writes = (1..=8_i64).map(|n| {
            let (store, at) = (fresh.store.clone(), round * 10 + n);
            async move { write(&*store, vec![member("kp_1", &[&format!("org_{n}")], "r", at)]).await }
        });
        futures_util::future::join_all(writes).await;
        let shown =
            fresh.collection("memberships").distinct("code", doc! { "isDeleted": false }).await.unwrap();
        assert_eq!(shown, ["org_8".into()]);
        assert_eq!(fresh.store.unshown_memberships(None, 9).await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unique_index_of_the_application_on_a_field_of_its_own_refuses_nothing() {
    let fresh = fresh().await;
    let index = doc! { "createIndexes": "memberships", "indexes": [{
        "name": "badge_1", "key": { "badge": 1 }, "unique": true, "sparse": true,
    }] };
    fresh.database.run_command(index).await.unwrap();
    write(&*fresh.store, vec![member("kp_1", &["org_1"], "r", 1), member("kp_2", &["org_1"], "r", 1)]).await;
    let memberships = fresh.collection("memberships");
    for badge in ["kp_1", "kp_2"] {
        memberships.update_one(doc! { "kindeId": badge }, doc! { "$set": { "badge": badge } }).await.unwrap();
    }
    memberships
        .update_one(doc! { "kindeId": "kp_1" }, doc! { "$set": { "badge": "kp_2" } })
        .await
        .unwrap_err();
    write(&*fresh.store, vec![member("kp_1", &["org_1"], "s", 2), member("kp_2", &["org_1"], "s", 2)]).await;
    let shown = memberships.distinct("badge", doc! { "roles": "s" }).await.unwrap();
    assert_eq!(shown, ["kp_1".into(), "kp_2".into()]);
    assert_eq!(fresh.problems().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_an_index_refuses_stops_no_other_and_is_written_when_the_index_is_dropped() {
    let fresh = fresh().await;
    let index = doc! { "createIndexes": "memberships", "indexes": [{
        "name": "badge_1", "key": { "badge": 1 }, "unique": true,
    }] };
    fresh.database.run_command(index).await.unwrap();
    write(&*fresh.store, vec![member("kp_1", &["org_1"], "r", 1)]).await;
    write(&*fresh.store, vec![member("kp_2", &["org_1"], "r", 1)]).await;
    write(&*fresh.store, vec![member("kp_1", &["org_1"], "s", 2)]).await;
    assert_eq!(fresh.one("memberships", doc! {}).await.get_array("roles").unwrap(), &["s".into()]);
    assert_eq!(fresh.store.unshown_memberships(None, 9).await.unwrap(), [user("kp_2")]);
    let problems: Vec<String> = fresh.problems().await.into_iter().map(|one| one.subject).collect();
    assert_eq!(problems, ["index memberships.badge_1", "documents of memberships"]);
    fresh.database.run_command(doc! { "dropIndexes": "memberships", "index": "badge_1" }).await.unwrap();
    derived::show_marked(&*fresh.store).await.unwrap();
    assert_eq!(fresh.shown("memberships").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_of_the_application_is_not_written_until_the_settings_name_its_key() {
    let name = TestMongo::shared().await.database();
    let database = TestMongo::shared().await.client().await.database(&name);
    let organizations: Collection<Document> = database.collection("organizations");
    let theirs = [
        doc! { "_id": 1, "code": "DE", "name": "Ours", "kindeCode": "org_1" },
        doc! { "_id": 2, "code": "DE", "name": "Other" },
    ];
    organizations.insert_many(&theirs).await.unwrap();
    let facts = [(Fact::Name, Value::from("Acme")), (Fact::Handle, Value::from("acme"))];

    let default = open(&name, all()).await;
    let problems = default.problems().await;
    assert_eq!(
        problems.iter().map(|one| one.subject.as_str()).collect::<Vec<_>>(),
        ["collection organizations"]
    );
    assert!(problems[0].fix.contains("[organization_fields]"), "{}", problems[0].fix);
    default.observe(vec![change(Kind::Organization, "org_1", &facts, 1)]).await;
    let found: Vec<Document> = organizations.find(doc! {}).await.unwrap().try_collect().await.unwrap();
    assert_eq!(found, theirs, "nothing was written");

    let named = named("organizations", &[("code", Some("kindeCode"))]);
    let named = open(&name, Collections::from([(Derived::Organizations, named)])).await;
    assert_eq!(named.problems().await, []);
    let is_shown = async || organizations.count_documents(doc! { "handle": "acme" }).await.unwrap() == 1;
    named.maintain_until("the organization is shown", is_shown).await;
    let linked = named.one("organizations", doc! { "handle": "acme" }).await;
    assert_eq!((linked.get_str("name").unwrap(), linked.get_str("code").unwrap()), ("Ours", "DE"));
    let other = organizations.find_one(doc! { "_id": 2 }).await.unwrap();
    assert_eq!(other.as_ref(), Some(&theirs[1]), "a document without the key is untouched");
    assert_eq!(organizations.count_documents(doc! {}).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_made_for_what_was_stored_before_and_restored_when_lost() {
    let name = TestMongo::shared().await.database();
    let before = open(&name, Collections::new()).await;
    before.observe(vec![change(Kind::Organization, "org_1", &[(Fact::Name, Value::from("Acme"))], 1)]).await;
    write(&*before.store, (0..3).map(|n| member(&format!("kp_{n}"), &["org_1"], "r", 1)).collect()).await;
    assert_eq!(before.shown("memberships").await, Vec::<Document>::new());

    let after = open(&name, all()).await;
    let memberships = after.collection("memberships");
    let are_shown = async || memberships.count_documents(doc! { "name": "Acme" }).await.unwrap() == 3;
    after.maintain_until("all memberships are shown", are_shown).await;
    assert_eq!(after.one("organizations", doc! {}).await.get_i64("memberCount").unwrap(), 3);

    memberships.delete_one(doc! { "kindeId": "kp_1" }).await.unwrap();
    let renamed = Collections::from([
        (Derived::Organizations, named("organizations", &[("name", Some("title")), ("memberCount", None)])),
        (Derived::Memberships, named("memberships", &[])),
    ]);
    let renamed = open(&name, renamed).await;
    renamed.maintain_until("all memberships are shown", are_shown).await;
    let shown = renamed.one("organizations", doc! {}).await;
    assert_eq!(
        (shown.get_str("title").unwrap(), shown.get("name"), shown.get("memberCount")),
        ("Acme", None, None)
    );
}
