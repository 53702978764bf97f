//! A disaster: MongoDB is restored to an older state, and the queue is lost.

use std::{path::Path, time::Duration};

use bson::{Document, doc};
use futures_util::TryStreamExt as _;
use kinde_emulator::{Profile, UserEdit};
use reqwest::Method;
use tokio::time::Instant;

use crate::{
    deployment::{DEADLINE, Deployment, named},
    server::{SECRET, kinsync},
};

/// Every document of every collection, as `mongodump` stores them.
async fn dump(database: &mongodb::Database) -> Vec<(String, Vec<Document>)> {
    let mut collections = Vec::new();
    for name in database.list_collection_names().await.unwrap() {
        let documents = database.collection(&name).find(doc! {}).await.unwrap().try_collect().await.unwrap();
        collections.push((name, documents));
    }
    collections
}

/// As `mongorestore --drop` does.
async fn restore(database: &mongodb::Database, dump: &[(String, Vec<Document>)]) {
    database.drop().await.unwrap();
    for (name, documents) in dump.iter().filter(|(_, documents)| !documents.is_empty()) {
        database.collection::<Document>(name).insert_many(documents).await.unwrap();
    }
}

async fn entries_of(deployment: &Deployment, user: &str) -> u64 {
    let log = deployment.database().collection::<Document>("user_events");
    log.count_documents(doc! { "user": user }).await.unwrap()
}

/// Requests scans until Kinde's users are stored and this one is deleted. Two scans of one second have no order, so one of them
/// may change nothing.
async fn until_scanned(deployment: &Deployment, deleted: &str) {
    let deadline = Instant::now() + DEADLINE;
    while let Some(wrong) = difference(deployment, deleted).await {
        assert!(Instant::now() < deadline, "{wrong}");
        deployment.admin(Method::POST, "/api/admin/reconcile").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn difference(deployment: &Deployment, deleted: &str) -> Option<String> {
    for user in deployment.kinde.users() {
        if let Some(wrong) = deployment.difference(&user).await {
            return Some(format!("{}: {wrong}", user.id));
        }
    }
    let is_deleted = doc! { "kindeId": deleted, "isDeleted": true };
    let found = deployment.users.find_one(is_deleted).await.unwrap();
    found.is_none().then(|| format!("{deleted} is not deleted"))
}

fn lose_the_queue(data: &Path) {
    std::fs::remove_dir_all(data).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_of_yesterday_and_without_the_queue_a_scan_repairs_every_user() {
    let mut deployment = Deployment::reconciled(1, "off").await;
    for n in 0..10 {
        deployment.kinde.create_user(named(n)).unwrap();
    }
    deployment.converged().await;
    deployment.admin(Method::POST, "/api/admin/reconcile").await;
    let (updated, deleted) = (deployment.kinde.users()[0].id.clone(), deployment.kinde.users()[1].id.clone());
    let yesterday = dump(deployment.database()).await;

    let edit = UserEdit { first_name: Some("Renamed".into()), ..UserEdit::default() };
    deployment.kinde.update_user(&updated, edit).unwrap();
    deployment.kinde.delete_user(&deleted, Profile::Remove).unwrap();
    let created = deployment.kinde.create_user(named(10)).unwrap().id;
    deployment.converged().await;
    deployment.until_stored(&deleted, doc! { "isDeleted": true }).await;

    deployment.apps[0].stop().await.unwrap();
    lose_the_queue(&deployment.apps[0].data_dir());
    restore(deployment.database(), &yesterday).await;
    assert!(difference(&deployment, &deleted).await.is_some(), "the copy is as old as the dump");
    let before = entries_of(&deployment, &deleted).await;
    deployment.apps[0].start().await.unwrap();
    deployment.apps[0].prepared().await.unwrap();
    until_scanned(&deployment, &deleted).await;

    // The log of the restored database has what the scan found, so it explains every user.
    assert!(entries_of(&deployment, &deleted).await > before, "the deletion is in the log");
    assert!(entries_of(&deployment, &created).await > 0, "the new user is in the log");
    deployment.apps[0].stop().await.unwrap();
    let data = deployment.apps[0].data_dir();
    let vars = [
        ("KINDE_WEBHOOK_SECRET", SECRET),
        ("MONGODB_URI", deployment.uri.as_str()),
        ("KINSYNC_DATABASE", deployment.database().name()),
        ("KINSYNC_DATA_DIR", data.to_str().unwrap()),
    ];
    let verified = kinsync(&["rebuild", "--verify"], &vars).output().unwrap();
    assert!(verified.status.success(), "{verified:?}");
}
