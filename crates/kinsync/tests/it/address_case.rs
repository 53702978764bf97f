//! A document of the application and a Kinde user with one address in different cases, as an operator meets them.

use bson::doc;
use kinde_emulator::NewUser;
use kinsync_testing::mongo::TestMongo;
use serde_json::Value;

use crate::{
    deployment::{DEADLINE, Deployment},
    doctor::examine,
    server::{SECRET, kinsync},
    tenant::Tenant,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_document_in_another_case_is_listed_with_the_user_and_linked_if_the_settings_say_so() {
    let mongo = TestMongo::shared().await;
    let mut deployment = Deployment::start(mongo, 1).await;
    let own = doc! { "_id": "own", "email": "grace@example.com", "plan": "pro" };
    deployment.users.insert_one(own).await.unwrap();
    let grace = NewUser { email_verified: true, ..NewUser::named("Grace@Example.com", "Grace", "Hopper") };
    let grace = deployment.kinde.import_user(grace).unwrap().id;
    let token = deployment.token(&grace);
    let app = &mut deployment.apps[0];
    let profile = app.client().get(app.url("/api/profile")).bearer_auth(&token).send().await.unwrap();
    assert_eq!(profile.status(), 200);
    let (uri, database) = (mongo.uri(), deployment.users.namespace().db);
    let vars = [("MONGODB_URI", &*uri), ("KINSYNC_DATABASE", &*database), ("KINDE_WEBHOOK_SECRET", SECRET)];
    let dry_run = || kinsync(&["link", "--dry-run", "--json"], &vars);
    let report = |output: std::process::Output| serde_json::from_slice::<Value>(&output.stdout).unwrap();
    let before = report(dry_run().output().unwrap());
    assert_eq!((&before["withoutUser"], &before["conflicts"]), (&0.into(), &1.into()), "{before}");
    assert_eq!(before["candidates"][0]["user"], grace.as_str());
    assert_eq!(before["candidates"][0]["outcome"], "address in another form");

    let found = app.admin("/users?email=grace@example.COM").await.unwrap().unwrap();
    assert_eq!(found["users"][0]["kindeId"], grace.as_str(), "{found}");
    let mut tenant = Tenant::start().await;
    tenant.set("MONGODB_URI", &*uri).set("KINSYNC_DATABASE", &*database);
    examine(&tenant, &[]).is("mongodb.other_forms", "warning", &["own", &grace, "verified-ignore-case"]);

    app.set("KINSYNC_LINK_BY_EMAIL", "verified-ignore-case");
    app.stop().await.unwrap();
    app.start().await.unwrap();
    app.prepared().await.unwrap();
    let mut link = kinsync(&["link", "--json"], &vars);
    let linked = report(link.env("KINSYNC_LINK_BY_EMAIL", "verified-ignore-case").output().unwrap());
    assert_eq!((&linked["linked"], &linked["withoutUser"]), (&1.into(), &0.into()), "{linked}");
    app.until("the request finds the linked document", DEADLINE, async |app| {
        let answer = app.client().get(app.url("/api/me")).bearer_auth(&token).send().await?;
        let body: Value = answer.json().await?;
        Ok(body["kept"]["email"] == "grace@example.com" && body["email"] == "Grace@Example.com")
    })
    .await
    .unwrap();
    let events = deployment.database().collection::<bson::Document>("user_events");
    let commands = events.find(doc! { "type": "kinsync.operator" }).await.unwrap();
    let commands: Vec<bson::Document> = futures_util::TryStreamExt::try_collect(commands).await.unwrap();
    assert_eq!(commands.len(), 1, "not the dry runs: {commands:?}");
    assert!(commands[0].get_str("payload").unwrap().contains("\"kinsync link\""), "{commands:?}");
    assert_eq!(deployment.users.count_documents(doc! {}).await.unwrap(), 1);
}
