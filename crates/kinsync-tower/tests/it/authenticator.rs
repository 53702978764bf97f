//! The layer on real parts: tokens of a local Kinde, a queue on disk, stores that fail.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bson::doc;
use http::{HeaderMap, Request, StatusCode};
use kinde::bearer::AccessToken;
use kinde_emulator::{Fault, FaultKind, NewUser, TokenSpec};
use kinsync_core::{Field, Micros, Profile, Source, What};
use kinsync_engine::{
    Clock,
    internal::store::{Store, UserFilter},
};
use kinsync_testing::mongo::TestMongo;
use kinsync_tower::authenticator::{Claims, Config, claims};
use serde_json::Value;
use tokio::time::Instant;

use crate::process::{
    DEADLINE, Process, embedded, kinde, observe, on_mongo, refused_within_a_second, stored, token,
    unprepared, until,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_first_request_of_a_user_finds_the_user_stored() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let process = Process::start(&kinde, &store, Config::default()).await;
    let (id, token) = token(&kinde, "ada@example.com");
    let answer = process.get(&token).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!(answer.body["stored"], true);
    assert!(!answer.headers.contains_key("x-kinsync-degraded"));
    let ada = stored(&store, &id).await.unwrap();
    assert_eq!((ada.email.as_deref(), ada.source), (Some("ada@example.com"), Some(Source::Login)));
    observe(&store, &id, What::Fields(Profile::new().with(Field::Email, "new@example.com"))).await;
    assert_eq!(stored(&store, &id).await.unwrap().email.as_deref(), Some("new@example.com"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_request_waits_for_a_store_that_is_still_being_prepared() {
    let (kinde, server) = (kinde().await, TestMongo::shared().await);
    let config = Config { deadline: DEADLINE, ..Config::default() };
    let process = Process::on_mongodb(&kinde, server, config).await;
    let (_, token) = token(&kinde, "ada@example.com");
    // The engine prepares the store when it is started.
    let (answer, ()) = tokio::join!(process.get(&token), async { process.engine.start() });
    assert_eq!((answer.status, &answer.body["stored"]), (StatusCode::OK, &Value::Bool(true)));
    assert!(!answer.headers.contains_key("x-kinsync-degraded"));
    process.engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_concurrent_first_requests_in_many_processes_create_each_user_once() {
    let server = TestMongo::shared().await;
    let (embedded, _folder) = embedded();
    for store in [on_mongo(server).await, embedded] {
        let kinde = kinde().await;
        let config = Config { deadline: DEADLINE, ..Config::default() };
        let processes = Process::start_three(&kinde, &store, config).await;
        let tokens: Vec<_> = (0..100).map(|n| token(&kinde, &format!("u{n}@example.com")).1).collect();
        let requests = tokens.iter().flat_map(|token| processes.iter().map(|p| p.get(token)));
        for answer in futures_util::future::join_all(requests).await {
            assert_eq!((answer.status, &answer.body["stored"]), (StatusCode::OK, &Value::Bool(true)));
        }
        let all = UserFilter { limit: 1000, with_deleted: true, ..UserFilter::default() };
        assert_eq!(store.users(&all).await.unwrap().len(), 100);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_and_suspended_users_are_refused_within_a_second_in_every_process() {
    let changes = [
        ("deleted", What::Deleted),
        ("suspended", What::Fields(Profile::new().with(Field::IsSuspended, true))),
    ];
    for (reason, change) in changes {
        let (kinde, (store, _folder)) = (kinde().await, embedded());
        // No request is degraded, however slow the machine is.
        let config = Config { deadline: DEADLINE, ..Config::default() };
        let processes = Process::start_three(&kinde, &store, config).await;
        let (id, token) = token(&kinde, "ada@example.com");
        for process in &processes {
            assert_eq!(process.get(&token).await.status, StatusCode::OK);
        }
        observe(&store, &id, change).await;
        let changed = Instant::now();
        for process in &processes {
            refused_within_a_second(changed, async || process.get(&token).await.status).await;
        }
        let answer = processes[0].get(&token).await;
        assert_eq!((answer.status, &answer.body["reason"]), (StatusCode::FORBIDDEN, &Value::from(reason)));
        if reason == "deleted" {
            assert!(stored(&store, &id).await.unwrap().is_deleted, "a token does not restore a deleted user");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_and_suspensions_that_a_validator_refuses_are_honoured() {
    let server = TestMongo::shared().await;
    let mongo = unprepared(server).await;
    mongo.prepare().await.unwrap();
    let (kinde, store): (_, Arc<dyn Store>) = (kinde().await, Arc::new(mongo.clone()));
    let process = Process::start(&kinde, &store, Config { deadline: DEADLINE, ..Config::default() }).await;
    let (ada, eve) = (token(&kinde, "ada@example.com"), token(&kinde, "eve@example.com"));
    for (_, token) in [&ada, &eve] {
        assert_eq!(process.get(token).await.status, StatusCode::OK);
    }
    let validator = doc! { "$jsonSchema": { "required": ["tenant"] } };
    mongo.database().unwrap().run_command(doc! { "collMod": "users", "validator": validator }).await.unwrap();
    observe(&store, &ada.0, What::Deleted).await;
    observe(&store, &eve.0, What::Fields(Profile::new().with(Field::IsSuspended, true))).await;
    for ((_, token), reason) in [(&ada, "deleted"), (&eve, "suspended")] {
        until(async || process.get(token).await.status == StatusCode::FORBIDDEN).await;
        assert_eq!(process.get(token).await.body["reason"], reason);
    }
    process.engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_reloaded_in_the_background_share_loads() {
    let (kinde, server) = (kinde().await, TestMongo::start_own().await);
    let store = on_mongo(&server).await;
    // No cached user becomes so old that a request waits for its reload.
    let config = Config {
        refresh_after: Duration::from_secs(1),
        stale_after: DEADLINE * 2,
        deadline: DEADLINE,
        ..Config::default()
    };
    let process = Process::start(&kinde, &store, config).await;
    let tokens: Vec<_> = (0..200).map(|n| token(&kinde, &format!("u{n}@example.com"))).collect();
    let named = async |name: &str| {
        for (n, (id, _)) in tokens.iter().enumerate() {
            let email = format!("{name}{n}@example.com");
            observe(&store, id, What::Fields(Profile::new().with(Field::Email, email.as_str()))).await;
        }
    };
    let admin = server.client().await.database("admin");
    let finds = async || {
        let status = admin.run_command(doc! { "serverStatus": 1 }).await.unwrap();
        status.get_document("opcounters").unwrap().get_i64("query").unwrap()
    };
    named("old").await;
    for (_, token) in &tokens {
        assert_eq!(process.get(token).await.body["stored"], true);
    }
    named("new").await;
    tokio::time::sleep(config.refresh_after).await;
    let (before, started) = (finds().await, Instant::now());
    for (n, (_, token)) in tokens.iter().enumerate() {
        let email = process.get(token).await.body["email"].clone();
        assert_eq!(email, format!("old{n}@example.com"), "the request does not wait for the reload");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    for (n, (_, token)) in tokens.iter().enumerate() {
        let email = format!("new{n}@example.com");
        until(async || process.get(token).await.body["email"] == email.as_str()).await;
    }
    let loads = finds().await - before;
    let elapsed = i64::try_from(started.elapsed().as_millis()).unwrap();
    // Loads collect for 50 ms, and look for refused users and changed roles, which are three reads, every 200 ms.
    let most = elapsed / 50 + 3 * (elapsed / 200) + 5;
    assert!(loads <= most, "{loads} reads for {} users", tokens.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_json_of_a_user_is_made_once_for_each_change() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    // Each request loads the user.
    let config = Config { stale_after: Duration::ZERO, flush_every: DEADLINE, ..Config::default() };
    let process = Process::start(&kinde, &store, config).await;
    let (id, token) = token(&kinde, "ada@example.com");
    let named =
        async |name| observe(&store, &id, What::Fields(Profile::new().with(Field::FirstName, name))).await;
    let bearer = format!("Bearer {token}").parse().unwrap();
    let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, bearer)]);
    let json = async || process.authenticator.authenticate(&headers).await.unwrap().json();
    named("Ada").await;
    let (first, again) = (json().await, json().await);
    assert_eq!(first.body().as_ptr(), again.body().as_ptr(), "the user did not change");
    named("Augusta").await;
    let changed = json().await;
    let body: Value = serde_json::from_slice(changed.body()).unwrap();
    assert_eq!((&body["kindeId"], &body["firstName"]), (&id.as_str().into(), &"Augusta".into()));
    assert_ne!(changed.etag(), first.etag());
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_kinsync_in_a_request_are_removed() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let process = Process::start(&kinde, &store, Config::default()).await;
    let (_, token) = token(&kinde, "ada@example.com");
    let request = Request::get("/")
        .header("authorization", format!("Bearer {token}"))
        .header("X-Kinsync-User-Id", "kp_admin")
        .header("x-kinsync-user-id", "kp_root")
        .header("x-kinsync-email", "root@example.com");
    let answer = process.send(request.body(()).unwrap()).await;
    assert_eq!(answer.body["own"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_a_request_is_written_as_last_seen_in_the_background() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let config = Config { flush_every: Duration::from_millis(20), ..Config::default() };
    let process = Process::start(&kinde, &store, config).await;
    let (id, token) = token(&kinde, "ada@example.com");
    let before = Clock::system().now();
    process.get(&token).await;
    until(async || stored(&store, &id).await.unwrap().last_seen_at.is_some_and(|at| at >= before)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_last_seen_is_written_at_the_stop() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let process = Process::start(&kinde, &store, Config::default()).await;
    let (id, token) = token(&kinde, "ada@example.com");
    process.get(&token).await;
    process.engine.stop().await;
    assert!(stored(&store, &id).await.unwrap().last_seen_at > Some(Micros(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_degrades_requests_within_the_deadline_and_loses_no_user() {
    let (kinde, server) = (kinde().await, TestMongo::start_own().await);
    let store = on_mongo(&server).await;
    let config = Config::default();
    let process = Process::start(&kinde, &store, config).await;
    let (deleted, deleted_token) = token(&kinde, "deleted@example.com");
    let (known, known_token) = token(&kinde, "known@example.com");
    assert_eq!(process.get(&deleted_token).await.status, StatusCode::OK);
    assert_eq!(process.get(&known_token).await.body["stored"], true);
    observe(&store, &deleted, What::Deleted).await;
    until(async || process.get(&deleted_token).await.status == StatusCode::FORBIDDEN).await;
    server.pause();
    tokio::time::sleep(config.stale_after).await;
    // Below the time after which the driver gives up.
    let bound = config.deadline + config.sighting_deadline + Duration::from_secs(3);
    let mut made = Vec::new();
    for n in 0..8 {
        let (id, token) = token(&kinde, &format!("u{n}@example.com"));
        let began = Instant::now();
        let answer = process.get(&token).await;
        assert!(began.elapsed() < bound, "request {n}: {:?}", began.elapsed());
        assert_eq!((answer.status, &answer.body["stored"]), (StatusCode::OK, &Value::Bool(false)));
        assert_eq!(answer.headers["x-kinsync-degraded"], "true");
        made.push(id);
    }
    let answer = process.get(&known_token).await;
    assert_eq!((answer.body["id"].as_str(), &answer.body["stored"]), (Some(&*known), &Value::Bool(true)));
    assert_eq!(answer.headers["x-kinsync-degraded"], "true");
    assert_eq!(
        process.get(&deleted_token).await.status,
        StatusCode::FORBIDDEN,
        "a deletion is enforced while the store is unavailable"
    );
    assert_eq!(process.engine.queue().stats().await.unwrap().depth, 8, "each sighting is on disk");
    server.resume();
    process.project().await;
    for id in made {
        assert!(stored(&store, &id).await.is_some(), "{id} is stored without another request");
    }
    until(async || !process.get(&known_token).await.headers.contains_key("x-kinsync-degraded")).await;
}

/// Claims of an application that added a name to its tokens.
#[derive(Debug)]
struct Named;

impl Claims for Named {
    fn profile(&self, token: &AccessToken) -> Profile {
        let name = token.claims.get("first_name").and_then(Value::as_str).unwrap_or_default();
        claims::Email.profile(token).with(Field::FirstName, name)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_claims_fill_a_new_user_and_values_of_kinde_replace_them() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    kinde.set_fault(Fault::always(FaultKind::Status { status: 503 }).on("profile"));
    let ada = kinde.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap().id;
    let claims = serde_json::json!({ "first_name": "Token", "email": "token@example.com" });
    let claims = claims.as_object().unwrap().clone();
    let token = kinde.access_token(&ada, &TokenSpec { claims, ..TokenSpec::default() }).unwrap();
    let process = Process::with_claims(&kinde, &store, Named).await;
    assert_eq!(process.get(&token).await.body["email"], "token@example.com");
    let first_name = async || stored(&store, &ada).await.unwrap().first_name;
    assert_eq!(first_name().await.as_deref(), Some("Token"));
    kinde.clear_faults();
    until(async || {
        process.get(&token).await;
        first_name().await.as_deref() == Some("Ada")
    })
    .await;
}

/// Claims with a fault: the first call panics, in the task that loads users.
#[derive(Debug, Default)]
struct PanicsOnce(AtomicBool);

impl Claims for PanicsOnce {
    fn profile(&self, token: &AccessToken) -> Profile {
        assert!(self.0.swap(true, Ordering::SeqCst), "a fault in the application's claims");
        claims::Email.profile(token)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_the_loader_is_reported_and_degrades_requests_only_for_a_moment() {
    let (kinde, (store, _folder)) = (kinde().await, embedded());
    let ada = kinde.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace")).unwrap().id;
    let process = Process::with_claims(&kinde, &store, PanicsOnce::default()).await;
    let token = kinde.access_token(&ada, &TokenSpec::default()).unwrap();
    let answer = process.get(&token).await;
    assert!(answer.headers.contains_key("x-kinsync-degraded"), "the load panicked");
    until(async || {
        let failure = process.engine.supervisor().status()["authenticator"].failure.clone();
        failure.is_some_and(|cause| cause.contains("a fault in the application's claims"))
    })
    .await;
    until(async || !process.get(&token).await.headers.contains_key("x-kinsync-degraded")).await;
    assert_eq!(process.engine.supervisor().status()["authenticator"].restarts, 1);
    process.engine.stop().await;
}
