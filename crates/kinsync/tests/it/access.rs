//! Connections that a MongoDB with access control refuses, and names that DNS does not resolve: the server starts, names the
//! problem, and recovers without a restart.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bson::{Document, doc};
use kinsync_testing::{app::TestApp, mongo::TestMongo};
use mongodb::{Client, Database};

use crate::{doctor::examine, tenant::Tenant};

const DEADLINE: Duration = Duration::from_mins(2);

/// A server with access control, and what may be changed on it.
struct Guarded {
    mongo: TestMongo,
    admin: Database,
}

impl Guarded {
    async fn start() -> Self {
        let mongo = TestMongo::start_with_access_control().await;
        let root = Client::with_uri_str(mongo.uri_as("root", "secret")).await.unwrap();
        Self { admin: root.database("admin"), mongo }
    }

    async fn with_user(&self, role: &str) -> String {
        let roles = [doc! { "role": role, "db": "app" }];
        self.change(doc! { "createUser": "kinsync", "pwd": "opensesame", "roles": roles }).await;
        self.mongo.uri_as("kinsync", "opensesame")
    }

    async fn change(&self, command: Document) {
        self.admin.run_command(command).await.unwrap();
    }
}

/// Starts a server, waits until `/health` names the problem, and returns the server.
async fn degraded(uri: &str, texts: &[&str]) -> TestApp {
    let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    app.with_mongodb(uri, "app").start().await.unwrap();
    app.until("/health names the problem", DEADLINE, async |app| {
        let problems = app.health().await?["problems"].to_string();
        Ok(texts.iter().all(|text| problems.contains(text)))
    })
    .await
    .unwrap();
    assert!(!app.log().contains("opensesame"), "no password is logged");
    app
}

/// What `doctor` finds with this URI.
async fn found(uri: &str, id: &str, texts: &[&str]) {
    let mut tenant = Tenant::start().await;
    tenant.set("MONGODB_URI", uri).set("KINSYNC_DATABASE", "app");
    examine(&tenant, &[]).is(id, "failed", texts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_named_and_a_right_one_is_used_without_a_restart() {
    let guarded = Guarded::start().await;
    guarded.with_user("readWrite").await;
    let uri = guarded.mongo.uri_as("kinsync", "other");
    let texts = ["refuses", "the password", "authSource"];
    let mut app = degraded(&uri, &texts).await;
    found(&uri, "mongodb.reachable", &texts[1..]).await;
    guarded.change(doc! { "updateUser": "kinsync", "pwd": "other" }).await;
    app.prepared().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uri_without_a_user_is_named_where_the_server_demands_one() {
    let guarded = Guarded::start().await;
    let uri = guarded.mongo.uri();
    degraded(&uri, &["refuses", "requires authentication", "MONGODB_URI"]).await;
    found(&uri, "mongodb.privileges", &["requires authentication", "add a user and a password"]).await;
    found(&uri, "mongodb.indexes", &["requires authentication"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_may_only_read_is_named_and_a_granted_role_is_used_without_a_restart() {
    let guarded = Guarded::start().await;
    let uri = guarded.with_user("read").await;
    let mut app = degraded(&uri, &["refuses", "readWrite"]).await;
    found(&uri, "mongodb.privileges", &["may not insert", "readWrite"]).await;
    let roles = [doc! { "role": "readWrite", "db": "app" }];
    guarded.change(doc! { "grantRolesToUser": "kinsync", "roles": roles }).await;
    app.prepared().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_and_the_collection_in_use_are_logged_also_where_the_uri_names_none() {
    let mongo = TestMongo::start_own().await;
    let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    app.set("MONGODB_URI", mongo.uri()).start().await.unwrap();
    app.prepared().await.unwrap();
    let log = app.log();
    let line = log.lines().find(|line| line.contains("users are stored in MongoDB")).unwrap();
    assert!(line.contains("kinsync.users") && line.contains("MONGODB_URI names no database"), "{line}");
    let mut tenant = Tenant::start().await;
    tenant.set("MONGODB_URI", mongo.uri());
    let named = ["kinsync.users", "MONGODB_URI names no database"];
    examine(&tenant, &[]).is("mongodb.reachable", "ok", &named);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_dns_does_not_resolve_degrades_the_start_and_ends_no_process() {
    let uri = "mongodb+srv://kinsync:opensesame@cluster.kinsync.invalid/app";
    let app = degraded(uri, &["is unavailable", "in DNS"]).await;
    let body = r#"{"type":"user.created","event_id":"event_1","timestamp":"2026-01-01T00:00:00Z","data":{"user":{"id":"kp_ada"}}}"#;
    let mut app = app;
    assert_eq!(app.leaves_entries().deliver(body).await.unwrap(), 200);
    found(uri, "mongodb.reachable", &["DNS"]).await;
}
