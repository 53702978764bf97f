//! A small terminal, a busy one, and words at the end.

use super::*;
use crate::dev::{
    drift::Drift,
    hints,
    snapshot::{Deliveries, Lag, OnPurpose, Queue, Users},
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
    }
}

fn title() -> Title {
    Title { text: "embedded store · faults some · 5 events/s · seed 1".into(), note: None }
}

fn moment() -> Snapshot {
    let recent = |kind: &str, fate, name: &str| Recent {
        at: "2026-01-02T03:04:05.678Z".parse().unwrap(),
        kind: kind.to_owned(),
        fate,
        name: name.to_owned(),
    };
    Snapshot {
        uptime: Duration::from_secs(133),
        users: Users { at_kinde: 1214, in_store: 1211, deleted: 12 },
        drift: Drift { missing: 2, stale: 1, lost: 3, strangers: 1, ..Drift::default() },
        deliveries: Deliveries {
            attempts: 12_345,
            accepted: 11_180,
            duplicates: 1_161,
            refused: 4,
            ..Deliveries::default()
        },
        on_purpose: OnPurpose { dropped: 24, duplicated: 1_161, reordered: 41, delayed: 60, silent: 0 },
        lag: Lag { from_receipt: Some(Quantiles { p50: 0.005, p99: 0.025 }), from_kinde: None },
        queue: Queue::default(),
        breaker: "closed",
        store_error: None,
        events: 11_400,
        events_per_second: 5.24,
        history: vec![0, 1, 4, 8],
        recent: vec![
            recent("user.updated", Fate::Delivered(2), "Ada Lovelace"),
            recent("user.authentication_failed", Fate::Lost, "\u{202e}reversed\u{7}"),
            recent("user.created", Fate::Refused(503), "Zoë García"),
            recent("user.deleted", Fate::OnTheWay, "李 Ōe"),
        ],
    }
}

#[test]
fn a_moment_fits_a_small_terminal() {
    let lines = live(&moment(), &title(), &addresses(), canvas(80, 24));
    let expected = " kinsync dev   embedded store · faults some · 5 events/s · seed 1       up 2:13

 users         1,214 at Kinde  1,211 in the store · 12 deleted · 1 other
 drift             3 differ    2 missing · 1 stale · 0 to delete
                   3 lost      on purpose · 0 on the way · 0 unexplained
            Lost ones stay until that user changes again: no reconciler yet.

 deliveries   12,345 attempts  11,180 accepted · 1,161 duplicates · 4 refused
 on purpose       24 dropped   1,161 doubled · 41 reordered · 60 delayed
 lag          ≤ 5 ms p50       p99 ≤ 25 ms from receipt to the store
                   – p50       from Kinde's time, delays included: none of late
 queue             0 waiting   0 dead letters · breaker closed
 events          5.2 a second  ▁▂▅█

 03:04:05Z  user.updated               delivered ×2  Ada Lovelace
 03:04:05Z  user.authentication_failed lost          ·reversed·
 03:04:05Z  user.created               answered 503  Zoë García
 03:04:05Z  user.deleted               on the way    李 Ōe




 kinsync http://127.0.0.1:5000   Kinde http://127.0.0.1:5001
 c  addresses, secrets and curl lines to try    q  quit";
    assert_eq!(lines.join("\n"), expected);
}

#[test]
fn no_line_is_wider_and_no_page_higher_than_the_terminal() {
    let mut busy = moment();
    busy.recent = (0..200).map(|_| busy.recent[0].clone()).collect();
    busy.history = vec![7; 500];
    busy.drift.unexplained = 123_456_789;
    busy.store_error = Some("the store does not answer, and says so at length".repeat(3));
    for (columns, rows) in [(1, 1), (20, 5), (80, 24), (81, 17), (200, 60)] {
        let canvas = canvas(columns, rows);
        let steps = hints::steps(&addresses());
        let page = live(&busy, &title(), &addresses(), canvas);
        assert!(page.len() <= rows, "{} lines in {rows} rows", page.len());
        assert!(page.iter().all(|line| console::measure_text_width(line) <= columns));
        assert!(super::hints(&addresses(), &steps, 1, canvas).len() <= rows.max(12), "{columns}x{rows}");
    }
}

#[test]
fn the_pages_to_try_hold_every_line_once_and_whole() {
    let (at, canvas) = (addresses(), canvas(80, 24));
    let steps = hints::steps(&at);
    let count = pages(&at, &steps, canvas).len();
    let all: Vec<String> = (0..count).flat_map(|page| super::hints(&at, &steps, page, canvas)).collect();
    for line in steps.iter().flat_map(|step| step.command.lines()) {
        assert!(all.iter().any(|shown| shown == line), "{line}");
    }
    assert_eq!(super::hints(&at, &steps, count, canvas), super::hints(&at, &steps, 0, canvas));
}

#[test]
fn numbers_and_times_read_well() {
    let numbers = [0, 999, 1000, 1_234_567].map(grouped);
    assert_eq!(numbers.join(" "), "0 999 1,000 1,234,567");
    let spans = [0.005, 0.25, 1.0, 2.5, 60.0, 300.0, f64::INFINITY].map(span);
    assert_eq!(spans.join(", "), "5 ms, 250 ms, 1 s, 2.5 s, 60 s, 5 min, ∞");
    assert_eq!([7, 133, 3723].map(|s| clock(Duration::from_secs(s))).join(", "), "0:07, 2:13, 1:02:03");
}

#[test]
fn the_summary_says_when_something_is_missing() {
    let mut last = moment();
    assert!(
        summary(&last, canvas(80, 24))
            .join("\n")
            .contains("0: everything that was delivered is in the store")
    );
    last.drift.unexplained = 2;
    assert!(summary(&last, canvas(80, 24)).join("\n").contains("2: 2 were told and are not in the store"));
}
