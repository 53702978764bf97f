//! The scans of running servers: they find what no webhook delivered, also when a server is killed or the webhook disabled.

use std::{process::Command, time::Duration};

use bson::{Document, doc};
use kinde_emulator::{Fault, FaultKind, NewUser, Profile, UserEdit};
use kinsync_testing::{app::TestApp, mongo::TestMongo};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    deployment::{DEADLINE, Deployment, named},
    server::{TOKEN, kinsync},
};

#[tokio::test(flavor = "multi_thread")]
async fn health_names_the_scope_without_which_roles_are_not_compared() {
    let deployment = Deployment::comparing_roles().await;
    deployment.kinde.import_user(named(1)).unwrap();
    deployment.kinde.set_fault(Fault::always(FaultKind::Status { status: 403 }).on("members"));
    let until = async |wanted: &dyn Fn(&str) -> bool| {
        deployment.admin(reqwest::Method::POST, "/api/admin/reconcile").await;
        let (app, deadline) = (&deployment.apps[0], Instant::now() + DEADLINE);
        loop {
            let health = app.client().get(app.url("/health")).send().await.unwrap().text().await.unwrap();
            if wanted(&health) {
                break;
            }
            assert!(Instant::now() < deadline, "{health}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    until(&|health| health.contains("read:organization_users") && health.contains("degraded")).await;
    deployment.kinde.clear_faults();
    until(&|health| !health.contains("read:organization_users")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_show_what_the_last_scan_compared_of_roles() {
    let deployment = Deployment::comparing_roles().await;
    let (org, admin) = (deployment.kinde.config().org_code.clone(), ["admin".to_owned()]);
    for n in 1..=3 {
        deployment.kinde.import_user(named(n)).unwrap();
    }
    let lost = deployment.kinde.users()[0].id.clone();
    deployment.kinde.set_fault(Fault::always(FaultKind::Silent));
    // Two scans of one second have no order, so one of them may change nothing.
    let scanned = async |wanted: &[&str]| {
        let (app, deadline) = (&deployment.apps[0], Instant::now() + DEADLINE);
        for n in 0.. {
            if n % 30 == 0 {
                deployment.admin(reqwest::Method::POST, "/api/admin/reconcile").await;
            }
            let page = app.client().get(app.url("/metrics")).send().await.unwrap().text().await.unwrap();
            let missing: Vec<_> =
                wanted.iter().filter(|line| !page.contains(&format!("\n{line}\n"))).collect();
            if missing.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "{missing:?} in {page}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    scanned(&[
        "kinsync_roles_compared 1",
        "kinsync_organizations 1",
        "kinsync_memberships 3",
        "kinsync_members_with_unknown_permissions 0",
        "kinsync_memberships_in_drift{kind=\"filled_in\"} 3",
        "kinsync_directory_records 1",
        "kinsync_pending_checks 0",
    ])
    .await;
    deployment.kinde.add_to_organization(&lost, &org, &admin, &[]).unwrap();
    scanned(&[
        "kinsync_memberships_in_drift{kind=\"changed\"} 1",
        "kinsync_memberships_in_drift{kind=\"filled_in\"} 0",
        "kinsync_directory_records 2",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_finds_imported_users_at_its_start_and_on_request() {
    let deployment = Deployment::reconciled(1, "1h").await;
    // The first scan finds no user at Kinde and fails; the next one starts soon.
    let first = deployment.kinde.import_user(named(1)).unwrap().id;
    deployment.until_stored(&first, doc! {}).await;
    let second = deployment.kinde.import_user(named(2)).unwrap().id;
    let pid = deployment.apps[0].pid().unwrap().to_string();
    assert!(Command::new("kill").args(["-USR1", &pid]).status().unwrap().success());
    deployment.until_stored(&second, doc! {}).await;
    let third = deployment.kinde.import_user(named(3)).unwrap().id;
    deployment.admin(reqwest::Method::POST, "/api/admin/reconcile").await;
    deployment.until_stored(&third, doc! {}).await;
    let fourth = deployment.kinde.import_user(named(4)).unwrap().id;
    // The user is stored before the run has ended.
    let deadline = Instant::now() + DEADLINE;
    let runs = loop {
        let runs = deployment.admin(reqwest::Method::GET, "/api/admin/runs").await;
        if runs["runs"][0]["outcome"] == "complete" {
            break runs;
        }
        assert!(Instant::now() < deadline, "{runs}");
    };
    deployment.admin(reqwest::Method::POST, &format!("/api/admin/users/{fourth}/check")).await;
    deployment.until_stored(&fourth, doc! {}).await;
    let after = deployment.admin(reqwest::Method::GET, "/api/admin/runs").await;
    assert_eq!(after, runs, "one user costs no scan");

    let newest = &runs["runs"][0];
    assert_eq!((&newest["users"], &newest["missedByWebhook"]), (&3.into(), &1.into()), "{newest}");
    assert!(newest["examples"].is_null(), "lists are short");
    let ways = (&newest["changesBySource"], &newest["previousSource"], &newest["since"]);
    let expected = (&json!({ "reconcile": 1 }), &json!({ "nothing": 1 }), &runs["runs"][1]["startedAt"]);
    assert_eq!(ways, expected, "{newest}");
    let path = format!("/api/admin/runs/{}", newest["id"].as_str().unwrap());
    let run = deployment.admin(reqwest::Method::GET, &path).await;
    assert_eq!(
        (&run["examples"][0]["user"], &run["examples"][0]["kind"]),
        (&third.into(), &"missing".into()),
        "{run}"
    );
    let drift = deployment.admin(reqwest::Method::GET, "/api/admin/drift").await;
    assert_eq!(drift["run"], run);
    let expected = [
        "kinsync_users_in_drift{kind=\"missing\"} 1",
        "kinsync_users_changed_between_scans{source=\"reconcile\"} 1",
        "kinsync_users_changed_between_scans{source=\"webhook\"} 0",
        "kinsync_user_changes_total{source=\"reconcile\"} 4",
        "kinsync_reconcile_runs_total{outcome=\"complete\"}",
        "kinsync_time_to_consistency_seconds_count{source=\"reconcile\"}",
        // There are users and no event was ever received.
        "kinsync_webhook_silent 1",
    ];
    // A write is visible before it is counted.
    let deadline = Instant::now() + DEADLINE;
    loop {
        let answer =
            deployment.apps[0].client().get(deployment.apps[0].url("/metrics")).send().await.unwrap();
        let metrics = answer.text().await.unwrap();
        let Some(missing) = expected.into_iter().find(|line| !metrics.contains(line)) else { break };
        assert!(Instant::now() < deadline, "{missing} is not in\n{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_carries_out_the_deletions_that_are_approved() {
    let deployment = Deployment::reconciled(1, "1h").await;
    let users: Vec<String> = (0..40).map(|n| deployment.kinde.import_user(named(n)).unwrap().id).collect();
    for user in &users {
        deployment.until_stored(user, doc! {}).await;
    }
    deployment.kinde.set_fault(Fault::always(FaultKind::Silent));
    for user in &users[..25] {
        deployment.kinde.delete_user(user, Profile::Remove).unwrap();
    }
    // A read is newer than the last one only after the next second of Kinde's clock.
    let holds = async |deletions: u64, known: &str| {
        let deadline = Instant::now() + DEADLINE;
        loop {
            deployment.admin(reqwest::Method::POST, "/api/admin/reconcile").await;
            let runs = deployment.admin(reqwest::Method::GET, "/api/admin/runs").await;
            let mut ended = runs["runs"].as_array().unwrap().iter().filter(|run| run["outcome"] != "running");
            let is_found = |run: &&Value| run["drift"]["deletion_held"] == deletions && run["id"] != known;
            if let Some(run) = ended.find(is_found) {
                break run["id"].as_str().unwrap().to_owned();
            }
            assert!(Instant::now() < deadline, "{runs}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let replaced = holds(25, "").await;
    let url = deployment.apps[0].url("");
    let vars = [("KINSYNC_SERVER", url.as_str()), ("KINSYNC_ADMIN_TOKEN", TOKEN)];
    let approve = |run: &str| kinsync(&["reconcile", "--soon", "--approve", run], &vars).output().unwrap();
    let show = |run: &str| {
        String::from_utf8(kinsync(&["runs", "show", run], &vars).output().unwrap().stdout).unwrap()
    };
    assert!(
        show(&replaced).contains(&format!("kinsync reconcile --soon --approve {replaced}")),
        "{}",
        show(&replaced)
    );
    // A run that holds another user replaces what was held.
    deployment.kinde.delete_user(&users[25], Profile::Remove).unwrap();
    let held = holds(26, "").await;
    let again = holds(26, &held).await;
    let shown = show(&replaced);
    assert!(!shown.contains("--approve") && shown.contains("cannot be approved any more"), "{shown}");
    assert!(show(&held).contains(&format!("kinsync reconcile --soon --approve {held}")), "{}", show(&held));
    for refused in ["20200101-000000-0000", &replaced] {
        let refused = approve(refused);
        let stderr = String::from_utf8(refused.stderr).unwrap();
        assert!(refused.status.code() == Some(1) && stderr.contains("holds no deletions"), "{stderr}");
    }
    assert!(approve(&held).status.success());
    for user in &users[..26] {
        deployment.until_stored(user, doc! { "isDeleted": true }).await;
    }
    assert_eq!(deployment.users.count_documents(doc! { "isDeleted": false }).await.unwrap(), 14);
    // The run that carries it out is recorded after its last deletion.
    let deadline = Instant::now() + DEADLINE;
    while show(&held).contains("needs approval") {
        assert!(Instant::now() < deadline, "an approved run still needs approval: {}", show(&held));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(show(&held).contains("26 with a held deletion"), "{}", show(&held));
    let shown = show(&again);
    assert!(!shown.contains("needs approval"), "the same users, held by another run: {shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_webhook_is_reported_until_it_is_enabled_again() {
    let deployment = Deployment::reconciled(1, "2s").await;
    let ada = deployment.kinde.sign_up(named(1)).unwrap().id;
    deployment.until_stored(&ada, doc! {}).await;
    deployment.kinde.quiesce(DEADLINE).await.unwrap();
    let silent = async |expected: bool| {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let health = deployment.apps[0].health().await.unwrap();
            let problems = health["problems"].to_string();
            if problems.contains("the webhook is probably disabled") == expected {
                assert!(!expected || problems.contains("Settings > Webhooks"), "{problems}");
                return;
            }
            assert!(Instant::now() < deadline, "{expected}: {health}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    silent(false).await;
    let webhook = deployment.kinde.webhooks()[0].id.clone();
    deployment.kinde.disable_webhook(&webhook).unwrap();
    // Users sign up, and no event is delivered.
    let deadline = Instant::now() + DEADLINE;
    for n in 2.. {
        deployment.kinde.sign_up(named(n)).unwrap();
        let health = deployment.apps[0].health().await.unwrap();
        if !health["components"]["reconcile"]["webhookSilence"].is_null() {
            break;
        }
        assert!(Instant::now() < deadline, "{health}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    silent(true).await;
    // Scans without a repair do not prove that the webhook works.
    let deadline = Instant::now() + DEADLINE;
    let mut clean = std::collections::BTreeSet::new();
    while clean.len() < 3 {
        let health = deployment.apps[0].health().await.unwrap();
        let reconcile = &health["components"]["reconcile"];
        if reconcile["missedByWebhook"] == 0 {
            assert!(!reconcile["webhookSilence"].is_null(), "{health}");
            clean.insert(reconcile["lastRun"].to_string());
        }
        assert!(Instant::now() < deadline, "{health}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    deployment.kinde.enable_webhook(&webhook).unwrap();
    deployment
        .kinde
        .update_user(&ada, UserEdit { first_name: Some("Back".into()), ..UserEdit::default() })
        .unwrap();
    silent(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_servers_one_scans_and_another_continues_when_it_is_killed() {
    let mut deployment = Deployment::logging("1s", 3, "info,kinsync_engine::reconcile::schedule=debug").await;
    let first = deployment.kinde.import_user(named(1)).unwrap().id;
    deployment.until_stored(&first, doc! {}).await;
    // A scan that does not end.
    let long = Fault::always(FaultKind::Slow { min: DEADLINE, max: DEADLINE }).on("users");
    deployment.kinde.set_fault(long.clone());
    let state = TestMongo::shared().await.client().await.database(&deployment.users.namespace().db);
    let lease = state.collection::<Document>("kinsync_state");
    let holder = async || {
        let record = lease.find_one(doc! { "_id": "reconcile.lease" }).await.unwrap()?;
        let value: Value = serde_json::from_str(record.get_str("value").unwrap()).unwrap();
        u32::try_from(value["value"]["place"]["pid"].as_u64()?).ok()
    };
    let deadline = Instant::now() + DEADLINE;
    let leader = loop {
        let has_begun =
            deployment.kinde.faults().iter().any(|report| report.fault == long && report.occurrences > 0);
        if let Some(leader) = holder().await.filter(|_| has_begun) {
            break leader;
        }
        assert!(Instant::now() < deadline, "no server scans");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let requests = deployment.kinde.requests("users");
    let waits = |app: &TestApp| app.log().matches("another process scans").count();
    for app in deployment.apps.iter_mut().filter(|app| app.pid() != Some(leader)) {
        let before = waits(app);
        app.until("it has tried several times", DEADLINE, async |app| Ok(waits(app) >= before + 3))
            .await
            .unwrap();
    }
    assert_eq!(
        (holder().await, deployment.kinde.requests("users")),
        (Some(leader), requests),
        "the others wait"
    );
    let killed = deployment.apps.iter_mut().find(|app| app.pid() == Some(leader)).unwrap();
    killed.kill().unwrap();
    deployment.kinde.clear_faults();
    let second = deployment.kinde.import_user(named(2)).unwrap().id;
    deployment.until_stored(&second, doc! {}).await;
    let runs = admin_of(&deployment, leader).await;
    let outcomes: Vec<&Value> = runs["runs"].as_array().unwrap().iter().map(|run| &run["outcome"]).collect();
    assert!(outcomes.contains(&&Value::from("interrupted")), "{outcomes:?}");
}

async fn admin_of(deployment: &Deployment, killed: u32) -> Value {
    let app = deployment.apps.iter().find(|app| app.pid().is_some_and(|pid| pid != killed)).unwrap();
    let answer = app.client().get(app.url("/api/admin/runs")).bearer_auth(TOKEN).send().await.unwrap();
    answer.json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_repeated_and_late_deliveries_converge_to_the_state_of_kinde() {
    let mut deployment = Deployment::reconciled(2, "2s").await;
    deployment.kinde.set_fault(Fault::chance(FaultKind::Drop, 0.3));
    deployment.kinde.set_fault(Fault::chance(FaultKind::Silent, 0.1));
    deployment.kinde.set_fault(Fault::chance(FaultKind::Duplicate { copies: 1 }, 0.2));
    let delay = FaultKind::Delay { min: Duration::from_millis(500), max: Duration::from_secs(4) };
    deployment.kinde.set_fault(Fault::chance(delay, 0.3));
    let mut ids = Vec::new();
    for n in 0..120 {
        ids.push(deployment.kinde.sign_up(NewUser { email_verified: true, ..named(n) }).unwrap().id);
        let other = &ids[n / 2];
        let edit = UserEdit { first_name: Some(format!("Changed {n}")), ..UserEdit::default() };
        if n % 3 == 0 {
            _ = deployment.kinde.update_user(other, edit);
        }
        if n % 7 == 6 {
            _ = deployment.kinde.delete_user(other, Profile::Remove);
        }
    }
    deployment.converged().await;
    let live = deployment.kinde.users().len() as u64;
    let deadline = Instant::now() + DEADLINE;
    while deployment.users.count_documents(doc! { "isDeleted": false }).await.unwrap() != live {
        assert!(Instant::now() < deadline, "some deletions are not found");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
