//! An erased state absorbs every other state.

use kinsync_core::{Micros, Observation, UserState, Version};
use proptest::{collection::vec, prelude::*};

use crate::strategies::{fold, observation};

fn state() -> impl Strategy<Value = UserState> {
    let observed = vec(observation(), 0..6).prop_map(|observed: Vec<Observation>| fold(&observed));
    let erased = (0..4_i64).prop_map(|at| UserState::erased(Version::event(Micros(at), "gone")));
    prop_oneof![3 => observed, 1 => erased]
}

proptest! {
    #[test]
    fn the_join_with_erased_states_stays_a_join(a in state(), b in state(), c in state()) {
        let join = |one: &UserState, other: &UserState| one.clone().join(other.clone());
        prop_assert_eq!(join(&a, &b), join(&b, &a));
        prop_assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
        prop_assert_eq!(join(&a, &a), a);
    }

    #[test]
    fn nothing_is_added_to_an_erased_state(observed in vec(observation(), 0..12)) {
        let erased = UserState::erased(Version::event(Micros(2), "gone"));
        prop_assert_eq!(erased.clone().join(fold(&observed)), erased.clone());
        prop_assert!(!erased.is_live() && !erased.needs_check());
        let text = serde_json::to_string(&erased).expect("a state is JSON");
        prop_assert_eq!(serde_json::from_str::<UserState>(&text).expect("a state"), erased);
    }
}
