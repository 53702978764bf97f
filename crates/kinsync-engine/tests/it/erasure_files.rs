//! Unique texts of every source are in the files before the erasure of their user, and in none of them afterwards.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bson::{Document, doc};
use kinsync_core::{
    Field, Identity, Micros, Observation, Organization, Profile, Properties, Source, UserId, Value, Version,
    What,
};
use kinsync_engine::{
    Clock, Engine,
    internal::{
        apply::apply,
        audit::{AuditLog, Kind, Record},
        erasure::{ApplicationFields, Mode},
        sighting::Sighting,
        store::{Store, embedded::EmbeddedStore, mongo},
    },
};
use kinsync_testing::mongo::TestMongo;
use mongodb::Database;
use serde_json::json;

use crate::pipeline::{drain, event_entry};

const USER: &str = "kp_canary";

/// Start of each of the texts.
const MARK: &[u8] = b"cnry-";

/// One unique text for each way into the store.
const CANARIES: [&str; 16] = [
    "cnry-email",
    "cnry-webhook",
    "cnry-token",
    "cnry-profile",
    "cnry-scan",
    "cnry-check",
    "cnry-property",
    "cnry-role",
    "cnry-identity",
    "cnry-dead",
    "cnry-queued",
    "cnry-sighting",
    "cnry-operator",
    "cnry-reader",
    "cnry-phone",
    "cnry-link",
];

/// Those that only MongoDB has: a document of the application that was linked, and a user that a validator refuses.
const OF_MONGODB: [&str; 2] = ["cnry-app", "cnry-refused"];

fn id() -> UserId {
    UserId::parse(USER).expect("a plain id")
}

fn fields(source: Source, version: Version, fields: &[(Field, Value)]) -> Observation {
    let mut profile = Profile::new();
    for (field, value) in fields {
        profile.set(*field, value.clone());
    }
    Observation { user: id(), version, source, what: What::Fields(profile) }
}

fn snapshot(at: i64) -> Version {
    Version::snapshot(Micros(1_700_000_000_000_000 + at), format!("h{at}"))
}

async fn observe(store: &dyn Store, one: Observation) {
    let applied = apply(store, [one], Clock::system().now()).await.expect("the store answers");
    assert!(applied.failed.is_empty(), "{applied:?}");
}

/// Stores a text of every source, and deletes the user.
async fn fill(engine: &Engine) {
    let store = &**engine.store();
    let text = |text: &str| Value::from(text);
    observe(
        store,
        fields(Source::Login, Version::provisional(), &[(Field::Email, text("cnry-token@example.com"))]),
    )
    .await;
    let webhook = r#"{"id":"kp_canary","first_name":"cnry-webhook","email":"cnry-email@example.com"}"#;
    let dead = r#"{"id":"kp_canary","first_name":"cnry-dead"}"#;
    let profile = Profile::new().with(Field::Email, "cnry-sighting@example.com");
    let sighting = Sighting { user: id(), profile, seen_at: Clock::system().now() };
    for entry in [
        event_entry("user.created", 1, "e1", webhook),
        event_entry("user.updated", 4_000_000_000, "dead", dead),
        sighting.entry(),
    ] {
        engine.queue().enqueue(entry).await.expect("the queue takes it");
    }
    drain(engine).await;
    observe(store, fields(Source::Profile, snapshot(2_000_000), &[(Field::LastName, text("cnry-profile"))]))
        .await;
    let identity = Identity { kind: "username".into(), identity: Some("cnry-identity".into()) };
    let at = snapshot(3_000_000);
    let properties = Properties::read([("city".to_owned(), Some("cnry-property".to_owned()))], &at);
    let scanned = [
        (Field::LastName, text("cnry-scan")),
        (Field::Phone, text("cnry-phone")),
        (Field::Identities, Value::Identities(vec![identity])),
        (Field::Properties, Value::Properties(properties)),
        (Field::Email, text("cnry-link@example.com")),
        (Field::EmailVerified, Value::Flag(true)),
    ];
    observe(store, fields(Source::Reconcile, at, &scanned)).await;
    let membership = Organization { roles: Some(vec!["cnry-role".into()]), ..Organization::new("org_1") };
    let what = What::Membership { code: "org_1".into(), membership: Some(membership) };
    observe(
        store,
        Observation { version: snapshot(4_000_000), what, ..fields(Source::Reconcile, snapshot(0), &[]) },
    )
    .await;
    observe(store, fields(Source::Reconcile, snapshot(5_000_000), &[(Field::LastName, text("cnry-check"))]))
        .await;
    for (kind, parameters) in [
        (Kind::Action, json!({ "email": "cnry-email@example.com", "name": "cnry-operator" })),
        (Kind::Read, json!({ "email": "cnry-email@example.com", "name": "cnry-reader" })),
    ] {
        let record = Record::new(kind, Micros(5), ("operator".into(), "local".into()));
        let parameters = parameters.as_object().expect("an object").clone();
        AuditLog::default().add(store, &record.of("of the user".into(), parameters)).await.expect("stored");
    }
    let gone = Version::event(Micros(1_750_000_000_000_000), "gone");
    observe(
        store,
        Observation { version: gone, what: What::Deleted, ..fields(Source::Webhook, snapshot(0), &[]) },
    )
    .await;
}

/// An entry that no projector claims: its user is not known to be erased yet when it arrives.
async fn enqueue(engine: &Engine) {
    let queued = r#"{"id":"kp_canary","first_name":"cnry-queued"}"#;
    engine
        .queue()
        .enqueue(event_entry("user.updated", 1, "queued", queued))
        .await
        .expect("the queue takes it");
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").map_while(Result::ok) {
        if entry.path().is_dir() { files(&entry.path(), found) } else { found.push(entry.path()) }
    }
}

/// Returns each canary that is in a file of these folders, with the file.
fn in_files(folders: &[&Path]) -> Vec<(&'static str, PathBuf)> {
    let mut all = Vec::new();
    for folder in folders {
        files(folder, &mut all);
    }
    let mut found = Vec::new();
    for file in all {
        let bytes = fs::read(&file).unwrap_or_default();
        let starts =
            bytes.windows(MARK.len()).enumerate().filter(|(_, text)| *text == MARK).map(|(at, _)| at);
        let texts: Vec<&[u8]> = starts.map(|at| &bytes[at..]).collect();
        for canary in CANARIES.into_iter().chain(OF_MONGODB) {
            if texts.iter().any(|text| text.starts_with(canary.as_bytes())) {
                found.push((canary, file.clone()));
            }
        }
    }
    found
}

fn names(found: &[(&'static str, PathBuf)]) -> Vec<&'static str> {
    let mut names: Vec<&str> = found.iter().map(|(canary, _)| *canary).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn sorted(canaries: impl IntoIterator<Item = &'static str>) -> Vec<&'static str> {
    let mut all: Vec<&str> = canaries.into_iter().collect();
    all.sort_unstable();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_files_contain_nothing_of_an_erased_user() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = Arc::new(EmbeddedStore::open(dir.path()).expect("an empty folder opens"));
    let engine = Engine::builder(dir.path()).store(store).open().await.expect("opens");
    fill(&engine).await;
    engine.stop().await;
    drop(engine);
    let store = Arc::new(EmbeddedStore::open(dir.path()).expect("opens again"));
    let engine = Engine::builder(dir.path()).store(store).open().await.expect("opens");
    enqueue(&engine).await;
    assert_eq!(names(&in_files(&[dir.path()])), sorted(CANARIES), "the search finds what is there");
    let report = engine.eraser().erase(&id(), Mode::Erase, ApplicationFields::Keep).await.expect("deleted");
    assert_eq!((report.queued, report.dead_letters), (1, 1), "{report:?}");
    assert_eq!(in_files(&[dir.path()]), []);
    engine.stop().await;
    drop(engine);
    assert_eq!(in_files(&[dir.path()]), [], "after the end");
}

async fn compact(database: &Database, collections: &[&str]) {
    for collection in collections {
        let done = database.run_command(doc! { "compact": *collection, "force": true }).await;
        done.expect("compact runs on a primary with force");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_mongodb_contain_nothing_of_an_erased_user_after_compact() {
    let mongo = TestMongo::start_readable().await;
    let client = mongo.client().await;
    let database = client.database("app");
    let users = database.collection::<Document>("users");
    let existing = doc! { "email": "cnry-link@example.com", "note": "cnry-app", "plan": "pro" };
    users.insert_one(existing).await.expect("the server answers");
    let config = mongo::Config { database: Some("app".into()), ..mongo::Config::new(mongo.uri()) };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = mongo::MongoStore::connect(config).await.expect("the test server is there");
    store.prepare().await.expect("prepared");
    let store: Arc<dyn Store> = Arc::new(store);
    let builder = || Engine::builder(dir.path()).store(Arc::clone(&store));
    let engine = builder().open().await.expect("opens");
    refuse(&*store, &database).await;
    fill(&engine).await;
    engine.stop().await;
    drop(engine);
    let engine = builder().open().await.expect("opens");
    enqueue(&engine).await;
    let admin = client.database("admin");
    admin.run_command(doc! { "fsync": 1 }).await.expect("a checkpoint");
    let folder = mongo.folder().join("app");
    let found = names(&in_files(&[dir.path(), &folder]));
    assert_eq!(found, sorted(CANARIES.into_iter().chain(OF_MONGODB)), "the search finds what is there");

    let report = engine.eraser().erase(&id(), Mode::Erase, ApplicationFields::Erase).await.expect("deleted");
    assert_eq!(report.application_fields.into_iter().collect::<Vec<_>>(), ["note", "plan"]);
    assert_eq!((report.queued, report.dead_letters, report.refused), (1, 1, None));
    compact(&database, &["users", "user_events", "kinsync_state"]).await;
    admin.run_command(doc! { "fsync": 1 }).await.expect("a checkpoint");
    assert_eq!(in_files(&[dir.path(), &folder]), []);
    let oplog = in_files(&[&mongo.folder().join("local")]);
    assert!(!oplog.is_empty(), "the oplog keeps what was written: docs/guides/erasure.md");
}

/// Lets a validator refuse a value of the user.
async fn refuse(store: &dyn Store, database: &Database) {
    let validator = |rule: Document| doc! { "collMod": "users", "validator": rule };
    let rule = doc! { "firstName": { "$ne": "cnry-refused" } };
    database.run_command(validator(rule)).await.expect("the server answers");
    let refused = [(Field::FirstName, Value::from("cnry-refused"))];
    observe(store, fields(Source::Reconcile, snapshot(1), &refused)).await;
    database.run_command(validator(doc! {})).await.expect("the server answers");
}
