//! Erasures across processes: withdrawn, repeated, and what names an erased user later.

use std::{sync::Arc, time::Duration};

use bson::{Document, doc};
use kinsync_core::{Field, Micros, Observation, Profile, Source, Version, What};
use kinsync_engine::{
    Clock, Engine,
    internal::{
        erasure::{ApplicationFields, Eraser, Mode},
        log_entry::kind,
        log_snapshots,
        pending_checks::PendingChecks,
        store::{EventFilter, LogEntry, Row, Saved, Store},
    },
};

use crate::{
    erasure::{
        CANARY, canaries, deleted_user, erase, everything, id, interrupted, observe, opened, personal,
    },
    faulty::{Failure, Fault, FaultyQueue, FaultyStore},
    pipeline::{drain, entry, event_entry},
    rebuild::assert_explained,
    store_mongo,
    stores::{self, Fresh, on_every_store},
};

on_every_store! {
    an_erasure_of_a_user_that_kinde_has_restored_is_withdrawn
    an_erasure_that_is_withdrawn_while_the_log_is_completed_is_explained
    a_later_event_about_no_user_that_names_an_erased_one_is_logged_as_a_hash
    a_delivery_with_the_type_of_an_erasure_is_one_like_any_other
    one_of_several_processes_repeats_an_erasure
    an_erasure_that_ends_at_any_step_is_continued_without_a_request
    a_queue_that_cannot_be_searched_keeps_nothing_else
}

/// Starts another process with a clock that is ahead and fast, and waits until no erasure is in progress.
pub(crate) async fn continue_later(store: &Arc<dyn Store>, by: Duration) {
    let began = Clock::system().now().0;
    let clock = move |now: i64| now + (now - began) * 100;
    let (engine, _dir) = process_of_later(store, by, clock).await;
    wait_for(store, <[_]>::is_empty).await;
    engine.stop().await;
}

async fn process_of_later(
    store: &Arc<dyn Store>,
    by: Duration,
    time: impl Fn(i64) -> i64 + Send + Sync + 'static,
) -> (Engine, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let by = i64::try_from(by.as_micros()).expect("minutes");
    let clock = Clock::from_fn(move || Micros(time(Clock::system().now().0) + by));
    let engine = Engine::builder(dir.path()).store(Arc::clone(store)).clock(clock).open().await;
    let engine = engine.expect("the folder opens");
    engine.start();
    (engine, dir)
}

/// Waits until the records of erasures in progress are so.
async fn wait_for(store: &Arc<dyn Store>, is_so: impl Fn(&[(String, Saved)]) -> bool) {
    let waiting = async {
        while !is_so(&store.list_states("erasing/", None, 100).await.expect("the store answers")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(3), waiting)
        .await
        .expect("the erasure continues within three minutes");
}

/// Each has a queue of its own.
async fn one_of_several_processes_repeats_an_erasure(fresh: Fresh) {
    let store = &*fresh.store;
    let (engine, _dir) = opened(&fresh).await;
    deleted_user(store, "kp_ada").await;
    erase(engine.eraser(), "kp_ada").await.expect("deleted");
    engine.stop().await;
    // After ten minutes and after two hours.
    for (minutes, repeated) in [(11, 1), (121, 2)] {
        let start = || process_of_later(&fresh.store, Duration::from_mins(minutes), |now| now);
        let processes = [start().await, start().await, start().await];
        wait_for(&fresh.store, |erasing| {
            erasing.iter().any(|(_, record)| record.value["repeated"] == repeated)
        })
        .await;
        for (process, _dir) in &processes {
            process.stop().await;
        }
        let record = store.list_states("erasing/", None, 10).await.expect("the store answers").pop();
        // The request and each repetition are written once when they begin and once when they end.
        let writes = record.map(|(_, record)| record.revision);
        assert_eq!(writes, Some(2 * (repeated + 1)), "{} after {minutes} minutes", fresh.name);
    }
    continue_later(&fresh.store, Duration::from_hours(3)).await;
}

/// Waits until another process has completed every erasure that was begun a minute ago.
async fn complete_later(fresh: &Fresh) {
    let (process, _dir) = process_of_later(&fresh.store, Duration::from_mins(1), |now| now).await;
    wait_for(&fresh.store, |erasing| {
        erasing.iter().all(|(_, record)| !record.value["completedAt"].is_null())
    })
    .await;
    process.stop().await;
}

async fn an_erasure_that_ends_at_any_step_is_continued_without_a_request(fresh: Fresh) {
    let store = &*fresh.store;
    let (engine, _dir) = opened(&fresh).await;
    let (mut continued, mut polls, mut is_done) = (0, 1, false);
    while !is_done {
        let user = format!("kp_{polls}");
        deleted_user(store, &user).await;
        is_done = interrupted(erase(engine.eraser(), &user), polls).await;
        let records = store.states(&["erased/", "erasing/"].map(|kind| format!("{kind}{user}"))).await;
        let records = records.expect("the store answers").into_iter().map(|record| record.is_some());
        match *records.collect::<Vec<_>>() {
            [false, false] => _ = erase(engine.eraser(), &user).await.expect("deleted"),
            [_, is_known] => {
                assert!(is_known, "{}: after {polls} polls nothing continues it", fresh.name);
                continued += 1;
            }
            _ => unreachable!("two keys were read"),
        }
        polls += 1 + polls / 10;
    }
    engine.stop().await;
    assert!(continued > 10, "{}: {continued} erasures", fresh.name);
    complete_later(&fresh).await;
    assert_eq!(canaries(&everything(store).await), [""; 0], "{}", fresh.name);
    assert_explained(store, fresh.name).await;
}

async fn a_queue_that_cannot_be_searched_keeps_nothing_else(fresh: Fresh) {
    let store = &*fresh.store;
    let (engine, _dir) = opened(&fresh).await;
    deleted_user(store, "kp_ada").await;
    let waiting = event_entry("user.updated", 1, "waiting", r#"{"id":"kp_ada","first_name":"canary7391"}"#);
    engine.queue().enqueue(waiting).await.expect("the queue takes it");
    let fault = Fault::new("search", Failure::All);
    let queue = FaultyQueue { queue: Arc::clone(engine.queue()), fault: Arc::clone(&fault) };
    let eraser = Eraser::new(Arc::clone(&fresh.store), Arc::new(queue), Clock::system());
    erase(&eraser, "kp_ada").await.expect_err("the queue cannot be searched");
    assert_eq!(canaries(&everything(store).await), [""; 0], "{}", fresh.name);
    let is_complete = async || {
        let erasing = store.list_states("erasing/", None, 10).await.expect("the store answers");
        let [(_, record)] = &*erasing else { panic!("{}: {erasing:?}", fresh.name) };
        !record.value["completedAt"].is_null()
    };
    assert!(!is_complete().await, "{}: it is to be continued", fresh.name);
    assert_eq!(engine.queue().stats().await.expect("the queue is open").depth, 1, "{}", fresh.name);

    fault.repair();
    let done = erase(&eraser, "kp_ada").await.expect("deleted");
    assert_eq!((done.was_erased, done.queued), (true, 1), "{}: {done:?}", fresh.name);
    assert!(is_complete().await, "{}", fresh.name);
}

async fn entries(store: &dyn Store, filter: EventFilter) -> Vec<LogEntry> {
    let filter = EventFilter { limit: 1000, ..filter };
    store.events(&filter).await.expect("the store answers").items
}

async fn an_erasure_of_a_user_that_kinde_has_restored_is_withdrawn(fresh: Fresh) {
    log_snapshots::complete(&*fresh.store, &Clock::system()).await.expect("the store answers");
    withdraw(&fresh).await;
}

/// The states of all users are logged meanwhile, and replaced by markers.
async fn an_erasure_that_is_withdrawn_while_the_log_is_completed_is_explained(fresh: Fresh) {
    withdraw(&fresh).await;
}

async fn row(store: &dyn Store, user: &str) -> Row {
    store.load(&[id(user)]).await.expect("the store answers").pop().flatten().expect("stored")
}

async fn withdraw(fresh: &Fresh) {
    let store = &*fresh.store;
    let (engine, _dir) = opened(fresh).await;
    deleted_user(store, "kp_ada").await;
    let fault = Fault::new("write", Failure::All);
    let broken = FaultyStore { store: Arc::clone(&fresh.store), fault };
    let eraser = Eraser::new(Arc::new(broken), Arc::clone(engine.queue()), Clock::system());
    erase(&eraser, "kp_ada").await.expect_err("the row cannot be written");
    let erasures = EventFilter { kind: Some(kind::ERASURE.into()), ..EventFilter::default() };
    assert_eq!(entries(store, erasures.clone()).await.len(), 1, "{}", fresh.name);

    let exists = Observation {
        what: What::Exists(Profile::new().with(Field::FirstName, "Ada")),
        ..personal("kp_ada", Version::snapshot(Micros(1_794_500_000_000_000), "h"), Source::Reconcile)
    };
    observe(store, exists).await;
    // Logged without its content: the record of the erasure exists. An erasure in progress removes what is queued about the user,
    // once in each process: the first event may be lost.
    drain(&engine).await;
    for late in 1.. {
        let data = r#"{"id":"kp_ada","last_name":"Lovelace"}"#;
        let event = event_entry("user.updated", 95_000_000, &format!("late{late}"), data);
        engine.queue().enqueue(event).await.expect("the queue takes it");
        let is_empty = async {
            while engine.queue().stats().await.expect("the queue is open").depth > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(2), is_empty).await.expect("the queue drains");
        if row(store, "kp_ada").await.state.text(Field::LastName) == Some("Lovelace") {
            break;
        }
        assert!(late < 2, "{}: only one removal", fresh.name);
    }
    engine.stop().await;
    continue_later(&fresh.store, Duration::from_mins(1)).await;

    assert_eq!(entries(store, erasures).await, [], "{}", fresh.name);
    let records = store.list_states("eras", None, 10).await.expect("the store answers");
    assert!(!records.iter().any(|(key, _)| key.contains("kp_ada")), "{}: {records:?}", fresh.name);
    let checks = PendingChecks::load(store).await.expect("the store answers");
    assert!(
        checks.users.contains_key(&id("kp_ada")),
        "{}: what was removed from queues is read again: {checks:?}",
        fresh.name
    );
    let row = row(store, "kp_ada").await;
    let name = |field| row.state.text(field).map(str::to_owned);
    assert!(row.state.is_live() && row.state.erased.is_none(), "{}: {row:?}", fresh.name);
    assert_eq!(
        (name(Field::FirstName).as_deref(), name(Field::LastName).as_deref()),
        (Some("Ada"), Some("Lovelace")),
        "{}",
        fresh.name
    );
    assert_explained(store, fresh.name).await;
}

async fn a_later_event_about_no_user_that_names_an_erased_one_is_logged_as_a_hash(fresh: Fresh) {
    let store = &*fresh.store;
    let (engine, _dir) = opened(&fresh).await;
    deleted_user(store, "kp_ada").await;
    erase(engine.eraser(), "kp_ada").await.expect("deleted");
    // While the erasure is in progress, what names the user is removed from the queue.
    continue_later(&fresh.store, Duration::from_hours(3)).await;
    let event = |kind: &str, id: &str, data: &str| {
        let time = "2026-01-01T00:00:00Z";
        entry(id, &format!(r#"{{"type":"{kind}","event_id":"{id}","timestamp":"{time}","data":{data}}}"#))
    };
    let named = [
        event("passkey.added", "passkey", r#"{"user_id":"kp_ada","device":"canary7391"}"#),
        event("unknown.type", "key", r#"{"kp_ada":"canary7391"}"#),
        entry("broken", r#"{"who":"kp_ada","text":"canary7391"}"#),
        event(
            "organization.created",
            "organization",
            r#"{"organization":{"code":"org_1","name":"One"},"by":"kp_ada","note":"canary7391"}"#,
        ),
    ];
    // Is applied when its time has come.
    let early = r#"{"organization":{"code":"org_1","name":"Early"},"by":"kp_ada","note":"canary7391"}"#;
    let early = event("organization.updated", "early", early).payload;
    let early = String::from_utf8_lossy(early.bytes()).replace("2026-01-01", "2999-01-01");
    let early = entry("early", &early);
    let other = event("passkey.added", "other", r#"{"user_id":"kp_bob","device":"of Bob"}"#);
    for one in named.into_iter().chain([early, other]) {
        engine.queue().enqueue(one).await.expect("the queue takes it");
    }
    drain(&engine).await;
    let letters = engine.queue().dead_letters(None, 9).await.expect("the queue is open");
    let letters: Vec<&str> = letters.iter().map(|letter| letter.event_id.as_str()).collect();
    assert_eq!(letters, ["early"], "{}", fresh.name);
    engine.stop().await;
    assert_eq!(canaries(&everything(store).await), [""; 0], "{}", fresh.name);
    for id in ["passkey", "key", "broken", "organization", "early"] {
        let logged = store.event(id).await.expect("the store answers").expect("logged");
        assert!(logged.payload.contains("sha256"), "{}: {logged:?}", fresh.name);
    }
    let other = store.event("other").await.expect("the store answers").expect("logged");
    assert!(other.payload.contains("of Bob"), "{}: {other:?}", fresh.name);
    let organization = store.state("directory/org_1").await.expect("the store answers");
    assert!(organization.is_some_and(|saved| saved.value.to_string().contains("One")), "{}", fresh.name);
}

async fn a_delivery_with_the_type_of_an_erasure_is_one_like_any_other(fresh: Fresh) {
    let store = &*fresh.store;
    let (engine, _dir) = opened(&fresh).await;
    observe(store, personal("kp_ada", Version::event(Micros(1), "e"), Source::Webhook)).await;
    let user = r#"{"id":"kp_ada","first_name":"canary7391"}"#;
    for kind in [kind::ERASURE, kind::RETENTION, kind::SNAPSHOT] {
        let event = event_entry(kind, 1, &format!("fake {kind}"), user);
        engine.queue().enqueue(event).await.expect("the queue takes it");
    }
    drain(&engine).await;
    let row = store.load(&[id("kp_ada")]).await.expect("the store answers").pop().flatten().expect("stored");
    assert!(row.state.is_live() && row.state.erased.is_none(), "{}: {row:?}", fresh.name);
    assert_explained(store, fresh.name).await;
    deleted_user(store, "kp_ada").await;
    erase(engine.eraser(), "kp_ada").await.expect("deleted");
    engine.stop().await;
    assert_eq!(canaries(&everything(store).await), [""; 0], "{}", fresh.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_the_application_are_removed_once_and_whatever_their_names() {
    let store = store_mongo::store().await;
    let users = store.database().expect("connected").collection::<Document>("users");
    let fresh = stores::over(store);
    deleted_user(&*fresh.store, "kp_ada").await;
    let of_ada = doc! { "kindeId": "kp_ada" };
    let read = async || users.find_one(of_ada.clone()).await.expect("the server answers").expect("stored");
    let mut document = read().await;
    for name in ["plain", "a.b", "$price", "a.$b.c"] {
        document.insert(name, CANARY);
    }
    document.insert("nested", doc! { "x.y": CANARY });
    users.delete_one(of_ada.clone()).await.expect("the server answers");
    users.insert_one(document).await.expect("the server accepts such names");
    let (engine, _dir) = opened(&fresh).await;
    let done = engine.eraser().erase(&id("kp_ada"), Mode::Erase, ApplicationFields::Erase).await;
    let done = done.expect("deleted");
    assert_eq!((done.refused, done.application_fields.len()), (None, 5));
    let left = read().await;
    assert!(!left.to_string().contains(CANARY) && left.contains_key("kindeId"), "{left}");

    // A server repeats the erasure.
    users.update_one(of_ada.clone(), doc! { "$set": { "note": "of later" } }).await.expect("accepted");
    engine.stop().await;
    continue_later(&fresh.store, Duration::from_hours(3)).await;
    assert_eq!(read().await.get_str("note").ok(), Some("of later"));
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_the_application_that_a_rule_requires_are_removed_when_it_allows_that() {
    let store = store_mongo::store().await;
    let database = store.database().expect("connected").clone();
    let users = database.collection::<Document>("users");
    let fresh = stores::over(store);
    deleted_user(&*fresh.store, "kp_ada").await;
    let of_ada = doc! { "kindeId": "kp_ada" };
    users.update_one(of_ada.clone(), doc! { "$set": { "plan": CANARY } }).await.expect("accepted");
    let set_rule = async |rule: Document| {
        let command = doc! { "collMod": "users", "validator": rule };
        database.run_command(command).await.expect("the server accepts it");
    };
    set_rule(doc! { "plan": { "$type": "string" } }).await;
    let (engine, _dir) = opened(&fresh).await;
    let done = engine.eraser().erase(&id("kp_ada"), Mode::Erase, ApplicationFields::Erase).await;
    let done = done.expect("deleted");
    assert!(done.refused.is_some() && done.application_fields.is_empty(), "{done:?}");
    engine.stop().await;
    let read = async || users.find_one(of_ada.clone()).await.expect("the server answers").expect("stored");
    assert_eq!(read().await.get_str("plan").ok(), Some(CANARY), "the rule requires it");

    set_rule(doc! {}).await;
    complete_later(&fresh).await;
    let left = read().await;
    assert!(!left.to_string().contains(CANARY), "{left}");
}
