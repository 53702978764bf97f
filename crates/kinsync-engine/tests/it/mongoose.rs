//! The type and the schema of `examples/mongoose-types` fit the documents that kinsync writes, with the real Mongoose.

use std::{path::Path, process::Stdio, time::Duration};

use bson::doc;
use kinsync_core::{Field, Identity, Micros, Organization, Profile, Value};
use kinsync_engine::internal::{apply::apply, store::mongo::MongoStore};
use kinsync_testing::mongo::TestMongo;
use serde_json::Value as Json;
use tokio::process::Command;

use crate::{
    address_case::in_lower_case,
    own_keys::{event, profile},
    store_mongo::{store, users},
    store_rows::get,
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/mongoose-types");
const MISSING: &str = "this test needs Node.js 20 with npm: run `.ci/install`";

async fn run(command: &mut Command) -> String {
    let command = command.current_dir(FOLDER).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_mins(5), command.output()).await;
    let output = output.expect("the command ends in five minutes").expect(MISSING);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Installs the packages of the lock file unless they are installed, and compiles the files.
async fn build() {
    let changed = |name: &str| Path::new(FOLDER).join(name).metadata().and_then(|file| file.modified()).ok();
    if changed("node_modules/.package-lock.json") < changed("package-lock.json") {
        run(Command::new("npm").args(["ci", "--no-audit", "--no-fund"])).await;
    }
    run(Command::new("npx").args(["--no-install", "tsc"])).await;
}

/// One test, so that the packages are installed once.
#[tokio::test]
async fn the_type_and_the_schema_fit_the_documents_and_mongoose_changes_nothing_of_kinsync() {
    build().await;
    let store = store().await;
    let organization = Organization { roles: Some(vec!["admin".into()]), ..Organization::new("org_1") };
    let identity = Identity { kind: "email".into(), identity: None };
    let fields = Profile::new()
        .with(Field::Email, "taken@x.org")
        .with(Field::FirstName, "Ada")
        .with(Field::IsSuspended, false)
        .with(Field::Organizations, Value::Organizations(vec![organization]))
        .with(Field::Identities, Value::Identities(vec![identity]));
    users(&store).insert_one(doc! { "email": "taken@x.org" }).await.unwrap();
    let observations = [event("kp_ada", 1_700_000_000_000_000, fields), profile("kp_eve", 2)];
    apply(&store, observations, Micros(1_790_000_000_000_000)).await.unwrap();
    let before = get(&store, "kp_ada").await.unwrap();
    let mut script = Command::new("node");
    script.arg("built/check.js").env("MONGODB_URI", uri_of(&store).await).env("KINDE_ID", "kp_ada");
    let printed = run(&mut script).await;
    let seen: Json = serde_json::from_str(&printed).expect("the script prints JSON");
    assert_eq!(
        (seen["firstName"].as_str(), seen["isDeleted"].as_bool()),
        (Some("Ada"), Some(false)),
        "{seen}"
    );
    assert_eq!((seen["roles"][0].as_str(), seen["conflict"].is_string()), (Some("admin"), true), "{seen}");
    assert_eq!(
        (seen["createdAt"].as_str(), seen["notes"].as_i64()),
        (Some("2023-11-14T22:13:20.000Z"), Some(1))
    );
    assert!(seen.get("lastName").is_none() && seen.get("kinsync").is_none() && seen.get("picture").is_none());
    let after = get(&store, "kp_ada").await.unwrap();
    assert_eq!(after, before);
    assert!(!after.is_outdated());
    let saved = users(&store).find_one(doc! { "kindeId": "kp_ada" }).await.unwrap().unwrap();
    assert_eq!(saved.get_str("plan").unwrap(), "pro");
    find_in_lower_case().await;
}

/// With `lowercase: true` Mongoose also changes the address in a query.
async fn find_in_lower_case() {
    const SCRIPT: &str = "const mongoose = require('mongoose');
        const email = { type: String, lowercase: true };
        const User = mongoose.model('User', new mongoose.Schema({ email }, { collection: 'users', autoIndex: false }));
        (async () => {
            await mongoose.connect(process.env.MONGODB_URI);
            const found = await User.findOne({ email: 'Ada@X.org' });
            console.log(found?.email);
            await mongoose.disconnect();
        })();";
    let store = in_lower_case().await;
    let fields = Profile::new().with(Field::Email, "Ada@X.org");
    apply(&store, [event("kp_ada", 1, fields)], Micros(2)).await.expect("the store answers");
    let printed =
        run(Command::new("node").args(["-e", SCRIPT]).env("MONGODB_URI", uri_of(&store).await)).await;
    assert_eq!(printed.trim(), "ada@x.org");
}

async fn uri_of(store: &MongoStore) -> String {
    TestMongo::shared().await.uri().replace("/?", &format!("/{}?", store.database_name()))
}
