//! `kinsync dev`, as a program and a person's Ctrl-C meet it.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::time::Instant;

/// `kinsync dev --json` on ports that the system chooses, with nothing in its environment.
fn dev(arguments: &[&str]) -> Command {
    dev_on("0", arguments)
}

fn dev_on(port: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kinsync"));
    command.args(["dev", "--json", "--port", port, "--emulator-port", "0"]).args(arguments);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

/// Every line is one JSON object; the first one says where everything is, the last one how it came out.
fn lines(output: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(output).expect("it prints UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

#[test]
fn what_is_delivered_in_the_town_is_in_the_store_at_the_end() {
    let output = dev(&["--for", "5s", "--rate", "50", "--seed", "1"]).output().unwrap();
    let lines = lines(&output.stdout);
    let summary = lines.last().unwrap();
    assert_eq!(summary["type"], "summary");
    assert_eq!(number(summary, "/drift/unexplained") + number(summary, "/drift/onTheWay"), 0, "{summary}");
    let drift =
        ["/drift/missing", "/drift/stale", "/drift/shouldBeDeleted"].map(|kind| number(summary, kind));
    assert_eq!(drift.iter().sum::<u64>(), number(summary, "/drift/lost"));
    for counted in ["/deliveries/accepted", "/deliveries/duplicates", "/onPurpose/dropped", "/users/inStore"]
    {
        assert!(number(summary, counted) > 0, "no {counted} in {summary}");
    }
    assert_eq!(number(summary, "/queue/deadLetters"), 0);
    assert!(output.status.success(), "{}", output.status);
}

#[test]
fn without_faults_nothing_but_silent_imports_is_missing() {
    let output = dev(&["--once", "--users", "100", "--faults", "none"]).output().unwrap();
    let lines = lines(&output.stdout);
    let summary = lines.last().unwrap();
    assert!(number(summary, "/users/atKinde") >= 100, "{summary}");
    assert_eq!(number(summary, "/drift/stale") + number(summary, "/drift/shouldBeDeleted"), 0, "{summary}");
    assert_eq!(number(summary, "/drift/missing"), number(summary, "/drift/lost"), "{summary}");
    assert!(output.status.success(), "{}", output.status);
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_cleanly_and_soon() {
    let mut child = dev(&["--rate", "20"]).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
    let started: Value = serde_json::from_str(&stdout.next().unwrap().unwrap()).unwrap();
    let folder = started["addresses"]["dataDir"].as_str().unwrap().to_owned();
    assert!(std::path::Path::new(&folder).is_dir());
    stdout.next().unwrap().unwrap();
    let interrupted = Instant::now();
    crate::reconcile::interrupt(&child);
    let last = stdout.map_while(Result::ok).last().unwrap();
    let status = child.wait().unwrap();
    assert!(interrupted.elapsed() < Duration::from_secs(3), "it took {:?}", interrupted.elapsed());
    assert!(status.success(), "{status}");
    assert_eq!(serde_json::from_str::<Value>(&last).unwrap()["type"], "summary");
    assert!(!std::path::Path::new(&folder).exists(), "its folder is left behind");
}

#[test]
fn a_port_that_is_taken_is_no_obstacle() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = dev_on(&port, &["--once", "--users", "1"]).output().unwrap();
    let started = &lines(&output.stdout)[0];
    let note = started["note"].as_str().unwrap();
    assert!(note.contains(&port), "{note}");
    assert!(!started["addresses"]["kinsync"].as_str().unwrap().ends_with(&port));
    assert!(output.status.success(), "{}", output.status);
}
