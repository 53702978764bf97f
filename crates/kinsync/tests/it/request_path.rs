//! Every authenticated request finds or creates its user: several real processes on one MongoDB, concurrent webhooks of the
//! same users, and outages of each dependency.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bson::doc;
use futures_util::{StreamExt, stream};
use kinde_emulator::{Fault, FaultKind, NewUser};
use kinsync_testing::mongo::TestMongo;
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    deployment::{DEADLINE, Deployment, named},
    server::{SECRET, kinsync},
};

/// Longest duration of a request, whatever fails: far above the deadlines of kinsync (the longest are 500 ms for the store
/// and 250 ms for the queue), below the 15 s of a slow dependency here.
const ANSWERED: Duration = Duration::from_secs(10);

/// Longest time from a webhook's 200 to the store, on a machine that is not overloaded.
const LAG: Duration = Duration::from_millis(250);

struct Reply {
    status: u16,
    degraded: bool,
    body: Value,
    took: Duration,
}

async fn request(deployment: &Deployment, process: usize, path: &str, token: &str) -> Reply {
    let app = &deployment.apps[process];
    let started = Instant::now();
    let answer = app.client().get(app.url(path)).bearer_auth(token).send().await.unwrap();
    let took = started.elapsed();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let body = answer.json().await.unwrap_or_default();
    // Forward-auth sends an empty value for a request that is not degraded.
    let degraded = headers.get("x-kinsync-degraded").is_some_and(|value| value == "true");
    Reply { status, degraded, body, took }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_first_requests_and_their_webhooks_at_once_make_a_thousand_users() {
    const USERS: usize = 1_000;
    let mut deployment = Deployment::start(TestMongo::shared().await, 3).await;
    deployment.kinde.set_fault(Fault::chance(FaultKind::Duplicate { copies: 1 }, 0.2));
    let deployment_ref = &deployment;
    // Signing up sends `user.created` to all three; the user's own request goes to one of them at the same moment.
    let requests = stream::iter(0..USERS).map(async |n| {
        let user = deployment_ref.kinde.sign_up(named(n)).unwrap();
        let token = deployment_ref.token(&user.id);
        let reply = request(deployment_ref, n % 3, ["/api/me", "/api/profile"][n % 2], &token).await;
        assert_eq!((reply.status, &reply.body["kindeId"]), (200, &Value::from(user.id)), "{}", reply.body);
    });
    requests.buffer_unordered(64).collect::<Vec<()>>().await;
    deployment.converged().await;
    assert_eq!(deployment.users.count_documents(doc! {}).await.unwrap(), USERS as u64);
    let sent = deployment.kinde.stats().delivered;
    assert!(sent >= 3 * USERS as u64, "each process received each user: {sent} deliveries");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_deleted_at_kinde_is_refused_within_a_second_by_every_process() {
    let mut deployment = Deployment::start(TestMongo::shared().await, 3).await;
    // Only one process receives the event. The others share the store with it, and nothing else.
    for webhook in deployment.kinde.webhooks().iter().skip(1) {
        deployment.kinde.remove_webhook(&webhook.id).unwrap();
    }
    let mut lags = Vec::new();
    // Five times, and more often while the machine is busy.
    for n in 0..40 {
        if n >= 5 && lags.iter().any(|lag| *lag < LAG) {
            break;
        }
        let user = deployment.kinde.sign_up(named(n)).unwrap();
        let token = deployment.token(&user.id);
        for process in 0..3 {
            assert_eq!(request(&deployment, process, "/api/me", &token).await.status, 200);
        }
        deployment.kinde.delete_user(&user.id, kinde_emulator::Profile::Remove).unwrap();
        deployment.kinde.quiesce(DEADLINE).await.unwrap();
        let deleted_at = Instant::now();
        let deleted = doc! { "kindeId": &user.id, "isDeleted": true };
        let deadline = Instant::now() + DEADLINE;
        while deployment.users.find_one(deleted.clone()).await.unwrap().is_none() {
            assert!(Instant::now() < deadline, "the deletion is not stored");
        }
        let lag = deleted_at.elapsed();
        lags.push(lag);
        // A second from the webhook, or from the write to the store if the projector was late on an overloaded machine.
        let limit = if lag < LAG { Duration::from_secs(1) } else { lag + Duration::from_secs(1) };
        for process in [1, 2, 0] {
            loop {
                let sent = deleted_at.elapsed();
                let reply = request(&deployment, process, "/auth/verify", &token).await;
                if reply.status == 403 {
                    assert_eq!(reply.body["reason"], "deleted");
                    break;
                }
                // On an overloaded machine the store misses its deadline; the request is then degraded and marked as such.
                assert!(reply.degraded || sent < limit, "process {process} after {sent:?}, lag {lag:?}");
            }
        }
    }
    assert!(lags.iter().any(|lag| *lag < LAG), "never within a second of the webhook: {lags:?}");
    deployment.apps.iter_mut().for_each(|app| _ = app.leaves_entries());
}

/// An outage.
#[derive(Clone, Copy, Debug)]
enum Outage {
    StoreStopped,
    StoreHangs,
    StoreSlow,
    KindeFails,
    KindeSlow,
    BothStopped,
    BothSlow,
}

impl Outage {
    const ALL: [Self; 7] = [
        Self::StoreStopped,
        Self::StoreHangs,
        Self::StoreSlow,
        Self::KindeFails,
        Self::KindeSlow,
        Self::BothStopped,
        Self::BothSlow,
    ];

    fn hits_store(self) -> bool {
        !matches!(self, Self::KindeFails | Self::KindeSlow)
    }

    async fn begin(
        self,
        deployment: &Deployment,
        mongo: &TestMongo,
    ) -> Option<kinsync_testing::mongo::FailPoint> {
        let slow = Duration::from_secs(15);
        match self {
            Self::KindeFails | Self::BothStopped => {
                deployment.kinde.set_fault(Fault::always(FaultKind::Status { status: 503 }));
            }
            Self::KindeSlow | Self::BothSlow => {
                deployment.kinde.set_fault(Fault::always(FaultKind::Slow { min: slow, max: slow }));
            }
            _ => {}
        }
        match self {
            Self::StoreStopped | Self::BothStopped => mongo.stop(),
            Self::StoreHangs => mongo.pause(),
            Self::StoreSlow | Self::BothSlow => {
                let commands = ["find", "insert", "update", "aggregate"];
                let data = doc! { "failCommands": commands, "blockConnection": true, "blockTimeMS": 15_000 };
                return Some(mongo.fail_point("alwaysOn", data).await);
            }
            _ => {}
        }
        None
    }

    async fn end(self, deployment: &Deployment, mongo: &TestMongo) {
        deployment.kinde.clear_faults();
        match self {
            Self::StoreStopped | Self::BothStopped => mongo.restart().await,
            Self::StoreHangs => mongo.resume(),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_every_outage_requests_are_answered_in_time_and_no_user_is_lost() {
    let mongo = TestMongo::start_own().await;
    let mut deployment = Deployment::start(&mongo, 1).await;
    let known = deployment.kinde.sign_up(named(0)).unwrap();
    let known_token = deployment.token(&known.id);
    deployment.converged().await;
    for (round, outage) in Outage::ALL.into_iter().enumerate() {
        assert_eq!(request(&deployment, 0, "/api/me", &known_token).await.status, 200, "before {outage:?}");
        let guard = outage.begin(&deployment, &mongo).await;
        for n in 1..=5 {
            // Imported, so no webhook is sent. One request for each.
            let new = deployment.kinde.import_user(named(100 * (round + 1) + n)).unwrap();
            for (path, user) in [
                ("/api/me", &new.id),
                ("/auth/verify", &new.id),
                ("/api/me", &known.id),
                ("/api/profile?refresh=true", &known.id),
            ] {
                let mut reply = request(&deployment, 0, path, &deployment.token(user)).await;
                // A store that is well misses its deadline on a busy machine now and then.
                for _ in 0..20 {
                    if outage.hits_store() || !reply.degraded {
                        break;
                    }
                    reply = request(&deployment, 0, path, &deployment.token(user)).await;
                }
                assert_eq!(reply.status, 200, "{outage:?}: {path}: {}", reply.body);
                assert!(reply.took < ANSWERED, "{outage:?}: {path} took {:?}", reply.took);
                let is_new = *user == new.id;
                assert!(!is_new || reply.degraded == outage.hits_store(), "{outage:?}: {path}: degraded?");
            }
        }
        drop(guard);
        outage.end(&deployment, &mongo).await;
        assert_appears(&deployment, round).await;
    }
    deployment.kinde.shutdown().await;
    let reply = request(&deployment, 0, "/api/profile", &known_token).await;
    assert_eq!(
        (reply.status, &reply.body["firstName"]),
        (200, &"First 0".into()),
        "while Kinde is unavailable"
    );
}

/// Asserts that the users of this round are stored without another request.
async fn assert_appears(deployment: &Deployment, round: usize) {
    let emails: Vec<String> = (1..=5).map(|n| format!("user{}@example.com", 100 * (round + 1) + n)).collect();
    let ids: Vec<String> =
        emails.iter().map(|email| deployment.kinde.user_by_email(email).unwrap().id.clone()).collect();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let stored =
            deployment.users.count_documents(doc! { "kindeId": { "$in": &ids } }).await.unwrap_or_default();
        if stored == 5 {
            break;
        }
        assert!(Instant::now() < deadline, "only {stored} of 5 appeared: {}", deployment.apps[0].log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The next request of each user loads the profile from Kinde.
    for id in ids {
        let user = deployment.kinde.user(&id).unwrap();
        let token = deployment.token(&id);
        while let Some(wrong) = deployment.difference(&user).await {
            assert!(Instant::now() < deadline, "{id}: {wrong}: {}", deployment.apps[0].log());
            request(deployment, 0, "/api/me", &token).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_document_is_linked_to_the_user_that_signs_in_with_its_verified_address() {
    let mut deployment = Deployment::start(TestMongo::shared().await, 2).await;
    let own = doc! { "_id": "own", "email": "ada@example.com", "plan": "pro" };
    deployment.users.insert_one(own).await.unwrap();
    deployment
        .users
        .insert_one(doc! { "_id": "other", "email": "eve@example.com", "plan": "free" })
        .await
        .unwrap();
    let sign_up = |email: &str, email_verified| {
        deployment
            .kinde
            .sign_up(NewUser { email_verified, ..NewUser::named(email, "Ada", "Lovelace") })
            .unwrap()
            .id
    };
    let (ada, eve) = (sign_up("ada@example.com", true), sign_up("eve@example.com", false));
    let deadline = Instant::now() + DEADLINE;
    let linked = doc! { "_id": "own", "kindeId": &ada, "plan": "pro", "firstName": "Ada" };
    while deployment.users.find_one(linked.clone()).await.unwrap().is_none() {
        assert!(Instant::now() < deadline, "not linked: {}", deployment.apps[0].log());
        for (process, user) in [(0, &ada), (1, &ada), (1, &eve)] {
            assert_eq!(request(&deployment, process, "/api/me", &deployment.token(user)).await.status, 200);
        }
    }
    assert_eq!(deployment.users.count_documents(doc! { "kindeId": &ada }).await.unwrap(), 1);
    assert_eq!(
        request(&deployment, 1, "/api/profile?refresh=true", &deployment.token(&eve)).await.status,
        200
    );
    let other = deployment.users.find_one(doc! { "_id": "other" }).await.unwrap().unwrap();
    assert!(!other.contains_key("kindeId"), "a user with an unverified address is not linked");
    let me = request(&deployment, 0, "/api/me", &deployment.token(&eve)).await.body;
    assert_eq!(me["emailConflict"]["heldBy"], "other");
    // The webhooks may still be in flight.
    deployment.kinde.quiesce(DEADLINE).await.unwrap();
    for app in &mut deployment.apps {
        app.drained(DEADLINE).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn link_lists_what_would_be_linked_and_what_conflicts_and_then_does_it() {
    let mongo = TestMongo::shared().await;
    let deployment = Deployment::with(mongo, 1, &[("KINSYNC_LINK_BY_EMAIL", "never")]).await;
    for (id, email) in
        [("own", "ada@example.com"), ("other", "eve@example.com"), ("lone", "lone@example.com")]
    {
        deployment.users.insert_one(doc! { "_id": id, "email": email, "plan": "pro" }).await.unwrap();
    }
    for (email, email_verified) in [("ada@example.com", true), ("eve@example.com", false)] {
        let new = NewUser { email_verified, ..NewUser::named(email, "Ada", "Lovelace") };
        let user = deployment.kinde.import_user(new).unwrap().id;
        assert_eq!(request(&deployment, 0, "/api/profile", &deployment.token(&user)).await.status, 200);
    }
    let ada = deployment.kinde.user_by_email("ada@example.com").unwrap().id;
    let link = |args: &[&str], vars: &[(&str, &str)]| {
        let (uri, database) = (mongo.uri(), deployment.users.namespace().db);
        let usual =
            [("MONGODB_URI", &*uri), ("KINSYNC_DATABASE", &*database), ("KINDE_WEBHOOK_SECRET", SECRET)];
        let output =
            kinsync(&[&["link"], args].concat(), &usual).envs(vars.iter().copied()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, output, _) = link(&["--dry-run"], &[]);
    assert_eq!(code, 0);
    let columns = output.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(columns.contains(&format!("own {ada} would be linked nothing to do")), "{output}");
    assert!(columns.contains("address not verified the user verifies the address at Kinde"), "{output}");
    assert!(output.ends_with(
        "3 documents of your application with an email address: 1 would be linked, 1 cannot be linked, 1 without a matching user\n"
    ));
    assert_eq!(deployment.users.count_documents(doc! { "_id": "own", "kindeId": &ada }).await.unwrap(), 0);
    let (code, _, stderr) = link(&[], &[("KINSYNC_LINK_BY_EMAIL", "never")]);
    assert_eq!(code, 1);
    assert!(stderr.contains("KINSYNC_LINK_BY_EMAIL=verified"), "{stderr}");
    let (code, json, _) = link(&["--json"], &[]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["linked"], &json["conflicts"]), (0, &1.into(), &1.into()), "{json}");
    let mine = doc! { "_id": "own", "kindeId": &ada, "plan": "pro", "emailConflict": { "$exists": false } };
    assert_eq!(deployment.users.count_documents(mine).await.unwrap(), 1);
    let (code, _, stderr) = link(&["--dry-run"], &[("KINSYNC_DATABASE", "nobody_is_loaded_here")]);
    assert!(code == 1 && stderr.contains("run `kinsync backfill` first"), "{stderr}");
    let (code, _, stderr) = link(&["--mongodb-uri", ""], &[("MONGODB_URI", "")]);
    assert!(code != 0 && stderr.contains("MONGODB_URI"), "{stderr}");
}
