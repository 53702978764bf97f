//! `kinsync users export` and `GET /api/admin/users/{id}/export`.

use kinsync_core::{Micros, UserId};
use kinsync_engine::internal::{
    log_entry::{LogEntry, LogSource, kind},
    store::{Store, embedded::EmbeddedStore},
};
use serde_json::{Value, json};

use crate::server::{Server, TOKEN, kinsync};

const ADA: &str = "kp_ada";

fn event(kind: &str, id: &str, user: &str) -> String {
    format!(
        r#"{{"type":"{kind}","event_id":"{id}","timestamp":"2026-01-01T00:00:00Z","data":{{"user":{user}}}}}"#
    )
}

fn exported(server: &Server, user: &str) -> (i32, Value, String) {
    let url = server.url();
    let vars = [("KINSYNC_SERVER", url.as_str()), ("KINSYNC_ADMIN_TOKEN", TOKEN)];
    let output = kinsync(&["users", "export", user, "--json"], &vars).output().unwrap();
    let export = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap(), export, String::from_utf8(output.stderr).unwrap())
}

/// A server with two users, and a dead letter that names the first.
fn with_users() -> Server {
    let server = Server::start(&[]);
    server.deliver(&event(
        "user.created",
        "e1",
        r#"{"id":"kp_ada","first_name":"Ada","email":"ada@example.com"}"#,
    ));
    server.deliver(&event("user.created", "e2", r#"{"id":"kp_ada2","first_name":"Canary of another user"}"#));
    server.deliver(r#"{"type":"user.updated","event_id":"dead","timestamp":"2999-01-01T00:00:00Z","data":{"user":{"id":"kp_ada","first_name":"Far"}}}"#);
    server.deliver(r#"{"type":"user.updated","event_id":"other","timestamp":"2999-01-01T00:00:00Z","data":{"user":{"id":"kp_ada2","first_name":"Far"}}}"#);
    server.wait_for("/api/admin/stats", |_, stats| {
        stats["queue"]["deadLetters"] == 2 && stats["store"]["liveUsers"] == 2
    });
    server
}

#[test]
fn an_export_contains_all_of_one_user_and_nothing_of_another_and_is_audited() {
    let server = with_users();
    let (code, export, why) = exported(&server, ADA);
    assert_eq!(code, 0, "{why}");
    assert_eq!((&export["user"], &export["document"]["firstName"]), (&ADA.into(), &"Ada".into()), "{export}");
    assert!(export["state"]["fields"].to_string().contains("ada@example.com"), "{export}");
    let ids = |list: &str| {
        let items = export[list].as_array().unwrap().iter();
        items.map(|one| one["event_id"].as_str().or(one["eventId"].as_str()).unwrap()).collect::<Vec<_>>()
    };
    assert!(ids("entries").contains(&"e1"), "{export}");
    let created = export["entries"].as_array().unwrap().iter().find(|one| one["eventId"] == "e1").unwrap();
    assert_eq!(created["payload"]["data"]["user"]["email"], "ada@example.com", "{export}");
    assert_eq!(ids("deadLetters"), ["dead"], "{export}");
    assert_eq!(export["deadLetters"][0]["payload"]["data"]["user"]["first_name"], "Far", "{export}");
    assert!(!export.to_string().contains("kp_ada2") && !export.to_string().contains("Canary"), "{export}");
    // The record of the export itself comes first.
    assert_eq!(export["audit"][0]["route"], "GET /api/admin/users/{id}/export", "{export}");

    let (code, _, why) = exported(&server, "kp_unknown");
    assert_eq!(code, 1, "{why}");
    let audit = server.admin("/api/admin/audit").1;
    let records = audit["records"].as_array().unwrap();
    let of = |user: &str| records.iter().filter(|one| one["parameters"]["id"] == user).count();
    assert_eq!((of(ADA), of("kp_unknown")), (1, 1), "{audit}");
    assert_eq!(server.request("GET", "/api/admin/users/kp_ada/export", &[], "").0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_contains_every_page_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path()).unwrap();
    let user = UserId::parse(ADA).unwrap();
    let action = |n: i64| {
        LogEntry::action(kind::OPERATOR, Some(&user), LogSource::Operator, &json!({ "n": n }), Micros(n))
    };
    store.log(&(0..2500).map(action).collect::<Vec<_>>()).await.unwrap();
    drop(store);
    let path = folder.path().to_str().unwrap().to_owned();
    let server = tokio::task::spawn_blocking(move || Server::start(&[("KINSYNC_DATA_DIR", &path)]));
    let server = server.await.unwrap();
    let (code, export, why) = exported(&server, ADA);
    assert_eq!(code, 0, "{why}");
    let entries = export["entries"].as_array().unwrap();
    assert_eq!((entries.len(), &export["next"]), (2500, &Value::Null));
    assert_eq!((&entries[0]["payload"]["n"], &entries[2499]["payload"]["n"]), (&2499.into(), &0.into()));
    let (_, page) = server.admin("/api/admin/users/kp_ada/export");
    assert_eq!(page["entries"].as_array().unwrap().len(), 1000);
    let rest = format!("/api/admin/users/kp_ada/export?after={}", page["next"].as_str().unwrap());
    let (_, rest) = server.admin(&rest);
    assert_eq!((rest["entries"].as_array().unwrap().len(), &rest["audit"]), (1000, &json!([])));
}
