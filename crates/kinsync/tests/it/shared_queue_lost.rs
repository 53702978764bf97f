//! Deliveries that a shared queue has accepted and lost, and that Kinde does not send again: a scan finds the users that differ.

use std::collections::BTreeSet;

use bson::{Document, doc};
use futures_util::TryStreamExt as _;
use kinde_emulator::{NewUser, Profile, UserEdit};
use kinsync_testing::{mongo::TestMongo, rabbitmq::TestRabbitmq, redis::TestRedis};
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    deployment::{DEADLINE, Deployment},
    server::{SECRET, kinsync},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_repairs_what_a_restart_of_a_redis_without_files_lost() {
    let redis = TestRedis::start(&[]);
    let lose = || {
        redis.kill();
        redis.launch();
    };
    a_scan_repairs_what_is_lost(&redis.url(), lose).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_repairs_what_was_flushed_in_redis() {
    let redis = TestRedis::start(&[]);
    a_scan_repairs_what_is_lost(&redis.url(), || assert_eq!(redis.run("FLUSHALL"), "+OK\r\n")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_repairs_what_was_purged_in_rabbitmq() {
    let rabbitmq = TestRabbitmq::start();
    let lose = || _ = rabbitmq.control(&["purge_queue", "kinsync.queue"]);
    a_scan_repairs_what_is_lost(&rabbitmq.url(), lose).await;
}

async fn a_scan_repairs_what_is_lost(queue: &str, lose: impl Fn()) {
    let mut deployment = Deployment::with(TestMongo::shared().await, 1, &[("KINSYNC_QUEUE", queue)]).await;
    let kinde = deployment.kinde.clone();
    let user = |name: &str| NewUser::named(&format!("{name}@example.com"), name, "User");
    let [renamed, deleted] = ["renamed", "deleted"].map(|name| kinde.sign_up(user(name)).unwrap().id);
    deployment.converged().await;
    deployment.apps[0].stop().await.unwrap();

    // It accepts deliveries and applies none.
    deployment.apps[0].set("KINSYNC_ROLE", "ingest").start().await.unwrap();
    let created = kinde.sign_up(user("created")).unwrap().id;
    kinde.update_user(&renamed, UserEdit { first_name: Some("Ada".into()), ..UserEdit::default() }).unwrap();
    kinde.delete_user(&deleted, Profile::Remove).unwrap();
    // Everything is answered 200.
    kinde.quiesce(DEADLINE).await.unwrap();
    let waiting = deployment.apps[0].health().await.unwrap();
    assert!(waiting["components"]["queue"]["depth"].as_u64() >= Some(3), "{waiting}");
    deployment.apps[0].stop().await.unwrap();
    lose();

    deployment.apps[0].set("KINSYNC_ROLE", "all").start().await.unwrap();
    // The queue works again, also without its group or its entries.
    let later = kinde.sign_up(user("later")).unwrap().id;
    kinde.quiesce(DEADLINE).await.unwrap();
    deployment.until_stored(&later, doc! {}).await;
    let lost = [&deleted, &later, &renamed].map(Clone::clone);
    assert_eq!(live(&deployment).await, lost.into(), "nothing but a scan can know");

    let deadline = Instant::now() + DEADLINE;
    let mut found = [0; 3];
    loop {
        let drift = scan(&deployment);
        let count = |kind: &str| drift[kind].as_u64().unwrap_or_default();
        for (found, kind) in found.iter_mut().zip(["missing", "changed", "deleted"]) {
            *found += count(kind);
        }
        // Kinde's clock has whole seconds: the next scan decides about a user that changed in the last one.
        if count("too_recent") == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{drift}");
    }
    assert_eq!(found, [1; 3], "each loss is found once");
    deployment.converged().await;
    assert_eq!(live(&deployment).await, [created, later, renamed].into());
    deployment.apps[0].stop().await.unwrap();
}

/// Ids of the users that are not deleted.
async fn live(deployment: &Deployment) -> BTreeSet<String> {
    let live = deployment.users.find(doc! { "isDeleted": false }).await.unwrap();
    let live: Vec<Document> = live.try_collect().await.unwrap();
    live.iter().map(|user| user.get_str("kindeId").unwrap().to_owned()).collect()
}

/// Runs a scan and returns the differences that it found.
fn scan(deployment: &Deployment) -> Value {
    let config = deployment.kinde.config();
    let vars = [
        ("MONGODB_URI", &*deployment.uri),
        ("KINSYNC_DATABASE", deployment.database().name()),
        ("KINDE_DOMAIN", deployment.kinde.issuer()),
        ("KINDE_M2M_CLIENT_ID", &config.client_id),
        ("KINDE_M2M_CLIENT_SECRET", &config.client_secret),
        ("KINDE_WEBHOOK_SECRET", SECRET),
    ];
    let output = kinsync(&["reconcile", "--json"], &vars).output().unwrap();
    let run: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    run["drift"].clone()
}
