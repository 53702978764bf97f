//! A rebuild revives no deleted user, creates none that never existed, and loses no value silently.

use bson::{Document, doc};
use kinsync_core::{Field, Micros, Observation, Profile, Source, UserId, UserState, Version, What};
use kinsync_engine::{
    Clock,
    internal::{
        apply::apply,
        log_entry::{LogSource, kind},
        rebuild::{Finding, Mode},
        store::{LogEntry, Row, Store},
    },
};
use serde_json::json;

use crate::{
    pipeline::{deliver, event_entry},
    rebuild::{assert_explained, rebuild},
    store_mongo,
    stores::{Fresh, on_every_store},
};

on_every_store! {
    entries_that_observe_nothing_create_no_user
}

fn id(user: &str) -> UserId {
    UserId::parse(user).expect("a plain id")
}

fn read(user: &str, at: i64, what: What) -> Observation {
    Observation {
        user: id(user),
        version: Version::snapshot(Micros(at), format!("h{at}")),
        source: Source::Reconcile,
        what,
    }
}

async fn observe(store: &dyn Store, observation: Observation) {
    apply(store, [observation], Clock::system().now()).await.expect("the store answers");
}

async fn row(store: &dyn Store, user: &str) -> Row {
    store.load(&[id(user)]).await.expect("the store answers").pop().flatten().expect("stored")
}

#[tokio::test]
async fn a_deleted_user_stays_deleted_after_the_document_and_the_entry_are_lost() {
    let store = store_mongo::store().await;
    let named = What::Exists(Profile::new().with(Field::FirstName, "Ada"));
    observe(&store, read("kp_dead", 1, named)).await;
    observe(&store, read("kp_dead", 2, What::Deleted)).await;
    store_mongo::users(&store).delete_many(doc! {}).await.expect("it answers");
    let events = store.database().expect("connected").collection::<Document>("user_events");
    let deletion = doc! { "kinsync.version.at": 2_i64 };
    assert_eq!(events.delete_one(deletion).await.expect("it answers").deleted_count, 1);
    let found = rebuild(&store, Mode::Replace).await;
    assert_eq!((found.report.rebuilt, found.differences[0].finding), (1, Finding::Missing), "{found:?}");
    let state = row(&store, "kp_dead").await.state;
    assert!(!state.is_live(), "{state:?}");
    assert_eq!(state.text(Field::FirstName), Some("Ada"));
    assert_explained(&store, "the deletion is in the log again").await;
}

async fn entries_that_observe_nothing_create_no_user(fresh: Fresh) {
    let store = &*fresh.store;
    let events = [
        event_entry("user.authentication_failed", 1, "e1", r#"{"id":"kp_a"}"#),
        event_entry("user.created", 4_000_000_000, "e2", r#"{"id":"kp_b","first_name":"Future"}"#),
        event_entry("user.updated", 1, "e3", r#"{"id":"kp_c","first_name":7}"#),
    ];
    deliver(&fresh, events).await;
    let action =
        LogEntry::action(kind::OPERATOR, Some(&id("kp_d")), LogSource::Operator, &json!({}), Micros(1));
    store.log(&[action]).await.expect("the store answers");
    // A token without claims.
    let login = Observation {
        version: Version::provisional(),
        source: Source::Login,
        ..read("kp_e", 1, What::Fields(Profile::new()))
    };
    observe(store, login).await;
    let found = rebuild(store, Mode::Replace).await;
    assert_eq!(found.differences, [], "{}", fresh.name);
    assert_eq!((found.report.users, found.report.entries), (1, 5), "{}", fresh.name);
    let users = store.ids(None, 9).await.expect("the store answers");
    assert_eq!(users, [id("kp_e")], "{}", fresh.name);
    assert_eq!(row(store, "kp_e").await.state, UserState::default());
}
