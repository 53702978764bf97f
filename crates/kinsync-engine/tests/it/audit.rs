//! The audit log, on every store.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use kinsync_core::Micros;
use kinsync_engine::internal::{
    audit::{AuditLog, Bounds, Kind, Record},
    store::{Error, Store},
};
use serde_json::json;

use crate::stores::{Fresh, on_every_store};

const SMALL: Bounds = Bounds { chunk: 3, chunks: 4, max_age: Duration::from_secs(1000) };

/// A read of the user `n` at second `n`.
fn read(n: i64) -> Record {
    record(Kind::Read, n, n)
}

fn record(kind: Kind, second: i64, user: i64) -> Record {
    let parameters = json!({ "id": format!("kp_{user}") }).as_object().unwrap().clone();
    let operator = ("ada".to_owned(), "192.0.2.7".to_owned());
    Record::new(kind, Micros(second * 1_000_000), operator).of("GET /api/admin/users/{id}".into(), parameters)
}

async fn users(log: &AuditLog, store: &dyn Store, now: i64) -> Vec<String> {
    let records = log.list(store, Micros(now * 1_000_000), None, 100).await.unwrap();
    records.iter().map(|record| record.parameters["id"].as_str().unwrap().to_owned()).collect()
}

async fn records_are_listed_newest_first_in_pages_by_every_process(fresh: Fresh) {
    let (log, store) = (AuditLog::new(SMALL), &*fresh.store);
    for n in 0..7 {
        log.add(store, &read(n)).await.unwrap();
    }
    let other = AuditLog::new(SMALL);
    let now = Micros(7_000_000);
    let page = other.list(store, now, None, 5).await.unwrap();
    assert_eq!(page[0], Record { id: page[0].id.clone(), ..read(6) });
    let rest = other.list(store, now, Some(&page[4].id), 5).await.unwrap();
    let listed: Vec<_> = page.iter().chain(&rest).map(|record| record.at.0 / 1_000_000).collect();
    assert_eq!(listed, [6, 5, 4, 3, 2, 1, 0]);
    other.add(store, &read(7)).await.unwrap();
    assert_eq!(users(&log, store, 8).await[0], "kp_7");
}

async fn the_log_has_a_bound_and_reads_push_out_no_action(fresh: Fresh) {
    let (log, store) = (AuditLog::new(SMALL), &*fresh.store);
    log.add(store, &record(Kind::Action, 0, 1000)).await.unwrap();
    for n in 1..60 {
        // A process that starts does not know the newest chunk.
        let log = if n % 10 == 0 { &AuditLog::new(SMALL) } else { &log };
        log.add(store, &read(n)).await.unwrap();
    }
    let listed = users(&log, store, 60).await;
    let newest: Vec<_> =
        (60 - i64::try_from(listed.len()).unwrap() + 1..60).rev().map(|n| format!("kp_{n}")).collect();
    assert!((10..=13).contains(&listed.len()), "{listed:?}");
    assert_eq!((&listed[..listed.len() - 1], listed.last().unwrap().as_str()), (&newest[..], "kp_1000"));
}

async fn repeated_reads_are_one_record_and_repeated_actions_are_not(fresh: Fresh) {
    let (log, store) = (AuditLog::new(SMALL), &*fresh.store);
    for second in 0..5 {
        log.add(store, &record(Kind::Read, second, 1)).await.unwrap();
        log.add(store, &record(Kind::Action, second, 2)).await.unwrap();
    }
    log.add(store, &record(Kind::Read, 601, 1)).await.unwrap();
    let records = log.list(store, Micros(602_000_000), None, 100).await.unwrap();
    let (reads, actions): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| record.kind == Kind::Read);
    assert_eq!(reads.iter().map(|record| record.count).collect::<Vec<_>>(), [1, 5]);
    assert_eq!((reads[1].at, reads[1].last_at), (Micros(0), Micros(4_000_000)));
    assert_eq!(actions.len(), 5);
}

async fn records_above_the_maximum_age_are_not_listed_and_are_removed(fresh: Fresh) {
    let (log, store) = (AuditLog::new(SMALL), &*fresh.store);
    for n in [0, 500, 1001] {
        log.add(store, &read(n)).await.unwrap();
    }
    assert_eq!(users(&log, store, 1001).await, ["kp_1001", "kp_500"]);
    log.remove_outdated(store, Micros(1_001_000_000)).await.unwrap();
    let saved = store.state("audit.reads.0").await.unwrap().unwrap();
    assert_eq!(saved.value["records"].as_array().unwrap().len(), 2, "{saved:?}");
    log.add(store, &read(1002)).await.unwrap();
    let listed = users(&AuditLog::new(SMALL), store, 1002).await;
    assert_eq!(listed, ["kp_1002", "kp_1001", "kp_500"], "removing makes no room for newer records");
    assert!(store.state("audit.reads.1").await.unwrap().is_some());
}

async fn processes_that_add_at_the_same_time_lose_no_record(fresh: Fresh) {
    let bounds = Bounds { chunk: 5, chunks: 100, ..SMALL };
    let logs: Vec<_> = (0..4).map(|_| AuditLog::new(bounds)).collect();
    let adds = (0..40).map(|n| {
        let (log, store) = (&logs[n % 4], &fresh.store);
        async move { log.add(&**store, &read(n.try_into().unwrap())).await.unwrap() }
    });
    futures_util::future::join_all(adds).await;
    assert_eq!(users(&logs[0], &*fresh.store, 40).await.len(), 40);
}

async fn a_record_of_a_newer_version_is_refused_with_the_way_out(fresh: Fresh) {
    let (log, store) = (AuditLog::new(SMALL), &*fresh.store);
    assert!(store.put_state("audit.reads.0", &json!({ "format": 2 }), 0).await.unwrap());
    let added = log.add(store, &read(1)).await.unwrap_err();
    let listed = log.list(store, Micros(0), None, 1).await.unwrap_err();
    for error in [added, listed] {
        assert!(matches!(&error, Error::Refused { hint, .. } if hint.contains("audit.reads.0")), "{error:?}");
    }
    assert_eq!(store.state("audit.reads.0").await.unwrap().unwrap().value, json!({ "format": 2 }));
}

on_every_store! {
    records_are_listed_newest_first_in_pages_by_every_process
    the_log_has_a_bound_and_reads_push_out_no_action
    repeated_reads_are_one_record_and_repeated_actions_are_not
    records_above_the_maximum_age_are_not_listed_and_are_removed
    processes_that_add_at_the_same_time_lose_no_record
    a_record_of_a_newer_version_is_refused_with_the_way_out
}
