//! The live page in a small terminal, the pages of commands, and the summary.

use std::time::Duration;

use super::*;
use crate::dev::{
    drift::Drift,
    hints,
    snapshot::{Deliveries, InjectedFaults, Lag, Queue, Reconciler, Users},
};

fn canvas(columns: usize, rows: usize) -> Canvas {
    Canvas { columns, rows, colors: false }
}

fn addresses() -> Addresses {
    Addresses {
        kinsync: "http://127.0.0.1:5000".into(),
        emulator: "http://127.0.0.1:5001".into(),
        jwks: "http://127.0.0.1:5001/.well-known/jwks.json".into(),
        admin_token: "0123456789abcdef".into(),
        webhook_secret: "fedcba9876543210".into(),
        store: "/tmp/kinsync-dev-1/store".into(),
        data_dir: "/tmp/kinsync-dev-1".into(),
        has_repair: true,
    }
}

fn title() -> Title {
    Title { text: "embedded store · faults: some · 5 events/s · seed 1".into(), note: None }
}

fn snapshot() -> Snapshot {
    let recent = |kind: &str, outcome, name: &str| Recent {
        at: "2026-01-02T03:04:05.678Z".parse().unwrap(),
        kind: kind.to_owned(),
        outcome,
        name: name.to_owned(),
    };
    let last_scan_seconds_ago = Some(4.7);
    Snapshot {
        uptime: Duration::from_secs(133),
        users: Users { at_kinde: 1214, in_store: 1211, deleted: 12 },
        drift: Drift { missing: 2, outdated: 1, lost: 3, unknown: 1, ..Drift::default() },
        reconciler: Some(Reconciler { scans: 9, repaired: 1, last_scan_seconds_ago, failure: None }),
        deliveries: Deliveries {
            attempts: 12_345,
            accepted: 11_180,
            duplicates: 1_161,
            refused: 4,
            ..Deliveries::default()
        },
        injected_faults: InjectedFaults {
            dropped: 24,
            duplicated: 1_161,
            reordered: 41,
            delayed: 60,
            silent: 0,
        },
        lag: Lag { from_receipt: Some(Quantiles { p50: 0.005, p99: 0.025 }), from_kinde: None },
        queue: Queue { depth: 1, ..Queue::default() },
        breaker: "closed",
        store_error: None,
        events: 11_400,
        events_per_second: 5.24,
        history: vec![0, 1, 4, 8],
        recent: vec![
            recent("user.updated", Outcome::Delivered(2), "Ada Lovelace"),
            recent("user.authentication_failed", Outcome::Lost, "\u{202e}reversed\u{7}"),
            recent("user.created", Outcome::Failed(503), "Zoë García"),
            recent("user.deleted", Outcome::Pending, "李 Ōe"),
        ],
    }
}

#[test]
fn the_live_page_fits_a_small_terminal() {
    let lines = live(&snapshot(), &title(), &addresses(), canvas(80, 24));
    let expected = " kinsync dev   embedded store · faults: some · 5 events/s · seed 1      up 2:13

 at Kinde      1,214 users     1,211 in the store · 12 deleted · 1 unknown
 drift             3 users     2 missing · 1 outdated · 0 to delete
 cause             3 lost      on purpose · 0 in flight · 0 unexplained
 repair            1 user      repaired by 9 scans · last scan 4 s ago

 deliveries   12,345 attempts  11,180 accepted · 1,161 duplicates · 4 refused
 faults           24 lost      1,161 duplicated · 41 reordered · 60 delayed
 lag          ≤ 5 ms p50       p99 ≤ 25 ms from receipt to store
                   – p50       from event to store: none in the last minute
 queue             1 entry     0 dead letters · circuit breaker closed
 events          5.2 per s     ▁▂▅█

 03:04:05Z  user.updated               delivered ×2  Ada Lovelace
 03:04:05Z  user.authentication_failed lost          ·reversed·
 03:04:05Z  user.created               answered 503  Zoë García
 03:04:05Z  user.deleted               pending       李 Ōe




 kinsync http://127.0.0.1:5000   local Kinde http://127.0.0.1:5001
 c  addresses and commands to try · q  quit";
    assert_eq!(lines.join("\n"), expected);
}

#[test]
fn no_line_is_wider_and_no_page_higher_than_the_terminal() {
    let mut busy = snapshot();
    busy.recent = (0..200).map(|_| busy.recent[0].clone()).collect();
    busy.history = vec![7; 500];
    busy.drift.unexplained = 123_456_789;
    busy.store_error = Some("the store is unavailable, with a long reason ".repeat(3));
    for (columns, rows) in [(1, 1), (20, 5), (80, 24), (81, 17), (200, 60)] {
        let canvas = canvas(columns, rows);
        let steps = hints::steps(&addresses());
        let lines = live(&busy, &title(), &addresses(), canvas);
        assert!(lines.len() <= rows, "{} lines in {rows} rows", lines.len());
        assert!(lines.iter().all(|line| console::measure_text_width(line) <= columns));
        assert!(page(&addresses(), &steps, 1, canvas).len() <= rows.max(12), "{columns}x{rows}");
    }
}

#[test]
fn the_pages_contain_every_command_whole() {
    let (at, canvas) = (addresses(), canvas(80, 24));
    let steps = hints::steps(&at);
    let count = pages::pages(&at, &steps, canvas).len();
    let all: Vec<String> = (0..count).flat_map(|n| page(&at, &steps, n, canvas)).collect();
    for line in steps.iter().flat_map(|step| step.command.lines()) {
        assert!(all.iter().any(|shown| shown == line), "{line}");
    }
    assert_eq!(page(&at, &steps, count, canvas), page(&at, &steps, 0, canvas));
}

#[test]
fn the_summary_reports_missing_events() {
    let mut last = snapshot();
    let text = |last: &Snapshot| summary(last, canvas(80, 24)).join("\n");
    assert!(text(&last).contains("none: every delivered event is in the store"));
    assert!(text(&last).contains("1 user by 9 scans; the next scan would repair 3 users"));
    last.drift.unexplained = 2;
    assert!(text(&last).contains("2 users: a delivered event is not in the store"));
}
