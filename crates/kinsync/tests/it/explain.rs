//! `kinsync users explain`: the observations of a user, the outcome of each, and what the next scan would do.

use std::time::Duration;

use bson::doc;
use kinde_emulator::{Fault, FaultKind, Profile, UserEdit};
use kinsync_core::{Micros, UserId};
use kinsync_engine::internal::{
    log_entry::{LogEntry, LogSource, kind},
    store::{Store, mongo},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    deployment::{DEADLINE, Deployment, named},
    server::{TOKEN, kinsync},
};

async fn explained(deployment: &Deployment, id: &str) -> Value {
    deployment.admin(reqwest::Method::GET, &format!("/api/admin/users/{id}/explain")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_responds_while_kinde_is_slow_and_reports_the_next_scan_as_unknown() {
    let deployment = Deployment::reconciled(1, "off").await;
    let ada = deployment.kinde.sign_up(named(1)).unwrap().id;
    deployment.until_stored(&ada, doc! {}).await;
    let slow = FaultKind::Slow { min: Duration::from_mins(1), max: Duration::from_mins(1) };
    deployment.kinde.set_fault(Fault::always(slow).on("user"));
    let explained = explained(&deployment, &ada).await;
    assert_eq!(explained["observations"][0]["kind"], "user.created", "{explained}");
    let unknown = explained["nextScan"]["reason"].as_str().unwrap();
    assert!(unknown.contains("did not answer within"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_lists_tokens_events_of_clocks_that_are_ahead_and_events_without_fields() {
    let mut deployment = Deployment::reconciled(1, "off").await;
    // Created by a request, with the address of the token.
    let ada = deployment.kinde.import_user(named(1)).unwrap().id;
    let slow = FaultKind::Slow { min: Duration::from_mins(1), max: Duration::from_mins(1) };
    deployment.kinde.set_fault(Fault::always(slow).on("profile"));
    let spec = kinde_emulator::TokenSpec {
        claims: serde_json::json!({ "email": "user1@example.com" }).as_object().unwrap().clone(),
        ..kinde_emulator::TokenSpec::default()
    };
    let token = deployment.kinde.access_token(&ada, &spec).unwrap();
    deployment.apps[0].prepared().await.unwrap();
    let app = &deployment.apps[0];
    let answer = app.client().get(app.url("/api/me")).bearer_auth(token).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    deployment.until_stored(&ada, doc! {}).await;
    let observations = explained(&deployment, &ada).await["observations"].clone();
    assert_eq!(
        (&observations[0]["kind"], &observations[0]["at"]),
        (&"kinsync.login".into(), &Value::Null),
        "{observations}"
    );
    assert_eq!(observations[0]["fields"][0]["value"], "user1@example.com", "{observations}");

    let event = |id: &str, at: jiff::Timestamp, data: &str| {
        format!(
            r#"{{"type":"user.updated","event_id":"{id}","timestamp":"{at}","data":{{"user":{{"id":"{ada}"{data}}}}}}}"#
        )
    };
    // Within the tolerance it is applied, and beyond it is not.
    let now = kinsync_testing::wall_clock();
    let ahead = event("event_ahead", now + Duration::from_mins(3), r#","first_name":"Ahead""#);
    let far = event("event_far", now + Duration::from_mins(10), r#","first_name":"Far""#);
    let empty = event("event_empty", now, "");
    for body in [ahead, far, empty] {
        assert_eq!(deployment.apps[0].deliver(body).await.unwrap(), 200);
    }
    deployment.apps[0].leaves_entries();
    deployment.apps[0].drained(DEADLINE).await.unwrap();
    let observations = explained(&deployment, &ada).await["observations"].clone();
    let outcome = |event: &str| {
        let observations =
            observations.as_array().unwrap().iter().find(|one| one["eventId"] == event).unwrap();
        observations["outcome"].as_str().unwrap().to_owned()
    };
    assert_eq!(outcome("event_ahead"), "set 1 of 1 field");
    assert!(outcome("event_far").starts_with("quarantined"), "{observations}");
    assert_eq!(outcome("event_empty"), "the event contains no field");

    let url = deployment.apps[0].url("");
    let vars = [("KINSYNC_SERVER", url.as_str()), ("KINSYNC_ADMIN_TOKEN", TOKEN)];
    let output = kinsync(&["users", "explain", &ada], &vars).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("kinsync.login"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_lists_every_observation_its_outcome_and_the_effect_of_the_next_scan() {
    let deployment = Deployment::reconciled(1, "off").await;
    let app = &deployment.apps[0];
    let ada = deployment.kinde.sign_up(named(1)).unwrap().id;
    deployment.kinde.quiesce(DEADLINE).await.unwrap();
    // An older event arrives late, and one without an effect.
    let old = |event: &str, data: &str| {
        format!(
            r#"{{"type":"user.updated","event_id":"{event}","timestamp":"2020-01-01T00:00:00Z","data":{{"user":{data}}}}}"#
        )
    };
    let late = old("event_late", &format!(r#"{{"id":"{ada}","first_name":"Old"}}"#));
    assert_eq!(app.deliver(late).await.unwrap(), 200);
    deployment.until_stored(&ada, doc! { "firstName": "First 1" }).await;
    // Kinde sends no event for this change: the next scan would find it.
    deployment.kinde.set_fault(Fault::always(FaultKind::Silent));
    deployment
        .kinde
        .update_user(&ada, UserEdit { last_name: Some("Newer".into()), ..UserEdit::default() })
        .unwrap();
    let deadline = Instant::now() + DEADLINE;
    let explained = loop {
        let explained =
            deployment.admin(reqwest::Method::GET, &format!("/api/admin/users/{ada}/explain")).await;
        let observations = explained["observations"].as_array().unwrap();
        if observations.len() >= 3 && explained["nextScan"]["kind"] == "changed" {
            break explained;
        }
        assert!(Instant::now() < deadline, "{explained}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(explained["nextScan"]["fields"][0], "lastName", "{explained}");
    let hour = Duration::from_hours(1);
    deployment.kinde.set_fault(Fault::always(FaultKind::Slow { min: hour, max: hour }).on("user"));
    let meanwhile = deployment.admin(reqwest::Method::GET, &format!("/api/admin/users/{ada}/explain")).await;
    assert!(meanwhile["nextScan"]["reason"].is_string(), "{meanwhile}");
    assert_eq!(
        meanwhile["observations"], explained["observations"],
        "the observations of the store are listed"
    );
    deployment.kinde.clear_faults();
    let observations = explained["observations"].as_array().unwrap();
    let of = |event: &str| observations.iter().find(|one| one["eventId"] == event).unwrap();
    let late = of("event_late");
    assert_eq!(late["outcome"], "every field was superseded", "{late}");
    assert_eq!(
        (&late["fields"][0]["field"], &late["fields"][0]["value"]),
        (&"firstName".into(), &"Old".into())
    );
    let by = late["fields"][0]["supersededBy"].as_str().unwrap();
    assert!(by.starts_with("user.created event_"), "{by}");
    let created = observations.iter().find(|one| one["kind"] == "user.created").unwrap();
    assert!(created["outcome"].as_str().unwrap().starts_with("set "), "{created}");
    assert_eq!(observations[0], *late, "in the order of Kinde's clock");

    // The output as a table, and after a deletion.
    let url = app.url("");
    let vars = [("KINSYNC_SERVER", url.as_str()), ("KINSYNC_ADMIN_TOKEN", TOKEN)];
    let output = kinsync(&["users", "explain", &ada], &vars).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let widest = text.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(100), "text in a pipe is as wide as the help: {text}");
    assert!(text.contains("firstName = \"Old\"") && text.contains("superseded by user.created"), "{text}");
    assert!(text.contains("The next scan: the user would be changed: lastName"), "{text}");
    deployment.kinde.clear_faults();
    deployment.kinde.delete_user(&ada, Profile::Remove).unwrap();
    deployment.until_stored(&ada, doc! { "isDeleted": true }).await;
    let explained = deployment.admin(reqwest::Method::GET, &format!("/api/admin/users/{ada}/explain")).await;
    let outcomes: Vec<&str> = explained["observations"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|one| one["outcome"].as_str())
        .collect();
    assert!(
        outcomes.contains(&"deleted the user") && outcomes.contains(&"the user was deleted later"),
        "{outcomes:?}"
    );
    assert_ne!(explained["nextScan"]["result"], "drift", "{explained}");

    let output = kinsync(&["reconcile", "--soon"], &vars).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let deadline = Instant::now() + DEADLINE;
    loop {
        let output = kinsync(&["runs", "list"], &vars).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        if text.contains("reconcile") {
            break;
        }
        assert!(output.status.success() && Instant::now() < deadline, "{text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_reports_how_many_entries_it_leaves_out_and_which_are_damaged() {
    let mut deployment = Deployment::reconciled(1, "off").await;
    let ada = deployment.kinde.sign_up(named(1)).unwrap().id;
    deployment.converged().await;
    assert_eq!(explained(&deployment, &ada).await["olderEntriesOmitted"], 0);
    let database = deployment.database().name().to_owned();
    let config = mongo::Config { database: Some(database), ..mongo::Config::new(deployment.uri.clone()) };
    let store = mongo::MongoStore::connect(config).await.unwrap();
    let user = UserId::parse(&ada).unwrap();
    // Older than the events.
    let action = |n: i64| {
        LogEntry::action(kind::OPERATOR, Some(&user), LogSource::Operator, &json!({ "n": n }), Micros(n))
    };
    let entries: Vec<LogEntry> = (1..=1003).map(action).collect();
    store.log(&entries).await.unwrap();
    let events = deployment.database().collection::<bson::Document>("user_events");
    let damaged = entries[1002].id.as_str();
    events.update_one(doc! { "_id": damaged }, doc! { "$set": { "payload": "{}" } }).await.unwrap();

    let found = explained(&deployment, &ada).await;
    let omitted = events.count_documents(doc! { "user": &ada }).await.unwrap() - 1000;
    assert!(omitted > 3, "{omitted}");
    assert_eq!(found["olderEntriesOmitted"], omitted);
    assert_eq!(found["damagedEntries"], json!([damaged]));
    assert_eq!(found["observations"].as_array().unwrap().len(), 999);
    let url = deployment.apps[0].url("");
    let vars = [("KINSYNC_SERVER", url.as_str()), ("KINSYNC_ADMIN_TOKEN", TOKEN)];
    let output = kinsync(&["users", "explain", &ada], &vars).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("{omitted} older entries of the log not listed")), "{text}");
    assert!(text.contains(damaged) && text.contains("changed after they were written"), "{text}");
}
