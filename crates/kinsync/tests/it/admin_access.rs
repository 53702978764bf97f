//! Admin tokens: scopes, rotation, wrong tokens, the address, the `Host`, and the audit log.

use std::{io::Write, net::TcpStream};

use serde_json::Value;

use crate::server::{BODY, Server, TOKEN, answer, kinsync};

const READER: &str = "a-reading-token-of-32-characters";
const OPERATOR: &str = "an-operating-token-of-32-letters";

fn tokens() -> String {
    format!("grafana:read:{READER},ada:operate:{OPERATOR}")
}

fn request(server: &Server, method: &str, path: &str, token: &str) -> (u16, Value) {
    let (status, body) = server.request(method, path, &[("authorization", &format!("Bearer {token}"))], "");
    (status, serde_json::from_str(&body).unwrap_or_default())
}

/// The audit log as `[kind, actor, route, parameters]`, oldest first, without the reads of the log itself.
fn audit(server: &Server) -> Vec<[String; 4]> {
    let (status, page) = server.admin("/api/admin/audit");
    assert_eq!(status, 200, "{page}");
    let records = page["records"].as_array().unwrap().iter().rev();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let row = |record: &Value| ["kind", "actor", "route", "parameters"].map(|key| text(&record[key]));
    records.map(row).filter(|row| row[2] != "GET /api/admin/audit").collect()
}

#[test]
fn a_token_with_the_scope_read_reads_and_changes_nothing() {
    let server = Server::start(&[("KINSYNC_ADMIN_TOKENS", &tokens())]);
    server.deliver(r#"{"type":"user.created","event_id":"poison"}"#);
    server.wait_for("/api/admin/stats", |_, stats| stats["queue"]["deadLetters"] == 1);
    let letter =
        server.admin("/api/admin/dead-letters").1["deadLetters"][0]["id"].as_str().unwrap().to_owned();
    let retry = format!("/api/admin/dead-letters/{letter}/retry");
    for path in ["/api/admin/users", "/api/admin/audit", "/api/admin/dead-letters"] {
        assert_eq!(request(&server, "GET", path, READER).0, 200, "{path}");
    }
    for (method, path) in [("POST", &retry), ("DELETE", &format!("/api/admin/dead-letters/{letter}"))] {
        let (status, problem) = request(&server, method, path, READER);
        assert_eq!(
            (status, problem["type"].as_str().unwrap()),
            (403, "urn:problem-type:kinsync:missing-scope")
        );
        assert!(problem["detail"].as_str().unwrap().contains("`operate`"), "{problem}");
    }
    assert_eq!(request(&server, "POST", &retry, OPERATOR).0, 200);
}

#[test]
fn tokens_with_one_name_work_together_during_a_rotation() {
    let (old, new) = ("the-old-token-of-32-characters-x", "the-new-token-of-32-characters-x");
    let server = Server::start(&[
        ("KINSYNC_ADMIN_TOKEN", ""),
        ("KINSYNC_ADMIN_TOKENS", &format!("ada:operate:{new},ada:operate:{old}")),
    ]);
    for token in [old, new] {
        assert_eq!(request(&server, "GET", "/api/admin/stats", token).0, 200, "{token}");
    }
    assert_eq!(request(&server, "GET", "/api/admin/stats", TOKEN).0, 401);
}

#[test]
fn wrong_tokens_cause_a_pause_that_right_tokens_share_and_a_log_line_without_the_token() {
    let server = Server::start(&[]);
    let wrong = "a-wrong-token-that-is-never-logged";
    for _ in 0..6 {
        assert_eq!(request(&server, "GET", "/api/admin/stats", wrong).0, 401);
    }
    let (status, head, body) =
        server.exchange_with("GET", "/api/admin/stats", &[("authorization", &format!("Bearer {TOKEN}"))]);
    assert_eq!(status, 429, "{body}");
    assert!(head.contains("\r\nretry-after: 1\r\n"), "{head}");
    assert_eq!(server.deliver(BODY).0, 200, "only the admin routes have a pause");
    server.wait_for("/api/admin/stats", |status, _| status == 200);
    let metrics = server.request("GET", "/metrics", &[], "").1;
    assert!(metrics.contains(r#"kinsync_admin_requests_refused_total{reason="wrong-token"} 6"#), "{metrics}");
    server.terminate();
    let log = server.end().1.join("\n");
    assert_eq!(log.matches("an admin request with a wrong token was refused").count(), 6, "{log}");
    assert!(log.contains(r#""peer":"127.0.0.1""#) && !log.contains(wrong), "{log}");
}

#[test]
fn every_read_of_personal_data_and_every_action_is_in_the_audit_log_with_its_actor() {
    let server = Server::start(&[("KINSYNC_ADMIN_TOKENS", &tokens())]);
    server.deliver(BODY);
    server.wait_for("/api/admin/stats", |_, stats| stats["store"]["liveUsers"] == 1);
    assert_eq!(request(&server, "GET", "/api/admin/users/test", READER).0, 200);
    assert_eq!(request(&server, "GET", "/api/admin/users?email=test@example.com", OPERATOR).0, 200);
    assert_eq!(request(&server, "GET", "/api/admin/users?emial=x", OPERATOR).0, 400, "nothing is read");
    assert_eq!(request(&server, "DELETE", "/api/admin/dead-letters/7", OPERATOR).0, 404);
    let listed = audit(&server);
    let email = r#"{"deleted":false,"email":"sha256:973dfe463ec85785"}"#;
    let expected = [
        ["read", "grafana", "GET /api/admin/users/{id}", r#"{"id":"test"}"#],
        ["read", "ada", "GET /api/admin/users", email],
        ["action", "ada", "DELETE /api/admin/dead-letters/{id}", r#"{"id":"7"}"#],
    ];
    assert_eq!(listed, expected.map(|row| row.map(str::to_owned)));
    let (_, page) = server.admin("/api/admin/audit?limit=1");
    assert_eq!(page["records"][0]["peer"], "127.0.0.1");
    let next = page["next"].as_str().unwrap();
    let (_, rest) = server.admin(&format!("/api/admin/audit?limit=9&after={next}"));
    assert_eq!(rest["records"].as_array().unwrap().len(), 4, "{rest}");
}

#[test]
fn the_audit_log_survives_a_kill_and_the_command_lists_it() {
    let mut server = Server::start(&[("KINSYNC_ADMIN_TOKENS", &tokens())]);
    request(&server, "GET", "/api/admin/users/kp_1", READER);
    server.kill_and_restart(&[("KINSYNC_ADMIN_TOKENS", &tokens())]);
    let list =
        kinsync(&["audit", "list", "--server", &server.url()], &[("KINSYNC_ADMIN_TOKEN", OPERATOR)]).output();
    let list = String::from_utf8(list.unwrap().stdout).unwrap();
    assert!(list.contains("grafana") && list.contains(r#"{"id":"kp_1"}"#), "{list}");
}

#[test]
fn every_admin_response_forbids_caching_and_sniffing() {
    let server = Server::start(&[]);
    let right = format!("Bearer {TOKEN}");
    for (method, authorization, expected) in
        [("GET", &*right, 200), ("GET", "Bearer x", 401), ("PATCH", "", 405)]
    {
        let (status, head, _) =
            server.exchange_with(method, "/api/admin/users", &[("authorization", authorization)]);
        assert_eq!(status, expected);
        for header in ["cache-control: no-store", "x-content-type-options: nosniff"] {
            assert!(head.contains(&format!("\r\n{header}\r\n")), "{method} {expected}: {head}");
        }
    }
    let (_, head, _) = server.exchange("GET", "/health");
    assert!(head.contains("\r\nx-content-type-options: nosniff\r\n"), "{head}");
}

#[test]
fn a_name_that_was_pointed_to_this_machine_reaches_no_admin_route() {
    let server = Server::start(&[]);
    let status = |host: &str| {
        let mut stream = server.connect();
        let head = format!("GET /api/admin/stats HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
        write!(stream, "{head}authorization: Bearer {TOKEN}\r\n\r\n").unwrap();
        answer(&mut stream).0
    };
    assert_eq!((status("rebound.example"), status("localhost"), status("127.0.0.1")), (421, 200, 200));
}

#[test]
fn the_admin_routes_move_to_their_own_address() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = Server::start(&[("KINSYNC_ADMIN_BIND", &free.to_string())]);
    assert_eq!(server.admin("/api/admin/stats").0, 404);
    let get = |path: &str| {
        let mut stream = TcpStream::connect(free).unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        write!(stream, "{head}authorization: Bearer {TOKEN}\r\n\r\n").unwrap();
        answer(&mut stream).0
    };
    assert_eq!((get("/api/admin/stats"), get("/health"), get("/api/webhook")), (200, 404, 404));
}

#[test]
fn a_command_sends_the_token_to_no_other_machine_without_tls() {
    for server in ["http://192.0.2.1:5000", "http://kinsync.example"] {
        let done =
            kinsync(&["users", "list", "--server", server], &[("KINSYNC_ADMIN_TOKEN", TOKEN)]).output();
        let done = done.unwrap();
        let output = String::from_utf8(done.stderr).unwrap();
        assert!(
            !done.status.success() && output.contains("without TLS") && !output.contains(TOKEN),
            "{output}"
        );
    }
}

#[cfg(unix)]
#[test]
fn a_data_folder_that_others_can_write_to_starts_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let path = folder.path().to_str().unwrap();
    let vars = [("KINSYNC_DATA_DIR", path), ("KINDE_WEBHOOK_SECRET", crate::server::SECRET), ("PORT", "0")];
    let done = kinsync(&["serve"], &vars).output().unwrap();
    let output = String::from_utf8(done.stderr).unwrap();
    assert!(!done.status.success() && output.contains(&format!("chmod 700 {path}")), "{output}");
}

#[test]
fn the_log_holds_no_secret_and_no_personal_data_at_its_most_detailed_level() {
    let server = Server::start(&[("KINSYNC_LOG", "trace"), ("KINDE_DOMAIN", "http://127.0.0.1:9")]);
    assert_eq!(server.deliver(BODY).0, 200);
    server.wait_for("/api/admin/stats", |_, stats| stats["store"]["liveUsers"] == 1);
    assert_eq!(server.admin("/api/admin/users?email=test@example.com").0, 200);
    let token =
        "eyJhbGciOiJSUzI1NiIsImtpZCI6ImsifQ.eyJpc3MiOiJodHRwOi8vMTI3LjAuMC4xOjkiLCJzdWIiOiJrcF8xIn0.AAAA";
    server.request("GET", "/api/me", &[("authorization", &format!("Bearer {token}"))], "");
    server.terminate();
    let log = server.end().1.join("\n");
    assert!(log.contains("TRACE"), "{log}");
    for hidden in [crate::server::SECRET, TOKEN, token, "test@example.com"] {
        assert!(!log.contains(hidden), "{hidden} is in\n{log}");
    }
}
