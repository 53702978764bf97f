//! `kinsync doctor`: a correct configuration, and each problem at Kinde.

use kinde_emulator::{Config, Fault, FaultKind};
use kinsync_testing::{app::TestApp, mongo::TestMongo};
use serde_json::Value;

use crate::{
    deployment::{DEADLINE, named},
    tenant::{Tenant, event_types},
};

/// Every check, in this order: programs rely on it.
const IDS: [&str; 33] = [
    "settings",
    "kinde.clock",
    "kinde.keys",
    "kinde.issuers",
    "kinde.audience",
    "kinde.credentials",
    "kinde.scopes",
    "kinde.webhook",
    "kinde.event_types",
    "kinde.roles",
    "kinde.properties",
    "mongodb.reachable",
    "mongodb.version",
    "mongodb.replica_set",
    "mongodb.majority",
    "mongodb.privileges",
    "mongodb.indexes",
    "mongodb.collections",
    "mongodb.validator",
    "mongodb.emails",
    "mongodb.conflicts",
    "mongodb.other_forms",
    "mongodb.refused_users",
    "mongodb.kept_values",
    "log.growth",
    "data_dir.access",
    "data_dir.space",
    "data_dir.fsync",
    "queue.dead_letters",
    "queue.reachable",
    "queue.durable",
    "queue.eviction",
    "server.health",
];

const URL: &str = "https://app.example.com";
const ENDPOINT: &str = "https://app.example.com/api/webhook";

pub(crate) struct Examined {
    pub(crate) code: i32,
    findings: Vec<Value>,
}

impl Examined {
    #[track_caller]
    fn of(&self, id: &str) -> (&str, String) {
        let finding =
            self.findings.iter().find(|finding| finding["id"] == id).expect("every check has a finding");
        let text = |key: &str| finding[key].as_str().unwrap_or_default();
        (text("status"), format!("{} > {}", text("found"), text("fix")))
    }

    /// Asserts the status of a check, and that its finding or fix contains these texts.
    #[track_caller]
    pub(crate) fn is(&self, id: &str, expected: &str, texts: &[&str]) -> &Self {
        let (status, output) = self.of(id);
        assert_eq!(status, expected, "{id}: {output}");
        for text in texts {
            assert!(output.contains(text), "{id} does not contain `{text}`: {output}");
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
pub(crate) fn examine(tenant: &Tenant, args: &[&str]) -> Examined {
    let ran = tenant.run(&[&["doctor", "--json"], args].concat());
    let output = ran.json();
    let findings = output["findings"].as_array().unwrap().clone();
    let ids: Vec<&str> = findings.iter().filter_map(|finding| finding["id"].as_str()).collect();
    assert_eq!(ids, IDS);
    for finding in &findings {
        let has_fix = finding["fix"].as_str().is_some_and(|fix| !fix.is_empty());
        let rests_on_another = finding["found"].as_str().unwrap().starts_with("needs ");
        assert_eq!(has_fix, finding["status"] != "ok" && !rests_on_another, "{finding}");
    }
    assert_eq!(output["ok"], ran.code == 0);
    let examined = Examined { code: ran.code, findings };
    examined.code_fits();
    examined
}

/// A server on a MongoDB of the test's own, in the settings of the tenant too.
pub(crate) async fn serve(tenant: &mut Tenant, mongo: &TestMongo) -> (TestApp, String) {
    let database = mongo.database();
    let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    app.with_mongodb(&mongo.uri(), &database).set("KINDE_DOMAIN", tenant.kinde.issuer());
    app.start().await.unwrap();
    tenant.set("MONGODB_URI", mongo.uri()).set("KINSYNC_DATABASE", database.as_str());
    tenant.set("KINSYNC_DATA_DIR", app.data_dir().display().to_string());
    tenant.set("PORT", app.address().port().to_string()).set("KINSYNC_PUBLIC_URL", app.url(""));
    (app, database)
}

pub(crate) fn files(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().path().display().to_string()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_correct_configuration_passes_every_check() {
    let mut tenant = Tenant::start().await;
    let (mut app, _) = serve(&mut tenant, TestMongo::shared().await).await;
    app.prepared().await.unwrap();
    assert_eq!(tenant.run(&["webhook", "setup"]).code, 0);
    tenant.kinde.sign_up(named(1)).unwrap();
    tenant.kinde.quiesce(DEADLINE).await.unwrap();
    app.drained(DEADLINE).await.unwrap();
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
async fn checks_create_neither_a_folder_nor_a_collection() {
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
async fn a_wrong_secret_is_distinguished_from_an_unavailable_kinde() {
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

/// The Management API is only at the kinde.com address.
#[tokio::test(flavor = "multi_thread")]
async fn a_custom_domain_as_the_tenant_is_failed_with_the_setting_to_change() {
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
async fn a_webhook_that_does_not_deliver_to_this_server_is_failed() {
    let mut tenant = Tenant::start().await;
    let check =
        |tenant: &Tenant, status, texts: &[&str]| _ = examine(tenant, &[]).is("kinde.webhook", status, texts);
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
async fn unknown_event_types_are_a_warning_and_missing_ones_a_failure() {
    let types = event_types(&[], &["user.abducted"]);
    let tenant = Tenant::with(Config { event_types: types, ..Config::default() }).await;
    examine(&tenant, &[]).is("kinde.event_types", "warning", &["user.abducted", "newer version"]);
    let types = event_types(&["user.deleted"], &[]);
    let tenant = Tenant::with(Config { event_types: types, ..Config::default() }).await;
    examine(&tenant, &[]).is("kinde.event_types", "failed", &["Kinde has no user.deleted", "KINDE_DOMAIN"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_of_roles_names_the_requests_of_a_scan_and_a_missing_scope() {
    let mut tenant = Tenant::start().await;
    examine(&tenant, &[]).is("kinde.roles", "ok", &["KINSYNC_RECONCILE_ROLES=true"]);
    tenant.set("KINSYNC_RECONCILE_ROLES", "true");
    examine(&tenant, &[]).is("kinde.roles", "ok", &["1 organization and 0 roles: at least 5 requests"]);
    tenant.kinde.set_fault(Fault::always(FaultKind::Status { status: 403 }).on("members"));
    examine(&tenant, &[]).is("kinde.roles", "warning", &["lacks read:organization_users", "grant"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_of_properties_names_the_requests_of_a_comparison_and_a_missing_scope() {
    let mut tenant = Tenant::start().await;
    examine(&tenant, &[]).is("kinde.properties", "ok", &["KINSYNC_PROPERTIES"]);
    tenant.set("KINSYNC_PROPERTIES", "plan,*");
    let texts = ["plan, *: one request per 200 users, at most every 24 h"];
    examine(&tenant, &[]).is("kinde.properties", "ok", &texts);
    tenant.kinde.set_fault(Fault::always(FaultKind::Status { status: 403 }).on("property_definitions"));
    examine(&tenant, &[]).is("kinde.properties", "warning", &["lacks read:properties", "grant"]);
}

/// Asserts the reported difference. Kinde's `Date` has whole seconds, and a response takes longer on a busy machine.
#[track_caller]
fn assert_difference(output: &str, seconds: i64) {
    let reported = output.split("clock is ").nth(1).and_then(|rest| rest.split(' ').next());
    let reported: i64 = reported.and_then(|number| number.parse().ok()).expect(output);
    assert!((reported - seconds).abs() <= 5, "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_is_reported_with_its_difference() {
    let mut tenant = Tenant::start().await;
    for (ahead, status, side) in
        [(-3600, "failed", "ahead of"), (3600, "failed", "behind"), (-30, "warning", "ahead of")]
    {
        tenant.kinde.clear_faults();
        tenant.kinde.set_fault(Fault::always(FaultKind::WrongDate { ahead }));
        let examined = examine(&tenant, &[]);
        let (_, output) = examined.is("kinde.clock", status, &[side, "NTP"]).of("kinde.clock");
        assert_difference(&output, ahead.abs());
    }
    tenant.unset("KINDE_M2M_CLIENT_ID").unset("KINDE_M2M_CLIENT_SECRET");
    let examined = examine(&tenant, &[]);
    let (_, output) = examined.is("kinde.clock", "warning", &["ahead of"]).of("kinde.clock");
    assert_difference(&output, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_with_another_name_in_its_discovery_document_is_failed() {
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
    let texts = ["every application", "KINDE_AUDIENCE", "KINDE_ALLOWED_CLIENT_IDS"];
    examine(&tenant, &[]).is("kinde.audience", "warning", &texts);
    tenant.kinde.set_fault(Fault::always(FaultKind::Garbage).on("jwks"));
    examine(&tenant, &[]).is("kinde.keys", "failed", &["KINDE_DOMAIN"]);
}

/// A deployment has one tenant.
#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_of_another_tenant_is_failed() {
    let (mut tenant, other) = (Tenant::start().await, Tenant::start().await);
    let (own, foreign) = (tenant.kinde.issuer().to_owned(), other.kinde.issuer().to_owned());
    tenant.set("KINDE_ISSUERS", format!("{own},{foreign}"));
    let examined = examine(&tenant, &[]);
    examined.is("kinde.issuers", "failed", &[&foreign, "another tenant", "> remove it from KINDE_ISSUERS"]);
}

/// `KINDE_ISSUERS` replaces `KINDE_DOMAIN` as the issuer of tokens.
#[tokio::test(flavor = "multi_thread")]
async fn only_trusted_issuers_are_compared() {
    let mut tenant = Tenant::start().await;
    let other = format!("http://localhost:{}", tenant.kinde.address().port());
    let issuer = tenant.kinde.issuer().to_owned();
    tenant.set("KINDE_DOMAIN", other.as_str());
    examine(&tenant, &[]).is(
        "kinde.issuers",
        "failed",
        &[&other, &format!("> set KINDE_ISSUERS to {issuer},")],
    );
    tenant.set("KINDE_ISSUERS", issuer.as_str());
    examine(&tenant, &[]).is("kinde.issuers", "ok", &[&issuer]);
    tenant.set("KINDE_ISSUERS", format!("{issuer},{other}"));
    examine(&tenant, &[]).is("kinde.issuers", "failed", &[&format!("> set KINDE_ISSUERS to {issuer},")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_refusal_of_the_users_is_failed_and_one_of_another_scope_a_warning() {
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
async fn a_rate_limit_of_kinde_is_a_warning_without_a_long_wait() {
    let tenant = Tenant::start().await;
    tenant.kinde.set_fault(Fault::always(FaultKind::RateLimit { reset: 600 }).on("users"));
    examine(&tenant, &[]).is("kinde.scopes", "warning", &["limits the rate", "try again"]);
}
