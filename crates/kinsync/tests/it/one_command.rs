//! `examples/express-mongoose/run`, as a person starts it, follows it and ends it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::{
    deployment::DEADLINE,
    forward_auth::{MISSING, ROOT, installed},
};

/// The folder of both binaries. `cargo test --workspace` has built the emulator; cargo builds it when kinsync is tested
/// alone.
fn binaries() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_kinsync")).parent().unwrap();
    if !folder.join("kinde-emulator").exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--locked", "-p", "kinde-emulator"]).current_dir(ROOT);
        assert!(cargo.status().unwrap().success());
    }
    folder.to_owned()
}

/// The script with all that it started, in a process group of its own as in a terminal.
struct Script {
    child: Child,
    /// The commands to try that it prints.
    steps: Vec<String>,
    temporary: TempDir,
}

impl Script {
    /// Returns when it has printed the commands to try.
    fn start(example: &Path, args: &[&str]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut run = Command::new(example.join("run"));
        run.args(args).env("BIN", binaries()).env("TMPDIR", temporary.path()).process_group(0);
        let mut child = run.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect(MISSING);
        let output = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut script = Self { child, steps: Vec::new(), temporary };
        let mut is_ready = false;
        script.steps.extend(
            output
                .take_while(|line| {
                    is_ready = line == "Press Ctrl-C to stop.";
                    !is_ready
                })
                .filter_map(|line| line.strip_prefix("  ").map(str::to_owned)),
        );
        assert!(is_ready, "it ended early: {:?}", script.child.wait());
        script
    }

    /// The only step that contains this text.
    fn step(&self, text: &str) -> &str {
        let found: Vec<_> = self.steps.iter().filter(|step| step.contains(text)).collect();
        assert_eq!(found.len(), 1, "{text}: {:#?}", self.steps);
        found[0]
    }

    /// What a shell makes of these steps.
    fn follow(steps: &[&str]) -> String {
        let output = Command::new("bash").arg("-euc").arg(steps.join("\n")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Her first request and, until the answer is right, the same again.
    fn ask_until(&self, is_right: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let output = Self::follow(&[self.step("TOKEN="), self.step("curl ")]);
            let answer = serde_json::from_str(&output).unwrap_or_else(|_| panic!("no JSON: {output}"));
            if is_right(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{answer}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: &str) -> bool {
        let group = format!("-{}", self.child.id());
        let kill = Command::new("kill").args([signal, "--", &group]).stderr(Stdio::null()).status();
        kill.unwrap().success()
    }

    /// Ctrl-C.
    fn interrupt(&mut self) -> ExitStatus {
        assert!(self.signal("-INT"));
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.signal("-KILL");
        _ = self.child.wait();
    }
}

async fn check(args: &'static [&'static str]) {
    let example = installed().await;
    let follow = move || {
        let mut script = Script::start(&example, args);
        let first = script.ask_until(|_| true);
        assert_eq!(first["visits"], 1, "the first request shows the user: {first}");
        let known = script.ask_until(|answer| answer["firstName"] == "Ada");
        assert_eq!((&known["kindeId"], &known["email"]), (&first["kindeId"], &"ada@example.com".into()));
        assert!(script.step("users delete").contains(first["kindeId"].as_str().unwrap()));
        Script::follow(&[script.step("users delete")]);
        script.ask_until(|answer| answer["reason"] == "deleted");
        // 0 if the parent of the tests ignores the signal, which a shell cannot undo: then the script ends after its processes.
        assert!(matches!(script.interrupt().code(), Some(130 | 0)), "ended by Ctrl-C");
        assert!(!script.signal("-0"), "something that it started still runs");
        let left: Vec<_> = fs::read_dir(script.temporary.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    };
    spawn_blocking(follow).await.unwrap();
}

#[tokio::test]
async fn the_example_starts_with_one_command_and_ends_with_ctrl_c() {
    check(&[]).await;
}

#[tokio::test]
async fn the_example_behind_nginx_starts_with_one_command_and_ends_with_ctrl_c() {
    check(&["--nginx"]).await;
}
