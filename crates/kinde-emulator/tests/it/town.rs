//! The scripted town lives the same life for the same seed, and all of it is delivered.

use std::collections::{HashMap, HashSet};

use kinde_emulator::{Config, Emulator, Town, User};
use tokio_util::sync::CancellationToken;

use crate::receiver::{DEADLINE, start, until};

type Looks = Vec<(Option<String>, Option<String>, bool)>;

async fn life(seed: u64) -> (Looks, HashSet<kinde_emulator::town::Step>) {
    let emulator = Emulator::start(Config::default()).await.unwrap();
    let mut town = Town::new(seed);
    let steps = (0..400).map(|_| town.step(&emulator)).collect();
    let look = |user: User| (user.email, user.first_name, user.is_suspended);
    (emulator.users().into_iter().map(look).collect(), steps)
}

#[tokio::test]
async fn the_same_seed_lives_the_same_life_and_does_everything() {
    let (users, steps) = life(7).await;
    assert_eq!(users, life(7).await.0);
    assert_ne!(users, life(8).await.0);
    assert_eq!(steps.len(), 9, "every kind of step: {steps:?}");
    assert!(users.iter().any(|(email, ..)| email.is_none()), "someone has no email");
}

#[tokio::test]
async fn the_last_event_of_each_user_tells_how_the_user_is() {
    let (emulator, receiver) = start(Config::default()).await;
    let (cancel, mut town) = (CancellationToken::new(), Town::new(3));
    tokio::select! {
        () = town.run(&emulator, 2000.0, &cancel) => {}
        () = until("the town is busy", || emulator.stats().events > 150) => cancel.cancel(),
    }
    emulator.quiesce(DEADLINE).await.unwrap();
    let mut latest = HashMap::new();
    for arrival in receiver.arrivals() {
        let payload = arrival.payload();
        let user = &payload["data"]["user"];
        let at: jiff::Timestamp = payload["timestamp"].as_str().unwrap().parse().unwrap();
        if user.get("first_name").is_some() {
            let entry = latest.entry(user["id"].as_str().unwrap().to_owned()).or_insert((at, user.clone()));
            if entry.0 < at {
                *entry = (at, user.clone());
            }
        }
    }
    assert!(!latest.is_empty());
    for (id, (_, payload)) in latest {
        let Some(user) = emulator.user(&id) else { continue };
        assert_eq!(payload["first_name"].as_str(), user.first_name.as_deref());
        assert_eq!(payload["email"].as_str(), user.email.as_deref());
    }
}
