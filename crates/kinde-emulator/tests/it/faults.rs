//! Faults occur as configured and are counted.

use std::collections::HashSet;
use std::time::Duration;

use kinde_emulator::{Config, DeliveryState, Emulator, Fault, FaultKind, NewUser, TokenSpec, UserEdit};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::receiver::{DEADLINE, client, get, start};

fn in_order() -> Config {
    let mut config = Config::default();
    config.delivery.max_in_flight = 1;
    config
}

#[tokio::test]
async fn a_duplicate_repeats_the_delivery() {
    let (emulator, receiver) = start(in_order()).await;
    emulator.set_fault(Fault::times(FaultKind::Duplicate { copies: 2 }, 1));
    emulator.create_user(NewUser::default()).unwrap();
    emulator.create_user(NewUser::default()).unwrap();
    emulator.quiesce(DEADLINE).await.unwrap();
    let arrivals = receiver.arrivals();
    assert_eq!(arrivals.len(), 4);
    let ids: HashSet<&str> = arrivals[..3].iter().map(|arrival| arrival.header("webhook-id")).collect();
    assert_eq!(ids.len(), 1);
    assert!(arrivals[1].body == arrivals[0].body);
    let stats = emulator.stats();
    assert_eq!((stats.events, stats.queued, stats.duplicated, stats.delivered), (2, 4, 2, 4));
}

#[tokio::test]
async fn a_reordered_delivery_is_overtaken() {
    let (emulator, receiver) = start(in_order()).await;
    emulator.set_fault(Fault::times(FaultKind::Reorder { behind: 2, hold: DEADLINE }, 1).on("user.created"));
    let user = emulator.create_user(NewUser::default()).unwrap();
    emulator.suspend(&user.id).unwrap();
    emulator.unsuspend(&user.id).unwrap();
    emulator.quiesce(DEADLINE).await.unwrap();
    let kinds: Vec<String> = receiver.arrivals().iter().map(super::receiver::Arrival::kind).collect();
    assert_eq!(kinds, ["user.updated", "user.updated", "user.created"]);
    assert_eq!(emulator.stats().reordered, 1);
}

#[tokio::test]
async fn a_held_delivery_is_sent_when_nothing_overtakes_it() {
    let (emulator, receiver) = start(in_order()).await;
    emulator.set_fault(Fault::always(FaultKind::Reorder { behind: 5, hold: Duration::from_millis(30) }));
    emulator.create_user(NewUser::default()).unwrap();
    receiver.wait_for(1).await;
}

#[tokio::test]
async fn dropped_delayed_and_silent_changes_are_counted_separately() {
    let (emulator, receiver) = start(in_order()).await;
    emulator.set_fault(Fault::times(FaultKind::Drop, 1));
    emulator.create_user(NewUser::default()).unwrap();
    emulator.quiesce(DEADLINE).await.unwrap();
    assert_eq!(emulator.deliveries()[0].state, DeliveryState::Dropped);

    emulator.set_fault(Fault::times(FaultKind::Silent, 1));
    emulator.create_user(NewUser::default()).unwrap();
    let delay = Duration::from_millis(80);
    emulator.set_fault(Fault::always(FaultKind::Delay { min: delay, max: 2 * delay }));
    let before = Instant::now();
    emulator.create_user(NewUser::default()).unwrap();
    emulator.quiesce(DEADLINE).await.unwrap();
    assert!(before.elapsed() >= delay);
    assert_eq!((receiver.arrivals().len(), emulator.user_count()), (1, 3));
    let stats = emulator.stats();
    assert_eq!((stats.dropped, stats.silenced, stats.delayed, stats.delivered), (1, 1, 1, 1));
    let occurrences: u64 = emulator.faults().iter().map(|report| report.occurrences).sum();
    assert_eq!(occurrences, 3);
}

#[tokio::test]
async fn a_fault_occurs_with_its_probability() {
    let (emulator, receiver) = start(Config::default()).await;
    emulator.set_fault(Fault::chance(FaultKind::Drop, 0.5));
    for _ in 0..200 {
        emulator.emit("user.deleted", json!({"user": {"id": "kp_1"}}));
    }
    emulator.quiesce(DEADLINE).await.unwrap();
    let dropped = emulator.stats().dropped;
    assert!((60..140).contains(&dropped), "{dropped}");
    assert_eq!(receiver.arrivals().len() as u64, 200 - dropped);
}

async fn with_users(count: usize) -> (Emulator, String, String) {
    let emulator = Emulator::start(Config::default()).await.unwrap();
    for _ in 0..count {
        emulator.import_user(NewUser::default()).unwrap();
    }
    let url = format!("{}/api/v1/users?page_size=10", emulator.issuer());
    let token = emulator.m2m_token(&TokenSpec::default());
    (emulator, url, token)
}

#[tokio::test]
async fn a_throttled_request_has_the_time_of_the_reset() {
    let (emulator, url, token) = with_users(1).await;
    emulator.set_fault(Fault::times(FaultKind::RateLimit { reset: 7 }, 1).on("management"));
    let response = client().get(&url).bearer_auth(&token).send().await.unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["ratelimit-reset"], "7");
    assert!(response.json::<Value>().await.unwrap()["errors"][0]["code"].is_string());
    assert_eq!(get(&url, Some(&token)).await.0, 200);
}

#[tokio::test]
async fn responses_are_replaced_cut_truncated_or_garbled() {
    let (emulator, url, token) = with_users(10).await;
    let fetch = async |kind| {
        emulator.clear_faults();
        emulator.set_fault(Fault::always(kind).on("users"));
        let response = client().get(&url).bearer_auth(&token).send().await.unwrap();
        (response.status().as_u16(), response.text().await)
    };
    assert_eq!(fetch(FaultKind::Status { status: 503 }).await.0, 503);
    let (status, body) = fetch(FaultKind::CutBody).await;
    assert!(status == 200 && body.is_err(), "the connection is closed");
    for kind in [FaultKind::TruncatedJson, FaultKind::Garbage] {
        let (status, body) = fetch(kind).await;
        assert_eq!(status, 200);
        assert!(serde_json::from_str::<Value>(&body.unwrap()).is_err());
    }
    let slow = Duration::from_millis(60);
    let before = Instant::now();
    assert_eq!(fetch(FaultKind::Slow { min: slow, max: slow }).await.0, 200);
    assert!(before.elapsed() >= slow);
}

#[tokio::test]
async fn simultaneous_faults_are_all_applied_in_a_fixed_order() {
    use FaultKind::{CutBody, Garbage, RateLimit, Status, TruncatedJson, WrongDate};
    let (emulator, url, token) = with_users(10).await;
    let fetch = async |kinds: &[FaultKind]| {
        emulator.clear_faults();
        for kind in kinds {
            emulator.set_fault(Fault::always(kind.clone()).on("users"));
        }
        let response = client().get(&url).bearer_auth(&token).send().await.unwrap();
        assert!(emulator.faults().iter().all(|report| report.occurrences == 1));
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        (status, header("ratelimit-reset").to_owned(), header("date").to_owned(), response.text().await)
    };
    let now = fetch(&[]).await.2;
    let date = WrongDate { ahead: 86_400 * 400 };
    for turned in [false, true] {
        let of = |mut kinds: Vec<FaultKind>| {
            if turned {
                kinds.reverse();
            }
            kinds
        };
        let (status, reset, _, body) = fetch(&of(vec![RateLimit { reset: 7 }, Status { status: 503 }])).await;
        assert_eq!((status, reset.as_str()), (503, "7"));
        assert!(body.unwrap().contains("EMULATED_FAULT"));
        let (status, _, then, body) = fetch(&of(vec![date.clone(), TruncatedJson])).await;
        assert!(status == 200 && then[12..16] != now[12..16], "{then}");
        assert!(serde_json::from_str::<Value>(&body.unwrap()).is_err());
        let (status, _, then, body) = fetch(&of(vec![Status { status: 502 }, Garbage, date.clone()])).await;
        assert!(status == 502 && then[12..16] != now[12..16], "{then}");
        assert!(body.unwrap().starts_with("<html>"));
        let (status, _, _, body) = fetch(&of(vec![CutBody, Status { status: 500 }, TruncatedJson])).await;
        assert!(status == 500 && body.is_err(), "the connection is closed");
    }
}

#[tokio::test]
async fn the_keys_can_fail_and_recover() {
    let emulator = Emulator::start(Config::default()).await.unwrap();
    let url = format!("{}/.well-known/jwks.json", emulator.issuer());
    emulator.set_fault(Fault::times(FaultKind::Status { status: 500 }, 1).on("jwks"));
    assert_eq!(get(&url, None).await.0, 500);
    assert_eq!(get(&url, None).await.0, 200);
}

#[tokio::test]
async fn pages_have_the_configured_faults() {
    let (emulator, url, token) = with_users(30).await;
    let next = async |fault| {
        emulator.clear_faults();
        emulator.set_fault(Fault::times(fault, 1));
        let page = get(&url, Some(&token)).await.1;
        let Some(next) = page["next_token"].as_str() else { return (page, Value::Null) };
        let second = get(&format!("{url}&next_token={next}"), Some(&token)).await.1;
        (page.clone(), second)
    };
    let (empty, _) = next(FaultKind::EmptyList).await;
    assert_eq!((&empty["users"], &empty["next_token"]), (&json!([]), &Value::Null));
    let (first, second) = next(FaultKind::RepeatedNextToken).await;
    assert_eq!(first["users"], second["users"]);
    let (first, second) = next(FaultKind::PaginationDrift { by: -1 }).await;
    assert_eq!(first["users"][9], second["users"][0]);
    let (_, second) = next(FaultKind::PaginationDrift { by: 1 }).await;
    assert_eq!(second["users"][0]["id"], emulator.users()[11].id);
}

#[tokio::test]
async fn an_edit_without_an_event_changes_the_user() {
    let (emulator, _) = start(Config::default()).await;
    let user = emulator.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap();
    emulator.set_fault(Fault::always(FaultKind::Silent));
    let edit = UserEdit { last_name: Some(String::new()), ..UserEdit::default() };
    emulator.update_user(&user.id, edit).unwrap();
    assert_eq!((emulator.user(&user.id).unwrap().last_name, emulator.stats().events), (None, 0));
}

#[tokio::test]
async fn held_requests_wait_for_their_release_and_no_others_do() {
    let (emulator, url, token) = with_users(1).await;
    let held = emulator.hold("users", 1);
    let waiting = tokio_util::task::TaskTracker::new().spawn({
        let (url, token) = (url.clone(), token.clone());
        async move { get(&url, Some(&token)).await.0 }
    });
    while emulator.requests("users") == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(get(&url, Some(&token)).await.0, 200, "only one is held");
    assert!(!waiting.is_finished());
    drop(held);
    assert_eq!(waiting.await.unwrap(), 200);
    assert_eq!(get(&url, Some(&token)).await.0, 200);
}
