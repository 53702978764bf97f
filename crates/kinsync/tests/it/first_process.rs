//! `kinsync serve` as the first process of a container, which the kernel treats differently: a signal without a handler does
//! nothing, and orphans become its children.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::server::SECRET;

/// Runs a program as process 1 of a PID namespace of its own.
fn as_first_process(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child", program]);
    command
}

/// The children of all threads of a process.
fn children(pid: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn the_first_process_of_a_container_ends_on_sigterm_and_starts_no_other() {
    if !as_first_process("true").status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: this kernel gives no PID namespace to a process without privileges");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = as_first_process(env!("CARGO_BIN_EXE_kinsync"));
    command.arg("serve").env("PORT", "0").env("KINDE_WEBHOOK_SECRET", SECRET);
    command.env("KINSYNC_DATA_DIR", folder.path()).env("KINSYNC_LOG_FORMAT", "json");
    let mut unshare = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(unshare.stderr.take().unwrap()).lines().map_while(Result::ok);
    let is = |line: &String, text: &str| {
        serde_json::from_str::<Value>(line)
            .is_ok_and(|line| line["message"].as_str().is_some_and(|m| m.contains(text)))
    };
    assert!(lines.any(|line| is(&line, "listening")), "it starts");
    let first = children(&unshare.id().to_string());
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!(children(&first[0]), Vec::<String>::new(), "it starts no process that it would have to reap");
    assert!(Command::new("kill").args(["-TERM", &first[0]]).status().unwrap().success());
    assert!(lines.any(|line| is(&line, "signal received")), "it handles SIGTERM");
    lines.for_each(drop);
    assert!(unshare.wait().unwrap().success());
}
