//! What Kinde's profile endpoint tells, when it is slow, when nobody waits any more, and when the store is away.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode, header};
use kinde_emulator::{Emulator, Fault, FaultKind};
use kinsync_core::{Field, Micros, Profile, What};
use kinsync_engine::{Store, internal::pending_checks::PendingChecks};
use kinsync_testing::mongo::TestMongo;
use kinsync_tower::{
    CurrentUser,
    authenticator::{Config, Refresh, RefreshOutcome},
};
use tokio::time::{Instant, timeout};

use crate::authenticator::{Process, embedded, kinde, on_mongo, stored, tell, token, until};

/// How slow the endpoint is: longer than anybody here waits for it.
const SLOW: Duration = Duration::from_secs(2);

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

fn slow(kinde: &Emulator) {
    kinde.set_fault(Fault::always(FaultKind::Slow { min: SLOW, max: SLOW }).on("profile"));
}

/// A user whose name only the profile endpoint tells, and who is not filled in for being unknown.
async fn known(kinde: &Emulator, store: &Arc<dyn Store>) -> (String, String) {
    let (id, token) = token(kinde, "ada@example.com");
    tell(store, &id, What::Fields(Profile::new().with(Field::Email, "ada@example.com"))).await;
    (id, token)
}

async fn first_name(store: &Arc<dyn Store>, id: &str) -> Option<String> {
    stored(store, id).await.unwrap().first_name
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_kinde_costs_a_refresh_its_deadline_and_what_it_says_is_stored_all_the_same() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let config = Config { profile_deadline: Duration::from_millis(200), ..Config::default() };
    let process = Process::start(&kinde, &store, config);
    let (id, token) = known(&kinde, &store).await;
    slow(&kinde);
    let began = Instant::now();
    let refreshes = (0..8).map(|_| refresh(&process, &token));
    let became = futures_util::future::join_all(refreshes).await;
    assert!(became.iter().all(|became| *became == RefreshOutcome::Unavailable), "{became:?}");
    assert!(began.elapsed() < SLOW, "{:?}", began.elapsed());
    until(async || first_name(&store, &id).await.as_deref() == Some("Ada")).await;
    assert_eq!(kinde.requests("profile"), 1, "who waits for one user shares one question");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_to_somebody_who_left_is_not_lost() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let config = Config { profile_deadline: 2 * SLOW, ..Config::default() };
    let process = Process::start(&kinde, &store, config);
    let (id, token) = known(&kinde, &store).await;
    slow(&kinde);
    let left = timeout(Duration::from_millis(200), refresh(&process, &token)).await;
    assert!(left.is_err(), "it is slow");
    until(async || first_name(&store, &id).await.as_deref() == Some("Ada")).await;
    assert_eq!(kinde.requests("profile"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn kinde_is_not_asked_for_what_cannot_be_stored_and_nobody_pays_for_that_later() {
    let (kinde, server) = (kinde().await, TestMongo::start_own().await);
    let store = on_mongo(&server).await;
    let config = Config { profile_min_age: Duration::ZERO, ..Config::default() };
    let process = Process::start(&kinde, &store, config);
    let (_, token) = known(&kinde, &store).await;
    assert_eq!(refresh(&process, &token).await, RefreshOutcome::Now);
    server.pause();
    let is_degraded = async || authenticate(&process, &token).await.is_degraded();
    until(is_degraded).await;
    until(async || !process.authenticator.breaker().try_ready()).await;
    let asked = kinde.requests("profile");
    for _ in 0..5 {
        assert_eq!(refresh(&process, &token).await, RefreshOutcome::Unavailable);
    }
    // A probe of the store may let one through.
    assert!(kinde.requests("profile") <= asked + 1, "Kinde is spared");
    server.resume();
    until(async || !is_degraded().await).await;
    assert_eq!(refresh(&process, &token).await, RefreshOutcome::Now, "at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_whom_only_a_sign_in_is_known_is_filled_in() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let process = Process::start(&kinde, &store, Config::default());
    // As after an import, which sends nothing.
    let (id, token) = token(&kinde, "ada@example.com");
    tell(&store, &id, What::SignedIn(Micros(1_700_000_000_000_000))).await;
    assert_eq!(process.get(&token).await.status, StatusCode::OK);
    until(async || first_name(&store, &id).await.as_deref() == Some("Ada")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_profile_of_a_verified_token_requests_a_check_of_the_user() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let process = Process::start(&kinde, &store, Config::default());
    let (id, token) = known(&kinde, &store).await;
    assert_eq!(refresh(&process, &token).await, RefreshOutcome::Now);
    // The event is lost, and the token still verifies.
    kinde.delete_user(&id, kinde_emulator::Profile::Remove).unwrap();
    let process = Process::start(&kinde, &store, Config::default());
    assert_eq!(refresh(&process, &token).await, RefreshOutcome::Refused);
    let pending = PendingChecks::load(&*store).await.unwrap();
    assert_eq!(pending.users.keys().map(kinsync_core::UserId::as_str).collect::<Vec<_>>(), [id]);
}
