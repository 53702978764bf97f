//! The command line: what it prints and what it exits with.

use std::process::Output;

use kinsync_engine::internal::store::embedded::EmbeddedStore;
use serde_json::Value;

use crate::server::{SECRET, Server, TOKEN, kinsync};

fn run(args: &[&str], vars: &[(&str, &str)]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = kinsync(args, vars).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn wrong_settings_end_serve_with_78_and_every_problem_before_anything_is_started() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let vars = [("PORT", "x"), ("KINDE_DOMAIN", "acme"), ("KINSYNC_DATA_DIR", data.to_str().unwrap())];
    let (code, stdout, stderr) = run(&["serve"], &vars);
    assert_eq!((code, stdout.as_str()), (78, ""));
    let expected = "\
kinsync: 2 settings are wrong

  KINDE_DOMAIN: not a URL: write it like `https://acme.kinde.com` (from environment KINDE_DOMAIN)
      for example: KINDE_DOMAIN=https://acme.kinde.com
  PORT: is not a port from 0 to 65535 (from environment PORT)
      for example: PORT=5000
";
    assert_eq!(stderr, expected);
    assert!(!data.exists(), "nothing was started");
}

#[test]
fn serve_without_a_way_to_verify_names_both_ways() {
    let (code, _, stderr) = run(&["serve"], &[]);
    assert_eq!(code, 78);
    assert!(stderr.contains("KINDE_DOMAIN=") && stderr.contains("KINDE_WEBHOOK_SECRET="), "{stderr}");
}

#[test]
fn config_check_succeeds_or_fails() {
    let (code, stdout, _) = run(&["config", "check"], &[("KINDE_WEBHOOK_SECRET", SECRET)]);
    assert_eq!((code, stdout.as_str()), (0, "the settings are right\n"));
    let (code, stdout, _) =
        run(&["config", "check", "--json", "--port", "x"], &[("KINDE_WEBHOOK_SECRET", SECRET)]);
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &answer["ok"]), (78, &Value::Bool(false)));
    assert_eq!(answer["problems"][0]["name"], "PORT");
}

#[test]
fn a_wrong_address_of_the_queue_fails_config_check_as_it_fails_serve() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for wrong in [
        "redis://u:hunter2@",
        "redis://u:hunter2@h:notaport",
        "redis://u:hunter2@h/notadb",
        "redis://u:hunter2@h,h2",
        "redis+cluster://u:hunter2@h",
        "redis-sentinel://u:hunter2@h/main",
        "redis+sentinel://u:hunter2@h:1",
        "redis+sentinel://u:hunter2@h:notaport/main",
        "rediss+sentinel://u:hunter2@h,,h2/main",
        "redis+sentinel://h/main?password=hunter2",
        "amqp://u:hunter2@",
        "amqp://u:hunter2@h:notaport",
        "amqps://u:hunter2@h,,h2/vhost",
        "amqp://u:hunter2@h,h2:notaport",
        "amqp://u:hunter2@h?heartbeat=soon",
        "amqp+tls://u:hunter2@h",
        "kafka://u:hunter2@h",
    ] {
        let vars = [
            ("KINDE_WEBHOOK_SECRET", SECRET),
            ("KINSYNC_QUEUE", wrong),
            ("KINSYNC_DATA_DIR", data.to_str().unwrap()),
        ];
        let (code, _, checked) = run(&["config", "check"], &vars);
        assert_eq!(code, 78, "{wrong}: {checked}");
        assert!(checked.contains("KINSYNC_QUEUE: ") && !checked.contains("hunter2"), "{wrong}: {checked}");
        assert_eq!(run(&["serve"], &vars), (78, String::new(), checked), "{wrong}");
    }
    assert!(!data.exists(), "nothing was started");
}

#[test]
fn config_show_prints_values_origins_and_what_is_disabled_and_no_secret() {
    let vars = [("KINDE_WEBHOOK_SECRET", SECRET), ("KINSYNC_BIND", "0.0.0.0")];
    let (code, stdout, _) = run(&["config", "show", "--port", "6000"], &vars);
    assert_eq!(code, 0);
    let line = |key: &str| {
        stdout.lines().find(|line| line.trim_start().starts_with(key)).unwrap_or_default().to_owned()
    };
    let columns = |key: &str| line(key).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(columns("http.port"), "http.port 6000 flag --port PORT");
    assert_eq!(columns("http.bind"), "http.bind 0.0.0.0 environment KINSYNC_BIND KINSYNC_BIND");
    assert_eq!(columns("queue.kind"), "queue.kind embedded default KINSYNC_QUEUE");
    assert!(columns("kinde.webhook_secret").contains("********"));
    assert!(stdout.contains("set KINDE_DOMAIN to enable"), "{stdout}");
    assert!(!stdout.contains(SECRET));
    let (_, json, _) = run(&["config", "show", "--json"], &vars);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert!(
        json["settings"].as_array().unwrap().iter().any(|s| s["env"] == "PORT" && s["origin"] == "default")
    );
}

#[test]
fn a_server_that_is_not_there_is_69_with_the_way_out() {
    let (code, _, stderr) = run(&["users", "list", "--server", "http://127.0.0.1:9"], &[]);
    assert_eq!(code, 69);
    assert!(stderr.contains("http://127.0.0.1:9") && stderr.contains("kinsync serve"), "{stderr}");
}

#[test]
fn a_client_does_not_complain_of_the_settings_of_a_server() {
    let vars = [("KINSYNC_QUEUE", "kafka"), ("KINSYNC_SERVER", "http://127.0.0.1:9")];
    let (code, _, stderr) = run(&["events", "list"], &vars);
    assert_eq!(code, 69, "{stderr}");
    let (code, _, _) = run(&["events", "list"], &[("KINSYNC_SERVER", "nowhere")]);
    assert_eq!(code, 78);
}

#[test]
fn wrong_usage_is_2_and_help_lists_the_exit_codes() {
    assert_eq!(run(&["users", "lost"], &[]).0, 2);
    assert_eq!(run(&["dead-letters", "retry"], &[]).0, 2);
    for (args, allowed) in [
        (
            &["users", "list", "--state", "foo"][..],
            "[possible values: live, deleted, suspended, conflict, refused]",
        ),
        (
            &["events", "list", "--source", "foo"],
            "[possible values: webhook, login, profile, reconcile, operator,",
        ),
        (&["rebuild", "--projection", "foo"], "[possible values: growth, system]"),
        (&["state", "reset", "foo"], "the records are "),
        (&["rebuild", "--user", ""], "the id is empty"),
        (&["reconcile", "--user", ""], "the id is empty"),
    ] {
        let (code, _, stderr) = run(args, &[]);
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(code == 2 && words(&stderr).contains(allowed), "{args:?}: {code} {stderr}");
    }
    let (code, help, _) = run(&["--help"], &[]);
    assert_eq!(code, 0);
    for name in ["serve", "users", "events", "dead-letters", "config", "78", "kinsync config show"] {
        assert!(help.contains(name), "{name} is missing in:\n{help}");
    }
    let (_, help, _) = run(&["serve", "--help"], &[]);
    for setting in kinsync::config::settings().filter(|s| s.env != "KINSYNC_SERVER") {
        assert!(help.contains(&format!("--{}", setting.flag)), "--{} is missing", setting.flag);
        assert!(help.contains(setting.env), "{} is missing", setting.env);
    }
}

#[test]
fn users_and_events_are_listed_and_shown() {
    let server = Server::start(&[]);
    server.deliver(r#"{"type":"user.created","event_id":"event_1","timestamp":"2026-01-01T00:00:00Z","data":{"user":{"id":"kp_ada","email":"ada@example.com","first_name":"Ada\u001b[31m"}}}"#);
    server
        .wait_for("/api/admin/events?user=kp_ada", |_, page| !page["events"].as_array().unwrap().is_empty());
    server.wait_for("/api/admin/users/kp_ada", |status, _| status == 200);
    let url = server.url();
    let vars = [("KINSYNC_SERVER", url.as_str()), ("KINSYNC_ADMIN_TOKEN", TOKEN)];
    let (code, table, stderr) = run(&["users", "list", "--email", "ada@example.com"], &vars);
    assert_eq!(code, 0, "{stderr}");
    assert!(table.contains("kp_ada") && table.contains("ada@example.com"), "{table}");
    assert!(!table.contains('\u{1b}'), "what users send does not steer the terminal");
    let (_, json, _) = run(&["users", "list", "--json"], &vars);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["users"][0]["kindeId"], "kp_ada");
    assert!(run(&["users", "show", "kp_ada"], &vars).1.contains("ada@example.com"));
    assert!(run(&["events", "list", "--user", "kp_ada"], &vars).1.contains("user.created"));
    assert!(run(&["events", "show", "event_1"], &vars).1.contains("ada@example.com"));
    let (code, _, stderr) = run(&["users", "show", "kp_nobody"], &vars);
    assert_eq!((code, stderr.as_str()), (1, "kinsync: record not found: no user has this id\n"));
    let (code, _, stderr) = run(&["users", "list"], &[("KINSYNC_SERVER", url.as_str())]);
    assert_eq!(code, 77);
    assert!(stderr.contains("set KINSYNC_ADMIN_TOKEN,"), "{stderr}");
    // What only the server knows to be wrong is wrong usage too.
    for args in [["users", "list", "--limit", "0"], ["events", "list", "--after", "e1"]] {
        let (code, _, stderr) = run(&args, &vars);
        assert!(
            code == 2 && stderr.contains("invalid parameter: ") && stderr.contains("--help"),
            "{code} {stderr}"
        );
    }
    let (code, replayed, _) = run(&["events", "replay", "--user", "kp_nobody"], &vars);
    assert_eq!((code, replayed.as_str()), (0, "no entry of the log matches, so nothing was replayed\n"));
    let (code, replayed, _) = run(&["events", "replay", "event_1"], &vars);
    assert_eq!((code, replayed.as_str()), (0, "no user changed\n\n1 entry read, 0 skipped\n"));
}

#[test]
fn dead_letters_are_listed_retried_and_dropped_only_with_a_yes() {
    let server = Server::start(&[]);
    server.deliver(
        r#"{"type":"user.updated","event_id":"event_x","timestamp":"2026-01-01T00:00:00Z","data":"moon"}"#,
    );
    let some = |_: u16, page: &Value| page["deadLetters"].as_array().is_some_and(|list| !list.is_empty());
    server.wait_for("/api/admin/dead-letters", some);
    let url = server.url();
    let vars = [("KINSYNC_SERVER", url.as_str()), ("KINSYNC_ADMIN_TOKEN", TOKEN)];
    assert!(run(&["dead-letters", "list"], &vars).1.contains("event_x"));
    let (code, output, _) = run(&["dead-letters", "retry", "--all"], &vars);
    assert_eq!(code, 0);
    assert!(output.contains("in the queue again") && output.contains("gets a new id"), "{output}");
    let page = server.wait_for("/api/admin/dead-letters", some);
    let id = page["deadLetters"][0]["id"].as_str().unwrap().to_owned();
    let (code, _, stderr) = run(&["dead-letters", "drop", &id], &vars);
    assert_eq!(code, 2);
    assert!(stderr.contains("--yes"), "{stderr}");
    assert_eq!(run(&["dead-letters", "drop", &id, "--yes"], &vars).0, 0);
    assert_eq!(run(&["dead-letters", "list"], &vars).1, "none found\n");
}

#[test]
fn a_scan_that_cannot_open_mongodb_does_not_mention_the_users_file() {
    let vars = [
        ("KINDE_DOMAIN", "https://acme.kinde.com"),
        ("KINDE_M2M_CLIENT_ID", "id"),
        ("KINDE_M2M_CLIENT_SECRET", "secret"),
        ("MONGODB_URI", "mongodb://h:port/app"),
    ];
    let (code, _, stderr) = run(&["reconcile", "--dry-run"], &vars);
    assert_eq!(code, 1, "{stderr}");
    assert!(!stderr.contains("users file") && stderr.contains("MONGODB_URI"), "{stderr}");
}

#[test]
fn a_second_server_in_the_same_folder_does_not_start() {
    let server = Server::start(&[]);
    let folder = server.folder.path().to_str().unwrap();
    let vars = [("KINDE_WEBHOOK_SECRET", SECRET), ("KINSYNC_DATA_DIR", folder), ("PORT", "0")];
    let (code, _, stderr) = run(&["serve"], &vars);
    assert_eq!(code, 1);
    assert!(stderr.contains("KINSYNC_DATA_DIR"), "{stderr}");
}

#[test]
fn a_taken_port_is_said_with_the_setting_to_change() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let port = server.address.port().to_string();
    let vars = [
        ("KINDE_WEBHOOK_SECRET", SECRET),
        ("KINSYNC_DATA_DIR", folder.path().to_str().unwrap()),
        ("PORT", &port),
    ];
    let (code, _, stderr) = run(&["serve"], &vars);
    assert_eq!(code, 1);
    assert!(stderr.contains("choose another PORT"), "{stderr}");
}

#[test]
fn the_last_line_of_a_server_that_cannot_start_has_the_format_of_its_log_and_the_right_advice() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let below = file.join("data");
    let vars =
        [("KINDE_WEBHOOK_SECRET", SECRET), ("KINSYNC_DATA_DIR", below.to_str().unwrap()), ("PORT", "0")];
    let (code, _, stderr) = run(&["serve"], &vars);
    assert_eq!(code, 1);
    let last: Value = serde_json::from_str(stderr.lines().last().unwrap()).unwrap();
    assert_eq!((&last["level"], &last["message"]), (&"ERROR".into(), &"kinsync stops".into()));
    let error = last["error"].as_str().unwrap();
    assert!(error.contains("KINSYNC_DATA_DIR") && error.contains("Not a directory"), "{error}");
    assert!(!error.contains("by itself"), "nothing continues by itself after exit 1: {error}");
}

#[test]
fn a_command_prints_why_the_server_cannot_do_it() {
    // Port 9 (discard) has no server.
    let server = Server::start(&[("MONGODB_URI", "mongodb://127.0.0.1:9/app")]);
    let url = server.url();
    let vars = [("KINSYNC_SERVER", url.as_str()), ("KINSYNC_ADMIN_TOKEN", TOKEN)];
    let (code, _, stderr) = run(&["users", "list"], &vars);
    assert_eq!(code, 69);
    assert!(stderr.contains("127.0.0.1:9") && stderr.contains("Connection refused"), "{stderr}");
    assert!(stderr.contains("`kinsync doctor` names what to do"), "{stderr}");
    assert!(!stderr.contains("send it again"), "{stderr}");
    let port = server.address.port().to_string();
    let settings = [
        ("KINSYNC_DATA_DIR", server.folder.path().to_str().unwrap()),
        ("KINDE_WEBHOOK_SECRET", SECRET),
        ("PORT", &port),
    ];
    let found = |vars: &[(&str, &str)]| {
        let (_, stdout, stderr) = run(&["doctor", "--json"], &[&settings[..], vars].concat());
        let report: Value = serde_json::from_str(&stdout).expect(&stderr);
        let health = report["findings"].as_array().unwrap().iter().find(|one| one["id"] == "server.health");
        health.unwrap()["found"].as_str().unwrap().to_owned()
    };
    // Without the token the answer to any reader names no host.
    assert!(found(&[]).contains("the store (mongodb) is unavailable") && !found(&[]).contains("127.0.0.1:9"));
    assert!(found(&[("KINSYNC_ADMIN_TOKEN", TOKEN)]).contains("127.0.0.1:9"), "the causes are named");
    let (_, text, _) = run(&["doctor"], &settings);
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let (_, health) = server.admin("/health");
    for cause in [&health["problems"][0]["detail"], &health["components"]["store"]["lastError"]] {
        assert!(cause.as_str().unwrap().contains("Connection refused"), "the whole chain: {health}");
    }
}

#[test]
fn the_health_check_of_a_container_succeeds_while_deliveries_are_accepted() {
    let health = |server: Option<&Server>| {
        let port = server.map_or(9, |server| server.address.port()).to_string();
        run(&["health"], &[("PORT", &port), ("KINDE_WEBHOOK_SECRET", SECRET)])
    };
    let server = Server::start(&[]);
    assert_eq!(health(Some(&server)), (0, "ok: the server works\n".to_owned(), String::new()));
    // A problem that an operator should look at is no reason to restart a container.
    let server = Server::start(&[("MONGODB_URI", "mongodb://127.0.0.1:9/app")]);
    let (code, stdout, stderr) = health(Some(&server));
    assert_eq!(stdout, "degraded: the server works\n");
    assert!(
        code == 0 && stderr.contains("store_unavailable: the store (mongodb) is unavailable"),
        "{code} {stderr}"
    );
    // Without signing keys no delivery can be verified.
    let server = Server::start(&[("KINDE_WEBHOOK_SECRET", ""), ("KINDE_DOMAIN", "http://127.0.0.1:9")]);
    let (code, _, stderr) = health(Some(&server));
    assert!(code == 1 && stderr.contains("keys_unknown: "), "{code} {stderr}");
    let (code, _, stderr) = health(None);
    assert!(
        code == 1 && stderr.contains("cannot read http://127.0.0.1:9/health: Connection refused"),
        "{code} {stderr}"
    );
    let (code, stdout, _) = run(&["health", "--json"], &[("PORT", "9"), ("KINDE_WEBHOOK_SECRET", SECRET)]);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &report["status"], &report["accepting"]), (1, &"unreachable".into(), &false.into()));
    assert_eq!(report["problems"][0]["code"], "server_unreachable", "{report}");
}

#[test]
fn the_queue_can_be_inspected_while_the_server_runs() {
    let server = Server::start(&[]);
    server.deliver(
        r#"{"type":"user.updated","event_id":"event_x","timestamp":"2026-01-01T00:00:00Z","data":"moon"}"#,
    );
    let some = |_: u16, page: &Value| page["deadLetters"].as_array().is_some_and(|list| !list.is_empty());
    server.wait_for("/api/admin/dead-letters", some);
    let folder = server.folder.path().to_str().unwrap();
    let vars = [("KINSYNC_DATA_DIR", folder)];
    let (code, stats, stderr) = run(&["queue", "stats", "--json"], &vars);
    assert_eq!(code, 0, "{stderr}");
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats["deadLetters"], 1, "{stats}");
    let (code, listed, stderr) = run(&["queue", "list"], &vars);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(listed, "none found\n");
}

#[test]
fn output_that_cannot_be_written_fails_the_command() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = kinsync(&["config", "check"], &[("KINDE_WEBHOOK_SECRET", SECRET)]);
    let output = command.stdout(full).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("the output is incomplete: stdout cannot be written"), "{stderr}");
}

#[test]
fn what_does_not_exist_does_not_look_empty() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("data");
    let vars = [("KINSYNC_DATA_DIR", missing.to_str().unwrap())];
    let of_queue: [&[&str]; 2] = [&["queue", "stats"], &["queue", "list"]];
    for command in of_queue {
        let (code, _, stderr) = run(command, &vars);
        assert!(code == 1 && stderr.contains("there is no data folder"), "{command:?}: {code} {stderr}");
    }
    assert!(!missing.exists(), "nothing was created");
    let of_store: [&[&str]; 4] =
        [&["state", "list"], &["state", "reset", "reconcile.held"], &["rebuild"], &["rebuild", "--verify"]];
    for with_folder in [false, true] {
        if with_folder {
            // As beside a server with MongoDB.
            std::fs::create_dir_all(missing.join("queue")).unwrap();
        }
        for command in of_store {
            let (code, _, stderr) = run(command, &vars);
            assert!(code == 1 && stderr.contains("there is no store in"), "{command:?}: {code} {stderr}");
        }
        assert_eq!(missing.exists(), with_folder);
    }
    assert_eq!(std::fs::read_dir(&missing).unwrap().count(), 1, "nothing was created");
    drop(EmbeddedStore::open(folder.path()).unwrap());
    let vars = [("KINSYNC_DATA_DIR", folder.path().to_str().unwrap())];
    let (code, _, stderr) = run(&["rebuild", "--user", "kp_unknown"], &vars);
    assert!(
        code == 1 && stderr.contains("no document and no entry of the log has the id"),
        "{code} {stderr}"
    );
}

#[test]
fn records_are_listed_for_people_and_for_programs() {
    let folder = tempfile::tempdir().unwrap();
    drop(EmbeddedStore::open(folder.path()).unwrap());
    let vars = [("KINSYNC_DATA_DIR", folder.path().to_str().unwrap())];
    let (code, stdout, stderr) = run(&["state", "list", "--json"], &vars);
    assert_eq!(code, 0, "{stderr}");
    let listed: Value = serde_json::from_str(&stdout).unwrap();
    let records = listed["records"].as_array().unwrap();
    let held = records.iter().find(|one| one["record"] == "reconcile.held").unwrap();
    assert_eq!(held["state"], "not stored", "{held}");
    assert!(held["afterReset"].as_str().is_some_and(|text| !text.is_empty()), "{held}");
    let (_, table, _) = run(&["state", "list"], &vars);
    assert!(records.iter().all(|one| table.contains(one["record"].as_str().unwrap())), "{table}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_data_folder_that_cannot_be_created_is_no_full_disk() {
    let vars = [("KINSYNC_DATA_DIR", "/proc/kinsync"), ("KINDE_WEBHOOK_SECRET", SECRET), ("PORT", "9")];
    let (code, stdout, stderr) = run(&["doctor", "--json"], &vars);
    assert_eq!(code, 1, "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let of = |id: &str| report["findings"].as_array().unwrap().iter().find(|one| one["id"] == id).unwrap();
    let access = of("data_dir.access");
    let found = access["found"].as_str().unwrap();
    assert!(access["status"] == "failed" && found.contains("no folder can be created in /proc"), "{access}");
    assert!(!found.contains(".doctor-"), "{access}");
    assert_eq!(of("data_dir.space")["status"], "skipped", "{report}");
}

#[test]
fn a_scan_without_credentials_is_refused_as_wrong_settings() {
    let folder = tempfile::tempdir().unwrap();
    let vars =
        [("KINSYNC_DATA_DIR", folder.path().to_str().unwrap()), ("KINDE_DOMAIN", "https://acme.kinde.com")];
    for command in ["reconcile", "backfill"] {
        let (code, _, stderr) = run(&[command], &vars);
        assert!(code == 78 && stderr.contains("KINDE_M2M_CLIENT_SECRET: is not set"), "{code} {stderr}");
    }
}
