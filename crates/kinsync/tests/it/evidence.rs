//! Lost deletions with other evidence of them: they take effect within seconds, not at the next scan.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bson::doc;
use kinde_emulator::{Fault, FaultKind, NewUser, Profile};
use kinsync_testing::mongo::TestMongo;
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    deployment::{DEADLINE, Deployment, named},
    reconcile::{Environment, generated, interrupt_with},
    server::TOKEN,
};

/// Far below the interval of the scans, and above what checks take on a busy machine.
const SECONDS: Duration = Duration::from_mins(2);

async fn get(deployment: &Deployment, path: &str, token: &str) -> (u16, Option<String>) {
    let app = &deployment.apps[0];
    let answer = app.client().get(app.url(path)).bearer_auth(token).send().await.unwrap();
    let profile = answer.headers().get("x-kinsync-profile").map(|value| value.to_str().unwrap().to_owned());
    (answer.status().as_u16(), profile)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_lost_deletion_the_address_is_free_within_seconds_of_its_reuse() {
    let deployment = Deployment::reconciled(1, "1h").await;
    let others = [1, 2, 3].map(|n| deployment.kinde.sign_up(named(n)).unwrap().id);
    let sam = || NewUser::named("sam@example.com", "Sam", "S");
    let old = deployment.kinde.sign_up(sam()).unwrap().id;
    for user in others.iter().chain([&old]) {
        deployment.until_stored(user, doc! {}).await;
    }
    deployment.kinde.quiesce(DEADLINE).await.unwrap();
    deployment.kinde.set_fault(Fault::always(FaultKind::Silent));
    deployment.kinde.delete_user(&old, Profile::Remove).unwrap();
    deployment.kinde.clear_faults();
    let new = deployment.kinde.sign_up(sam()).unwrap().id;
    let began = Instant::now();
    deployment.until_stored(&new, doc! { "email": "sam@example.com" }).await;
    deployment.until_stored(&old, doc! { "isDeleted": true }).await;
    assert!(began.elapsed() < SECONDS, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_rejected_within_seconds_after_kinde_refuses_the_token() {
    let deployment = Deployment::reconciled(1, "1h").await;
    let [ada, eve] = [1, 2].map(|n| deployment.kinde.sign_up(named(n)).unwrap().id);
    for user in [&ada, &eve] {
        deployment.until_stored(user, doc! {}).await;
    }
    deployment.kinde.quiesce(DEADLINE).await.unwrap();
    let token = deployment.token(&ada);
    deployment.kinde.set_fault(Fault::always(FaultKind::Silent));
    deployment.kinde.delete_user(&ada, Profile::Remove).unwrap();
    let began = Instant::now();
    assert_eq!(get(&deployment, "/api/profile", &token).await, (200, Some("refused".to_owned())));
    while get(&deployment, "/api/me", &token).await.0 != 403 {
        assert!(began.elapsed() < SECONDS, "the token is still accepted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_management_api_health_counts_the_unchecked_users() {
    let settings = [("KINSYNC_ADMIN_TOKEN", TOKEN)];
    let deployment = Deployment::with(TestMongo::shared().await, 1, &settings).await;
    let ada = deployment.kinde.sign_up(named(1)).unwrap().id;
    deployment.until_stored(&ada, doc! {}).await;
    deployment.kinde.quiesce(DEADLINE).await.unwrap();
    let token = deployment.token(&ada);
    deployment.kinde.set_fault(Fault::always(FaultKind::Silent));
    deployment.kinde.delete_user(&ada, Profile::Remove).unwrap();
    assert_eq!(get(&deployment, "/api/profile", &token).await, (200, Some("refused".to_owned())));
    let deadline = Instant::now() + DEADLINE;
    loop {
        let health = deployment.apps[0].health().await.unwrap();
        let problems = health["problems"].to_string();
        if problems.contains("at least 1 user may differ from Kinde") {
            assert!(
                problems.contains("set KINDE_M2M_CLIENT_ID") || problems.contains("Set KINDE_M2M_CLIENT_ID")
            );
            return;
        }
        assert!(Instant::now() < deadline, "{health}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reconcile_checks_a_single_user() {
    let environment = Environment::new(generated(20)).await;
    assert_eq!(environment.run(&["backfill"]).await.0, 0);
    let users = environment.kinde.users();
    let (removed, kept) = (users[3].id.as_str(), users[4].id.as_str());
    environment.kinde.delete_user(removed, Profile::Remove).unwrap();
    environment.until_reads_are_newer().await;
    let deleted = async || environment.users.count_documents(doc! { "isDeleted": true }).await.unwrap();
    let (code, dry) = environment.json(&["reconcile", "--user", removed, "--dry-run", "--json"]).await;
    assert_eq!(
        (code, dry["outcome"].as_str(), dry["drift"]["kind"].as_str()),
        (0, Some("drift"), Some("deleted"))
    );
    assert_eq!((dry["dryRun"].as_bool(), deleted().await), (Some(true), 0));
    let (code, stdout, stderr) = environment.run(&["reconcile", "--user", removed]).await;
    assert_eq!((code, stdout.as_str()), (0, format!("{removed}: deleted\n").as_str()), "{stderr}");
    assert_eq!(deleted().await, 1);
    let (code, stdout, _) = environment.run(&["reconcile", "--user", kept]).await;
    assert_eq!((code, stdout.as_str()), (0, format!("{kept}: equals Kinde's\n").as_str()));
    let (code, json) = environment.json(&["reconcile", "--user", "kp_none", "--json"]).await;
    assert_eq!((code, json["outcome"].as_str()), (0, Some("unknown")), "{json}");
}

/// Deletes most users of this tenant at Kinde and starts a scan that is in the middle of its deletions.
async fn in_the_middle_of_deletions(environment: &Environment) -> std::process::Child {
    assert_eq!(environment.run(&["backfill"]).await.0, 0);
    for user in &environment.kinde.users()[..200] {
        environment.kinde.delete_user(&user.id, Profile::Remove).unwrap();
    }
    environment.until_reads_are_newer().await;
    let pause = Duration::from_millis(100);
    environment.kinde.set_fault(Fault::always(FaultKind::Slow { min: pause, max: pause }).on("user"));
    let scan = environment.command(&["reconcile", "--json"]).spawn().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while environment.users.count_documents(doc! { "isDeleted": true }).await.unwrap() == 0 {
        assert!(Instant::now() < deadline, "no user is deleted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    scan
}

async fn outcomes(environment: &Environment) -> Vec<String> {
    let state = environment.state().await;
    let record = state.find_one(doc! { "_id": "reconcile.runs" }).await.unwrap().unwrap();
    let value: Value = serde_json::from_str(record.get_str("value").unwrap()).unwrap();
    let outcome = |run: &Value| run["outcome"].as_str().unwrap_or("failed").to_owned();
    value["value"].as_array().unwrap().iter().map(outcome).collect()
}

/// Suspends a real process for longer than its lease of 30 s.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_is_suspended_in_the_middle_of_its_deletions_leaves_the_rest_to_another_process() {
    let mut environment = Environment::new(generated(450)).await;
    environment.vars.push(("KINSYNC_RECONCILE_MAX_DELETES", "210".to_owned()));
    let first = in_the_middle_of_deletions(&environment).await;
    interrupt_with(&first, "STOP");
    let deleted = async || environment.users.count_documents(doc! { "isDeleted": true }).await.unwrap();
    assert!(deleted().await < 200, "it is in the middle of its deletions");
    environment.kinde.clear_faults();
    let (code, run) = environment.json(&["reconcile", "--json"]).await;
    assert_eq!((code, run["outcome"].as_str()), (0, Some("complete")), "{run}");
    assert_eq!(deleted().await, 200);
    interrupt_with(&first, "CONT");
    let output = tokio::task::spawn_blocking(move || first.wait_with_output().unwrap()).await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && stderr.contains("another process took the lease"), "{stderr}");
    assert_eq!(outcomes(&environment).await, ["complete", "cut", "complete"]);
    let (code, run) = environment.json(&["reconcile", "--json"]).await;
    assert_eq!((code, run["drift"].to_string().as_str()), (0, "{}"), "{run}");
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_scan_is_shown_as_interrupted_at_once_whatever_the_signal() {
    for signal in ["TERM", "KILL"] {
        let mut environment = Environment::new(generated(450)).await;
        environment.vars.push(("KINSYNC_RECONCILE_MAX_DELETES", "210".to_owned()));
        let mut scan = in_the_middle_of_deletions(&environment).await;
        interrupt_with(&scan, signal);
        tokio::task::spawn_blocking(move || scan.wait().unwrap()).await.unwrap();
        let server = environment.server().await;
        let answer =
            server.client().get(server.url("/api/admin/runs")).bearer_auth(TOKEN).send().await.unwrap();
        let runs: Value = answer.json().await.unwrap();
        let scan = runs["runs"].as_array().unwrap().iter().find(|run| run["mode"] == "reconcile").unwrap();
        assert_eq!(scan["outcome"], "interrupted", "{signal}: {scan}");
    }
}

/// Their users are refused with a reason of their own, and none is stored.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_a_second_tenant_are_refused_and_named_in_health() {
    let other = kinde_emulator::Emulator::start(kinde_emulator::Config::default()).await.unwrap();
    let mut deployment = Deployment::reconciled(1, "1h").await;
    let issuers = format!("{},{}", deployment.kinde.issuer(), other.issuer());
    deployment.apps[0].stop().await.unwrap();
    deployment.apps[0].set("KINDE_ISSUERS", issuers);
    deployment.apps[0].start().await.unwrap();
    let own = deployment.kinde.sign_up(named(1)).unwrap().id;
    let foreign = other.sign_up(named(2)).unwrap().id;
    let deadline = Instant::now() + DEADLINE;
    while get(&deployment, "/api/me", &deployment.token(&own)).await.0 != 200 {
        assert!(Instant::now() < deadline, "the tenant's own users are authenticated");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let token = other.access_token(&foreign, &kinde_emulator::TokenSpec::default()).unwrap();
    let app = &deployment.apps[0];
    let answer = app.client().get(app.url("/api/me")).bearer_auth(token).send().await.unwrap();
    let (status, problem) = (answer.status().as_u16(), answer.text().await.unwrap());
    assert!(status == 401 && problem.contains("other_tenant"), "{status}: {problem}");
    assert_eq!(deployment.users.count_documents(doc! { "kindeId": &foreign }).await.unwrap(), 0);
    let health = app.health().await.unwrap()["problems"].to_string();
    assert!(health.contains(other.issuer()) && health.contains("another Kinde tenant"), "{health}");
    deployment.kinde.quiesce(DEADLINE).await.unwrap();
    deployment.apps[0].drained(DEADLINE).await.unwrap();
}
