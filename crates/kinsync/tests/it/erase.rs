//! `kinsync users erase` with the real binary: files, log lines, metrics, and a kill.

use std::{fs, path::Path};

use kinde_emulator::{Config, Emulator, Fault, FaultKind};
use serde_json::Value;

use crate::server::{Server, TOKEN, kinsync};

/// In every value of the user.
const CANARY: &str = "cnry7391";

fn event(kind: &str, id: &str, user: &str) -> String {
    format!(
        r#"{{"type":"{kind}","event_id":"{id}","timestamp":"2026-01-01T00:00:00Z","data":{{"user":{user}}}}}"#
    )
}

fn run(server: &Server, args: &[&str]) -> (i32, String, String) {
    let url = server.url();
    let vars = [("KINSYNC_SERVER", url.as_str()), ("KINSYNC_ADMIN_TOKEN", TOKEN)];
    let output = kinsync(args, &vars).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A deleted user with a dead letter, and another user.
fn fill(server: &Server) {
    let user = format!(r#"{{"id":"kp_ada","first_name":"{CANARY}","email":"{CANARY}@example.com"}}"#);
    server.deliver(&event("user.created", "e1", &user));
    server.deliver(&event("user.created", "e2", r#"{"id":"kp_bob","first_name":"Bob"}"#));
    let far = event("user.updated", "far", &user).replace("2026-01-01", "2999-01-01");
    server.deliver(&far);
    server.wait_for("/api/admin/stats", |_, stats| {
        stats["queue"]["deadLetters"] == 1 && stats["store"]["liveUsers"] == 2
    });
    let (code, _, _) = run(server, &["users", "list", "--email", &format!("{CANARY}@example.com")]);
    assert_eq!(code, 0);
}

fn delete(server: &Server) {
    server.deliver(&event("user.deleted", "e3", r#"{"id":"kp_ada"}"#).replace("2026-01-01", "2026-01-02"));
    server.wait_for("/api/admin/stats", |_, stats| stats["store"]["deletedUsers"] == 1);
}

fn is_in_files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map_while(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(is_in_files(&path));
        } else {
            let bytes = fs::read(&path).unwrap_or_default();
            if bytes.windows(CANARY.len()).any(|text| text == CANARY.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

#[test]
fn an_erasure_needs_a_deletion_and_a_confirmation_and_leaves_nothing_in_files_logs_and_metrics() {
    let server = Server::start(&[("RUST_LOG", "debug"), ("KINSYNC_LOG", "debug")]);
    fill(&server);
    let (code, _, why) = run(&server, &["users", "erase", "kp_ada", "--yes"]);
    assert!(code == 1 && why.contains("delete the user in Kinde first"), "{code}: {why}");
    let (code, _, why) = run(&server, &["users", "erase", "kp_ada"]);
    assert!(code == 64 || code == 2, "{code}: {why}");
    delete(&server);
    let (code, out, why) = run(&server, &["users", "erase", "kp_ada", "--dry-run", "--json"]);
    let dry: Value = serde_json::from_str(&out).unwrap_or_default();
    assert_eq!((code, &dry["dryRun"], &dry["deadLetters"]), (0, &true.into(), &1.into()), "{out} {why}");
    assert!(!is_in_files(server.folder.path()).is_empty(), "the search finds what is there");

    let (code, out, why) = run(&server, &["users", "erase", "kp_ada", "--yes"]);
    assert_eq!(code, 0, "{why}");
    assert!(out.starts_with("kp_ada erased:") && out.contains("dead letter"), "{out}");
    assert_eq!(is_in_files(server.folder.path()), Vec::<String>::new());
    let (code, export, why) = run(&server, &["users", "export", "kp_ada"]);
    assert!(code == 0 && !export.contains(CANARY) && export.contains("sha256"), "{export} {why}");
    let (_, explained, _) = run(&server, &["users", "explain", "kp_ada"]);
    assert!(explained.contains("the user was erased") && !explained.contains(CANARY), "{explained}");
    let (_, metrics) =
        server.request("GET", "/metrics", &[("authorization", &format!("Bearer {TOKEN}"))], "");
    assert!(metrics.contains("kinsync_users_erased_total 1") && !metrics.contains(CANARY), "{metrics}");
    let late = format!(r#"{{"id":"kp_ada","first_name":"{CANARY}"}}"#);
    server.deliver(&event("user.updated", "late", &late));
    server.wait_for("/api/admin/stats", |_, stats| stats["queue"]["depth"] == 0);
    let (_, audit) = server.admin("/api/admin/audit");
    let routes: Vec<&str> =
        audit["records"].as_array().unwrap().iter().map(|one| one["route"].as_str().unwrap()).collect();
    assert!(routes.contains(&"POST /api/admin/users/{id}/erase"), "{audit}");
    assert!(!audit.to_string().contains(CANARY), "{audit}");
    let folder = server.folder.path().to_str().unwrap().to_owned();
    let (code, out, why) = {
        let output = kinsync(
            &["rebuild", "--verify"],
            &[("KINSYNC_DATA_DIR", &folder), ("KINDE_WEBHOOK_SECRET", crate::server::SECRET)],
        )
        .output()
        .unwrap();
        (output.status.code().unwrap(), output.stdout, output.stderr)
    };
    assert_eq!(code, 0, "{} {}", String::from_utf8_lossy(&out), String::from_utf8_lossy(&why));
    server.terminate();
    let (status, lines) = server.end();
    assert!(status.success());
    let named: Vec<&String> = lines.iter().filter(|line| line.contains(CANARY)).collect();
    assert!(named.is_empty(), "{named:?}");
}

#[test]
fn an_erasure_that_a_kill_interrupts_is_completed_by_the_next_command() {
    let mut server = Server::start(&[]);
    fill(&server);
    delete(&server);
    let url = server.url();
    let vars = [("KINSYNC_SERVER", url.as_str()), ("KINSYNC_ADMIN_TOKEN", TOKEN)];
    let mut command = kinsync(&["users", "erase", "kp_ada", "--yes"], &vars).spawn().unwrap();
    server.kill_and_restart(&[]);
    command.wait().unwrap();
    server.wait_for("/api/admin/stats", |status, _| status == 200);
    let (code, _, why) = run(&server, &["users", "erase", "kp_ada", "--yes"]);
    assert_eq!(code, 0, "{why}");
    assert_eq!(is_in_files(server.folder.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_erased_while_kinde_does_not_answer() {
    let kinde = Emulator::start(Config::default()).await.unwrap();
    let settings = kinde.config();
    let vars = [
        ("KINDE_DOMAIN", kinde.issuer()),
        ("KINDE_M2M_CLIENT_ID", settings.client_id.as_str()),
        ("KINDE_M2M_CLIENT_SECRET", settings.client_secret.as_str()),
        ("KINDE_ALLOWED_CLIENT_IDS", settings.app_client_id.as_str()),
    ];
    kinde.set_fault(Fault::always(FaultKind::Status { status: 503 }).on("management"));
    tokio::task::block_in_place(|| {
        let server = Server::start(&vars);
        fill(&server);
        delete(&server);
        let token = format!("Bearer {TOKEN}");
        let path = "/api/admin/users/kp_ada/erase";
        let (status, answer) = server.request("POST", path, &[("authorization", &token)], "");
        assert_eq!(status, 503, "{answer}");
        let (code, _, why) = run(&server, &["users", "erase", "kp_ada", "--yes"]);
        assert_ne!(code, 0, "{why}");
        let (_, export, _) = run(&server, &["users", "export", "kp_ada"]);
        assert!(export.contains(CANARY), "{export}");
    });
}
