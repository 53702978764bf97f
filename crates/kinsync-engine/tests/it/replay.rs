//! Entries of the log that are applied again.

use kinsync_core::{Micros, UserId, UserState};
use kinsync_engine::{
    Clock,
    internal::{
        replay::{Mode, Replayed, replay, replay_one},
        store::{EventFilter, Store},
    },
};

use crate::{
    pipeline::{deliver, event_entry},
    stores::{Fresh, on_every_store},
};

on_every_store! {
    a_dry_replay_reports_what_a_replay_changes
    a_replay_skips_what_it_cannot_apply
}

async fn all(store: &dyn Store, filter: EventFilter, mode: Mode) -> Replayed {
    let filter = EventFilter { limit: 2, ..filter };
    let mut all = Replayed::default();
    let mut next = Some(filter);
    while let Some(filter) = next {
        let page = replay(store, &filter, mode, Clock::system().now()).await.expect("the store answers");
        all.entries += page.entries;
        all.changed.extend(page.changed);
        all.skipped.extend(page.skipped);
        next = page.next.map(|after| EventFilter { after: Some(after), ..filter });
    }
    all
}

async fn state(store: &dyn Store, user: &str) -> UserState {
    let id = UserId::parse(user).expect("a plain id");
    store.load(&[id]).await.expect("the store answers").pop().flatten().expect("stored").state
}

async fn a_dry_replay_reports_what_a_replay_changes(fresh: Fresh) {
    let store = &*fresh.store;
    let events = vec![
        event_entry("user.created", 1, "e1", r#"{"id":"kp_a","first_name":"Ada"}"#),
        event_entry("user.updated", 2, "e2", r#"{"id":"kp_a","last_name":"Lovelace"}"#),
        event_entry("user.created", 1, "e3", r#"{"id":"kp_b","first_name":"Bob"}"#),
        event_entry("user.deleted", 3, "e4", r#"{"id":"kp_b"}"#),
    ];
    deliver(&fresh, events).await;
    let before = (state(store, "kp_a").await, state(store, "kp_b").await);
    let nothing = all(store, EventFilter::default(), Mode::Apply).await;
    assert_eq!((nothing.entries, nothing.changed.len(), nothing.skipped.len()), (4, 0, 0), "{nothing:?}");

    for user in ["kp_a", "kp_b"] {
        let id = UserId::parse(user).expect("a plain id");
        let mut row = store.load(&[id]).await.expect("the store answers").pop().flatten().expect("stored");
        row.state = UserState::default();
        store.write(&[row]).await.expect("the store answers");
    }
    let of_bob = EventFilter { user: Some("kp_b".into()), ..EventFilter::default() };
    let would = all(store, of_bob.clone(), Mode::Dry).await;
    let id = UserId::parse("kp_b").expect("a plain id");
    assert!(would.changed[&id].contains("deletedAt"), "{would:?}");
    assert_eq!(state(store, "kp_b").await, UserState::default(), "a dry run writes nothing");
    all(store, of_bob, Mode::Apply).await;
    assert_eq!(state(store, "kp_b").await, before.1, "{}", fresh.name);
    assert_eq!(state(store, "kp_a").await, UserState::default(), "not asked for");
    let one = replay_one(store, "e2", Mode::Apply, Micros(i64::MAX)).await.expect("the store answers");
    assert_eq!(one.expect("in the log").changed.len(), 1);
    all(store, EventFilter { since: Some(Micros(0)), ..EventFilter::default() }, Mode::Apply).await;
    assert_eq!(state(store, "kp_a").await, before.0, "{}", fresh.name);
}

async fn a_replay_skips_what_it_cannot_apply(fresh: Fresh) {
    let events = vec![
        event_entry("user.created", 1, "poison", r#"{"first_name":"none"}"#),
        event_entry("user.updated", 4_000_000_000, "future", r#"{"id":"kp_a","first_name":"Future"}"#),
        event_entry("user.created", 1, "e1", r#"{"id":"kp_a","first_name":"Ada"}"#),
    ];
    deliver(&fresh, events).await;
    let replayed = all(&*fresh.store, EventFilter::default(), Mode::Apply).await;
    assert_eq!(replayed.skipped.keys().collect::<Vec<_>>(), ["future", "poison"], "{}", fresh.name);
    assert!(replayed.changed.is_empty(), "{replayed:?}");
}
