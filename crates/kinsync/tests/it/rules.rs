//! Rules of the application's database that refuse documents: the answers to requests and what operators see, on the real
//! binary and the real MongoDB.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bson::{Document, doc};
use kinde_emulator::{NewUser, Profile, UserEdit};
use kinsync_testing::{app::TestApp, mongo::TestMongo};
use serde_json::{Value, json};

use crate::{
    deployment::{Deployment, named},
    reconcile::Environment,
};

const DEADLINE: Duration = Duration::from_mins(2);

/// Creates the collection of users with this validator.
async fn demanding(deployment: &Deployment, rule: Document) {
    let command = doc! { "collMod": "users", "validator": rule };
    deployment.database().run_command(command).await.unwrap();
}

async fn answer(app: &TestApp, path: &str, token: &str) -> (u16, Value) {
    let answer = app.client().get(app.url(path)).bearer_auth(token).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap_or_default())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_a_validator_refuses_is_refused_and_named_until_the_rule_allows_the_document() {
    let mut deployment = Deployment::start(TestMongo::shared().await, 1).await;
    demanding(&deployment, doc! { "$jsonSchema": { "required": ["tenant"] } }).await;
    let ada = deployment.kinde.import_user(named(1)).unwrap().id;
    let token = deployment.token(&ada);
    for _ in 0..3 {
        let (status, body) = answer(&deployment.apps[0], "/api/me", &token).await;
        assert_eq!((status, &body["reason"]), (503, &json!("document_refused")), "{body}");
        let (status, body) = answer(&deployment.apps[0], "/auth/verify", &token).await;
        assert_eq!((status, &body["reason"]), (403, &json!("document_refused")), "{body}");
    }
    let app = &mut deployment.apps[0];
    app.until("/health counts the user", DEADLINE, async |app| {
        let health = app.health().await?;
        Ok(health.pointer("/components/store/refusedUsers") == Some(&json!(1)))
    })
    .await
    .unwrap();
    let problems = app.health().await.unwrap()["problems"].to_string();
    assert!(problems.contains("required `tenant`") && problems.contains(&ada), "{problems}");
    let explained = app.admin(&format!("/users/{ada}/explain")).await.unwrap().unwrap();
    assert!(text(&explained["refused"]["reason"]).contains("tenant"), "{explained}");
    // The token contains no address.
    let event = format!(
        r#"{{"type":"user.updated","event_id":"e1","timestamp":"2026-01-01T00:00:00Z","data":{{"user":{{"id":"{ada}","email":"user1@example.com"}}}}}}"#
    );
    assert_eq!(app.deliver(event).await.unwrap(), 200);
    app.drained(DEADLINE).await.unwrap();
    for (filter, is_found) in
        [("", true), ("&email=USER1@example.com", true), ("&email=eve@example.com", false)]
    {
        let page = app.admin(&format!("/users?state=refused{filter}")).await.unwrap().unwrap();
        assert_eq!(page["users"][0]["kindeId"] == json!(ada), is_found, "{filter}: {page}");
    }
    let lines = app.log().lines().filter(|line| line.contains("the store refuses a user")).count();
    assert_eq!(lines, 1, "one line for the user and the rule");
    demanding(&deployment, doc! {}).await;
    let app = &mut deployment.apps[0];
    app.until("the user is stored", Duration::from_mins(1), async |app| {
        Ok(answer(app, "/api/me", &token).await.0 == 200)
    })
    .await
    .unwrap();
    assert_eq!(answer(app, "/auth/verify", &token).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_lets_users_pass_that_the_store_refuses() {
    let settings = [("KINSYNC_REFUSED_USERS", "pass")];
    let deployment = Deployment::with(TestMongo::shared().await, 1, &settings).await;
    demanding(&deployment, doc! { "$jsonSchema": { "required": ["tenant"] } }).await;
    let ada = deployment.kinde.import_user(named(1)).unwrap().id;
    let app = &deployment.apps[0];
    let answer =
        app.client().get(app.url("/auth/verify")).bearer_auth(deployment.token(&ada)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-kinsync-degraded"], "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_deleted_after_the_application_made_a_unique_index_are_refused_within_seconds_and_after_a_restart()
 {
    let mut deployment = Deployment::start(TestMongo::shared().await, 1).await;
    let ids: Vec<String> = (1..=3).map(|n| deployment.kinde.create_user(named(n)).unwrap().id).collect();
    deployment.kinde.create_user(NewUser::default()).unwrap();
    deployment.converged().await;
    let tokens: Vec<String> = ids.iter().map(|id| deployment.token(id)).collect();
    for token in &tokens {
        assert_eq!(answer(&deployment.apps[0], "/auth/verify", token).await.0, 200);
    }
    let index = doc! { "key": { "email": 1 }, "unique": true, "name": "email_1" };
    let command = doc! { "createIndexes": "users", "indexes": [index] };
    deployment.database().run_command(command).await.unwrap();
    for id in &ids {
        deployment.kinde.delete_user(id, Profile::Remove).unwrap();
    }
    let app = &mut deployment.apps[0];
    for is_restarted in [false, true] {
        if is_restarted {
            app.stop().await.unwrap();
            app.start().await.unwrap();
        }
        app.until("every deleted user is refused", DEADLINE, async |app| {
            let requests = tokens.iter().map(|token| answer(app, "/auth/verify", token));
            Ok(futures_util::future::join_all(requests).await.iter().all(|(status, _)| *status == 403))
        })
        .await
        .unwrap();
    }
    let filter = doc! { "kindeId": { "$in": &ids }, "isDeleted": true };
    assert_eq!(deployment.users.count_documents(filter).await.unwrap(), 3);
    app.until("/health names the index", DEADLINE, async |app| {
        Ok(app.health().await?["problems"].to_string().contains("email_1"))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_user_is_refused_at_once_after_the_application_replaced_the_document() {
    let mut deployment = Deployment::start(TestMongo::shared().await, 1).await;
    let ada = deployment.kinde.create_user(named(1)).unwrap().id;
    let token = deployment.token(&ada);
    deployment.converged().await;
    let suspended = UserEdit { is_suspended: Some(true), ..UserEdit::default() };
    deployment.kinde.update_user(&ada, suspended).unwrap();
    deployment.converged().await;
    deployment
        .users
        .replace_one(doc! { "kindeId": &ada }, doc! { "kindeId": &ada, "plan": "pro" })
        .await
        .unwrap();
    // A process without a cache, so that the first request finds the document.
    let app = &mut deployment.apps[0];
    app.stop().await.unwrap();
    app.start().await.unwrap();
    app.prepared().await.unwrap();
    let (status, body) = answer(app, "/auth/verify", &token).await;
    assert_eq!((status, &body["reason"]), (403, &json!("suspended")), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_counts_no_refused_user_as_created_and_fails_until_the_rule_allows_the_documents() {
    let environment = Environment::new(kinde_emulator::Config::default()).await;
    for n in 1..=3 {
        environment.kinde.import_user(named(n)).unwrap();
    }
    let database = environment.users.client().database(&environment.users.namespace().db);
    let rule = doc! { "$jsonSchema": { "required": ["tenant"] } };
    database.run_command(doc! { "create": "users", "validator": rule }).await.unwrap();
    for command in ["backfill", "reconcile"] {
        let (code, run) = environment.json(&[command, "--json"]).await;
        assert_eq!(
            (code, &run["drift"]["refused"], &run["drift"]["missing"]),
            (1, &json!(3), &Value::Null),
            "{run}"
        );
    }
    assert_eq!(environment.users.count_documents(doc! {}).await.unwrap(), 0);
    database.run_command(doc! { "collMod": "users", "validator": {} }).await.unwrap();
    let (code, run) = environment.json(&["reconcile", "--json"]).await;
    assert_eq!(code, 0, "{run}");
    assert_eq!(environment.users.count_documents(doc! { "kindeId": { "$gt": "" } }).await.unwrap(), 3);
}
