//! Changed roles and the documents of their members: kills, renames in between, several processes, rows that cannot be written.

use std::{sync::Arc, time::Duration};

use kinsync_core::{
    Entry, Fact, Field, Micros, Observation, Organization, Profile, Source, UserId, Value, Version, What,
};
use kinsync_engine::{
    Clock,
    internal::{
        apply::apply,
        directory::{self, Change, Kind, observe},
        projector,
        spread::{Config, Spread, SpreadStatus},
        store::Store,
    },
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    faulty::{BAD, Failure, Fault, FaultyStore},
    pipeline::{drain, engine, role_event, until_spread},
    reconcile::DEADLINE,
    requests::Requests,
    stores::{self, Fresh, on_every_store},
    suspended::Suspended,
};

on_every_store! {
    a_rename_reaches_all_members_whatever_call_of_the_walk_is_the_last_one
    a_rename_during_the_walk_of_another_one_reaches_all_members
    a_new_member_shows_the_new_key_whatever_call_of_its_write_is_the_last_one
    a_new_member_shows_a_key_that_changes_before_its_write_whatever_call_is_the_last_one
    a_position_that_cannot_be_read_begins_the_walk_again
    a_process_leaves_the_walk_of_another_one_and_continues_it_when_that_one_stops
    a_member_that_cannot_be_written_stops_no_other_and_is_written_later
    a_small_organization_does_not_wait_for_a_large_one
    an_event_about_a_role_is_shown_by_all_members_without_a_poll
    a_stopped_process_leaves_its_walk_to_another_one_at_once
    requests_see_a_change_before_its_spread
    requests_see_a_change_whatever_part_of_its_spread_a_load_meets
    requests_see_a_change_of_a_member_that_cannot_be_written
    a_thousand_unreadable_records_delay_no_other_one
}

const MEMBERS: usize = 7;

/// More than one page for all members; another process takes over at once.
fn quick() -> Config {
    let pause = Duration::from_millis(5);
    Config { page: 3, poll_every: pause, take_over_after: pause, retry_every: pause }
}

fn member(user: &str, role: &str, at: i64) -> Observation {
    let membership = Organization { roles: Some(vec![role.to_owned()]), ..Organization::new("org_1") };
    let profile = Profile::new().with(Field::Organizations, Value::Organizations(vec![membership]));
    Observation {
        user: UserId::parse(user).expect("an id"),
        version: Version::event(Micros(at), format!("{user} {at}")),
        source: Source::Webhook,
        what: What::Fields(profile),
    }
}

async fn write(store: &dyn Store, members: Vec<Observation>) {
    let applied = apply(store, members, Micros(1)).await.expect("the store answers");
    assert_eq!((applied.failed, applied.refused), (vec![], vec![]));
}

async fn with_members(fresh: &Fresh) {
    rename(fresh, "r", "key 0", 1).await;
    write(&*fresh.store, (0..MEMBERS).map(|n| member(&format!("kp_{n}"), "r", 1)).collect()).await;
    spread(fresh).await;
}

async fn rename(fresh: &Fresh, role: &str, key: &str, at: i64) {
    let entry = Entry::observed([(Fact::Key, Value::from(key))], &Version::event(Micros(at), key));
    let change = Change { kind: Kind::Role, id: role.into(), entry };
    assert!(observe(&*fresh.store, vec![change]).await.expect("the store answers"), "a record is marked");
}

/// Runs a process until nothing is marked.
async fn spread(fresh: &Fresh) -> SpreadStatus {
    spread_through(&fresh.store, fresh).await
}

/// Runs a process with this view of the store until nothing is marked.
async fn spread_through(store: &Arc<dyn Store>, fresh: &Fresh) -> SpreadStatus {
    run_until(store, quick(), async |_| until_spread(&*fresh.store).await).await
}

async fn run_until(store: &Arc<dyn Store>, config: Config, done: impl AsyncFnOnce(&Spread)) -> SpreadStatus {
    let (spread, stop) = (Spread::new(store.clone(), Clock::system(), config), CancellationToken::new());
    let finished = async {
        done(&spread).await;
        stop.cancel();
    };
    tokio::join!(spread.run(stop.clone()), finished);
    spread.status()
}

async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The keys of the roles that a document shows; `None` without the user.
async fn shown(store: &dyn Store, user: &str) -> Option<Vec<String>> {
    let id = UserId::parse(user).expect("an id");
    let row = store.load(&[id]).await.expect("the store answers").pop().flatten()?;
    row.document().organizations.unwrap_or_default().pop()?.roles
}

async fn assert_all_show(fresh: &Fresh, key: &str, when: &str) {
    for n in 0..MEMBERS {
        let shown = shown(&*fresh.store, &format!("kp_{n}")).await;
        assert_eq!(shown, Some(vec![key.to_owned()]), "{}, kp_{n}, {when}", fresh.name);
    }
}

/// Checks that only the records of the directory are left.
async fn assert_clean(fresh: &Fresh) {
    for prefix in ["spread/", "outdated/"] {
        let left = fresh.store.list_states(prefix, None, 10).await.expect("the store answers");
        assert_eq!(left, [], "{}", fresh.name);
    }
    let stored = directory::list(&*fresh.store).await.expect("the store answers");
    assert!(stored.stored.values().all(|stored| !stored.is_due()));
}

/// Runs a process that is suspended at this call, until nothing is marked, or until `then` is done. Returns whether it reached that call.
async fn run_until_call(fresh: &Fresh, call: usize, then: impl AsyncFnOnce(&Suspended)) -> bool {
    let process = Suspended::new(fresh.store.clone());
    process.suspend_at_call(call);
    let store: Arc<dyn Store> = process.clone();
    let mut is_suspended = false;
    let done = async |_: &Spread| {
        tokio::select! {
            () = process.until_suspended() => is_suspended = true,
            () = until_spread(&*fresh.store) => {}
        }
        if is_suspended {
            then(&process).await;
        }
    };
    run_until(&store, quick(), done).await;
    is_suspended
}

async fn a_rename_reaches_all_members_whatever_call_of_the_walk_is_the_last_one(fresh: Fresh) {
    with_members(&fresh).await;
    for call in 0.. {
        let key = format!("key {}", call + 1);
        rename(&fresh, "r", &key, 2 + i64::try_from(call).expect("few")).await;
        let is_killed = run_until_call(&fresh, call, async |_| {}).await;
        spread(&fresh).await;
        assert_all_show(&fresh, &key, &format!("killed at call {call}")).await;
        if !is_killed {
            assert!(call > 15, "the walk has several pages: {call} calls");
            break;
        }
    }
    assert_clean(&fresh).await;
}

async fn a_rename_during_the_walk_of_another_one_reaches_all_members(fresh: Fresh) {
    with_members(&fresh).await;
    for call in 0.. {
        let at = 2 + 2 * i64::try_from(call).expect("few");
        rename(&fresh, "r", &format!("first {call}"), at).await;
        let newest = format!("second {call}");
        let is_interrupted = run_until_call(&fresh, call, async |process| {
            rename(&fresh, "r", &newest, at + 1).await;
            process.resume();
            until_spread(&*fresh.store).await;
        })
        .await;
        if !is_interrupted {
            break;
        }
        assert_all_show(&fresh, &newest, &format!("renamed at call {call}")).await;
    }
    assert_clean(&fresh).await;
}

async fn a_new_member_shows_the_new_key_whatever_call_of_its_write_is_the_last_one(fresh: Fresh) {
    rename(&fresh, "r", "key 0", 1).await;
    spread(&fresh).await;
    let mut stored = 0;
    for call in 0.. {
        let (user, key) = (format!("kp_{call}"), format!("key {}", call + 1));
        let process = Suspended::new(fresh.store.clone());
        process.suspend_at_call(call);
        let is_killed = tokio::select! {
            () = write(&*process, vec![member(&user, "r", 1)]) => false,
            () = process.until_suspended() => true,
        };
        rename(&fresh, "r", &key, 2 + i64::try_from(call).expect("few")).await;
        spread(&fresh).await;
        if let Some(shown) = shown(&*fresh.store, &user).await {
            stored += 1;
            assert_eq!(shown, [key], "{}, renamed after a kill at call {call}", fresh.name);
        }
        if !is_killed {
            break;
        }
    }
    assert!(stored > 1, "{stored} kills after the write");
}

/// The directory changes between the read and the write of a process, and the walk ends before the write.
async fn a_new_member_shows_a_key_that_changes_before_its_write_whatever_call_is_the_last_one(fresh: Fresh) {
    rename(&fresh, "r", "key 0", 1).await;
    spread(&fresh).await;
    for call in 0.. {
        let (user, key) = (format!("kp_{call}"), format!("key {}", call + 1));
        let process = Suspended::new(fresh.store.clone());
        process.suspend_at_write();
        let killed = async {
            process.until_suspended().await;
            rename(&fresh, "r", &key, 2 + i64::try_from(call).expect("few")).await;
            spread(&fresh).await;
            process.suspend_after(call);
            process.until_suspended().await;
        };
        let is_killed = tokio::select! {
            () = write(&*process, vec![member(&user, "r", 1)]) => false,
            () = killed => true,
        };
        if is_killed {
            // The queue delivers what was not acked again.
            write(&*fresh.store, vec![member(&user, "r", 1)]).await;
        }
        let shown = shown(&*fresh.store, &user).await;
        assert_eq!(shown, Some(vec![key]), "{}, after a kill at call {call}", fresh.name);
        if !is_killed {
            assert!(call > 2, "several calls follow the write: {call}");
            break;
        }
    }
    assert_clean(&fresh).await;
}

async fn a_position_that_cannot_be_read_begins_the_walk_again(fresh: Fresh) {
    with_members(&fresh).await;
    rename(&fresh, "r", "key 1", 2).await;
    let unreadable = serde_json::json!({ "format": 2 });
    assert!(fresh.store.put_state("spread/r", &unreadable, 0).await.expect("the store answers"));
    spread(&fresh).await;
    assert_all_show(&fresh, "key 1", "after an unreadable position").await;
    assert_clean(&fresh).await;
}

async fn a_process_leaves_the_walk_of_another_one_and_continues_it_when_that_one_stops(fresh: Fresh) {
    with_members(&fresh).await;
    rename(&fresh, "r", "key 1", 2).await;
    let first = Suspended::new(fresh.store.clone());
    first.suspend_at_call(0);
    let store: Arc<dyn Store> = first.clone();
    let others = async {
        // Suspended within its walk.
        while shown(&*fresh.store, "kp_2").await != Some(vec!["key 1".to_owned()]) {
            first.until_suspended().await;
            first.suspend_after(1);
        }
        first.suspend();
        let patient = Config { take_over_after: DEADLINE, ..quick() };
        let pause = async |_: &Spread| tokio::time::sleep(Duration::from_millis(200)).await;
        let status = run_until(&fresh.store, patient, pause).await;
        assert_eq!((status.pending, status.failure), (1, None));
        assert_eq!(
            shown(&*fresh.store, "kp_6").await,
            Some(vec!["key 0".to_owned()]),
            "left to the first one"
        );
        spread(&fresh).await;
        assert_all_show(&fresh, "key 1", "continued by another process").await;
        first.resume();
    };
    tokio::join!(spread_through(&store, &fresh), others);
    assert_clean(&fresh).await;
}

async fn a_small_organization_does_not_wait_for_a_large_one(fresh: Fresh) {
    with_members(&fresh).await;
    rename(&fresh, "s", "small 0", 1).await;
    write(&*fresh.store, vec![member("kp_small", "s", 1)]).await;
    spread(&fresh).await;
    rename(&fresh, "r", "key 1", 2).await;
    let process = Suspended::new(fresh.store.clone());
    process.suspend_at_call(0);
    let store: Arc<dyn Store> = process.clone();
    let shows = async |user: &str, key: &str| shown(&*fresh.store, user).await == Some(vec![key.to_owned()]);
    let steps = async {
        while !shows("kp_2", "key 1").await {
            process.until_suspended().await;
            process.suspend_after(1);
        }
        rename(&fresh, "s", "small 1", 2).await;
        while !shows("kp_small", "small 1").await {
            process.until_suspended().await;
            process.suspend_after(1);
        }
        assert!(shows("kp_6", "key 0").await, "the last page of the large one comes after it");
        process.suspend_at_call(usize::MAX);
        process.resume();
    };
    tokio::join!(spread_through(&store, &fresh), steps);
    assert_all_show(&fresh, "key 1", "at the end").await;
}

async fn a_member_that_cannot_be_written_stops_no_other_and_is_written_later(fresh: Fresh) {
    with_members(&fresh).await;
    write(&*fresh.store, vec![member(BAD, "r", 1)]).await;
    for (n, operation) in ["write", "load"].into_iter().enumerate() {
        let (key, at) = (format!("key {operation}"), 2 + i64::try_from(n).expect("few"));
        rename(&fresh, "r", &key, at).await;
        let fault = Fault::new(operation, Failure::OneUser);
        let faulty: Arc<dyn Store> =
            Arc::new(FaultyStore { store: fresh.store.clone(), fault: fault.clone() });
        let isolated = async |spread: &Spread| {
            until_spread(&*fresh.store).await;
            until("the member is set aside", async || spread.status().set_aside == 1).await;
            assert_eq!(spread.status().examples[0].0, BAD);
            assert_all_show(&fresh, &key, "beside a member that fails").await;
            fault.repair();
            until("the member is written", async || spread.status().set_aside == 0).await;
        };
        run_until(&faulty, quick(), isolated).await;
        assert_eq!(shown(&*fresh.store, BAD).await, Some(vec![key]), "{}", fresh.name);
    }
    assert_clean(&fresh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validator_that_refuses_a_member_stops_no_other() {
    let store = crate::store_mongo::store().await;
    let database = store.database().expect("connected").clone();
    let fresh = stores::over(store);
    with_members(&fresh).await;
    let refused = bson::doc! { "kindeId": "kp_3", "organizations.roles": "key 1" };
    let command = bson::doc! { "collMod": "users", "validator": { "$nor": [refused] } };
    database.run_command(command).await.expect("the server accepts a validator");
    rename(&fresh, "r", "key 1", 2).await;
    spread(&fresh).await;
    for n in (0..MEMBERS).filter(|n| *n != 3) {
        assert_eq!(shown(&*fresh.store, &format!("kp_{n}")).await, Some(vec!["key 1".to_owned()]));
    }
    let refused = fresh.store.with_refused_keys(None, 10).await.expect("the store answers");
    assert_eq!(refused.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["kp_3"]);
    assert_clean(&fresh).await;
}

async fn an_event_about_a_role_is_shown_by_all_members_without_a_poll(fresh: Fresh) {
    with_members(&fresh).await;
    let dir = tempfile::tempdir().expect("a temporary folder");
    // A poll comes after 15 seconds at the earliest.
    let patient = Config { poll_every: DEADLINE, ..Config::default() };
    let config = projector::Config { spread: patient, ..projector::Config::default() };
    let engine = engine(dir.path(), &fresh.store, config).await;
    drain(&engine).await;
    let started = Instant::now();
    // The first one may be found by the first look of the process. Each of the others has to wake it.
    for n in 0..=5 {
        let role = format!(r#"{{"id":"r","key":"owner {n}"}}"#);
        let event = role_event("role.updated", &format!("e{n}"), &role);
        engine.queue().enqueue(event).await.expect("the queue takes it");
        let shows = async || shown(&*fresh.store, "kp_6").await == Some(vec![format!("owner {n}")]);
        until("the members show the new key", shows).await;
        until_spread(&*fresh.store).await;
    }
    assert!(started.elapsed() < Duration::from_mins(1), "it waits for no poll: {:?}", started.elapsed());
    engine.stop().await;
    assert_all_show(&fresh, "owner 5", "after the events").await;
}

async fn a_stopped_process_leaves_its_walk_to_another_one_at_once(fresh: Fresh) {
    with_members(&fresh).await;
    for call in 0.. {
        let key = format!("key {}", call + 1);
        rename(&fresh, "r", &key, 2 + i64::try_from(call).expect("few")).await;
        let process = Suspended::new(fresh.store.clone());
        process.suspend_at_call(call);
        let store: Arc<dyn Store> = process.clone();
        let (first, stop) = (Spread::new(store, Clock::system(), quick()), CancellationToken::new());
        let steps = async {
            tokio::select! {
                () = process.until_suspended() => {}
                () = until_spread(&*fresh.store) => {}
            }
            stop.cancel();
            process.resume();
        };
        tokio::join!(first.run(stop.clone()), steps);
        let is_complete = fresh.store.due_states(None, 1).await.expect("the store answers").is_empty();
        let patient = Config { take_over_after: 10 * DEADLINE, ..quick() };
        run_until(&fresh.store, patient, async |_| until_spread(&*fresh.store).await).await;
        assert_all_show(&fresh, &key, &format!("stopped at call {call}")).await;
        if is_complete {
            assert!(call > 15, "the walk has several pages: {call} calls");
            break;
        }
    }
    assert_clean(&fresh).await;
}

async fn delete(fresh: &Fresh, kind: Kind, id: &str, at: i64) {
    let entry = Entry::deleted(&Version::event(Micros(at), "deleted"));
    let change = Change { kind, id: id.into(), entry };
    assert!(observe(&*fresh.store, vec![change]).await.expect("the store answers"), "a record is marked");
}

/// The keys of the roles that a request of the user sees; `None` if it sees no organization.
async fn requested(requests: &Requests, store: &dyn Store, user: &str) -> Option<Vec<String>> {
    let document = requests.document(store, user).await.expect("stored");
    document.organizations.expect("known").pop()?.roles
}

async fn requests_see_a_change_before_its_spread(fresh: Fresh) {
    with_members(&fresh).await;
    let requests = Requests::default();
    let sees = async || requested(&requests, &*fresh.store, "kp_6").await;
    let roles = |key: &str| Some(vec![key.to_owned()]);
    assert_eq!(sees().await, roles("key 0"));
    rename(&fresh, "r", "key 1", 2).await;
    until("a request sees the new key", async || sees().await == roles("key 1")).await;
    delete(&fresh, Kind::Role, "r", 3).await;
    assert_eq!(sees().await, Some(vec![]), "at once, while something is marked");
    delete(&fresh, Kind::Organization, "org_1", 4).await;
    assert_eq!(sees().await, None);
    assert_eq!(shown(&*fresh.store, "kp_6").await, roles("key 0"), "nothing was spread");
    spread(&fresh).await;
    assert_eq!(sees().await, None);
}

async fn requests_see_a_change_whatever_part_of_its_spread_a_load_meets(fresh: Fresh) {
    with_members(&fresh).await;
    for call in 0.. {
        let key = format!("key {}", call + 1);
        let requests = Requests::default();
        assert!(requests.document(&*fresh.store, "kp_6").await.is_some());
        let requests = requests.later();
        rename(&fresh, "r", &key, 2 + i64::try_from(call).expect("few")).await;
        let process = Suspended::new(fresh.store.clone());
        process.suspend_at_call(call);
        // A load that is suspended meanwhile must not return the former value.
        let (mut is_suspended, loaded) = (false, CancellationToken::new());
        let load = async {
            let seen = requested(&requests, &*process, "kp_6").await;
            loaded.cancel();
            seen
        };
        let steps = async {
            tokio::select! {
                () = process.until_suspended() => is_suspended = true,
                () = loaded.cancelled() => {}
            }
            spread(&fresh).await;
            process.resume();
        };
        let (seen, ()) = tokio::join!(load, steps);
        assert_eq!(seen, Some(vec![key]), "suspended at call {call}");
        if !is_suspended {
            assert!(call > 2, "{call} calls");
            break;
        }
    }
}

async fn requests_see_a_change_of_a_member_that_cannot_be_written(fresh: Fresh) {
    with_members(&fresh).await;
    write(&*fresh.store, vec![member(BAD, "r", 1)]).await;
    let fault = Fault::new("write", Failure::OneUser);
    let faulty: Arc<dyn Store> = Arc::new(FaultyStore { store: fresh.store.clone(), fault });
    delete(&fresh, Kind::Role, "r", 2).await;
    spread_through(&faulty, &fresh).await;
    assert_eq!(shown(&*fresh.store, BAD).await, Some(vec!["key 0".to_owned()]), "set aside");
    assert_eq!(requested(&Requests::default(), &*fresh.store, BAD).await, Some(vec![]));
}

async fn a_thousand_unreadable_records_delay_no_other_one(fresh: Fresh) {
    with_members(&fresh).await;
    rename(&fresh, "r", "key 1", 2).await;
    let unreadable = serde_json::json!({ "due": true, "format": 99 });
    for n in 0..1000 {
        let key = format!("directory/a{n}");
        assert!(fresh.store.put_state(&key, &unreadable, 0).await.expect("the store answers"));
    }
    let shows = async || shown(&*fresh.store, "kp_6").await == Some(vec!["key 1".to_owned()]);
    run_until(&fresh.store, quick(), async |_| until("the new key is shown", shows).await).await;
}
