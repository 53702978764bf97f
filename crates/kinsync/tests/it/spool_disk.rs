//! A full disk of the data folder while the shared queue works: reported, and harmless until the shared queue fails too.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    fs::{self, File, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use kinsync_testing::{
    app::TestApp,
    redis::{DURABLE, TestRedis},
};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::shared_queue::{WITHIN, created};

/// Runs kinsync with its data folder on a file system of its own, of 48 MiB.
const SCRIPT: &str = r#"#!/bin/sh
exec unshare --map-root-user --mount sh -c \
  'mkdir -p "$KINSYNC_DATA_DIR" && mount -t tmpfs -o size=48m,mode=700 tmpfs "$KINSYNC_DATA_DIR" && exec KINSYNC "$@"' sh "$@"
"#;

fn reports(health: &Value, code: &str) -> bool {
    health["problems"].as_array().unwrap().iter().any(|problem| problem["code"] == code)
}

async fn until_reported(app: &mut TestApp, expected: bool) -> Value {
    let reached =
        async |app: &mut TestApp| Ok(reports(&app.health().await?, "spool_unavailable") == expected);
    app.until("the state of the disk is reported", WITHIN, reached).await.unwrap();
    app.health().await.unwrap()
}

/// Takes all room of a disk, also what kinsync gives up meanwhile, until it is stopped.
fn fill(file: &Path, is_stopped: &AtomicBool) {
    let (mut file, mut size) = (File::create(file).unwrap(), 1 << 20);
    while !is_stopped.load(Relaxed) {
        let is_room = file.write_all(&vec![0; size]).is_ok();
        size = if is_room { 1 << 20 } else { (size / 2).max(1) };
    }
}

/// Needs a kernel that gives user namespaces, or root.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_spool_is_reported_while_the_shared_queue_accepts_deliveries() {
    let can_mount = Command::new("unshare").args(["--map-root-user", "--mount", "true"]).status();
    if !can_mount.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: this kernel gives no mount namespace to a process without privileges");
        return;
    }
    let (redis, folder) = (TestRedis::start(DURABLE), tempfile::tempdir().unwrap());
    let script = folder.path().join("kinsync");
    fs::write(&script, SCRIPT.replace("KINSYNC \"", &format!("{} \"", env!("CARGO_BIN_EXE_kinsync"))))
        .unwrap();
    fs::set_permissions(&script, Permissions::from_mode(0o700)).unwrap();
    let mut app = TestApp::new(&script).unwrap();
    app.set("KINSYNC_QUEUE", redis.url()).set("KINSYNC_ROLE", "ingest");
    app.leaves_entries().start().await.unwrap();
    let health = until_reported(&mut app, false).await;
    assert_eq!(health["components"]["queue"]["spoolFailing"], false, "{health}");

    let inside = format!("/proc/{}/root{}", app.pid().unwrap(), app.data_dir().join("other").display());
    let (is_stopped, mut filling) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
    let (file, stopped) = (inside.clone(), Arc::clone(&is_stopped));
    filling.spawn_blocking(move || fill(Path::new(&file), &stopped));
    let health = until_reported(&mut app, true).await;
    assert_eq!((&health["status"], &health["accepting"]), (&"degraded".into(), &true.into()), "{health}");
    assert_eq!(health["components"]["queue"]["spoolFailing"], true, "{health}");
    let metrics = app.client().get(app.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains(r#"kinsync_health_problem{code="spool_unavailable"} 1"#), "{metrics}");
    assert_eq!(app.deliver(created("kp_0")).await.unwrap(), 200);
    redis.kill();
    assert_eq!(app.deliver(created("kp_1")).await.unwrap(), 503);

    is_stopped.store(true, Relaxed);
    filling.join_all().await;
    fs::remove_file(&inside).unwrap();
    until_reported(&mut app, false).await;
    assert_eq!(app.deliver(created("kp_1")).await.unwrap(), 200, "it waits on the disk");
    redis.launch();
    let moved = async |app: &mut TestApp| Ok(app.health().await?["components"]["queue"]["spooled"] == 0);
    app.until("it moves to the shared queue", Duration::from_mins(1), moved).await.unwrap();
    assert_eq!(app.health().await.unwrap()["components"]["queue"]["depth"], 2);
}
