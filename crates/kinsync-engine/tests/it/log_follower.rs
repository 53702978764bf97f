//! The state of a user is the join of the log, also after interrupted writes and repeated deliveries with another time.

use std::sync::Arc;

use kinsync_core::{
    Field, Memberships, Micros, Observation, Organization, Profile, Source, Value, Version, What,
};
use kinsync_engine::internal::{
    apply::apply,
    directory::{self, Change, Kind},
    log_follower::follow,
    projector,
    queue::{Entry, Payload},
    rebuild::{DifferentField, Mode},
    store::{EventFilter, Store},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    faulty::{Failure, Fault, FaultyStore},
    pipeline::{deliver, drain, engine, event_entry},
    rebuild::{assert_explained, documents, id, named, rebuild, rows},
    stores::{Fresh, on_every_store},
    suspended::Suspended,
};

const ADA: &str = "kp_ada";

fn observation(source: Source, version: Version, profile: Profile) -> Observation {
    Observation { user: id(ADA), version, source, what: What::Fields(profile) }
}

/// A read of the codes of the user's organizations.
fn codes(at: i64, codes: &[&str]) -> Observation {
    let codes = codes.iter().map(ToString::to_string).collect();
    let profile = Profile::new().with(Field::OrganizationCodes, Value::Codes(codes));
    observation(Source::Reconcile, Version::snapshot(Micros(at), format!("h{at}")), profile)
}

/// An event with the user's memberships.
fn memberships(at: i64, codes: &[&str]) -> Observation {
    let version = Version::event(Micros(at), format!("event_{at}"));
    let listed: Vec<Organization> = codes.iter().map(|code| Organization::new(*code)).collect();
    let listed = Value::Memberships(Memberships::listed(&listed, &version));
    observation(Source::Webhook, version, Profile::new().with(Field::Organizations, listed))
}

fn faulty(fresh: &Fresh, fault: Arc<Fault>) -> FaultyStore {
    FaultyStore { store: Arc::clone(&fresh.store), fault }
}

/// Applies an observation, and is interrupted before the row is written.
async fn interrupted(fresh: &Fresh, observation: Observation, now: i64) {
    let faulty = faulty(fresh, Fault::new("write", Failure::All));
    apply(&faulty, [observation], Micros(now)).await.expect_err("the write fails");
}

async fn applied(store: &dyn Store, observation: Observation, now: i64) {
    let applied = apply(store, [observation], Micros(now)).await.expect("the store answers");
    assert!(applied.failed.is_empty(), "{applied:?}");
}

async fn followed(fresh: &Fresh, until: i64) -> usize {
    follow(&*fresh.store, Micros(until), Micros(until + 1)).await.expect("the store answers")
}

on_every_store! {
    an_entry_without_its_row_is_joined_later
    a_user_is_created_from_an_entry_without_a_row
    interrupted_writes_at_random_are_joined_later
    a_row_that_cannot_be_written_is_joined_when_it_can
    an_entry_of_a_process_with_another_clock_is_joined
    processes_that_follow_the_log_at_the_same_time_leave_out_no_entry
    what_a_stale_write_logged_is_in_the_row
    a_repeated_delivery_with_another_time_changes_nothing
    a_repeated_delivery_that_cannot_be_decoded_changes_no_user
    concurrent_deliveries_of_an_event_with_other_times_lead_to_the_log
}

async fn an_entry_without_its_row_is_joined_later(fresh: Fresh) {
    applied(&*fresh.store, memberships(5, &["org_1"]), 5).await;
    // A read that shows no difference between the organizations, and the row of which is not written: what it says of others counts.
    interrupted(&fresh, codes(10, &["org_1", "org_3"]), 10).await;
    applied(&*fresh.store, memberships(20, &["org_1", "org_2"]), 20).await;
    let reads = EventFilter { kind: Some("kinsync.check.read".into()), limit: 9, ..EventFilter::default() };
    let read = fresh.store.events(&reads).await.expect("the store answers").items.remove(0);
    let found = rebuild(&*fresh.store, Mode::Verify).await;
    let fields: Vec<&DifferentField> = found.differences.iter().flat_map(|one| &one.fields).collect();
    let since_read = |field: &str| DifferentField {
        field: field.to_owned(),
        since: Some(read.id.clone()),
        unexplained: None,
    };
    let expected = [since_read("organizations"), since_read("createdAt")];
    assert_eq!(fields, expected.iter().collect::<Vec<_>>(), "the entry that the row lacks is named");
    assert_eq!(followed(&fresh, 10).await, 0, "too early");
    assert_eq!(followed(&fresh, 100).await, 1);
    assert_explained(&*fresh.store, fresh.name).await;
    let before = rows(&*fresh.store).await.remove(0).revision;
    assert_eq!(followed(&fresh, 200).await, 0);
    assert_eq!(rows(&*fresh.store).await.remove(0).revision, before, "nothing is written");
}

async fn a_user_is_created_from_an_entry_without_a_row(fresh: Fresh) {
    interrupted(&fresh, named(ADA, 10, "Ada"), 10).await;
    assert_eq!(followed(&fresh, 100).await, 1);
    assert_eq!(documents(&*fresh.store).await[ADA].first_name.as_deref(), Some("Ada"));
    assert_explained(&*fresh.store, fresh.name).await;
}

async fn interrupted_writes_at_random_are_joined_later(fresh: Fresh) {
    const SEED: u64 = 20_261_128;
    let mut rng = StdRng::seed_from_u64(SEED);
    let lists: [&[&str]; 5] =
        [&[], &["org_1"], &["org_2"], &["org_1", "org_2"], &["org_1", "org_2", "org_3"]];
    let mut joined = 0;
    for now in 1..=300 {
        let (at, list) = (now + rng.random_range(-20..20), lists[rng.random_range(0..lists.len())]);
        let what = rng.random_range(0..6);
        match what {
            0 => applied(&*fresh.store, memberships(at, list), now).await,
            1 => applied(&*fresh.store, codes(at, list), now).await,
            2 => applied(&*fresh.store, named(ADA, at, "Ada"), now).await,
            _ => {
                let faulty = faulty(&fresh, Fault::new("write", Failure::All));
                let read = if what == 3 { named(ADA, at, "Eve") } else { codes(at, list) };
                // Without news it writes nothing.
                _ = apply(&faulty, [read], Micros(now)).await;
            }
        }
        if now % 25 == 0 {
            joined += followed(&fresh, now + 1).await;
            assert_explained(&*fresh.store, &format!("{}, seed {SEED}, step {now}", fresh.name)).await;
        }
    }
    assert!(joined >= 6, "{joined} of 12 groups of steps lacked an entry");
}

async fn a_row_that_cannot_be_written_is_joined_when_it_can(fresh: Fresh) {
    const EVE: &str = crate::faulty::BAD;
    let fault = Fault::new("write", Failure::All);
    let both = [named(ADA, 10, "Ada"), named(EVE, 10, "Eve")];
    apply(&faulty(&fresh, fault), both, Micros(10)).await.expect_err("the write fails");
    for until in [100, 200] {
        let store = faulty(&fresh, Fault::new("write", Failure::OneUser));
        let joined = follow(&store, Micros(until), Micros(until)).await.expect("the store answers");
        assert_eq!(joined, usize::from(until == 100), "the other user is joined at once");
    }
    // Its entry is older than what is compared now.
    assert_eq!(followed(&fresh, 300).await, 1);
    assert_eq!(documents(&*fresh.store).await[EVE].first_name.as_deref(), Some("Eve"));
    assert_explained(&*fresh.store, fresh.name).await;
    assert_eq!(followed(&fresh, 400).await, 0);
}

async fn an_entry_of_a_process_with_another_clock_is_joined(fresh: Fresh) {
    const HOUR: i64 = 3_600_000_000;
    applied(&*fresh.store, named("kp_eve", 1, "Eve"), 100 * HOUR).await;
    // A process with a clock that is days ahead.
    assert_eq!(followed(&fresh, 200 * HOUR).await, 0);
    interrupted(&fresh, named(ADA, 10, "Ada"), 101 * HOUR).await;
    assert_eq!(followed(&fresh, 101 * HOUR + 1).await, 1, "{}", fresh.name);
    assert_eq!(followed(&fresh, 101 * HOUR + 2).await, 0);
    // One that is behind by less than an hour.
    interrupted(&fresh, named(ADA, 20, "Augusta"), 101 * HOUR - HOUR / 2).await;
    assert_eq!(followed(&fresh, 102 * HOUR + 1).await, 1, "{}", fresh.name);
    assert_explained(&*fresh.store, fresh.name).await;
}

async fn processes_that_follow_the_log_at_the_same_time_leave_out_no_entry(fresh: Fresh) {
    const SEED: u64 = 20_261_129;
    let mut rng = StdRng::seed_from_u64(SEED);
    for round in 1..=30_i64 {
        let now = round * 100;
        for n in 0..4 {
            interrupted(&fresh, named(&format!("kp_{n}"), now + n, "Ada"), now + 10 * n).await;
        }
        // Each has another end, and one of them is killed at a call of the store.
        let process = async |until: i64, kill: usize| {
            let process = Suspended::new(fresh.store.clone());
            process.suspend_at_call(kill);
            tokio::select! {
                done = follow(&*process, Micros(until), Micros(now + 99)) => {
                    done.expect("the store answers");
                }
                () = process.until_suspended() => {}
            }
        };
        let ends = [now + 15, now + 25].map(|end| end + rng.random_range(-10..60));
        tokio::join!(process(ends[0], rng.random_range(0..12)), process(ends[1], usize::MAX));
        if rng.random_bool(0.3) {
            followed(&fresh, now + 99).await;
            let when = format!("{}, seed {SEED}, round {round}", fresh.name);
            assert_explained(&*fresh.store, &when).await;
        }
    }
}

async fn what_a_stale_write_logged_is_in_the_row(fresh: Fresh) {
    applied(&*fresh.store, named(ADA, 1, "Ada"), 1).await;
    let deleted = kinsync_core::Entry::deleted(&Version::event(Micros(20), "deleted"));
    let deleted = Change { kind: Kind::Organization, id: "org_1".into(), entry: deleted };
    directory::observe(&*fresh.store, vec![deleted]).await.expect("the store answers");
    // Another process writes the row between the read and the write: without the organization, so nothing ends there.
    let other = Arc::clone(&fresh.store);
    let work = async move { applied(&*other, memberships(15, &[]), 15).await };
    applied(&faulty(&fresh, Fault::after_first_read(work)), memberships(10, &["org_1"]), 30).await;
    let ended =
        EventFilter { kind: Some("kinsync.organization.deleted".into()), limit: 9, ..EventFilter::default() };
    let ended = fresh.store.events(&ended).await.expect("the store answers").items;
    assert_eq!(ended.len(), 1, "the first attempt logged the end");
    assert_explained(&*fresh.store, fresh.name).await;
}

fn delivery(at: i64, event: &str, name: &str) -> Entry {
    let user = format!(r#"{{"id":"{ADA}","first_name":"{name}","organizations":[{{"code":"org_{at}"}}]}}"#);
    event_entry("user.updated", at, event, &user)
}

async fn a_repeated_delivery_with_another_time_changes_nothing(fresh: Fresh) {
    // Each has a queue of its own, which does not know the ids of the others.
    _ = deliver(&fresh, [delivery(1, "event_1", "Ada"), delivery(2, "event_2", "Augusta")]).await;
    let before = rows(&*fresh.store).await.remove(0);
    _ = deliver(&fresh, [delivery(3, "event_1", "Ada")]).await;
    let after = rows(&*fresh.store).await.remove(0);
    assert_eq!(after.document().first_name.as_deref(), Some("Augusta"));
    assert_eq!((after.state, after.revision), (before.state, before.revision));
    assert_explained(&*fresh.store, fresh.name).await;
}

async fn a_repeated_delivery_that_cannot_be_decoded_changes_no_user(fresh: Fresh) {
    let text = format!(r#"{{"id":"{ADA}","first_name":"Ad?"}}"#);
    let mut damaged = event_entry("user.created", 1, "event_1", &text);
    let Payload::Delivery { body, .. } = &mut damaged.payload else { panic!("a delivery") };
    // Not UTF-8.
    *body = body.iter().map(|byte| if *byte == b'?' { 0xe4 } else { *byte }).collect::<Vec<_>>().into();
    for _ in 0..2 {
        let (engine, _dir) = deliver(&fresh, [damaged.clone()]).await;
        assert_eq!(engine.queue().stats().await.expect("the queue is open").dead_letters, 1);
        assert!(rows(&*fresh.store).await.is_empty(), "{}", fresh.name);
    }
}

async fn concurrent_deliveries_of_an_event_with_other_times_lead_to_the_log(fresh: Fresh) {
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let [one, other] = &dirs;
    let one = engine(one.path(), &fresh.store, projector::Config::default()).await;
    let other = engine(other.path(), &fresh.store, projector::Config::default()).await;
    for n in 0..200 {
        for (at, engine) in [(2 * n, &one), (2 * n + 1, &other)] {
            let event = delivery(at, &format!("event_{n}"), &format!("Ada {n}"));
            engine.queue().enqueue(event).await.expect("the queue takes it");
        }
    }
    tokio::join!(drain(&one), drain(&other));
    assert_explained(&*fresh.store, fresh.name).await;
}
