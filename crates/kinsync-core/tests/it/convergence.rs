use kinsync_core::{Field, Micros, Observation, Profile, Source, UserState, Value, Version, What};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::strategies::{
    event, fold, named, observation, observations, profile, shuffled_with_duplicates, snapshot, version,
    without_confirmation,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn join_is_associative_commutative_and_idempotent(
        a in observations(), b in observations(), c in observations(),
    ) {
        let (a, b, c) = (fold(&a), fold(&b), fold(&c));
        prop_assert_eq!(a.clone().join(b.clone()), b.clone().join(a.clone()));
        prop_assert_eq!(
            a.clone().join(b.clone()).join(c.clone()),
            a.clone().join(b.join(c))
        );
        prop_assert_eq!(a.clone().join(a.clone()), a);
    }

    #[test]
    fn equal_versions_with_different_values_join_to_one(
        version in version(), one in profile(), other in profile(),
    ) {
        let observed = |profile| Observation {
            version: version.clone(), ..event(0, "", What::Fields(profile))
        };
        let (one, other) = (observed(one), observed(other));
        prop_assert_eq!(fold([&one, &other]), fold([&other, &one]));
        prop_assert_eq!(fold([&one, &other, &one]), fold([&one, &other]));
    }

    #[test]
    fn any_permutation_with_any_duplicates_gives_the_same_state(
        (original, shuffled) in observations().prop_flat_map(shuffled_with_duplicates),
    ) {
        prop_assert_eq!(fold(&original), fold(&shuffled));
    }

    #[test]
    fn folding_in_batches_is_folding_one_by_one(observations in observations(), cut in 0..12_usize) {
        let (first, second) = observations.split_at(cut.min(observations.len()));
        prop_assert_eq!(fold(first).join(fold(second)), fold(&observations));
    }

    #[test]
    fn an_event_applied_twice_at_any_two_places_is_an_event_applied_once(
        observations in observations(), again in observation(), at in 0..12_usize, and_at in 0..12_usize,
    ) {
        let mut once = observations.clone();
        once.insert(at.min(once.len()), again.clone());
        let mut twice = once.clone();
        twice.insert(and_at.min(twice.len()), again);
        prop_assert_eq!(fold(&once), fold(&twice));
    }

    #[test]
    fn only_a_confirmation_restores_a_deleted_user(
        before in vec((version(), without_confirmation()), 0..6),
        deleted_at in 0..6_i64,
        after in vec((version(), without_confirmation()), 0..6),
    ) {
        let observed = |(version, what): &(Version, What)| Observation {
            version: version.clone(), ..event(0, "", what.clone())
        };
        let mut state = fold(&before.iter().map(observed).collect::<Vec<_>>())
            .observe(&event(deleted_at, "deleted", What::Deleted));
        prop_assert!(!state.is_live());
        for later in after.iter().map(observed) {
            state = state.observe(&later);
            prop_assert!(!state.is_live(), "{later:?} restored the user");
            prop_assert_eq!(state.claimed_email(), None);
        }
    }

    #[test]
    fn registers_only_grow(observations in observations(), more in observation()) {
        let before = fold(&observations);
        let after = before.clone().observe(&more);
        for (field, register) in &before.fields {
            let is_lattice = matches!(field, Field::Organizations | Field::Properties);
            prop_assert!(is_lattice || after.fields[field] >= *register);
        }
        prop_assert_eq!(before.clone().join(after.clone()), after.clone());
        prop_assert!(after.deleted >= before.deleted);
        prop_assert!(after.last_seen >= before.last_seen);
        prop_assert!(after.last_signed_in >= before.last_signed_in);
        if let Some(event) = before.first.event {
            prop_assert!(after.first.event.is_some_and(|after| after <= event));
        }
        if let Some(read) = before.first.read {
            prop_assert!(after.first.read.is_some_and(|after| after <= read));
        }
        if let Some(created_on) = before.first.created_on {
            prop_assert!(after.first.created_on.is_some_and(|after| after <= created_on));
        }
    }

    #[test]
    fn any_event_or_snapshot_outranks_a_token(
        provisional in profile(), observed in profile(), at in 0..6_i64, is_snapshot in any::<bool>(),
    ) {
        let token = Observation {
            version: Version::provisional(), source: Source::Login, ..event(0, "", What::Fields(provisional))
        };
        let observation = if is_snapshot {
            snapshot(at, What::Fields(observed.clone()))
        } else {
            event(at, "e", What::Fields(observed.clone()))
        };
        let state = fold([&observation, &token]);
        let is_list = |field| matches!(field, Field::Organizations | Field::OrganizationCodes);
        // No token carries properties.
        let is_alone = |field| !is_list(field) && field != Field::Properties;
        for (field, value) in observed.iter().filter(|(field, _)| is_alone(*field)) {
            prop_assert_eq!(state.value(field), Some(value));
        }
        if observed.iter().any(|(field, _)| is_list(field)) {
            // A token may know what the observation leaves unknown.
            let codes = |state: &UserState| {
                let list = state.organizations().unwrap_or_default();
                list.into_iter().map(|organization| organization.code).collect::<Vec<_>>()
            };
            prop_assert_eq!(codes(&state), codes(&fold([&observation])));
        }
    }

    #[test]
    fn a_state_survives_serialization(observations in observations()) {
        let state = fold(&observations);
        let text = serde_json::to_string(&state).unwrap();
        prop_assert_eq!(serde_json::from_str::<UserState>(&text).unwrap(), state);
    }
}

proptest! {
    #[test]
    fn of_events_without_a_time_the_last_received_wins_in_any_order_of_arrival(
        (original, shuffled) in vec(select(vec!["A", "B", "C"]), 1..9)
            .prop_map(|names| received_in_a_row(&names))
            .prop_flat_map(shuffled_with_duplicates),
    ) {
        let (newest, joined) = (fold(&original[original.len() - 1..]), fold(&shuffled));
        prop_assert_eq!(joined.text(Field::FirstName), newest.text(Field::FirstName));
    }
}

/// Events without a time, received one after the other.
fn received_in_a_row(names: &[&str]) -> Vec<Observation> {
    let one = |(name, at): (&&str, i64)| Observation {
        version: Version::receipt(Micros(at), format!("{at:020}")),
        ..event(0, "", What::Fields(named(name)))
    };
    names.iter().zip(1..).map(one).collect()
}

#[test]
fn created_and_updated_events_differ_in_their_versions_only() {
    let update = event(2, "e2", What::Fields(named("Grace")));
    let late_create = event(1, "e1", What::Fields(named("Ada").with(Field::LastName, "Lovelace")));
    let state = fold([&update, &late_create]);
    assert_eq!(state.text(Field::FirstName), Some("Grace"), "the older name loses");
    assert_eq!(state.text(Field::LastName), Some("Lovelace"), "the update did not contain the last name");
}

#[test]
fn an_absent_field_keeps_its_value_and_null_clears_it() {
    let with_phone = event(1, "e1", What::Fields(named("Ada").with(Field::Phone, "+44")));
    let without_phone = event(2, "e2", What::Fields(named("Ada")));
    assert_eq!(fold([&with_phone, &without_phone]).text(Field::Phone), Some("+44"));
    let cleared = event(3, "e3", What::Fields(Profile::new().with(Field::Phone, Value::Null)));
    let state = fold([&with_phone, &without_phone, &cleared]);
    assert_eq!(state.text(Field::Phone), None);
    assert_eq!(state.value(Field::Phone), Some(&Value::Null), "null, not unknown");
}

#[test]
fn an_empty_email_is_null() {
    let phone_only =
        event(1, "e1", What::Fields(Profile::new().with(Field::Email, "").with(Field::Phone, "")));
    let state = fold([&phone_only]);
    assert_eq!(state.claimed_email(), None);
    assert_eq!(state.value(Field::Phone), Some(&Value::Null));
}

#[test]
fn a_delete_of_an_unknown_user_leaves_a_tombstone_that_a_late_create_does_not_remove() {
    let state = fold([&event(9, "e9", What::Deleted), &event(1, "e1", What::Fields(named("Ada")))]);
    assert!(!state.is_live());
    assert!(!state.needs_check(), "the create is older than the delete");
}

#[test]
fn at_equal_times_the_delete_wins_and_a_later_confirmation_restores() {
    let deleted = event(5, "e5", What::Deleted);
    let at = |at| snapshot(at, What::Exists(named("Ada")));
    assert!(!fold([&deleted, &at(4)]).is_live());
    assert!(!fold([&deleted, &at(5)]).is_live());
    assert!(fold([&deleted, &at(6)]).is_live());
    assert!(fold([&at(6), &deleted]).is_live(), "in any order");
    let again = event(7, "e7", What::Deleted);
    assert!(!fold([&again, &at(6), &deleted]).is_live(), "a later delete wins again");
}

#[test]
fn an_observation_newer_than_the_tombstone_needs_a_check() {
    let deleted = event(5, "e5", What::Deleted);
    let state = fold([&deleted, &event(6, "e6", What::Fields(named("Ada")))]);
    assert!(!state.is_live() && state.needs_check());
    let state = fold([&deleted, &event(6, "e6", What::SignedIn(Micros(6)))]);
    assert!(!state.is_live() && state.needs_check());
    let seen = event(6, "e6", What::Seen(Micros(6)));
    assert!(!fold([&deleted, &seen]).needs_check(), "a token stays valid for a day after the delete");
}

#[test]
fn an_event_during_a_read_wins_over_the_read() {
    let read = snapshot(5, What::Fields(named("before")));
    let change = event(6, "e6", What::Fields(named("after")));
    assert_eq!(fold([&change, &read]).text(Field::FirstName), Some("after"));
    let older = event(5, "e5", What::Fields(named("older")));
    assert_eq!(fold([&read, &older]).text(Field::FirstName), Some("before"), "the read contains the event");
}

#[test]
fn a_newer_scan_does_not_hide_events_about_other_fields() {
    let scan = snapshot(9, What::Fields(Profile::new().with(Field::Picture, "p.png")));
    let late_event = event(5, "e5", What::Fields(named("Ada")));
    let state = fold([&scan, &late_event]);
    assert_eq!(state.text(Field::FirstName), Some("Ada"));
    assert_eq!(state.text(Field::Picture), Some("p.png"));
}

#[test]
fn the_first_version_counts_events_snapshots_and_created_on_but_not_sightings() {
    let seen = event(1, "e1", What::Seen(Micros(1)));
    let token = Observation {
        version: Version::provisional(),
        source: Source::Login,
        ..event(0, "", What::Fields(named("Ada")))
    };
    assert_eq!(fold([&seen, &token]).first_version(), None);
    let changed = event(7, "e7", What::Fields(named("Ada")));
    assert_eq!(fold([&seen, &token, &changed]).first_version(), Some(changed.version.clone()));
    let scan = snapshot(9, What::Fields(Profile::new().with(Field::CreatedOn, Micros(3))));
    assert_eq!(fold([&changed, &scan]).first_version().map(|v| v.at), Some(Micros(3)));
}

#[test]
fn a_read_counts_for_the_first_version_only_until_created_on_is_known() {
    let read = snapshot(2, What::Fields(named("Ada")));
    let changed = event(7, "e7", What::Fields(named("Ada")));
    let first =
        |observations: &[&Observation]| fold(observations.iter().copied()).first_version().map(|v| v.at);
    assert_eq!(first(&[&read, &changed]), Some(Micros(2)));
    let created = snapshot(9, What::Fields(Profile::new().with(Field::CreatedOn, Micros(5))));
    assert_eq!(first(&[&read, &changed, &created]), Some(Micros(5)));
    let created_late = snapshot(9, What::Fields(Profile::new().with(Field::CreatedOn, Micros(8))));
    assert_eq!(first(&[&created_late, &read, &changed]), Some(Micros(7)));
}

#[test]
fn events_without_a_time_take_effect_in_the_order_of_receipt() {
    let named_at = |at, position: &str, name| Observation {
        version: Version::receipt(Micros(at), position),
        ..event(0, "", What::Fields(named(name)))
    };
    let names = ["A", "B", "A", "B"];
    let updates: Vec<_> = names.iter().zip(1..).map(|(name, at)| named_at(at, "", name)).collect();
    for (n, name) in names.iter().enumerate() {
        let mut seen: Vec<_> = updates[..=n].iter().collect();
        seen.reverse();
        assert_eq!(fold(seen).text(Field::FirstName), Some(*name), "after {} updates", n + 1);
    }
    let signed_in_one_second = [named_at(1, "00000002", "B"), named_at(1, "00000001", "A")];
    assert_eq!(fold(&signed_in_one_second).text(Field::FirstName), Some("B"));
    let timed = event(1, "e", What::Fields(named("C")));
    assert_eq!(fold([&timed, &signed_in_one_second[0]]).text(Field::FirstName), Some("C"), "at equal time");
}

#[test]
fn the_newest_sighting_and_the_newest_sign_in_win() {
    let at = |at| event(at, "e", What::SignedIn(Micros(at)));
    let seen = |at| event(at, "s", What::Seen(Micros(at)));
    let state = fold([&at(3), &at(9), &at(5), &seen(8), &seen(2)]);
    assert_eq!((state.last_signed_in, state.last_seen), (Some(Micros(9)), Some(Micros(8))));
}
