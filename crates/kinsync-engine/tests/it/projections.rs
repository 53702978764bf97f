//! Daily figures: equal to a count of the whole log, whatever writes and kills came before.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kinsync_core::{Field, Micros, Profile, UserId, Version, What};
use kinsync_engine::{
    Clock,
    internal::{
        erasure::erase_entries,
        log_entry::kind,
        projections::{self, Day, Growth, OrganizationGrowth, Record, Scope, System},
        retention::{Retention, Rules},
        store::{LogEntry, LogSource, Store},
    },
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio_util::task::TaskTracker;

use crate::{
    store_rows::event,
    stores::{Fresh, on_every_store},
};

on_every_store! {
    figures_equal_a_count_of_the_log_after_concurrent_writers_and_kills
    an_entry_logged_long_after_its_receipt_is_counted
    figures_contain_no_value_of_a_user
    an_erasure_changes_no_figure_of_deletions_and_drift
    the_figures_of_a_day_are_complete_when_retention_removes_its_entries
}

const DAY: i64 = 86_400_000_000;
/// Noon of the newest day.
const NOW: Micros = Micros(20_000 * DAY + DAY / 2);

fn all_days() -> (Day, Day) {
    let today = Day::of(NOW);
    (today.before(300), today)
}

async fn growth(store: &dyn Store) -> BTreeMap<Day, Record<Growth>> {
    projections::growth(store, all_days()).await.unwrap().into_iter().collect()
}

async fn system(store: &dyn Store) -> BTreeMap<Day, Record<System>> {
    projections::system(store, all_days()).await.unwrap().into_iter().collect()
}

/// An entry of a few users and organizations in the last ten days.
fn any_entry(random: &mut StdRng, id: &str) -> LogEntry {
    let at = NOW.0 - random.random_range(0..10 * DAY);
    let user = format!("kp_{}", random.random_range(0..40));
    let mut entry = event(id, Some(&user), at);
    entry.at = Some(Micros(at - random.random_range(0..5_000_000)));
    let kinds = ["user.created", "user.updated", "user.deleted", "user.authenticated"];
    entry.kind = kinds[random.random_range(0..kinds.len())].into();
    entry.payload = match entry.kind.as_str() {
        "user.created" => format!(
            r#"{{"type":"user.created","event_id":"{id}","timestamp":"2024-01-01T00:00:00Z","data":{{"user":{{"id":"{user}","organizations":[{{"code":"org_{}"}}]}}}}}}"#,
            random.random_range(0..3)
        ),
        kind => format!(
            r#"{{"type":"{kind}","event_id":"{id}","timestamp":"2024-01-01T00:00:00Z","data":{{"user":{{"id":"{user}"}}}}}}"#
        ),
    };
    if random.random_range(0..5) == 0 {
        entry.source = [LogSource::Login, LogSource::Reconcile][random.random_range(0..2)];
        entry.kind =
            [kind::LOGIN, kind::CHECK_READ][usize::from(entry.source == LogSource::Reconcile)].into();
        entry.scheme = "kinsync.observation".into();
        entry.payload = "\"deleted\"".into();
    }
    entry
}

/// Counts the entries of each day, without the code of the projections.
fn counted(entries: &[LogEntry]) -> BTreeMap<Day, (u64, Growth, u64, u64)> {
    let mut days: BTreeMap<Day, Vec<&LogEntry>> = BTreeMap::new();
    for entry in entries {
        days.entry(Day::of(entry.received_at)).or_default().push(entry);
    }
    let count = |(day, entries): (Day, Vec<&LogEntry>)| {
        let users = |is: &dyn Fn(&LogEntry) -> bool| -> BTreeSet<String> {
            entries.iter().filter(|entry| is(entry)).filter_map(|entry| entry.user.clone()).collect()
        };
        let signed_up = users(&|entry| entry.kind == "user.created");
        let active = users(&|entry| {
            ["user.created", "user.authenticated"].contains(&&*entry.kind) || entry.source == LogSource::Login
        });
        let deleted = users(&|entry| entry.kind == "user.deleted" || entry.payload == "\"deleted\"");
        let mut organizations = BTreeMap::new();
        for code in ["org_0", "org_1", "org_2"] {
            let members = users(&|entry| entry.payload.contains(&format!("\"{code}\"")));
            let of = |users: &BTreeSet<String>| users.intersection(&members).count() as u64;
            let growth = OrganizationGrowth {
                active_users: of(&active),
                sign_ups: of(&signed_up),
                deletions: of(&deleted),
            };
            if !members.is_empty() {
                organizations.insert(code.to_owned(), growth);
            }
        }
        let growth = Growth {
            sign_ups: signed_up.len() as u64,
            deletions: deleted.len() as u64,
            active_users: active.len() as u64,
            organizations,
            other_organizations: OrganizationGrowth::default(),
        };
        let of = |source| entries.iter().filter(|entry| entry.source == source).count() as u64;
        (day, (entries.len() as u64, growth, of(LogSource::Webhook), of(LogSource::Reconcile)))
    };
    days.into_iter().map(count).collect()
}

async fn assert_counted(store: &dyn Store, entries: &[LogEntry]) {
    let expected = counted(entries);
    let (growth, system) = (growth(store).await, system(store).await);
    assert_eq!(growth.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (day, (count, of_day, deliveries, drift)) in &expected {
        assert_eq!((&growth[day].figures, growth[day].entries), (of_day, *count), "{day}");
        let System { deliveries: by_type, lag, drift: by_cause, .. } = &system[day].figures;
        assert_eq!((by_type.values().sum::<u64>(), lag.count()), (*deliveries, *deliveries), "{day}");
        assert_eq!(by_cause.values().sum::<u64>(), *drift, "{day}");
    }
}

async fn figures_equal_a_count_of_the_log_after_concurrent_writers_and_kills(fresh: Fresh) {
    let (store, tasks) = (&fresh.store, TaskTracker::new());
    for seed in 0..6 {
        let mut random = StdRng::seed_from_u64(seed);
        let batches: Vec<Vec<LogEntry>> = (0..3)
            .map(|writer| (0..60).map(|n| any_entry(&mut random, &format!("e{seed}_{writer}_{n}"))).collect())
            .collect();
        let writers = batches.iter().cloned().map(|batch| {
            let store = Arc::clone(store);
            tasks.spawn(async move {
                for entries in batch.chunks(3) {
                    store.log(entries).await.unwrap();
                    tokio::task::yield_now().await;
                }
            })
        });
        let writers: Vec<_> = writers.collect();
        // Processes that compute at the same time, and are killed at any moment.
        while writers.iter().any(|writer| !writer.is_finished()) {
            let processes = (0..2).map(|_| {
                let (store, scope) =
                    (Arc::clone(store), [Scope::Changed, Scope::All][random.random_range(0..2)]);
                tasks.spawn(async move { projections::advance_all(&*store, scope, NOW).await.map(|_| ()) })
            });
            let processes: Vec<_> = processes.collect();
            for _ in 0..random.random_range(0..400) {
                tokio::task::yield_now().await;
            }
            processes.iter().for_each(tokio::task::JoinHandle::abort);
            for process in processes {
                _ = process.await;
            }
        }
        for writer in writers {
            writer.await.unwrap();
        }
    }
    projections::advance_all(&**store, Scope::Changed, NOW).await.unwrap();
    let mut entries = Vec::new();
    let mut filter = kinsync_engine::internal::store::EventFilter { limit: 500, ..Default::default() };
    loop {
        let page = store.events(&filter).await.unwrap();
        filter.after.clone_from(&page.next);
        entries.extend(page.items);
        if filter.after.is_none() {
            break;
        }
    }
    assert_eq!(entries.len(), 6 * 3 * 60);
    assert_counted(&**store, &entries).await;
    let incremental = (growth(&**store).await, system(&**store).await);
    for name in projections::NAMES {
        let report = projections::rebuild(&**store, name, NOW, &mut |_| {}).await.unwrap().unwrap();
        assert_eq!((report.entries, report.kept_until), (entries.len() as u64, None));
    }
    assert_eq!((growth(&**store).await, system(&**store).await), incremental, "a rebuild changes nothing");
    let again = projections::advance_all(&**store, Scope::Changed, NOW).await.unwrap();
    assert_eq!(again.computed, 0, "nothing has changed");
}

async fn an_entry_logged_long_after_its_receipt_is_counted(fresh: Fresh) {
    let store = &*fresh.store;
    let mut random = StdRng::seed_from_u64(9);
    let mut entries: Vec<LogEntry> = (0..50).map(|n| any_entry(&mut random, &format!("e{n}"))).collect();
    // More than one page of a day.
    let of_one_day = (0..600).map(|n| LogEntry {
        received_at: Micros(NOW.0 - 9 * DAY - n),
        at: Some(Micros(NOW.0 - 10 * DAY)),
        ..any_entry(&mut random, &format!("one{n}"))
    });
    entries.extend(of_one_day);
    store.log(&entries).await.unwrap();
    projections::advance_all(store, Scope::Changed, NOW).await.unwrap();
    let mut late = event("late", Some("kp_late"), NOW.0 - 9 * DAY);
    late.kind = "user.created".into();
    late.payload = r#"{"type":"user.created","event_id":"late","data":{"user":{"id":"kp_late"}}}"#.into();
    store.log(&[late.clone()]).await.unwrap();
    let recent = projections::advance_all(store, Scope::Recent, NOW).await.unwrap();
    assert_eq!(recent.computed, 0, "the day is not one of the last two");
    let changed = projections::advance_all(store, Scope::Changed, NOW).await.unwrap();
    assert_eq!(changed.computed, 2, "one day of each projection");
    entries.push(late);
    assert_counted(store, &entries).await;
}

fn sign_up(user: &str, at: i64) -> LogEntry {
    let payload = format!(
        r#"{{"type":"user.created","event_id":"{user}","timestamp":"2024-01-01T00:00:00Z","data":{{"user":{{"id":"{user}"}}}}}}"#
    );
    LogEntry { kind: "user.created".into(), payload, ..event(user, Some(user), at) }
}

async fn remove_old(store: &Arc<dyn Store>, now: i64) -> u64 {
    let rules = Rules { others: Some(Duration::from_hours(7 * 24)), ..Rules::default() };
    let retention = Retention::new(Arc::clone(store), Clock::from_fn(move || Micros(now)), rules);
    retention.round().await.unwrap().entries
}

async fn the_figures_of_a_day_are_complete_when_retention_removes_its_entries(fresh: Fresh) {
    let store = &*fresh.store;
    let day = |before| Day::of(NOW).before(before);
    let sign_ups = [sign_up("kp_1", NOW.0 - 9 * DAY), sign_up("kp_2", NOW.0 - 9 * DAY)];
    let signed_in =
        LogEntry { id: "in".into(), kind: "user.authenticated".into(), ..sign_up("kp_1", NOW.0 - 3 * DAY) };
    store.log(&[sign_ups.to_vec(), vec![signed_in, sign_up("kp_3", NOW.0 - DAY)]].concat()).await.unwrap();
    // No day was computed before.
    assert_eq!(remove_old(&fresh.store, NOW.0).await, 2, "{}", fresh.name);
    let kept = growth(store).await;
    assert_eq!(kept.keys().collect::<Vec<_>>(), [&day(9)], "{}", fresh.name);
    assert_eq!((kept[&day(9)].figures.sign_ups, kept[&day(9)].entries), (2, 2), "{}", fresh.name);
    assert_eq!(system(store).await[&day(9)].figures.deliveries["user.created"], 2, "{}", fresh.name);
    projections::advance_all(store, Scope::Changed, NOW).await.unwrap();
    assert_eq!(growth(store).await[&day(1)].figures.sign_ups, 1, "{}", fresh.name);

    // The entry that replaced the first ones is replaced too: that concerns the day of no other entry.
    assert_eq!(remove_old(&fresh.store, NOW.0 + 5 * DAY).await, 2, "{}", fresh.name);
    store
        .log(&[sign_up("kp_4", NOW.0), sign_up("kp_5", NOW.0 - DAY), sign_up("kp_6", NOW.0 - 9 * DAY)])
        .await
        .unwrap();
    let report = projections::advance_all(store, Scope::Changed, NOW).await.unwrap();
    assert_eq!(report.kept_until, Some(day(3)), "{}", fresh.name);
    let after = growth(store).await;
    let figures = |before| (after[&day(before)].is_kept, after[&day(before)].figures.sign_ups);
    assert_eq!(
        [figures(9), figures(3), figures(1), figures(0)],
        [(true, 2), (true, 0), (false, 2), (false, 1)],
        "{}",
        fresh.name
    );
    assert_eq!(after[&day(3)].figures.active_users, 1, "{}", fresh.name);
    for name in projections::NAMES {
        let report = projections::rebuild(store, name, NOW, &mut |_| {}).await.unwrap().unwrap();
        assert_eq!((report.computed, report.kept_until), (2, Some(day(3))), "{}", fresh.name);
    }
    assert_eq!(growth(store).await, after, "{}: a rebuild changes nothing", fresh.name);
    assert!(projections::rebuild(store, "users", NOW, &mut |_| {}).await.is_err());
}

async fn an_erasure_changes_no_figure_of_deletions_and_drift(fresh: Fresh) {
    let store = &*fresh.store;
    let (user, version) = (UserId::parse("kp_1").unwrap(), Version::snapshot(NOW, "h"));
    let observed = |what: &What, n: i64| LogEntry {
        id: format!("scan {n}"),
        kind: kind::SCAN_READ.into(),
        source: LogSource::Reconcile,
        scheme: "kinsync.observation".into(),
        payload: serde_json::to_string(what).unwrap(),
        version: Some(version.clone()),
        ..event("", Some("kp_1"), NOW.0 - n * DAY)
    };
    let profile = Profile::new().with(Field::FirstName, "Ada");
    let entries = [
        sign_up("kp_1", NOW.0 - 4 * DAY),
        observed(&What::Fields(profile.clone()), 3),
        observed(&What::Exists(profile), 2),
        observed(&What::Deleted, 1),
    ];
    store.log(&entries).await.unwrap();
    projections::advance_all(store, Scope::Changed, NOW).await.unwrap();
    let before = (growth(store).await, system(store).await);
    assert_eq!(erase_entries(store, &user, NOW).await.unwrap(), 4);
    for name in projections::NAMES {
        projections::rebuild(store, name, NOW, &mut |_| {}).await.unwrap().unwrap();
    }
    assert_eq!((growth(store).await, system(store).await), before, "{}", fresh.name);
    let drift = |days| before.1[&Day::of(NOW).before(days)].figures.drift.keys().cloned().collect::<Vec<_>>();
    assert_eq!([drift(3), drift(2), drift(1)], [["fields"], ["restored"], ["deleted"]], "{}", fresh.name);
    assert_eq!(before.0[&Day::of(NOW).before(1)].figures.deletions, 1, "{}", fresh.name);
}

async fn figures_contain_no_value_of_a_user(fresh: Fresh) {
    let store = &*fresh.store;
    let mut entry = event("event_canary", Some("kp_canary"), NOW.0);
    entry.kind = "user.created".into();
    entry.payload = r#"{"type":"user.created","event_id":"event_canary","timestamp":"2024-01-01T00:00:00Z","data":{"user":{"id":"kp_canary","email":"canary@x.org","organizations":[{"code":"org_a"}]}}}"#.into();
    store.log(&[entry]).await.unwrap();
    projections::advance_all(store, Scope::Changed, NOW).await.unwrap();
    let records = store.list_states("projection", None, 10).await.unwrap();
    let text = format!("{records:?}");
    assert!(records.len() >= 2 && text.contains("org_a") && !text.contains("canary"), "{text}");
}
