//! Joins four observations of one user in every order and prints the result, which is always the same.
//!
//! `cargo run -p kinsync-core --example any_order`

#![expect(clippy::print_stdout, reason = "it prints the state")]

use std::error::Error;

use kinsync_core::{Field, Micros, Observation, Profile, Source, UserId, UserState, Version, What};

fn main() -> Result<(), Box<dyn Error>> {
    let user = UserId::parse("kp_ada")?;
    let named = |name: &str| What::Fields(Profile::new().with(Field::FirstName, name));
    let observation = |source, version, what| Observation { user: user.clone(), version, source, what };
    let event = |at, id: &str| Version::event(Micros(at), id);
    let observations = [
        observation(Source::Login, Version::provisional(), named("from the token")),
        observation(Source::Webhook, event(1_000_000, "event_1"), named("Ada")),
        observation(Source::Webhook, event(2_000_000, "event_2"), named("Augusta Ada")),
        observation(Source::Webhook, event(1_500_000, "event_3"), What::SignedIn(Micros(1_500_000))),
    ];
    let states = orders(&observations).into_iter().map(|order| {
        order.into_iter().fold(UserState::default(), |state, next| state.join(UserState::of(next)))
    });
    let states: Vec<UserState> = states.collect();
    assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "the order changed the result");
    println!("{} orders, one state:", states.len());
    println!("first name: {}", states[0].text(Field::FirstName).unwrap_or("unknown"));
    Ok(())
}

/// Every order of these observations.
fn orders(observations: &[Observation]) -> Vec<Vec<&Observation>> {
    let Some((first, rest)) = observations.split_first() else { return vec![Vec::new()] };
    let insert = |order: Vec<_>| {
        (0..=order.len()).map(move |at| {
            let mut order = order.clone();
            order.insert(at, first);
            order
        })
    };
    orders(rest).into_iter().flat_map(insert).collect()
}
