//! The contract of every store, tested on its real server or file.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, atomic::AtomicU64, atomic::Ordering};

use kinsync_core::{Entry, Field, Micros, Value};
use kinsync_engine::internal::store::{
    Counts, EventFilter, Holder, Outcome, Row, Selection, Store, UserFilter,
};
use proptest::test_runner::{Config, TestRunner};

use crate::store_rows::{
    HOSTILE, any_row, event, get, holder, id, outcome, put, row, stored, tombstone, with,
};

pub(crate) type Shared = Arc<dyn Store>;

macro_rules! conformance {
    ($($promise:ident)*) => {
        mod mongo {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $promise() {
                super::$promise(std::sync::Arc::new(crate::store_mongo::store().await)).await;
            })*
        }
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $promise() {
                let folder = tempfile::tempdir().unwrap();
                let store = kinsync_engine::internal::store::embedded::EmbeddedStore::open(folder.path()).unwrap();
                super::$promise(std::sync::Arc::new(store)).await;
            })*
        }
    };
}
pub(crate) use conformance;

conformance! {
    a_row_comes_back_as_it_was_written
    rows_are_returned_in_the_order_of_the_request
    any_row_survives_an_insert_and_an_update
    a_write_over_a_concurrent_write_is_stale
    of_many_concurrent_inserts_of_one_user_one_succeeds
    of_many_increments_none_is_lost
    the_same_user_twice_in_one_batch_is_written_once
    an_address_that_is_shown_is_taken
    an_address_is_taken_for_updates_too
    a_tombstone_does_not_take_an_address
    claimants_are_all_live_users_with_the_address
    rows_with_pending_emails_are_found_until_they_are_resolved
    hostile_texts_are_stored_as_they_are
    an_event_is_logged_once
    events_are_listed_by_page_newest_first
    users_are_listed_by_page_and_filter
    ids_are_listed_by_page_with_the_deleted_ones
    users_are_listed_by_what_they_refer_to
    users_and_events_are_counted
    live_members_are_counted
    a_large_batch_is_written_and_read
}

async fn a_row_comes_back_as_it_was_written(store: Shared) {
    store.ping().await.unwrap();
    assert_eq!(get(&*store, "kp_ada").await, None);
    let ada = put(&*store, &row("kp_ada", Some("ada@example.com"))).await;
    assert_eq!(get(&*store, "kp_ada").await, Some(ada.clone()));
    let mut seen = ada;
    seen.state.last_seen = Some(Micros(7_777_777));
    let seen = put(&*store, &seen).await;
    assert_eq!(get(&*store, "kp_ada").await, Some(seen.clone()));
    assert_eq!(seen.revision, 2);
    assert_eq!(holder(&*store, "ada@example.com").await, Some(Holder::User(id("kp_ada"))));
    assert_eq!(holder(&*store, "eve@example.com").await, None);
}

async fn rows_are_returned_in_the_order_of_the_request(store: Shared) {
    let rows = [row("kp_c", None), row("kp_a", None), row("kp_b", None)];
    assert_eq!(store.write(&rows).await.unwrap(), vec![Outcome::Written; 3]);
    let requested = [id("kp_b"), id("kp_none"), id("kp_c"), id("kp_b"), id("kp_a")];
    let found = store.load(&requested).await.unwrap();
    let found: Vec<_> = found.iter().map(|row| row.as_ref().map(|row| row.id.as_str())).collect();
    assert_eq!(found, [Some("kp_b"), None, Some("kp_c"), Some("kp_b"), Some("kp_a")]);
    assert_eq!(store.load(&[]).await.unwrap(), []);
    assert_eq!(store.write(&[]).await.unwrap(), []);
}

async fn any_row_survives_an_insert_and_an_update(store: Shared) {
    let runtime = tokio::runtime::Handle::current();
    let count = AtomicU64::new(0);
    let property = move || {
        let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
        let proved = TestRunner::new(config).run(&(any_row(), any_row()), |(first, second)| {
            let n = count.fetch_add(1, Ordering::Relaxed);
            runtime.block_on(survives(&*store, alone(first, n), alone(second, n)));
            Ok(())
        });
        proved.unwrap();
    };
    tokio::task::spawn_blocking(property).await.unwrap();
}

async fn survives(store: &dyn Store, first: Row, second: Row) {
    let first = put(store, &first).await;
    assert_eq!(store.load(std::slice::from_ref(&first.id)).await.unwrap(), [Some(first.clone())]);
    let second = put(store, &Row { revision: 1, ..second }).await;
    assert_eq!(store.load(&[first.id]).await.unwrap(), [Some(second)]);
}

/// The row of a user of its own, with an address of its own.
fn alone(mut row: Row, n: u64) -> Row {
    row.id = id(&format!("kp_{n}"));
    if let Some(email) = row.state.fields.get_mut(&Field::Email)
        && let Value::Text(text) = &email.value
    {
        email.value = Value::Text(format!("{text}{n}").into());
    }
    row
}

async fn a_write_over_a_concurrent_write_is_stale(store: Shared) {
    let ada = put(&*store, &row("kp_ada", Some("ada@example.com"))).await;
    put(&*store, &with(ada.clone(), Field::FirstName, "Augusta")).await;
    assert_eq!(outcome(&*store, &with(ada, Field::FirstName, "StaleEvents")).await, Outcome::Stale);
    assert_eq!(outcome(&*store, &row("kp_ada", None)).await, Outcome::Stale, "it is stored already");
    let never = Row { revision: 3, ..row("kp_never", None) };
    assert_eq!(outcome(&*store, &never).await, Outcome::Stale, "it is not stored at all");
    let ada = get(&*store, "kp_ada").await.unwrap();
    assert_eq!((ada.state.text(Field::FirstName), ada.revision), (Some("Augusta"), 2));
}

async fn of_many_concurrent_inserts_of_one_user_one_succeeds(store: Shared) {
    let tries = (0..32).map(|n| {
        let (store, ada) =
            (store.clone(), with(row("kp_ada", Some("ada@x.org")), Field::LastName, &*n.to_string()));
        async move { outcome(&*store, &ada).await }
    });
    let outcomes = futures_util::future::join_all(tries).await;
    let written = outcomes.iter().filter(|outcome| **outcome == Outcome::Written).count();
    assert_eq!(written, 1, "{outcomes:?}");
    assert_eq!(get(&*store, "kp_ada").await.unwrap().revision, 1);
}

async fn of_many_increments_none_is_lost(store: Shared) {
    put(&*store, &row("kp_ada", None)).await;
    let increments = (0..32).map(|_| {
        let store = store.clone();
        async move {
            loop {
                let mut ada = get(&*store, "kp_ada").await.unwrap();
                let seen = ada.state.last_seen.unwrap_or_default();
                ada.state.last_seen = Some(Micros(seen.0 + 1));
                match outcome(&*store, &ada).await {
                    Outcome::Written => break,
                    outcome => assert_eq!(outcome, Outcome::Stale),
                }
            }
        }
    });
    futures_util::future::join_all(increments).await;
    let ada = get(&*store, "kp_ada").await.unwrap();
    assert_eq!((ada.state.last_seen, ada.revision), (Some(Micros(32)), 33));
}

async fn the_same_user_twice_in_one_batch_is_written_once(store: Shared) {
    let twice = [row("kp_ada", None), row("kp_ada", None)];
    assert_eq!(store.write(&twice).await.unwrap(), [Outcome::Written, Outcome::Stale]);
    let ada = get(&*store, "kp_ada").await.unwrap();
    let first = with(ada.clone(), Field::LastName, "first");
    let twice = [first, with(ada, Field::LastName, "second")];
    assert_eq!(store.write(&twice).await.unwrap(), [Outcome::Written, Outcome::Stale]);
    assert_eq!(get(&*store, "kp_ada").await.unwrap().state.text(Field::LastName), Some("first"));
}

async fn an_address_that_is_shown_is_taken(store: Shared) {
    put(&*store, &row("kp_ada", Some("a@x.org"))).await;
    let batch = [row("kp_bob", Some("b@x.org")), row("kp_eve", Some("a@x.org")), row("kp_dan", None)];
    let outcomes = store.write(&batch).await.unwrap();
    assert_eq!(outcomes, [Outcome::Written, Outcome::EmailTaken, Outcome::Written]);
    assert_eq!(get(&*store, "kp_eve").await, None, "nothing was written");
    let mut eve = batch[1].clone();
    eve.metadata.holds_email = false;
    let eve = put(&*store, &eve).await;
    assert_eq!(get(&*store, "kp_eve").await, Some(eve.clone()));
    assert_eq!(eve.document().email, None);
    assert_eq!(holder(&*store, "a@x.org").await, Some(Holder::User(id("kp_ada"))));
}

async fn an_address_is_taken_for_updates_too(store: Shared) {
    put(&*store, &row("kp_ada", Some("a@x.org"))).await;
    let bob = put(&*store, &row("kp_bob", Some("b@x.org"))).await;
    let dan = put(&*store, &row("kp_dan", None)).await;
    let batch = [with(bob.clone(), Field::Email, "a@x.org"), with(dan, Field::FirstName, "Daniel")];
    assert_eq!(store.write(&batch).await.unwrap(), [Outcome::EmailTaken, Outcome::Written]);
    assert_eq!(get(&*store, "kp_bob").await, Some(bob));
}

async fn a_tombstone_does_not_take_an_address(store: Shared) {
    let ada = put(&*store, &row("kp_ada", Some("a@x.org"))).await;
    let mut deleted = ada;
    deleted.state = deleted.state.join(tombstone("kp_ada").state);
    let deleted = put(&*store, &deleted).await;
    assert_eq!(get(&*store, "kp_ada").await, Some(deleted), "the address is remembered");
    put(&*store, &row("kp_bob", Some("a@x.org"))).await;
    put(&*store, &tombstone("kp_never")).await;
    put(&*store, &tombstone("kp_nobody")).await;
    assert_eq!(holder(&*store, "a@x.org").await, Some(Holder::User(id("kp_bob"))));
}

async fn claimants_are_all_live_users_with_the_address(store: Shared) {
    put(&*store, &row("kp_shows", Some("a@x.org"))).await;
    let mut hides = row("kp_hides", Some("a@x.org"));
    hides.metadata.holds_email = false;
    hides.metadata.email_held_by = Some("kp_shows".into());
    let hides = put(&*store, &hides).await;
    let mut deleted = row("kp_gone", Some("a@x.org"));
    deleted.state = deleted.state.join(tombstone("kp_gone").state);
    put(&*store, &deleted).await;
    put(&*store, &row("kp_other", Some("b@x.org"))).await;
    put(&*store, &row("kp_none", None)).await;
    let claimants = store.claimants(&["a@x.org".into(), "none@x.org".into()]).await.unwrap();
    let mut ids: Vec<_> = claimants.iter().map(|row| row.id.as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["kp_hides", "kp_shows"]);
    assert!(claimants.contains(&hides));
    assert_eq!(store.claimants(&[]).await.unwrap(), []);
}

async fn rows_with_pending_emails_are_found_until_they_are_resolved(store: Shared) {
    let mut ada = row("kp_ada", Some("a@x.org"));
    ada.pending_emails.extend(["a@x.org".to_owned(), "old@x.org".to_owned()]);
    put(&*store, &row("kp_bob", None)).await;
    let mut eve = row("kp_eve", None);
    eve.pending_emails.insert("e@x.org".to_owned());
    let eve = put(&*store, &eve).await;
    let mut ada = put(&*store, &ada).await;
    assert_eq!(store.pending_emails(None, 10).await.unwrap(), [ada.clone(), eve.clone()]);
    assert_eq!(store.pending_emails(None, 1).await.unwrap(), [ada.clone()]);
    assert_eq!(store.pending_emails(Some(&ada.id), 1).await.unwrap(), std::slice::from_ref(&eve));
    assert_eq!(store.pending_emails(None, 0).await.unwrap(), []);
    ada.pending_emails.clear();
    put(&*store, &ada).await;
    assert_eq!(store.pending_emails(None, 10).await.unwrap(), [eve]);
}

async fn hostile_texts_are_stored_as_they_are(store: Shared) {
    let long = "é".repeat(100 << 10);
    for (n, text) in HOSTILE.into_iter().chain([long.as_str()]).enumerate() {
        let user = format!("kp_{n}{}", if text.contains('\0') || text.len() > 99 { "" } else { text });
        let hostile = with(row(&user, None), Field::FirstName, text);
        let hostile = with(hostile, Field::Email, format!("{n}{text}").as_str());
        let mut hostile =
            Row { metadata: kinsync_core::RowMetadata { holds_email: true, ..hostile.metadata }, ..hostile };
        hostile.pending_emails.insert(text.to_owned());
        let hostile = put(&*store, &hostile).await;
        assert_eq!(get(&*store, &user).await, Some(hostile.clone()), "insert of {user:?}");
        let hostile = put(&*store, &with(hostile, Field::LastName, text)).await;
        assert_eq!(get(&*store, &user).await, Some(hostile), "update of {user:?}");
        assert_eq!(holder(&*store, &format!("{n}{text}")).await, Some(Holder::User(id(user.as_str()))));
    }
    assert_eq!(holder(&*store, r#"{"$gt":""}"#).await, None);
}

async fn an_event_is_logged_once(store: Shared) {
    let first = event("event_1", Some("kp_ada"), 1_000_001);
    assert_eq!(store.log(std::slice::from_ref(&first)).await.unwrap(), [0_usize; 0]);
    let again = event("event_1", Some("kp_eve"), 9);
    let unread = kinsync_engine::internal::store::LogEntry {
        kind: String::new(),
        user: None,
        at: None,
        payload: "\0 not JSON 😀 {\"$ne\": null}".into(),
        ..event("event_2", None, i64::MIN + 1)
    };
    assert_eq!(store.log(&[again, unread.clone(), unread.clone()]).await.unwrap(), [0, 2]);
    assert_eq!(store.event("event_1").await.unwrap(), Some(first), "the first is kept");
    assert_eq!(store.event("event_2").await.unwrap(), Some(unread));
    assert_eq!(store.event("event_3").await.unwrap(), None);
    assert_eq!(store.log(&[]).await.unwrap(), [0_usize; 0]);
    // More than one command to MongoDB.
    let mut many: Vec<_> = (0..1500).map(|n| event(&format!("many_{n}"), None, n)).collect();
    many[1200].id = "event_1".into();
    assert_eq!(store.log(&many).await.unwrap(), [1200]);
}

async fn events_are_listed_by_page_newest_first(store: Shared) {
    let mut events: Vec<_> =
        (0..9).map(|n| event(&format!("event_{n}"), Some("kp_ada"), 1_000_000 + n / 2)).collect();
    events.push(event("event_bob", Some("kp_bob"), 1));
    events[4].kind = "user.deleted".into();
    store.log(&events).await.unwrap();
    let page = |filter: EventFilter| {
        let store = store.clone();
        async move { store.events(&filter).await.unwrap() }
    };
    let list = async |filter| page(filter).await.into_iter().map(|event| event.id).collect::<Vec<_>>();
    let mut all = Vec::new();
    let mut filter = EventFilter { limit: 4, ..EventFilter::default() };
    loop {
        let page = page(filter.clone()).await;
        filter.after.clone_from(&page.next);
        all.extend(page.into_iter().map(|event| event.id));
        if filter.after.is_none() {
            break;
        }
    }
    let newest_first = ["8", "7", "6", "5", "4", "3", "2", "1", "0", "bob"].map(|n| format!("event_{n}"));
    assert_eq!(all, newest_first);
    let at = |micros| Some(Micros(micros));
    let between =
        EventFilter { since: at(1_000_001), until: at(1_000_003), limit: 9, ..EventFilter::default() };
    assert_eq!(list(between.clone()).await, ["event_5", "event_4", "event_3", "event_2"]);
    let rest = EventFilter { after: Some("1000002:event_4".into()), ..between };
    assert_eq!(list(rest).await, ["event_3", "event_2"]);
    let bob = EventFilter { user: Some("kp_bob".into()), limit: 9, ..EventFilter::default() };
    assert_eq!(list(bob).await, ["event_bob"]);
    let deleted = EventFilter { kind: Some("user.deleted".into()), limit: 9, ..EventFilter::default() };
    assert_eq!(list(deleted.clone()).await, ["event_4"]);
    assert_eq!(list(EventFilter { after: Some("1000002:event_4".into()), ..deleted }).await, [""; 0]);
    let removed = EventFilter { after: Some("1000002:event_50".into()), limit: 2, ..EventFilter::default() };
    assert_eq!(
        list(removed.clone()).await,
        ["event_5", "event_4"],
        "the position of an entry that is removed"
    );
    assert_eq!(list(EventFilter { after: Some("event_4".into()), ..removed }).await, [""; 0]);
}

async fn users_are_listed_by_page_and_filter(store: Shared) {
    for user in ["kp_b", "kp_d", "kp_a"] {
        put(&*store, &row(user, Some(&format!("{user}@x.org")))).await;
    }
    put(&*store, &tombstone("kp_c")).await;
    let mut hides = row("kp_e", Some("kp_a@x.org"));
    hides.metadata.holds_email = false;
    put(&*store, &hides).await;
    let list = |filter: UserFilter| {
        let store = store.clone();
        async move {
            let listed = store.users(&UserFilter { limit: filter.limit.max(1), ..filter }).await.unwrap();
            listed.into_iter().map(|row| row.id.to_string()).collect::<Vec<_>>()
        }
    };
    let all = UserFilter { with_deleted: true, limit: 3, ..UserFilter::default() };
    assert_eq!(list(all.clone()).await, ["kp_a", "kp_b", "kp_c"]);
    assert_eq!(list(UserFilter { after: Some("kp_c".into()), ..all }).await, ["kp_d", "kp_e"]);
    let live = UserFilter { limit: 9, ..UserFilter::default() };
    assert_eq!(list(live.clone()).await, ["kp_a", "kp_b", "kp_d", "kp_e"]);
    let claims = UserFilter { selection: Selection::Email("kp_a@x.org".into()), ..live };
    assert_eq!(list(claims.clone()).await, ["kp_a", "kp_e"]);
    assert_eq!(list(UserFilter { after: Some("kp_a".into()), ..claims.clone() }).await, ["kp_e"]);
    let in_capitals = UserFilter { selection: Selection::Email(" KP_A@X.ORG".into()), ..claims.clone() };
    assert_eq!(list(in_capitals.clone()).await, ["kp_a", "kp_e"]);
    assert_eq!(list(UserFilter { after: Some("kp_a".into()), ..in_capitals }).await, ["kp_e"]);
    assert_eq!(list(UserFilter { selection: Selection::Email("kp_a@x.or".into()), ..claims }).await, [""; 0]);
    put(&*store, &with(row("kp_f", None), Field::ProvidedId, "own-7")).await;
    let provided =
        UserFilter { selection: Selection::ProvidedId("own-7".into()), limit: 9, ..UserFilter::default() };
    assert_eq!(list(provided).await, ["kp_f"]);
}

async fn ids_are_listed_by_page_with_the_deleted_ones(store: Shared) {
    assert_eq!(store.ids(None, 10).await.unwrap(), []);
    store.write(&[row("kp_c", None), tombstone("kp_b"), row("kp_a", Some("a@x.org"))]).await.unwrap();
    assert_eq!(store.ids(None, 2).await.unwrap(), [id("kp_a"), id("kp_b")]);
    assert_eq!(store.ids(Some(&id("kp_b")), 2).await.unwrap(), [id("kp_c")]);
    assert_eq!(store.ids(Some(&id("kp_c")), 2).await.unwrap(), []);
}

async fn users_are_listed_by_what_they_refer_to(store: Shared) {
    let referring = |user: &str, ids: &[&str]| {
        let mut row = row(user, None);
        for id in ids {
            row.state.directory.add(id, Entry::default());
        }
        row
    };
    let rows = [
        referring("kp_a", &["org_a", "role"]),
        referring("kp_b", &["org_b", "role"]),
        referring("kp_c", &["org_a"]),
        referring("kp_d", &[]),
    ];
    store.write(&rows).await.unwrap();
    let list = async |ids: &[&str], after: Option<&str>, limit| {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        let users = store.referring(&ids, after.map(id).as_ref(), limit).await.unwrap();
        users.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(list(&["org_a"], None, 10).await, ["kp_a", "kp_c"]);
    assert_eq!(list(&["org_a", "role"], None, 10).await, ["kp_a", "kp_b", "kp_c"]);
    assert_eq!(list(&["org_a", "role"], Some("kp_a"), 1).await, ["kp_b"]);
    assert_eq!(list(&["$ne"], None, 10).await, Vec::<String>::new());
}

async fn live_members_are_counted(store: Shared) {
    for (user, codes) in [("kp_1", ["org_a", "org_b"].as_slice()), ("kp_2", &["org_a"]), ("kp_3", &[])] {
        let mut row = row(user, None);
        for code in codes {
            row.state.directory.add(code, Entry::default());
        }
        put(&*store, &row).await;
    }
    let mut deleted = tombstone("kp_4");
    deleted.state.directory.add("org_a", Entry::default());
    put(&*store, &deleted).await;
    let codes: Vec<String> = ["org_a", "org_b", "org_c"].map(Into::into).into();
    let counts = store.count_members(&codes).await.unwrap();
    let count = |code: &str| counts.get(code).copied().unwrap_or_default();
    assert_eq!((count("org_a"), count("org_b"), count("org_c")), (2, 1, 0));
}

async fn users_and_events_are_counted(store: Shared) {
    assert_eq!(store.counts().await.unwrap(), Counts::default());
    put(&*store, &row("kp_ada", None)).await;
    put(&*store, &row("kp_bob", None)).await;
    put(&*store, &tombstone("kp_eve")).await;
    store.log(&[event("event_1", None, 1)]).await.unwrap();
    let counts = Counts { live_users: 2, deleted_users: 1, events: 1 };
    assert_eq!(store.counts().await.unwrap(), counts);
}

async fn a_large_batch_is_written_and_read(store: Shared) {
    let rows: Vec<Row> = (0..2500).map(|n| row(&format!("kp_{n}"), Some(&format!("{n}@x.org")))).collect();
    let outcomes = store.write(&rows).await.unwrap();
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Written));
    // Some inserts, some updates, some stale, in one batch.
    let mixed: Vec<Row> = (0..2500)
        .map(|n| match n % 3 {
            0 => stored(&rows[n]),
            1 => Row { revision: 7, ..rows[n].clone() },
            _ => row(&format!("kp_new_{n}"), None),
        })
        .collect();
    let outcomes = store.write(&mixed).await.unwrap();
    for (n, outcome) in outcomes.iter().enumerate() {
        assert_eq!(*outcome, if n % 3 == 1 { Outcome::Stale } else { Outcome::Written }, "{n}");
    }
    let ids: Vec<_> = mixed.iter().map(|row| row.id.clone()).collect();
    let loaded = store.load(&ids).await.unwrap();
    assert_eq!(loaded[0], Some(stored(&mixed[0])));
    assert!(loaded.iter().all(Option::is_some));
}
