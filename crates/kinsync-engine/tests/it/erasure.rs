//! Nothing of an erased user is stored any more, and nothing brings it back.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bson::{Document, doc};
use kinsync_core::{Field, Micros, Observation, Profile, Source, UserId, Version, What};
use kinsync_engine::{
    Clock, Engine,
    internal::{
        apply::apply,
        audit::{AuditLog, Kind, Record},
        erasure::{ApplicationFields, Eraser, Error, Mode, Report},
        explain::explain,
        log_entry::{LogEntry, LogSource, kind},
        log_snapshots, projector,
        rebuild::Mode as RebuildMode,
        replay,
        retention::{Retention, Rules},
        sighting::Sighting,
        store::{EventFilter, Store},
    },
};
use serde_json::json;

use crate::{
    erasure_records::continue_later,
    faulty::{Fault, FaultyStore},
    pipeline::{deliver, drain, engine, event_entry},
    rebuild::{assert_explained, rebuild},
    store_mongo,
    stores::{self, Fresh, on_every_store},
};

on_every_store! {
    an_erasure_removes_every_trace_and_repeats_nothing
    an_erasure_that_ends_at_any_step_is_completed_by_the_next_one
    nothing_that_arrives_later_is_stored_of_an_erased_user
    what_was_read_before_an_erasure_and_logged_after_it_is_erased
    a_user_that_is_not_deleted_is_refused
    a_restart_drops_the_dead_letters_of_erased_users_alone
    what_retention_logs_after_an_erasure_is_erased
    users_are_erased_some_time_after_their_deletion
}

/// In every value of the user, and nowhere else.
pub(crate) const CANARY: &str = "canary7391";

pub(crate) fn id(user: &str) -> UserId {
    UserId::parse(user).expect("a plain id")
}

pub(crate) fn personal(user: &str, version: Version, source: Source) -> Observation {
    let profile = Profile::new()
        .with(Field::Email, format!("{CANARY}.{user}@example.com").as_str())
        .with(Field::FirstName, format!("{CANARY} {source}").as_str());
    Observation { user: id(user), version, source, what: What::Fields(profile) }
}

pub(crate) async fn observe(store: &dyn Store, one: Observation) {
    let applied = apply(store, [one], Clock::system().now()).await.expect("the store answers");
    assert!(applied.failed.is_empty() && applied.refused.is_empty(), "{applied:?}");
}

fn deletion(user: &str) -> Observation {
    let version = Version::event(Micros(1_790_000_000_000_000), "gone");
    Observation { user: id(user), version, source: Source::Webhook, what: What::Deleted }
}

/// A deleted user with observations of every source.
pub(crate) async fn deleted_user(store: &dyn Store, user: &str) {
    observe(store, personal(user, Version::provisional(), Source::Login)).await;
    observe(store, personal(user, Version::event(Micros(1), "e"), Source::Webhook)).await;
    observe(store, personal(user, Version::snapshot(Micros(2), "h"), Source::Profile)).await;
    observe(store, personal(user, Version::snapshot(Micros(3), "h"), Source::Reconcile)).await;
    let named = json!({ "who": format!("{CANARY}.{user}@EXAMPLE.com"), "note": CANARY });
    let other = LogEntry::action(kind::OPERATOR, None, LogSource::Operator, &named, Micros(4));
    store.log(&[other]).await.expect("the store answers");
    for kind in [Kind::Read, Kind::Action] {
        let record = Record::new(kind, Micros(5), ("operator".into(), "local".into()));
        let parameters = json!({ "email": format!("{CANARY}.{user}@example.com") });
        let parameters = parameters.as_object().expect("an object").clone();
        let record = record.of(format!("of {user}"), parameters);
        AuditLog::default().add(store, &record).await.expect("the store answers");
    }
    observe(store, deletion(user)).await;
}

/// Everything that the store contains, as text.
pub(crate) async fn everything(store: &dyn Store) -> String {
    let mut texts = Vec::new();
    let filter = EventFilter { limit: 100_000, ..EventFilter::default() };
    let page = store.events(&filter).await.expect("the store answers");
    texts.extend(page.items.iter().map(|entry| format!("{entry:?}")));
    let ids = store.ids(None, 100_000).await.expect("the store answers");
    for row in store.load(&ids).await.expect("the store answers").into_iter().flatten() {
        texts.push(format!("{row:?} {:?}", row.document()));
    }
    let states = store.list_states("", None, 100_000).await.expect("the store answers");
    texts.extend(states.iter().map(|(key, saved)| format!("{key} {}", saved.value)));
    texts.join("\n")
}

pub(crate) fn canaries(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.contains(CANARY)).collect()
}

pub(crate) async fn opened(fresh: &Fresh) -> (Engine, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    (engine(dir.path(), &fresh.store, projector::Config::default()).await, dir)
}

pub(crate) async fn erase(eraser: &Eraser, user: &str) -> Result<Report, Error> {
    eraser.erase(&id(user), Mode::Erase, ApplicationFields::Keep).await
}

async fn an_erasure_removes_every_trace_and_repeats_nothing(fresh: Fresh) {
    let store = &*fresh.store;
    let (engine, _dir) = opened(&fresh).await;
    deleted_user(store, "kp_ada").await;
    let far =
        event_entry("user.updated", 4_000_000_000, "far", r#"{"id":"kp_ada","first_name":"canary7391"}"#);
    engine.queue().enqueue(far).await.expect("the queue takes it");
    drain(&engine).await;
    let waiting = event_entry("user.updated", 1, "waiting", r#"{"id":"kp_ada","first_name":"canary7391"}"#);
    let other =
        event_entry("user.updated", 1, "other", r#"{"id":"kp_bob","email":"canary7391.kp_ada@example.com"}"#);
    assert!(canaries(&everything(store).await).len() > 8, "the search finds what is there");
    let dry =
        engine.eraser().erase(&id("kp_ada"), Mode::Dry, ApplicationFields::Keep).await.expect("deleted");
    assert!(canaries(&everything(store).await).len() > 8, "a dry run erases nothing");
    let done = erase(engine.eraser(), "kp_ada").await.expect("deleted");
    assert_eq!(dry, done, "{}", fresh.name);
    assert_eq!((done.dead_letters, done.other_entries, done.audit_records), (1, 2, 2), "{done:?}");
    assert!(done.entries >= 5 && done.fields.contains("email") && !done.was_erased, "{done:?}");
    let rest = everything(store).await;
    assert_eq!(canaries(&rest), [""; 0], "{}", fresh.name);
    assert!(rest.contains("sha256") && rest.contains("kinsync.login"), "type and hash remain");

    let again = erase(engine.eraser(), "kp_ada").await.expect("deleted");
    assert_eq!((again.was_erased, again.entries, again.audit_records), (true, 0, 0), "{again:?}");
    engine.queue().enqueue(other).await.expect("the queue takes it");
    engine.queue().enqueue(waiting).await.expect("the queue takes it");
    drain_started(&engine).await;
    let bob = store.load(&[id("kp_bob")]).await.expect("the store answers").pop().flatten().expect("stored");
    assert_eq!(bob.document().email.as_deref(), Some("canary7391.kp_ada@example.com"), "the address is free");
    engine.stop().await;
}

async fn drain_started(engine: &Engine) {
    let empty = async {
        while engine.queue().stats().await.expect("the queue is open").depth > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(3), empty).await.expect("the queue drains within minutes");
}

/// Polls a future this often at most, and drops it. Returns whether it has ended.
pub(crate) async fn interrupted(work: impl Future, polls: usize) -> bool {
    let (mut work, mut left) = (pin!(work), polls);
    poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        work.as_mut().poll(context).map(|_| true)
    })
    .await
}

async fn an_erasure_that_ends_at_any_step_is_completed_by_the_next_one(fresh: Fresh) {
    let store = &*fresh.store;
    let (engine, _dir) = opened(&fresh).await;
    let (mut steps, mut polls) = (0, 1);
    loop {
        let user = format!("kp_{polls}");
        deleted_user(store, &user).await;
        let is_done = interrupted(erase(engine.eraser(), &user), polls).await;
        erase(engine.eraser(), &user).await.expect("deleted");
        assert_eq!(canaries(&everything(store).await), [""; 0], "{}: after {polls} polls", fresh.name);
        steps += 1;
        if is_done {
            break;
        }
        polls += 1 + polls / 10;
    }
    assert!(steps > 15, "{}: {steps} steps", fresh.name);
    assert_explained(store, fresh.name).await;
}

async fn nothing_that_arrives_later_is_stored_of_an_erased_user(fresh: Fresh) {
    let store = &*fresh.store;
    let user = "kp_ada";
    {
        let (engine, _dir) = opened(&fresh).await;
        deleted_user(store, user).await;
        erase(engine.eraser(), user).await.expect("deleted");
        // While the erasure is in progress, what is about the user is removed from the queue.
        continue_later(&fresh.store, Duration::from_hours(3)).await;
    }
    let state = async || {
        store.load(&[id(user)]).await.expect("the store answers").pop().flatten().expect("stored").state
    };
    let erased = state().await;
    assert!(erased.erased.is_some() && !erased.is_live() && !erased.needs_check(), "{erased:?}");

    let exists = Observation {
        what: What::Exists(Profile::new().with(Field::FirstName, CANARY)),
        ..personal(user, Version::snapshot(Micros(1_794_500_000_000_000), "h"), Source::Reconcile)
    };
    observe(store, exists).await;
    observe(store, personal(user, Version::snapshot(Micros(1_794_500_000_000_001), "h"), Source::Reconcile))
        .await;
    observe(store, personal(user, Version::provisional(), Source::Login)).await;
    let profile = Profile::new().with(Field::Email, format!("{CANARY}@example.com").as_str());
    let sighting = Sighting { user: id(user), profile, seen_at: Clock::system().now() };
    let far = r#"{"id":"kp_ada","first_name":"canary7391"}"#;
    let entries = vec![
        event_entry("user.updated", 94_000_000, "late", r#"{"id":"kp_ada","first_name":"canary7391"}"#),
        event_entry("user.deleted", 94_000_001, "again", r#"{"id":"kp_ada"}"#),
        event_entry("user.updated", 4_000_000_000, "far", far),
        event_entry("user.updated", 1, "broken", r#"{"id":"kp_ada","first_name":{"canary7391":1}}"#),
        sighting.entry(),
    ];
    let (engine, _dir) = deliver(&fresh, entries).await;
    assert_eq!(engine.queue().stats().await.expect("open").dead_letters, 0, "none becomes a dead letter");
    engine.stop().await;
    assert_eq!(canaries(&everything(store).await), [""; 0], "{}", fresh.name);
    assert_eq!(state().await, erased, "{}", fresh.name);

    let all = EventFilter { user: Some(user.into()), limit: 1000, ..EventFilter::default() };
    let replayed = replay::replay(store, &all, replay::Mode::Apply, Clock::system().now()).await;
    assert!(replayed.expect("the store answers").changed.is_empty());
    log_snapshots::complete(store, &Clock::system()).await.expect("the store answers");
    assert_explained(store, fresh.name).await;
    let rebuilt = rebuild(store, RebuildMode::ReplaceUnexplained).await;
    assert_eq!(rebuilt.differences, [], "{}", fresh.name);
    assert_eq!(state().await, erased, "{}", fresh.name);

    let row = store.load(&[id(user)]).await.expect("the store answers").pop().flatten();
    let entries = store.events(&all).await.expect("the store answers");
    let explained = explain(row.as_ref(), &entries);
    let outcome = |kind: &str| explained.iter().find(|one| one.kind == kind).map(|one| one.outcome.as_str());
    assert_eq!(outcome(kind::ERASURE), Some("the user was erased; nothing restores it"));
    assert_eq!(outcome("user.updated"), Some("the content was erased"));
}

async fn what_was_read_before_an_erasure_and_logged_after_it_is_erased(fresh: Fresh) {
    let (engine, _dir) = opened(&fresh).await;
    deleted_user(&*fresh.store, "kp_ada").await;
    let eraser = engine.eraser().clone();
    // A process has loaded the row, and logs its observation after the erasure.
    let fault = Fault::after_first_read(async move {
        erase(&eraser, "kp_ada").await.expect("deleted");
    });
    let slow = FaultyStore { store: Arc::clone(&fresh.store), fault };
    let late = personal("kp_ada", Version::snapshot(Micros(1_700_000_000_000_000), "h"), Source::Reconcile);
    observe(&slow, late).await;
    assert_eq!(canaries(&everything(&*fresh.store).await), [""; 0], "{}", fresh.name);
    assert_explained(&*fresh.store, fresh.name).await;
}

async fn what_retention_logs_after_an_erasure_is_erased(fresh: Fresh) {
    let (engine, _dir) = opened(&fresh).await;
    deleted_user(&*fresh.store, "kp_ada").await;
    let eraser = engine.eraser().clone();
    // The entries are read before the erasure, and their join is logged after it.
    let fault = Fault::after_first_read(async move {
        erase(&eraser, "kp_ada").await.expect("deleted");
    });
    let slow: Arc<dyn Store> = Arc::new(FaultyStore { store: Arc::clone(&fresh.store), fault });
    let week = Duration::from_hours(7 * 24);
    let rules = Rules { others: Some(week), ..Rules::default() };
    let later = Clock::from_fn(|| Micros(Clock::system().now().0 + 30 * 86_400_000_000));
    Retention::new(slow, later, rules).round().await.expect("the store answers");
    assert_eq!(canaries(&everything(&*fresh.store).await), [""; 0], "{}", fresh.name);
    assert_explained(&*fresh.store, fresh.name).await;
}

async fn a_restart_drops_the_dead_letters_of_erased_users_alone(fresh: Fresh) {
    let (running, _dir) = opened(&fresh).await;
    deleted_user(&*fresh.store, "kp_ada").await;
    // A process that does not run during the erasure has dead letters: their time has not come.
    let other = tempfile::tempdir().expect("a temporary folder");
    let stopped = engine(other.path(), &fresh.store, projector::Config::default()).await;
    let far = |event: &str, user: &str| event_entry("user.updated", 4_000_000_000, event, user);
    for entry in [
        // Before the other one, which is dropped later.
        far("of_bob", r#"{"id":"kp_bob","invited_by":"kp_ada"}"#),
        far("of_ada", r#"{"id":"kp_ada","first_name":"canary7391"}"#),
    ] {
        stopped.queue().enqueue(entry).await.expect("the queue takes it");
    }
    drain(&stopped).await;
    stopped.stop().await;
    erase(running.eraser(), "kp_ada").await.expect("deleted");
    continue_later(&fresh.store, Duration::from_hours(3)).await;
    let started = engine(other.path(), &fresh.store, projector::Config::default()).await;
    started.start();
    let letters = async || {
        let letters = started.queue().dead_letters(None, 10).await.expect("the queue is open");
        letters.into_iter().map(|letter| letter.event_id).collect::<Vec<_>>()
    };
    let dropped = async {
        while letters().await.contains(&"of_ada".to_owned()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_mins(3), dropped).await.expect("it is dropped within minutes");
    assert_eq!(letters().await, ["of_bob"], "{}", fresh.name);
    started.stop().await;
}

async fn a_user_that_is_not_deleted_is_refused(fresh: Fresh) {
    let (engine, _dir) = opened(&fresh).await;
    observe(&*fresh.store, personal("kp_ada", Version::event(Micros(1), "e"), Source::Webhook)).await;
    let before = everything(&*fresh.store).await;
    for user in ["kp_ada", "kp_unknown"] {
        let refused = erase(engine.eraser(), user).await;
        assert!(matches!(refused, Err(Error::NotDeleted { .. })), "{refused:?}");
    }
    assert_eq!(everything(&*fresh.store).await, before, "nothing was changed");
}

async fn users_are_erased_some_time_after_their_deletion(fresh: Fresh) {
    let store = &*fresh.store;
    for n in 0..230 {
        let user = format!("kp_old{n:03}");
        observe(store, personal(&user, Version::event(Micros(1), "e"), Source::Webhook)).await;
        let gone = Version::event(Micros(1_700_000_000_000_000), "gone");
        observe(store, Observation { version: gone, ..deletion(&user) }).await;
    }
    observe(store, personal("kp_live", Version::event(Micros(1), "e"), Source::Webhook)).await;
    let now = Clock::system().now();
    let recent = Version::event(Micros(now.0 - 60_000_000), "recently");
    observe(store, personal("kp_recent", Version::event(Micros(1), "e"), Source::Webhook)).await;
    observe(store, Observation { version: recent, ..deletion("kp_recent") }).await;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let builder = Engine::builder(dir.path()).store(Arc::clone(&fresh.store));
    let engine = builder.erase_deleted_after(Some(Duration::from_hours(24))).open().await.expect("opens");
    engine.start();
    let erased = async {
        while !canaries(&everything(store).await)
            .iter()
            .all(|line| line.contains("kp_live") || line.contains("kp_recent"))
        {
            // A look reads everything.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(10), erased).await.expect("erased within minutes");
    let is_pending =
        async || !store.list_states("erasing/", None, 1).await.expect("the store answers").is_empty();
    let settled = async {
        while is_pending().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(3), settled).await.expect("no record is left");
    engine.stop().await;
    for user in ["kp_live", "kp_recent"] {
        let row = store.load(&[id(user)]).await.expect("the store answers").pop().flatten().expect("stored");
        assert!(row.state.text(Field::FirstName).is_some(), "{user} stays");
    }
    assert_explained(store, fresh.name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_entry_of_an_erased_user_loses_its_content() {
    let store = store_mongo::store().await;
    let events = store.database().expect("connected").collection::<Document>("user_events");
    let fresh = stores::over(store);
    deleted_user(&*fresh.store, "kp_ada").await;
    let filter = EventFilter { user: Some("kp_ada".into()), limit: 1000, ..EventFilter::default() };
    let entry = fresh.store.events(&filter).await.expect("the store answers").items.pop().expect("an entry");
    let damage = doc! { "$set": { "payload": format!("{{\"half\":\"{CANARY}") } };
    events.update_one(doc! { "_id": &entry.id }, damage).await.expect("the server answers");
    let page = fresh.store.events(&filter).await.expect("the store answers");
    assert_eq!(page.undecodable, std::slice::from_ref(&entry.id));
    let (engine, _dir) = opened(&fresh).await;
    erase(engine.eraser(), "kp_ada").await.expect("deleted");
    let stored =
        events.find_one(doc! { "_id": &entry.id }).await.expect("the server answers").expect("stays");
    assert!(!stored.to_string().contains(CANARY), "{stored}");
    assert_explained(&*fresh.store, fresh.name).await;
}
