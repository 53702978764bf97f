//! Refreshes from Kinde's profile endpoint: when it is slow, when the request has ended, and when the store is unavailable.

use std::{sync::Arc, time::Duration};

use bson::doc;
use http::{HeaderMap, StatusCode, header};
use kinde_emulator::Emulator;
use kinsync_core::{Field, Micros, Profile, What};
use kinsync_engine::internal::{pending_checks::PendingChecks, store::Store};
use kinsync_testing::mongo::TestMongo;
use kinsync_tower::{
    CurrentUser,
    authenticator::{Config, Refresh, RefreshOutcome},
};
use tokio::time::timeout;

use crate::process::{DEADLINE, Process, embedded, kinde, observe, on_mongo, stored, token, until};

fn bearer(token: &str) -> HeaderMap {
    HeaderMap::from_iter([(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap())])
}

async fn authenticate(process: &Process, token: &str) -> CurrentUser {
    process.authenticator.authenticate(&bearer(token)).await.unwrap()
}

async fn refresh(process: &Process, token: &str) -> RefreshOutcome {
    let user = authenticate(process, token).await;
    process.authenticator.refresh(user, &bearer(token), Refresh::Force).await.unwrap().1
}

/// A stored user without a name, which only the profile endpoint returns.
async fn known(kinde: &Emulator, store: &Arc<dyn Store>) -> (String, String) {
    let (id, token) = token(kinde, "ada@example.com");
    observe(store, &id, What::Fields(Profile::new().with(Field::Email, "ada@example.com"))).await;
    (id, token)
}

async fn first_name(store: &Arc<dyn Store>, id: &str) -> Option<String> {
    stored(store, id).await.unwrap().first_name
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_ends_at_its_deadline_and_a_late_profile_is_stored() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let config = Config { profile_deadline: Duration::from_millis(200), ..Config::default() };
    let process = Process::start(&kinde, &store, config).await;
    let (id, token) = known(&kinde, &store).await;
    let held = kinde.hold("profile", 1);
    let refreshes = futures_util::future::join_all((0..8).map(|_| refresh(&process, &token)));
    let became = timeout(DEADLINE, refreshes).await.expect("each ends at its deadline");
    assert!(became.iter().all(|became| *became == RefreshOutcome::Unavailable), "{became:?}");
    drop(held);
    until(async || first_name(&store, &id).await.as_deref() == Some("Ada")).await;
    assert_eq!(kinde.requests("profile"), 1, "concurrent refreshes of one user share one request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_is_stored_although_its_request_was_cancelled() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let config = Config { profile_deadline: DEADLINE, ..Config::default() };
    let process = Process::start(&kinde, &store, config).await;
    let (id, token) = known(&kinde, &store).await;
    let held = kinde.hold("profile", 1);
    tokio::select! {
        became = refresh(&process, &token) => panic!("the request is held: {became:?}"),
        () = until(async || kinde.requests("profile") == 1) => {}
    }
    drop(held);
    until(async || first_name(&store, &id).await.as_deref() == Some("Ada")).await;
    assert_eq!(kinde.requests("profile"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_are_not_requested_while_the_store_is_unavailable_and_at_once_after_it() {
    let (kinde, server) = (kinde().await, TestMongo::start_own().await);
    let store = on_mongo(&server).await;
    let config = Config { profile_min_age: Duration::ZERO, ..Config::default() };
    let process = Process::start(&kinde, &store, config).await;
    let (_, token) = known(&kinde, &store).await;
    assert_eq!(refresh(&process, &token).await, RefreshOutcome::Now);
    server.pause();
    let is_degraded = async || authenticate(&process, &token).await.is_degraded();
    until(is_degraded).await;
    until(async || !process.authenticator.breaker().try_ready()).await;
    let before = kinde.requests("profile");
    for _ in 0..5 {
        assert_eq!(refresh(&process, &token).await, RefreshOutcome::Unavailable);
    }
    // A probe of the store may let one through.
    assert!(kinde.requests("profile") <= before + 1, "no request while nothing can be stored");
    server.resume();
    until(async || !is_degraded().await).await;
    assert_eq!(refresh(&process, &token).await, RefreshOutcome::Now, "at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_is_stored_although_the_log_takes_it_slowly() {
    let (kinde, server) = (kinde().await, TestMongo::start_own().await);
    let store = on_mongo(&server).await;
    let process = Process::start(&kinde, &store, Config::default()).await;
    let (id, token) = known(&kinde, &store).await;
    authenticate(&process, &token).await;
    // Here only the log is written by inserts. Longer than the authenticator waits for the store, and shorter than the store waits.
    let slow = doc! { "failCommands": ["insert"], "blockConnection": true, "blockTimeMS": 2_200 };
    let _slow = server.fail_point(doc! { "times": 1 }, slow).await;
    assert_eq!(refresh(&process, &token).await, RefreshOutcome::Unavailable);
    until(async || first_name(&store, &id).await.as_deref() == Some("Ada")).await;
    assert_eq!(kinde.requests("profile"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_nothing_but_a_sign_in_gets_its_profile() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let process = Process::start(&kinde, &store, Config::default()).await;
    // As after an import, which sends nothing.
    let (id, token) = token(&kinde, "ada@example.com");
    observe(&store, &id, What::SignedIn(Micros(1_700_000_000_000_000))).await;
    assert_eq!(process.get(&token).await.status, StatusCode::OK);
    until(async || first_name(&store, &id).await.as_deref() == Some("Ada")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_profile_of_a_verified_token_requests_a_check_of_the_user() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let process = Process::start(&kinde, &store, Config::default()).await;
    let (id, token) = known(&kinde, &store).await;
    assert_eq!(refresh(&process, &token).await, RefreshOutcome::Now);
    // The event is lost, and the token still verifies.
    kinde.delete_user(&id, kinde_emulator::Profile::Remove).unwrap();
    let process = Process::start(&kinde, &store, Config::default()).await;
    assert_eq!(refresh(&process, &token).await, RefreshOutcome::Refused);
    let pending = PendingChecks::load(&*store).await.unwrap();
    assert_eq!(pending.users.keys().map(kinsync_core::UserId::as_str).collect::<Vec<_>>(), [id]);
}
