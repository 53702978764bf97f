//! Lists of users and of the log: by index only, and page by page while the store changes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use bson::{Document, doc};
use futures_util::TryStreamExt;
use kinsync_core::{Field, Micros, UserState, Version};
use kinsync_engine::internal::store::{
    EventFilter, LogSource, Row, Selection, Store, UserFilter, mongo::MongoStore,
};

use crate::{
    store_indexes::make_former_indexes,
    store_mongo::store,
    store_rows::{event, get, put, row, with},
    stores::{Fresh, on_every_store},
};

on_every_store! {
    every_selection_lists_the_users_that_have_what_it_names
    a_list_continues_while_users_are_added_and_changed
    a_list_of_the_log_continues_after_its_last_entry_is_removed_and_newer_ones_are_added
}

const USERS: usize = 240;

/// A user with a first name of `ada` or `ADA` each third time, and a last name of `Adams` each other time.
fn user(n: usize) -> Row {
    let mut row = row(&format!("kp_{n:05}"), Some(&format!("{}{n}@x.org", ["ada", "ADA", "eve"][n % 3])));
    row = with(row, Field::FirstName, ["Ada", "adA", "Eve"][n % 3]);
    row = with(row, Field::LastName, ["Adams", "Lovelace"][n % 2]);
    row = with(row, Field::Phone, ["ada", "+1202"][n % 2]);
    row = with(row, Field::ProvidedId, if n == 7 { "ada".to_owned() } else { format!("own-{n}") }.as_str());
    row = with(row, Field::IsSuspended, n.is_multiple_of(5));
    row.metadata.updated_at = Micros(i64::try_from(n / 50).unwrap());
    if n.is_multiple_of(4) {
        row.metadata.holds_email = false;
        row.metadata.email_held_by = Some("kp_other".into());
    }
    if n % 2 == 1 {
        let deleted = Some(Version::event(Micros(i64::try_from(n / 90).unwrap()), "deletion"));
        row.state = UserState { deleted, ..row.state };
        row.metadata.holds_email = false;
        row.metadata.email_held_by = None;
    }
    row
}

async fn filled(store: &dyn Store) -> Vec<Row> {
    let rows: Vec<Row> = (0..USERS).map(user).collect();
    let outcomes = store.write(&rows).await.unwrap();
    assert!(
        outcomes.iter().all(|one| *one == kinsync_engine::internal::store::Outcome::Written),
        "{outcomes:?}"
    );
    rows
}

fn begins(row: &Row, field: Field) -> bool {
    row.state.text(field).is_some_and(|text| text.to_lowercase().starts_with("ada"))
}

/// Whether the selection with the text `ada` contains a row, by the definition and not by the code.
fn is_selected(selection: &Selection, row: &Row) -> bool {
    match selection {
        Selection::All | Selection::ChangedSince(_) => true,
        Selection::Email(_) | Selection::WithRefusedKeys => false,
        Selection::EmailPrefix(_) => row.state.is_live() && begins(row, Field::Email),
        Selection::NamePrefix(_) => begins(row, Field::FirstName) || begins(row, Field::LastName),
        Selection::Phone(_) => begins(row, Field::Phone),
        Selection::ProvidedId(_) => row.id.as_str() == "kp_00007",
        Selection::Deleted => !row.state.is_live(),
        Selection::Suspended => row.id.as_str()[3..].parse::<usize>().unwrap() % 5 == 0,
        Selection::InConflict => row.metadata.email_held_by.is_some(),
    }
}

async fn every_selection_lists_the_users_that_have_what_it_names(fresh: Fresh) {
    let rows = filled(&*fresh.store).await;
    for selection in Selection::of_each_kind("ada") {
        for with_deleted in [false, true] {
            let has_deleted = with_deleted || selection == Selection::Deleted;
            let expected = rows.iter().filter(|row| is_selected(&selection, row));
            let expected = expected.filter(|row| has_deleted || row.state.is_live());
            let expected: Vec<String> = expected.map(|row| row.id.to_string()).collect();
            let mut filter = UserFilter { selection: selection.clone(), with_deleted, after: None, limit: 7 };
            let mut listed = Vec::new();
            loop {
                let page = fresh.store.users(&filter).await.unwrap();
                assert!(page.len() <= 7 && filter.has_valid_position());
                filter.after.clone_from(&page.next);
                listed.extend(page.into_iter().map(|row| row.id.to_string()));
                if filter.after.is_none() {
                    break;
                }
            }
            let once = listed.iter().collect::<BTreeSet<_>>().len();
            assert_eq!(once, listed.len(), "{selection:?} lists a user twice: {listed:?}");
            listed.sort();
            assert_eq!(listed, expected, "{selection:?}, with deleted: {with_deleted}");
        }
    }
    for (n, email, found) in [(6, " ADA6@x.org", 1), (4, "ada4@X.org", 1), (4, "ada4@x.or", 0)] {
        let filter =
            UserFilter { selection: Selection::Email(email.into()), limit: 9, ..UserFilter::default() };
        let listed = fresh.store.users(&filter).await.unwrap();
        assert_eq!(listed.len(), found, "{email}");
        assert!(listed.iter().all(|row| row.id == rows[n].id));
    }
}

async fn a_list_continues_while_users_are_added_and_changed(fresh: Fresh) {
    let rows = filled(&*fresh.store).await;
    let mut added = USERS;
    for selection in Selection::of_each_kind("ada") {
        let mut filter =
            UserFilter { selection: selection.clone(), with_deleted: true, after: None, limit: 7 };
        let mut listed: Vec<String> = Vec::new();
        loop {
            let page = fresh.store.users(&filter).await.unwrap();
            // The last user of the page loses its value, another gets a picture, and one is added before and one behind.
            if let Some(last) = page.last() {
                let mut last = last.clone();
                last.state.deleted = None;
                last.metadata.updated_at = Micros(1000);
                last.state = UserState { fields: std::collections::BTreeMap::new(), ..last.state };
                last.metadata.holds_email = false;
                last.metadata.email_held_by = None;
                put(&*fresh.store, &last).await;
            }
            let stays = get(&*fresh.store, "kp_00000").await.unwrap();
            put(&*fresh.store, &with(stays, Field::Picture, "p")).await;
            let mut new = user(added);
            new.metadata.holds_email = false;
            put(&*fresh.store, &Row { id: crate::store_rows::id(&format!("kp_000{added}")), ..new }).await;
            added += 12;
            filter.after.clone_from(&page.next);
            listed.extend(page.into_iter().map(|row| row.id.to_string()));
            if filter.after.is_none() {
                break;
            }
        }
        let before: BTreeSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
        let of_before: Vec<&String> = listed.iter().filter(|id| before.contains(id.as_str())).collect();
        let expected = rows.iter().filter(|row| is_selected(&selection, row)).count();
        if matches!(selection, Selection::ChangedSince(_)) {
            // Users that a change moved behind the position are listed again, with the new state.
            let once: BTreeSet<&&String> = of_before.iter().collect();
            assert_eq!(once.len(), expected, "{selection:?}");
        } else {
            assert_eq!(of_before.len(), expected, "{selection:?}: {of_before:?}");
        }
        // As before, for the next selection.
        let ids: Vec<_> = rows.iter().map(|row| row.id.clone()).collect();
        let stored = fresh.store.load_to_write(&ids).await.unwrap();
        let restored = rows.iter().zip(stored).map(|(row, stored)| Row {
            state: row.state.clone(),
            metadata: row.metadata.clone(),
            ..stored
        });
        fresh.store.write(&restored.collect::<Vec<_>>()).await.unwrap();
    }
}

async fn a_list_of_the_log_continues_after_its_last_entry_is_removed_and_newer_ones_are_added(fresh: Fresh) {
    let entries: Vec<_> =
        (0..40).map(|n| event(&format!("event_{n:02}"), Some("kp_a"), 100 + n / 8)).collect();
    fresh.store.log(&entries).await.unwrap();
    let mut filter = EventFilter { user: Some("kp_a".into()), limit: 6, ..EventFilter::default() };
    let mut listed = Vec::new();
    loop {
        let page = fresh.store.events(&filter).await.unwrap();
        filter.after.clone_from(&page.next);
        listed.extend(page.into_iter().map(|entry| entry.id));
        let n = listed.len();
        // Newer ones, and one between the entries of the pages before.
        let newer = [
            event(&format!("newer_{n}"), Some("kp_a"), 200),
            event(&format!("event_38_{n}"), Some("kp_a"), 104),
        ];
        fresh.store.log(&newer).await.unwrap();
        if filter.after.is_none() {
            break;
        }
    }
    let expected: Vec<String> = entries.iter().rev().map(|entry| entry.id.clone()).collect();
    assert_eq!(listed, expected);
}

/// The queries that MongoDB ran on this collection, with their plans, since the profile was switched on.
async fn profiled(store: &MongoStore, collection: &str) -> Vec<Document> {
    let database = store.database().unwrap();
    database.run_command(doc! { "profile": 0 }).await.unwrap();
    let profile = database.collection::<Document>("system.profile");
    let query = doc! { "ns": format!("{}.{collection}", database.name()), "op": "query" };
    let found = profile.find(query).await.unwrap().try_collect().await.unwrap();
    profile.drop().await.unwrap();
    found
}

async fn profile(store: &MongoStore) {
    store.database().unwrap().run_command(doc! { "profile": 2 }).await.unwrap();
}

/// Fails unless an index answered the query in its order, with few keys for each document.
fn assert_by_index(what: &str, queries: &[Document]) {
    assert!(!queries.is_empty(), "{what}: no query");
    for query in queries {
        let plan = query.get_str("planSummary").unwrap();
        assert!(plan.starts_with("IXSCAN") && !plan.contains("COLLSCAN"), "{what}: {plan}");
        assert!(!query.get_bool("hasSortStage").unwrap_or_default(), "{what} sorts in memory: {query}");
        let [keys, documents, returned] =
            ["keysExamined", "docsExamined", "nreturned"].map(|key| query.get_i32(key).unwrap());
        assert!(
            keys <= 2 * returned + 4 && documents <= returned + 1,
            "{what}: {keys} keys of {returned}: {query}"
        );
    }
}

#[tokio::test]
async fn mongodb_answers_every_list_of_users_by_an_index_in_its_order() {
    let store = store().await;
    // A process of an earlier version may run too.
    make_former_indexes(&store).await;
    let mut rows = filled(&store).await;
    // Most users are deleted, and most are not what a filter names.
    let others = (0..2000).map(|n| {
        let mut other = user(2 * n + 1);
        other.id = crate::store_rows::id(&format!("kp_x{n}"));
        other.state.fields.remove(&Field::Email);
        with(with(other, Field::FirstName, "Zoë"), Field::Phone, "none")
    });
    rows.extend(others.map(|other| with(with(other, Field::LastName, "Zoë"), Field::ProvidedId, "none")));
    store.write(&rows[USERS..]).await.unwrap();
    for selection in Selection::of_each_kind("ada") {
        for with_deleted in [false, true] {
            let first = UserFilter { selection: selection.clone(), with_deleted, after: None, limit: 10 };
            profile(&store).await;
            let page = store.users(&first).await.unwrap();
            let second = UserFilter { after: page.next, ..first };
            store.users(&second).await.unwrap();
            assert_by_index(&format!("{second:?}"), &profiled(&store, "users").await);
        }
    }
}

#[tokio::test]
async fn mongodb_answers_every_list_of_the_log_by_an_index_in_its_order() {
    let store = store().await;
    let entries = (0..3000).map(|n| {
        let mut entry =
            event(&format!("event_{n}"), Some(["kp_a", "kp_b"][usize::from(n % 100 == 0)]), n / 50);
        entry.kind = ["user.updated", "user.deleted"][usize::from(n % 100 < 2)].into();
        entry.source = [LogSource::Webhook, LogSource::Reconcile][usize::from(n % 90 == 0)];
        entry
    });
    store.log(&entries.collect::<Vec<_>>()).await.unwrap();
    // Names every part of the filter, so that a new one does not compile without a place here.
    let EventFilter {
        id: _,
        user: _,
        without_user: _,
        kind: _,
        source: _,
        since: _,
        until: _,
        after: _,
        limit,
    } = EventFilter { limit: 9, ..EventFilter::default() };
    let all = EventFilter { limit, ..EventFilter::default() };
    let of = [
        all.clone(),
        EventFilter { user: Some("kp_b".into()), ..all.clone() },
        EventFilter { kind: Some("user.deleted".into()), ..all.clone() },
        EventFilter { source: Some(LogSource::Webhook), ..all.clone() },
        EventFilter { source: Some(LogSource::Reconcile), ..all.clone() },
        EventFilter { user: Some("kp_b".into()), kind: Some("user.deleted".into()), ..all },
    ];
    let between =
        |one: &EventFilter| EventFilter { since: Some(Micros(10)), until: Some(Micros(40)), ..one.clone() };
    for first in of.iter().flat_map(|one| [one.clone(), between(one)]) {
        profile(&store).await;
        let page = store.events(&first).await.unwrap();
        assert!(!page.is_empty() && page.next.is_some(), "{first:?}");
        let second = EventFilter { after: page.next, ..first };
        store.events(&second).await.unwrap();
        assert_by_index(&format!("{second:?}"), &profiled(&store, "user_events").await);
    }
}
