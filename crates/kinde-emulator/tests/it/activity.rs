//! The same seed generates the same activity, and all of its events are delivered.

use std::collections::{HashMap, HashSet};

use kinde_emulator::{Activity, Config, Emulator, User, activity::Action};
use tokio_util::sync::CancellationToken;

use crate::receiver::{DEADLINE, start, until};

type Profiles = Vec<(Option<String>, Option<String>, bool)>;

async fn generate(seed: u64) -> (Profiles, HashSet<Action>) {
    let emulator = Emulator::start(Config::default()).await.unwrap();
    let mut activity = Activity::new(seed);
    let actions = (0..400).map(|_| activity.step(&emulator)).collect();
    let profile = |user: User| (user.email, user.first_name, user.is_suspended);
    (emulator.users().into_iter().map(profile).collect(), actions)
}

#[tokio::test]
async fn the_same_seed_generates_the_same_users_with_every_action() {
    let (users, actions) = generate(7).await;
    assert_eq!(users, generate(7).await.0);
    assert_ne!(users, generate(8).await.0);
    assert_eq!(actions.len(), 9, "{actions:?}");
    assert!(users.iter().any(|(email, ..)| email.is_none()), "a user without email");
}

#[tokio::test]
async fn the_last_event_of_each_user_carries_its_current_state() {
    let (emulator, receiver) = start(Config::default()).await;
    let (cancel, mut activity) = (CancellationToken::new(), Activity::new(3));
    tokio::select! {
        () = activity.run(&emulator, 2000.0, &cancel) => {}
        () = until("more than 150 events", || emulator.stats().events > 150) => cancel.cancel(),
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
