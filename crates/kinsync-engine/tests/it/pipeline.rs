//! The whole pipeline on real parts: queue, projector, store.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use kinde::webhook::Scheme;
use kinsync_core::{Field, Micros, Observation, Profile, Source, UserId, Version, What};
use kinsync_engine::{
    Clock, Engine,
    internal::{
        apply::apply,
        breaker, projector,
        queue::{Entry, Payload},
        store::{EventFilter, Store, UserFilter},
    },
};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::{
    histories::{Arrival, Expected, History, deliveries},
    rebuild::assert_explained,
    stores::{self, Fresh, on_every_store},
};

/// Opens an engine on this store, with its queue in this folder.
pub(crate) async fn engine(folder: &Path, store: &Arc<dyn Store>, config: projector::Config) -> Engine {
    let builder = Engine::builder(folder).store(store.clone()).projector(config, breaker::Config::default());
    builder.open().await.expect("the folder opens")
}

/// The number of dead letters in the queue.
pub(crate) async fn dead_letters(engine: &Engine) -> u64 {
    engine.queue().stats().await.expect("the queue is open").dead_letters
}

/// Starts the engine and waits until its queue is empty, and until all users show what is known of organizations and roles.
pub(crate) async fn drain(engine: &Engine) {
    engine.start();
    let empty = async {
        while engine.queue().stats().await.expect("the queue is open").depth > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(10), empty).await.expect("the queue drains within ten minutes");
    until_spread(&**engine.store()).await;
}

/// Waits until no changed organization, role or permission is to be spread.
pub(crate) async fn until_spread(store: &dyn Store) {
    let deadline = Instant::now() + Duration::from_mins(3);
    loop {
        let marked = store.due_states(None, 1).await.expect("the store answers");
        if marked.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "not spread within minutes: {marked:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Opens an engine on this store, enqueues the entries and waits until they are applied.
pub(crate) async fn deliver(fresh: &Fresh, entries: impl IntoIterator<Item = Entry>) -> (Engine, TempDir) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let engine = engine(dir.path(), &fresh.store, projector::Config::default()).await;
    for entry in entries {
        engine.queue().enqueue(entry).await.expect("the queue takes it");
    }
    drain(&engine).await;
    (engine, dir)
}

pub(crate) fn entry(event_id: &str, payload: &str) -> Entry {
    Entry {
        event_id: event_id.into(),
        received_at: Clock::system().now(),
        payload: Payload::Delivery {
            scheme: Scheme::Hmac,
            signed_at: None,
            body: Bytes::copy_from_slice(payload.as_bytes()),
        },
    }
}

pub(crate) fn event_entry(kind: &str, at: i64, event_id: &str, user: &str) -> Entry {
    let time = jiff::Timestamp::from_second(1_700_000_000 + at).expect("in range");
    entry(
        event_id,
        &format!(
            r#"{{"type":"{kind}","event_id":"{event_id}","timestamp":"{time}","data":{{"user":{user}}}}}"#
        ),
    )
}

/// An event about a role, newer than that of a user.
pub(crate) fn role_event(kind: &str, event_id: &str, role: &str) -> Entry {
    let time = jiff::Timestamp::from_second(1_790_000_000).expect("in range");
    let data = format!(r#"{{"role":{role}}}"#);
    entry(
        event_id,
        &format!(r#"{{"type":"{kind}","event_id":"{event_id}","timestamp":"{time}","data":{data}}}"#),
    )
}

async fn user(fresh: &Fresh, id: &str) -> kinsync_core::UserDocument {
    let id = UserId::parse(id).expect("a plain id");
    let row = fresh.store.load(&[id]).await.expect("the store answers").pop().flatten();
    row.expect("the user is stored").document()
}

async fn ten_thousand_histories_end_as_the_join_predicts(fresh: Fresh) {
    const SEED: u64 = 20_261_122;
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut arriving: Vec<Arrival> = Vec::new();
    for n in 0..10_000_u64 {
        arriving.extend(deliveries(History::random(&format!("h{n}"), SEED + n), &mut rng));
    }
    arriving.shuffle(&mut rng);
    let expected = Expected::of(arriving.iter().map(|arrival| &arrival.observation));

    let dir = tempfile::tempdir().expect("a temporary folder");
    let config = projector::Config { batch: 700, ..projector::Config::default() };
    let engine = engine(dir.path(), &fresh.store, config).await;
    let enqueue = async {
        for chunk in arriving.chunks(512) {
            let entries = chunk.iter().map(|arrival| engine.queue().enqueue(arrival.entry.clone()));
            for enqueued in futures_util::future::join_all(entries).await {
                enqueued.expect("the queue takes it");
            }
        }
    };
    enqueue.await;
    drain(&engine).await;
    assert_eq!(dead_letters(&engine).await, 0);
    expected.assert_stored(&*fresh.store, &format!("{} with seed {SEED}", fresh.name)).await;
    assert_explained(&*fresh.store, fresh.name).await;
    let users = fresh.store.counts().await.expect("the store answers");
    assert_eq!(
        users.live_users + users.deleted_users,
        expected.states.len() as u64,
        "no other user is stored"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_histories_converge_on_mongodb() {
    ten_thousand_histories_end_as_the_join_predicts(stores::mongo().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_histories_converge_on_the_embedded_store() {
    ten_thousand_histories_end_as_the_join_predicts(stores::embedded()).await;
}

on_every_store! {
    two_users_that_swap_addresses_converge_in_any_order
    the_second_holder_of_an_address_carries_a_conflict_until_the_first_leaves
    the_older_of_two_users_gets_the_address_in_any_order_of_reads_and_events
    a_delete_that_comes_before_its_create_leaves_a_tombstone
    a_late_update_does_not_resurrect_a_deleted_user
    five_thousand_new_users_at_once_from_two_sources_are_five_thousand_documents
    a_poison_event_is_logged_and_dead_lettered_and_blocks_no_other_event
    events_that_change_no_user_are_kept_in_the_log
    a_burst_for_one_user_costs_one_write
}

async fn two_users_that_swap_addresses_converge_in_any_order(fresh: Fresh) {
    let before = vec![
        event_entry("user.created", 1, "e1", r#"{"id":"kp_a","email":"x@example.com"}"#),
        event_entry("user.created", 2, "e2", r#"{"id":"kp_b","email":"y@example.com"}"#),
    ];
    deliver(&fresh, before).await;
    let swap = vec![
        event_entry("user.updated", 4, "e4", r#"{"id":"kp_b","email":"x@example.com"}"#),
        event_entry("user.updated", 3, "e3", r#"{"id":"kp_a","email":"y@example.com"}"#),
    ];
    deliver(&fresh, swap).await;
    assert_eq!(user(&fresh, "kp_a").await.email.as_deref(), Some("y@example.com"), "{}", fresh.name);
    assert_eq!(user(&fresh, "kp_b").await.email.as_deref(), Some("x@example.com"), "{}", fresh.name);
}

async fn the_second_holder_of_an_address_carries_a_conflict_until_the_first_leaves(fresh: Fresh) {
    let both = vec![
        event_entry("user.created", 2, "e2", r#"{"id":"kp_younger","email":"x@example.com"}"#),
        event_entry("user.created", 1, "e1", r#"{"id":"kp_older","email":"x@example.com"}"#),
    ];
    deliver(&fresh, both).await;
    let younger = user(&fresh, "kp_younger").await;
    assert_eq!(younger.email, None, "{}", fresh.name);
    assert_eq!(younger.email_conflict.and_then(|c| c.held_by).as_deref(), Some("kp_older"), "{}", fresh.name);
    deliver(&fresh, vec![event_entry("user.deleted", 3, "e3", r#"{"id":"kp_older"}"#)]).await;
    let younger = user(&fresh, "kp_younger").await;
    assert_eq!(younger.email.as_deref(), Some("x@example.com"), "{}", fresh.name);
    assert_eq!(younger.email_conflict, None, "{}", fresh.name);
}

async fn the_older_of_two_users_gets_the_address_in_any_order_of_reads_and_events(fresh: Fresh) {
    // The read of the younger one is dated before both were created: by less than its allowance.
    let (older, younger, read) = (Micros(10_000_000), Micros(10_500_000), Micros(9_000_000));
    let observed = |user: &str, profile: Profile| Observation {
        user: UserId::parse(user).expect("a plain id"),
        version: Version::snapshot(read, user),
        source: Source::Reconcile,
        what: What::Fields(profile),
    };
    let address = || Profile::new().with(Field::Email, "x@example.com");
    let observe = async |observation| {
        apply(&*fresh.store, [observation], Clock::system().now()).await.expect("the store answers");
    };
    observe(observed("kp_a_younger", address())).await;
    observe(observed("kp_b_older", address().with(Field::CreatedOn, older))).await;
    assert!(user(&fresh, "kp_a_younger").await.email.is_some(), "{}: known first", fresh.name);
    observe(observed("kp_a_younger", Profile::new().with(Field::CreatedOn, younger))).await;
    assert_eq!(user(&fresh, "kp_a_younger").await.email, None, "{}", fresh.name);
    let shown = user(&fresh, "kp_b_older").await.email;
    assert_eq!(shown.as_deref(), Some("x@example.com"), "{}", fresh.name);
}

async fn a_delete_that_comes_before_its_create_leaves_a_tombstone(fresh: Fresh) {
    deliver(&fresh, vec![event_entry("user.deleted", 5, "e5", r#"{"id":"kp_a"}"#)]).await;
    deliver(&fresh, vec![event_entry("user.created", 1, "e1", r#"{"id":"kp_a","email":"a@example.com"}"#)])
        .await;
    let document = user(&fresh, "kp_a").await;
    assert!(document.is_deleted, "{}", fresh.name);
    assert_eq!(document.email, None, "{}", fresh.name);
}

async fn a_late_update_does_not_resurrect_a_deleted_user(fresh: Fresh) {
    let story = vec![
        event_entry("user.created", 1, "e1", r#"{"id":"kp_a","first_name":"Ada"}"#),
        event_entry("user.deleted", 5, "e5", r#"{"id":"kp_a"}"#),
        event_entry("user.updated", 9, "e9", r#"{"id":"kp_a","first_name":"Grace"}"#),
    ];
    deliver(&fresh, story).await;
    assert!(user(&fresh, "kp_a").await.is_deleted, "{}", fresh.name);
}

async fn five_thousand_new_users_at_once_from_two_sources_are_five_thousand_documents(fresh: Fresh) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let config = projector::Config { batch: 300, ..projector::Config::default() };
    let engine = engine(dir.path(), &fresh.store, config).await;
    let name = |n: usize| format!("kp_{n:05}");
    for n in 0..5_000 {
        let user = format!(r#"{{"id":"{}","email":"{n}@example.com","first_name":"Webhook"}}"#, name(n));
        let entry = event_entry("user.created", 1, &format!("e{n}"), &user);
        engine.queue().enqueue(entry).await.expect("the queue takes it");
    }
    let login = |n: usize| Observation {
        user: UserId::parse(&name(n)).expect("a plain id"),
        version: Version::provisional(),
        source: Source::Login,
        what: What::Fields(Profile::new().with(Field::FirstName, "Token")),
    };
    let logins = (0..10).map(|part| {
        let store = fresh.store.clone();
        async move {
            for n in (part..5_000).step_by(100) {
                let some = (n..5_000.min(n + 100)).step_by(10).map(login);
                apply(&*store, some, Micros(1)).await.expect("the store answers");
            }
        }
    });
    tokio::join!(drain(&engine), futures_util::future::join_all(logins));
    let counts = fresh.store.counts().await.expect("the store answers");
    assert_eq!((counts.live_users, counts.deleted_users), (5_000, 0), "{}", fresh.name);
    let filter = UserFilter { limit: 5_000, ..UserFilter::default() };
    let users = fresh.store.users(&filter).await.expect("the store answers");
    assert_eq!(users.len(), 5_000);
    for row in users {
        assert_eq!(row.document().first_name.as_deref(), Some("Webhook"), "{}: {}", fresh.name, row.id);
    }
}

async fn a_poison_event_is_logged_and_dead_lettered_and_blocks_no_other_event(fresh: Fresh) {
    let entries = vec![
        event_entry("user.created", 1, "e1", r#"{"id":"kp_a","first_name":"Ada"}"#),
        event_entry("user.created", 1, "poison-1", r#"{"first_name":"none"}"#),
        entry("poison-2", "\u{1}not json"),
        event_entry("user.created", 1, "poison-3", r#"{"id":"nul\u0000id"}"#),
        event_entry("user.updated", 4_000_000_000, "poison-4", r#"{"id":"kp_a","first_name":"Future"}"#),
        event_entry("user.created", 1, "e2", r#"{"id":"kp_b","first_name":"Grace"}"#),
    ];
    let (engine, _dir) = deliver(&fresh, entries).await;
    assert_eq!(user(&fresh, "kp_a").await.first_name.as_deref(), Some("Ada"), "{}", fresh.name);
    assert_eq!(user(&fresh, "kp_b").await.first_name.as_deref(), Some("Grace"), "{}", fresh.name);
    let dead = engine.queue().dead_letters(None, 10).await.expect("the queue answers");
    let reasons: Vec<(&str, &str)> = dead.iter().map(|d| (d.event_id.as_str(), d.reason.as_str())).collect();
    assert_eq!(reasons.len(), 4, "{reasons:?}");
    let reason = |id: &str| reasons.iter().find(|(event, _)| *event == id).expect("set aside").1;
    assert!(reason("poison-1").contains("id"), "{reasons:?}");
    assert!(reason("poison-2").contains("JSON"), "{reasons:?}");
    assert!(reason("poison-3").contains("identifier"), "{reasons:?}");
    assert!(reason("poison-4").contains("clock"), "{reasons:?}");
    let logged = fresh.store.events(&EventFilter { limit: 10, ..EventFilter::default() }).await;
    assert_eq!(logged.expect("the store answers").len(), 6, "every verified event is kept");
}

async fn events_that_change_no_user_are_kept_in_the_log(fresh: Fresh) {
    let entries = vec![
        entry(
            "e1",
            r#"{"type":"organization.created","event_id":"e1","data":{"organization":{"code":"org_1","name":"A","handle":null}}}"#,
        ),
        entry("e2", r#"{"type":"something.new","event_id":"e2","data":{"$where":"1","a.b":{"$gt":""}}}"#),
        event_entry("user.authentication_failed", 1, "e3", r#"{"id":"kp_a"}"#),
    ];
    let (engine, _dir) = deliver(&fresh, entries).await;
    assert_eq!(dead_letters(&engine).await, 0, "{}", fresh.name);
    let counts = fresh.store.counts().await.expect("the store answers");
    assert_eq!((counts.events, counts.live_users), (3, 0), "{}", fresh.name);
    let kept = fresh.store.event("e2").await.expect("the store answers").expect("it is kept");
    assert!(kept.payload.contains(r#"{"$gt":""}"#), "as it was sent");
}

async fn a_burst_for_one_user_costs_one_write(fresh: Fresh) {
    let burst = (0..2_000).map(|n| {
        event_entry("user.updated", n, &format!("e{n}"), &format!(r#"{{"id":"kp_a","first_name":"{n}"}}"#))
    });
    let dir = tempfile::tempdir().expect("a temporary folder");
    let config = projector::Config { workers: 1, batch: 2_000, ..projector::Config::default() };
    let engine = engine(dir.path(), &fresh.store, config).await;
    for entry in burst {
        engine.queue().enqueue(entry).await.expect("the queue takes it");
    }
    drain(&engine).await;
    let id = UserId::parse("kp_a").expect("a plain id");
    let row = fresh.store.load(&[id]).await.expect("the store answers").pop().flatten().expect("stored");
    assert_eq!(row.revision, 1, "{}", fresh.name);
    assert_eq!(row.document().first_name.as_deref(), Some("1999"));
}
