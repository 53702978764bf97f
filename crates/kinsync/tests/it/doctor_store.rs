//! `kinsync doctor`: what can be wrong with MongoDB, the data folder, the server and the settings.

use std::os::unix::fs::PermissionsExt as _;

use bson::{Document, doc};
use kinsync_testing::{app::TestApp, mongo::TestMongo};
use serde_json::Value;

use crate::{
    deployment::DEADLINE,
    doctor::{examine, files, serve},
    tenant::Tenant,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_mongod_is_a_warning_and_an_unavailable_one_failed() {
    let mut tenant = Tenant::start().await;
    let mongo = TestMongo::start_standalone().await;
    tenant.set("MONGODB_URI", mongo.uri());
    let examined = examine(&tenant, &[]);
    examined.is("mongodb.reachable", "ok", &[]).is(
        "mongodb.replica_set",
        "warning",
        &["rs.initiate()", "--replSet"],
    );
    examined.is("mongodb.emails", "ok", &[]).is("mongodb.refused_users", "ok", &[]);
    mongo.stop();
    let examined = examine(&tenant, &[]);
    examined.is("mongodb.reachable", "failed", &["MONGODB_URI"]);
    examined.is("mongodb.indexes", "skipped", &["mongodb.reachable"]);
    tenant.unset("MONGODB_URI");
    let examined = examine(&tenant, &[]);
    examined.is("mongodb.reachable", "skipped", &["not in use"]).is("mongodb.emails", "skipped", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mongodb_user_without_write_access_is_failed_with_the_role_to_grant() {
    let mut tenant = Tenant::start().await;
    let mongo = TestMongo::shared().await;
    let name = mongo.database();
    let admin = mongo.client().await.database("admin");
    tenant.set("KINSYNC_DATABASE", name.as_str());
    // Without a user name every command is permitted: this server has no access control.
    tenant.set("MONGODB_URI", mongo.uri());
    examine(&tenant, &[]).is("mongodb.privileges", "ok", &[]);
    for (role, status, texts) in [
        ("read", "failed", &["may not insert", "readWrite", "grantRolesToUser"][..]),
        ("readWrite", "ok", &[]),
    ] {
        let user = format!("{name}_{role}");
        let roles = [doc! { "role": role, "db": &name }];
        admin.run_command(doc! { "createUser": &user, "pwd": "secret", "roles": roles }).await.unwrap();
        tenant.set("MONGODB_URI", mongo.uri_as(&user, "secret"));
        examine(&tenant, &[]).is("mongodb.privileges", status, texts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_of_the_application_that_kinsync_does_not_write_is_named() {
    let mut tenant = Tenant::start().await;
    let mongo = TestMongo::shared().await;
    let name = mongo.database();
    tenant.set("KINSYNC_DATABASE", name.as_str());
    tenant.set("MONGODB_URI", mongo.uri());
    examine(&tenant, &[]).is("mongodb.collections", "ok", &["none", "KINSYNC_ORGANIZATIONS_COLLECTION"]);
    let organizations = mongo.client().await.database(&name).collection::<Document>("organizations");
    organizations.insert_one(doc! { "_id": "acme", "code": "ours" }).await.unwrap();
    tenant.set("KINSYNC_ORGANIZATIONS_COLLECTION", "organizations");
    let texts = ["`organizations` has documents of the application", "acme", "[organization_fields]"];
    examine(&tenant, &[]).is("mongodb.collections", "failed", &texts);
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_and_indexes_that_prevent_the_start_are_named() {
    let mut tenant = Tenant::start().await;
    let mongo = TestMongo::shared().await;
    let name = mongo.database();
    let database = mongo.client().await.database(&name);
    let users = database.collection::<Document>("users");
    tenant.set("MONGODB_URI", mongo.uri()).set("KINSYNC_DATABASE", name.as_str());
    let rows = [
        doc! { "_id": "one", "email": "ada@example.com" },
        doc! { "_id": "two", "email": "ada@example.com" },
    ];
    users.insert_many(rows).await.unwrap();
    let pair = ["one and two", "merge these documents"];
    examine(&tenant, &[]).is("mongodb.emails", "failed", &pair).is(
        "mongodb.emails",
        "failed",
        &["KINSYNC_UNIQUE_EMAIL"],
    );
    examine(&tenant, &["--unique-email", "false"]).is("mongodb.emails", "warning", &pair);
    users.delete_many(doc! {}).await.unwrap();
    let make = async |index: Document| {
        let command = doc! { "createIndexes": "users", "indexes": [index] };
        database.run_command(command).await.unwrap();
    };
    make(doc! { "name": "kinsync_updatedAt", "key": { "updatedAt": -1 } }).await;
    examine(&tenant, &[]).is(
        "mongodb.indexes",
        "failed",
        &["other options", "dropIndex(\"kinsync_updatedAt\")"],
    );
    make(doc! { "name": "mine", "key": { "email": 1 }, "unique": true }).await;
    examine(&tenant, &[]).is("mongodb.indexes", "failed", &["only one document", "dropIndex(\"mine\")"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicts_and_dead_letters_are_found_while_a_server_runs_and_after_its_stop() {
    let mut tenant = Tenant::start().await;
    let (mut app, _) = serve(&mut tenant, TestMongo::shared().await).await;
    app.leaves_entries();
    let user = |id: &str, at: &str| {
        format!(
            r#"{{"type":"user.created","event_id":"event_{id}","timestamp":"{at}","data":{{"user":{{"id":"{id}","email":"ada@example.com"}}}}}}"#
        )
    };
    for (id, at) in [("kp_one", "2026-01-01T00:00:00Z"), ("kp_two", "2026-01-02T00:00:00Z")] {
        assert_eq!(app.deliver(user(id, at)).await.unwrap(), 200);
    }
    assert_eq!(
        app.deliver(
            r#"{"type":"user.updated","event_id":"event_x","timestamp":"2026-01-01T00:00:00Z","data":"moon"}"#
        )
        .await
        .unwrap(),
        200
    );
    let has_both = async |app: &mut TestApp| {
        let health = app.health().await?;
        let dead = health.pointer("/components/queue/deadLetters") == Some(&Value::from(1));
        Ok(dead && health.pointer("/components/queue/depth") == Some(&Value::from(0)))
    };
    app.until("all is projected", DEADLINE, has_both).await.unwrap();
    let check = |health: &str| {
        let examined = examine(&tenant, &[]);
        examined.is("mongodb.conflicts", "warning", &["1 email conflict", "kp_", "emailConflict"]);
        examined.is("queue.dead_letters", "warning", &["1 delivery that", "kinsync dead-letters list"]);
        examined.is("server.health", health, &[]).is("data_dir.access", "ok", &[]);
    };
    check("warning");
    app.stop().await.unwrap();
    check("skipped");
    app.start().await.unwrap();
    check("warning");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_that_cannot_be_used_is_failed() {
    let mut tenant = Tenant::start().await;
    let file = tenant.folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let check = |tenant: &mut Tenant, dir: &str, id: &str, status: &str, texts: &[&str]| {
        tenant.set("KINSYNC_DATA_DIR", dir);
        _ = examine(tenant, &[]).is(id, status, texts);
    };
    let file = file.to_str().unwrap();
    check(&mut tenant, file, "data_dir.access", "failed", &["is not a folder", "KINSYNC_DATA_DIR"]);
    check(&mut tenant, &format!("{file}/below"), "data_dir.access", "failed", &["KINSYNC_DATA_DIR"]);
    // Not even root can create a file there, and no disk is behind it.
    check(&mut tenant, "/proc", "data_dir.access", "failed", &["cannot be written", "KINSYNC_DATA_DIR"]);
    check(&mut tenant, "/proc", "data_dir.fsync", "skipped", &["data_dir.access"]);
    check(&mut tenant, "/proc", "data_dir.space", "skipped", &["does not report it"]);
    let open = tenant.folder.path().join("open");
    std::fs::create_dir(&open).unwrap();
    for (mode, state) in [(0o777, "failed"), (0o770, "warning")] {
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(mode)).unwrap();
        check(&mut tenant, open.to_str().unwrap(), "data_dir.access", state, &["chmod 700"]);
    }
    tenant.set("KINSYNC_QUEUE_MAX_BYTES", "1000000000GiB");
    check(&mut tenant, open.to_str().unwrap(), "data_dir.space", "warning", &["KINSYNC_QUEUE_MAX_BYTES"]);
    assert_eq!(files(&open), Vec::<String>::new(), "the test file is removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_program_at_the_address_of_the_server_is_a_warning() {
    let mut tenant = Tenant::start().await;
    let kinde = tenant.kinde.issuer().to_owned();
    let examined = examine(&tenant, &["--server", &kinde]);
    examined.is("server.health", "warning", &["not this version of kinsync", "--server"]);
    tenant.set("PORT", "0");
    examine(&tenant, &[]).is("server.health", "skipped", &["--server"]);
}

/// Both may be set: one address is for the admin routes, the other one for /health.
#[tokio::test(flavor = "multi_thread")]
async fn health_is_requested_from_the_metrics_address_and_not_from_the_admin_address() {
    let mut tenant = Tenant::start().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    app.set("KINSYNC_METRICS_BIND", metrics.as_str());
    // `start` waits for /health at the usual address, which does not serve it here.
    let client = app.client().clone();
    tenant.set("KINSYNC_METRICS_BIND", metrics.as_str()).set("KINSYNC_SERVER", app.url(""));
    let started = app.start();
    let is_healthy = async {
        while client.get(format!("http://{metrics}/health")).send().await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! { done = started => done.unwrap(), () = is_healthy => {} }
    let examined = examine(&tenant, &[]);
    examined.is("server.health", "ok", &[&metrics]);
    let kinde = tenant.kinde.issuer().to_owned();
    examine(&tenant, &["--server", &kinde]).is("server.health", "warning", &["not this version of kinsync"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_exit_with_78_and_weak_ones_are_a_warning() {
    let mut tenant = Tenant::start().await;
    tenant.set("KINDE_WEBHOOK_SECRET", "short");
    examine(&tenant, &[]).is("settings", "warning", &["KINDE_WEBHOOK_SECRET", "config show"]);
    let ran = tenant.run(&["doctor", "--json", "--port", "x"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (78, ""));
    assert!(ran.stderr.contains("PORT"), "{}", ran.stderr);
}
