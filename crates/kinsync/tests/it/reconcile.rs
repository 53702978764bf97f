//! What no webhook told of, on real parts: the commands and the servers that find it, killed and silenced.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use bson::{Document, doc};
use futures_util::TryStreamExt;
use kinde_emulator::{
    Emulator, Fault, FaultKind, NewUser, Profile, UserEdit,
    config::{Generated, Unknowns},
};
use kinsync_testing::{app::TestApp, mongo::TestMongo};
use mongodb::Collection;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    doctor::prepared,
    request_path::{PATIENCE, Town, named},
    server::{TOKEN, kinsync},
};

/// A tenant, a MongoDB, and the settings of a command between them.
pub(crate) struct Place {
    pub(crate) kinde: Emulator,
    pub(crate) users: Collection<Document>,
    pub(crate) vars: Vec<(&'static str, String)>,
    _folder: tempfile::TempDir,
}

pub(crate) async fn place(config: kinde_emulator::Config) -> Place {
    Place::new(config).await
}

impl Place {
    async fn new(config: kinde_emulator::Config) -> Self {
        let mongo = TestMongo::shared().await;
        let kinde = Emulator::start(config).await.unwrap();
        let (database, folder) = (mongo.database(), tempfile::tempdir().unwrap());
        let vars = vec![
            ("KINDE_DOMAIN", kinde.issuer().to_owned()),
            ("KINDE_M2M_CLIENT_ID", kinde.config().client_id.clone()),
            ("KINDE_M2M_CLIENT_SECRET", kinde.config().client_secret.clone()),
            ("MONGODB_URI", mongo.uri()),
            ("KINSYNC_DATABASE", database.clone()),
            ("KINSYNC_DATA_DIR", folder.path().to_str().unwrap().to_owned()),
            ("KINSYNC_RECONCILE_PAGE_SIZE", "100".to_owned()),
        ];
        let users = mongo.client().await.database(&database).collection("users");
        Self { kinde, users, vars, _folder: folder }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let vars: Vec<(&str, &str)> = self.vars.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut command = kinsync(args, &vars);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end: exit code, stdout, stderr.
    pub(crate) async fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = self.command(args);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let Output { status, stdout, stderr } = output;
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code().unwrap(), text(stdout), text(stderr))
    }

    pub(crate) async fn json(&self, args: &[&str]) -> (i32, Value) {
        let (code, stdout, stderr) = self.run(args).await;
        let value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{code}: {stdout} {stderr}"));
        (code, value)
    }

    /// kinsync's own records.
    pub(crate) async fn state(&self) -> Collection<Document> {
        let client = TestMongo::shared().await.client().await;
        client.database(&self.users.namespace().db).collection("kinsync_state")
    }

    /// Starts a server on the same database, without scans of its own.
    pub(crate) async fn server(&self) -> TestApp {
        let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
        for (name, value) in &self.vars {
            if *name != "KINSYNC_DATA_DIR" {
                app.set(name, value.as_str());
            }
        }
        app.set("KINSYNC_RECONCILE_EVERY", "off").set("KINSYNC_ADMIN_TOKEN", TOKEN);
        app.start().await.unwrap();
        app.prepared().await.unwrap();
        app
    }

    /// Every document, without what differs from run to run.
    async fn documents(&self) -> BTreeMap<String, Document> {
        let found: Vec<Document> = self.users.find(doc! {}).await.unwrap().try_collect().await.unwrap();
        let essence = |mut document: Document| {
            for key in ["_id", "updatedAt", "kinsync"] {
                document.remove(key);
            }
            (document.get_str("kindeId").unwrap().to_owned(), document)
        };
        found.into_iter().map(essence).collect()
    }
}

pub(crate) fn generated(users: u64) -> kinde_emulator::Config {
    kinde_emulator::Config { generated: Generated { users, seed: 5 }, ..kinde_emulator::Config::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_killed_at_twenty_instants_ends_like_one_that_was_not() {
    const USERS: u64 = 12_000;
    let undisturbed = Place::new(generated(USERS)).await;
    let (code, run) = undisturbed.json(&["backfill", "--json"]).await;
    assert_eq!(
        (code, &run["drift"]["missing"], &run["outcome"]),
        (0, &USERS.into(), &"complete".into()),
        "{run}"
    );

    let place = Place::new(generated(USERS)).await;
    // So slow that twenty instants fall into it.
    let pause = Duration::from_millis(15);
    place.kinde.set_fault(Fault::always(FaultKind::Slow { min: pause, max: pause }).on("users"));
    let mut rng = StdRng::seed_from_u64(20);
    let mut killed = 0;
    while killed < 20 {
        let mut child = place.command(&["backfill", "--json"]).spawn().unwrap();
        let instant = Instant::now() + Duration::from_millis(rng.random_range(20..400));
        while Instant::now() < instant && child.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        child.kill().unwrap();
        let ended = child.wait().unwrap();
        if ended.success() {
            break;
        }
        killed += 1;
    }
    let (code, run) = place.json(&["backfill", "--json"]).await;
    assert_eq!((code, &run["users"]), (0, &USERS.into()), "after {killed} kills: {run}");
    let (there, here) = (undisturbed.documents().await, place.documents().await);
    assert_eq!(here.len(), there.len());
    assert!(here == there, "the result equals the undisturbed one");
    // A page that was written and kept is not fetched again; those in work when it was killed are: four batches of ten
    // pages, and the page that was on its way.
    let fetched = place.kinde.requests("users");
    assert!(fetched <= USERS / 100 + (killed + 1) * 41, "{fetched} pages with {killed} kills");
    assert!(killed > 3, "it was killed {killed} times, in the middle of the work");
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_command_that_waits_for_another_scan() {
    let place = Place::new(generated(100)).await;
    let pause = Duration::from_secs(30);
    place.kinde.set_fault(Fault::always(FaultKind::Slow { min: pause, max: pause }).on("users"));
    let mut scans = place.command(&["backfill"]).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while place.kinde.requests("users") == 0 {
        assert!(Instant::now() < deadline && scans.try_wait().unwrap().is_none(), "it does not scan");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut waits = place.command(&["backfill"]).spawn().unwrap();
    // Long enough for it to begin to wait; were it shorter, Ctrl-C would end it all the more.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(waits.try_wait().unwrap().is_none(), "it waits");
    interrupt(&waits);
    let ended = tokio::task::spawn_blocking(move || waits.wait_with_output().unwrap());
    let ended = tokio::time::timeout(Duration::from_secs(10), ended).await.expect("it ends").unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(
        ended.status.code() == Some(1) && said.contains("stopped; every started write was completed"),
        "{said}"
    );
    scans.kill().unwrap();
    scans.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_fills_a_collection_that_an_application_uses_already() {
    let place = Place::new(kinde_emulator::Config::default()).await;
    let ada = place.kinde.import_user(named(1)).unwrap().id;
    let eve = place.kinde.import_user(named(2)).unwrap().id;
    // One row has the Kinde id already, one has only an address, one is nobody's.
    place
        .users
        .insert_one(doc! { "kindeId": &ada, "email": "old@example.com", "plan": "pro" })
        .await
        .unwrap();
    place.users.insert_one(doc! { "email": "user2@example.com", "plan": "free" }).await.unwrap();
    place.users.insert_one(doc! { "name": "a robot" }).await.unwrap();
    let (code, stdout, stderr) = place.run(&["backfill"]).await;
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(stdout.contains("2 users at Kinde: 0 unchanged, 2 created"), "{stdout}");
    let found = place.users.find_one(doc! { "kindeId": &ada }).await.unwrap().unwrap();
    let values = (found.get_str("email").unwrap(), found.get_str("plan").unwrap());
    assert_eq!(values, ("old@example.com", "pro"), "values of the application stay");
    let metadata = found.get_document("kinsync").unwrap();
    assert_eq!(metadata.get_array("kept").unwrap(), &["email".into()]);
    assert_eq!(metadata.get_document("values").unwrap().get_str("email").unwrap(), "user1@example.com");
    // The Management API does not say that an address is verified: the row is not given away.
    let found = place.users.find_one(doc! { "kindeId": &eve }).await.unwrap().unwrap();
    assert!(found.get_str("email").is_err() && found.get_str("plan").is_err(), "{found}");
    assert_eq!(place.users.count_documents(doc! {}).await.unwrap(), 4);
    assert_eq!(place.run(&["backfill"]).await.1, "2 users at Kinde: 2 unchanged\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn reconcile_tells_repairs_holds_and_carries_out_what_is_approved() {
    let place = Place::new(generated(100)).await;
    assert_eq!(place.run(&["backfill"]).await.0, 0);
    let users = place.kinde.users();
    for user in &users[..30] {
        place.kinde.delete_user(&user.id, Profile::Remove).unwrap();
    }
    let edit = UserEdit { first_name: Some("New".into()), ..UserEdit::default() };
    place.kinde.update_user(&users[40].id, edit).unwrap();
    place.kinde.import_user(named(1)).unwrap();
    // Kinde's clock has whole seconds, less what an answer took: a read is surely newer than the last one only when
    // both have passed. Two reads within that time may be dated in either order.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = place.documents().await;
    let (code, dry) = place.json(&["reconcile", "--dry-run", "--json"]).await;
    let drift = |kind: &str| dry["drift"][kind].as_u64();
    assert_eq!(
        (code, drift("deletion_held"), drift("missing"), drift("changed")),
        (3, Some(30), Some(1), Some(1)),
        "{dry}"
    );
    assert_eq!(place.documents().await, before, "a dry run changes nothing");
    let (code, stdout, _) = place.run(&["reconcile", "--dry-run"]).await;
    assert!(code == 3 && stdout.contains("1 would be created, 1 would be changed"), "{stdout}");
    assert!(stdout.contains(&users[40].id) && stdout.contains("firstName"), "{stdout}");

    let (code, run) = place.json(&["reconcile", "--json"]).await;
    assert_eq!((code, &run["drift"]["deletion_held"]), (3, &30.into()), "{run}");
    let live = doc! { "isDeleted": false };
    assert_eq!(
        place.users.count_documents(live.clone()).await.unwrap(),
        101,
        "creations flow, deletions wait"
    );
    let (code, _, stderr) = place.run(&["reconcile", "--approve", "20200101-000000-0000"]).await;
    assert!(code == 1 && stderr.contains("holds no deletions"), "{stderr}");
    let id = run["id"].as_str().unwrap();
    let (code, stdout, stderr) = place.run(&["reconcile", "--approve", id]).await;
    assert!(code == 0 && stdout.contains("30 deleted"), "{stdout}{stderr}");
    assert_eq!(place.users.count_documents(live).await.unwrap(), 71);
    assert_eq!(place.run(&["reconcile"]).await.1, "71 users at Kinde: 71 unchanged\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_for_an_unknown_user_that_nobody_knows_deletes_nobody_until_it_is_set() {
    let unknown_user_code = "NO_SUCH_USER".to_owned();
    let unknowns = Unknowns { unknown_user_code, ..Unknowns::default() };
    let mut place = Place::new(kinde_emulator::Config { unknowns, ..Default::default() }).await;
    let [ada, _] = [1, 2].map(|n| place.kinde.import_user(named(n)).unwrap().id);
    assert_eq!(place.run(&["backfill"]).await.0, 0);
    place.kinde.delete_user(&ada, Profile::Remove).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (code, run) = place.json(&["reconcile", "--json"]).await;
    assert_eq!((code, &run["drift"]), (0, &json!({ "undetermined": 1 })), "{run}");
    place.vars.push(("KINSYNC_UNKNOWN_USER_CODES", "OTHER, NO_SUCH_USER".to_owned()));
    let (code, run) = place.json(&["reconcile", "--json"]).await;
    assert_eq!((code, &run["drift"]), (0, &json!({ "deleted": 1 })), "{run}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_makes_nothing_in_a_new_database() {
    let place = Place::new(generated(3)).await;
    let (code, stdout, stderr) = place.run(&["reconcile", "--dry-run"]).await;
    assert!(code == 0 && stdout.contains("3 would be created"), "{stdout}{stderr}");
    let database = TestMongo::shared().await.client().await.database(&place.users.namespace().db);
    assert_eq!(database.list_collection_names().await.unwrap(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_say_what_is_missing_to_ask_kinde() {
    let place = Place::new(kinde_emulator::Config::default()).await;
    let with = |name: &str, value: Option<&str>| {
        let mut command = place.command(&["backfill"]);
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name).env_remove("KINDE_M2M_CLIENT_SECRET"),
        };
        command.output().unwrap()
    };
    let no_application = with("KINDE_M2M_CLIENT_ID", None);
    let wrong_secret = with("KINDE_M2M_CLIENT_SECRET", Some("wrong"));
    for (output, expected) in [(no_application, "KINDE_M2M_CLIENT_ID"), (wrong_secret, "secret")] {
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && stderr.contains(expected), "{stderr}");
    }
    place.kinde.set_fault(Fault::always(FaultKind::EmptyList));
    let (code, _, stderr) = place.run(&["reconcile"]).await;
    assert!(code == 1 && stderr.contains("lists no users at all"), "{stderr}");
}

pub(crate) fn settings(every: &str) -> [(&'static str, String); 4] {
    let emulator = kinde_emulator::Config::default();
    [
        ("KINDE_M2M_CLIENT_ID", emulator.client_id),
        ("KINDE_M2M_CLIENT_SECRET", emulator.client_secret),
        ("KINSYNC_RECONCILE_EVERY", every.to_owned()),
        ("KINSYNC_ADMIN_TOKEN", TOKEN.to_owned()),
    ]
}

async fn town(processes: usize, every: &str) -> Town {
    let settings = settings(every);
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    Town::with(TestMongo::shared().await, processes, &settings).await
}

/// Waits until the document of this user is there, or is not.
pub(crate) async fn until_stored(town: &Town, id: &str, filter: Document) {
    let mut query = doc! { "kindeId": id };
    query.extend(filter);
    let deadline = Instant::now() + PATIENCE;
    while town.users.find_one(query.clone()).await.unwrap().is_none() {
        assert!(Instant::now() < deadline, "{query} is not found");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn admin(town: &Town, method: reqwest::Method, path: &str) -> Value {
    let app = &town.apps[0];
    let answer = app.client().request(method, app.url(path)).bearer_auth(TOKEN).send().await.unwrap();
    assert!(answer.status().is_success(), "{path}: {answer:?}");
    answer.json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_finds_who_was_imported_at_once_and_when_somebody_asks() {
    let town = town(1, "1h").await;
    // Nobody is there: a first scan finds nobody and says so; the next one is soon.
    let first = town.kinde.import_user(named(1)).unwrap().id;
    until_stored(&town, &first, doc! {}).await;
    let second = town.kinde.import_user(named(2)).unwrap().id;
    let pid = town.apps[0].pid().unwrap().to_string();
    assert!(Command::new("kill").args(["-USR1", &pid]).status().unwrap().success());
    until_stored(&town, &second, doc! {}).await;
    let third = town.kinde.import_user(named(3)).unwrap().id;
    admin(&town, reqwest::Method::POST, "/api/admin/reconcile").await;
    until_stored(&town, &third, doc! {}).await;
    let fourth = town.kinde.import_user(named(4)).unwrap().id;
    // The user is there before the run has ended.
    let deadline = Instant::now() + PATIENCE;
    let runs = loop {
        let runs = admin(&town, reqwest::Method::GET, "/api/admin/runs").await;
        if runs["runs"][0]["outcome"] == "complete" {
            break runs;
        }
        assert!(Instant::now() < deadline, "{runs}");
    };
    admin(&town, reqwest::Method::POST, &format!("/api/admin/users/{fourth}/check")).await;
    until_stored(&town, &fourth, doc! {}).await;
    let after = admin(&town, reqwest::Method::GET, "/api/admin/runs").await;
    assert_eq!(after, runs, "one user costs no scan");

    let newest = &runs["runs"][0];
    assert_eq!((&newest["users"], &newest["missedByWebhook"]), (&3.into(), &1.into()), "{newest}");
    assert!(newest["examples"].is_null(), "lists are short");
    let ways = (&newest["changesBySource"], &newest["previousSource"], &newest["since"]);
    let expected = (&json!({ "reconcile": 1 }), &json!({ "nothing": 1 }), &runs["runs"][1]["startedAt"]);
    assert_eq!(ways, expected, "{newest}");
    let path = format!("/api/admin/runs/{}", newest["id"].as_str().unwrap());
    let run = admin(&town, reqwest::Method::GET, &path).await;
    assert_eq!(
        (&run["examples"][0]["user"], &run["examples"][0]["kind"]),
        (&third.into(), &"missing".into()),
        "{run}"
    );
    let drift = admin(&town, reqwest::Method::GET, "/api/admin/drift").await;
    assert_eq!(drift["run"], run);
    let told = [
        "kinsync_users_in_drift{kind=\"missing\"} 1",
        "kinsync_users_changed_between_scans{source=\"reconcile\"} 1",
        "kinsync_users_changed_between_scans{source=\"webhook\"} 0",
        "kinsync_user_changes_total{source=\"reconcile\"} 4",
        "kinsync_reconcile_runs_total{outcome=\"complete\"}",
        "kinsync_time_to_consistency_seconds_count{source=\"reconcile\"}",
        // Users came and no event ever did.
        "kinsync_webhook_silent 1",
    ];
    // A write is seen by others before whoever made it counts it.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = town.apps[0].client().get(town.apps[0].url("/metrics")).send().await.unwrap();
        let metrics = answer.text().await.unwrap();
        let Some(missing) = told.into_iter().find(|line| !metrics.contains(line)) else { break };
        assert!(Instant::now() < deadline, "{missing} is not in\n{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_carries_out_the_deletions_that_are_approved() {
    let town = town(1, "1h").await;
    let users: Vec<String> = (0..40).map(|n| town.kinde.import_user(named(n)).unwrap().id).collect();
    for user in &users {
        until_stored(&town, user, doc! {}).await;
    }
    town.kinde.set_fault(Fault::always(FaultKind::Silent));
    for user in &users[..25] {
        town.kinde.delete_user(user, Profile::Remove).unwrap();
    }
    // A read is surely newer than the last one only when Kinde's clock has gone on.
    let deadline = Instant::now() + PATIENCE;
    let held = loop {
        admin(&town, reqwest::Method::POST, "/api/admin/reconcile").await;
        let runs = admin(&town, reqwest::Method::GET, "/api/admin/runs").await;
        if let Some(run) =
            runs["runs"].as_array().unwrap().iter().find(|run| run["drift"]["deletion_held"] == 25)
        {
            break run["id"].as_str().unwrap().to_owned();
        }
        assert!(Instant::now() < deadline, "{runs}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let url = town.apps[0].url("");
    let vars = [("KINSYNC_SERVER", url.as_str()), ("KINSYNC_ADMIN_TOKEN", TOKEN)];
    let approve = |run: &str| kinsync(&["reconcile", "--soon", "--approve", run], &vars).output().unwrap();
    let show =
        || String::from_utf8(kinsync(&["runs", "show", &held], &vars).output().unwrap().stdout).unwrap();
    assert!(show().contains(&format!("kinsync reconcile --approve {held}")), "{}", show());
    let refused = approve("20200101-000000-0000");
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && stderr.contains("holds no deletions"), "{stderr}");
    assert!(approve(&held).status.success());
    for user in &users[..25] {
        until_stored(&town, user, doc! { "isDeleted": true }).await;
    }
    assert_eq!(town.users.count_documents(doc! { "isDeleted": false }).await.unwrap(), 15);
    // The run that carries it out is recorded after its last deletion.
    let deadline = Instant::now() + PATIENCE;
    while show().contains("needs approval") {
        assert!(Instant::now() < deadline, "an approved run asks for approval: {}", show());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(show().contains("25 deletion held"), "{}", show());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_was_disabled_is_noticed_and_its_end_too() {
    let town = town(1, "2s").await;
    let ada = town.kinde.sign_up(named(1)).unwrap().id;
    until_stored(&town, &ada, doc! {}).await;
    town.kinde.quiesce(PATIENCE).await.unwrap();
    let silent = async |expected: bool| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let health = town.apps[0].health().await.unwrap();
            let problems = health["problems"].to_string();
            if problems.contains("the webhook is probably disabled") == expected {
                assert!(!expected || problems.contains("Settings > Webhooks"), "{problems}");
                return;
            }
            assert!(Instant::now() < deadline, "{expected}: {health}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    silent(false).await;
    let webhook = town.kinde.webhooks()[0].id.clone();
    town.kinde.disable_webhook(&webhook).unwrap();
    // Kinde goes on, and nobody tells.
    let deadline = Instant::now() + PATIENCE;
    for n in 2.. {
        town.kinde.sign_up(named(n)).unwrap();
        let health = town.apps[0].health().await.unwrap();
        if !health["components"]["reconcile"]["webhookSilence"].is_null() {
            break;
        }
        assert!(Instant::now() < deadline, "{health}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    silent(true).await;
    // Scans that find nothing more to repair do not say that the webhook works.
    let deadline = Instant::now() + PATIENCE;
    let mut clean = std::collections::BTreeSet::new();
    while clean.len() < 3 {
        let health = town.apps[0].health().await.unwrap();
        let reconcile = &health["components"]["reconcile"];
        if reconcile["missedByWebhook"] == 0 {
            assert!(!reconcile["webhookSilence"].is_null(), "{health}");
            clean.insert(reconcile["lastRun"].to_string());
        }
        assert!(Instant::now() < deadline, "{health}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    town.kinde.enable_webhook(&webhook).unwrap();
    town.kinde
        .update_user(&ada, UserEdit { first_name: Some("Back".into()), ..UserEdit::default() })
        .unwrap();
    silent(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_servers_one_scans_and_another_goes_on_when_it_is_killed() {
    let mut town = town(3, "1s").await;
    let first = town.kinde.import_user(named(1)).unwrap().id;
    until_stored(&town, &first, doc! {}).await;
    // A scan that does not end.
    let long = Fault::always(FaultKind::Slow { min: PATIENCE, max: PATIENCE }).on("users");
    town.kinde.set_fault(long.clone());
    let state = TestMongo::shared().await.client().await.database(&town.users.namespace().db);
    let lease = state.collection::<Document>("kinsync_state");
    let holder = async || {
        let record = lease.find_one(doc! { "_id": "reconcile.lease" }).await.unwrap()?;
        let value: Value = serde_json::from_str(record.get_str("value").unwrap()).unwrap();
        u32::try_from(value["value"]["place"]["pid"].as_u64()?).ok()
    };
    let deadline = Instant::now() + PATIENCE;
    let leader = loop {
        let has_begun =
            town.kinde.faults().iter().any(|report| report.fault == long && report.occurrences > 0);
        if let Some(leader) = holder().await.filter(|_| has_begun) {
            break leader;
        }
        assert!(Instant::now() < deadline, "nobody scans");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let asked = town.kinde.requests("users");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((holder().await, town.kinde.requests("users")), (Some(leader), asked), "the others wait");
    let killed = town.apps.iter_mut().find(|app| app.pid() == Some(leader)).unwrap();
    killed.kill().unwrap();
    town.kinde.clear_faults();
    let second = town.kinde.import_user(named(2)).unwrap().id;
    until_stored(&town, &second, doc! {}).await;
    let runs = admin_of(&town, leader).await;
    let outcomes: Vec<&Value> = runs["runs"].as_array().unwrap().iter().map(|run| &run["outcome"]).collect();
    assert!(outcomes.contains(&&Value::from("interrupted")), "{outcomes:?}");
}

async fn admin_of(town: &Town, killed: u32) -> Value {
    let app = town.apps.iter().find(|app| app.pid().is_some_and(|pid| pid != killed)).unwrap();
    let answer = app.client().get(app.url("/api/admin/runs")).bearer_auth(TOKEN).send().await.unwrap();
    answer.json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_lost_repeated_or_late_ends_as_kinde_has_it() {
    let mut town = town(2, "2s").await;
    town.kinde.set_fault(Fault::chance(FaultKind::Drop, 0.3));
    town.kinde.set_fault(Fault::chance(FaultKind::Silent, 0.1));
    town.kinde.set_fault(Fault::chance(FaultKind::Duplicate { copies: 1 }, 0.2));
    let delay = FaultKind::Delay { min: Duration::from_millis(500), max: Duration::from_secs(4) };
    town.kinde.set_fault(Fault::chance(delay, 0.3));
    let mut ids = Vec::new();
    for n in 0..120 {
        ids.push(town.kinde.sign_up(NewUser { email_verified: true, ..named(n) }).unwrap().id);
        let other = &ids[n / 2];
        let edit = UserEdit { first_name: Some(format!("Changed {n}")), ..UserEdit::default() };
        if n % 3 == 0 {
            _ = town.kinde.update_user(other, edit);
        }
        if n % 7 == 6 {
            _ = town.kinde.delete_user(other, Profile::Remove);
        }
    }
    town.settled().await;
    let live = town.kinde.users().len() as u64;
    let deadline = Instant::now() + PATIENCE;
    while town.users.count_documents(doc! { "isDeleted": false }).await.unwrap() != live {
        assert!(Instant::now() < deadline, "some deletions are not found");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn explained(town: &Town, id: &str) -> Value {
    admin(town, reqwest::Method::GET, &format!("/api/admin/users/{id}/explain")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_answers_while_kinde_is_slow_and_says_that_the_next_scan_is_unknown() {
    let town = town(1, "off").await;
    let ada = town.kinde.sign_up(named(1)).unwrap().id;
    until_stored(&town, &ada, doc! {}).await;
    let slow = FaultKind::Slow { min: Duration::from_mins(1), max: Duration::from_mins(1) };
    town.kinde.set_fault(Fault::always(slow).on("user"));
    let explained = explained(&town, &ada).await;
    assert_eq!(explained["observations"][0]["kind"], "user.created", "{explained}");
    let unknown = explained["nextScan"]["reason"].as_str().unwrap();
    assert!(unknown.contains("did not answer within"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_tells_of_tokens_of_clocks_that_are_ahead_and_of_events_that_say_nothing() {
    let mut town = town(1, "off").await;
    // Made by a request, with the address of the token.
    let ada = town.kinde.import_user(named(1)).unwrap().id;
    let slow = FaultKind::Slow { min: Duration::from_mins(1), max: Duration::from_mins(1) };
    town.kinde.set_fault(Fault::always(slow).on("profile"));
    let spec = kinde_emulator::TokenSpec {
        claims: serde_json::json!({ "email": "user1@example.com" }).as_object().unwrap().clone(),
        ..kinde_emulator::TokenSpec::default()
    };
    let token = town.kinde.access_token(&ada, &spec).unwrap();
    prepared(&mut town.apps[0]).await;
    let app = &town.apps[0];
    let answer = app.client().get(app.url("/api/me")).bearer_auth(token).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    until_stored(&town, &ada, doc! {}).await;
    let told = explained(&town, &ada).await["observations"].clone();
    assert_eq!((&told[0]["kind"], &told[0]["at"]), (&"token".into(), &Value::Null), "{told}");
    assert_eq!(told[0]["fields"][0]["value"], "user1@example.com", "{told}");

    let event = |id: &str, at: jiff::Timestamp, data: &str| {
        format!(
            r#"{{"type":"user.updated","event_id":"{id}","timestamp":"{at}","data":{{"user":{{"id":"{ada}"{data}}}}}}}"#
        )
    };
    // Within the tolerance it is applied, and beyond it is not.
    let now = kinsync_testing::wall_clock();
    let ahead = event("event_ahead", now + Duration::from_mins(3), r#","first_name":"Ahead""#);
    let far = event("event_far", now + Duration::from_mins(10), r#","first_name":"Far""#);
    let empty = event("event_empty", now, "");
    for body in [ahead, far, empty] {
        assert_eq!(town.apps[0].deliver(body).await.unwrap(), 200);
    }
    town.apps[0].leaves_entries();
    town.apps[0].drained(PATIENCE).await.unwrap();
    let told = explained(&town, &ada).await["observations"].clone();
    let fate = |event: &str| {
        let told = told.as_array().unwrap().iter().find(|told| told["eventId"] == event).unwrap();
        told["outcome"].as_str().unwrap().to_owned()
    };
    assert_eq!(fate("event_ahead"), "set 1 of 1 fields");
    assert!(fate("event_far").starts_with("quarantined"), "{told}");
    assert_eq!(fate("event_empty"), "the event contains no field");

    let url = town.apps[0].url("");
    let vars = [("KINSYNC_SERVER", url.as_str()), ("KINSYNC_ADMIN_TOKEN", TOKEN)];
    let output = kinsync(&["users", "explain", &ada], &vars).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("only values that still hold are known"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_tells_every_word_what_became_of_it_and_what_the_next_scan_would_do() {
    let town = town(1, "off").await;
    let app = &town.apps[0];
    let ada = town.kinde.sign_up(named(1)).unwrap().id;
    town.kinde.quiesce(PATIENCE).await.unwrap();
    // An older event comes late, and one that is of no use.
    let old = |event: &str, data: &str| {
        format!(
            r#"{{"type":"user.updated","event_id":"{event}","timestamp":"2020-01-01T00:00:00Z","data":{{"user":{data}}}}}"#
        )
    };
    let late = old("event_late", &format!(r#"{{"id":"{ada}","first_name":"Old"}}"#));
    assert_eq!(app.deliver(late).await.unwrap(), 200);
    until_stored(&town, &ada, doc! { "firstName": "First 1" }).await;
    // Kinde changes silently: the next scan would see it.
    town.kinde.set_fault(Fault::always(FaultKind::Silent));
    town.kinde
        .update_user(&ada, UserEdit { last_name: Some("Newer".into()), ..UserEdit::default() })
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    let explained = loop {
        let explained = admin(&town, reqwest::Method::GET, &format!("/api/admin/users/{ada}/explain")).await;
        let told = explained["observations"].as_array().unwrap();
        if told.len() >= 3 && explained["nextScan"]["kind"] == "changed" {
            break explained;
        }
        assert!(Instant::now() < deadline, "{explained}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(explained["nextScan"]["fields"][0], "lastName", "{explained}");
    let hour = Duration::from_hours(1);
    town.kinde.set_fault(Fault::always(FaultKind::Slow { min: hour, max: hour }).on("user"));
    let meanwhile = admin(&town, reqwest::Method::GET, &format!("/api/admin/users/{ada}/explain")).await;
    assert!(meanwhile["nextScan"]["reason"].is_string(), "{meanwhile}");
    assert_eq!(
        meanwhile["observations"], explained["observations"],
        "what is known here is told all the same"
    );
    town.kinde.clear_faults();
    let told = explained["observations"].as_array().unwrap();
    let of = |event: &str| told.iter().find(|told| told["eventId"] == event).unwrap();
    let late = of("event_late");
    assert_eq!(late["outcome"], "every field was superseded", "{late}");
    assert_eq!(
        (&late["fields"][0]["field"], &late["fields"][0]["value"]),
        (&"firstName".into(), &"Old".into())
    );
    let by = late["fields"][0]["supersededBy"].as_str().unwrap();
    assert!(by.starts_with("user.created event_"), "{by}");
    let created = told.iter().find(|told| told["kind"] == "user.created").unwrap();
    assert!(created["outcome"].as_str().unwrap().starts_with("set "), "{created}");
    assert_eq!(told[0], *late, "in the order of Kinde's clock");

    // For people, and what a deletion looks like.
    let url = app.url("");
    let vars = [("KINSYNC_SERVER", url.as_str()), ("KINSYNC_ADMIN_TOKEN", TOKEN)];
    let output = kinsync(&["users", "explain", &ada], &vars).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("firstName = \"Old\"") && text.contains("superseded by user.created"), "{text}");
    assert!(text.contains("The next scan: the user would be changed: lastName"), "{text}");
    town.kinde.clear_faults();
    town.kinde.delete_user(&ada, Profile::Remove).unwrap();
    until_stored(&town, &ada, doc! { "isDeleted": true }).await;
    let explained = admin(&town, reqwest::Method::GET, &format!("/api/admin/users/{ada}/explain")).await;
    let fates: Vec<&str> = explained["observations"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|told| told["outcome"].as_str())
        .collect();
    assert!(
        fates.contains(&"deleted the user") && fates.contains(&"the user was deleted later"),
        "{fates:?}"
    );
    assert_ne!(explained["nextScan"]["result"], "drift", "{explained}");

    let output = kinsync(&["reconcile", "--soon"], &vars).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = kinsync(&["runs", "list"], &vars).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        if text.contains("reconcile") {
            break;
        }
        assert!(output.status.success() && Instant::now() < deadline, "{text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Sends a signal, such as `KILL`.
#[cfg(unix)]
pub(crate) fn interrupt_with(child: &Child, signal: &str) {
    let sent = Command::new("kill").args(["-s", signal]).arg(child.id().to_string()).status();
    assert!(sent.is_ok_and(|sent| sent.success()));
}

/// Sends SIGINT, as Ctrl-C does.
#[cfg(unix)]
pub(crate) fn interrupt(child: &Child) {
    interrupt_with(child, "INT");
}
