use kinsync_core::{Field, Observation, Profile, Source, UserId, UserState, Version, What, email};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::strategies::{event, fold, observations, shuffled_with_duplicates, user};

const USERS: [&str; 4] = ["kp_1", "kp_2", "kp_3", "kp_4"];

/// Observations of several users with two addresses among them.
fn history() -> impl Strategy<Value = Vec<Observation>> {
    let one = (select(USERS.to_vec()), observations());
    vec(one, 1..5).prop_map(|users| {
        let of = |(name, observations): (&str, Vec<Observation>)| {
            let id = user(name);
            observations.into_iter().map(move |o| Observation { user: id.clone(), ..o })
        };
        users.into_iter().flat_map(of).collect()
    })
}

fn states(history: &[Observation]) -> Vec<(UserId, UserState)> {
    let of = |name: &&str| {
        let id = user(name);
        let state = fold(history.iter().filter(|o| o.user == id));
        (id, state)
    };
    USERS.iter().map(of).collect()
}

fn owner(states: &[(UserId, UserState)], address: &str) -> Option<UserId> {
    let claimants = states.iter().filter(|(_, state)| state.claimed_email() == Some(address));
    email::owner(claimants.map(|(id, state)| (id, state))).cloned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn ownership_depends_on_the_set_of_observations_alone(
        (original, shuffled) in history().prop_flat_map(shuffled_with_duplicates),
    ) {
        let (original, mut shuffled) = (states(&original), states(&shuffled));
        shuffled.reverse();
        for address in ["a", "b", "$$NOW"] {
            prop_assert_eq!(owner(&original, address), owner(&shuffled, address));
        }
    }

    #[test]
    fn every_claimed_address_has_exactly_one_live_owner(history in history()) {
        let states = states(&history);
        for address in ["a", "b", "$$NOW"] {
            let claimed = states.iter().any(|(_, state)| state.claimed_email() == Some(address));
            let owner = owner(&states, address);
            prop_assert_eq!(owner.is_some(), claimed);
            if let Some((_, state)) = states.iter().find(|(id, _)| Some(id) == owner.as_ref()) {
                prop_assert!(state.is_live());
            }
        }
    }
}

fn with_email(name: &str, at: i64, address: &str) -> (UserId, UserState) {
    let observed = event(at, "e", What::Fields(Profile::new().with(Field::Email, address)));
    (user(name), fold([&observed]))
}

#[test]
fn the_older_user_owns_the_address_and_the_smaller_id_breaks_ties() {
    let check = |claimants: &[(UserId, UserState)], expect: &str| {
        assert_eq!(owner(claimants, "a@example.com"), Some(user(expect)));
    };
    let older = with_email("kp_9", 1, "a@example.com");
    let younger = with_email("kp_1", 2, "a@example.com");
    check(&[younger.clone(), older.clone()], "kp_9");
    check(&[with_email("kp_2", 2, "a@example.com"), younger], "kp_1");
}

#[test]
fn a_user_known_from_a_token_alone_owns_an_address_only_without_other_claimants() {
    let token = Observation {
        version: Version::provisional(),
        source: Source::Login,
        ..event(0, "", What::Fields(Profile::new().with(Field::Email, "a@example.com")))
    };
    let provisional = (user("kp_1"), fold([&token]));
    assert_eq!(owner(std::slice::from_ref(&provisional), "a@example.com"), Some(user("kp_1")));
    let known = with_email("kp_2", 9, "a@example.com");
    assert_eq!(owner(&[provisional, known], "a@example.com"), Some(user("kp_2")));
}

#[test]
fn a_deleted_owner_gives_the_address_to_the_next_user() {
    let (id, state) = with_email("kp_1", 1, "a@example.com");
    let deleted = (id, state.observe(&event(5, "e5", What::Deleted)));
    let next = with_email("kp_2", 3, "a@example.com");
    assert_eq!(owner(&[deleted, next], "a@example.com"), Some(user("kp_2")));
}

#[test]
fn addresses_are_compared_as_they_are() {
    let list = with_email("kp_1", 1, "a@example.com,b@example.com");
    assert_eq!(owner(std::slice::from_ref(&list), "a@example.com"), None, "never split");
    let upper = with_email("kp_1", 1, "A@example.com");
    assert_eq!(owner(std::slice::from_ref(&upper), "a@example.com"), None, "never lowercased");
}
