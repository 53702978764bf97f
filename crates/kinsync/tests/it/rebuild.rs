//! `kinsync rebuild`, killed at random instants.

use std::{process::Stdio, time::Duration};

use kinsync_core::{Field, Micros, Observation, Profile, Source, UserId, UserState, Version, What};
use kinsync_engine::internal::{
    apply::apply,
    store::{EventFilter, Row, Store, embedded::EmbeddedStore, mongo},
};
use kinsync_testing::mongo::TestMongo;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;

use crate::server::kinsync;

const USERS: usize = 4000;

fn named(n: usize) -> Observation {
    Observation {
        user: UserId::parse(&format!("kp_{n:05}")).unwrap(),
        version: Version::snapshot(Micros(1), format!("h{n}")),
        source: Source::Reconcile,
        what: What::Fields(Profile::new().with(Field::FirstName, "Ada")),
    }
}

/// Stores users, and wipes what is stored of each.
async fn wiped(store: &dyn Store) {
    apply(store, (0..USERS).map(named), Micros(1)).await.unwrap();
    let ids = store.ids(None, USERS).await.unwrap();
    let rows = store.load(&ids).await.unwrap().into_iter().flatten();
    let wiped: Vec<Row> = rows.map(|row| Row { state: UserState::default(), ..row }).collect();
    assert_eq!(wiped.len(), USERS);
    store.write(&wiped).await.unwrap();
}

/// Runs `kinsync rebuild` until it ends without being killed.
fn rebuild_with_kills(vars: &[(&str, &str)]) -> u32 {
    let mut rng = StdRng::seed_from_u64(3);
    let mut kills = 0;
    loop {
        let mut command = kinsync(&["rebuild"], vars);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(rng.random_range(20..60 + 40 * u64::from(kills))));
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            return kills;
        }
        kills += 1;
        assert!(kills < 200, "it never ends");
    }
}

fn verified(vars: &[(&str, &str)]) -> (i32, Vec<Value>) {
    let output = kinsync(&["rebuild", "--verify", "--json"], vars).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code().unwrap(), lines)
}

fn assert_killed_rebuilds_restore_every_user(vars: &[(&str, &str)]) {
    // The log of a store from before is completed first: nothing is missing in this one.
    let user = ["rebuild", "--user", "kp_00007"];
    let one = kinsync(&user, vars).output().unwrap();
    assert!(one.status.success(), "{one:?}");
    let (code, lines) = verified(vars);
    assert_eq!((code, lines.len()), (4, USERS), "each user but one, and the report");
    let first = &lines[0]["difference"];
    assert_eq!((&first["user"], &first["finding"]), (&"kp_00000".into(), &"different".into()));
    assert_eq!(first["fields"][0]["field"], "firstName");
    assert!(first["fields"][0]["since"].as_str().unwrap().starts_with("kinsync.check.read:"), "{first}");
    assert!(rebuild_with_kills(vars) > 1, "it was killed");
    let (code, lines) = verified(vars);
    assert_eq!((code, lines.len()), (0, 1), "{lines:?}");
    assert_eq!(lines[0]["report"]["users"], USERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_rebuilds_restore_every_user_in_mongodb() {
    let mongo = TestMongo::shared().await;
    let (uri, database) = (mongo.uri(), mongo.database());
    let config = mongo::Config { database: Some(database.clone()), ..mongo::Config::new(mongo.uri()) };
    let store = mongo::MongoStore::connect(config).await.unwrap();
    store.prepare().await.unwrap();
    wiped(&store).await;
    let folder = tempfile::tempdir().unwrap();
    let vars = [
        ("MONGODB_URI", &*uri),
        ("KINSYNC_DATABASE", &*database),
        ("KINSYNC_DATA_DIR", folder.path().to_str().unwrap()),
        ("KINDE_WEBHOOK_SECRET", "secret"),
    ];
    assert_killed_rebuilds_restore_every_user(&vars);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_rebuilds_restore_every_user_in_the_embedded_store() {
    let folder = tempfile::tempdir().unwrap();
    wiped(&EmbeddedStore::open(folder.path()).unwrap()).await;
    let vars = [("KINSYNC_DATA_DIR", folder.path().to_str().unwrap()), ("KINDE_WEBHOOK_SECRET", "secret")];
    assert_killed_rebuilds_restore_every_user(&vars);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_of_a_record_is_in_the_log_and_in_the_audit_log() {
    let folder = tempfile::tempdir().unwrap();
    drop(EmbeddedStore::open(folder.path()).unwrap());
    let vars = [("KINSYNC_DATA_DIR", folder.path().to_str().unwrap()), ("KINDE_WEBHOOK_SECRET", "secret")];
    for record in ["reconcile.held", "directory/org_1"] {
        let output = kinsync(&["state", "reset", record], &vars).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let store = EmbeddedStore::open(folder.path()).unwrap();
    let logged = store.events(&EventFilter { limit: 9, ..EventFilter::default() }).await.unwrap();
    let content = |payload: &str| -> Value { serde_json::from_str(payload).unwrap() };
    let resets: Vec<(Value, Value)> = logged
        .iter()
        .map(|entry| {
            (content(&entry.payload)["route"].clone(), content(&entry.payload)["parameters"].clone())
        })
        .collect();
    let reset = |record: &str| ("kinsync state reset".into(), serde_json::json!({ "record": record }));
    assert_eq!(resets, [reset("directory/org_1"), reset("reconcile.held")]);
    assert_eq!(store.count_states("audit.actions.").await.unwrap(), 1);
}
