//! Lists of users and events by filter, and daily figures, over HTTP and with the binary.

use serde_json::Value;

use crate::server::{Server, TOKEN, kinsync};

const USERS: [(&str, &str); 4] = [
    (
        "kp_ada",
        r#""email":"Ada@example.com","first_name":"Ada","last_name":"Lovelace","phone":"+12025550123""#,
    ),
    ("kp_eve", r#""email":"eve@example.com","first_name":"Eve","last_name":"Adams","is_suspended":true"#),
    ("kp_sam", r#""email":"adams@example.com","first_name":"Sam","last_name":"Other""#),
    ("kp_tom", r#""email":"tom@example.com","first_name":"Adam","last_name":"Other""#),
];

fn started(vars: &[(&str, &str)]) -> Server {
    let server = Server::start(vars);
    for (n, (id, fields)) in USERS.iter().enumerate() {
        server.deliver(&format!(
            r#"{{"type":"user.created","event_id":"e{n}","timestamp":"2026-01-01T00:00:00Z","data":{{"user":{{"id":"{id}",{fields}}}}}}}"#
        ));
    }
    server.deliver(
        r#"{"type":"user.deleted","event_id":"gone","timestamp":"2026-01-02T00:00:00Z","data":{"user":{"id":"kp_tom"}}}"#,
    );
    server.wait_for("/api/admin/stats", |_, stats| {
        stats["store"]["deletedUsers"] == 1 && stats["store"]["liveUsers"] == 3
    });
    server
}

fn ids(server: &Server, query: &str) -> Vec<String> {
    let (status, page) = server.admin(&format!("/api/admin/users{query}"));
    assert_eq!(status, 200, "{query}: {page}");
    page["users"]
        .as_array()
        .unwrap()
        .iter()
        .map(|user| user["kindeId"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn users_are_listed_by_each_filter() {
    let server = started(&[]);
    let cases: [(&str, &[&str]); 15] = [
        ("", &["kp_ada", "kp_eve", "kp_sam"]),
        ("?email=ADA@example.com", &["kp_ada"]),
        ("?email_prefix=aDa", &["kp_ada", "kp_sam"]),
        ("?name_prefix=ada", &["kp_ada", "kp_eve"]),
        ("?name_prefix=ada&deleted=true", &["kp_ada", "kp_tom", "kp_eve"]),
        ("?phone=%2B12025550123", &["kp_ada"]),
        ("?state=live", &["kp_ada", "kp_eve", "kp_sam"]),
        ("?state=deleted", &["kp_tom"]),
        ("?state=suspended", &["kp_eve"]),
        ("?state=conflict", &[]),
        ("?state=refused", &[]),
        ("?changed_since=2020-01-01T00:00:00Z", &["kp_ada", "kp_eve", "kp_sam"]),
        ("?changed_since=2120-01-01T00:00:00Z&deleted=true", &[]),
        ("?email=ada@example.com&name_prefix=ada&state=live", &["kp_ada"]),
        ("?email=ada@example.com&state=suspended", &[]),
    ];
    for (query, expected) in cases {
        let mut listed = ids(&server, query);
        if query.starts_with("?changed_since") {
            listed.sort();
        }
        assert_eq!(listed, expected, "{query}");
    }
    let (_, page) = server.admin("/api/admin/users?name_prefix=ada&limit=1");
    let next = page["next"].as_str().unwrap();
    assert_eq!(ids(&server, &format!("?name_prefix=ada&after={next}"))[..], ["kp_eve"]);
    let (status, problem) =
        server.admin(&format!("/api/admin/users?changed_since=2020-01-01T00:00:00Z&after={next}"));
    assert_eq!(status, 400, "the position of another list: {problem}");
}

#[test]
fn filters_that_no_index_answers_together_are_refused_with_a_reason() {
    let server = started(&[]);
    let cases = [
        ("users?email_prefix=a&name_prefix=b", "`email_prefix` and `name_prefix` cannot be combined"),
        ("users?organization=org_1&state=suspended", "`organization` and `state` cannot be combined"),
        (
            "users?role=admin&changed_since=2020-01-01T00:00:00Z",
            "`role` and `changed_since` cannot be combined",
        ),
        ("users?state=gone", "`state` must be one of live, deleted, suspended, conflict, refused"),
        ("users?name_prefix=%20", "a prefix must contain a character"),
        ("events?type=user.created&source=webhook", "`type` and `source` cannot be combined"),
        ("events?after=e1", "`after` must be `next`"),
        ("stats/growth?since=2026-02-01&until=2026-01-01", "`since` must not be after `until`"),
        ("stats/system?since=2020-01-01", "at most 400 days"),
    ];
    for (path, detail) in cases {
        let (status, problem) = server.admin(&format!("/api/admin/{path}"));
        assert_eq!(status, 400, "{path}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(detail), "{path}: {problem}");
    }
    let url = server.url();
    let vars = [("KINSYNC_SERVER", url.as_str()), ("KINSYNC_ADMIN_TOKEN", TOKEN)];
    let list = |args: &[&str]| kinsync(&[&["users", "list"], args].concat(), &vars).output().unwrap();
    let refused = list(&["--email-prefix", "a", "--state", "live", "--name-prefix", "b"]);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(2) && error.contains("cannot be combined"), "{error}");
    let found = list(&["--name-prefix", "ADA", "--json"]);
    let page: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(page["users"][0]["kindeId"], "kp_ada", "{page}");
}

#[test]
fn events_are_listed_by_time_and_an_audit_keeps_no_value_of_a_user() {
    let server = started(&[]);
    let events = |query: &str| {
        let (status, page) = server.admin(&format!("/api/admin/events{query}"));
        assert_eq!(status, 200, "{query}: {page}");
        page["events"].as_array().unwrap().len()
    };
    assert_eq!(events("?since=2020-01-01T00:00:00Z&type=user.created"), 4);
    assert_eq!(events("?until=2020-01-01T00:00:00Z"), 0);
    assert_eq!(events("?user=kp_tom&type=user.deleted&source=webhook"), 1);
    ids(&server, "?email_prefix=canary");
    ids(&server, "?name_prefix=canary");
    ids(&server, "?phone=canary");
    let (_, audit) = server.admin("/api/admin/audit");
    let text = audit.to_string();
    assert!(text.contains("name_prefix") && !text.contains("canary"), "{text}");
}

#[test]
fn figures_of_the_day_are_computed_and_rebuilt_to_the_same() {
    let server = started(&[]);
    let shown = |server: &Server| {
        let url = server.url();
        let vars = [("KINSYNC_SERVER", url.as_str()), ("KINSYNC_ADMIN_TOKEN", TOKEN)];
        String::from_utf8(kinsync(&["stats", "growth"], &vars).output().unwrap().stdout).unwrap()
    };
    assert!(shown(&server).starts_with("not computed yet: "), "{}", shown(&server));
    assert_eq!(server.admin("/api/admin/stats/growth?until=2020-01-01").1["isPending"], false);
    drop(server);
    let mut server = started(&[("KINSYNC_PROJECTIONS_EVERY", "50ms")]);
    let growth =
        server.wait_for("/api/admin/stats/growth", |_, growth| growth["days"][0]["countedEntries"] == 5);
    assert_eq!(growth["isPending"], false, "{growth}");
    let day = &growth["days"][0];
    assert_eq!((&day["signUps"], &day["deletions"], &day["activeUsers"]), (&4.into(), &1.into(), &4.into()));
    let system =
        server.wait_for("/api/admin/stats/system", |_, system| system["days"][0]["countedEntries"] == 5);
    assert_eq!(system["days"][0]["deliveries"]["user.created"], 4, "{system}");
    // The events are from long before their receipt.
    let lag = &system["lag"];
    assert_eq!((&lag["older"], &lag["count"], &lag["p99"]), (&5.into(), &0.into(), &Value::Null), "{system}");
    let now = kinsync::api::Time::from(kinsync_engine::Clock::system().now());
    server.deliver(&format!(
        r#"{{"type":"user.updated","event_id":"now","timestamp":"{now}","data":{{"user":{{"id":"kp_ada"}}}}}}"#
    ));
    let system = server.wait_for("/api/admin/stats/system", |_, system| system["lag"]["count"] == 1);
    let lag = &system["lag"];
    assert!(lag["older"] == 5 && lag["p99"].as_f64().is_some_and(|seconds| seconds < 86400.0), "{system}");
    let text = shown(&server);
    assert!(text.contains("SIGN-UPS") && text.contains(day["day"].as_str().unwrap()), "{text}");
    let folder = std::mem::replace(&mut server.folder, tempfile::tempdir().unwrap());
    server.terminate();
    server.end();
    let of_server =
        [("KINSYNC_DATA_DIR", folder.path().to_str().unwrap()), ("KINDE_WEBHOOK_SECRET", "secret")];
    let unknown = kinsync(&["rebuild", "--projection", "users"], &of_server).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    let rebuilt = kinsync(&["rebuild", "--projection", "growth", "--json"], &of_server).output().unwrap();
    let report: Value = serde_json::from_slice(&rebuilt.stdout).unwrap();
    assert_eq!(
        (&report["projection"]["days"], &report["projection"]["entries"]),
        (&1.into(), &7.into()),
        "with its own entry"
    );
}
