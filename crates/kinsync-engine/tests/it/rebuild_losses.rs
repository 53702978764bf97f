//! A rebuild revives no deleted user, creates none that never existed, and loses no value silently.

use bson::{Document, doc};
use kinsync_core::{Field, Micros, Observation, Profile, Source, UserId, Version, What};
use kinsync_engine::{
    Clock,
    internal::{
        apply::apply,
        rebuild::{Finding, Mode},
        store::{Row, Store},
    },
};

use crate::{
    rebuild::{assert_explained, rebuild},
    store_mongo,
};

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
