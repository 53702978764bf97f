//! A rebuild revives no deleted user, creates none that never existed, and loses no value silently.

use bson::{Document, doc};
use kinsync_core::{
    Field, Micros, Observation, Profile, Properties, Register, Source, UserId, UserState, Value, Version,
    What,
};
use kinsync_engine::{
    Clock,
    internal::{
        apply::apply,
        log_entry::{LogSource, kind},
        rebuild::{Event, Finding, Mode, Rebuild},
        store::{LogEntry, Outcome, Row, Store, mongo::Config},
    },
};
use serde_json::json;

use crate::{
    linking::{self, event},
    pipeline::{deliver, event_entry},
    rebuild::{assert_explained, interrupt, rebuild},
    store_mongo,
    stores::{Fresh, on_every_store},
};

on_every_store! {
    a_clock_that_runs_behind_undoes_no_deletion
    an_entry_that_observes_nothing_explains_no_value
    another_value_of_the_same_version_is_unexplained_if_it_would_win
    properties_that_no_entry_explains_stay
    entries_that_observe_nothing_create_no_user
    a_rebuild_that_continues_reports_what_the_interrupted_one_found
    a_rebuild_in_another_mode_or_hours_later_begins_again
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

/// Adds a value to a row that the log does not contain.
async fn add_unlogged(store: &dyn Store, user: &str, field: Field, version: Version, value: Value) {
    let mut row = row(store, user).await;
    row.state = row.state.with_register(field, version, value);
    assert_eq!(store.write(&[row]).await.expect("the store answers"), [Outcome::Written]);
}

/// Rebuilds, and asserts that one user has values that no entry explains and stays as it is.
async fn assert_unexplained(store: &dyn Store, user: &str) {
    let before = row(store, user).await;
    let found = rebuild(store, Mode::Replace).await;
    let [one] = found.differences.as_slice() else { panic!("{found:?}") };
    assert_eq!((one.user.as_str(), one.finding, one.is_rebuilt), (user, Finding::Unexplained, false));
    assert_eq!(row(store, user).await.state, before.state);
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

#[tokio::test]
async fn a_rebuild_of_lost_documents_continues_after_a_page_of_the_log() {
    let store = store_mongo::store().await;
    // Long enough that the entries of all users are more than a page, although the users are few.
    let name = "a".repeat(400_000);
    for n in 0..60 {
        let named = Profile::new().with(Field::FirstName, name.as_str());
        observe(&store, read(&format!("kp_{n:02}"), 1, What::Exists(named))).await;
    }
    store_mongo::users(&store).delete_many(doc! {}).await.expect("it answers");
    interrupt(&store, Mode::Replace, Clock::system().now()).await;
    let stored = store_mongo::users(&store).count_documents(doc! {}).await.expect("it answers");
    assert!((1..60).contains(&stored), "{stored} users after the first page");
    let mut first = None;
    let mut listen = |event: Event<'_>| {
        if let Event::Continues(after, report) = event {
            first = Some((after.to_owned(), report.users));
        }
    };
    let now = Clock::system().now();
    let report =
        Rebuild::new(&store, Mode::Replace, now, &mut listen).run().await.expect("the store answers");
    assert_eq!(first, Some((format!("kp_{:02}", stored - 1), stored)));
    assert_eq!((report.users, report.rebuilt), (60, 60));
    assert_explained(&store, "rebuilt").await;
}

#[tokio::test]
async fn lost_users_with_one_address_have_the_same_owner_again() {
    for unique_email in [true, false] {
        let store = store_mongo::prepared(Config { unique_email, ..store_mongo::fresh().await }).await;
        let claims = vec![event("kp_younger", 2, "a@x.org"), event("kp_older", 1, "a@x.org")];
        linking::observe(&store, claims).await;
        let holders = async || {
            let rows = [row(&store, "kp_older").await, row(&store, "kp_younger").await];
            rows.map(|row| (row.metadata.holds_email, row.metadata.email_held_by, row.pending_emails.len()))
        };
        let before = holders().await;
        assert_eq!(before, [(true, None, 0), (false, Some("kp_older".into()), 0)]);
        for lost in [&["kp_older"][..], &["kp_younger"], &["kp_older", "kp_younger"]] {
            let lost = doc! { "kindeId": { "$in": lost } };
            store_mongo::users(&store).delete_many(lost).await.expect("it answers");
            assert!(rebuild(&store, Mode::Replace).await.report.rebuilt > 0);
            assert_eq!(holders().await, before, "unique: {unique_email}");
        }
    }
}

async fn a_clock_that_runs_behind_undoes_no_deletion(fresh: Fresh) {
    let store = &*fresh.store;
    let events = [
        event_entry("user.created", 1, "e1", r#"{"id":"kp_ada","first_name":"Ada"}"#),
        event_entry("user.deleted", 1000, "e2", r#"{"id":"kp_ada"}"#),
    ];
    deliver(&fresh, events).await;
    let mut findings = Vec::new();
    let mut listen = |event: Event<'_>| {
        if let Event::Different(one) = event {
            findings.push((one.finding, one.is_rebuilt));
        }
    };
    let behind = Micros(1_700_000_002_000_000);
    Rebuild::new(store, Mode::Replace, behind, &mut listen).run().await.expect("the store answers");
    assert_eq!(findings, [(Finding::Unexplained, false)], "{}", fresh.name);
    assert!(!row(store, "kp_ada").await.state.is_live());
}

async fn an_entry_that_observes_nothing_explains_no_value(fresh: Fresh) {
    let store = &*fresh.store;
    observe(store, read("kp_ada", 1, What::Fields(Profile::new().with(Field::FirstName, "Ada")))).await;
    let version = Version::event(Micros(2), "e2");
    let nothing =
        LogEntry::action(kind::OPERATOR, Some(&id("kp_ada")), LogSource::Operator, &json!({}), Micros(1));
    let nothing = LogEntry { version: Some(version.clone()), ..nothing };
    store.log(&[nothing]).await.expect("the store answers");
    add_unlogged(store, "kp_ada", Field::FirstName, version, Value::Text("Augusta".into())).await;
    assert_unexplained(store, "kp_ada").await;
}

async fn another_value_of_the_same_version_is_unexplained_if_it_would_win(fresh: Fresh) {
    let store = &*fresh.store;
    let logged = read("kp_ada", 1, What::Fields(Profile::new().with(Field::FirstName, "Bob")));
    observe(store, logged.clone()).await;
    for (name, is_unexplained) in [("Zoe", true), ("Aaa", false)] {
        let mut row = row(store, "kp_ada").await;
        let register = Register { version: logged.version.clone(), value: Value::Text(name.into()) };
        row.state.fields.insert(Field::FirstName, register);
        assert_eq!(store.write(&[row]).await.expect("the store answers"), [Outcome::Written]);
        if is_unexplained {
            assert_unexplained(store, "kp_ada").await;
        }
        let mode = if is_unexplained { Mode::ReplaceUnexplained } else { Mode::Replace };
        let found = rebuild(store, mode).await;
        assert!(found.differences.iter().all(|one| one.is_rebuilt), "{name}: {found:?}");
        assert_explained(store, name).await;
    }
}

async fn properties_that_no_entry_explains_stay(fresh: Fresh) {
    let store = &*fresh.store;
    let one = |key: &str, at: i64| {
        let version = Version::snapshot(Micros(at), format!("h{at}"));
        let read = Properties::read([(key.to_owned(), Some("a".to_owned()))], &version);
        (version, Value::Properties(read))
    };
    let (_, tier) = one("tier", 2000);
    observe(store, read("kp_ada", 2000, What::Fields(Profile::new().with(Field::Properties, tier)))).await;
    let (version, plan) = one("plan", 1000);
    add_unlogged(store, "kp_ada", Field::Properties, version, plan).await;
    assert_unexplained(store, "kp_ada").await;
    assert_eq!(row(store, "kp_ada").await.state.properties().expect("read").values().count(), 2);
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

/// Two pages of users. The first user has a value that no entry explains.
async fn two_pages(store: &dyn Store) {
    let named = |id: String| read(&id, 1, What::Fields(Profile::new().with(Field::FirstName, "Ada")));
    // The second page begins with an id that the last one of the first page begins.
    let ids = (0..2199).map(|n| format!("kp_{n:04}")).chain(["kp_19990".to_owned()]);
    apply(store, ids.map(named), Clock::system().now()).await.expect("the store answers");
    let version = Version::snapshot(Micros(7), "lost");
    add_unlogged(store, "kp_0000", Field::FirstName, version, Value::Text("Countess".into())).await;
}

async fn a_rebuild_that_continues_reports_what_the_interrupted_one_found(fresh: Fresh) {
    let store = &*fresh.store;
    two_pages(store).await;
    interrupt(store, Mode::Replace, Clock::system().now()).await;
    let found = rebuild(store, Mode::Replace).await;
    assert_eq!((found.differences.len(), found.report.users), (0, 2200), "{}", fresh.name);
    assert!(found.report.is_different(), "{}: {found:?}", fresh.name);
}

async fn a_rebuild_in_another_mode_or_hours_later_begins_again(fresh: Fresh) {
    let store = &*fresh.store;
    two_pages(store).await;
    let now = Clock::system().now();
    for begun in [Micros(now.0 - 7 * 3_600_000_000), Micros(now.0 + 3_600_000_000)] {
        interrupt(store, Mode::Replace, begun).await;
        let found = rebuild(store, Mode::Replace).await;
        assert_eq!((found.differences.len(), found.report.users), (1, 2200), "{}", fresh.name);
    }
    interrupt(store, Mode::Replace, now).await;
    let found = rebuild(store, Mode::ReplaceUnexplained).await;
    assert_eq!((found.report.rebuilt, found.report.users), (1, 2200), "{}", fresh.name);
    assert!(!found.report.is_different(), "{}", fresh.name);
    assert_explained(store, fresh.name).await;
}
