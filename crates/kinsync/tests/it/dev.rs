//! `kinsync dev`: its JSON output, its end and its ports.

use std::{
    io::{BufRead, BufReader, Lines},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::time::Instant;

/// `kinsync dev --json` on free ports, with an empty environment.
fn dev(arguments: &[&str]) -> Command {
    dev_on("0", arguments)
}

fn dev_on(port: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kinsync"));
    command.args(["dev", "--json", "--port", port, "--emulator-port", "0"]).args(arguments);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

/// A running `kinsync dev`, which is killed if the test fails.
struct Running(Child);

impl Running {
    fn start(arguments: &[&str]) -> (Self, Lines<BufReader<ChildStdout>>) {
        let mut child = dev(arguments).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        (Self(child), stdout)
    }

    fn interrupt(&mut self) -> ExitStatus {
        crate::reconcile::interrupt(&self.0);
        self.0.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Parses the output. The first line has the addresses, the last one is the summary.
fn lines(output: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(output).expect("it prints UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

#[test]
fn every_delivered_event_is_in_the_store_at_the_end() {
    let output = dev(&["--for", "5s", "--rate", "50", "--seed", "1"]).output().unwrap();
    let lines = lines(&output.stdout);
    let summary = lines.last().unwrap();
    assert_eq!(summary["type"], "summary");
    assert_eq!(number(summary, "/drift/unexplained") + number(summary, "/drift/inFlight"), 0, "{summary}");
    let drift =
        ["/drift/missing", "/drift/outdated", "/drift/shouldBeDeleted"].map(|kind| number(summary, kind));
    assert_eq!(drift.iter().sum::<u64>(), number(summary, "/drift/lost"));
    for counted in
        ["/deliveries/accepted", "/deliveries/duplicates", "/injectedFaults/dropped", "/users/inStore"]
    {
        assert!(number(summary, counted) > 0, "no {counted} in {summary}");
    }
    assert_eq!(number(summary, "/queue/deadLetters"), 0);
    assert!(output.status.success(), "{}", output.status);
}

#[test]
fn without_faults_only_imported_users_are_missing() {
    let output = dev(&["--once", "--users", "100", "--faults", "none"]).output().unwrap();
    let lines = lines(&output.stdout);
    let summary = lines.last().unwrap();
    assert!(number(summary, "/users/atKinde") >= 100, "{summary}");
    assert_eq!(
        number(summary, "/drift/outdated") + number(summary, "/drift/shouldBeDeleted"),
        0,
        "{summary}"
    );
    assert_eq!(number(summary, "/drift/missing"), number(summary, "/drift/lost"), "{summary}");
    assert!(output.status.success(), "{}", output.status);
}

#[cfg(unix)]
#[test]
fn a_scan_repairs_what_lost_deliveries_left_behind() {
    let (mut dev, stdout) = Running::start(&["--rate", "0", "--users", "200", "--faults", "many"]);
    let mut snapshots =
        stdout.map_while(Result::ok).map(|line| serde_json::from_str::<Value>(&line).unwrap());
    let deadline = Instant::now() + Duration::from_mins(1);
    let mut wait_for = |condition: &dyn Fn(&Value) -> bool| {
        let found = snapshots.by_ref().skip(1).take_while(|_| Instant::now() < deadline).find(condition);
        found.expect("a snapshot before the deadline")
    };
    wait_for(&|now| number(now, "/users/atKinde") >= 200 && number(now, "/drift/lost") > 0);
    let healed = wait_for(&|now| number(now, "/reconciler/repaired") > 0 && number(now, "/drift/lost") == 0);
    assert_eq!(number(&healed, "/drift/unexplained"), 0, "{healed}");
    assert!(dev.interrupt().success());
}

/// Runs commands of the hints in a shell.
fn run(steps: &[&Value]) -> String {
    let commands: Vec<_> = steps.iter().map(|step| step["command"].as_str().unwrap()).collect();
    let output = Command::new("bash").arg("-euc").arg(commands.join("\n")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[cfg(unix)]
#[test]
fn the_commands_to_try_sign_a_user_in_and_show_a_403_after_the_deletion() {
    let (mut dev, mut stdout) = Running::start(&["--rate", "0", "--faults", "none"]);
    let started: Value = serde_json::from_str(&stdout.next().unwrap().unwrap()).unwrap();
    let steps = started["steps"].as_array().unwrap();
    let step = |title: &str| steps.iter().find(|step| step["title"].as_str().unwrap().starts_with(title));
    let titles = ["Sign up", "Sign in", "Send a request", "Delete", "Send the same request"];
    let [sign_up, sign_in, request, delete, again] = titles.map(|title| step(title).unwrap());
    let id = run(&[sign_up]);
    let variable = |name, value: &str| serde_json::json!({ "command": format!("{name}={value}") });
    let id = variable("ID", id.trim());
    let token = variable("TOKEN", run(&[&id, sign_in]).trim());
    let deadline = Instant::now() + Duration::from_mins(2);
    let wait_for = |steps: &[&Value], status: &str| {
        while !run(steps).contains(status) {
            assert!(Instant::now() < deadline, "{steps:?}: no {status}");
        }
    };
    wait_for(&[&token, request], "HTTP/1.1 200 OK");
    run(&[&id, delete]);
    wait_for(&[&token, again], "HTTP/1.1 403 Forbidden");
    assert!(dev.interrupt().success());
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_within_seconds() {
    let (mut dev, mut stdout) = Running::start(&["--rate", "20"]);
    let started: Value = serde_json::from_str(&stdout.next().unwrap().unwrap()).unwrap();
    let folder = started["addresses"]["dataDir"].as_str().unwrap().to_owned();
    assert!(std::path::Path::new(&folder).is_dir());
    stdout.next().unwrap().unwrap();
    let interrupted = Instant::now();
    let status = dev.interrupt();
    let last = stdout.map_while(Result::ok).last().unwrap();
    // Three seconds, and what a busy machine adds.
    assert!(interrupted.elapsed() < Duration::from_secs(10), "it took {:?}", interrupted.elapsed());
    assert!(status.success(), "{status}");
    assert_eq!(serde_json::from_str::<Value>(&last).unwrap()["type"], "summary");
    assert!(!std::path::Path::new(&folder).exists(), "its folder is removed");
}

#[test]
fn a_port_in_use_is_replaced_by_a_free_one() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = dev_on(&port, &["--once", "--users", "1"]).output().unwrap();
    let started = &lines(&output.stdout)[0];
    let note = started["note"].as_str().unwrap();
    assert!(note.contains(&port), "{note}");
    assert!(!started["addresses"]["kinsync"].as_str().unwrap().ends_with(&port));
    assert!(output.status.success(), "{}", output.status);
}
