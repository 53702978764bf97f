//! `kinsync events replay` and `POST /api/admin/events/replay`.

use bson::doc;
use kinsync_testing::mongo::TestMongo;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    deployment::{Deployment, named},
    server::{TOKEN, kinsync},
};

/// The binary against this deployment: exit code, stdout and stderr.
fn run(deployment: &Deployment, args: &[&str]) -> (i32, String, String) {
    let url = deployment.apps[0].url("");
    let vars = [("KINSYNC_SERVER", url.as_str()), ("KINSYNC_ADMIN_TOKEN", TOKEN)];
    let output = kinsync(&[&["events", "replay"], args].concat(), &vars).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

async fn replay(deployment: &Deployment, request: &Value) -> (StatusCode, Value) {
    let app = &deployment.apps[0];
    let request = app.client().post(app.url("/api/admin/events/replay")).bearer_auth(TOKEN).json(request);
    let answer = request.send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

/// Two stored users, and the event that created the first. The document of the first is lost then.
async fn with_a_lost_user() -> (Deployment, String, String) {
    let mongo = TestMongo::shared().await;
    let mut deployment = Deployment::with(mongo, 1, &[("KINSYNC_ADMIN_TOKEN", TOKEN)]).await;
    let [ada, _] = [1, 2].map(|n| deployment.kinde.sign_up(named(n)).unwrap().id);
    deployment.converged().await;
    let path = format!("/api/admin/events?user={ada}&type=user.created");
    let page = deployment.admin(reqwest::Method::GET, &path).await;
    let event = page["events"][0]["eventId"].as_str().unwrap().to_owned();
    deployment.users.delete_one(doc! { "kindeId": &ada }).await.unwrap();
    (deployment, ada, event)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_replay_prints_what_would_change_and_a_replay_changes_it() {
    let (deployment, ada, event) = with_a_lost_user().await;
    let is_stored = async || deployment.users.find_one(doc! { "kindeId": &ada }).await.unwrap().is_some();

    let (code, text, _) = run(&deployment, &["--user", &ada, "--dry-run"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("WOULD CHANGE") && text.contains(&ada) && text.contains("firstName"), "{text}");
    assert!(text.ends_with("read, 0 skipped\n"), "{text}");
    assert!(!is_stored().await, "a dry run writes nothing");

    let (code, text, _) = run(&deployment, &[&event, "--dry-run", "--json"]);
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &found["entries"], &found["skipped"]), (0, &json!(1), &json!([])), "{found}");
    assert_eq!(found["changed"][0]["user"], ada.as_str(), "{found}");
    let fields = found["changed"][0]["fields"].as_array().unwrap();
    assert!(fields.contains(&"email".into()), "{found}");

    let (code, text, _) = run(&deployment, &[&event]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("CHANGED") && !text.contains("WOULD") && text.contains(&ada), "{text}");
    deployment.until_stored(&ada, doc! { "firstName": "First 1", "email": "user1@example.com" }).await;

    // The other events of the user, and then nothing is left to change.
    assert_eq!(run(&deployment, &["--user", &ada]).0, 0);
    let (code, text, _) = run(&deployment, &["--since", "2020-01-01T00:00:00Z", "--json"]);
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &found["changed"]), (0, &json!([])), "{found}");
    assert!(found["entries"].as_u64().unwrap() >= 2, "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_without_a_criterion_or_of_an_unknown_event_fails_with_the_reason() {
    let (deployment, ada, _) = with_a_lost_user().await;
    let (code, _, why) = run(&deployment, &[]);
    assert_eq!(code, 2, "{why}");
    assert!(why.contains("--user") && why.contains("--since"), "{why}");
    let (code, _, why) = run(&deployment, &["event_unknown"]);
    assert_eq!(code, 1, "{why}");
    assert!(why.contains("event"), "{why}");
    let (code, _, why) = run(&deployment, &["--user", &ada, "--since", "yesterday"]);
    assert_eq!(code, 2, "{why}");
    assert!(deployment.users.find_one(doc! { "kindeId": &ada }).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_route_of_a_replay_verifies_its_request_and_is_audited() {
    let (deployment, ada, event) = with_a_lost_user().await;
    for wrong in
        [json!({}), json!({ "dryRun": true }), json!({ "usr": ada }), json!({ "since": "yesterday" })]
    {
        let (status, problem) = replay(&deployment, &wrong).await;
        assert!(status.is_client_error() && problem["detail"].is_string(), "{wrong}: {status} {problem}");
    }
    let (status, _) = replay(&deployment, &json!({ "eventId": "event_unknown" })).await;
    assert_eq!(status, 404);
    let app = &deployment.apps[0];
    let url = app.url("/api/admin/events/replay");
    let answer = app.client().post(url).json(&json!({ "eventId": event })).send().await.unwrap();
    assert_eq!(answer.status(), 401);
    assert!(deployment.users.find_one(doc! { "kindeId": &ada }).await.unwrap().is_none());

    let (status, found) = replay(&deployment, &json!({ "user": ada, "type": "user.created" })).await;
    assert_eq!((status, &found["entries"]), (StatusCode::OK, &json!(1)), "{found}");
    assert_eq!(found["changed"][0]["user"], ada.as_str(), "{found}");
    deployment.until_stored(&ada, doc! { "firstName": "First 1" }).await;
    let audit = deployment.admin(reqwest::Method::GET, "/api/admin/audit").await;
    let newest = &audit["records"].as_array().unwrap().iter().find(|one| one["kind"] == "action").unwrap();
    assert_eq!(newest["route"], "POST /api/admin/events/replay", "{audit}");
    assert_eq!(newest["parameters"]["user"], ada.as_str(), "{audit}");
    // The log has it too.
    let path = "/api/admin/events?type=kinsync.operator";
    let logged = deployment.admin(reqwest::Method::GET, path).await;
    assert!(!logged["events"].as_array().unwrap().is_empty(), "{logged}");
}
