//! `kinsync doctor`: a set-up where all is well, and each thing that can be wrong with one.

use std::os::unix::fs::PermissionsExt as _;

use bson::{Document, doc};
use kinde_emulator::{Config, Fault, FaultKind};
use kinsync_testing::{app::TestApp, mongo::TestMongo};
use serde_json::Value;

use crate::{
    request_path::{PATIENCE, named},
    tenant::{Tenant, event_types},
};

/// Every check, in this order: programs rely on it.
const IDS: [&str; 25] = [
    "settings",
    "kinde.clock",
    "kinde.keys",
    "kinde.issuers",
    "kinde.audience",
    "kinde.credentials",
    "kinde.scopes",
    "kinde.webhook",
    "kinde.event_types",
    "mongodb.reachable",
    "mongodb.version",
    "mongodb.replica_set",
    "mongodb.majority",
    "mongodb.privileges",
    "mongodb.indexes",
    "mongodb.validator",
    "mongodb.emails",
    "mongodb.conflicts",
    "mongodb.refused_users",
    "mongodb.kept_values",
    "data_dir.access",
    "data_dir.space",
    "data_dir.fsync",
    "queue.dead_letters",
    "server.health",
];

const URL: &str = "https://app.example.com";
const ENDPOINT: &str = "https://app.example.com/api/webhook";

struct Examined {
    code: i32,
    findings: Vec<Value>,
}

impl Examined {
    #[track_caller]
    fn of(&self, id: &str) -> (&str, String) {
        let finding = self.findings.iter().find(|finding| finding["id"] == id).expect("every check is there");
        let text = |key: &str| finding[key].as_str().unwrap_or_default();
        (text("status"), format!("{} > {}", text("found"), text("fix")))
    }

    /// The check ended so, and what it says, the fix included, has these words.
    #[track_caller]
    fn is(&self, id: &str, expected: &str, words: &[&str]) -> &Self {
        let (status, said) = self.of(id);
        assert_eq!(status, expected, "{id}: {said}");
        for word in words {
            assert!(said.contains(word), "{id} does not say `{word}`: {said}");
        }
        self
    }

    /// 1 when something failed, else 0.
    #[track_caller]
    fn code_fits(&self) {
        let failed = self.findings.iter().any(|finding| finding["status"] == "failed");
        assert_eq!(self.code, i32::from(failed), "{:#?}", self.findings);
    }
}

#[track_caller]
fn examine(tenant: &Tenant, args: &[&str]) -> Examined {
    let ran = tenant.run(&[&["doctor", "--json"], args].concat());
    let said = ran.json();
    let findings = said["findings"].as_array().unwrap().clone();
    let ids: Vec<&str> = findings.iter().filter_map(|finding| finding["id"].as_str()).collect();
    assert_eq!(ids, IDS);
    for finding in &findings {
        let has_fix = finding["fix"].as_str().is_some_and(|fix| !fix.is_empty());
        let rests_on_another = finding["found"].as_str().unwrap().starts_with("needs ");
        assert_eq!(has_fix, finding["status"] != "ok" && !rests_on_another, "{finding}");
    }
    assert_eq!(said["ok"], ran.code == 0);
    let examined = Examined { code: ran.code, findings };
    examined.code_fits();
    examined
}

/// A server on a MongoDB of the test's own, in the settings of the tenant too.
async fn serve(tenant: &mut Tenant, mongo: &TestMongo) -> (TestApp, String) {
    let database = mongo.database();
    let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    app.with_mongodb(&mongo.uri(), &database).set("KINDE_DOMAIN", tenant.kinde.issuer());
    app.start().await.unwrap();
    tenant.set("MONGODB_URI", mongo.uri()).set("KINSYNC_DATABASE", database.as_str());
    tenant.set("KINSYNC_DATA_DIR", app.data_dir().display().to_string());
    tenant.set("PORT", app.address().port().to_string()).set("KINSYNC_PUBLIC_URL", app.url(""));
    (app, database)
}

pub(crate) async fn prepared(app: &mut TestApp) {
    let is_prepared = async |app: &mut TestApp| {
        Ok(app.health().await?.pointer("/components/store/prepared") == Some(&Value::Bool(true)))
    };
    app.until("the store is prepared", PATIENCE, is_prepared).await.unwrap();
}

fn files(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().path().display().to_string()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_is_well_everything_is_ok() {
    let mut tenant = Tenant::start().await;
    let (mut app, _) = serve(&mut tenant, TestMongo::shared().await).await;
    prepared(&mut app).await;
    assert_eq!(tenant.run(&["webhook", "setup"]).code, 0);
    tenant.kinde.sign_up(named(1)).unwrap();
    tenant.kinde.quiesce(PATIENCE).await.unwrap();
    app.drained(PATIENCE).await.unwrap();
    let (webhooks, folder) = (tenant.webhooks(), files(&app.data_dir()));
    let examined = examine(&tenant, &[]);
    assert_eq!(examined.code, 0);
    for id in IDS {
        // A disk that others share may be slow, or nearly full.
        if !["data_dir.fsync", "data_dir.space"].contains(&id) {
            examined.is(id, "ok", &[]);
        }
    }
    examined.is("server.health", "ok", &["the last one "]);
    examined.is("kinde.webhook", "ok", &["Kinde does not show whether it disabled the webhook"]);
    assert_eq!((tenant.webhooks(), files(&app.data_dir())), (webhooks, folder), "nothing is changed");
    let ran = tenant.run(&["doctor"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.lines().any(|line| line.starts_with("ok       kinde.keys ")), "{}", ran.stdout);
    assert!(ran.stdout.contains("0 failed") && !ran.stdout.contains('\u{1b}'), "{}", ran.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_where_nothing_is() {
    let mut tenant = Tenant::start().await;
    let mongo = TestMongo::shared().await;
    let database = mongo.database();
    let folder = tenant.folder.path().join("not/yet");
    tenant.set("MONGODB_URI", mongo.uri()).set("KINSYNC_DATABASE", database.as_str());
    tenant.set("KINSYNC_DATA_DIR", folder.display().to_string());
    let examined = examine(&tenant, &[]);
    examined.is("mongodb.indexes", "warning", &["kinsync_kindeId", "start `kinsync serve`"]);
    examined.is("data_dir.access", "ok", &["does not exist yet"]).is(
        "data_dir.fsync",
        "skipped",
        &["kinsync serve"],
    );
    examined.is("server.health", "skipped", &["http://127.0.0.1:9", "kinsync serve"]);
    assert!(!folder.exists());
    let client = mongo.client().await;
    assert_eq!(client.database(&database).list_collection_names().await.unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_is_told_apart_from_a_kinde_that_is_away() {
    let mut tenant = Tenant::start().await;
    let right = tenant.kinde.config().client_secret.clone();
    tenant.set("KINDE_M2M_CLIENT_SECRET", "not the secret of this application");
    let examined = examine(&tenant, &[]);
    examined.is(
        "kinde.credentials",
        "failed",
        &["rejects the client credentials", "KINDE_M2M_CLIENT_SECRET"],
    );
    examined.is("kinde.keys", "ok", &[]).is("kinde.clock", "ok", &[]);
    for id in ["kinde.scopes", "kinde.webhook", "kinde.event_types"] {
        examined.is(id, "skipped", &["kinde.credentials"]);
    }
    tenant.set("KINDE_M2M_CLIENT_SECRET", right).set("KINDE_DOMAIN", "http://127.0.0.1:9");
    let examined = examine(&tenant, &[]);
    examined.is("kinde.keys", "failed", &["http://127.0.0.1:9", "check KINDE_DOMAIN"]);
    examined.is("kinde.credentials", "failed", &["no complete response", "check KINDE_DOMAIN"]);
    examined.is("kinde.issuers", "skipped", &["kinde.keys"]).is("kinde.clock", "skipped", &[]);
    tenant.unset("KINDE_M2M_CLIENT_ID").unset("KINDE_M2M_CLIENT_SECRET");
    examine(&tenant, &[]).is("kinde.credentials", "warning", &["KINDE_M2M_CLIENT_ID"]);
    tenant.unset("KINDE_DOMAIN");
    let examined = examine(&tenant, &[]);
    examined.is("kinde.credentials", "skipped", &["KINDE_DOMAIN"]).is(
        "kinde.keys",
        "skipped",
        &["KINDE_DOMAIN"],
    );
    assert_eq!(examined.code, 0);
}

/// Its Management API is at the kinde.com address alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_custom_domain_in_the_place_of_the_tenant_is_known_for_one() {
    let config = Config { custom_domains: vec!["localhost".into()], ..Config::default() };
    let mut tenant = Tenant::with(config).await;
    let custom = tenant.kinde.custom_issuers().remove(0);
    tenant.set("KINDE_DOMAIN", custom.as_str());
    examine(&tenant, &[]).is("kinde.credentials", "failed", &["KINDE_DOMAIN"]);
    tenant.set("KINDE_DOMAIN", tenant.kinde.issuer().to_owned()).set("KINDE_ISSUERS", custom.as_str());
    let examined = examine(&tenant, &[]);
    examined.is("kinde.credentials", "ok", &[]).is("kinde.keys", "ok", &["2 RS256"]);
    examined.is("kinde.issuers", "ok", &[&custom]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_scope_that_is_missing_is_named() {
    let all = ["read:users", "read:webhooks", "read:event_types", "read:events"];
    for missing in all {
        let scopes = all.iter().filter(|scope| **scope != missing).map(|scope| (*scope).to_owned()).collect();
        let tenant = Tenant::with(Config { scopes, ..Config::default() }).await;
        let status = if missing == "read:users" { "failed" } else { "warning" };
        let examined = examine(&tenant, &[]);
        examined.is(
            "kinde.scopes",
            status,
            &[&format!("lacks {missing} >"), &format!("grant {missing} in Kinde")],
        );
        examined.is("kinde.credentials", "ok", &[]);
        let rests_on_it = ["read:webhooks", "read:event_types"].contains(&missing);
        assert!(!rests_on_it || examined.findings.iter().any(|one| one["found"] == "needs kinde.scopes"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_does_not_deliver_here_is_failed() {
    let mut tenant = Tenant::start().await;
    let check =
        |tenant: &Tenant, status, words: &[&str]| _ = examine(tenant, &[]).is("kinde.webhook", status, words);
    check(&tenant, "failed", &["delivers nothing", "kinsync webhook setup"]);
    tenant.add_webhook("https://other.example.com/api/webhook", &[]);
    check(&tenant, "skipped", &["KINSYNC_PUBLIC_URL, for example https://other.example.com"]);
    tenant.set("KINSYNC_PUBLIC_URL", URL);
    check(&tenant, "failed", &[ENDPOINT, "https://other.example.com/api/webhook", "kinsync webhook setup"]);
    tenant.add_webhook(ENDPOINT, &["user.created", "user.updated", "user.authenticated"]);
    check(&tenant, "failed", &["does not deliver user.deleted", "kinsync webhook setup"]);
    assert_eq!(tenant.run(&["webhook", "setup"]).code, 0);
    check(&tenant, "ok", &[ENDPOINT]);
    tenant.add_webhook(ENDPOINT, &[]);
    check(&tenant, "warning", &["2 deliver to", "remove all but one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn event_types_that_nobody_knows_are_a_warning_and_missing_ones_a_failure() {
    let types = event_types(&[], &["user.abducted"]);
    let tenant = Tenant::with(Config { event_types: types, ..Config::default() }).await;
    examine(&tenant, &[]).is("kinde.event_types", "warning", &["user.abducted", "newer version"]);
    let types = event_types(&["user.deleted"], &[]);
    let tenant = Tenant::with(Config { event_types: types, ..Config::default() }).await;
    examine(&tenant, &[]).is("kinde.event_types", "failed", &["Kinde has no user.deleted", "KINDE_DOMAIN"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_is_told_by_how_much() {
    let mut tenant = Tenant::start().await;
    for (ahead, status, side) in
        [(-3600, "failed", "ahead of"), (3600, "failed", "behind"), (-30, "warning", "30 s ahead of")]
    {
        tenant.kinde.clear_faults();
        tenant.kinde.set_fault(Fault::always(FaultKind::WrongDate { ahead }));
        examine(&tenant, &[]).is("kinde.clock", status, &[side, "NTP"]);
    }
    tenant.unset("KINDE_M2M_CLIENT_ID").unset("KINDE_M2M_CLIENT_SECRET");
    examine(&tenant, &[]).is("kinde.clock", "warning", &["30 s ahead of"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_calls_itself_otherwise_is_failed() {
    let mut tenant = Tenant::start().await;
    let other = format!("http://localhost:{}", tenant.kinde.address().port());
    tenant.set("KINDE_ISSUERS", other.as_str());
    let fix = format!("set KINDE_ISSUERS to {}", tenant.kinde.issuer());
    examine(&tenant, &[]).is("kinde.issuers", "failed", &[&other, &fix]);
    let kindes_own = tenant.kinde.api_audience();
    tenant.unset("KINDE_ISSUERS").set("KINDE_AUDIENCE", kindes_own);
    examine(&tenant, &[]).is("kinde.audience", "warning", &["KINDE_AUDIENCE"]);
    tenant.set("KINDE_AUDIENCE", "https://api.example.com");
    examine(&tenant, &[]).is("kinde.audience", "ok", &["https://api.example.com"]);
    tenant.unset("KINDE_AUDIENCE");
    let application = tenant.kinde.config().app_client_id.clone();
    examine(&tenant, &[]).is("kinde.audience", "ok", &[&application]);
    tenant.unset("KINDE_ALLOWED_CLIENT_IDS");
    let words = ["every application", "KINDE_AUDIENCE", "KINDE_ALLOWED_CLIENT_IDS"];
    examine(&tenant, &[]).is("kinde.audience", "warning", &words);
    tenant.kinde.set_fault(Fault::always(FaultKind::Garbage).on("jwks"));
    examine(&tenant, &[]).is("kinde.keys", "failed", &["KINDE_DOMAIN"]);
}

/// Two tenants are two deployments.
#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_of_another_tenant_is_failed() {
    let (mut tenant, other) = (Tenant::start().await, Tenant::start().await);
    let (own, foreign) = (tenant.kinde.issuer().to_owned(), other.kinde.issuer().to_owned());
    tenant.set("KINDE_ISSUERS", format!("{own},{foreign}"));
    let examined = examine(&tenant, &[]);
    examined.is("kinde.issuers", "failed", &[&foreign, "another tenant", "> remove it from KINDE_ISSUERS"]);
}

/// `KINDE_DOMAIN` says nothing of tokens where `KINDE_ISSUERS` does.
#[tokio::test(flavor = "multi_thread")]
async fn only_those_who_are_trusted_to_issue_tokens_are_compared() {
    let mut tenant = Tenant::start().await;
    let other = format!("http://localhost:{}", tenant.kinde.address().port());
    let said = tenant.kinde.issuer().to_owned();
    tenant.set("KINDE_DOMAIN", other.as_str());
    examine(&tenant, &[]).is(
        "kinde.issuers",
        "failed",
        &[&other, &format!("> set KINDE_ISSUERS to {said},")],
    );
    tenant.set("KINDE_ISSUERS", said.as_str());
    examine(&tenant, &[]).is("kinde.issuers", "ok", &[&said]);
    tenant.set("KINDE_ISSUERS", format!("{said},{other}"));
    examine(&tenant, &[]).is("kinde.issuers", "failed", &[&format!("> set KINDE_ISSUERS to {said},")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lasting_refusal_of_the_users_fails_and_one_of_something_else_is_of_that_alone() {
    let tenant = Tenant::start().await;
    tenant.kinde.set_fault(Fault::always(FaultKind::Status { status: 403 }).on("webhooks"));
    let examined = examine(&tenant, &[]);
    examined.is("kinde.credentials", "ok", &[]).is("kinde.event_types", "ok", &[]);
    examined.is("kinde.scopes", "warning", &["lacks read:webhooks >", "grant read:webhooks"]);
    tenant.kinde.clear_faults();
    tenant.kinde.set_fault(Fault::always(FaultKind::Status { status: 418 }).on("users"));
    examine(&tenant, &[]).is("kinde.scopes", "failed", &["read:users", "418"]);
    tenant.kinde.clear_faults();
    tenant.kinde.set_fault(Fault::always(FaultKind::Status { status: 403 }).on("management"));
    examine(&tenant, &[]).is("kinde.credentials", "failed", &["rejects the token"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kinde_that_throttles_is_a_warning_and_keeps_nobody_waiting() {
    let tenant = Tenant::start().await;
    tenant.kinde.set_fault(Fault::always(FaultKind::RateLimit { reset: 600 }).on("users"));
    examine(&tenant, &[]).is("kinde.scopes", "warning", &["limits the rate", "try again"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mongod_that_stands_alone_or_is_away_is_failed() {
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
async fn a_user_of_mongodb_who_may_only_read_is_failed_with_the_role_to_grant() {
    let mut tenant = Tenant::start().await;
    let mongo = TestMongo::shared().await;
    let name = mongo.database();
    let admin = mongo.client().await.database("admin");
    tenant.set("KINSYNC_DATABASE", name.as_str());
    // Who gives no name is refused by nobody: this server has no access control.
    tenant.set("MONGODB_URI", mongo.uri());
    examine(&tenant, &[]).is("mongodb.privileges", "ok", &[]);
    for (role, status, words) in [
        ("read", "failed", &["may not insert", "readWrite", "grantRolesToUser"][..]),
        ("readWrite", "ok", &[]),
    ] {
        let user = format!("{name}_{role}");
        let roles = [doc! { "role": role, "db": &name }];
        admin.run_command(doc! { "createUser": &user, "pwd": "secret", "roles": roles }).await.unwrap();
        let uri = mongo.uri().replace("mongodb://", &format!("mongodb://{user}:secret@"));
        let separator = if uri.contains('?') { '&' } else { '?' };
        tenant.set("MONGODB_URI", format!("{uri}{separator}authSource=admin"));
        examine(&tenant, &[]).is("mongodb.privileges", status, words);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_indexes_that_keep_the_server_from_starting_are_named() {
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
async fn conflicts_and_dead_letters_are_found_while_a_server_runs_and_after() {
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
    app.until("all is projected", PATIENCE, has_both).await.unwrap();
    let check = |health: &str| {
        let examined = examine(&tenant, &[]);
        examined.is("mongodb.conflicts", "warning", &["1 users do not show", "kp_", "emailConflict"]);
        examined.is("queue.dead_letters", "warning", &["1 deliveries", "kinsync dead-letters list"]);
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
    let check = |tenant: &mut Tenant, dir: &str, id: &str, status: &str, words: &[&str]| {
        tenant.set("KINSYNC_DATA_DIR", dir);
        _ = examine(tenant, &[]).is(id, status, words);
    };
    let file = file.to_str().unwrap();
    check(&mut tenant, file, "data_dir.access", "failed", &["is not a folder", "KINSYNC_DATA_DIR"]);
    check(&mut tenant, &format!("{file}/below"), "data_dir.access", "failed", &["KINSYNC_DATA_DIR"]);
    // Nobody, not even root, makes a file there, and it has no room.
    check(&mut tenant, "/proc", "data_dir.access", "failed", &["cannot be written", "KINSYNC_DATA_DIR"]);
    check(&mut tenant, "/proc", "data_dir.fsync", "skipped", &["data_dir.access"]);
    check(&mut tenant, "/proc", "data_dir.space", "failed", &["0 B free", "more space"]);
    let open = tenant.folder.path().join("open");
    std::fs::create_dir(&open).unwrap();
    for (mode, state) in [(0o777, "failed"), (0o770, "warning")] {
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(mode)).unwrap();
        check(&mut tenant, open.to_str().unwrap(), "data_dir.access", state, &["chmod 700"]);
    }
    tenant.set("KINSYNC_QUEUE_MAX_BYTES", "1000000000GiB");
    check(&mut tenant, open.to_str().unwrap(), "data_dir.space", "warning", &["KINSYNC_QUEUE_MAX_BYTES"]);
    assert_eq!(files(&open), Vec::<String>::new(), "what was made is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn something_else_at_the_address_of_the_server_is_not_taken_for_it() {
    let mut tenant = Tenant::start().await;
    let kinde = tenant.kinde.issuer().to_owned();
    let examined = examine(&tenant, &["--server", &kinde]);
    examined.is("server.health", "warning", &["not this version of kinsync", "--server"]);
    tenant.set("PORT", "0");
    examine(&tenant, &[]).is("server.health", "skipped", &["--server"]);
}

/// Both may be set: one is for the commands that use the admin routes, the other is where /health is.
#[tokio::test(flavor = "multi_thread")]
async fn health_is_asked_for_where_it_is_and_not_where_the_admin_routes_are() {
    let mut tenant = Tenant::start().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    app.set("KINSYNC_METRICS_BIND", metrics.as_str());
    // It is ready when /health is; here that is elsewhere than where the test looks.
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
async fn wrong_settings_are_78_and_weak_ones_a_warning() {
    let mut tenant = Tenant::start().await;
    tenant.set("KINDE_WEBHOOK_SECRET", "short");
    examine(&tenant, &[]).is("settings", "warning", &["KINDE_WEBHOOK_SECRET", "config show"]);
    let ran = tenant.run(&["doctor", "--json", "--port", "x"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (78, ""));
    assert!(ran.stderr.contains("PORT"), "{}", ran.stderr);
}
