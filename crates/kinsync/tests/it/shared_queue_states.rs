//! What a process shows of a shared queue that is full, unavailable or not created yet, and what its commands leave alone.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{path::Path, process::Output};

use kinsync_testing::{
    app::TestApp,
    rabbitmq::TestRabbitmq,
    redis::{DURABLE, TestRedis},
};
use serde_json::Value;

use crate::{
    doctor::examine,
    server::{SECRET, kinsync},
    shared_queue::created,
    tenant::Tenant,
};

async fn ingest(queue: &str, prefix: &str, vars: &[(&str, &str)]) -> TestApp {
    let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    app.set("KINSYNC_QUEUE", queue).set("KINSYNC_QUEUE_PREFIX", prefix).set("KINSYNC_ROLE", "ingest");
    for (name, value) in vars {
        app.set(name, *value);
    }
    app.leaves_entries().start().await.unwrap();
    app
}

async fn ready(app: &TestApp) -> u16 {
    app.client().get(app.url("/health/ready")).send().await.unwrap().status().as_u16()
}

fn codes(health: &Value) -> Vec<&str> {
    health["problems"].as_array().unwrap().iter().map(|problem| problem["code"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_is_ready_until_the_spool_is_full_too() {
    let redis = TestRedis::start(DURABLE);
    let app = ingest(
        &redis.url(),
        "full",
        &[("KINSYNC_QUEUE_MAX_ENTRIES", "2"), ("KINSYNC_QUEUE_MAX_BYTES", "64KiB")],
    )
    .await;
    for number in 0..3 {
        assert_eq!(app.deliver(created(&format!("kp_{number}"))).await.unwrap(), 200);
    }
    let health = app.health().await.unwrap();
    assert_eq!((ready(&app).await, &health["accepting"]), (200, &true.into()), "{health}");
    assert_eq!(
        (&health["status"], codes(&health).contains(&"queue_full")),
        (&"degraded".into(), true),
        "{health}"
    );
    assert_eq!(app.deliver(created("kp_3")).await.unwrap(), 200);
    assert_eq!((ready(&app).await, app.deliver(created("kp_4")).await.unwrap()), (503, 503));
}

fn stats(queue: &str, prefix: &str, folder: &Path) -> (Output, Value) {
    let folder = folder.display().to_string();
    let vars = [
        ("KINSYNC_QUEUE", queue),
        ("KINSYNC_QUEUE_PREFIX", prefix),
        ("KINSYNC_ROLE", "ingest"),
        ("KINSYNC_DATA_DIR", &folder),
        ("KINDE_WEBHOOK_SECRET", SECRET),
    ];
    let output = kinsync(&["queue", "stats", "--json"], &vars).output().unwrap();
    let counted = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    (output, counted)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_counts_of_a_queue_are_shown_beside_a_server_during_an_outage_and_without_a_trace() {
    let (redis, prefix) = (TestRedis::start(DURABLE), "counted");
    let app = ingest(&redis.url(), prefix, &[]).await;
    assert_eq!(app.deliver(created("kp_0")).await.unwrap(), 200);
    let (output, counted) = stats(&redis.url(), prefix, &app.data_dir());
    assert!(output.status.success(), "{output:?}");
    assert_eq!((&counted["depth"], &counted["spooled"]), (&1.into(), &0.into()), "{counted}");
    redis.kill();
    assert_eq!(app.deliver(created("kp_1")).await.unwrap(), 200);
    let (output, counted) = stats(&redis.url(), prefix, &app.data_dir());
    assert_eq!((&counted["depth"], &counted["spooled"]), (&1.into(), &1.into()), "{counted}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && text.contains("this machine alone"), "{text}");
    let folder = tempfile::tempdir().unwrap();
    stats(&redis.url(), prefix, folder.path());
    assert!(!folder.path().join("kinsync.sqlite").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_and_queue_stats_declare_no_queue_in_rabbitmq() {
    let (mut tenant, rabbitmq, prefix) =
        (Tenant::start().await, TestRabbitmq::shared(), TestRabbitmq::prefix());
    tenant.set("KINSYNC_QUEUE", rabbitmq.url()).set("KINSYNC_QUEUE_PREFIX", &prefix);
    examine(&tenant, &[]).is("queue.reachable", "ok", &["does not exist yet"]).is(
        "queue.durable",
        "skipped",
        &[],
    );
    let folder = tempfile::tempdir().unwrap();
    let (output, counted) = stats(&rabbitmq.url(), &prefix, folder.path());
    assert_eq!(counted["depth"], 0);
    assert!(String::from_utf8(output.stderr).unwrap().contains("does not exist yet"));
    assert!(!rabbitmq.control(&["list_queues", "name"]).contains(&prefix));
}
